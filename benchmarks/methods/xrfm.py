"""xRFM: recursive feature machines in the leaves of a tree (arXiv 2508.10053)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.methods.base import Budget, Callback, Method, Range, from_numpy
from benchmarks.methods.boosting import held_out
from benchmarks.workloads import ORDERED, TrainingData

_VALIDATION = 0.2  # of the training rows, as in its examples


@dataclass(frozen=True)
class RecursiveFeatureMachine(Method):
    """A kernel machine whose metric is that of the average outer product of its own gradients.

    Attributes:
        bandwidth: Of the kernel.
        exponent: Of distances in the kernel.
        reg: Ridge.
        iters: How often the metric is learned; the best by the validation rows is kept.
    """

    kinds: tuple[str, ...] = ("classes", ORDERED)
    packages: tuple[str, ...] = ("xrfm",)
    bandwidth: float = 10.0
    exponent: float = 1.0
    reg: float = 1e-3
    iters: int = 5

    @property
    def setup(self) -> str:
        return (
            "`xRFM(tuning_metric='logloss', classification_mode='prevalence')` with its default kernel, bandwidth, ridge and "
            "five iterations, standardised columns, a fifth of the training rows to choose the iteration by, as its examples "
            "have it; mode and ranges of tuning as in TabArena's search space for it"
        )

    @property
    def search(self) -> dict[str, Range]:
        return {
            "bandwidth": Range(0.5, 200.0),
            "exponent": Range(0.7, 1.4, logarithmic=False),
            "reg": Range(1e-6, 10.0),
        }

    def fit(self, data: TrainingData, budget: Budget, callback: Callback) -> None:
        from sklearn.preprocessing import StandardScaler
        from xrfm import xRFM

        y = data.y.numpy()
        scaler = StandardScaler().fit(data.x.numpy())
        x = torch.from_numpy(scaler.transform(data.x.numpy()).astype(np.float32))
        train, validation = held_out(y, _VALIDATION, budget.seed, stratify=True)
        kernel = {"kernel": "l2", "bandwidth": self.bandwidth, "exponent": self.exponent}
        model = xRFM(
            rfm_params={
                "model": kernel | {"diag": False, "bandwidth_mode": "constant"},
                "fit": {"reg": self.reg, "iters": self.iters, "verbose": False, "early_stop_rfm": True},
            },
            device=torch.device("cpu"),
            tuning_metric="logloss",
            classification_mode="prevalence",
            n_threads=budget.threads,
            random_state=budget.seed,
            verbose=False,
        )
        targets = data.y[:, None]
        model.fit(x[train], targets[train], x[validation], targets[validation])

        def predict(new: np.ndarray) -> np.ndarray:
            probs = model.predict_proba(torch.from_numpy(scaler.transform(new).astype(np.float32)))
            return np.asarray(probs)

        callback(from_numpy(predict))


METHODS: list[Method] = [RecursiveFeatureMachine("xRFM", "xRFM")]
