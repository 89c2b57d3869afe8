"""``NewtonSystem``: the linear systems of Newton's method within a search space."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from itergp.solvers.subspace.newton_matrix import information_block, newton_matrix, robust_cholesky
from itergp.solvers.subspace.search_space import SearchSpace

_DENSE_LIMIT = 500
_DENSE_WORK = 2e10  # multiply-adds for which the Newton matrix of a single latent function is formed
_WORTH_KEEPING = 2 * 10**7  # multiply-adds of a Newton matrix that is not made again for every W
_CG_TOLERANCE = 0.05
_CG_MAX_STEPS = 60
# Rows from which the preconditioner is estimated: at least so many, and a multiple of the directions; more of them, up to
# another multiple, as long as they cost no more than so many steps of conjugate gradients.
_SAMPLE_ROWS, _FEWEST_SAMPLES, _MOST_SAMPLES, _WORTH_STEPS = 4096, 2, 16, 2
_COUPLED = 1280  # unknowns, directions times latent functions, whose coupling the preconditioner knows
_POWER_STEPS = 3
_FEW_STEPS = 8  # of conjugate gradients, besides those that take as long as making the preconditioner again
_READING = 16  # columns whose product costs as much arithmetic as reading a matrix


class NewtonSystem:
    """``(S^T K S + T^T W T) X = B``: by Cholesky when small, otherwise by preconditioned conjugate gradients.

    The factor serves all systems with the same W, and if it took long to make, it is the preconditioner of other systems. When
    another W makes a preconditioner need as many steps as it is worth, it is made again.

    Args:
        space: The search space.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._preconditioner: Preconditioner | None = None
        self._factored: tuple[Tensor, Tensor] | None = None  # W, and the factor of its matrix

    def solve(self, right: Tensor, curvature: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
        """X ``(C, B)``.

        Args:
            right: B ``(C, B)``, float64.
            curvature: W ``(N, C, C)``.
            weigh: Its product with a block ``(N, C)``.
        """
        latents, rank = right.shape
        size = self.space.partition.global_size(self.space.products.shape[1])
        few = latents == 1 and size * rank**2 <= _DENSE_WORK
        if few or latents * rank <= _DENSE_LIMIT:
            if self._factored is not None and size * (latents * rank) ** 2 >= _WORTH_KEEPING:
                X, _, close = self._descend(right, torch.zeros_like(right), right, weigh, self._solve, _FEW_STEPS)
                if close:
                    return X
            self._factor(curvature)
            return self._solve(right)
        X, residual = torch.zeros_like(right), right
        if self._preconditioner is not None:
            step = _work_of_step(size, rank, latents)
            most = _FEW_STEPS + self._preconditioner.work // step
            X, residual, close = self._descend(right, X, residual, weigh, self._preconditioner, most)
            if close:
                return X
        self._preconditioner = None  # before there are two
        self._preconditioner = Preconditioner(self.space, curvature)
        return self._descend(right, X, residual, weigh, self._preconditioner, _CG_MAX_STEPS)[0]

    def _solve(self, X: Tensor) -> Tensor:
        """By the factor at hand."""
        assert self._factored is not None
        return torch.cholesky_solve(X.reshape(-1, 1), self._factored[1]).view_as(X)

    def _factor(self, curvature: Tensor) -> None:
        """Makes the Cholesky factor of the whole matrix, unless it is at hand."""
        known, partition = self._factored, self.space.partition
        if known is None or partition.all_reduce_any(not torch.equal(known[0], curvature)):
            self._factored = None  # before there are two
            matrix = newton_matrix(self.space, curvature)
            self._factored = curvature, robust_cholesky(matrix, self.space.products.dtype)

    def _descend(
        self,
        right: Tensor,
        X: Tensor,
        residual: Tensor,
        weigh: Callable[[Tensor], Tensor],
        precondition: Callable[[Tensor], Tensor],
        most: int,
    ) -> tuple[Tensor, Tensor, bool]:
        """At most so many steps of conjugate gradients from X; the new X, its residual, and whether that is small."""
        target = _CG_TOLERANCE**2 * (right * precondition(right)).sum()
        z = precondition(residual)
        p, rho = z, (residual * z).sum()
        for _ in range(most):
            product = self.space.metric(p) + self.space.project(weigh(self.space.latent(p)))
            alpha = rho / (p * product).sum()
            X, residual = X + alpha * p, residual - alpha * product
            z = precondition(residual)
            previous, rho = rho, (residual * z).sum()
            if self.space.partition.all_reduce_any(bool(rho <= target)):
                return X, residual, True
            p = z + (rho / previous) * p
        return X, residual, False


class Preconditioner:
    """The inverse of the Newton matrix, estimated from some of the rows when there are many.

    Latent functions are coupled in the leading directions, where the curvature has most to say: what lowers one class
    there raises another, and to leave that out is to be wrong by as much as the data know. In the other directions each has a
    block of its own.

    Args:
        space: The search space.
        curvature: W ``(N, C, C)``.

    Attributes:
        work: Multiply-adds that it took to make.
    """

    def __init__(self, space: SearchSpace, curvature: Tensor) -> None:
        own, latents = curvature.shape[0], space.coordinate_sets(curvature.shape[1])
        size, rank, last = space.partition.global_size(own), space.rank, space.gram.shape[0] - 1
        affordable = 2 * _WORTH_STEPS * _work_of_step(size, rank, latents) // (latents * rank**2)
        wanted = max(_SAMPLE_ROWS, _FEWEST_SAMPLES * rank, min(_MOST_SAMPLES * rank, affordable))
        sample, dtype = space, space.products.dtype
        if wanted < size // 2:
            rows = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:wanted] - space.partition.start()
            rows = rows[(rows >= 0) & (rows < own)].to(curvature.device)
            sample, curvature, size = space.at_rows(rows), size / wanted * curvature[rows], wanted
        width = min(rank, _COUPLED // latents) if latents > 1 else 0
        self.work = size * (latents * width) ** 2 // 2 + (latents * width) ** 3 // 3
        self._factors: Tensor | None = None
        self._leading: Tensor | None = None
        if width == rank:  # few enough unknowns for all to be coupled
            self._leading = torch.eye(rank).to(space.gram).unsqueeze(0)
        else:
            self.work += latents * (size * rank**2 // 2 + rank**3 // 3)
            # In the data's dtype: half the memory to read in every step.
            self._factors = space.products.new_empty(latents, rank, rank)
            information = torch.zeros_like(space.gram)
            for c in range(latents):
                block = information_block(sample, curvature, c, c) + space.gram[min(c, last)]
                information[min(c, last)] += block
                self._factors[c] = robust_cholesky(block, dtype)
            if width:
                self._leading = space.partition.broadcast(_leading_eigenvectors(information, width))
        if self._leading is not None:
            matrix = newton_matrix(sample.compress(self._leading), curvature)
            self._coupled = robust_cholesky(matrix, dtype)

    def __call__(self, X: Tensor) -> Tensor:
        """``P^{-1} X`` ``(C, B)``."""
        if self._leading is None:
            return self._solve_blocks(X)
        inside = self._inside(X)
        solved = torch.cholesky_solve(inside.reshape(-1, 1), self._coupled).view_as(inside)
        if self._factors is None:
            return self._outside(solved)
        rest = self._solve_blocks(X - self._outside(inside))
        return rest + self._outside(solved - self._inside(rest))

    def _solve_blocks(self, X: Tensor) -> Tensor:
        assert self._factors is not None
        return torch.cholesky_solve(X.to(self._factors).unsqueeze(-1), self._factors).squeeze(-1).to(X)

    def _inside(self, X: Tensor) -> Tensor:
        """Coordinates ``(C, q)`` among the leading directions."""
        assert self._leading is not None
        return torch.matmul(X.unsqueeze(1), self._leading).squeeze(1)

    def _outside(self, coordinates: Tensor) -> Tensor:
        """What has these coordinates, ``(C, B)``."""
        assert self._leading is not None
        return torch.matmul(coordinates.unsqueeze(1), self._leading.mT).squeeze(1)


def _work_of_step(rows: int, rank: int, latents: int) -> int:
    """Multiply-adds of a step of conjugate gradients: two products with so few columns that it takes longer to read T."""
    return 2 * rows * rank * (latents + _READING)


def _leading_eigenvectors(matrices: Tensor, width: int) -> Tensor:
    """Orthonormal bases ``(C', B, width)`` near the leading eigenvectors of symmetric matrices, by subspace iteration."""
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(matrices.shape[-1], width, generator=generator, dtype=torch.float64).to(matrices)
    block = block.expand(matrices.shape[0], -1, -1)
    for _ in range(_POWER_STEPS):
        block = torch.linalg.qr(torch.matmul(matrices, block)).Q
    return block
