"""Sites: the local Gaussian view of the likelihood at the current latent values.

A Laplace site takes log-density, gradient and curvature at a point; a variational site takes their expectations under
the current Gaussian marginals (Opper & Archambeau 2009; Khan & Lin 2017). Solvers see no difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from itergp.likelihoods.base import Likelihood, node_offsets
from itergp.likelihoods.observations import Observations
from itergp.likelihoods.sampled import few_samples
from itergp.numerics.blocks import Root, apply_blocks, block_root, psd_root


@dataclass(frozen=True)
class LaplaceSite:
    """Log-density, gradient and curvature at the latent values themselves.

    Attributes:
        observations: What was observed.
    """

    observations: Observations
    name: str = field(default="laplace", init=False)

    @property
    def averages(self) -> bool:
        """Whether gradient and curvature are expectations."""
        return False

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood."""
        return self.observations.likelihood

    @property
    def log_concave(self) -> bool:
        """Whether the objective is convex."""
        return self.likelihood.log_concave

    @property
    def smooth(self) -> bool:
        """Whether the objective has second derivatives."""
        return self.likelihood.smooth

    def log_density(self, f: Tensor) -> float:
        """``sum_n log p(y_n | f_n)``, summed in float64. ``f`` is ``(N, C)``."""
        return float(self.observations.log_density(f.double()).sum())

    def derivatives(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient ``(N, C)`` and curvature ``(N, C, C)`` at ``f``."""
        return self.observations.derivatives(f)

    def evaluate(self, f: Tensor) -> tuple[float, Tensor, Tensor]:
        """``log_density`` and ``derivatives``."""
        return self.log_density(f), *self.derivatives(f)

    def curvature_product(self, f: Tensor, curvature: Tensor) -> Callable[[Tensor], Tensor]:
        """Multiplication of vectors ``(N, C)`` by the curvature at ``f``."""
        return self.observations.curvature_product(f, curvature)

    def covariance_curvature(self, f: Tensor, curvature: Tensor | None = None) -> Tensor:
        """The curvature ``(N, C, C)`` that a covariance is conditioned with: that of ``derivatives`` unless it majorises."""
        if curvature is None or self.likelihood.majorises:
            curvature = self.observations.covariance_curvature(f)
        return curvature

    def curvature_root(self, f: Tensor, curvature: Tensor) -> Root:
        """H and ``H^T`` with ``H H^T`` the curvature at ``f``."""
        return self.observations.curvature_root(f, curvature)


@dataclass(frozen=True)
class VariationalSite:
    """Expectations under ``f_n ~ N(mean_n, root_n root_n^T)`` with fixed roots, as functions of the mean.

    With fixed nodes, the expected log-density is itself a smooth function of the mean, concave when the likelihood is
    log-concave, so the solvers, the line search and the certificate apply to it unchanged.

    Attributes:
        observations: What was observed.
        offsets: ``root_n @ node_s`` ``(S, N, C)``: latent values are mean plus offset.
        weights: Weights of the nodes ``(S,)``.
        few: Whether wide marginals keep their few samples, for what is found again from more.
        steer: Gives the curvature that a covariance is conditioned with, from mean and expected curvature, where it should be
            another one for now.
    """

    observations: Observations
    offsets: Tensor
    weights: Tensor
    few: bool = False
    steer: Callable[[Tensor, Tensor], Tensor] | None = None
    name: str = field(default="variational", init=False)

    @classmethod
    def from_covariance(cls, observations: Observations, covariance: Tensor, seed: int = 0) -> VariationalSite:
        """The site for marginal covariances ``(N, C, C)``; the seed is that of the samples for C > 1."""
        nodes, weights = observations.standard_nodes(covariance[..., 0], seed)
        return cls(observations, node_offsets(psd_root(covariance), nodes), weights)

    @property
    def averages(self) -> bool:
        """Whether gradient and curvature are expectations."""
        return True

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood."""
        return self.observations.likelihood

    @property
    def log_concave(self) -> bool:
        """Whether the objective is convex."""
        return self.likelihood.log_concave

    @property
    def smooth(self) -> bool:
        """It is: an expectation has no kinks."""
        return True

    def log_density(self, f: Tensor) -> float:
        """``sum_n E[log p(y_n | f_n)]``, summed in float64. ``f`` is the mean ``(N, C)``."""
        weights = self.weights.double()
        with few_samples(self.few):
            return float(self.observations.expected_log_density(f.double(), self.offsets, weights).sum())

    def derivatives(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Expected gradient ``(N, C)`` and curvature ``(N, C, C)``."""
        with few_samples(self.few):
            return self.observations.expected_derivatives(f, self.offsets, self.weights.to(f))

    def evaluate(self, f: Tensor) -> tuple[float, Tensor, Tensor]:
        """``log_density`` and ``derivatives``, from the same latent values where nodes are samples."""
        if not self.likelihood.samples:
            return self.log_density(f), *self.derivatives(f)
        with few_samples(self.few):
            terms, gradient, curvature = self.observations.expected_terms(f, self.offsets, self.weights.to(f))
        return float(terms.sum()), gradient, curvature

    def covariance_curvature(self, f: Tensor, curvature: Tensor | None = None) -> Tensor:
        """The expected curvature ``(N, C, C)`` that a covariance is conditioned with, given that of ``derivatives`` at ``f``.

        Where expectations are averages over samples, over more of them: see ``Likelihood.expected_curvature``.
        """
        if curvature is None or f.shape[-1] > 1 or self.likelihood.majorises:
            curvature = self.observations.expected_curvature(f, self.offsets, self.weights.to(f))
        return curvature if self.steer is None else self.steer(f, curvature)

    def curvature_product(self, f: Tensor, curvature: Tensor) -> Callable[[Tensor], Tensor]:
        """Multiplication of vectors ``(N, C)`` by the expected curvature at ``f``."""
        return partial(apply_blocks, curvature)

    def curvature_root(self, f: Tensor, curvature: Tensor) -> Root:
        """H and ``H^T`` with ``H H^T`` the expected curvature at ``f``."""
        return block_root(curvature)


Site = LaplaceSite | VariationalSite
