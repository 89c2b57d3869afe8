"""Sparse GP classification with Polya-Gamma variables: natural gradients in closed form (Wenzel et al., AAAI 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.methods.base import Budget, Callback, Method, Predict, Range
from benchmarks.methods.model import make_kernel, make_likelihood, make_mean, outcome_probabilities
from benchmarks.methods.svgp import start
from benchmarks.workloads import END_TO_END, INFERENCE, TrainingData

_JITTER = 1e-5


class PolyaGammaGP(torch.nn.Module):
    """Two classes, by Gaussian variables ``v`` with ``f(x) = m(x) + k(x, Z) L^-T v`` and ``K_ZZ = L L'``.

    Given the means of the Polya-Gamma variables, ``omega``, the bound is that of a Gaussian model with targets
    ``(y - 1/2) / omega`` and noise ``1 / omega``, so that the precision of ``q(v)`` and its product with the mean, its natural
    parameters, have optima in closed form, which a step approaches by a given share.

    Differs from the paper:
        1. ``v`` is whitened, so that steps of the hyperparameters leave the divergence from the prior as it is.
        2. The prior has a constant mean, and the rate of the natural parameters is constant.

    Args:
        data: Training rows of two classes.
        inducing: Inputs ``Z`` ``(M, D)``, which stay.
    """

    def __init__(self, data: TrainingData, inducing: Tensor) -> None:
        super().__init__()
        self.mean, self.kernel = make_mean(data, learned=data.given is None), make_kernel(data)
        self.inducing = inducing.double()
        self.double()
        size = len(inducing)
        self.precision, self.shift = torch.eye(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        self.sign = 2.0 * data.y.double() - 1.0
        self.x = data.x.double()

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``L^-1 k(Z, x)`` ``(M, B)``, and the prior variance ``(B,)`` that it leaves."""
        gram = self.kernel(self.inducing).to_dense()
        scale = gram.diagonal().mean()
        factor = torch.linalg.cholesky(gram + _JITTER * scale * torch.eye(len(gram), dtype=gram.dtype))
        found = torch.linalg.solve_triangular(factor, self.kernel(self.inducing, x).to_dense(), upper=False)
        return found, (self.kernel(x, diag=True) - found.square().sum(0)).clamp_min(0.0)

    def variational(self) -> tuple[Tensor, Tensor]:
        """Mean ``(M,)`` and Cholesky factor ``(M, M)`` of the precision of ``q(v)``."""
        factor = torch.linalg.cholesky(self.precision)
        return torch.cholesky_solve(self.shift[:, None], factor)[:, 0], factor

    def latent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance ``(B,)`` of the latent function under ``q``."""
        found, rest = self.weights(x)
        centre, factor = self.variational()
        spread = torch.linalg.solve_triangular(factor, found, upper=False).square().sum(0)
        return self.mean(x) + found.mT @ centre, rest + spread

    @torch.no_grad()
    def natural_step(self, rows: Tensor, rate: float) -> None:
        """Natural parameters towards their optimum for some rows, each counting for all (Wenzel et al., equations 8 to 10)."""
        x, sign = self.x[rows], self.sign[rows]
        found, rest = self.weights(x)
        centre, factor = self.variational()
        prior = self.mean(x)
        spread = torch.linalg.solve_triangular(factor, found, upper=False).square().sum(0)
        root = ((prior + found.mT @ centre).square() + rest + spread).sqrt().clamp_min(1e-6)
        omega = torch.tanh(0.5 * root) / (2.0 * root)
        times = len(self.sign) / len(rows)
        precision = torch.eye(len(centre), dtype=found.dtype) + times * (found * omega) @ found.mT
        shift = times * found @ (0.5 * sign - omega * prior)
        self.precision = (1.0 - rate) * self.precision + rate * precision
        self.shift = (1.0 - rate) * self.shift + rate * shift

    def bound(self, rows: Tensor) -> Tensor:
        """What a row contributes to the bound on the evidence, on average, at the best Polya-Gamma variables.

        The divergence of ``q(v)`` from the prior does not depend on hyperparameters and is left out.
        """
        mean, variance = self.latent(self.x[rows])
        root = (mean.square() + variance).clamp_min(1e-12).sqrt()
        return (0.5 * self.sign[rows] * mean - torch.nn.functional.softplus(root) + 0.5 * root).mean()


@dataclass(frozen=True)
class PolyaGamma(Method):
    """Minibatches until the time is spent, with a checkpoint every epoch.

    Attributes:
        num_inducing: Inducing inputs, by k-means++ among the rows.
        natural_rate: Share of the way to the optimum of a batch.
        learning_rate: Of Adam, for hyperparameters.
        batch_size: Rows in a step.
    """

    rulesets: tuple[str, ...] = (INFERENCE, END_TO_END)
    endless: bool = True
    num_inducing: int = 100
    natural_rate: float = 0.1
    learning_rate: float = 0.01
    batch_size: int = 1024

    @property
    def setup(self) -> str:
        return (
            f"Wenzel et al. (2019): logit, {self.num_inducing} inducing points by k-means++, natural gradients in closed form "
            f"({self.natural_rate:g}), Adam ({self.learning_rate:g}) for hyperparameters, batches of {self.batch_size:,} rows, "
            "two classes only; our own implementation; the kernel and its start are those of itergp"
        )

    @property
    def search(self) -> dict[str, Range]:
        return {
            "natural_rate": Range(0.01, 1.0),
            "learning_rate": Range(0.003, 0.1),
            "batch_size": Range(128, 2048, integer=True),
        }

    def refuses(self, ruleset: str, kind: str, num_rows: int, num_outcomes: int) -> str | None:
        reason = super().refuses(ruleset, kind, num_rows, num_outcomes)
        return reason or ("predicts two classes only" if num_outcomes > 2 else None)

    def fit(self, data: TrainingData, budget: Budget, callback: Callback) -> None:
        from sklearn.cluster import kmeans_plusplus

        torch.manual_seed(budget.seed)
        size = min(self.num_inducing, len(data.y))
        chosen = kmeans_plusplus(data.x.numpy(), size, random_state=budget.seed)[1]
        model = PolyaGammaGP(data, data.x[torch.from_numpy(chosen).long()])
        if data.given is None:
            start(model.kernel, model.x)
        learned = [] if data.given else list(model.parameters())
        optimizer = torch.optim.Adam(learned, lr=self.learning_rate) if learned else None
        probs, variance = _predictions(model, data)
        epoch = 0
        while True:
            for rows in torch.randperm(len(data.y)).split(self.batch_size):
                model.natural_step(rows, self.natural_rate)
                if optimizer is not None:
                    optimizer.zero_grad()
                    (-model.bound(rows)).backward()
                    optimizer.step()
            epoch += 1
            callback(probs, variance, epochs=epoch)


def _predictions(model: PolyaGammaGP, data: TrainingData) -> tuple[Predict, Predict]:
    """Probabilities, integrated as accurately as this package's own, and latent variances."""
    likelihood = make_likelihood(data)

    def probs(x: Tensor) -> Tensor:
        with torch.no_grad():
            mean, variance = model.latent(x.double())
            return outcome_probabilities(likelihood.predictive(mean[:, None], variance[:, None, None]), data)

    def variance(x: Tensor) -> Tensor:
        with torch.no_grad():
            return model.latent(x.double())[1]

    return probs, variance


METHODS: list[Method] = [
    PolyaGamma("Polya-Gamma SVGP 100", "Polya-Gamma SVGP"),
    PolyaGamma("Polya-Gamma SVGP 500", "Polya-Gamma SVGP", importance=2, num_inducing=500),
]
