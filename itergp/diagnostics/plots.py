"""Plots. Each takes matplotlib axes and returns them; matplotlib is the ``plot`` extra."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from itergp.diagnostics.metrics import Reliability
from itergp.records import FitRecord, TraceData, TraceRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes


BLUE, ORANGE, GREY = "#2a6f97", "#d1495b", "#8d99ae"
_ACCENTS = (ORANGE, BLUE, "#5a8f4e")


def plot_reliability(axes: Axes, curves: dict[str, Reliability]) -> Axes:
    """Accuracy against confidence, one line per method, with the share of rows in each bin as bars.

    Args:
        axes: Where to draw.
        curves: Reliability by name of method.
    """
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":", label="perfect")
    for (name, curve), color in zip(curves.items(), (BLUE, ORANGE, GREY), strict=False):
        share = (curve.counts / curve.counts.sum()).tolist()
        bins = len(share)
        edges = [(i + 0.5) / bins for i in range(bins)]
        axes.bar(edges, share, width=0.92 / bins, color=color, alpha=0.15, linewidth=0)
        seen = curve.counts > 0
        label = f"{name} (calibration error {curve.expected_calibration_error:.3f})"
        confidence, accuracy = curve.confidence[seen].tolist(), curve.accuracy[seen].tolist()
        axes.plot(confidence, accuracy, marker="o", markersize=4, color=color, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy (bars: share of rows)")
    axes.set_title("Reliability")
    _legend_below(axes)
    return axes


def plot_convergence(axes: Axes, trace: TraceData) -> Axes:
    """Certified gap, and the objective above its final value, against kernel passes (or steps), by stage; logarithmic.

    The gap bounds the distance of the objective from its minimum, so the upper line stays above the lower one.

    Args:
        axes: Where to draw.
        trace: The record of a run.
    """
    places, unit = progress_axis(trace)
    stages = list(dict.fromkeys(record.stage for record in trace))
    for stage, color in zip(stages, (GREY, BLUE), strict=False):
        records = [(place, record) for place, record in zip(places, trace, strict=True) if record.stage == stage]
        final = records[-1][1].objective
        gaps = [(place, r.objective_gap) for place, r in records if r.objective_gap and r.objective_gap < math.inf]
        above = [(place, r.objective - final) for place, r in records if r.objective > final]
        if gaps:
            axes.plot(*zip(*gaps, strict=True), color=color, marker="s", markersize=3, label=f"{stage}: certified gap")
        if above:
            label = f"{stage}: objective above its final value"
            axes.plot(*zip(*above, strict=True), ":", color=color, marker="o", markersize=3, label=label)
    axes.set(yscale="log", xlabel=unit, ylabel="nats")
    axes.locator_params(axis="x", integer=True)
    _legend_below(axes)
    axes.set_title("Convergence")
    return axes


def plot_residuals(axes: Axes, trace: TraceData, *, named: int = 3) -> Axes:
    """Norm of ``g - V``, which vanishes at the mode, of each latent function against kernel passes (or steps); logarithmic.

    Args:
        axes: Where to draw.
        trace: What to draw.
        named: How many latent functions get a colour and a name: those with the largest residuals at the end.
    """
    places, unit = progress_axis(trace)
    pairs = [(place, record) for place, record in zip(places, trace, strict=True) if record.class_residuals]
    records = [record for _, record in pairs]
    count = len(records[-1].class_residuals) if records else 0
    order = sorted(range(count), key=lambda c: records[-1].class_residuals[c])
    passes = [place for place, _ in pairs]
    for above, c in enumerate(order):
        rank = count - 1 - above
        name = f"latent function {c}" if rank < named and count > 1 else None
        color = _ACCENTS[rank] if rank < min(named, len(_ACCENTS)) else GREY
        values = [record.class_residuals[c] if c < len(record.class_residuals) else math.nan for record in records]
        style = {"linewidth": 1.4, "marker": "o", "markersize": 3} if rank < named else {"linewidth": 0.7, "alpha": 0.7}
        axes.plot(passes, values, color=color, label=name, **style)
    # A residual of exactly zero has no place on a logarithmic axis.
    axes.set(xlabel=unit, ylabel="norm of g - V", yscale="log" if _any_positive(records) else "linear")
    axes.locator_params(axis="x", integer=True)
    axes.set_title("Residual by latent function" if count > 1 else "Residual")
    widen(axes)
    mark_stages(axes, trace)
    if count > 1:
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], fontsize="x-small", frameon=False, loc="lower left")
    return axes


def progress_axis(trace: TraceData) -> tuple[list[int], str]:
    """Where the records of a trace stand on a horizontal axis, and its name: kernel passes, or steps if few steps take one."""
    passes = [record.kernel_passes for record in trace]
    if 2 * len(set(passes)) > len(passes):
        return passes, "kernel passes"
    return list(range(1, len(passes) + 1)), "step"


def widen(axes: Axes) -> None:
    """At least two decades on a logarithmic axis, which labels those alone."""
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log" and high < 100.0 * low:
        middle = math.sqrt(low * high)
        axes.set_ylim(middle / 10.0, middle * 10.0)


def mark_stages(axes: Axes, trace: TraceData) -> None:
    """A dotted line wherever another stage begins, with its name."""
    style: dict[str, Any] = {"fontsize": "x-small", "color": "dimgrey", "va": "top", "textcoords": "offset points"}
    places, _ = progress_axis(trace)
    for (before, after), place in zip(itertools.pairwise(trace.records), places[1:], strict=False):
        if before.stage != after.stage:
            border = place - 0.5
            axes.axvline(border, color=GREY, linewidth=0.8, linestyle=":")
            for name, offset, side in ((before.stage, -3, "right"), (after.stage, 3, "left")):
                at = (border, 1.0)
                axes.annotate(name, at, xycoords=("data", "axes fraction"), xytext=(offset, 0), ha=side, **style)


def plot_trajectory(axes: Axes, records: Sequence[FitRecord], *, legend: bool = True) -> Axes:
    """Hyperparameters during learning, one line per element: positive ones on a logarithmic scale, as the optimiser moves them.

    Args:
        axes: Where to draw.
        records: ``FitResult.records``.
        legend: Whether to name the lines.
    """
    names = [f"{name}[{i}]" if len(v) > 1 else name for name, v in records[0].parameters.items() for i in range(len(v))]
    values = [[x for v in record.parameters.values() for x in v] for record in records]
    steps = [record.iteration for record in records]
    for name, line in zip(names, zip(*values, strict=True), strict=True):
        style = "-" if "lengthscale" in name else "--"
        axes.plot(steps, line, style, linewidth=1.2, label=name.replace("raw_", "").rsplit(".", 1)[-1])
    for before, after in itertools.pairwise(records):
        if before.stage != after.stage:
            axes.axvline(after.iteration - 0.5, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(xlabel="evaluation", ylabel="logarithm (means: value)")
    if legend:
        _legend_below(axes)
    return axes


def plot_class_probabilities(axes: Axes, probs: list[float], label: int) -> Axes:
    """Bars of one row's class probabilities; the true class is blue, others grey.

    Args:
        axes: Where to draw.
        probs: Class probabilities ``(C,)``.
        label: The true class.
    """
    axes.bar(range(len(probs)), probs, color=[BLUE if c == label else GREY for c in range(len(probs))])
    axes.set(ylim=(0, 1.05), yticks=[], xticks=range(len(probs)))
    axes.tick_params(axis="x", labelsize=6, length=0, pad=1)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return axes


def _any_positive(records: Sequence[TraceRecord]) -> bool:
    return any(value > 0.0 for record in records for value in record.class_residuals)


def _legend_below(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:  # matplotlib warns of a legend without entries
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize="small")
