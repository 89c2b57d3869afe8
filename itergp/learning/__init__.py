"""Learning hyperparameters."""

from itergp.learning.calibration import Calibration, calibrate_predictions
from itergp.learning.fitting import FitResult, fit
from itergp.records import FitRecord

__all__ = ["Calibration", "FitRecord", "FitResult", "calibrate_predictions", "fit"]
