"""Products with a radial kernel that have derivatives: blocks are evaluated in the forward and again in the backward pass."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from itergp.kernels.distances import sum_of_squares
from itergp.operators import tiles
from itergp.operators.block_product import BlockProduct
from itergp.operators.radial_derivatives import smooth_product

_LOG2_E = math.log2(math.e)
# Squared distances below so many times the rounding of a squared norm come from differences where the profile has a kink.
_NEAR = 16.0


def radial_product(
    rows: Tensor,
    cols: Tensor,
    output_scale: Tensor,
    block: Tensor,
    smoothness: float,
    *,
    symmetric: bool,
    stretch: Tensor | None = None,
    value: bool = True,
) -> Tensor:
    """``output_scale * profile(stretch |rows - cols|) @ block``, differentiable in every tensor.

    Nothing larger than a cache-sized block of entries is stored. A symmetric product evaluates each block once.
    Derivatives that are themselves to be differentiated come from plain operations, which are slower.

    Args:
        rows: Scaled inputs ``(C', M, D)``, whose plain distances enter the profile.
        cols: Scaled inputs ``(C', N, D)``; the same tensor as ``rows`` when symmetric.
        output_scale: ``(C',)``.
        block: ``(C', N, k)``.
        smoothness: Matern smoothness 0.5, 1.5 or 2.5, or infinity for the squared exponential.
        symmetric: Whether rows and columns are the same inputs.
        stretch: Ones ``(C',)`` that carry the derivative in one lengthscale for all inputs: much cheaper, for many inputs, than
            that of every scaled input.
        value: Whether the product itself is computed; otherwise zeros stand for it, and only derivatives are.

    Returns:
        ``(C', M, k)``.
    """
    stretch = output_scale.detach().new_ones(rows.shape[0]) if stretch is None else stretch
    return _RadialProduct.apply(rows, cols, output_scale, block, stretch, smoothness, symmetric, value)


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
        value: bool,
    ) -> Tensor:
        ctx.save_for_backward(rows, cols, scale, block, stretch)
        ctx.smoothness, ctx.symmetric = smoothness, symmetric
        if not value:
            return block.new_zeros(len(rows), rows.shape[1], block.shape[-1])
        first, second = with_norms(rows), with_norms(cols)
        product = BlockProduct(block, len(rows), rows.shape[1])

        def multiply(i: slice, j: slice) -> int:
            entries = profile(_squared(first, second, i, j, smoothness, symmetric).to(block.dtype), smoothness)
            product.add(i, entries, j)
            if symmetric and i.start != j.start:
                product.add(j, entries.mT, i)
            return entries.numel()

        _each_block(rows, cols, symmetric, multiply)
        return product.result() * scale[:, None, None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # by create_graph=True
            return _differentiable_gradients(ctx, grad)
        rows, cols, scale, block, _ = ctx.saved_tensors
        symmetric = ctx.symmetric
        needed = ctx.needs_input_grad
        of_inputs, of_block, of_stretch = needed[0] or needed[1], needed[3], needed[4]
        first, second = with_norms(rows), with_norms(cols)
        scaled = grad.contiguous() * scale[:, None, None]
        grad_block = BlockProduct(scaled, len(cols), cols.shape[1])
        pulled_rows = BlockProduct(second, len(rows), rows.shape[1])
        pulled_cols = BlockProduct(first, len(cols), cols.shape[1])
        sums: dict[tuple[int, int], Tensor] = {}  # of what moves the scale and the stretch, by block

        def differentiate(i: slice, j: slice) -> int:
            squared = _squared(first, second, i, j, ctx.smoothness, symmetric)
            apart = squared.to(block.dtype, copy=True) if of_stretch else squared
            entries, slope = profile_and_slope(squared.to(block.dtype), ctx.smoothness)
            twice = symmetric and i.start != j.start
            inner = torch.bmm(scaled[:, i], block[:, j].mT)  # derivative in the entries of k(x_i, x_j)
            if twice:
                inner = inner.baddbmm_(block[:, i], scaled[:, j].mT)
            if of_block:
                grad_block.add(j, entries.mT, i)
            if of_block and twice:
                grad_block.add(i, entries, j)
            of_scale = entries.mul_(inner).sum((1, 2))
            pull = inner.mul_(slope)  # derivative in the squared distance
            if of_inputs:
                wide = pull.to(rows.dtype)
                pulled_rows.add(i, wide, j)
                pulled_cols.add(j, wide.mT, i)
            moved = 2.0 * apart.mul_(pull).sum((1, 2)) if of_stretch else torch.zeros_like(of_scale)
            sums[i.start, j.start] = torch.stack([of_scale, moved]).double()
            return pull.numel()

        _each_block(rows, cols, symmetric, differentiate)
        grad_scale, grad_stretch = torch.stack([sums[key] for key in sorted(sums)]).sum(0)
        grad_rows, grad_cols = _apart(pulled_rows, rows), _apart(pulled_cols, cols)
        grad_scale = (grad_scale / scale.double()).to(scale)
        return grad_rows, grad_cols, grad_scale, grad_block.result(), grad_stretch.to(scale), None, None, None


def _differentiable_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of a product, with derivatives of their own."""
    # Rows and columns that are one tensor have a gradient each.
    rows, cols, scale, block, stretch = tensors = [tensor.view_as(tensor) for tensor in ctx.saved_tensors]
    wanted = [tensor for tensor, needed in zip(tensors, ctx.needs_input_grad, strict=False) if needed]
    product = smooth_product(rows, cols, scale, block, stretch, ctx.smoothness)
    found = iter(torch.autograd.grad(product, wanted, grad, create_graph=True))
    gradients = [next(found) if needed else None for needed in ctx.needs_input_grad[: len(tensors)]]
    return (*gradients, None, None, None)


def _apart(pulled: BlockProduct, inputs: Tensor) -> Tensor:
    """``2 sum_j P_ij (x_i - y_j)`` from the product of P with the y, their norms and ones."""
    product, size = pulled.result(), inputs.shape[-1]
    return 2.0 * (product[..., size + 1 :] * inputs - product[..., :size])


def _each_block(rows: Tensor, cols: Tensor, symmetric: bool, work: tiles.Work) -> None:
    """Calls a function of slices of rows and columns for every block; on and above the diagonal when symmetric."""
    side, entries = tiles.side_of_block(rows.device, rows.shape[0]), rows.shape[0] * rows.shape[1] * cols.shape[1]
    if symmetric:
        tiles.symmetric(rows.shape[1], side, work, tiles.threads_for(rows.device, entries // 2))
    else:
        tiles.rectangular(rows.shape[1], cols.shape[1], side, work, tiles.threads_for(rows.device, entries))


def _squared(rows: Tensor, cols: Tensor, i: slice, j: slice, smoothness: float, symmetric: bool) -> Tensor:
    squared = profile_distances(rows[:, i], cols[:, j], smoothness)
    if symmetric and i.start == j.start:
        squared.diagonal(dim1=-2, dim2=-1).zero_()
    return squared


def with_norms(inputs: Tensor) -> Tensor:
    """Inputs ``(C', M, D)`` with their squared norms and ones ``(C', M, D + 2)``: what ``squared_distances`` takes."""
    norms = inputs.square().sum(-1, keepdim=True)
    return torch.cat([inputs, norms, torch.ones_like(norms)], -1)


def squared_distances(rows: Tensor, cols: Tensor) -> Tensor:
    """Squared distances ``(C', b, m)`` by one product of inputs with their norms, ``(C', b, D + 2)`` and ``(C', m, D + 2)``."""
    size = rows.shape[-1] - 2
    left = torch.cat([rows[..., :size] * -2.0, rows[..., size + 1 :], rows[..., size : size + 1]], -1)
    return torch.bmm(left, cols.mT).clamp_min_(0.0)


def profile_distances(rows: Tensor, cols: Tensor, smoothness: float) -> Tensor:
    """``squared_distances`` as accurate as the profile needs them, without derivatives.

    A profile with a kink at zero takes the root of them, and so that of their rounding between rows that are equal or nearly
    so: small ones come from differences there.
    """
    if smoothness != 0.5 or cols.shape[-2] == 0:
        return squared_distances(rows, cols)
    size = rows.shape[-1] - 2
    if size == 1:  # as fast, and many rows are near in one dimension
        return sum_of_squares(rows[..., :1], cols[..., :1])
    squared = squared_distances(rows, cols)
    itself = rows.data_ptr() == cols.data_ptr() and rows.shape == cols.shape
    if itself:
        squared.diagonal(dim1=-2, dim2=-1).fill_(math.inf)
    rounding = _NEAR * torch.finfo(squared.dtype).eps
    if float(squared.amin()) <= rounding * float(rows[..., size].max()):  # what is near has the same norm
        _mend(squared, rows, cols, rounding * rows[..., size])
    if itself:
        squared.diagonal(dim1=-2, dim2=-1).zero_()
    return squared


def _mend(squared: Tensor, rows: Tensor, cols: Tensor, limits: Tensor) -> None:
    """Replaces squared distances of a block below those of its rows ``(C', b)`` by sums of squared differences."""
    some = (squared.amin(-1) <= limits).flatten().nonzero().squeeze(-1)  # rows of all kernels
    row, second = (squared.flatten(0, 1)[some] <= limits.flatten()[some, None]).nonzero(as_tuple=True)
    first, size = some[row], rows.shape[-1] - 2
    kernel = first.div(squared.shape[-2], rounding_mode="floor")
    apart = rows[..., :size].flatten(0, 1)[first] - cols[kernel, second, :size]
    squared.flatten(0, 1)[first, second] = apart.square().sum(-1)


def profile(squared: Tensor, smoothness: float) -> Tensor:
    """The profile at squared distances, which are overwritten."""
    if smoothness == math.inf:
        return squared.mul_(-_LOG2_E).exp2_()
    distance = squared.sqrt_()
    return _matern(distance, _decay(distance), smoothness)


def profile_formula(squared: Any, smoothness: float) -> Any:
    """The profile at KeOps' squared distances."""
    if smoothness == math.inf:
        return (-squared).exp()
    distance = squared.sqrt()
    if smoothness == 0.5:
        return (-distance).exp()
    if smoothness == 1.5:
        return (1.0 + distance) * (-distance).exp()
    return (1.0 + distance + squared / 3.0) * (-distance).exp()


def _decay(distance: Tensor) -> Tensor:
    """``exp(-distance)``. Powers of two take a quarter of the time of powers of e where these come from MKL."""
    return torch.mul(distance, -_LOG2_E).exp2_()


def profile_and_slope(squared: Tensor, smoothness: float) -> tuple[Tensor, Tensor]:
    """The profile and its derivative in the squared distances, which are overwritten."""
    if smoothness == math.inf:
        entries = profile(squared, smoothness)
        return entries, -entries
    distance = squared.sqrt_()
    decay = _decay(distance)
    if smoothness == 0.5:
        # Not differentiable at distance 0; the entry of a row with itself does not move there.
        slope = torch.where(distance > 0.0, decay / (-2.0 * distance), 0.0)
    elif smoothness == 1.5:
        slope = -0.5 * decay
    else:
        slope = (distance + 1.0).mul_(decay).mul_(-1.0 / 6.0)
    return _matern(distance, decay.clone(), smoothness), slope


def _matern(distance: Tensor, decay: Tensor, smoothness: float) -> Tensor:
    """A Matern profile in place of ``exp(-distance)``; the distances may be overwritten."""
    if smoothness == 0.5:
        return decay
    if smoothness == 1.5:
        return decay.addcmul_(distance, decay)
    return decay.mul_(distance.mul(1.0 / 3.0).add_(1.0).mul_(distance).add_(1.0))
