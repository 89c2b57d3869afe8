"""The Newton matrix within a search space, and parts of it."""

from __future__ import annotations

import torch
from torch import Tensor

from itergp.numerics.cholesky import diagonal_lifts, tolerant_cholesky
from itergp.operators import slices
from itergp.solvers.subspace.search_space import SearchSpace

_CHUNK_ROWS = 65_536
_CHUNK_COLUMNS = 512


def information_block(space: SearchSpace, curvature: Tensor, first: int, second: int) -> Tensor:
    """``T_c^T W_cd T_d`` ``(B, B)``, float64, for two of the space's ``coordinate_sets``."""
    return space.partition.all_reduce_sum(_own_information(space, curvature, first, second))


def data_information(space: SearchSpace, curvature: Tensor) -> Tensor:
    """``T^T W T`` ``(C B, C B)``, float64: the information of the data about the coordinates, class-major."""
    sets, rank = space.coordinate_sets(curvature.shape[-1]), space.rank
    matrix = space.gram.new_empty(sets * rank, sets * rank)
    for c in range(sets):
        for d in range(c, sets):
            block = _own_information(space, curvature, c, d)
            rows, cols = slice(c * rank, (c + 1) * rank), slice(d * rank, (d + 1) * rank)
            matrix[rows, cols] = block
            matrix[cols, rows] = block.mT
    return space.partition.all_reduce_sum(matrix)


def _own_information(space: SearchSpace, curvature: Tensor, first: int, second: int) -> Tensor:
    """The own rows' part of ``information_block``, above the diagonal where it is symmetric, some rows at a time."""
    symmetric = space.same_products(first, second)
    matrix = torch.zeros(space.rank, space.rank, dtype=torch.float64, device=space.products.device)
    columns = slices(space.rank, _CHUNK_COLUMNS)
    for i in slices(curvature.shape[0], _CHUNK_ROWS):
        weighted = space.weighted_products(curvature, first, second, i).mT
        right = space.products_of(second, i)
        for j in columns:
            above = slice(0, j.stop) if symmetric else slice(None)
            matrix[above, j] += weighted[above] @ right[:, j]
    for j in columns if symmetric else []:
        matrix[j, : j.start] = matrix[: j.start, j].mT
    return matrix


def newton_matrix(space: SearchSpace, curvature: Tensor) -> Tensor:
    """``blockdiag(S^T K S) + T^T W T`` ``(C B, C B)``, float64, class-major."""
    matrix = data_information(space, curvature)
    for c in range(space.coordinate_sets(curvature.shape[-1])):
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
