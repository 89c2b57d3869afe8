"""``FourierPreconditioner``: the functions of few frequencies that the data say something about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.fft
import torch
from torch import Tensor

from itergp.numerics.spectral import leading_eigenvectors
from itergp.operators.grid_rows import GridRows
from itergp.operators.lattice import Lattice
from itergp.operators.preconditioner import Preconditioner
from itergp.operators.tiles import slices

_MOST_POINTS = 2**20  # of the coarse grid
_TOLERANCE = 1e-3  # of conjugate gradients, relative: steps are cheap beside passes, but those at the end say little
_MAX_STEPS = 300
_OVERSAMPLING, _POWER_STEPS = 16, 3
_PROBES, _LANCZOS_STEPS = 32, 40
_COLUMNS = 8


@dataclass(frozen=True)
class CoarseLattice:
    """The lowest frequencies of a lattice.

    Attributes:
        lattice: All of them.
        highest: Numbers of the highest along each axis, K.
    """

    lattice: Lattice
    highest: tuple[int, ...]

    @classmethod
    def resolving(cls, lattice: Lattice, num_kernels: int, information: float, unresolved: float) -> CoarseLattice:
        """As many frequencies as the data say much about.

        Args:
            lattice: The lattice.
            num_kernels: ``C'``.
            information: Sum of the curvature over the rows.
            unresolved: Signal-to-noise ratio of the frequencies left out.
        """
        reach = 1.0 / np.max([term.rates.max(0) for term in lattice.terms], 0)  # inputs may lie on a line
        density = information * float((lattice.lengths / np.maximum(lattice.extent, reach)).prod())
        highest = []
        for axis, most in enumerate(cls._most(lattice)):
            counts = tuple(2 * most + 1 if a == axis else 1 for a in range(lattice.dim))
            along = np.max([lattice.coefficients(c, counts).ravel()[: most + 1] for c in range(num_kernels)], 0)
            highest.append(int(np.clip((density * along > unresolved).sum(), 1, most)))
        return cls(lattice, tuple(highest))

    def resolved(self, num_kernels: int, information: float) -> float:
        """About the number of functions that the data say more of than the prior.

        Args:
            num_kernels: ``C'``.
            information: Sum of the curvature over the rows.
        """
        share = float((self.lattice.extent / self.lattice.lengths).prod())  # of the box that has rows
        largest = np.max([self.lattice.coefficients(c, self.counts) for c in range(num_kernels)], 0)
        return 2.0 * share * float((information * largest > share).sum())

    @staticmethod
    def _most(lattice: Lattice) -> list[int]:
        side = int(_MOST_POINTS ** (1.0 / lattice.dim))
        return [max(1, min((points - 1) // 2, (side - 1) // 4)) for points in lattice.shape]

    @classmethod
    def memory_of(cls, lattice: Lattice, num_kernels: int) -> int:
        """Bytes of matrices on the largest coarse grid."""
        return 8 * (num_kernels + 1) ** 2 * math.prod(4 * most + 1 for most in cls._most(lattice))

    @property
    def counts(self) -> tuple[int, ...]:
        """Frequencies along each axis."""
        return tuple(2 * most + 1 for most in self.highest)

    @property
    def grid(self) -> tuple[int, ...]:
        """Points on which products of two such functions are exact."""
        return tuple(scipy.fft.next_fast_len(4 * most + 1, real=True) for most in self.highest)

    @property
    def doubled(self) -> Lattice:
        """The lattice, of a grid twice as fine if its own does not know the frequencies of products of two functions."""
        enough = all(4 * most < points for most, points in zip(self.highest, self.lattice.shape, strict=True))
        return self.lattice if enough else replace(self.lattice, shape=tuple(2 * n for n in self.lattice.shape))

    def places(self, shape: tuple[int, ...], times: int = 1) -> tuple[Tensor, ...]:
        """Where a half transform of a grid has the frequencies up to ``times`` the highest, as an index for each axis."""
        axes = []
        for axis, (most, points) in enumerate(zip(self.highest, shape, strict=True)):
            most = times * most
            number = torch.arange(most + 1)
            if axis < len(shape) - 1:
                number = torch.cat([number, torch.arange(points - most, points)])
            axes.append(number.view([-1 if a == axis else 1 for a in range(len(shape))]))
        return tuple(axes)


class FourierPreconditioner(Preconditioner):
    """Newton's system among the lowest frequencies of a lattice, in which its matrix is a convolution.

    ``f(x) = sum_k sqrt(c_k) y_k exp(i xi_k x)`` has ``y ~ N(0, I)``, and the curvature between two frequencies is the transform
    of that of all rows at their difference (Greengard, Rachh & Barnett 2022): a product takes two transforms of a small grid,
    whatever N. Conjugate gradients solve ``(I + B^T W B) y = B^T G``. What they find goes into every row: ``V = G - W B y``.

    Args:
        coarse: The frequencies.
        rows: The training rows on the lattice's grid, one for all kernels or for each.
        finer: The same on that of ``coarse.doubled``.
        curvature: W ``(N, C, C)``.
        num_kernels: ``C'``.
    """

    def __init__(
        self,
        coarse: CoarseLattice,
        rows: Sequence[GridRows],
        finer: Sequence[GridRows],
        curvature: Tensor,
        num_kernels: int,
    ) -> None:
        self._coarse, self._rows, self._curvature, self._num_kernels = coarse, rows, curvature, num_kernels
        self._axes = tuple(range(-len(coarse.grid), 0))
        self._index: tuple[Any, ...] = (..., *coarse.places(coarse.grid))
        device, counts = curvature.device, coarse.counts
        roots = np.sqrt([coarse.lattice.coefficients(c, counts) for c in range(num_kernels)])
        self._roots = torch.from_numpy(roots).to(device).expand(curvature.shape[-1], *roots.shape[1:])
        self._window = torch.from_numpy(coarse.lattice.window_transform(counts)).to(device)
        self._twice = torch.full((counts[-1] // 2 + 1,), 2.0, dtype=torch.float64, device=device)
        self._twice[0] = 1.0
        self._information = self._on_grid(finer)

    # ----------------------------------------------------------------- systems
    def solve(self, gradient: Tensor) -> Tensor:
        """About ``(I + W K)^{-1} G`` ``(N, C)``."""
        right = self._roots * torch.stack(
            [self._at_modes(c, gradient[:, c : c + 1])[0] for c in range(gradient.shape[1])]
        )
        y = self._conjugate_gradients(right.unsqueeze(0))
        values = torch.stack([self._at_rows(c, y[:, c])[:, 0] for c in range(gradient.shape[1])], -1)
        return gradient - torch.einsum("ncd,nd->nc", self._curvature, values)

    def _conjugate_gradients(self, right: Tensor) -> Tensor:
        y, residual, p = torch.zeros_like(right), right, right
        rho = self._inner(residual, residual)
        target = _TOLERANCE**2 * rho
        for _ in range(_MAX_STEPS):
            product = p + self._apply(p)
            along = self._inner(p, product)
            if not (rho > target and along > 0.0):
                break
            y, residual = y + rho / along * p, residual - rho / along * product
            previous, rho = rho, self._inner(residual, residual)
            p = residual + rho / previous * p
        return y

    def _inner(self, first: Tensor, second: Tensor) -> float:
        """Of the real vectors that half transforms stand for."""
        return float(((first.conj() * second).real * self._twice).sum())

    def _apply(self, y: Tensor) -> Tensor:
        """``B^T W B y`` for ``y`` ``(k, C, ...)``."""
        grid, latents = self._coarse.grid, y.shape[1]
        half = y.new_zeros(*y.shape[:2], *grid[:-1], grid[-1] // 2 + 1)
        half[self._index] = self._roots * y
        values = torch.fft.irfftn(half, s=grid, dim=self._axes) * math.prod(grid)
        if latents == 1:
            weighed = values * self._information[0, 0]
        else:
            weighed = torch.einsum("cd...,kd...->kc...", self._information, values)
        return self._roots * torch.fft.rfftn(weighed, dim=self._axes)[self._index]

    def _on_grid(self, finer: Sequence[GridRows]) -> Tensor:
        """What stands for W on the coarse grid ``(C, C, ...)``: its transform is W's up to twice the highest frequency."""
        coarse, grid, latents = self._coarse, self._coarse.grid, self._curvature.shape[-1]
        lattice = coarse.doubled
        counts = tuple(4 * most + 1 for most in coarse.highest)
        window = torch.from_numpy(lattice.window_transform(counts)).to(self._curvature.device)
        places, targets = coarse.places(lattice.shape, 2), coarse.places(grid, 2)
        found = self._curvature.new_zeros(latents, latents, *grid, dtype=torch.float64)
        for c in range(latents):
            for d in range(c + 1):
                sums = finer[min(c, len(finer) - 1)].sums(self._curvature[:, c, d].unsqueeze(-1)).double()
                modes = torch.fft.rfftn(sums.reshape(lattice.shape))[places] / window
                half = modes.new_zeros(*grid[:-1], grid[-1] // 2 + 1)
                half[targets] = modes
                found[c, d] = found[d, c] = torch.fft.irfftn(half, s=grid, dim=self._axes)
        return found

    # ------------------------------------------------------------- determinant
    def log_determinant(self) -> float:
        """About ``log |I + W K|``: of the lowest frequencies by random probes, of the others as if rows did not share them.

        Stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017), with the same probes every time. Its standard error is that of
        ``sqrt(2 / p) |log(I + B^T W B)|`` with p probes: some ten nats where thousands of eigenvalues are above one.
        """
        counts, latents = self._coarse.counts, self._curvature.shape[-1]
        generator = torch.Generator().manual_seed(1)
        signs = torch.randint(2, (_PROBES, latents, *counts), generator=generator).to(self._roots) * 2.0 - 1.0
        probes = torch.fft.rfftn(signs, dim=self._axes) / math.prod(counts) ** 0.5
        found = [self._log_quadrature(probes[i]) for i in slices(_PROBES, _COLUMNS)]
        rest = 0.0
        for c in range(latents):
            kept = float((self._roots[c].square() * self._twice).sum())
            left = max(self._coarse.lattice.variance(min(c, self._num_kernels - 1)) - kept, 0.0)
            rest += float((left * self._curvature[:, c, c].double()).clamp_min(0.0).log1p().sum())
        return sum(found) / _PROBES + rest

    def _log_quadrature(self, probes: Tensor) -> float:
        """The sum of ``z^T log(I + B^T W B) z`` over probes ``(k, C, ...)``, by Lanczos' method for all of them at once."""

        def inner(first: Tensor, second: Tensor) -> Tensor:
            return ((first.conj() * second).real * self._twice).flatten(1).sum(1)

        def times(vectors: Tensor, factors: Tensor) -> Tensor:
            return vectors * factors.view(-1, *[1] * (vectors.dim() - 1))

        squared = inner(probes, probes)
        q, previous, beta = times(probes, squared.rsqrt()), torch.zeros_like(probes), torch.zeros_like(squared)
        diagonal, beside = [], []
        for _ in range(_LANCZOS_STEPS):
            product = self._apply(q) - times(previous, beta)
            diagonal.append(inner(q, product))
            product = product - times(q, diagonal[-1])
            beta = inner(product, product).sqrt()
            beside.append(beta)
            previous, q = q, times(product, 1.0 / beta.clamp_min(1e-300))
        matrix = torch.diag_embed(torch.stack(diagonal, -1))
        off = torch.diag_embed(torch.stack(beside[:-1], -1), 1)
        values, vectors = torch.linalg.eigh(matrix + off + off.mT)
        return float((squared * (vectors[:, 0].square() * values.clamp_min(0.0).log1p()).sum(-1)).sum())

    # -------------------------------------------------------------- directions
    def directions(self, rank: int) -> Tensor:
        """Leading eigenvectors of what the data say about these frequencies, as functions at the rows ``(N, C, k)``."""
        counts, latents = self._coarse.counts, self._curvature.shape[-1]
        width = min(rank + _OVERSAMPLING, latents * math.prod(counts))
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(width, latents, *counts, generator=generator, dtype=torch.float64).to(
            self._curvature.device
        )
        block = self._real(torch.fft.rfftn(noise, dim=self._axes))
        for _ in range(_POWER_STEPS):
            block = torch.linalg.qr(block).Q
            parts = [self._apply(self._complex(block[:, i])) for i in slices(width, _COLUMNS)]
            previous, block = block, self._real(torch.cat(parts))
        mix = leading_eigenvectors(previous.mT @ block, min(rank, width), descending=True)
        modes = self._complex(previous @ mix)
        return torch.stack([self._at_rows(c, modes[:, c]) for c in range(latents)], 1)

    def _real(self, modes: Tensor) -> Tensor:
        """Half transforms ``(k, C, ...)`` as real columns whose inner products are theirs."""
        return torch.view_as_real(modes * self._twice.sqrt()).flatten(1).mT

    def _complex(self, columns: Tensor) -> Tensor:
        shape = (columns.shape[1], *self._roots.shape, 2)
        return torch.view_as_complex(columns.mT.reshape(shape).contiguous()) / self._twice.sqrt()

    # -------------------------------------------------------------------- rows
    def _at_modes(self, c: int, values: Tensor) -> Tensor:
        """``sum_n v_n exp(-i xi_k x_n)`` ``(k, ...)`` of values ``(N, k)``."""
        shape = self._coarse.lattice.shape
        sums = self._rows[min(c, len(self._rows) - 1)].sums(values)
        halves = [torch.fft.rfftn(column.reshape(shape))[self._coarse.places(shape)] for column in sums.mT.contiguous()]
        return torch.stack(halves).to(torch.complex128) / self._window

    def _at_rows(self, c: int, y: Tensor) -> Tensor:
        """``B y`` ``(N, k)`` for one latent function and ``y`` ``(k, ...)``."""
        shape = self._coarse.lattice.shape
        places, rows = self._coarse.places(shape), self._rows[min(c, len(self._rows) - 1)]
        modes = self._roots[c] * y / self._window * math.prod(shape)
        out = []
        for i in slices(y.shape[0], _COLUMNS):
            grids = []
            for column in modes[i]:
                half = column.new_zeros(*shape[:-1], shape[-1] // 2 + 1, dtype=_complex_of(self._curvature.dtype))
                half[places] = column.to(half.dtype)
                grids.append(torch.fft.irfftn(half, s=shape).flatten())
            out.append(rows.at_rows(torch.stack(grids, -1)))
        return torch.cat(out, -1)


def _complex_of(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype == torch.float64 else torch.complex64
