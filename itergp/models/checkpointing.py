"""Where a conditioning is saved while it runs, and the posterior that an earlier run came to."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from itergp.diagnostics import Trace
from itergp.parallel import RowPartition
from itergp.persistence import (
    CheckpointFile,
    CheckpointSection,
    ShardedCheckpoint,
    StateDict,
    from_state,
    to_state,
)
from itergp.posterior.posterior import Posterior
from itergp.posterior.solution import Report, Solution
from itergp.posterior.status import Reason
from itergp.solvers import Solver
from itergp.solvers.run.resuming import require_resumable

Checkpoint = CheckpointFile | CheckpointSection | ShardedCheckpoint
_FINISHED = "finished"


def open_checkpointer(
    checkpoint: str | os.PathLike[str] | CheckpointSection,
    every: float,
    solver: Solver,
    mean: Tensor,
    rows: RowPartition,
    identity: Callable[[], dict[str, Any]],
) -> Checkpoint:
    """Where a conditioning is saved: in a file of its own, in a section of one, or in several.

    Args:
        checkpoint: A path, or the section of another computation's file.
        every: Seconds between writes.
        solver: Whose states are saved.
        mean: Prior mean ``(N, C)``.
        rows: The rows of this process.
        identity: Gives what the result depends on, by name.
    """
    require_resumable(solver)
    if isinstance(checkpoint, CheckpointSection):
        return checkpoint
    # Weights, and a first direction with its product.
    size = 4 * rows.local_size(mean.shape[0]) * mean.shape[1] * mean.element_size()
    about: dict[str, Any] = {"every": every, "identity": identity(), "device": mean.device, "size": size}
    if rows.sharded:
        return ShardedCheckpoint(checkpoint, rows, **about)
    return CheckpointFile(checkpoint, task="condition", **about)


def save_final(checkpointer: Checkpoint, solution: Solution) -> None:
    """The posterior in place of the state that led to it, unless the solve was interrupted and is to go on.

    Of sharded rows the last state stays, from which the end is found again.
    """
    if solution.status.reason is Reason.INTERRUPTED or solution.rows.sharded:
        return
    final = StateDict()
    final.add_section(_FINISHED, solution_state(solution))
    checkpointer.save(final)


def finished_solution(checkpointer: Checkpoint, device: torch.device) -> Solution | None:
    """The posterior that an earlier run came to, or None if it did not get so far."""
    saved = checkpointer.checkpoint_state
    return None if saved is None or _FINISHED not in saved.values else read_solution(saved.section(_FINISHED), device)


def solution_state(solution: Solution) -> StateDict:
    """Posterior and report as plain data, side by side as in every version's files; not what a solve would start from."""
    posterior, report = to_state(solution.posterior), to_state(solution.report)
    return StateDict(posterior.arrays | report.arrays, posterior.values | report.values)


def read_solution(state: StateDict, device: torch.device) -> Solution:
    """The solution of ``solution_state``, with its trace's readers."""
    state = state.to(device)
    posterior, report = from_state(Posterior, state), from_state(Report, state)
    if report.certificate is not None:
        posterior = replace(posterior, norm_squared=report.certificate.norm_squared)
    return Solution(posterior, replace(report, trace=Trace.of(report.trace)))
