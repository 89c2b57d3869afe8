"""This package beside boosting, a linear model and a baseline: forecasts are densities, rows are held out, scores add up."""

from __future__ import annotations

import json

import numpy as np
import pandas
import pytest
from scipy import integrate, stats

from itergp import InputError
from itergp.baselines.forecasts import Hazards, of_counts, of_labels, of_normal
from itergp.diagnostics import censoring_survival
from itergp.diagnostics.residual_noise import CountNoise
from itergp.sklearn import GPOrdinalClassifier, censored_times, compare
from itergp.sklearn.comparison import Baseline, Boosting, Estimate, LightGBM, Linear, Method, Own, as_rows, hold_out
from itergp.sklearn.comparison.folds import split
from itergp.sklearn.comparison.scores import second_scores

RIVALS = [Boosting(), Linear(), Baseline()]
QUICK = {"kernel": "rbf", "max_iterations": 3}


def people(num_rows: int = 200, seed: int = 0) -> pandas.DataFrame:
    """Numbers, levels, and gaps."""
    rng = np.random.default_rng(seed)
    frame = pandas.DataFrame({"x": rng.normal(size=num_rows), "skewed": rng.lognormal(sigma=2.0, size=num_rows)})
    frame["city"] = rng.choice(["Oslo", "Rome", "Bonn"], num_rows)
    frame["x2"] = frame["x"].where(rng.random(num_rows) > 0.2)
    return frame


def targets(frame: pandas.DataFrame, task: str, seed: int = 1):
    """Targets that depend on the numbers and the levels."""
    rng = np.random.default_rng(seed)
    signal = (2.0 * frame["x"] + (frame["city"] == "Rome")).to_numpy()
    if task == "regression":
        return 10.0 + signal + rng.normal(size=len(frame))
    if task == "counts":
        return rng.poisson(np.exp(0.5 * signal))
    if task == "survival":
        time, left = np.exp(0.5 * signal) * rng.weibull(2.0, len(frame)), rng.uniform(0.5, 3.0, len(frame))
        return np.column_stack([time <= left, np.minimum(time, left)])
    grades = np.digitize(signal + rng.logistic(size=len(frame)), [-1.0, 1.0])
    return np.array(["low", "middle", "top"])[grades] if task == "ordinal" else np.where(grades > 0, "yes", "no")


TASKS = ("classification", "ordinal", "counts", "regression", "survival")


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_compared(task):
    frame = people()
    methods = [Own(dict(QUICK)), *(method for method in RIVALS if task in method.tasks)]
    levels = ["low", "middle", "top"] if task == "ordinal" else None
    found = compare(frame, targets(frame, task), task=task, levels=levels, methods=methods, num_folds=2)
    assert found.num_rows == len(frame)
    results = {result.name: result for result in found.results}
    assert not any(result.failed for result in results.values())
    base = results["baseline"]
    for name in ("itergp", "linear model"):
        gain = results[name].densities - base.densities
        assert gain.mean() > 2.0 * gain.std() / np.sqrt(len(gain)), name
    for result in results.values():
        difference = found.best.densities - result.densities
        assert result.behind.mean == pytest.approx(difference.mean())
        assert result.behind.error == pytest.approx(difference.std(ddof=1) / np.sqrt(len(difference)))
        assert result.log_density.mean == pytest.approx(result.densities.mean())
        assert 0.8 < result.coverage.mean < 0.99
    assert json.loads(json.dumps(found.to_dict()))["best"] == found.best.name
    lines = str(found).splitlines()
    assert len(lines) == 1 + len(methods)
    assert [line.startswith(found.best.name) for line in lines[1:] if "  best  " in line] == [True]


def test_the_baseline_by_hand():
    y = np.array(["a"] * 30 + ["b"] * 10)
    found = compare(np.arange(40.0)[:, None], y, methods=[Baseline()], num_folds=2)
    shares = np.array([16.0, 6.0]) / 22.0  # each fold has half of each label, and one more of each is added
    expected = 0.75 * np.log(shares[0]) + 0.25 * np.log(shares[1])
    assert found.best.log_density.mean == pytest.approx(expected)
    assert found.best.score.mean == pytest.approx(0.75)
    assert (found.task, found.reason) == ("classification", "it has 2 different labels")


def test_probabilities_of_zero_are_finite():
    rows, _ = as_rows(np.zeros((2, 1)), np.array([0, 1]), task="classification")
    forecast = of_labels(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]), rows)
    np.testing.assert_allclose(forecast.log_density, np.log([1.0, 1e-12]), atol=1e-10)


# ---------------------------------------------------------------- forecasts are right where the model is
def rows_of(y, task: str, **known):
    return as_rows(np.zeros((len(y), 1)), y, task=task, **known)[0]


def near(coverage: np.ndarray, expected: float = 0.9) -> bool:
    return abs(coverage.mean() - expected) < 4.0 * np.sqrt(0.09 / len(coverage))


def test_right_distributions_cover_ninety_percent():
    rng, size = np.random.default_rng(0), 4000
    y = rng.normal(3.0, 2.0, size)
    assert near(of_normal(np.full(size, 3.0), 2.0, rows_of(y, "regression")).coverage)
    probs = rng.dirichlet([0.5, 1.0, 2.0], size)
    labels = (probs.cumsum(1) < rng.random((size, 1))).sum(1)
    assert near(of_labels(probs, np.arange(3), rows_of(labels, "classification")).coverage)
    time, left = rng.exponential(2.0, size), rng.uniform(0.1, 5.0, size)
    times = np.column_stack([time <= left, np.minimum(time, left)])
    assert near(Hazards(np.array([0.0]), np.array([0.5])).forecast(rows_of(times, "survival")).coverage)


def test_densities_are_those_of_the_distributions():
    normal = of_normal(np.zeros(1), 2.0, rows_of(np.array([2.0]), "regression"))
    assert normal.log_density[0] == pytest.approx(-0.5 - np.log(2.0) - 0.5 * np.log(2.0 * np.pi))
    times = rows_of(np.array([[1.0, 2.0], [0.0, 2.0]]), "survival")  # an event, and a censored row
    found = Hazards(np.array([0.0]), np.array([0.5])).forecast(times)
    np.testing.assert_allclose(found.log_density, [np.log(0.5) - 1.0, -1.0])


def test_means_of_other_rows_say_how_far_targets_are():
    """Trees follow noise: residuals of the rows that they learned from would cover too little."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(600, 10)), rng.normal(size=600)
    found = compare(X, y, methods=[Boosting()], num_folds=3)
    assert near(np.full(600, found.best.coverage.mean))


def test_hazards_are_a_density():
    rng = np.random.default_rng(0)
    time, left = rng.weibull(2.0, 500), rng.uniform(0.2, 2.0, 500)
    event, seen = time <= left, np.minimum(time, left)
    found = Hazards.learn(seen, event, np.ones(500))

    def density(at: float) -> float:
        return float(np.exp(found.forecast(rows_of(np.array([[1.0, at]]), "survival")).log_density[0]))

    total = sum(integrate.quad(density, *ends)[0] for ends in zip(found.starts, [*found.starts[1:], 30.0], strict=True))
    assert total == pytest.approx(1.0, abs=1e-4)
    forecast = found.forecast(rows_of(np.array([[0.0, 0.7]]), "survival"))
    kaplan_meier = censoring_survival(~event, seen, np.array([0.7]))[0]  # of events, whose roles are exchanged
    assert forecast.log_density[0] == pytest.approx(np.log(kaplan_meier), abs=0.02)
    assert np.exp(found.log_survival(forecast.point))[0] == pytest.approx(0.5)
    assert forecast.point[0] == pytest.approx(np.sqrt(np.log(2.0)), abs=0.1)


def test_counts_vary_as_much_as_they_do():
    rng = np.random.default_rng(0)
    mean, ones = rng.uniform(1.0, 5.0, 2000), np.ones(2000)
    assert CountNoise.learn(rng.negative_binomial(2.0, 2.0 / (2.0 + mean)), mean, ones).size == pytest.approx(
        2.0, rel=0.2
    )
    few = CountNoise.learn(rng.poisson(mean), mean, ones)
    assert few.size is None or few.size > 50.0
    rows = rows_of(np.array([2.0, 0.0]), "counts")
    np.testing.assert_allclose(
        of_counts(CountNoise(None), np.array([3.0, 1.0]), rows).log_density, stats.poisson([3.0, 1.0]).logpmf([2, 0])
    )
    np.testing.assert_allclose(
        second_scores(of_counts(CountNoise(None), np.array([3.0, 1.0]), rows), rows), [2 * (2 * np.log(2 / 3) + 1), 2.0]
    )


@pytest.mark.parametrize("method", [Boosting(), Linear(), Baseline()], ids=lambda method: method.name)
def test_exposures_scale_counts(method):
    rng = np.random.default_rng(0)
    X, exposure = rng.normal(size=(400, 1)), rng.uniform(1.0, 20.0, 400)
    y = rng.poisson(exposure * np.exp(0.5 * X[:, 0]))
    rows, reason = as_rows(X, y, exposure=exposure)
    assert (rows.task, reason) == ("counts", "there are exposures")
    train, test = hold_out(rows, 0.5, 0)
    point = method.forecast(train, test, 0).point
    assert np.corrcoef(point, test.exposures)[0, 1] > 0.5
    assert point.sum() == pytest.approx(test.y.sum(), rel=0.1)


# ---------------------------------------------------------------------------------- rows
@pytest.mark.parametrize("task", TASKS)
def test_what_is_held_out_is_like_the_rest(task):
    frame = people(301)
    rows, _ = as_rows(frame, targets(frame, task), task=task)
    train, test = hold_out(rows, 0.2, 0)
    assert (len(train), len(test)) == (241, 60)
    first, second = ((part.y[:, 1] if task == "survival" else part.y) for part in (train, test))
    if task in ("classification", "ordinal"):
        for label in rows.labels:
            assert abs((second == label).sum() - 0.2 * (rows.y == label).sum()) <= 2.0
    else:
        assert abs(first.mean() - second.mean()) < 0.1 * first.std()
    others = [hold_out(rows, 0.2, seed)[1].table.columns[0].to_numpy() for seed in range(20)]
    assert len({tuple(column) for column in others}) == 20
    assert len(hold_out(rows, 0.0, 0)[1]) == 0


def test_groups_and_rare_labels():
    groups = np.repeat(np.arange(20), 5)
    rows, _ = as_rows(np.arange(100.0)[:, None], np.arange(100.0), groups=groups)
    train, test = hold_out(rows, 0.2, 0)
    assert not set(train.groups) & set(test.groups)
    assert len(test) == 20
    for mask, left_out in split(rows, 4, 0):
        assert not set(groups[mask]) & set(groups[left_out])
    y = np.array(["a"] * 50 + ["b"] * 49 + ["c"])
    train, _ = hold_out(as_rows(np.arange(100.0)[:, None], y)[0], 0.9, 0)
    assert set(train.y) == {"a", "b", "c"}
    with pytest.warns(UserWarning, match=r"Got 1 row\(s\) with a label that no other fold has"):
        found = compare(np.arange(100.0)[:, None], y, methods=[Baseline()], num_folds=4)
    assert found.num_rows == 99


def test_a_weight_of_two_is_a_row_twice():
    values, weights = np.array([1.0, 2.0, 4.0]), np.array([2.0, 1.0, 1.0])
    assert Estimate.of(values, weights).mean == pytest.approx(np.repeat(values, [2, 1, 1]).mean())
    ones = np.ones(50)
    some = np.random.default_rng(0).normal(size=50)
    assert Estimate.of(some, ones).error == pytest.approx(some.std(ddof=1) / np.sqrt(50))
    y = np.array([0, 1] * 20)
    twice = np.where(y == 1, 2.0, 1.0)
    rows, _ = as_rows(np.zeros((40, 1)), y, sample_weight=twice)
    again, _ = as_rows(np.zeros((60, 1)), np.repeat(y, twice.astype(int)))
    one, other = (Baseline().forecast(part, rows, 0).log_density for part in (rows, again))
    np.testing.assert_allclose(one, other)


class Broken(Method):
    """Fails."""

    name = "broken"

    def forecast(self, train, test, seed):
        """Fails."""
        raise ValueError("No.\nMore.")


def test_a_method_that_fails_is_said_so():
    found = compare(np.arange(40.0)[:, None], np.arange(40.0) % 7.3, methods=[Broken(), Baseline()], num_folds=2)
    assert str(found).splitlines()[-1] == "broken failed: ValueError: No."
    assert found.best.name == "baseline"
    assert found.to_dict()["results"][0] == {"method": "broken", "failed": "ValueError: No."}
    with pytest.raises(InputError, match="Got failures only, the first: ValueError: No"):
        compare(np.arange(40.0)[:, None], np.arange(40.0) % 7.3, methods=[Broken()], num_folds=2)


@pytest.mark.parametrize("task", ["classification", "ordinal", "counts", "regression"])
@pytest.mark.parametrize("method", [Boosting(), LightGBM(), Linear()], ids=lambda method: method.name)
def test_thousands_of_levels(method, task):
    if isinstance(method, LightGBM):
        pytest.importorskip("lightgbm")
    frame = people(900)
    frame["person"] = [f"p{i % 300}" for i in range(len(frame))]
    y = targets(frame, task)
    rows, _ = as_rows(frame, y, task=task)
    train, test = hold_out(rows, 0.3, 0)
    forecast = method.forecast(train, test, 0)
    assert np.isfinite(forecast.log_density).all()
    assert (forecast.log_density - Baseline().forecast(train, test, 0).log_density).mean() > 0.05


def test_what_cannot_be_compared():
    X, y = np.arange(20.0)[:, None], np.arange(20.0) % 3
    with pytest.raises(InputError, match="`task` must be 'auto' or one of 'classification'"):
        compare(X, y, task="clustering")
    with pytest.raises(InputError, match="`exposure` must be left out for regression"):
        compare(X, y, task="regression", exposure=y + 1.0)
    with pytest.raises(InputError, match="`num_folds` must be 2 to 20"):
        compare(X, y, num_folds=21)
    with pytest.raises(InputError, match="left or interval censoring"):
        compare(X, censored_times(np.ones(20), np.full(20, 2.0)))
    with pytest.raises(InputError, match="same number of rows"):
        compare(X[:5], y)


# ---------------------------------------------------------------------- levels that are numbers
def test_half_stars_are_levels():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 1))
    y = np.round(2.0 * (2.5 + X[:, 0]).clip(0.5, 5.0)) / 2.0
    model = GPOrdinalClassifier(kernel="rbf", max_iterations=2).fit(X, y)
    assert 1.5 in model.levels_
    assert model.score(X, y) > 0.3
    model.partial_fit(X[:1], [1.5])
    declared = GPOrdinalClassifier(levels=[0.5, 1.5, 2.5], kernel="rbf", max_iterations=2)
    declared.fit(X[:3], [0.5, 1.5, 2.5])
    with pytest.raises(InputError, match="Unknown label type: continuous"):
        GPOrdinalClassifier().fit(X, X[:, 0])
