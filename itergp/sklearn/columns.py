"""Encoded columns as estimators use them: which only name levels, and which are 0 and 1."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from itergp.learning import InputColumns
from itergp.tables import (
    CategoricalColumn,
    EncodedColumn,
    GapColumn,
    GroupColumn,
    NumericColumn,
    TableColumns,
    TableEncoder,
)


def code_columns(columns: TableColumns) -> list[int]:
    """Encoded columns of codes, whose numbers only name levels."""
    return [column.indices[0] for column in columns if _is_coded(column)]


def unit_columns(encoder: TableEncoder) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Columns that are not standardised, and what they are divided by: two levels are two apart, however rare they are.

    Two is the distance of two equally frequent values of a standardised column. Codes stay as they are.

    Args:
        encoder: A fitted one, with E encoded columns.

    Returns:
        Which columns ``(E,)``, and the numbers ``(E,)``.
    """
    which, unit = np.zeros(encoder.num_encoded, dtype=bool), np.ones(encoder.num_encoded)
    for column in encoder.columns_:
        if isinstance(column, (CategoricalColumn, GapColumn)):
            which[list(column.indices)] = True
            if isinstance(column, CategoricalColumn) and column.coding == "one-hot":
                unit[list(column.indices)] = math.sqrt(0.5)
            elif not _is_coded(column):
                unit[list(column.indices)] = 0.5
    return which, unit


def input_columns(columns: TableColumns | None, num_columns: int, num_linear: int = 0) -> InputColumns:
    """What kernels may know of E encoded columns, and of those after them that functions are linear in.

    Args:
        columns: What the encoded columns mean; None for numbers.
        num_columns: E.
        num_linear: How many others follow.
    """
    linear = tuple(range(num_columns, num_columns + num_linear))
    if columns is None:
        every = tuple(range(num_columns))
        return InputColumns(num_columns + num_linear, every, (*every, *linear), linear=linear)
    groups = [-1] * num_columns + [len(columns) + place for place in range(num_linear)]
    places = {
        column.name: column.indices[0] for column in columns if isinstance(column, NumericColumn) and column.indices
    }
    effects = [
        (column.indices[0], place)
        for column in columns
        if isinstance(column, GroupColumn) and column.indices
        for place in (None, *(places[name] for name in column.slopes if name in places))
    ]
    for group, column in enumerate(columns):
        for index in column.indices:
            groups[index] = group
    numbers = tuple(i for column in columns if isinstance(column, NumericColumn) for i in column.indices)
    codes = tuple(c for c in code_columns(columns) if c not in {group for group, _ in effects})
    return InputColumns(num_columns + num_linear, numbers, tuple(groups), codes, linear, tuple(effects))


def _is_coded(column: EncodedColumn) -> bool:
    return isinstance(column, CategoricalColumn) and column.coding == "codes"
