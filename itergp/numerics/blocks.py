"""Small matrices ``(N, C, C)``, one per row: roots and products."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from itergp.numerics.cholesky import try_cholesky
from itergp.numerics.spectral import eigen_root, psd_eigen

# Multiplication of vectors (N, C) by H, and by its transpose, block by block.
Root = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def psd_root(covariance: Tensor) -> Tensor:
    """A root ``L`` with ``L L^T`` equal to a batch of small covariances ``(..., C, C)``, rounding lifted to PSD."""
    if covariance.shape[-1] == 1:
        return covariance.clamp_min(torch.finfo(covariance.dtype).tiny).sqrt()  # with a derivative at zero
    size = covariance.shape[-1]
    eye = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
    scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(covariance.dtype).tiny)
    jitter = 100 * torch.finfo(covariance.dtype).eps
    root, failed = try_cholesky(covariance + (jitter * scale)[..., None, None] * eye)
    if bool(failed.any()):
        root = torch.where(failed[..., None, None], curvature_root(covariance), root)
    return root


def curvature_root(curvature: Tensor) -> Tensor:
    """H ``(..., C, C)`` with ``H H^T = W``, for W positive semi-definite up to rounding."""
    if curvature.shape[-1] == 1:
        return curvature.clamp_min(0.0).sqrt()
    return eigen_root(curvature)


def curvature_eigen(curvature: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(N, C)``, ascending, and eigenvectors ``(N, C, C)`` of W, positive semi-definite up to rounding.

    Eigenvalues that are rounding are zero: in their directions the data say nothing.
    """
    if curvature.shape[-1] == 1:
        return curvature.squeeze(-1).clamp_min(0.0), torch.ones_like(curvature)
    return psd_eigen(curvature)


def block_root(curvature: Tensor) -> Root:
    """H and ``H^T`` with ``H H^T`` the positive semi-definite blocks ``(N, C, C)``."""
    root = curvature_root(curvature)
    return partial(apply_blocks, root), partial(apply_blocks, root.mT)


def apply_blocks(blocks: Tensor, vector: Tensor) -> Tensor:
    """One small matrix per row ``(N, C, C)`` times ``(N, C)`` or ``(N, C, k)``."""
    if blocks.shape[-1] == 1:
        return blocks.squeeze(-1) * vector if vector.dim() == 2 else blocks * vector
    if vector.dim() == 2:
        return torch.bmm(blocks, vector.unsqueeze(-1)).squeeze(-1)
    return torch.bmm(blocks, vector)
