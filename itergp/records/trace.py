"""``TraceData``: what happened during a solve, step by step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from itergp.records.listeners import Listener
from itergp.records.records import FitRecord, LearningTrace, Record, RunSettings, StageRecord, TraceRecord
from itergp.records.trace_json import as_plain, read_json, restored, write_json

TraceT = TypeVar("TraceT", bound="TraceData")


@dataclass
class TraceData(Listener):
    """What happened during a solve, and, after ``itergp.fit``, during learning before it.

    What it holds was on the way: recording costs a product of sizes N and C per step and no kernel pass. It is itself a
    listener, which keeps every record. ``itergp.diagnostics.Trace``, which models use, explains and plots it besides.

    Attributes:
        records: One per step.
        phase_seconds: Seconds in kernel products (``"kernel"``), in the search for the mode besides (``"mode"``) and
            in the covariance besides (``"covariance"``).
        stages: One per stage, at its end.
        settings: What was solved, and within which limits; None for a trace made by hand.
        hyperparameters: Values of the model's parameters during the solve, by name, those of at most 64 elements.
        learning: How they were learned; None unless ``itergp.fit`` did.

    Examples:
        >>> trace = TraceData([TraceRecord("laplace", 1, 0.1, 12.5, 0.5, 1.0, 3, 2, 1.0)])
        >>> TraceData.from_json(trace.to_json()) == trace
        True
    """

    records: list[TraceRecord] = field(default_factory=list)
    phase_seconds: dict[str, float] = field(default_factory=dict)
    stages: list[StageRecord] = field(default_factory=list)
    settings: RunSettings | None = None
    hyperparameters: dict[str, list[float]] = field(default_factory=dict)
    learning: LearningTrace | None = None
    # ``A^T K A`` of the covariance, from which the spectrum is computed when somebody looks at it, and the spectrum.
    _gram: Tensor | None = field(default=None, repr=False, compare=False)
    _spectrum: list[float] | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        """Number of records."""
        return len(self.records)

    def __iter__(self) -> Iterator[TraceRecord]:
        """The records in order."""
        return iter(self.records)

    def __getitem__(self, index: int) -> TraceRecord:
        """One record."""
        return self.records[index]

    @property
    def spectrum(self) -> list[float]:
        """Signal-to-noise ratios of the directions that the covariance is conditioned on, in descending order.

        The eigenvalues ``lambda`` of ``A^T K A`` where ``A^T W^+ A = I``: ``lambda / (1 + lambda)`` is the share of the prior
        variance in its direction that the data explain. Empty before the end of a solve and beyond 2,048 directions.
        Computed when first asked for, from a matrix of the size of the rank.
        """
        if self._spectrum is None:
            if self._gram is None:
                return []
            values = torch.linalg.eigvalsh(self._gram.detach().double().cpu())
            self._spectrum = values.clamp_min(0.0).flip(0).tolist()
        return self._spectrum

    # ------------------------------------------------------------------ filling
    def add_seconds(self, phase: str, seconds: float) -> None:
        """Adds to the time of a phase."""
        self.phase_seconds[phase] = self.phase_seconds.get(phase, 0.0) + seconds

    def __call__(self, record: Record) -> None:
        """Adds a record, as ``add`` does."""
        self.add(record)

    def add(self, record: Record) -> None:
        """Adds a record of a solve, or of learning."""
        if isinstance(record, FitRecord):
            self.learning = self.learning or LearningTrace()
            self.learning.records.append(record)
        else:
            self.records.append(record)

    def add_stage(self, stage: StageRecord, gram: Tensor | None) -> None:
        """Adds the end of a stage, or of its last round, and ``A^T K A`` of its covariance for the spectrum."""
        if self.stages and self.stages[-1].stage == stage.stage:
            self.stages.pop()
        self.stages.append(stage)
        self._gram, self._spectrum = gram, None

    def replay(self, callback: Callable[[Any], None]) -> None:
        """Calls ``callback`` with every record of learning, then of the solve, as if it had been there.

        Args:
            callback: For example ``itergp.diagnostics.TensorBoard(writer)``.
        """
        for record in [*(self.learning.records if self.learning else []), *self.records]:
            callback(record)

    # ------------------------------------------------------------------ writing
    def to_fields(self) -> dict[str, Any]:
        """What is saved of it: ``to_dict``."""
        return self.to_dict()

    @classmethod
    def rebuild(cls: type[TraceT], context: object, /, **fields: Any) -> TraceT:
        """The trace of what was saved."""
        return cls.from_dict(fields)

    def to_dicts(self) -> list[dict]:
        """Plain dictionaries, one per record, for a data frame."""
        return [asdict(record) for record in self.records]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can express it: numbers that are not finite become None."""
        return as_plain(
            {
                "records": self.to_dicts(),
                "phase_seconds": self.phase_seconds,
                "stages": [asdict(stage) for stage in self.stages],
                "settings": None if self.settings is None else asdict(self.settings),
                "hyperparameters": self.hyperparameters,
                "learning": None if self.learning is None else asdict(self.learning),
                "spectrum": self.spectrum,
            }
        )

    @classmethod
    def from_dict(cls: type[TraceT], values: dict[str, Any]) -> TraceT:
        """The trace that ``to_dict`` came from; what another version wrote besides is left out.

        Raises:
            InputError: If it is not a trace.
        """
        parts = restored(values)
        spectrum = parts.pop("spectrum")
        trace = cls(**parts)
        trace._spectrum = spectrum
        return trace

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Everything as strict JSON, in which numbers that are not finite are ``null``.

        Args:
            path: A file to write it to as well, or None.

        Raises:
            InputError: If the file cannot be written.
        """
        return write_json(self.to_dict(), path)

    @classmethod
    def from_json(cls: type[TraceT], source: str | os.PathLike[str]) -> TraceT:
        """The trace of a file, or of the text that ``to_json`` returned.

        Raises:
            InputError: If there is no such file, or it does not hold a trace.
        """
        return cls.from_dict(read_json(source))
