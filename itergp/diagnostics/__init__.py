"""What reads the record of a run: explanations, progress, live views and plots; and metrics of predictions."""

from itergp.diagnostics.class_maps import plot_class_map, plot_uncertainty_map
from itergp.diagnostics.eigenspace import Eigenspace, Overlap
from itergp.diagnostics.explain import Explanation
from itergp.diagnostics.findings import Finding
from itergp.diagnostics.live import Live
from itergp.diagnostics.metrics import (
    Reliability,
    accuracy,
    class_probabilities,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
)
from itergp.diagnostics.plots import (
    plot_class_probabilities,
    plot_convergence,
    plot_reliability,
    plot_residuals,
    plot_trajectory,
)
from itergp.diagnostics.progress import ProgressBar
from itergp.diagnostics.spectrum_plot import plot_relevance, plot_spectrum
from itergp.diagnostics.survival_metrics import brier_scores, censoring_survival, concordance_index
from itergp.diagnostics.tensorboard import TensorBoard
from itergp.diagnostics.trace import Trace
from itergp.diagnostics.uncertainty_plot import plot_uncertainty
from itergp.records import FitRecord, LearningTrace, RunSettings, StageRecord, TraceRecord

__all__ = [
    "Eigenspace",
    "Explanation",
    "Finding",
    "FitRecord",
    "LearningTrace",
    "Live",
    "Overlap",
    "ProgressBar",
    "Reliability",
    "RunSettings",
    "StageRecord",
    "TensorBoard",
    "Trace",
    "TraceRecord",
    "accuracy",
    "brier_scores",
    "censoring_survival",
    "class_probabilities",
    "concordance_index",
    "expected_calibration_error",
    "negative_log_likelihood",
    "plot_class_map",
    "plot_class_probabilities",
    "plot_convergence",
    "plot_relevance",
    "plot_reliability",
    "plot_residuals",
    "plot_spectrum",
    "plot_trajectory",
    "plot_uncertainty",
    "plot_uncertainty_map",
    "reliability",
]
