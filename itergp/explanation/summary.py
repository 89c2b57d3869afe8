"""``Summary``: what was learned, in the units of the columns."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itergp.checks import require_module
from itergp.diagnostics import Finding
from itergp.diagnostics.estimates import Estimate
from itergp.diagnostics.findings import number, several, share
from itergp.explanation.baselines import CONSTANT
from itergp.explanation.columns import ColumnView
from itergp.explanation.held_out import FEW_ROWS, HeldOut, held_out
from itergp.explanation.importances import importances, total_effects
from itergp.explanation.limits import limits
from itergp.explanation.noise import noise
from itergp.explanation.scores import ERRORS, error_score, errors_of
from itergp.explanation.shapes import Shape, shape
from itergp.explanation.subject import Subject

Array = NDArray[np.float64]

_MOST_SHAPES, _MOST_SHOWN = 30, 20  # columns that are looked at, and printed
_HARDLY = 0.005  # share below which a column does nothing worth a word
_SURE = 0.8  # probability above which a direction is stated
_TOGETHER = 0.2  # share of a column's relevance that is its own, below which its direction says little


@dataclass(frozen=True)
class Summary:
    """What a fitted estimator has learned; ``str`` says it.

    Attributes:
        columns: A data frame with a row for each column of the table, the most relevant first: ``column``, ``kind``,
            ``relevance`` (share of the variation of the latent function, as ``feature_importances_``), ``alone`` (how much
            of that is its average effect, the rest being interactions), ``direction``, ``certainty`` (posterior probability
            of the direction), ``output`` (the class it is about), ``lowest`` and ``highest`` (values of the column with the
            lowest and the highest average effect), ``range`` (distance over which the effect changes) and ``unit`` (of the
            range). Of columns beyond the 30 most relevant ones the relevance alone is known.
        num_rows: Rows that were learned from.
        title: The estimator, its distribution and its kernel.
        noise: What is left when the function is known.
        score: Mean log-density of held-out rows; None where rows cannot be held out.
        baseline: That of a constant prediction.
        error: A score that people know better: a share of wrong labels, a root mean squared error, a deviance.
        baseline_error: That of a constant prediction.
        limits: What limits the model, and what to do.
        notes: How the score was found.
    """

    columns: Any
    num_rows: int
    title: str
    noise: str
    score: Estimate | None
    baseline: Estimate | None
    error: Estimate | None
    baseline_error: Estimate | None
    limits: tuple[Finding, ...]
    notes: str
    names: tuple[str, str, str] = field(default=("", "", ""), repr=False)

    def __str__(self) -> str:
        lines = [
            self.title,
            "",
            f"What the columns do to the {self.names[2]}:",
            *self._table(),
            "",
            f"Noise: {self.noise}.",
            "",
        ]
        lines += self._scores()
        lines += [
            "What limits it:" if self.limits else "",
            *(f"- {one.observed} {one.change}".rstrip() for one in self.limits),
        ]
        return "\n".join(lines).rstrip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def _table(self) -> list[str]:
        rows = [("column", "relevance", "direction", "changes over")]
        for row in self.columns.head(_MOST_SHOWN).to_dict("records"):
            rows.append((_cut(row["column"]), share(round(row["relevance"], 4)), _direction(row), _range(row)))
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        left = len(self.columns) - _MOST_SHOWN
        return [*lines, f"and {several(left, 'less relevant column')}"] if left > 0 else lines

    def _scores(self) -> list[str]:
        if self.score is None and self.error is None:
            return [f"Score: {self.notes}", ""]
        lines = [f"Held-out rows ({self.notes}):"]
        for name, own, other in (
            ("log-density in nats per row", self.score, self.baseline),
            (self.names[0], self.error, self.baseline_error),
        ):
            if own is not None:
                lines.append(f"- {name}: {own}" + ("" if other is None else f"; {self.names[1]}: {other}"))
        return [*lines, ""]


def summarise(subject: Subject) -> Summary:
    """The summary of a fitted estimator, see ``GPRegressor.summary``."""
    pandas = require_module("pandas", "A summary", "tables")
    judged: HeldOut | None = subject.once("held out", held_out)
    table = pandas.DataFrame(subject.once("columns of the summary", column_rows))
    observes, notes = subject.observes, _notes(subject, judged)
    own = other = error = other_error = None
    if judged is not None:
        own, other = (_log_score(judged, part) for part in (judged.model, judged.constant))
        error, other_error = (_error(judged, part, observes) for part in (judged.model, judged.constant))
    return Summary(
        columns=table,
        num_rows=subject.num_rows,
        title=title_of(subject),
        noise=subject.once("noise", noise),
        score=own,
        baseline=other,
        error=error,
        baseline_error=other_error,
        limits=subject.once("limits", limits),
        notes=notes,
        names=(ERRORS.get(observes, ""), CONSTANT.get(observes, ""), subject.response.label),
    )


def title_of(subject: Subject) -> str:
    """What was fitted, in a line."""
    what = f", {len(subject.labels)} {'levels' if subject.observes == 'level' else 'classes'}" if subject.labels else ""
    return (
        f"{subject.name}: {several(subject.num_rows, 'row')}, {several(len(subject.columns), 'column')}{what}"
        f"{f'; {subject.described}' if subject.described else ''}"
    )


def column_rows(subject: Subject) -> list[dict[str, Any]]:
    """Rows of ``Summary.columns``."""
    relevance, (total, _) = importances(subject), subject.once("total effects", total_effects)
    order = np.argsort(-relevance, kind="stable")
    rows = []
    for rank, place in enumerate(order):
        view = subject.columns[place]
        known = rank < _MOST_SHAPES and view.indices and total[place] > 0.0
        rows.append(_row(view, float(relevance[place]), float(total[place]), shape(subject, view) if known else None))
    return rows


def _row(view: ColumnView, relevance: float, total: float, found: Shape | None) -> dict[str, Any]:
    return {
        "column": view.name,
        "kind": view.kind,
        "relevance": relevance,
        "alone": float("nan") if found is None else min(1.0, found.alone / total),
        "direction": "" if found is None else found.direction,
        "certainty": float("nan") if found is None else found.certainty,
        "output": "" if found is None else found.output,
        "lowest": "" if found is None else found.lowest,
        "highest": "" if found is None else found.highest,
        "range": float("nan") if found is None else found.distance,
        "unit": view.unit,
    }


def _direction(row: dict[str, Any]) -> str:
    if row["kind"] == "left out":
        return "left out"
    if row["relevance"] < _HARDLY or not row["direction"]:
        return "hardly any"
    if row["alone"] < _TOGETHER:
        return "depends on other columns"
    about = f" for class {_cut(row['output'])}" if row["output"] else ""
    if row["direction"] == "levels":
        words = f"{_cut(row['highest'])} highest, {_cut(row['lowest'])} lowest{about}"
    elif row["direction"] == "curved":
        words = f"curved{about}: highest at {row['highest']}, lowest at {row['lowest']}"
    else:
        words = f"{row['direction']}{about}"
    unsure = row["certainty"] < _SURE
    return f"{words} (not sure)" if unsure else words


def _range(row: dict[str, Any]) -> str:
    if row["relevance"] < _HARDLY or not np.isfinite(row["range"]):
        return ""
    return f"{number(row['range'])} {row['unit']}".rstrip()


def _cut(text: str, width: int = 24) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _log_score(judged: HeldOut, part: Any) -> Estimate | None:
    return None if part.log_density is None else Estimate.of(part.log_density, judged.weights)


def _error(judged: HeldOut, part: Any, observes: str) -> Estimate | None:
    losses = errors_of(part, judged.targets, observes)
    return None if losses is None else error_score(losses, judged.weights, observes)


def _notes(subject: Subject, judged: HeldOut | None) -> str:
    if judged is None:
        return "none, as these rows cannot be held out: too few, noise that was given row by row, trials, or bounds of times"
    which = "each quarter in turn" if subject.num_rows <= FEW_ROWS else f"{len(judged.weights):,} of them"
    return f"{which}; kernel and noise are those that all rows chose"
