"""Gaussian mixtures with one component per class: as many rows as wanted, fresh for every seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.workloads.base import END_TO_END, INFERENCE, TUNED, GivenKernel, Workload


@dataclass(frozen=True)
class Mixture(Workload):
    """A random mixture.

    Attributes:
        rows: All rows, held-out ones included.
        classes: Components.
        inputs: Columns.
        spread: Standard deviation of a component; the means have deviation 1.5.
        stretch: What inputs are multiplied by, after the kernel was chosen.
        ratio: How much rarer each class is than the one before.
        replaced: Share of labels that are random.
    """

    standardise: bool = False
    rows: int = 5_000
    classes: int = 10
    inputs: int = 3
    spread: float = 0.6
    stretch: float = 1.0
    ratio: float = 1.0
    replaced: float = 0.0

    @property
    def summary(self) -> str:
        text = f"{self.rows:,} rows of a random Gaussian mixture, {self.classes} classes, {self.inputs} inputs"
        return text + ", equal spreads, so that a linear model is exact"

    def raw(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.RandomState(seed)
        means = 1.5 * rng.randn(self.classes, self.inputs)
        weights = self.ratio ** np.arange(self.classes)
        y = rng.choice(self.classes, size=self.rows, p=weights / weights.sum())
        x = means[y] + self.spread * rng.randn(self.rows, self.inputs)
        random = rng.rand(self.rows) < self.replaced
        return self.stretch * x, np.where(random, rng.randint(self.classes, size=self.rows), y)


_KERNEL = GivenKernel(1.0, 10.0)
_BASE = "mixture 5,000"

MIXTURES = [
    Mixture("mixture 1,000", _KERNEL, rows=1_000, inference_seconds=15.0),
    Mixture("mixture 2,000", _KERNEL, rows=2_000, inference_seconds=15.0),
    Mixture(_BASE, _KERNEL),
    Mixture("mixture 20,000", _KERNEL, rows=20_000, inference_seconds=90.0, end_to_end_seconds=120.0),
    Mixture("mixture 100,000", _KERNEL, rows=100_000, inference_seconds=300.0, end_to_end_seconds=300.0),
    Mixture("mixture 5,000 (imbalanced)", _KERNEL, ratio=0.6, classes=6),
    Mixture("mixture 5,000 (noisy labels)", _KERNEL, replaced=0.2, variant_of=_BASE),
    Mixture("mixture 5,000 (inputs times 20)", _KERNEL, stretch=20.0, variant_of=_BASE, rulesets=(END_TO_END, TUNED)),
    Mixture("mixture 5,000 (long lengthscale)", GivenKernel(4.0, 100.0), variant_of=_BASE, rulesets=(INFERENCE,)),
    Mixture("mixture 5,000 (large output scale)", GivenKernel(1.0, 1_000.0), variant_of=_BASE, rulesets=(INFERENCE,)),
]
