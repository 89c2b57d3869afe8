"""Products with a radial kernel that have derivatives: blocks are evaluated in the forward and again in the backward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_ROWS = 256
_COLUMNS = 2048


def radial_product(
    rows: Tensor,
    cols: Tensor,
    output_scale: Tensor,
    block: Tensor,
    smoothness: float,
    *,
    symmetric: bool,
    stretch: Tensor | None = None,
) -> Tensor:
    """``output_scale * profile(stretch |rows - cols|) @ block``, differentiable once in every tensor.

    Nothing larger than a cache-sized block of entries is stored. A symmetric product evaluates each block once.

    Args:
        rows: Scaled inputs ``(C', M, D)``, whose plain distances enter the profile.
        cols: Scaled inputs ``(C', N, D)``; the same tensor as ``rows`` when symmetric.
        output_scale: ``(C',)``.
        block: ``(C', N, k)``.
        smoothness: Matern smoothness 0.5, 1.5 or 2.5, or infinity for the squared exponential.
        symmetric: Whether rows and columns are the same inputs.
        stretch: Ones ``(C',)`` that carry the derivative in one lengthscale for all inputs: much cheaper, for many inputs, than
            that of every scaled input.

    Returns:
        ``(C', M, k)``.
    """
    stretch = output_scale.detach().new_ones(rows.shape[0]) if stretch is None else stretch
    return _RadialProduct.apply(rows, cols, output_scale, block, stretch, smoothness, symmetric)


class _RadialProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        cols: Tensor,
        scale: Tensor,
        block: Tensor,
        stretch: Tensor,
        smoothness: float,
        symmetric: bool,
    ) -> Tensor:
        ctx.save_for_backward(rows, cols, scale, block)
        ctx.smoothness, ctx.symmetric = smoothness, symmetric
        out = block.new_zeros(rows.shape[0], rows.shape[1], block.shape[-1])
        for i, j, squared in _blocks(rows, cols, symmetric):
            entries = profile(squared.to(block.dtype), smoothness)
            out[:, i].baddbmm_(entries, block[:, j])
            if symmetric and i.start != j.start:
                out[:, j].baddbmm_(entries.mT, block[:, i])
        return out.mul_(scale[:, None, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, cols, scale, block = ctx.saved_tensors
        symmetric = ctx.symmetric
        needed = ctx.needs_input_grad
        of_inputs, of_block, of_stretch = needed[0] or needed[1], needed[3], needed[4]
        scaled = grad.contiguous() * scale[:, None, None]
        grad_rows, grad_cols, grad_block = torch.zeros_like(rows), torch.zeros_like(cols), torch.zeros_like(block)
        grad_scale, grad_stretch = (torch.zeros_like(scale, dtype=torch.float64) for _ in range(2))
        for i, j, squared in _blocks(rows, cols, symmetric):
            apart = squared.to(block.dtype, copy=True) if of_stretch else squared
            entries, slope = _profile_and_slope(squared.to(block.dtype), ctx.smoothness)
            twice = symmetric and i.start != j.start
            inner = torch.bmm(scaled[:, i], block[:, j].mT)  # derivative in the entries of k(x_i, x_j)
            if twice:
                inner = inner.baddbmm_(block[:, i], scaled[:, j].mT)
            if of_block:
                grad_block[:, j].baddbmm_(entries.mT, scaled[:, i])
            if of_block and twice:
                grad_block[:, i].baddbmm_(entries, scaled[:, j])
            grad_scale += (inner * entries).sum((1, 2), dtype=torch.float64)
            pull = inner.mul_(slope).to(rows.dtype)  # derivative in the squared distance
            if of_stretch:
                grad_stretch += 2.0 * (pull * apart).sum((1, 2), dtype=torch.float64)
            if not of_inputs:
                continue
            first, second = rows[:, i], cols[:, j]
            grad_rows[:, i] += 2.0 * (pull.sum(2).unsqueeze(-1) * first - torch.bmm(pull, second))
            grad_cols[:, j] += 2.0 * (pull.sum(1).unsqueeze(-1) * second - torch.bmm(pull.mT, first))
        grad_scale = (grad_scale / scale.double()).to(scale)
        return grad_rows, grad_cols, grad_scale, grad_block, grad_stretch.to(scale), None, None


def _blocks(rows: Tensor, cols: Tensor, symmetric: bool) -> Iterator[tuple[slice, slice, Tensor]]:
    """Slices of rows and columns with squared distances; on and above the diagonal when symmetric."""
    row_norms, col_norms = rows.square().sum(-1, keepdim=True), cols.square().sum(-1).unsqueeze(-2)
    for start in range(0, rows.shape[1], _ROWS):
        i = slice(start, min(rows.shape[1], start + _ROWS))
        # The diagonal block stands alone, so that every other block serves its rows and its columns.
        edges = [start, i.stop] if symmetric else [0]
        edges += range(edges[-1] + _COLUMNS, cols.shape[1], _COLUMNS)
        for left, right in zip(edges, [*edges[1:], cols.shape[1]], strict=True):
            if left == right:
                continue
            j = slice(left, right)
            squared = torch.baddbmm(row_norms[:, i] + col_norms[..., j], rows[:, i], cols[:, j].mT, alpha=-2.0)
            squared.clamp_min_(0.0)
            if symmetric and left == start:
                squared.diagonal(dim1=-2, dim2=-1).zero_()
            yield i, j, squared


def profile(squared: Tensor, smoothness: float) -> Tensor:
    """The profile at squared distances, which are overwritten."""
    if smoothness == math.inf:
        return squared.neg_().exp_()
    distance = squared.sqrt_()
    return _matern(distance, torch.exp(-distance), smoothness)


def _profile_and_slope(squared: Tensor, smoothness: float) -> tuple[Tensor, Tensor]:
    """The profile and its derivative in the squared distances, which are overwritten."""
    if smoothness == math.inf:
        entries = profile(squared, smoothness)
        return entries, -entries
    distance = squared.sqrt_()
    decay = torch.exp(-distance)
    if smoothness == 0.5:
        # Not differentiable at distance 0; the entry of a row with itself does not move there.
        slope = torch.where(distance > 0.0, decay / (-2.0 * distance), 0.0)
    elif smoothness == 1.5:
        slope = -0.5 * decay
    else:
        slope = (distance + 1.0).mul_(decay).mul_(-1.0 / 6.0)
    return _matern(distance, decay, smoothness), slope


def _matern(distance: Tensor, decay: Tensor, smoothness: float) -> Tensor:
    """A Matern profile at distances, which are overwritten, and their ``exp(-distance)``."""
    if smoothness == 0.5:
        return decay
    if smoothness == 1.5:
        return distance.add_(1.0).mul_(decay)
    return distance.mul(1.0 / 3.0).add_(1.0).mul_(distance).add_(1.0).mul_(decay)
