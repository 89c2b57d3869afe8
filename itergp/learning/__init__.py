"""Learning hyperparameters."""

from itergp.learning.calibration import Calibration, calibrate_network, calibrate_predictions
from itergp.learning.fitting import FitResult, fit
from itergp.learning.structure_search import Comparison, Trial
from itergp.learning.structures import InputColumns, Structure
from itergp.records import FitRecord

__all__ = [
    "Calibration",
    "Comparison",
    "FitRecord",
    "FitResult",
    "InputColumns",
    "Structure",
    "Trial",
    "calibrate_network",
    "calibrate_predictions",
    "fit",
]
