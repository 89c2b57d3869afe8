"""Effects and importances: right values of a known function, for every estimator, and clear errors."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas
import pytest
import torch
from explained import KINDS, NASTY, fitted, signal, table
from scipy.special import ndtr, ndtri
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from itergp import InputError
from itergp.explanation.columns import views
from itergp.explanation.shapes import shape
from itergp.sklearn import GPClassifier, GPRegressor, GPSurvival, censored_times, load

each = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def regressor():
    return fitted("real")


# ---------------------------------------------------------------- importances
@each
def test_importances_are_shares_in_the_order_of_the_columns(kind):
    estimator = fitted(kind)
    found = estimator.feature_importances_
    assert found.shape == (estimator.n_features_in_,) == estimator.feature_names_in_.shape
    assert found.sum() == pytest.approx(1.0)
    by_name = dict(zip(estimator.feature_names_in_, found, strict=True))
    assert max(by_name["nothing"], by_name["when"]) < 0.25 * min(by_name["curved"], by_name["up"], by_name["city"])
    np.testing.assert_array_equal(found, estimator.feature_importances_)


def test_importances_are_total_effects(regressor):
    """Of an additive function they are the variances of its parts."""
    X = table()
    parts = [3.0 * X.curved**2, (X.up.fillna(50.0) - 50.0) / 10.0 + X.up.isna(), 1.5 * (X.city == "Rome")]
    variances = np.array([part.var(ddof=0) for part in parts])
    np.testing.assert_allclose(regressor.feature_importances_[:3], variances / variances.sum(), atol=0.04)


def test_importances_of_a_product_count_for_both_columns():
    rng = np.random.default_rng(0)
    X = rng.uniform(-1.0, 1.0, (200, 3))
    model = GPRegressor(kernel="rbf", likelihood="gaussian", max_iterations=15).fit(X, X[:, 0] * X[:, 1])
    first, second, third = model.feature_importances_
    assert first == pytest.approx(second, abs=0.03)
    assert third < 0.02
    summary = model.summary()
    assert summary.columns.set_index("column").loc["x0", "alone"] < 0.1  # neither does anything by itself
    assert str(summary).count("depends on other columns") == 2


def test_columns_that_were_left_out_have_no_importance():
    X = np.column_stack([np.linspace(0.0, 1.0, 60), np.ones(60)])
    with pytest.warns(UserWarning, match="Columns of `X` should vary"):
        model = GPRegressor(kernel="rbf", max_iterations=3).fit(X, np.sin(5.0 * X[:, 0]))
    np.testing.assert_allclose(model.feature_importances_, [1.0, 0.0])
    assert "left out" in str(model.summary())
    with pytest.raises(InputError, match=r"Got 'x1', which was left out \(constant\)\. Choose others\."):
        model.effects(["x1"])


def test_a_constant_function_has_no_importances():
    X = np.linspace(0.0, 1.0, 20)[:, None]
    model = GPRegressor(kernel="rbf", likelihood="gaussian", optimizer=None).fit(X, np.full(20, 3.0))
    assert model.feature_importances_.tolist() == [0.0]


# --------------------------------------------------------------------- effects
def test_effects_are_averages_of_predictions(regressor):
    """Of rows with one value of the column, in the units of the target."""
    subject_rows = regressor.effects("curved")
    chosen = np.sort(np.random.default_rng(0).permutation(len(table()))[:64])
    for row in subject_rows.iloc[::8].itertuples():
        same = table().iloc[chosen].assign(curved=row.value)
        assert row.effect == pytest.approx(regressor.predict(same).mean(), rel=1e-6)
        _, covariance = regressor.predict(same, return_cov=True)
        np.fill_diagonal(covariance, regressor.latent_mean_and_variance(same)[1])  # noise is no part of an effect
        half = float(ndtri(0.95)) * np.sqrt(covariance.mean())
        assert row.high - row.low == pytest.approx(2.0 * half, rel=1e-4)


def test_the_band_is_that_of_the_average_and_covers_the_truth(regressor):
    X, found = table(), regressor.effects("curved")
    chosen = np.sort(np.random.default_rng(0).permutation(len(X))[:64])
    rest = signal(X.iloc[chosen].assign(curved=0.0)).mean()
    truth = 100.0 + 10.0 * (3.0 * found["value"] ** 2 + rest)
    assert ((found["low"] <= truth) & (truth <= found["high"])).mean() > 0.7
    single = np.sqrt(regressor.latent_mean_and_variance(X.iloc[chosen])[1]).mean() * 2.0 * float(ndtri(0.95))
    assert (found["high"] - found["low"]).median() < single


@each
def test_effects_of_every_estimator(kind):
    estimator = fitted(kind)
    found = estimator.effects()
    assert (found["low"] <= found["effect"] + 1e-9).all()
    assert (found["effect"] <= found["high"] + 1e-9).all()
    several = kind in ("classes", "levels")
    assert ("output" in found) == several
    groups = found.groupby(["column", "output"] if several else ["column"], sort=False)["share"].sum()
    np.testing.assert_allclose(groups, 1.0)
    assert set(found["column"]) == set(table().columns)
    assert found.loc[found["column"] == "up", "value"].isna().any()  # gaps are a value
    assert set(found.loc[found["column"] == "city", "value"]) == {"Oslo", "Rome", NASTY}
    if several:
        own = found[found["column"] == "city"].pivot(index="value", columns="output", values="effect")
        np.testing.assert_allclose(own.sum(axis=1), 1.0, atol=1e-6)
    if kind in ("two classes", "counts", "times", "real"):
        up = found[(found["column"] == "up") & found["value"].notna()]
        assert up["effect"].iloc[-1] > up["effect"].iloc[0]


def test_effects_are_on_probabilities_of_the_second_class():
    found = fitted("two classes").effects("city").set_index("value")["effect"]
    assert found["Rome"] > max(found["Oslo"], found[NASTY])
    assert found.between(0.0, 1.0).all()


def test_rates_are_per_exposure(monkeypatch):
    counter, chosen = fitted("counts"), np.sort(np.random.default_rng(0).permutation(len(table()))[:64])
    found = counter.effects("city").set_index("value")["effect"]
    monkeypatch.setattr(counter.model_, "tempering", 0.0)  # effects integrate the posterior itself
    expected = counter.predict(table().iloc[chosen].assign(city="Rome")).mean()
    assert found["Rome"] == pytest.approx(expected, rel=1e-3)


def test_dates_keep_weekday_and_hour():
    found = fitted("real").effects("when")
    assert str(found["value"].dtype).startswith("datetime64")
    view = next(one for one in views(fitted("real").encoder_) if one.name == "when")
    rows = fitted("real").encoder_.transform(table())
    np.testing.assert_allclose(view.places(rows), (table()["when"] - pandas.Timestamp(0)) / pandas.Timedelta(days=1))
    grid = view.grid(fitted("real").encoder_, rows, np.ones(len(rows)), 10)
    weekday = [group.indices for group in view.groups if group.part == "weekday"]
    assert weekday
    assert not set(weekday[0]) & set(grid.indices)


def test_encoding_a_column_is_encoding_the_table():
    encoder, X = fitted("real").encoder_, table()
    whole = encoder.transform(X)
    for position, name in enumerate(X):
        indices, block = encoder.encode_column(position, X[name].to_numpy())
        np.testing.assert_array_equal(whole[:, indices], block)


def test_directions_and_distances():
    rng = np.random.default_rng(0)
    X = pandas.DataFrame({"down": rng.uniform(0, 5, 250), "wave": rng.uniform(0, 8, 250), "none": rng.normal(size=250)})
    y = -X.down + 2.0 * np.sin(X.wave) + 0.1 * rng.normal(size=250)
    model = GPRegressor(kernel="rbf", likelihood="gaussian", max_iterations=25).fit(X, y)
    rows = model.summary().columns.set_index("column")
    assert rows.loc["down", "direction"] == "down"
    assert rows.loc["down", "certainty"] > 0.95
    assert rows.loc["wave", "direction"] == "curved"
    assert 0.6 < rows.loc["wave", "range"] < 2.0  # of a sine it is one
    assert rows.loc["none", "relevance"] < 0.02
    assert float(rows.loc["down", "lowest"]) > float(rows.loc["down", "highest"])


def test_the_certainty_of_a_direction_is_its_posterior_probability():
    """Of a line it is that of the sign of its slope."""
    found = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        X = rng.uniform(-1.0, 1.0, (12, 1))
        model = GPRegressor(kernel="linear", alpha=1.0, optimizer=None).fit(X, rng.normal(size=12))
        with torch.no_grad():
            latent = model.model_(model._new_inputs([[-1.0], [1.0]]))
        step = float(latent.mean[1] - latent.mean[0])
        error = float((latent.covariance_matrix * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])).sum().sqrt())
        seen = shape(model._subject(), model._subject().columns[0])
        assert seen.direction == ("up" if step > 0.0 else "down")
        assert seen.certainty == pytest.approx(float(ndtr(abs(step) / error)), abs=0.05)
        found.append(seen.certainty)
    assert min(found) < 0.95


# -------------------------------------------------------- tables, arrays, changes
def test_interactions(regressor):
    found = regressor.interaction("curved", "city")
    assert list(found.columns) == ["curved", "city", "effect", "low", "high"]
    wide = found.pivot(index="curved", columns="city", values="effect")
    difference = wide["Rome"] - wide["Oslo"]
    assert difference.max() - difference.min() < 3.0  # none in truth, beside a range of 30
    assert difference.mean() == pytest.approx(15.0, abs=2.0)


def test_plain_arrays_and_pipelines():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 2))
    pipeline = make_pipeline(StandardScaler(), GPRegressor(kernel="rbf", max_iterations=3)).fit(X, X[:, 0])
    model = pipeline[-1]
    assert set(model.effects()["column"]) == {"x0", "x1"}
    pandas.testing.assert_frame_equal(model.effects(0), model.effects(["x0"]))
    assert model.feature_importances_[0] > 0.9


def test_explanations_follow_the_model(regressor):
    model = copy.deepcopy(regressor)
    before = model.feature_importances_
    with torch.no_grad():
        model.model_.covar_module.base_kernel.lengthscale = 0.3
    after = model.feature_importances_
    assert np.abs(after - before).max() > 1e-3
    assert "_explanation" not in pickle.loads(pickle.dumps(model)).__dict__
    model.partial_fit(table().iloc[:3], [100.0, 100.0, 100.0])
    assert model._subject().num_rows == len(table()) + 3


def test_explanations_of_a_saved_model(regressor, tmp_path):
    regressor.save(tmp_path / "model")
    same = load(tmp_path / "model")
    np.testing.assert_allclose(same.feature_importances_, regressor.feature_importances_, atol=1e-8)
    pandas.testing.assert_frame_equal(same.effects("up"), regressor.effects("up"))


def test_weights_count():
    X = np.repeat(np.linspace(0.0, 1.0, 20), 3)[:, None]
    y, weights = np.sin(6.0 * X[:, 0]), np.where(X[:, 0] > 0.5, 1.0, 1e-3)
    weighted = GPRegressor(kernel="rbf", optimizer=None, likelihood="gaussian").fit(X, y, sample_weight=weights)
    share = weighted.effects(0).query("value > 0.5")["share"].sum()
    assert share > 0.9


@pytest.mark.parametrize("likelihood", ["log_normal", "gamma", "beta", "binomial"])
def test_effects_of_positive_values_and_shares(likelihood):
    """On the expected value, in the units of the target."""
    rng = np.random.default_rng(0)
    X = rng.uniform(-1.0, 1.0, (80, 2))
    f, options = 1.5 * X[:, 0], {}
    if likelihood in ("log_normal", "gamma"):
        y = 50.0 * np.exp(f + 0.2 * rng.normal(size=80))
    elif likelihood == "beta":
        y = rng.beta(20.0 / (1.0 + np.exp(-f)), 20.0 / (1.0 + np.exp(f)))
    else:
        y, options = rng.binomial(10, 1.0 / (1.0 + np.exp(-f))), {"trials": 10}
    model = GPRegressor(kernel="rbf", likelihood=likelihood, max_iterations=10).fit(X, y, **options)
    assert model.feature_importances_[0] > 0.9
    chosen = np.sort(np.random.default_rng(0).permutation(80)[:64])
    for row in model.effects(0).iloc[::8].itertuples():
        same = X[chosen].copy()
        same[:, 0] = row.value
        assert row.effect == pytest.approx(np.mean(model.predict(same)), rel=2e-3)
        assert row.low < row.effect < row.high
    found = model.summary()
    assert found.columns.iloc[0]["direction"] == "up"
    assert (found.score is None) == (likelihood == "binomial")


def test_trees_as_the_prior_mean_and_groups():
    rng = np.random.default_rng(0)
    X = pandas.DataFrame({"x": rng.uniform(-1.0, 1.0, 120), "site": rng.integers(0, 6, 120), "z": rng.normal(size=120)})
    X["site"] = X["site"].astype(float)
    X.loc[0, "site"] = np.nan
    y = np.sin(3.0 * X["x"]) + 0.5 * X["site"].fillna(0.0) + 0.1 * rng.normal(size=120)
    grouped = GPRegressor(kernel="rbf", likelihood="gaussian", groups="site", max_iterations=5).fit(X, y)
    assert grouped.effects("site")["value"].isna().sum() == 1
    assert grouped.feature_importances_[1] > grouped.feature_importances_[2]
    assert "site" in str(grouped.kernel_)
    boosted = GPRegressor(kernel="rbf", likelihood="gaussian", prior_mean="boosting", max_iterations=5).fit(X, y)
    subject = boosted._subject()
    assert subject.known_inputs(np.arange(3)).shape[1] == subject.inputs(subject.values[:3]).shape[1]
    assert boosted.feature_importances_[2] < 0.1
    assert boosted.summary().score is not None


def test_bounds_of_times_have_effects_and_no_baselines():
    rng = np.random.default_rng(0)
    X = rng.uniform(0.0, 1.0, (60, 1))
    t = np.exp(2.0 * X[:, 0]) * rng.weibull(2.0, 60)
    y = censored_times(np.floor(2.0 * t) / 2.0 + 1e-3, np.floor(2.0 * t) / 2.0 + 0.5)
    model = GPSurvival(kernel="rbf", distribution="weibull", approximation="laplace", max_iterations=5).fit(X, y)
    effect = model.effects(0)["effect"]
    assert effect.iloc[-1] > effect.iloc[0]
    assert model.summary().score is None


# ----------------------------------------------------------------------- mistakes
def test_mistakes_have_clear_errors(regressor):
    with pytest.raises(
        InputError, match=r"`columns` must be names of columns .* Got 'incom'\. Choose among 'curved', 'up'"
    ):
        regressor.effects("incom")
    with pytest.raises(InputError, match=r"`columns` must be names of columns .* Got 7"):
        regressor.effects([7])
    with pytest.raises(InputError, match=r"two different columns\. Got 'up' twice"):
        regressor.interaction("up", "up")
    for method in ("summary", "effects", "plot_effects"):
        with pytest.raises(ValueError, match="not fitted"):
            getattr(GPClassifier(), method)()
    assert not hasattr(GPClassifier(), "feature_importances_")
    X = np.random.default_rng(0).normal(size=(30, 2))
    several = GPRegressor(kernel="rbf", likelihood="gaussian", optimizer=None).fit(X, X)
    with pytest.raises(InputError, match=r"Explanations are those of one target\. Got a model of 2"):
        several.summary()
    assert several._repr_html_()
