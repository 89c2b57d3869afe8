"""Learning hyperparameters."""

from itergp.diagnostics.records import FitRecord
from itergp.learning.calibration import Calibration, calibrate_predictions
from itergp.learning.fitting import FitResult, fit

__all__ = ["Calibration", "FitRecord", "FitResult", "calibrate_predictions", "fit"]
