"""``Problem``: everything a solver needs to know, and nothing of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from itergp.likelihoods import Likelihood, Site
from itergp.operators import AbstractOperator, KernelOperator
from itergp.parallel import RowPartition

_ENTRIES = 4.0  # units of rounding by which an entry of the kernel may be wrong


@dataclass(frozen=True)
class Problem:
    """Minimise ``Psi(f) = -log p(y | f) + 1/2 (f - m)^T K^{-1} (f - m)`` over ``f = m + K V``.

    Attributes:
        mean: Prior mean ``(N, C)``.
        operator: The prior covariance ``K``.
        site: Laplace or variational view of likelihood and targets.
    """

    mean: Tensor
    operator: AbstractOperator
    site: Site

    @property
    def num_rows(self) -> int:
        """N, those of all processes."""
        return self.operator.num_rows

    @property
    def kernel_operator(self) -> KernelOperator:
        """The operator where kernel entries are asked of it.

        Raises:
            InputError: If it is of a kind that has products only.
        """
        return KernelOperator.require(self.operator)

    @property
    def rows(self) -> RowPartition:
        """Which of them are here; everything with one entry per row has the own rows only."""
        return self.operator.rows

    @property
    def num_latents(self) -> int:
        """C."""
        return self.mean.shape[1]

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood behind the site."""
        return self.site.likelihood

    def with_site(self, site: Site) -> Problem:
        """The same problem seen through another site."""
        return replace(self, site=site)

    def inner(self, first: Tensor, second: Tensor) -> float:
        """Inner product over all rows, accumulated in float64."""
        return self.rows.all_reduce_sum(inner(first, second))

    def log_density(self, f: Tensor) -> float:
        """The site's log-density of all rows, in float64."""
        return self.rows.all_reduce_sum(self.site.log_density(f))

    def objective(self, f: Tensor, weights: Tensor) -> float:
        """``Psi`` at ``f = m + K V``, in float64; the quadratic term is ``<V, f - m> / 2``."""
        return -self.log_density(f) + 0.5 * self.inner(weights, f - self.mean)

    def resolution(self, f: Tensor, gradient: Tensor, objective: float, curvature: Tensor | None = None) -> float:
        """Changes of the objective below this are rounding, in nats: of f in its dtype, and of the float64 sum over rows.

        With the curvature ``(N, C, C)`` also of the terms of a row's log-density, which are far larger than their sum where
        curvature is large: ``y f - exp(f)`` of a count of a million.
        """
        of_latent = torch.finfo(f.dtype).eps * self._norm(f * gradient)
        terms = 0.0 if curvature is None else self._norm(f * curvature.diagonal(dim1=-2, dim2=-1))
        return 4.0 * (of_latent + torch.finfo(torch.float64).eps * max(1.0, abs(objective), terms))

    def _norm(self, values: Tensor) -> float:
        return self.rows.all_reduce_sum(float(values.double().square().sum())) ** 0.5

    def entry_rounding(self, residual: Tensor) -> float:
        """What rounding of the kernel's entries may take from ``<R, K R>``, for R ``(N, C)``.

        R can be large where K says next to nothing, and a singular K is indefinite by rounding.
        """
        size = self.rows.all_reduce_sum(residual.double().square().sum(0))
        if self.operator.couples_latents:  # as many entries again for every other latent function
            size = self.num_latents * size
        return _ENTRIES * torch.finfo(residual.dtype).eps * float((self._largest_variance * size).sum())

    @cached_property
    def _largest_variance(self) -> Tensor:
        """Of all rows, for every latent function ``(C,)``."""
        return self.rows.all_reduce_max(self.prior_variance().amax(0).double())

    def prior_variance(self) -> Tensor:
        """``k_c(x_n, x_n)`` at the training inputs, ``(N, C)``."""
        return self.operator.diagonal().detach().mT.expand(self.mean.shape)

    def prior_marginals(self) -> Tensor:
        """``prior_variance``, or covariances ``(N, C, C)`` where latent functions are coupled."""
        operator = self.operator
        return operator.row_covariance().detach() if operator.couples_latents else self.prior_variance()


def inner(first: Tensor, second: Tensor) -> float:
    """Inner product accumulated in float64."""
    return float((first * second).sum(dtype=torch.float64))
