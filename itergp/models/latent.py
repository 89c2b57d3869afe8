"""The latent posterior at any inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from linear_operator.operators import (
    BlockInterleavedLinearOperator,
    ConstantMulLinearOperator,
    DenseLinearOperator,
    IdentityLinearOperator,
    KroneckerProductLinearOperator,
    LinearOperator,
    RootLinearOperator,
    SumLinearOperator,
)
from torch import Tensor

from itergp.errors import InputError
from itergp.operators import KernelOperator, Prior
from itergp.operators.kernel_blocks import restricted
from itergp.posterior.deferred import DeferredLinearOperator
from itergp.posterior.local_actions import LocalPart, reduced
from itergp.posterior.precision import cross_multiply, is_negative, marginal_covariance
from itergp.solvers import Solution

_EAGER_VALUES = 512  # latent values of which the joint covariance is worth making at once, with its derivatives


@dataclass(frozen=True)
class LatentPosterior:
    """Mean and covariance of the latent functions at M inputs.

    Attributes:
        prior: Prior there.
        prior_marginals: Variances ``(M, C)``, or covariances ``(M, C, C)`` where latent functions are coupled.
        mean: Posterior mean ``(M, C)``.
        whitened: Q ``(M, C, r)``: without local actions the covariance is the prior's minus ``Q Q^T``.
        local: What the neighbours of each input take from it besides, or None.
    """

    prior: Prior
    prior_marginals: Tensor
    mean: Tensor
    whitened: Tensor
    local: LocalPart | None = None

    @classmethod
    def at(
        cls,
        prior: Prior,
        operator: KernelOperator,
        solution: Solution,
        *,
        covariance: bool = True,
        blocks: Sequence[Tensor] | None = None,
    ) -> LatentPosterior:
        """The posterior where ``prior`` was evaluated; one product with the cross-kernel.

        Args:
            prior: Prior at the M inputs.
            operator: Kernel operator of the training inputs.
            solution: The posterior's weights and precision.
            covariance: Whether Q is wanted; without it r = 0.
            blocks: ``weights_and_actions(...)`` of the same, if they are there already.

        Raises:
            InputError: If a variance is negative by more than rounding.
        """
        operator = prior.across(operator)
        support = restricted(operator, solution.support)
        blocks = weights_and_actions(solution, operator, covariance=covariance) if blocks is None else blocks
        products = torch.cat([cross_multiply(support, prior.features, block) for block in blocks], -1)
        whitened, local = products[..., 1:], None
        if covariance and solution.rank > 0:
            whitened = solution.precision.whiten(whitened)
            # Found in training mode, a posterior may have neighbours that a prior evaluated whole cannot serve: less is known.
            if solution.local is not None and operator.evaluates_groups:
                local = solution.local.at(solution.local.neighbourhoods(operator), prior.features, whitened)
        coupled = operator.couples_latents
        marginals = operator.row_covariance(prior.features) if coupled else operator.diagonal(prior.features).mT
        covariance_of_prior = operator.covariance(prior.features)  # of the kernel that the posterior was found with
        prior = replace(prior, covariance=covariance_of_prior)
        marginals = marginals if coupled else marginals.expand(prior.mean.shape)
        _require_variances(marginals, whitened)
        return cls(prior, marginals, prior.mean + products[..., 0], whitened, local)

    @property
    def prior_variance(self) -> Tensor:
        """``(M, C)``."""
        prior = self.prior_marginals
        return prior.diagonal(dim1=-2, dim2=-1) if prior.dim() == 3 else prior

    def row_covariance(self) -> Tensor:
        """Covariances between the latent functions of each row, ``(M, C, C)``."""
        covariance = marginal_covariance(self.prior_marginals, self.whitened)
        return covariance if self.local is None else reduced(covariance, self.local.reduction)

    def distribution(self) -> MultivariateNormal:
        """As GPyTorch knows it: MultivariateNormal for C = 1, else an interleaved MultitaskMultivariateNormal.

        The covariance stays lazy: prior minus a low-rank product, minus what the neighbours of each input take.
        """
        size, latents = self.mean.shape
        root = RootLinearOperator(self.whitened.reshape(size * latents, -1))
        negative = ConstantMulLinearOperator(root, -torch.ones((), dtype=root.dtype, device=root.device))
        terms = [self._prior_covariance(latents), negative]
        if self.local is not None:
            terms.append(self._local_covariance(self.local))
        covariance = SumLinearOperator(*terms)
        if latents == 1:
            return MultivariateNormal(self.mean.squeeze(-1), covariance)
        posterior = MultitaskMultivariateNormal(self.mean, covariance, interleaved=True)
        posterior.row_covariance = self.row_covariance  # saves indexing the lazy covariance
        return posterior

    def _local_covariance(self, local: LocalPart) -> LinearOperator:
        """Minus what the neighbours take from the joint covariance."""
        features, whitened = self.prior.features, self.whitened
        if self.mean.numel() <= _EAGER_VALUES:
            return DenseLinearOperator(-local.joint_reduction(features, whitened))
        diagonal = -local.reduction.diagonal(dim1=-2, dim2=-1).flatten()
        return DeferredLinearOperator(diagonal, matrix=lambda: -local.joint_reduction(features, whitened))

    def _prior_covariance(self, latents: int) -> LinearOperator:
        covariance = self.prior.covariance
        if self.prior.coupled:
            return covariance
        if latents == 1:
            return covariance.squeeze(0) if covariance.dim() == 3 else covariance
        if self.prior.num_kernels == 1:
            covariance = covariance.squeeze(0) if covariance.dim() == 3 else covariance
            eye = IdentityLinearOperator(latents, dtype=self.mean.dtype, device=self.mean.device)
            return KroneckerProductLinearOperator(covariance, eye)
        return BlockInterleavedLinearOperator(covariance, block_dim=-3)


def _require_variances(prior: Tensor, whitened: Tensor) -> None:
    if is_negative(prior, whitened):
        raise InputError(
            "The kernel must be positive semi-definite. Got one that makes a posterior variance negative at new inputs. "
            "Use a valid covariance function; a distance or similarity is not one by itself."
        )


def weights_and_actions(solution: Solution, operator: KernelOperator, *, covariance: bool) -> list[Tensor]:
    """What predictions multiply by the cross-kernel: V, and with ``covariance`` A.

    Args:
        solution: The posterior's weights and precision.
        operator: Kernel operator of the training inputs.
        covariance: Whether A is wanted.

    Returns:
        Blocks of 1 + r columns in all, ``(N, C, .)`` each: one, where entries are evaluated for all of its columns at once.
    """
    weights = solution.weights_on_support().unsqueeze(-1)
    if not covariance:
        return [weights]
    blocks = [weights, solution.precision.actions]
    return [torch.cat(blocks, -1)] if operator.evaluates_matrix else blocks


def batches(num_rows: int, numbers_per_row: int, budget: int) -> Iterator[slice]:
    """Slices of rows whose working arrays stay within a budget of bytes (float64 assumed)."""
    step = int(max(1, min(num_rows, budget // (8 * max(1, numbers_per_row)))))
    for start in range(0, num_rows, step):
        yield slice(start, min(num_rows, start + step))
