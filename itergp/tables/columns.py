"""What became of the columns of a table: values that say what a kernel needs to know of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

_SHOWN_LEVELS, _SHOWN_WIDTH = 4, 40


@dataclass(frozen=True)
class EncodedColumn:
    """Columns of the encoded matrix that belong together: they come from one column of the table and mean one thing.

    Attributes:
        name: Name of the column of the table.
        position: Its number there.
        indices: Numbers of its encoded columns; none where it was dropped.
        num_gaps: Rows of the training data without a value.
        noticed: What a reader should know: ``"constant"``, ``"no values"``, ``"duplicate of 'a'"``, ``"id-like"``,
            ``"skewed"``, ``"heavy-tailed"``, ``"zero-inflated"``, ``"whole numbers"``, ``"row numbers"``.
    """

    name: str
    position: int
    indices: tuple[int, ...] = ()
    num_gaps: int = 0
    noticed: tuple[str, ...] = ()

    role: ClassVar[str] = "dropped"

    @property
    def encoding(self) -> str:
        """How the values became numbers, in words."""
        return "left out"

    @property
    def encoded_names(self) -> tuple[str, ...]:
        """One name for each of ``indices``."""
        return (self.name,) * len(self.indices)

    def shifted(self, indices: Sequence[int]) -> Any:
        """The same at other places of the encoded matrix."""
        return dataclasses.replace(self, indices=tuple(indices))


@dataclass(frozen=True)
class DroppedColumn(EncodedColumn):
    """Says nothing, or nothing that another column does not say; ``noticed`` has why."""


@dataclass(frozen=True)
class NumericColumn(EncodedColumn):
    """One column of numbers; durations are in seconds.

    Attributes:
        fill: What stands for a gap: the median of the training rows.
        duration: Whether the values are time spans.
    """

    fill: float = 0.0
    duration: bool = False

    role: ClassVar[str] = "numeric"

    @property
    def encoding(self) -> str:
        """How the values became numbers, in words."""
        gaps = f", gaps as {self.fill:.4g}" if self.num_gaps else ""
        return f"{'seconds' if self.duration else 'itself'}{gaps}"


@dataclass(frozen=True)
class CategoricalColumn(EncodedColumn):
    """Unordered levels.

    Attributes:
        levels: The levels of the training data as text, sorted, those that a pandas Categorical declares included; a whole
            number is written without a decimal point.
        gap_level: Whether a gap is one more level, the last, because the training data had some.
        coding: ``"binary"``: one column of 0 and 1, other values 0.5. ``"one-hot"``: one column of 0 and 1 per level, other
            values zero everywhere. ``"codes"``: one column with the number of the level, other values ``num_levels``.
        boolean: Whether the levels are truth values.
    """

    levels: tuple[str, ...] = ()
    gap_level: bool = False
    coding: str = "codes"
    boolean: bool = False

    role: ClassVar[str] = "categorical"

    @property
    def num_levels(self) -> int:
        """Number of levels, a gap included if it is one; the code of what the training data did not have."""
        return len(self.levels) + self.gap_level

    @property
    def encoding(self) -> str:
        """How the values became numbers, in words."""
        shown = ", ".join(self.levels[:_SHOWN_LEVELS]) + (", ..." if len(self.levels) > _SHOWN_LEVELS else "")
        return f"{self.coding} of {self.num_levels} levels: {shown}{' or a gap' if self.gap_level else ''}"

    @property
    def encoded_names(self) -> tuple[str, ...]:
        """One name for each of ``indices``."""
        if self.coding != "one-hot":
            return super().encoded_names
        names = (*self.levels, *(("gap",) if self.gap_level else ()))
        return tuple(f"{self.name}={level}" for level in names[: len(self.indices)])


@dataclass(frozen=True)
class GroupColumn(CategoricalColumn):
    """Levels whose effects are exchangeable and partially pooled: schools, patients, sites; always codes.

    A gap is -1, and levels that were not there in training follow those that were, each by itself.

    Attributes:
        slopes: Names of numeric columns whose slopes differ by level.
    """

    slopes: tuple[str, ...] = ()

    role: ClassVar[str] = "group"

    @property
    def encoding(self) -> str:
        """How the values became numbers, in words."""
        slopes = f", slopes of {', '.join(self.slopes)}" if self.slopes else ""
        return f"{super().encoding}{slopes}"


@dataclass(frozen=True)
class OrderedColumn(EncodedColumn):
    """Ordered levels, one column with their numbers from 0.

    Attributes:
        levels: The levels as text, lowest first.
        fill: What stands for a gap: the median number of the training rows.
    """

    levels: tuple[str, ...] = ()
    fill: float = 0.0

    role: ClassVar[str] = "ordered"

    @property
    def num_levels(self) -> int:
        """Number of levels."""
        return len(self.levels)

    @property
    def encoding(self) -> str:
        """How the values became numbers, in words."""
        return f"0 to {self.num_levels - 1}: {' < '.join(self.levels[:_SHOWN_LEVELS])}"


@dataclass(frozen=True)
class DateColumn(EncodedColumn):
    """One aspect of a date; a column of dates has one of these for each aspect that varies.

    Attributes:
        part: ``"trend"``: years since 1970, one column. ``"season"``, ``"weekday"``, ``"hour"``: sine and cosine of the place
            in the year, week and day.
        zone: The time zone in which the place is meant; None for dates without one.
        fill: What stands for a gap: the median date of the training rows, in days since 1970.
    """

    part: str = "trend"
    zone: str | None = None
    fill: float = 0.0

    role: ClassVar[str] = "date"

    @property
    def encoding(self) -> str:
        """How the values became numbers, in words."""
        return "years since 1970" if self.part == "trend" else f"sine and cosine of the {self.part}"

    @property
    def encoded_names(self) -> tuple[str, ...]:
        """One name for each of ``indices``."""
        if self.part == "trend":
            return (f"{self.name} (years)",)
        return (f"{self.name} ({self.part}, sine)", f"{self.name} ({self.part}, cosine)")


@dataclass(frozen=True)
class GapColumn(EncodedColumn):
    """One column, 1 where another has no value and 0 elsewhere."""

    role: ClassVar[str] = "gap"

    @property
    def encoding(self) -> str:
        """How the values became numbers, in words."""
        return "1 where there is no value"

    @property
    def encoded_names(self) -> tuple[str, ...]:
        """One name for each of ``indices``."""
        return (f"{self.name} is missing",)


KINDS: dict[str, type[EncodedColumn]] = {
    kind.__name__: kind
    for kind in (DroppedColumn, NumericColumn, CategoricalColumn, GroupColumn, OrderedColumn, DateColumn, GapColumn)
}


class TableColumns(list[EncodedColumn]):
    """The columns of a table as they were encoded; printed, a table of its own."""

    def __str__(self) -> str:
        """One line per group of encoded columns."""
        rows = [("column", "role", "encoded", "as", "gaps", "noticed")]
        for column in self:
            where = "-" if not column.indices else _range(column.indices)
            gaps = str(column.num_gaps or "")
            rows.append((column.name, column.role, where, column.encoding, gaps, ", ".join(column.noticed)))
        cut = [[_short(cell) for cell in row] for row in rows]
        widths = [max(map(len, cells)) for cells in zip(*cut, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cut)
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__


def _range(indices: tuple[int, ...]) -> str:
    whole = indices == tuple(range(indices[0], indices[-1] + 1))
    return (f"{indices[0]}-{indices[-1]}" if whole and len(indices) > 1 else ",".join(map(str, indices))) or "-"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_WIDTH else f"{text[: _SHOWN_WIDTH - 3]}..."
