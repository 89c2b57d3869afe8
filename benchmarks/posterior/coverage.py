"""How often what was drawn from a model lies within its intervals, at known hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from torch import Tensor

from benchmarks.posterior.results import Results
from itergp.likelihoods import GaussianLikelihood, Likelihood, PoissonLikelihood
from itergp.models import GP

LEVEL = 0.9
LOG_RATES = (0.0, 2.0, 5.0, 8.0, 11.0, 14.0)
NOISES = (1e-1, 1e-2, 1e-3)  # deviations, of a function whose own is 1
_LENGTHSCALE, _SCALE, _TEST_ROWS = 0.5, 1.0, 60
_DTYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class Setting:
    """What is drawn.

    Attributes:
        observed: ``"counts"`` or ``"reals"``.
        value: Mean of the log-rate, or deviation of the noise.
        dtype: Of the model.
        rows: Of the training data.
    """

    observed: str
    value: float
    dtype: str
    rows: int

    def likelihood(self) -> Likelihood:
        """With the parameters that the data are drawn with."""
        return PoissonLikelihood() if self.observed == "counts" else GaussianLikelihood(noise=self.value**2)

    @property
    def mean(self) -> float:
        """Of the latent function."""
        return self.value if self.observed == "counts" else 0.0


class _Known(GP):
    """The model that the data are drawn from."""


def _kernel() -> gpytorch.kernels.Kernel:
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5))
    kernel.outputscale, kernel.base_kernel.lengthscale = _SCALE, _LENGTHSCALE
    return kernel


def _drawn(setting: Setting, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, latent values and targets, float64: training rows, then test rows."""
    torch.manual_seed(seed)
    x = torch.rand(setting.rows + _TEST_ROWS, 2, dtype=torch.float64) * 3.0
    covariance = _kernel().double()(x).to_dense().detach()
    root = torch.linalg.cholesky(covariance + 1e-10 * torch.eye(len(x), dtype=torch.float64))
    f = setting.mean + root @ torch.randn(len(x), dtype=torch.float64)
    if setting.observed == "counts":
        return x, f, torch.poisson(f.exp())
    return x, f, f + setting.value * torch.randn(len(x), dtype=torch.float64)


def _within(level: Tensor) -> float:
    return float(((level > 0.5 * (1.0 - LEVEL)) & (level < 0.5 * (1.0 + LEVEL))).double().mean())


def measure(setting: Setting, seed: int) -> tuple[float, float, bool]:
    """Shares of test rows whose latent value, and whose observation, lies within its interval; whether the solve converged.

    Of counts each has several levels of the distribution function, of which one is drawn, so that the share is exactly 0.9.
    """
    dtype, (x, f, y) = _DTYPES[setting.dtype], _drawn(setting, seed)
    train, test = slice(0, setting.rows), slice(setting.rows, None)
    mean = gpytorch.means.ConstantMean()
    mean.constant = setting.mean
    model = _Known(x[train].to(dtype), y[train].to(dtype), setting.likelihood(), mean=mean, kernel=_kernel())
    model = model.to(dtype).eval()
    with torch.no_grad():
        latent = model(x[test].to(dtype))
        predicted = model.predict(x[test].to(dtype))
        z = (f[test] - latent.mean.double()) / latent.variance.double().sqrt()
        observed = y[test].to(dtype)
        level = predicted.cdf(observed).double()
        if setting.observed == "counts":
            below = torch.where(observed > 0, predicted.cdf((observed - 1.0).clamp_min(0.0)).double(), 0.0)
            level = below + torch.rand(len(level), dtype=torch.float64) * (level - below)
    return _within(torch.special.ndtr(z)), _within(level), model.solution.status.converged


def settings(rows: int) -> Iterator[Setting]:
    """All that are measured."""
    for dtype in _DTYPES:
        for observed, values in (("counts", LOG_RATES), ("reals", NOISES)):
            for value in values:
                yield Setting(observed, value, dtype, rows)


def run(results: Results, rows: int = 200, repeats: int = 40, chosen: Iterable[Setting] | None = None) -> None:
    """Coverage of 90 % intervals, its standard error over data sets, and how many solves converged."""
    for setting in settings(rows) if chosen is None else chosen:
        place: dict[str, Any] = {**vars(setting), "repeats": repeats}
        if results.find("coverage", **place) is not None:
            continue
        found = torch.tensor([measure(setting, seed) for seed in range(repeats)], dtype=torch.float64)
        error = found.std(0) / math.sqrt(repeats) if repeats > 1 else torch.full((3,), math.nan)
        results.add(
            "coverage",
            **place,
            latent=float(found[:, 0].mean()),
            latent_error=float(error[0]),
            response=float(found[:, 1].mean()),
            response_error=float(error[1]),
            converged=float(found[:, 2].mean()),
        )
