"""Which columns of a table are groups, and whose slopes differ by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from itergp.errors import InputError
from itergp.tables.columns import EncodedColumn, GroupColumn, NumericColumn
from itergp.tables.table import Table


def read_groups(groups: Any, table: Table) -> dict[int, tuple[str, ...]]:
    """Numbers of the columns that are groups, and the names of the columns whose slopes differ by group.

    Args:
        groups: As in ``TableEncoder``.
        table: The training data.

    Raises:
        InputError: If there is no such column, or a column is its own slope.
    """
    if groups is None:
        return {}
    given = groups if isinstance(groups, Mapping) else dict.fromkeys(_as_list(groups), ())
    names = table.names or [f"x{index}" for index in range(len(table.columns))]
    found: dict[int, tuple[str, ...]] = {}
    for column, slopes in given.items():
        position = _place(column, names, "groups")
        others = [_place(slope, names, "slopes of groups") for slope in _as_list(slopes)]
        if position in others:
            raise InputError(
                f"Slopes of groups must be those of other columns. Got {column!r} as its own. Name a numeric column."
            )
        found[position] = tuple(names[other] for other in others)
    return found


def require_numbers(columns: Sequence[EncodedColumn]) -> None:
    """Slopes must be those of columns of numbers.

    Raises:
        InputError: If one is not.
    """
    numeric = {column.name for column in columns if isinstance(column, NumericColumn)}
    for group in columns:
        wrong = [name for name in group.slopes if name not in numeric] if isinstance(group, GroupColumn) else []
        if wrong:
            raise InputError(
                f"Slopes of groups must be those of columns of numbers that vary. Got {wrong[0]!r} for group {group.name!r}. "
                "Name another column, or make it numeric."
            )


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, (str, int, np.integer)) else list(value)


def _place(column: Any, names: list[str], what: str) -> int:
    if str(column) in names:
        return names.index(str(column))
    if isinstance(column, (int, np.integer)) and not isinstance(column, bool) and 0 <= column < len(names):
        return int(column)
    shown = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
    raise InputError(f"`{what}` must be columns of `X`: {shown}, or their numbers. Got {column!r}. Correct it.")
