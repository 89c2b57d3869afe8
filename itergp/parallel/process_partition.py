"""``ProcessPartition``: rows divided among the processes of ``torch.distributed``."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor

from itergp.errors import InputError, SolverError
from itergp.parallel.partition import Interrupt, RowPartition
from itergp.parallel.process_group import collective, connect, disconnect


@dataclass(frozen=True)
class ProcessPartition(RowPartition):
    """Consecutive rows for each process, nearly equally many.

    Attributes:
        bounds: First rows of the processes, and the number of all rows.
        rank: Number of this process.
        device: Device of what is sent.
    """

    bounds: tuple[int, ...]
    rank: int
    device: torch.device = field(compare=False)

    @classmethod
    def divide(cls, total: int, device: torch.device) -> ProcessPartition:
        """The own share of ``total`` rows.

        Raises:
            InputError: If there are fewer rows than processes, or the backend does not fit the device.
        """
        rank, size = connect(device)
        if total < size:
            raise InputError(f"Every process must get a row. Got {total} row(s) for {size} processes. Start fewer.")
        return cls(tuple(p * total // size for p in range(size + 1)), rank, device)

    @property
    def num_processes(self) -> int:
        """Number of processes P."""
        return len(self.bounds) - 1

    def sharing(self, device: torch.device) -> int:
        """Processes on this machine, as torchrun tells, otherwise all; each has a CUDA device of its own."""
        return (
            min(self.num_processes, int(os.environ.get("LOCAL_WORLD_SIZE", self.num_processes)))
            if device.type == "cpu"
            else 1
        )

    @property
    def first(self) -> bool:
        """Whether this is the process that draws and writes."""
        return self.rank == 0

    def local_size(self, global_size: int) -> int:
        """Number of local rows."""
        return self.bounds[self.rank + 1] - self.bounds[self.rank]

    def largest_local_size(self, global_size: int) -> int:
        """Number of local rows in the process that has most of them."""
        return max(stop - start for start, stop in itertools.pairwise(self.bounds))

    def global_size(self, local_size: int) -> int:
        """Number of all rows."""
        return self.bounds[-1]

    def start(self) -> int:
        """Number of the first local row."""
        return self.bounds[self.rank]

    def local(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The local rows of a tensor of all rows, in memory of their own."""
        return tensor.narrow(dim, self.start(), self.local_size(self.bounds[-1])).clone()

    def gather(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """A tensor of all rows, in every process."""
        sizes = [stop - start for start, stop in zip(self.bounds, self.bounds[1:], strict=False)]
        rows = tensor.movedim(dim, 0)
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        collective(dist.all_gather, parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).movedim(0, dim).contiguous()

    def select(self, tensor: Tensor, numbers: Tensor, dim: int = 0) -> Tensor:
        """Some of all rows, in every process."""
        rows = tensor.movedim(dim, 0)
        taken = rows.new_zeros(numbers.numel(), *rows.shape[1:])
        which, local = self.local_indices(numbers)
        taken[which] = rows[local]
        return self.all_reduce_sum(taken).movedim(0, dim)

    def local_indices(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Which of some row numbers are local rows, and their numbers among these."""
        which = ((numbers >= self.start()) & (numbers < self.bounds[self.rank + 1])).nonzero().squeeze(-1)
        return which, numbers[which] - self.start()

    @overload
    def all_reduce_sum(self, value: Tensor) -> Tensor: ...

    @overload
    def all_reduce_sum(self, value: float) -> float: ...

    def all_reduce_sum(self, value: Tensor | float) -> Tensor | float:
        """The sum of every process's tensor, which may be overwritten, or number; bit by bit the same in all of them."""
        if not torch.is_tensor(value):
            return float(self.all_reduce_sum(self._number(value)))
        value = value.contiguous()
        if value.numel():
            collective(dist.all_reduce, value)
        return value

    def all_reduce_max(self, value: Tensor) -> Tensor:
        """The elementwise largest of every process's value."""
        value = value.clone(memory_format=torch.contiguous_format)
        if value.numel():
            collective(dist.all_reduce, value, op=dist.ReduceOp.MAX)
        return value

    def all_reduce_any(self, flag: bool) -> bool:
        """Whether the flag is set in some process."""
        return bool(self.all_reduce_max(self._number(float(flag))) > 0.0)

    def broadcast(self, value: Tensor) -> Tensor:
        """The first process's value, whatever its shape."""
        shape = torch.tensor(value.shape, dtype=torch.int64, device=self.device)
        collective(dist.broadcast, shape, 0)
        wanted = tuple(shape.tolist())
        value = value.contiguous() if tuple(value.shape) == wanted else value.new_empty(wanted)
        if value.numel():
            collective(dist.broadcast, value, 0)
        return value

    def require_same(self, name: str, content: Mapping[str, str]) -> None:
        """Something that every process must have alike.

        Args:
            name: What it is.
            content: Its parts by name, as text: tensors by the hash of their content.

        Raises:
            InputError: In every process, if they differ.
        """
        mine = torch.tensor([*json.dumps(dict(content)).encode()], dtype=torch.uint8, device=self.device)
        first = json.loads(bytes(self.broadcast(mine).tolist()))
        others = sorted(part for part in first.keys() | content.keys() if first.get(part) != content.get(part))
        if self.all_reduce_any(bool(others)):
            got = f"{', '.join(others[:3])} unlike the first process" if others else "other ones in another process"
            raise InputError(
                f"Every process must have the same {name}. Got {got}. Load the same data in the same order, and seed "
                "random numbers and shuffles alike everywhere; torch.distributed.broadcast copies a tensor to all."
            )

    @contextmanager
    def collective_section(self) -> Iterator[Interrupt]:
        """Ends the work of all processes when this one fails; Ctrl-C waits until all of them can stop."""
        interrupt = Interrupt()
        main = threading.current_thread() is threading.main_thread()

        def press(*_: Any) -> None:
            interrupt.pressed = True

        before = signal.signal(signal.SIGINT, press) if main else None
        try:
            with self.abort_together():
                yield interrupt
        finally:
            if main:
                signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)

    @contextmanager
    def abort_together(self) -> Iterator[None]:
        """Tells the others when an error ends what this process does with them."""
        try:
            yield
        except (InputError, SolverError):
            raise  # found by all processes alike, or a connection that is already closed
        except BaseException:
            disconnect()
            raise

    def __deepcopy__(self, memo: dict[int, Any]) -> ProcessPartition:
        """Itself: a copy belongs to the same process."""
        return self

    def __reduce__(self) -> Any:
        """Refuses to be pickled: the rows of one process mean nothing elsewhere."""
        raise InputError(
            "A model whose rows are shared by processes cannot be pickled. Got one with the rows of one process. "
            "Call model.save(path) in every process."
        )

    def _number(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.device)
