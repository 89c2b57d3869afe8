"""Rows of a table with their targets, and what is predicted for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itergp.tables import Table

Array = NDArray[np.float64]

CLASSES, COUNTS, ORDINAL, REGRESSION, SURVIVAL = "classification", "counts", "ordinal", "regression", "survival"
TASKS = (CLASSES, COUNTS, ORDINAL, REGRESSION, SURVIVAL)
LABELLED = (CLASSES, ORDINAL)
TASK_OF = {"label": CLASSES, "level": ORDINAL, "count": COUNTS, "real": REGRESSION, "positive": SURVIVAL}
"""The task by what a fitted estimator observes."""


@dataclass(frozen=True)
class Rows:
    """Inputs, targets, and what else is known of N rows.

    Attributes:
        table: Their inputs.
        y: Labels, counts or real values ``(N,)``; of times ``(N, 2)``, the time and 1 for an event or 0 for a censored row.
        task: What is predicted, one of ``TASKS``.
        weights: Weights ``(N,)``.
        exposure: Exposures ``(N,)`` of counts, or None.
        levels: Labels of ordered levels, lowest first; None where sorting gives their order.
        groups: Which group a row belongs to ``(N,)``, or None.
    """

    table: Table
    y: NDArray[Any]
    task: str
    weights: Array
    exposure: Array | None = None
    levels: Sequence[Any] | None = None
    groups: NDArray[Any] | None = None

    @classmethod
    def encoded(cls, table: Table, observes: str, targets: NDArray[Any], weights: Array) -> Rows:
        """Rows with targets as a likelihood takes them: numbers of labels, and counts with their exposures beside them.

        Args:
            table: Inputs of N rows.
            observes: What is observed, a key of ``TASK_OF``.
            targets: ``(N,)``, or ``(N, 2)``.
            weights: ``(N,)``.
        """
        task = TASK_OF[observes]
        if task == COUNTS and targets.ndim == 2:
            return cls(table, targets[:, 0], task, weights, exposure=targets[:, 1])
        return cls(table, targets.astype(int) if task in LABELLED else targets, task, weights)

    def __len__(self) -> int:
        return len(self.y)

    def take(self, chosen: NDArray[np.bool_]) -> Rows:
        """Some of the rows, by a mask ``(N,)``."""
        parts = {"y": self.y, "weights": self.weights, "exposure": self.exposure, "groups": self.groups}
        taken: dict[str, Any] = {name: None if part is None else part[chosen] for name, part in parts.items()}
        return dataclasses.replace(self, table=self.table.rows(chosen), **taken)

    @property
    def labels(self) -> NDArray[Any]:
        """The labels among the targets, sorted ``(C,)``."""
        return np.unique(self.y)

    @property
    def codes(self) -> NDArray[np.intp]:
        """Number of each target's label among ``labels`` ``(N,)``."""
        return np.searchsorted(self.labels, self.y)

    @property
    def weighted(self) -> Array | None:
        """The weights, or None if all are one."""
        return None if bool((self.weights == 1.0).all()) else self.weights

    @property
    def exposures(self) -> Array:
        """The exposures, one where nothing is said."""
        return np.ones(len(self)) if self.exposure is None else self.exposure


@dataclass(frozen=True)
class Forecast:
    """What a method said about M rows, beside what came true.

    Attributes:
        log_density: Log-density of each row's target ``(M,)`` in nats; of a censored row the log-probability of being later.
        point: What it expects: the most probable label, the median of real values and times, the mean of counts ``(M,)``.
        coverage: Share of each row's distribution of 0 or 1 inside the central 90 % interval ``(M,)``, for a censored row the
            probability; of labels, whether the row's is in the smallest set of probability 0.9, cut at random.
        probs: Probabilities of the labels of the training rows, sorted ``(M, C)``; None where targets are none.
    """

    log_density: Array
    point: NDArray[Any]
    coverage: Array
    probs: Array | None = None
