"""``WarmStart``: what a solver leaves for the next solve."""

from __future__ import annotations

from dataclasses import dataclass, field

from itergp.operators import AbstractOperator
from itergp.persistence import DERIVED


@dataclass(frozen=True)
class WarmStart:
    """What the next solve may go on from beside the posterior: this, or what a solver's subclass holds.

    Only solvers look into it, in ``init``: each knows some subclasses, and takes any other for none. It is tied to one kernel,
    and to the rows and the device of its process, and so neither saved with a posterior nor moved.

    Attributes:
        operator: The kernel operator of the solve, whose products a subclass may hold; the driver fills it in.
    """

    operator: AbstractOperator | None = field(default=None, kw_only=True, metadata=DERIVED)

    def with_more_rows(self, count: int) -> WarmStart | None:
        """A start for as many rows more, which have no weight yet and whose kernel products are not known; or None.

        Args:
            count: How many.
        """
        del count
        return None
