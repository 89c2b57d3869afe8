"""Warm starts that a checkpoint can hold: those of the solvers here."""

from __future__ import annotations

from itergp.posterior.warm_start import WarmStart
from itergp.solvers.iterncgp.iter_ncgp_state import RecycledActions
from itergp.solvers.subspace.recycled import RecycledSpace

StoredWarmStart = RecycledSpace | RecycledActions


def as_stored(warm_start: WarmStart | None) -> StoredWarmStart | None:
    """A warm start if a checkpoint can hold it, otherwise None: the next solve then has the weights to start from."""
    return warm_start if isinstance(warm_start, RecycledSpace | RecycledActions) else None
