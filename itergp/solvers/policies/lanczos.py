"""Directions towards the leading eigenvectors of the kernel matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from itergp.checks import require_positive
from itergp.solvers.policies.base import BasePolicy, View


@dataclass(frozen=True, kw_only=True)
class Lanczos(BasePolicy):
    """The block Krylov space of K from a random start, which contains its leading eigenvectors first.

    Every proposal is the kernel product of the one before, orthogonal to all earlier ones: with actions made orthogonal by
    the solver that is the Lanczos process, and the posterior approaches that of the leading eigenvectors (IterGP with
    eigenvector actions: truncated SVD). The product it needs is in the belief already: one kernel pass per proposal. The
    space does not depend on targets or noise, so recycling keeps all of it. Solvers that keep no belief get random probes.

    Args:
        width: Actions per kernel pass; default 8.
        seed: Of the random start.
    """

    width: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the settings."""
        require_positive("width", self.width, integer=True)

    def propose(self, view: View) -> Tensor:
        """``(N, C, width)``."""
        rank = 0 if view.belief is None else view.belief.rank
        if view.belief is None or rank < self.width or view.index == 0:
            start = torch.randn(*view.shape, self.width, generator=view.generator(self.seed), dtype=torch.float64)
            return start.to(view.gradient)
        latest = torch.zeros(rank, self.width).to(view.belief.factor)
        latest[rank - self.width :] = torch.eye(self.width).to(latest)
        return view.belief.buffer.combine_products(latest)
