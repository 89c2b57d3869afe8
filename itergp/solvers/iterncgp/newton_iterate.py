"""A point of the outer Newton loop, and steps between points: no kernel product is needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from itergp.numerics.line_search import MAX_HALVINGS, backtrack
from itergp.persistence import DERIVED
from itergp.posterior.problem import Problem, inner
from itergp.posterior.solution import is_finite


@dataclass(frozen=True)
class NewtonIterate:
    """Weights and latent values that belong together, ``f = m + K V``, and the likelihood there.

    Attributes:
        weights: V ``(N, C)``.
        latent_values: f ``(N, C)``.
        gradient: g ``(N, C)`` at f, float64.
        curvature: W ``(N, C, C)`` at f, float64: rounding of probabilities near 1 would make it indefinite.
        objective: Psi.
    """

    weights: Tensor
    latent_values: Tensor
    gradient: Tensor = field(metadata=DERIVED)
    curvature: Tensor = field(metadata=DERIVED)
    objective: float

    @classmethod
    def at(cls, problem: Problem, weights: Tensor, latent_values: Tensor) -> NewtonIterate:
        """The iterate at given weights and their latent values."""
        gradient, curvature = problem.site.derivatives(latent_values.double())
        return cls(weights, latent_values, gradient, curvature, problem.objective(latent_values, weights))

    @classmethod
    def rebuild(cls, problem: Problem, **fields: Any) -> NewtonIterate:
        """The iterate of a checkpoint."""
        gradient, curvature = problem.site.derivatives(fields["latent_values"].double())
        return cls(gradient=gradient, curvature=curvature, **fields)

    @property
    def finite(self) -> bool:
        """Whether every number is finite."""
        arrays = self.weights, self.latent_values, self.gradient, self.curvature
        return is_finite(*arrays) and abs(self.objective) < float("inf")

    @property
    def residual(self) -> Tensor:
        """``g - V`` ``(N, C)``: zero at the mode."""
        return (self.gradient - self.weights).to(self.weights)


def full_step(problem: Problem, start: NewtonIterate, weights: Tensor, change: Tensor) -> tuple[NewtonIterate, float]:
    """The Newton step as published: all the way, whatever the objective does. Arguments as in ``backtracking_step``."""
    del start
    return NewtonIterate.at(problem, weights, problem.mean + change), 1.0


def backtracking_step(
    problem: Problem, start: NewtonIterate, weights: Tensor, change: Tensor
) -> tuple[NewtonIterate, float]:
    """As far towards the solution of the linear system as the objective decreases sufficiently.

    Args:
        problem: The problem.
        start: The iterate at which the linear system was built.
        weights: Its solution v ``(N, C)``.
        change: ``K v`` ``(N, C)``.

    Returns:
        The new iterate and the step length, 0 with the old iterate when no step decreases the objective.
    """
    direction, movement = weights - start.weights, problem.mean + change - start.latent_values
    slope = inner(movement, start.weights - start.gradient)
    resolution = problem.resolution(start.latent_values, start.gradient, start.objective)
    if not slope < 0.0:
        return start, 0.0

    def point(length: float) -> tuple[Tensor, Tensor]:
        return start.weights + length * direction, start.latent_values + length * movement

    def objective(length: float) -> float:
        values, f = point(length)
        return problem.objective(f, values)

    found = backtrack(objective, start.objective, slope, halvings=MAX_HALVINGS, resolution=resolution)
    if found is None:
        return start, 0.0
    return NewtonIterate.at(problem, *point(found[0])), found[0]


def pseudo_targets(problem: Problem, iterate: NewtonIterate, noise_times_gradient: Tensor) -> Tensor:
    """``yhat - m = f - m + W^+ g`` ``(N, C)``: the right-hand side of the Newton system, float64."""
    return (iterate.latent_values - problem.mean).double() + noise_times_gradient


def recomputed(problem: Problem, weights: Tensor) -> NewtonIterate:
    """The iterate at given weights, in one kernel pass."""
    operator = problem.operator
    if operator.num_kernels == 1:
        product = operator.matmul(weights)[0]
    else:
        product = operator.matmul(weights.mT.unsqueeze(-1)).squeeze(-1).mT
    return NewtonIterate.at(problem, weights, problem.mean + product)


def zero(problem: Problem) -> NewtonIterate:
    """The prior mean, V = 0."""
    return NewtonIterate.at(problem, torch.zeros_like(problem.mean), problem.mean.clone())
