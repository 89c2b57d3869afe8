"""Targets as a vector of one kind, with every gap named by its row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from itergp.errors import InputError


def as_target_column(y: Any) -> NDArray[Any]:
    """Targets of any container as a NumPy vector; nullable pandas types, Arrow and polars included.

    Args:
        y: Targets ``(N,)`` or one column.

    Returns:
        A vector ``(N,)`` of numbers, truth values, or objects. Gaps are NaN in numbers and None in objects.

    Raises:
        InputError: If there are several columns.
    """
    kind = type(y).__module__.partition(".")[0]
    if kind in ("polars", "pyarrow") and hasattr(y, "to_pandas"):
        y = y.to_pandas()
    if hasattr(y, "columns") and len(y.columns) == 1:
        y = y.iloc[:, 0]
    dtype = getattr(y, "dtype", None)
    if dtype is None or isinstance(dtype, np.dtype):
        values = np.asarray(y)
        if dtype is None and values.dtype.kind == "U" and values.ndim == 1:
            return np.asarray(y, dtype=object) if _is_mixed(y) else values  # numbers beside text would become text
        return values
    missing = np.asarray(y.isna(), dtype=bool)
    if not missing.any():
        return np.asarray(y.to_numpy())
    values = np.asarray(y, dtype=object)
    values[missing] = None
    return values


def _is_mixed(values: Any) -> bool:
    return not all(isinstance(value, str) for value in values)


def first_gap(y: NDArray[Any]) -> tuple[int, int] | None:
    """The number of rows ``y`` says nothing in, and the first of them; None if there are none."""
    if y.dtype.kind == "f":
        gaps = np.isnan(y)
    elif y.dtype.kind == "O":
        gaps = np.array([_is_gap(value) for value in y], dtype=bool)
    else:
        return None
    return (int(gaps.sum()), int(np.flatnonzero(gaps)[0])) if gaps.any() else None


def _is_gap(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))


def refuse_gaps(y: NDArray[Any]) -> None:
    """Every row must have a target.

    Raises:
        InputError: If one has none, saying which.
    """
    found = first_gap(y)
    if found is not None:
        count, row = found
        raise InputError(
            f"`y` must have a target in every row. Got none in {count} of {len(y)} row(s), first in row {row}. Drop those rows."
        )
