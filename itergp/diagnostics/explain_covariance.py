"""Whether the rank of the covariance, rather than the data, limits what is known."""

from __future__ import annotations

from itergp.diagnostics.findings import Finding, memory, number, several, share
from itergp.records import RunSettings, StageRecord, TraceData

_INFORMATIVE = 1.0  # signal-to-noise ratio of the last direction above which others like it were left out


def explain_covariance(trace: TraceData, run: RunSettings, end: StageRecord) -> list[Finding]:
    """Says so if the last direction that the covariance is conditioned on still explained more than half of its variance."""
    spectrum, rank = trace.spectrum, end.covariance_rank
    if rank == 0:
        return [
            Finding(
                "no_covariance",
                "No covariance was conditioned: predictions have the prior's variance.",
                "Give the solver a covariance_rank, or passes enough to afford one.",
            )
        ]
    if not spectrum or rank >= run.num_rows * run.num_latents or spectrum[-1] <= _INFORMATIVE:
        return []
    last = spectrum[-1] / (1.0 + spectrum[-1])
    observed = (
        f"The covariance is limited by its rank: the last of its {several(rank, 'direction')} has a signal-to-noise ratio of "
        f"{number(spectrum[-1])}, so that {share(last)} of the prior variance there was explained and others like it were "
        f"left out. So far {share(end.variance_explained)} of the prior variance at the training inputs is explained; the rest "
        "is counted as uncertain."
    )
    size = 2 * run.num_rows * run.num_latents * 2 * rank * (4 if run.dtype == "float32" else 8)
    room = run.num_latents * (trace[-1].rank if len(trace) else 0)
    change = {
        "SubspaceNewton": f"Raise covariance_rank to {2 * rank}; its two arrays then take {memory(size)}.",
        "LinearTimeNewton": f"Raise covariance_rank to {2 * rank}.",
        "IterNCGP": "Let it take more actions: raise max_passes, and max_rank if it is given.",
    }.get(run.solver, "Condition the covariance on more actions.")
    if run.solver == "SubspaceNewton" and rank >= room:
        change = f"The search space holds no more than that: raise covariance_rank to {2 * rank}, or max_passes."
    return [Finding("covariance_rank", observed, change)]
