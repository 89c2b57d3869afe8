"""Encoded columns as estimators use them: which only name levels, and which are 0 and 1."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from itergp.tables import CategoricalColumn, EncodedColumn, GapColumn, TableColumns, TableEncoder


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


def _is_coded(column: EncodedColumn) -> bool:
    return isinstance(column, CategoricalColumn) and column.coding == "codes"
