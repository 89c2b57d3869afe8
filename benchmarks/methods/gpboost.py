"""GPBoost: Vecchia and FITC approximations with Laplace's, kernel parameters by its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import nbinom

from benchmarks.methods.base import Budget, Callback, Method, from_numpy
from benchmarks.workloads import COUNTS, TrainingData

_INDUCING = 500  # its default for FITC, which must not exceed the rows


@dataclass(frozen=True)
class GPBoost(Method):
    """Logit or negative binomial, an intercept, Matern-3/2; its defaults otherwise.

    Attributes:
        gp_approx: ``"vecchia"`` or ``"fitc"``.
        ard: Whether every column has a range of its own.
        inversion: ``"iterative"``, which its authors recommend for large data, or ``"cholesky"``.
    """

    kinds: tuple[str, ...] = ("classes", COUNTS)
    packages: tuple[str, ...] = ("gpboost",)
    gp_approx: str = "vecchia"
    ard: bool = True
    inversion: str = "iterative"

    @property
    def setup(self) -> str:
        ranges = "one range per column" if self.ard else "one range"
        return (
            f"`GPModel(gp_approx='{self.gp_approx}', matrix_inversion_method='{self.inversion}')`, Matern-3/2 with {ranges}, "
            "an intercept, logit (counts: negative binomial), two classes only; its optimiser and other settings at defaults"
        )

    def refuses(self, ruleset: str, kind: str, num_rows: int, num_outcomes: int) -> str | None:
        reason = super().refuses(ruleset, kind, num_rows, num_outcomes)
        two_only = kind != COUNTS and num_outcomes > 2
        return reason or ("predicts two classes only" if two_only else None)

    def fit(self, data: TrainingData, budget: Budget, callback: Callback) -> None:
        import gpboost

        likelihood = "negative_binomial" if data.kind == COUNTS else "bernoulli_logit"
        x, y = data.x.double().numpy(), data.y.double().numpy()
        model: Any = gpboost.GPModel(
            gp_coords=x,
            cov_function="matern_ard" if self.ard else "matern",
            cov_fct_shape=1.5,
            likelihood=likelihood,
            gp_approx=self.gp_approx,
            matrix_inversion_method=self.inversion,
            num_ind_points=min(_INDUCING, len(y)) if self.gp_approx == "fitc" else None,
            num_parallel_threads=budget.threads,
            seed=budget.seed,
        )
        model.fit(y=y, X=np.ones((len(y), 1)), params={"trace": False})

        def predict(z: np.ndarray) -> np.ndarray:
            response = data.kind != COUNTS
            place = {"gp_coords_pred": z.astype(float), "X_pred": np.ones((len(z), 1))}
            predicted = model.predict(**place, predict_var=not response, predict_response=response)
            if response:
                return np.asarray(predicted["mu"])
            size = float(np.asarray(model.get_aux_pars()).ravel()[0])
            return negative_binomial(predicted["mu"], predicted["var"], size, data.num_outcomes)

        callback(from_numpy(predict))


def negative_binomial(mean: np.ndarray, variance: np.ndarray, size: float, num_outcomes: int) -> np.ndarray:
    """Probabilities of counts, the last of more, too, with a Gaussian logarithm of the rate integrated out."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    rates = np.exp(mean[:, None] + np.sqrt(np.maximum(variance, 0.0))[:, None] * nodes)
    counts = np.arange(num_outcomes - 1)
    inner = nbinom.pmf(counts, size, (size / (size + rates))[..., None])
    inner = (inner * (weights / weights.sum())[:, None]).sum(1)
    return np.concatenate([inner, np.maximum(1.0 - inner.sum(1, keepdims=True), 1e-12)], 1)


METHODS: list[Method] = [
    GPBoost("GPBoost Vecchia", "GPBoost"),
    GPBoost("GPBoost FITC", "GPBoost", importance=2, gp_approx="fitc", inversion="cholesky"),
    GPBoost("GPBoost Vecchia, one range", "GPBoost", importance=3, ard=False),
]
