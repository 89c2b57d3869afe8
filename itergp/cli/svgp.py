"""GPyTorch's sparse variational GP (SVGP) as a yardstick: same kernel, softmax or Bernoulli, minibatches, Adam."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gpytorch
import torch
from torch import Tensor

from itergp.diagnostics import class_probabilities
from itergp.likelihoods import as_likelihood


class SVGP(gpytorch.models.ApproximateGP):
    """One independent inducing-point posterior per latent function, all at the same learned inducing inputs.

    Args:
        inducing: Initial inducing inputs ``(M, D)``.
        kernel: Kernel shared by all latent functions.
        num_latents: C.
    """

    def __init__(self, inducing: Tensor, kernel: gpytorch.kernels.Kernel, num_latents: int) -> None:
        batch = torch.Size([num_latents]) if num_latents > 1 else torch.Size([])
        distribution = gpytorch.variational.CholeskyVariationalDistribution(inducing.shape[0], batch_shape=batch)
        strategy = gpytorch.variational.VariationalStrategy(self, inducing, distribution, learn_inducing_locations=True)
        if num_latents > 1:
            strategy = gpytorch.variational.IndependentMultitaskVariationalStrategy(strategy, num_tasks=num_latents)
        super().__init__(strategy)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = kernel

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        """The prior."""
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def fit_svgp(
    kernel: gpytorch.kernels.Kernel,
    x: Tensor,
    y: Tensor,
    likelihood: gpytorch.likelihoods.Likelihood,
    *,
    num_inducing: int,
    seconds: float,
    learning_rate: float = 0.01,
    learn_kernel: bool = False,
    batch_size: int = 256,
    seed: int = 0,
    callback: Callable[[SVGP, float], bool] | None = None,
) -> tuple[SVGP, int]:
    """Trains an SVGP with Adam for a given time.

    Args:
        kernel: The kernel, with its hyperparameters; copied by the caller if it must not be touched.
        x: Training inputs ``(N, D)``.
        y: Validated targets ``(N,)``.
        likelihood: GPyTorch's likelihood.
        num_inducing: Inducing inputs, started at random training inputs.
        seconds: Training time; what the callback takes is not counted.
        learning_rate: Adam's.
        learn_kernel: Whether kernel and mean are learned too.
        batch_size: Rows per step.
        seed: Of the inducing inputs and minibatches.
        callback: Called about 20 times with the model and the time used; returns True to stop.

    Returns:
        The model in evaluation mode, and the number of steps.
    """
    generator = torch.Generator().manual_seed(seed)
    inducing = x[torch.randperm(x.shape[0], generator=generator)[:num_inducing]].clone()
    model = SVGP(inducing, kernel, as_likelihood(likelihood).num_latents).to(x)
    for module in (kernel, model.mean_module):
        module.requires_grad_(learn_kernel)
    objective = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=x.shape[0])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    model.train()
    used, steps, next_call = 0.0, 0, seconds / 20
    while used < seconds:
        started = time.perf_counter()
        rows = torch.randint(x.shape[0], (batch_size,), generator=generator)
        optimizer.zero_grad()
        loss = -objective(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        used, steps = used + time.perf_counter() - started, steps + 1
        if callback is not None and used >= next_call:
            next_call += seconds / 20
            model.eval()
            stop = callback(model, used)
            model.train()
            if stop:
                break
    return model.eval(), steps


def svgp_probs(model: SVGP, likelihood: gpytorch.likelihoods.Likelihood, x: Tensor) -> Tensor:
    """Class probabilities ``(M, C)``, integrated as accurately as our own."""
    with torch.no_grad():
        latent, calculus = model(x), as_likelihood(likelihood)
        predictive: Any
        if calculus.num_latents == 1:
            predictive = calculus.predictive(latent.mean[:, None], latent.variance[:, None, None])
            return class_probabilities(predictive.probs)
        predictive = calculus.predictive(latent.mean, torch.diag_embed(latent.variance))
        return predictive.probs
