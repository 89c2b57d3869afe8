"""Likelihoods one by one: tails, distribution functions, predictions with exposures and trials, parameters, errors."""

from __future__ import annotations

import math
import pickle

import gpytorch
import numpy as np
import pytest
import scipy.special
import scipy.stats as sps
import torch
from gpytorch.distributions import MultivariateNormal
from helpers import (
    CASES,
    CUTPOINTS,
    TOLERANCE,
    SimpleGP,
    assert_close,
    make_exposed,
    make_inputs,
    make_kernel,
    make_model,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import itergp
from itergp import InputError, likelihoods
from itergp.likelihoods import (
    BernoulliLikelihood,
    BinomialLikelihood,
    ExponentialLikelihood,
    GammaLikelihood,
    HeteroscedasticGaussianLikelihood,
    LaplaceLikelihood,
    LogLogisticLikelihood,
    NegativeBinomialLikelihood,
    OrdinalLikelihood,
    PoissonLikelihood,
    WeibullLikelihood,
    ZeroInflatedPoissonLikelihood,
)
from itergp.likelihoods.distributions import (
    Beta,
    Binomial,
    Gamma,
    LogLogistic,
    LogNormal,
    NegativeBinomial,
    StudentT,
    Weibull,
    ZeroInflatedPoisson,
)
from itergp.likelihoods.integrals import expected_cloglog
from itergp.likelihoods.mixtures import QuadratureMixture
from itergp.likelihoods.special import betainc, interval_slopes, log1mexp, normal_interval

EVERYWHERE = ("bernoulli-logit", "bernoulli-probit", "categorical", "binomial", "gaussian", "student-t")
NEW = [
    name for name in CASES if name not in ("bernoulli-logit", "bernoulli-probit", "categorical", "poisson", "gaussian")
]
new = pytest.mark.parametrize("name", NEW)
PARAMETERS = {
    "negative-binomial": ("dispersion",),
    "zero-inflated-poisson": ("inflation",),
    "gaussian": ("noise",),
    "student-t": ("noise", "deg_free"),
    "laplace": ("noise",),
    "gamma": ("shape",),
    "log-normal": ("noise",),
    "beta": ("precision",),
    "weibull": ("shape",),
    "log-logistic": ("shape",),
    "weibull-intervals": ("shape",),
    "log-logistic-intervals": ("shape",),
    "log-normal-times": ("noise",),
    "log-normal-intervals": ("noise",),
}


def targets_of(name: str, rows: int, dtype: torch.dtype = torch.float64) -> tuple[likelihoods.Likelihood, Tensor]:
    likelihood = CASES[name].make().to(dtype)
    for parameter in PARAMETERS.get(name, ()):  # inverse transforms in float32 lose digits
        setattr(likelihood, parameter, round(float(getattr(likelihood, parameter).detach()), 3))
    if "ordinal" in name:
        likelihood.cutpoints = torch.tensor(CUTPOINTS, dtype=torch.float64)
    return likelihood, likelihood.validate_targets(CASES[name].data(rows, dtype=dtype)[1])


# ----------------------------------------------------------------------- tails
@given(seed=st.integers(0, 10_000), limit=st.sampled_from([3.0, 30.0, 300.0, 1000.0]))
@pytest.mark.parametrize("name", CASES)
def test_extreme_latent_values(name, dtype, seed, limit):
    likelihood, y = targets_of(name, 16, dtype)
    generator = torch.Generator().manual_seed(seed)
    f = (limit * (2.0 * torch.rand(16, likelihood.num_latents, generator=generator, dtype=torch.float64) - 1.0)).to(
        dtype
    )
    with torch.no_grad():
        density = likelihood.log_density(f, y)
        g, W = likelihood.derivatives(f, y)
    for value in (density, g, W):
        assert value.dtype == dtype
        assert bool(torch.isfinite(value).all())
    values = torch.linalg.eigvalsh(W.double())
    assert bool((values.min(-1).values >= -1e-6 * values.max(-1).values.clamp_min(1.0)).all())
    # Where SciPy's own formula neither overflows nor loses its digits.
    with np.errstate(all="ignore"):
        expected = CASES[name].density(f.double().numpy(), y.double().numpy())
    reach = 1e3 if name in EVERYWHERE else 12.0
    known = np.isfinite(expected) & (np.abs(expected) < 1e15) & (np.abs(f.double().numpy()).max(-1) <= reach)
    scale = (
        1.0 + np.abs(expected) + np.abs(f.double().numpy()).max(-1) * np.abs(y.double().numpy()).reshape(16, -1).max(-1)
    )
    tolerance = 50 * TOLERANCE[dtype].local if dtype == torch.float32 else 1e-8
    assert np.all(np.abs(density.double().numpy() - expected)[known] <= tolerance * scale[known])


@given(seed=st.integers(0, 10_000), limit=st.sampled_from([1.0, 10.0, 100.0, 1000.0]))
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_differences_of_the_log_density(name, seed, limit):
    likelihood, y = targets_of(name, 16)
    generator = torch.Generator().manual_seed(seed)
    f = limit * (2.0 * torch.rand(16, likelihood.num_latents, generator=generator, dtype=torch.float64) - 1.0)
    step = 1e-5
    with torch.no_grad():
        g, _ = likelihood.derivatives(f, y)
        for c in range(likelihood.num_latents):
            shift = torch.zeros_like(f)
            shift[:, c] = step
            above, below = likelihood.log_density(f + shift, y), likelihood.log_density(f - shift, y)
            error = (above - below) / (2.0 * step) - g[:, c]
            rounding = 1e-15 * torch.maximum(above.abs(), below.abs()) / step
            if name == "laplace":  # but not across the kink
                error = error[(f[:, 0] - y).abs() > step]
                rounding = rounding[(f[:, 0] - y).abs() > step]
            assert bool((error.abs() <= 1e-5 * (1.0 + (above - below).abs() / step) + 20.0 * rounding).all())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("extreme", [-500.0, -50.0, -5.0, 5.0, 50.0, 500.0])
def test_two_derivatives_by_autograd_are_finite(name, extreme, dtype):
    # Objectives differentiate the log-density twice where the curvature is not the Hessian.
    likelihood, y = targets_of(name, 16, dtype)
    f = torch.full((16, likelihood.num_latents), extreme, dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(likelihood.log_density(f, y).sum(), f, create_graph=True)
    assert bool(torch.isfinite(gradient).all())
    inputs = [f, *likelihood.parameters()]
    second = torch.autograd.grad(gradient.sum(), inputs, allow_unused=True, materialize_grads=True)
    assert all(bool(torch.isfinite(value).all()) for value in second)


@new
def test_float32_in_the_tails_is_near_float64(name):
    likelihood, y = targets_of(name, 16, torch.float32)
    wide = CASES[name].make().double()
    wide.load_state_dict({k: v.double() for k, v in likelihood.state_dict().items()})
    for extreme in (-60.0, -20.0, -5.0, 5.0, 20.0, 60.0):
        f = torch.full((16, likelihood.num_latents), extreme)
        values = likelihood.log_density(f, y), *likelihood.derivatives(f, y)
        exact = wide.log_density(f.double(), y), *wide.derivatives(f.double(), y)
        for value, expected in zip(values, exact, strict=True):
            assert value.dtype == torch.float32
            error, size = float((value - expected).abs().max().detach()), float(expected.abs().max().detach())
            assert error <= TOLERANCE[torch.float32].derivative * max(size, 1e-4)


@pytest.mark.parametrize("latent", [-1e3, -200.0, -40.0, -6.0, -1.0, 0.0, 0.7, 3.0, 20.0, 1e3])
@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("link", ["logit", "probit"])
def test_ordinal_in_the_tails(link, level, latent, dtype):
    mpmath = pytest.importorskip("mpmath")  # comes with torch
    likelihood = OrdinalLikelihood(4, link, cutpoints=torch.tensor(CUTPOINTS)).double()
    exact_cuts = likelihood.cutpoints.tolist()
    likelihood = likelihood.to(dtype)
    f, y = torch.tensor([[latent]], dtype=dtype), torch.tensor([level])
    with torch.no_grad():
        values = likelihood.log_density(f, y), *likelihood.derivatives(f, y)
    with mpmath.workdps(600):
        cdf = mpmath.ncdf if link == "probit" else lambda z: 1 / (1 + mpmath.exp(-z))

        def log_density(x):
            bounds = [-mpmath.inf, *(mpmath.mpf(c) - x for c in exact_cuts), mpmath.inf]
            lower, upper = bounds[level], bounds[level + 1]
            mass = cdf(-lower) - cdf(-upper) if lower > 0 else cdf(upper) - cdf(lower)
            return mpmath.log(mass)

        x, step = mpmath.mpf(latent), mpmath.mpf(10) ** -60
        at = [log_density(x + k * step) for k in (-1, 0, 1)]
        expected = [float(at[1]), float((at[2] - at[0]) / (2 * step)), float(-(at[2] - 2 * at[1] + at[0]) / step**2)]
    tolerance = 1e-4 if dtype == torch.float32 else 1e-8
    for value, wanted in zip(values, expected, strict=True):
        assert value.item() == pytest.approx(wanted, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("latent", [-1e3, -100.0, -30.0, -5.0, -1.0, 0.0, 1.0, 3.0, 4.0, 5.0])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_cloglog_in_the_tails(latent, label, dtype):
    mpmath = pytest.importorskip("mpmath")
    likelihood = BernoulliLikelihood("cloglog")
    f, y = torch.tensor([[latent]], dtype=dtype), torch.tensor([label], dtype=dtype)
    values = likelihood.log_density(f, y), *likelihood.derivatives(f, y)
    with mpmath.workdps(600):
        u = mpmath.exp(mpmath.mpf(latent))
        if label == 0.0:
            expected = [-u, -u, u]
        else:
            g = u / mpmath.expm1(u)
            expected = [mpmath.log(-mpmath.expm1(-u)), g, g * (u / -mpmath.expm1(-u) - 1)]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    for value, wanted in zip(values, expected, strict=True):
        assert value.item() == pytest.approx(float(wanted), rel=tolerance, abs=1e-37)


def test_log1mexp(dtype):
    x = torch.logspace(-6, 1.5, 200, dtype=dtype)
    exact = x.double().numpy()
    expected = np.where(exact < 1.0, np.log(-np.expm1(-exact)), np.log1p(-np.exp(-exact)))
    assert_close(log1mexp(x) / torch.from_numpy(expected).to(dtype), torch.ones(200), "product")


@given(middle=st.floats(-1e3, 1e3), width=st.floats(1e-3, 1e3))
def test_intervals_of_a_normal_distribution(middle, width):
    upper, lower = torch.tensor(middle + 0.5 * width), torch.tensor(middle - 0.5 * width)
    log_mass, at_upper, at_lower = normal_interval(upper.double(), lower.double())
    # Reflection, and the mass is at most that of either half line.
    mirrored = normal_interval(-lower.double(), -upper.double())
    assert float(log_mass) == float(mirrored[0])
    assert (float(at_upper), float(at_lower)) == (float(mirrored[2]), float(mirrored[1]))
    half_lines = min(sps.norm.logcdf(float(upper)), sps.norm.logsf(float(lower)))
    assert float(log_mass) <= half_lines + 1e-9 * abs(half_lines) + 1e-15
    assert min(float(at_upper), float(at_lower)) >= 0.0


# ------------------------------------------------------- distribution functions
@given(first=st.floats(-2.0, 6.0), second=st.floats(-2.0, 6.0), where=st.floats(-4.0, 4.0))
def test_incomplete_beta_function(first, second, where):
    a, b = 10.0**first, 10.0**second
    mean = a / (a + b)
    x = min(max(mean + where * math.sqrt(mean * (1.0 - mean) / (a + b + 1.0)), 0.0), 1.0)
    value = float(betainc(torch.tensor(a), torch.tensor(b), torch.tensor(x, dtype=torch.float64)))
    a, b = float(torch.tensor(a)), float(torch.tensor(b))
    tolerance = 1e-7 if min(a, b) < 2_000.0 else 2e-5
    assert value == pytest.approx(scipy.special.betainc(a, b, x), abs=tolerance)


T = torch.tensor
DISTRIBUTIONS = {
    "student-t": (StudentT(T(4.0), T(1.0), T(0.5)), sps.t(4.0, 1.0, 0.5), [-30.0, -1.0, 1.0, 1.2, 50.0]),
    "beta": (Beta(T(0.3), T(4.0)), sps.beta(0.3, 4.0), [-1.0, 0.0, 1e-6, 0.3, 0.99, 1.0, 2.0]),
    "gamma": (Gamma(T(3.0), T(2.0)), sps.gamma(3.0, scale=0.5), [-1.0, 0.0, 0.1, 2.0, 30.0]),
    "weibull": (Weibull(T(0.5), T(2.0)), sps.weibull_min(2.0, scale=math.exp(0.5)), [-1.0, 0.0, 0.1, 2.0, 9.0]),
    "log-logistic": (LogLogistic(T(0.5), T(3.0)), sps.fisk(3.0, scale=math.exp(0.5)), [-1.0, 0.0, 0.1, 2.0, 90.0]),
    "log-normal": (LogNormal(T(0.5), T(0.6)), sps.lognorm(0.6, scale=math.exp(0.5)), [-1.0, 0.0, 0.1, 2.0, 90.0]),
    "binomial": (
        Binomial(T(9.0), logits=T(0.4)),
        sps.binom(9, scipy.special.expit(0.4)),
        [-1.0, 0.0, 3.5, 8.0, 9.0, 12.0],
    ),
    "negative-binomial": (
        NegativeBinomial(T(2.5), logits=T(0.4)),
        sps.nbinom(2.5, scipy.special.expit(-0.4)),
        [-1.0, 0.0, 3.5, 20.0, 100.0],
    ),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distribution_functions(name):
    ours, theirs, points = DISTRIBUTIONS[name]
    for point in points:
        assert float(ours.cdf(torch.tensor(point))) == pytest.approx(theirs.cdf(point), abs=2e-6)
    assert float(ours.mean) == pytest.approx(theirs.mean(), rel=1e-5)
    assert float(ours.variance) == pytest.approx(theirs.var(), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "theirs"), [(Weibull, sps.weibull_min), (LogLogistic, sps.fisk), (LogNormal, sps.lognorm)]
)
def test_draws_and_densities_of_times(kind, theirs):
    ours, theirs = kind(T(0.5), T(2.0)), theirs(2.0, scale=math.exp(0.5))
    points = torch.tensor([0.1, 1.0, 3.0])
    assert_close(ours.log_prob(points), torch.from_numpy(theirs.logpdf(points.numpy())), "product")
    assert_close(ours.log_survival(points), torch.from_numpy(theirs.logsf(points.numpy())), "product")
    assert_close(ours.icdf(torch.tensor([0.1, 0.5, 0.9])), torch.from_numpy(theirs.ppf([0.1, 0.5, 0.9])), "product")
    assert sps.kstest(ours.sample(torch.Size([2_000])).numpy(), theirs.cdf).pvalue > 1e-3


@pytest.mark.parametrize("lower", [-300.0, -9.0, -1.0, -1e-3, 0.0, 0.7, 9.0, 300.0])
@pytest.mark.parametrize("width", [1e-13, 1e-6, 9e-5, 1.1e-4, 1e-2, 1.0, 30.0])
def test_intervals_of_normals_keep_their_digits(lower, width):
    """However short or far out: the probability, its slope and its curvature, against a hundred digits."""
    mpmath = pytest.importorskip("mpmath")  # comes with torch
    with mpmath.workdps(100):
        a, b = mpmath.mpf(lower), mpmath.mpf(lower) + mpmath.mpf(width)
        near, far = (-b, -a) if a > 0 else (a, b)  # on the side on which both are small
        mass = mpmath.ncdf(far) - mpmath.ncdf(near)
        at_lower, at_upper = (mpmath.npdf(z) / mass for z in (a, b))
        slope = at_lower - at_upper
        exact = mpmath.log(mass), slope, slope**2 + b * at_upper - a * at_lower
    found = interval_slopes(torch.tensor(lower).double(), torch.tensor(width).double())
    for ours, expected in zip(found, exact, strict=True):
        assert float(ours) == pytest.approx(float(expected), rel=1e-7, abs=2e-7)


def test_log_logistic_times_need_no_mean():
    heavy = LogLogistic(T(0.5), T([0.9, 1.5, 3.0]))
    assert heavy.mean.isinf().tolist() == [True, False, False]
    assert heavy.variance.isinf().tolist() == [True, True, False]
    likelihood = LogLogisticLikelihood(shape=0.9).double()
    mixture = likelihood.predictive(torch.tensor([[0.5], [-40.0]]).double(), torch.full((2, 1, 1), 0.25).double())
    centre = mixture.quantile(0.5)  # symmetric on the logarithmic scale
    np.testing.assert_allclose(centre.log().detach(), [0.5, -40.0], atol=1e-6)
    time = torch.tensor([1e30, 1e-30]).double()  # where 1 - cdf has no digits left, or is 1
    first, second = mixture.log_survival(time).tolist()
    assert second == pytest.approx(0.0, abs=1e-10)
    assert first == pytest.approx(0.5 * 0.25 * 0.81 + 0.9 * (0.5 - math.log(1e30)), rel=1e-6)


def test_zero_inflated_counts():
    rates = torch.tensor([0.2, 3.0, 40.0], dtype=torch.float64)
    distribution = ZeroInflatedPoisson(torch.tensor(0.3, dtype=torch.float64), rates)
    counts = torch.arange(200.0, dtype=torch.float64).unsqueeze(-1)
    density = distribution.log_prob(counts).exp()
    assert_close(density.sum(0), torch.ones(3), "derivative")
    assert_close((counts * density).sum(0), distribution.mean, "derivative")
    assert_close((counts.square() * density).sum(0) - distribution.mean**2, distribution.variance, "derivative")
    assert_close(distribution.cdf(counts[:60]), density.cumsum(0)[:60], "derivative")
    draws = distribution.sample(torch.Size([40_000]))
    error = (distribution.variance / 40_000).sqrt()
    assert bool(((draws.mean(0) - distribution.mean).abs() < 4.0 * error).all())


@torch.no_grad()
def test_complete_data_information_of_inflated_counts():
    # Louis 1982: what is missing is the variance of the complete-data score, here that of a zero's kind.
    likelihood = ZeroInflatedPoissonLikelihood(inflation=0.3).double()
    f, step = torch.linspace(-4.0, 4.0, 33, dtype=torch.float64).unsqueeze(-1), 1e-4
    for count in (0.0, 1.0, 7.0):
        y = torch.full((33,), count, dtype=torch.float64)
        hessian = (likelihood.derivatives(f - step, y)[0] - likelihood.derivatives(f + step, y)[0])[:, 0] / (2.0 * step)
        rate = f[:, 0].exp()
        genuine = 0.7 * torch.exp(-rate) / (0.3 + 0.7 * torch.exp(-rate))
        missing = rate.square() * genuine * (1.0 - genuine) if count == 0.0 else torch.zeros_like(rate)
        assert_close(likelihood.derivatives(f, y)[1][:, 0, 0], hessian + missing, "derivative")


def test_inflation_starts_at_the_excess_of_zeros():
    likelihood, y = ZeroInflatedPoissonLikelihood(), torch.tensor([0.0] * 60 + [4.0] * 40)
    assert likelihood.initialise(y) == ["likelihood.inflation"]
    assert float(likelihood.inflation.detach()) == pytest.approx(0.6 - math.exp(-1.6), rel=1e-5)
    assert likelihood.initialise(y) == []


# ------------------------------------------------------------------ predictions
@pytest.mark.parametrize("variance", [0.0, 0.1, 0.999, 1.001, 4.0, 100.0])
def test_cloglog_predictive(variance):
    means = torch.tensor([-30.0, -8.0, -2.0, -0.5, 0.0, 0.7, 2.0, 9.0], dtype=torch.float64)
    z = torch.linspace(-12.0, 12.0, 200_001, dtype=torch.float64)
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2.0 * math.pi)
    inner = -torch.expm1(-torch.exp((means[:, None] + math.sqrt(variance) * z).clamp_max(50.0)))
    expected = torch.trapezoid(inner * density, z)
    actual = expected_cloglog(means, torch.full_like(means, variance))
    assert float((actual - expected).abs().max()) < 1e-6
    predictive = BernoulliLikelihood("cloglog").predictive(
        means[:, None], torch.full((8, 1, 1), variance, dtype=torch.float64)
    )
    assert torch.equal(predictive.probs, actual)


def _brute_force(name: str, mean: float, variance: float, y: Tensor) -> np.ndarray:
    """``E[p(y | f)]`` by the trapezoidal rule over f; SciPy's density."""
    z = np.linspace(-8.0, 8.0, 4_001)
    weights = sps.norm.pdf(z) * (z[1] - z[0])
    f = (mean + math.sqrt(variance) * z)[:, None]
    columns = y.reshape(len(y), -1).double().numpy()
    each = [
        CASES[name].density(
            f, np.repeat(row[None], len(z), 0).squeeze(-1) if len(row) == 1 else np.repeat(row[None], len(z), 0)
        )
        for row in columns
    ]
    return np.array([np.log(np.sum(weights * np.exp(values))) for values in each])


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n].num_latents == 1 and n != "bernoulli-cloglog"])
def test_predictive_density_is_the_integral(name):
    likelihood, y = targets_of(name, 12)
    if name in ("weibull", "log-logistic", "log-normal-times", "exponential"):
        y = y[:, 0]  # densities of observed times
    options = dict.fromkeys(likelihood.predictive_options, y[:, 1]) if y.dim() == 2 else {}
    value = y if y.dim() == 1 or y.shape[1] == 3 else y[:, 0]
    reference_y = (
        torch.stack([y, torch.ones_like(y)], -1)
        if name in ("weibull", "log-logistic", "log-normal-times", "exponential", "poisson-softplus") and y.dim() == 1
        else y
    )
    for mean, variance in ((0.3, 0.3), (-0.5, 1.5)):
        with torch.no_grad():
            predictive = likelihood.predictive(
                torch.full((12, 1), mean, dtype=torch.float64),
                torch.full((12, 1, 1), variance, dtype=torch.float64),
                **options,
            )
            actual = predictive.log_prob(value)
        expected = _brute_force(name, mean, variance, reference_y)
        assert np.all(
            np.abs(actual.numpy() - expected) < (1e-3 if name == "laplace" else 1e-4)
        )  # the reference has a kink


QUANTILES = [n for n in CASES if CASES[n].observed in ("count", "real", "positive", "share", "level")]


@pytest.mark.parametrize("name", QUANTILES)
def test_quantiles_and_moments_agree_with_samples(name, dtype):
    likelihood, _ = targets_of(name, 4, dtype)
    size = likelihood.num_latents
    mean = torch.linspace(-0.8, 1.0, 5, dtype=dtype).unsqueeze(-1).repeat(1, size)
    covariance = 0.3 * torch.eye(size, dtype=dtype).expand(5, size, size)
    options = dict.fromkeys(likelihood.predictive_options, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=dtype))
    with torch.no_grad():
        predictive = likelihood.predictive(mean, covariance, **options)
        samples = predictive.sample(torch.Size([4_000])).to(dtype)
        assert predictive.mean.dtype == predictive.variance.dtype == dtype
        error = (predictive.variance / 4_000).sqrt()
        assert bool(((samples.mean(0) - predictive.mean).abs() <= 5.0 * error).all())
        kurtosis = ((samples - samples.mean(0)) / samples.std(0)).pow(4).mean(0).clamp_max(200.0)
        spread = predictive.variance * (kurtosis / 4_000).sqrt()
        if name != "student-t":  # whose fourth moment does not exist
            assert bool(((samples.var(0) - predictive.variance).abs() <= 6.0 * spread).all())
        for level in (0.05, 0.5, 0.9):
            quantile = predictive.quantile(level)
            assert quantile.dtype == dtype
            below, reached = (samples < quantile).double().mean(0), (samples <= quantile).double().mean(0)
            assert bool((below <= level + 0.03).all())
            assert bool((reached >= level - 0.03).all())
            if CASES[name].observed not in ("count", "level"):
                tolerance = 1e-4 if dtype == torch.float32 else 1e-9
                assert float((predictive.cdf(quantile) - level).abs().max()) < tolerance


def test_quantiles_of_wide_positive_mixtures():
    # The mean is a thousand times the median.
    likelihood = CASES["gamma"].make().double()
    with torch.no_grad():
        predictive = likelihood.predictive(
            torch.zeros(3, 1).double(), torch.tensor([1e-8, 1.0, 14.0]).double()[:, None, None]
        )
        for level in (1e-3, 0.5, 0.999):
            assert float((predictive.cdf(predictive.quantile(level)) - level).abs().max()) < 1e-8


@pytest.mark.parametrize("shape", [1.0, 50.0, 2_000.0])
def test_narrow_conditional_distributions_get_more_nodes(shape):
    # A log-normal latent value times a Gamma of mean one: their logarithms add up.
    likelihood, y = GammaLikelihood(shape=shape).double(), torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    z = torch.linspace(-10.0, 10.0, 100_001, dtype=torch.float64)
    with torch.no_grad():
        predictive = likelihood.predictive(torch.zeros(3, 1).double(), torch.full((3, 1, 1), 1.5).double())
        weights = torch.exp(-0.5 * z.square()) / math.sqrt(2.0 * math.pi)
        density = likelihood.log_density(math.sqrt(1.5) * z[:, None, None].expand(-1, 3, 1), y).exp()
        expected = torch.trapezoid(weights[:, None] * density, z, dim=0)
        assert_close(predictive.log_prob(y).exp(), expected, "posterior", dtype=torch.float32)
        assert float((predictive.cdf(predictive.quantile(0.3)) - 0.3).abs().max()) < 1e-8


def test_weights_of_the_outer_nodes_keep_their_size():
    weights = torch.tensor([1.0 - 1e-30, 1e-30])
    mixture = QuadratureMixture(weights, torch.distributions.Normal(torch.tensor([[0.0, 40.0]]), torch.ones(1, 2)))
    assert float(mixture.log_prob(torch.tensor([40.0]))) == pytest.approx(
        math.log(1e-30) - 0.5 * math.log(2 * math.pi), rel=1e-5
    )


def test_exposure_shifts_the_logarithm_of_the_rate():
    x, y = make_exposed(40)
    model = SimpleGP(x, y, PoissonLikelihood()).double().eval()
    test_x = make_inputs(5, seed=3)
    exposure = torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    with torch.no_grad():
        one, many = model.predict(test_x), model.predict(test_x, exposure=exposure)
        assert_close(many.mean, exposure * one.mean)
        assert_close(model.predict(test_x, exposure=2.0).mean, 2.0 * one.mean)
        latent = model(test_x)
        assert_close(model.likelihood(latent, exposure=exposure).mean, many.mean, "posterior")
    # An exposure is an offset: a prior mean that differs from row to row.
    likelihood, f = PoissonLikelihood(), torch.randn(40, 1, dtype=torch.float64)
    assert_close(likelihood.log_density(f, y), likelihood.log_density(f + y[:, 1:].log(), y[:, 0]), "local")


@pytest.mark.parametrize("kind", [PoissonLikelihood, NegativeBinomialLikelihood])
def test_a_column_of_ones_changes_nothing(kind):
    likelihood, f = kind().double(), torch.randn(8, 1, dtype=torch.float64)
    y = torch.arange(8.0).double()
    pair = torch.stack([y, torch.ones(8).double()], -1)
    for one, other in zip(likelihood.derivatives(f, y), likelihood.derivatives(f, pair), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(likelihood.log_density(f, y), likelihood.log_density(f, pair))


def test_binomial_is_a_sum_of_bernoullis():
    binomial, bernoulli, f = BinomialLikelihood(), BernoulliLikelihood(), torch.randn(1, 1, dtype=torch.float64)
    trials, successes = 7, 3
    labels = torch.tensor([1.0] * successes + [0.0] * (trials - successes), dtype=torch.float64)
    total = bernoulli.log_density(f.expand(trials, 1), labels).sum() + math.log(math.comb(trials, successes))
    y = torch.tensor([[float(successes), float(trials)]], dtype=torch.float64)
    assert_close(binomial.log_density(f, y).sum(), total, "local")
    assert_close(binomial.log_density(f, torch.ones(1)), bernoulli.log_density(f, torch.ones(1)), "local")
    with torch.no_grad():
        probs = bernoulli.predictive(f, torch.ones(1, 1, 1).double()).probs
        assert_close(binomial.predictive(f, torch.ones(1, 1, 1).double(), num_trials=7).mean, 7.0 * probs, "derivative")


def test_softplus_poisson_equals_gpytorchs():
    samples, y = torch.linspace(-5.0, 9.0, 12, dtype=torch.float64), torch.arange(12.0).double()
    theirs = gpytorch.likelihoods.PoissonLikelihood()(samples).log_prob(y)
    assert_close(PoissonLikelihood("softplus").log_density(samples[:, None], y), theirs, "derivative")


def test_negative_binomial_without_dispersion_is_poisson():
    f, y = torch.linspace(-2.0, 3.0, 12, dtype=torch.float64)[:, None], torch.arange(12.0).double()
    nearly = NegativeBinomialLikelihood(dispersion=2e-6).double().requires_grad_(False)
    for one, other in zip(nearly.derivatives(f, y), PoissonLikelihood().derivatives(f, y), strict=True):
        assert_close(one, other, "posterior", dtype=torch.float32)
    assert float((nearly.log_density(f, y) - PoissonLikelihood().log_density(f, y)).abs().max()) < 1e-3


def test_censored_rows_say_only_that_it_was_later():
    likelihood = WeibullLikelihood(shape=2.0).double()
    f = torch.randn(6, 1, dtype=torch.float64)
    times = torch.rand(6, dtype=torch.float64) + 0.1
    censored = torch.stack([times, torch.zeros(6).double()], -1)
    with torch.no_grad():
        survival = 1.0 - likelihood(f.squeeze(-1)).cdf(times)
        assert_close(likelihood.log_density(f, censored).exp(), survival, "derivative")
        assert bool((likelihood.derivatives(f, censored)[0] > 0).all())  # it pulls times up, never down
    exponential, shape_one = ExponentialLikelihood(), WeibullLikelihood(shape=1.0).double()
    assert_close(exponential.log_density(f, times), shape_one.log_density(f, times), "derivative")


def test_the_density_of_held_out_rows_knows_which_were_censored():
    x, y = CASES["weibull"].data(40)
    model = SimpleGP(x, y, WeibullLikelihood(shape=2.0)).double().eval()
    with torch.no_grad():
        predictive, events = model.predict(x), y[:, 1] == 1
        density = predictive.log_prob(y)
        assert_close(density, model.likelihood.log_marginal(y, model(x)), "derivative")
        assert_close(density[events], predictive.log_prob(y[:, 0])[events], "derivative")
        assert_close(density[~events].exp(), 1.0 - predictive.cdf(y[:, 0])[~events], "derivative")
        assert predictive.log_prob(torch.ones(3, 40).double()).shape == (3, 40)
        assert_close(model.predict(x[:1]).log_prob(y[:1]), density[:1], "derivative")
        with pytest.raises(InputError, match=r"Event indicators must be 0 or 1"):
            predictive.log_prob(torch.full((40, 2), 0.5))
        with pytest.raises(InputError, match=r"times with event indicators\. Use likelihood\.log_marginal"):
            model.predict(x[:2]).log_prob(y[:2])


def test_observations_with_a_second_column_are_no_observations_of_a_predictive_distribution():
    x, y = CASES["poisson-exposure"].data(20)
    model = SimpleGP(x, y, CASES["poisson-exposure"].make()).double().eval()
    with torch.no_grad():
        with pytest.raises(
            InputError, match=r"one observation per row, shape \(\.\.\., 20\)\. Got \(20, 2\)\. .*exposure"
        ):
            model.predict(x).log_prob(y)
        right = model.predict(x, exposure=y[:, 1]).log_prob(y[:, 0])
        assert_close(right, model.likelihood.log_marginal(y, model(x)), "derivative")


def test_knowing_what_was_censored_raises_times():
    x, y = CASES["weibull"].data(60)
    aware = SimpleGP(x, y, WeibullLikelihood(shape=2.0)).double().eval()
    blind = SimpleGP(x, y[:, 0].contiguous(), WeibullLikelihood(shape=2.0)).double().eval()
    with torch.no_grad():
        assert float((aware.predict(x).quantile(0.5) / blind.predict(x).quantile(0.5)).log().mean()) > 0.1


# ---------------------------------------------------------------- heteroscedastic
def test_heteroscedastic_predictive_is_the_integral():
    likelihood = HeteroscedasticGaussianLikelihood()
    mean = torch.tensor([[0.5, -1.0], [1.0, 0.3]], dtype=torch.float64)
    covariance = torch.tensor([[[0.5, 0.3], [0.3, 0.8]], [[0.2, -0.1], [-0.1, 0.4]]], dtype=torch.float64)
    predictive = likelihood.predictive(mean, covariance)
    assert_close(predictive.mean, mean[:, 0])
    noise = (mean[:, 1] + 0.5 * covariance[:, 1, 1]).exp()
    assert_close(predictive.variance, covariance[:, 0, 0] + noise, "derivative")
    y = torch.tensor([0.0, 2.5], dtype=torch.float64)
    z = torch.linspace(-8.0, 8.0, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(z, z)
    weights = torch.exp(-0.5 * grid.square().sum(-1)) / (2.0 * math.pi) * (z[1] - z[0]) ** 2
    for row in range(2):
        f = mean[row] + grid @ torch.linalg.cholesky(covariance[row]).mT
        density = (weights * likelihood.log_density(f, y[row].expand(len(f))).exp()).sum()
        assert float(predictive.log_prob(y)[row]) == pytest.approx(math.log(density), abs=1e-6)


def test_heteroscedastic_expectations_against_the_closed_form():
    likelihood = HeteroscedasticGaussianLikelihood()
    mean = torch.tensor([[0.5, -1.0], [1.0, 0.3]], dtype=torch.float64)
    covariance = torch.tensor([[[0.5, 0.3], [0.3, 0.8]], [[0.2, -0.1], [-0.1, 0.4]]], dtype=torch.float64)
    y = torch.tensor([0.0, 2.5], dtype=torch.float64)
    site = likelihoods.VariationalSite.from_covariance(likelihoods.Observations(likelihood, y), covariance)
    precision = (-mean[:, 1] + 0.5 * covariance[:, 1, 1]).exp()
    squared = (y - mean[:, 0] + covariance[:, 0, 1]).square() + covariance[:, 0, 0]
    expected = -0.5 * (precision * squared + mean[:, 1] + math.log(2.0 * math.pi))
    assert site.log_density(mean) == pytest.approx(float(expected.sum()), rel=1e-6)
    g, W = site.derivatives(mean)
    assert_close(g[:, 1], 0.5 * (precision * squared - 1.0), "derivative", dtype=torch.float32)
    assert_close(
        W,
        torch.diag_embed(torch.stack([precision, torch.full_like(precision, 0.5)], -1)),
        "derivative",
        dtype=torch.float32,
    )


@pytest.mark.parametrize("approximation", ["laplace", "variational"])
def test_heteroscedastic_posterior_is_stationary(approximation):
    model = make_model("heteroscedastic", kernel=make_kernel(1.5, 0.5), approximation=approximation)
    solution = model.condition()
    assert solution.converged
    assert solution.certificate is None
    site = model.observations
    gradient, _ = site.derivatives(solution.latent_values)
    if approximation == "variational":
        covariance = solution.latent_covariance
        gradient, _ = likelihoods.VariationalSite.from_covariance(site, covariance).derivatives(solution.latent_values)
    # The last round's marginals are those of its beginning, so the variational equation holds nearly.
    tolerance = 0.05 if approximation == "laplace" else 0.3
    assert float((solution.representer_weights - gradient).norm() / gradient.norm()) < tolerance


def test_heteroscedastic_noise_is_found():
    x = torch.linspace(-2.0, 2.0, 400, dtype=torch.float64).unsqueeze(-1)
    truth = torch.exp(0.7 * x[:, 0])
    y = torch.sin(2.0 * x[:, 0]) + truth.sqrt() * torch.randn(400, dtype=torch.float64)
    model = SimpleGP(x, y, HeteroscedasticGaussianLikelihood(), kernel=make_kernel(1.5, 1.0)).double().eval()
    with torch.no_grad():
        noise = model.latent_mean(x)[:, 1]
    assert float((noise - truth.log()).abs().mean()) < 0.35


# ----------------------------------------------------------------------- laplace
def test_expectations_of_the_laplace_density():
    likelihood = LaplaceLikelihood(noise=0.3).double()
    mean = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64).unsqueeze(-1)
    y, variance = torch.zeros(9).double(), torch.linspace(0.05, 3.0, 9).double()
    site = likelihoods.VariationalSite.from_covariance(likelihoods.Observations(likelihood, y), variance[:, None, None])
    z = torch.linspace(-9.0, 9.0, 100_001, dtype=torch.float64)
    weights = torch.exp(-0.5 * z.square()) / math.sqrt(2.0 * math.pi)
    f = (mean + variance.sqrt()[:, None] * z).unsqueeze(-1)
    with torch.no_grad():
        density = likelihood.log_density(f.movedim(1, 0), y)
        expected = torch.trapezoid(weights * density.mT, z)
        assert site.log_density(mean) == pytest.approx(float(expected.sum()), rel=1e-7)
        g, W = site.derivatives(mean)
        slope = torch.trapezoid(weights * likelihood.derivatives(f.movedim(1, 0), y)[0][..., 0].mT, z)
        assert_close(g[:, 0], slope, "derivative", dtype=torch.float32)
        step = 1e-4
        differences = (site.derivatives(mean - step)[0] - site.derivatives(mean + step)[0]) / (2.0 * step)
        assert_close(W[:, 0], differences, "derivative")


def test_the_laplace_likelihood_converges_with_a_certificate():
    model = make_model("laplace", 60, approximation="variational")
    solution = model.condition()
    assert solution.converged
    assert solution.certificate.objective_gap < 1e-3 * 60


# ----------------------------------------------------------------------- ordinal
@pytest.mark.parametrize("link", ["logit", "probit"])
def test_ordinal_predictive(link, dtype):
    likelihood = OrdinalLikelihood(4, link, cutpoints=torch.tensor(CUTPOINTS)).to(dtype)
    mean = torch.linspace(-3.0, 4.0, 6, dtype=dtype).unsqueeze(-1)
    for variance in (0.0, 0.4, 9.0):
        with torch.no_grad():
            predictive = likelihood.predictive(mean, torch.full((6, 1, 1), variance, dtype=dtype))
        z = np.linspace(-9.0, 9.0, 20_001)
        weights = sps.norm.pdf(z) * (z[1] - z[0])
        for row in range(6):
            f = (float(mean[row]) + math.sqrt(variance) * z)[:, None]
            name = f"ordinal-{link}"
            probs = [np.sum(weights * np.exp(CASES[name].density(f, np.full(len(z), k)))) for k in range(4)]
            assert np.allclose(predictive.probs[row].double().numpy(), probs, atol=2e-6)
        levels = torch.arange(4.0, dtype=dtype)
        assert_close(predictive.mean, predictive.probs @ levels, "local")
        assert_close(predictive.variance, predictive.probs @ levels.square() - predictive.mean**2, "derivative")
        assert_close(predictive.cdf(torch.tensor(1.0)), predictive.probs[:, :2].sum(-1), "local")
        assert not bool(predictive.standard_error.any())


def test_two_levels_are_a_bernoulli():
    f, y = torch.randn(8, 1, dtype=torch.float64), torch.arange(8) % 2
    for link in ("logit", "probit"):
        ordinal, bernoulli = OrdinalLikelihood(2, link).double(), BernoulliLikelihood(link)
        assert_close(ordinal.log_density(f, y), bernoulli.log_density(f, y.double()), "local")
        for one, other in zip(ordinal.derivatives(f, y), bernoulli.derivatives(f, y.double()), strict=True):
            assert_close(one, other, "local")


def test_reversing_the_levels_reverses_the_latent_function():
    cuts = torch.tensor(CUTPOINTS)
    for link in ("logit", "probit"):
        up = OrdinalLikelihood(4, link, cutpoints=cuts).double()
        down = OrdinalLikelihood(4, link, cutpoints=-cuts.flip(0)).double()
        f, y = torch.randn(12, 1, dtype=torch.float64), torch.arange(12) % 4
        assert_close(up.log_density(f, y), down.log_density(-f, 3 - y), "product", dtype=torch.float32)


def test_cutpoints():
    likelihood = OrdinalLikelihood(5, "probit")
    with torch.no_grad():
        assert_close(
            likelihood.predictive(torch.zeros(1, 1), torch.zeros(1, 1, 1)).probs, torch.full((1, 5), 0.2), "product"
        )
        likelihood.cutpoints = torch.tensor([-2.0, -1.0, 0.5, 3.0])
        assert_close(likelihood.cutpoints, torch.tensor([-2.0, -1.0, 0.5, 3.0]), "product")
    with pytest.raises(
        InputError, match=r"`cutpoints` must be 4 increasing numbers\. Got \[1\.0, 0\.0, 2\.0, 3\.0\]\. Sort"
    ):
        likelihood.cutpoints = torch.tensor([1.0, 0.0, 2.0, 3.0])
    with pytest.raises(InputError, match=r"must be 2 increasing numbers\. Got \[1\.0\]"):
        OrdinalLikelihood(3, cutpoints=torch.tensor([1.0]))
    with pytest.raises(InputError, match=r"`num_levels` must be at least 2\. Got 1\. Count"):
        OrdinalLikelihood(1)
    with pytest.raises(InputError, match=r"`link` must be 'logit' or 'probit'\. Got 'cloglog'\. Choose"):
        OrdinalLikelihood(3, "cloglog")  # type: ignore[arg-type]


def test_fresh_cutpoints_start_at_the_frequencies():
    y = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    likelihood = OrdinalLikelihood(3)
    assert likelihood.initialise(y) == ["likelihood.cutpoints"]
    probs = likelihood.predictive(torch.zeros(1, 1), torch.zeros(1, 1, 1)).probs.detach()
    assert_close(probs[0], (torch.tensor([70.0, 20.0, 10.0]) + 1.0) / 103.0, "product")
    assert likelihood.initialise(y) == []  # no longer at their default
    x, y = CASES["ordinal-logit"].data(60, dtype=torch.float32)
    model = SimpleGP(x, y, OrdinalLikelihood(4))
    result = itergp.fit(model, max_iterations=2)
    assert "likelihood.cutpoints" in result.initialised


# -------------------------------------------------------------------- parameters
@pytest.mark.parametrize(("name", "parameter"), [(n, p) for n, names in PARAMETERS.items() for p in names])
@torch.no_grad()
def test_parameters_are_gpytorchs(name, parameter):
    prior = gpytorch.priors.GammaPrior(2.0, 3.0)
    kind = type(CASES[name].make())
    constraint = (
        gpytorch.constraints.Interval(2.05, 9.0)
        if parameter == "deg_free"
        else gpytorch.constraints.Interval(0.01, 0.9)
    )
    value = 3.0 if parameter == "deg_free" else 0.2
    likelihood = kind(**{parameter: value, f"{parameter}_prior": prior, f"{parameter}_constraint": constraint})
    assert float(getattr(likelihood, parameter)) == pytest.approx(value)
    likelihood.initialize(**{parameter: value + 0.1})
    assert float(getattr(likelihood, parameter)) == pytest.approx(value + 0.1)
    setattr(likelihood, parameter, torch.tensor(value))
    assert getattr(likelihood, f"raw_{parameter}_constraint") is constraint
    twin = pickle.loads(pickle.dumps(likelihood))
    _, module, density, closure, setter = next(twin.named_priors())
    assert density.log_prob(closure(module)).shape == (1,)
    setter(module, torch.tensor(value + 0.2))
    assert float(getattr(twin, parameter)) == pytest.approx(value + 0.2)
    assert float(getattr(likelihood, parameter)) == pytest.approx(value)


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_has_a_gradient(name):
    likelihood, y = targets_of(name, 16)
    f = torch.randn(16, likelihood.num_latents, dtype=torch.float64)
    if list(likelihood.parameters()):
        likelihood.log_density(f, y).sum().backward()
    known = {name.removeprefix("raw_") for name, _ in likelihood.named_parameters()}
    assert known == set(PARAMETERS.get(name, ("first_cutpoint", "increments") if "ordinal" in name else ()))
    for parameter in likelihood.parameters():
        assert bool((parameter.grad != 0).all())


# ------------------------------------------------------------------------ errors
BAD = [
    ("bernoulli-cloglog", [0, 2], r"must be labels 0 or 1 for BernoulliLikelihood\. Got values \[2\]"),
    (
        "ordinal-logit",
        [0, 4],
        r"must be integers 0\.\.K-1 for OrdinalLikelihood\. Got values \[4\] with num_levels=4\. Re-enc",
    ),
    ("ordinal-probit", [0.0, 1.5], r"must be integers 0\.\.3 for OrdinalLikelihood\. Got the non-integer 1\.5"),
    ("binomial", [[1, 2, 3]], r"shape \(N,\), or \(N, 2\) with the number of trials .* Got \(1, 3\)\. Stack the two"),
    (
        "binomial",
        [[3, 2], [1, 1]],
        r"no more successes than trials .* for BinomialLikelihood\. Got 3\. Check the order",
    ),
    ("binomial", [[0, 0]], r"1 trial or more .* Got 0\. Rows without trials"),
    ("binomial", [[-1, 3]], r"must be counts 0, 1, 2, \.\.\. for BinomialLikelihood\. Got -1"),
    ("binomial", [[1.0, 2.5]], r"whole numbers of trials .* Got the non-integer 2\.5"),
    ("binomial", [0, 2], r"no more successes than trials \(1 without a second column\) .* Got 2"),
    ("poisson-exposure", [[1.0, 0.0]], r"positive exposure .* for PoissonLikelihood\. Got 0\. Rows without exposure"),
    ("poisson-exposure", [[1.0, float("nan")]], r"must be finite\. Got 1 NaN"),
    ("negative-binomial", [0, -2], r"must be counts 0, 1, 2, \.\.\. for NegativeBinomialLikelihood\. Got -2\. Check"),
    ("zero-inflated-poisson", [0.0, 1.5], r"for ZeroInflatedPoissonLikelihood\. Got the non-integer 1\.5"),
    ("student-t", [0.0, float("inf")], r"must be finite\. Got 1 NaN"),
    ("heteroscedastic", [[0.0], [1.0]], r"must have shape \(N,\) for HeteroscedasticGaussianLikelihood\. Got \(2, 1\)"),
    ("gamma", [1.0, 0.0], r"must be positive for GammaLikelihood\. Got 0\. Add the unit"),
    ("log-normal", [1.0, -1.0], r"must be positive for LogNormalLikelihood\. Got -1\. Add the unit"),
    ("beta", [0.5, 1.0], r"strictly between 0 and 1 for BetaLikelihood\. Got 1\. Move exact zeros"),
    ("weibull", [[0.0, 1.0]], r"must be positive times for WeibullLikelihood\. Got 0\. Shift times"),
    ("exponential", [[1.0, 2.0]], r"0 or 1 in the second column for ExponentialLikelihood\. Got 2\. Code observed"),
]


@pytest.mark.parametrize(("name", "targets", "match"), BAD)
def test_bad_targets(name, targets, match):
    with pytest.raises(InputError, match=f"`train_targets` .*{match}"):
        CASES[name].make().validate_targets(torch.tensor(targets))


def test_bad_keywords_of_predictions():
    model = make_model("poisson")
    x = make_inputs(3, seed=3)
    with pytest.raises(
        InputError, match=r"must be those of the likelihood: \('exposure',\) for PoissonLikelihood\. Got \['offset"
    ):
        model.predict(x, offsets=1.0)
    with pytest.raises(InputError, match=r": none for BernoulliLikelihood\. Got \['exposure'\]\. Leave"):
        make_model("bernoulli-logit").predict(x, exposure=1.0)
    with pytest.raises(InputError, match=r"`exposure` must be a number, or one per row with shape \(3,\)\. Got \(2,\)"):
        model.predict(x, exposure=torch.ones(2))
    with pytest.raises(InputError, match=r"`exposure` must be positive and finite\. Got -1\. Check"):
        model.predict(x, exposure=-1.0)
    with pytest.raises(InputError, match=r"`link` must be 'log' or 'softplus'\. Got 'logit'\. Choose"):
        PoissonLikelihood("logit")  # type: ignore[arg-type]


def test_missing_ordinal_levels():
    likelihood = OrdinalLikelihood(3)
    assert likelihood.missing(torch.tensor([0, -1, 2])).tolist() == [False, True, False]
    assert WeibullLikelihood().missing(torch.tensor([[1.0, 1.0], [float("nan"), 1.0]])).tolist() == [False, True]


@pytest.mark.filterwarnings("error")
def test_levels_of_one_kind_only_are_warned_about():
    x = make_inputs(5)
    with pytest.warns(itergp.ItergpWarning, match=r"All 5 targets are of one class \(2\)"):
        SimpleGP(x, torch.full((5,), 2), OrdinalLikelihood(4))


def test_the_marginal_is_the_log_of_an_expectation():
    likelihood, y = targets_of("weibull", 6)
    mean, variance = torch.linspace(-1.0, 1.0, 6).double(), torch.linspace(0.1, 1.0, 6).double()
    latent = MultivariateNormal(mean, torch.diag(variance))
    with torch.no_grad():
        value = likelihood.log_marginal(y, latent)
    for row in range(6):
        expected = _brute_force("weibull", float(mean[row]), float(variance[row]), y[row : row + 1])
        assert float(value[row]) == pytest.approx(float(expected[0]), abs=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_curvature_is_multiplied_and_rooted_as_it_is(name, weighted):
    """The products with structure, of the curvature W and of H with ``H H^T = W``, against the dense blocks."""
    _, y = CASES[name].data(30)
    likelihood = CASES[name].make().double()
    weight = torch.linspace(0.0, 2.0, 30, dtype=torch.float64) if weighted else None
    observations = likelihoods.Observations(likelihood, likelihood.validate_targets(y), weight)
    f, vector = make_inputs(30, likelihood.num_latents, seed=5), make_inputs(30, likelihood.num_latents, seed=6)
    _, curvature = observations.derivatives(f)
    expected = torch.einsum("ncd,nd->nc", curvature, vector)
    assert_close(observations.curvature_product(f, curvature)(vector), expected)
    apply, transpose = observations.curvature_root(f, curvature)
    assert_close(apply(transpose(vector)), expected)
    other = make_inputs(30, likelihood.num_latents, seed=7)
    assert_close((apply(vector) * other).sum(), (vector * transpose(other)).sum())
