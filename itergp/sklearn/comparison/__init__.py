"""How this package compares with what else could be used for a table."""

from itergp.baselines import Baseline, Boosting, Forecast, LightGBM, Linear, Method, Rows
from itergp.diagnostics.estimates import Estimate
from itergp.sklearn.comparison.checking import as_rows
from itergp.sklearn.comparison.compare import compare, cross_validate, judge, standard_methods
from itergp.sklearn.comparison.folds import hold_out
from itergp.sklearn.comparison.methods import Fitted, Own, add_rows, fit_estimator, write_report
from itergp.sklearn.comparison.results import MethodResult, ModelComparison

__all__ = [
    "Baseline",
    "Boosting",
    "Estimate",
    "Fitted",
    "Forecast",
    "LightGBM",
    "Linear",
    "Method",
    "MethodResult",
    "ModelComparison",
    "Own",
    "Rows",
    "add_rows",
    "as_rows",
    "compare",
    "cross_validate",
    "fit_estimator",
    "hold_out",
    "judge",
    "standard_methods",
    "write_report",
]
