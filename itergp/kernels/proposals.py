"""Which pairs of inputs interact."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from itergp.errors import InputError


def propose_pairs(inputs: Tensor, gradient: Tensor, num_pairs: int, *, num_bins: int = 8) -> list[tuple[int, int]]:
    """Pairs of inputs whose joint bins explain most of what a model without them leaves over.

    Every input is put into bins of about as many rows each. The gain of a pair is the sum of squares of the gradient that cells
    of both inputs explain beyond bins of each, less what they would explain of noise. Exact ties keep the order of the columns.

    ``O(N D^2)`` time.

    Source: Lou, Caruana, Gehrke & Hooker 2013, Accurate Intelligible Models with Pairwise Interactions (FAST).
    Differs from the paper:

    1. Cells are those of all bins rather than the four of a cut in each input.

    Args:
        inputs: ``(N, D)``.
        gradient: Of the log-likelihood in latent values at the mode of an additive model, ``(N,)`` or ``(N, C)``: the
            ``representer_weights`` of its solution. Residuals of any other model will do.
        num_pairs: How many pairs are wanted; all where there are no more.
        num_bins: Of every input, at most.

    Returns:
        Pairs of column numbers, the one with the largest gain first.

    Raises:
        InputError: If shapes do not fit, there are fewer than two columns, values are not finite, or numbers are not positive.
    """
    values = gradient.detach().double().reshape(len(gradient), -1)
    if inputs.dim() != 2 or inputs.shape[1] < 2 or len(values) != len(inputs) or not len(inputs):
        raise InputError(
            "`inputs` must be (N, D) with two columns or more, and `gradient` (N,) or (N, C). Got "
            f"{tuple(inputs.shape)} and {tuple(gradient.shape)}. Pass train_inputs and representer_weights of one model."
        )
    if num_pairs < 1 or num_bins < 2:
        raise InputError(f"Pairs must be 1 or more, bins 2 or more. Got {num_pairs} and {num_bins}. Ask for some.")
    if not bool(inputs.isfinite().all() and values.isfinite().all()):
        raise InputError("`inputs` and `gradient` must be finite. Got NaN or infinity. Fill or leave out such rows.")
    bins = [_bins(column, num_bins) for column in inputs.detach().unbind(-1)]
    noise = float(values.square().mean(0).sum())
    every = [*itertools.combinations(range(len(bins)), 2)]
    gains = [_gain(bins[a], bins[b], values, noise) for a, b in every]
    return [every[i] for i in sorted(range(len(every)), key=lambda i: -gains[i])[:num_pairs]]


def _bins(column: Tensor, most: int) -> Tensor:
    """The bin of each row ``(N,)``, of about as many rows each; equal values share theirs."""
    edges = torch.arange(1, most, device=column.device) * len(column) // most
    return torch.searchsorted(column.sort().values[edges].unique(), column.contiguous(), right=True)


def _gain(first: Tensor, second: Tensor, values: Tensor, noise: float) -> float:
    """Of cells over both sets of bins, of values ``(N, C)`` of so much variance."""
    size = int(second.max()) + 1
    cell, counts = (first * size + second).unique(return_inverse=True, return_counts=True)[1:]
    rows = torch.zeros(len(counts), dtype=torch.long, device=cell.device).scatter_(0, cell, first)
    cols = torch.zeros_like(rows).scatter_(0, cell, second)
    means = values.new_zeros(len(counts), values.shape[1]).index_add_(0, cell, values) / counts[:, None]
    # What effects of each explain of the cells' means, weighted by their rows.
    one_hot = torch.nn.functional.one_hot
    effects = torch.cat([one_hot(rows), one_hot(cols)], -1).to(means)
    root = counts.to(means).sqrt()[:, None]
    basis, scales = torch.linalg.svd(root * effects, full_matrices=False)[:2]
    basis = basis[:, scales > 1e-9 * scales.max()]
    left = root * means - basis @ (basis.mT @ (root * means))
    return float(left.square().sum()) - noise * (len(counts) - basis.shape[1])
