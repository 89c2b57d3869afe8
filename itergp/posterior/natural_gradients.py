"""The variational posterior of few latent values by dense matrices and natural gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from itergp.likelihoods import LaplaceSite, Observations, VariationalSite
from itergp.likelihoods.base import node_offsets
from itergp.numerics.blocks import apply_blocks, curvature_root, psd_root
from itergp.operators import AbstractOperator
from itergp.posterior.dense import apply_kernels, dense_posterior, factorise, kernel_columns
from itergp.posterior.precision import LowRankPrecision, marginal_covariance

_MAX_STEPS = 60
_MAX_HALVINGS = 12
_LIFT = 4.0  # units of rounding, times the root of N
_WIDER, _RESPONSE = 1.01, 0.3  # the mean moves against a wider marginal, which leaves less than a third of its answer


@dataclass(frozen=True)
class GaussianSites:
    """What stands for the likelihood: ``exp(<b, f - m> - (f - m)^T W (f - m) / 2)`` for every row.

    Attributes:
        shift: b ``(N, C)``, float64.
        curvature: W ``(N, C, C)``, positive semi-definite, float64.
    """

    shift: Tensor
    curvature: Tensor

    def towards(self, other: GaussianSites, share: Tensor) -> GaussianSites:
        """A mixture of natural parameters, with shares ``(N,)`` of the other's."""
        shift = torch.lerp(self.shift, other.shift, share[:, None])
        return GaussianSites(shift, torch.lerp(self.curvature, other.curvature, share[:, None, None]))


@dataclass(frozen=True)
class DensePosterior:
    """The Gaussian posterior under Gaussian sites.

    Attributes:
        sites: The sites.
        weights: V ``(N, C)``, with mean ``m + K V``, float64.
        centred: ``K V``.
        precision: Every pseudo-observation as an action.
        marginals: Latent covariances ``(N, C, C)``, float64.
        bound: The evidence lower bound.
    """

    sites: GaussianSites
    weights: Tensor
    centred: Tensor
    precision: LowRankPrecision
    marginals: Tensor
    bound: float


@dataclass(frozen=True)
class DenseProblem:
    """A problem of few latent values.

    Attributes:
        kernel: K ``(C', N, N)``, or ``(1, N C, N C)`` where latent functions are coupled; float64.
        variances: Prior variances ``(N, C)``, or covariances ``(N, C, C)``, float64.
        mean: Prior mean ``(N, C)``, float64.
        observations: What was observed.
    """

    kernel: Tensor
    variances: Tensor
    mean: Tensor
    observations: Observations

    @classmethod
    def of(cls, operator: AbstractOperator, mean: Tensor, observations: Observations) -> DenseProblem:
        """The problem of an operator, in one pass of N columns; differentiable where its products are.

        The diagonal is lifted by what rounding of the entries may make indefinite.
        """
        size, dtype = mean.shape[0], mean.dtype
        coupled = operator.couples_latents
        eye = torch.eye(size * (mean.shape[1] if coupled else 1), dtype=dtype, device=mean.device)
        block = eye.view(size, mean.shape[1], -1).movedim(1, 0) if coupled else eye
        kernel = operator.matmul(block).double()
        if coupled:
            kernel = kernel.movedim(0, 1).reshape(1, eye.shape[0], eye.shape[0])
        kernel = 0.5 * (kernel + kernel.mT)
        diagonal = kernel.detach().diagonal(dim1=-2, dim2=-1)
        lift = _LIFT * torch.finfo(dtype).eps * size**0.5 * diagonal.clamp_min(0.0)
        kernel = kernel + torch.diag_embed(lift)
        own = kernel.diagonal(dim1=-2, dim2=-1)
        variances = _own_blocks(kernel[0], size) if coupled else own.mT.expand(mean.shape)
        return cls(kernel, variances, mean.double(), observations)

    def bound(self, weights: Tensor, curvature: Tensor, *, seed: int = 0) -> Tensor:
        """The evidence lower bound of ``N(m + K V, (K^{-1} + W)^{-1})`` with V and W held fixed; differentiable.

        Args:
            weights: V ``(N, C)``.
            curvature: W ``(N, C, C)``.
            seed: Of the samples that expectations under several latent functions are averages over.
        """
        root = curvature_root(curvature)
        _, factor = factorise(self.kernel, root)
        products = kernel_columns(self.kernel, root)
        whitened = torch.linalg.solve_triangular(factor.mT, products.flatten(0, 1), upper=True, left=False)
        marginals = marginal_covariance(self.variances, whitened.view_as(products))
        centred = apply_kernels(self.kernel, weights)
        mean = self.mean + centred
        nodes, node_weights = self.observations.standard_nodes(mean.detach(), seed)
        offsets = node_offsets(psd_root(marginals), nodes)
        fit = self.observations.expected_log_density(mean, offsets, node_weights).sum()
        trace = (curvature * marginals).sum()  # tr((I + B)^{-1} B) with B = H^T K H
        return fit - 0.5 * ((weights * centred).sum() - trace + 2.0 * factor.diagonal().log().sum())

    @torch.no_grad()
    def variational_posterior(self, start: GaussianSites | None, *, tolerance: float) -> DensePosterior | None:
        """Ascends the evidence lower bound by natural gradients until a step gains less than a tolerance.

        A full step replaces the sites by expected gradient and curvature under the present posterior (Khan & Lin 2017); it
        is shortened until the bound does not fall by more than the tolerance. A step costs a Cholesky factor and two products
        of size N C.

        Args:
            start: Sites of a similar problem, or None for those at the prior mean.
            tolerance: Of the bound, in nats per row.

        Returns:
            The posterior, or None if no bound is finite or steps do not suffice.
        """
        enough = tolerance * self.mean.shape[0]
        current = None if start is None else self.posterior(start)
        current = current or self.posterior(self._at_prior_mean())
        if current is None:
            return None
        for _ in range(_MAX_STEPS):
            following = self._ascend(current, enough)
            if following is None:  # as high as samples of several latent functions let it come
                return current
            gain, current = following.bound - current.bound, following
            if gain <= enough:
                return current
        return None

    def posterior(self, sites: GaussianSites) -> DensePosterior | None:
        """The posterior under sites; None if it, or its bound, is not finite."""
        root = curvature_root(sites.curvature)
        if not bool(torch.isfinite(root).all() & torch.isfinite(sites.shift).all()):
            return None
        precision, marginals = dense_posterior(self.kernel, root, self.variances)
        seen = apply_kernels(self.kernel, sites.shift)
        actions = precision.actions.flatten(0, 1)
        solved = torch.cholesky_solve(actions.mT @ seen.reshape(-1, 1), precision.factor)
        weights = sites.shift - (actions @ solved).view_as(seen)
        centred = apply_kernels(self.kernel, weights)
        fit = VariationalSite.from_covariance(self.observations, marginals).log_density(self.mean + centred)
        trace = (sites.curvature * marginals).sum()  # tr((I + B)^{-1} B) with B = A^T K A
        divergence = (weights * centred).sum() - trace + 2.0 * precision.factor.diagonal().log().sum()
        bound = fit - 0.5 * float(divergence)
        if not torch.isfinite(torch.tensor(bound)):
            return None
        return DensePosterior(sites, weights, centred, precision, marginals, bound)

    # ------------------------------------------------------------------ inside
    def _at_prior_mean(self) -> GaussianSites:
        gradient, curvature = LaplaceSite(self.observations).derivatives(self.mean)
        return GaussianSites(gradient, curvature)

    def _ascend(self, current: DensePosterior, enough: float) -> DensePosterior | None:
        """The longest step, of halvings, that does not lower the bound by more than is enough; None if there is none."""
        f = self.mean + current.centred
        gradient, curvature = self._expected(f, current.marginals)
        target = GaussianSites(gradient + apply_blocks(curvature, current.centred), curvature)
        share = self._shares(f, current.marginals, curvature)
        for _ in range(_MAX_HALVINGS):
            trial = self.posterior(current.sites.towards(target, share))
            if trial is not None and trial.bound >= current.bound - enough:
                return trial
            share = 0.5 * share
        return None

    def _expected(self, f: Tensor, marginals: Tensor) -> tuple[Tensor, Tensor]:
        site = VariationalSite.from_covariance(self.observations, marginals)
        gradient, curvature = site.derivatives(f)
        return gradient, site.covariance_curvature(f, curvature)

    def _shares(self, f: Tensor, marginals: Tensor, curvature: Tensor) -> Tensor:
        """How far each row may go ``(N,)``: ``1 / (1 + r v^2 dW / dv)``.

        Under ``exp(f)`` curvature grows like ``exp(v / 2)``, and a row whose variance falls as its curvature grows would
        overshoot.
        """
        if self.observations.likelihood.bounded_curvature:
            return f.new_ones(f.shape[0])
        change = self._expected(f, _WIDER * marginals)[1] - curvature
        response = (change * marginals.mT).sum((-2, -1)) / math.log(_WIDER)
        return 1.0 / (1.0 + _RESPONSE * response.nan_to_num(posinf=0.0).clamp_min(0.0))


def _own_blocks(kernel: Tensor, size: int) -> Tensor:
    """Covariances ``(N, C, C)`` of each row's latent values, from ``(N C, N C)``."""
    latents = kernel.shape[0] // size
    return kernel.view(size, latents, size, latents).diagonal(dim1=0, dim2=2).movedim(-1, 0)
