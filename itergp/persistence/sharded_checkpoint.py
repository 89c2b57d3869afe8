"""``ShardedCheckpoint``: the files of processes that work on rows together."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from itergp.errors import InputError
from itergp.parallel import RowPartition
from itergp.persistence.checkpoint import REMEDY, CheckpointFile
from itergp.persistence.codec import StateDict

_LATEST = "latest"


class ShardedCheckpoint:
    """The checkpoint of a solve whose rows are sharded among processes.

    Each process writes its rows to files of its own beside ``path``, now to one, now to the other of two. Once all have, the
    first process replaces ``path``, which says which of the two they are. Whatever is killed, and when, the files that ``path``
    points to are of the same step.

    Args:
        path: The file that points to the others, in a folder that all processes see.
        rows: The rows of this process.
        every: Seconds between writes; 0 writes after every step, whatever that costs.
        identity: What the result depends on, by name; see ``identify``.
        device: Where arrays are wanted.
        size: Bytes that must be free on the disk for each process.

    Raises:
        InputError: In every process, if in one of them a file cannot be written, is damaged, or is the checkpoint of something
            else.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        rows: RowPartition,
        *,
        every: float,
        identity: dict[str, Any],
        device: torch.device,
        size: int,
    ) -> None:
        self._rows, self._latest, seen = rows, 0, -1
        with errors_everywhere(rows):
            common: dict[str, Any] = {"every": every, "task": "condition", "device": device}
            common["identity"] = identity | {"the number of processes": rows.num_processes}
            self._pointer = CheckpointFile(path, **common)
            pointed = self._pointer.checkpoint_state
            if pointed is not None:
                self._latest = seen = pointed.values[_LATEST]
            self._parts = [
                CheckpointFile(
                    self._pointer.path.with_name(f"{self._pointer.path.name}.{rows.start()}.{index}"),
                    size=size,
                    resume=pointed is not None and index == self._latest,
                    **common,
                )
                for index in range(2)
            ]
            if pointed is not None and self.checkpoint_state is None:
                missing = str(self._parts[self._latest].path)
                raise InputError(
                    f"`checkpoint` must have a file for every process beside it. Got no {missing!r}. {REMEDY}"
                )
        require_one_file(rows, seen, device)

    @property
    def checkpoint_state(self) -> StateDict | None:
        """What an earlier run saved of these rows, or None if there is nothing."""
        return self._parts[self._latest].checkpoint_state

    def due(self) -> bool:
        """Whether it is time to write, for some process: all do it together."""
        return self._rows.all_reduce_any(all(part.due() for part in self._parts))

    def save(self, state: StateDict) -> bool:
        """Writes the rows of every process, and returns whether that could be done; if not, what was saved before stays."""
        index = 1 - self._latest
        if self._rows.all_reduce_any(not self._parts[index].save(state)):
            return False
        if self._rows.all_reduce_any(self._rows.first and not self._pointer.save(StateDict({}, {_LATEST: index}))):
            return False
        self._latest = index
        return True


def remove_checkpoint(path: Path) -> None:
    """Removes the files of a ``ShardedCheckpoint``, its own and those of the processes beside it, as far as there are any."""
    for file in path.parent.glob(f"{glob.escape(path.name)}*"):
        file.unlink()


@contextmanager
def errors_everywhere(rows: RowPartition) -> Iterator[None]:
    """What one process finds wrong with its checkpoint, every process reports.

    Raises:
        InputError: In every process, if one finds an error; where that is an ``OSError``, itself.
    """
    error: Exception | None = None
    try:
        yield
    except (InputError, OSError) as caught:
        error = caught
    if rows.all_reduce_any(error is not None):
        raise error or InputError(
            "`checkpoint` must be a file that every process can read and write. Got an error in another process, which "
            "says why. Choose a folder that all of them see, or delete the file to begin anew."
        )


def require_one_file(rows: RowPartition, number: int, device: torch.device) -> None:
    """Every process must have read the same checkpoint: what is in it has a number, -1 if there is none.

    Raises:
        InputError: In every process, if some have read another.
    """
    if rows.all_reduce_any(number != int(rows.broadcast(torch.tensor(number, device=device)))):
        raise InputError(
            "`checkpoint` must be one file that every process sees. Got another state of it, or none, in some process. "
            "Choose a folder that all of them share."
        )
