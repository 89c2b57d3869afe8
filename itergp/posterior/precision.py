"""``LowRankPrecision``: the computation-aware posterior covariance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from itergp.numerics.blocks import curvature_eigen
from itergp.numerics.cholesky import tolerant_cholesky
from itergp.numerics.rounding import thresholds
from itergp.numerics.spectral import lifted, symmetric, whitening
from itergp.operators import AbstractOperator, KernelOperator, slices
from itergp.parallel import ALL_ROWS, RowPartition

_CHUNK_ROWS = 8192
_LIFTED = 100.0  # least eigenvalue of an indefinite Gram matrix as a share of the largest, in units of rounding
_LEAST = 16.0  # share of a row's largest curvature, in units of rounding, that stands for none


@dataclass(frozen=True)
class Actions:
    """Actions ``A = W Uhat`` scaled so that ``A^T W^+ A = Uhat^T W Uhat = I``.

    Taking actions in the range of W needs no inverse of W: null directions of the curvature and saturated
    probabilities drop out by themselves.

    Attributes:
        values: A ``(N, C, r)``.
    """

    values: Tensor

    @property
    def rank(self) -> int:
        """Number of actions r."""
        return self.values.shape[-1]

    @classmethod
    def from_directions(cls, directions: Tensor, curvature: Tensor, rows: RowPartition = ALL_ROWS) -> Actions:
        """Actions along given directions.

        Args:
            directions: Uhat ``(N, C, k)``; the actions are written over it.
            curvature: W ``(N, C, C)``.
            rows: Which of the N rows are here.

        Returns:
            At most k actions; dependent or uninformative directions are dropped, which can only widen the posterior.
        """
        directions = directions.contiguous()
        width, chunks = directions.shape[-1], slices(directions.shape[0], _CHUNK_ROWS)
        gram = torch.zeros(width, width, dtype=torch.float64, device=directions.device)
        spread, diagonal = torch.zeros_like(gram[0]), curvature.diagonal(dim1=-2, dim2=-1)
        for i in chunks:
            gram += directions[i].flatten(0, 1).mT @ torch.bmm(curvature[i], directions[i]).flatten(0, 1)
            spread += diagonal[i].flatten() @ directions[i].square().flatten(0, 1)
        gram, spread = rows.all_reduce_sum(gram), rows.all_reduce_sum(spread)
        # Information that is a difference of much larger terms is rounding: a null direction of the curvature.
        informative = gram.diagonal() > 100 * torch.finfo(directions.dtype).eps * spread
        if not bool(informative.any()):
            return cls.empty(curvature[..., 0])
        floor = thresholds(directions.dtype).dependent_action
        kept = whitening(gram[informative][:, informative], floor, relative=True, scaled=True)
        mix = gram.new_zeros(width, kept.shape[1])
        mix[informative] = kept
        mix = rows.broadcast(mix).to(directions)
        flat, step = directions.view(-1), directions.shape[1] * mix.shape[1]
        for i in chunks:  # numbers of fewer columns end before those that are still to be read
            flat[step * i.start : step * i.stop] = (torch.bmm(curvature[i], directions[i]) @ mix).flatten()
        return cls(flat[: step * directions.shape[0]].view(*directions.shape[:2], -1))

    def reweighted(
        self, products: Tensor, curvature: Tensor, support: Tensor | None = None, rows: RowPartition = ALL_ROWS
    ) -> tuple[Actions, Tensor, float]:
        """The same span of actions in the normal form of another curvature, at no kernel product.

        Args:
            products: ``K A`` ``(N, C, r)``.
            curvature: The other W ``(N, C, C)``; what it says nothing about is of infinite noise.
            support: Rows that the actions are kept on ``(M,)``; None for all.
            rows: Which of the N rows are here.

        Returns:
            ``A M`` and ``K A M`` with ``M^T A^T W^+ A M = I``, dependent directions being dropped, which can only widen; and
            the median noise that the actions have for the other curvature, 1 for their own.
        """
        rank = self.rank
        noise = torch.zeros(rank, rank, dtype=torch.float64, device=products.device)
        own = curvature if support is None else rows.select(curvature, support)
        for i in slices(self.values.shape[0], _CHUNK_ROWS):
            values, vectors = curvature_eigen(own[i])
            # Actions are in the range of W, up to rounding: there the least that a curvature can resolve stands for nothing.
            least = (_LEAST * torch.finfo(values.dtype).eps * values[:, -1:]).clamp_min(torch.finfo(values.dtype).tiny)
            inverse = torch.maximum(values, least).rsqrt()
            scaled = (vectors * inverse.unsqueeze(-2)).mT
            flat = torch.bmm(scaled, self.values[i]).flatten(0, 1)
            noise += flat.mT @ flat
        if support is None:
            noise = rows.all_reduce_sum(noise)
        if rank == 0 or not bool(torch.isfinite(noise).all()):
            return self, products, float("inf")
        floor = thresholds(products.dtype).dependent_action
        mix = rows.broadcast(whitening(noise, floor, relative=True, scaled=True)).to(products)
        return Actions(self.values @ mix), products @ mix, float(noise.diagonal().median())

    @classmethod
    def empty(cls, like: Tensor) -> Actions:
        """No actions: the posterior covariance is the prior's. ``like`` is ``(N, C)``."""
        return cls(like.new_zeros(*like.shape, 0))


def multiply(operator: AbstractOperator, block: Tensor) -> Tensor:
    """``K`` times a block ``(N, C, k)``, latent function by latent function, in one pass."""
    size, latents, width = block.shape
    if operator.num_kernels == 1:
        return operator.matmul(block.reshape(size, latents * width))[0].reshape(size, latents, width)
    return operator.matmul(block.movedim(1, 0)).movedim(0, 1)


def columns_times(entries: Tensor, block: Tensor) -> Tensor:
    """Kernel entries ``(C', b, m)``, or ``(1, b C, m C)``, times a block ``(m, C, k)``: ``(b, C, k)``."""
    size, latents, width = block.shape
    if entries.shape[-1] != size:  # of coupled latent functions
        return (entries[0] @ block.flatten(0, 1)).unflatten(0, (-1, latents))
    if entries.shape[0] == 1:
        return (entries[0] @ block.flatten(1)).unflatten(-1, (latents, width))
    return torch.bmm(entries, block.movedim(1, 0)).movedim(0, 1)


def cross_multiply(operator: AbstractOperator, inputs: Tensor, block: Tensor) -> Tensor:
    """``k(inputs, X)`` times a block ``(N, C, k)``: ``(M, C, k)``."""
    size, latents, width = block.shape
    if operator.num_kernels == 1:
        return operator.cross_matmul(inputs, block.reshape(size, latents * width))[0].unflatten(-1, (latents, width))
    return operator.cross_matmul(inputs, block.movedim(1, 0)).movedim(0, 1)


def tangent(operator: KernelOperator, left: Tensor, right: Tensor, inputs: Tensor | None = None) -> Tensor:
    """``KernelOperator.tangent`` of ``(M, C, k)`` and ``(N, C, k)``, latent function by latent function."""
    if operator.num_kernels == 1:
        return operator.tangent(left.flatten(1), right.flatten(1), inputs)
    return operator.tangent(left.movedim(1, 0), right.movedim(1, 0), inputs)


@dataclass(frozen=True)
class LowRankPrecision:
    """``covariance(x, x') = k(x, x') - k(x, X) A (I + A^T K A)^{-1} A^T k(X, x')``.

    Never below the covariance of the exact computation for the same curvature, and shrinking as actions are added.

    Attributes:
        actions: A ``(N, C, r)``, with ``A^T W^+ A = I``.
        gram: ``A^T K A`` ``(r, r)``, float64, positive semi-definite.
        factor: Lower Cholesky factor of ``I + gram`` ``(r, r)``, float64.
    """

    actions: Tensor
    gram: Tensor
    factor: Tensor

    @property
    def rank(self) -> int:
        """Number of actions r."""
        return self.actions.shape[-1]

    @classmethod
    def from_products(cls, actions: Actions, products: Tensor, rows: RowPartition = ALL_ROWS) -> LowRankPrecision:
        """From the actions and ``K A``; ``rows`` says which of them are here."""
        gram = torch.zeros(actions.rank, actions.rank, dtype=torch.float64, device=products.device)
        for i in slices(products.shape[0], _CHUNK_ROWS):  # sums over more rows lose digits in the data's dtype
            gram += actions.values[i].flatten(0, 1).mT @ products[i].flatten(0, 1)
        return cls.from_gram(actions.values, symmetric(rows.all_reduce_sum(gram)))

    @classmethod
    def from_gram(cls, actions: Tensor, gram: Tensor) -> LowRankPrecision:
        """From the actions A ``(N, C, r)`` and ``A^T K A``, float64.

        Rounding in the products can make the Gram matrix indefinite by about 1e-6 of its norm (float32). Eigenvalues are
        lifted by that much: adding to the Gram matrix can only widen the covariance.
        """
        rounding = 4.0 * torch.finfo(actions.dtype).eps * gram.diagonal().clamp_min(0.0)
        gram = gram + torch.diag(rounding)
        gram, factor = tolerant_cholesky(_ever_more_definite(gram), shift=1.0)
        return cls(actions, gram, factor)

    def whiten(self, products: Tensor) -> Tensor:
        """``k A`` ``(M, C, r)`` to Q ``(M, C, r)`` with ``covariance = k(x, x') - Q Q'^T``."""
        factor = self.factor.to(products.dtype)
        rows = products.flatten(0, 1)
        return torch.linalg.solve_triangular(factor.mT, rows, upper=True, left=False).reshape(products.shape)

    def log_determinant(self) -> float:
        """``log |I + W^{1/2} K W^{1/2}|`` within the actions; a lower bound on the full one."""
        return 2.0 * float(self.factor.diagonal().log().sum())

    def kl_terms(self) -> float:
        """``log|I + B| - tr((I + B)^{-1} B)`` with ``B = A^T K A``: the covariance's share of twice the KL to the prior."""
        trace = float(torch.cholesky_solve(self.gram, self.factor).diagonal().sum())
        return self.log_determinant() - trace


def _ever_more_definite(gram: Tensor) -> Iterator[Tensor]:
    yield gram
    yield lifted(gram, _LIFTED * gram.shape[0] * torch.finfo(gram.dtype).eps)


def marginal_covariance(prior: Tensor, whitened: Tensor) -> Tensor:
    """Per-row covariances ``(M, C, C)``; the diagonal is not negative.

    Args:
        prior: Variances ``(M, C)`` of latent functions that are independent, or covariances ``(M, C, C)``.
        whitened: Q ``(M, C, r)``.
    """
    covariance = -torch.bmm(whitened, whitened.mT)
    if prior.dim() == 3:
        covariance, prior = covariance + prior, torch.zeros_like(prior[..., 0])
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    diagonal.copy_((diagonal + prior).clamp_min(0.0))
    return covariance


def is_negative(prior: Tensor, whitened: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether more than the prior variance is known, by more than rounding: then the kernel is no covariance function.

    Args:
        prior: Variances ``(M, C)``, or covariances ``(M, C, C)``.
        whitened: Q ``(M, C, r)``.
        dtype: Of the data; default that of Q.
    """
    own = (prior.diagonal(dim1=-2, dim2=-1) if prior.dim() == 3 else prior).detach()
    most = 1.0 + thresholds(dtype or whitened.dtype).negative_variance
    return bool((whitened.detach().square().sum(-1) > most * own).any())


def as_row_covariance(prior: Tensor) -> Tensor:
    """Prior covariances ``(M, C, C)`` from variances ``(M, C)``, or as they are."""
    return prior if prior.dim() == 3 else torch.diag_embed(prior)
