"""From encoded rows back to a table, for methods that want to encode it in their own way."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itergp.tables.columns import CategoricalColumn, EncodedColumn, GapColumn
from itergp.tables.table import Table

Array = NDArray[np.float64]


def decode(columns: Iterable[EncodedColumn], encoded: Array) -> Table:
    """A table that says what encoded rows say: numbers, and levels as text, with gaps.

    Dates are the numbers that they were encoded as, and so are ordered levels. What was left out stays out.

    Args:
        columns: What became of the columns, see ``TableEncoder.columns_``.
        encoded: Rows ``(M, E)``.

    Raises:
        ImportError: If there are levels and pandas is not installed.
    """
    kept = [column for column in columns if column.indices]
    gaps = {column.position: encoded[:, column.indices[0]] > 0.5 for column in kept if isinstance(column, GapColumn)}
    found: list[Any] = []
    for column in kept:
        values = encoded[:, list(column.indices)]
        if isinstance(column, CategoricalColumn):
            found.append(_levels(column, values))
        elif not isinstance(column, GapColumn):
            without = gaps.get(column.position, np.zeros(len(encoded), bool))
            found += list(np.where(without[:, None], np.nan, values).T)
    return Table(found, len(encoded), None, None)


def _levels(column: CategoricalColumn, values: Array) -> Any:
    """A pandas Series of levels; what is none of those of the training rows is a gap."""
    pandas: Any = importlib.import_module("pandas")
    codes = np.where(values.max(1) > 0.5, values.argmax(1), -1) if column.coding == "one-hot" else values[:, 0]
    codes = np.where((codes == np.floor(codes)) & (codes < len(column.levels)), codes, -1).astype(np.intp)
    return pandas.Series(pandas.Categorical.from_codes(codes, [*column.levels]))
