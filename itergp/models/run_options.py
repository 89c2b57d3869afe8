"""``RunOptions``: what goes along with a run and does not change its result."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from itergp.parallel import RowPartition, require_everywhere
from itergp.persistence.checkpoint import CheckpointSection
from itergp.solvers import Solution


@dataclass(frozen=True)
class RunOptions:
    """Who looks on while a model is conditioned or learns, and where the run is kept.

    Attributes:
        progress: Whether to draw a progress bar; None for one in a terminal after two seconds.
        callback: Called with every record, or a listener.
        on_posterior: Called with posteriors on the way.
        checkpoint: File in which the run is kept, or a part of one.
        checkpoint_every: Seconds between writes.
        time_limit: Seconds of conditioning, where they are fewer than the solver's own.
    """

    progress: bool | None = False
    callback: Callable[[Any], None] | None = None
    on_posterior: Callable[[Solution], None] | None = None
    checkpoint: str | os.PathLike[str] | CheckpointSection | None = None
    checkpoint_every: float = 30.0
    time_limit: float | None = None

    @property
    def of_single_models(self) -> dict[str, Any]:
        """Those that a batch of models does not know, by name."""
        return {"on_posterior": self.on_posterior, "checkpoint": self.checkpoint}

    def require_everywhere(self, rows: RowPartition) -> None:
        """All processes that share rows must have been given the same of these.

        Raises:
            InputError: In every process, if some were not.
        """
        for name, given in self.of_single_models.items():
            require_everywhere(rows, name, given)
