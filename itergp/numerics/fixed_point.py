"""Fixed points of slow or oscillating iterations."""

from __future__ import annotations

import torch
from torch import Tensor

_DEPENDENT = 1e-10  # of a singular value to the largest


class AndersonExtrapolation:
    """What a linear map that explains the last steps of ``z <- z + r(z)`` would leave unchanged (Walker & Ni 2011, type II).

    Args:
        memory: Earlier steps that are explained.
    """

    def __init__(self, memory: int = 3) -> None:
        self.memory = memory
        self._points: list[Tensor] = []
        self._residuals: list[Tensor] = []

    def restart(self) -> None:
        """Forgets all but the last step: what lies before is of another regime."""
        self._points, self._residuals = self._points[-1:], self._residuals[-1:]

    def after(self, point: Tensor, residual: Tensor) -> Tensor | None:
        """The next point.

        Args:
            point: z ``(n,)``.
            residual: r(z) ``(n,)``.

        Returns:
            ``(n,)``, or None with nothing yet to extrapolate from.
        """
        self._points = [*self._points[-self.memory :], point]
        self._residuals = [*self._residuals[-self.memory :], residual]
        if len(self._points) < 2:
            return None
        moves, changes = (torch.stack(v, -1).diff(dim=-1) for v in (self._points, self._residuals))
        pseudo_inverse = torch.linalg.pinv(changes.mT @ changes, rtol=_DEPENDENT, hermitian=True)
        return point + residual - (moves + changes) @ (pseudo_inverse @ (changes.mT @ residual))
