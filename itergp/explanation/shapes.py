"""In which direction a column acts, over which distance, and how sure that is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from itergp.explanation.columns import ColumnView, Grid, shown_place
from itergp.explanation.effects import background
from itergp.explanation.responses import draw
from itergp.explanation.subject import Subject, as_weights, normalised, with_values

Array = NDArray[np.float64]

_GRID, _ROWS = 20, 40
_ONE_WAY = 0.9  # of all differences between values, the share that must point one way, less those that do not
_DRAWS = 400


@dataclass(frozen=True)
class Shape:
    """The average effect of one column in words and numbers.

    Attributes:
        direction: ``"up"``, ``"down"`` or ``"curved"``; of levels ``"levels"``.
        certainty: Posterior probability that the average effect has this direction; of levels, that the one with the highest
            effect is above the one with the lowest.
        output: Which output it is about: the class that the column moves most; empty for a single one.
        lowest: Value of the column where the average effect is lowest, as text.
        highest: Where it is highest.
        distance: Typical distance over which the effect changes, in units of the column: its standard deviation over the root
            mean square of its slope, which is the lengthscale of a smooth function; NaN for levels and for two values or fewer.
        alone: Variance of the average effect, in the units of the latent functions squared: what the column does by itself.
    """

    direction: str
    certainty: float
    output: str
    lowest: str
    highest: str
    distance: float
    alone: float


def shape(subject: Subject, view: ColumnView) -> Shape:
    """Looks at the latent functions over the values of a column, for some rows."""
    chosen = background(subject, most=_ROWS)
    rows, weights = subject.values[chosen], normalised(subject.weights[chosen])
    grid = view.grid(subject.encoder, subject.values, subject.weights, _GRID)
    many = with_values(rows, grid.indices, grid.encoded)
    means = subject.latent_mean(many).reshape(len(grid.places), len(rows), -1)
    average = np.einsum("gnk,n->gk", means, weights)
    spread = _variance(average, grid.weights)
    contrast, output = _contrast(subject, int(spread.argmax()), means.shape[-1])
    curve, joint = _average_curve(subject, many, weights, contrast)
    drawn = curve + draw(torch.as_tensor(joint), _DRAWS).cpu().numpy()
    known = ~grid.gap
    low, high = int(curve.argmin()), int(curve.argmax())
    if view.has_levels:
        direction, certainty = "levels", float((drawn[:, high] > drawn[:, low]).mean())
    else:
        words = _directions(np.vstack([curve[known], drawn[:, known]]), grid.weights[known])
        alike = _variation(drawn, curve, grid.weights) > 0.0  # of a column without effect, half of the draws are
        direction, certainty = str(words[0]), float(((words[1:] == words[0]) & alike).mean())
    distance = np.nan if view.has_levels else _distance(means[known], weights, grid, known)
    lowest, highest = (shown_place(view, grid.places[place]) for place in (low, high))
    return Shape(direction, certainty, output, lowest, highest, distance, float(spread.sum()))


def _contrast(subject: Subject, which: int, count: int) -> tuple[Array, str]:
    """Weights of the latent functions ``(C,)`` whose sum is looked at, and the output that it is about."""
    latents = subject.model.calculus.num_latents
    contrast = np.zeros(latents)
    contrast[which] = 1.0
    if not subject.model.calculus.softmax:
        return contrast, ""
    return contrast - 1.0 / count, subject.response.outputs[which]


def _average_curve(subject: Subject, rows: Array, weights: Array, contrast: Array) -> tuple[Array, Array]:
    """Means ``(G,)`` and joint covariance ``(G, G)`` of averages, at the rows of each of G values one after another.

    What neighbours say about single rows is left out, which the average hardly knows of: it can only make the variance larger.
    """
    with torch.no_grad():
        posterior = subject.posterior(rows)
        mean = posterior.mean
        shares = as_weights(weights, mean).to(mean)
        functional = torch.kron(shares, torch.as_tensor(contrast).to(mean))
        averages = torch.kron(torch.eye(len(rows) // len(weights)).to(mean), functional.unsqueeze(-1))
        joint = dataclasses.replace(posterior, local=None).distribution().lazy_covariance_matrix @ averages
        curve, covariance = averages.mT @ mean.flatten(), averages.mT @ joint
    return curve.double().cpu().numpy(), covariance.double().cpu().numpy()


def _variation(drawn: Array, curve: Array, weights: Array) -> Array:
    """Weighted covariances of drawn curves ``(S, G)`` with another ``(G,)``."""
    found: Array = (drawn - (drawn @ weights)[:, None]) @ (weights * (curve - weights @ curve))
    return found


def _variance(average: Array, weights: Array) -> Array:
    """Weighted variances of curves ``(G, K)``: ``(K,)``."""
    spread: Array = weights @ (average - weights @ average) ** 2
    return spread


def _directions(curves: Array, weights: Array) -> NDArray[np.str_]:
    """A word for each of some curves ``(S, G)``, by how much of their differences points one way."""
    pairs = np.triu(np.outer(weights, weights), 1)
    differences = curves[:, None, :] - curves[:, :, None]
    net, gross = (np.einsum("sab,ab->s", part, pairs) for part in (differences, np.abs(differences)))
    share = net / np.where(gross > 0.0, gross, 1.0)
    return np.where(share >= _ONE_WAY, "up", np.where(share <= -_ONE_WAY, "down", "curved"))


def _distance(means: Array, weights: Array, grid: Grid, known: NDArray[np.bool_]) -> float:
    """Standard deviation over root mean square slope of the rows' own curves ``(G, n, K)``."""
    places = grid.places[known]
    if len(places) < 3:
        return float("nan")
    shares = normalised(grid.weights[known])
    centred = means - np.einsum("gnk,g->nk", means, shares)
    variance = np.einsum("gnk,g,n->", centred**2, shares, weights)
    slopes = np.diff(means, axis=0) / np.diff(places)[:, None, None]
    between = normalised(0.5 * (shares[1:] + shares[:-1]))
    steepness = np.einsum("gnk,g,n->", slopes**2, between, weights)
    return float(np.sqrt(variance / steepness)) if steepness > 0.0 else float("nan")
