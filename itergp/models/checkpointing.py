"""Where a model's conditioning is kept while it runs, and the posterior that an earlier run came to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from itergp.models.checkpoint_file import CheckpointFile, Within
from itergp.models.divided_checkpoint import DividedCheckpoint
from itergp.models.identity import identify
from itergp.models.saving import pack_solution, unpack_solution
from itergp.parallel import RowPartition
from itergp.solvers import Reason, Solution
from itergp.solvers.packing import Packed, require_resumable

if TYPE_CHECKING:
    from itergp.models.nonconjugate_gp import NonConjugateGP

Checkpoint = CheckpointFile | Within | DividedCheckpoint
_FINISHED = "finished"


def as_keeper(
    model: NonConjugateGP, checkpoint: str | os.PathLike[str] | Within, every: float, rows: RowPartition
) -> Checkpoint:
    """Where a model's conditioning is kept: in a file of its own, in part of one, or in several."""
    require_resumable(model.solver)
    if isinstance(checkpoint, Within):
        return checkpoint
    like = model.train_inputs[0]
    latents = model.observations.likelihood.num_latents
    # Weights, and a first direction with its product.
    size = 4 * rows.local_size(like.shape[0]) * latents * like.element_size()
    about: dict[str, Any] = {"every": every, "identity": identify(model), "device": like.device, "size": size}
    if rows.sharded:
        return DividedCheckpoint(checkpoint, rows, **about)
    return CheckpointFile(checkpoint, task="condition", **about)


def keep_finished(keeper: Checkpoint, solution: Solution) -> None:
    """The posterior in place of the state that led to it, unless the solve was interrupted and is to go on.

    Of divided rows the last state stays, from which the end is found again.
    """
    if solution.status.reason is Reason.INTERRUPTED or solution.rows.sharded:
        return
    arrays, values = pack_solution(solution)
    keeper.keep(Packed(arrays, {_FINISHED: values}))


def finished_solution(model: NonConjugateGP, keeper: Checkpoint) -> Solution | None:
    """The posterior that an earlier run came to, or None if it did not get so far."""
    earlier = keeper.earlier
    if earlier is None or _FINISHED not in earlier.values:
        return None
    return unpack_solution(earlier.arrays, earlier.values[_FINISHED], model.train_inputs[0].device)
