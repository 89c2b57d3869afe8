"""What regressors take besides real values with Gaussian noise: positive values, shares, successes, several outputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse
import scipy.stats as sps
import torch
from scipy.special import expit
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.multioutput import MultiOutputRegressor

from itergp import InputError, ItergpWarning
from itergp.sklearn import GPClassifier, GPRegressor, load
from itergp.sklearn.noise import POSITIVES, SHARES
from itergp.sklearn.responses import are_skewed, response_covariance
from itergp.solvers import DenseNewton
from itergp.tables import read_table

EXACT = {"optimizer": None, "solver": DenseNewton(), "dtype": "float64"}
FIXED = {"kernel": 1.0 * RBF(1.0), "standardize": False, "normalize_y": False, **EXACT}
QUICK = {"kernel": "matern32", "max_iterations": 10}
NAMES = (*POSITIVES, *SHARES)


def make_data(name: str, num_rows: int = 120, seed: int = 0):
    """Inputs, and targets drawn from the likelihood of a name, with keywords that belong to them."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(num_rows, 2))
    signal = np.sin(2.0 * X[:, 0]) + 0.5 * X[:, 1]
    if name == "log_normal":
        return X, 1e4 * np.exp(signal + 0.3 * rng.normal(size=num_rows)), {}
    if name == "gamma":
        return X, 1e-3 * np.exp(signal) * rng.gamma(4.0, 0.25, num_rows), {}
    if name == "beta":
        return X, rng.beta(20.0 * expit(signal), 20.0 * expit(-signal)).clip(1e-9, 1.0 - 1e-9), {}
    trials = rng.integers(1, 9, num_rows)
    return X, rng.binomial(trials, expit(signal)), {"trials": trials}


@pytest.mark.parametrize("name", NAMES)
def test_every_likelihood_recovers_a_mean_and_its_files(name, tmp_path):
    X, y, known = make_data(name)
    regressor = GPRegressor(likelihood=name, **QUICK).fit(X, y, **known)
    assert regressor.likelihood_ == name
    assert regressor.score(X, y, **known) > 0.4
    quantiles = regressor.predict(X, quantiles=[0.05, 0.95], **known)
    assert 0.8 < np.mean((quantiles[:, 0] <= y) & (y <= quantiles[:, 1])) <= 1.0
    np.testing.assert_array_equal(quantiles, regressor.predict_quantiles(X, [0.05, 0.95], **known))
    regressor.save(tmp_path / "file")
    again = load(tmp_path / "file")
    for one, other in zip(
        regressor.predict(X, return_std=True, **known), again.predict(X, return_std=True, **known), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        regressor.predictive_log_density(X, y, **known), again.predictive_log_density(X, y, **known)
    )
    more, others, known = make_data(name, 30, seed=1)
    before = again.kernel_passes_
    assert again.partial_fit(more, others, **known).model_.train_targets.shape[0] == 150
    assert again.kernel_passes_ > before


@pytest.mark.parametrize("name", [*POSITIVES, "beta"])
def test_densities_sum_to_one_in_the_units_of_the_targets(name):
    X, y, _ = make_data(name)
    regressor = GPRegressor(likelihood=name, **QUICK).fit(X, y)
    low, high = regressor.predict(X[:1], quantiles=[1e-5, 1.0 - 1e-5])[0]
    grid = np.linspace(low, high, 4000)
    density = np.exp(regressor.predictive_log_density(np.repeat(X[:1], len(grid), 0), grid))
    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=2e-3)
    mean, std = (float(value[0]) for value in regressor.predict(X[:1], return_std=True))
    assert np.trapezoid(density * grid, grid) == pytest.approx(mean, rel=1e-2)
    assert np.trapezoid(density * (grid - mean) ** 2, grid) == pytest.approx(std**2, rel=5e-2)


def test_log_normal_values_are_gaussian_logarithms():
    X, y, _ = make_data("log_normal")
    y = y / 1e4
    ours = GPRegressor(likelihood="log-normal", **FIXED).fit(X[:80], y[:80])
    logs = GPRegressor(likelihood="gaussian", **FIXED).fit(X[:80], np.log(y[:80]))
    # The constant means start at the mean of the logarithms in both, and noise at the same value.
    expected = logs.predictive_log_density(X[80:], np.log(y[80:])) - np.log(y[80:])
    np.testing.assert_allclose(ours.predictive_log_density(X[80:], y[80:]), expected, rtol=1e-6, atol=1e-6)
    location, scale = logs.predict(X[80:], return_std=True)
    exact = sps.lognorm(scale, scale=np.exp(location))
    mean, std = ours.predict(X[80:], return_std=True)
    np.testing.assert_allclose(mean, exact.mean(), rtol=1e-6)
    np.testing.assert_allclose(std, exact.std(), rtol=1e-6)
    latent = ours.latent_mean_and_variance(X[80:])
    np.testing.assert_allclose(latent[0], logs.latent_mean_and_variance(X[80:])[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [*POSITIVES, "gaussian"])
def test_units_of_targets_do_not_matter(name):
    X, y, _ = make_data("gamma")
    small, large = (GPRegressor(likelihood=name, **QUICK).fit(X, scale * y) for scale in (1.0, 1e6))
    np.testing.assert_allclose(1e6 * small.predict(X), large.predict(X), rtol=1e-5)
    shift = small.predictive_log_density(X, y) - large.predictive_log_density(X, 1e6 * y)
    np.testing.assert_allclose(shift, np.log(1e6), rtol=1e-5)
    evidence = small.log_marginal_likelihood_value_ - large.log_marginal_likelihood_value_
    assert evidence == pytest.approx(len(y) * np.log(1e6), rel=1e-6)
    if name in POSITIVES:
        difference = large.latent_mean_and_variance(X)[0] - small.latent_mean_and_variance(X)[0]
        np.testing.assert_allclose(difference, np.log(1e6), rtol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_positive_likelihoods_compete_for_skewed_targets(seed):
    X, y, _ = make_data("log_normal", 300, seed)
    regressor = GPRegressor(max_iterations=10).fit(X[:200], y[:200])
    assert regressor.likelihood_ in POSITIVES
    assert {"LogNormalLikelihood", "GammaLikelihood", "GaussianLikelihood"} <= {
        trial.structure.rsplit(", ")[-1] for trial in regressor.comparison_.trials
    }
    gaussian = GPRegressor(likelihood="gaussian", max_iterations=10).fit(X[:200], y[:200])
    gain = regressor.predictive_log_density(X[200:], y[200:]) - gaussian.predictive_log_density(X[200:], y[200:])
    assert gain.mean() > 0.3


def test_gaussian_noise_stays_where_it_is_right():
    # Positive and skewed, but with additive noise of one size.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 1))
    y = 30.0 + 40.0 * np.exp(X[:, 0]) + 8.0 * rng.normal(size=300)
    y = y - y.min() + 1.0
    assert are_skewed(y, np.ones(300))
    auto = GPRegressor(max_iterations=10).fit(X[:200], y[:200])
    assert auto.likelihood_ not in POSITIVES
    gaussian = GPRegressor(likelihood="gaussian", max_iterations=10).fit(X[:200], y[:200])
    gap = gaussian.predictive_log_density(X[200:], y[200:]) - auto.predictive_log_density(X[200:], y[200:])
    assert gap.mean() < 0.05


def test_who_competes():
    X, y, _ = make_data("gamma")
    ones, rng = np.ones(120), np.random.default_rng(0)
    assert are_skewed(y, ones)
    assert are_skewed(np.column_stack([y, y**2]), ones)
    zero = np.where(np.arange(120) == 7, 0.0, y)
    for targets in (-y, zero, rng.uniform(1.0, 2.0, 120), np.column_stack([y, zero]), y.max() + 1e-6 - y, ones):
        assert not are_skewed(targets, ones)
    found = GPRegressor(max_iterations=2).fit(X, zero)
    assert not any("Gamma" in trial.structure for trial in found.comparison_.trials)


def test_successes_among_trials_are_as_many_labels():
    X, y, known = make_data("binomial", 60)
    trials = known["trials"]
    regressor = GPRegressor(likelihood="binomial", approximation="laplace", **FIXED).fit(X, y, trials=trials)
    rows = np.repeat(np.arange(60), trials)
    labels = np.concatenate([np.arange(t) < s for t, s in zip(trials, y, strict=True)])
    arguments = {name: value for name, value in FIXED.items() if name != "normalize_y"}
    classifier = GPClassifier(approximation="laplace", **arguments).fit(X[rows], labels)
    # The constant mean starts at a slightly smoothed rate; both are made to have one value.
    with torch.no_grad():
        regressor.model_.mean_module.constant.fill_(0.3)
        classifier.model_.mean_module.constant.fill_(0.3)
    for ours, theirs in zip(regressor.latent_mean_and_variance(X), classifier.latent_mean_and_variance(X), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(regressor.predict(X), classifier.predict_proba(X)[:, 1], atol=1e-4)
    np.testing.assert_allclose(regressor.predict(X, trials=5), 5.0 * regressor.predict(X), rtol=1e-6)
    total = sum(np.exp(regressor.predictive_log_density(X, np.full(60, k), trials=4)) for k in range(5))
    np.testing.assert_allclose(total, 1.0, atol=1e-6)


@pytest.mark.parametrize("tempering", [0.0, 2.0, math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_covariances_and_draws_agree(name, tempering):
    """With what predictions integrate, however it is tempered."""
    X, y, known = make_data(name)
    regressor = GPRegressor(likelihood=name, **QUICK).fit(X, y, **known)
    regressor.model_.tempering = tempering
    new = X[:6]
    options = {"trials": 3} if known else {}
    mean, covariance = regressor.predict(new, return_cov=True, **options)
    std = regressor.predict(new, return_std=True, **options)[1]
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), std, rtol=1e-6)
    draws = regressor.sample_y(new, 20_000, random_state=0, **options)
    assert draws.shape == (6, 20_000)
    assert (draws > 0.0).all() if name in POSITIVES else (draws >= 0.0).all()
    assert np.abs(draws.mean(1) - mean).max() < 5.0 * std.max() / np.sqrt(20_000)
    assert np.abs(np.cov(draws) - covariance).max() < 0.1 * covariance.max()
    np.testing.assert_array_equal(draws, regressor.sample_y(new, 20_000, random_state=0, **options))


@pytest.mark.parametrize("spread", [0.3, 2.0, 6.0])
def test_covariances_of_shares(spread):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4)) * spread / 2.0
    mean, covariance = rng.normal(size=4), root @ root.T
    nodes = np.polynomial.hermite_e.hermegauss(120)
    weight = nodes[1][:, None] * nodes[1][None, :] / nodes[1].sum() ** 2
    expected = np.empty((4, 4))
    for i in range(4):
        for j in range(4):
            first = np.sqrt(covariance[i, i]) * nodes[0][:, None] * np.ones_like(weight)
            rho = covariance[i, j] / np.sqrt(covariance[i, i] * covariance[j, j])
            second = rho * nodes[0][:, None] + np.sqrt(max(1.0 - rho**2, 0.0)) * nodes[0][None, :]
            a, b = expit(mean[i] + first), expit(mean[j] + np.sqrt(covariance[j, j]) * second)
            expected[i, j] = (weight * a * b).sum() - (weight * a).sum() * (weight * b).sum()
    found = response_covariance("logit", np.zeros(4), mean, covariance)
    np.testing.assert_allclose(found, expected, atol=2e-3 * expected.max())


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("gamma", 0.0, r"`y` must be positive for likelihood=\"gamma\". Got 0 in row 3, and so in 1 of 120"),
        ("log_normal", -2.5, r"positive for likelihood=\"log_normal\". Got -2.5 in row 3"),
        ("beta", 1.0, r"strictly between 0 and 1 for likelihood=\"beta\". Got 1 in row 3"),
        ("binomial", 1.5, r"numbers of successes, whole and 0 or more, for .*Got 1.5 in row 3"),
        ("binomial", 100, r"`trials` must be whole.*Got \d trial\(s\) with 100 success\(es\) in row 3"),
    ],
)
def test_targets_outside_of_the_support(name, value, match):
    X, y, known = make_data(name)
    y = y.astype(float)
    y[3] = value
    with pytest.raises(InputError, match=match):
        GPRegressor(likelihood=name, **QUICK).fit(X, y, **known)


def test_a_likelihood_that_was_chosen_refuses_what_it_does_not_know():
    X, y, _ = make_data("gamma")
    regressor = GPRegressor(likelihood="gamma", **QUICK).fit(X, y)
    for act in (regressor.partial_fit, regressor.predictive_log_density):
        with pytest.raises(InputError, match=r"positive for likelihood=\"gamma\". Got -1 in row 2"):
            act(X[:4], np.array([1.0, 1.0, -1.0, 1.0]))


@pytest.mark.parametrize("trials", [0, 2.5, -1, np.nan, "many", [1, 2]])
def test_what_trials_must_be(trials):
    X, y, _ = make_data("binomial")
    with pytest.raises(InputError, match="`trials` must be"):
        GPRegressor(likelihood="binomial", **QUICK).fit(X, np.zeros(120), trials=trials)
    with pytest.raises(InputError, match="`trials` must be left out"):
        GPRegressor(**QUICK).fit(X, y, trials=3)


def test_predictions_are_one_thing_at_a_time():
    X, y, _ = make_data("gamma")
    regressor = GPRegressor(**QUICK).fit(X, y)
    with pytest.raises(InputError, match=r"Only one of .* can be asked for\. Got return_std and quantiles"):
        regressor.predict(X, return_std=True, quantiles=[0.5])


def test_the_former_name_of_the_argument():
    X, y, _ = make_data("log_normal")
    with pytest.warns(DeprecationWarning, match="`noise` of GPRegressor is `likelihood` now"):
        old = GPRegressor(noise="log_normal", **QUICK).fit(X, y)
    new = GPRegressor(likelihood="log_normal", **QUICK).fit(X, y)
    np.testing.assert_array_equal(old.predict(X), new.predict(X))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::itergp.ItergpWarning")
def test_rows_one_by_one(name):
    X, y, known = make_data(name, 12)
    regressor = GPRegressor("rbf", likelihood=name, max_iterations=2)
    for i in range(12):
        regressor.partial_fit(X[i : i + 1], y[i : i + 1], **{key: value[i : i + 1] for key, value in known.items()})
        assert np.isfinite(regressor.predict(X[:2], return_std=True)).all()
    assert len(regressor.model_.train_targets) == 12


@pytest.mark.parametrize("name", NAMES)
def test_trees_predict_the_function_of_every_likelihood(name):
    X, y, known = make_data(name, 200)
    regressor = GPRegressor("matern32", likelihood=name, prior_mean="boosting", max_iterations=5).fit(X, y, **known)
    trees = regressor.boosting_.predict(regressor._encoded(read_table(X)))[:, 0]
    latent = regressor.latent_mean_and_variance(X)[0]
    assert np.corrcoef(trees, latent)[0, 1] > 0.7
    assert regressor.score(X, y, **known) > 0.4


# --------------------------------------------------------------- several outputs
def make_outputs(num_rows: int = 100, seed: int = 0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(num_rows, 2))
    Y = np.column_stack([np.sin(X[:, 0]), 1e3 + 50.0 * X[:, 1], np.cos(X[:, 0]) * X[:, 1]])
    return X, Y + rng.normal(size=Y.shape) * [0.1, 5.0, 0.2]


def test_several_outputs_are_each_by_itself():
    X, Y = make_outputs()
    kernel, new = 1.0 * RBF(1.0), make_outputs(20, 1)[0]
    options = {"kernel": kernel, **EXACT}
    together = GPRegressor(**options).fit(X, Y)
    apart = [GPRegressor(**options).fit(X, column) for column in Y.T]
    mean, std = together.predict(new, return_std=True)
    assert mean.shape == std.shape == (20, 3)
    covariance = together.predict(new, return_cov=True)[1]
    quantiles = together.predict(new, quantiles=[0.1, 0.9])
    assert quantiles.shape == (20, 3, 2)
    for c, one in enumerate(apart):
        expected = one.predict(new, return_std=True)
        np.testing.assert_allclose(mean[:, c], expected[0], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(std[:, c], expected[1], rtol=1e-6)
        np.testing.assert_allclose(covariance[..., c], one.predict(new, return_cov=True)[1], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(quantiles[:, c], one.predict_quantiles(new, [0.1, 0.9]), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            together.latent_mean_and_variance(new)[1][:, c], one.latent_mean_and_variance(new)[1], rtol=1e-5
        )
    density = sum(one.predictive_log_density(X, Y[:, c]) for c, one in enumerate(apart))
    np.testing.assert_allclose(together.predictive_log_density(X, Y), density, rtol=1e-5)
    evidence = sum(one.log_marginal_likelihood_value_ for one in apart)
    assert together.log_marginal_likelihood_value_ == pytest.approx(evidence, rel=1e-6)
    draws = together.sample_y(new, 4000)
    assert draws.shape == (20, 3, 4000)
    assert (np.abs(draws.mean(-1) - mean) < 6.0 * std / np.sqrt(4000)).all()


def test_several_outputs_are_those_of_scikit_learn():
    X, Y = make_outputs(60)
    kernel = RBF(1.0) + WhiteKernel(0.1)
    theirs = GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True).fit(X, Y)
    ours = GPRegressor(RBF(1.0), standardize=False, **EXACT).fit(X, Y)  # noise starts at 0.1
    for one, other in zip(ours.predict(X, return_std=True), theirs.predict(X, return_std=True), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_several_outputs_learn_and_are_kept(tmp_path):
    X, Y = make_outputs(150)
    regressor = GPRegressor(max_iterations=10).fit(X[:100], Y[:100])
    assert regressor.n_outputs_ == 3
    assert regressor.score(X[100:], Y[100:]) > 0.8
    kernel = regressor.kernel_
    apart = [GPRegressor(kernel, standardize=False, optimizer=None).fit(X[:100], column) for column in Y[:100].T]
    assert regressor.kernel_passes_ < sum(one.kernel_passes_ for one in apart)  # which outputs share
    regressor.save(tmp_path / "file")
    again = load(tmp_path / "file")
    np.testing.assert_array_equal(regressor.predict(X), again.predict(X))
    np.testing.assert_array_equal(regressor.predictive_log_density(X, Y), again.predictive_log_density(X, Y))
    again.partial_fit(X[100:], Y[100:])
    assert again.model_.train_targets.shape == (150, 3)
    with pytest.raises(InputError, match=r"`y` must have 3 column\(s\).*Got 1"):
        again.partial_fit(X, Y[:, 0])


def test_several_positive_outputs():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 1))
    Y = np.exp(np.column_stack([X[:, 0], -X[:, 0]]) + 0.3 * rng.normal(size=(150, 2))) * [1.0, 1e5]
    regressor = GPRegressor(max_iterations=10).fit(X, Y)
    assert regressor.likelihood_ in POSITIVES
    assert (regressor.predict(X, quantiles=[0.01]) > 0.0).all()
    single = GPRegressor(likelihood=regressor.likelihood_, max_iterations=10)
    apart = sum(
        one.predictive_log_density(X, column)
        for one, column in zip(MultiOutputRegressor(single).fit(X, Y).estimators_, Y.T, strict=True)
    )
    assert regressor.predictive_log_density(X, Y).mean() > apart.mean() - 0.1


def make_labels(num_rows: int = 120, seed: int = 0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(num_rows, 2))
    signal = np.column_stack([2.0 * np.sin(2.0 * X[:, 0]), X[:, 1] - 1.0, X[:, 0] * X[:, 1]])
    return X, rng.binomial(1, expit(2.0 * signal))


def test_several_labels_are_each_by_itself():
    X, Y = make_labels()
    new = make_labels(20, 1)[0]
    options = {"kernel": 4.0 * RBF(1.0), "approximation": "laplace", **EXACT}
    together = GPClassifier(**options).fit(X, Y)
    apart = [GPClassifier(**options).fit(X, column) for column in Y.T]
    expected = np.column_stack([one.predict_proba(new)[:, 1] for one in apart])
    np.testing.assert_allclose(together.predict_proba(new), expected, atol=1e-6)
    np.testing.assert_array_equal(together.predict(new), (expected > 0.5).astype(int))
    density = sum(one.predictive_log_density(X, column) for one, column in zip(apart, Y.T, strict=True))
    np.testing.assert_allclose(together.predictive_log_density(X, Y), density, rtol=1e-5)
    assert together.n_outputs_ == 3
    assert together.classes_.tolist() == [0, 1, 2]


def test_several_labels_learn_and_are_kept(tmp_path):
    X, Y = make_labels(150)
    classifier = GPClassifier("matern32", max_iterations=10).fit(X[:100], scipy.sparse.csr_matrix(Y[:100]))
    assert np.mean(classifier.predict(X[100:]) == Y[100:]) > 0.75
    assert classifier.score(X[100:], Y[100:]) > 0.4  # all labels of a row right
    classifier.save(tmp_path / "file")
    again = load(tmp_path / "file")
    np.testing.assert_array_equal(classifier.predict_proba(X), again.predict_proba(X))
    again.partial_fit(X[100:], Y[100:])
    assert again.model_.train_targets.shape == (150, 3)
    with pytest.raises(InputError, match=r"`y` must have 3 column\(s\).*Got 1"):
        again.partial_fit(X, Y[:, 0])
    with pytest.raises(InputError, match=r"must be 0 and 1, which labels a row has\. Got 2 in row 1"):
        GPClassifier("rbf").fit(X[:2], [[0, 1], [2, 1]])
    with pytest.warns(ItergpWarning, match=r"Got one in every row of 150.*Pass y\.argmax\(1\)"):
        GPClassifier("rbf", optimizer=None).fit(X, np.eye(2)[Y[:, 0]])
    with pytest.raises(InputError, match="`class_weight` and `prior_mean` must be left out for several labels"):
        GPClassifier("rbf", class_weight="balanced").fit(X, Y)


@pytest.mark.parametrize(
    "options",
    [{"likelihood": "heteroscedastic"}, {"likelihood": "binomial"}, {"alpha": 0.1}, {"prior_mean": "boosting"}],
)
def test_what_is_for_one_output(options):
    X, Y = make_outputs()
    with pytest.raises(InputError, match=r"are for one output\. Got 3 columns"):
        GPRegressor(**QUICK, **options).fit(X, Y)
