"""One HTML file about a fitted estimator: data, scores, calibration, effects, and what to do next."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from itergp.checks import require_module
from itergp.diagnostics import Trace, censoring_survival, concordance_index, plot_reliability, reliability
from itergp.diagnostics.estimates import Estimate
from itergp.diagnostics.findings import number, several, share
from itergp.diagnostics.plots import BLUE, GREY
from itergp.errors import InputError
from itergp.explanation.baselines import baselines
from itergp.explanation.columns import ColumnView
from itergp.explanation.held_out import can_hold_out, covered, predict_rows, split
from itergp.explanation.importances import importances
from itergp.explanation.plots import plot_effects, plot_importances
from itergp.explanation.scores import ERRORS, Predictions, error_difference, error_score, errors_of
from itergp.explanation.subject import Subject
from itergp.explanation.summary import Summary, summarise, title_of

Array = NDArray[np.float64]
Rows = tuple[Array, Array, Array]

_MINE = "this model"
_STYLE = """
body { font-family: system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
body { color: #222; line-height: 1.45; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; vertical-align: top; border-bottom: 1px solid #eee; }
th { border-bottom: 1px solid #999; }
.wide { overflow-x: auto; }
img { max-width: 100%; height: auto; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .8rem; white-space: pre-wrap; }
summary { cursor: pointer; }
.small { color: #666; font-size: .85rem; }
"""


@dataclass(frozen=True)
class Judged:
    """A model and others on the same rows, which none of them has seen.

    Attributes:
        subject: The model that predicted.
        rows: Encoded rows, targets and weights.
        predictions: By name of the method, this model first.
        learned: Rows that were learned from.
        anew: Whether a copy of the estimator learned without these rows.
    """

    subject: Subject
    rows: Rows
    predictions: dict[str, Predictions]
    learned: int
    anew: bool


def write_report(path: str | os.PathLike[str], subject: Subject, unseen: Rows | None) -> None:
    """Writes the report; see ``GPRegressor.report``.

    Args:
        path: Where to.
        subject: What is explained.
        unseen: Encoded rows, targets and weights to judge by; None for some of its own.

    Raises:
        InputError: If the file cannot be written.
    """
    require_module("pandas", "A report", "tables")
    require_module("matplotlib", "A report", "plot")
    text = make_report(subject, unseen)
    target = Path(path)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, target)
    except OSError as error:
        raise InputError(
            f"`path` must be a file that can be written. Got {str(target)!r} ({error.strerror or error}). Choose another "
            "folder or make room."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def make_report(subject: Subject, unseen: Rows | None = None) -> str:
    """The report as HTML.

    Args:
        subject: What is explained.
        unseen: Encoded rows, targets and weights to judge by; None for some of its own.
    """
    summary, judged = summarise(subject), judge(subject, unseen)
    sections = [
        ("Scores on held-out rows", _scores(subject, judged)),
        ("Are its statements right?", "" if judged is None else _calibration(judged)),
        (
            "Which columns matter",
            _figure(_importance_figure(subject), "Importances of the columns") + _columns(summary),
        ),
        ("What they do", _effects(subject)),
        ("What limits it, and what to do next", _next(summary)),
        ("The data", _data(subject)),
        ("", _solver(subject)),
    ]
    body = "\n".join(
        (f"<h2>{_text(title)}</h2>\n" if title else "") + content for title, content in sections if content
    )
    title = _text(title_of(subject))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n<style>{_STYLE}</style></head>\n'
        f"<body>\n<h1>{title}</h1>\n{body}\n</body></html>\n"
    )


# --------------------------------------------------------------------------- scores
def judge(subject: Subject, unseen: Rows | None) -> Judged | None:
    """Predictions of rows that were held out, by the model and by baselines that learned from the same rows.

    Args:
        subject: Whose estimator; without other rows a copy of it learns from some of its own.
        unseen: Encoded rows, targets and weights.

    Returns:
        None where rows cannot be held out.
    """
    if not can_hold_out(subject):
        return None
    if unseen is not None:
        model, learned, rows = subject, (subject.values, subject.targets, subject.weights), unseen
    else:
        keep, out = split(subject, turns=False)[0]
        every = (subject.values, subject.targets, subject.weights)
        model = subject.once("refitted", lambda one: one.refitted(keep))
        learned, rows = (
            (part[0][which], part[1][which], part[2][which]) for part, which in ((every, keep), (every, out))
        )
    found = {_MINE: predict_rows(model, model.inputs(rows[0]), rows[1])}
    found |= dict(reversed(baselines(subject, learned, rows).items()))
    return Judged(model, rows, found, len(learned[1]), unseen is None)


def _scores(subject: Subject, judged: Judged | None) -> str:
    if judged is None:
        why = "too few, noise that was given row by row, trials, or bounds of times"
        return f"<p>Rows of this model cannot be held out: {why}.</p>"
    _, targets, weights = judged.rows
    observes, own = subject.observes, judged.predictions[_MINE]
    has_density = own.log_density is not None
    header = ["", *(["log loss (nats per row)", "above this model"] if has_density else [])]
    header += [ERRORS[observes], "above this model"] if ERRORS[observes] else ["concordance"]
    table = []
    for name, part in judged.predictions.items():
        row = [name]
        if own.log_density is not None and part.log_density is not None:
            row += [
                str(Estimate.of(-part.log_density, weights)),
                _paired(own.log_density - part.log_density, weights, name),
            ]
        elif has_density:
            row += ["", ""]
        table.append(row + _known_scores(own, part, targets, weights, observes, name))
    how = (
        f"A copy of the estimator learned from {judged.learned:,} of the rows, kernel and noise included; the others, "
        f"{len(weights):,}, judge."
        if judged.anew
        else f"{several(len(weights), 'row')} that the model has not seen judge."
    )
    note = (
        f"<p>{_text(how)} Every method learned from the same rows and encoded columns. Smaller is better"
        f"{' (concordance: larger)' if not ERRORS[observes] else ''}; ± is one standard error, and differences are those "
        "of the same rows.</p>"
    )
    return note + _table(header, table)


def _paired(differences: Array, weights: Array, name: str) -> str:
    return "" if name == _MINE else f"{Estimate.of(differences, weights).signed()}"


def _known_scores(
    own: Predictions, part: Predictions, targets: Array, weights: Array, observes: str, name: str
) -> list[str]:
    """Errors with their difference, or a concordance."""
    losses, best = (errors_of(one, targets, observes) for one in (part, own))
    if losses is not None and best is not None:
        above = "" if name == _MINE else error_difference(losses, best, weights, observes).signed()
        return [str(error_score(losses, weights, observes)), above]
    if not (targets[:, 1] == 1.0).any() or np.ptp(part.point) == 0.0:
        return ["0.5" if np.ptp(part.point) == 0.0 else ""]
    return [f"{concordance_index(targets[:, 1] == 1.0, targets[:, 0], part.point, weights):.3f}"]


# ---------------------------------------------------------------------- calibration
def _calibration(judged: Judged) -> str:
    observes = judged.subject.observes
    if observes in ("label", "level"):
        text = (
            "Of rows whose most probable label has probability p, a share of p should have it. On the diagonal, "
            "probabilities mean what they say; bars are the share of the rows."
        )
        return f"<p>{text}</p>" + _figure(_reliability_figure(judged), "Calibration curve")
    if observes == "positive":
        text = "The share of rows that last longer than a time: predicted on average, and observed (Kaplan-Meier)."
        return f"<p>{text}</p>" + _figure(_survival_figure(judged), "Predicted and observed survival")
    if judged.subject.known_noise:
        return ""
    values, targets, weights = judged.rows
    rows = []
    for level, (stated, inside) in covered(judged.subject, values, targets).items():
        found = Estimate.of(inside, weights)
        said = np.average(stated, weights=weights)
        rows.append(
            [f"{100 * level:.0f} %", f"{100 * said:.1f} %", f"{100 * found.mean:.1f} % ± {100 * found.error:.1f} %"]
        )
    note = " Intervals of counts are of whole numbers, and hold more than asked for." if observes == "count" else ""
    header = ["interval", "the model says", "observed"]
    return f"<p>How many held-out values lie within the central intervals predicted for them.{note}</p>" + _table(
        header, rows
    )


def _reliability_figure(judged: Judged) -> Any:
    targets = torch.as_tensor(judged.rows[1]).long()
    curves = {
        name: reliability(torch.as_tensor(part.probs), targets)
        for name, part in list(judged.predictions.items())[:3]
        if part.probs is not None
    }
    figure, axes = _subplots((7.2, 4.4))
    plot_reliability(axes, curves)
    axes.set_title("")
    return figure


def _survival_figure(judged: Judged) -> Any:
    subject, (values, targets, weights) = judged.subject, judged.rows
    times = np.linspace(0.0, float(targets[:, 0].max()), 60)[1:]
    event = targets[:, 1] == 1.0
    observed = censoring_survival(~event, targets[:, 0], times, weights)  # of events in place of censoring
    parts = []
    with torch.no_grad():
        predictive: Any
        for _, predictive in subject.model.predict_batches(subject.inputs(values)):
            alive = [predictive.log_survival(torch.tensor(time)).exp() for time in times]
            parts.append(torch.stack(alive, -1).double().cpu().numpy())
    figure, axes = _subplots((5.2, 3.6))
    axes.step(times, observed, where="post", color=GREY, label="observed")
    axes.plot(times, np.average(np.concatenate(parts), axis=0, weights=weights), color=BLUE, label="predicted")
    axes.set(xlabel="time", ylabel="share that lasts longer", ylim=(0.0, 1.02))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


# ------------------------------------------------------------------ columns and effects
def _importance_figure(subject: Subject) -> Any:
    count = min(20, sum(bool(view.indices) for view in subject.columns))
    figure, axes = _subplots((5.6, 1.0 + 0.28 * count))
    plot_importances(axes, subject)
    return figure


def _columns(summary: Summary) -> str:
    header = ["column", "relevance", "by itself", "direction", "certainty", "lowest at", "highest at", "changes over"]
    rows = []
    for row in summary.columns.head(30).to_dict("records"):
        about = f" ({row['output']})" if row["output"] else ""
        distance = f"{number(row['range'])} {row['unit']}".rstrip() if np.isfinite(row["range"]) else ""
        rows.append(
            [
                *(row["column"], share(round(row["relevance"], 4)), _percent(row["alone"])),
                *(f"{row['direction']}{about}", _percent(row["certainty"]), row["lowest"], row["highest"], distance),
            ]
        )
    note = (
        "Relevance is the share of the variation of the model's function that a column takes part in; by itself, how much "
        "of that its average effect makes, the rest being what it does together with others. Of columns that say the same, "
        "each has a part."
    )
    return f'<div class="wide">{_table(header, rows)}</div><p class="small">{note}</p>'


def _percent(value: float) -> str:
    return f"{100.0 * value:.0f} %" if np.isfinite(value) else ""


def _effects(subject: Subject) -> str:
    if not importances(subject).any():
        return "<p>The model says the same of every row: no column has an effect.</p>"
    panels = np.atleast_1d(plot_effects(subject))
    note = (
        "What rows would have on average if all had one value of a column, with 90 % bands of that average. Ticks along the "
        "bottom are deciles of the rows. The twelve most relevant columns, on one scale."
    )
    return f"<p>{note}</p>" + _figure(panels[0].figure, "Effects of the columns")


# ------------------------------------------------------------------------ the rest
def _next(summary: Summary) -> str:
    items = [f"<li>{_text(one.observed)} <b>{_text(one.change)}</b></li>" for one in summary.limits]
    return f"<p>Noise: {_text(summary.noise)}.</p>" + (f"<ul>{''.join(items)}</ul>" if items else "")


def _data(subject: Subject) -> str:
    rows = [
        [view.name, view.kind, _encodings(view), str(view.main.num_gaps or ""), ", ".join(view.main.noticed)]
        for view in subject.columns[:200]
    ]
    left = len(subject.columns) - len(rows)
    more = f"<p>And {several(left, 'further column')}.</p>" if left > 0 else ""
    weighted = " Rows have weights." if not bool((subject.weights == 1.0).all()) else ""
    intro = f"<p>{several(subject.num_rows, 'row')}. {_text(_target(subject))}{weighted}</p>"
    table = _table(["column", "kind", "encoded as", "gaps", "noticed"], rows)
    return f'{intro}<div class="wide">{table}</div>{more}'


def _encodings(view: ColumnView) -> str:
    return "; ".join(group.encoding for group in view.groups)


def _target(subject: Subject) -> str:
    """The targets in a sentence."""
    y = subject.targets
    if subject.labels:
        counts = np.bincount(y.astype(int), minlength=len(subject.labels))
        shown = ", ".join(f"{label}: {count:,}" for label, count in zip(subject.labels[:20], counts[:20], strict=True))
        return f"Target: {shown}{', ...' if len(counts) > 20 else ''}."
    values = y[:, 0] if y.ndim == 2 else y
    quartiles = ", ".join(number(float(value)) for value in np.quantile(values, [0.0, 0.25, 0.5, 0.75, 1.0]))
    events = (
        f", of which {int(y[:, 1].sum()):,} are events and the others censored"
        if subject.observes == "positive"
        else ""
    )
    return f"Target: quartiles {quartiles}{events}."


def _solver(subject: Subject) -> str:
    """What someone who knows the method wants to see, folded."""
    solution = subject.model.solution
    gap = "none" if solution.certificate is None else f"{number(solution.certificate.objective_gap)} nats"
    facts = [
        ["status", f"{solution.status.reason.name}: {solution.status}"],
        ["passes over the kernel matrix", str(solution.kernel_passes)],
        ["certified gap of the objective", gap],
        ["posterior", f"{subject.model.approximation}, tempering {subject.model.tempering:g}"],
        ["kernel", subject.formula()],
    ]
    explained = str(Trace.of(solution.trace).explain())
    return f"<details><summary>How it was computed</summary>{_table(['', ''], facts)}<pre>{_text(explained)}</pre></details>"


# ----------------------------------------------------------------------------- HTML
def short_html(subject: Subject) -> str:
    """A few facts for a notebook, without computing any."""
    solution = subject.model.solution
    lines = [
        title_of(subject),
        f"Solve: {solution.status.reason.name.lower()}, {several(solution.kernel_passes, 'pass', 'passes')}.",
    ]
    if "total effects" in subject.known:
        shares = importances(subject)
        best = [subject.columns[place] for place in np.argsort(-shares, kind="stable")[:3]]
        lines.append(
            "Most relevant: " + ", ".join(f"{view.name} {share(round(shares[view.position], 4))}" for view in best)
        )
    return f"<div>{'<br>'.join(map(_text, lines))}</div>"


def _text(value: Any) -> str:
    return html.escape(str(value))


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header) if any(header) else ""
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _subplots(size: tuple[float, float]) -> tuple[Any, Any]:
    pyplot = require_module("matplotlib.pyplot", "A report", "plot")
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    return figure, axes


def _figure(figure: Any, alt: str) -> str:
    """A figure as an image within the page; the figure is closed."""
    pyplot = require_module("matplotlib.pyplot", "A report", "plot")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<p><img alt="{_text(alt)}" src="data:image/png;base64,{data}"></p>'
