"""The Gaussian process that all solvers of this package are compared on, and its predictions."""

from __future__ import annotations

from typing import Any

import gpytorch
import torch
from torch import Tensor

from benchmarks.methods.base import Predict
from benchmarks.workloads import COUNTS, ORDERED, TrainingData
from itergp.diagnostics import class_probabilities
from itergp.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    Likelihood,
    NegativeBinomialLikelihood,
    OrdinalLikelihood,
    PoissonLikelihood,
    ZeroInflatedPoissonLikelihood,
)
from itergp.models import GP
from itergp.models.gp import MAX_ARD_COLUMNS


def make_likelihood(data: TrainingData) -> Likelihood:
    """Logit or softmax, ordered logit, or negative binomial, whose dispersion stays at its default in the inference ruleset."""
    if data.kind == COUNTS:
        return NegativeBinomialLikelihood()
    if data.kind == ORDERED:
        likelihood = OrdinalLikelihood(data.num_outcomes)
        likelihood.initialise(data.y)  # cutpoints at the frequencies of the levels
        return likelihood
    return BernoulliLikelihood() if data.num_outcomes == 2 else CategoricalLikelihood(data.num_outcomes)


def other_likelihoods(data: TrainingData) -> list[Likelihood]:
    """What competes with ``make_likelihood``, as in the estimators."""
    if data.kind == COUNTS:
        return [PoissonLikelihood(), ZeroInflatedPoissonLikelihood()]
    return [CategoricalLikelihood(data.num_outcomes)] if data.kind == ORDERED else []


def make_mean(data: TrainingData, *, learned: bool) -> gpytorch.means.Mean:
    """A learned constant, or zero; for counts of the inference ruleset the logarithm of the mean count."""
    if not learned and data.kind != COUNTS:
        return gpytorch.means.ZeroMean()
    mean = gpytorch.means.ConstantMean()
    if data.kind == COUNTS:
        mean.constant.data.fill_(float(data.y.float().mean().clamp_min(0.1).log()))
    return mean


def make_kernel(data: TrainingData) -> gpytorch.kernels.ScaleKernel:
    """Scaled Matern-3/2: as given, or one lengthscale per column (for up to 100) to be learned."""
    columns = data.x.shape[1]
    ard = None if data.given or columns > MAX_ARD_COLUMNS else columns
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=ard))
    if data.given:
        kernel.outputscale, kernel.base_kernel.lengthscale = data.given.outputscale, data.given.lengthscale
    return kernel


def suite_model(data: TrainingData, **options: Any) -> GP:
    """A scaled Matern-3/2 kernel, given or to be learned."""
    mean, kernel = make_mean(data, learned=data.given is None), make_kernel(data)
    return GP(data.x, data.y, make_likelihood(data), mean=mean, kernel=kernel, **options)


def outcome_probabilities(predictive: Any, data: TrainingData) -> Tensor:
    """Probabilities ``(M, K)`` from a predictive distribution."""
    if data.kind != COUNTS:
        return class_probabilities(predictive.probs)
    counts = torch.arange(data.num_outcomes - 1)
    inner = torch.stack([predictive.log_prob(count.float()).exp() for count in counts], -1)
    rest = (1.0 - inner.sum(-1, keepdim=True)).clamp_min(1e-12)
    return torch.cat([inner, rest], -1)


def predictions(model: GP, data: TrainingData, tempering: float | None = None) -> tuple[Predict, Predict]:
    """Probabilities, and the latent variance, summed over latent functions; without a covariance nothing to tell by."""

    def probs(x: Tensor) -> Tensor:
        with torch.no_grad():
            return outcome_probabilities(model.predict(x, tempering=tempering), data)

    def variance(x: Tensor) -> Tensor:
        with torch.no_grad():
            latent = [model(x[rows]).variance.reshape(len(x[rows]), -1).sum(-1) for rows in _batches(len(x))]
        return torch.cat(latent)

    return probs, variance


def _batches(num_rows: int, size: int = 500) -> list[slice]:
    return [slice(start, start + size) for start in range(0, num_rows, size)]
