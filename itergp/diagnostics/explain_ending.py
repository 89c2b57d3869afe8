"""Why a solve ended where it did."""

from __future__ import annotations

import math

from itergp.diagnostics.findings import Finding, memory, number, several, share
from itergp.records import RunSettings, StageRecord, TraceData, TraceRecord

_ITEM = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
_WINDOW = 5  # last steps of a stage, whose pace is taken to go on
_DOMINANT = 0.6  # share of the time that one phase takes before it is worth a word
_WORTH_A_WORD = 0.5  # seconds
_SMALL = 128  # directions that are searched quickly
_FAR = 10_000  # passes beyond which a forecast is no more than "never"


def explain_ending(trace: TraceData, run: RunSettings, end: StageRecord) -> list[Finding]:
    """The reason of the last stage with its figures, what stayed undone, and where the time went if there was too little."""
    explanations = {
        "CONVERGED": _converged,
        "STATIONARY": _converged,
        "PASSES": _passes,
        "TIME": _time,
        "RANK": _rank,
        "PRECISION": _precision,
        "STALLED": _stalled,
    }
    findings = [explanations.get(end.reason, _other)(trace, run, end)]
    if run.approximation == "variational" and end.stage == "laplace" and end.reason != "FAILED":
        findings += _laplace_only(run, end)
    compressed = sum("compressed" in record.event for record in trace)
    if end.reason in ("TIME", "PASSES") and 2 * compressed > len(trace):  # then passes are not what is scarce
        findings.insert(0, _rank(trace, run, end))
    if end.reason in ("TIME", "PASSES", "INTERRUPTED"):
        findings += _where_time_went(trace, run, end)
    return findings


def _gap(run: RunSettings, end: StageRecord) -> str:
    """How far the result is, as the end of a sentence."""
    if end.objective_gap is None or not math.isfinite(end.objective_gap):
        return "no bound on the distance to the mode is known"
    return (
        f"the objective is within {number(end.objective_gap)} nats of its minimum, "
        f"{number(end.objective_gap / run.num_rows)} per row at a tolerance of {number(run.tolerance)}"
    )


def _converged(trace: TraceData, run: RunSettings, end: StageRecord) -> Finding:
    spent = f"after {several(end.kernel_passes, 'kernel pass', 'kernel passes')} in {number(end.seconds)} s"
    if end.reason == "CONVERGED":
        return Finding("converged", f"The solve converged {spent}: {_gap(run, end)}. Nothing limited the mean.", "")
    residual = trace[-1].residual / (2.0 * run.num_rows)
    return Finding(
        "stationary",
        f"The gradient vanished {spent}: half its squared prior norm is {number(residual)} per row at a tolerance of "
        f"{number(run.tolerance)}. The {run.likelihood} is not log-concave, so this can be a local mode.",
        "To see whether there is another, condition again from other hyperparameters and compare `solution.objective`.",
    )


def _forecast(trace: TraceData, run: RunSettings, end: StageRecord) -> tuple[str, int | None]:
    """A sentence on the pace of the last steps, and how many more passes it takes at that pace."""
    # A stage that had room for one step only is taken to go at the pace of the stage before.
    stages = (stage.stage for stage in reversed(trace.stages))
    seen = next((points for stage in stages if (points := _course(trace, stage))[0][0] < points[-1][0]), [])
    if not seen:
        return "There were too few steps to tell how many more it takes.", None
    target = run.tolerance * run.num_rows
    rate = math.log(seen[0][1] / seen[-1][1]) / (seen[-1][0] - seen[0][0])
    current = end.objective_gap if end.objective_gap is not None else seen[-1][1]
    wanted = math.log(max(current / target, 1.0)) / rate if rate > 0.0 else math.inf
    passes = seen[-1][0] - seen[0][0]
    span = "last pass" if passes == 1 else f"last {passes} passes"
    if not wanted < _FAR:
        return f"The distance did not fall over the {span}.", None
    more = max(1, math.ceil(wanted))
    return f"It fell by a factor of {math.exp(rate):.3g} per pass over the {span}.", more


def _course(trace: TraceData, stage: str) -> list[tuple[int, float]]:
    """Kernel passes and distance at the last steps of a stage; at least one point, which may be zero."""
    points = [(record.kernel_passes, _measure(record)) for record in trace if record.stage == stage]
    return [point for point in points if math.isfinite(point[1]) and point[1] > 0.0][-_WINDOW:] or [(0, 0.0)]


def _measure(record: TraceRecord) -> float:
    return 0.5 * record.residual if record.objective_gap is None else record.objective_gap


def _passes(trace: TraceData, run: RunSettings, end: StageRecord) -> Finding:
    limit = "the solver's own limit" if run.max_passes is None else f"max_passes={run.max_passes}"
    pace, more = _forecast(trace, run, end)
    observed = f"Kernel passes ran out ({end.kernel_passes}, {limit}): {_gap(run, end)}. {pace}"
    if more is None:
        return Finding("passes", observed, f"Raise max_passes, say to {2 * max(end.kernel_passes, 4)}.")
    change = f"At that pace {several(more, 'more pass', 'more passes')} would do: set max_passes to about "
    return Finding("passes", observed, f"{change}{end.kernel_passes + more}, or accept the gap.")


def _time(trace: TraceData, run: RunSettings, end: StageRecord) -> Finding:
    if end.kernel_passes < 2:  # a solver that does not go by passes
        return _other(trace, run, end)
    pace, more = _forecast(trace, run, end)
    each = trace[-1].seconds / max(1, trace[-1].kernel_passes)
    observed = (
        f"The time limit of {number(run.time_limit or 0.0)} s was reached after "
        f"{several(end.kernel_passes, 'kernel pass', 'kernel passes')} of {number(each)} s each: {_gap(run, end)}. {pace}"
    )
    if more is None:
        return Finding("time", observed, f"Raise time_limit, say to {number(2.0 * end.seconds)} s.")
    change = f"At that pace {several(more, 'more pass', 'more passes')} would do: set time_limit to about "
    return Finding("time", observed, f"{change}{number(end.seconds + more * each)} s, or accept the gap.")


def _rank(trace: TraceData, run: RunSettings, end: StageRecord) -> Finding:
    compressed = sum("compressed" in record.event for record in trace)
    rank = run.max_rank or trace[-1].rank
    size = 2 * run.num_kernels * run.num_rows * 2 * rank * _ITEM.get(run.dtype, 8)
    cost = f" Another pass no longer improved the objective: {_gap(run, end)}." if end.reason == "RANK" else ""
    return Finding(
        "rank",
        f"The search space was full: at most {several(rank, 'direction')}, compressed in {compressed} of "
        f"{several(len(trace), 'step')}, after which what was dropped has to be found again.{cost}",
        f"Raise max_rank to {2 * rank}; its two arrays then take {memory(size)}.",
    )


def _precision(trace: TraceData, run: RunSettings, end: StageRecord) -> Finding:
    observed = (
        f"{run.dtype} is at its limit: it resolves the objective, {number(end.objective)} nats, to {number(end.resolution)}, "
        f"and {_gap(run, end)}."
    )
    if run.dtype == "float64":
        gap = trace[-1].residual / 2.0 if end.objective_gap is None else end.objective_gap
        return Finding(
            "precision",
            observed,
            f"Raise tolerance to about {number(2.0 * gap / run.num_rows)}; no dtype goes further.",
        )
    return Finding("precision", observed, "Use float64 inputs (model.double()), or accept the gap.")


def _stalled(trace: TraceData, run: RunSettings, end: StageRecord) -> Finding:
    if run.dtype != "float64" and run.log_concave:
        return _precision(trace, run, end)
    observed = f"No step along the search space decreases the objective any more, and {_gap(run, end)}."
    change = "Use float64 inputs (model.double())." if run.dtype != "float64" else ""
    if not run.log_concave:
        change += (
            f" The {run.likelihood} is not log-concave: this may be a local mode, so start from other hyperparameters."
        )
    return Finding("stalled", observed, change.strip() or f"Raise tolerance above {number(end.resolution)} nats.")


def _other(trace: TraceData, run: RunSettings, end: StageRecord) -> Finding:
    """Everything else says it in its status."""
    distance = _gap(run, end)
    return Finding(end.reason.lower(), f"{end.status} {distance[0].upper()}{distance[1:]}.", "")


def _laplace_only(run: RunSettings, end: StageRecord) -> list[Finding]:
    if end.reason in ("TIME", "INTERRUPTED"):
        change = "Raise time_limit." if end.reason == "TIME" else "Condition again to go on."
        return [
            Finding("laplace_only", "The run ended before its variational stage: the posterior is Laplace's.", change)
        ]
    if run.max_passes is not None and run.max_passes < 4:
        return [
            Finding(
                "laplace_only",
                f"A variational posterior takes at least 4 kernel passes, and max_passes={run.max_passes}: this is Laplace's.",
                "Raise max_passes, or ask for approximation='laplace'.",
            )
        ]
    return []


def _where_time_went(trace: TraceData, run: RunSettings, end: StageRecord) -> list[Finding]:
    total = sum(trace.phase_seconds.values())
    if total < _WORTH_A_WORD:
        return []
    phase, seconds = max(trace.phase_seconds.items(), key=lambda item: item[1])
    if seconds < _DOMINANT * total:
        return []
    observed = f"{share(seconds / total)} of {number(total)} s went to "
    if phase == "kernel":
        whole = memory(run.num_kernels * run.num_rows**2 * _ITEM.get(run.dtype, 8))
        change = {
            "BlockedOperator": f"Give memory_budget room to keep the matrix ({whole}), or use KeOps on a GPU.",
            "ScanOperator": "Lower num_blocks or covariance_rank: its time grows with the columns.",
            "FourierOperator": "Lower covariance_rank: its time grows with the columns.",
            "DenseOperator": "The matrix is kept already: a GPU or float32 is what is left.",
        }.get(run.operator, "A GPU, or float32, makes them faster.")
        return [Finding("kernel_time", f"{observed}kernel products ({run.operator}).", change)]
    if phase == "mode":
        rank = trace[-1].rank
        change = f"Lower max_rank below {rank}." if rank > _SMALL else "That is the likelihood of all rows: use a GPU."
        return [Finding("mode_time", f"{observed}Newton steps within a search space of {rank} directions.", change)]
    return [
        Finding("covariance_time", f"{observed}the covariance of rank {end.covariance_rank}.", "Lower covariance_rank.")
    ]
