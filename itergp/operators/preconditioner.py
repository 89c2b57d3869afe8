"""``Preconditioner``: what an operator may offer that stands for its matrix where systems are solved at no kernel pass."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Preconditioner(ABC):
    """An approximation of K, within which Newton's system for a curvature W is solved and what the data say most about found.

    It only proposes. Objective, certificate and covariance are always those of K, whatever it gives: what is wrong in it costs
    passes, or leaves variances wider.
    """

    @abstractmethod
    def solve(self, gradient: Tensor) -> Tensor:
        """About ``(I + W K)^{-1} G``: the change of the representer weights in a Newton step.

        That is ``(K + W^+)^{-1} r`` of a residual r with ``G = W r``.

        Args:
            gradient: G ``(N, C)``.

        Returns:
            ``(N, C)``; not finite where the curvature is not.
        """

    @abstractmethod
    def directions(self, rank: int) -> Tensor:
        """About the functions of unit prior norm that the data say most about, for actions ``W`` times them.

        Args:
            rank: How many are wanted.

        Returns:
            Their values at the training inputs ``(N, C, k)``, k at most the rank.
        """
