"""Latent variances of GPBoost's approximations of Laplace's method at equal hyperparameters."""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from benchmarks.posterior.problems import BINARY, Case, load
from benchmarks.posterior.results import Results
from benchmarks.posterior.variance import Reference, conditioned, exact_laplace, ratios
from itergp.solvers import SubspaceNewton

SETTINGS = [("vecchia", 20), ("vecchia", 50), ("full_scale_vecchia", 20), ("full_scale_vecchia", 50)]
OURS = [(224, 16), (192, 16), (192, 0), (1, 32), (1, 128), (64, 16), (192, 32), (256, 32), (256, 64)]
_JITTER = 1e-6  # deviations of a column


def available() -> bool:
    """Whether GPBoost is installed."""
    return importlib.util.find_spec("gpboost") is not None


def predicted(case: Case, approximation: str, neighbours: int, threads: int = 1) -> tuple[np.ndarray, float]:
    """GPBoost's latent variances at the test inputs, and the processor seconds that they took.

    Args:
        case: The data and hyperparameters.
        approximation: GPBoost's ``gp_approx``.
        neighbours: Of its Vecchia approximation, in conditioning and in prediction.
        threads: Of its own.
    """
    import gpboost

    train, learned = case.problem.train, case.learned
    x, y, test = train.x.double().numpy(), train.y.double().numpy(), case.test_x(torch.float64).numpy()
    if approximation == "full_scale_vecchia":  # GPBoost refuses inputs that occur twice here
        x = x + _JITTER * np.random.RandomState(0).standard_normal(x.shape)
    parameters = np.array([learned["outputscale"], *learned["lengthscale"]])
    begun = time.process_time()
    model: Any = gpboost.GPModel(
        gp_coords=x,
        cov_function="matern_ard",
        cov_fct_shape=1.5,
        likelihood="bernoulli_logit",
        gp_approx=approximation,
        num_neighbors=neighbours,
        matrix_inversion_method="cholesky",
        num_parallel_threads=threads,
    )
    model.set_prediction_data(num_neighbors_pred=neighbours)
    found = model.predict(
        y=y,
        gp_coords_pred=test,
        cov_pars=parameters,
        offset=np.full(len(y), learned["mean"]),
        offset_pred=np.full(len(test), learned["mean"]),
        predict_var=True,
        predict_response=False,
    )
    return np.asarray(found["var"]), time.process_time() - begun


def measure(
    case: Case,
    results: Results,
    settings: Iterable[tuple[str, int]] = tuple(SETTINGS),
    ours: Iterable[tuple[int, int]] = tuple(OURS),
) -> None:
    """GPBoost and this package under Laplace's approximation, against the exact variance at the exact mode, in one run."""
    exact = None
    place = {"data": case.name, "rows": len(case.problem.train.y)}
    reference = Reference.of(case)
    for method, setting in [*(("gpboost", s) for s in settings), *(("itergp", s) for s in ours)]:
        key = {**place, "method": method, "setting": list(setting)}
        if results.find("laplace", **key) is not None:
            continue
        exact = exact_laplace(case, reference) if exact is None else exact
        try:
            if method == "gpboost":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    values, seconds = predicted(case, *setting)
                variance = torch.from_numpy(values)
            else:
                rank, neighbours = setting
                solver = SubspaceNewton(covariance_rank=rank, num_neighbours=neighbours)
                _, variance, seconds = conditioned(case, torch.float64, "laplace", solver)
        except Exception as error:  # a failure is a result
            results.add("laplace", **key, failed=f"{type(error).__name__}: {error}"[:200])
            continue
        results.add("laplace", **key, **ratios(variance, exact), seconds=seconds)


def run(results: Results, names: Iterable[str] = BINARY, rows: int | None = None, **options: Any) -> None:
    """All data sets; nothing where GPBoost is not installed."""
    if available():
        for name in names:
            measure(load(name, results, rows), results, **options)
