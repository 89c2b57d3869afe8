"""``BlockProduct``: a product with a kernel matrix, added up block by block."""

from __future__ import annotations

from torch import Tensor

# Fewer columns are kept as rows: matrix products then take a third to a half of the time.
_FEW_COLUMNS = 24


class BlockProduct:
    """Sums of blocks of entries times the vectors of their columns.

    Args:
        vectors: What is multiplied: ``(N, k)``, ``(1, N, k)`` or ``(C', N, k)``.
        num_kernels: Kernels C'.
        num_rows: Rows M of the product.
        into: What the products are added to, ``(C', M, k)``, and may be written over; default zeros.
    """

    def __init__(self, vectors: Tensor, num_kernels: int, num_rows: int, into: Tensor | None = None) -> None:
        columns = vectors.shape[-1]
        self._few = columns < _FEW_COLUMNS
        vectors = vectors if vectors.dim() == 3 else vectors.unsqueeze(0)
        self._vectors = (vectors.mT.contiguous() if self._few else vectors).expand(num_kernels, -1, -1)
        if into is None:
            shape = (num_kernels, columns, num_rows) if self._few else (num_kernels, num_rows, columns)
            self._sums = vectors.new_zeros(shape)
        else:
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
