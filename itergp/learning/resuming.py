"""Where learning is saved while it runs, and the conditioning that follows it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from itergp.models import NonConjugateGP
from itergp.models.identity import identify
from itergp.objectives.base import Objective
from itergp.parallel import RowPartition
from itergp.persistence import StateDict
from itergp.persistence.checkpoint import CheckpointFile, CheckpointSection
from itergp.persistence.sharded_checkpoint import errors_everywhere, remove_checkpoint, require_one_file
from itergp.solvers.run.resuming import require_resumable


def open_checkpointer(
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
        if (
            rows.first
            and rows.sharded
            and (file.checkpoint_state is None or file.checkpoint_state.values["reason"] is None)
        ):
            remove_checkpoint(_beside(file))  # of another run, since this one has not come so far
    require_one_file(rows, -1 if file.checkpoint_state is None else file.checkpoint_state.values["evaluations"], device)
    return file


def save_learned(file: CheckpointFile, learned: StateDict, rows: RowPartition) -> CheckpointSection | Path:
    """Saves what was learned; returns where the conditioning that follows is saved.

    That is a part of the same file, or, with rows divided among processes, files of its own beside it.
    """
    saved = file.checkpoint_state
    begun = saved is not None and "condition" in saved.values
    if rows.first and not begun:
        file.save(learned)
    if rows.sharded:
        return _beside(file)
    return CheckpointSection(
        file, "condition", learned, saved.section("condition") if saved is not None and begun else None
    )


def _beside(file: CheckpointFile) -> Path:
    """The conditioning's checkpoint where it is not a part of the file."""
    return file.path.with_name(f"{file.path.name}.condition")
