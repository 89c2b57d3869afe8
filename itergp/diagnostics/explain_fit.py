"""How learning ended, and what its hyperparameters were doing then."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from itergp.diagnostics.findings import Finding, number, several
from itergp.diagnostics.records import LearningTrace

if TYPE_CHECKING:
    from itergp.diagnostics.trace import Trace

_TAIL = 0.2  # share of the evaluations that count as the end of learning
_MOVING = 0.2  # move of a logarithm over the tail that counts as moving still
_GROWN = math.log(20.0)  # growth of an output scale that, if it goes on, looks unbounded
_COLLAPSED = math.log(1e-3)


def explain_learning(trace: Trace) -> list[Finding]:
    """Why learning stopped, which hyperparameters still moved, and which left the range that makes sense."""
    learning = trace.learning
    if learning is None or not learning.records:
        return []
    return [_ending(learning), *_extremes(learning)]


def _ending(learning: LearningTrace) -> Finding:
    count, seconds = len(learning.records), learning.records[-1].seconds
    spent = f"{several(count, 'evaluation')} in {number(seconds)} s"
    name, move, window = _fastest(learning)
    moving = f"{_shown(name)} still moved {_amount(name, move, learning)} over the last {several(window, 'evaluation')}"
    if learning.reason in ("SETTLED", "CONVERGED"):
        what = "the parameters had settled" if learning.reason == "SETTLED" else "the objective stopped improving"
        return Finding("learning_settled", f"Learning ended by itself after {spent}: {what}.", "")
    if learning.reason == "NOT_FINITE":
        return Finding(
            "learning_not_finite",
            f"Learning ended after {spent} because the objective or its gradient became NaN or infinite.",
            "Lower learning_rate, use float64, or put a prior on the output scale.",
        )
    if learning.reason in ("TIME", "INTERRUPTED"):
        cause = "the time limit was reached" if learning.reason == "TIME" else "it was interrupted"
        change = "Raise time_limit." if learning.reason == "TIME" else "Fit again: it starts from these values."
        return Finding("learning_time", f"Learning ended after {spent} because {cause}: {moving}.", change)
    if abs(move) < _MOVING:
        return Finding(
            "learning_done",
            f"Learning took all its iterations, {spent}, and had come to rest: no parameter moved further than {_shown(name)}, "
            f"{_amount(name, move, learning)} over the last {several(window, 'evaluation')}.",
            "",
        )
    return Finding(
        "learning_iterations",
        f"Learning took all its iterations, {spent}, and had not come to rest: {moving}.",
        f"Raise max_iterations, say to {2 * count}; calling fit again starts from these values.",
    )


def _fastest(learning: LearningTrace) -> tuple[str, float, int]:
    """The parameter that moved most over the tail of the last stage, its move, and the evaluations in that tail."""
    last = [record for record in learning.records if record.stage == learning.records[-1].stage]
    window = min(len(last) - 1, max(1, round(_TAIL * len(learning.records))))
    moves = {}
    for name, values in last[-1].parameters.items():
        before = last[-1 - window].parameters[name]
        for i, (new, old) in enumerate(zip(values, before, strict=True)):
            moves[f"{name}[{i}]" if len(values) > 1 else name] = new - old
    name = max(moves, key=lambda key: abs(moves[key]), default="none of the parameters")
    return name, moves.get(name, 0.0), window


def _shown(name: str) -> str:
    """A parameter's name without GPyTorch's ``raw_``."""
    return name.replace("raw_", "")


def _amount(name: str, move: float, learning: LearningTrace) -> str:
    if name.split("[")[0] in learning.logarithmic:
        return f"by a factor of {math.exp(move):.3g}"
    return f"by {number(move)}"


def _extremes(learning: LearningTrace) -> list[Finding]:
    findings = []
    first, last = learning.records[0].parameters, learning.records[-1].parameters
    for name, values in last.items():
        if name not in learning.logarithmic:
            continue
        if name.endswith("raw_outputscale"):
            growth = max(new - old for new, old in zip(values, first[name], strict=True))
            if growth > _GROWN:
                findings.append(
                    Finding(
                        "output_scale_grows",
                        f"{_shown(name)} grew by a factor of {math.exp(growth):.3g} to {math.exp(max(values)):.3g}, as it does "
                        "without end when classes are separable.",
                        "Put a prior on it, such as register_prior('scale_prior', GammaPrior(2.0, 0.05), 'outputscale').",
                    )
                )
        if name.endswith("raw_lengthscale") and min(values) < _COLLAPSED:
            findings.append(
                Finding(
                    "lengthscale_collapsed",
                    f"{_shown(name)} collapsed to {math.exp(min(values)):.3g}: neighbours share nothing along that input.",
                    "Standardise the inputs, or put a prior on the lengthscale.",
                )
            )
    return findings
