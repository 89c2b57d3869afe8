"""The residual of the linear system: conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from itergp.solvers.policies.base import BasePolicy, View


@dataclass(frozen=True)
class CG(BasePolicy):
    """The residual ``r = b - (K + W^+) v``: the method of conjugate gradients (IterGP-CG, IterNCGP-CG).

    One kernel pass per action. In exact arithmetic it ends after as many actions as ``K + W^+`` has distinct eigenvalues;
    rows with saturated probabilities have noise of any size, and so eigenvalues of any size.
    """

    def propose(self, view: View) -> Tensor:
        """The residual."""
        return view.residual.unsqueeze(-1)
