"""Columns of the table as an explanation shows them: all encoded columns of one together, in its own units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itergp.checks import require_module
from itergp.errors import InputError
from itergp.tables import (
    CategoricalColumn,
    DateColumn,
    DroppedColumn,
    EncodedColumn,
    GapColumn,
    NumericColumn,
    OrderedColumn,
    TableEncoder,
)

Array = NDArray[np.float64]

MISSING = "missing"  # what a gap is called
_YEAR = 365.2425  # days, as the encoder has it
_TAIL = 0.01  # share of the rows beyond either end of a grid
_PER_YEAR, _MOST_DATES = 12, 60  # dates of a grid
_PER_LEVEL = 30  # levels of a column that are shown, at most: the most frequent
_DAY = 86_400.0


@dataclass(frozen=True)
class Grid:
    """Values of one column at which its effect is looked at.

    Attributes:
        values: What they are in the table ``(G,)``: numbers, levels as text, ``datetime64`` dates; None, NaN or NaT for a gap.
        places: The same as numbers ``(G,)``: numbers, numbers of levels, days since 1970; NaN for a gap.
        weights: Share of the rows that are nearest to each ``(G,)``, which sum to one.
        indices: Encoded columns that the value sets; of a date trend and season, while rows keep their weekday and hour.
        encoded: What these are there ``(G, E_j)``.
    """

    values: NDArray[Any]
    places: Array
    weights: Array
    indices: list[int]
    encoded: Array

    @property
    def gap(self) -> NDArray[np.bool_]:
        """Which of the values is a gap ``(G,)``."""
        return np.isnan(self.places)


@dataclass(frozen=True)
class ColumnView:
    """One column of the table.

    Attributes:
        name: Its name.
        position: Its number in the table.
        groups: What it became.
    """

    name: str
    position: int
    groups: tuple[EncodedColumn, ...]

    @property
    def main(self) -> EncodedColumn:
        """The first of what it became, which says its kind."""
        return self.groups[0]

    @property
    def indices(self) -> list[int]:
        """Its encoded columns; none if it was left out."""
        return [index for group in self.groups for index in group.indices]

    @property
    def kind(self) -> str:
        """``"number"``, ``"duration"``, ``"date"``, ``"levels"``, ``"ordered levels"`` or ``"left out"``."""
        if isinstance(self.main, NumericColumn):
            return "duration" if self.main.duration else "number"
        kinds = {DateColumn: "date", CategoricalColumn: "levels", OrderedColumn: "ordered levels"}
        return next((name for kind, name in kinds.items() if isinstance(self.main, kind)), "left out")

    @property
    def has_levels(self) -> bool:
        """Whether its values are levels, ordered or not."""
        return isinstance(self.main, (CategoricalColumn, OrderedColumn))

    @property
    def unit(self) -> str:
        """Of a distance along it, for a reader; empty where its name must say it."""
        return {"duration": "seconds", "date": "days", "ordered levels": "levels"}.get(self.kind, "")

    @property
    def title(self) -> str:
        """Name and unit, for an axis."""
        return f"{self.name} (seconds)" if self.kind == "duration" else self.name

    def places(self, rows: Array) -> Array:
        """The column as numbers ``(N,)``: numbers, numbers of levels, days since 1970; NaN where it has a gap.

        Args:
            rows: Encoded rows ``(N, E)``.
        """
        main = self.main
        values = rows[:, list(main.indices)]
        if isinstance(main, CategoricalColumn):
            found = values.argmax(1).astype(np.float64) if main.coding == "one-hot" else values[:, 0].copy()
            return np.where((found >= len(main.levels)) | (found < 0), np.nan, found)
        found = values[:, 0] * (_YEAR if isinstance(main, DateColumn) else 1.0)
        gaps = [group.indices[0] for group in self.groups if isinstance(group, GapColumn)]
        return np.where(rows[:, gaps[0]] > 0.5, np.nan, found) if gaps else found

    def grid(self, encoder: TableEncoder, rows: Array, weights: Array, size: int) -> Grid:
        """Values over the range of the rows, and a gap where some had one.

        Args:
            encoder: Of the table.
            rows: Encoded rows ``(N, E)``.
            weights: Of these ``(N,)``.
            size: Values at most, levels apart.
        """
        places = self.places(rows)
        known = ~np.isnan(places)
        if self.has_levels:
            shown = self._levels(places, weights)
        else:
            shown = _spread(places[known], self._size(places[known], size), self._whole(places))
        shares = _shares(shown, places[known], weights[known])
        if not known.all():
            shown, shares = np.append(shown, np.nan), np.append(shares, weights[~known].sum())
        values = self.values(shown)
        indices, encoded = encoder.encode_column(self.position, values)
        kept = [place for place, index in enumerate(indices) if index not in self._kept]
        return Grid(values, shown, shares / shares.sum(), [indices[place] for place in kept], encoded[:, kept])

    @property
    def _kept(self) -> set[int]:
        """Encoded columns that every row keeps when the column gets a value."""
        parts = [group for group in self.groups if isinstance(group, DateColumn) and group.part in ("weekday", "hour")]
        return {index for part in parts for index in part.indices}

    def _size(self, places: Array, size: int) -> int:
        """More values of dates whose season counts."""
        if not any(isinstance(group, DateColumn) and group.part == "season" for group in self.groups):
            return size
        return int(np.clip(_PER_YEAR * np.ptp(places) / _YEAR, size, _MOST_DATES))

    def values(self, places: Array) -> NDArray[Any]:
        """Numbers as ``places`` gives them, as they are in the table ``(G,)``."""
        main = self.main
        if isinstance(main, (CategoricalColumn, OrderedColumn)):
            found = [None if np.isnan(place) else main.levels[int(place)] for place in places]
            return np.array(found, dtype=object)
        if not isinstance(main, DateColumn):
            return places
        seconds = np.where(np.isnan(places), 0.0, np.round(places * _DAY)).astype(np.int64)
        dates = seconds.astype("datetime64[s]").astype("datetime64[ns]")
        dates[np.isnan(places)] = np.datetime64("NaT")
        return dates

    def labels(self, grid: Grid) -> list[str]:
        """Levels as text, for the axis of a column of levels."""
        return [MISSING if gap else str(value) for value, gap in zip(grid.values, grid.gap, strict=True)]

    def _whole(self, places: Array) -> bool:
        known = places[~np.isnan(places)]
        return not isinstance(self.main, DateColumn) and bool((known == np.floor(known)).all())

    def _levels(self, places: Array, weights: Array) -> Array:
        """Numbers of the levels that rows have, the most frequent ones, in their order."""
        known = ~np.isnan(places)
        numbers, which = np.unique(places[known], return_inverse=True)
        counts = np.bincount(which, weights[known], len(numbers))
        kept = np.sort(np.argsort(-counts, kind="stable")[:_PER_LEVEL])
        return numbers[kept]


def _spread(places: Array, size: int, whole: bool) -> Array:
    """At most ``size`` values: all that occur, or as many evenly spaced ones and quantiles."""
    different = np.unique(places)
    if len(different) <= size:
        return different
    low, high = np.quantile(places, [_TAIL, 1.0 - _TAIL])
    if low == high:
        low, high = different[0], different[-1]
    evenly = np.linspace(low, high, size - size // 2)
    often = np.quantile(places, np.linspace(_TAIL, 1.0 - _TAIL, size // 2 + 2)[1:-1])
    together = np.concatenate([evenly, often])
    return np.unique(np.round(together) if whole else together)


def _shares(shown: Array, places: Array, weights: Array) -> Array:
    """Weight of the rows that are nearest to each of some increasing values."""
    edges = 0.5 * (shown[1:] + shown[:-1])
    return np.bincount(np.searchsorted(edges, places), weights, len(shown)).astype(np.float64)


def views(encoder: TableEncoder) -> list[ColumnView]:
    """The columns of the table, in its order."""
    found: dict[int, list[EncodedColumn]] = {}
    for column in encoder.columns_:
        found.setdefault(column.position, []).append(column)
    return [ColumnView(found[place][0].name, place, tuple(found[place])) for place in sorted(found)]


def choose(encoder: TableEncoder, columns: Any) -> list[ColumnView]:
    """Columns by name or number; None for all that were not left out.

    Raises:
        InputError: If there are none such.
    """
    known = views(encoder)
    if columns is None:
        return [view for view in known if not isinstance(view.main, DroppedColumn)]
    if isinstance(columns, (str, int, np.integer)):
        columns = [columns]
    chosen = []
    for wanted in columns:
        named = [view for view in known if view.name == str(wanted)]
        numbered = isinstance(wanted, (int, np.integer)) and not isinstance(wanted, bool)
        found = named or [view for view in known if numbered and view.position == wanted]
        if not found:
            names = ", ".join(repr(view.name) for view in known[:8]) + (", ..." if len(known) > 8 else "")
            raise InputError(
                f"`columns` must be names of columns of the table, or their numbers. Got {wanted!r}. Choose among {names}."
            )
        if isinstance(found[0].main, DroppedColumn):
            why = ", ".join(found[0].main.noticed)
            raise InputError(
                f"`columns` must be columns that the model has. Got {found[0].name!r}, which was left out ({why}). Choose "
                "others."
            )
        chosen.append(found[0])
    return chosen


def shown_place(view: ColumnView, place: float) -> str:
    """One value of a column, as text."""
    if np.isnan(place):
        return MISSING
    value = view.values(np.array([place]))[0]
    if view.kind == "date":
        return str(require_module("pandas", "A date", "tables").Timestamp(value).date())
    return value if isinstance(value, str) else f"{value:.4g}"
