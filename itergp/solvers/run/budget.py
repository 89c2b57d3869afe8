"""``Budget``: kernel passes and seconds, what is used and what is left. The only clock of a solve."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from itergp.operators import AbstractOperator, KernelCounts


@dataclass(frozen=True)
class Budget:
    """What a run has used and what it may still use. It goes on counting: a view of the operator and of the clock.

    Attributes:
        counts: What the operator has done, earlier runs included.
        max_passes: Kernel passes for all stages together; None for what the solver does by default.
        time_limit: Seconds for all stages together, or None.
        share: Of the time limit, by which the present stage should end.
        reserved: Passes that the present stage may not use: those of its covariance, and of what follows.
        before: What of ``counts`` is not this run's.
        started: Value of the clock when the run began.
    """

    counts: KernelCounts = field(default_factory=KernelCounts)
    max_passes: int | None = None
    time_limit: float | None = None
    share: float = 1.0
    reserved: int = 0
    before: KernelCounts = field(default_factory=KernelCounts)
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, operator: AbstractOperator, max_passes: int | None, time_limit: float | None) -> Budget:
        """That of a run which begins now.

        Args:
            operator: Whose passes count.
            max_passes: Kernel passes for all stages together, or None.
            time_limit: Seconds for all stages together, or None.
        """
        return cls(operator.counts, max_passes, time_limit, before=operator.counts.copy())

    def for_stage(self, share: float = 1.0, reserved: int = 0) -> Budget:
        """The same for a stage that has a share of the time, and passes that it may not use."""
        return replace(self, share=share, reserved=reserved)

    def resumed(self, passes: int, entries: int, kernel_seconds: float, seconds: float) -> Budget:
        """The same with what an earlier run used counted too."""
        before = replace(
            self.before,
            passes=self.before.passes - passes,
            entries=self.before.entries - entries,
            seconds=self.before.seconds - kernel_seconds,
        )
        return replace(self, before=before, started=self.started - seconds)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """What is computed meanwhile counts neither here nor in budgets made from this one: it was counted before."""
        then = self.counts.copy()
        yield
        self.before.passes += self.counts.passes - then.passes
        self.before.entries += self.counts.entries - then.entries

    # -------------------------------------------------------------------- passes
    @property
    def passes(self) -> int:
        """Kernel passes made."""
        return self.counts.passes - self.before.passes

    @property
    def committed(self) -> int:
        """Kernel passes made, and those reserved."""
        return self.passes + self.reserved

    def passes_left(self, default: int | None = None) -> float:
        """Kernel passes that the present stage may still make; infinite without a limit.

        Args:
            default: The limit where the user sets none.
        """
        limit = default if self.max_passes is None else self.max_passes
        return float("inf") if limit is None else limit - self.committed

    @property
    def entries(self) -> int:
        """Kernel entries evaluated, in this process."""
        return self.counts.entries - self.before.entries

    @property
    def kernel_seconds(self) -> float:
        """Seconds within kernel products."""
        return self.counts.seconds - self.before.seconds

    # --------------------------------------------------------------------- clock
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.started

    def time_left(self) -> float:
        """Seconds until the present stage should end, negative when it should have; infinite without a limit.

        The clock of this process: where rows are divided among several, they must agree on what follows from it.
        """
        return float("inf") if self.time_limit is None else self.share * self.time_limit - self.seconds()


UNLIMITED = Budget()
