"""What a target column calls for: the task and the likelihood, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from itergp.errors import InputError
from itergp.tables.targets import as_target_column, refuse_gaps

_MOST_CLASSES = 10  # different whole numbers that may be labels
_LARGEST_COUNT = 1000  # beyond, whole numbers are measurements in small units
_REPEATS = 2.0  # rows per different number, from which on numbers repeat
_LABEL_REPEATS = 2.0  # the same of labels
_RARE = 0.5  # the largest count is that much rarer than were all numbers equally frequent
_DISPERSED = 1.5  # variance per mean, of more than Poisson counts
_HEAVY = 20.0  # excess kurtosis of targets that a few rows dominate


@dataclass(frozen=True)
class TaskGuess:
    """What a target column calls for.

    Attributes:
        task: ``"classification"``, ``"ordinal"``, ``"counts"`` or ``"regression"``.
        likelihood: The noise of regression or the distribution of counts; None for labels.
        reason: Why, in words that follow "as"; empty if it was no guess.
    """

    task: str
    likelihood: str | None
    reason: str


def guess_task(y: Any) -> TaskGuess:
    """The task that a target column calls for.

    Ordered categories are grades; text, truth values and few different whole numbers are classes; small whole numbers that
    repeat, begin at 0 or 1 and become rare towards the largest are counts; all others are real.

    Args:
        y: A pandas Series without gaps.

    Raises:
        InputError: If a row has no target, all have the same, or most have a label of their own.
    """
    if bool(getattr(y.dtype, "ordered", False)):
        return TaskGuess("ordinal", None, "its levels have an order")
    values = as_target_column(y)
    refuse_gaps(values)
    different = len(set(values.tolist()))
    if different < 2:
        raise InputError(
            f"The target must vary. Got {values.tolist()[0]!r} in every row. Choose another column, or other rows."
        )
    if values.dtype.kind not in "iuf":
        if len(values) < _LABEL_REPEATS * different and different > _MOST_CLASSES:
            raise InputError(
                f"The target must be numbers, or labels that repeat. Got {different} different values in {len(values)} "
                f"rows, such as {values.tolist()[0]!r}. Choose another column, or make numbers of it."
            )
        return TaskGuess("classification", None, f"it has {different} different labels")
    if not bool((values == np.floor(values)).all()):
        return _real(values, "it has numbers that are not whole")
    repeat = len(values) >= _REPEATS * different
    if different > 2 and repeat and _are_counts(values, different):
        return _counts(values, different)
    if different <= _MOST_CLASSES and (repeat or different <= 3):
        return TaskGuess("classification", None, f"it has {different} different whole numbers")
    how = "repeat" if repeat else "rarely repeat"
    return _real(values, f"it has {different} different whole numbers that {how}")


def _are_counts(values: Any, different: int) -> bool:
    low, high = values.min(), values.max()
    if low < 0 or low > 1 or high > _LARGEST_COUNT or different <= (3 if low == 0 else _MOST_CLASSES):
        return False
    return float((values == high).mean()) < _RARE / different


def _counts(values: Any, different: int) -> TaskGuess:
    dispersed = float(values.var()) > _DISPERSED * float(values.mean())
    reason = f"it has {different} different whole numbers from {values.min():g} to {values.max():g} that repeat"
    return TaskGuess("counts", "negative_binomial" if dispersed else "poisson", reason)


def _real(values: Any, reason: str) -> TaskGuess:
    with np.errstate(invalid="ignore"):  # infinite targets are refused by estimators, in a sentence
        around = values.astype(np.float64) - values.mean()
        scale = float(np.sqrt((around**2).mean()))
        heavy = float(((around / scale) ** 4).mean()) - 3.0 > _HEAVY
    return TaskGuess("regression", "student_t" if heavy else "gaussian", reason + (", a few far off" if heavy else ""))
