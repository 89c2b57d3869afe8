"""GPyTorch's sparse variational GP, by Adam, or by natural gradients and Adam as GPyTorch's tutorial has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from gpytorch.variational import (
    CholeskyVariationalDistribution,
    IndependentMultitaskVariationalStrategy,
    NaturalVariationalDistribution,
    VariationalStrategy,
)
from torch import Tensor

from benchmarks.methods.base import Budget, Callback, Method, Predict, Range
from benchmarks.methods.model import make_kernel, make_likelihood, make_mean, outcome_probabilities
from benchmarks.workloads import COUNTS, END_TO_END, INFERENCE, ORDERED, TrainingData
from itergp.likelihoods import as_likelihood


class SparseGP(gpytorch.models.ApproximateGP):
    """Independent latent functions at shared, learned inducing inputs."""

    def __init__(self, data: TrainingData, inducing: Tensor, latents: int, natural: bool) -> None:
        batch = torch.Size([latents]) if latents > 1 else torch.Size([])
        kind = NaturalVariationalDistribution if natural else CholeskyVariationalDistribution
        distribution = kind(inducing.shape[0], batch_shape=batch)
        strategy: Any = VariationalStrategy(self, inducing, distribution, learn_inducing_locations=True)
        if latents > 1:
            strategy = IndependentMultitaskVariationalStrategy(strategy, num_tasks=latents)
        super().__init__(strategy)
        self.mean_module, self.covar_module = make_mean(data, learned=data.given is None), make_kernel(data)
        for module in (self.mean_module, self.covar_module):
            module.requires_grad_(data.given is None)

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


@dataclass(frozen=True)
class SVGP(Method):
    """Minibatches until the time is spent, with a checkpoint every epoch.

    Attributes:
        num_inducing: Inducing inputs, started at random rows.
        natural: Natural gradients for the variational distribution, Adam for everything else.
        learning_rate: Of Adam.
        natural_rate: Of natural gradients.
        batch_size: Rows in a step.
    """

    rulesets: tuple[str, ...] = (INFERENCE, END_TO_END)
    kinds: tuple[str, ...] = ("classes", ORDERED, COUNTS)
    endless: bool = True
    num_inducing: int = 500
    natural: bool = False
    learning_rate: float = 0.01
    natural_rate: float = 0.1
    batch_size: int = 1024

    @property
    def setup(self) -> str:
        how = f"natural gradients ({self.natural_rate:g}) and Adam" if self.natural else "Adam"
        return (
            f"{self.num_inducing} inducing points, learned with everything else by {how} ({self.learning_rate:g}), batches of "
            f"{self.batch_size:,} rows, as in GPyTorch's tutorials; the kernel and its start are those of itergp"
        )

    @property
    def search(self) -> dict[str, Range]:
        rates = {"learning_rate": Range(0.003, 0.1), "batch_size": Range(128, 2048, integer=True)}
        return rates | ({"natural_rate": Range(0.01, 0.5)} if self.natural else {})

    def fit(self, data: TrainingData, budget: Budget, callback: Callback) -> None:
        torch.manual_seed(budget.seed)
        likelihood, calculus = svgp_likelihood(data)
        inducing = data.x[torch.randperm(len(data.y))[: self.num_inducing]].clone()
        model = SparseGP(data, inducing, calculus.num_latents, self.natural)
        if data.given is None:
            start(model.covar_module, data.x)
        optimizers = self._optimizers(model, likelihood, data)
        objective = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(data.y))
        targets = data.y if calculus.num_latents > 1 else data.y.to(data.x.dtype)
        probs, variance = svgp_predictions(model, calculus, data)
        epoch = 0
        while True:
            model.train()
            for rows in torch.randperm(len(data.y)).split(self.batch_size):
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss = -objective(model(data.x[rows]), targets[rows])
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()
            epoch += 1
            model.eval()
            callback(probs, variance, epochs=epoch)

    def _optimizers(self, model: SparseGP, likelihood: Any, data: TrainingData) -> list[torch.optim.Optimizer]:
        others = [*model.hyperparameters(), *(likelihood.parameters() if data.given is None else [])]
        if not self.natural:
            return [torch.optim.Adam([*model.variational_parameters(), *others], lr=self.learning_rate)]
        ngd = gpytorch.optim.NGD(model.variational_parameters(), num_data=len(data.y), lr=self.natural_rate)
        return [ngd, torch.optim.Adam(others, lr=self.learning_rate)]


def svgp_likelihood(data: TrainingData) -> tuple[Any, Any]:
    """GPyTorch's softmax for several classes; otherwise this package's, so that the model is the same for all methods."""
    if data.kind == "classes" and data.num_outcomes > 2:
        softmax = gpytorch.likelihoods.SoftmaxLikelihood(num_classes=data.num_outcomes, mixing_weights=False)
        return softmax, as_likelihood(softmax)
    likelihood = make_likelihood(data)
    return likelihood, likelihood


def start(kernel: gpytorch.kernels.ScaleKernel, x: Tensor) -> None:
    """Hyperparameters start where ``itergp.fit`` starts them: half the median distance, and 10."""
    kernel.base_kernel.lengthscale = 0.5 * float(torch.pdist(x[:1000]).median())
    kernel.outputscale = 10.0


def svgp_predictions(model: SparseGP, calculus: Any, data: TrainingData) -> tuple[Predict, Predict]:
    """Probabilities, integrated as accurately as this package's own, and latent variances."""

    def probs(x: Tensor) -> Tensor:
        with torch.no_grad():
            latent = model(x)
            if calculus.num_latents == 1:
                predictive = calculus.predictive(latent.mean[:, None], latent.variance[:, None, None])
            else:
                predictive = calculus.predictive(latent.mean, torch.diag_embed(latent.variance))
            return outcome_probabilities(predictive, data)

    def variance(x: Tensor) -> Tensor:
        with torch.no_grad():
            return model(x).variance.reshape(len(x), -1).sum(-1)

    return probs, variance


METHODS: list[Method] = [
    SVGP("SVGP 500, Adam", "SVGP"),
    SVGP("SVGP 100, Adam", "SVGP", importance=2, num_inducing=100),
    SVGP("SVGP 100, natural gradients", "SVGP", num_inducing=100, natural=True),
    SVGP("SVGP 500, natural gradients", "SVGP", importance=2, num_inducing=500, natural=True),
]
