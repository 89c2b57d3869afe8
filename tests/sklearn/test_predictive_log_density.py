"""Log-densities of held-out rows are those of what the estimators predict, in the units of the data."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.gaussian_process import kernels

from itergp import InputError
from itergp.sklearn import GPClassifier, GPCountRegressor, GPOrdinalClassifier, GPRegressor
from itergp.sklearn.noise import COUNTS, NOISES

OPTIONS = {"kernel": "rbf", "max_iterations": 5}
LABELS = np.array(["low", "medium", "top"])


def make_data(num_rows: int = 60):
    rng = np.random.default_rng(0)
    X = rng.uniform(-2.0, 2.0, (num_rows, 2))
    return X, np.sin(2.0 * X[:, 0]) + 0.2 * rng.normal(size=num_rows), rng


@pytest.mark.parametrize("num_labels", [2, 3])
@pytest.mark.parametrize("make", [GPClassifier, GPOrdinalClassifier])
def test_labels(make, num_labels):
    X, signal, _ = make_data()
    y = LABELS[np.digitize(signal, [-0.4, 0.4][: num_labels - 1])]
    options = {"levels": list(LABELS[:num_labels]), "likelihood": "ordinal"} if make is GPOrdinalClassifier else {}
    classifier = make(**options, **OPTIONS).fit(X, y)
    density = classifier.predictive_log_density(X, y)
    of_labels = classifier.predict_log_proba(X)[np.arange(len(y)), np.searchsorted(classifier.classes_, y)]
    np.testing.assert_allclose(density, of_labels, rtol=1e-7)
    total = sum(np.exp(classifier.predictive_log_density(X[:1], [label])) for label in classifier.classes_)
    np.testing.assert_allclose(total, 1.0)
    with pytest.raises(InputError, match=r"Labels must be among the classes"):
        classifier.predictive_log_density(X[:1], ["other"])


def test_gaussian_values_in_their_units():
    X, signal, _ = make_data()
    y = 5000.0 + 300.0 * signal
    regressor = GPRegressor(likelihood="gaussian", **OPTIONS).fit(X, y)
    mean, std = regressor.predict(X, return_std=True)
    np.testing.assert_allclose(regressor.predictive_log_density(X, y), stats.norm(mean, std).logpdf(y), rtol=1e-7)


@pytest.mark.parametrize("noise", NOISES)
def test_densities_of_values_sum_to_one(noise):
    X, signal, _ = make_data()
    regressor = GPRegressor(likelihood=noise, **OPTIONS).fit(X, 5000.0 + 300.0 * signal)
    mean, std = (float(moment[0]) for moment in regressor.predict(X[:1], return_std=True))
    values = mean + std * np.linspace(-30.0, 30.0, 2001)
    density = np.exp(regressor.predictive_log_density(np.repeat(X[:1], len(values), 0), values))
    assert np.sum(density) * (values[1] - values[0]) == pytest.approx(1.0, abs=2e-3)
    assert np.sum(density * values) * (values[1] - values[0]) == pytest.approx(mean, rel=2e-3)


@pytest.mark.parametrize("exposure", [None, 2.5])
@pytest.mark.parametrize("distribution", COUNTS)
def test_probabilities_of_counts(distribution, exposure):
    X, signal, rng = make_data()
    exposed = {} if exposure is None else {"exposure": exposure}
    y = rng.poisson((exposure or 1.0) * np.exp(signal))
    regressor = GPCountRegressor(distribution=distribution, **OPTIONS).fit(X, y, **exposed)
    counts = np.arange(400)
    probabilities = np.exp(regressor.predictive_log_density(np.repeat(X[:1], 400, 0), counts, **exposed))
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-6)
    assert probabilities @ counts == pytest.approx(float(regressor.predict(X[:1], **exposed)[0]), rel=1e-4)
    with pytest.raises(InputError, match=r"`y` must be whole for its probability\. Got 0\.5"):
        regressor.predictive_log_density(X[:1], [0.5], **exposed)


def test_noise_that_is_known_of_training_rows_only():
    X, y, _ = make_data()
    known = GPRegressor(alpha=0.04, **OPTIONS).fit(X, y)
    with pytest.raises(InputError, match=r"A density needs the noise of the rows\. Got `alpha`"):
        known.predictive_log_density(X, y)
    kernel = 1.0 * kernels.RBF() + kernels.WhiteKernel(0.1)
    learned = GPRegressor(kernel, alpha=1e-8, max_iterations=5).fit(X, y)
    mean, std = learned.predict(X, return_std=True)
    np.testing.assert_allclose(learned.predictive_log_density(X, y), stats.norm(mean, std).logpdf(y), rtol=1e-6)


@pytest.mark.parametrize("make", [GPClassifier, GPOrdinalClassifier, GPRegressor, GPCountRegressor])
def test_rows_must_match(make):
    X, signal, rng = make_data()
    y = signal if make is GPRegressor else rng.integers(0, 3, len(X))
    estimator = make(**OPTIONS).fit(X, y)
    with pytest.raises(InputError, match=r"same number of rows\. Got 60 and 59"):
        estimator.predictive_log_density(X, y[1:])
