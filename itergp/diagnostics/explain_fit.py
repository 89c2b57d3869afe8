"""How learning ended, and what its hyperparameters were doing then."""

from __future__ import annotations

import itertools
import math

from itergp.diagnostics.findings import Finding, number, several
from itergp.records import LearningTrace, TraceData

_MOVING = 0.2  # move of a variable, a logarithm as a rule, over the end of learning that counts as one
_STRAIGHT = 0.9  # share of the way gone that a move is, if it is straight
_GROWN = math.log(20.0)  # growth of an output scale that, if it goes on, looks unbounded
_COLLAPSED = math.log(1e-3)


def explain_learning(trace: TraceData) -> list[Finding]:
    """Why learning stopped, which hyperparameters still moved, and which left the range that makes sense."""
    learning = trace.learning
    if learning is None:
        return []
    if not learning.records:
        observed = "Learning ended before its first evaluation because the time limit was reached: nothing was learned."
        return [Finding("learning_time", observed, "Raise time_limit.")] if learning.reason == "TIME" else []
    return [_ending(learning), *_extremes(learning)]


def _ending(learning: LearningTrace) -> Finding:
    count, seconds = len(learning.records), learning.records[-1].seconds
    spent = f"{several(count, 'evaluation')} in {number(seconds)} s"
    if learning.reason in ("SETTLED", "CONVERGED"):
        what = "the parameters had settled" if learning.reason == "SETTLED" else "the objective stopped improving"
        return Finding("learning_settled", f"Learning ended by itself after {spent}: {what}.", "")
    if learning.reason == "NOT_FINITE":
        return Finding(
            "learning_not_finite",
            f"Learning ended after {spent} because the objective or its gradient became NaN or infinite.",
            "Lower learning_rate, use float64, or put a prior on the output scale.",
        )
    heading, described = _heading(learning)
    if learning.reason in ("TIME", "INTERRUPTED"):
        cause = "the time limit was reached" if learning.reason == "TIME" else "it was interrupted"
        change = "Raise time_limit." if learning.reason == "TIME" else "Fit again: it starts from these values."
        return Finding("learning_time", f"Learning ended after {spent} because {cause}. {described}", change)
    if not heading:
        return Finding("learning_done", f"Learning took all its iterations, {spent}. {described}", "")
    return Finding(
        "learning_iterations",
        f"Learning took all its iterations, {spent}, and was still on its way. {described}",
        f"Raise max_iterations, say to {2 * count}; calling fit again starts from these values.",
    )


def _heading(learning: LearningTrace) -> tuple[bool, str]:
    """Whether some parameter was still heading somewhere, and a sentence on the one that moved most.

    The learning rate falls to zero, so that small last steps say nothing. Over half of the last stage, a parameter that has
    arrived goes to and fro or stays; one that has not goes straight on.
    """
    last = [record for record in learning.records if record.stage == learning.records[-1].stage]
    tail = last[-1 - len(last) // 2 :]
    if len(tail) < 2:
        return False, "It had no time to move the parameters."
    moves, straight = {}, {}
    for name, values in tail[0].parameters.items():
        for i in range(len(values)):
            course = [record.parameters[name][i] for record in tail]
            key = f"{name}[{i}]" if len(values) > 1 else name
            moves[key] = course[-1] - course[0]
            length = sum(abs(after - before) for before, after in itertools.pairwise(course))
            straight[key] = abs(moves[key]) > _STRAIGHT * length
    going = {name: move for name, move in moves.items() if straight[name] and abs(move) > _MOVING}
    candidates = going or moves
    if not candidates:
        return False, "Its parameters have too many elements to be followed."
    name = max(candidates, key=lambda key: abs(candidates[key]))
    amount = _amount(name, candidates[name], learning)
    way = "went straight on" if going else "moved most, but not far or not straight,"
    return bool(going), f"Over the last {several(len(tail) - 1, 'step')} {_shown(name)} {way} {amount}."


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
