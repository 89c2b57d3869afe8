"""What learning is made of while it runs, so that another process can go on with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from itergp.models import NonConjugateGP
from itergp.models.checkpoint_file import CheckpointFile, Within
from itergp.models.divided_checkpoint import errors_everywhere, remove_checkpoint, require_one_file
from itergp.models.identity import identify
from itergp.objectives.base import Objective
from itergp.parallel import RowPartition
from itergp.solvers.packing import Packed, require_resumable


def open_checkpoint(
    model: NonConjugateGP, path: str | os.PathLike[str], every: float, settings: dict[str, Any], rows: RowPartition
) -> CheckpointFile:
    """The checkpoint of ``fit`` for a model at its starting values: all processes read it, the first writes it.

    Args:
        model: The model.
        path: The file.
        every: Seconds between writes.
        settings: Arguments that the result depends on.
        rows: The rows of this process.

    Raises:
        InputError: If the file cannot be written, or is the checkpoint of something else, in every process alike.
    """
    require_resumable(model.solver)
    objective = settings["objective"]
    if isinstance(objective, Objective):
        plain = {name: v for name, v in vars(objective).items() if isinstance(v, (bool, int, float, str, type(None)))}
        settings = settings | {"objective": (type(objective).__name__, plain)}
    device = model.train_inputs[0].device
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    identity = identify(model, **settings)
    with errors_everywhere(rows):
        file = CheckpointFile(path, every=every, task="fit", identity=identity, device=device, size=4 * size)
        if rows.first and rows.sharded and (file.earlier is None or "reason" not in file.earlier.values):
            remove_checkpoint(_beside(file))  # of another run, since this one has not come so far
    require_one_file(rows, -1 if file.earlier is None else file.earlier.values["evaluations"], device)
    return file


def keep_learned(file: CheckpointFile, learned: Packed, rows: RowPartition) -> Within | Path:
    """Keeps what was learned; returns where the conditioning that follows is kept.

    That is a part of the same file, or, with rows divided among processes, files of its own beside it.
    """
    earlier = file.earlier
    begun = earlier is not None and "condition" in earlier.values
    if rows.first and not begun:
        file.keep(learned)
    if rows.sharded:
        return _beside(file)
    return Within(file, "condition", learned, earlier.part("condition") if earlier is not None and begun else None)


def _beside(file: CheckpointFile) -> Path:
    """The conditioning's checkpoint where it is not a part of the file."""
    return file.path.with_name(f"{file.path.name}.condition")


def pack_adam(optimizer: Optimizer, schedule: LRScheduler, visited: list[list[Tensor]]) -> Packed:
    """Moments, learning rates and the trajectory."""
    packed = Packed({}, {"schedule": schedule.state_dict(), "rates": [g["lr"] for g in optimizer.param_groups]})
    for index, state in optimizer.state_dict()["state"].items():
        packed.add(str(index), Packed({name: torch.as_tensor(value) for name, value in state.items()}))
    packed.values["moved"] = [int(index) for index in optimizer.state_dict()["state"]]
    packed.add("visited", pack_list([torch.stack(values) for values in zip(*visited, strict=True)]))
    return packed


def restore_adam(optimizer: Optimizer, schedule: LRScheduler, packed: Packed) -> list[list[Tensor]]:
    """Gives optimiser and schedule what ``pack_adam`` took apart; returns the trajectory."""
    values = packed.values
    groups = optimizer.state_dict()["param_groups"]
    for group, rate in zip(groups, values["rates"], strict=True):
        group["lr"] = rate
    state = {index: packed.part(str(index)).arrays for index in values["moved"]}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    schedule.load_state_dict(values["schedule"])
    columns = [stack.unbind(0) for stack in unpack_list(packed.part("visited"))]
    return [list(row) for row in zip(*columns, strict=True)]


def pack_list(tensors: list[Tensor]) -> Packed:
    """Tensors by number."""
    return Packed({str(i): tensor.detach() for i, tensor in enumerate(tensors)}, {"count": len(tensors)})


def unpack_list(packed: Packed) -> list[Tensor]:
    """The tensors that ``pack_list`` numbered."""
    return [packed.arrays[str(i)] for i in range(packed.values["count"])]
