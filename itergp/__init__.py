"""Probabilistic, iterative inference for non-conjugate Gaussian processes, as GPyTorch models."""

import os

# pykeops announces itself on standard output when gpytorch imports it, in the middle of somebody's predictions.
os.environ.setdefault("KEOPS_VERBOSE", "0")

from itergp import diagnostics, kernels, learning, likelihoods, models, objectives, operators, records, solvers
from itergp._version import __version__
from itergp.errors import InputError, ItergpWarning, SolverError
from itergp.learning import fit
from itergp.models.arrays import as_tensor

__all__ = [
    "InputError",
    "ItergpWarning",
    "SolverError",
    "__version__",
    "as_tensor",
    "diagnostics",
    "fit",
    "kernels",
    "learning",
    "likelihoods",
    "models",
    "objectives",
    "operators",
    "records",
    "solvers",
]
