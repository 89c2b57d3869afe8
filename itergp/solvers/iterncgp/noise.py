"""``Noise``: the covariance that a linear solver adds to the kernel matrix, block by block of rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.numerics.blocks import apply_blocks
from itergp.numerics.cholesky import try_cholesky
from itergp.numerics.rounding import thresholds
from itergp.persistence import DERIVED
from itergp.posterior.problem import Problem

# Curvature below this share of the largest is lifted to it before it is inverted.


@dataclass(frozen=True)
class Noise:
    """Noise covariance of N rows, one ``C x C`` block each, and its inverse.

    Rows of a softmax know nothing of a constant added to all C functions: the noise in that direction is infinite, not
    zero. There ``centred`` is True, actions are projected away from the direction, and everything else is finite and exact.

    Attributes:
        covariance: ``W^+`` ``(N, C, C)``, float64; zero along the null direction when ``centred``.
        curvature: W ``(N, C, C)``.
        centred: Whether ``(1, .., 1)`` is a null direction of every W.
        informative: 1 for rows that say something, 0 for those with W = 0, ``(N, 1)``; None when all do.
    """

    covariance: Tensor = field(metadata=DERIVED)
    curvature: Tensor
    centred: bool = field(default=False, metadata=DERIVED)
    informative: Tensor | None = field(default=None, metadata=DERIVED)

    @classmethod
    def rebuild(cls, problem: Problem, curvature: Tensor) -> Noise:
        """The noise of a checkpoint."""
        return cls.from_curvature(curvature, problem.mean.dtype)

    @classmethod
    def from_curvature(cls, curvature: Tensor, dtype: torch.dtype | None = None) -> Noise:
        """Noise ``W^+`` of a Newton step.

        Saturated rows have curvature near zero and noise near infinity. Eigenvalues of W below 1e-7 (float32) or 1e-12
        (float64) of the largest in the data are lifted by that much, the only place in the package where W is inverted.
        The mode does not move, because pseudo-targets use the same noise; variances move by no more than rounding.

        Args:
            curvature: W ``(N, C, C)``, positive semi-definite; in float64 wherever it can be had, because rounding of
                probabilities near 1 makes W indefinite.
            dtype: Of the data; default that of the curvature.
        """
        dtype = curvature.dtype if dtype is None else dtype
        W = curvature.double()
        largest = W.diagonal(dim1=-2, dim2=-1).amax().clamp_min(torch.finfo(W.dtype).tiny)
        floor, latents = thresholds(dtype).silent_curvature * largest, W.shape[-1]
        centred = latents > 1 and bool(
            W.sum(-1).abs().amax() <= thresholds(curvature.dtype).centred_curvature * largest
        )
        silent = W.diagonal(dim1=-2, dim2=-1).sum(-1) <= 0.0
        informative = (~silent).unsqueeze(-1).to(curvature) if bool(silent.any()) else None
        if latents == 1:
            inverse = W.clamp_min(
                floor
            ).reciprocal()  # of silent rows too: actions from before they fell silent reach there
            return cls(inverse, curvature, False, informative)
        basis = _centred_basis(latents).to(W) if centred else torch.eye(latents).to(W)
        inside = basis.mT @ W @ basis
        inside = inside + floor * torch.eye(inside.shape[-1]).to(W)
        inverse, info = torch.linalg.inv_ex(0.5 * (inside + inside.mT))
        if bool(info.any()):  # a W that is not finite; the driver reports it
            inverse = torch.full_like(inside, float("nan"))
        covariance = (basis @ inverse @ basis.mT).masked_fill(silent[:, None, None], 0.0)
        return cls(covariance, curvature, centred, informative)

    @classmethod
    def from_covariance(cls, covariance: Tensor | float, like: Tensor) -> Noise:
        """Noise of a given covariance.

        Args:
            covariance: A variance, variances ``(N,)`` or ``(N, C)``, or blocks ``(N, C, C)``.
            like: Any tensor ``(N, C)``, for shape, dtype and device.

        Raises:
            InputError: If the shape is none of these or a variance is not positive.
        """
        size, latents = like.shape
        given = torch.as_tensor(covariance, dtype=torch.float64, device=like.device)
        shapes = ((), (size,), (size, latents), (size, latents, latents))
        if tuple(given.shape) not in shapes:
            raise InputError(
                f"`noise` must be a variance, variances of shape ({size},) or ({size}, {latents}), or covariances of shape "
                f"({size}, {latents}, {latents}). Got {tuple(given.shape)}. Pass Noise.from_curvature(W) for a Newton step."
            )
        if given.dim() < 3:
            given = given if given.dim() != 1 else given.unsqueeze(-1)
            given = torch.diag_embed(given.expand(size, latents))
        factor, failed = try_cholesky(given)
        if bool(failed.any()):
            row = int(failed.nonzero()[0, 0])
            raise InputError(
                f"`noise` must be positive definite in every row. Got one that is not in row {row}. Leave out rows without "
                "noise, or pass Noise.from_curvature(W) for rows that carry no information."
            )
        return cls(given, torch.cholesky_inverse(factor).to(like))

    @property
    def rank(self) -> int:
        """Number of independent actions: N C, or N (C - 1) when centred."""
        size, latents = self.covariance.shape[:2]
        size = size if self.informative is None else int(self.informative.sum())
        return size * (latents - int(self.centred))

    def apply(self, block: Tensor) -> Tensor:
        """``W^+`` times a block ``(N, C)`` or ``(N, C, k)``, float64."""
        return apply_blocks(self.covariance, block.double())

    def weigh(self, block: Tensor) -> Tensor:
        """``W`` times a block ``(N, C)`` or ``(N, C, k)``, in the block's dtype."""
        return apply_blocks(self.curvature.to(block.dtype), block)

    def project(self, block: Tensor, rows: Tensor | None = None) -> Tensor:
        """A block ``(N, C)`` or ``(N, C, k)`` on the range of W; ``rows`` says which rows it has, if not all."""
        if self.centred:
            block = block - block.mean(1, keepdim=True)
        if self.informative is None:
            return block
        mask = (self.informative if rows is None else self.informative[rows]).to(block)
        return block * (mask if block.dim() == 2 else mask.unsqueeze(-1))

    def covers(self, block: Tensor) -> bool:
        """Whether a block is in the range of W up to rounding, so that its kernel products need no projection."""
        rest = block - self.project(block)
        return float(rest.double().norm()) <= 1e3 * torch.finfo(block.dtype).eps * float(block.double().norm())


def _centred_basis(latents: int) -> Tensor:
    """Orthonormal columns ``(C, C - 1)`` that sum to zero."""
    ones = torch.ones(latents, 1, dtype=torch.float64)
    return torch.linalg.qr(torch.cat([ones, torch.eye(latents, dtype=torch.float64)[:, :-1]], 1)).Q[:, 1:]
