"""Four binary outputs with a common structure, of which every row has one: coupled latent functions against independent ones.

``python -m benchmarks.outputs`` prints the held-out log-density and accuracy of every output.
"""

from __future__ import annotations

import argparse
from typing import Any

import gpytorch
import torch
from gpytorch.distributions import MultitaskMultivariateNormal
from torch import Tensor

import itergp
from itergp.likelihoods import BernoulliLikelihood, IndependentOutputsLikelihood
from itergp.models import GP, NonConjugateGP

OUTPUTS, ROWS, HELD_OUT = 4, 100, 500
# How much of each of two common functions there is in an output, beside a function of its own.
MIXING = ((2.0, 0.5), (1.6, -1.2), (-1.8, 1.0), (0.6, 2.2))
OWN = 0.4


class Coupled(NonConjugateGP):
    """One latent function per output, coupled by a covariance of the outputs."""

    def __init__(self, x: Tensor, y: Tensor, **options: Any) -> None:
        likelihood = IndependentOutputsLikelihood(*(BernoulliLikelihood() for _ in range(OUTPUTS)))
        super().__init__(x, y, likelihood, **options)
        self.mean_module = gpytorch.means.MultitaskMean(gpytorch.means.ConstantMean(), num_tasks=OUTPUTS)
        kernel = gpytorch.kernels.MaternKernel(nu=1.5)
        self.covar_module = gpytorch.kernels.MultitaskKernel(kernel, num_tasks=OUTPUTS, rank=2)

    def forward(self, x: Tensor) -> MultitaskMultivariateNormal:
        """The prior."""
        return MultitaskMultivariateNormal(self.mean_module(x), self.covar_module(x))


def make_data(seed: int, rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs and labels of ``rows`` rows an output, NaN for the other outputs; held-out inputs with all labels."""
    generator = torch.Generator().manual_seed(seed)
    frequencies = torch.randn(2, 64, 2 + OUTPUTS, generator=generator) * 1.2
    phases = 2 * torch.pi * torch.rand(64, 2 + OUTPUTS, generator=generator)

    def functions(x: Tensor) -> Tensor:
        features = torch.cos(torch.einsum("nd,dkc->nkc", x, frequencies) + phases)
        drawn = features.mean(1) * 64**0.5 * 2**0.5 * 1.5
        return drawn[:, :2] @ torch.tensor(MIXING).mT + OWN * drawn[:, 2:]

    x = 4.0 * torch.rand(OUTPUTS * rows, 2, generator=generator) - 2.0
    new = 4.0 * torch.rand(HELD_OUT, 2, generator=generator) - 2.0
    labels, held_out = (
        (torch.rand(len(inputs), OUTPUTS, generator=generator) < torch.sigmoid(functions(inputs))).float()
        for inputs in (x, new)
    )
    output = torch.arange(OUTPUTS).repeat_interleave(rows)
    labels[output.unsqueeze(-1) != torch.arange(OUTPUTS)] = torch.nan
    return x, labels, new, held_out


def compare(seed: int, iterations: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Mean held-out log-density of every output ``(4,)``, of the coupled model and of models of single outputs."""
    x, y, new, held_out = make_data(seed, rows)
    torch.manual_seed(seed)
    model = Coupled(x, y)
    itergp.fit(model, max_iterations=iterations)
    coupled = model.eval().predict(new).log_prob(held_out).mean(0)
    alone = []
    for c in range(OUTPUTS):
        seen = ~y[:, c].isnan()
        single = GP(x[seen], y[seen, c], BernoulliLikelihood())
        itergp.fit(single, max_iterations=iterations)
        alone.append(single.eval().predict(new).log_prob(held_out[:, c]).mean())
    return coupled.detach(), torch.stack(alone).detach()


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--rows", type=int, default=ROWS)
    options = parser.parse_args()
    print("| seed | model | " + " | ".join(f"output {c}" for c in range(OUTPUTS)) + " |")
    print("|---" * (OUTPUTS + 2) + "|")
    for seed in range(options.seeds):
        for name, values in zip(
            ("coupled", "independent"), compare(seed, options.iterations, options.rows), strict=True
        ):
            print(f"| {seed} | {name} | " + " | ".join(f"{-float(value):.3f}" for value in values) + " |", flush=True)


if __name__ == "__main__":
    main()
