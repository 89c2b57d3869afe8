"""Which rows are held out when something about a model is chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from itergp.likelihoods import Observations

_FOLDS = 4
_FEW_ROWS = 1000  # up to here every row is held out once


def held_out_splits(observations: Observations, *, num_rows: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Random rows divided in two: a quarter is held out, or, of few rows, each quarter in turn.

    Args:
        observations: Of all rows; those without weight say nothing and are not drawn.
        num_rows: Rows to draw, at most.
        seed: Of the draw.

    Returns:
        Pairs of row numbers: those to condition on, and those that are held out.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(observations.num_rows, generator=generator).to(observations.targets.device)
    if observations.sample_weight is not None:
        order = order[observations.sample_weight[order] > 0]
    drawn = order[:num_rows]
    folds = drawn.tensor_split(min(_FOLDS, drawn.numel()))
    turns = range(len(folds)) if drawn.numel() <= _FEW_ROWS else range(1)
    return [(torch.cat([*folds[:k], *folds[k + 1 :]]), folds[k]) for k in turns]
