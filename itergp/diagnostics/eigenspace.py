"""Leading eigenspaces of matrices that are only multiplied by, and what they have in common with choices of parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.numerics.spectral import whitening

_ROUNDING = 32.0  # units of the dtype, as a share of the largest product, that are no direction


@dataclass(frozen=True)
class Overlap:
    """How much two subspaces have in common.

    Attributes:
        share: Mean squared cosine of their principal angles, of as many as the smaller has dimensions: 0 where they are
            orthogonal, 1 where one contains the other.
        chance: What it is on average for a subspace of the same dimension that is drawn at random.
    """

    share: float
    chance: float


@dataclass(frozen=True)
class Eigenspace:
    """Leading eigenvalues of a symmetric matrix and their eigenvectors, with what is left to tell how far they are right.

    Attributes:
        values: Ritz values ``(r,)``, descending, float64: never above the eigenvalues that they stand for.
        vectors: Ritz vectors ``(P, r)``, orthonormal.
        residuals: ``|H v - value v|`` ``(r,)``, float64: some eigenvalue is within so much of the value.
    """

    values: Tensor
    vectors: Tensor = field(repr=False)
    residuals: Tensor = field(repr=False)

    @property
    def rank(self) -> int:
        """How many there are."""
        return self.vectors.shape[1]

    def overlap(self, other: Tensor | Eigenspace) -> Overlap:
        """What the eigenspace has in common with some of the coordinates, such as the largest weights, or with another.

        Fernandez et al. (2025, arXiv 2504.14701), for masks of as many parameters as there are eigenvectors. Differs from the
        paper: the dimensions may differ.

        Args:
            other: A mask of coordinates ``(P,)``, bool, or an eigenspace.

        Raises:
            InputError: If it is of another size, or empty.
        """
        size, rank = self.vectors.shape
        if isinstance(other, Eigenspace):
            count, fits = other.rank, other.vectors.shape[0] == size
        else:
            if other.dtype != torch.bool:
                raise InputError(
                    f"`other` must be a mask of truth values. Got {other.dtype}. Compare weights: w > limit."
                )
            count, fits = int(other.sum()), other.shape == (size,)
        if not fits or count == 0 or rank == 0:
            got = tuple(other.vectors.shape) if isinstance(other, Eigenspace) else tuple(other.shape)
            raise InputError(
                f"`other` must choose some of the {size} coordinates of {rank} eigenvectors. Got {count} of shape {got}."
            )
        along = (
            other.vectors.mT.double() @ self.vectors.double() if isinstance(other, Eigenspace) else self.vectors[other]
        )
        least, most = sorted((count, rank))
        return Overlap(float(along.double().square().sum()) / least, most / size)


def eigenspace(product: Callable[[Tensor], Tensor], start: Tensor, rank: int, *, passes: int = 5) -> Eigenspace:
    """Leading eigenspace of a symmetric matrix by a block Krylov space of a random start, with Rayleigh-Ritz.

    Musco and Musco (2015, arXiv 1504.05477), algorithm 2: a few passes resolve what subspace iteration takes many for. Two
    arrays ``(P, passes k)`` of memory.

    Args:
        product: The matrix H times a block ``(P, k)``.
        start: Random columns ``(P, k)``, such as random mixtures of H's columns.
        rank: Eigenvectors wanted.
        passes: Products with H, at least 1; together with as many columns as ``start`` has, no fewer than the rank.

    Raises:
        InputError: If passes and columns are fewer than the rank.

    Examples:
        >>> matrix = torch.diag(torch.tensor([5.0, 3.0, 1.0, 0.1])).double()
        >>> found = eigenspace(lambda block: matrix @ block, torch.eye(4)[:, :3].double(), 2)
        >>> found.values.tolist()
        [5.0, 3.0]
        >>> found.overlap(torch.tensor([True, True, False, False]))
        Overlap(share=1.0, chance=0.5)
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
    return Eigenspace(values, vectors, residuals.double().norm(dim=0))


def _beyond(block: Tensor, basis: Tensor, size: float) -> Tensor:
    """An orthonormal basis of what columns ``(P, k)`` add to another one, up to rounding of their size."""
    floor = (_ROUNDING * torch.finfo(block.dtype).eps * size) ** 2
    for _ in range(2):
        block = block - basis @ (basis.mT @ block)
        gram = block.mT.double() @ block.double()
        block = block @ whitening(gram, floor).to(block)
        floor = 0.5
    return block
