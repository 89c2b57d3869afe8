"""A fitted estimator as explanations look at it: its model, its rows, and what its numbers mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itergp.explanation.columns import ColumnView, views
from itergp.explanation.responses import Response
from itergp.models import GP, LatentPosterior
from itergp.tables import TableEncoder

Array = NDArray[np.float64]

_MOST_ROWS = 1000


@dataclass(frozen=True)
class Subject:
    """What is explained.

    Attributes:
        name: Class of the estimator.
        model: Its model, conditioned on the rows.
        encoder: Of tables.
        values: Encoded rows ``(N, E)``, in the units of the table.
        targets: Encoded targets ``(N,)``, or ``(N, 2)`` with what was observed beside, in the units of the data.
        weights: Of the rows ``(N,)``.
        inputs: From encoded rows to what the model takes.
        model_targets: From encoded targets to what the model takes.
        observes: What an observation is: ``"label"``, ``"level"``, ``"count"``, ``"real"``, ``"positive"`` (a time), or a
            ``"share"`` of trials.
        unit: One unit of the model's targets in those of the data; 1 unless they are standardised.
        response: What latent functions mean.
        refitted: The subject that learns from some of the rows, given by number, alone.
        labels: Labels by the number that they are encoded as; empty where targets are none.
        known_noise: Whether the noise was given row by row, so that that of new rows is not known.
        described: Distribution and kernel, in words.
        formula: The kernel in numbers.
        known: What ``once`` has made.
    """

    name: str
    model: GP
    encoder: TableEncoder
    values: Array
    targets: Array
    weights: Array
    inputs: Callable[[Array], Tensor] = field(repr=False)
    model_targets: Callable[[Array], Array] = field(repr=False)
    observes: str
    unit: float
    response: Response
    refitted: Callable[[NDArray[np.intp]], Subject] = field(repr=False)
    labels: tuple[str, ...] = ()
    known_noise: bool = False
    described: str = ""
    formula: Callable[[], str] = field(default=str, repr=False)
    known: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def columns(self) -> list[ColumnView]:
        """Columns of the table, in its order."""
        return views(self.encoder)

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.values)

    def once(self, key: str, make: Callable[[Subject], Any]) -> Any:
        """What a function makes of the subject, made once.

        Args:
            key: What it is called.
            make: The function.
        """
        if key not in self.known:
            self.known[key] = make(self)
        return self.known[key]

    def sample(self, most: int = _MOST_ROWS, seed: int = 0) -> NDArray[np.intp]:
        """Numbers of at most so many rows, drawn without regard to their order."""
        order = np.random.default_rng(seed).permutation(self.num_rows)
        return np.sort(order[:most])

    def known_inputs(self, rows: NDArray[np.intp]) -> Tensor:
        """The model's own inputs of some of its rows, by number."""
        held = self.model.held_data.inputs[0]
        return held[torch.as_tensor(rows, device=held.device)]

    def latent_mean(self, rows: Array) -> Array:
        """Latent functions that say something, at encoded rows: ``(M, K)``, float64.

        Of a softmax these are the differences from the mean over classes, of a mean with its own noise the mean alone.
        """
        with torch.no_grad():
            mean = self.model.latent_mean(self.inputs(rows)).double().cpu().numpy()
        return self.telling(mean)

    def telling(self, mean: Array) -> Array:
        """Of latent values ``(..., C)`` what observations depend on in the mean."""
        calculus = self.model.calculus
        if calculus.softmax:
            return mean - mean.mean(-1, keepdims=True)
        return mean[..., :1] if calculus.distinct_latents else mean

    def posterior(self, rows: Array) -> LatentPosterior:
        """The latent posterior at encoded rows."""
        with torch.no_grad():
            found: LatentPosterior = self.model.latent_posterior(self.inputs(rows))
        return found


def with_values(rows: Array, indices: list[int], values: Array) -> Array:
    """Every row with every one of some values of a column: ``(G n, E)``, values outermost.

    Args:
        rows: Encoded rows ``(n, E)``.
        indices: The column's encoded columns.
        values: Their values ``(G, E_j)``.
    """
    many = np.tile(rows, (len(values), 1))
    many[:, indices] = np.repeat(values, len(rows), axis=0)
    return many


def normalised(weights: Array) -> Array:
    """Weights that sum to one."""
    return weights / weights.sum()


def as_weights(weights: Array, like: Tensor) -> Tensor:
    """Weights that sum to one, as a float64 tensor."""
    return torch.as_tensor(normalised(weights), dtype=torch.float64, device=like.device)


def plain(value: Any) -> Any:
    """A NumPy scalar as Python's."""
    return value.item() if isinstance(value, np.generic) else value
