"""Checkpoints: a running computation in a file, and the file's right to be continued."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from itergp._version import __version__
from itergp.errors import InputError, ItergpWarning
from itergp.models.files import read_file, write_file
from itergp.models.saving import pack_solution, unpack_solution
from itergp.operators import Prior, make_operator
from itergp.operators.rows import Rows
from itergp.solvers import Reason, Solution
from itergp.solvers.base import is_nonnegative
from itergp.solvers.packing import Packed, require_resumable

if TYPE_CHECKING:
    from itergp.models.nonconjugate_gp import NonConjugateGP

_REMEDY = "Delete the file to begin anew, or pass another path."
_KIND, _FINISHED, _LATEST = "checkpoint", "finished", "latest"
_SHARE = 0.05  # of the time, at most, that goes into writing
_PROBE_ROWS = 16
_HASH_ROWS = 2**24  # bytes of data hashed at a time
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


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
        self._earlier = self._read(device) if resume else None

    @property
    def earlier(self) -> Packed | None:
        """What an earlier run kept, or None if there is no file."""
        return self._earlier

    def due(self) -> bool:
        """Whether it is time to write: the interval is over, and writing takes up little of it."""
        interval = max(self.every, self._spent / _SHARE) if self.every > 0.0 else 0.0
        return time.perf_counter() - self._written >= interval

    def keep(self, packed: Packed) -> bool:
        """Writes the file, and returns whether it could; warns if not."""
        begun = time.perf_counter()
        about = {"kind": _KIND, "task": self.task, "identity": self.identity, "values": packed.values}
        written = False
        try:
            write_file(self.path, *_contiguous(packed.arrays, about))
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

    def _read(self, device: torch.device) -> Packed | None:
        if not self.path.exists():
            return None
        arrays, about = read_file(self.path, name="checkpoint", remedy=_REMEDY)
        if about.get("kind") != _KIND or about.get("task") != self.task:
            got = f"a checkpoint of {about['task']!r}" if about.get("kind") == _KIND else f"a saved {about.get('kind')}"
            raise InputError(
                f"`checkpoint` must be a checkpoint of {self.task!r}. Got {str(self.path)!r}, {got}. Pass another path."
            )
        found = difference(about["identity"], self.identity)
        if found is not None:
            name, theirs, ours = found
            raise InputError(
                f"`checkpoint` must be of the same model, data, hyperparameters and settings. Got {str(self.path)!r}, where "
                f"{name} differs: {theirs} in the file, {ours} here. {_REMEDY}"
            )
        return Packed(_in_order(arrays, about["orders"]), about["values"]).to(device)


@dataclass
class Within:
    """A part of a checkpoint that another computation keeps, beside what the outer one has to say.

    Attributes:
        file: The file.
        name: Of the part.
        outer: What goes into the file besides.
        earlier: The part as an earlier run kept it.
    """

    file: CheckpointFile
    name: str
    outer: Packed
    earlier: Packed | None = None

    def due(self) -> bool:
        """Whether it is time to write."""
        return self.file.due()

    def keep(self, packed: Packed) -> bool:
        """Writes both, and returns whether that could be done."""
        whole = Packed(dict(self.outer.arrays), dict(self.outer.values))
        whole.add(self.name, packed)
        return self.file.keep(whole)


class DividedCheckpoint:
    """The checkpoint of a solve whose rows are divided among processes.

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
        rows: Rows,
        *,
        every: float,
        identity: dict[str, Any],
        device: torch.device,
        size: int,
    ) -> None:
        self._rows, error = rows, None
        try:
            common: dict[str, Any] = {"every": every, "task": "condition", "device": device}
            common["identity"] = identity | {"the number of processes": rows.processes}
            self._pointer = CheckpointFile(path, **common)
            pointed = self._pointer.earlier
            self._latest = 0 if pointed is None else pointed.values[_LATEST]
            self._parts = [
                CheckpointFile(
                    self._pointer.path.with_name(f"{self._pointer.path.name}.{rows.start()}.{index}"),
                    size=size,
                    resume=pointed is not None and index == self._latest,
                    **common,
                )
                for index in range(2)
            ]
            if pointed is not None and self.earlier is None:
                missing = str(self._parts[self._latest].path)
                raise InputError(f"`checkpoint` must have a file for every process. Got no {missing!r}. {_REMEDY}")
        except InputError as caught:
            error = caught
        if rows.any(error is not None):
            raise error or InputError(
                "`checkpoint` must be a file that every process can read and write. Got an error in another process, which "
                "says why. Choose a folder that all of them see."
            )

    @property
    def earlier(self) -> Packed | None:
        """What an earlier run kept of these rows, or None if there is nothing."""
        return self._parts[self._latest].earlier

    def due(self) -> bool:
        """Whether it is time to write, for some process: all do it together."""
        return self._rows.any(all(part.due() for part in self._parts))

    def keep(self, packed: Packed) -> bool:
        """Writes the rows of every process, and returns whether that could be done; if not, what was kept before stays."""
        index = 1 - self._latest
        if self._rows.any(not self._parts[index].keep(packed)):
            return False
        if self._rows.any(self._rows.first and not self._pointer.keep(Packed({}, {_LATEST: index}))):
            return False
        self._latest = index
        return True


# ---------------------------------------------------------------------- identity
def identify(model: NonConjugateGP, **settings: Any) -> dict[str, Any]:
    """What a result depends on, by name: versions and kinds as text, data and hyperparameters by their SHA-256.

    Args:
        model: The model.
        **settings: Whatever else the result depends on.
    """
    noise = getattr(model.likelihood, "noise", None)  # fixed noise is neither a parameter nor a buffer
    named = {f"hyperparameter {name}": value for name, value in model.named_parameters()}
    named |= {f"buffer {name}": value for name, value in model.named_buffers()}
    named |= {"noise": noise} if torch.is_tensor(noise) else {}
    named |= {"train_targets": model.train_targets, "sample_weight": model.sample_weight}
    named |= {f"train_inputs {i}": value for i, value in enumerate(model.train_inputs)}
    kinds = {
        "the version of itergp": __version__,
        "the model's class": type(model).__qualname__,
        "the likelihood": type(model.likelihood).__qualname__,
        "the model's structure": hashlib.sha256(str(model).encode()).hexdigest(),
    }
    chosen = {"solver": model.solver, "approximation": model.approximation, "operator": model.operator_kind} | settings
    hashes = {name: None if value is None else _hash(value) for name, value in named.items()}
    texts = {name: _ADDRESS.sub("", repr(value)) for name, value in chosen.items()}
    return kinds | hashes | texts | {"the prior": _probe(model)}


def difference(theirs: dict[str, Any], ours: dict[str, Any]) -> tuple[str, str, str] | None:
    """The first name whose values differ, with both, or None."""
    for name in [*ours, *theirs]:
        first, second = theirs.get(name), ours.get(name)
        if isinstance(first, list) and isinstance(second, list):
            same = len(first) == len(second) and torch.allclose(torch.tensor(first), torch.tensor(second), rtol=1e-3)
        else:
            same = first == second
        if not same:
            return name, _short(first), _short(second)
    return None


def _probe(model: NonConjugateGP) -> list[float]:
    """Prior means and kernel entries of a few rows: they notice what is neither a parameter nor in the structure."""
    rows = torch.linspace(0, model.train_targets.shape[0] - 1, _PROBE_ROWS).long().unique()
    with torch.no_grad():
        prior: Prior = model._prior(tuple(x[rows.to(x.device)] for x in model.train_inputs))
        entries = make_operator(prior.kernel, prior.features, num_kernels=prior.num_kernels, kind="dense").dense()
    return [round(value, 8) for value in torch.cat([prior.mean.reshape(-1), entries.reshape(-1)]).double().tolist()]


def _hash(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and content, without a copy of the whole."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    rows = tensor.detach().reshape(1, -1) if tensor.dim() == 0 else tensor.detach()
    step = max(1, _HASH_ROWS // max(1, rows[:1].numel() * rows.element_size()))
    for part in rows.split(step):
        digest.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return "other values"
    return f"{value[:8]}..." if re.fullmatch(r"[0-9a-f]{64}", str(value)) else str(value)


# ------------------------------------------------------------------ conditioning
def as_keeper(
    model: NonConjugateGP, checkpoint: str | os.PathLike[str] | Within, every: float, rows: Rows
) -> CheckpointFile | Within | DividedCheckpoint:
    """Where a model's conditioning is kept: in a file of its own, in part of one, or in several."""
    require_resumable(model.solver)
    if isinstance(checkpoint, Within):
        return checkpoint
    like = model.train_inputs[0]
    latents = model.observations.likelihood.num_latents
    size = (
        4 * rows.count(like.shape[0]) * latents * like.element_size()
    )  # weights and a first direction with its product
    about: dict[str, Any] = {"every": every, "identity": identify(model), "device": like.device, "size": size}
    if rows.sharded:
        return DividedCheckpoint(checkpoint, rows, **about)
    return CheckpointFile(checkpoint, task="condition", **about)


def keep_finished(keeper: CheckpointFile | Within | DividedCheckpoint, solution: Solution) -> None:
    """The posterior in place of the state that led to it, unless the solve was interrupted and is to go on.

    Of divided rows the last state stays, from which the end is found again.
    """
    if solution.status.reason is Reason.INTERRUPTED or isinstance(keeper, DividedCheckpoint):
        return
    arrays, values = pack_solution(solution)
    keeper.keep(Packed(arrays, {_FINISHED: values}))


def finished_solution(model: NonConjugateGP, keeper: CheckpointFile | Within | DividedCheckpoint) -> Solution | None:
    """The posterior that an earlier run came to, or None if it did not get so far."""
    earlier = keeper.earlier
    if earlier is None or _FINISHED not in earlier.values:
        return None
    return unpack_solution(earlier.arrays, earlier.values[_FINISHED], model.train_inputs[0].device)


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
