"""Leading eigenspaces of large matrices that are only multiplied by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.numerics.spectral import whitening

_ROUNDING = 32.0  # units of the dtype, as a share of the largest product, that are no direction


def leading_eigenspace(
    product: Callable[[Tensor], Tensor], start: Tensor, rank: int, passes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Leading eigenspace of a symmetric matrix by a block Krylov space of a random start, with Rayleigh-Ritz.

    Musco and Musco (2015, arXiv 1504.05477), algorithm 2: a few passes resolve what subspace iteration takes many for. Two
    arrays ``(P, passes k)`` of memory.

    Args:
        product: The matrix H times a block ``(P, k)``.
        start: Random columns ``(P, k)``, such as random mixtures of H's columns.
        rank: Eigenvectors wanted.
        passes: Products with H, at least 1; together with as many columns as ``start`` has, no fewer than the rank.

    Returns:
        Ritz values ``(r,)``, descending, float64; orthonormal Ritz vectors ``(P, r)``; norms of their residuals ``(r,)``.
        Fewer than the rank where H has fewer directions.

    Raises:
        InputError: If passes and columns are fewer than the rank.

    Examples:
        >>> matrix = torch.diag(torch.tensor([5.0, 3.0, 1.0, 0.1])).double()
        >>> leading_eigenspace(lambda block: matrix @ block, torch.eye(4)[:, :3].double(), 2, passes=1)[0].tolist()
        [5.0, 3.0]
    """
    if passes < 1 or not 1 <= rank <= passes * start.shape[1]:
        raise InputError(
            f"`rank` must be 1 or more and at most the columns of `start` times `passes`. Got rank={rank}, {start.shape[1]} "
            f"columns, passes={passes}. Start with more."
        )
    basis, products = start[:, :0], start[:, :0]
    block = _beyond(start, basis, float(start.norm(dim=0).amax()))
    while block.shape[1] and passes > 0:
        passes -= 1
        basis, products = torch.cat([basis, block], 1), torch.cat([products, product(block)], 1)
        block = products[:, products.shape[1] - block.shape[1] :]
        block = _beyond(block, basis, float(products.norm(dim=0).amax()))
    small = basis.mT.double() @ products.double()
    values, mix = torch.linalg.eigh(0.5 * (small + small.mT))
    values, mix = values.flip(0)[:rank], mix.flip(1)[:, :rank].to(basis)
    vectors = basis @ mix
    residuals = products @ mix - vectors * values.to(basis)
    return values, vectors, residuals.double().norm(dim=0)


def _beyond(block: Tensor, basis: Tensor, size: float) -> Tensor:
    """An orthonormal basis of what columns ``(P, k)`` add to another one, up to rounding of their size."""
    floor = (_ROUNDING * torch.finfo(block.dtype).eps * size) ** 2
    for _ in range(2):
        block = block - basis @ (basis.mT @ block)
        gram = block.mT.double() @ block.double()
        block = block @ whitening(gram, floor).to(block)
        floor = 0.5
    return block
