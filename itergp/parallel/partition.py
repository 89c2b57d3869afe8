"""``RowPartition``: which rows of the training data this process holds, and reductions over all of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from itergp.errors import InputError

_RENAMED = {
    "processes": "num_processes",
    "count": "local_size",
    "whole": "global_size",
    "take": "select",
    "here": "local_indices",
    "sum": "all_reduce_sum",
    "total": "all_reduce_sum",
    "largest": "all_reduce_max",
    "any": "all_reduce_any",
    "same": "broadcast",
    "alive": "abort_together",
    "together": "collective_section",
}


@dataclass(frozen=True)
class RowPartition:
    """All rows, in this process: sums over rows are complete as they are.

    Arrays with one entry per row hold the local rows of a process; whatever is summed over rows goes through
    ``all_reduce_sum``, so that the same code serves one process and many. Small matrices are then equal in all processes, and
    so is every decision.
    """

    @property
    def num_processes(self) -> int:
        """Number of processes P."""
        return 1

    @property
    def sharded(self) -> bool:
        """Whether there are other processes."""
        return self.num_processes > 1

    def sharing(self, device: torch.device) -> int:
        """Number of processes that share the memory of a device."""
        return 1

    @property
    def first(self) -> bool:
        """Whether this is the process that draws and writes."""
        return True

    def local_size(self, global_size: int) -> int:
        """Number of local rows among all."""
        return global_size

    def global_size(self, local_size: int) -> int:
        """Number of all rows, when ``local_size`` are here."""
        return local_size

    def start(self) -> int:
        """Number of the first local row."""
        return 0

    def chunks(self, global_size: int, most: int) -> list[slice]:
        """Slices of the local rows, of at most ``most`` and nearly the same size: as many in every process."""
        size = self.local_size(global_size)
        number = -(-self.largest_local_size(global_size) // most)
        return [slice(size * k // number, size * (k + 1) // number) for k in range(number)]

    def largest_local_size(self, global_size: int) -> int:
        """Number of local rows in the process that has most of them."""
        return global_size

    def local(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The local rows of a tensor of all rows."""
        return tensor

    def gather(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """A tensor of all rows from the local rows of every process."""
        return tensor

    def select(self, tensor: Tensor, numbers: Tensor, dim: int = 0) -> Tensor:
        """Some of all rows, by their numbers ``(m,)``, in every process, of a tensor of the local rows."""
        return tensor.movedim(dim, 0)[numbers].movedim(0, dim)  # index_select copies all of an array with gaps

    def local_indices(self, numbers: Tensor) -> tuple[Tensor | slice, Tensor]:
        """Which of some row numbers ``(m,)`` are local rows, and their numbers among these."""
        return slice(None), numbers

    @overload
    def all_reduce_sum(self, value: Tensor) -> Tensor: ...

    @overload
    def all_reduce_sum(self, value: float) -> float: ...

    def all_reduce_sum(self, value: Tensor | float) -> Tensor | float:
        """The sum of every process's tensor, which may be overwritten, or number."""
        return value

    def all_reduce_max(self, value: Tensor) -> Tensor:
        """The elementwise largest of every process's value."""
        return value

    def all_reduce_any(self, flag: bool) -> bool:
        """Whether the flag is set in some process."""
        return flag

    def broadcast(self, value: Tensor) -> Tensor:
        """The first process's value, whatever its shape: for what a rounding error could change altogether."""
        return value

    def require_same(self, name: str, content: Mapping[str, str]) -> None:
        """Something that every process must have alike.

        Args:
            name: What it is.
            content: Its parts by name, as text: tensors by the hash of their content.

        Raises:
            InputError: If they differ between processes.
        """

    def __getattr__(self, name: str) -> Any:
        """The former names of methods, with a warning."""
        if name not in _RENAMED:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        warnings.warn(f"`{name}` of RowPartition is `{_RENAMED[name]}` now.", DeprecationWarning, stacklevel=2)
        return getattr(self, _RENAMED[name])

    @contextmanager
    def abort_together(self) -> Iterator[None]:
        """What one process does while others wait for it: an unexpected error ends theirs too."""
        yield

    @contextmanager
    def collective_section(self) -> Iterator[Interrupt]:
        """What processes do together: an unexpected error in one ends it in all of them.

        Yields:
            Whether Ctrl-C was pressed, where it must not stop a process between two sums.
        """
        yield Interrupt()


@dataclass
class Interrupt:
    """Whether a process was asked to stop.

    Attributes:
        pressed: Set by Ctrl-C where many processes work together; alone, ``KeyboardInterrupt`` is raised as ever.
    """

    pressed: bool = False


ALL_ROWS = RowPartition()


def require_everywhere(rows: RowPartition, name: str, value: object) -> None:
    """What processes do together at given points must be asked for in all of them.

    Raises:
        InputError: In every process, if an argument is given in some only.
    """
    if rows.all_reduce_any(value is not None) and rows.all_reduce_any(value is None):
        raise InputError(
            f"`{name}` must be given in every process that shares the rows. Got it in some only. Pass it in all."
        )
