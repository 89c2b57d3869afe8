"""``ShardedOperator``: the kernel matrix divided among processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from itergp.errors import InputError
from itergp.operators.base import KernelOperator
from itergp.operators.block_product import BlockProduct
from itergp.operators.block_store import BlockStore
from itergp.operators.blocked import BlockedOperator, DenseOperator
from itergp.operators.tiles import rectangular, side_of_block, slices
from itergp.parallel import ProcessPartition
from itergp.parallel.process_group import exchange
from itergp.persistence.digest import digest


class ShardedOperator(KernelOperator):
    """Products with rows divided among processes: blocks go in and come out by own rows.

    Every block of the symmetric matrix is evaluated by one process, for its rows and its columns: ``N (N + 1) / (2 P)``
    entries each, kept when they fit the memory budget. A process multiplies its own diagonal block, and rectangles of its
    rows with those of the processes that follow it in a ring; their vectors come, and their products go, in pieces. So
    the memory of a process falls with the number P of processes, except for the inputs, which all of them have.

    Args:
        kernel: Any GPyTorch kernel, the same in every process.
        inputs: All training inputs ``(N, D)``, or ``(C, N, D)``.
        num_kernels: ``C'``.
        memory_budget: Bytes for cached entries of this process; default a quarter of the free memory, divided by the processes
            on this machine.

    Raises:
        InputError: If there are fewer rows than processes, or the backend does not fit the device.
    """

    rows: ProcessPartition

    def __init__(
        self, kernel: Kernel, inputs: Tensor, *, num_kernels: int = 1, memory_budget: int | None = None
    ) -> None:
        super().__init__(kernel, inputs, num_kernels=num_kernels, memory_budget=memory_budget)
        self.rows = ProcessPartition.divide(self.num_rows, self.device)
        if memory_budget is None:
            self.memory_budget //= self.rows.sharing(self.device)
        # What is kept of the search follows from it, and must be the same everywhere.
        self.memory_budget = int(self.rows.broadcast(torch.tensor(self.memory_budget, device=self.device)))
        self._rectangles = [_Rectangle.of(self.rows, step) for step in range(1, self.rows.num_processes // 2 + 1)]
        entries = self.num_own_rows**2 // 2 + sum(r.size for r in self._rectangles)
        fits = self.keeps_entries = entries * num_kernels * inputs.element_size() <= self.memory_budget
        own = inputs[..., self.rows.start() : self.rows.start() + self.num_own_rows, :]
        kind = DenseOperator if fits else BlockedOperator
        self._own = kind(kernel, own, num_kernels=num_kernels, memory_budget=self.memory_budget)
        self._own.counts = self.counts
        self._kept: BlockStore | None = None
        self.release()

    # --------------------------------------------------------------- products
    def matmul(self, block: Tensor) -> Tensor:
        """``K_c`` times a block: one pass, in all processes together.

        Args:
            block: Own rows, ``(n, k)`` or ``(C', n, k)``.

        Returns:
            ``(C', n, k)``.

        Raises:
            InputError: If a derivative is wanted.
        """
        if self._needs_grad(self.inputs, block):
            raise InputError(
                "Products with rows shared by processes have no derivatives in hyperparameters. Got some that require "
                "them. Learn with operator='auto' on a subset, or call this under torch.no_grad()."
            )
        return super().matmul(block)

    def cross_matmul(self, inputs: Tensor, block: Tensor) -> Tensor:
        """``k_c(inputs, X)`` times a block ``(n, k)`` or ``(C', n, k)`` of own rows: ``(C', M, k)``, complete in every process.

        Raises:
            InputError: If ``inputs`` or their order differ between processes.
        """
        self.rows.require_same("new inputs", {"inputs": digest(inputs)})
        with self.rows.abort_together():
            if torch.is_grad_enabled() and inputs.requires_grad:
                product = self._own.cross_matmul(_Shared.apply(inputs, self.rows), block)
                return _Summed.apply(product, self.rows)
            return self.rows.all_reduce_sum(self._own.cross_matmul(inputs, block))

    def diagonal(self, inputs: Tensor | None = None) -> Tensor:
        """Prior variances ``(C', M)`` at ``inputs``; default: the own training rows."""
        return self._own.diagonal(inputs)

    def release(self) -> None:
        """Frees cached entries."""
        super().release()
        self._own.release()
        self._kept = (
            BlockStore(self.num_kernels * sum(r.size for r in self._rectangles)) if self.keeps_entries else None
        )

    def dense(self) -> Tensor:
        """Refused: no process holds the matrix.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "The dense kernel matrix must be in one process. Got rows shared by several. Use operator='dense'."
        )

    # ----------------------------------------------------------------- inside
    def _matmul(self, block: Tensor) -> Tensor:
        out = self._own._matmul(block)
        right = block if block.dim() == 3 else block.unsqueeze(0)
        features = None if self._kept else self.features(self._own.inputs)
        for step, rectangle in enumerate(self._rectangles, 1):
            out = self._multiply(rectangle, _Rectangle.served(self.rows, step), features, right, out)
        return out

    def _multiply(
        self, own: _Rectangle, served: _Rectangle, features: Tensor | None, right: Tensor, out: Tensor
    ) -> Tensor:
        """Adds the products of an own rectangle, and those that the process which has ours as columns sends back."""
        start, width, columns = self.rows.start(), 2 * side_of_block(self.device, self.num_kernels), right.shape[-1]
        asked, given = own.column_slices(width), served.column_slices(width)
        for k in range(max(len(asked), len(given))):
            j = asked[k] if k < len(asked) else None
            mine = slice(given[k].start - start, given[k].stop - start) if k < len(given) else None
            received = None if j is None else right.new_empty(right.shape[0], j.stop - j.start, columns)
            exchange(None if mine is None else right[:, mine].contiguous(), served.rank, received, own.peer)
            back = None  # products for the rows that the columns are
            if j is not None and received is not None:
                out, back = self._multiply_piece(own, j, features, right, received, out)
            del received
            returned = None if mine is None else out.new_empty(self.num_kernels, mine.stop - mine.start, columns)
            exchange(back, own.peer, returned, served.rank)
            if mine is not None and returned is not None:
                out[:, mine] += returned
        return out

    def _multiply_piece(
        self, own: _Rectangle, j: slice, features: Tensor | None, right: Tensor, received: Tensor, out: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Adds the products of some columns of a rectangle to those of its rows, and makes those of the columns."""
        first, height, width = own.rows.start - self.rows.start(), own.rows.stop - own.rows.start, j.stop - j.start
        kept, columns = self._kept, None if features is None else self.features(self.inputs[..., j, :])
        forth = BlockProduct(received, self.num_kernels, out.shape[1], into=out)
        back = BlockProduct(right, self.num_kernels, width)

        def multiply(of_rows: slice, k: slice) -> int:
            i, key, new = slice(first + of_rows.start, first + of_rows.stop), (of_rows.start, j.start + k.start), 0
            if features is None or columns is None:
                assert kept is not None
                entries = kept[key]
            else:
                entries = self._block(features[..., i, :], columns[..., k, :])
                new = entries.numel()
                entries = entries if kept is None else kept.keep(key, entries)
            forth.add(i, entries, k)
            back.add(k, entries.mT, i)
            return new

        side, threads = side_of_block(self.device, self.num_kernels), self._threads(height * width)
        self.counts.entries += rectangular(height, width, side, multiply, threads)
        return forth.result(), back.result().contiguous()


@dataclass(frozen=True)
class _Rectangle:
    """Rows of one process and columns of another.

    Attributes:
        rank: Who evaluates it.
        peer: Whose rows the columns are.
        rows: Rows, by number among all.
        columns: Columns, by number among all.
    """

    rank: int
    peer: int
    rows: slice
    columns: slice

    @classmethod
    def of(cls, shares: ProcessPartition, step: int, rank: int | None = None) -> _Rectangle:
        """That of a process with the one ``step`` places after it; opposite ones in the ring take half of theirs each."""
        bounds, size = shares.bounds, shares.num_processes
        rank = shares.rank if rank is None else rank
        peer = (rank + step) % size
        rows, columns = slice(bounds[rank], bounds[rank + 1]), slice(bounds[peer], bounds[peer + 1])
        if 2 * step == size:
            low, high = sorted((rank, peer))
            middle = (bounds[high] + bounds[high + 1]) // 2
            if rank == low:
                columns = slice(columns.start, middle)
            else:
                rows = slice(middle, rows.stop)
        return cls(rank, peer, rows, columns)

    @classmethod
    def served(cls, shares: ProcessPartition, step: int) -> _Rectangle:
        """The one whose columns are the own rows of this process."""
        return cls.of(shares, step, (shares.rank - step) % shares.num_processes)

    @property
    def size(self) -> int:
        """Entries."""
        return (self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start)

    def column_slices(self, width: int) -> list[slice]:
        """Pieces of the columns."""
        return slices(self.columns.stop - self.columns.start, width, self.columns.start)


class _Shared(torch.autograd.Function):
    """A tensor that all processes have; its derivative is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rows: ProcessPartition) -> Tensor:
        ctx.rows = rows
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Summed.apply(grad, ctx.rows), None


class _Summed(torch.autograd.Function):
    """The sum of every process's value, of which all of them go on to compute the same."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rows: ProcessPartition) -> Tensor:
        return rows.all_reduce_sum(value.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
