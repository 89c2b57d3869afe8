"""When a computation has to be over whose result is worth nothing halfway."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


class OutOfTimeError(Exception):
    """A computation was given up as its time was up."""


@dataclass(frozen=True)
class Deadline:
    """A point of time.

    Attributes:
        at: When, by ``time.perf_counter``; infinite for never.
    """

    at: float = math.inf

    def left(self) -> float | None:
        """Seconds until then, as ``solve`` takes them; None without an end."""
        return None if self.at == math.inf else max(self.at - time.perf_counter(), 0.0)

    @property
    def over(self) -> bool:
        """Whether that was before now."""
        return time.perf_counter() >= self.at

    def check(self) -> None:
        """Gives up what is being computed if time is up.

        Raises:
            OutOfTimeError: If it is.
        """
        if self.over:
            raise OutOfTimeError


NEVER = Deadline()
