"""``Problem``: everything a solver needs to know, and nothing of the model."""

from __future__ import annotations

import math
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

    def evaluate(self, f: Tensor) -> tuple[float, Tensor, Tensor]:
        """The site's log-density of all rows, in float64, its gradient ``(N, C)`` and curvature ``(N, C, C)`` at f."""
        log_density, gradient, curvature = self.site.evaluate(f)
        return self.rows.all_reduce_sum(log_density), gradient, curvature

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
        """What rounding of the kernel's entries, and errors of products, may take from ``<R, K R>``, for R ``(N, C)``.

        R can be large where K says next to nothing, and a singular K is indefinite by rounding.
        """
        size = self.rows.all_reduce_sum(residual.double().square().sum(0))
        rounding = self._rounding(residual.dtype, size)
        return rounding if self._product_error is None else rounding + float((self._product_error * size.cpu()).sum())

    def distance_of_products(self, norm_squared: float, weights: Tensor, curvature: Tensor) -> float:
        """A bound q on the squared distance to the mode of K itself, from one on that of what products are of.

        ``f = m + K V`` differs from the latent values that products gave by at most ``d = e |V|``, e the ``product_error``.
        For the loss tilted by R, of which V is the gradient at those, the duality gap of V is the loss's Bregman divergence
        between the two, at most ``b^2 / 2 = w d^2 / 2`` with w the largest curvature between them. The tilt moves the mode by
        no more than ``a = |R|_K``, and by strong convexity the gap is at most half, and the squared distance no more than
        ``q = (a + b)^2``. Over a change d, curvature grows by a factor of no more than ``exp(2 d)`` (generalised
        self-concordance of logistic and log-linear models: Bach 2010).

        Args:
            norm_squared: ``a^2``.
            weights: V ``(N, C)``.
            curvature: W ``(N, C, C)``.
        """
        if self._product_error is None or norm_squared == math.inf:
            return norm_squared
        size = self.rows.all_reduce_sum(weights.double().square().sum(0)).cpu()
        moved = float((self._product_error.square() * size).sum().sqrt())
        largest = float(self.rows.all_reduce_max(torch.linalg.matrix_norm(curvature.double()).amax()))
        drift = moved * (largest * math.exp(min(2.0 * moved, 300.0))) ** 0.5
        return (max(norm_squared, 0.0) ** 0.5 + drift) ** 2

    @cached_property
    def _product_error(self) -> Tensor | None:
        """Of every latent function ``(C,)``, float64."""
        found = self.operator.product_error
        return None if found is None else found.double().cpu().expand(self.num_latents)

    def _rounding(self, dtype: torch.dtype, size: Tensor) -> float:
        if self.operator.couples_latents:  # as many entries again for every other latent function
            size = self.num_latents * size
        return _ENTRIES * torch.finfo(dtype).eps * float((self._largest_variance * size).sum())

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
