"""The gradient of the objective, whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from itergp.solvers.policies.base import BasePolicy, View


@dataclass(frozen=True)
class Gradient(BasePolicy):
    """The negative gradient ``W r`` of the objective: conjugate gradients preconditioned by the noise.

    One kernel pass per action. Unlike the residual it weighs rows by what they have to say: saturated rows count for
    nothing instead of for everything.
    """

    shards_rows: ClassVar[bool] = True

    def propose(self, view: View) -> Tensor:
        """The gradient as one action over all latent functions."""
        return view.gradient.unsqueeze(-1)
