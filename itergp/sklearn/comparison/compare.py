"""``compare``: this package, boosted trees, a linear model and a baseline on the same held-out rows of a table."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from itergp.baselines import Method, simple_methods
from itergp.baselines.rows import SURVIVAL, Array, Forecast, Rows
from itergp.diagnostics.estimates import Estimate
from itergp.errors import InputError, ItergpWarning
from itergp.sklearn.comparison.checking import as_rows
from itergp.sklearn.comparison.folds import split
from itergp.sklearn.comparison.methods import Own
from itergp.sklearn.comparison.results import MethodResult, ModelComparison
from itergp.sklearn.comparison.scores import SECOND, concordance, second_scores


def compare(
    X: Any,
    y: Any,
    *,
    task: str = "auto",
    levels: Sequence[Any] | None = None,
    sample_weight: Any = None,
    exposure: Any = None,
    groups: Any = None,
    methods: Sequence[Method] | None = None,
    num_folds: int = 5,
    time_limit: float | None = None,
    options: dict[str, Any] | None = None,
    random_state: int = 0,
    on_progress: Callable[[str, int], None] | None = None,
) -> ModelComparison:
    """Compares this package with boosting, a linear model and a baseline by cross-validated log-density.

    Each row is predicted by fits of the other folds, the same for all methods. Boosting and linear models predict means of real
    values and counts: their densities are normal, with the standard deviation of residuals out of fold on the training rows, or
    Poisson, or negative binomial if that is better on those. Times are compared with a Weibull regression and the Kaplan-Meier
    curve, whose hazard is constant between quantiles of the events' times. Standard errors are those of the mean over rows, for
    what was learned; those of differences are of the differences row by row.

    Args:
        X: Inputs ``(N, D)``: a data frame, an array, or another table, see ``itergp.tables.TableEncoder``.
        y: Targets ``(N,)``; events and times, see ``GPSurvival.fit``.
        task: ``"classification"``, ``"ordinal"``, ``"counts"``, ``"regression"`` or ``"survival"``; ``"auto"``: by the targets.
        levels: Labels of ordered levels, lowest first.
        sample_weight: Weights ``(N,)``, for fits and scores.
        exposure: Exposures ``(N,)`` of counts.
        groups: Which group a row belongs to ``(N,)``; rows of a group are held out together.
        methods: What is compared; default this package, boosting by scikit-learn and, if it is installed, LightGBM, a linear
            model, and a baseline without inputs.
        num_folds: Fits per method, 2 or more.
        time_limit: Seconds that each fit of this package may take.
        options: Further arguments of the estimator of this package.
        random_state: Seed of folds and methods.
        on_progress: Called with the name of a method and the number of a fold before each fit.

    Returns:
        The comparison.

    Raises:
        InputError: If data or arguments cannot be used.

    Examples:
        >>> from sklearn.datasets import load_iris
        >>> from itergp.baselines import Baseline, Linear
        >>> X, y = load_iris(return_X_y=True)
        >>> comparison = compare(X, y, methods=[Linear(), Baseline()], num_folds=3)
        >>> comparison.best.name
        'linear model'
    """
    rows, reason = as_rows(
        X, y, task=task, levels=levels, sample_weight=sample_weight, exposure=exposure, groups=groups
    )
    own = dict(options or {})
    if time_limit is not None:
        own["fit_options"] = {**(own.get("fit_options") or {}), "time_limit": time_limit}
    chosen = standard_methods(rows.task, own) if methods is None else list(methods)
    return cross_validate(rows, chosen, num_folds=num_folds, seed=random_state, reason=reason, on_progress=on_progress)


def cross_validate(
    rows: Rows,
    methods: Sequence[Method],
    *,
    num_folds: int = 5,
    seed: int = 0,
    reason: str = "",
    on_progress: Callable[[str, int], None] | None = None,
) -> ModelComparison:
    """As ``compare``, of checked rows.

    Args:
        rows: N rows.
        methods: What is compared.
        num_folds: Fits per method, 2 or more.
        seed: Of folds and methods.
        reason: Why the task is what it is, if it was guessed.
        on_progress: Called with the name of a method and the number of a fold before each fit.

    Raises:
        InputError: If there are too few rows, or no method predicts them.
    """
    pairs = [(rows.take(train), rows.take(test)) for train, test in split(rows, num_folds, seed)]
    left_out = len(rows) - sum(len(test) for _, test in pairs)
    if left_out:
        warnings.warn(
            f"Labels should be in several folds. Got {left_out} row(s) with a label that no other fold has. They are left out "
            "of the scores.",
            ItergpWarning,
            stacklevel=3,
        )
    return _compared(pairs, methods, seed, reason, on_progress)


def judge(train: Rows, test: Rows, methods: Sequence[Method], *, seed: int = 0) -> ModelComparison:
    """Compares methods on one part of the rows.

    Args:
        train: Rows to learn from.
        test: Rows to judge by; all labels are among those of ``train``.
        methods: What is compared.
        seed: Of the methods.
    """
    return _compared([(train, test)], methods, seed, "", None)


def standard_methods(task: str, options: dict[str, Any] | None = None) -> list[Method]:
    """What competes for a task: this package first, the baseline last.

    Args:
        task: One of ``TASKS``.
        options: Arguments of the estimator of this package.
    """
    return [Own(options or {}), *simple_methods(task)]


# ------------------------------------------------------------------------------- runs
@dataclass(frozen=True)
class _Run:
    name: str
    forecasts: list[Forecast]
    seconds: float
    failed: str = ""


def _run(method: Method, pairs: Sequence[tuple[Rows, Rows]], seed: int, on_progress: Any) -> _Run:
    forecasts, began = list[Forecast](), time.process_time()
    for number, (train, test) in enumerate(pairs):
        if on_progress is not None:
            on_progress(method.name, number)
        try:
            forecasts.append(method.forecast(train, test, seed))
        except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            if isinstance(method, Own):
                raise  # it says what to do
            return _Run(method.name, [], 0.0, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    return _Run(method.name, forecasts, (time.process_time() - began) / len(pairs))


def _compared(
    pairs: Sequence[tuple[Rows, Rows]], methods: Sequence[Method], seed: int, reason: str, on_progress: Any
) -> ModelComparison:
    runs = [_run(method, pairs, seed, on_progress) for method in methods]
    good = [run for run in runs if not run.failed]
    if not good:
        raise InputError(
            f"A method must predict the rows. Got failures only, the first: {runs[0].failed}. Check the table."
        )
    held_out = [test for _, test in pairs]
    weights = np.concatenate([rows.weights for rows in held_out])
    best = max((_densities(run) for run in good), key=lambda values: float(weights @ values))
    task = held_out[0].task
    score, higher = SECOND[task]
    results = tuple(_result(run, held_out, best, weights) for run in runs)
    return ModelComparison(task, reason, score, higher, len(weights), len(pairs), results)


def _densities(run: _Run) -> Array:
    return np.concatenate([forecast.log_density for forecast in run.forecasts])


def _result(run: _Run, held_out: Sequence[Rows], best: Array, weights: Array) -> MethodResult:
    nothing = Estimate(float("nan"), float("nan"))
    if run.failed:
        return MethodResult(run.name, nothing, nothing, nothing, nothing, 0.0, np.empty(0), run.failed)
    values, pairs = _densities(run), list(zip(run.forecasts, held_out, strict=True))
    if held_out[0].task == SURVIVAL:
        found = np.array([concordance(forecast, rows) for forecast, rows in pairs])
        kept = found[np.isfinite(found)]
        score = Estimate.of(kept, np.ones(len(kept))) if len(kept) else nothing
    else:
        score = Estimate.of(np.concatenate([second_scores(*pair) for pair in pairs]), weights)
    coverage = Estimate.of(np.concatenate([forecast.coverage for forecast in run.forecasts]), weights)
    density, behind = Estimate.of(values, weights), Estimate.of(best - values, weights)
    return MethodResult(run.name, density, behind, score, coverage, run.seconds, values)
