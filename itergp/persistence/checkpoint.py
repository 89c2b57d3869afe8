"""``Checkpointer``: where a running computation is saved; ``CheckpointFile``: a file, which a matching run resumes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from itergp._version import __version__
from itergp.checks import is_nonnegative
from itergp.errors import InputError, ItergpWarning
from itergp.persistence.codec import StateDict
from itergp.persistence.files import FORMAT_VERSION, read_file, write_file
from itergp.persistence.identity import difference

REMEDY = "Delete the checkpoint to begin anew, or pass another path."
_KIND = "checkpoint"
_SHARE = 0.05  # of the time, at most, that goes into writing


class Checkpointer(Protocol):
    """Where a running computation saves its state."""

    @property
    def checkpoint_state(self) -> StateDict | None:
        """What an earlier run saved, or None to begin anew."""

    def due(self) -> bool:
        """Whether it is time to save the present state."""

    def save(self, state: StateDict) -> bool:
        """Saves it in place of what was saved before; returns whether that could be done."""


class CheckpointFile:
    """One file that is written again and again while something runs, each time in one step.

    Written every so many seconds, and less often where that would take more than a twentieth of the time. A write that
    fails is a warning: the computation goes on, and the file keeps what it had.

    Args:
        path: The file. If it exists, it must be a checkpoint of the same task.
        every: Seconds between writes; 0 writes after every step, whatever that costs.
        task: What is running, ``"condition"`` or ``"fit"``.
        identity: What the result depends on, by name; see ``identify``.
        device: Where arrays are wanted.
        size: Bytes that must be free on the disk.
        resume: Whether to read what the file holds; if not, it is only written.

    Raises:
        InputError: If the file cannot be written, is damaged, or is the checkpoint of something else.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        every: float,
        task: str,
        identity: dict[str, Any],
        device: torch.device,
        size: int = 0,
        resume: bool = True,
    ) -> None:
        if not is_nonnegative(every):
            raise InputError(f"`checkpoint_every` must be a number of seconds, 0 or more. Got {every!r}. Pass 30.0.")
        self.path, self.every, self.task, self.identity = Path(path), float(every), task, identity
        self._spent = 0.0
        self._written = time.perf_counter()
        self._warned = False
        self._require_room(size)
        self._state = self._read(device) if resume else None

    @property
    def checkpoint_state(self) -> StateDict | None:
        """What an earlier run saved, or None if there is no file."""
        return self._state

    def due(self) -> bool:
        """Whether it is time to write: the interval is over, and writing takes up little of it."""
        interval = max(self.every, self._spent / _SHARE) if self.every > 0.0 else 0.0
        return time.perf_counter() - self._written >= interval

    def save(self, state: StateDict) -> bool:
        """Writes the file, and returns whether it could; warns if not."""
        begun = time.perf_counter()
        about = {"kind": _KIND, "task": self.task, "identity": self.identity, "values": state.values}
        written = False
        try:
            write_file(self.path, *_contiguous(state.arrays, about))
            written = True
        except InputError as error:
            if not self._warned:
                warnings.warn(
                    f"The checkpoint should be written. It was not, and the computation goes on without: {error}",
                    ItergpWarning,
                    stacklevel=2,
                )
            self._warned = True
        self._written = time.perf_counter()
        self._spent = self._written - begun
        return written

    # ------------------------------------------------------------------ inside
    def _require_room(self, size: int) -> None:
        """A file can be made beside the checkpoint, and there is room for it. Removes what a killed run left there."""
        try:
            if self.path.is_dir():
                raise IsADirectoryError("a folder of that name exists")
            with tempfile.TemporaryFile(dir=self.path.parent):
                pass
            free = shutil.disk_usage(self.path.parent).free
            if free < size:
                raise OSError(f"{size:,} bytes are needed, {free:,} are free")
        except OSError as error:
            raise InputError(
                f"`checkpoint` must be a file that can be written. Got {str(self.path)!r} ({error}). "
                "Choose another folder or make room."
            ) from error
        for draft in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            with contextlib.suppress(OSError):
                draft.unlink()

    def _read(self, device: torch.device) -> StateDict | None:
        if not self.path.exists():
            return None
        arrays, about = read_file(self.path, name="checkpoint", remedy=REMEDY)
        if about.get("kind") != _KIND or about.get("task") != self.task:
            got = f"a checkpoint of {about['task']!r}" if about.get("kind") == _KIND else f"a saved {about.get('kind')}"
            raise InputError(
                f"`checkpoint` must be a checkpoint of {self.task!r}. Got {str(self.path)!r}, {got}. Pass another path."
            )
        if about["format"] != FORMAT_VERSION:
            raise InputError(
                f"`checkpoint` must be of file format {FORMAT_VERSION}, which itergp {__version__} writes. Got "
                f"{str(self.path)!r} of format {about['format']}, written by itergp {about.get('version')}. {REMEDY}"
            )
        found = difference(about["identity"], self.identity)
        if found is not None:
            name, theirs, ours = found
            raise InputError(
                f"`checkpoint` must be of the same model, data, hyperparameters and settings. Got {str(self.path)!r}, where "
                f"{name} differs: {theirs} in the file, {ours} here. {REMEDY}"
            )
        return StateDict(_in_order(arrays, about["orders"]), about["values"]).to(device)


@dataclass
class CheckpointSection:
    """A section of a checkpoint in which another computation is saved, beside what the outer one has to say.

    Attributes:
        file: The file.
        name: Of the section.
        outer: What goes into the file besides.
        checkpoint_state: The section as an earlier run saved it.
    """

    file: CheckpointFile
    name: str
    outer: StateDict
    checkpoint_state: StateDict | None = None

    def due(self) -> bool:
        """Whether it is time to write."""
        return self.file.due()

    def save(self, state: StateDict) -> bool:
        """Writes both, and returns whether that could be done."""
        whole = StateDict(dict(self.outer.arrays), dict(self.outer.values))
        whole.add_section(self.name, state)
        return self.file.save(whole)


# ------------------------------------------------------------------ memory layout
def _contiguous(arrays: dict[str, Tensor], about: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arrays with their axes in the order of memory, and those orders: a product rounds as its operands lie in memory."""
    orders = {name: order for name, value in arrays.items() if (order := _order(value)) != list(range(value.dim()))}
    stored = {name: value.permute(orders[name]) if name in orders else value for name, value in arrays.items()}
    return stored, about | {"orders": orders}


def _order(tensor: Tensor) -> list[int]:
    axes: Iterable[int] = range(tensor.dim())
    if tensor.is_contiguous() or 0 in tensor.stride():
        return list(axes)
    strides = tensor.stride()
    return sorted(axes, key=lambda axis: -strides[axis])


def _in_order(arrays: dict[str, Tensor], orders: dict[str, list[int]]) -> dict[str, Tensor]:
    def restored(name: str, value: Tensor) -> Tensor:
        order = orders.get(name)
        return value if order is None else value.permute([order.index(axis) for axis in range(len(order))])

    return {name: restored(name, value) for name, value in arrays.items()}
