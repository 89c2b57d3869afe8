"""Columns of integer codes."""

from __future__ import annotations

import torch
from torch import Tensor

from itergp.errors import InputError


def whole_codes(values: Tensor, kernel: str, num_levels: int | None = None) -> Tensor:
    """Codes of levels, checked.

    Args:
        values: Codes in any shape and dtype.
        kernel: Who asks.
        num_levels: Codes must be below it, and not negative; None if any whole number is a level.

    Returns:
        The codes, without derivatives.

    Raises:
        InputError: If they are not whole numbers, such as NaN, or there is no such level.
    """
    values = values.detach()
    wrong = values != values.round() if values.is_floating_point() else torch.zeros_like(values, dtype=torch.bool)
    wrong = wrong | ~torch.isfinite(values)
    if num_levels is not None:
        wrong = wrong | (values < 0) | (values >= num_levels)
    if bool(wrong.any()):
        wanted = "finite whole numbers" if num_levels is None else f"whole numbers 0..{num_levels - 1}"
        raise InputError(
            f"Columns of a {kernel} must hold codes of levels, {wanted}. Got {float(values[wrong][0]):.6g}. Re-encode them, "
            "give missing values a level of their own, leave these columns as they are when others are standardised, or name "
            "the columns of codes in active_dims."
        )
    return values


def look_up(table: Tensor, codes: Tensor, kernel: str) -> Tensor:
    """What a table ``(*batch, L)`` holds of the codes ``(..., n, 1)`` of one column: ``(*batch, n, 1)``, differentiable.

    Args:
        table: A number for each level.
        codes: Whole numbers 0..L-1.
        kernel: Who asks.

    Raises:
        InputError: If there is more than one column, or something else than codes 0..L-1 in it.
    """
    if codes.shape[-1] != 1:
        raise InputError(
            f"A {kernel} reads one column of codes. Got {codes.shape[-1]}. Name it in active_dims, and multiply kernels for "
            "several such columns."
        )
    levels = whole_codes(codes, kernel, table.shape[-1]).long().squeeze(-1)
    batch = torch.broadcast_shapes(table.shape[:-1], levels.shape[:-1])
    rows = table.expand(*batch, table.shape[-1])
    return rows.gather(-1, levels.expand(*batch, levels.shape[-1])).unsqueeze(-1)
