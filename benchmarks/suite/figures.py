"""Figures of the report: performance profiles, NLL against time, cost against rows, reliability."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.suite.analysis import families, medians, profile, ratios, score, target_of, variants_of
from benchmarks.suite.findings import FAMILY, OURS
from benchmarks.workloads import INFERENCE

_CYCLE = ["#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f", "#8c564b", "#bcbd22"]
_OUR_BLUE = "#0057b7"
_SETTINGS = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def representatives(runs: pd.DataFrame, targets: pd.DataFrame, ruleset: str) -> dict[str, str]:
    """One setting per family for the figures: the defaults of this package, and of every other family its best by score.

    Ties are settled by the mean rank of the validation NLL over workloads.
    """
    chosen = runs[(runs["ruleset"] == ruleset) & runs["applies"]]
    table, family = medians(chosen, targets, ruleset), families(runs)
    if table.empty:
        return {}
    found = ratios(table)
    reached = score(found, 64.0) if found.shape[1] else pd.Series(0.0, index=table.index)
    ranks = chosen.groupby(["workload", "method"])["best"].mean().groupby(level="workload").rank()
    order = pd.DataFrame({"score": reached, "rank": -ranks.groupby(level="method").mean()})
    order = order.sort_values(["score", "rank"], ascending=False)
    best: dict[str, str] = {}
    for method in order.index:
        if family[method] != FAMILY or method == OURS[ruleset]:
            best.setdefault(family[method], method)
    return best


def colours(runs: pd.DataFrame) -> dict[str, str]:
    """A colour per family, the same in every figure."""
    others = sorted(set(runs["family"]) - {FAMILY})
    return {FAMILY: _OUR_BLUE} | {name: _CYCLE[i % len(_CYCLE)] for i, name in enumerate(others)}


def draw_all(runs: pd.DataFrame, targets: pd.DataFrame, folder: Path) -> list[str]:
    """Writes every figure that there are results for, and returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[str] = []

    def save(name: str, figure: Figure | None) -> None:
        if figure is not None:
            figure.savefig(folder / f"benchmarks-{name}.png", dpi=130)
            plt.close(figure)
            written.append(f"benchmarks-{name}.png")

    with mpl.rc_context(_SETTINGS):
        for ruleset in dict.fromkeys(runs["ruleset"]):
            slug = ruleset.replace(" ", "-")
            save(f"profiles-{slug}", draw_profiles(runs, targets, ruleset))
            save(f"curves-{slug}", draw_curves(runs, targets, ruleset))
            save(f"reliability-{slug}", draw_reliability(runs, targets, ruleset))
        save("cost", draw_cost(runs))
    return written


def draw_profiles(runs: pd.DataFrame, targets: pd.DataFrame, ruleset: str) -> Figure | None:
    """Performance profiles up to tau = 4, linear as in AlgoPerf, and up to 64, logarithmic."""
    table = medians(runs, targets, ruleset)
    if table.empty:
        return None
    found, colour = ratios(table, variants_of(runs)), colours(runs)
    if not found.shape[1]:
        return None
    chosen = representatives(runs, targets, ruleset)
    figure, axes = plt.subplots(1, 2, figsize=(8.2, 3.9), sharey=True)
    for axis, tau_max in zip(axes, (4.0, 64.0), strict=True):
        tau = np.geomspace(1.0, tau_max, 400)
        shares = profile(found, tau)
        for family, method in chosen.items():
            ours = family == FAMILY
            axis.step(
                tau,
                shares.loc[method],
                where="post",
                color=colour[family],
                linewidth=2.4 if ours else 1.4,
                zorder=3 if ours else 2,
                label=method,
            )
        axis.set(xlabel=r"$\tau$: within this factor of the fastest", xlim=(1.0, tau_max), ylim=(-0.02, 1.03))
        axis.grid(alpha=0.25)
    axes[1].set_xscale("log", base=2)
    axes[1].xaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
    axes[0].set_ylabel(f"share of {found.shape[1]} workloads")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(f"Performance profiles: {ruleset}", fontsize=10)
    return figure


def draw_curves(runs: pd.DataFrame, targets: pd.DataFrame, ruleset: str) -> Figure | None:
    """Validation NLL against training time, the median over seeds with the range, per workload."""
    part = runs[(runs["ruleset"] == ruleset) & (runs["trial"] == 0) & runs["best"].map(math.isfinite)]
    chosen, colour = representatives(runs, targets, ruleset), colours(runs)
    names = list(dict.fromkeys(part["workload"]))
    if not names:
        return None
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure, grid = plt.subplots(rows, columns, figsize=(2.75 * columns, 2.35 * rows + 0.6), squeeze=False)
    for axis, name in zip(grid.flat, names, strict=False):
        here = part[part["workload"] == name]
        _frame(axis, here[here["method"].isin(chosen.values())], targets)
        for family, method in chosen.items():
            _draw_curve(axis, here[here["method"] == method], colour[family], method)
        axis.set_title(name, fontsize=8)
    _label(figure, grid, len(names), "training seconds", "validation NLL")
    return figure


def _label(figure: Figure, grid: np.ndarray, used: int, below: str, left: str) -> None:
    """Labels at the outer axes, and one legend for all."""
    columns = grid.shape[1]
    for index, axis in enumerate(grid.flat):
        axis.set_visible(index < used)
        if index + columns >= used:
            axis.set_xlabel(below, fontsize=8)
        if index % columns == 0:
            axis.set_ylabel(left, fontsize=8)
    pairs = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in grid.flat[:used]]
    handles = {label: handle for pair in pairs for handle, label in pair}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=max(2, columns), fontsize=8)


def _draw_curve(axis: Axes, runs: pd.DataFrame, colour: str, label: str) -> None:
    """A line for methods with checkpoints, a point with error bars for those with one."""
    curves = [[(p["seconds"], p["nll"]) for p in curve if p["nll"] is not None] for curve in runs["curve"]]
    curves = [curve for curve in curves if curve]
    if not curves:
        return
    if max(map(len, curves)) == 1:
        time, nll = (np.array([curve[0][i] for curve in curves]) for i in (0, 1))
        middle, at = float(np.median(nll)), float(np.median(time))
        bars = [[middle - nll.min()], [nll.max() - middle]]
        axis.errorbar([at], [middle], yerr=bars, fmt="o", color=colour, markersize=4.5, label=label, zorder=3)
        if middle > axis.get_ylim()[1]:  # above what is shown
            top = axis.get_ylim()[1]
            axis.plot([at], [top], "^", color=colour, markersize=5.5, zorder=3, clip_on=False)
        return
    first = max(curve[0][0] for curve in curves)
    last = min(curve[-1][0] for curve in curves)
    grid = np.geomspace(max(first, 1e-3), max(last, first * 1.01), 120)
    values = np.stack([_held(np.array(curve), grid) for curve in curves])
    axis.plot(grid, np.median(values, 0), color=colour, linewidth=1.5, label=label)
    axis.fill_between(grid, values.min(0), values.max(0), color=colour, alpha=0.18, linewidth=0)


def _held(curve: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The best so far at each time of the grid."""
    best = np.minimum.accumulate(curve[:, 1])
    return best[np.clip(np.searchsorted(curve[:, 0], grid, side="right") - 1, 0, None)]


def _frame(axis: Axes, here: pd.DataFrame, targets: pd.DataFrame) -> None:
    """A range of values in which differences between good methods can be seen, and the target."""
    wanted = target_of(here, targets, "standard")
    wanted = wanted[np.isfinite(wanted)]
    low, base = float(here["best"].min()), float(here["base_nll"].median())
    width = max(4.0 * (float(here["best"].median()) - low), 0.08 * abs(base - low), 0.02 * abs(low), 1e-3)
    high = low + (min(width, base - low) if base > low else width)
    if len(wanted):
        high = max(high, float(wanted.median()) + 0.1 * (high - low))
        axis.axhline(float(wanted.median()), color="grey", linestyle=":", linewidth=1.0)
    moments = [point["seconds"] for curve in here["curve"] for point in curve if point["nll"] is not None]
    first, last = max(0.7 * min(moments), 1e-3), 1.4 * max(moments)
    spare = 10 ** (0.5 * max(0.0, 2.0 - math.log10(last / first)))  # two decades, so that some have labels
    axis.set(xscale="log", xlim=(first / spare, last * spare), ylim=(low - 0.06 * (high - low), high))
    axis.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=7)


def draw_reliability(runs: pd.DataFrame, targets: pd.DataFrame, ruleset: str) -> Figure | None:
    """Accuracy against confidence on the test rows of all seeds, for the workloads with the most of them."""
    part = runs[(runs["ruleset"] == ruleset) & (runs["trial"] == 0) & (runs["variant_of"] == "")]
    if "reliability" not in part or part["reliability"].dropna().empty:
        return None
    part = part[part["reliability"].notna() & (part["kind"] == "classes")]
    names = part.groupby("workload", sort=False)["rows"].max().nlargest(8).index.tolist()
    if not names:
        return None
    chosen, colour = representatives(runs, targets, ruleset), colours(runs)
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(2.5 * columns, 2.5 * rows + 0.7), squeeze=False, sharex=True, sharey=True
    )
    for axis, name in zip(grid.flat, names, strict=False):
        axis.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1.0)
        here = part[part["workload"] == name]
        for family, method in chosen.items():
            bins = _pooled(list(here.loc[here["method"] == method, "reliability"]))
            if bins is not None:
                axis.plot(*bins, marker="o", markersize=2.8, linewidth=1.2, color=colour[family], label=method)
        axis.set_title(name, fontsize=8)
        axis.set(xlim=(0, 1.02), ylim=(0, 1.02))
        axis.grid(alpha=0.25)
    _label(figure, grid, len(names), "confidence", "accuracy")
    return figure


def _pooled(bins: list[dict[str, list[float]]], fewest: int = 15) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean confidence and accuracy of all seeds, in bins with enough rows to say something."""
    if not bins:
        return None
    counts = np.array([b["counts"] for b in bins])
    total = counts.sum(0)
    keep = total >= fewest
    if not keep.any():
        return None
    means = [
        (np.array([b[name] for b in bins]) * counts).sum(0)[keep] / total[keep] for name in ("confidence", "accuracy")
    ]
    return means[0], means[1]


def draw_cost(runs: pd.DataFrame) -> Figure | None:
    """Training seconds, and memory, against rows of the mixtures, for methods that end by themselves."""
    part = runs[
        runs["workload"].str.fullmatch(r"mixture [\d,]+") & (runs["status"] == "finished") & (runs["trial"] == 0)
    ]
    if part.empty or part["rows"].nunique() < 2:
        return None
    part = part[part["importance"] == 1]
    several = part.groupby(["method", "ruleset"])["rows"].transform("nunique") > 1  # one size says nothing about growth
    part = part[several]
    methods = sorted(dict.fromkeys(part["method"]), key=lambda name: name not in OURS.values())  # ours are first, blue
    family, colour, free = families(runs), colours(runs), list(reversed(_CYCLE))
    shown: dict[str, str] = {}  # a family's colour for one of its methods, a free one for the others
    for method in methods:
        own = colour[family[method]]
        shown[method] = (
            own if own not in shown.values() else next(c for c in free if c not in (*colour.values(), *shown.values()))
        )
    figure, axes = plt.subplots(1, 2, figsize=(8.2, 3.9))
    for (method, ruleset), here in part.groupby(["method", "ruleset"], sort=False):
        for axis, what, unit in zip(axes, ("seconds", "peak_bytes"), (1.0, 2.0**20), strict=True):
            middle = here.groupby("rows")[what].median() / unit
            style = "-" if ruleset == INFERENCE else "--"
            axis.plot(
                middle.index,
                middle,
                style,
                marker="o",
                markersize=3.5,
                color=shown[method],
                label=method,
            )
    for axis, title in zip(axes, ("training seconds", "memory beyond the start, MiB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="training rows", ylabel=title)
        axis.grid(alpha=0.25)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    dashed = " (dashed: end to end)" if set(part["ruleset"]) - {INFERENCE} else ""
    figure.suptitle(f"Mixtures: cost against rows{dashed}", fontsize=10)
    return figure
