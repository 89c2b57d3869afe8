"""Which rows are held out when something about a model is chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.likelihoods import Observations

_FOLDS = 4
_MOST_TO_JUDGE = 12_000  # finalists by
_FEW_ROWS = 1000  # up to here a quarter says little: every row is held out once, or a third
_MOST_HELD_OUT = 2000


def num_weighted(observations: Observations) -> int:
    """Rows that have a weight; missing targets have none."""
    weight = observations.sample_weight
    return observations.num_rows if weight is None else int((weight > 0).sum())


def _shuffled(observations: Observations, seed: int) -> Tensor:
    """The rows that have a weight, in random order; missing targets have none."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(observations.num_rows, generator=generator).to(observations.targets.device)
    return order if observations.sample_weight is None else order[observations.sample_weight[order] > 0]


def learning_split(
    observations: Observations, *, most_to_learn: int, most_to_judge: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Random rows to learn from, and all others to judge by: at least a quarter of the rows, of few rows a third.

    Args:
        observations: Of all rows; those without weight say nothing and are not drawn.
        most_to_learn: Rows to learn from, at most.
        most_to_judge: Rows to judge by, at most.
        seed: Of the draw.
    """
    order = _shuffled(observations, seed)
    share = len(order) // (3 if observations.num_rows <= _FEW_ROWS else 4)
    count = min(most_to_judge, max(1, share, len(order) - most_to_learn))
    return order[count : count + most_to_learn], order[:count]


def judging_splits(observations: Observations, *, most_to_learn: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Random rows to condition on and others to judge by, together as many as there are: the same for any seed, or nearly.

    Where learning leaves most of the rows, all of these, up to 12,000; else each row in turn with others of its part. Of few
    rows none, as hyperparameters know them.

    Args:
        observations: Of all rows; those without weight say nothing and are not drawn.
        most_to_learn: Rows to condition on, at most.
        seed: Of the draw.

    Returns:
        Pairs of row numbers: those to condition on, and those that are held out.
    """
    order = _shuffled(observations, seed)
    if len(order) <= _FEW_ROWS:
        return []
    if len(order) >= 2 * most_to_learn:
        return [(order[-most_to_learn:], order[: len(order) - most_to_learn][:_MOST_TO_JUDGE])]
    number = _FOLDS if 3 * len(order) <= 4 * most_to_learn else _FOLDS - 1
    folds = order.tensor_split(number)
    return [(torch.cat([*folds[:k], *folds[k + 1 :]])[:most_to_learn], folds[k]) for k in range(number)]


def quarters(observations: Observations, *, num_rows: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Random rows divided in two in four ways: each quarter is held out in turn; or once, of many rows 2,000.

    Args:
        observations: Of all rows; those without weight say nothing and are not drawn.
        num_rows: Rows to draw, at most.
        seed: Of the draw.

    Returns:
        Pairs of row numbers: those to condition on, and those that are held out.

    Raises:
        InputError: If there are fewer than two rows.
    """
    drawn = _shuffled(observations, seed)[:num_rows]
    if len(drawn) < 2:
        raise InputError(
            f"Rows are held out of two or more that have a target and a weight. Got {len(drawn)}. Condition on it without a "
            "choice by others."
        )
    if len(drawn) >= _FOLDS * _MOST_HELD_OUT:
        return [(drawn[_MOST_HELD_OUT:], drawn[:_MOST_HELD_OUT])]
    folds = drawn.tensor_split(min(_FOLDS, len(drawn)))
    return [(torch.cat([*folds[:k], *folds[k + 1 :]]), folds[k]) for k in range(len(folds))]


def held_out_splits(observations: Observations, *, num_rows: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """The first of the ``quarters``, or, of few rows, all of them."""
    splits = quarters(observations, num_rows=num_rows, seed=seed)
    return splits if sum(len(rows) for rows in splits[0]) <= _FEW_ROWS else splits[:1]
