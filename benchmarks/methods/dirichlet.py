"""Classification by regression on transformed labels: GPyTorch's Dirichlet likelihood (Milios et al., NeurIPS 2018)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import gpytorch
import torch
from gpytorch.likelihoods import DirichletClassificationLikelihood
from torch import Tensor

from benchmarks.methods.base import Budget, Callback, Method, Predict, Range
from benchmarks.methods.ours import subset_of
from benchmarks.workloads import TrainingData
from itergp.models.gp import MAX_ARD_COLUMNS

_SAMPLES = 512  # of the latent functions, for the means of their softmax
_EVERY = 10  # iterations between checkpoints


class DirichletGP(gpytorch.models.ExactGP):
    """One latent function per class, with a mean and a scaled Matern-3/2 kernel of its own."""

    def __init__(self, x: Tensor, likelihood: DirichletClassificationLikelihood) -> None:
        super().__init__(x, likelihood.transformed_targets, likelihood)
        batch, columns = torch.Size([likelihood.num_classes]), x.shape[1]
        ard = columns if columns <= MAX_ARD_COLUMNS else None
        self.mean_module = gpytorch.means.ConstantMean(batch_shape=batch)
        matern = gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=ard, batch_shape=batch)
        self.covar_module = gpytorch.kernels.ScaleKernel(matern, batch_shape=batch)
        matern.lengthscale = 0.5 * float(torch.pdist(x[:1000]).median())

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


@dataclass(frozen=True)
class Dirichlet(Method):
    """An exact GP on a random subset of the rows; its cost is cubic in them.

    Attributes:
        rows: Rows at most.
        alpha_epsilon: What every class has of the Dirichlet's concentration.
        iterations: Steps of Adam.
        learning_rate: Of Adam.
    """

    rows: int = 2_000
    alpha_epsilon: float = 0.01
    iterations: int = 50
    learning_rate: float = 0.1

    @property
    def setup(self) -> str:
        return (
            "`DirichletClassificationLikelihood(learn_additional_noise=True)` and `ExactGP` on at most "
            f"{self.rows:,} random rows, {self.iterations} steps of Adam ({self.learning_rate:g}), as in GPyTorch's "
            "tutorial; Matern-3/2 with one lengthscale per column up to 100, all of them per class; probabilities from "
            f"{_SAMPLES} samples"
        )

    @property
    def search(self) -> dict[str, Range]:
        return {
            "alpha_epsilon": Range(1e-3, 0.3),
            "learning_rate": Range(0.03, 0.3),
            "iterations": Range(30, 200, integer=True),
        }

    def fit(self, data: TrainingData, budget: Budget, callback: Callback) -> None:
        data = subset_of(data, self.rows, budget.seed)
        likelihood = DirichletClassificationLikelihood(
            data.y, alpha_epsilon=self.alpha_epsilon, learn_additional_noise=True
        )
        model = DirichletGP(data.x, likelihood)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate)
        objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
        probs, variance = _predictions(model, budget.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of jitter that was added
            for iteration in range(1, self.iterations + 1):
                model.train()
                optimizer.zero_grad()
                loss = -objective(model(data.x), likelihood.transformed_targets).sum()
                loss.backward()
                optimizer.step()
                if iteration % _EVERY == 0 or iteration == self.iterations:
                    model.eval()
                    probs(data.x[:2])  # what predictions share is part of training
                    callback(probs, variance, iterations=iteration, rows=len(data.y))


def _predictions(model: DirichletGP, seed: int) -> tuple[Predict, Predict]:
    """Mean of the softmax over samples of the independent latent functions; their variance, summed."""

    def latent(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), gpytorch.settings.fast_pred_var():
            parts = [model(rows) for rows in x.split(500)]
            return torch.cat([p.mean for p in parts], -1), torch.cat([p.variance for p in parts], -1).clamp_min(1e-9)

    def probs(x: Tensor) -> Tensor:
        mean, variance = latent(x)
        noise = torch.randn(_SAMPLES, *mean.shape, generator=torch.Generator().manual_seed(seed))
        return (mean + variance.sqrt() * noise).double().softmax(-2).mean(0).mT

    return probs, lambda x: latent(x)[1].sum(0)


METHODS: list[Method] = [
    Dirichlet("Dirichlet GP, 2,000 rows", "Dirichlet GP"),
    Dirichlet("Dirichlet GP, 5,000 rows", "Dirichlet GP", importance=3, rows=5_000),
]
