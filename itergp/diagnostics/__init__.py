"""Traces, progress, metrics and plots."""

from itergp.diagnostics.metrics import (
    Reliability,
    accuracy,
    class_probabilities,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
)
from itergp.diagnostics.plots import plot_class_probabilities, plot_convergence, plot_reliability, plot_trajectory
from itergp.diagnostics.progress import SolveProgress
from itergp.diagnostics.trace import Trace, TraceRecord
from itergp.diagnostics.uncertainty_plot import plot_uncertainty

__all__ = [
    "Reliability",
    "SolveProgress",
    "Trace",
    "TraceRecord",
    "accuracy",
    "class_probabilities",
    "expected_calibration_error",
    "negative_log_likelihood",
    "plot_class_probabilities",
    "plot_convergence",
    "plot_reliability",
    "plot_trajectory",
    "plot_uncertainty",
    "reliability",
]
