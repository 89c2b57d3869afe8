"""The gradient split by cluster of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from itergp.checks import require_positive
from itergp.solvers.policies.base import BasePolicy, View, columns


@dataclass(frozen=True, kw_only=True)
class BlockGradient(BasePolicy):
    """The gradient ``W r`` split by cluster of rows, and by latent function: many actions in one kernel pass.

    Evaluating the kernel dominates a pass, so the additional columns are nearly free. The default of ``SubspaceNewton`` for
    a single latent function.

    Args:
        num_blocks: Clusters of rows, rounded down to a power of two and to at least four rows each; default 32.
    """

    num_blocks: int = 32
    shards_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Checks the settings."""
        require_positive("num_blocks", self.num_blocks, integer=True)

    def propose(self, view: View) -> Tensor:
        """One action per cluster and latent function, ``(N, C, blocks C)``."""
        rows = view.operator.rows
        if self not in view.memory:
            view.memory[self] = rows.local(cluster_rows(view.inputs, self.num_blocks))
        labels, latents = view.memory[self], view.shape[1]
        count = int(rows.all_reduce_max(labels.max())) + 1
        inside = torch.nn.functional.one_hot(labels, count).to(view.gradient)
        split = columns(inside, latents) * view.gradient.unsqueeze(-1)
        return split[..., rows.all_reduce_max(split.abs().amax((0, 1))) > 0]


def cluster_rows(inputs: Tensor, num_blocks: int) -> Tensor:
    """Splits rows into clusters of nearly equal size by halving along the direction of largest spread.

    Args:
        inputs: ``(N, D)``, scaled so that distance means what it means to the kernel.
        num_blocks: Wanted clusters, rounded down to a power of two and to at least four rows each.

    Returns:
        Labels ``(N,)``.
    """
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
