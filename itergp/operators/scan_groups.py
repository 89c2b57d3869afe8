"""Groups of terms of a kernel that advance together in a product by scans."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from itergp.operators.pair_levels import PairOrders, node_sizes
from itergp.operators.scan_form import PairTerm, ScanTerm
from itergp.operators.scans import ChunkedOrder, ExponentialPolynomial, Scan, SortedColumn
from itergp.operators.tiles import slices

_BLOCK_ENTRIES = 2**18  # that are evaluated at once: more leave the cache
_BLOCK_ENTRIES_ELSEWHERE = 2**27  # on a GPU
_EXPONENTIAL = ExponentialPolynomial.matern(0.5)

OneTerm = TypeVar("OneTerm", ScanTerm, PairTerm)


class TermGroup(ABC, Generic[OneTerm]):
    """Terms each of which has an order of the rows, in which it is multiplied by.

    Args:
        terms: For each its kernel's number and itself.
        orders: Theirs, of one layout.

    Attributes:
        shape: Rows L of a chunk, and chunks M.
        arrays: Of N rows each that a column of a product needs.
    """

    def __init__(self, terms: Sequence[tuple[int, OneTerm]], orders: Sequence[ChunkedOrder]) -> None:
        self.terms: Sequence[tuple[int, OneTerm]] = terms
        self.orders = orders
        self.shape = orders[0].steps, orders[0].chunks
        self.arrays = len(terms)

    def chunked(self, rows: Tensor, out: Tensor) -> Tensor:
        """Vectors side by side, ``(1, N, b)`` or ``(C', N, b)``, of each term's kernel in chunks ``(T, b, L, M)``."""
        for (c, _), order, part in zip(self.terms, self.orders, out, strict=True):
            order.chunked_rows(rows[min(c, len(rows) - 1)], part)
        return out

    @abstractmethod
    def multiply(self, block: Tensor) -> None:
        """Vectors ``(T, b, L, M)`` in the layout of chunks by the terms without their weights, in place."""


class SortedGroup(TermGroup[ScanTerm]):
    """Terms of one input each, and of one smoothness.

    Args:
        terms: For each its kernel's number and itself.
        columns: Their inputs.
    """

    def __init__(self, terms: Sequence[tuple[int, ScanTerm]], columns: Sequence[SortedColumn]) -> None:
        super().__init__(terms, columns)
        self.columns = columns
        self.profile = terms[0][1].profile
        self.rates = torch.stack([term.rate[c] for c, term in terms]).detach().double()
        self.scan = Scan.of(columns, self.rates, self.profile.degree)

    def multiply(self, block: Tensor) -> None:
        """See ``TermGroup``."""
        block.copy_(self.scan.products(block, [self.profile])[0])


class PairGroup(TermGroup[PairTerm]):
    """Levels of the trees of pairs of inputs.

    Args:
        terms: For each level its kernel's number, and the pair that it is one of.
        levels: For each the orders of its pair, and its number among them.
    """

    def __init__(self, terms: Sequence[tuple[int, PairTerm]], levels: Sequence[tuple[PairOrders, int]]) -> None:
        super().__init__(terms, [orders.levels[number] for orders, number in levels])
        each = [(*level, term.rates[c].double()) for (c, term), level in zip(terms, levels, strict=True)]
        self._sides = torch.stack([orders.sides(number, rates[0]) for orders, number, rates in each])
        gaps = torch.stack([orders.gaps(number, rates[1]) for orders, number, rates in each])
        self._scan = Scan(gaps, 0, self._sides.dtype)

    @staticmethod
    def memory_of(size: int, itemsize: int) -> int:
        """Bytes that all levels of so many rows keep besides their orders, and the blocks."""
        of_level = 2 * size * itemsize + Scan.memory_of(size, 0, itemsize)
        return len(node_sizes(size)) * of_level + 2 * size * itemsize

    def multiply(self, block: Tensor) -> None:
        """See ``TermGroup``."""
        terms, width = block.shape[:2]
        sides = self._sides.unsqueeze(2)  # (T, 2, 1, L, M)
        apart = (sides * block.unsqueeze(1)).view(terms, 2 * width, *self.shape)
        lower, upper = self._scan.products(apart, [_EXPONENTIAL])[0].view(terms, 2, width, *self.shape).unbind(1)
        torch.mul(sides[:, 1], lower, out=block).addcmul_(sides[:, 0], upper)


class BlockGroup(TermGroup[PairTerm]):
    """What the tree of a pair of inputs ends with: entries within small blocks of rows.

    Args:
        terms: The number of its kernel, and the pair.
        orders: Of the pair.
    """

    def __init__(self, terms: Sequence[tuple[int, PairTerm]], orders: PairOrders) -> None:
        super().__init__(terms, [orders.blocks])
        ((c, term),) = terms
        self._inputs = orders.block_inputs()
        self._rates = term.rates[c].tolist()

    def multiply(self, block: Tensor) -> None:
        """See ``TermGroup``."""
        rows = block[0].permute(2, 1, 0).contiguous()  # (M, L, b)
        first, second = self._inputs
        most = _BLOCK_ENTRIES if block.device.type == "cpu" else _BLOCK_ENTRIES_ELSEWHERE
        for i in slices(len(rows), max(1, most // self.shape[0] ** 2)):
            entries, apart = ((x[i, :, None] - x[i, None]).abs_() for x in (first, second))
            # Differences of the inputs are exact, those of scaled ones would not be.
            entries.mul_(-self._rates[0]).add_(apart, alpha=-self._rates[1]).exp_()
            for column in rows[i].split(1, -1):  # by itself, so that it does not depend on what stands beside it
                column.copy_(entries @ column)
        block[0].copy_(rows.permute(2, 1, 0))
