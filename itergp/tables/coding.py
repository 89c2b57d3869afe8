"""From what a column of the training data means to how it is encoded, and what is to be noticed about it."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itergp.errors import InputError
from itergp.tables.calendar import PARTS, encode_part
from itergp.tables.columns import (
    CategoricalColumn,
    DateColumn,
    DroppedColumn,
    EncodedColumn,
    GapColumn,
    GroupColumn,
    NumericColumn,
    OrderedColumn,
)
from itergp.tables.values import Dates, Levels, Numbers, Values

_ENOUGH_ROWS = 20  # of fewer, all may differ by chance
_UNIQUE = 0.95  # share of rows with a text of their own, of identifiers and names
_MOSTLY_UNIQUE, _LONG, _WORDY = 0.5, 50.0, 6.0  # share, mean number of characters and of words, of free text
_ROUNDING = 1e-9  # years, and sines
_SKEWED, _HEAVY, _ZEROS = 2.0, 20.0, 0.3  # skewness, excess kurtosis, share of zeros


def learn_column(
    values: Values, name: str, position: int, *, title: str, most_one_hot: int, drop: bool
) -> list[EncodedColumn]:
    """How a column is encoded, without ``indices``: its first group, and further ones for parts of dates and for gaps.

    Args:
        values: What it means.
        name: Its name.
        position: Its number.
        title: What messages call it.
        most_one_hot: Levels up to which these get columns of their own.
        drop: Whether it may be left out, if it is constant or names the rows.

    Raises:
        InputError: If it is free text.
    """
    gaps = gaps_of(values)
    common: dict[str, Any] = {"name": name, "position": position, "num_gaps": int(gaps.sum())}
    constant = is_constant(values)
    if constant and drop:
        return [DroppedColumn(**common, noticed=("no values",) if gaps.all() else ("constant",))]
    common["noticed"] = () if not constant else ("no values",) if gaps.all() else ("constant",)
    if isinstance(values, Levels) and not values.ordered:
        return [_learn_levels(values, common, title, most_one_hot, drop)]
    made: list[EncodedColumn]
    if isinstance(values, Levels):
        made = [OrderedColumn(**common, levels=values.levels, fill=_median(values.codes[~gaps]))]
    elif isinstance(values, Dates):
        known, fill = values.days[~gaps], _median(values.days[~gaps])
        parts = PARTS[:1] if constant else [part for part in PARTS if _varies(encode_part(part, known))]
        made = [DateColumn(**common, part=part, zone=values.zone, fill=fill) for part in parts or PARTS[:1]]
    else:
        known = values.values[~gaps]
        common["noticed"] += () if constant else describe(known)
        made = [NumericColumn(**common, fill=_median(known), duration=values.duration)]
    return [*made, GapColumn(name, position)] if gaps.any() and not constant else made


def _median(values: NDArray[Any]) -> float:
    return float(np.median(values)) if len(values) else 0.0


def _varies(values: NDArray[np.float64]) -> bool:
    return float(np.ptp(values, axis=0).max()) > _ROUNDING


def gaps_of(values: Values) -> NDArray[np.bool_]:
    """Rows without a value ``(N,)``."""
    if isinstance(values, Levels):
        return values.codes < 0
    return np.isnan(values.values if isinstance(values, Numbers) else values.days)


def is_constant(values: Values) -> bool:
    """Whether all rows say the same; a gap beside one value is something else."""
    gaps = gaps_of(values)
    if gaps.any() and not gaps.all():
        return False
    of_rows = (
        values.codes if isinstance(values, Levels) else values.values if isinstance(values, Numbers) else values.days
    )
    return bool(gaps.all()) or bool((of_rows == of_rows[0]).all())


def signature(values: Values) -> tuple[bytes, tuple[str, ...]]:
    """Equal for columns that are exact duplicates, and for no others but by a collision of 256 bits."""
    if isinstance(values, Levels):
        rank = {level: index for index, level in enumerate(sorted(values.levels))}
        table = np.array([*(rank[level] for level in values.levels), -1], dtype=np.intp)
        return hashlib.sha256(table[values.codes].data).digest(), tuple(rank)
    of_rows = values.values if isinstance(values, Numbers) else values.days
    return hashlib.sha256((of_rows + 0.0).data).digest(), (type(values).__name__,)  # -0.0 is 0.0


def describe(values: NDArray[np.float64]) -> tuple[str, ...]:
    """What is to be noticed about numbers ``(N,)`` without gaps."""
    noticed = []
    magnitude = float(np.abs(values).max())
    relative = values / magnitude if magnitude > 0.0 else values
    around = relative - relative.mean()
    deviation = math.sqrt(float((around**2).mean()))
    if deviation > 0.0:
        standard = around / deviation
        if abs(float((standard**3).mean())) > _SKEWED:
            noticed.append("skewed")
        if float((standard**4).mean()) - 3.0 > _HEAVY:
            noticed.append("heavy-tailed")
    different = len(np.unique(values))
    if different > 2 and float((values == 0.0).mean()) > _ZEROS:
        noticed.append("zero-inflated")
    if bool((values == np.floor(values)).all()):
        noticed.append("whole numbers")
        if len(values) >= _ENOUGH_ROWS and different == len(values) == np.ptp(values) + 1:
            noticed.append("row numbers")
    return tuple(noticed)


def _learn_levels(values: Levels, common: dict[str, Any], title: str, most_one_hot: int, drop: bool) -> EncodedColumn:
    known = values.codes[values.codes >= 0]
    levels = [values.levels[code] for code in np.unique(known)] if values.text else [*values.levels]
    if values.text and _names_rows(levels, len(known), title):
        common["noticed"] += ("id-like",)
        if drop:
            return DroppedColumn(**common)
    gap_level = common["num_gaps"] > 0
    number = len(levels) + gap_level
    coding = "codes" if number > max(most_one_hot, 1) or most_one_hot < 2 else "one-hot"
    if coding == "one-hot" and number == 2 and not gap_level:
        coding = "binary"
    levels = sorted(levels, key=_order)
    return CategoricalColumn(**common, levels=tuple(levels), gap_level=gap_level, coding=coding, boolean=values.boolean)


def learn_group(values: Levels, name: str, position: int, slopes: tuple[str, ...], *, drop: bool) -> EncodedColumn:
    """How a column of groups is encoded, without ``indices``.

    Args:
        values: Its levels.
        name: Its name.
        position: Its number.
        slopes: Names of columns whose slopes differ by level.
        drop: Whether it may be left out if it is constant.
    """
    common: dict[str, Any] = {"name": name, "position": position, "num_gaps": int(gaps_of(values).sum())}
    if is_constant(values):
        common["noticed"] = ("constant",)
        if drop:
            return DroppedColumn(**common)
    known = [values.levels[code] for code in np.unique(values.codes[values.codes >= 0])]
    levels = known if values.text else [*values.levels]
    return GroupColumn(
        **common,
        levels=tuple(sorted(levels, key=_order)),
        gap_level=common["num_gaps"] > 0,
        coding="codes",
        boolean=values.boolean,
        slopes=slopes,
    )


def _order(level: str) -> tuple[bool, float, str]:
    """Numbers by size, before text."""
    try:
        return False, float(level), level
    except ValueError:
        return True, 0.0, level


def _names_rows(levels: list[str], num_rows: int, title: str) -> bool:
    """Whether text names the rows; free text is refused."""
    if num_rows < _ENOUGH_ROWS or len(levels) <= _MOSTLY_UNIQUE * num_rows:
        return False
    characters = float(np.mean([len(level) for level in levels]))
    words = float(np.mean([len(level.split()) for level in levels]))
    if characters >= _LONG and words >= _WORDY:
        raise InputError(
            f"Column {title} of `X` must be numbers, levels or dates. Got free text: {len(levels)} different texts of "
            f"{characters:.0f} characters on average in {num_rows} rows. Leave it out, or make numbers of it, for example with "
            "sklearn's TfidfVectorizer and TruncatedSVD."
        )
    return len(levels) >= _UNIQUE * num_rows
