"""Events and times, however they come."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from itergp.errors import InputError
from itergp.likelihoods.survival import INTERVAL, LEFT, OBSERVED, RIGHT
from itergp.tables import as_target_column, refuse_gaps

_HOW = (
    "Pass two columns, event and time, for example np.column_stack([event, time]), with 1 where the event was observed and 0 "
    "where the row is right-censored; or for other censoring itergp.sklearn.censored_times(lower, upper)."
)
# Names of two columns that are bounds of the time: here, in lifelines, in pandas' and R's intervals.
_BOUNDS = (("lower", "upper"), ("lower_bound", "upper_bound"), ("left", "right"))


def censored_times(lower: Any, upper: Any) -> NDArray[Any]:
    """Bounds of the times until events as targets of ``GPSurvival``: a structured array ``(N,)`` with these two fields.

    Args:
        lower: What the time is later than ``(N,)``: 0 where it is only known to be earlier than ``upper`` (left censoring).
        upper: What the time is not later than ``(N,)``: infinite where it is only known to be later than ``lower`` (right
            censoring), and the same as ``lower`` where it was observed.

    Raises:
        InputError: If they are not numbers, or of different lengths.

    Examples:
        >>> y = censored_times([2.0, 3.0, 0.0, 1.0], [2.0, np.inf, 4.0, 5.0])  # observed, right, left, between
        >>> y["upper"].tolist()
        [2.0, inf, 4.0, 5.0]
    """
    bounds = [_as_floats(np.atleast_1d(as_target_column(bound)), "Bounds") for bound in (lower, upper)]
    if bounds[0].ndim != 1 or bounds[0].shape != bounds[1].shape:
        raise InputError(
            f"`lower` and `upper` must have one bound per row each. Got shapes {bounds[0].shape} and {bounds[1].shape}. Select "
            "the same rows of both."
        )
    targets = np.empty(len(bounds[0]), dtype=[("lower", np.float64), ("upper", np.float64)])
    targets["lower"], targets["upper"] = bounds
    return targets


def as_event_times(y: Any) -> NDArray[np.float64]:
    """Times and event indicators ``(N, 2)``, as likelihoods of times take them, or with ends of intervals ``(N, 3)``.

    Args:
        y: A structured array of two fields, or two columns of an array or data frame: event and time. The event is the one with
            truth values if there is one, otherwise the first. Or bounds of the time: fields or columns called ``lower`` and
            ``upper`` (``lower_bound`` and ``upper_bound``, ``left`` and ``right``), or intervals of pandas.

    Returns:
        Times in the first column; 1 for events and 0 for censored rows in the second. If some row is left-censored or has an
        interval, 2 and 3 for these, and a third column with the end of the interval, or the time.

    Raises:
        InputError: If it is anything else: gaps, other events than 0 and 1, times that are not positive and finite.
    """
    bounds = _bounds(y)
    if bounds is not None:
        return _from_bounds(*bounds)
    columns = _columns(y)
    for column in columns:
        refuse_gaps(column)
    event, time = columns[::-1] if _is_truth(columns[1]) and not _is_truth(columns[0]) else columns
    events = _as_events(event)
    return np.column_stack([_as_times(time), events])


def _bounds(y: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Lower and upper bounds of the time; None if ``y`` is no such thing."""
    y = getattr(y, "array", y) if type(y).__module__.startswith("pandas") and not hasattr(y, "columns") else y
    if hasattr(y, "left") and hasattr(y, "right") and hasattr(y, "closed"):  # of pandas
        gaps = np.asarray(y.isna(), dtype=bool)
        if gaps.any():
            refuse_gaps(np.where(gaps, np.nan, 0.0))
        return _as_floats(np.asarray(y.left), "Bounds"), _as_floats(np.asarray(y.right), "Bounds")
    names = getattr(getattr(y, "dtype", None), "names", None)
    names = tuple(names) if names is not None else tuple(getattr(y, "columns", ()))
    if names not in _BOUNDS:
        return None
    columns = _columns(y)
    for column in columns:
        refuse_gaps(column)
    return _as_floats(columns[0], "Bounds"), _as_floats(columns[1], "Bounds")


def _from_bounds(lower: NDArray[np.float64], upper: NDArray[np.float64]) -> NDArray[np.float64]:
    empty = ~((lower >= 0.0) & (upper > 0.0) & (upper >= lower) & np.isfinite(lower))
    for wrong, what in ((empty, "no times"), ((lower == 0.0) & np.isinf(upper), "any time at all")):
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise InputError(
                "Bounds in `y` must be 0 or more, the upper one positive and not below the lower one, and say something about "
                f"the time. Got {lower[row]:g} and {upper[row]:g} in row {row}, which leave {what}. Pass lower=0 for "
                "left-censored rows, upper=inf for right-censored ones, and twice the time for events; drop rows that say "
                "nothing."
            )
    observed, right, left = upper == lower, np.isinf(upper), lower == 0.0
    events = np.select([observed, right, left], [OBSERVED, RIGHT, LEFT], INTERVAL)
    times = np.where(left, upper, lower)
    known = np.column_stack([times, events])
    return known if (observed | right).all() else np.column_stack([known, np.where(right, times, upper)])


def _columns(y: Any) -> list[NDArray[Any]]:
    if y is None:
        raise InputError(f"`y` must have an event and a time per row. The target y is None. {_HOW}")
    kind = type(y).__module__.partition(".")[0]
    if kind in ("polars", "pyarrow") and hasattr(y, "to_pandas"):
        y = y.to_pandas()
    names = getattr(getattr(y, "dtype", None), "names", None)
    if names is not None:
        columns = [np.atleast_1d(y[name]) for name in names]
    elif hasattr(y, "iloc") and hasattr(y, "columns"):
        columns = [as_target_column(y.iloc[:, index]) for index in range(y.shape[1])]
    else:
        values = np.asarray(y)
        columns = list(values.T) if values.ndim == 2 else [values]
    if len(columns) == 3:
        raise InputError(
            f"`y` must have two columns. Got three: intervals have a lower and an upper bound and no event. {_HOW}"
        )
    if len(columns) != 2 or any(column.ndim != 1 for column in columns):
        raise InputError(f"`y` must have two columns, event and time. Got shape {np.shape(y)}. {_HOW}")
    return columns


def _is_truth(column: NDArray[Any]) -> bool:
    return column.dtype.kind == "b" or (
        column.dtype.kind == "O" and all(isinstance(value, (bool, np.bool_)) for value in column)
    )


def _as_floats(column: NDArray[Any], what: str) -> NDArray[np.float64]:
    if column.dtype.kind in "mM":
        raise InputError(f"{what} in `y` must be numbers. Got {column.dtype}. Convert them, for example to days.")
    try:
        return column.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} in `y` must be numbers. Got {column.dtype} values such as {column[0]!r}. {_HOW}"
        ) from error


def _as_events(column: NDArray[Any]) -> NDArray[np.float64]:
    values = _as_floats(column, "Events")
    wrong = (values != 0.0) & (values != 1.0)
    if wrong.any():
        shown = np.unique(values[wrong])[:5].tolist()
        raise InputError(
            f"Events in `y`, the first of its columns, must be 0 or 1, or truth values. Got {shown} in {int(wrong.sum())} of "
            f"{len(values)} row(s). Code them: status == 2 where 2 is the event; put the event before the time. For lower and "
            "upper bounds of times, pass itergp.sklearn.censored_times(lower, upper)."
        )
    return values


def _as_times(column: NDArray[Any]) -> NDArray[np.float64]:
    if _is_truth(column):
        raise InputError(f"Times in `y` must be numbers. Got truth values in both columns. {_HOW}")
    values = _as_floats(column, "Times")
    wrong = ~(np.isfinite(values) & (values > 0.0))
    if wrong.any():
        raise InputError(
            f"Times in `y` must be positive and finite. Got {values[wrong][0]:g} in {int(wrong.sum())} of {len(values)} "
            f"row(s), first in row {np.flatnonzero(wrong)[0]}. Shift times that were rounded to 0 by half the unit of "
            "measurement, and drop negative ones."
        )
    return values
