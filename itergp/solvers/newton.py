"""Newton's method on the objective within a search space: no kernel product is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from itergp.solvers.problem import Problem
from itergp.solvers.search_space import SearchSpace

_MAX_STEPS = 25
_MAX_HALVINGS = 30
_ARMIJO = 1e-4
_DENSE_LIMIT = 500
_DENSE_WORK = 2e10  # multiply-adds for which the Newton matrix of a single latent function is formed
_CG_TOLERANCE = 0.05
_CG_MAX_STEPS = 60
# Rows from which the preconditioner is estimated: a multiple of the directions, and at least so many.
_SAMPLE_FACTOR, _SAMPLE_ROWS = 3, 16_384


@dataclass(frozen=True)
class Iterate:
    """A point of the search space: f = m + T U, V = S U.

    Attributes:
        coordinates: U ``(C, B)``, float64.
        latent_values: f ``(N, C)``.
        gradient: g ``(N, C)`` at f.
        curvature: W ``(N, C, C)`` at f.
        objective: Psi.
        steps: Newton steps taken to get here.
        step_length: Smallest step length among them; 0 when the last step did not decrease the objective.
        finished: Whether the search ended by itself, not by its number of steps.
    """

    coordinates: Tensor
    latent_values: Tensor
    gradient: Tensor
    curvature: Tensor
    objective: float
    steps: int = 0
    step_length: float = 1.0
    finished: bool = True


def evaluate(problem: Problem, space: SearchSpace, coordinates: Tensor) -> Iterate:
    """The iterate at given coordinates."""
    f = problem.mean + space.latent(coordinates)
    gradient, curvature = problem.site.derivatives(f)
    return Iterate(coordinates, f, gradient, curvature, _objective(problem, space, coordinates, f))


def minimise(problem: Problem, space: SearchSpace, start: Iterate, tolerance: float) -> Iterate:
    """Minimises ``Psi(m + T U)`` over U by Newton's method with backtracking.

    Args:
        problem: The problem.
        space: The search space, at least as large as the start's coordinates.
        start: Where to start; new directions get coordinate 0.
        tolerance: Squared norm of the gradient within the space at which to stop.
    """
    pad = start.coordinates.new_zeros(start.coordinates.shape[0], space.rank - start.coordinates.shape[1])
    U, f = torch.cat([start.coordinates, pad], -1), start.latent_values
    objective, g, W = start.objective, start.gradient, start.curvature
    shortest, steps, finished = 1.0, 0, True
    system = _NewtonSystem(space)
    for _ in range(_MAX_STEPS):
        slope = space.shards.same(space.metric(U) - space.project(g))
        if float(slope.square().sum()) <= tolerance:
            break
        direction = -space.shards.same(system.solve(slope, W, problem.site.curvature_product(f, W)))
        change = space.latent(direction)
        expected = float((slope * direction).sum())
        resolution = problem.resolution(f, g, objective)
        found = _backtrack(problem, space, U, f, objective, direction, change, expected, resolution)
        if found is None:
            shortest = 0.0
            break
        length, objective = found
        shortest, steps = min(shortest, length), steps + 1
        U, f = U + length * direction, f + length * change
        g, W = problem.site.derivatives(f)
    else:
        finished = False
    f = problem.mean + space.latent(U)  # without the drift of many small updates
    g, W = problem.site.derivatives(f)
    return Iterate(U, f, g, W, _objective(problem, space, U, f), steps, shortest, finished)


def _objective(problem: Problem, space: SearchSpace, U: Tensor, f: Tensor) -> float:
    quadratic = space.shards.same((U * space.metric(U)).sum())
    return 0.5 * float(quadratic) - problem.log_density(f)


def _backtrack(
    problem: Problem,
    space: SearchSpace,
    U: Tensor,
    f: Tensor,
    objective: float,
    direction: Tensor,
    change: Tensor,
    slope: float,
    resolution: float,
) -> tuple[float, float] | None:
    """Step length and objective of a sufficient decrease, or None."""
    length = 1.0
    for _ in range(_MAX_HALVINGS):
        trial = _objective(problem, space, U + length * direction, f + length * change)
        if trial <= objective + _ARMIJO * length * slope:
            return length, trial
        if -length * slope < resolution:  # too near for the objective to judge; Newton's step is right there
            return (length, trial) if trial <= objective + resolution else None
        length *= 0.5
    return None


class _NewtonSystem:
    """``(S^T K S + T^T W T) X = B``: by Cholesky when small, otherwise by preconditioned conjugate gradients."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._factors: Tensor | None = None

    def solve(self, right: Tensor, curvature: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
        latents, rank = right.shape
        few = latents == 1 and self.space.shards.whole(curvature.shape[0]) * rank**2 <= _DENSE_WORK
        if few or latents * rank <= _DENSE_LIMIT:
            matrix = newton_matrix(self.space, curvature)
            return torch.cholesky_solve(
                right.reshape(-1, 1), robust_cholesky(matrix, self.space.products.dtype)
            ).reshape(latents, rank)
        if self._factors is None:
            self._factors = robust_cholesky(self._diagonal_blocks(curvature), self.space.products.dtype)
        return self._conjugate_gradients(right, weigh)

    def _diagonal_blocks(self, curvature: Tensor) -> Tensor:
        """The latent functions' own blocks of the Newton matrix ``(C, B, B)``, from some of the rows when there are many."""
        own, latents = curvature.shape[:2]
        space, factor, size = self.space, 1.0, self.space.shards.whole(own)
        wanted = max(_SAMPLE_ROWS, _SAMPLE_FACTOR * space.rank)
        if wanted < size // 2:
            rows = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:wanted] - space.shards.start()
            rows = rows[(rows >= 0) & (rows < own)].to(curvature.device)
            space, curvature = replace(space, products=space.products[:, rows]), curvature[rows]
            factor = size / wanted
        diagonal = curvature.diagonal(dim1=-2, dim2=-1)
        blocks = [weighted_gram(space, factor * diagonal[:, c], c, c) for c in range(latents)]
        return torch.stack(blocks) + space.gram

    def _apply(self, X: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
        change = weigh(self.space.latent(X))
        return self.space.metric(X) + self.space.project(change)

    def _precondition(self, X: Tensor) -> Tensor:
        assert self._factors is not None
        return torch.cholesky_solve(X.unsqueeze(-1), self._factors).squeeze(-1)

    def _conjugate_gradients(self, right: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
        X, residual = torch.zeros_like(right), right.clone()
        z = self._precondition(residual)
        p, rho = z, (residual * z).sum()
        target = _CG_TOLERANCE**2 * rho
        for _ in range(_CG_MAX_STEPS):
            product = self._apply(p, weigh)
            alpha = rho / (p * product).sum()
            X, residual = X + alpha * p, residual - alpha * product
            z = self._precondition(residual)
            previous, rho = rho, (residual * z).sum()
            if self.space.shards.any(bool(rho <= target)):
                break
            p = z + (rho / previous) * p
        return X


def weighted_gram(space: SearchSpace, weights: Tensor, first: int, second: int) -> Tensor:
    """``T_first^T diag(weights) T_second`` ``(B, B)``, float64."""
    last = space.products.shape[0] - 1
    left, right = space.products[min(first, last)], space.products[min(second, last)]
    return space.shards.sum(_own_gram(left, weights, right))


def data_information(space: SearchSpace, curvature: Tensor) -> Tensor:
    """``T^T W T`` ``(C B, C B)``, float64: the information of the data about the coordinates, class-major."""
    latents, rank = curvature.shape[-1], space.rank
    matrix = space.gram.new_empty(latents * rank, latents * rank)
    last = space.products.shape[0] - 1
    for c in range(latents):
        for d in range(c, latents):
            block = _own_gram(space.products[min(c, last)], curvature[:, c, d], space.products[min(d, last)])
            rows, cols = slice(c * rank, (c + 1) * rank), slice(d * rank, (d + 1) * rank)
            matrix[rows, cols] = block
            matrix[cols, rows] = block.mT
    return space.shards.sum(matrix)


def _own_gram(left: Tensor, weights: Tensor, right: Tensor) -> Tensor:
    return ((left * weights.unsqueeze(-1)).mT @ right).double()


def newton_matrix(space: SearchSpace, curvature: Tensor) -> Tensor:
    """``blockdiag(S^T K S) + T^T W T`` ``(C B, C B)``, float64, class-major."""
    matrix = data_information(space, curvature)
    for c in range(curvature.shape[-1]):
        block = slice(c * space.rank, (c + 1) * space.rank)
        matrix[block, block] += space.gram[min(c, space.gram.shape[0] - 1)]
    return matrix


def robust_cholesky(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Cholesky factor; a diagonal is added as far as rounding made the matrix indefinite.

    That only shortens a Newton direction, which the line search still guards.

    Args:
        matrix: ``(..., n, n)``, float64.
        dtype: Of the products that made it.
    """
    rounding = torch.finfo(dtype).eps * matrix.diagonal(dim1=-2, dim2=-1).amax(-1)
    for factor in (0.0, 1.0, 1e2, 1e4):
        shift = (factor * rounding)[..., None, None] * torch.eye(matrix.shape[-1]).to(matrix)
        result, info = torch.linalg.cholesky_ex(matrix + shift)
        if not bool(info.any()):
            return result
    return torch.linalg.cholesky(matrix + shift)
