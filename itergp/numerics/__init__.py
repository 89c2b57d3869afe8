"""Small dense algebra and searches that the rest is built of; it knows neither kernels nor likelihoods."""

from itergp.numerics.blocks import apply_blocks, curvature_eigen, curvature_root, psd_root
from itergp.numerics.cholesky import diagonal_lifts, first_cholesky, tolerant_cholesky, try_cholesky
from itergp.numerics.distinct_rows import DistinctRows
from itergp.numerics.krylov import leading_eigenspace
from itergp.numerics.line_search import backtrack, backtrack_each
from itergp.numerics.rounding import Thresholds, thresholds
from itergp.numerics.sampling import evenly_spaced, sample_of_rows
from itergp.numerics.spectral import leading_eigenvectors, symmetric, whitening

__all__ = [
    "DistinctRows",
    "Thresholds",
    "apply_blocks",
    "backtrack",
    "backtrack_each",
    "curvature_eigen",
    "curvature_root",
    "diagonal_lifts",
    "evenly_spaced",
    "first_cholesky",
    "leading_eigenspace",
    "leading_eigenvectors",
    "psd_root",
    "sample_of_rows",
    "symmetric",
    "thresholds",
    "tolerant_cholesky",
    "try_cholesky",
    "whitening",
]
