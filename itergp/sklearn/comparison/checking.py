"""From arguments to checked rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from itergp.baselines.rows import COUNTS, LABELLED, ORDINAL, REGRESSION, SURVIVAL, TASKS, Rows
from itergp.errors import InputError
from itergp.sklearn.checks import as_real, check_exposure, check_rows, check_weights
from itergp.sklearn.event_times import as_event_times
from itergp.sklearn.labels import check_labels
from itergp.tables import as_target_column, guess_task, read_table, refuse_gaps


def as_rows(
    X: Any,
    y: Any,
    *,
    task: str = "auto",
    levels: Sequence[Any] | None = None,
    sample_weight: Any = None,
    exposure: Any = None,
    groups: Any = None,
) -> tuple[Rows, str]:
    """Checked rows of a table, and why their task is what it is if it was guessed; for arguments see ``compare``.

    Raises:
        InputError: If something cannot be used.
    """
    table = read_table(X)
    if levels is None and bool(getattr(getattr(y, "dtype", None), "ordered", False)):
        levels = y.dtype.categories.tolist()
    task, reason = _task(y, task, exposure, levels)
    if task not in TASKS:
        raise InputError(
            f"`task` must be 'auto' or one of {', '.join(map(repr, TASKS))}. Got {task!r}. Choose one of these."
        )
    targets = as_event_times(y) if task == SURVIVAL else as_target_column(y)
    check_rows(table.num_rows, targets)
    if task == SURVIVAL and (targets.shape[1] > 2 or (targets[:, 1] > 1.0).any()):
        raise InputError(
            "Times must be observed or right-censored to be compared. Got left or interval censoring, which the other methods "
            "do not know. Use GPSurvival.predictive_log_density."
        )
    if task in LABELLED:
        check_labels(targets, least_repeats=0.0 if task == ORDINAL else math.inf)  # the estimator looks closer
        text = targets.dtype.kind == "O" and isinstance(targets[0], str)
        targets = targets.astype(str) if text else targets  # NumPy sorts text faster than objects
    elif task in (REGRESSION, COUNTS):
        targets = as_real(targets)
    if exposure is not None and task != COUNTS:
        raise InputError(f"`exposure` must be left out for {task}. Got one. It belongs to counts.")
    rows = Rows(
        table=table,
        y=targets,
        task=task,
        weights=check_weights(table.num_rows, sample_weight),
        exposure=None if exposure is None else check_exposure(table.num_rows, exposure),
        levels=levels,
        groups=None if groups is None else as_target_column(groups),
    )
    return rows.take(rows.weights > 0.0), reason


def _task(y: Any, task: str, exposure: Any, levels: Any) -> tuple[str, str]:
    if task != "auto":
        return task, ""
    dtype = getattr(y, "dtype", None)
    if getattr(dtype, "names", None) is not None or (getattr(y, "ndim", 1) == 2 and y.shape[1] == 2):
        return SURVIVAL, "there are two columns, events and times"
    if levels is not None:
        return ORDINAL, "its levels have an order"
    if exposure is not None:
        return COUNTS, "there are exposures"
    refuse_gaps(as_target_column(y))
    guess = guess_task(y if dtype is not None else as_target_column(y))
    return guess.task, guess.reason
