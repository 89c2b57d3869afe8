"""What a method is: ``fit(data, budget, callback)``, and how it is set up."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import nbinom, qmc
from torch import Tensor

from benchmarks.workloads import END_TO_END, TUNED, TrainingData
from itergp.diagnostics import class_probabilities

Predict = Callable[[Tensor], Tensor]
"""Probabilities ``(M, K)`` of the outcomes at inputs ``(M, D)``; or latent variances ``(M,)``."""


class OutOfTime(Exception):
    """Raised by the callback when the training time is spent, or the run has settled; methods let it pass."""


class Callback(Protocol):
    """Called at checkpoints of a method's own progress. The clock stands still meanwhile."""

    def __call__(self, predict_proba: Predict, latent_variance: Predict | None = None, **facts: Any) -> None:
        """Hands over how to predict now, and anything worth recording, such as ``kernel_passes``."""


@dataclass(frozen=True)
class Budget:
    """What a run may use.

    Attributes:
        seconds: Training time; the callback ends the run when it is spent.
        seed: Of everything random in the method.
        threads: Threads.
    """

    seconds: float
    seed: int
    threads: int


@dataclass(frozen=True)
class Range:
    """Values that tuning draws from, uniformly or by their logarithm."""

    low: float
    high: float
    logarithmic: bool = True
    integer: bool = False

    def at(self, share: float) -> float | int:
        """The value at a share of the way."""
        ratio, width = self.high / self.low, self.high - self.low
        value = self.low * ratio**share if self.logarithmic else self.low + share * width
        return round(value) if self.integer else float(value)


@dataclass(frozen=True)
class Method(ABC):
    """One method, set up as its authors recommend; its fields are its configuration.

    Attributes:
        name: As reports and commands call it.
        family: Methods of one family count as one when targets are set.
        rulesets: Where it takes part.
        kinds: Kinds of outcomes it can predict.
        importance: 1 for the main setting of a family, 2 for others, 3 for what presets may leave out.
        most_values: Rows times latent functions that it can take; None for any number.
        packages: What must be installed.
        endless: Whether it trains until it is stopped; its runs end when they have settled.
    """

    name: str
    family: str
    rulesets: tuple[str, ...] = (END_TO_END,)
    kinds: tuple[str, ...] = ("classes",)
    importance: int = 1
    most_values: int | None = None
    packages: tuple[str, ...] = ()
    endless: bool = False

    @property
    @abstractmethod
    def setup(self) -> str:
        """Where the configuration comes from, for the report."""

    @abstractmethod
    def fit(self, data: TrainingData, budget: Budget, callback: Callback) -> None:
        """Trains, and calls back at every checkpoint and at the end."""

    @property
    def search(self) -> dict[str, Range]:
        """Fields that the tuned ruleset varies; empty for a method without any."""
        return {}

    @property
    def configuration(self) -> dict[str, Any]:
        """The fields that are particular to the method."""
        common = {spec.name for spec in fields(Method)}
        return {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.name not in common}

    @property
    def missing(self) -> list[str]:
        """Packages that are needed and not installed."""
        return [package for package in self.packages if importlib.util.find_spec(package) is None]

    def tuned(self, trial: int, seed: int) -> Method:
        """The setting of a trial: the defaults first, then a low-discrepancy sequence within ``search``."""
        if trial == 0 or not self.search:
            return self
        points = qmc.Halton(len(self.search), scramble=True, seed=seed).random(trial)
        values = {key: span.at(float(u)) for (key, span), u in zip(self.search.items(), points[-1], strict=True)}
        return replace(self, **values)

    def refuses(self, ruleset: str, kind: str, num_rows: int, num_outcomes: int) -> str | None:
        """Why the method does not take part in a run, or None if it does."""
        if ruleset == TUNED and not (self.search and END_TO_END in self.rulesets):
            return "nothing to tune"
        if ruleset != TUNED and ruleset not in self.rulesets:
            return f"not in the ruleset {ruleset}"
        if kind not in self.kinds:
            return f"does not predict {kind}"
        return self.refuses_size(num_rows, num_latents(kind, num_outcomes))

    def refuses_size(self, num_rows: int, latents: int) -> str | None:
        """Why the problem is too large, or None."""
        if self.most_values is not None and num_rows * latents > self.most_values:
            return f"takes at most {self.most_values:,} latent values"
        return None


def num_latents(kind: str, num_outcomes: int) -> int:
    """Latent functions of a Gaussian process for such outcomes."""
    return num_outcomes if kind == "classes" and num_outcomes > 2 else 1


def from_numpy(predict: Callable[[np.ndarray], np.ndarray]) -> Predict:
    """A prediction of arrays as one of tensors."""
    return lambda x: class_probabilities(torch.as_tensor(np.asarray(predict(x.numpy())), dtype=torch.float64))


def count_probabilities(rate: np.ndarray, size: float, num_outcomes: int) -> np.ndarray:
    """Negative binomial probabilities ``(M, K)`` with given means ``(M,)``; the last is that of more, too."""
    counts, rate = np.arange(num_outcomes - 1), np.maximum(rate, 1e-9)[:, None]
    inner = nbinom.pmf(counts, size, size / (size + rate))
    return np.concatenate([inner, np.maximum(1.0 - inner.sum(1, keepdims=True), 1e-12)], 1)


def from_rates(predict: Callable[[np.ndarray], np.ndarray], data: TrainingData) -> Predict:
    """Counts from a method that predicts their mean: negative binomial, its size by maximum likelihood on the training rows."""
    y, rate = data.y.numpy(), np.maximum(predict(data.x.numpy()), 1e-9)

    def loss(log_size: float) -> float:
        size = np.exp(log_size)
        return -float(nbinom.logpmf(y, size, size / (size + rate)).sum())

    size = float(np.exp(minimize_scalar(loss, bounds=(-4.0, 12.0), method="bounded").x))
    return from_numpy(lambda x: count_probabilities(predict(x), size, data.num_outcomes))
