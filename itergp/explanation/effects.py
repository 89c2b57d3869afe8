"""The average effect of columns: what the rows would have on average if all had one value of a column (Friedman 2001).

Bands are those of the average, from the joint posterior covariance of the rows: narrower than those of single rows, whose
errors partly cancel, and wider than if these were independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from itergp.checks import require_module
from itergp.errors import InputError
from itergp.explanation.columns import ColumnView, Grid, choose
from itergp.explanation.responses import Average
from itergp.explanation.subject import Subject, as_weights, with_values

Array = NDArray[np.float64]

GRID = 25  # values of a column
_MAP_GRID = 12  # values along each axis of a map
_ROWS, _VALUES = 64, 640  # rows that are averaged over, and latent values of these
_FEWEST_ROWS = 16


@dataclass(frozen=True)
class Curve:
    """The effect of one column.

    Attributes:
        view: The column.
        grid: Its values.
        estimate: Averages ``(G, K)`` for K outputs.
        low: Lower ends of the bands ``(G, K)``.
        high: Upper ends ``(G, K)``.
    """

    view: ColumnView
    grid: Grid
    estimate: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Surface:
    """The joint effect of two columns: as a ``Curve``, with values of the second column innermost."""

    views: tuple[ColumnView, ColumnView]
    grids: tuple[Grid, Grid]
    estimate: Array
    low: Array
    high: Array


def background(subject: Subject, *, most: int = _ROWS) -> NDArray[np.intp]:
    """Numbers of the rows that effects are averaged over: fewer of many latent functions."""
    latents = subject.model.calculus.num_latents
    return subject.sample(max(_FEWEST_ROWS, min(most, _VALUES // latents)))


def curve(subject: Subject, view: ColumnView) -> Curve:
    """The effect of one column, with bands."""
    rows = background(subject)
    grid = view.grid(subject.encoder, subject.values, subject.weights, GRID)
    settings = [with_values(subject.values[rows], grid.indices, value[None]) for value in grid.encoded]
    return Curve(view, grid, *_averages(subject, settings, subject.weights[rows]))


def surface(subject: Subject, first: ColumnView, second: ColumnView) -> Surface:
    """The joint effect of two columns, with bands."""
    rows = background(subject, most=_ROWS // 2)
    grids = tuple(v.grid(subject.encoder, subject.values, subject.weights, _MAP_GRID) for v in (first, second))
    settings = [
        with_values(with_values(subject.values[rows], grids[0].indices, one[None]), grids[1].indices, other[None])
        for one in grids[0].encoded
        for other in grids[1].encoded
    ]
    return Surface((first, second), (grids[0], grids[1]), *_averages(subject, settings, subject.weights[rows]))


def _averages(subject: Subject, settings: Sequence[Array], weights: Array) -> tuple[Array, Array, Array]:
    """Estimate, lower and upper end of the average over the rows of each setting ``(G, K)``."""
    found: list[Average] = []
    with torch.no_grad():
        for rows in settings:
            posterior = subject.posterior(rows)
            joint = posterior.distribution().lazy_covariance_matrix.to_dense()
            shares = as_weights(weights, posterior.mean)
            found.append(subject.response.average(posterior.mean, joint, shares))
    estimate, low, high = (np.stack([getattr(one, name) for one in found]) for name in ("estimate", "low", "high"))
    return estimate, low, high


# ------------------------------------------------------------------------ as tables
def effects(subject: Subject, columns: Any = None) -> Any:
    """Effects of columns as a data frame, see ``GPRegressor.effects``.

    Args:
        subject: What is explained.
        columns: Names or numbers; default all.
    """
    pandas = require_module("pandas", "A table of effects", "tables")
    names = subject.response.outputs
    parts = []
    for view in choose(subject.encoder, columns):
        found = curve(subject, view)
        for k, name in enumerate(names):
            part = {
                "column": view.name,
                "value": found.grid.values,
                "output": name,
                "effect": found.estimate[:, k],
                "low": found.low[:, k],
                "high": found.high[:, k],
                "share": found.grid.weights,
            }
            parts.append(pandas.DataFrame(part))
    table = pandas.concat(parts, ignore_index=True)
    return table.drop(columns="output") if names == ("",) else table


def interaction(subject: Subject, first: Any, second: Any) -> Any:
    """The joint effect of two columns as a data frame, see ``GPRegressor.interaction``.

    Args:
        subject: What is explained.
        first: Name or number of a column.
        second: Of another one.
    """
    pandas = require_module("pandas", "A table of effects", "tables")
    one, other = pair_of(subject, (first, second))
    found, names = surface(subject, one, other), subject.response.outputs
    values = [grid.values for grid in found.grids]
    parts = [
        pandas.DataFrame(
            {
                one.name: np.repeat(values[0], len(values[1])),
                other.name: np.tile(values[1], len(values[0])),
                "output": name,
                "effect": found.estimate[:, k],
                "low": found.low[:, k],
                "high": found.high[:, k],
            }
        )
        for k, name in enumerate(names)
    ]
    table = pandas.concat(parts, ignore_index=True)
    return table.drop(columns="output") if names == ("",) else table


def pair_of(subject: Subject, pair: Any) -> tuple[ColumnView, ColumnView]:
    """Two different columns.

    Raises:
        InputError: If it is anything else.
    """
    if isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2:
        raise InputError(
            f"`interactions` must be pairs of columns. Got {pair!r}. Pass a list of pairs, such as [('age', 'income')]."
        )
    first, second = choose(subject.encoder, list(pair))
    if first.position == second.position:
        raise InputError(
            f"An interaction must be one of two different columns. Got {first.name!r} twice. Choose another column."
        )
    return first, second
