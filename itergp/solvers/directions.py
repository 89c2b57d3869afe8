"""Which directions the subspace solver adds in a pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from itergp.operators import KernelOperator


def class_directions(residual: Tensor) -> Tensor:
    """The column space of the residual ``(N, C)``, orthonormal: C columns, or C - 1 when they sum to zero."""
    gram = (residual.mT @ residual).double()
    values, vectors = torch.linalg.eigh(gram)
    keep = values > 1e-10 * values.max().clamp_min(torch.finfo(gram.dtype).tiny)
    mix = vectors[:, keep] * values[keep].rsqrt()
    return residual @ mix.to(residual)


def block_directions(residual: Tensor, labels: Tensor, num_blocks: int) -> Tensor:
    """The residual ``(N, 1)`` split by cluster of rows into unit columns ``(N, num_blocks)``."""
    split = residual.new_zeros(residual.shape[0], num_blocks).scatter_(1, labels[:, None], residual)
    norms = split.norm(dim=0)
    return split[:, norms > 0] / norms[norms > 0]


def cluster_rows(operator: KernelOperator, num_blocks: int) -> Tensor:
    """Splits rows into clusters of nearly equal size by halving along the direction of largest spread.

    Args:
        operator: Its scaled inputs define distance.
        num_blocks: Wanted clusters, rounded down to a power of two and to at least four rows each.

    Returns:
        Labels ``(N,)``.
    """
    inputs = operator.scaled_inputs()
    labels = torch.zeros(inputs.shape[0], dtype=torch.int64, device=inputs.device)
    for _ in range(int(math.log2(max(1, min(num_blocks, inputs.shape[0] // 4))))):
        labels = _halve(inputs, labels)
    return labels


def _halve(inputs: Tensor, labels: Tensor) -> Tensor:
    halves = torch.empty_like(labels)
    for label in range(int(labels.max()) + 1):
        rows = (labels == label).nonzero().squeeze(-1)
        part = inputs[rows] - inputs[rows].mean(0)
        axis = part.new_ones(part.shape[1])
        for _ in range(8):  # power iteration: a rough principal axis is enough
            axis = part.mT @ (part @ axis)
            axis = axis / axis.norm().clamp_min(torch.finfo(axis.dtype).tiny)
        order = (part @ axis).argsort(stable=True)
        halves[rows[order[: rows.numel() // 2]]] = 2 * label
        halves[rows[order[rows.numel() // 2 :]]] = 2 * label + 1
    return halves
