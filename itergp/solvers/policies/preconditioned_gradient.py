"""The gradient, and what the operator's preconditioner makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from itergp.solvers.policies.base import BasePolicy, View


@dataclass(frozen=True)
class PreconditionedGradient(BasePolicy):
    """The Newton direction within what the operator's ``preconditioner`` takes K for, beside the gradient ``W r`` itself.

    One kernel pass for both. The default of ``SubspaceNewton`` where the operator offers one, as that of additive kernels does;
    the gradient alone for operators that offer none, and where what the preconditioner gives is not finite.
    """

    shards_rows: ClassVar[bool] = True

    def propose(self, view: View) -> Tensor:
        """Two actions ``(N, C, 2)``, or one."""
        notes = view.memory.get(self)
        if notes is None or notes[0] is not view.curvature:  # a new Newton step
            notes = view.memory[self] = [view.curvature, view.operator.preconditioner(view.curvature)]
        preconditioner = notes[1]
        if preconditioner is None:
            return view.gradient.unsqueeze(-1)
        solved = preconditioner.solve(view.gradient)
        actions = torch.stack([solved, view.gradient], -1)
        return actions if bool(torch.isfinite(solved).all()) else actions[..., 1:]
