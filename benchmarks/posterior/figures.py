"""The pictures of the page on the posterior."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.posterior import moons, variance
from benchmarks.posterior.problems import BINARY
from benchmarks.posterior.results import Results

BLUE, ORANGE, GREEN = "#0057b7", "#d55e00", "#009e73"
_SHOWN_ROWS = 300
_SETTINGS = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "itergp",
}
_SECONDS = "processor seconds, one thread"


def draw_all(results: Results, folder: Path) -> list[str]:
    """Writes every figure that there are results for, and returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(_SETTINGS):
        for name, draw in (("variance", draw_variance), ("laplace", draw_laplace), ("moons", draw_moons)):
            figure = draw(results)
            if figure is not None:
                figure.savefig(folder / f"posterior-{name}.svg", metadata={"Date": None}, dpi=110)
                plt.close(figure)
                written.append(f"posterior-{name}.svg")
    return written


def _panels(lines: list[dict[str, Any]]) -> tuple[list[str], Figure, np.ndarray]:
    found = dict.fromkeys(line["data"] for line in lines)
    names = sorted(found, key=lambda name: (*BINARY, name).index(name))
    figure, grid = plt.subplots(1, len(names), figsize=(2.9 * len(names) + 0.2, 3.4), squeeze=False, sharey=True)
    for axis, name in zip(grid[0], names, strict=True):
        rows = next(line["rows"] for line in lines if line["data"] == name)
        axis.set(title=f"{name}, {rows:,} rows", xlabel=_SECONDS, xscale="log")
        axis.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0)))
        axis.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axis.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        axis.grid(alpha=0.25)
    return names, figure, grid[0]


def _legend(figure: Figure, axis: Axes) -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)


def draw_variance(results: Results) -> Figure | None:
    """Median excess of the variance over the exact one against time, the variational posterior in float64."""
    lines = results.select("variance", dtype="float64")
    if not lines:
        return None
    names, figure, axes = _panels(lines)
    for name, axis in zip(names, axes, strict=True):
        here = {(line["rank"], line["neighbours"]): line for line in lines if line["data"] == name}
        only = sorted(key for key in here if key[1] == 0)
        _curve(axis, [here[key] for key in only], BLUE, "o", "actions alone, r = 32 to 512")
        alone = sorted(key for key in here if key[0] == 1)
        _curve(axis, [here[key] for key in alone], ORANGE, "s", "neighbours alone, n = 8 to 128")
        for index, rank in enumerate(sorted({r for r, n in here if r > 1 and n > 0})):
            joint = sorted(key for key in here if key[0] == rank and key[1] > 0)
            label = "both, r = 64 to 256, n = 8 to 32" if index == 0 else None
            _curve(axis, [here[key] for key in joint], GREEN, "^", label)
        if (chosen := here.get(variance.DEFAULT)) is not None:
            ring = {"marker": "o", "markersize": 12, "markerfacecolor": "none", "linestyle": "none"}
            axis.plot(chosen["seconds"], _excess(chosen), **ring, color="black", label="default, 224 and 16")
    axes[0].set(yscale="log", ylabel="median excess over the exact variance (%)")
    axes[0].yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    _legend(figure, axes[0])
    return figure


def _excess(line: dict[str, Any]) -> float:
    return 100.0 * (line["median"] - 1.0)


def _curve(axis: Axes, lines: list[dict[str, Any]], colour: str, marker: str, label: str | None) -> None:
    x, y = [line["seconds"] for line in lines], [_excess(line) for line in lines]
    axis.plot(x, y, marker=marker, color=colour, linewidth=1.0, markersize=4.5, label=label)


def draw_laplace(results: Results) -> Figure | None:
    """The same under Laplace's approximation beside GPBoost, with the range from the least to the 95 % quantile."""
    lines = [line for line in results.select("laplace") if "median" in line]
    if not lines:
        return None
    names, figure, axes = _panels(lines)
    series = {
        "itergp": ("itergp", None, BLUE, "o"),
        "GPBoost, Vecchia": ("gpboost", "vecchia", ORANGE, "s"),
        "GPBoost, full-scale Vecchia": ("gpboost", "full_scale_vecchia", GREEN, "^"),
    }
    for name, axis in zip(names, axes, strict=True):
        axis.axhline(1.0, color="#888888", linewidth=0.8)
        for label, (method, approximation, colour, marker) in series.items():
            here = [line for line in lines if line["data"] == name and line["method"] == method]
            here = [line for line in here if approximation in (None, line["setting"][0]) and line["setting"][0] != 1]
            middle = np.array([line["median"] for line in here])
            below = middle - [line["least"] for line in here]
            above = np.array([line["quantile"] for line in here]) - middle
            bars = {"yerr": [below, above], "elinewidth": 0.9, "capsize": 2.0, "markersize": 4.5}
            axis.errorbar([line["seconds"] for line in here], middle, fmt=marker, color=colour, label=label, **bars)
    axes[0].set_ylabel("variance over the exact one (ratio)\nmedian, least, 95 % quantile")
    _legend(figure, axes[0])
    return figure


def draw_moons(results: Results) -> Figure | None:
    """Maps of the probability with the default and with the mode plugged in, and probabilities along a line."""
    lines = results.select("moons")
    if not lines:
        return None
    rows = max(line["rows"] for line in lines)
    found = {line["method"]: line for line in lines if line["rows"] == rows}
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.5), width_ratios=(1.0, 1.0, 0.85))
    x, y = moons.data(rows)
    image = None
    for axis, name in zip(axes, (moons.DEFAULT, moons.PLUGGED_IN), strict=False):
        values = np.array(found[name]["map"]).reshape(moons.GRID, moons.GRID)
        image = axis.imshow(values, extent=moons.EXTENT, origin="lower", cmap="RdBu", vmin=0.0, vmax=1.0, aspect="auto")
        for label, colour, title in ((0, "white", "rows of the first class"), (1, "black", "rows of the second class")):
            shown = x[:_SHOWN_ROWS][y[:_SHOWN_ROWS] == label]
            axis.scatter(*shown.T, s=5.0, color=colour, edgecolor="#555555", linewidth=0.3, label=title)
        axis.plot([0.0, 0.0], [0.3, moons.EXTENT[3]], color="black", linewidth=0.8, linestyle=":")
        axis.set(title=f"{name}, {rows:,} rows", xlabel="first input (units of the data)")
    axes[0].set_ylabel("second input (units of the data)")
    figure.colorbar(image, ax=list(axes[:2]), label="probability of the first class", shrink=0.9)
    for name, colour in ((moons.DEFAULT, BLUE), (moons.PLUGGED_IN, ORANGE), (moons.SCIKIT, GREEN)):
        axes[2].plot(moons.DISTANCES, found[name]["line"], color=colour, label=name)
    axes[2].set(xlabel="distance (units of the data)", ylabel="probability of the first class")
    axes[2].set(ylim=(0.0, 1.03), title="Along the dotted line")
    axes[2].grid(alpha=0.25)
    pairs = [zip(*axes[i].get_legend_handles_labels(), strict=True) for i in (0, 2)]
    handles, labels = zip(*(pair for part in pairs for pair in part), strict=True)
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)
    return figure
