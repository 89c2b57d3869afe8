"""Learning hyperparameters."""

from itergp.learning.fitting import FitRecord, FitResult, fit

__all__ = ["FitRecord", "FitResult", "fit"]
