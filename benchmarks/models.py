"""Models that several benchmarks share: a kernel that is given, and one with this package's defaults."""

from __future__ import annotations

from typing import Any

import gpytorch
import torch

from benchmarks.data import Split
from itergp.diagnostics import accuracy, class_probabilities, expected_calibration_error, negative_log_likelihood
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood, Likelihood
from itergp.models import GP


def matern_kernel(lengthscale: float, outputscale: float, nu: float = 1.5) -> gpytorch.kernels.ScaleKernel:
    """A scaled Matern kernel with one lengthscale."""
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=nu))
    kernel.outputscale, kernel.base_kernel.lengthscale = outputscale, lengthscale
    return kernel


def given_model(data: Split, lengthscale: float, outputscale: float, **options: Any) -> GP:
    """One scaled Matern-3/2 kernel for all latent functions, hyperparameters fixed, and no mean."""
    mean, kernel = gpytorch.means.ZeroMean(), matern_kernel(lengthscale, outputscale)
    return GP(data.train_x, data.train_y, _likelihood(data), mean=mean, kernel=kernel, **options)


def default_model(data: Split) -> GP:
    """This package's default kernel, and one constant mean."""
    return GP(data.train_x, data.train_y, _likelihood(data), mean=gpytorch.means.ConstantMean())


def _likelihood(data: Split) -> Likelihood:
    return BernoulliLikelihood() if data.num_classes == 2 else CategoricalLikelihood(data.num_classes)


def class_probs(model: GP, x: torch.Tensor, tempering: float = 0.0) -> torch.Tensor:
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
