"""Columns of two values, such as those of coded categories: what depends on whether rows differ there is a matrix product."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_FEWEST = 4  # columns from which a product takes less time than passes over a block


@dataclass(frozen=True)
class TwoValues:
    """The columns of a block that have two values, or one, among all its rows.

    Attributes:
        which: Of the F columns ``(F,)``, truth values; T of them are.
        first: Whether rows have the larger value ``(C', b, T)``: 1 or 0.
        second: The same of the columns' rows ``(C', m, T)``.
        apart: Difference of the two values ``(C', T)``.
    """

    which: Tensor
    first: Tensor
    second: Tensor
    apart: Tensor

    @classmethod
    def find(cls, first: Tensor, second: Tensor) -> TwoValues | None:
        """Those of rows ``(C', b, F)`` and ``(C', m, F)``; None where they are too few to matter."""
        if first.shape[-1] < _FEWEST or not first.shape[-2] or not second.shape[-2]:
            return None
        low = torch.minimum(first.amin(-2, keepdim=True), second.amin(-2, keepdim=True))
        high = torch.maximum(first.amax(-2, keepdim=True), second.amax(-2, keepdim=True))
        known = [((rows == low) | (rows == high)).all(-2) for rows in (first, second)]
        which = (known[0] & known[1]).all(0)
        if int(which.sum()) < _FEWEST:
            return None
        high, low = high[..., which], low[..., which]
        of_first, of_second = ((rows[..., which] == high).to(first.dtype) for rows in (first, second))
        return cls(which, of_first, of_second, (high - low).squeeze(-2))

    def where_equal(self, weights: Tensor) -> Tensor:
        """Sums ``(C', b, m)`` of weights ``(C', T)`` over the columns in which rows have the same value."""
        weighted = self.first * weights.unsqueeze(-2)
        of_first = weights.sum(-1)[:, None, None] - weighted.sum(-1, keepdim=True)
        of_second = (self.second * weights.unsqueeze(-2)).sum(-1).unsqueeze(-2)
        return torch.baddbmm(of_first - of_second, weighted, self.second.mT, alpha=2.0)

    def pull(self, outer: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sums over a block of numbers ``(C', b, m)``, column by column.

        Returns:
            Where rows have the same value and where they do not, ``(C', T)`` each; and, with the sign of a difference,
            of each row ``(C', b, T)`` and of each of the columns' rows ``(C', m, T)``.
        """
        of_rows, of_cols = outer.sum(-1).unsqueeze(-1), outer.sum(-2).unsqueeze(-1)
        along, across = torch.bmm(outer, self.second), torch.bmm(outer.mT, self.first)
        total = of_rows.sum((-2, -1)).unsqueeze(-1)
        both = (self.first * along).sum(-2)
        differ = (self.first * of_rows).sum(-2) + (self.second * of_cols).sum(-2) - 2.0 * both
        return total - differ, differ, self.first * of_rows - along, across - self.second * of_cols
