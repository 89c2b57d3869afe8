"""``Rows``: which rows of the training data this process holds, and sums over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from itergp.errors import InputError


@dataclass(frozen=True)
class Rows:
    """All rows, in this process: sums over rows are complete as they are.

    Arrays with one entry per row hold the own rows of a process; whatever is summed over rows goes through ``sum``, so that
    the same code serves one process and many. Small matrices are then equal in all processes, and so is every decision.
    """

    @property
    def processes(self) -> int:
        """Number of processes P."""
        return 1

    @property
    def sharded(self) -> bool:
        """Whether there are other processes."""
        return self.processes > 1

    def sharing(self, device: torch.device) -> int:
        """Number of processes that share the memory of a device."""
        return 1

    @property
    def first(self) -> bool:
        """Whether this is the process that draws and writes."""
        return True

    def count(self, total: int) -> int:
        """Number of own rows among ``total``."""
        return total

    def whole(self, own: int) -> int:
        """Number of all rows, when ``own`` are here."""
        return own

    def start(self) -> int:
        """Number of the first own row."""
        return 0

    def local(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The own rows of a tensor of all rows."""
        return tensor

    def gather(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """A tensor of all rows from the own rows of every process."""
        return tensor

    def take(self, tensor: Tensor, numbers: Tensor, dim: int = 0) -> Tensor:
        """Some of all rows, by their numbers ``(m,)``, in every process, of a tensor of the own rows."""
        return tensor.movedim(dim, 0)[numbers].movedim(0, dim)  # index_select copies all of an array with gaps

    def here(self, numbers: Tensor) -> tuple[Tensor | slice, Tensor]:
        """Which of some row numbers ``(m,)`` are own rows, and their numbers among these."""
        return slice(None), numbers

    def sum(self, value: Tensor) -> Tensor:
        """The sum of every process's value, which may be overwritten."""
        return value

    def total(self, value: float) -> float:
        """The sum of every process's number."""
        return value

    def largest(self, value: Tensor) -> Tensor:
        """The elementwise largest of every process's value."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in some process."""
        return flag

    def same(self, value: Tensor) -> Tensor:
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

    @contextmanager
    def alive(self) -> Iterator[None]:
        """What one process does while others wait for it: an unexpected error ends theirs too."""
        yield

    @contextmanager
    def together(self) -> Iterator[Interrupt]:
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


ALL_ROWS = Rows()


def evenly_spaced(size: int, most: int, device: torch.device) -> Tensor:
    """At most so many of ``size`` row numbers, the first and the last among them."""
    number = min(size, most)
    return torch.arange(number, device=device) * (size - 1) // max(1, number - 1)


def sample_of_rows(inputs: Tensor, most: int) -> Tensor:
    """At most so many rows of inputs ``(..., N, D)``, evenly spaced."""
    return inputs[..., evenly_spaced(inputs.shape[-2], most, inputs.device), :]


def require_everywhere(rows: Rows, name: str, value: object) -> None:
    """What processes do together at given points must be asked for in all of them.

    Raises:
        InputError: In every process, if an argument is given in some only.
    """
    if rows.any(value is not None) and rows.any(value is None):
        raise InputError(
            f"`{name}` must be given in every process that shares the rows. Got it in some only. Pass it in all."
        )
