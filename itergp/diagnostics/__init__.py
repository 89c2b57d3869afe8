"""Traces, progress, metrics and plots."""

from itergp.diagnostics.progress import SolveProgress
from itergp.diagnostics.trace import Trace, TraceRecord

__all__ = ["SolveProgress", "Trace", "TraceRecord"]
