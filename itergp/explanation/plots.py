"""Pictures of effects and importances; matplotlib is the ``plot`` extra."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from itergp.checks import require_module
from itergp.diagnostics.plots import BLUE, GREY, ORANGE
from itergp.errors import InputError
from itergp.explanation.columns import MISSING, ColumnView, Grid, choose
from itergp.explanation.effects import Curve, Surface, curve, pair_of, surface
from itergp.explanation.importances import importances
from itergp.explanation.subject import Subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]

_MOST_PANELS, _ACROSS = 12, 3
_NAMED = 9  # outputs that get a colour and a name: those that vary most
_WIDTH, _HEIGHT = 3.1, 2.5  # of a panel, in inches
_LONG = 14  # characters of a level
_BAND = 0.22


def plot_effects(
    subject: Subject, columns: Any = None, interactions: Iterable[tuple[Any, Any]] | None = None, ax: Any = None
) -> Any:
    """Draws effects; see ``GPRegressor.plot_effects``.

    Args:
        subject: What is explained.
        columns: Names or numbers; default the most important ones.
        interactions: Pairs of columns, each drawn as a map.
        ax: Axes to draw in; default a new figure.

    Raises:
        InputError: If there is nothing to draw, or there are too few axes.
    """
    require_module("matplotlib", "A plot of effects", "plot")
    singles = (
        most_important(subject) if columns is None and interactions is None else choose(subject.encoder, columns or [])
    )
    pairs = [pair_of(subject, pair) for pair in interactions or ()]
    if not singles and not pairs:
        raise InputError(
            "`columns` must name a column, or `interactions` a pair. Got none. Leave both out for all columns."
        )
    curves = [curve(subject, view) for view in singles]
    surfaces = [surface(subject, *pair) for pair in pairs]
    panels, figure = _panels(len(curves) + len(surfaces), ax, wide=bool(surfaces))
    names = subject.response.outputs
    shown = _shown(curves)
    for panel, found in zip(panels, curves, strict=False):
        draw_curve(panel, found, subject, shown)
    for panel, joint in zip(panels[len(curves) :], surfaces, strict=True):
        draw_surface(panel, joint, subject.response.label, names)
    if figure is not None and curves:
        _same_limits(panels[: len(curves)])
    if figure is not None and len(curves) > 1:
        figure.supylabel(subject.response.label, fontsize="medium")
        for panel in panels[: len(curves)]:
            panel.set_ylabel("")
    if len(names) > 1 and curves:
        _legend(panels[0], figure, len(names) - len(shown))
    return panels[0] if len(panels) == 1 else np.array(panels)


def most_important(subject: Subject, most: int = _MOST_PANELS) -> list[ColumnView]:
    """Columns by importance, those that were left out not among them."""
    order = np.argsort(-importances(subject), kind="stable")
    return [subject.columns[place] for place in order if subject.columns[place].indices][:most]


def plot_importances(axes: Axes, subject: Subject, most: int = 20) -> Axes:
    """Shares of the columns as bars, the largest first.

    Args:
        axes: Where to draw.
        subject: What is explained.
        most: How many columns.
    """
    views, shares = most_important(subject, most), importances(subject)
    values = [100.0 * shares[view.position] for view in views]
    axes.barh(range(len(views)), values, color=BLUE, height=0.7)
    axes.set_yticks(range(len(views)), [_cut(view.name, 28) for view in views])
    axes.invert_yaxis()
    axes.set_xlabel("share of the variation (%)")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


# --------------------------------------------------------------------- one panel
def draw_curve(axes: Axes, found: Curve, subject: Subject, shown: Sequence[int]) -> None:
    """One effect: a curve with its band, or levels as points with bars."""
    names = subject.response.outputs
    for rank, k in enumerate(shown):
        color = _color(rank, len(names))
        name = names[k] or None
        if found.view.has_levels:
            _draw_levels(axes, found, k, color, name, 0.0 if len(shown) == 1 else 0.5 * (rank / (len(shown) - 1) - 0.5))
        else:
            _draw_line(axes, found, k, color, name)
    if found.view.has_levels:
        labels = found.view.labels(found.grid)
        _level_ticks(axes, "x", labels)
    else:
        _number_axis(axes, "x", found.view)
        _rug(axes, found.view.places(subject.values))
    axes.set_xlabel(found.view.title)
    axes.set_ylabel(subject.response.label)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_line(axes: Axes, found: Curve, k: int, color: Any, name: str | None) -> None:
    known = ~found.grid.gap
    at = found.grid.places[known]
    low, high, middle = (part[known, k] for part in (found.low, found.high, found.estimate))
    if len(at) > 1:
        axes.fill_between(at, low, high, color=color, alpha=_BAND, linewidth=0)
        axes.plot(at, middle, color=color, linewidth=1.6, label=name)
    else:
        _bar(axes, at[0], found, 0, k, color, name)
    if found.grid.gap.any():
        room = at[-1] - at[0] if len(at) > 1 else 1.0
        place = at[-1] + 0.12 * room
        row = int(np.flatnonzero(found.grid.gap)[0])
        _bar(axes, place, found, row, k, color, None)
        style: dict[str, Any] = {"textcoords": "offset points", "fontsize": "x-small", "color": "dimgrey"}
        axes.annotate(MISSING, (place, found.high[row].max()), (0, 3), ha="center", va="bottom", **style)


def _draw_levels(axes: Axes, found: Curve, k: int, color: Any, name: str | None, shift: float) -> None:
    for row in range(len(found.grid.places)):
        _bar(axes, row + shift, found, row, k, color, name if row == 0 else None)


def _bar(axes: Axes, place: float, found: Curve, row: int, k: int, color: Any, name: str | None) -> None:
    middle = found.estimate[row, k]
    around = [[middle - min(middle, found.low[row, k])], [max(middle, found.high[row, k]) - middle]]
    axes.errorbar([place], [middle], around, fmt="o", color=color, markersize=4, linewidth=1.3, label=name)


def draw_surface(axes: Axes, found: Surface, label: str, names: Sequence[str]) -> None:
    """A map of a joint effect: of several outputs that which varies most."""
    k = int(found.estimate.var(0).argmax())
    shape = tuple(len(grid.places) for grid in found.grids)
    across, up = (_axis_places(view, grid) for view, grid in zip(found.views, found.grids, strict=True))
    values = found.estimate[:, k].reshape(shape)
    mesh = axes.pcolormesh(across, up, values.T, cmap="cividis", shading="nearest")
    bar = axes.figure.colorbar(mesh, ax=axes)
    bar.set_label(f"{label} of {names[k]}" if names[k] else label)
    for direction, view, grid in zip("xy", found.views, found.grids, strict=True):
        if view.has_levels:
            _level_ticks(axes, direction, view.labels(grid))
        else:
            _number_axis(axes, direction, view)
            _mark_gap(axes, direction, _axis_places(view, grid)[grid.gap])
        getattr(axes, f"set_{direction}label")(view.title)


def _mark_gap(axes: Axes, direction: str, places: Array) -> None:
    """Says which band of a map is that of gaps."""
    for place in places:
        at, offset = ((place, 1.0), (0, 2)) if direction == "x" else ((0.0, place), (-3, 0))
        coords = ("data", "axes fraction") if direction == "x" else ("axes fraction", "data")
        sides = {"ha": "center", "va": "bottom"} if direction == "x" else {"ha": "right", "va": "center"}
        style: dict[str, Any] = {"xycoords": coords, "textcoords": "offset points", "fontsize": "x-small", **sides}
        axes.annotate(MISSING, at, offset, color="dimgrey", **style)


def _axis_places(view: ColumnView, grid: Grid) -> Array:
    """Where the values of a map are drawn: levels one apart, a gap after all numbers."""
    if view.has_levels:
        return np.arange(len(grid.places), dtype=np.float64)
    known = grid.places[~grid.gap]
    step = (known[-1] - known[0]) / max(1, len(known) - 1) if len(known) > 1 else 1.0
    return np.where(grid.gap, known[-1] + 2.0 * step, grid.places)


# ------------------------------------------------------------------------- axes
def _panels(count: int, ax: Any, *, wide: bool) -> tuple[list[Axes], Any]:
    """Axes to draw in, and the figure if it is new.

    Raises:
        InputError: If those given are too few or too many.
    """
    if ax is not None:
        panels = list(np.atleast_1d(np.asarray(ax, dtype=object)).ravel())
        if len(panels) != count:
            raise InputError(
                f"`ax` must be as many axes as there are columns and pairs, {count}. Got {len(panels)}. Leave it out for a new "
                "figure."
            )
        return panels, None
    pyplot = require_module("matplotlib.pyplot", "A plot of effects", "plot")
    across = min(_ACROSS, count)
    down = math.ceil(count / across)
    width = _WIDTH + (1.0 if wide or count == 1 else 0.0)
    size = (width * across, max(_HEIGHT * down, 3.0))
    figure, grid = pyplot.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
    panels = list(grid.ravel())
    for spare in panels[count:]:
        spare.remove()
    return panels[:count], figure


def _same_limits(panels: Sequence[Axes]) -> None:
    """One scale for all curves, so that their sizes compare."""
    low, high = (pick(panel.get_ylim()[side] for panel in panels) for side, pick in ((0, min), (1, max)))
    for panel in panels:
        panel.set_ylim(low, high)


def _number_axis(axes: Axes, direction: Any, view: ColumnView) -> None:
    axis = getattr(axes, f"{direction}axis")
    if view.kind == "date":
        dates = require_module("matplotlib.dates", "An axis of dates", "plot")
        locator = dates.AutoDateLocator(minticks=2, maxticks=5)
        axis.set_major_locator(locator)
        axis.set_major_formatter(dates.ConciseDateFormatter(locator))
    else:
        axes.locator_params(axis=direction, nbins=4)


def _level_ticks(axes: Axes, direction: str, labels: Sequence[str]) -> None:
    shown = [_cut(label) for label in labels]
    steep = direction == "x" and (len(shown) > 5 or sum(map(len, shown)) > 24)
    style: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if steep else {}
    getattr(axes, f"set_{direction}ticks")(range(len(shown)), shown, **style)
    if direction == "x":
        axes.set_xlim(-0.6, len(shown) - 0.4)


def _rug(axes: Axes, places: Array) -> None:
    """Deciles of the rows, along the bottom."""
    known = places[~np.isnan(places)]
    deciles = np.unique(np.quantile(known, np.linspace(0.1, 0.9, 9)))
    axes.plot(
        deciles,
        np.zeros_like(deciles),
        "|",
        color=GREY,
        markersize=6,
        transform=axes.get_xaxis_transform(),
        clip_on=False,
    )


# ----------------------------------------------------------------------- outputs
def _shown(curves: Sequence[Curve]) -> list[int]:
    """Outputs that are drawn: all, or of many those that vary most."""
    if not curves:
        return []
    count = curves[0].estimate.shape[1]
    if count <= _NAMED:
        return [*range(count)]
    moves = np.max([np.ptp(found.estimate, axis=0) for found in curves], axis=0)
    return sorted(int(k) for k in np.argsort(-moves, kind="stable")[:_NAMED])


def _color(rank: int, count: int) -> Any:
    if count == 1:
        return BLUE
    if count == 2:
        return (ORANGE, BLUE)[rank]
    return require_module("matplotlib", "A plot of effects", "plot").colormaps["tab10"](rank)


def _legend(panel: Axes, figure: Any, left: int) -> None:
    handles, labels = panel.get_legend_handles_labels()
    title = f"the {len(labels)} that vary most; {left} others are not drawn" if left else None
    style: dict[str, Any] = {"frameon": False, "fontsize": "small", "ncols": min(len(labels), 5), "title": title}
    if figure is None:
        panel.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.25), **style)
    else:
        figure.legend(handles, labels, loc="outside lower center", **style)


def _cut(text: str, width: int = _LONG) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
