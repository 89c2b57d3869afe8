"""How good predictions of times until an event are, where some times are censored."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from itergp.errors import InputError

Array = NDArray[np.float64]

_TIE = 1e-8  # predicted times that are closer, relative to their size, are one


def concordance_index(event: NDArray[np.bool_], time: Array, predicted: Array, weights: Array | None = None) -> float:
    """Harrell's C: the share of comparable pairs of rows whose predicted times are in the order of the observed ones.

    A pair is comparable if the earlier time is an event; of equal times, if one is an event and the other censored, which is
    then the later. Equal predictions count half. So it is in lifelines and scikit-survival. ``O(N^2)`` time, ``O(N)`` memory.
    Where many rows are censored it depends on when they were: it judges an order, not probabilities.

    Args:
        event: Whether the event was observed ``(N,)``; the other rows are right-censored.
        time: Times ``(N,)``.
        predicted: Predicted times ``(N,)``, or anything that grows with them.
        weights: Weights ``(N,)`` of the rows; a pair counts as much as their product.

    Returns:
        1 for the right order, 0.5 for none, 0 for the reverse.

    Raises:
        InputError: If no pair is comparable.

    Examples:
        >>> concordance_index(np.array([True, True, False]), np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 20.0]))
        0.8333333333333334
    """
    weights = np.ones(len(time)) if weights is None else weights
    right = total = 0.0
    for row in np.flatnonzero(event):
        later = (time > time[row]) | ((time == time[row]) & ~event)
        weight, ahead = weights[row] * weights[later], predicted[later] - predicted[row]
        tied = np.abs(ahead) <= _TIE * np.abs(predicted[row])
        right += float(weight @ np.where(tied, 0.5, ahead > 0.0))
        total += float(weight.sum())
    if total == 0.0:
        raise InputError(
            "A concordance needs pairs of rows whose order is known. Got none: no event precedes another row's time. Score "
            "more rows."
        )
    return right / total


def censoring_survival(event: NDArray[np.bool_], time: Array, at: Array, weights: Array | None = None) -> Array:
    """The Kaplan-Meier estimate of the probability of not being censored up to some times.

    Of equal times, events come before censoring.

    Args:
        event: Whether the event was observed ``(N,)``.
        time: Times ``(N,)``.
        at: Times ``(T,)``.
        weights: Weights ``(N,)`` of the rows.

    Returns:
        Probabilities ``(T,)``.
    """
    weights = np.ones(len(time)) if weights is None else weights
    known, index = np.unique(time, return_inverse=True)
    events, censored = (np.bincount(index, weights * which, len(known)) for which in (event, ~event))
    gone = np.concatenate([[0.0], np.cumsum(events + censored)[:-1]])
    at_risk = weights.sum() - gone - events
    staying = np.where(censored > 0.0, 1.0 - censored / np.where(at_risk > 0.0, at_risk, 1.0), 1.0)
    staying[np.abs(staying) < 1e-12] = 0.0  # sums of weights round
    curve = np.concatenate([[1.0], np.cumprod(staying)])
    return curve[np.searchsorted(known, at, side="right")]


def brier_scores(
    event: NDArray[np.bool_], time: Array, survival: Array, times: Array, at_rows: Array, at_times: Array
) -> Array:
    """Mean squared errors of survival probabilities, weighted by the inverse probability of censoring (Graf et al. 1999).

    Args:
        event: Whether the event was observed ``(N,)``.
        time: Times ``(N,)``.
        survival: Predicted probabilities ``(N, T)`` of being later than each of ``times``.
        times: When to score ``(T,)``.
        at_rows: Probability of not being censored up to the rows' times ``(N,)``, positive where an event is at most
            ``times.max()``.
        at_times: The same up to ``times`` ``(T,)``, positive.

    Returns:
        One score per time ``(T,)``, 0 at best.
    """
    over = (time[:, None] <= times) & event[:, None]
    ongoing = time[:, None] > times
    inverse = 1.0 / np.where(over.any(1), at_rows, 1.0)
    errors = survival**2 * over * inverse[:, None] + (1.0 - survival) ** 2 * ongoing / at_times
    return errors.mean(0)
