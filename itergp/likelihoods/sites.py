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
from itergp.numerics.blocks import Root, apply_blocks, block_root, psd_root

_CURVATURE_SEEDS = range(100, 104)


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

    def log_density(self, f: Tensor) -> float:
        """``sum_n log p(y_n | f_n)``, summed in float64. ``f`` is ``(N, C)``."""
        return float(self.observations.log_density(f.double()).sum())

    def derivatives(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient ``(N, C)`` and curvature ``(N, C, C)`` at ``f``."""
        return self.observations.derivatives(f)

    def curvature_product(self, f: Tensor, curvature: Tensor) -> Callable[[Tensor], Tensor]:
        """Multiplication of vectors ``(N, C)`` by the curvature at ``f``."""
        return self.observations.curvature_product(f, curvature)

    def covariance_curvature(self, f: Tensor, curvature: Tensor) -> Tensor:
        """The curvature ``(N, C, C)`` that a covariance is conditioned with: that of ``derivatives``."""
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
        root: Roots of the marginal covariances ``(N, C, C)``, if other nodes may be asked for.
        steer: Gives the curvature that a covariance is conditioned with, from mean and expected curvature, where it should be
            another one for now.
    """

    observations: Observations
    offsets: Tensor
    weights: Tensor
    root: Tensor | None = None
    steer: Callable[[Tensor, Tensor], Tensor] | None = None
    name: str = field(default="variational", init=False)

    @classmethod
    def from_covariance(cls, observations: Observations, covariance: Tensor, seed: int = 0) -> VariationalSite:
        """The site for marginal covariances ``(N, C, C)``; the seed is that of the samples for C > 1."""
        nodes, weights = observations.standard_nodes(covariance[..., 0], seed)
        root = psd_root(covariance)
        return cls(observations, node_offsets(root, nodes), weights, root)

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

    def log_density(self, f: Tensor) -> float:
        """``sum_n E[log p(y_n | f_n)]``, summed in float64. ``f`` is the mean ``(N, C)``."""
        weights = self.weights.double()
        return float(self.observations.expected_log_density(f.double(), self.offsets, weights).sum())

    def derivatives(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Expected gradient ``(N, C)`` and curvature ``(N, C, C)``."""
        return self.observations.expected_derivatives(f, self.offsets, self.weights.to(f))

    def covariance_curvature(self, f: Tensor, curvature: Tensor) -> Tensor:
        """The expected curvature ``(N, C, C)`` that a covariance is conditioned with, given that of ``derivatives`` at ``f``.

        Where expectations are averages over samples, over many more of them. A row that is almost certain has curvature where
        its latent values come near a boundary, which few samples find: from few, curvature is anything between nothing and
        much.
        """
        if f.shape[-1] > 1 and self.root is not None:
            total, root = curvature.clone(), self.root.to(f)
            for seed in _CURVATURE_SEEDS:
                total += self._curvature_from(f, root, seed)
            curvature = total / (1 + len(_CURVATURE_SEEDS))
        return curvature if self.steer is None else self.steer(f, curvature)

    def _curvature_from(self, f: Tensor, root: Tensor, seed: int) -> Tensor:
        """Average over other samples ``(N, C, C)``; by itself, so that they are gone before the next are drawn."""
        nodes, weights = self.observations.standard_nodes(f, seed)
        offsets = node_offsets(root, nodes)
        del nodes  # as large as the offsets
        return self.observations.expected_derivatives(f, offsets, weights.to(f))[1]

    def curvature_product(self, f: Tensor, curvature: Tensor) -> Callable[[Tensor], Tensor]:
        """Multiplication of vectors ``(N, C)`` by the expected curvature at ``f``."""
        return partial(apply_blocks, curvature)

    def curvature_root(self, f: Tensor, curvature: Tensor) -> Root:
        """H and ``H^T`` with ``H H^T`` the expected curvature at ``f``."""
        return block_root(curvature)


Site = LaplaceSite | VariationalSite
