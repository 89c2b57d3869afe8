"""The gradient split by latent function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from itergp.solvers.policies.base import BasePolicy, View


@dataclass(frozen=True)
class ClassGradient(BasePolicy):
    """The gradient ``W r`` split by latent function: C actions in one kernel pass, with step lengths of their own.

    The default of ``SubspaceNewton`` for several latent functions.
    """

    shards_rows: ClassVar[bool] = True

    def propose(self, view: View) -> Tensor:
        """One action per latent function, ``(N, C, C)``."""
        return torch.diag_embed(view.gradient)
