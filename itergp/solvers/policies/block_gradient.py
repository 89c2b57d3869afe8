"""The gradient split by cluster of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from itergp.checks import require_positive
from itergp.solvers.policies.base import BasePolicy, View, columns

_FEW_COLUMNS = 64  # whose products with one another cost less than eight passes over the rows


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
    clusters = [torch.arange(inputs.shape[0], device=inputs.device)]
    for _ in range(int(math.log2(max(1, min(num_blocks, inputs.shape[0] // 4))))):
        clusters = [half for rows in clusters for half in _halves(inputs, rows)]
    labels = torch.empty(inputs.shape[0], dtype=torch.int64, device=inputs.device)
    for label, rows in enumerate(clusters):
        labels[rows] = label
    return labels


def _halves(inputs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of the rows on either side of the middle along their rough principal axis."""
    part = inputs[rows]
    part = part - part.mean(0)
    order = rows[(part @ _rough_axis(part)).argsort(stable=True)]
    return order[: rows.numel() // 2], order[rows.numel() // 2 :]


def _rough_axis(part: Tensor) -> Tensor:
    """The principal axis ``(D,)`` of centred rows ``(n, D)``, of any length, as power iteration nears it in eight steps."""
    total = part.square().sum().clamp_min(torch.finfo(part.dtype).tiny)
    spread = part.mT @ part if part.shape[1] <= _FEW_COLUMNS else None
    axis = part.new_ones(part.shape[1])
    for _ in range(8):
        axis = (part.mT @ (part @ axis) if spread is None else spread @ axis) / total
    return axis
