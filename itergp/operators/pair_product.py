"""Products with exponential kernels of two inputs that have derivatives."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import pad

from itergp.operators.recompute import Recomputation
from itergp.operators.scan_product import Lines, scan_product
from itergp.operators.scans import ExponentialPolynomial

_BLOCK_ROWS = 256  # every line of a scan has a sort of its own: few, and long
_BLOCK_NUMBERS = 2**24  # of entries, and of what their derivatives need
_EXPONENTIAL = ExponentialPolynomial.matern(0.5)


def pair_product(points: Tensor, rates: Tensor, block: Tensor) -> Tensor:
    """``sum_j exp(-rate_0 |u_i - u_j| - rate_1 |v_i - v_j|) w_j``, differentiable in every tensor, any number of times.

    ``O(n k log n)`` time; what the levels of the tree need for the backward pass is evaluated again, one at a time. Derivatives
    in an input are taken as zero where two rows have the same value of it.

    Args:
        points: u and v ``(n, 2)``.
        rates: What distances are multiplied by ``(2,)``.
        block: w ``(k, n)``.

    Returns:
        ``(k, n)``.
    """
    size, again = len(points), Recomputation()
    rows = min(_BLOCK_ROWS, size)
    levels = max(0, (-(-size // rows) - 1).bit_length())
    order = points[:, 0].detach().argsort(stable=True)
    missing = (rows << levels) - size
    ordered = torch.cat([points[order], points[order[-1:]].detach().expand(missing, 2)])
    vectors = pad(block[:, order], (0, missing))
    step = max(1, _BLOCK_NUMBERS // rows**2)
    of_blocks, of_vectors = ordered.view(-1, rows, 2), vectors.view(len(block), -1, rows)
    parts = [
        again(functools.partial(_within, of_blocks[i : i + step], rates, of_vectors[:, i : i + step]))
        for i in range(0, len(of_blocks), step)
    ]
    total = torch.cat(parts, 1).view_as(vectors)
    for level in range(levels):
        nodes = 2, (rows << level)
        total = total + again(functools.partial(_across, ordered.view(-1, *nodes, 2), rates, vectors))
    places = torch.empty_like(order)
    places[order] = torch.arange(size, device=order.device)
    return total[:, places]


def _within(points: Tensor, rates: Tensor, block: Tensor) -> Tensor:
    """Products ``(k, T, n)`` of rows of the same block, of inputs ``(T, n, 2)`` and vectors ``(k, T, n)``."""
    apart = (points.unsqueeze(2) - points.unsqueeze(1)).abs() * rates
    return torch.einsum("tij,ktj->kti", torch.exp(-apart.sum(-1)), block)


def _across(points: Tensor, rates: Tensor, vectors: Tensor) -> Tensor:
    """Products ``(k, n)`` of rows with those in the other half of their node.

    Args:
        points: By node and half ``(T, 2, h, 2)``.
        rates: What distances are multiplied by.
        vectors: ``(k, n)``, in the same order.
    """
    first, second = points.unbind(-1)
    nodes, _, rows = first.shape
    ends = first[:, 0, -1].detach(), first[:, 1, 0].detach()
    border = (0.5 * ends[0] + 0.5 * ends[1])[:, None]
    decay = torch.exp(-rates[0] * torch.stack([border - first[:, 0], first[:, 1] - border], 1)).unsqueeze(2)
    own = vectors.view(-1, nodes, 2, rows).permute(1, 2, 0, 3)  # (T, 2, k, h)

    def moved(columns: Tensor) -> Tensor:
        """Through the second input, to the other half."""
        rows_of, cols_of = second.flip(1).reshape(2 * nodes, rows), second.reshape(2 * nodes, rows)
        own_rates, block = rates[1].expand(2 * nodes), columns.reshape(2 * nodes, -1, rows)
        found = scan_product(rows_of, cols_of, own_rates, block, _EXPONENTIAL, (Lines(rows_of), Lines(cols_of)))
        return found.view(nodes, 2, -1, rows).flip(1)

    equal = ends[0] == ends[1]
    if not (first.requires_grad and bool(equal.any())):
        product = decay * moved(decay * own)
    else:  # rows on both sides of the border that stand on it: the kink between them counts as zero
        tied = ((first.detach() == border.unsqueeze(1)) & equal[:, None, None]).unsqueeze(2).to(own)
        of_all, of_tied, plain = moved(torch.cat([decay * own, tied * decay * own, tied * own], 2)).chunk(3, 2)
        product = decay * of_all - tied * decay * of_tied + tied * plain
    return product.permute(2, 0, 1, 3).reshape_as(vectors)
