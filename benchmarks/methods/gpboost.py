"""GPBoost: Vecchia, VIF and FITC approximations with Laplace's, kernel parameters by its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import nbinom

from benchmarks.methods.base import Budget, Callback, Method, from_numpy
from benchmarks.workloads import COUNTS, TrainingData

_INDUCING = {"fitc": (500, 1.0), "full_scale_vecchia": (200, 0.5)}  # its defaults, and the largest share of the rows


@dataclass(frozen=True)
class GPBoost(Method):
    """Logit or negative binomial, an intercept, Matern-3/2; its defaults otherwise.

    Attributes:
        gp_approx: ``"vecchia"``, ``"full_scale_vecchia"`` (VIF: Vecchia of what inducing points leave) or ``"fitc"``.
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

    def num_inducing(self, rows: int) -> int | None:
        """GPBoost's default, or less for few rows."""
        if self.gp_approx not in _INDUCING:
            return None
        most, share = _INDUCING[self.gp_approx]
        return min(most, int(share * rows))

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
            num_ind_points=self.num_inducing(len(y)),
            num_parallel_threads=budget.threads,
            seed=budget.seed,
        )
        params: dict[str, Any] = {"trace": False}
        if self.gp_approx == "full_scale_vecchia":
            params["fitc_piv_chol_preconditioner_rank"] = self.num_inducing(len(y))  # 200 by default, whatever the rows
        model.fit(y=y, X=np.ones((len(y), 1)), params=params)

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
    GPBoost("GPBoost VIF", "GPBoost", importance=2, gp_approx="full_scale_vecchia"),
    GPBoost("GPBoost FITC", "GPBoost", importance=2, gp_approx="fitc", inversion="cholesky"),
    GPBoost("GPBoost Vecchia, one range", "GPBoost", importance=3, ard=False),
]
