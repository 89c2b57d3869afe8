"""Transforms of inputs that are part of a model: columns on one scale, ranks, normal scores."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from itergp.checks import require_positive
from itergp.errors import InputError

NUM_QUANTILES = 256
_DISTRIBUTIONS = ("uniform", "normal")
_LARGEST_SCORE = 3.0  # in deviations: where normal scores end, and go on linearly
_ROWS = 100_000  # more say nothing new about quantiles


class InputTransform(nn.Module):
    """Base class: a map of inputs ``(..., D)`` to inputs ``(..., D)``, column by column, learned from the training inputs."""

    def forward(self, x: Tensor) -> Tensor:
        """Transformed inputs, of the shape of those given; differentiable in them wherever the map is smooth."""
        raise NotImplementedError


class Standardize(InputTransform):
    """Columns brought to mean 0 and standard deviation 1; constant ones become zero.

    Args:
        x: Training inputs ``(N, D)``.
        columns: Which to transform; default all.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, x: Tensor, columns: list[int] | None = None) -> None:
        super().__init__()
        chosen = _mask(x, columns)
        deviation, mean = torch.std_mean(x.detach(), 0, correction=0)
        still = ~chosen | (deviation <= 0.0)
        self.register_buffer("mean", torch.where(chosen, mean, 0.0))
        self.register_buffer("deviation", torch.where(still, 1.0, deviation))

    def forward(self, x: Tensor) -> Tensor:
        """Standardised inputs."""
        return (x - self.mean) / self.deviation


class QuantileTransform(InputTransform):
    """Columns replaced by their ranks, or by the normal scores of these, brought to unit standard deviation.

    The empirical distribution function of each training column, ties at the middle of their ranks, linear between at most
    ``num_quantiles`` of its values. It goes on linearly beyond the training rows, a standard deviation of the column for a
    unit, so that what lies far from the data stays far.

    Args:
        x: Training inputs ``(N, D)``.
        output_distribution: ``"uniform"`` for ranks, ``"normal"`` for normal scores.
        columns: Which to transform; the others stay as they are. Default all.
        num_quantiles: Values of a column that are kept, at most.

    Raises:
        InputError: If an argument is out of its range.
    """

    knots: Tensor
    values: Tensor
    slope: Tensor
    last: Tensor

    def __init__(
        self,
        x: Tensor,
        output_distribution: Literal["uniform", "normal"] = "uniform",
        columns: list[int] | None = None,
        num_quantiles: int = NUM_QUANTILES,
    ) -> None:
        super().__init__()
        if output_distribution not in _DISTRIBUTIONS:
            raise InputError(f"`output_distribution` must be one of {_DISTRIBUTIONS}. Got {output_distribution!r}.")
        require_positive("num_quantiles", num_quantiles, integer=True)
        chosen, rows = _mask(x, columns), x.detach()
        if len(rows) > _ROWS:
            rows = rows[torch.linspace(0, len(rows) - 1, _ROWS, device=rows.device).long()]
        found = [
            _distribution(column, output_distribution, num_quantiles) if own else _identity(column, num_quantiles)
            for column, own in zip(rows.T, chosen.tolist(), strict=True)
        ]
        for name, parts in zip(("knots", "values", "slope", "last"), zip(*found, strict=True), strict=True):
            self.register_buffer(name, torch.stack(parts))

    def forward(self, x: Tensor) -> Tensor:
        """Ranks or scores of inputs."""
        columns = x.reshape(-1, x.shape[-1]).mT
        place = torch.searchsorted(self.knots, columns.detach().contiguous(), right=True) - 1
        place = torch.minimum(place.clamp_min(0), self.last.unsqueeze(-1) - 1)
        left, right = self.knots.gather(1, place), self.knots.gather(1, place + 1)
        low, high = self.values.gather(1, place), self.values.gather(1, place + 1)
        known = columns.clamp(self.knots[:, :1], self.knots.gather(1, self.last.unsqueeze(-1)))
        inside = low + (high - low) * (known - left) / (right - left)
        beyond = (columns - known) * self.slope.unsqueeze(-1)
        return (inside + beyond).mT.reshape(x.shape)


def _mask(x: Tensor, columns: list[int] | None) -> Tensor:
    """Which columns ``(D,)`` are meant.

    Raises:
        InputError: If there are not such columns.
    """
    if x.dim() != 2:
        raise InputError(f"`x` must be a matrix of inputs. Got shape {tuple(x.shape)}. Pass rows and columns.")
    width = x.shape[1]
    if columns is None:
        return torch.ones(width, dtype=torch.bool, device=x.device)
    if not all(0 <= column < width for column in columns):
        raise InputError(f"`columns` must be among the {width} columns, counted from 0. Got {columns}.")
    mask = torch.zeros(width, dtype=torch.bool, device=x.device)
    mask[columns] = True
    return mask


def _distribution(column: Tensor, kind: str, num_quantiles: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Knots and values ``(Q,)`` of a column's map, the slope beyond them, and the number of the last knot."""
    distinct, counts = column.unique(return_counts=True)
    ranks = (counts.cumsum(0).double() - 0.5 * counts) / len(column)
    if len(distinct) == 1:
        return _padded(
            torch.stack([distinct[0], distinct[0] + 1.0]),
            column.new_tensor([0.0, 1.0]),
            column.new_ones(()),
            num_quantiles,
        )
    if kind == "normal":
        bound = torch.special.ndtr(torch.tensor(_LARGEST_SCORE, dtype=torch.float64))
        scores = torch.special.ndtri(ranks.clamp(1.0 - bound, bound))
    else:
        scores = ranks
    mean = torch.sum(scores * counts) / len(column)
    spread = torch.sum((scores - mean).square() * counts / len(column)).sqrt()
    scores = (scores - mean) / spread
    if len(distinct) > num_quantiles:  # evenly in ranks, the ends included
        wanted = torch.linspace(float(ranks[0]), float(ranks[-1]), num_quantiles, dtype=torch.float64)
        kept = torch.searchsorted(ranks, wanted.to(ranks.device)).clamp_max(len(distinct) - 1).unique()
        distinct, scores = distinct[kept], scores[kept]
    slope = 1.0 / column.double().std(correction=0)
    return _padded(distinct, scores.to(column), slope.to(column), num_quantiles)


def _identity(column: Tensor, num_quantiles: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The map that leaves a column as it is."""
    ends = column.new_tensor([0.0, 1.0])
    return _padded(ends, ends, column.new_ones(()), num_quantiles)


def _padded(knots: Tensor, values: Tensor, slope: Tensor, num_quantiles: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one length, whatever the data, so that a saved model has the shapes of a new one; no input is beyond infinity."""
    missing, last = max(num_quantiles, 2) - len(knots), torch.tensor(len(knots) - 1, device=knots.device)
    padding = knots.new_full((missing,), torch.inf)
    return torch.cat([knots, padding]), torch.cat([values, values.new_zeros(missing)]), slope, last
