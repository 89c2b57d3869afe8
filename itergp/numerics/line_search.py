"""Backtracking: how far along a direction of descent an objective decreases as it should."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Of a step of Newton's: more than the digits of float64, so that rounding, not a count, ends a search.
MAX_HALVINGS = 60
SUFFICIENT = 1e-4  # share of the decrease that the slope promises (Nocedal & Wright 2006, equation 3.4)


def backtrack_each(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    slope: Tensor,
    *,
    halvings: int,
    resolution: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Step lengths of several searches at once, each halved from 1 until its objective decreases sufficiently.

    A search ends where its expected decrease is below what the objective resolves: it cannot judge there, Newton's step is
    right, and is taken unless the objective increases by more than that.

    Args:
        objective: Objectives ``(S,)`` at step lengths ``(S,)``.
        start: Objectives at length 0 ``(S,)``.
        slope: Their derivatives there ``(S,)``.
        halvings: Trials at most.
        resolution: Changes of the objective below this are rounding.

    Returns:
        Step lengths and the objectives there; 0 and the start where no trial was accepted.
    """
    length, value = torch.ones_like(start), start
    accepted = torch.zeros_like(start, dtype=torch.bool)
    for _ in range(halvings):
        value = objective(length)
        near = -length * slope < resolution
        accepted = (value <= start + SUFFICIENT * length * slope) | (near & (value <= start + resolution))
        searching = ~(accepted | near)
        if not bool(searching.any()):
            break
        length = torch.where(searching, 0.5 * length, length)
    return torch.where(accepted, length, 0.0), torch.where(accepted, value, start)


def backtrack(
    objective: Callable[[float], float], start: float, slope: float, *, halvings: int, resolution: float = 0.0
) -> tuple[float, float] | None:
    """``backtrack_each`` of one objective: its step length and value, or None where no trial was accepted."""

    def at(length: Tensor) -> Tensor:
        return _number(objective(float(length)))

    length, value = backtrack_each(at, _number(start), _number(slope), halvings=halvings, resolution=resolution)
    return (float(length), float(value)) if float(length) > 0.0 else None


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
