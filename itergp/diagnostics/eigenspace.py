"""Leading eigenspaces of matrices that are only multiplied by, and what they have in common with choices of parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from itergp.errors import InputError


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
