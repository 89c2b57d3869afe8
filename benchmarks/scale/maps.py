"""Maps: a Gaussian process of two inputs seen through labels, at given hyperparameters, beside GPBoost.

The experiment of Kuendig & Sigrist (2024, "Iterative methods for Vecchia-Laplace approximations for latent Gaussian process
models"): inputs uniform on the unit square, a Matern-3/2 kernel of variance 1 and range 1/20, labels by the logistic function. The field is
drawn exactly on a grid of 2048 points a side of a torus twice as long, and read off by cubic splines.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import gpytorch
import numpy as np
import torch
from scipy.ndimage import map_coordinates
from scipy.special import expit, roots_hermitenorm

from itergp.likelihoods import BernoulliLikelihood
from itergp.models import GP
from itergp.operators import make_operator
from itergp.solvers import DenseNewton, LinearTimeNewton, SubspaceNewton

RANGE, NUM_TEST = 0.05, 10_000
_GRID, _TORUS = 2048, 2.0
SOLVERS = {"itergp": SubspaceNewton, "itergp, support": LinearTimeNewton}


@dataclass(frozen=True)
class Map:
    """Inputs, latent values and labels of training and test rows.

    Attributes:
        x: ``(N, 2)``.
        y: ``(N,)``.
        test_x: ``(M, 2)``.
        test_f: The field there ``(M,)``.
        test_y: Labels.
    """

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_f: np.ndarray
    test_y: np.ndarray


def draw(rows: int, seed: int = 0) -> Map:
    """So many training rows, and test rows of the same field."""
    rng = np.random.RandomState(seed)
    axis = np.minimum(np.arange(_GRID), _GRID - np.arange(_GRID)) * _TORUS / _GRID
    scaled = math.sqrt(3.0) * np.hypot(axis[:, None], axis) / RANGE
    spectrum = np.fft.rfft2((1.0 + scaled) * np.exp(-scaled)).real.clip(0.0)
    field = np.fft.irfft2(np.sqrt(spectrum) * np.fft.rfft2(rng.standard_normal((_GRID, _GRID))), s=(_GRID, _GRID))
    x = rng.rand(rows + NUM_TEST, 2)
    f = map_coordinates(field, x.T * _GRID / _TORUS, mode="grid-wrap", prefilter=True)
    y = (rng.rand(len(x)) < expit(f)).astype(int)
    return Map(x[:rows], y[:rows], x[rows:], f[rows:], y[rows:])


def scores(mean: np.ndarray, variance: np.ndarray, data: Map) -> dict[str, float]:
    """Log scores of the labels and of the field, its error, and the mean variance."""
    nodes, weights = roots_hermitenorm(40)
    variance = np.maximum(variance, 1e-12)
    probability = expit(mean[:, None] + np.sqrt(variance)[:, None] * nodes) @ (weights / weights.sum())
    probability = np.where(data.test_y == 1, probability, 1.0 - probability)
    error = mean - data.test_f
    return {
        "nll": float(-np.log(probability).mean()),
        "latent_log_score": float(0.5 * (np.log(2.0 * math.pi * variance) + error**2 / variance).mean()),
        "latent_rmse": float(np.sqrt((error**2).mean())),
        "variance": float(variance.mean()),
        "variance_median": float(np.median(variance)),
    }


def kernel() -> gpytorch.kernels.Kernel:
    """The field's."""
    found = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)).requires_grad_(False)
    found.outputscale, found.base_kernel.lengthscale = 1.0, RANGE
    return found


def maps_itergp(rows: int, method: str = "itergp", dtype: str = "float32") -> dict[str, Any]:
    """This package: processor seconds of the posterior with its certificate, and of predictions."""
    data = draw(rows)
    x, y = torch.tensor(data.x, dtype=getattr(torch, dtype)), torch.tensor(data.y)
    begun = time.process_time()
    model = GP(
        x,
        y,
        BernoulliLikelihood(),
        mean=gpytorch.means.ZeroMean(),
        kernel=kernel().to(x.dtype),
        approximation="laplace",
        solver=SOLVERS[method](),
    ).eval()
    solution = model.condition()
    conditioned = time.process_time()
    with torch.no_grad():
        latent = model(torch.tensor(data.test_x, dtype=x.dtype))
    mean, variance = latent.mean.double().numpy().ravel(), latent.variance.double().numpy().ravel()
    predicted = time.process_time()
    gap = None if solution.certificate is None else solution.certificate.objective_gap / rows
    return {
        "seconds": conditioned - begun,
        "prediction": predicted - conditioned,
        "operator": solution.trace.settings.operator,
        "passes": solution.kernel_passes,
        "gap_per_row": gap,
        "log_likelihood": solution.log_marginal_likelihood,
        "status": str(solution.status),
        **scores(mean, variance, data),
    }


def maps_exact(rows: int) -> dict[str, Any]:
    """Laplace's approximation by dense algebra in float64."""
    data = draw(rows)
    x, y = torch.tensor(data.x), torch.tensor(data.y)
    options: dict[str, Any] = {
        "mean": gpytorch.means.ZeroMean(),
        "kernel": kernel().double(),
        "approximation": "laplace",
    }
    begun = time.process_time()
    model = GP(x, y, BernoulliLikelihood(), solver=DenseNewton(), **options).eval()
    solution = model.condition()
    conditioned = time.process_time()
    with torch.no_grad():
        latent = model(torch.tensor(data.test_x))
    mean, variance = latent.mean.numpy().ravel(), latent.variance.numpy().ravel()
    return {
        "seconds": conditioned - begun,
        "prediction": time.process_time() - conditioned,
        "log_likelihood": solution.log_marginal_likelihood,
        **scores(mean, variance, data),
    }


def maps_gpboost(
    rows: int, approximation: str = "vecchia", inversion: str = "iterative", neighbours: int = 20
) -> dict[str, Any]:
    """GPBoost at the same hyperparameters: processor seconds of the log-likelihood, and of that and predictions."""
    import gpboost

    data = draw(rows)
    begun = time.process_time()
    model: Any = gpboost.GPModel(
        gp_coords=data.x,
        cov_function="matern",
        cov_fct_shape=1.5,
        likelihood="bernoulli_logit",
        gp_approx=approximation,
        num_neighbors=neighbours,
        matrix_inversion_method=inversion,
        num_parallel_threads=1,
        seed=0,
    )
    parameters = np.array([1.0, RANGE])
    negative = model.neg_log_likelihood(cov_pars=parameters, y=data.y.astype(float))
    evaluated = time.process_time()
    model.set_prediction_data(num_neighbors_pred=neighbours)
    found = model.predict(
        y=data.y.astype(float),
        gp_coords_pred=data.test_x,
        cov_pars=parameters,
        predict_var=True,
        predict_response=False,
    )
    return {
        "seconds": evaluated - begun,
        "prediction": time.process_time() - evaluated,
        "log_likelihood": -float(negative),
        **scores(np.asarray(found["mu"]), np.asarray(found["var"]), data),
    }


def maps_pass(rows: int, columns: int = 1) -> dict[str, Any]:
    """One kernel pass by every operator that does it: processor seconds, and the error relative to float64 on a sample of rows."""
    data = draw(rows)
    block = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sample = torch.randperm(rows, generator=torch.Generator().manual_seed(1))[:2000]
    exact = make_operator(kernel().double(), torch.tensor(data.x), kind="blocked")
    reference = exact.cross_matmul(exact.inputs[sample], block)
    found: dict[str, Any] = {}
    for kind, dtype, repeats in (
        ("fourier", torch.float32, 2),
        ("fourier", torch.float64, 2),
        ("blocked", torch.float32, 1),
    ):
        operator = make_operator(kernel().to(dtype), torch.tensor(data.x, dtype=dtype), kind=kind)
        seconds = []
        for _ in range(repeats):
            begun = time.process_time()
            product = operator.matmul(block.to(dtype))
            seconds.append(time.process_time() - begun)
        error = (product[:, sample].double() - reference).norm() / reference.norm()
        name = f"{kind}, {str(dtype).removeprefix('torch.')}"
        found[name] = {"first": seconds[0], "seconds": seconds[-1], "error": float(error)}
    return {"by_operator": found}
