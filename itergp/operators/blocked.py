"""``BlockedOperator``: entries evaluated in cache-sized blocks and thrown away."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from itergp.operators.base import _CACHE_BLOCK_COLUMNS, _CACHE_BLOCK_ROWS, KernelOperator, slices


class BlockedOperator(KernelOperator):
    """Evaluates each block of the symmetric kernel matrix once per pass and uses it for its rows and its columns.

    Cost of a pass: ``N (N + 1) / 2`` kernel entries and ``2 N^2 k`` multiply-adds per kernel; memory: one block. Any
    GPyTorch kernel works.
    """

    def _matmul(self, block: Tensor) -> Tensor:
        # Vectors are kept as rows: for a few columns the products are two to three times faster that way round.
        right = block.mT if block.dim() == 3 else block.mT.unsqueeze(0)
        right = right.contiguous().expand(self.num_kernels, -1, -1)
        out = block.new_zeros(self.num_kernels, block.shape[-1], self.num_rows)
        for i, j, entries in self.symmetric_blocks():
            for c in range(self.num_kernels):  # plain products: batched ones copy strided slices
                out[c, :, i].addmm_(right[c, :, j], entries[c].mT)
                if j.start != i.start:
                    out[c, :, j].addmm_(right[c, :, i], entries[c])
        return out.mT

    def symmetric_blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Blocks on and above the diagonal: slices of rows and of columns, and the entries ``(C', b, m)``."""
        features, diagonal = self._features(self.inputs), self.diagonal().detach()
        columns = max(_CACHE_BLOCK_ROWS, _CACHE_BLOCK_COLUMNS // self.num_kernels)
        for i in slices(self.num_rows, _CACHE_BLOCK_ROWS):
            for j in (i, *(slice(i.stop + k.start, i.stop + k.stop) for k in slices(self.num_rows - i.stop, columns))):
                entries = self._block(features, i, features, j)
                if j.start == i.start:
                    # Exact, where a rounded distance would not be; what a kernel's forward returned may be its own.
                    entries = entries if self._radial_form is not None else entries.clone()
                    entries.diagonal(dim1=-2, dim2=-1).copy_(diagonal[:, i])
                self.counts.entries += entries.numel()
                yield i, j, entries


class DenseOperator(BlockedOperator):
    """Evaluates every block once, on the first pass, and keeps it: ``C' N^2 / 2`` numbers.

    Each following pass only multiplies.
    """

    keeps_entries = True
    _kept: list[tuple[slice, slice, Tensor]] | None = None

    def symmetric_blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """The kept blocks on and above the diagonal."""
        if self._kept is None:
            self._kept = list(super().symmetric_blocks())
        yield from self._kept

    def release(self) -> None:
        """Frees the kept blocks."""
        self._kept = None
