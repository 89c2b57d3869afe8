"""Estimators on tables: what the kernel of encoded columns is, and what does not depend on how a table is written."""

from __future__ import annotations

import gpytorch
import numpy as np
import pandas
import pytest
from gpytorch.kernels import MaternKernel, ProductKernel, RBFKernel, ScaleKernel
from sklearn.compose import make_column_transformer
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from itergp import InputError, ItergpWarning
from itergp.kernels import AdditiveLaplacianKernel, CategoricalKernel, TiedMaternKernel
from itergp.sklearn import GPClassifier, GPCountRegressor, GPOrdinalClassifier, GPRegressor, load, model, saving
from itergp.sklearn.kernels import KERNELS
from itergp.solvers import LinearTimeNewton, SubspaceNewton

ROWS = 60
each = pytest.mark.parametrize("make", [GPClassifier, GPOrdinalClassifier, GPRegressor, GPCountRegressor])


def make_table(num_rows: int = ROWS, seed: int = 0):
    """Numbers, few levels, many levels, gaps, and targets that suit every estimator."""
    rng = np.random.default_rng(seed)
    city, street = rng.choice(["Oslo", "Rome", "Bern"], num_rows), rng.choice([f"s{i:02}" for i in range(14)], num_rows)
    table = pandas.DataFrame(
        {"x": rng.normal(size=num_rows), "city": city, "street": street, "z": rng.normal(size=num_rows)}
    )
    table.loc[::9, "z"] = np.nan
    signal = np.sin(2.0 * table.x) + 1.5 * (table.city == "Rome") + 0.8 * (table.street < "s05")
    return table, np.digitize(signal, [0.3, 1.3]), signal


def fitted(make, X, y, kernel="matern32", **options):
    return make(kernel=kernel, max_iterations=2, **options).fit(X, y)


def outputs(estimator, X):
    return estimator.predict_proba(X) if hasattr(estimator, "classes_") else estimator.predict_quantiles(X)


def test_encoded_columns_that_mean_one_thing_share_a_lengthscale():
    X, y, _ = make_table()
    base = fitted(GPClassifier, X, y).kernel_.base_kernel
    assert isinstance(base, ProductKernel)
    measured, equal = base.kernels
    assert isinstance(measured, TiedMaternKernel)
    assert measured.active_dims.tolist() == [0, 1, 2, 3, 5, 6]
    assert measured.groups == (0, 1, 1, 1, 2, 3)  # x, city, z, and where z has gaps
    assert isinstance(equal, CategoricalKernel)
    assert equal.active_dims.tolist() == [4]
    plain = fitted(GPClassifier, X[["x"]].assign(y=X.x**2), y).kernel_.base_kernel
    assert type(plain) is MaternKernel
    assert plain.active_dims is None
    assert plain.lengthscale.shape == (1, 2)


@pytest.mark.filterwarnings("ignore:The posterior must be found")  # rows that are all equal leave a kernel few ranks
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("ard", [None, False])
def test_every_kernel_by_name_takes_levels(name, ard):
    X, _, signal = make_table()
    for columns in (["x", "city", "street"], ["city"], ["street"], ["x", "street"]):
        estimator = fitted(GPRegressor, X[columns], signal, kernel=name, ard=ard)
        assert np.isfinite(estimator.predict(X[columns], return_std=True)).all()


@each
def test_names_and_order_of_levels_mean_nothing(make):
    X, y, _ = make_table()
    renamed = X.assign(
        city=X.city.map({"Oslo": "c", "Rome": "a", "Bern": "b"}),
        street=X.street.map({f"s{i:02}": f"t{(5 * i) % 14:02}" for i in range(14)}),
    )
    close = {"solver": SubspaceNewton(tolerance=1e-6)}  # codes choose where it searches, and so what is left at the end
    one, other = fitted(make, renamed, y, **close), fitted(make, X, y, **close)
    np.testing.assert_allclose(outputs(one, renamed), outputs(other, X), rtol=1e-4, atol=1e-4)


def test_levels_are_two_apart_however_rare():
    X = pandas.DataFrame({"x": np.linspace(0, 1, 40), "c": ["a"] * 38 + ["b", "d"], "t": [True] * 39 + [False]})
    inputs = fitted(GPRegressor, X, X.x).model_.train_inputs[0].numpy()
    for columns in (slice(1, 4), slice(4, 5)):
        levels = np.unique(inputs[:, columns], axis=0)
        distances = np.linalg.norm(levels[:, None] - levels, axis=-1)
        np.testing.assert_allclose(distances[~np.eye(len(levels), dtype=bool)], 2.0)


def test_levels_that_matter_are_learned():
    X, y, signal = make_table(200)
    new, labels, _ = make_table(100, seed=1)
    assert GPClassifier(max_iterations=20).fit(X, y).score(new, labels) > 0.75
    assert GPRegressor(max_iterations=20).fit(X, signal).score(new, make_table(100, seed=1)[2]) > 0.8


@each
def test_files_hold_the_encoder(make, tmp_path):
    X, y, _ = make_table()
    estimator = fitted(make, X, y)
    estimator.save(tmp_path / "e")
    again = load(tmp_path / "e")
    assert again.columns_ == estimator.columns_
    np.testing.assert_array_equal(outputs(again, X[X.columns[::-1]]), outputs(estimator, X))


def test_files_of_earlier_versions_take_numbers(tmp_path, monkeypatch):
    X, y = np.random.default_rng(0).normal(size=(20, 2)), np.arange(20) % 2
    estimator = fitted(GPClassifier, X, y)
    estimator.save(tmp_path / "e")
    read = saving.read_file

    def earlier(path):
        tensors, about = read(path)
        return tensors, {name: value for name, value in about.items() if name != "encoder"}

    monkeypatch.setattr(saving, "read_file", earlier)
    old = load(tmp_path / "e")
    np.testing.assert_array_equal(old.predict_proba(X), estimator.predict_proba(X))
    with (
        pytest.warns(ItergpWarning, match="Columns without gaps in the training data should have none"),
        pytest.raises(
            InputError, match=r"must have no gaps for a model that was saved by an earlier version\. Got some"
        ),
    ):
        old.predict([[np.nan, 0.0]])


def test_a_kernel_of_your_own_reads_one_column_for_each_of_the_table():
    X, _, signal = make_table()
    X = X.assign(one=1.0)[["city", "x", "one", "street"]]
    kernel = ScaleKernel(RBFKernel(active_dims=[1])) * CategoricalKernel(2, active_dims=(0, 3))
    with pytest.warns(ItergpWarning, match=r"one value only in 1 of 4: 'one'\. They say nothing and count as zero"):
        estimator = fitted(GPRegressor, X, signal, kernel=kernel)
    assert [column.indices for column in estimator.columns_] == [(0,), (1,), (2,), (3,)]
    assert np.isfinite(estimator.predict(X)).all()
    index = ScaleKernel(RBFKernel(active_dims=[1])) * gpytorch.kernels.IndexKernel(3, active_dims=[0])
    with pytest.warns(ItergpWarning, match="one value only"):
        assert np.isfinite(fitted(GPRegressor, X, signal, kernel=index).predict(X)).all()


def test_codes_of_a_kernel_of_your_own_stay_codes():
    X, _, signal = make_table()
    kernel = ScaleKernel(RBFKernel(active_dims=[0])) * CategoricalKernel(1, active_dims=(2,))
    inputs = fitted(GPRegressor, X[["x", "z", "street"]], signal, kernel=kernel).model_.train_inputs[0]
    assert set(inputs[:, 2].tolist()) == set(range(14))


def test_new_levels_are_reported_and_one_declared_is_none():
    X, _, signal = make_table()
    seen = X.city != "Bern"
    regressor = GPRegressor(max_iterations=2).partial_fit(X[seen], signal[seen])
    with pytest.warns(
        ItergpWarning, match=r"those of the first fit\. Got others in column 'city'\. All others are taken"
    ):
        regressor.partial_fit(X[~seen], signal[~seen])
    declared = X.assign(city=X.city.astype("category"), street=X.street.astype("category"))
    GPRegressor(max_iterations=2).partial_fit(declared[seen], signal[seen]).partial_fit(declared[~seen], signal[~seen])


def test_a_row_of_weight_zero_says_nothing_of_the_columns():
    X, _, signal = make_table()
    odd = X.copy()
    odd.loc[0, ["city", "z"]] = ["Paris", 1e9]
    weights = np.r_[0.0, np.ones(ROWS - 1)]
    estimator = GPRegressor(max_iterations=2).fit(odd, signal, sample_weight=weights)
    np.testing.assert_allclose(
        estimator.predict(X), GPRegressor(max_iterations=2).fit(X[1:], signal[1:]).predict(X), rtol=1e-9
    )


def test_encoding_pipelines_work_on():
    X, y, _ = make_table()
    X = X[["x", "city"]]
    encode = make_column_transformer((OneHotEncoder(), ["city"]), remainder="passthrough", sparse_threshold=1.0)
    assert hasattr(encode.fit_transform(X), "toarray")
    scores = cross_val_score(make_pipeline(encode, GPClassifier(max_iterations=2)), X, y, cv=2)
    assert np.isfinite(scores).all()
    assert np.isfinite(cross_val_score(GPClassifier(max_iterations=2), X, y, cv=2)).all()


@pytest.mark.parametrize(
    ("kernel", "columns", "solver"),
    [(AdditiveLaplacianKernel(2), 2, SubspaceNewton), ("rbf", 2, SubspaceNewton), ("rbf", 4, LinearTimeNewton)],
)
def test_many_rows_are_conditioned_on_exactly_where_a_pass_needs_no_matrix(kernel, columns, solver, monkeypatch):
    """A pass takes linear time then; others begin with a support."""
    monkeypatch.setattr(model, "_LINEAR_ROWS", 5000)
    X = np.random.default_rng(0).normal(size=(6000, columns))
    estimator = GPClassifier(kernel, optimizer=None, approximation="laplace").fit(X, X[:, 0] > 0)
    assert type(estimator.model_.solver) is solver
