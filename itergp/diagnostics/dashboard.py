"""The dashboard of a trace: one figure from which a run can be judged."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

from itergp.diagnostics.explain import explain
from itergp.diagnostics.findings import memory, number, share
from itergp.diagnostics.plots import (
    BLUE,
    GREY,
    ORANGE,
    mark_stages,
    plot_convergence,
    plot_residuals,
    plot_trajectory,
    progress_axis,
    widen,
)
from itergp.diagnostics.spectrum_plot import plot_spectrum
from itergp.errors import InputError
from itergp.records import TraceData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_SOLVE = [["gap", "residuals", "steps"], ["rank", "spectrum", "time"]]
_LEARN = [["objective", "objective", "objective", "parameters", "parameters", "parameters"]]
_PANEL = (4.2, 3.3)  # inches
_LINE = 0.21  # inches of a line of text
_CHARACTERS = 165  # of text in a line
_NAMED = 8  # hyperparameters that a legend can name
_PHASES = {"kernel": BLUE, "mode": ORANGE, "covariance": GREY}


def plot_dashboard(trace: TraceData, figure: Figure | None = None) -> dict[str, Axes]:
    """Draws a trace; see ``Trace.plot``."""
    figure = _new_figure(dashboard_size(trace)) if figure is None else figure
    lines = _lines(trace)
    parts: Any = figure.subfigures(2, 1, height_ratios=(_PANEL[1] * len(_rows(trace)), _text_height(lines)))
    upper, lower = parts
    panels = upper.subplot_mosaic(_rows(trace))
    for name, axes in panels.items():
        axes.spines[["top", "right"]].set_visible(False)
        _DRAW[name](axes, trace)
    upper.suptitle(_title(trace), fontsize="medium")
    lower.text(0.02, 1.0, "\n".join(lines), va="top", ha="left", fontsize="medium", linespacing=1.35)
    return panels


def dashboard_size(trace: TraceData) -> tuple[float, float]:
    """Width and height in inches at which the dashboard reads well."""
    return 3 * _PANEL[0], _PANEL[1] * len(_rows(trace)) + _text_height(_lines(trace)) + 0.4


def _rows(trace: TraceData) -> list[list[str]]:
    """Names of the panels, as a mosaic six columns wide."""
    learned = trace.learning is not None and bool(trace.learning.records)
    solved = _SOLVE if len(trace) or not learned else []
    return [[name for name in row for _ in range(2)] for row in solved] + (_LEARN if learned else [])


def _lines(trace: TraceData) -> list[str]:
    """The explanation, wrapped."""
    paragraphs = str(explain(trace)).splitlines()
    options: dict[str, Any] = {"width": _CHARACTERS, "initial_indent": "- ", "subsequent_indent": "  "}
    return [line for text in paragraphs for line in textwrap.wrap(text, **options)]


def _text_height(lines: list[str]) -> float:
    return _LINE * len(lines) + 0.15


def _new_figure(size: tuple[float, float]) -> Figure:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise InputError("The dashboard needs matplotlib. Install it with `pip install itergp[plot]`.") from error
    return plt.figure(figsize=size, layout="constrained")


def _title(trace: TraceData) -> str:
    run = trace.settings
    if run is None:
        return "Trace"
    latents = "1 latent function" if run.num_latents == 1 else f"{run.num_latents} latent functions"
    parts = (run.solver, run.likelihood, f"{run.num_rows:,} rows x {latents}", run.dtype, run.operator, run.device)
    values = [_values(name, value) for name, value in trace.hyperparameters.items()]
    return ", ".join(parts) + "\n" + ", ".join(values[:_NAMED] + ["..."] * (len(values) > _NAMED))


def _values(name: str, values: list[float]) -> str:
    """A hyperparameter and its value, or the range of its values."""
    numbers = [f"{value:.3g}" for value in values]
    shown = ", ".join(numbers) if len(values) <= 2 else f"{min(values):.3g} to {max(values):.3g}"
    return f"{name.rsplit('.', 1)[-1]} {shown}"


# ---------------------------------------------------------------------- panels
def _gap(axes: Axes, trace: TraceData) -> None:
    plot_convergence(axes, trace)
    if not any(record.objective_gap for record in trace):  # convergence is judged by the gradient then
        points = [(x, 0.5 * r.residual) for x, r in zip(progress_axis(trace)[0], trace, strict=True)]
        points = [point for point in points if 0.0 < point[1] < math.inf]
        if points:
            style: dict[str, Any] = {"color": ORANGE, "marker": "s", "markersize": 3}
            axes.plot(*zip(*points, strict=True), **style, label="half squared gradient")
    named = {str(line.get_label()).split(": ")[-1]: line for line in axes.lines}
    if trace.settings is not None:
        target = trace.settings.tolerance * trace.settings.num_rows
        low, high = axes.get_ylim()
        named["tolerance"] = axes.axhline(target, color="black", linewidth=0.8, linestyle="--")
        axes.set_ylim(min(low, 0.5 * target), max(high, 2.0 * target))
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.45, -0.2), "ncols": 3, "columnspacing": 1.0}
    widen(axes)
    axes.legend(named.values(), named.keys(), fontsize="x-small", frameon=False, **place)
    mark_stages(axes, trace)
    axes.set_title("Distance to the mode")


def _residuals(axes: Axes, trace: TraceData) -> None:
    plot_residuals(axes, trace)


def _steps(axes: Axes, trace: TraceData) -> None:
    passes, unit = progress_axis(trace)
    counts = axes.twinx()
    counts.bar(passes, [record.newton_steps for record in trace], color=GREY, alpha=0.35, width=0.7)
    counts.set_ylabel("Newton steps (bars)")
    counts.locator_params(axis="y", integer=True)
    counts.spines["top"].set_visible(False)
    axes.set_zorder(counts.get_zorder() + 1)
    axes.patch.set_visible(False)
    seen = [
        (place, record.step_length) for place, record in zip(passes, trace, strict=True) if record.step_length > 0.0
    ]
    lost = [place for place, record in zip(passes, trace, strict=True) if record.step_length <= 0.0]
    if seen:
        axes.plot(*zip(*seen, strict=True), "o-", color=BLUE, markersize=4, linewidth=1.0)
    smallest = min([length for _, length in seen], default=1.0)
    axes.set(yscale="log", ylim=(0.5 * min(smallest, 0.1), 2.0), xlabel=unit, ylabel="shortest step length")
    if lost:
        axes.plot(lost, [0.7 * min(smallest, 0.1)] * len(lost), "x", color=ORANGE, label="no step decreases")
        axes.legend(fontsize="x-small", frameon=False, loc="lower left")
    axes.locator_params(axis="x", integer=True)
    axes.set_title("Newton steps")
    mark_stages(axes, trace)


def _rank(axes: Axes, trace: TraceData) -> None:
    passes, unit = progress_axis(trace)
    axes.plot(passes, [record.rank for record in trace], "o-", color=BLUE, markersize=4, linewidth=1.0)
    squeezed = [(place, r.rank) for place, r in zip(passes, trace, strict=True) if "compressed" in r.event]
    if squeezed:
        axes.plot(*zip(*squeezed, strict=True), "v", color=ORANGE, label="compressed")
    limit = trace.settings.max_rank if trace.settings else None
    if limit is not None and trace.records and limit <= 4 * max(record.rank for record in trace):
        axes.axhline(limit, color="black", linewidth=0.8, linestyle="--", label="max_rank")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="x-small", frameon=False, loc="lower right")
    axes.set(xlabel=unit, ylabel="directions")
    axes.set_ylim(0.0, 1.15 * axes.get_ylim()[1])  # room for the names of stages
    axes.locator_params(axis="both", integer=True)
    axes.set_title("Search space")
    mark_stages(axes, trace)


def _spectrum(axes: Axes, trace: TraceData) -> None:
    if not trace.spectrum:
        axes.set_title("Spectrum of the covariance")
        axes.text(0.5, 0.5, "not known", ha="center", va="center", color=GREY, transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    plot_spectrum(axes, trace.spectrum)
    if trace.stages:
        axes.set_title(f"Spectrum: {share(trace.stages[-1].variance_explained)} of prior variance explained")


def _time(axes: Axes, trace: TraceData) -> None:
    phases = {name: trace.phase_seconds[name] for name in _PHASES if name in trace.phase_seconds}
    if not phases and trace.records:  # still running
        phases = {"kernel": trace[-1].kernel_seconds, "mode": trace[-1].seconds - trace[-1].kernel_seconds}
    total = sum(phases.values())
    colors = [_PHASES[name] for name in phases]
    bars = axes.barh(list(phases), list(phases.values()), color=colors, height=0.55)
    labels = [f" {number(value)} s ({share(round(value / max(total, 1e-12), 2))})" for value in phases.values()]
    axes.bar_label(bars, labels, fontsize="small")
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.45 * max([*phases.values(), 1e-9]))
    axes.set_xlabel("seconds")
    held = f", peak memory {memory(trace[-1].memory)}" if trace.records and trace[-1].memory else ""
    axes.set_title(f"Time: {number(total)} s{held}")


def _objective(axes: Axes, trace: TraceData) -> None:
    records = trace.learning.records if trace.learning else []
    stages = list(dict.fromkeys(record.stage for record in records))
    for stage, color in zip(stages, (GREY, BLUE, ORANGE), strict=False):
        own = [record for record in records if record.stage == stage]
        points = [record.iteration for record in own], [record.objective for record in own]
        axes.plot(*points, "o-", color=color, markersize=3, linewidth=1.0, label=stage)
    if len(stages) > 1:
        axes.legend(fontsize="x-small", frameon=False)
    axes.set(xlabel="evaluation", ylabel="nats per row, higher is better")
    axes.locator_params(axis="x", integer=True)
    axes.set_title("Learning: objective")


def _parameters(axes: Axes, trace: TraceData) -> None:
    records = trace.learning.records if trace.learning else []
    few = sum(len(values) for values in records[0].parameters.values()) <= _NAMED
    plot_trajectory(axes, records, legend=False)
    if few:
        axes.legend(fontsize="x-small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.locator_params(axis="x", integer=True)
    axes.set_title("Learning: hyperparameters")


_DRAW = {
    "gap": _gap,
    "residuals": _residuals,
    "steps": _steps,
    "rank": _rank,
    "spectrum": _spectrum,
    "time": _time,
    "objective": _objective,
    "parameters": _parameters,
}
