"""Groups of mixed models: terms of the kernel with a variance of their own, pooled as far as the data say."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
import torch

from itergp import InputError
from itergp.learning import InputColumns
from itergp.learning.structures import KERNELS, Structure, with_random_effects
from itergp.sklearn import GPClassifier, GPCountRegressor, GPOrdinalClassifier, GPRegressor, GPSurvival, load
from itergp.sklearn.kernels import KERNELS as NAMES
from itergp.solvers import DenseNewton
from itergp.tables import GroupColumn, TableEncoder

OPTIONS = {"kernel": "matern32", "likelihood": "gaussian", "max_iterations": 15}


def make_pupils(num_rows: int = 160, seed: int = 0, num_schools: int = 16):
    """A table of pupils, and marks that depend on income, its slope in their school, and the school."""
    rng = np.random.default_rng(seed)
    school, income = rng.integers(0, num_schools, num_rows), rng.normal(size=num_rows)
    effect, slope = np.random.default_rng(99).normal(size=(2, num_schools))
    X = pandas.DataFrame({"income": income, "school": school + 100, "sex": rng.choice(["f", "m"], num_rows)})
    return X, 50.0 + 10.0 * (np.sin(income) + effect[school] + slope[school] * income + 0.3 * rng.normal(size=num_rows))


# ------------------------------------------------------------------------ tables
def test_groups_are_codes_whatever_they_hold():
    X, _ = make_pupils()
    for groups in ("school", ["school"], 1, {"school": ["income"]}, {"school": "income"}):
        encoder = TableEncoder(groups=groups).fit(X)
        column = encoder.columns_[1]
        assert isinstance(column, GroupColumn)
        assert (column.role, column.coding, column.num_levels) == ("group", "codes", 16)
        assert column.slopes == (("income",) if isinstance(groups, dict) else ())
        np.testing.assert_array_equal(encoder.transform(X)[:, 1], X.school - 100)
    text = TableEncoder(groups="sex").fit(X)
    assert set(text.transform(X)[:, 2]) == {0.0, 1.0}
    again = TableEncoder.rebuild(**TableEncoder(groups={"school": ["income"]}).fit(X).to_fields())
    np.testing.assert_array_equal(again.transform(X), encoder.transform(X))
    assert again.columns_[1].slopes == ("income",)


def test_unseen_groups_are_each_by_itself_and_gaps_are_one():
    X, _ = make_pupils()
    encoder = TableEncoder(groups="school").fit(X)
    new = pandas.DataFrame({"income": 0.0, "school": [100, 7, 8, 7, None], "sex": "f"})
    codes = encoder.transform(new)[:, 1]
    assert codes[0] == 0.0
    assert codes[1] == codes[3] != codes[2]
    assert min(codes[1:4]) >= 16.0
    assert codes[4] == -1.0
    encoder.add_groups(encoder.matched(new))
    assert sorted(encoder.transform(new)[1:4, 1]) == [16.0, 16.0, 17.0]
    np.testing.assert_array_equal(encoder.transform(X)[:, 1], X.school - 100)


@pytest.mark.parametrize(
    ("groups", "match"),
    [
        ("city", r"`groups` must be columns of `X`: 'income', 'school', 'sex', or their numbers\. Got 'city'"),
        (7, r"Got 7"),
        ({"school": ["city"]}, r"`slopes of groups` must be columns of `X`"),
        ({"school": ["school"]}, "must be those of other columns"),
        ({"school": ["sex"]}, r"columns of numbers that vary\. Got 'sex' for group 'school'"),
    ],
)
def test_what_groups_must_be(groups, match):
    X, y = make_pupils()
    with pytest.raises(InputError, match=match):
        GPRegressor(groups=groups, **OPTIONS).fit(X, y)


def test_a_kernel_of_your_own_has_its_groups():
    X, y = make_pupils()
    with pytest.raises(InputError, match="`groups` need a kernel by name"):
        GPRegressor(GPRegressor(**OPTIONS).fit(X[["income"]], y).kernel_, groups="school").fit(X, y)


# ----------------------------------------------------------------------- kernels
@pytest.mark.parametrize("name", KERNELS)
def test_terms_are_added_to_every_structure(name):
    x = torch.tensor([[0.3, 0.0], [-1.2, 0.0], [0.7, 1.0], [0.3, 2.0]]).double()
    columns = InputColumns(2, numeric=(0,), groups=(0, 1), random_effects=((1, None), (1, 0)))
    assert columns.metric == (0,)
    kernel = Structure(name).make_kernel(columns).double()
    alone = Structure(name).make_kernel(InputColumns.plain(1)).double()
    terms = list(kernel.kernels)[-2:]
    terms[0].outputscale, terms[1].kernels[1].variance = 0.7, 0.4
    same = (x[:, None, 1] == x[None, :, 1]).double()
    expected = alone(x[:, :1]).to_dense() + 0.7 * same + 0.4 * same * x[:, :1] * x[:, 0]
    torch.testing.assert_close(kernel(x).to_dense(), expected)
    assert not any("lengthscale" in n and p.requires_grad for n, p in terms[0].named_parameters())


def test_groups_alone_are_the_kernel():
    columns = InputColumns(1, numeric=(), groups=(0,), random_effects=((0, None),))
    kernel = with_random_effects(None, columns, torch.Size([]))
    kernel.outputscale = 2.0
    codes = torch.tensor([[0.0], [1.0], [0.0]])
    torch.testing.assert_close(kernel(codes).to_dense(), 2.0 * torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]]))


# --------------------------------------------------------------------- estimators
def test_groups_and_their_slopes_say_something():
    X, y = make_pupils(320)
    found = []
    for groups in (None, "school", {"school": ["income"]}):
        table = X if groups else X.drop(columns="school")
        regressor = GPRegressor(groups=groups, **OPTIONS).fit(table[:240], y[:240])
        found.append(regressor.predictive_log_density(table[240:], y[240:]).mean())
    assert found[1] > found[0] + 0.05
    assert found[2] > found[1] + 0.2


def test_one_way_analysis_of_variance_is_partial_pooling():
    # With groups alone, the posterior of a group's mean is the textbook's weighted mean.
    rng = np.random.default_rng(0)
    school = np.repeat(np.arange(6), [1, 2, 4, 8, 16, 32])
    y = rng.normal(size=6)[school] + 0.5 * rng.normal(size=63)
    exact = {"optimizer": None, "normalize_y": False, "solver": DenseNewton(), "likelihood": "gaussian"}
    regressor = GPRegressor("rbf", groups=0, **exact).fit(school[:, None], y)
    between, noise = float(regressor.kernel_.outputscale.detach()), float(regressor.model_.likelihood.noise.detach())
    count, centre = np.bincount(school), y.mean()  # where the constant mean starts
    pull = count * between / (count * between + noise)
    expected = centre + pull * (np.bincount(school, y) / count - centre)
    mean, variance = regressor.latent_mean_and_variance(np.arange(6)[:, None])
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    np.testing.assert_allclose(variance, between * noise / (count * between + noise), rtol=1e-6)
    mean, covariance = regressor.predict([[0], [77], [78], [77]], return_cov=True)  # unseen: the prior, each by itself
    np.testing.assert_allclose(mean[1:], centre, rtol=1e-6)
    np.testing.assert_allclose(np.diag(covariance)[1:], between + noise, rtol=1e-6)
    np.testing.assert_allclose(covariance[1, 1:], [between + noise, 0.0, between], rtol=1e-6, atol=1e-9)


def test_new_groups_join_and_are_kept(tmp_path):
    X, y = make_pupils(240)
    old = X.school < 112
    regressor = GPRegressor(groups="school", **OPTIONS).fit(X[old], y[old])
    before = regressor.predict(X[~old], return_std=True)[1]
    regressor.partial_fit(X[~old], y[~old])
    assert regressor.columns_[1].num_levels == 16
    assert (regressor.predict(X[~old], return_std=True)[1] < before).all()
    assert np.corrcoef(regressor.predict(X[~old]), y[~old])[0, 1] > 0.7
    regressor.save(tmp_path / "file")
    again = load(tmp_path / "file")
    np.testing.assert_array_equal(again.predict(X), regressor.predict(X))


@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_by_name_takes_groups(name):
    X, y = make_pupils(40)
    regressor = GPRegressor(name, groups={"school": ["income"]}, likelihood="gaussian", max_iterations=2).fit(X, y)
    assert np.isfinite(regressor.predict(X)).all()


@pytest.mark.parametrize("make", [GPClassifier, GPOrdinalClassifier, GPCountRegressor, GPSurvival])
def test_every_estimator_takes_groups(make):
    X, y = make_pupils(60)
    y = np.digitize(y, [45.0, 55.0]) + 1
    y = np.column_stack([y > 1, y]) if make is GPSurvival else y
    estimator = make(kernel="rbf", groups="school", max_iterations=2).fit(X, y)
    assert estimator.columns_[1].role == "group"
    assert len(estimator.predict(X)) == 60


def test_structures_compete_with_groups():
    X, y = make_pupils(120)
    regressor = GPRegressor(groups={"school": ["income"]}, likelihood="gaussian", max_iterations=5).fit(X, y)
    assert regressor.comparison_ is not None
    assert regressor.score(X, y) > 0.7
