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


def values_and_rows(proposal: Proposal) -> tuple[Tensor, Tensor | None]:
    """What actions are, ``(N, C, k)`` or ``(m, C, k)``, and at which rows ``(m,)``; None for all."""
    return (proposal.values, proposal.rows) if isinstance(proposal, RowBlock) else (proposal, None)


def dense_block(proposal: Proposal, like: Tensor) -> Tensor:
    """A proposal at all rows ``(N, C, k)``.

    Args:
        proposal: Actions of all rows or of a few.
        like: Any tensor ``(N, C)``, for shape and dtype.
    """
    values, rows = values_and_rows(proposal)
    if rows is None:
        return values
    block = like.new_zeros(*like.shape, values.shape[-1])
    block[rows] = values.to(block)
    return block
