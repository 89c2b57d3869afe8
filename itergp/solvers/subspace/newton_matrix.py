"""The Newton matrix within a search space, and parts of it."""

from __future__ import annotations

import torch
from torch import Tensor

from itergp.numerics.cholesky import diagonal_lifts, tolerant_cholesky
from itergp.operators import slices
from itergp.solvers.subspace.search_space import SearchSpace

_CHUNK_ROWS = 65_536
_CHUNK_COLUMNS = 512


def weighted_gram(space: SearchSpace, weights: Tensor, first: int, second: int) -> Tensor:
    """``T_first^T diag(weights) T_second`` ``(B, B)``, float64."""
    return space.partition.all_reduce_sum(_own_gram(space, weights, first, second))


def data_information(space: SearchSpace, curvature: Tensor) -> Tensor:
    """``T^T W T`` ``(C B, C B)``, float64: the information of the data about the coordinates, class-major."""
    latents, rank = curvature.shape[-1], space.rank
    matrix = space.gram.new_empty(latents * rank, latents * rank)
    for c in range(latents):
        for d in range(c, latents):
            block = _own_gram(space, curvature[:, c, d], c, d)
            rows, cols = slice(c * rank, (c + 1) * rank), slice(d * rank, (d + 1) * rank)
            matrix[rows, cols] = block
            matrix[cols, rows] = block.mT
    return space.partition.all_reduce_sum(matrix)


def _own_gram(space: SearchSpace, weights: Tensor, first: int, second: int) -> Tensor:
    """The own rows' part of ``weighted_gram``, above the diagonal where it is symmetric, some rows at a time."""
    last = space.products.shape[0] - 1
    left, right = space.products[min(first, last)], space.products[min(second, last)]
    symmetric = min(first, last) == min(second, last)
    matrix = torch.zeros(space.rank, space.rank, dtype=torch.float64, device=left.device)
    columns = slices(space.rank, _CHUNK_COLUMNS)
    for i in slices(left.shape[0], _CHUNK_ROWS):
        weighted = (left[i] * weights[i].unsqueeze(-1)).mT
        for j in columns:
            above = slice(0, j.stop) if symmetric else slice(None)
            matrix[above, j] += weighted[above] @ right[i, j]
    for j in columns if symmetric else []:
        matrix[j, : j.start] = matrix[: j.start, j].mT
    return matrix


def newton_matrix(space: SearchSpace, curvature: Tensor) -> Tensor:
    """``blockdiag(S^T K S) + T^T W T`` ``(C B, C B)``, float64, class-major."""
    matrix = data_information(space, curvature)
    for c in range(curvature.shape[-1]):
        block = slice(c * space.rank, (c + 1) * space.rank)
        matrix[block, block] += space.gram[min(c, space.gram.shape[0] - 1)]
    return matrix


def robust_cholesky(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Cholesky factor; a diagonal is added as far as rounding made the matrix indefinite.

    That only shortens a Newton direction, which the line search still guards. Directions kept from a kernel that has
    since changed may have next to no prior norm left; rounding is then far above that of well-conditioned products.

    Args:
        matrix: ``(..., n, n)``, float64.
        dtype: Of the products that made it.
    """
    eps, largest = torch.finfo(dtype).eps, matrix.diagonal(dim1=-2, dim2=-1).amax(-1)
    return tolerant_cholesky(diagonal_lifts(matrix, largest, (0.0, eps, 1e2 * eps, 1e4 * eps, eps**0.4)))[1]
