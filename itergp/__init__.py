"""Probabilistic, iterative inference for non-conjugate Gaussian processes, as GPyTorch models."""

from itergp import diagnostics, likelihoods, models, objectives, operators, solvers
from itergp._version import __version__
from itergp.errors import InputError, ItergpWarning, SolverError

__all__ = [
    "InputError",
    "ItergpWarning",
    "SolverError",
    "__version__",
    "diagnostics",
    "likelihoods",
    "models",
    "objectives",
    "operators",
    "solvers",
]
