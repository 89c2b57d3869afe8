"""Actions that each look at one cluster of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from itergp.checks import require_positive
from itergp.solvers.policies.base import BasePolicy, View, columns
from itergp.solvers.policies.block_gradient import cluster_rows
from itergp.solvers.proposals import RowBlock


@dataclass(frozen=True, kw_only=True)
class BlockSparse(BasePolicy):
    """The gradient restricted to one cluster of rows at a time, in turn: sparse actions, as in CaGP (Wenger et al. 2024).

    A proposal costs the kernel columns of its cluster, ``N^2 / num_blocks`` entries, and no pass.

    Args:
        num_blocks: Clusters of rows, rounded down to a power of two and to at least four rows each; default 32.
    """

    num_blocks: int = 32

    sparse: ClassVar[bool] = True  # proposes a ``RowBlock``

    def __post_init__(self) -> None:
        """Checks the settings."""
        require_positive("num_blocks", self.num_blocks, integer=True)

    def propose(self, view: View) -> RowBlock:
        """The gradient in one cluster, split by latent function: ``(m, C, C)``."""
        if self not in view.memory:
            view.memory[self] = cluster_rows(view.inputs, self.num_blocks)
        labels: Tensor = view.memory[self]
        rows = (labels == view.index % (int(labels.max()) + 1)).nonzero().squeeze(-1)
        ones = torch.ones(rows.numel(), 1).to(view.gradient)
        return RowBlock(rows, columns(ones, view.shape[1]) * view.gradient[rows].unsqueeze(-1))
