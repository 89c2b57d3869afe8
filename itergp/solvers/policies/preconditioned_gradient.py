"""What the operator's preconditioner makes of the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from itergp.solvers.policies.base import BasePolicy, View


@dataclass(frozen=True)
class PreconditionedGradient(BasePolicy):
    """The Newton direction within what the operator's ``preconditioner`` takes K for: about ``(I + W K)^{-1} W r``.

    One kernel pass per action. The default of ``SubspaceNewton`` where the operator offers a preconditioner: those of additive
    kernels and of radial ones of few inputs do. It is the gradient ``W r`` where none is offered, and where what the
    preconditioner gives is not finite.
    """

    shards_rows: ClassVar[bool] = True

    def propose(self, view: View) -> Tensor:
        """One action ``(N, C, 1)``."""
        notes = view.memory.get(self)
        if notes is None or notes[0] is not view.curvature:  # a new Newton step
            notes = view.memory[self] = [view.curvature, view.operator.preconditioner(view.curvature)]
        preconditioner = notes[1]
        if preconditioner is None:
            return view.gradient.unsqueeze(-1)
        solved = preconditioner.solve(view.gradient)
        return (solved if bool(torch.isfinite(solved).all()) else view.gradient).unsqueeze(-1)
