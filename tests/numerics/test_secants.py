"""Secant pairs of quasi-Newton steps."""

from __future__ import annotations

import torch

from itergp.numerics.secants import SecantPair, secant_direction, with_pair


def _quadratic(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """K, W and g of the objective ``f^T K^{-1} f / 2 + f^T W f / 2 - g^T f``."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return draw @ draw.T, torch.rand(size, generator=generator, dtype=torch.float64) + 0.1, draw[0]


def _distances(steps: int, *, remembers: bool) -> list[float]:
    """``<R, K R>`` after steps of the best length from a preconditioner that knows the prior alone."""
    kernel, curvature, linear = _quadratic(6)
    weights, pairs, found = torch.zeros(6, dtype=torch.float64), (), []
    for _ in range(steps):
        residual = linear - curvature * (kernel @ weights) - weights
        pushed = kernel @ residual
        direction = secant_direction(pairs, residual, pushed, lambda residual, pushed: residual, lambda v: kernel @ v)
        response = kernel @ direction
        length = float(residual @ response) / float(direction @ response + response @ (curvature * response))
        step, change = length * direction, length * (direction + curvature * response)
        weights = weights + step
        if remembers:
            pairs = with_pair(pairs, SecantPair(step, kernel @ step, change, kernel @ change))
        residual = linear - curvature * (kernel @ weights) - weights
        found.append(float(residual @ kernel @ residual))
    return found


def test_a_quadratic_is_solved_in_as_many_steps_as_it_has_dimensions():
    start = float(_quadratic(6)[2] @ _quadratic(6)[0] @ _quadratic(6)[2])
    assert _distances(6, remembers=True)[-1] < 1e-18 * start
    assert _distances(6, remembers=False)[-1] > 1e-6 * start


def test_steps_along_which_nothing_curves_upwards_are_no_pairs():
    one = torch.ones(3, dtype=torch.float64)
    assert with_pair((), SecantPair(one, one, -one, -one)) == ()
    assert len(with_pair((), SecantPair(one, one, one, one))) == 1


def test_only_the_last_pairs_are_kept():
    pairs = ()
    for number in range(30):
        value = torch.full((2,), number + 1.0, dtype=torch.float64)
        pairs = with_pair(pairs, SecantPair(value, value, value, value))
    assert [float(pair.step[0]) for pair in pairs] == [float(number) for number in range(11, 31)]
