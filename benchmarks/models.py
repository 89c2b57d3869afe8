"""Models that several benchmarks share: a kernel that is given, and one with this package's defaults."""

from __future__ import annotations

from typing import Any

import gpytorch
import torch

import itergp
from benchmarks.data import Split
from itergp.diagnostics import accuracy, class_probabilities, expected_calibration_error, negative_log_likelihood
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood, Likelihood

MOST_ARD_COLUMNS = 100  # more of them are pixels, which share one lengthscale


class MaternGP(itergp.models.NonConjugateGP):
    """One scaled Matern-3/2 kernel for all latent functions, hyperparameters fixed."""

    def __init__(self, data: Split, lengthscale: float, outputscale: float, **options: Any) -> None:
        super().__init__(data.train_x, data.train_y, _likelihood(data), **options)
        self.mean_module = gpytorch.means.ZeroMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5))
        self.covar_module.outputscale = outputscale
        self.covar_module.base_kernel.lengthscale = lengthscale

    def forward(self, x: torch.Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


class DefaultGP(itergp.models.NonConjugateGP):
    """Constant mean and a scaled Matern-3/2 kernel, with one lengthscale per input unless the inputs are pixels."""

    def __init__(self, data: Split) -> None:
        super().__init__(data.train_x, data.train_y, _likelihood(data))
        columns = data.train_x.shape[1]
        kernel = gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=columns if columns <= MOST_ARD_COLUMNS else None)
        self.mean_module, self.covar_module = gpytorch.means.ConstantMean(), gpytorch.kernels.ScaleKernel(kernel)

    def forward(self, x: torch.Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def _likelihood(data: Split) -> Likelihood:
    return BernoulliLikelihood() if data.num_classes == 2 else CategoricalLikelihood(data.num_classes)


def class_probs(model: MaternGP, x: torch.Tensor, tempering: float = 0.0) -> torch.Tensor:
    """Class probabilities ``(M, C)``."""
    with torch.no_grad():
        probs = model.predict(x, tempering=tempering).probs
    return class_probabilities(probs)


def scores(probs: torch.Tensor, data: Split) -> dict[str, float]:
    """Test NLL, accuracy and expected calibration error."""
    return {
        "nll": negative_log_likelihood(probs, data.test_y),
        "accuracy": accuracy(probs, data.test_y),
        "ece": expected_calibration_error(probs, data.test_y),
    }
