"""Boosted trees as the prior mean of estimators."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

import itergp.sklearn as estimators
from itergp.errors import InputError
from itergp.models.offset_mean import OffsetMean
from itergp.sklearn import GPClassifier, GPCountRegressor, GPRegressor, boosting

QUICK = {"kernel": "matern32", "max_iterations": 5}


def steps(num_rows: int = 200, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """A table with gaps and levels, and a function with edges along its axes."""
    rng = np.random.RandomState(seed)
    table = pd.DataFrame(rng.rand(num_rows, 3), columns=list("abc"))
    f = 2.0 * ((np.floor(4 * table["a"]) + np.floor(4 * table["b"])) % 2 - 0.5).to_numpy()
    table.loc[rng.rand(num_rows) < 0.1, "c"] = np.nan
    table["level"] = rng.choice(["u", "v", "w"], num_rows)
    return table, f


def targets_for(kind: type, f: np.ndarray) -> np.ndarray:
    rng = np.random.RandomState(1)
    if kind is GPClassifier:
        return (f + 0.5 * rng.randn(len(f)) > 0).astype(int)
    return rng.poisson(np.exp(f)) if kind is GPCountRegressor else f + 0.1 * rng.randn(len(f))


@pytest.fixture(params=["lightgbm", "sklearn"])
def library(request, monkeypatch):
    if request.param == "lightgbm":
        pytest.importorskip("lightgbm")
    else:
        monkeypatch.setattr(boosting.importlib.util, "find_spec", lambda name: None)
    return request.param


@pytest.mark.parametrize("classes", [2, 3])
def test_trees_are_those_of_the_library(classes, monkeypatch):
    monkeypatch.setattr(boosting.importlib.util, "find_spec", lambda name: None)
    table, f = steps()
    x, y = table[["a", "b"]].to_numpy(), (f > 0) + (classes - 2) * (table["a"] > 0.8).to_numpy().astype(float)
    fold = boosting._folds(y, discrete=True, seed=0)
    trees, unseen = boosting.boost(x, y, np.ones(len(x)), loss="log_loss", classes=classes, seed=0)
    rounds = trees.roots.shape[1]
    for k in range(2):
        own = HistGradientBoostingClassifier(max_iter=rounds, early_stopping=False, random_state=k)
        theirs = own.fit(x[fold != k], y[fold != k]).decision_function(x[fold == k])
        np.testing.assert_allclose(unseen[fold == k], theirs.reshape(-1, trees.num_outputs), rtol=1e-6, atol=1e-9)


def test_trees_of_lightgbm_are_its_own():
    lightgbm = pytest.importorskip("lightgbm")
    table, f = steps()
    x, weights = table[["a", "b"]].to_numpy(), np.ones(len(f))
    grown = boosting._together([boosting._grow_lightgbm(x, f, weights, "squared_error", 1, 0)])
    own = lightgbm.LGBMRegressor(n_estimators=boosting._ROUNDS, verbose=-1, random_state=0).fit(x, f)
    np.testing.assert_allclose(grown.predict(x)[:, 0], own.predict(x), rtol=1e-6, atol=1e-9)


def test_no_row_has_seen_its_target(library):
    rng = np.random.RandomState(0)
    x, y = rng.randn(400, 5), rng.randn(400)
    trees, unseen = boosting.boost(x, y, np.ones(400), loss="squared_error", classes=1, seed=0)
    assert abs(np.corrcoef(unseen[:, 0], y)[0, 1]) < 0.2  # of noise there is nothing to know
    assert np.corrcoef(trees.predict(x)[:, 0], y)[0, 1] > 0.3


def test_a_class_of_one_row_is_left_to_the_others(library):
    table, f = steps()
    y = (f > 0).astype(float)
    y[7] = 2.0
    x = table[["a", "b"]].to_numpy()
    trees, unseen = boosting.boost(x, y, np.ones(len(x)), loss="log_loss", classes=3, seed=0)
    assert unseen.shape == (len(x), 3)
    assert np.isfinite(unseen).all()
    assert np.isfinite(trees.predict(x)).all()


@pytest.mark.parametrize("kind", [GPClassifier, GPRegressor, GPCountRegressor])
def test_a_saved_estimator_predicts_alike(kind, tmp_path):
    table, f = steps()
    fitted = kind(prior_mean="boosting", **QUICK).fit(table, targets_for(kind, f))
    assert isinstance(fitted.model_.mean_module, OffsetMean)
    fitted.save(tmp_path / "estimator.safetensors")
    again = estimators.load(tmp_path / "estimator.safetensors")
    new, y = steps(50, seed=1)
    np.testing.assert_array_equal(fitted.predict(new), again.predict(new))
    np.testing.assert_allclose(
        fitted.predictive_log_density(new, targets_for(kind, y)),
        again.predictive_log_density(new, targets_for(kind, y)),
    )


def test_it_knows_what_trees_know():
    table, f = steps(400)
    new, truth = steps(400, seed=1)
    y, unseen = targets_for(GPClassifier, f), targets_for(GPClassifier, truth)
    densities = {}
    for mean in (None, "boosting"):
        fitted = GPClassifier(prior_mean=mean, **QUICK).fit(table, y)
        densities[mean] = float(fitted.predictive_log_density(new, unseen).mean())
    assert densities["boosting"] > densities[None] + 0.05


def test_several_classes_and_structures_that_compete():
    table, f = steps(300)
    y = (f > 0).astype(int) + 2 * (table["a"] > 0.5).to_numpy()
    fitted = GPClassifier(
        prior_mean="boosting", max_iterations=2, fit_options={"structures": [itergp_structure()]}
    ).fit(table, y)
    assert fitted.comparison_ is not None
    assert fitted.model_.train_inputs[0].shape[1] == fitted.encoder_.num_encoded + 4
    assert fitted.score(table, y) > 0.9


def itergp_structure():
    from itergp.learning import Structure

    return Structure("laplacian", "ranks")


def test_in_a_pipeline():
    table, f = steps()
    encoded = make_column_transformer((OneHotEncoder(sparse_output=False), ["level"]), remainder="passthrough")
    pipeline = clone(make_pipeline(encoded, GPClassifier(prior_mean="boosting", **QUICK)))
    y = targets_for(GPClassifier, f)
    assert pipeline.fit(table, y).score(table, y) > 0.7


@pytest.mark.filterwarnings("ignore:Predictions should be better")  # after three steps they are not
def test_rows_can_be_added():
    table, f = steps()
    y = targets_for(GPRegressor, f)
    fitted = GPRegressor(likelihood="gaussian", prior_mean="boosting", **QUICK).fit(table[:150], y[:150])
    fitted.partial_fit(table[150:], y[150:])
    assert len(fitted.model_.train_targets) == 200


@pytest.mark.parametrize(
    ("options", "rows", "message"),
    [
        ({"prior_mean": "trees"}, 100, "must be 'boosting' or None"),
        ({"prior_mean": "boosting"}, 30, "needs 50 rows or more"),
    ],
)
def test_what_cannot_be_is_refused(options, rows, message):
    table, f = steps(rows)
    with pytest.raises(InputError, match=message):
        GPRegressor(**options, **QUICK).fit(table, f)


def test_a_mean_for_more_functions_than_columns():
    mean = OffsetMean([1], constant=[0.5, -2.0], weight=2.0)
    torch.testing.assert_close(mean(torch.tensor([[9.0, 3.0]])), torch.tensor([[6.5], [-2.0]]))
    assert mean.for_latents(1)(torch.tensor([[9.0, 3.0]])).tolist() == [6.5]
    with pytest.raises(InputError, match="at most one for each"):
        OffsetMean([0, 1], constant=[0.0])
