"""Simple methods on the same rows: what a prediction should beat, in reports and comparisons alike."""

from itergp.baselines.boosting import Boosting, LightGBM
from itergp.baselines.linear import Linear
from itergp.baselines.methods import Baseline, Method
from itergp.baselines.rows import Forecast, Rows
from itergp.baselines.standard import simple_methods

__all__ = ["Baseline", "Boosting", "Forecast", "LightGBM", "Linear", "Method", "Rows", "simple_methods"]
