"""Eigenvalues of small symmetric matrices, and what is made of them: orthonormal mixings, roots, leading directions."""

from __future__ import annotations

import scipy.linalg
import torch
from torch import Tensor

_MANY = 400  # rows of a matrix of which some eigenvectors take less time than all


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(..., b)``, ascending, and eigenvectors of symmetric matrices ``(..., b, b)``.

    Divide and conquer, which may not converge for eigenvalues of very different size; the QR algorithm then does.

    Raises:
        LinAlgError: If a matrix is not finite.
    """
    try:
        return torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        if not bool(torch.isfinite(matrix).all()):
            raise
    size = matrix.shape[-1]
    pairs = [scipy.linalg.eigh(one.numpy(), driver="ev") for one in matrix.detach().cpu().reshape(-1, size, size)]
    values, vectors = (torch.stack([torch.from_numpy(pair[i]) for pair in pairs]).to(matrix) for i in range(2))
    return values.view(matrix.shape[:-1]), vectors.view(matrix.shape)


def symmetric(matrix: Tensor) -> Tensor:
    """The symmetric part."""
    return 0.5 * (matrix + matrix.mT)


def whitening(gram: Tensor, floor: float | Tensor, *, relative: bool = False, scaled: bool = False) -> Tensor:
    """Mixing of columns that makes them orthonormal: ``mix^T gram mix = I``, dependent directions being left out.

    Args:
        gram: Inner products ``(..., b, b)`` of the columns, float64, symmetric up to rounding.
        floor: Eigenvalue at or below which a direction is left out; a tensor for one per matrix, ``(..., 1)``.
        relative: Whether the floor is a share of the largest eigenvalue.
        scaled: Whether columns are brought to unit length first, so that the floor serves columns of every length.

    Returns:
        ``(..., b, k)`` with k directions in the matrix that has most; in the others the first columns are zero.
    """
    if gram.shape[-1] == 0:
        return gram
    tiny = torch.finfo(gram.dtype).tiny
    scale = gram.diagonal(dim1=-2, dim2=-1).clamp_min(tiny).rsqrt() if scaled else None
    inside = gram if scale is None else symmetric(scale.unsqueeze(-1) * gram * scale.unsqueeze(-2))
    values, vectors = eigh(inside)
    keep = values > (floor * values[..., -1:].clamp_min(0.0) if relative else floor)
    vectors = vectors if scale is None else scale.unsqueeze(-1) * vectors
    if gram.dim() == 2:
        return vectors[:, keep] * values[keep].rsqrt()
    mix = vectors * torch.where(keep, values.clamp_min(tiny).rsqrt(), 0.0).unsqueeze(-2)
    width = int(keep.sum(-1).max()) if keep.numel() else 0
    return mix[..., mix.shape[-1] - width :]  # eigenvalues ascend, so the kept ones are last


def leading_eigenvectors(matrix: Tensor, count: int, *, descending: bool = False) -> Tensor:
    """Eigenvectors ``(..., b, count)`` of a symmetric ``(..., b, b)`` with the largest eigenvalues, which ascend by default.

    All ``b`` of them where that is fewer than ``count``. A few of many are found by themselves, in half the time.
    """
    count = min(count, matrix.shape[-1])
    vectors = _some_eigenvectors(matrix, count)
    if vectors is None:
        _, vectors = eigh(matrix)
    size = vectors.shape[-1]
    if descending:
        return vectors[..., torch.arange(size - 1, size - 1 - count, -1, device=matrix.device)]
    return vectors[..., size - count :]


def _some_eigenvectors(matrix: Tensor, count: int) -> Tensor | None:
    """The last eigenvectors ``(b, count)`` by relatively robust representations, or None where all take no longer."""
    size = matrix.shape[-1]
    few = size >= _MANY and 0 < count <= size // 2
    if matrix.dim() > 2 or matrix.device.type != "cpu" or not few or not bool(torch.isfinite(matrix).all()):
        return None
    try:
        found = scipy.linalg.eigh(matrix.detach().numpy(), subset_by_index=[size - count, size - 1], driver="evr")
    except scipy.linalg.LinAlgError:
        return None
    return torch.from_numpy(found[1])


def psd_eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(..., b)``, ascending, and eigenvectors of a matrix that is positive semi-definite up to rounding.

    Eigenvalues that are rounding are zero.
    """
    values, vectors = eigh(matrix)
    rounding = 16.0 * torch.finfo(matrix.dtype).eps * values[..., -1:].clamp_min(0.0)
    return torch.where(values > rounding, values, 0.0), vectors


def eigen_root(matrix: Tensor) -> Tensor:
    """``(..., b, b)`` whose product with its transpose is the matrix, positive semi-definite up to rounding."""
    values, vectors = eigh(matrix)
    return vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)


def absolute(matrix: Tensor) -> Tensor:
    """A symmetric matrix ``(..., b, b)`` with its eigenvalues replaced by their absolute values."""
    values, vectors = eigh(symmetric(matrix))
    return (vectors * values.abs().unsqueeze(-2)) @ vectors.mT


def lifted(matrix: Tensor, floor: float) -> Tensor:
    """A symmetric matrix ``(b, b)`` with eigenvalues below a share of the largest raised to it."""
    values, vectors = eigh(matrix)
    least = floor * values.max().clamp_min(0.0)
    return symmetric(vectors * values.clamp_min(float(least)) @ vectors.mT)
