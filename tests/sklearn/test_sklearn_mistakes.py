"""Twenty common mistakes: each is understood, or gets one sentence that says what to do."""

from __future__ import annotations

import math
import re

import gpytorch
import numpy as np
import pandas
import pytest
from scipy import sparse
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.gaussian_process import kernels

from itergp import InputError, ItergpWarning
from itergp.sklearn import GPClassifier, GPCountRegressor, GPOrdinalClassifier, GPRegressor, load

ROWS = 12
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 2))
Y = np.arange(ROWS) % 2
FRAME = pandas.DataFrame(X, columns=["age", "height"])


def fitted(make=GPClassifier, X=FRAME, y=Y, **options):
    return make(max_iterations=1, **options).fit(X, y)


def _with(values, value, *where):
    values = np.array(values, dtype=object if isinstance(value, str) else float)
    values[where] = value
    return values


# mistake -> (what is done, what is said)
MISTAKES = {
    "1 text and numbers in one column": (
        lambda: fitted(X=FRAME.assign(city=["Rome", 1] * 6)),
        r"Column 'city' of `X` must hold values of one kind\. Got text \('Rome' in row 0\) and numbers \(1 in row 1\)\. Conv",
    ),
    "1 free text": (
        lambda: fitted(
            X=np.c_[np.arange(24), [f"a long text of many words about the row with number {i}" for i in range(24)]],
            y=np.arange(24) % 2,
        ),
        r"Column 1 .*Got free text: 24 different texts .*Leave it out, or make numbers of it",
    ),
    "2 infinity in X": (
        lambda: fitted(X=_with(X, math.inf, 3, 1)),
        r"Column 1 of `X` must be finite\. Got inf in row 3, infinite in 1 of 12 row\(s\)\. Drop those rows, or replace",
    ),
    "2 infinity in new rows": (lambda: fitted().predict(FRAME * math.inf), r"Column 'age' .*Got -?inf in row 0"),
    "2 NaN in y": (
        lambda: fitted(GPRegressor, y=_with(Y, math.nan, 3)),
        r"`y` must have a target in every row\. Got none in 1 of 12 row\(s\), first in row 3\. Drop those rows",
    ),
    "2 infinity in y": (
        lambda: fitted(GPRegressor, y=_with(Y, math.inf, 3)),
        r"`y` must be finite\. Got infinity in 1 of 12 row\(s\), first in row 3\. Drop those rows",
    ),
    "2 pandas' NA in y": (
        lambda: fitted(y=pandas.array([0, pandas.NA, 1] * 4, dtype="Int64")),
        r"Got none in 4 of 12 row\(s\), first in row 1\. Drop",
    ),
    "2 infinite labels": (
        lambda: fitted(y=_with(Y, math.inf, 3)),
        r"`y` must be class labels\. Got infinity in 1 of 12 row\(s\), first in row 3\. Drop those rows",
    ),
    "2 missing labels": (
        lambda: fitted(y=np.array([None, "a", "b"] * 4, dtype=object)),
        r"`y` must have a target in every row\. Got none in 4 of 12 row\(s\), first in row 0\. Drop those rows",
    ),
    "4 one class": (
        lambda: fitted(y=np.ones(ROWS)),
        r"at least two classes for GPClassifier\. Got one class only, \[1\.0\]\. Check how the rows were selected",
    ),
    "4 one level": (
        lambda: fitted(GPOrdinalClassifier, y=np.ones(ROWS)),
        r"at least two different levels .*Got one class",
    ),
    "6 real-valued labels": (
        lambda: fitted(y=X[:, 0]),
        r"`y` must be class labels\. Unknown label type: continuous, for example .*\. Use GPRegressor for real values, or",
    ),
    "7 huge values left as they are": (
        lambda: fitted(X=FRAME * 1e20, standardize=False),
        r"must be between 1e-15 and 1e\+15 in size, .*in column 'age'\. Rescale it, or pass standardize=True",
    ),
    "7 tiny values left as they are": (
        lambda: fitted(X=X * 1e-20, standardize=False),
        r"must be between 1e-15 and 1e\+15 in size, .*in column 0\. Rescale it, or pass standardize=True",
    ),
    "7 a new row out of this world": (
        lambda: fitted().predict(FRAME * 1e20),
        r"in size, or within as many standard dev",
    ),
    "8 fewer targets than rows": (
        lambda: fitted(y=Y[:5]),
        r"must have the same number of rows\. Got 12 and 5\. Select the same rows",
    ),
    "8 one-hot targets": (
        lambda: fitted(GPOrdinalClassifier, y=np.eye(ROWS)),
        r"`y` must have shape \(N,\)\. Got \(12, 12\)\. Pass one target per row, .*not a one-hot row",
    ),
    "8 one-dimensional X": (
        lambda: fitted(X=X[:, 0]),
        r"Got a 1D array of shape \(12,\)\. Reshape your data: X\.reshape\(-1, 1\) for one column",
    ),
    "8 rows of different lengths": (lambda: fitted(X=[[1.0], [2.0, 3.0]]), r"Got rows of different lengths\. Check"),
    "8 weights of another length": (
        lambda: GPClassifier().fit(X, Y, sample_weight=np.ones(3)),
        r"`sample_weight` must be one finite weight per row\. .*\(3,\), expected \(12,\).*Select the same rows",
    ),
    "8 fewer columns": (
        lambda: fitted(X=X).predict(X[:, :1]),
        r"X has 1 features, but GPClassifier is expecting 2 features as input\. Select the columns of the training data",
    ),
    "8 no y": (lambda: fitted(y=None), r"requires y to be passed, but the target y is None\. Pass one target per row"),
    "9 predict before fit": (lambda: GPClassifier().predict(X), r"instance is not fitted yet\. Call 'fit'"),
    "10 other columns": (
        lambda: fitted().predict(FRAME.rename(columns={"age": "Age"})),
        r"columns of the training data\. Got none called 'age' and 'Age', unseen at fit time\. Select them by name",
    ),
    "11 objects that are not numbers": (
        lambda: fitted(X=np.array([[{}, 1.0]] * ROWS, dtype=object)),
        r"Column 0 of `X` must be numbers, text, .* not 'dict'\. Got one in row 0\. Make columns of what is in it",
    ),
    "11 text in y": (
        lambda: fitted(GPRegressor, y=np.array(["a"] * ROWS)),
        r"`y` must be numbers\. Got <U1 values such as .*'a'.*\. Use GPClassifier for classes",
    ),
    "11 mixed labels": (
        lambda: fitted(y=np.array([1, "1"] * 6, dtype=object)),
        r"labels of one kind\. Got text and others mixed, '1' in row 1 and 1 in row 0\. Convert them: y\.astype\(str\)",
    ),
    "12 an empty frame": (
        lambda: fitted(X=FRAME[:0], y=Y[:0]),
        r"`X` must have rows and columns\. Found array with 0 sample\(s\) \(shape=\(0, 2\)\).*Check how the data",
    ),
    "12 no columns": (lambda: fitted(X=FRAME[[]]), r"Found array with 0 feature\(s\) \(shape=\(12, 0\)\)"),
    "13 duplicate columns": (
        lambda: fitted(X=pandas.concat([FRAME, FRAME[["age"]]], axis=1)),
        r"must have different names\. Got 'age' twice\. Rename or drop one",
    ),
    "14 integers too large": (
        lambda: fitted(X=np.array([[10**400, 1]] * ROWS, dtype=object)),
        r"Got one in row 0 that is not \(int too large to convert to float\)\. Rescale",
    ),
    "14 counts too large": (
        lambda: fitted(GPCountRegressor, y=np.full(ROWS, 2**62)),
        r"must be counts up to 1e\+12\. Got 4\.61e\+18\. Count in larger units",
    ),
    "15 boolean counts": (
        lambda: fitted(GPCountRegressor, y=Y > 0),
        r"must be counts\. Got booleans\. Use GPClassifier",
    ),
    "15 negative counts": (lambda: fitted(GPCountRegressor, y=Y - 1), r"must be counts, 0 or more\. Got -1\. Check"),
    "16 three-dimensional X": (
        lambda: fitted(X=X[:, :, None]),
        r"Got 3 dimensions, \(12, 2, 1\)\. Flatten every observation to one row: X\.reshape\(len\(X\), -1\)",
    ),
    "17 a device that is not there": (
        lambda: fitted(device="cuda:99"),
        r"must be a device that torch can use\. Got 'cuda:99'\. Pass 'cpu', or install",
    ),
    "17 no device": (lambda: fitted(device="gpu"), r"must be a device that torch can use\. Got 'gpu'"),
    "19 an unknown kernel": (
        lambda: fitted(kernel="matern3"),
        r"`kernel` must be one of 'auto', 'matern12', .* Got 'matern3'\. Did you mean 'matern32'\?",
    ),
    "19 a kernel's class": (
        lambda: fitted(kernel=gpytorch.kernels.RBFKernel),
        r"`kernel` must be one of .* Got <class",
    ),
    "19 a kernel for other columns": (
        lambda: fitted(kernel=gpytorch.kernels.RBFKernel(ard_num_dims=5)),
        r"as many lengthscales as `X` has columns, 2\. Got RBFKernel with 5\. Set ard_num_dims=2",
    ),
    "19 noise as a kernel": (
        lambda: fitted(kernel=kernels.RBF() + kernels.WhiteKernel()),
        r"must be made of RBF, .*Got WhiteKernel.*Leave it out: noise belongs to the likelihood",
    ),
    "20 no file": (
        lambda: load("nowhere.safetensors"),
        r"Got 'nowhere\.safetensors', which is not a file\. Check the name",
    ),
    "sparse X beyond memory": (
        lambda: fitted(X=sparse.csr_matrix((10**6, 10**6))),
        r"must fit into memory once dense\. Got 1,000,000 x 1,000,000, .*Reduce its columns with sklearn\.decomposition",
    ),
    "complex X": (lambda: fitted(X=X + 1j), r"Complex data not supported: .*Pass X\.real and X\.imag"),
    "a new label": (
        lambda: fitted().partial_fit(FRAME, Y + 5),
        r"Labels must be among the classes \[0, 1\] that GPClassifier knows\. Got \[5, 6\]\. Correct them, or fit again",
    ),
    "negative weights": (
        lambda: GPClassifier().fit(X, Y, sample_weight=-np.ones(ROWS)),
        r"must not be negative, and positive somewhere\. Got values from -1 to -1\. Drop or correct",
    ),
    "balanced weights bit by bit": (
        lambda: fitted(class_weight="balanced").partial_fit(FRAME, Y),
        r"must be a dictionary or None with partial_fit\. Got 'balanced', which needs all rows",
    ),
    "unknown class weights": (lambda: fitted(class_weight="auto"), r"a dictionary .*'balanced' or None\. Got 'auto'"),
    "an unknown optimiser": (
        lambda: fitted(optimizer="sgd"),
        r"`optimizer` must be 'auto', 'adam' or 'lbfgs', or None .*Got 'sgd'",
    ),
    "an unknown option": (
        lambda: fitted(fit_options={"lr": 1}),
        r"must be keywords of itergp\.fit: .*Got \['lr'\]\. Correct",
    ),
    "an unknown dtype": (lambda: fitted(dtype="half"), r"`dtype` must be 'auto', 'float32' or 'float64'\. Got 'half'"),
    "an unknown noise": (
        lambda: fitted(GPRegressor, likelihood="white"),
        r"`likelihood` must be one of 'auto', 'gaussian', .*Got 'white'",
    ),
    "an unknown link": (lambda: fitted(link="cauchit"), r"`link` must be .*Got 'cauchit'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_a_sentence(mistake):
    act, match = MISTAKES[mistake]
    with pytest.raises((InputError, NotFittedError, TypeError), match=match) as caught:
        act()
    assert str(caught.value).rstrip().endswith((".", "?"))
    assert len(str(caught.value)) < 420


# Mistakes that are understood.
@pytest.mark.parametrize("make", [GPClassifier, GPOrdinalClassifier, GPRegressor, GPCountRegressor])
def test_1_text_levels_and_dates_are_understood(make):
    table = FRAME.assign(
        city=["Rome", "Oslo", "Bern"] * 4,
        size=pandas.Categorical(["S", "L"] * 6, ["S", "L"], ordered=True),
        day=pandas.date_range("2024-01-01", periods=ROWS, freq="35D"),
        sunny=Y > 0,
    )
    estimator = fitted(make, X=table)
    assert np.all(np.isfinite(estimator.predict(table)))
    assert [column.role for column in estimator.columns_][:5] == ["numeric"] * 2 + ["categorical", "ordered", "date"]
    assert estimator.n_features_in_ == 6
    assert estimator.feature_names_in_.tolist() == list(table.columns)


def test_2_gaps_are_filled_and_marked():
    X_gaps = _with(X, math.nan, 3, 1)
    classifier = fitted(X=X_gaps)
    assert [column.role for column in classifier.columns_] == ["numeric", "numeric", "gap"]
    np.testing.assert_array_equal(classifier.model_.train_inputs[0][:, 2], [0, 0, 0, 2] + [0] * 8)
    assert np.isfinite(classifier.predict_proba(X_gaps)).all()


def test_2_new_gaps_are_reported():
    with pytest.warns(ItergpWarning, match=r"no value in 12 row\(s\) of column 'age', first in row 0, and in 1 other"):
        predicted = fitted().predict_proba(FRAME * math.nan)
    assert np.ptp(predicted) < 1.0
    np.testing.assert_array_equal(predicted, fitted().predict_proba(FRAME * 0.0 + FRAME.median()))


def test_10_columns_in_another_order_are_matched_by_name():
    np.testing.assert_array_equal(fitted().predict_proba(FRAME[["height", "age"]]), fitted().predict_proba(FRAME))


def test_sparse_matrices_are_taken_as_they_are():
    np.testing.assert_array_equal(
        fitted(X=sparse.csr_matrix(X)).predict_proba(sparse.csr_array(X)), fitted(X=X).predict_proba(X)
    )


def test_3_constant_columns_are_reported_and_harmless():
    with pytest.warns(
        ItergpWarning, match=r"Got one value only in 1 of 3: 'one'\. They say nothing and are left out; drop"
    ):
        classifier = fitted(X=FRAME.assign(one=1.0))
    assert np.all(np.isfinite(classifier.predict_proba(FRAME.assign(one=2.0))))


def test_5_labels_may_begin_anywhere():
    assert fitted(y=Y + 1).classes_.tolist() == [1, 2]


def test_6_labels_may_be_floats():
    assert fitted(y=Y + 1.0).predict(FRAME).dtype == np.float64


def test_8_a_column_of_targets_is_flattened():
    with pytest.warns(DataConversionWarning, match="A column-vector y was passed when a 1d array was expected"):
        classifier = fitted(y=Y[:, None])
    assert classifier.predict(FRAME).shape == (ROWS,)


def test_10_names_that_were_not_there_are_reported():
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        fitted().predict(X)


def test_11_numbers_in_an_array_of_objects_are_numbers():
    np.testing.assert_array_equal(fitted(X=X.astype(object)).predict_proba(X), fitted(X=X).predict_proba(X))


def test_14_small_integer_types_do_not_overflow():
    values = np.arange(ROWS, dtype=np.int8)[:, None] * 10
    np.testing.assert_array_equal(
        fitted(GPRegressor, X=values, y=values[:, 0]).predict(values),
        fitted(GPRegressor, X=values.astype(float), y=values[:, 0].astype(float)).predict(values),
    )


def test_15_labels_may_be_booleans():
    assert fitted(y=Y > 0).predict(FRAME).dtype == bool


def test_18_a_missing_extra_is_named():
    from itergp.checks import require_module
    from itergp.errors import MissingExtraError

    with pytest.raises(
        MissingExtraError, match=r"Flying needs nosuchpackage\. It is not installed\. Install it with `pip"
    ):
        require_module("nosuchpackage.wings", "Flying", "wings")


def test_every_number_has_a_test():
    numbers = {int(match.group()) for match in (re.match(r"\d+", name) for name in MISTAKES) if match}
    numbers |= {int(match.group(1)) for match in (re.match(r"test_(\d+)_", name) for name in globals()) if match}
    assert numbers == set(range(1, 21))
