"""``DistinctRows``: which rows of a table are equal, found by hashing in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_WORTH_IT = 0.9  # share of the rows that may be distinct for the others to be worth leaving out
_SAMPLE = 8.0  # times the root of the number of rows: so many show a tenth of equal rows all but surely
_CHUNK_ROWS = 65_536
# Odd constants of 64 bits (splitmix64's increment and one of its multipliers), as int64 has them.
_FACTORS = (-7046029254386353131, -4658895280553007687)


@dataclass(frozen=True)
class DistinctRows:
    """N rows as M distinct ones, in the order in which these appear first.

    Attributes:
        first: The first row of each distinct kind ``(M,)``, ascending.
        index: The kind of each row ``(N,)``: ``first[index[n]]`` is equal to row n.
    """

    first: Tensor
    index: Tensor

    @property
    def num_rows(self) -> int:
        """N."""
        return self.index.shape[0]

    @property
    def num_distinct(self) -> int:
        """M."""
        return self.first.shape[0]

    def to(self, device: torch.device) -> DistinctRows:
        """The same on another device."""
        return DistinctRows(self.first.to(device), self.index.to(device))

    @classmethod
    def find(cls, columns: Sequence[Tensor]) -> DistinctRows | None:
        """The distinct rows of tables that stand side by side; None where fewer than a tenth of the rows repeat others.

        Rows are equal if all of their numbers are; a zero has no sign. Costs one pass and a sort of N integers, or, where a
        sample of ``8 sqrt(N)`` rows has no two equal ones, those alone.

        Args:
            columns: ``(N, D)`` each, floating point or integers.
        """
        columns = [x.detach() for x in columns]
        size = columns[0].shape[0]
        sample = min(size, int(_SAMPLE * size**0.5))
        if sample < size:
            drawn = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:sample]
            if _keys([x[drawn.to(x.device)] for x in columns]).unique().numel() == sample:
                return None
        found = _grouped(_keys(columns))
        if found.num_distinct > _WORTH_IT * size or not all(found.agree(x) for x in columns):
            return None  # two rows of one key that differ, once in 10^7 tables of a million rows, cost time and no more
        return found

    def agree(self, x: Tensor, tolerance: float = 0.0) -> bool:
        """Whether equal rows have equal values.

        Args:
            x: Values ``(..., N, D)``.
            tolerance: By how much they may differ.
        """
        source = self.first[self.index]
        for start in range(0, self.num_rows, _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            own, known = x[..., part, :], x[..., source[part], :]
            same = own == known if tolerance == 0.0 else (own - known).abs() <= tolerance
            if not bool(same.all()):
                return False
        return True


def _keys(columns: Sequence[Tensor]) -> Tensor:
    """A number for every row ``(N,)``, int64: the same for equal rows, and all but surely another for others."""
    keys = torch.zeros(columns[0].shape[0], dtype=torch.int64, device=columns[0].device)
    for start in range(0, len(keys), _CHUNK_ROWS):  # in the order in which a file has them
        part = slice(start, start + _CHUNK_ROWS)
        keys[part] = _keys_of_chunk(keys[part], [x[part] for x in columns])
    return keys


def _keys_of_chunk(keys: Tensor, columns: Sequence[Tensor]) -> Tensor:
    for x in columns:
        for column in x.unbind(-1):
            bits = column
            if column.is_floating_point():
                bits = (column + 0.0).view(torch.int64 if column.element_size() == 8 else torch.int32)
            keys = keys * _FACTORS[0] + bits
            keys = (keys ^ (keys >> 29)) * _FACTORS[1]
            keys = keys ^ (keys >> 32)
    return keys


def _grouped(keys: Tensor) -> DistinctRows:
    """Rows with equal keys together, in the order of their first ones."""
    ordered, order = keys.sort(stable=True)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    first, by_first = order[begins].sort()  # the sort is stable: each begins with its first row
    rank = torch.empty_like(by_first)
    rank[by_first] = torch.arange(len(by_first), device=keys.device)
    index = torch.empty_like(order)
    index[order] = rank[begins.cumsum(0) - 1]
    return DistinctRows(first, index)
