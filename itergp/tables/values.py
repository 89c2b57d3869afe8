"""One column as what it means: numbers, levels, ordered levels or dates, each with gaps where nothing is said."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import numbers
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itergp.errors import InputError

_NUMBER = re.compile(r"\s*[-+]?((\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|inf(inity)?)\s*", re.IGNORECASE)
_DATE = re.compile(
    r"\s*\d{4}([-/])\d{1,2}\1\d{1,2}([ T]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?\s*(?P<zone>Z|[-+]\d{2}:?\d{2})?)?\s*"
)
_NO_NUMBER = {"", "?", "-", ".", "na", "n/a", "nan", "null", "none", "<na>", "nat"}  # what files write for no number
_DAY = 86_400.0  # seconds


@dataclass(frozen=True)
class Numbers:
    """Numbers ``(N,)``, NaN for a gap; ``duration`` where they were time spans, in seconds."""

    values: NDArray[np.float64]
    duration: bool = False
    boolean: bool = False


@dataclass(frozen=True)
class Levels:
    """Numbers ``(N,)`` of levels, -1 for a gap, and the levels as text; ``ordered`` where their order means something."""

    codes: NDArray[np.intp]
    levels: tuple[str, ...]
    ordered: bool = False
    boolean: bool = False
    text: bool = False


@dataclass(frozen=True)
class Dates:
    """Days since 1970 ``(N,)`` by the clock of ``zone``, NaN for a gap."""

    days: NDArray[np.float64]
    zone: str | None = None


Values = Numbers | Levels | Dates


def understand(column: Any, title: str) -> Values:
    """What a column means.

    Args:
        column: A pandas Series, or a NumPy vector of numbers.
        title: What messages call it.

    Raises:
        InputError: If it holds values of several kinds, infinities, or what is no value.
    """
    if isinstance(column, np.ndarray):
        return Numbers(_finite(column.astype(np.float64), title))
    dtype = column.dtype
    types = _api()
    if isinstance(dtype, types.CategoricalDtype):
        return _category(column)
    if types.is_bool_dtype(dtype):
        return _boolean(column)
    if _is_arrow(dtype, "timestamp") or _is_arrow(dtype, "date"):
        zone = getattr(dtype.pyarrow_dtype, "tz", None)
        return _dates(column.astype("datetime64[ns]" if zone is None else f"datetime64[ns, {zone}]"))
    if types.is_datetime64_any_dtype(dtype) or isinstance(dtype, types.PeriodDtype):
        return _dates(column)
    if types.is_timedelta64_dtype(dtype) or _is_arrow(dtype, "duration"):
        return Numbers(column.astype("timedelta64[ns]").dt.total_seconds().to_numpy(np.float64), duration=True)
    if types.is_complex_dtype(dtype):
        raise InputError(f"Column {title} of `X` must be real numbers. Got complex ones. Make two columns of it.")
    if types.is_numeric_dtype(dtype):
        return Numbers(_finite(column.to_numpy(dtype=np.float64, na_value=np.nan), title))
    return _objects(column.astype(object), title)


def _api() -> Any:
    import pandas.api.types as types

    return types


def _is_arrow(dtype: Any, kind: str) -> bool:
    return hasattr(dtype, "pyarrow_dtype") and str(dtype.pyarrow_dtype).startswith(kind)


def _finite(values: NDArray[np.float64], title: str) -> NDArray[np.float64]:
    wrong = np.flatnonzero(np.isinf(values))
    if len(wrong):
        raise InputError(
            f"Column {title} of `X` must be finite. Got {values[wrong[0]]} in row {wrong[0]}, infinite in {len(wrong)} of "
            f"{len(values)} row(s). Drop those rows, or replace the values by NaN if they are not known."
        )
    return values


# -------------------------------------------------------------------- levels
def level_text(value: Any) -> str:
    """How a level is written; equal numbers are written alike, whatever their type."""
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, numbers.Real):
        number = float(value)
        if isinstance(value, numbers.Integral):
            return str(value)
        return f"{number:.0f}" if number.is_integer() else repr(number)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value)


def as_number(level: str) -> float | None:
    """The number that a level is written as, or None."""
    return float(level) if _NUMBER.fullmatch(level) else None


def _category(column: Any) -> Levels:
    levels = tuple(level_text(level) for level in column.cat.categories)
    boolean = bool(levels) and all(isinstance(level, (bool, np.bool_)) for level in column.cat.categories)
    found = Levels(column.cat.codes.to_numpy(np.intp), levels, ordered=bool(column.cat.ordered), boolean=boolean)
    return _without_blanks(found)


def _without_blanks(found: Levels) -> Levels:
    """The same with gaps where the text is blank."""
    kept = [bool(level.strip()) for level in found.levels]
    if all(kept):
        return found
    numbers_of_kept = np.cumsum([*kept, True]) - 1
    table = np.where([*kept, False], numbers_of_kept, -1)
    levels = tuple(level for level, keep in zip(found.levels, kept, strict=True) if keep)
    return dataclasses.replace(found, codes=table[found.codes], levels=levels)


def _boolean(column: Any) -> Levels:
    known = column.notna().to_numpy(bool)
    codes = np.full(len(column), -1, dtype=np.intp)
    codes[known] = column[known].astype(bool).to_numpy(bool)
    return Levels(codes, ("False", "True"), boolean=True)


def _factorized(column: Any) -> Levels:
    import pandas

    codes, uniques = pandas.factorize(column, use_na_sentinel=True)
    return Levels(np.asarray(codes, dtype=np.intp), tuple(level_text(value) for value in uniques), text=True)


# --------------------------------------------------------------------- dates
def _dates(column: Any) -> Dates:
    zone = getattr(column.dtype, "tz", None)
    if hasattr(column.dtype, "freq") and hasattr(column.dt, "to_timestamp"):
        column = column.dt.to_timestamp()
    plain = column.dt.tz_localize(None) if zone is not None else column
    stamps = np.asarray(plain.to_numpy(dtype="datetime64[us]"))
    days = stamps.astype(np.int64) / 1e6 / _DAY
    return Dates(np.where(np.isnat(stamps), np.nan, days), None if zone is None else str(zone))


def _as_dates(column: Any, title: str) -> Dates:
    """Dates in objects or ISO text; of several time zones by the clock of UTC."""
    import pandas

    known = column[column.notna()]
    zoned = known.map(_has_zone).to_numpy(bool)
    if zoned.any() and not zoned.all():
        rows = [int(known.index[np.flatnonzero(chosen)[0]]) for chosen in (zoned, ~zoned)]
        raise InputError(
            f"Column {title} of `X` must be dates with a time zone, or without. Got one in row {rows[0]} and none in row "
            f"{rows[1]}. Convert it with pandas.to_datetime."
        )
    form = "ISO8601" if _holds_text(column) else None
    try:
        made = pandas.to_datetime(column, format=form)
        if made.dtype != object:
            return _dates(made)
    except (ValueError, TypeError, OverflowError):
        pass  # several zones, or dates that there are not
    made = pandas.to_datetime(column, format=form, errors="coerce", utc=True)
    wrong = np.flatnonzero(made.isna().to_numpy(bool) & column.notna().to_numpy(bool))
    if len(wrong):
        raise InputError(
            f"Column {title} of `X` must be dates that pandas.to_datetime reads. Got {_shown(str(column.iloc[wrong[0]]))} "
            f"in row {wrong[0]}. Correct or drop those rows."
        )
    return _dates(made if zoned.any() else made.dt.tz_localize(None))


def _has_zone(value: Any) -> bool:
    if isinstance(value, str):
        match = _DATE.fullmatch(value)
        return match is not None and match.group("zone") is not None
    return getattr(value, "tzinfo", None) is not None


def _holds_text(column: Any) -> bool:
    return any(isinstance(value, str) for value in column[column.notna()][:1])


# ------------------------------------------------------------------- objects
# name of a kind for messages -> whether a value is of it, and what a column of it means
_KINDS: dict[str, tuple[Callable[[Any], bool], Callable[[Any, str], Values]]] = {
    "truth values": (lambda v: isinstance(v, (bool, np.bool_)), lambda c, t: _boolean(c)),
    "numbers": (
        lambda v: isinstance(v, (numbers.Real, decimal.Decimal)),
        lambda c, t: Numbers(_finite(_as_floats(c, t), t)),
    ),
    "text": (lambda v: isinstance(v, (str, bytes)), lambda c, t: _text(c, t)),
    "dates": (lambda v: isinstance(v, (datetime.date, np.datetime64)), lambda c, t: _as_dates(c, t)),
    "time spans": (
        lambda v: isinstance(v, (datetime.timedelta, np.timedelta64)),
        lambda c, t: understand(c.astype("timedelta64[ns]"), t),
    ),
    "times of day": (
        lambda v: isinstance(v, datetime.time),
        lambda c, t: Numbers(np.array([_seconds(v) for v in c]), duration=True),
    ),
    "periods": (lambda v: hasattr(v, "to_timestamp"), lambda c, t: _dates(c.map(_start).astype("datetime64[ns]"))),
    "intervals": (lambda v: hasattr(v, "left") and hasattr(v, "right"), lambda c, t: _factorized(c)),
}


def _kind(value: Any) -> str:
    return next((name for name, (is_one, _) in _KINDS.items() if is_one(value)), type(value).__name__)


def _objects(column: Any, title: str) -> Values:
    """What a column of Python objects means, by the one kind that all of them are of."""
    known = column.notna().to_numpy(bool)
    rows = np.flatnonzero(known)
    if not len(rows):
        return Numbers(np.full(len(column), np.nan))
    values = column.to_numpy(object)
    first = _kind(values[rows[0]])
    kinds = {first: int(rows[0])}
    last_type = type(values[rows[0]])
    for row in rows:
        if type(values[row]) is not last_type:
            last_type = type(values[row])
            kinds.setdefault(_kind(values[row]), int(row))
    unknown = [name for name in kinds if name not in _KINDS]
    if unknown:
        value = values[kinds[unknown[0]]]
        raise TypeError(
            f"Column {title} of `X` must be numbers, text, truth values or dates: float() argument must be a string or a real "
            f"number, not '{type(value).__name__}'. Got one in row {kinds[unknown[0]]}. Make columns of what is in it."
        )
    if len(kinds) > 1:
        (one, here), (other, there) = list(kinds.items())[:2]
        raise InputError(
            f"Column {title} of `X` must hold values of one kind. Got {one} ({_shown(values[here])} in row {here}) and {other} "
            f"({_shown(values[there])} in row {there}). Convert it: .astype(str) for levels, pandas.to_numeric for numbers."
        )
    return _KINDS[first][1](column, title)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _as_floats(column: Any, title: str) -> NDArray[np.float64]:
    values = column.to_numpy(object)
    known = column.notna().to_numpy(bool)
    found = np.full(len(values), np.nan)
    for row in np.flatnonzero(known):
        try:
            found[row] = float(values[row])
        except (OverflowError, ValueError) as error:
            raise InputError(
                f"Column {title} of `X` must be numbers that a float can hold. Got one in row {row} that is not "
                f"({error}). Rescale the column."
            ) from error
    return found


def _seconds(value: Any) -> float:
    if not isinstance(value, datetime.time):
        return np.nan
    return value.hour * 3600.0 + value.minute * 60.0 + value.second + value.microsecond / 1e6


def _start(value: Any) -> Any:
    return value.to_timestamp() if hasattr(value, "to_timestamp") else value


def _text(column: Any, title: str) -> Values:
    """Text: numbers if all of it reads as such, dates if all is in ISO's format, otherwise levels."""
    found = _factorized(column)
    kept = [level.strip() for level in found.levels]
    written = [level for level in kept if level.lower() not in _NO_NUMBER]
    if written and all(_NUMBER.fullmatch(level) for level in written):
        table = np.array([float(level) if _NUMBER.fullmatch(level) else np.nan for level in kept] + [np.nan])
        return Numbers(_finite(table[found.codes], title))
    if written and all(_DATE.fullmatch(level) for level in written):
        dates = column.where(column.map(lambda value: isinstance(value, str) and bool(_DATE.fullmatch(value))), None)
        return _as_dates(dates.str.strip().str.replace("/", "-"), title)
    return _without_blanks(found)


# ------------------------------------------------------- what training had said
def as_numbers(column: Any, title: str) -> Numbers:
    """A column that was numbers in the training data.

    Raises:
        InputError: If something in it is none, naming the row.
    """
    values = understand(column, title)
    if isinstance(values, Numbers):
        return values
    if isinstance(values, Levels) and values.boolean:
        return Numbers(np.where(values.codes < 0, np.nan, values.codes).astype(np.float64))
    if isinstance(values, Levels):
        numeric = [level if _NUMBER.fullmatch(level) else None for level in values.levels]
        no_gap = [
            level is None and values.levels[i].strip().lower() not in _NO_NUMBER for i, level in enumerate(numeric)
        ]
        wrong = np.flatnonzero(np.append(no_gap, False)[values.codes])
        if not len(wrong):
            table = np.array([np.nan if level is None else float(level) for level in numeric] + [np.nan])
            return Numbers(_finite(table[values.codes], title))
        got = f"{_shown(values.levels[values.codes[wrong[0]]])} in row {wrong[0]}"
    else:
        got = "dates"
    raise InputError(
        f"Column {title} of `X` must be numbers, as in the training data. Got {got}. Correct or drop those rows."
    )


def as_dates(column: Any, title: str, zone: str | None) -> Dates:
    """A column that was dates in the training data, by the clock of their zone.

    Raises:
        InputError: If it holds no dates, or has a zone where the training data had none.
    """
    values = understand(column, title)
    if isinstance(values, Numbers) and bool(np.isnan(values.values).all()):
        return Dates(values.values, zone)
    if not isinstance(values, Dates):
        raise InputError(
            f"Column {title} of `X` must be dates, as in the training data. Got {type(values).__name__.lower()}. Convert "
            "it with pandas.to_datetime."
        )
    if (values.zone is None) != (zone is None):
        given = {True: "no time zone", False: f"the zone {values.zone or zone}"}
        raise InputError(
            f"Column {title} of `X` must have a time zone as the training data have, {given[zone is None]}. Got "
            f"{given[values.zone is None]}. Convert it with .dt.tz_localize."
        )
    if zone != values.zone:
        import pandas

        stamps = pandas.Series(column) if not _holds_text(column) else pandas.to_datetime(column, utc=True)
        return _dates(stamps.dt.tz_convert(zone))
    return values


def as_levels(column: Any, title: str, *, boolean: bool) -> Levels:
    """A column that was levels in the training data, whatever it is now: levels are compared as they are written."""
    if isinstance(column, np.ndarray):
        import pandas

        column = pandas.Series(column)
    types = _api()
    if isinstance(column.dtype, types.CategoricalDtype):
        found = _category(column)
    elif types.is_bool_dtype(column.dtype):
        found = _boolean(column)
    else:
        found = _without_blanks(_factorized(column))
    if not boolean:
        return found
    truths = {"0": "False", "1": "True", "false": "False", "true": "True"}  # what files and sums make of truth values
    levels = tuple(truths.get(level.lower(), level) for level in found.levels)
    return dataclasses.replace(found, levels=levels, boolean=True)
