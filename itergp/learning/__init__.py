"""Learning hyperparameters."""

from itergp.learning.fit import FitRecord, FitResult, fit

__all__ = ["FitRecord", "FitResult", "fit"]
