"""The variational posterior of few latent values by dense matrices and natural gradients."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from itergp.likelihoods import LaplaceSite, Observations, Site, VariationalSite
from itergp.likelihoods.base import node_offsets
from itergp.numerics.blocks import apply_blocks, curvature_root, psd_root
from itergp.numerics.fixed_point import AndersonExtrapolation
from itergp.operators import AbstractOperator
from itergp.posterior.dense import apply_kernels, couples, factorise, kernel_columns
from itergp.posterior.precision import is_negative, marginal_covariance

DENSE_VALUES = 1024  # latent values N C whose posterior dense matrices find in less time than kernel passes
DENSE_SHARE = 0.01  # of a solver's tolerance, to which they find it
_MAX_STEPS = 200  # where latent functions differ in scale, a step can leave nine tenths of what is missing
_MAX_HALVINGS = 12
_NEAR = 0.1  # nats per row that a step gains: nearer, the last steps tell of the next
_ROUNDING = 1e-10  # of an eigenvalue to the largest
_LIFT = 4.0  # units of rounding, times the root of N
_WIDER, _RESPONSE = 1.01, 0.3  # the mean moves against a wider marginal, which leaves less than a third of its answer


@dataclass(frozen=True)
class GaussianSites:
    """What stands for the likelihood: ``exp(<b, f - m> - (f - m)^T W (f - m) / 2)`` for every row.

    Attributes:
        shift: b ``(N, C)``, float64.
        curvature: W ``(N, C, C)``, positive semi-definite, float64.
        majoriser: Takes the place of W in the mean ``(N, C, C)``, where the likelihood majorises; otherwise None.
    """

    shift: Tensor
    curvature: Tensor
    majoriser: Tensor | None = None

    @property
    def of_mean(self) -> Tensor:
        """The curvature ``(N, C, C)`` that the shift belongs to."""
        return self.curvature if self.majoriser is None else self.majoriser

    def with_mean(self, shift: Tensor, curvature: Tensor) -> GaussianSites:
        """Sites with another shift, and another curvature that it belongs to."""
        if self.majoriser is None:
            return GaussianSites(shift, curvature)
        return GaussianSites(shift, self.curvature, curvature)

    def towards(self, other: GaussianSites, share: Tensor) -> GaussianSites:
        """A mixture of natural parameters, with shares ``(N,)`` of the other's; a covariance of its own is the other's."""
        shift = torch.lerp(self.shift, other.shift, share[:, None])
        return other.with_mean(shift, torch.lerp(self.of_mean, other.of_mean, share[:, None, None]))

    def flat(self) -> Tensor:
        """All natural parameters of the mean ``(N C + N C^2,)``."""
        return torch.cat([self.shift.flatten(), self.of_mean.flatten()])

    def at(self, flat: Tensor) -> GaussianSites | None:
        """Sites of other natural parameters, None if a curvature is not positive semi-definite."""
        shift, curvature = flat.split([self.shift.numel(), self.of_mean.numel()])
        curvature = curvature.view_as(self.of_mean)
        if not bool(torch.isfinite(flat).all()):
            return None
        values = torch.linalg.eigvalsh(curvature)  # that of softmax is singular
        if bool((values[..., 0] < -_ROUNDING * values[..., -1]).any()):
            return None
        return self.with_mean(shift.view_as(self.shift), curvature)


@dataclass(frozen=True)
class DensePosterior:
    """The Gaussian posterior under Gaussian sites.

    Attributes:
        sites: The sites.
        weights: V ``(N, C)``, with mean ``m + K V``, float64.
        centred: ``K V``.
        marginals: Latent covariances ``(N, C, C)``, float64.
        bound: The evidence lower bound.
    """

    sites: GaussianSites
    weights: Tensor
    centred: Tensor
    marginals: Tensor
    bound: float


@dataclass(frozen=True)
class _Part:
    """Latent functions that neither prior nor sites couple to others: one, or all together.

    Attributes:
        latents: Their numbers, C' of them.
        root: H ``(N, C', C')``, of their curvature.
        factor: L ``(N C', N C')`` with ``L L^T = I + H^T K H``.
        whitened: ``K H L^{-T}`` ``(N, C', N C')``.
    """

    latents: slice
    root: Tensor
    factor: Tensor
    whitened: Tensor

    def weights(self, shift: Tensor, products: Tensor) -> Tensor:
        """``b - H L^{-T} L^{-1} H^T K b`` from b and ``K b``, both ``(N, C)``."""
        shift, products = shift[:, self.latents], products[:, self.latents]
        seen = apply_blocks(self.root.mT, products)
        return shift - apply_blocks(self.root, torch.cholesky_solve(seen.reshape(-1, 1), self.factor).view_as(seen))


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
        """The evidence lower bound of ``N(m + K V, (K^{-1} + W)^{-1})`` with V held fixed; differentiable.

        Args:
            weights: V ``(N, C)``.
            curvature: W ``(N, C, C)``, which derivatives go through too.
            seed: Of the samples that expectations under several latent functions are averages over.
        """
        parts = self._parts(curvature)
        marginals = self._marginals(parts)
        centred = apply_kernels(self.kernel, weights)
        mean = self.mean + centred
        nodes, node_weights = self.observations.standard_nodes(mean.detach(), seed)
        offsets = node_offsets(psd_root(marginals), nodes)
        fit = self.observations.expected_log_density(mean, offsets, node_weights).sum()
        trace = (curvature * marginals).sum()  # tr((I + B)^{-1} B) with B = H^T K H
        return fit - 0.5 * ((weights * centred).sum() - trace + _log_determinant(parts))

    def expected_curvature(self, posterior: DensePosterior) -> Tensor:
        """W ``(N, C, C)`` under a posterior, differentiable in the parameters of the likelihood."""
        site = VariationalSite.from_covariance(self.observations, posterior.marginals)
        with torch.enable_grad():
            return self._sites(site, posterior.centred).curvature

    @torch.no_grad()
    def variational_posterior(
        self, start: GaussianSites | None, *, tolerance: float, ended: Callable[[], bool] = lambda: False
    ) -> DensePosterior | None:
        """Ascends the evidence lower bound by natural gradients until a step gains less than a tolerance.

        A full step replaces the sites by expected gradient and curvature under the present posterior (Khan & Lin 2017). Where
        curvature shrinks variances that made it, such steps oscillate for long: the next sites are first extrapolated from the
        last steps, and where the bound then falls, the step is taken as it is, shortened until the bound does not fall by more
        than the tolerance. A step costs a Cholesky factor and a triangular solve of size N C.

        Args:
            start: Sites of a similar problem, or None for those at the prior mean.
            tolerance: Of the bound, in nats per row.
            ended: Whether there is no time for another step.

        Returns:
            The posterior, or None if no bound is finite, or steps, digits or time do not suffice.
        """
        enough = tolerance * self.mean.shape[0]
        current = None if start is None else self.posterior(start)
        current = current or self.posterior(self._at_prior_mean())
        if current is None:
            return None
        extrapolation, near = AndersonExtrapolation(), start is not None
        for _ in range(_MAX_STEPS):
            if ended():
                return None
            target = self._target(current)
            ahead = self._extrapolated(current, target, enough, extrapolation) if near else None
            following = ahead or self._ascend(current, target, enough)
            if following is None:  # as high as samples of several latent functions let it come, or digits do not tell
                return current if near and math.ulp(current.bound) < enough else None
            gain, current = following.bound - current.bound, following
            if ahead is None and gain <= enough:  # only a step of its own can tell the top
                return current
            near = gain < _NEAR * self.mean.shape[0]
        return None

    def posterior(self, sites: GaussianSites) -> DensePosterior | None:
        """The posterior under sites; None if it, or its bound, is not finite."""
        if not bool(torch.isfinite(sites.flat()).all()):
            return None
        parts = of_mean = self._parts(sites.curvature)
        if any(is_negative(self._variances(part), part.whitened, self.variances.dtype) for part in parts):
            raise torch.linalg.LinAlgError("a posterior variance is negative")
        marginals, products = self._marginals(parts), apply_kernels(self.kernel, sites.shift)
        if sites.majoriser is not None:
            of_mean = self._parts(sites.majoriser)
        weights = torch.cat([part.weights(sites.shift, products) for part in of_mean], -1)
        centred = apply_kernels(self.kernel, weights)
        fit = VariationalSite.from_covariance(self.observations, marginals).log_density(self.mean + centred)
        trace = (sites.curvature * marginals).sum()  # tr((I + B)^{-1} B) with B = H^T K H
        divergence = (weights * centred).sum() - trace + _log_determinant(parts)
        bound = fit - 0.5 * float(divergence)
        if not torch.isfinite(torch.tensor(bound)):
            return None
        return DensePosterior(sites, weights, centred, marginals, bound)

    # ------------------------------------------------------------------ inside
    def _at_prior_mean(self) -> GaussianSites:
        return self._sites(LaplaceSite(self.observations), torch.zeros_like(self.mean))

    def _sites(self, site: Site, centred: Tensor) -> GaussianSites:
        """Sites with the gradient and curvature of a likelihood's at latent values ``m + K V``, given ``K V`` ``(N, C)``."""
        f = self.mean + centred
        gradient, curvature = site.derivatives(f)
        majoriser = curvature if self.observations.likelihood.majorises else None
        return GaussianSites(
            gradient + apply_blocks(curvature, centred), site.covariance_curvature(f, curvature), majoriser
        )

    def _parts(self, curvature: Tensor) -> list[_Part]:
        """The problem divided into latent functions that are independent under prior and sites, or as a whole."""
        size, latents = curvature.shape[:2]
        own = curvature.diagonal(dim1=-2, dim2=-1)
        if couples(self.kernel, size) or bool((curvature != torch.diag_embed(own)).any()):
            return [_part(slice(None), self.kernel, curvature_root(curvature))]
        seen = own > 0.0  # elsewhere a root has no derivative
        kernel, roots = self.kernel.expand(latents, -1, -1), torch.where(seen, own, 1.0).sqrt() * seen
        return [_part(slice(c, c + 1), kernel[c : c + 1], roots[:, c, None, None]) for c in range(latents)]

    def _variances(self, part: _Part) -> Tensor:
        return self.variances if self.variances.dim() == 3 else self.variances[:, part.latents]

    def _marginals(self, parts: list[_Part]) -> Tensor:
        """Latent covariances ``(N, C, C)``."""
        found = [marginal_covariance(self._variances(part), part.whitened) for part in parts]
        return found[0] if len(found) == 1 else torch.diag_embed(torch.cat([one[..., 0] for one in found], -1))

    def _extrapolated(
        self, current: DensePosterior, target: GaussianSites, enough: float, extrapolation: AndersonExtrapolation
    ) -> DensePosterior | None:
        """Under sites that steps so far lead to, if the bound is higher by more than is enough."""
        here = current.sites.flat()
        ahead = extrapolation.after(here, target.flat() - here)
        sites = None if ahead is None else target.at(ahead)
        with contextlib.suppress(torch.linalg.LinAlgError):  # of curvature that no step of its own would come to
            trial = None if sites is None else self.posterior(sites)
            if trial is not None and trial.bound > current.bound + enough:
                return trial
        extrapolation.restart()
        return None

    def _ascend(self, current: DensePosterior, target: GaussianSites, enough: float) -> DensePosterior | None:
        """The longest step, of halvings, that does not lower the bound by more than is enough; None if there is none."""
        share = self._shares(current, target.curvature)
        for _ in range(_MAX_HALVINGS):
            trial = self.posterior(current.sites.towards(target, share))
            if trial is not None and trial.bound >= current.bound - enough:
                return trial
            share = 0.5 * share
        return None

    def _target(self, current: DensePosterior) -> GaussianSites:
        return self._expected(current.centred, current.marginals)

    def _expected(self, centred: Tensor, marginals: Tensor) -> GaussianSites:
        return self._sites(VariationalSite.from_covariance(self.observations, marginals), centred)

    def _shares(self, current: DensePosterior, curvature: Tensor) -> Tensor:
        """How far each row may go ``(N,)``: ``1 / (1 + r v^2 dW / dv)``.

        Under ``exp(f)`` curvature grows like ``exp(v / 2)``, and a row whose variance falls as its curvature grows would
        overshoot.
        """
        if self.observations.likelihood.bounded_curvature:
            return curvature.new_ones(curvature.shape[0])
        marginals = current.marginals
        change = self._expected(current.centred, _WIDER * marginals).curvature - curvature
        response = (change * marginals.mT).sum((-2, -1)) / math.log(_WIDER)
        return 1.0 / (1.0 + _RESPONSE * response.nan_to_num(posinf=0.0).clamp_min(0.0))


def _part(latents: slice, kernel: Tensor, root: Tensor) -> _Part:
    _, factor = factorise(kernel, root)
    products = kernel_columns(kernel, root)
    whitened = torch.linalg.solve_triangular(factor.mT, products.flatten(0, 1), upper=True, left=False)
    return _Part(latents, root, factor, whitened.view_as(products))


def _log_determinant(parts: list[_Part]) -> Tensor:
    """Of ``I + H^T K H``."""
    return 2.0 * torch.stack([part.factor.diagonal().log().sum() for part in parts]).sum()


def _own_blocks(kernel: Tensor, size: int) -> Tensor:
    """Covariances ``(N, C, C)`` of each row's latent values, from ``(N C, N C)``."""
    latents = kernel.shape[0] // size
    return kernel.view(size, latents, size, latents).diagonal(dim1=0, dim2=2).movedim(-1, 0)
