"""What a fitted estimator says, for people who know statistics and no solver: summary, importances, effects, a report.

Estimators have these as methods. Everything works on a ``Subject``, what an explanation needs to know of an estimator.
"""

from __future__ import annotations

try:
    import sklearn as _sklearn  # noqa: F401 - only to say what is missing
except ImportError as error:
    raise ImportError(
        "`itergp.explanation` needs scikit-learn. It is not installed. Install it with `pip install itergp[sklearn]`."
    ) from error

from itergp.explanation.effects import effects, interaction
from itergp.explanation.importances import importances
from itergp.explanation.plots import plot_effects, plot_importances
from itergp.explanation.report import write_report
from itergp.explanation.responses import (
    ExpectedResponse,
    MonotoneResponse,
    Response,
    expected_value,
    label_probabilities,
    second_probability,
)
from itergp.explanation.subject import Subject
from itergp.explanation.summary import Summary, summarise

__all__ = [
    "ExpectedResponse",
    "MonotoneResponse",
    "Response",
    "Subject",
    "Summary",
    "effects",
    "expected_value",
    "importances",
    "interaction",
    "label_probabilities",
    "plot_effects",
    "plot_importances",
    "second_probability",
    "summarise",
    "write_report",
]
