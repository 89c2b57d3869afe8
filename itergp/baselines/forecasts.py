"""Forecasts from predictive distributions: probabilities of labels, normal and count distributions, hazards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from itergp.baselines.rows import Array, Forecast, Rows
from itergp.diagnostics.residual_noise import LEAST_RATE, CountNoise

LOW, HIGH = 0.05, 0.95  # the central 90 % interval
_LEAST_PROBABILITY = 1e-12  # what a probability of zero counts as
_INTERVALS = 10  # of constant hazard


def of_labels(probs: Array, labels: NDArray[Any], rows: Rows) -> Forecast:
    """The forecast of probabilities.

    Args:
        probs: ``(M, C)``; probabilities of zero count as 1e-12.
        labels: What the columns are, sorted ``(C,)``.
        rows: M rows; a label that is not among these has a probability of zero.
    """
    probs = np.maximum(probs, _LEAST_PROBABILITY)
    probs = probs / probs.sum(-1, keepdims=True)
    index = np.searchsorted(labels, rows.y).clip(max=len(labels) - 1)
    at = np.where(labels[index] == rows.y, probs[np.arange(len(rows)), index], _LEAST_PROBABILITY)
    before = np.where(probs > at[:, None], probs, 0.0).sum(-1)
    cut = np.random.default_rng(0).random(len(rows))
    inside = (before + cut * at < HIGH - LOW).astype(np.float64)
    return Forecast(np.log(at), labels[probs.argmax(-1)], inside, probs)


def of_normal(mean: Array, deviation: float, rows: Rows) -> Forecast:
    """The forecast of means ``(M,)`` and one standard deviation."""
    found = stats.norm(mean, deviation)
    inside = (rows.y >= found.ppf(LOW)) & (rows.y <= found.ppf(HIGH))
    return Forecast(found.logpdf(rows.y), mean, inside.astype(np.float64))


def of_counts(noise: CountNoise, mean: Array, rows: Rows) -> Forecast:
    """The forecast of means ``(M,)``, exposure included."""
    mean = np.maximum(mean, LEAST_RATE)
    found = noise.distribution(mean)
    inside = (rows.y >= found.ppf(LOW)) & (rows.y <= found.ppf(HIGH))
    return Forecast(found.logpmf(rows.y), mean, inside.astype(np.float64))


def covered_times(later: Array, rows: Rows) -> Array:
    """Coverage of times ``(M,)`` from the probabilities ``(M,)`` of being later than the rows' times.

    Where the distribution is right, the probability at an event is uniform, and what is left of it at a censored row is, too.
    """
    event = rows.y[:, 1] == 1.0
    inside = (later >= 1.0 - HIGH) & (later <= 1.0 - LOW)
    left = np.clip(np.minimum(later, 1.0 - LOW) - (1.0 - HIGH), 0.0, None) / np.maximum(later, _LEAST_PROBABILITY)
    return np.where(event, inside, left)


@dataclass(frozen=True)
class Hazards:
    """Times whose hazard is constant between some times: a survival curve that has a density.

    Attributes:
        starts: Where intervals begin ``(J,)``, the first at 0; the last has no end.
        hazards: Of each interval ``(J,)``, or of each row and interval ``(M, J)``.
    """

    starts: Array
    hazards: Array

    @classmethod
    def intervals(cls, time: Array, event: NDArray[np.bool_]) -> Array:
        """Where intervals begin so that each has about as many events."""
        inner = np.quantile(time[event], np.linspace(0.0, 1.0, _INTERVALS + 1)[1:-1])
        return np.unique(np.concatenate([[0.0], inner]))

    @classmethod
    def learn(cls, time: Array, event: NDArray[np.bool_], weights: Array) -> Hazards:
        """The Kaplan-Meier curve between quantiles of the events' times, one event more spread over all intervals."""
        starts = cls.intervals(time, event)
        index = np.searchsorted(starts, time, side="left").clip(min=1) - 1
        events = np.bincount(index, weights * event, len(starts)) + 1.0 / len(starts)
        return cls(starts, events / np.maximum(weights @ cls._spent(starts, time), np.finfo(float).tiny))

    @classmethod
    def of_survival(cls, starts: Array, survival: Array) -> Hazards:
        """From probabilities ``(M, J)`` of being later than the ends of all intervals but the last, and than some time in it.

        Args:
            starts: Where intervals begin, and the time in the last one ``(J + 1,)``.
            survival: ``(M, J)``.
        """
        whole = np.concatenate([np.ones((len(survival), 1)), survival], 1)
        logs = np.log(np.clip(whole, 1e-4, 1.0))
        least = 1e-3 / (starts[-1] * len(starts))
        return cls(starts[:-1], np.maximum(-np.diff(logs, axis=1) / np.diff(starts), least))

    @staticmethod
    def _spent(starts: Array, time: Array) -> Array:
        """Time spent in every interval ``(N, J)``."""
        ends = np.append(starts[1:], np.inf)
        return np.clip(np.minimum(time[:, None], ends) - starts, 0.0, None)

    def log_survival(self, time: Array) -> Array:
        """Log-probabilities of being later than times ``(M,)``."""
        return -(self._spent(self.starts, time) * self.hazards).sum(-1)

    def forecast(self, rows: Rows) -> Forecast:
        """The forecast for M rows."""
        time, event = rows.y[:, 0], rows.y[:, 1] == 1.0
        later = self.log_survival(time)
        index = np.searchsorted(self.starts, time, side="left").clip(min=1) - 1
        hazards = np.broadcast_to(self.hazards, (len(time), len(self.starts)))
        density = later + np.where(event, np.log(hazards[np.arange(len(time)), index]), 0.0)
        return Forecast(density, self._medians(hazards), covered_times(np.exp(later), rows))

    def _medians(self, hazards: Array) -> Array:
        widths = np.diff(self.starts)
        before = np.concatenate([np.zeros((len(hazards), 1)), np.cumsum(hazards[:, :-1] * widths, 1)], 1)
        index = (before < np.log(2.0)).sum(1).clip(min=1) - 1
        rows = np.arange(len(hazards))
        return self.starts[index] + (np.log(2.0) - before[rows, index]) / hazards[rows, index]
