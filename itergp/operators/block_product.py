"""``BlockProduct``: a product with a kernel matrix, added up block by block."""

from __future__ import annotations

import torch
from torch import Tensor

# Fewer columns are kept as rows: matrix products then take a third to a half of the time.
_FEW_COLUMNS = 24


class BlockProduct:
    """Sums of blocks of entries times the vectors of their columns.

    Args:
        vectors: What is multiplied, ``(C', N, k)``.
        num_rows: Rows M of the product.
        into: What the products are added to, ``(C', M, k)``, and may be written over; default zeros.
    """

    def __init__(self, vectors: Tensor, num_rows: int, into: Tensor | None = None) -> None:
        self._few = vectors.shape[-1] < _FEW_COLUMNS
        self._vectors = vectors.mT.contiguous() if self._few else vectors
        kernels, _, columns = vectors.shape
        if into is None:
            into = vectors.new_zeros((kernels, columns, num_rows) if self._few else (kernels, num_rows, columns))
            into = into.mT if self._few else into
        self._sums = into.mT.contiguous() if self._few else into

    def add(self, i: slice, entries: Tensor, j: slice) -> None:
        """Adds, at rows i, entries ``(C', b, m)`` times the vectors at rows j."""
        for c, block in enumerate(entries):  # plain products: batched ones copy strided slices
            if self._few:
                self._sums[c, :, i].addmm_(self._vectors[c, :, j], block.mT)
            else:
                self._sums[c, i].addmm_(block, self._vectors[c, j])

    def result(self) -> Tensor:
        """The product ``(C', M, k)``."""
        return self._sums.mT if self._few else self._sums


def with_kernels(block: Tensor, num_kernels: int) -> Tensor:
    """A block ``(N, k)`` or ``(C', N, k)`` as ``(C', N, k)``."""
    return torch.broadcast_to(block, (num_kernels, *block.shape[-2:]))
