"""What solvers within a search space leave for the next solve."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from itergp.persistence import DERIVED
from itergp.posterior.solution import Solution
from itergp.posterior.warm_start import WarmStart
from itergp.solvers.subspace.joint_space import JointSpace
from itergp.solvers.subspace.search_space import SearchSpace
from itergp.solvers.subspace.support_space import JointSupportSpace, SupportSpace


@dataclass(frozen=True)
class RecycledSpace(WarmStart):
    """A search space, and where the mean is in it.

    Attributes:
        space: The space; its products are those of ``operator``.
        coordinates: Of V in it ``(C, B)``, or None.
    """

    space: SearchSpace | JointSpace | SupportSpace | JointSupportSpace
    coordinates: Tensor | None = field(default=None, metadata=DERIVED)

    def with_more_rows(self, count: int) -> RecycledSpace:
        """The same directions, zero at the new rows; products are those of the old rows, until a solver renews them."""
        return replace(self, space=self.space.with_more_rows(count))


def recycled_space(solution: Solution | None) -> RecycledSpace | None:
    """The search space that a solution's solver left, or None."""
    start = None if solution is None else solution.warm_start
    return start if isinstance(start, RecycledSpace) else None


def search_space_of(solution: Solution) -> SearchSpace:
    """The search space of a solution that has just been found within one."""
    recycled = recycled_space(solution)
    assert recycled is not None
    return recycled.space
