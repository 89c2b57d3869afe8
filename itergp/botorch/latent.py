"""The latent posterior at t-batches of points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import gpytorch
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import Kernel
from linear_operator import to_linear_operator
from linear_operator.operators import (
    DenseLinearOperator,
    DiagLinearOperator,
    LinearOperator,
    MatmulLinearOperator,
    SumLinearOperator,
)
from torch import Tensor

from itergp.models import NonConjugateGP
from itergp.posterior.local_actions import LocalPart

# Share of the prior variance below which a posterior variance is rounding; added, so that it can only widen.
_ROUNDING = 10.0


@dataclass(frozen=True)
class LatentBlock:
    """Mean and covariance of the C latent functions at q points, for a batch ``b`` of such sets.

    Attributes:
        mean: ``(*b, q, C)``.
        whitened: Q ``(*b, q, C, r)``: covariances are the prior's minus ``Q Q^T``.
        features: What the kernel is evaluated on, ``(*b, q, D)``, or ``(*b, 1 or C, q, D)`` for a kernel per function.
        kernel: The kernel that the posterior was found with.
        shared: Whether one kernel serves all latent functions.
        coupled: Whether it couples them: it has C outputs per input.
        prior_variance: ``(*b, q, C)``.
        local: What the neighbours of the flattened points take from their covariances, or None.
    """

    mean: Tensor
    whitened: Tensor
    features: Tensor
    kernel: Kernel
    shared: bool
    prior_variance: Tensor
    local: LocalPart | None = None
    coupled: bool = False

    @classmethod
    def at(cls, model: NonConjugateGP, X: Tensor) -> LatentBlock:
        """The posterior of a model at ``X`` ``(*b, q, D)``; one product with the cross-kernel."""
        shape = X.shape[:-1]
        part = model.latent_posterior(X.reshape(-1, X.shape[-1]))
        operator = model.conditioned.operator
        coupled = operator.couples_latents
        features, shared = part.prior.features, coupled or operator.num_kernels == 1
        if features.dim() == 2:
            features = features.reshape(*shape, -1)
            features = features if shared else features.unsqueeze(-3)
        else:
            features = features.reshape(-1, *shape, features.shape[-1]).movedim(0, -3)
            features = features.squeeze(-3) if shared else features
        latents = part.mean.shape[1]
        return cls(
            mean=part.mean.reshape(*shape, latents),
            whitened=part.whitened.reshape(*shape, *part.whitened.shape[1:]),
            features=features,
            kernel=operator.kernel,
            shared=shared,
            prior_variance=part.prior_variance.reshape(*shape, latents),
            local=part.local,
            coupled=coupled,
        )

    @property
    def num_latents(self) -> int:
        """C."""
        return self.mean.shape[-1]

    def covariance(self) -> LinearOperator:
        """Joint covariance ``(*b, q C, q C)``, latent functions innermost; lazy with one latent function."""
        if self.num_latents > 1:
            return DenseLinearOperator(self.cross_covariance(self) + torch.diag_embed(self._lift()))
        root = self.whitened.squeeze(-2)
        explained = MatmulLinearOperator(DenseLinearOperator(-root), DenseLinearOperator(root.mT))
        with gpytorch.settings.lazily_evaluate_kernels(True):
            prior = self.kernel(self.features, self.features)
        terms = [prior, explained, DiagLinearOperator(self._lift())]
        if (reduction := self._reduction(self)) is not None:
            terms.append(DenseLinearOperator(-reduction))
        return SumLinearOperator(*terms)

    def cross_covariance(self, other: LatentBlock) -> Tensor:
        """Covariance with the latent functions at other points: ``(*b, q C, p C)``, latent functions innermost."""
        prior = self.kernel(self.features, other.features).to_dense()
        if self.num_latents > 1 and not self.coupled:
            blocks = (prior.unsqueeze(-3) if self.shared else prior).movedim(-3, -1)  # (*b, q, p, 1 or C)
            blocks = torch.diag_embed(blocks.expand(*blocks.shape[:-1], self.num_latents)).transpose(-3, -2)
            prior = blocks.flatten(-2, -1).flatten(-3, -2)
        covariance = prior - self.whitened.flatten(-3, -2) @ other.whitened.flatten(-3, -2).mT
        reduction = self._reduction(other)
        return covariance if reduction is None else covariance - reduction

    def _reduction(self, other: LatentBlock) -> Tensor | None:
        """What neighbours take from the covariance with other points, ``(*b, q C, p C)``."""
        if self.local is None or other.local is None:
            return None
        q, latents = self.mean.shape[-2:]
        p = other.mean.shape[-2]
        if other is self and q == 1:
            return self.local.reduction.view(*self.mean.shape[:-2], latents, latents)
        batch = torch.broadcast_shapes(self.mean.shape[:-2], other.mean.shape[:-2])
        numbers = [
            torch.arange(math.prod(block.mean.shape[:-2])).view(block.mean.shape[:-2]).expand(batch).flatten().tolist()
            for block in (self, other)
        ]
        parts = {}
        for i, j in zip(*numbers, strict=True):
            if (i, j) not in parts:
                mine, theirs = slice(i * q, (i + 1) * q), slice(j * p, (j + 1) * p)
                parts[i, j] = self.local.part(mine).cross_reduction(
                    other.local.part(theirs),
                    self._flat_features(mine),
                    other._flat_features(theirs),
                    self.whitened.flatten(0, -3)[mine],
                    other.whitened.flatten(0, -3)[theirs],
                )
        stacked = torch.stack([parts[pair] for pair in zip(*numbers, strict=True)])
        return stacked.view(*batch, q * latents, p * latents)

    def _flat_features(self, points: slice) -> Tensor:
        """Kernel inputs ``(m, D)`` or ``(C', m, D)`` of some of the flattened points."""
        features, width = self.features, self.features.shape[-1]
        if self.shared:
            return features.reshape(-1, width)[points]
        return features.movedim(-3, 0).reshape(features.shape[-3], -1, width)[:, points]

    def _lift(self) -> Tensor:
        """What rounding can have taken from the variances ``(*b, q C)``, so that none is negative."""
        least = _ROUNDING * torch.finfo(self.mean.dtype).eps * self.prior_variance
        variance = self.prior_variance - self.whitened.square().sum(-1)
        if self.local is not None:
            variance = variance - self.local.reduction.diagonal(dim1=-2, dim2=-1).reshape(variance.shape)
        return (least + (least - variance).clamp_min(0.0)).flatten(-2)


def normal(mean: Tensor, covariance: LinearOperator | Tensor) -> MultivariateNormal:
    """The distribution of latent values with means ``(*b, q, C)``: multitask and interleaved when C > 1."""
    operator = to_linear_operator(covariance)
    batch = torch.broadcast_shapes(mean.shape[:-2], operator.batch_shape)
    mean = mean.expand(*batch, *mean.shape[-2:])
    if operator.batch_shape != batch:
        operator = operator.expand(*batch, *operator.matrix_shape)
    if mean.shape[-1] == 1:
        return MultivariateNormal(mean.squeeze(-1), operator)
    return MultitaskMultivariateNormal(mean, operator, interleaved=True)


def select_outputs(distribution: MultivariateNormal, outputs: tuple[int, ...]) -> MultivariateNormal:
    """The distribution of some of the latent functions."""
    mean = distribution.mean
    q, latents = mean.shape[-2:]
    keep = torch.arange(math.prod((q, latents)), device=mean.device).view(q, latents)[:, list(outputs)].flatten()
    covariance = distribution.covariance_matrix[..., keep, :][..., keep]
    return normal(mean[..., list(outputs)], covariance)
