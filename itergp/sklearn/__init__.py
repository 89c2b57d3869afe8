"""scikit-learn estimators: Gaussian processes for classes, grades, counts, real values and times, on arrays and data frames."""

from __future__ import annotations

import os
from typing import Any

try:
    import sklearn as _sklearn  # noqa: F401 - only to say what is missing
except ImportError as error:
    raise ImportError(
        "`itergp.sklearn` needs scikit-learn. It is not installed. Install it with `pip install itergp[sklearn]`."
    ) from error

from itergp.sklearn.base import GPEstimator, restored
from itergp.sklearn.classifiers import GPClassifier
from itergp.sklearn.comparison import ModelComparison, compare
from itergp.sklearn.counts import GPCountRegressor
from itergp.sklearn.event_times import censored_times
from itergp.sklearn.ordinal import GPOrdinalClassifier
from itergp.sklearn.regressors import GPRegressor
from itergp.sklearn.saving import read_estimator
from itergp.sklearn.survival import GPSurvival

__all__ = [
    "GPClassifier",
    "GPCountRegressor",
    "GPOrdinalClassifier",
    "GPRegressor",
    "GPSurvival",
    "ModelComparison",
    "censored_times",
    "compare",
    "load",
]

_ESTIMATORS: dict[str, type[GPEstimator]] = {
    cls.__name__: cls for cls in (GPClassifier, GPCountRegressor, GPOrdinalClassifier, GPRegressor, GPSurvival)
}


def load(path: str | os.PathLike[str], *, kernel: Any = None, device: Any = None) -> Any:
    """Reads any estimator that its ``save`` wrote.

    Args:
        path: The file.
        kernel: The kernel, if it was not one by name.
        device: Where to; default where it was.

    Returns:
        The fitted estimator, whose predictions are those of the saved one.

    Raises:
        InputError: If the file is missing, damaged, from a newer version, or holds something else.
    """
    saved = read_estimator(path, _ESTIMATORS, kernel=kernel, device=device)
    return restored(_ESTIMATORS[saved.name], saved)
