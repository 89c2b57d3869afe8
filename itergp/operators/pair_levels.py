"""Orders in which rows are summed over for a product of exponential kernels of two inputs, in ``O(N log N)``.

A balanced binary tree has the rows by the first input. At a node, with c between its lower and its upper half, rows of the one
see those of the other through ``exp(-|u_i - c| / l) exp(-|u_j - c| / l)``: what is left of the kernel is a function of the
second input, a scan over the rows of the node in that one's order. Every two rows part at one node, but for those in one of the
small blocks that the tree ends with, whose entries are evaluated. No factor is above one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from itergp.operators.scans import ChunkedOrder, SortedColumn

BLOCK_ROWS = 64


def node_sizes(size: int) -> list[int]:
    """Rows of a node of each level of so many rows, from all of them down to two blocks."""
    found = []
    rows = 2 * BLOCK_ROWS
    while rows < 2 * size and size > BLOCK_ROWS:
        found.append(rows)
        rows *= 2
    return found[::-1]


class PairOrders:
    """Orders of the rows for a pair of inputs.

    Args:
        first: The input whose tree it is.
        second: The other.

    Attributes:
        levels: For every level of the tree rows by node, and in a node by the second input.
        blocks: Rows by the first input, a block in each chunk.
    """

    def __init__(self, first: SortedColumn, second: SortedColumn) -> None:
        self._first, self._second = first.values, second.by_row()
        self._ranks = torch.empty_like(first.order[: first.size])
        self._ranks[first.rows()] = torch.arange(first.size, dtype=torch.int32, device=first.values.device)
        self.blocks = ChunkedOrder(first.rows(), BLOCK_ROWS)
        self.levels: list[ChunkedOrder] = []
        self._sizes = node_sizes(first.size)
        order = second.rows()
        ranks = self._ranks.index_select(0, order)
        for size in self._sizes:
            self.levels.append(ChunkedOrder(order))
            if size > self._sizes[-1]:
                moved = _places_below(ranks, size)
                order, ranks = (torch.empty_like(x).index_copy_(0, moved, x) for x in (order, ranks))

    @staticmethod
    def memory_of(size: int, itemsize: int) -> int:
        """Bytes that the orders of so many rows keep."""
        return (len(node_sizes(size)) + 1) * ChunkedOrder.memory_of_order(size) + size * (4 + itemsize)

    def gaps(self, level: int, rate: Tensor) -> Tensor:
        """Scaled distances in the second input from the row before ``(n,)``, float64, infinity where a node begins."""
        values = self._second.index_select(0, self.levels[level].rows()).double()
        gaps = values.diff(prepend=values[:1]).mul_(rate)
        gaps[:: self._sizes[level]] = torch.inf
        return gaps

    def sides(self, level: int, rate: Tensor) -> Tensor:
        """``exp(-rate |u - c|)`` of rows in the lower and in the upper half of their node, zero elsewhere: ``(2, L, M)``."""
        order, size, values = self.levels[level], self._sizes[level], self._first
        ranks, last = self._ranks.index_select(0, order.rows()), len(values) - 1
        middle = torch.arange(size // 2, len(values) + size, size, device=values.device).clamp_max_(last)
        borders = values[middle].double().add_(values[(middle - 1).clamp_min_(0)].double()).mul_(0.5)
        border = borders.repeat_interleave(size)[: len(values)]  # rows are by node
        decay = values.index_select(0, ranks).double().sub_(border).abs_().mul_(-rate).exp_().to(values.dtype)
        upper = (ranks & size // 2) != 0
        parts = pad(torch.stack([decay.masked_fill(upper, 0.0), decay.masked_fill(~upper, 0.0)]), (0, order.missing))
        return parts.view(2, order.chunks, order.steps).mT.contiguous()

    def block_inputs(self) -> tuple[Tensor, Tensor]:
        """Both inputs of the rows of every block ``(M, L)``, the last one repeated."""
        order = self.blocks
        both = self._first, self._second.index_select(0, order.rows())
        first, second = (torch.cat([x, x[-1:].expand(order.missing)]).view(order.chunks, order.steps) for x in both)
        return first, second


def _places_below(ranks: Tensor, size: int) -> Tensor:
    """Where rows that are by nodes of some size, the last perhaps smaller, stand when they are by halves of these ``(n,)``."""
    place, lower = torch.arange(len(ranks), device=ranks.device), (ranks & size // 2) == 0
    before = lower.cumsum(0).sub_(lower.long())  # rows of lower halves
    start = (place & -size) // 2  # those of the nodes before
    return torch.where(lower, start + before, start + (size // 2 + place) - before)
