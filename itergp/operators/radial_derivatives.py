"""Products with a radial kernel in plain operations, for derivatives of any order."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from itergp.operators.recompute import Recomputation
from itergp.operators.tiles import slices

DIFFERENCES = 2**22  # of inputs, held at a time


def smooth_product(
    rows: Tensor, cols: Tensor, output_scale: Tensor, block: Tensor, stretch: Tensor, smoothness: float
) -> Tensor:
    """``output_scale * profile(stretch |rows - cols|) @ block``, differentiable as often as the kernel itself.

    Distances come from differences, so that they are exact where inputs coincide. Memory: one block of differences.

    Args:
        rows: Scaled inputs ``(C', M, D)``.
        cols: Scaled inputs ``(C', N, D)``.
        output_scale: ``(C',)``.
        block: ``(C', N, k)``.
        stretch: ``(C',)``.
        smoothness: Matern smoothness 0.5, 1.5 or 2.5, or infinity for the squared exponential.

    Returns:
        ``(C', M, k)``.
    """

    def product(i: slice) -> Tensor:
        squared = (rows[:, i, None, :] - cols[:, None, :, :]).square().sum(-1) * stretch.square()[:, None, None]
        entries = smooth_profile(squared, smoothness).to(block.dtype)
        return torch.bmm(entries, block) * output_scale[:, None, None]

    most = max(1, DIFFERENCES // max(1, rows.shape[0] * cols.shape[1] * rows.shape[2]))
    again = Recomputation()
    return torch.cat([again(functools.partial(product, i)) for i in slices(rows.shape[1], most)], dim=1)


def smooth_profile(squared: Tensor, smoothness: float) -> Tensor:
    """The profile at squared distances, with derivatives of any order."""
    return _Profile.apply(squared, smoothness, 0)


class _Profile(torch.autograd.Function):
    """The profile's derivative of some order in the squared distance."""

    @staticmethod
    def forward(ctx: Any, squared: Tensor, smoothness: float, order: int) -> Tensor:
        ctx.save_for_backward(squared)
        ctx.smoothness, ctx.order = smoothness, order
        return profile_derivative(squared, smoothness, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (squared,) = ctx.saved_tensors
        return grad * _Profile.apply(squared, ctx.smoothness, ctx.order + 1), None, None


def profile_derivative(squared: Tensor, smoothness: float, order: int) -> Tensor:
    """Derivative of a profile in the squared distance s.

    With ``g_v(d) = sqrt(2 / pi) d^v K_v(d)`` and ``d = sqrt(s)``, the Matern profiles are ``g_1/2``, ``g_3/2`` and
    ``g_5/2 / 3``, and ``dg_v / ds = -g_(v-1) / 2`` (Abramowitz and Stegun, 9.6.28).

    Args:
        squared: Squared distances.
        smoothness: 0.5, 1.5, 2.5 or infinity.
        order: Of the derivative.
    """
    if smoothness == math.inf:
        return (-1.0) ** order * torch.exp(-squared)
    factor = (-0.5) ** order / (3.0 if smoothness == 2.5 else 1.0)
    return factor * _bessel(squared.sqrt(), round(smoothness - 0.5) - order)


def _bessel(distance: Tensor, index: int) -> Tensor:
    """``g_(index + 1/2)``; where it has a pole at distance 0, what it multiplies there vanishes, and it is set to 0."""
    decay = torch.exp(-distance)
    if index >= 0:
        polynomial = (torch.ones_like(distance), 1.0 + distance, 3.0 + 3.0 * distance + distance.square())[index]
        return polynomial * decay
    n = -index - 1
    safe = torch.where(distance > 0.0, distance, 1.0)
    terms = [
        math.factorial(n + j) / (math.factorial(j) * math.factorial(n - j)) * (2.0 * safe) ** -j for j in range(n + 1)
    ]
    return torch.where(distance > 0.0, decay * sum(terms) / safe ** (n + 1), 0.0)
