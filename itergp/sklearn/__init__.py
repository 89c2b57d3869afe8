"""scikit-learn estimators: Gaussian processes for classes, counts, grades and real values, on arrays and data frames."""

try:
    import sklearn as _sklearn  # noqa: F401 - only to say what is missing
except ImportError as error:
    raise ImportError(
        "`itergp.sklearn` needs scikit-learn. It is not installed. Install it with `pip install itergp[sklearn]`."
    ) from error

from itergp.sklearn.classifiers import GPClassifier
from itergp.sklearn.regressors import GPCountRegressor, GPRegressor

__all__ = ["GPClassifier", "GPCountRegressor", "GPRegressor"]
