"""What policies propose: blocks of actions, of all rows or of a few."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RowBlock:
    """Actions that involve a few rows only: their kernel products cost some kernel columns instead of a pass.

    Attributes:
        rows: Row numbers ``(m,)``.
        values: What the actions are there ``(m, C, k)``.
    """

    rows: Tensor
    values: Tensor


Proposal = Tensor | RowBlock
