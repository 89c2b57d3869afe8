"""Whether a model predicts better than what knows no columns."""

from __future__ import annotations

import warnings

import numpy as np

from itergp.baselines import Baseline, Rows
from itergp.diagnostics.estimates import Estimate
from itergp.errors import ItergpWarning
from itergp.learning.calibration import HeldOutDensities
from itergp.models import GP
from itergp.sklearn.model import as_numpy
from itergp.tables import Table

_CLEAR, _VISIBLE = 2.0, 0.003  # standard errors, and share of the log-density, by which a model must be worse


def warn_below_base_rate(model: GP, observes: str, found: HeldOutDensities, *, stacklevel: int) -> None:
    """Says when held-out rows are better predicted by the distribution of the targets than by a model.

    Args:
        model: The model.
        observes: What its observations are, as ``Subject.observes``.
        found: What it says about some of its rows, without them.
        stacklevel: Of the warning.
    """
    rows = as_rows(model, observes)
    held_out = np.zeros(len(rows), dtype=bool)
    held_out[found.rows.cpu().numpy()] = True
    densities = np.empty(len(rows))
    densities[found.rows.cpu().numpy()] = as_numpy(found.log_densities)
    test = rows.take(held_out)
    base = Baseline().forecast(rows, test, 0).log_density  # of few rows all are held out, in turn
    own = densities[held_out]
    gain = Estimate.of(own - base, test.weights)
    reached, wanted = (float(np.average(part, weights=test.weights)) for part in (own, base))
    if gain.mean > -max(_CLEAR * gain.error, _VISIBLE * abs(wanted)):
        return
    warnings.warn(
        f"Predictions should be better than those that know no columns. {len(test)} rows that were held out have a log-density "
        f"of {reached:.4g} in the units of the model, and {wanted:.4g} by the distribution of the targets alone. Raise "
        "max_iterations or time_limit, leave approximation, kernel and likelihood at 'auto', or leave out columns.",
        ItergpWarning,
        stacklevel=stacklevel,
    )


def as_rows(model: GP, observes: str) -> Rows:
    """The rows of a model as methods take them that read no inputs, targets in the units of the model."""
    targets = as_numpy(model.train_targets)
    weights = np.ones(len(targets)) if model.sample_weight is None else as_numpy(model.sample_weight)
    return Rows.encoded(Table([], len(targets), None, None), observes, targets, weights)
