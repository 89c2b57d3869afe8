"""Random actions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from itergp.checks import require_positive
from itergp.solvers.policies.base import BasePolicy, View


@dataclass(frozen=True, kw_only=True)
class RandomProbes(BasePolicy):
    """Standard normal actions: what a policy that knows nothing achieves.

    Args:
        width: Actions per kernel pass; default 1.
        seed: Of the random numbers; proposals differ from one another and repeat from run to run.
    """

    width: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the settings."""
        require_positive("width", self.width, integer=True)

    def propose(self, view: View) -> Tensor:
        """``(N, C, width)``."""
        generator = view.generator(self.seed)
        probes = torch.randn(*view.shape, self.width, generator=generator, dtype=torch.float64)
        return probes.to(view.gradient)
