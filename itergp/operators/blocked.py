"""``BlockedOperator``: entries evaluated in cache-sized blocks and thrown away."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from itergp.operators.base import KernelOperator
from itergp.operators.block_product import BlockProduct
from itergp.operators.block_store import BlockStore
from itergp.operators.tiles import side_of_block, symmetric


class BlockedOperator(KernelOperator):
    """Evaluates each block of the symmetric kernel matrix once per pass and uses it for its rows and its columns.

    Blocks of kernels that the package evaluates itself (RBF, Matern, those of ``itergp.kernels``, sums and products of these)
    are shared among PyTorch's threads. Other kernels, whose code may not bear it, are evaluated one block after another.

    Cost of a pass: ``N (N + 1) / 2`` kernel entries and ``2 N^2 k`` multiply-adds per kernel; memory: one block for each
    thread. Any GPyTorch kernel works.
    """

    def _matmul(self, block: Tensor) -> Tensor:
        product, evaluate = BlockProduct(block, self.num_kernels, self.num_rows), self._evaluator()

        def multiply(i: slice, j: slice) -> int:
            entries, new = evaluate(i, j)
            product.add(i, entries, j)
            if j.start != i.start:
                product.add(j, entries.mT, i)
            return new

        columns = 0 if self.keeps_entries else block.shape[-1]  # what is kept serves every number of columns
        side, threads = side_of_block(self.device, self.num_kernels, columns), self._threads(self.num_rows**2 // 2)
        self.counts.entries += symmetric(self.num_rows, side, multiply, threads)
        return product.result()

    def _evaluator(self) -> Callable[[slice, slice], tuple[Tensor, int]]:
        """A function of slices of rows and of columns: entries ``(C', b, m)``, and how many of them are new."""
        features, diagonal = self.features(self.inputs), self.diagonal().detach()

        def evaluate(i: slice, j: slice) -> tuple[Tensor, int]:
            entries = self._block(features[..., i, :], features[..., j, :])
            if j.start == i.start:
                # Exact, where a rounded distance would not be; what a kernel's forward returned may be its own.
                entries = entries if self._form is not None else entries.clone()
                entries.diagonal(dim1=-2, dim2=-1).copy_(diagonal[:, i])
            return entries, entries.numel()

        return evaluate


class DenseOperator(BlockedOperator):
    """Evaluates every block once, on the first pass, and keeps it: ``C' N^2 / 2`` numbers.

    Each following pass only multiplies.
    """

    keeps_entries = True

    @functools.cached_property
    def _kept(self) -> BlockStore:
        return BlockStore(self.num_kernels * self.num_rows * (self.num_rows + 1) // 2)

    def _evaluator(self) -> Callable[[slice, slice], tuple[Tensor, int]]:
        """The kept blocks, evaluated when they are first wanted."""
        fresh, kept = functools.cache(super()._evaluator), self._kept
        if not kept:
            fresh()  # here, not in a thread: the diagonal comes from the kernel's own code

        def find(i: slice, j: slice) -> tuple[Tensor, int]:
            if (i.start, j.start) in kept:
                return kept[i.start, j.start], 0
            entries, new = fresh()(i, j)
            return kept.keep((i.start, j.start), entries), new

        return find

    def dense(self) -> Tensor:
        """The kernel matrices ``(C', N, N)``, of the kept blocks: one pass, which evaluates what is not kept yet."""
        evaluate = self._evaluator()
        matrix = self.inputs.new_empty(self.num_kernels, self.num_rows, self.num_rows, dtype=self.dtype)

        def write(i: slice, j: slice) -> int:
            entries, new = evaluate(i, j)
            matrix[:, i, j] = entries
            matrix[:, j, i] = entries.mT
            return new

        side, threads = side_of_block(self.device, self.num_kernels, 0), self._threads(self.num_rows**2 // 2)
        self.counts.entries += symmetric(self.num_rows, side, write, threads)
        self.counts.passes += 1
        return matrix

    def release(self) -> None:
        """Frees the kept blocks."""
        super().release()
        vars(self).pop("_kept", None)
