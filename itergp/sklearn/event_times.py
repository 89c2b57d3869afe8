"""Events and times, however they come."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from itergp.errors import InputError
from itergp.tables import as_target_column, refuse_gaps

_HOW = (
    "Pass two columns, event and time, for example np.column_stack([event, time]), with 1 where the event was observed and 0 "
    "where the row is right-censored."
)


def as_event_times(y: Any) -> NDArray[np.float64]:
    """Times and event indicators ``(N, 2)``, as likelihoods of times take them.

    Args:
        y: A structured array of two fields, or two columns of an array or data frame: event and time. The event is the one with
            truth values if there is one, otherwise the first.

    Returns:
        Times in the first column; 1 for events and 0 for censored rows in the second.

    Raises:
        InputError: If it is anything else: gaps, other events than 0 and 1, times that are not positive and finite.
    """
    columns = _columns(y)
    for column in columns:
        refuse_gaps(column)
    event, time = columns[::-1] if _is_truth(columns[1]) and not _is_truth(columns[0]) else columns
    events = _as_events(event)
    return np.column_stack([_as_times(time), events])


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
            f"`y` must have two columns. Got three: interval and left censoring cannot be said, only right censoring. {_HOW}"
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
            f"{len(values)} row(s). Code them: status == 2 where 2 is the event; put the event before the time."
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
