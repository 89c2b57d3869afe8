"""A hook that writes what a trace records to TensorBoard, or to anything with its writer's two methods."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch

from itergp.records import FitRecord, Listener, Record, TraceData, TraceRecord

_SCALARS = 8  # elements of a parameter that get a curve each; more become a histogram


class Writer(Protocol):
    """What is used of ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Adds a point to a curve."""

    def add_histogram(self, tag: str, values: torch.Tensor, global_step: int) -> Any:
        """Adds a histogram."""


class TensorBoard(Listener):
    """A callback of ``model.condition`` and ``itergp.fit`` that writes every record to a TensorBoard writer.

    Steps of a solve are counted in kernel passes, those of learning in evaluations. The writer stays the caller's: it is
    neither flushed nor closed.

    Args:
        writer: ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_scalar`` and ``add_histogram``.
        prefix: What tags begin with: another one for every run that shares the writer.

    Examples:
        >>> class Writer:
        ...     def add_scalar(self, tag, value, step):
        ...         print(tag, value, step)
        ...     def add_histogram(self, tag, values, step):
        ...         print(tag, values.shape, step)
        >>> hook = TensorBoard(Writer())
        >>> hook(FitRecord("learn", 3, 0.1, -0.5, {"covar_module.raw_outputscale": [2.0]}))
        itergp/learn/objective -0.5 3
        itergp/learn/covar_module.raw_outputscale 2.0 3
    """

    def __init__(self, writer: Writer, *, prefix: str = "itergp") -> None:
        self.writer = writer
        self.prefix = prefix

    def __call__(self, record: Record) -> None:
        """Writes one record."""
        if isinstance(record, FitRecord):
            self._learning(record)
        else:
            self._step(record)

    def write(self, trace: TraceData) -> None:
        """Writes a whole trace afterwards: its records, its spectrum as a histogram, and the share of variance explained."""
        trace.replay(self)
        passes = trace[-1].kernel_passes if len(trace) else 0
        if trace.spectrum:
            self._histogram("spectrum", trace.spectrum, passes)
        for stage in trace.stages:
            self._scalar(f"{stage.stage}/variance_explained", stage.variance_explained, stage.kernel_passes)

    def _step(self, record: TraceRecord) -> None:
        for name in ("objective", "objective_gap", "residual", "rank", "newton_steps", "step_length", "memory"):
            self._scalar(f"{record.stage}/{name}", getattr(record, name), record.kernel_passes)
        for name in ("seconds", "kernel_seconds"):
            self._scalar(f"{record.stage}/{name}", getattr(record, name), record.kernel_passes)
        self._values(f"{record.stage}/class_residuals", list(record.class_residuals), record.kernel_passes)

    def _learning(self, record: FitRecord) -> None:
        self._scalar(f"{record.stage}/objective", record.objective, record.iteration)
        self._scalar(f"{record.stage}/gradient_norm", record.gradient_norm, record.iteration)
        for name, values in record.parameters.items():
            self._values(f"{record.stage}/{name}", values, record.iteration)

    def _values(self, tag: str, values: list[float], step: int) -> None:
        if len(values) > _SCALARS:
            self._histogram(tag, values, step)
        for i, value in enumerate(values if len(values) <= _SCALARS else []):
            self._scalar(f"{tag}/{i}" if len(values) > 1 else tag, value, step)

    def _scalar(self, tag: str, value: float | None, step: int) -> None:
        if value is not None and math.isfinite(value):
            self.writer.add_scalar(f"{self.prefix}/{tag}", value, step)

    def _histogram(self, tag: str, values: list[float], step: int) -> None:
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            self.writer.add_histogram(f"{self.prefix}/{tag}", torch.tensor(finite), step)
