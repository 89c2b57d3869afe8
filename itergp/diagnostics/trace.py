"""``Trace``: what happened during a solve, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class TraceRecord:
    """One step of a solver.

    Attributes:
        stage: ``"laplace"`` or ``"variational"``: the site that was used.
        kernel_passes: Kernel passes so far, all stages together.
        seconds: Time since the solve began.
        objective: Negative log posterior density ``Psi`` (nats, up to the prior's constant) after the step.
        objective_gap: Certified bound on ``Psi - min Psi``; None where there is none: the likelihood is not
            log-concave, or no pass over all rows has been made.
        residual: Squared prior norm of the gradient, q, before the step; a measure of distance without a guarantee.
        rank: Directions in the search space.
        newton_steps: Newton steps inside the search space.
        step_length: Smallest step length the line search took, 1 for full steps, 0 if none decreased the objective.
        event: Something worth knowing, otherwise empty.
    """

    stage: str
    kernel_passes: int
    seconds: float
    objective: float
    objective_gap: float | None
    residual: float
    rank: int
    newton_steps: int
    step_length: float
    event: str = ""


@dataclass
class Trace:
    """The records of a solve, and the time spent by phase.

    Attributes:
        records: One per step.
        phase_seconds: Seconds in kernel products (``"kernel"``), in the search for the mode besides (``"mode"``) and
            in the covariance besides (``"covariance"``).
    """

    records: list[TraceRecord] = field(default_factory=list)
    phase_seconds: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of records."""
        return len(self.records)

    def __iter__(self) -> Iterator[TraceRecord]:
        """The records in order."""
        return iter(self.records)

    def __getitem__(self, index: int) -> TraceRecord:
        """One record."""
        return self.records[index]

    def add_seconds(self, phase: str, seconds: float) -> None:
        """Adds to the time of a phase."""
        self.phase_seconds[phase] = self.phase_seconds.get(phase, 0.0) + seconds

    def to_dicts(self) -> list[dict]:
        """Plain dictionaries, one per record, for JSON or a data frame."""
        return [asdict(record) for record in self.records]
