"""Extrapolation of fixed points."""

from __future__ import annotations

import torch

from itergp.numerics.fixed_point import AndersonExtrapolation


def _error(memory: int, steps: int) -> float:
    """Distance to the fixed point of a linear map with factors that oscillate and that creep; without memory by plain steps."""
    factors = torch.tensor([-0.95, 0.9, 0.3], dtype=torch.float64)
    fixed = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    extrapolation, point = AndersonExtrapolation(memory), torch.zeros_like(fixed)
    for _ in range(steps):
        residual = (factors - 1.0) * (point - fixed)
        ahead = extrapolation.after(point, residual) if memory else None
        point = point + residual if ahead is None else ahead
    return float((point - fixed).abs().max())


def test_a_linear_map_of_few_factors_is_solved():
    assert _error(memory=3, steps=5) < 1e-8
    assert _error(memory=0, steps=5) > 0.5


def test_a_memory_that_is_too_short_still_helps():
    assert _error(memory=1, steps=20) < 0.8 * _error(memory=0, steps=20)


def test_what_lies_before_a_restart_is_forgotten():
    extrapolation = AndersonExtrapolation()
    point, residual = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    assert extrapolation.after(point, residual) is None
    assert extrapolation.after(point + 1.0, 0.5 * residual) is not None
    extrapolation.restart()
    # By the last two steps alone, each of which halves what is left.
    assert torch.allclose(extrapolation.after(point + 1.5, 0.25 * residual), torch.full((2,), 2.0, dtype=torch.float64))


def test_steps_that_repeat_themselves_are_no_division_by_zero():
    extrapolation, point = AndersonExtrapolation(), torch.ones(3)
    extrapolation.after(point, point)
    assert torch.equal(extrapolation.after(point, point), 2.0 * point)
