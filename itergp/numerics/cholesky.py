"""Cholesky factors of matrices that rounding may have made indefinite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def try_cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Lower factors of a batch ``(..., b, b)``, and which of its matrices ``(...)`` have none."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    return factor, info > 0


def first_cholesky(candidates: Iterable[Tensor], *, shift: float = 0.0) -> tuple[Tensor, Tensor | None]:
    """The first of ever more regular matrices that has a Cholesky factor, and the factor.

    Args:
        candidates: Matrices ``(..., b, b)``, made as they are asked for.
        shift: Multiple of the identity that is added before they are factorised.

    Returns:
        The matrix, without the shift, and its factor with it; the last matrix and None if none has one.
    """
    matrix = torch.empty(0, 0)
    for matrix in candidates:
        factor, failed = try_cholesky(_shifted(matrix, shift))
        if not bool(failed.any()):
            return matrix, factor
    return matrix, None


def tolerant_cholesky(candidates: Iterable[Tensor], *, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """``first_cholesky``, for matrices one of which must have a factor.

    Raises:
        torch.linalg.LinAlgError: If none has one.
    """
    matrix, factor = first_cholesky(candidates, shift=shift)
    return matrix, torch.linalg.cholesky(_shifted(matrix, shift)) if factor is None else factor


def diagonal_lifts(matrix: Tensor, unit: Tensor, lifts: Iterable[float]) -> Iterator[Tensor]:
    """A matrix ``(..., b, b)`` with its diagonal raised by multiples of a unit ``(...)``, one after the other."""
    eye = torch.eye(matrix.shape[-1]).to(matrix)
    for lift in lifts:
        yield matrix + (lift * unit)[..., None, None] * eye


def _shifted(matrix: Tensor, shift: float) -> Tensor:
    if shift == 0.0:
        return matrix
    return matrix + shift * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
