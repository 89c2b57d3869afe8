"""scikit-learn's GaussianProcessClassifier: Laplace, one against the rest, on as many rows as it can take."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from benchmarks.methods.base import Budget, Callback, Method, from_numpy
from benchmarks.methods.ours import subset_of
from benchmarks.workloads import END_TO_END, INFERENCE, TrainingData
from itergp.models.gp import MAX_ARD_COLUMNS


@dataclass(frozen=True)
class ScikitLearn(Method):
    """A scaled Matern-3/2 kernel on a random subset of the rows; its cost is cubic in them."""

    rulesets: tuple[str, ...] = (INFERENCE, END_TO_END)
    rows: int = 2_000

    @property
    def setup(self) -> str:
        return (
            f"`GaussianProcessClassifier` on at most {self.rows:,} random rows: logit, one against the rest, L-BFGS on the "
            "Laplace evidence end to end; scaled Matern-3/2 kernel with one lengthscale per column up to 100"
        )

    def fit(self, data: TrainingData, budget: Budget, callback: Callback) -> None:
        from sklearn.gaussian_process import GaussianProcessClassifier
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern

        data = subset_of(data, self.rows, budget.seed)
        columns = data.x.shape[1]
        if data.given:
            kernel = ConstantKernel(data.given.outputscale) * Matern(data.given.lengthscale, nu=1.5)
        else:
            start = np.full(columns if columns <= MAX_ARD_COLUMNS else 1, 0.5 * np.sqrt(2.0 * columns))
            kernel = ConstantKernel(10.0, (1e-2, 1e5)) * Matern(start, (1e-2, 1e3), nu=1.5)
        optimizer = None if data.given else "fmin_l_bfgs_b"
        model = GaussianProcessClassifier(kernel, optimizer=optimizer, random_state=budget.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bounds that were reached
            model.fit(data.x.numpy(), data.y.numpy())
        callback(from_numpy(model.predict_proba), rows=len(data.y))


METHODS: list[Method] = [
    ScikitLearn("scikit-learn GP, 1,000 rows", "scikit-learn GP", rows=1_000),
    ScikitLearn("scikit-learn GP, 500 rows", "scikit-learn GP", importance=2, rows=500),
    ScikitLearn("scikit-learn GP, 2,000 rows", "scikit-learn GP", importance=3, rows=2_000),
]
