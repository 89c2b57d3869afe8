"""Products with kernels made of pairwise parts: blocks are evaluated forwards, and again for derivatives."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from itergp.operators import tiles
from itergp.operators.block_product import BlockProduct
from itergp.operators.pairwise import TENSORS, Node
from itergp.operators.radial_derivatives import DIFFERENCES
from itergp.operators.recompute import Recomputation
from itergp.operators.tiles import slices


def pairwise_product(
    node: Node, tensors: list[Tensor], block: Tensor, *, symmetric: bool, value: bool = True
) -> Tensor:
    """``entries(rows, cols) @ block``, differentiable in every tensor.

    Nothing larger than a cache-sized block of entries is stored. A symmetric product evaluates each block once.
    Derivatives that are themselves to be differentiated come from plain operations, which are slower.

    Args:
        node: What the entries are.
        tensors: For each leaf of it rows ``(C', M, F)``, columns ``(C', N, F)``, rates and weights. Rows and columns are the
            same tensor when symmetric.
        block: ``(C', N, k)``.
        symmetric: Whether rows and columns are the same inputs.
        value: Whether the product itself is computed; otherwise zeros stand for it, and only derivatives are.

    Returns:
        ``(C', M, k)``.
    """
    return _PairwiseProduct.apply(node, symmetric, value, block, *tensors)


class _PairwiseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, node: Node, symmetric: bool, value: bool, block: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(block, *tensors)
        ctx.node, ctx.symmetric = node, symmetric
        if not value:
            return block.new_zeros(len(block), tensors[0].shape[1], block.shape[-1])
        product = BlockProduct(block, len(block), tensors[0].shape[1])

        def multiply(i: slice, j: slice) -> int:
            entries = node.entries(_at(tensors, i, j)).to(block.dtype)
            product.add(i, entries, j)
            if symmetric and i.start != j.start:
                product.add(j, entries.mT, i)
            return entries.numel()

        _each_block(tensors, symmetric, multiply)
        return product.result()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        block, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():  # by create_graph=True
            return None, None, None, *_differentiable_gradients(ctx.node, block, tensors, needed, grad)
        grad = grad.contiguous()
        grad_block = BlockProduct(grad, len(block), block.shape[1])
        of_rows = {n: torch.zeros_like(t) for n, t in enumerate(tensors) if _is_of_rows(n) and needed[1 + n]}
        sums: dict[tuple[int, int], list[Tensor | None]] = {}  # of what moves parameters, by block

        def differentiate(i: slice, j: slice) -> int:
            part, entries = _at(tensors, i, j), None
            if needed[0]:
                entries, pull = ctx.node.linearise(part, needed[1:])
            else:
                pull = ctx.node.derivatives(part, needed[1:])
            twice = ctx.symmetric and i.start != j.start
            inner = torch.bmm(grad[:, i], block[:, j].mT)  # derivative in the entries
            if twice:
                inner = inner.baddbmm_(block[:, i], grad[:, j].mT)
            if entries is not None:
                grad_block.add(j, entries.mT.to(grad.dtype), i)
                if twice:
                    grad_block.add(i, entries.to(grad.dtype), j)
            found = pull(inner)
            for n, total in of_rows.items():
                total[:, i if n % TENSORS == 0 else j] += found[n]
            sums[i.start, j.start] = [None if _is_of_rows(n) or g is None else g.double() for n, g in enumerate(found)]
            return inner.numel()

        _each_block(tensors, ctx.symmetric, differentiate)
        gradients: list[Tensor | None] = []
        for n, tensor in enumerate(tensors):
            values = [sums[key][n] for key in sorted(sums)]
            known = [value for value in values if value is not None]
            gradients.append(of_rows.get(n) if not known else torch.stack(known).sum(0).to(tensor))
        return None, None, None, grad_block.result() if needed[0] else None, *gradients


def _differentiable_gradients(
    node: Node, block: Tensor, tensors: list[Tensor], needed: tuple[bool, ...], grad: Tensor
) -> list[Tensor | None]:
    """The gradients of a product, with derivatives of their own."""
    # Rows and columns that are one tensor have a gradient each.
    block, *tensors = inputs = [tensor.view_as(tensor) for tensor in (block, *tensors)]

    def product(i: slice) -> Tensor:
        return torch.bmm(node.smooth(_at(tensors, i, slice(None))).to(block.dtype), block)

    widest = max(tensor.shape[-1] for tensor in tensors)
    most = max(1, DIFFERENCES // max(1, block.shape[0] * block.shape[1] * widest))
    again = Recomputation()
    parts = [again(functools.partial(product, i)) for i in slices(tensors[0].shape[1], most)]
    wanted = [tensor for tensor, flag in zip(inputs, needed, strict=True) if flag]
    found = iter(torch.autograd.grad(torch.cat(parts, 1), wanted, grad, create_graph=True, allow_unused=True))
    return [next(found) if flag else None for flag in needed]


def _is_of_rows(number: int) -> bool:
    """Whether a tensor of a leaf is its rows or its columns."""
    return number % TENSORS < 2


def _at(tensors: tuple[Tensor, ...] | list[Tensor], i: slice, j: slice) -> list[Tensor]:
    """The tensors of one block."""
    sides = (i, j)
    return [tensor[:, sides[n % TENSORS]] if _is_of_rows(n) else tensor for n, tensor in enumerate(tensors)]


def _each_block(tensors: tuple[Tensor, ...] | list[Tensor], symmetric: bool, work: tiles.Work) -> None:
    """Calls a function of slices of rows and columns for every block; on and above the diagonal when symmetric."""
    kernels, rows = tensors[0].shape[:2]
    cols, device = tensors[1].shape[1], tensors[0].device
    side, entries = tiles.side_of_block(device, kernels), kernels * rows * cols
    if symmetric:
        tiles.symmetric(rows, side, work, tiles.threads_for(device, entries // 2))
    else:
        tiles.rectangular(rows, cols, side, work, tiles.threads_for(device, entries))
