"""Newton's method on the objective within a search space: no kernel product is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from itergp.numerics.line_search import MAX_HALVINGS, backtrack
from itergp.persistence import DERIVED
from itergp.posterior.problem import Problem
from itergp.solvers.subspace.newton_system import NewtonSystem
from itergp.solvers.subspace.search_space import SearchSpace

_MAX_STEPS = 25
_FEW_STEPS = 3  # of more, latent values are computed anew, without the drift of many updates


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
    gradient: Tensor = field(metadata=DERIVED)
    curvature: Tensor = field(metadata=DERIVED)
    objective: float
    steps: int = 0
    step_length: float = 1.0
    finished: bool = True

    @classmethod
    def rebuild(cls, problem: Problem, **fields: Any) -> Iterate:
        """The iterate of a checkpoint."""
        gradient, curvature = problem.site.derivatives(fields["latent_values"])
        return cls(gradient=gradient, curvature=curvature, **fields)


def evaluate(problem: Problem, space: SearchSpace, coordinates: Tensor) -> Iterate:
    """The iterate at given coordinates."""
    return _at(problem, space, coordinates, problem.mean + space.latent(coordinates))


def _at(problem: Problem, space: SearchSpace, coordinates: Tensor, f: Tensor) -> Iterate:
    """The iterate at coordinates whose latent values ``(N, C)`` are known."""
    log_density, gradient, curvature = problem.evaluate(f)
    quadratic = space.partition.broadcast((coordinates * space.metric(coordinates)).sum())
    return Iterate(coordinates, f, gradient, curvature, 0.5 * float(quadratic) - log_density)


def start_at(problem: Problem, space: SearchSpace, coordinates: Tensor) -> Iterate:
    """The iterate at the coordinates of an earlier solution, or at the prior mean if the objective is lower there.

    Under another kernel the same weights can be another function, from which Newton's method does not find back.
    """
    earlier = evaluate(problem, space, coordinates)
    if not bool(coordinates.any()):
        return earlier
    nothing = evaluate(problem, space, torch.zeros_like(coordinates))
    return earlier if earlier.objective <= nothing.objective else nothing


def minimise(problem: Problem, space: SearchSpace, start: Iterate, tolerance: float) -> Iterate:
    """Minimises ``Psi(m + T U)`` over U by Newton's method with backtracking.

    Args:
        problem: The problem.
        space: The search space, at least as large as the start's coordinates.
        start: Where to start; new directions get coordinate 0.
        tolerance: Squared norm of the gradient within the space at which to stop.
    """
    pad = start.coordinates.new_zeros(start.coordinates.shape[0], space.rank - start.coordinates.shape[1])
    at = replace(start, coordinates=torch.cat([start.coordinates, pad], -1))
    shortest, steps, finished = 1.0, 0, True
    system = NewtonSystem(space)
    for _ in range(_MAX_STEPS):
        slope = space.partition.broadcast(space.metric(at.coordinates) - space.project(at.gradient))
        if space.rank == 0 or float(slope.square().sum()) <= tolerance:
            break
        product = problem.site.curvature_product(at.latent_values, at.curvature)
        direction = -space.partition.broadcast(system.solve(slope, at.curvature, product))
        resolution = problem.resolution(at.latent_values, at.gradient, at.objective, at.curvature)
        line, expected = _Line(problem, space, at, direction), float((slope * direction).sum())
        found = backtrack(line, at.objective, expected, halvings=MAX_HALVINGS, resolution=resolution)
        if found is None:
            shortest = 0.0
            at = line.last if math.isnan(line.last.objective) else at  # for the driver to report
            break
        at, shortest, steps = line.last, min(shortest, found[0]), steps + 1
    else:
        finished = False
    if steps > _FEW_STEPS:
        at = evaluate(problem, space, at.coordinates)
    return replace(at, steps=steps, step_length=shortest, finished=finished)


class _Line:
    """The objective at lengths along a direction, with all that is known at the last of them.

    Latent values are those of the start and a change: where coordinates are large and cancel, differences of the objective
    along the line are then those of the change, not of the rounding of each product with the space.
    """

    last: Iterate

    def __init__(self, problem: Problem, space: SearchSpace, start: Iterate, direction: Tensor) -> None:
        self._at = partial(_at, problem, space)
        self._start, self._direction, self._change = start, direction, space.latent(direction)

    def __call__(self, length: float) -> float:
        values = self._start.latent_values + length * self._change
        self.last = self._at(self._start.coordinates + length * self._direction, values)
        return self.last.objective
