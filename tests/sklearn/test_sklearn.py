"""The estimators do what scikit-learn asks of estimators, and agree with the models they stand for."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
import warnings

import gpytorch
import joblib
import numpy as np
import pandas
import pytest
import sklearn
import torch
from gpytorch.kernels import IndexKernel, PeriodicKernel, RBFKernel, ScaleKernel
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor, kernels
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import check_sample_weight_equivalence_on_dense_data, parametrize_with_checks

from itergp import InputError, ItergpWarning
from itergp.kernels import CategoricalKernel, LaplacianKernel, OrderedCategoricalKernel
from itergp.models import held_tensors
from itergp.sklearn import GPClassifier, GPCountRegressor, GPOrdinalClassifier, GPRegressor, GPSurvival, load
from itergp.sklearn.checks import as_column, as_real
from itergp.sklearn.kernels import KERNELS, raw_columns, translate
from itergp.sklearn.noise import COUNTS, NOISES
from itergp.solvers import DenseNewton, IterNCGP, SubspaceNewton

ESTIMATORS = (GPClassifier, GPOrdinalClassifier, GPRegressor, GPCountRegressor)
each = pytest.mark.parametrize("make", ESTIMATORS)


def make_table(num_rows: int = 80, seed: int = 0):
    """Inputs of very different scales, and a signal."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(num_rows, 3)) * [1.0, 1e4, 1e-5] + [0.0, 1e6, 1.0]
    signal = np.sin(2.0 * X[:, 0]) + (X[:, 1] - 1e6) / 1e4
    return X, signal + 0.2 * rng.normal(size=num_rows), rng


def make_data(make, num_rows: int = 80, seed: int = 0):
    """Inputs and targets that fit an estimator."""
    X, signal, rng = make_table(num_rows, seed)
    if make is GPClassifier:
        return X, np.array(["low", "medium", "top"])[np.digitize(signal, [-0.5, 0.5])]
    if make is GPOrdinalClassifier:
        return X, np.digitize(signal, [-1.0, 0.0, 1.0]) + 1
    return (X, 50.0 + 10.0 * signal) if make is GPRegressor else (X, rng.poisson(np.exp(0.7 * signal + 1.0)))


def outputs(estimator, X):
    """Everything an estimator predicts."""
    if is_classifier(estimator):
        return [estimator.predict_proba(X)]
    return [*estimator.predict(X, return_std=True), estimator.predict_quantiles(X)]


def assert_same(one, other, X):
    for left, right in zip(outputs(one, X), outputs(other, X), strict=True):
        np.testing.assert_array_equal(left, right)


# ------------------------------------------------------- scikit-learn's checks
REAL_VALUED = (  # checks whose targets are real numbers
    "check_n_features_in_after_fitting",
    "check_regressors_train",
    "check_regressor_data_not_an_array",
    "check_regressors_no_decision_function",
    "check_fit_idempotent",
    "check_fit_check_is_fitted",
    "check_n_features_in",
)


class RoundedCounts(GPCountRegressor):
    """Takes the targets of checks, which are real numbers."""

    def _target_rows(self, y):
        column = super()._target_rows(y)
        return np.round(column) if column.dtype.kind == "f" else column


class ObservedTimes(GPSurvival):
    """Takes the targets of checks, which are one column, as observed times."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output, tags.target_tags.single_output = False, True
        return tags

    def _target_rows(self, y):
        times = 1.0 + np.abs(as_real(as_column(self, y)))
        return np.column_stack([times, np.ones_like(times)])


def _explained(estimator):
    reason = (
        "learning compares hyperparameters only to so many digits, and the variational posterior of several classes draws "
        "nodes row by row; exact with both out of the way, see below"
    )
    known = {f"check_sample_weight_equivalence_on_{kind}_data": reason for kind in ("dense", "sparse")}
    counts = dict.fromkeys(
        REAL_VALUED, "targets are real numbers, which are no counts; passes with whole ones, see below"
    )
    return known | (counts if type(estimator) is GPCountRegressor else {})


@parametrize_with_checks(
    [make(max_iterations=2) for make in (*ESTIMATORS, ObservedTimes)], expected_failed_checks=_explained
)
@pytest.mark.filterwarnings("ignore::itergp.ItergpWarning", "ignore:X has feature names:UserWarning")
@pytest.mark.slow
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", REAL_VALUED)
@pytest.mark.filterwarnings("ignore::itergp.ItergpWarning", "ignore:X has feature names:UserWarning")
@pytest.mark.slow
def test_scikit_learns_checks_of_counts(name):
    getattr(estimator_checks, name)("RoundedCounts", RoundedCounts(max_iterations=2))


# Not the ordinal one, whose cutpoints start from the frequencies of rows.
@pytest.mark.parametrize("make", [GPClassifier, GPRegressor, GPCountRegressor])
@pytest.mark.filterwarnings("ignore::itergp.ItergpWarning")
def test_weights_are_repetitions(make):
    exact = make(optimizer=None, approximation="laplace", solver=SubspaceNewton(tolerance=1e-14))
    check_sample_weight_equivalence_on_dense_data(make.__name__, exact)


# ------------------------------------------------------------------- the model
@each
def test_predictions_are_those_of_the_model(make):
    X, y = make_data(make)
    estimator = make(max_iterations=3).fit(X, y)
    new = torch.as_tensor((X[:5] - X.mean(0)) / X.std(0))
    with torch.no_grad():
        predicted, latent = estimator.model_.predict(new), estimator.model_(new)
    mean, variance = estimator.latent_mean_and_variance(X[:5])
    if make is GPRegressor:
        expected = predicted.mean.numpy() * y.std() + y.mean()
        np.testing.assert_allclose(estimator.predict(X[:5]), expected)
        np.testing.assert_allclose(mean, expected)
        np.testing.assert_allclose(variance, latent.variance.numpy() * y.var())
        return
    np.testing.assert_allclose(mean, latent.mean.numpy())
    np.testing.assert_allclose(variance, latent.variance.numpy())
    if make is GPCountRegressor:
        np.testing.assert_allclose(estimator.predict(X[:5]), predicted.mean.numpy())
    else:
        np.testing.assert_allclose(estimator.predict_proba(X[:5]), predicted.probs.numpy())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_laplace_approximation_is_scikit_learns(seed):
    X, signal, _ = make_table(60, seed)
    X, y = X[:, :2] / [1.0, 1e4] - [0.0, 1e2], signal > 0
    kernel = 4.0 * kernels.RBF(1.3)
    theirs = GaussianProcessClassifier(kernel, optimizer=None).fit(X, y)
    ours = GPClassifier(
        kernel, optimizer=None, approximation="laplace", standardize=False, solver=DenseNewton(), dtype="float64"
    ).fit(X, y)
    ours.model_.mean_module.constant = 0.0  # theirs has no mean
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-3)
    evidence = ours.model_.condition().log_marginal_likelihood
    assert evidence == pytest.approx(theirs.log_marginal_likelihood_value_, rel=1e-6)


def test_one_import_is_all_that_changes():
    X, y = load_iris(return_X_y=True)
    arguments = [
        {},
        {"kernel": 1.0 * kernels.RBF(1.0), "random_state": 0},
        {"kernel": kernels.ConstantKernel(2.0) * kernels.Matern(nu=2.5), "optimizer": None, "copy_X_train": False},
        {
            "n_restarts_optimizer": 1,
            "max_iter_predict": 20,
            "warm_start": True,
            "multi_class": "one_vs_rest",
            "n_jobs": 1,
        },
    ]
    for given in arguments:
        theirs = GaussianProcessClassifier(**given)
        ours = GPClassifier(**given, max_iterations=2)
        assert set(theirs.get_params()) - set(ours.get_params()) == set()
        ours.fit(X[::3], y[::3])
        assert ours.score(X, y) > 0.9
        assert ours.n_classes_ == 3
        for shown, own in zip(ours.kernel_.parameters(), ours.model_.covar_module.parameters(), strict=True):
            assert shown is own


def test_what_the_evidence_is():
    X, y = make_data(GPRegressor)
    regressor = GPRegressor(kernel="matern32", max_iterations=2, solver=DenseNewton()).fit(X, y)
    with torch.no_grad():
        prior = regressor.model_.likelihood.marginal(regressor.model_.train()(*regressor.model_.train_inputs))
        expected = prior.log_prob(regressor.model_.train_targets) - len(y) * np.log(y.std())
    assert regressor.log_marginal_likelihood_value_ == pytest.approx(float(expected), rel=1e-8)
    for approximation, name in (("laplace", "log_marginal_likelihood"), ("variational", "elbo")):
        classifier = GPClassifier(kernel="matern32", approximation=approximation, max_iterations=2).fit(X, y > 50)
        assert classifier.log_marginal_likelihood_value_ == getattr(classifier.model_.solution, name)


@pytest.mark.filterwarnings("ignore:Inputs should say something")  # by 40 rows whose gains have heavy tails
@pytest.mark.parametrize("name", NOISES)
def test_every_noise_recovers_a_function(name):
    rng = np.random.default_rng(0)
    X = np.linspace(0.0, 6.0, 120)[:, None]
    truth = 100.0 + 20.0 * np.sin(X[:, 0])
    y = truth + rng.normal(size=120)
    if name in ("student_t", "laplace"):
        y[::15] += 200.0
    regressor = GPRegressor(likelihood=name, max_iterations=15).fit(X, y)
    mean, _ = regressor.latent_mean_and_variance(X)
    mean = mean[:, 0] if name == "heteroscedastic" else mean
    assert np.sqrt(np.mean((mean - truth) ** 2)) < 4.0
    assert np.all(np.diff(regressor.predict_quantiles(X), axis=1) > 0.0)


def test_noise_that_varies_is_seen():
    rng = np.random.default_rng(0)
    X = rng.uniform(0.0, 1.0, size=(200, 1))
    y = 1000.0 + (1.0 + 9.0 * (X[:, 0] > 0.5)) * rng.normal(size=200)
    _, std = (
        GPRegressor(likelihood="heteroscedastic", max_iterations=20).fit(X, y).predict([[0.2], [0.8]], return_std=True)
    )
    assert std[1] > 3.0 * std[0]


@pytest.mark.parametrize("name", COUNTS)
def test_every_count_distribution_recovers_a_rate(name):
    rng = np.random.default_rng(0)
    X = np.linspace(0.0, 6.0, 200)[:, None]
    rate = 10.0 + 8.0 * np.sin(X[:, 0])
    regressor = GPCountRegressor(distribution=name, max_iterations=15).fit(X, rng.poisson(rate))
    assert np.mean(np.abs(regressor.predict(X) - rate) / rate) < 0.25
    assert regressor.score(X, rng.poisson(rate)) > 0.4


def test_exposures_as_weights():
    rng = np.random.default_rng(0)
    X, exposure = np.linspace(0.0, 1.0, 60)[:, None], rng.integers(1, 5, 60)
    events = rng.poisson(3.0 * exposure)
    split = np.repeat(np.arange(60), exposure)  # each row as `exposure` rows with a share of the events
    options = {"optimizer": None, "solver": DenseNewton()}
    rates = GPCountRegressor(**options).fit(X, events / exposure, sample_weight=exposure)
    whole = GPCountRegressor(**options).fit(X[split], (events / exposure)[split], sample_weight=np.ones(len(split)))
    np.testing.assert_allclose(rates.predict(X), whole.predict(X), rtol=1e-6)


def test_counts_integrate_what_held_out_rows_prefer():
    X = np.random.default_rng(0).normal(size=(240, 2))
    y = np.random.default_rng(1).poisson(np.exp(np.sin(2.0 * X[:, 0]) + 0.5 * X[:, 1]))
    estimator = GPCountRegressor(kernel="matern32", max_iterations=5).fit(X, y)
    calibration = estimator.result_.calibration
    assert calibration is not None
    assert estimator.model_.tempering == calibration.tempering
    best = max(calibration.log_densities.values())
    assert calibration.log_densities[calibration.approximation, calibration.tempering] > best - 0.1


def test_counts_are_whole():
    X, y = make_data(GPCountRegressor, 30)
    y = y.astype(float)
    regressor = GPCountRegressor("rbf", max_iterations=2).fit(X, y)
    y[[4, 9]] = 2.5
    for act in (regressor.fit, regressor.partial_fit):
        with pytest.raises(
            InputError, match=r"whole numbers\. Got 2\.5 in row 4, and such in 2 of 30 row\(s\)\. Use GPRegr"
        ):
            act(X, y)
    regressor.fit(X, y, sample_weight=np.full(30, 2.0))  # rates


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (GPCountRegressor, "distribution", "negative_binomial"),
        (GPSurvival, "distribution", "log_logistic"),
        (GPOrdinalClassifier, "levels", ["low", "high"]),
        (GPOrdinalClassifier, "levels", np.array([3, 1])),
    ],
)
def test_the_kernel_is_the_first_argument(make, name, value):
    assert make("rbf").kernel == "rbf"
    assert next(iter(inspect.signature(make).parameters)) == "kernel"
    with pytest.warns(
        DeprecationWarning, match=f"The first argument of {make.__name__} is the kernel now.*Pass {name}="
    ):
        old = make(value, kernel="rbf", max_iterations=3)
    assert (old.get_params()[name] is value, old.kernel, old.max_iterations) == (True, "rbf", 3)
    assert clone(old).get_params().keys() == old.get_params().keys()
    assert make(kernels.RBF(2.0)).kernel == kernels.RBF(2.0)


def _exposed(num_rows: int = 80):
    rng = np.random.default_rng(0)
    X, exposure = np.linspace(0.0, 6.0, num_rows)[:, None], rng.uniform(0.5, 5.0, num_rows)
    rate = 5.0 + 4.0 * np.sin(X[:, 0])
    return X, rng.poisson(rate * exposure), exposure, rate


def test_exposures_of_poisson_counts_are_weights_of_rates():
    X, y, exposure, _ = _exposed()
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    options = {"optimizer": None, "solver": DenseNewton(), "standardize": False, "kernel": kernel}
    counts = GPCountRegressor(**options).fit(X, y, exposure=exposure)
    rates = GPCountRegressor(**options).fit(X, y / exposure, sample_weight=exposure)
    np.testing.assert_allclose(counts.predict(X), rates.predict(X), rtol=1e-5)
    assert counts.score(X, y, exposure=exposure) == pytest.approx(
        rates.score(X, y / exposure, sample_weight=exposure), rel=1e-5
    )


@pytest.mark.parametrize("name", COUNTS)
def test_exposures_scale_counts(name):
    X, y, exposure, rate = _exposed()
    regressor = GPCountRegressor(distribution=name, max_iterations=10).fit(X, y, exposure=exposure)
    assert np.mean(np.abs(regressor.predict(X) - rate) / rate) < 0.2
    mean, std = regressor.predict(X, return_std=True, exposure=exposure)
    np.testing.assert_allclose(mean, regressor.predict(X) * exposure, rtol=1e-4)
    np.testing.assert_allclose(regressor.predict(X, exposure=3.0), 3.0 * regressor.predict(X), rtol=1e-4)
    low, high = regressor.predict_quantiles(X, [0.05, 0.95], exposure=exposure).T
    assert 0.8 <= np.mean((low <= y) & (y <= high)) <= 1.0
    assert np.all((low < mean) & (mean < high) & (std > 0.0))
    assert regressor.score(X, y, exposure=exposure) > 0.6


def test_new_rows_with_exposures(tmp_path):
    X, y, exposure, _ = _exposed()
    options = {"optimizer": None, "solver": DenseNewton(), "standardize": False}
    whole = GPCountRegressor(**options).fit(X, y, exposure=exposure)
    parts = GPCountRegressor(**options).partial_fit(X[:50], y[:50], exposure=exposure[:50])
    parts.partial_fit(X[50:], y[50:], exposure=exposure[50:])
    np.testing.assert_allclose(parts.model_.train_targets[:, 1], exposure)
    parts.model_.mean_module.load_state_dict(whole.model_.mean_module.state_dict())
    parts.model_.covar_module.load_state_dict(whole.model_.covar_module.state_dict())
    np.testing.assert_allclose(parts.predict(X), whole.predict(X), rtol=1e-4)
    parts.save(tmp_path / "counts")
    again = load(tmp_path / "counts").partial_fit(X[:2], y[:2])
    np.testing.assert_allclose(again.model_.train_targets[-2:, 1], 1.0)
    without = GPCountRegressor(**options).fit(X, y)
    with pytest.raises(InputError, match=r"`exposure` of new rows needs a model .* Fit it with exposure=1\.0\."):
        without.partial_fit(X, y, exposure=exposure)


def test_exposures_go_through_a_pipeline():
    X, y, exposure, _ = _exposed(60)
    options = {"max_iterations": 3, "standardize": False}
    alone = GPCountRegressor(**options).fit(StandardScaler().fit_transform(X), y, exposure=exposure)
    expected = alone.predict(StandardScaler().fit_transform(X), exposure=exposure)
    named = make_pipeline(StandardScaler(), GPCountRegressor(**options))
    named.fit(X, y, gpcountregressor__exposure=exposure)
    np.testing.assert_allclose(named.predict(X, exposure=exposure), expected)
    with sklearn.config_context(enable_metadata_routing=True):
        regressor = GPCountRegressor(**options)
        for request in (regressor.set_fit_request, regressor.set_predict_request, regressor.set_score_request):
            request(exposure=True)
        routed = make_pipeline(StandardScaler(), regressor).fit(X, y, exposure=exposure)
        np.testing.assert_allclose(routed.predict(X, exposure=exposure), expected)
        assert routed.score(X, y, exposure=exposure) == pytest.approx(
            alone.score(StandardScaler().fit_transform(X), y, exposure=exposure)
        )
        folds = KFold(2, shuffle=True, random_state=0)
        scores = cross_validate(routed, X, y, cv=folds, params={"exposure": exposure})["test_score"]
        assert scores.min() > 0.2


@pytest.mark.parametrize(
    ("exposure", "match"),
    [
        ([1.0, 2.0], r"`exposure` must be a number, or one per row with shape \(80,\)\. Got shape \(2,\)"),
        (0.0, r"`exposure` must be positive and finite\. Got 0 in 1 of 1 row\(s\)\. Drop those rows"),
        (np.r_[-1.0, np.ones(79)], r"positive and finite\. Got -1 in 1 of 80"),
        (np.r_[np.nan, np.ones(79)], r"positive and finite\. Got nan in 1 of 80"),
        ("a lot", r"`exposure` must be numbers\. Got str"),
    ],
    ids=["rows", "zero", "negative", "nan", "text"],
)
def test_exposures_that_are_none(exposure, match):
    X, y, _, _ = _exposed()
    with pytest.raises(InputError, match=match):
        GPCountRegressor().fit(X, y, exposure=exposure)
    with pytest.raises(InputError, match=match):
        GPCountRegressor(max_iterations=1).fit(X, y).predict(X, exposure=exposure)


# ----------------------------------------------------------------------- labels
LABELS = {
    "text": np.array(["no", "yes"]),
    "objects": np.array(["no", "yes"], dtype=object),
    "booleans": np.array([False, True]),
    "from 1": np.array([1, 2]),
    "floats": np.array([1.0, 2.0]),
    "negative": np.array([-1, 1]),
    "three of 1..C": np.array([1, 2, 3]),
    "large": np.array([2**40, 2**62]),
    "small type": np.array([3, 200], dtype=np.uint8),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("make", [GPClassifier, GPOrdinalClassifier])
@pytest.mark.filterwarnings("ignore:`levels` should say")
def test_labels_of_any_kind(make, kind):
    labels = LABELS[kind]
    X, signal, _ = make_table(60)
    index = np.digitize(signal, [-0.5, 0.5])[: len(X)] % len(labels)
    estimator = make(max_iterations=2).fit(X, labels[index])
    np.testing.assert_array_equal(estimator.classes_, labels)
    assert estimator.classes_.dtype == labels.dtype
    predicted = estimator.predict(X)
    assert predicted.dtype == labels.dtype
    assert np.mean(predicted == labels[index]) > 0.6
    coded = make(max_iterations=2).fit(X, index)
    np.testing.assert_array_equal(coded.predict_proba(X), estimator.predict_proba(X))


def test_levels_have_an_order_and_columns_that_of_scikit_learn():
    X, y = make_data(GPOrdinalClassifier)
    names = np.array(["poor", "fair", "good", "excellent"])
    estimator = GPOrdinalClassifier(levels=names, max_iterations=5).fit(X, names[y - 1])
    assert estimator.levels_.tolist() == names.tolist()
    assert estimator.classes_.tolist() == sorted(names)
    numbered = GPOrdinalClassifier(max_iterations=5).fit(X, y)
    for level, name in enumerate(names):
        column = estimator.predict_proba(X)[:, estimator.classes_.tolist().index(name)]
        np.testing.assert_array_equal(column, numbered.predict_proba(X)[:, level])
    np.testing.assert_array_equal(estimator.predict_quantiles(X), names[numbered.predict_quantiles(X) - 1])
    own = log_loss(names[y - 1], estimator.predict_proba(X), labels=estimator.classes_)
    assert own == pytest.approx(log_loss(y, numbered.predict_proba(X)))


def test_an_ordered_categorical_brings_its_order():
    X, y = make_data(GPOrdinalClassifier)
    names = ["poor", "fair", "good", "excellent"]
    column = pandas.Series(pandas.Categorical.from_codes(y - 1, names, ordered=True))
    assert GPOrdinalClassifier(max_iterations=2).fit(X, column).levels_.tolist() == names
    assert GPOrdinalClassifier(max_iterations=2).partial_fit(X, column).levels_.tolist() == names


def test_class_weights():
    X, y = make_data(GPClassifier)
    plain = GPClassifier(kernel="matern32", max_iterations=2).fit(X, y)
    heavy = GPClassifier(kernel="matern32", max_iterations=2, class_weight={"top": 50.0}).fit(X, y)
    assert heavy.predict_proba(X)[:, 2].mean() > plain.predict_proba(X)[:, 2].mean() + 0.05
    counts = np.array([np.sum(y == label) for label in plain.classes_])
    by_hand = GPClassifier(max_iterations=2).fit(
        X, y, sample_weight=(len(y) / 3 / counts)[np.searchsorted(plain.classes_, y)]
    )
    balanced = GPClassifier(max_iterations=2, class_weight="balanced").fit(X, y)
    np.testing.assert_allclose(balanced.predict_proba(X), by_hand.predict_proba(X), rtol=1e-6)


# ------------------------------------------------------------------- new rows
@each
def test_new_rows(make):
    X, y = make_data(make, 120)
    solver = SubspaceNewton(tolerance=1e-10, covariance_rank=400)
    estimator = make(optimizer=None, approximation="laplace", solver=solver).fit(X[:100], y[:100])
    kept = {name: value.clone() for name, value in estimator.model_.state_dict().items()}
    before = estimator.kernel_passes_
    estimator.partial_fit(X[100:], y[100:])
    assert estimator.kernel_passes_ > before
    assert estimator.model_.train_inputs[0].shape[0] == 120
    assert all(torch.equal(value, kept[name]) for name, value in estimator.model_.state_dict().items())
    # The same as conditioning on all rows at these hyperparameters.
    whole = copy.deepcopy(estimator)
    whole.model_.set_train_data(*whole.model_.train_inputs, whole.model_.train_targets)
    for left, right in zip(outputs(estimator, X), outputs(whole, X), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-4)


def test_the_first_partial_fit_is_fit_and_may_name_all_classes():
    X, y = make_data(GPClassifier)
    known = y != "top"
    classifier = GPClassifier(max_iterations=2).partial_fit(X[known], y[known], classes=["top", "low", "medium"])
    assert classifier.classes_.tolist() == ["low", "medium", "top"]
    before = classifier.predict_proba(X[~known])[:, 2]
    classifier.partial_fit(X[~known], y[~known])
    assert np.all(classifier.predict_proba(X[~known])[:, 2] > before)
    assert_same(GPRegressor(max_iterations=2).partial_fit(X, X[:, 0]), GPRegressor(max_iterations=2).fit(X, X[:, 0]), X)


@each
def test_rows_one_by_one_learn_what_all_of_them_would(make):
    X, y = make_data(make, 34)
    options = {"max_iterations": 2}
    online = make(**options)
    first = {"classes": np.unique(y)} if is_classifier(online) else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ItergpWarning)  # one class so far
        online.partial_fit(X[:1], y[:1], **first)
        learned = [online._learned_rows]
        for i in range(1, 34):
            online.partial_fit(X[i : i + 1], y[i : i + 1])
            learned.append(online._learned_rows)
    assert sorted(set(learned)) == [1, 2, 4, 8, 16, 32]
    np.testing.assert_allclose(online._known_rows()[0], X, rtol=1e-9)
    together = make(**options)
    together = together.partial_fit(X[:32], y[:32], **first)
    together.partial_fit(X[32:], y[32:])
    for left, right in zip(outputs(online, X), outputs(together, X), strict=True):
        np.testing.assert_allclose(left, right, rtol=2e-2, atol=2e-2)


def test_a_first_row_alone_fixes_no_scale():
    rng = np.random.default_rng(0)
    X = rng.uniform(0.0, 10.0, size=(40, 1))
    y = np.sin(X[:, 0])
    online = GPRegressor(max_iterations=10)
    online.partial_fit(X[:1], y[:1])
    assert online.kernel_.base_kernel.lengthscale.item() > 0.1
    for i in range(1, 40):
        online.partial_fit(X[i : i + 1], y[i : i + 1])
    new = np.linspace(0.5, 9.5, 30)[:, None]
    assert online.score(new, np.sin(new[:, 0])) > 0.9


def test_hyperparameters_from_few_rows_are_learned_again_after_loading(tmp_path):
    X, y = make_data(GPRegressor, 30)
    weights = np.linspace(0.5, 1.5, 30)
    GPRegressor(max_iterations=2).fit(X[:10], y[:10], weights[:10]).save(tmp_path / "few")
    again = load(tmp_path / "few").partial_fit(X[10:15], y[10:15])
    assert again._learned_rows == 10
    again.partial_fit(X[15:], y[15:])
    assert again._learned_rows == 30
    np.testing.assert_allclose(again._known_rows()[2][:10], weights[:10])
    np.testing.assert_allclose(again._known_rows()[1], y, rtol=1e-9)


# -------------------------------------------------------- columns in their own units
GK = gpytorch.kernels


def _periodic(**options) -> GK.Kernel:
    kernel = GK.PeriodicKernel(**options)
    kernel.period_length = 12.0
    return kernel


RAW = {  # kernels of three columns, and the columns that must stay as they are
    "index": (lambda: GK.ScaleKernel(GK.RBFKernel(active_dims=[0])) * GK.IndexKernel(4, active_dims=[2]), [2]),
    "scaled index": (lambda: GK.RBFKernel() * GK.ScaleKernel(GK.IndexKernel(4, active_dims=[2])), [2]),
    "period": (lambda: GK.ScaleKernel(_periodic(active_dims=[1])) + GK.RBFKernel(), [1]),
    "period of one of some": (
        lambda: GK.ScaleKernel(GK.RBFKernel() * _periodic(active_dims=[0]), active_dims=[1, 2]),
        [1],
    ),
    "period to learn": (lambda: GK.ScaleKernel(GK.PeriodicKernel()), []),
    "inducing points": (lambda: GK.InducingPointKernel(GK.RBFKernel(), torch.zeros(2, 3), None), [0, 1, 2]),
    "categories": (lambda: CategoricalKernel(2, active_dims=[0, 2]) * LaplacianKernel(active_dims=[1]), [0, 2]),
    "levels": (lambda: GK.ScaleKernel(OrderedCategoricalKernel(4, active_dims=[1])) + GK.RBFKernel(), [1]),
    "cylinder": (lambda: GK.CylindricalKernel(3, GK.MaternKernel()), [0, 1, 2]),
    "grid": (lambda: GK.GridInterpolationKernel(GK.RBFKernel(), 8, grid_bounds=[(0.0, 1.0)], active_dims=[1]), [1]),
    "grid to fit": (lambda: GK.GridInterpolationKernel(GK.RBFKernel(), 8, num_dims=3), []),
    "scikit-learn": (lambda: kernels.RBF(1.0), []),
    "name": (lambda: "rbf", []),
}


@pytest.mark.parametrize("name", RAW)
def test_columns_that_a_kernel_reads_in_their_own_units_are_not_standardised(name):
    make, expected = RAW[name]
    assert np.flatnonzero(raw_columns(make(), 3)).tolist() == expected


def test_standardising_leaves_categories_and_periods_alone():
    rng = np.random.default_rng(0)
    month, group = np.arange(96.0), rng.integers(0, 4, 96)
    X, y = np.c_[month, group], np.sin(month * 2 * np.pi / 12) + np.array([-2.0, 2.0, -2.0, 2.0])[group]
    kernel = GK.ScaleKernel(_periodic(active_dims=[0])) + GK.IndexKernel(4, rank=2, active_dims=[1])
    both = [GPRegressor(kernel=kernel, optimizer=None, standardize=standardize) for standardize in (True, False)]
    scaled, raw = (estimator.fit(X, y).predict(X) for estimator in both)
    np.testing.assert_allclose(scaled, raw, rtol=1e-6, atol=1e-6)
    for wrong in (4.0, -1.0, 0.5):
        with pytest.raises(
            InputError, match=rf"Column 1 of `X` must be whole numbers 0\.\.3, .* Got {wrong:g}\. Encode it"
        ):
            both[0].predict([[0.0, wrong]])
    levels = GK.RBFKernel(active_dims=[0]) * OrderedCategoricalKernel(4, active_dims=[1])
    ordered = GPRegressor(kernel=levels, max_iterations=2).fit(X, y)
    assert ordered.score(X, y) > 0.5
    with pytest.raises(InputError, match=r"Column 1 of `X` must be whole numbers 0\.\.3, .* Got 4\. Encode it"):
        ordered.predict([[0.0, 4.0]])
    with pytest.raises(InputError, match=r"`active_dims` must be among the 2 column\(s\).* Got \[5\]\. Correct them"):
        GPRegressor(kernel=GK.RBFKernel(active_dims=[5])).fit(X, y)


def test_a_warm_start_goes_on_from_the_last_hyperparameters():
    X, y = make_data(GPClassifier)
    classifier = GPClassifier(
        kernel="matern32", max_iterations=3, warm_start=True, fit_options={"objective": "elbo"}
    ).fit(X, y)
    first = classifier.result_.records[0].objective
    last = classifier.result_.records[-1].objective
    assert classifier.fit(X, y).result_.records[0].objective > 0.5 * (first + last)


# ----------------------------------------------------------------- composition
@each
def test_copies_and_files(make, tmp_path):
    X, y = make_data(make)
    estimator = make(max_iterations=2, solver=SubspaceNewton(tolerance=1e-3)).fit(X, y)
    path = tmp_path / "estimator.safetensors"
    estimator.save(path)
    joblib.dump(estimator, tmp_path / "estimator.joblib")
    copies = (
        load(path),
        make.load(path),
        pickle.loads(pickle.dumps(estimator)),
        joblib.load(tmp_path / "estimator.joblib"),
        copy.deepcopy(estimator),
    )
    for other in copies:
        assert type(other) is make
        assert_same(other, estimator, X)
        assert other.log_marginal_likelihood_value_ == estimator.log_marginal_likelihood_value_
        assert repr(other.get_params()) == repr(estimator.get_params())
    reloaded = load(path).partial_fit(X[:5], y[:5])  # it is alive
    assert reloaded.model_.train_inputs[0].shape[0] == 85
    assert not hasattr(clone(estimator), "model_")


def test_files_keep_names_labels_and_weights(tmp_path):
    X, y = make_data(GPClassifier)
    frame = pandas.DataFrame(X, columns=["a", "b", "c"])
    estimator = GPClassifier(max_iterations=2, class_weight={"top": 3.0}, random_state=np.random.RandomState(0)).fit(
        frame, y
    )
    estimator.save(tmp_path / "e")
    other = load(tmp_path / "e")
    assert other.feature_names_in_.tolist() == ["a", "b", "c"]
    assert other.classes_.dtype == estimator.classes_.dtype
    assert other.get_params()["class_weight"] == {"top": 3.0}
    assert_same(other, estimator, frame)


def test_a_kernel_of_your_own_is_passed_again(tmp_path):
    X, y = make_data(GPRegressor)
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel() + gpytorch.kernels.LinearKernel())
    estimator = GPRegressor(kernel=kernel, max_iterations=2).fit(X, y)
    assert estimator.kernel_ is not kernel  # copied: fitting leaves arguments alone
    assert not bool(kernel.raw_outputscale.any())
    estimator.save(tmp_path / "e")
    with pytest.raises(InputError, match=r"`kernel` must be passed for a model .*Build the same kernel and call load"):
        load(tmp_path / "e")
    assert_same(load(tmp_path / "e", kernel=kernel), estimator, X)


def test_files_of_another_kind(tmp_path):
    X, y = make_data(GPRegressor)
    estimator = GPRegressor(max_iterations=2).fit(X, y)
    estimator.save(tmp_path / "e")
    estimator.model_.save(tmp_path / "m")
    with pytest.raises(
        InputError, match=r"that an estimator wrote\. Got .*, which model\.save wrote\. Build the model"
    ):
        load(tmp_path / "m")
    with pytest.raises(InputError, match=r"must hold one of GPClassifier\. Got .* with a GPRegressor\. Load it with"):
        GPClassifier.load(tmp_path / "e")
    with pytest.raises(InputError, match=r"which an estimator wrote\. Read it with itergp\.sklearn\.load"):
        estimator.model_.load(tmp_path / "e")
    for name, value in (("fit_options", {"callback": [].append}), ("solver", IterNCGP())):  # its policy is an object
        with pytest.raises(InputError, match=rf"Got `{name}` with .*Pickle the estimator instead"):
            GPRegressor(max_iterations=2, **{name: value}).fit(X, y).save(tmp_path / "e")


@pytest.mark.slow
def test_pipelines_searches_and_calibration():
    X, y = make_data(GPClassifier, 90)
    pipeline = make_pipeline(PolynomialFeatures(2, include_bias=False), GPClassifier(max_iterations=2))
    assert cross_val_score(pipeline, X, y, cv=2, scoring="neg_log_loss").min() > -1.2
    grid = {"kernel": ["rbf", "matern32"], "max_iterations": [1, 2]}
    search = GridSearchCV(GPClassifier(), grid, cv=2, n_jobs=2).fit(X, y)
    assert set(search.best_params_) == {"kernel", "max_iterations"}
    calibrated = CalibratedClassifierCV(GPClassifier(max_iterations=2), cv=2).fit(X, y)
    np.testing.assert_allclose(calibrated.predict_proba(X).sum(1), 1.0)


@each
def test_equal_seeds_give_equal_results(make):
    X, y = make_data(make)
    assert_same(make(max_iterations=3, random_state=4).fit(X, y), make(max_iterations=3, random_state=4).fit(X, y), X)
    state = np.random.RandomState
    options = {"max_iterations": 3, "fit_options": {"objective": "predictive"}}
    one, other = (make(random_state=state(seed), **options).fit(X, y) for seed in (1, 2))
    assert any(np.any(a != b) for a, b in zip(outputs(one, X), outputs(other, X), strict=True))


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_by_name(name):
    X, y = make_data(GPRegressor)
    regressor = GPRegressor(kernel=name, max_iterations=5).fit(X, y)
    assert regressor.score(X, y) > 0.5
    assert GPRegressor(kernel=name, ard=False, max_iterations=1).fit(X, y).score(X, y) > 0.5


@pytest.mark.parametrize(
    "kernel",
    [
        kernels.RBF(0.7),
        2.5 * kernels.RBF([0.7, 1.0, 2.0]),
        kernels.Matern(0.8, nu=0.5) * kernels.ConstantKernel(3.0),
        kernels.Matern(0.8, nu=1.5) + kernels.ConstantKernel(0.5),
        kernels.RationalQuadratic(0.9, alpha=1.7),
        kernels.RBF(1.0) * kernels.Matern(2.0, nu=2.5),
        kernels.DotProduct(0.5),
        kernels.ConstantKernel(2.0),
    ],
    ids=str,
)
def test_scikit_learns_kernels_mean_the_same_here(kernel):
    X = np.random.default_rng(0).normal(size=(6, 3))
    ours = translate(kernel).double()
    np.testing.assert_allclose(ours(torch.as_tensor(X)).to_dense().detach().numpy(), kernel(X), rtol=1e-5, atol=1e-6)


def test_fixed_hyperparameters_stay():
    X, y = make_data(GPRegressor)
    kernel = kernels.ConstantKernel(2.0, "fixed") * kernels.RBF(0.7)
    regressor = GPRegressor(kernel=kernel, max_iterations=3).fit(X, y)
    assert regressor.kernel_.outputscale.item() == pytest.approx(2.0)
    assert regressor.kernel_.base_kernel.lengthscale.item() != pytest.approx(0.7)


def test_scale_does_not_matter():
    X, y = make_data(GPClassifier)
    plain = GPClassifier(kernel="matern32", max_iterations=2, dtype="float64").fit(X, y)
    for factor in (1e-300, 1e-9, 1e300):
        moved = GPClassifier(kernel="matern32", max_iterations=2, dtype="float64").fit(X * factor, y)
        np.testing.assert_allclose(moved.predict_proba(X * factor), plain.predict_proba(X), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rows", [2, 3, 5, 12])
@each
@pytest.mark.filterwarnings("ignore::itergp.ItergpWarning")
def test_few_rows_work(make, rows):
    X, y = make_data(make, 40)
    y = y.copy()
    if make in (GPClassifier, GPOrdinalClassifier):
        y[:2] = np.unique(y)[:2]
    estimator = make(max_iterations=5).fit(X[:rows], y[:rows])
    assert all(np.all(np.isfinite(values)) for values in outputs(estimator, X))


def test_the_package_imports_without_what_is_optional():
    optional = {"botorch", "sklearn", "pandas", "matplotlib"}
    code = f"import sys, itergp, itergp.cli; assert not {optional} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    blocked = "import sys; sys.modules['sklearn'] = None; import itergp.sklearn"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=False)
    assert done.stderr.strip().splitlines()[-1] == (
        "ImportError: `itergp.sklearn` needs scikit-learn. It is not installed. Install it with `pip install itergp[sklearn]`."
    )


def test_constant_columns_are_left_out_and_reported():
    X, y = make_data(GPClassifier)
    wide = np.column_stack([X, np.full(len(X), 7.3)])
    with pytest.warns(ItergpWarning, match=r"should vary\. Got one value only in 1 of 4: 3\. They say nothing"):
        classifier = GPClassifier(max_iterations=2).fit(wide, y)
    assert classifier.model_.train_inputs[0].shape == (80, 3)
    assert np.all(np.isfinite(classifier.predict_proba(wide)))


def test_many_rows_are_learned_in_linear_time(monkeypatch):
    x, y = load_breast_cancer(return_X_y=True)
    plain = GPClassifier().fit(x, y)
    monkeypatch.setattr("itergp.sklearn.model._LINEAR_ROWS", 500)
    many = GPClassifier().fit(x, y)
    given = GPClassifier(solver=SubspaceNewton()).fit(x, y)
    assert plain.model_.solution.support is None
    assert many.model_.solution.support is not None
    assert given.model_.solution.support is None
    assert many.score(x, y) > 0.95


@pytest.mark.parametrize("standardize", [True, False])
def test_predictions_do_not_read_the_training_data_again(standardize, monkeypatch):
    X, y = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30.0) % 3
    estimator = GPRegressor(standardize=standardize, optimizer=None).fit(X, y, sample_weight=np.linspace(0.5, 1.5, 30))
    before = estimator.predict(X[:3])
    monkeypatch.setattr(held_tensors, "digest", lambda _: pytest.fail("read again"))
    np.testing.assert_array_equal(estimator.predict(X[:3]), before)


# ------------------------------------------------------------------ what scikit-learn's regressor has
def _theirs_and_ours(kernel, **arguments):
    X, y = make_data(GPRegressor)
    X, y = X[:40, :1], (y[:40] - y[:40].mean()) / y[:40].std()
    theirs = GaussianProcessRegressor(kernel, optimizer=None, **arguments).fit(X, y)
    ours = GPRegressor(
        kernel, optimizer=None, standardize=False, normalize_y=False, solver=DenseNewton(), **arguments
    ).fit(X, y)
    ours.model_.mean_module.constant = 0.0
    return theirs, ours, X


@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize(
    "kernel",
    [
        2.0 * kernels.RBF(0.7),
        kernels.RBF(0.7) * kernels.ExpSineSquared(1.3, 2.0),
        kernels.Matern(0.9, nu=1.5) + kernels.WhiteKernel(0.2),
    ],
)
def test_known_noise_is_that_of_scikit_learn(kernel, per_row):
    theirs, ours, X = _theirs_and_ours(kernel, alpha=np.linspace(0.05, 0.4, 40) if per_row else 0.1)
    mean, covariance = theirs.predict(X[::3] + 0.1, return_cov=True)
    found, ours_covariance = ours.predict(X[::3] + 0.1, return_cov=True)
    np.testing.assert_allclose(found, mean, atol=1e-6)
    np.testing.assert_allclose(ours_covariance, covariance, atol=1e-6)
    np.testing.assert_allclose(ours.predict(X, return_std=True)[1], theirs.predict(X, return_std=True)[1], atol=1e-6)
    assert ours.log_marginal_likelihood() == pytest.approx(theirs.log_marginal_likelihood(), rel=1e-6)


def test_samples_have_the_moments_of_predictions():
    _, ours, X = _theirs_and_ours(2.0 * kernels.RBF(0.7), alpha=0.1)
    mean, covariance = ours.predict(X[:3], return_cov=True)
    samples = ours.sample_y(X[:3], 4000, random_state=1)
    assert samples.shape == (3, 4000)
    error = np.sqrt(covariance.diagonal() / 4000)
    assert (np.abs(samples.mean(1) - mean) < 5 * error).all()
    np.testing.assert_allclose(np.cov(samples), covariance, atol=5 * np.sqrt(2 / 4000) * covariance.max())


def test_white_noise_of_a_kernel_is_where_the_noise_starts():
    X, y = make_data(GPRegressor)
    kernel = kernels.RBF() + 0.5 * kernels.WhiteKernel(0.6)
    noise = GPRegressor(kernel, optimizer=None).fit(X, y).model_.likelihood.noise
    assert noise.item() == pytest.approx(0.3)
    fixed = kernels.RBF() + kernels.WhiteKernel(0.6, "fixed")
    assert GPRegressor(fixed, max_iterations=2).fit(X, y).model_.likelihood.noise.item() == pytest.approx(0.6)
    with pytest.raises(InputError, match=r"must have a part that is no WhiteKernel"):
        GPRegressor(kernels.WhiteKernel()).fit(X, y)
    with pytest.raises(InputError, match=r"`likelihood` must be 'gaussian' with `alpha` or a WhiteKernel"):
        GPRegressor(fixed, likelihood="student_t").fit(X, y)
    with pytest.raises(InputError, match=r"Got the noise 'student_t'\. Pass it as likelihood='student_t'"):
        GPRegressor("student_t").fit(X, y)


def test_what_alpha_must_be():
    X, y = make_data(GPRegressor)
    for wrong in (-1.0, np.ones(3), np.inf):
        with pytest.raises(InputError, match=r"`alpha` must be a variance, or one per row with shape \("):
            GPRegressor(alpha=wrong).fit(X, y)
    weights = np.ones(len(y))
    weights[::2] = 0.0
    regressor = GPRegressor(alpha=np.linspace(0.1, 1.0, len(y)), optimizer=None).fit(X, y, weights)
    assert len(regressor.model_.likelihood.noise) == len(y) // 2
    with pytest.raises(InputError, match=r"Rows cannot be added to a regressor with `alpha`"):
        regressor.partial_fit(X, y)
    with pytest.raises(InputError, match=r"Only one of `return_std`, `return_cov` and `quantiles` can be asked for"):
        regressor.predict(X, return_std=True, return_cov=True)
    with pytest.raises(InputError, match=r"`theta` must be None"):
        regressor.log_marginal_likelihood(np.zeros(2))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_columns_of_categories_and_periods_are_not_standardised():
    rng = np.random.default_rng(0)
    groups, x = rng.integers(0, 4, 80), 100.0 * rng.uniform(size=80)
    X, y = np.c_[x, groups, x], (np.array([-2.0, 2.0, -2.0, 2.0])[groups] + np.sin(x / 10.0) > 0).astype(int)
    periodic = PeriodicKernel(active_dims=[2])
    periodic.period_length = 60.0
    kernel = (
        ScaleKernel(RBFKernel(active_dims=[0])) * IndexKernel(num_tasks=4, rank=2, active_dims=[1])
    ) + ScaleKernel(periodic)
    np.testing.assert_array_equal(raw_columns(kernel, 3), [False, True, True])
    np.testing.assert_array_equal(raw_columns(ScaleKernel(IndexKernel(num_tasks=4, active_dims=[1])), 2), [0, 1])
    np.testing.assert_array_equal(raw_columns("rbf", 2), [False, False])
    np.testing.assert_array_equal(raw_columns(kernels.ExpSineSquared(), 1), [True])
    classifier = GPClassifier(kernel, max_iterations=3).fit(X, y)
    assert classifier.score(X, y) > 0.9
    inputs = classifier.model_.train_inputs[0].numpy()
    np.testing.assert_array_equal(inputs[:, 1:], X[:, 1:])
    assert abs(inputs[:, 0].mean()) < 1e-6


# ------------------------------------------------------------ what competes
@each
def test_kernels_compete_by_default(make, tmp_path):
    X, y = make_data(make, 150)
    estimator = make(max_iterations=4).fit(X, y)
    trials = estimator.comparison_.trials
    assert len(trials) >= 4
    assert estimator.comparison_.chosen.startswith(str(estimator.structure_))
    estimator.save(tmp_path / "estimator.safetensors")
    read = load(tmp_path / "estimator.safetensors")
    assert read.structure_ == estimator.structure_
    assert read.likelihood_ == estimator.likelihood_
    np.testing.assert_array_equal(read.predict(X), estimator.predict(X))
    given = make(kernel="matern32", max_iterations=4).fit(X, y)
    assert given.comparison_ is None
    assert given.structure_ is None


def test_likelihoods_compete_by_default():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 2))
    counts = rng.negative_binomial(1.0, 1.0 / (1.0 + np.exp(1.0 + X[:, 0])))
    assert GPCountRegressor(max_iterations=4).fit(X, counts).likelihood_ == "negative_binomial"
    levels = np.where(np.abs(X[:, 0]) < 0.6, "b", np.where(X[:, 1] > 0, "a", "c"))  # not one function with cutpoints
    ordinal = GPOrdinalClassifier(levels=["a", "b", "c"], max_iterations=4).fit(X, levels)
    assert ordinal.likelihood_ == "categorical"
    assert set(np.unique(ordinal.predict_quantiles(X))) <= {"a", "b", "c"}
    assert np.mean(ordinal.predict(X) == levels) > 0.9
    only = GPOrdinalClassifier(levels=["a", "b", "c"], likelihood="ordinal", max_iterations=2).fit(X, levels)
    assert only.likelihood_ == "ordinal"
    with pytest.raises(InputError, match=r"`likelihood` must be 'auto', 'ordinal' or 'categorical'"):
        GPOrdinalClassifier(levels=["a", "b", "c"], likelihood="softmax").fit(X, levels)


def test_two_levels_can_learn_for_long():
    X, y = make_data(GPOrdinalClassifier, 80)
    assert GPOrdinalClassifier(kernel="matern32", max_iterations=15).fit(X, y > 2).score(X, y > 2) > 0.6


def test_inputs_without_effect_and_a_smooth_kernel():
    rng = np.random.default_rng(1)  # directions that the kernel hardly sees: their products are rounding error
    X = rng.normal(size=(400, 2))
    rng.poisson(1.0, 400)
    regressor = GPCountRegressor(distribution="poisson", kernel="rbf", max_iterations=30).fit(X, rng.poisson(5.0, 400))
    assert regressor.model_.solution.status.converged
    np.testing.assert_allclose(regressor.predict(X), 5.0, atol=0.5)


def test_a_posterior_without_time_is_said_to_be_unsure():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 3))
    model = GPRegressor("matern32", likelihood="gaussian", fit_options={"time_limit": 1e-3})
    with pytest.warns(ItergpWarning, match="The posterior must be found before time is up"):
        model.fit(X, X[:, 0] + rng.normal(size=3000))


@pytest.mark.parametrize("approximation", ["auto", "laplace"])
def test_predictions_worse_than_those_of_a_constant_are_said_to_be(approximation):
    """Noise that is said to be far smaller than it is: sure, and wrong."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(200, 3)), rng.normal(size=200)
    kernel = kernels.RBF(20.0, "fixed") + kernels.WhiteKernel(0.01, "fixed")
    options = {"likelihood": "gaussian", "approximation": approximation}
    with pytest.warns(
        ItergpWarning,
        match=r"Predictions should be better than those that know no columns\. 200 rows .* log-density of -4",
    ):
        GPRegressor(kernel, **options, max_iterations=2).fit(X, y)
    GPRegressor("rbf", **options, max_iterations=20).fit(X, X[:, 0] + y)


def test_heavy_weights_are_warned_of():
    """They count rows, as in scikit-learn; surveys mean something else by them."""
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(30, 2)), rng.uniform(100.0, 500.0, 30)
    y = x[:, 0] + 0.3 * rng.normal(size=30)
    heavy = GPRegressor(kernel="rbf", max_iterations=1)
    with pytest.warns(
        ItergpWarning, match=r"one of weight w is w equal rows.*Got a mean of .* divide them by their mean"
    ):
        heavy.fit(x, y, sample_weight=weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ItergpWarning)
        GPRegressor(kernel="rbf", max_iterations=1).fit(x, y, sample_weight=weights / weights.mean())
        counts = rng.poisson(3.0, 30) / weights
        GPCountRegressor(distribution="poisson", kernel="rbf", max_iterations=1).fit(x, counts, sample_weight=weights)
