"""GPyTorch's variational nearest-neighbour GP (Wu et al., ICML 2022)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from gpytorch.variational import (
    IndependentMultitaskVariationalStrategy,
    MeanFieldVariationalDistribution,
    NNVariationalStrategy,
)
from torch import Tensor

from benchmarks.methods.base import Budget, Callback, Method, Range
from benchmarks.methods.model import make_kernel, make_mean
from benchmarks.methods.svgp import start, svgp_likelihood, svgp_predictions
from benchmarks.workloads import COUNTS, END_TO_END, INFERENCE, ORDERED, TrainingData


class NearestNeighbourGP(gpytorch.models.ApproximateGP):
    """Every row is an inducing input, given its nearest ones among those before it."""

    def __init__(self, data: TrainingData, x: Tensor, latents: int, neighbours: int, batch_size: int) -> None:
        batch = torch.Size([latents]) if latents > 1 else torch.Size([])
        distribution = MeanFieldVariationalDistribution(len(x), batch_shape=batch)
        strategy: Any = NNVariationalStrategy(
            self, x, distribution, k=min(neighbours, len(x) // 2), training_batch_size=batch_size
        )
        nearest = strategy
        if latents > 1:
            strategy = IndependentMultitaskVariationalStrategy(strategy, num_tasks=latents)
        super().__init__(strategy)
        self.nearest = nearest
        self.mean_module, self.covar_module = make_mean(data, learned=data.given is None), make_kernel(data)
        for module in (self.mean_module, self.covar_module):
            module.requires_grad_(data.given is None)

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    def __call__(self, x: Tensor | None, prior: bool = False, **kwargs: Any) -> Any:
        """Without inputs, at the rows of the next batch, as GPyTorch's tutorial has it."""
        return self.variational_strategy(x=x, prior=prior, **kwargs)


@dataclass(frozen=True)
class VNNGP(Method):
    """Minibatches until the time is spent, with a checkpoint every epoch.

    Attributes:
        neighbours: Nearest neighbours, half of the rows at most.
        learning_rate: Of Adam.
        batch_size: Rows in a step.
    """

    rulesets: tuple[str, ...] = (INFERENCE, END_TO_END)
    kinds: tuple[str, ...] = ("classes", ORDERED, COUNTS)
    endless: bool = True
    neighbours: int = 32
    learning_rate: float = 0.1
    batch_size: int = 256

    @property
    def setup(self) -> str:
        return (
            f"`NNVariationalStrategy(k={self.neighbours}, training_batch_size={self.batch_size})` with all rows in random "
            f"order as inducing points, everything by Adam ({self.learning_rate:g}), as in GPyTorch's tutorial, which has 256 "
            "neighbours, batches of 64 and a rate of 0.01, and is farther behind when the time is spent; the kernel and its "
            "start are those of itergp"
        )

    @property
    def search(self) -> dict[str, Range]:
        return {"neighbours": Range(16, 256, integer=True), "learning_rate": Range(0.003, 0.3)}

    def fit(self, data: TrainingData, budget: Budget, callback: Callback) -> None:
        torch.manual_seed(budget.seed)
        order = torch.randperm(len(data.y))
        x, y = data.x[order].contiguous(), data.y[order]
        likelihood, calculus = svgp_likelihood(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # scikit-learn finds neighbours where there is no faiss
            model = NearestNeighbourGP(data, x, calculus.num_latents, self.neighbours, self.batch_size)
        if data.given is None:
            start(model.covar_module, x)
        learned = [*model.parameters(), *(likelihood.parameters() if data.given is None else [])]
        optimizer = torch.optim.Adam([p for p in learned if p.requires_grad], lr=self.learning_rate)
        objective = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(y))
        targets = y if calculus.num_latents > 1 else y.to(x.dtype)
        probs, variance = svgp_predictions(model, calculus, data)
        epoch = 0
        while True:
            model.train()
            for _ in range(model.nearest._total_training_batches):
                optimizer.zero_grad()
                output = model(None)
                loss = -objective(output, targets[model.nearest.current_training_indices])
                loss.backward()
                optimizer.step()
            epoch += 1
            model.eval()
            callback(probs, variance, epochs=epoch)


METHODS: list[Method] = [
    VNNGP("VNNGP, 32 neighbours", "VNNGP"),
    VNNGP("VNNGP, 256 neighbours", "VNNGP", importance=3, neighbours=256, learning_rate=0.01, batch_size=64),
]
