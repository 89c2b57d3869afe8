"""The pictures of the gallery: each from the code on the page and a few lines of drawing.

``python -m benchmarks.gallery`` writes them to ``docs/images``, or those that are named on the command line.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from itergp.diagnostics import plot_uncertainty

DOCS = Path(__file__).parents[1] / "docs"
SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def binary_map(names: dict[str, Any]) -> Any:
    figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.5), layout="constrained")
    X, y, probs, std = names["X"], names["y"], names["probs"], names["std"]
    first, second = (names["grid"][:, i].reshape(60, 60) for i in (0, 1))
    for axis, values, title, cmap, limits in (
        (axes[0], probs, "probability of class 1", "RdBu", (0, 1)),
        (axes[1], std, "latent standard deviation", "viridis", (None, None)),
    ):
        mesh = axis.pcolormesh(first, second, values.reshape(60, 60), cmap=cmap, vmin=limits[0], vmax=limits[1])
        axis.scatter(*X.T, c=y, cmap="RdBu", s=10, edgecolors="k", linewidths=0.4)
        axis.set(title=title, xlabel="first column", ylabel="second column", xticks=[], yticks=[])
        figure.colorbar(mesh, ax=axis)
    return figure


def digits(names: dict[str, Any]) -> Any:
    figure, axes = plt.subplots(2, 6, figsize=(7.6, 3.4), layout="constrained")
    images, probs, truth = names["test_X"].reshape(-1, 8, 8), names["probs"], names["test_y"]
    confidence = probs.max(1)
    order = np.argsort(confidence)
    for row, picked in zip(axes, (order[:6], order[-6:]), strict=True):
        for axis, i in zip(row, picked, strict=True):
            axis.imshow(images[i], cmap="gray_r")
            best = np.argsort(probs[i])[::-1][:2]
            label = "\n".join(f"{k}: {probs[i, k]:.2f}" for k in best)
            axis.set_title(f"is {truth[i]}", fontsize=9)
            axis.set_xlabel(label, fontsize=8)
            axis.set(xticks=[], yticks=[])
    return figure


def ordinal(names: dict[str, Any]) -> Any:
    figure, axis = plt.subplots(figsize=(5.6, 3.3), layout="constrained")
    colours = plt.get_cmap("viridis")(np.linspace(0.1, 0.95, names["probs"].shape[1]))
    axis.stackplot(names["mass"], names["probs"].T, colors=colours, labels=names["levels"])
    axis.set(xlabel="body mass index", ylabel="probability", ylim=(0, 1), xlim=(names["mass"][0], names["mass"][-1]))
    axis.legend(loc="lower right", fontsize="small", title="progression")
    return figure


def counts(names: dict[str, Any]) -> Any:
    figure, axis = plt.subplots(figsize=(5.6, 3.3), layout="constrained")
    hours, rate = names["grid"][:, 0], names["rate"]
    size = names["exposure"]
    axis.scatter(
        names["X"][:, 0], names["y"] / size, s=6 * size, color="0.6", label="counts per hour, size: hours watched"
    )
    axis.plot(hours, rate, label="expected in one hour")
    axis.fill_between(hours, names["low"], names["high"], alpha=0.25, label="90 % of one-hour counts")
    axis.set(xlabel="time of day, hours", ylabel="per hour", ylim=(0, 26))
    axis.legend(frameon=False, fontsize="small")
    return figure


def survival(names: dict[str, Any]) -> Any:
    figure, axis = plt.subplots(figsize=(5.6, 3.3), layout="constrained")
    axis.plot(names["t"], names["alive"].T)
    axis.legend([f"load {load:g}" for load in names["loads"]], frameon=False)
    axis.axvline(names["end"], color="0.6", linestyle=":")
    axis.text(names["end"], 1.0, " end of study", color="0.4", va="top")
    axis.set(xlabel="time", ylabel="probability to last longer", ylim=(0, 1.02))
    return figure


def robust(names: dict[str, Any]) -> Any:
    figure, axis = plt.subplots(figsize=(5.6, 3.3), layout="constrained")
    axis.plot(names["X"][:, 0], names["y"], ".", color="0.6")
    for name, (mean, std) in names["curves"].items():
        (line,) = axis.plot(names["grid"][:, 0], mean, label=name)
        axis.fill_between(names["grid"][:, 0], mean - 2 * std, mean + 2 * std, color=line.get_color(), alpha=0.2)
    axis.legend(frameon=False)
    axis.set(xlabel="x", ylabel="y")
    return figure


def uncertainty(names: dict[str, Any]) -> Any:
    figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.2), layout="constrained", sharey=True)
    for axis, (rank, parts) in zip(axes, names["parts"].items(), strict=True):
        plot_uncertainty(axis, names["line"], names["means"][rank], parts)
        axis.set(title=f"covariance_rank={rank}", xlabel="mean radius")
    axes[0].set_ylabel("latent function")
    axes[0].legend(frameon=False, fontsize="small", loc="lower left")
    return figure


PICTURES: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "Two classes in the plane": ("gallery-binary", binary_map),
    "Ten classes": ("gallery-digits", digits),
    "Ordered grades": ("gallery-ordinal", ordinal),
    "Counts with exposure": ("gallery-counts", counts),
    "Survival times, some censored": ("gallery-survival", survival),
    "Robust regression": ("gallery-robust", robust),
    "Data or computation": ("gallery-uncertainty", uncertainty),
}


def main() -> None:
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    page = (DOCS / "gallery.md").read_text()
    names: dict[str, Any] = {}
    for title, text in [("", page.split("\n## ")[0]), *SECTION.findall(page)]:
        for code in BLOCK.findall(text):
            exec(code, names)
        if title not in PICTURES:
            continue
        name, draw = PICTURES[title]
        if len(sys.argv) == 1 or name in sys.argv[1:]:
            torch.manual_seed(0)
            figure = draw(names)
            figure.savefig(DOCS / "images" / f"{name}.png", dpi=100)


if __name__ == "__main__":
    main()
