"""Tables in context: TabPFN and TabICL, for who has their weights. Nothing is downloaded.

Put their files into a folder and set ``ITERGP_BENCHMARK_WEIGHTS`` to it; the last by name of those that match counts.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.methods.base import Budget, Callback, Method, from_numpy
from benchmarks.workloads import ORDERED, TrainingData

WEIGHTS = "ITERGP_BENCHMARK_WEIGHTS"


@dataclass(frozen=True)
class InContext(Method):
    """A trained network that sees training rows as context; it has nothing to tune.

    Attributes:
        pattern: Of the file of its weights.
    """

    kinds: tuple[str, ...] = ("classes", ORDERED)
    pattern: str = ""

    @property
    def weights(self) -> Path | None:
        """The file, or None where there is none."""
        folder = os.environ.get(WEIGHTS)
        found = sorted(Path(folder).glob(self.pattern)) if folder else []
        return found[-1] if found else None

    @property
    def missing(self) -> list[str]:
        """Packages, and weights: the method is skipped without either."""
        absent = [] if self.weights else [f"weights ({self.pattern} in the folder that {WEIGHTS} names)"]
        return super().missing + absent

    def fit(self, data: TrainingData, budget: Budget, callback: Callback) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        model = self.make(budget).fit(data.x.numpy(), data.y.numpy())
        callback(from_numpy(model.predict_proba))

    @abstractmethod
    def make(self, budget: Budget) -> Any:
        """The classifier."""


@dataclass(frozen=True)
class TabPFN(InContext):
    """TabPFN's classifier (Hollmann et al., Nature 2025, and later)."""

    packages: tuple[str, ...] = ("tabpfn",)
    pattern: str = "tabpfn*classifier*.ckpt"

    @property
    def setup(self) -> str:
        return "`TabPFNClassifier()` on the CPU with the weights given, which its authors recommend without tuning"

    def refuses_size(self, num_rows: int, latents: int) -> str | None:
        return "takes at most 10 classes" if latents > 10 else super().refuses_size(num_rows, latents)

    def make(self, budget: Budget) -> Any:
        from tabpfn import TabPFNClassifier

        return TabPFNClassifier(
            model_path=self.weights, device="cpu", random_state=budget.seed, ignore_pretraining_limits=True
        )


@dataclass(frozen=True)
class TabICL(InContext):
    """TabICL's classifier (arXiv 2502.05564)."""

    packages: tuple[str, ...] = ("tabicl",)
    pattern: str = "tabicl*classifier*.ckpt"

    @property
    def setup(self) -> str:
        return "`TabICLClassifier()` on the CPU with the weights given, which its authors recommend without tuning"

    def make(self, budget: Budget) -> Any:
        from tabicl import TabICLClassifier

        options = {"device": "cpu", "random_state": budget.seed, "n_jobs": budget.threads}
        return TabICLClassifier(model_path=self.weights, allow_auto_download=False, **options)


METHODS: list[Method] = [TabPFN("TabPFN", "TabPFN"), TabICL("TabICL", "TabICL")]
