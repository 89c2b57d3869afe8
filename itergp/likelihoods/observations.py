"""``Observations``: targets, their weights, and the likelihood that relates them to latent values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from itergp.likelihoods.base import Likelihood
from itergp.numerics.blocks import Root, apply_blocks, block_root


@dataclass(frozen=True)
class Observations:
    """What was observed at N rows: ``sum_n w_n log p(y_n | f_n)`` and its derivatives.

    A row of weight 0 says nothing about its latent values: gradient and curvature vanish there. That is how missing
    targets are treated.

    Attributes:
        likelihood: The likelihood.
        targets: Validated targets, N rows.
        sample_weight: Weights of the rows ``(N,)``, or None when all are 1.
        first_row: Number of the first row when these are consecutive rows of more: samples are then those of the same rows
            among all.
    """

    likelihood: Likelihood
    targets: Tensor
    sample_weight: Tensor | None = None
    first_row: int = 0

    @property
    def num_rows(self) -> int:
        """N."""
        return self.targets.shape[0]

    @property
    def total_weight(self) -> float:
        """Sum of the weights; N when all are 1."""
        return float(self.num_rows) if self.sample_weight is None else float(self.sample_weight.double().sum())

    def take(self, rows: Tensor) -> Observations:
        """The observations of some rows."""
        weight = None if self.sample_weight is None else self.sample_weight[rows]
        return replace(self, likelihood=self.likelihood.take(rows), targets=self.targets[rows], sample_weight=weight)

    def part(self, start: int, count: int) -> Observations:
        """Consecutive rows, with the samples they have among all."""
        rows = slice(start, start + count)
        weight = None if self.sample_weight is None else self.sample_weight[rows]
        likelihood = self.likelihood.take(rows)
        return replace(self, likelihood=likelihood, targets=self.targets[rows], sample_weight=weight, first_row=start)

    def standard_nodes(self, like: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
        """``Likelihood.standard_nodes`` for means ``(N, C)``; those of a part do not depend on where it was divided."""
        return self.likelihood.standard_nodes(like, seed, self.first_row)

    def log_density(self, f: Tensor) -> Tensor:
        """``w_n log p(y_n | f_n)`` ``(..., N)`` at latent values ``(..., N, C)``."""
        return self._weigh(self.likelihood.log_density(f, self.targets))

    def derivatives(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient ``(..., N, C)`` and curvature ``(..., N, C, C)`` at ``f``."""
        gradient, curvature = self.likelihood.derivatives(f, self.targets)
        return self._weigh(gradient, 1), self._weigh(curvature, 2)

    def curvature_product(self, f: Tensor, curvature: Tensor) -> Callable[[Tensor], Tensor]:
        """Multiplication of vectors ``(N, C)`` by the curvature ``(N, C, C)`` that ``derivatives`` gave at ``f``."""
        structure = self._structured_root(f)
        if structure is None:
            return partial(apply_blocks, curvature)
        apply, transpose = structure
        return lambda vector: apply(transpose(vector))

    def curvature_root(self, f: Tensor, curvature: Tensor) -> Root:
        """H and ``H^T`` with ``H H^T`` the curvature ``(N, C, C)`` that ``derivatives`` gave at ``f``."""
        return self._structured_root(f) or block_root(curvature)

    def _structured_root(self, f: Tensor) -> Root | None:
        structure = self.likelihood.structured_root(f)
        if structure is None or self.sample_weight is None:
            return structure
        apply, transpose = structure
        scale = self.sample_weight.to(f).sqrt().unsqueeze(-1)
        return lambda vector: scale * apply(vector), lambda vector: transpose(scale * vector)

    def expected_log_density(self, mean: Tensor, offsets: Tensor, node_weights: Tensor) -> Tensor:
        """``w_n E[log p(y_n | f_n)]`` ``(N,)``; arguments as in ``Likelihood.expected_log_density``."""
        return self._weigh(self.likelihood.expected_log_density(mean, offsets, node_weights, self.targets))

    def expected_derivatives(self, mean: Tensor, offsets: Tensor, node_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Expected gradient ``(N, C)`` and curvature ``(N, C, C)``, weighted."""
        gradient, curvature = self.likelihood.expected_derivatives(mean, offsets, node_weights, self.targets)
        return self._weigh(gradient, 1), self._weigh(curvature, 2)

    def predictive_log_density(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """``w_n log E[p(y_n | f_n)]`` ``(N,)`` for latent marginals ``(N, C)`` and ``(N, C, C)``."""
        return self._weigh(self.likelihood.predictive_log_density(mean, covariance, self.targets))

    def _weigh(self, values: Tensor, trailing: int = 0) -> Tensor:
        if self.sample_weight is None:
            return values
        return values * self.sample_weight.to(values.dtype)[(..., *(None,) * trailing)]
