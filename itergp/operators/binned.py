"""``BinnedPreconditioner``: additive functions as step functions of a few hundred bins of every input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from itergp.numerics.cholesky import try_cholesky
from itergp.numerics.spectral import leading_eigenvectors, psd_eigen, symmetric, whitening
from itergp.operators.preconditioner import Preconditioner
from itergp.operators.tiles import slices

_TOLERANCE = 1e-5  # of conjugate gradients, relative: passes cost more than their steps
_MAX_STEPS = 60
# Of all kernels, at few bins, which systems are solved among directly; of each at least.
_SECTIONS, _FEWEST_SECTIONS = 400, 2
_DEPENDENT = 1e-8  # eigenvalue of kernel sections, as a share of the largest, that is left out
_SECTION_PAIRS = 2**26  # as below, for every system
_CANDIDATES, _FEWEST_CANDIDATES = 3, 640  # functions of single inputs: for each wanted direction, and in all
_SAMPLED_PAIRS = 2**28  # rows times pairs of functions beyond which a sample of the rows says how these go together
_CHUNK_NUMBERS = 2**19  # of an array that is worked on: more leave the cache


class Bins:
    """Sets of rows that share a value.

    Args:
        index: Of the set that each row is in ``(n,)``, 0 to ``g - 1``.
        counts: Rows of each ``(g,)``.

    Attributes:
        index: As given, int32.
        size: g.
    """

    def __init__(self, index: Tensor, counts: Tensor) -> None:
        self.index, self.size = index.to(torch.int32), counts.shape[0]
        self._order, self._counts = None, counts
        if index.device.type != "cpu":  # sums by atomic additions would differ from run to run
            self._order = index.argsort(stable=True).to(torch.int32)

    def sums(self, values: Tensor) -> Tensor:
        """Sums ``(g,)`` over the rows of each bin of ``(n,)``, float64."""
        if self._order is None:
            return torch.bincount(self.index, values.double(), self.size)
        return torch.segment_reduce(values.double().index_select(0, self._order), "sum", lengths=self._counts)

    def at_rows(self, table: Tensor) -> Tensor:
        """Values ``(n, ...)`` of each row's bin from ``(g, ...)``."""
        return table.index_select(0, self.index)


class BinnedColumn(Bins):
    """One column of inputs, its values put into bins: each distinct value has one of its own where these are few enough.

    Otherwise none is wider than ``2 / most`` of the range, and none has more than ``2 / most`` of the rows but by ties.

    Args:
        values: Ascending ``(n,)``.
        rank: Of each row in that order ``(n,)``.
        most: Largest number of bins.

    Attributes:
        index: Bin of each row ``(n,)``.
        centres: Mean of the values in each bin ``(g,)``, float64.
    """

    def __init__(self, values: Tensor, rank: Tensor, most: int) -> None:
        values = values.double()
        number = torch.arange(values.shape[0], device=values.device)
        fresh = torch.ones_like(number, dtype=torch.bool)
        fresh[1:] = values[1:] > values[:-1]
        if int(fresh.sum()) > most:
            first = torch.where(fresh, number, 0).cummax(0).values  # ties stay together
            span = (values[-1] - values[0]).clamp_min(torch.finfo(values.dtype).tiny)
            cell = (0.5 * most * (first / values.shape[0] + (values - values[0]) / span)).long()
            fresh[1:] = cell[1:] > cell[:-1]
        bins = fresh.cumsum(0) - 1
        counts = torch.bincount(bins, minlength=int(bins[-1]) + 1)
        super().__init__(bins[rank], counts)
        self.centres = torch.segment_reduce(values, "mean", lengths=counts)


class BinnedPair(Bins):
    """Two columns of inputs, each in bins: those pairs of these that rows have.

    Args:
        first: Bins of the one.
        second: Of the other.

    Attributes:
        centres: Of both bins of each pair ``(g, 2)``, float64.
    """

    def __init__(self, first: BinnedColumn, second: BinnedColumn) -> None:
        cell = first.index.long() * second.size + second.index
        cells, index, counts = cell.unique(return_inverse=True, return_counts=True)
        super().__init__(index, counts)
        both = first.centres[cells // second.size], second.centres[cells % second.size]
        self.centres = torch.stack(both, -1)


@dataclass(frozen=True)
class _Part:
    """A function of one input, or of two, of one latent function.

    Attributes:
        latent: Whose.
        bins: Of its inputs.
        kernel: Of the bins' centres ``(g, g)``, float64.
    """

    latent: int
    bins: Bins
    kernel: Tensor


class BinnedPreconditioner(Preconditioner):
    """Additive functions that are constant within bins of every input: ``f(x) = sum_d h_d(bin of x_d)``.

    With ``h_d`` Gaussian processes on the bins' centres, Newton's system ``(K_h^{-1} + B^T W B) h = B^T G`` has a few thousand
    unknowns, and its product with a vector costs a look-up and a sum per row and input. Conjugate gradients solve it. Their
    preconditioner adds up every function fitted by itself (block Jacobi, the symmetric form of backfitting: Buja, Hastie &
    Tibshirani 1989) and all of them fitted together where they are smooth, which inputs that go together need (additive
    Schwarz with a coarse space). What the bins know goes into every row: ``V = G - W B h``.

    Time ``O(N D)`` a step, and ``g^3`` for each input and curvature; memory ``g^2`` numbers for each input, and N for the bins.

    Args:
        columns: Bins of every input, and of pairs of them, for each of ``C'`` kernels.
        kernels: Of their centres ``(g, g)``, float64, alike.
        curvature: W ``(N, C, C)``.
    """

    def __init__(
        self, columns: Sequence[Sequence[Bins]], kernels: Sequence[Sequence[Tensor]], curvature: Tensor
    ) -> None:
        self._curvature, self._parts = curvature, []
        self._levels: tuple[_EachByItself, _AllTogether] | None = None
        for c in range(curvature.shape[-1]):
            own = min(c, len(columns) - 1)
            pairs = zip(columns[own], kernels[own], strict=True)
            self._parts += [_Part(c, bins, kernel) for bins, kernel in pairs]

    # ----------------------------------------------------------------- systems
    def solve(self, gradient: Tensor) -> Tensor:
        """About ``(I + W K)^{-1} G`` ``(N, C)``."""
        parts, curvature = self._parts, self._curvature
        if self._levels is None:
            self._levels = _EachByItself(parts, curvature), _AllTogether(parts, curvature)
        each, together = self._levels

        def weighed(h: Tensor) -> Tensor:
            return torch.einsum("ncd,dn->cn", curvature, _at_rows(parts, each.split(h), gradient))

        def information(h: Tensor) -> Tensor:
            return _sums(parts, weighed(h))

        def precondition(right: Tensor) -> tuple[Tensor, Tensor]:
            fine, coarse = each(right), together(right)
            return fine[0] + coarse[0], fine[1] + coarse[1]

        h = _conjugate_gradients(_sums(parts, gradient.mT), precondition, information)
        return gradient - weighed(h).mT

    # -------------------------------------------------------------- directions
    def directions(self, rank: int) -> Tensor:
        """Leading eigenvectors of what the data say about leading functions of single inputs ``(N, C, k)``."""
        parts, curvature = self._parts, self._curvature
        functions = _leading_functions(parts, curvature, max(_FEWEST_CANDIDATES, _CANDIDATES * rank))
        together = _information(parts, functions, curvature)
        mix = leading_eigenvectors(together, min(rank, together.shape[0]), descending=True)
        shares = mix.split([f.shape[1] for f in functions])
        tables = [(f @ share).to(curvature) for f, share in zip(functions, shares, strict=True)]
        out = curvature.new_zeros(*curvature.shape[:2], mix.shape[1])
        for rows in slices(out.shape[0], max(1, _CHUNK_NUMBERS // max(1, mix.shape[1]))):
            for part, table in zip(parts, tables, strict=True):
                out[rows, part.latent] += table.index_select(0, part.bins.index[rows])
        return out


class _EachByItself:
    """``(K_d^{-1} + W_d)^{-1}`` for every part, and K_d's inverse times that, from factors of ``I + W_d^{1/2} K_d W_d^{1/2}``.

    Args:
        parts: The parts.
        curvature: W ``(N, C, C)``.
    """

    def __init__(self, parts: Sequence[_Part], curvature: Tensor) -> None:
        self._kernels = [part.kernel for part in parts]
        self._roots, self._factors = [], []
        for part in parts:
            root, scaled = _scaled_kernel(part, curvature)
            scaled.diagonal().add_(1.0)
            self._roots.append(root)
            self._factors.append(try_cholesky(scaled)[0])  # of no use where the curvature is not finite

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """The parts of a vector ``(G,)``."""
        return vector.split([kernel.shape[0] for kernel in self._kernels])

    def __call__(self, right: Tensor) -> tuple[Tensor, Tensor]:
        """Solutions z ``(G,)`` and ``K_h^{-1} z``."""
        solved, products = [], []
        for part, kernel, root, factor in zip(
            self.split(right), self._kernels, self._roots, self._factors, strict=True
        ):
            inside = torch.cholesky_solve((root * (kernel @ part)).unsqueeze(-1), factor).squeeze(-1)
            products.append(part - root * inside)
            solved.append(kernel @ products[-1])
        return torch.cat(solved), torch.cat(products)


class _AllTogether:
    """The same for all parts at once, ``(K_h^{-1} + B^T W B)^{-1}``, among sections of each kernel at a few of its bins.

    ``E = K_d[:, J] M`` with ``M^T K_d[J, J] M = I`` are functions of unit prior norm, and ``K_d^{-1} E`` is M in the rows J: no
    inverse is needed.

    Args:
        parts: The parts.
        curvature: W ``(N, C, C)``.
    """

    def __init__(self, parts: Sequence[_Part], curvature: Tensor) -> None:
        width = max(_FEWEST_SECTIONS, _SECTIONS // len(parts))
        self._places, self._mixes = [], []
        for part in parts:
            ends = torch.linspace(0, part.bins.size - 1, min(width, part.bins.size), device=part.kernel.device)
            place = ends.round().long().unique()
            self._places.append(place)
            self._mixes.append(whitening(part.kernel[place][:, place], _DEPENDENT, relative=True))
        sections = zip(parts, self._places, self._mixes, strict=True)
        self._functions = [part.kernel[:, place] @ mix for part, place, mix in sections]
        matrix = _information(parts, self._functions, curvature, _SECTION_PAIRS)
        matrix.diagonal().add_(1.0)
        self._factor = try_cholesky(matrix)[0]

    def __call__(self, right: Tensor) -> tuple[Tensor, Tensor]:
        """Solutions z ``(G,)`` and ``K_h^{-1} z``."""
        pieces = right.split([f.shape[0] for f in self._functions])
        inside = torch.cat([f.mT @ piece for f, piece in zip(self._functions, pieces, strict=True)])
        solved = torch.cholesky_solve(inside.unsqueeze(-1), self._factor).squeeze(-1)
        shares = solved.split([f.shape[1] for f in self._functions])
        z = torch.cat([f @ share for f, share in zip(self._functions, shares, strict=True)])
        inverse = [torch.zeros_like(piece) for piece in pieces]
        for target, place, mix, share in zip(inverse, self._places, self._mixes, shares, strict=True):
            target[place] = mix @ share
        return z, torch.cat(inverse)


def _conjugate_gradients(
    right: Tensor, precondition: Callable[[Tensor], tuple[Tensor, Tensor]], information: Callable[[Tensor], Tensor]
) -> Tensor:
    """Solves ``K_h^{-1} h + information(h) = right``; the inverse is only met in products with what K_h has multiplied."""
    h, residual = torch.zeros_like(right), right
    z, inverse_z = precondition(residual)
    p, inverse_p, rho = z, inverse_z, residual @ z
    target = _TOLERANCE**2 * rho
    for _ in range(_MAX_STEPS):
        product = inverse_p + information(p)
        along = p @ product
        if not bool((rho > target) & (along > 0.0)):
            break
        h, residual = h + rho / along * p, residual - rho / along * product
        z, inverse_z = precondition(residual)
        previous, rho = rho, residual @ z
        p, inverse_p = z + rho / previous * p, inverse_z + rho / previous * inverse_p
    return h


def _sums(parts: Sequence[_Part], values: Tensor) -> Tensor:
    """``B^T`` times values ``(C, N)``: ``(G,)``."""
    values = values.double().contiguous()
    return torch.cat([part.bins.sums(values[part.latent]) for part in parts])


def _at_rows(parts: Sequence[_Part], tables: Sequence[Tensor], like: Tensor) -> Tensor:
    """``B h`` ``(C, N)`` from what h is in each part, in the dtype of ``like`` ``(N, C)``."""
    out = like.new_zeros(like.shape[1], like.shape[0])
    for part, table in zip(parts, tables, strict=True):
        out[part.latent] += part.bins.at_rows(table.to(like))
    return out


def _scaled_kernel(part: _Part, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """``W_d^{1/2}`` ``(g,)`` of a part, W_d the curvature of its bins, and ``W_d^{1/2} K_d W_d^{1/2}``."""
    root = part.bins.sums(curvature[:, part.latent, part.latent]).clamp_min(0.0).sqrt()
    return root, root.unsqueeze(-1) * part.kernel * root


def _leading_functions(parts: Sequence[_Part], curvature: Tensor, most: int) -> list[Tensor]:
    """For each part functions on its bins ``(g, p)``, of unit prior norm, those which the data say most about by themselves."""
    found = []
    for part in parts:
        root, scaled = _scaled_kernel(part, curvature)
        values, vectors = psd_eigen(symmetric(scaled))
        found.append((values, part.kernel @ (root.unsqueeze(-1) * vectors)))
    every = torch.cat([values for values, _ in found])
    least = every.sort(descending=True).values[min(most, every.numel()) - 1]
    kept = [(values >= least) & (values > 0.0) for values, _ in found]
    return [f[:, keep] * values[keep].rsqrt() for (values, f), keep in zip(found, kept, strict=True)]


def _information(
    parts: Sequence[_Part], functions: Sequence[Tensor], curvature: Tensor, most: int = _SAMPLED_PAIRS
) -> Tensor:
    """``E^T B^T W B E`` ``(P, P)`` for functions E of the parts, from tables of how their bins meet."""
    size, pairs = curvature.shape[0], len(parts) * (len(parts) + 1) // 2
    indices, share = [part.bins.index for part in parts], 1.0
    wanted = max(1, most // pairs)
    if wanted < size:
        rows = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:wanted].to(curvature.device)
        indices, curvature, share = [index[rows] for index in indices], curvature[rows], size / wanted
    blocks = [[f.new_zeros(f.shape[1], g.shape[1]) for g in functions] for f in functions]
    for i, first in enumerate(parts):
        left = indices[i].long()
        for j, second in enumerate(parts[: i + 1]):
            if 0 in blocks[i][j].shape:
                continue
            weights = share * curvature[:, first.latent, second.latent]
            table = _table(left, indices[j], weights, first.bins.size, second.bins.size)
            blocks[i][j] = functions[i].mT @ table @ functions[j]
            blocks[j][i] = blocks[i][j].mT
    return symmetric(torch.cat([torch.cat(row, -1) for row in blocks]))


def _table(left: Tensor, right: Tensor, weights: Tensor, rows: int, cols: int) -> Tensor:
    """Sums of weights ``(rows, cols)`` by pairs of bins, float64."""
    place = left * cols + right
    if weights.device.type == "cpu":
        return torch.bincount(place, weights.double(), rows * cols).view(rows, cols)
    place, order = place.sort(stable=True)
    counts = torch.bincount(place, minlength=rows * cols)
    return torch.segment_reduce(weights.double()[order], "sum", lengths=counts).view(rows, cols)
