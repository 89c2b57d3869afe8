"""L1 distances between rows, without an autograd graph over their differences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def manhattan_distance(first: Tensor, second: Tensor) -> Tensor:
    """``sum_d |x_d - y_d|`` between rows; exactly zero between equal ones, where its derivative is taken as zero too.

    Differentiable any number of times. Memory: two blocks of entries, whatever D, in both passes.

    Args:
        first: Rows ``(..., b, D)``.
        second: Rows ``(..., m, D)``.

    Returns:
        ``(..., b, m)``.
    """
    return _Manhattan.apply(first, second)


def scaled(first: Tensor, second: Tensor, lengthscale: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``(..., D)`` in lengthscales, about a point near them: far from zero, numbers hold few digits of differences."""
    centre = second.detach().mean(-2, keepdim=True)
    return (first - centre) / lengthscale, (second - centre) / lengthscale


class _Manhattan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(first, second)
        batch = torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])
        total = first.new_zeros(*batch, first.shape[-2], second.shape[-2])
        for x, y in zip(first.unbind(-1), second.unbind(-1), strict=True):
            total += (x.unsqueeze(-1) - y.unsqueeze(-2)).abs_()
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        # Plain operations, which are linear in the gradient: derivatives of any order follow.
        first, second = ctx.saved_tensors
        of_first, of_second = [], []
        for x, y in zip(first.unbind(-1), second.unbind(-1), strict=True):
            pull = grad * (x.detach().unsqueeze(-1) - y.detach().unsqueeze(-2)).sign_()
            of_first.append(pull.sum(-1))
            of_second.append(-pull.sum(-2))
        return _stacked(of_first, first), _stacked(of_second, second)


def _stacked(columns: list[Tensor], like: Tensor) -> Tensor:
    """Columns ``(..., n)`` side by side, summed over batch dimensions in which the rows were one for all."""
    return torch.stack(columns, -1).sum_to_size(like.shape) if columns else torch.zeros_like(like)
