"""What limits a model, in words, and what to do about it: rows, noise, columns, or the computation."""

from __future__ import annotations

import math

import numpy as np

from itergp.diagnostics import Finding, Trace
from itergp.diagnostics.estimates import Estimate
from itergp.explanation.held_out import HeldOut, held_out
from itergp.explanation.subject import Subject

_WORTH_A_WORD = 1e-3  # nats per row by which a solve may be short
_CLEAR = 2.0  # standard errors
_LITTLE, _SOME = 0.003, 0.03  # nats per row that nobody misses, and that are worth having


def limits(subject: Subject) -> tuple[Finding, ...]:
    """Findings, the one that matters most first."""
    judged: HeldOut | None = subject.once("held out", held_out)
    found = [*_computation(subject), *_learning(subject)]
    return (*found, *([] if judged is None else _of_data(judged)))


def _computation(subject: Subject) -> list[Finding]:
    solution = subject.model.solution
    gap = math.inf if solution.certificate is None else solution.certificate.objective_gap
    explained = Trace.of(solution.trace).explain()
    short = gap > _WORTH_A_WORD * subject.num_rows and explained.limit not in ("converged", "stationary")
    found = []
    if short:
        first = explained.findings[0]
        observed = (
            "The computation ended before the fit was as good as the data allow: predictions are valid, but less sharp than "
            f"they could be ({first.observed})"
        )
        found.append(Finding("computation", observed, first.change or "See the solver's part of the report."))
    if "covariance_rank" in explained:
        observed = "Part of the uncertainty is that of the computation: intervals are wider than the data ask for."
        change = f"Where that matters, pass a solver that spends more: {explained['covariance_rank'].change}"
        found.append(Finding("covariance_rank", observed, change))
    return found


def _learning(subject: Subject) -> list[Finding]:
    explained = Trace.of(subject.model.solution.trace).explain()
    if "learning_iterations" in explained:
        observed = "Learning ended before the model had settled, when its steps were used up."
        return [Finding("learning", observed, "Raise max_iterations to twice what it was.")]
    return [explained[kind] for kind in ("learning_not_finite",) if kind in explained]


def _of_data(judged: HeldOut) -> list[Finding]:
    """Whether columns say something, and whether more rows would."""
    model, plain, half = (
        None if part is None else part.log_density for part in (judged.model, judged.constant, judged.half)
    )
    if model is None or plain is None or half is None:
        return []
    found = []
    over, wins = (Estimate.of(part, judged.weights) for part in (model - plain, np.sign(model - plain)))
    if over.mean <= _CLEAR * over.error and wins.mean <= _CLEAR * wins.error:
        observed = (
            f"The columns say little about the target: {over} nats per row more than a constant prediction, held out."
        )
        found.append(
            Finding("columns", observed, "Look for other columns; check that rows and targets belong together.")
        )
    gain = Estimate.of(model - half, judged.weights)
    return [*found, _rows(gain, judged.num_learned)]


def _rows(gain: Estimate, num_rows: int) -> Finding:
    compared = f"from {num_rows // 2:,} to {num_rows:,} rows, held-out rows are predicted {gain} nats per row better"
    if gain.mean > max(_CLEAR * gain.error, _LITTLE):
        return Finding(
            "rows",
            f"Rows are what is missing: {compared}.",
            "Collect more; twice as many gain about as much again, or somewhat less.",
        )
    if gain.mean + _CLEAR * gain.error > _SOME:
        return Finding("unclear", f"Whether more rows would help is not clear: {compared}.", "")
    return Finding(
        "noise",
        f"More rows of this kind would change little: {compared}. What is left is noise, or what these columns do not say.",
        "Look for columns that say more, or measure the target more precisely.",
    )
