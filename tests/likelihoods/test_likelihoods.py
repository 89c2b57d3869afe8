"""The calculus of every likelihood, and its predictive distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import gpytorch
import gpytorch.likelihoods as gl
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from helpers import CASES, TOLERANCE, Case, assert_close, make_model
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from itergp import InputError, likelihoods
from itergp.likelihoods import (
    AutomaticLikelihood,
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianLikelihood,
    LaplaceSite,
    Likelihood,
    Observations,
    PoissonLikelihood,
    SingleLatentLikelihood,
    VariationalSite,
    as_likelihood,
    base,
    latent_marginals,
    sampled,
)
from itergp.likelihoods.base import node_offsets
from itergp.likelihoods.quadrature import trapezoid
from itergp.models import GP
from itergp.numerics import DistinctRows

ROWS = 24


# ------------------------------------------------------------------------ grid
class Censored(gl.Likelihood):
    """A user's own likelihood: whether an exponential waiting time with log-rate ``f`` ends before a moment."""

    def forward(self, function_samples, *args, **kwargs):
        return torch.distributions.Bernoulli(probs=-torch.expm1(-torch.exp(function_samples)))


class Spread(gl.Likelihood):
    """A user's own likelihood with two latent functions: location and log scale."""

    num_latents = 2

    def forward(self, function_samples, *args, **kwargs):
        return torch.distributions.Normal(function_samples[..., 0], function_samples[..., 1].exp())


def _labels(num_classes: int) -> Callable[[], Tensor]:
    return lambda: torch.arange(ROWS) % num_classes


def _reals() -> Tensor:
    return torch.linspace(-3.0, 3.0, ROWS, dtype=torch.float64)


def _counts() -> Tensor:
    return torch.arange(ROWS) % 7


def _softmax(mixing: bool, features: int = 3, classes: int = 3) -> gl.Likelihood:
    likelihood = gl.SoftmaxLikelihood(num_features=features, num_classes=classes, mixing_weights=mixing)
    if mixing:
        likelihood.mixing_weights.data = torch.linspace(-1.0, 2.0, features * classes).reshape(classes, features)
    return likelihood


def _with(likelihood: gl.Likelihood, **values) -> gl.Likelihood:
    return likelihood.initialize(**values)


def _noises() -> Tensor:
    return torch.linspace(0.1, 2.0, ROWS, dtype=torch.float64)


@dataclass(frozen=True)
class Kind:
    """A row of the grid: the likelihood, its targets, and what is known about it."""

    make: Callable[[], gl.Likelihood]
    targets: Callable[[], Tensor]
    curvature: str = "hessian"
    log_concave: bool = True
    num_latents: int = 1
    quadratic: bool = False


def _ours(case: Case) -> Kind:
    return Kind(
        case.make, lambda: case.data(ROWS)[1], case.curvature, case.log_concave, case.num_latents, case.quadratic
    )


OURS = {name: _ours(case) for name, case in CASES.items()}
ADAPTED = {
    "gpytorch-bernoulli": Kind(gl.BernoulliLikelihood, _labels(2)),
    "gpytorch-softmax": Kind(lambda: _softmax(mixing=False), _labels(3), num_latents=3),
    "gpytorch-softmax-mixed": Kind(lambda: _softmax(mixing=True, features=2), _labels(3), num_latents=2),
    "gpytorch-poisson": Kind(gl.PoissonLikelihood, _counts),
    "gpytorch-gaussian": Kind(lambda: _with(gl.GaussianLikelihood(), noise=0.3), _reals, quadratic=True),
    "gpytorch-fixed-noise": Kind(lambda: gl.FixedNoiseGaussianLikelihood(_noises()), _reals, quadratic=True),
    "gpytorch-fixed-noise-learned": Kind(
        lambda: gl.FixedNoiseGaussianLikelihood(_noises(), learn_additional_noise=True), _reals, quadratic=True
    ),
    "gpytorch-student-t": Kind(
        lambda: _with(gl.StudentTLikelihood(), deg_free=4.0, noise=0.5), _reals, "complete-data", log_concave=False
    ),
    "gpytorch-laplace": Kind(lambda: _with(gl.LaplaceLikelihood(), noise=0.5), _reals, "fisher"),
    "gpytorch-beta": Kind(
        lambda: _with(gl.BetaLikelihood(), scale=3.0),
        lambda: torch.linspace(0.05, 0.95, ROWS, dtype=torch.float64),
        "absolute hessian",
        log_concave=False,
    ),
    "gpytorch-negative-binomial": Kind(
        lambda: _with(gl.NegativeBinomialLikelihood(), probs=0.4), _counts, "absolute hessian", log_concave=False
    ),
    "own-censored": Kind(Censored, _labels(2), "absolute hessian", log_concave=False),
    "own-two-latents": Kind(Spread, _reals, "absolute hessian", log_concave=False, num_latents=2),
}
GRID = {**OURS, **ADAPTED}

grid = pytest.mark.parametrize("name", GRID)
ours = pytest.mark.parametrize("name", OURS)


def _calculus(name: str) -> tuple[Likelihood, Tensor]:
    kind = GRID[name]
    likelihood = as_likelihood(kind.make().double())
    return likelihood, likelihood.validate_targets(kind.targets())


def _latents(name: str, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(ROWS, GRID[name].num_latents, dtype=torch.float64)


def _autograd(likelihood: Likelihood, f: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient ``(N, C)`` and negative Hessian ``(N, C, C)`` of the log-density by automatic differentiation."""
    f = f.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(likelihood.log_density(f, targets).sum(), f, create_graph=True)
    rows = []
    for c in range(f.shape[-1]):
        row = torch.zeros_like(f)
        if gradient.requires_grad:
            (row,) = torch.autograd.grad(gradient[:, c].sum(), f, retain_graph=True, materialize_grads=True)
        rows.append(row)
    return gradient.detach(), -torch.stack(rows, -1)


# ------------------------------------------------------------------- calculus
@grid
def test_what_is_known(name):
    likelihood, _ = _calculus(name)
    kind = GRID[name]
    assert isinstance(likelihood, Likelihood)
    assert likelihood.curvature == kind.curvature
    assert likelihood.log_concave is kind.log_concave
    assert likelihood.num_latents == kind.num_latents
    assert likelihood.quadratic is kind.quadratic
    assert as_likelihood(likelihood) is likelihood


@grid
def test_gradient(name):
    likelihood, targets = _calculus(name)
    f = _latents(name)
    g, W = likelihood.derivatives(f, targets)
    assert W.shape == (ROWS, likelihood.num_latents, likelihood.num_latents)
    assert_close(g, _autograd(likelihood, f, targets)[0], "local")


@pytest.mark.parametrize("name", [n for n, kind in GRID.items() if kind.curvature == "hessian"])
def test_curvature_is_the_negative_hessian(name):
    likelihood, targets = _calculus(name)
    f = _latents(name)
    assert_close(likelihood.derivatives(f, targets)[1], _autograd(likelihood, f, targets)[1], "local")


@pytest.mark.parametrize("name", [n for n, kind in GRID.items() if kind.curvature == "absolute hessian"])
def test_curvature_is_the_absolute_hessian(name):
    likelihood, targets = _calculus(name)
    f = _latents(name)
    hessian = _autograd(likelihood, f, targets)[1]
    values = torch.linalg.eigvalsh(hessian).abs().sort(-1).values
    W = likelihood.derivatives(f, targets)[1]
    assert bool((torch.linalg.eigvalsh(hessian) < 0).any()) or name == "own-censored"
    assert_close(torch.linalg.eigvalsh(W), values, "derivative")
    assert_close(W @ hessian, hessian @ W, "derivative")  # the same eigenvectors


MAJORISED = ("student-t", "gpytorch-student-t")


@pytest.mark.parametrize("name", MAJORISED)
@torch.no_grad()
def test_curvature_majorises(name):
    """A quadratic with it touches the log-density and is nowhere above it, however far off the target is."""
    likelihood, targets = _calculus(name)
    assert likelihood.majorises
    for scale in (0.1, 2.0, 100.0):
        f, other = _latents(name, scale), _latents(name, scale)
        g, W = (x.flatten() for x in likelihood.derivatives(f, targets))
        step = (other - f).flatten()
        quadratic = likelihood.log_density(f, targets) + g * step - 0.5 * W * step.square()
        assert bool((likelihood.log_density(other, targets) >= quadratic - 1e-9 * quadratic.abs()).all())


@pytest.mark.parametrize("name", [n for n, kind in GRID.items() if kind.curvature == "fisher" or n in MAJORISED])
@pytest.mark.parametrize("latent", [-1.3, 0.0, 1.1])
@torch.no_grad()
def test_covariances_are_conditioned_with_the_fisher_information(name, latent):
    likelihood, _ = _calculus(name)
    y = torch.sinh(torch.linspace(-12.0, 12.0, 20_001, dtype=torch.float64))
    observed = CASES[name].observed if name in CASES else "real"
    if observed == "share":
        y = torch.sigmoid(torch.linspace(-40.0, 36.0, 20_001, dtype=torch.float64))
    f = torch.full((len(y), likelihood.num_latents), latent, dtype=torch.float64)
    observations = Observations(likelihood, y)
    g, W = observations.derivatives(f)
    W = LaplaceSite(observations).covariance_curvature(f, W)
    density = likelihood.log_density(f, y).exp()
    outer = density[:, None, None] * g.unsqueeze(-1) * g.unsqueeze(-2)
    total, fisher = torch.trapezoid(density, y), torch.trapezoid(outer, y, dim=0)
    assert float(total) == pytest.approx(1.0, abs=1e-5)
    assert_close(W[0], fisher, "product", dtype=torch.float32)


@grid
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
@torch.no_grad()
def test_curvature_is_positive_semi_definite(name, scale):
    likelihood, targets = _calculus(name)
    f = _latents(name, scale)
    g, W = likelihood.derivatives(f, targets)
    assert bool(torch.isfinite(g).all())
    assert bool(torch.isfinite(W).all())
    assert_close(W, W.mT, "local")
    values = torch.linalg.eigvalsh(W)
    assert float(values.min()) >= -1e-12 * float(values.max())


@grid
def test_leading_dimensions_are_samples(name):
    likelihood, targets = _calculus(name)
    f = torch.randn(3, 2, ROWS, likelihood.num_latents, dtype=torch.float64)
    g, W = likelihood.derivatives(f, targets)
    density = likelihood.log_density(f, targets)
    one_g, one_W = likelihood.derivatives(f[1, 0], targets)
    assert_close(density[1, 0], likelihood.log_density(f[1, 0], targets), "local")
    assert_close(g[1, 0], one_g, "local")
    assert_close(W[1, 0], one_W, "local")
    assert (density.shape, g.shape) == ((3, 2, ROWS), f.shape)


@grid
def test_float32_is_near_float64(name):
    likelihood, targets = _calculus(name)
    f = _latents(name)
    expected = likelihood.log_density(f, targets), *likelihood.derivatives(f, targets)
    likelihood = as_likelihood(GRID[name].make().float())
    targets = likelihood.validate_targets(GRID[name].targets())
    actual = likelihood.log_density(f.float(), targets), *likelihood.derivatives(f.float(), targets)
    if targets.is_floating_point() and targets.dtype == torch.float64:  # real targets: as a model would have them
        targets = targets.float()
        actual = likelihood.log_density(f.float(), targets), *likelihood.derivatives(f.float(), targets)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        assert_close(a, e, "derivative")


@pytest.mark.parametrize(
    ("name", "density"),
    [
        ("gpytorch-bernoulli", lambda f: scipy.stats.bernoulli(scipy.stats.norm.cdf(f))),
        ("gpytorch-poisson", lambda f: scipy.stats.poisson(np.log1p(np.exp(f)))),
        ("gpytorch-gaussian", lambda f: scipy.stats.norm(f, math.sqrt(0.3))),
        ("gpytorch-fixed-noise", lambda f: scipy.stats.norm(f, _noises().sqrt().numpy())),
        ("gpytorch-student-t", lambda f: scipy.stats.t(4.0, f, math.sqrt(0.5))),
        ("gpytorch-laplace", lambda f: scipy.stats.laplace(f, math.sqrt(0.5))),
        (
            "gpytorch-beta",
            lambda f: scipy.stats.beta(scipy.special.expit(f) * 3.0 + 1.0, scipy.special.expit(-f) * 3.0 + 1.0),
        ),
        ("gpytorch-negative-binomial", lambda f: scipy.stats.nbinom(np.log1p(np.exp(f)) * 0.6 / 0.4, 0.6)),
        ("own-censored", lambda f: scipy.stats.bernoulli(-np.expm1(-np.exp(f)))),
    ],
)
def test_log_density_of_gpytorchs(name, density):
    likelihood, targets = _calculus(name)
    f = _latents(name)
    reference = density(f.squeeze(-1).numpy())
    log_density = reference.logpmf if hasattr(reference.dist, "logpmf") else reference.logpdf
    expected = torch.from_numpy(log_density(targets.double().numpy()))
    assert_close(likelihood.log_density(f, targets), expected, "derivative")


@ours
@torch.no_grad()
def test_log_density(name):
    likelihood, targets = _calculus(name)
    f = _latents(name)
    expected = torch.from_numpy(CASES[name].density(f.numpy(), targets.double().numpy()))
    assert_close(likelihood.log_density(f, targets), expected, "derivative")


def test_log_density_of_classes():
    for name in ("gpytorch-softmax", "gpytorch-softmax-mixed"):
        likelihood, targets = _calculus(name)
        f = _latents(name)
        logits = f @ likelihood.wrapped.mixing_weights.mT if "mixed" in name else f
        expected = torch.distributions.Categorical(logits=logits).log_prob(targets)
        assert_close(likelihood.log_density(f, targets), expected, "local")


@pytest.mark.parametrize("name", [n for n in ADAPTED if n != "gpytorch-softmax"])
def test_log_density_equals_gpytorchs_own(name):
    likelihood, targets = _calculus(name)
    if name == "gpytorch-fixed-noise-learned":
        likelihood.wrapped.second_noise = 0.7
    f = _latents(name)
    samples = f.squeeze(-1) if likelihood.num_latents == 1 else f
    original = getattr(likelihood, "wrapped", None) or GRID[name].make().double()
    expected = original(samples).log_prob(targets.double())
    assert_close(likelihood.log_density(f, targets), expected, "derivative")


def test_parameters_stay_those_of_the_wrapped_likelihood():
    wrapped = gl.StudentTLikelihood().double()
    adapted = as_likelihood(wrapped)
    f, y = torch.zeros(3, 1, dtype=torch.float64), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    before = adapted.log_density(f, y)
    wrapped.noise = 7.0
    assert not torch.allclose(adapted.log_density(f, y), before)
    assert_close(adapted.log_density(f, y), wrapped(f.squeeze(-1)).log_prob(y), "local")
    mixing = _softmax(mixing=True).double()
    f, y = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 3
    as_likelihood(mixing).log_density(f, y).sum().backward()
    assert mixing.mixing_weights.grad is not None


def test_softmax_with_as_many_rows_as_classes():
    # GPyTorch transposes such inputs.
    likelihood = as_likelihood(_softmax(mixing=False).double())
    f, y = torch.randn(3, 3, dtype=torch.float64), torch.tensor([0, 2, 1])
    assert_close(likelihood.log_density(f, y), torch.log_softmax(f, -1)[torch.arange(3), y], "local")
    mixed = as_likelihood(_softmax(mixing=True).double())
    logits = f @ mixed.wrapped.mixing_weights.mT
    assert_close(mixed.log_density(f, y), torch.log_softmax(logits, -1)[torch.arange(3), y], "local")


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ("bernoulli", r"`likelihood` must be an itergp or GPyTorch likelihood\. Got str\. Use for example"),
        (None, r"must be an itergp or GPyTorch likelihood\. Got NoneType"),
        (
            gl.LikelihoodList(gl.GaussianLikelihood()),
            r"of a row's outputs\. Got LikelihoodList\. Use MultitaskGaussian",
        ),
    ],
)
def test_what_is_no_likelihood(bad, match):
    with pytest.raises(InputError, match=match):
        as_likelihood(bad)


def test_arguments():
    with pytest.raises(InputError, match=r"`link` must be 'logit', 'probit' or 'cloglog'\. Got 'log'"):
        BernoulliLikelihood(link="log")  # type: ignore[arg-type]
    for bad in (1, 0, -2):
        with pytest.raises(InputError, match=rf"`num_classes` must be at least 2\. Got {bad}"):
            CategoricalLikelihood(bad)


# ------------------------------------------------------------------- extremes
def _floats(limit: float, size: int = 1):
    value = st.floats(-limit, limit, width=32, allow_nan=False)
    return st.lists(st.lists(value, min_size=size, max_size=size), min_size=1, max_size=8)


def _compute(likelihood: Likelihood, f: list, targets: Tensor, dtype: torch.dtype) -> list[np.ndarray]:
    f = torch.tensor(f, dtype=dtype)
    targets = likelihood.validate_targets(targets)
    values = likelihood.log_density(f, targets), *likelihood.derivatives(f, targets)
    assert all(v.dtype == dtype for v in values)
    assert all(bool(torch.isfinite(v).all()) for v in values)
    assert float(torch.linalg.eigvalsh(values[2].double()).min()) >= -1e-6
    return [v.double().numpy() for v in values]


def _near(actual: np.ndarray, expected: np.ndarray, dtype: torch.dtype, scale: float | np.ndarray = 0.0) -> None:
    """Elementwise: an error relative to each value, or to a scale where terms cancel."""
    tolerance = TOLERANCE[dtype].local
    assert np.all(np.abs(actual - expected) <= tolerance * (np.abs(expected) + scale) + 1e-37)


@given(f=_floats(1e3), label=st.sampled_from([0.0, 1.0]))
def test_extreme_logit(dtype, f, label):
    density, g, W = _compute(BernoulliLikelihood(), f, torch.full((len(f),), label), dtype)
    sign, f = 2.0 * label - 1.0, np.array(f)
    _near(density, -np.logaddexp(0.0, -sign * f[:, 0]), dtype)
    _near(g, sign * scipy.special.expit(-sign * f), dtype)
    _near(W[..., 0], scipy.special.expit(f) * scipy.special.expit(-f), dtype)


@given(f=_floats(1e3), label=st.sampled_from([0.0, 1.0]))
def test_extreme_probit(dtype, f, label):
    density, g, W = _compute(BernoulliLikelihood("probit"), f, torch.full((len(f),), label), dtype)
    sign, margin = 2.0 * label - 1.0, (2.0 * label - 1.0) * np.array(f)
    _near(density, scipy.special.log_ndtr(margin)[:, 0], dtype)
    # N(z) / Phi(z) from the logarithms of both: what cancels is as large as z^2.
    ratio = np.exp(scipy.stats.norm.logpdf(margin) - scipy.special.log_ndtr(margin))
    _near(g, sign * ratio, torch.float32)
    assert np.all((W >= 0.0) & (W <= 1.0 + 1e-5))


@pytest.mark.parametrize("margin", [-1e3, -300.0, -50.0, -15.0, -12.1, -11.9, -5.0, -1.0, 0.0, 1.0, 5.0, 9.0, 13.0])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_probit_in_the_tails(margin, label, dtype):
    mpmath = pytest.importorskip("mpmath")  # comes with torch
    sign = 2.0 * label - 1.0
    density, g, W = _compute(BernoulliLikelihood("probit"), [[sign * margin]], torch.tensor([label]), dtype)
    with mpmath.workdps(60):
        z = mpmath.mpf(margin)
        ratio = mpmath.npdf(z) / mpmath.ncdf(z)
        expected = [float(mpmath.log(mpmath.ncdf(z))), float(sign * ratio), float(ratio * (ratio + z))]
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    for actual, wanted in zip((density, g, W), expected, strict=True):
        assert actual.item() == pytest.approx(wanted, rel=tolerance, abs=1e-30)


@given(f=_floats(1e3, size=4), label=st.integers(0, 3))
def test_extreme_softmax(dtype, f, label):
    targets = torch.full((len(f),), label)
    density, g, W = _compute(CategoricalLikelihood(4), f, targets, dtype)
    f = np.array(f)
    probs = scipy.special.softmax(f, -1)
    _near(density, scipy.special.log_softmax(f, -1)[:, label], dtype, scale=np.abs(f).max(-1))
    _near(g, np.eye(4)[label] - probs, dtype, scale=1.0)
    _near(W, probs[:, :, None] * np.eye(4) - probs[:, :, None] * probs[:, None, :], dtype, scale=1.0)


@given(f=_floats(1e3), count=st.integers(0, 10**6))
def test_extreme_poisson(dtype, f, count):
    density, g, W = _compute(PoissonLikelihood(), f, torch.full((len(f),), count), dtype)
    f = np.array(f)
    inside = f[:, 0] <= 80.0
    f = f[inside]
    rate, log_factorial = np.exp(f), scipy.special.gammaln(count + 1.0)
    scale = count * np.abs(f) + rate + log_factorial
    _near(density[inside], (count * f - rate - log_factorial)[:, 0], dtype, scale=scale[:, 0])
    _near(g[inside], count - rate, dtype, scale=count + rate)
    _near(W[inside][..., 0], rate, dtype)


@given(f=_floats(1e3), target=st.floats(-1e3, 1e3, width=32), log_noise=st.floats(-3.0, 3.0))
def test_extreme_gaussian(dtype, f, target, log_noise):
    noise = 10.0**log_noise
    likelihood = GaussianLikelihood(noise=noise).to(dtype)
    noise = float(likelihood.noise.detach())
    with torch.no_grad():
        density, g, W = _compute(likelihood, f, torch.full((len(f),), target, dtype=dtype), dtype)
    f = np.array(f)
    scale = (abs(target) + np.abs(f[:, 0])) ** 2 / noise + 1.0
    _near(density, scipy.stats.norm.logpdf(target, f[:, 0], math.sqrt(noise)), dtype, scale=scale)
    _near(g, (target - f) / noise, dtype, scale=(abs(target) + np.abs(f)) / noise)
    _near(W[..., 0], np.full_like(f, 1.0 / noise), dtype)


@pytest.mark.parametrize("name", [n for n in ADAPTED if n != "own-two-latents"])
@pytest.mark.parametrize("extreme", [-1e3, -100.0, -20.1, -19.9, 50.0, 100.0, 1e3])
def test_extreme_values_of_gpytorchs_likelihoods(name, extreme, dtype):
    likelihood = as_likelihood(GRID[name].make().to(dtype))
    targets = likelihood.validate_targets(GRID[name].targets())
    targets = targets.to(dtype) if targets.is_floating_point() else targets
    g, W = likelihood.derivatives(torch.full((ROWS, likelihood.num_latents), extreme, dtype=dtype), targets)
    if name not in ("gpytorch-beta", "gpytorch-negative-binomial", "own-censored"):  # theirs to keep finite
        assert bool(torch.isfinite(likelihood.log_density(g.new_full(g.shape, extreme), targets)).all())
        assert bool(torch.isfinite(g).all())
    assert bool(torch.isfinite(W).all()) or not bool(torch.isfinite(g).all())


# --------------------------------------------------------------- expectations
def _nodes(likelihood: Likelihood, mean: Tensor) -> tuple[Tensor, Tensor]:
    nodes, weights = likelihood.standard_nodes(mean)
    return (0.7 * nodes).expand(-1, *mean.shape).contiguous(), weights


@pytest.mark.parametrize("name", GRID)
def test_a_likelihood_says_how_many_nodes_it_averages_over(name):
    """Which is what memory is planned by."""
    likelihood, _ = _calculus(name)
    nodes, weights = likelihood.standard_nodes(_latents(name))
    assert likelihood.num_nodes == nodes.shape[0] == weights.shape[0]


EXPONENTIAL = ("poisson", "poisson-exposure", "gamma", "weibull", "exponential")  # in closed form
PARTLY = {"bernoulli-cloglog": lambda y: y == 0.0, "zero-inflated-poisson": lambda y: y > 0.0}  # of these targets
BETTER = (*EXPONENTIAL, *PARTLY, "heteroscedastic", "laplace", "gpytorch-laplace")
FINER = ("student-t", "gpytorch-student-t", "weibull-intervals")  # than these few nodes


@pytest.mark.parametrize("name", [name for name in GRID if name not in (*BETTER, *FINER)])
def test_expected_derivatives_are_averages(name):
    likelihood, targets = _calculus(name)
    mean = _latents(name)
    offsets, weights = _nodes(likelihood, mean)
    g, W = likelihood.expected_derivatives(mean, offsets, weights, targets)
    each = [likelihood.derivatives(mean + offset, targets) for offset in offsets]
    assert_close(g, sum(w * one[0] for w, one in zip(weights, each, strict=True)), "local")
    assert_close(W, sum(w * one[1] for w, one in zip(weights, each, strict=True)), "local")


@pytest.mark.parametrize("name", [*EXPONENTIAL, *PARTLY])
@pytest.mark.parametrize("variance", [0.1, 4.0, 9.0])
@torch.no_grad()
def test_expected_exponentials_are_those_of_a_fine_rule(name, variance):
    likelihood, targets = _calculus(name)
    mean = _latents(name) - 0.5 * variance * (-1.0 if name in ("gamma", "weibull", "exponential") else 1.0)
    nodes, weights = likelihood.standard_nodes(mean)
    offsets = (variance**0.5 * nodes).expand(-1, *mean.shape)
    fine, fine_weights = trapezoid(0.02, like=mean)
    fine_offsets = (variance**0.5 * fine[:, None, None]).expand(-1, *mean.shape)
    g, W = likelihood.expected_derivatives(mean, offsets, weights, targets)
    expected = Likelihood.expected_derivatives(likelihood, mean, fine_offsets, fine_weights, targets)
    pairs = list(zip((g, W), expected, strict=True))
    ours = likelihood.expected_log_density(mean, offsets, weights, targets)
    pairs.append((ours, Likelihood.expected_log_density(likelihood, mean, fine_offsets, fine_weights, targets)))
    limit = 1e-7  # the fine rule ends at twelve deviations
    exact = PARTLY.get(name, lambda y: torch.ones(ROWS, dtype=torch.bool))(targets)
    assert bool(exact.any())
    for ours, theirs in pairs:
        assert float((ours - theirs)[exact].abs().max()) <= limit * float(theirs[exact].abs().max())
        assert float((ours - theirs).abs().max()) <= 0.02 * float(theirs.abs().max())


@torch.no_grad()
def test_expected_noise_is_that_of_a_fine_rule():
    """Of two correlated functions, one of them the logarithm of the noise, whose precision is large where few nodes are."""
    likelihood, targets = _calculus("heteroscedastic")
    mean, root = _latents("heteroscedastic"), torch.tensor([[1.5, 0.0], [1.2, 2.0]], dtype=torch.float64)
    nodes, weights = likelihood.standard_nodes(mean)
    line, masses = trapezoid(0.2, like=mean)
    fine, fine_weights = torch.cartesian_prod(line, line)[:, None, :], torch.cartesian_prod(masses, masses).prod(-1)
    rough, exact = ((each @ root.mT).expand(-1, *mean.shape[:1], -1).contiguous() for each in (nodes.double(), fine))
    ours = likelihood.expected_derivatives(mean, rough, weights, targets)
    theirs = Likelihood.expected_derivatives(likelihood, mean, exact, fine_weights, targets)
    density = likelihood.expected_log_density(mean, rough, weights, targets)
    fine_density = Likelihood.expected_log_density(likelihood, mean, exact, fine_weights, targets)
    for a, b in (*zip(ours, theirs, strict=True), (density, fine_density)):
        assert float((a - b).abs().max()) <= 1e-6 * float(b.abs().max())


@pytest.mark.parametrize("name", [n for n in GRID if GRID[n].num_latents == 1 and n not in BETTER])
@pytest.mark.parametrize("deviation", [0.7, 1.4, 3.0, 8.0])
@torch.no_grad()
def test_expectations_of_wide_marginals_are_those_of_a_fine_rule(name, deviation):
    """Twenty nodes are far apart there, and likelihoods change between them."""
    likelihood, targets = _calculus(name)
    if isinstance(likelihood, AutomaticLikelihood):
        pytest.skip("not finite twelve deviations from the mean")
    if deviation > 3.0 and name in ("bernoulli-cloglog", "zero-inflated-poisson", "weibull-intervals"):
        pytest.skip("exponentials that overflow are continued linearly, with a kink")
    mean = _latents(name, deviation)
    nodes, weights = likelihood.standard_nodes(mean)
    offsets = (deviation * nodes).expand(-1, *mean.shape)
    fine, fine_weights = trapezoid(0.05 / max(deviation, 1.0), like=mean)
    f = mean + deviation * fine[:, None, None]
    expected = [likelihood.log_density(f, targets), *likelihood.derivatives(f, targets)]
    found = [
        likelihood.expected_log_density(mean, offsets, weights, targets),
        *likelihood.expected_derivatives(mean, offsets, weights, targets),
    ]
    for ours, values in zip(found, expected, strict=True):
        theirs = torch.einsum("s,s...->...", fine_weights, values)
        assert float((ours - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max())


@pytest.mark.parametrize("name", [n for n in GRID if GRID[n].num_latents == 1])
@torch.no_grad()
def test_expectations_of_a_row_are_its_own(name):
    """A wide marginal changes the nodes of its own row, and not those of the rows beside it or in another process."""
    likelihood, targets = _calculus(name)
    if not likelihood.exchangeable:
        pytest.skip("rows cannot be looked at alone")
    mean = _latents(name)
    nodes, weights = likelihood.standard_nodes(mean)
    offsets = torch.logspace(-1.0, 1.0, len(mean), dtype=torch.float64)[:, None] * nodes

    def expectations(rows: slice) -> list[Tensor]:
        arguments = mean[rows], offsets[:, rows], weights, targets[rows]
        return [likelihood.expected_log_density(*arguments), *likelihood.expected_derivatives(*arguments)]

    together = expectations(slice(None))
    for row in range(len(mean)):
        for alone, value in zip(expectations(slice(row, row + 1)), together, strict=True):
            torch.testing.assert_close(alone[0], value[row], rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("deviation", [0.7, 3.0])
@torch.no_grad()
def test_heteroscedastic_expectations_are_those_of_a_fine_rule(deviation):
    likelihood, targets = _calculus("heteroscedastic")
    mean = _latents("heteroscedastic")
    root = deviation * torch.tensor([[1.0, 0.0], [-0.6, 0.8]]).double()
    nodes, weights = likelihood.standard_nodes(mean)
    offsets = torch.einsum("cd,snd->snc", root, nodes)
    fine, fine_weights = trapezoid(0.1, like=mean)
    fine, fine_weights = torch.cartesian_prod(fine, fine), torch.cartesian_prod(fine_weights, fine_weights).prod(-1)
    f = mean + (fine @ root.mT)[:, None, :]
    expected = [likelihood.log_density(f, targets), *likelihood.derivatives(f, targets)]
    found = [
        likelihood.expected_log_density(mean, offsets, weights, targets),
        *likelihood.expected_derivatives(mean, offsets, weights, targets),
    ]
    for ours, values in zip(found, expected, strict=True):
        theirs = torch.einsum("s,s...->...", fine_weights, values)
        assert float((ours - theirs).abs().max()) <= 1e-6 * float(theirs.abs().max())


@pytest.mark.parametrize("deviation", [0.5, 3.0, 13.0])
@torch.no_grad()
def test_predictions_of_ones_own_likelihood_are_those_of_a_fine_rule(deviation):
    """Beta densities are a fraction of such a deviation wide, which few nodes step over."""
    likelihood = as_likelihood(_with(gl.BetaLikelihood(), scale=2.0).double())
    mean, y = torch.tensor([[0.9], [-2.0]]).double(), torch.tensor([0.7, 0.2]).double()
    nodes, weights = trapezoid(0.1 / max(deviation, 1.0), like=mean)
    nodes, weights = nodes[nodes.abs() < 8.0], weights[nodes.abs() < 8.0]
    densities = likelihood.log_density(mean + deviation * nodes[:, None, None], y).exp()
    expected = torch.einsum("s,sn->n", weights, densities.nan_to_num())
    found = likelihood.predictive(mean, torch.full((2, 1, 1), deviation**2).double()).log_prob(y).exp()
    assert float(((found - expected).abs() / expected).max()) < 1e-3


@grid
def test_expected_gradient_is_the_gradient_of_the_expectation(name):
    likelihood, targets = _calculus(name)
    mean = _latents(name).requires_grad_(True)
    offsets, weights = _nodes(likelihood, mean)
    expectation = likelihood.expected_log_density(mean, offsets, weights, targets)
    assert expectation.shape == (ROWS,)
    (expected,) = torch.autograd.grad(expectation.sum(), mean)
    g, _ = likelihood.expected_derivatives(mean.detach(), offsets, weights, targets)
    assert_close(g, expected, "local")


@pytest.mark.parametrize("name", sorted(set(GRID) - {"own-censored"}))  # which is clamped: theirs to keep smooth
def test_expectations_have_slopes_in_the_covariance(name):
    """That learning needs: an expectation moves with the marginals as it does when these are a little wider."""
    likelihood, targets = _calculus(name)
    mean = _latents(name)
    nodes, weights = _nodes(likelihood, mean)
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(likelihood.expected_log_density(mean, scale * nodes, weights, targets).sum(), scale)
    with torch.no_grad():
        ends = [
            likelihood.expected_log_density(mean, s * nodes, weights, targets).sum() for s in (1.0 - 1e-5, 1.0 + 1e-5)
        ]
    assert float(slope) == pytest.approx(float(ends[1] - ends[0]) / 2e-5, rel=1e-4, abs=1e-4)


def test_categorical_expectation_equals_the_general_one(dtype):
    likelihood, targets = CategoricalLikelihood(3), _labels(3)()
    mean = 3.0 * torch.randn(ROWS, 3, dtype=dtype)
    offsets, weights = _nodes(likelihood, mean)
    g, W = likelihood.expected_derivatives(mean, offsets, weights, targets)
    general_g, general_W = Likelihood.expected_derivatives(likelihood, mean, offsets, weights, targets)
    assert_close(g, general_g, "local")
    assert_close(W, general_W, "local")


def test_nodes_are_standard_normal(dtype):
    nodes, weights = BernoulliLikelihood().standard_nodes(torch.zeros(5, 1, dtype=dtype))
    assert nodes.shape == (20, 1, 1)
    assert nodes.dtype == weights.dtype == dtype
    tolerance = TOLERANCE[dtype].local
    for power, moment in ((0, 1.0), (1, 0.0), (2, 1.0), (4, 3.0), (6, 15.0)):
        assert float((weights * nodes.flatten() ** power).sum()) == pytest.approx(moment, abs=20 * tolerance)
    like = torch.zeros(4_000, 3, dtype=dtype)
    nodes, weights = CategoricalLikelihood(3).standard_nodes(like)
    assert nodes.shape == (32, 4_000, 3)
    assert float(weights.sum()) == pytest.approx(1.0)
    assert float((weights[:, None, None] * nodes).sum(0).abs().max()) < 1e-5  # antithetic
    moments = torch.einsum("snc,snd->ncd", nodes, nodes) / 32
    assert float((moments - torch.eye(3, dtype=dtype)).abs().max()) < 20 * tolerance  # of every row by itself
    assert torch.equal(nodes, CategoricalLikelihood(3).standard_nodes(like)[0])
    assert not torch.equal(nodes, CategoricalLikelihood(3).standard_nodes(like, seed=1)[0])


@pytest.mark.parametrize(("classes", "deviation"), [(c, s) for c in (2, 3, 10) for s in (0.5, 1.0, 3.0, 10.0)])
@torch.no_grad()
def test_samples_are_more_where_marginals_are_wide(classes, deviation):
    """Expected gradients are near those by 2^14 points; with 32 independent samples errors are 3 to 10 times as large."""
    rows, generator = 200, torch.Generator().manual_seed(0)
    likelihood = CategoricalLikelihood(classes)
    mean = (1.0 + deviation) * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    root = deviation * torch.randn(rows, classes, classes, generator=generator, dtype=torch.float64) / classes**0.5
    targets = torch.randint(classes, (rows,), generator=generator)
    points = torch.quasirandom.SobolEngine(classes, scramble=True, seed=5).draw(2**13, dtype=torch.float64)
    points = torch.special.ndtri(points.clamp(1e-12, 1 - 1e-12))
    points = torch.cat([points, -points])
    exact = torch.stack([torch.softmax(m + points @ r.mT, -1).mean(0) for m, r in zip(mean, root, strict=True)])
    observations = Observations(likelihood, targets)
    site = VariationalSite.from_covariance(observations, root @ root.mT)
    gradient, curvature = site.derivatives(mean)
    found = torch.nn.functional.one_hot(targets, classes) - gradient
    assert float((found - exact).square().mean().sqrt()) < {0.5: 0.001, 1.0: 0.006, 3.0: 0.016, 10.0: 0.016}[deviation]
    # A row's expectation is its own, whatever other rows there are, in whichever order.
    few = torch.arange(0, rows, 7)
    part = VariationalSite.from_covariance(observations, root @ root.mT)
    part = replace(part, observations=observations.take(few), offsets=part.offsets[:, few])
    assert_close(part.derivatives(mean[few])[0], gradient[few], "local")
    assert_close(part.derivatives(mean[few])[1], curvature[few], "local")


@torch.no_grad()
def test_samples_of_marginals_that_are_not_finite_or_nothing():
    likelihood, mean = CategoricalLikelihood(3), torch.zeros(3, 3, dtype=torch.float64)
    covariance = 50.0 * torch.eye(3, dtype=torch.float64).repeat(3, 1, 1)
    covariance[0], covariance[1, 2, 2] = torch.nan, 0.0
    offsets = node_offsets(covariance.sqrt(), likelihood.standard_nodes(mean)[0])
    weights = torch.full((32,), 1 / 32, dtype=torch.float64)
    targets = torch.zeros(3, dtype=torch.int64)
    assert bool(likelihood.expected_derivatives(mean, offsets, weights, targets)[0][0].isnan().all())
    gradient, _ = likelihood.expected_derivatives(mean[1:], offsets[:, 1:], weights, targets[1:])
    assert bool(torch.isfinite(gradient).all())


def _nodes_of_rows(covariance, width=1.0, **options):
    """How many nodes by_width averages over for every row of marginals ``(N, C, C)``, and the averages of a softmax."""
    mean, numbers = torch.zeros(covariance.shape[:2], dtype=torch.float64), torch.zeros(len(covariance))
    nodes, weights = sampled.antithetic_nodes(mean)
    rows = torch.arange(len(covariance))

    def average(around, offsets, weights, which):
        numbers[which] = torch.maximum(numbers[which], torch.tensor(float(len(weights))))
        return [torch.einsum("s,snc->nc", weights, torch.softmax(around + offsets, -1))]

    offsets = base.node_offsets(sampled.psd_root(covariance), nodes)
    (found,) = sampled.by_width(average, mean, offsets, weights, rows, width=width, separable=True, **options)
    return numbers, found


def test_what_functions_share_asks_for_no_more_samples():
    covariance = torch.eye(3).double().repeat(4, 1, 1)
    covariance[1] += 100.0  # of a shift of all functions
    covariance[2] *= 50.0
    covariance[3] *= 2.0
    numbers, _ = _nodes_of_rows(covariance)
    assert numbers[0] == numbers[1] == 32
    assert numbers[2] == 9 * 32
    assert numbers[3] == 32  # up to the width of the likelihood that few pairs are made for
    assert _nodes_of_rows(covariance, width=0.5)[0][3] == 3 * 32
    assert bool((_nodes_of_rows(covariance, least=1)[0][:2] == 3 * 32).all())


def _wide_site(likelihood, targets, size, *, dtype):
    root = torch.randn(40, size, size, generator=torch.Generator().manual_seed(4), dtype=dtype)
    covariance = torch.logspace(-1.0, 2.0, 40, dtype=dtype)[:, None, None] * (root @ root.mT)
    return VariationalSite.from_covariance(Observations(likelihood, targets), covariance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shares", [False, True])
def test_terms_found_together_are_those_found_alone(dtype, shares):
    """Of labels and of shares of the classes, from narrow to wide marginals; the log-density to the digits of float64."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(3, (40,), generator=generator)
    if shares:
        targets = torch.nn.functional.normalize(torch.rand(40, 3, generator=generator, dtype=torch.float64), 1.0)
    site = _wide_site(CategoricalLikelihood(3), targets, 3, dtype=dtype)
    f = 3.0 * torch.randn(40, 3, generator=generator, dtype=dtype)
    log_density, *derivatives = site.evaluate(f)
    assert log_density == pytest.approx(site.log_density(f), rel=1e-6 if dtype is torch.float32 else 1e-12)
    for ours, alone in zip(derivatives, site.derivatives(f), strict=True):
        assert torch.equal(ours, alone)


class Doubtful(CategoricalLikelihood):
    """Of a person who says that labels are worth half."""

    def expected_log_density(self, mean, offsets, weights, targets):
        return 0.5 * super().expected_log_density(mean, offsets, weights, targets)


def test_terms_of_ones_own_are_asked_for_together_too():
    targets = torch.arange(40) % 3
    plain, own = (_wide_site(kind(3), targets, 3, dtype=torch.float64) for kind in (CategoricalLikelihood, Doubtful))
    f = torch.zeros(40, 3, dtype=torch.float64)
    assert own.evaluate(f)[0] == pytest.approx(0.5 * plain.evaluate(f)[0], rel=1e-12)


def test_finer_nodes_are_made_once_for_nodes_that_stay(monkeypatch):
    """And again for those that were changed in place; nobody keeps them when the nodes are gone."""
    made, finer = [], sampled._finer
    monkeypatch.setattr(sampled, "_finer", lambda *arguments: (made.append(1), finer(*arguments))[1])
    site = _wide_site(CategoricalLikelihood(3), torch.arange(40) % 3, 3, dtype=torch.float64)
    f = torch.zeros(40, 3, dtype=torch.float64)
    first, count = site.evaluate(f), len(made)
    assert count > 0
    assert site.evaluate(f)[0] == first[0]
    assert len(made) == count
    with torch.inference_mode():
        assert site.evaluate(f)[0] == first[0]
    site.offsets.mul_(0.5)
    fresh = VariationalSite(site.observations, site.offsets.clone(), site.weights)
    assert site.evaluate(f)[0] == fresh.evaluate(f)[0] != first[0]
    kept = len(sampled._groups_of_nodes)
    del site, fresh
    assert len(sampled._groups_of_nodes) == kept - 2


def test_nodes_that_were_made_in_inference_mode_serve_derivatives():
    site = _wide_site(CategoricalLikelihood(3), torch.arange(40) % 3, 3, dtype=torch.float64)
    sampled._even_samples.cache_clear()
    f = torch.zeros(40, 3, dtype=torch.float64)
    with torch.inference_mode():
        site.evaluate(f)
    mean, offsets = f.clone().requires_grad_(), site.offsets.clone().requires_grad_()
    for nodes in (site.offsets, offsets):
        site.observations.expected_log_density(mean, nodes, site.weights).sum().backward()
    torch.testing.assert_close(mean.grad, 2.0 * site.derivatives(f)[0])
    assert bool(offsets.grad.any())


def test_nodes_beyond_what_is_kept_are_chosen_anew(monkeypatch):
    site = _wide_site(CategoricalLikelihood(3), torch.arange(40) % 3, 3, dtype=torch.float64)
    f = torch.zeros(40, 3, dtype=torch.float64)
    kept = site.evaluate(f)
    monkeypatch.setattr(sampled, "KEPT_NUMBERS", 0)
    fresh = VariationalSite(site.observations, site.offsets.clone(), site.weights)
    for _ in range(2):
        found = fresh.evaluate(f)
        assert found[0] == kept[0]
        assert torch.equal(found[2], kept[2])
    groups = [group for own in sampled._groups_of_nodes[fresh.offsets].values() for group in own]
    assert not any(group._kept for group in groups)


def test_few_samples_stay_few_inside_of_what_changes_nothing():
    covariance = 50.0 * torch.eye(3).double().repeat(2, 1, 1)
    with sampled.few_samples():
        with sampled.few_samples(False):
            assert bool((_nodes_of_rows(covariance)[0] == 32).all())
        assert bool((_nodes_of_rows(covariance)[0] == 32).all())
    assert bool((_nodes_of_rows(covariance)[0] == 9 * 32).all())


@pytest.mark.parametrize("level", [0, 1, 2])
def test_expectations_do_not_jump_where_samples_become_more(level):
    """Rounds would not settle between two sides of a jump."""
    shape = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 1.5]]).double()
    about = shape - shape.mean(0) - shape.mean(1, keepdim=True) + shape.mean()
    limit = (sampled._FEW_PAIRS_REACH * 2.0**level) ** 2 / about.diagonal().max()
    below, above = (_nodes_of_rows((limit * (1.0 + step) * shape).repeat(5, 1, 1))[1] for step in (-1e-6, 1e-6))
    assert float((below - above).abs().max()) < 1e-5


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_posterior_of_classes_does_not_turn_on_its_samples(scale, monkeypatch):
    """With 32 independent samples means of two seeds were 0.05, 0.3 and 0.9 deviations apart."""
    x = torch.randn(150, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.randint(3, (150,), generator=torch.Generator().manual_seed(1))
    found, plain = [], Likelihood.standard_nodes
    for seed in (0, 50_000):
        kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=2.5)).double()
        kernel.outputscale, kernel.base_kernel.lengthscale = scale, 0.3
        with monkeypatch.context() as patch:
            patch.setattr(Likelihood, "standard_nodes", lambda *args, s=seed: plain(args[0], args[1], s))
            solution = GP(x, y, CategoricalLikelihood(3), kernel=kernel).double().eval().solution
        assert solution.status.converged
        found.append(solution)
    first, second = found
    moved = (first.latent_values - second.latent_values).abs()
    deviations = first.latent_covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert float((moved / deviations).amax()) < {1.0: 0.02, 10.0: 0.15, 100.0: 0.2}[scale]


@grid
@torch.no_grad()
def test_sites(name):
    likelihood, targets = _calculus(name)
    f, size = _latents(name), likelihood.num_latents
    laplace = LaplaceSite(Observations(likelihood, targets))
    assert laplace.log_density(f) == pytest.approx(float(likelihood.log_density(f, targets).sum()), rel=1e-12)
    root = torch.randn(ROWS, size, size, dtype=torch.float64)
    for covariance in (root @ root.mT, torch.zeros_like(root)):
        site = VariationalSite.from_covariance(Observations(likelihood, targets), covariance)
        nodes, weights = likelihood.standard_nodes(f)
        spread = (site.offsets.movedim(0, -1) * site.weights) @ site.offsets.movedim(0, -2)
        reference = (nodes.expand(-1, ROWS, size).movedim(0, -1) * weights) @ nodes.expand(-1, ROWS, size).movedim(
            0, -2
        )
        if size == 1:
            assert_close(spread, covariance * reference, "derivative")
        elif bool(covariance.any()):
            assert float((spread - covariance).norm() / covariance.norm()) < 1e-6  # of every row
    assert site.log_density(f) == pytest.approx(laplace.log_density(f), rel=1e-5)  # no covariance: the same site
    assert (laplace.log_concave, site.log_concave) == (likelihood.log_concave,) * 2


# ---------------------------------------------------- predictive distributions
def _sigmoid_mean(mean: float, variance: float) -> float:
    scale = math.sqrt(variance)
    if scale == 0.0:
        return float(scipy.special.expit(mean))

    def integrand(z):
        return scipy.special.expit(mean + scale * z) * math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)

    step = min(max(-mean / scale, -13.9), 13.9)
    value, _ = scipy.integrate.quad(integrand, -14.0, 14.0, points=[step], limit=400, epsabs=1e-11)
    return value


@pytest.mark.parametrize("variance", [0.0, 1e-4, 0.1, 0.5, 0.999, 1.001, 2.0, 10.0, 100.0, 1000.0])
def test_logit_predictive(variance):
    means = [-30.0, -12.0, -5.0, -2.0, -0.5, 0.0, 0.3, 1.0, 4.0, 9.0, 30.0]
    expected = torch.tensor([_sigmoid_mean(m, variance) for m in means], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        mean = torch.tensor(means, dtype=dtype).unsqueeze(-1)
        predictive = BernoulliLikelihood().predictive(mean, torch.full((11, 1, 1), variance, dtype=dtype))
        assert predictive.probs.dtype == dtype
        assert float((predictive.probs.double() - expected).abs().max()) < 1e-6


def test_probit_predictive(dtype):
    mean = torch.linspace(-6.0, 6.0, 25, dtype=dtype).unsqueeze(-1)
    for variance in (0.0, 0.3, 100.0):
        predictive = BernoulliLikelihood("probit").predictive(mean, torch.full((25, 1, 1), variance, dtype=dtype))
        expected = scipy.stats.norm.cdf(mean.squeeze(-1).double().numpy() / math.sqrt(1.0 + variance))
        assert_close(predictive.probs, torch.from_numpy(expected), "local")


@pytest.mark.parametrize("link", ["logit", "probit"])
def test_binary_predictive(link, dtype):
    mean, zeros = torch.randn(9, 1, dtype=dtype), torch.zeros(9, 1, 1, dtype=dtype)
    likelihood = BernoulliLikelihood(link)
    predictive = likelihood.predictive(mean, zeros)
    assert_close(predictive.probs, likelihood(mean.squeeze(-1)).probs, "local")  # the plug-in distribution
    assert_close(predictive.mean, predictive.probs, "local")
    for label in (0, 1):  # labels of any kind
        wanted = torch.where(torch.full((9,), label == 1), predictive.probs, 1.0 - predictive.probs).log()
        for labels in (
            torch.full((9,), label),
            torch.full((9,), float(label), dtype=dtype),
            torch.full((9,), label == 1),
        ):
            assert_close(predictive.log_prob(labels), wanted, "derivative")
    for level in (0.05, 0.3, 0.7, 0.95):
        quantile = predictive.quantile(level)
        assert torch.equal(quantile == 0.0, 1.0 - predictive.probs >= level)


def _covariances(rows: int, size: int, scale: float, dtype=torch.float64) -> Tensor:
    root = torch.randn(rows, size, size, dtype=dtype) / math.sqrt(size)
    return scale * root @ root.mT


@pytest.mark.parametrize("size", [2, 3, 10])
@pytest.mark.parametrize("scale", [0.1, 4.0, 100.0])
def test_softmax_predictive(size, scale):
    mean, covariance = 2.0 * torch.randn(6, size, dtype=torch.float64), _covariances(6, size, scale)
    predictive = CategoricalLikelihood(size).predictive(mean, covariance)
    assert float(predictive.standard_error.max()) < 1e-3
    assert_close(predictive.probs.sum(-1), torch.ones(6), "local")
    samples = torch.randn(6, 100_000, size, dtype=torch.float64) @ torch.linalg.cholesky(covariance).mT
    probs = torch.softmax(mean[:, None] + samples, -1)
    error = (probs.var(1) / probs.shape[1] + predictive.standard_error.square()).sqrt()
    assert bool(((predictive.probs - probs.mean(1)).abs() <= 4.0 * error + 1e-6).all())


def test_softmax_standard_error_is_honest():
    # The error that is stated, against a far more accurate value: two classes are a sigmoid.
    mean, variance = 2.0 * torch.randn(200, 2, dtype=torch.float64), torch.rand(200, dtype=torch.float64) * 40.0
    covariance = torch.diag_embed(torch.stack([variance, 0.5 * variance], -1))
    predictive = CategoricalLikelihood(2).predictive(mean, covariance)
    sigmoid = BernoulliLikelihood().predictive((mean[:, 1] - mean[:, 0])[:, None], 1.5 * variance[:, None, None])
    error = (predictive.probs[:, 1] - sigmoid.probs).abs()
    assert float(error.max()) < 1e-3
    assert bool((error <= 6.0 * predictive.standard_error[:, 1] + 1e-6).all())


def test_softmax_predictive_is_deterministic(dtype):
    mean, covariance = torch.randn(5, 4, dtype=dtype), _covariances(5, 4, 3.0, dtype)
    likelihood = CategoricalLikelihood(4)
    state = torch.get_rng_state()
    first = likelihood.predictive(mean, covariance)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(first.probs, likelihood.predictive(mean, covariance).probs)
    with_grad = likelihood.predictive(mean.clone().requires_grad_(True), covariance.clone().requires_grad_(True))
    assert torch.equal(first.probs, with_grad.probs)
    assert torch.equal(first.standard_error, with_grad.standard_error)
    assert first.probs.dtype == dtype


def test_softmax_plug_in_is_exact(dtype):
    mean = 5.0 * torch.randn(7, 4, dtype=dtype)
    predictive = CategoricalLikelihood(4).predictive(mean, torch.zeros(7, 4, 4, dtype=dtype))
    assert_close(predictive.probs, torch.softmax(mean, -1), "local")
    assert not bool(predictive.standard_error.any())


def test_softmax_ignores_what_all_classes_share(dtype):
    mean, covariance = torch.randn(5, 3, dtype=dtype), _covariances(5, 3, 1.0, dtype)
    likelihood = CategoricalLikelihood(3)
    shared = likelihood.predictive(mean + 50.0, covariance + 100.0)
    assert float((shared.probs - likelihood.predictive(mean, covariance).probs).abs().max()) < 2e-3
    only_shared = likelihood.predictive(mean, torch.full((5, 3, 3), 100.0, dtype=dtype))
    assert float((only_shared.probs - torch.softmax(mean, -1)).abs().max()) < 2e-3


def test_softmax_predictive_is_differentiable():
    # Two classes are a sigmoid, whose quadrature is smooth.
    mean, variance = torch.randn(6, 2, dtype=torch.float64), 0.5 + 4.0 * torch.rand(6, dtype=torch.float64)
    mean.requires_grad_(True)
    variance.requires_grad_(True)
    weights = torch.randn(6, dtype=torch.float64)
    probs = CategoricalLikelihood(2).predictive(mean, torch.diag_embed(torch.stack([variance, variance], -1))).probs
    sigmoid = BernoulliLikelihood().predictive((mean[:, 1] - mean[:, 0])[:, None], 2.0 * variance[:, None, None]).probs
    gradients = torch.autograd.grad((probs[:, 1] * weights).sum(), [mean, variance])
    expected = torch.autograd.grad((sigmoid * weights).sum(), [mean, variance])
    for actual, wanted in zip(gradients, expected, strict=True):
        assert float((actual - wanted).abs().max()) < 2e-3


def test_mixed_softmax_predictive():
    likelihood = as_likelihood(_softmax(mixing=True, features=2).double())
    mean, covariance = torch.randn(4, 2, dtype=torch.float64), _covariances(4, 2, 2.0)
    with torch.no_grad():
        predictive = likelihood.predictive(mean, covariance)
        samples = mean[:, None] + torch.randn(4, 100_000, 2, dtype=torch.float64) @ torch.linalg.cholesky(covariance).mT
        probs = torch.softmax(samples @ likelihood.wrapped.mixing_weights.mT, -1)
    error = (probs.var(1) / probs.shape[1] + predictive.standard_error.square()).sqrt()
    assert bool(((predictive.probs - probs.mean(1)).abs() <= 4.0 * error + 1e-6).all())
    assert float(predictive.standard_error.max()) < 1e-3


def test_poisson_predictive(dtype):
    mean = torch.tensor([-2.0, 0.0, 1.5, 3.0, 6.0], dtype=dtype)
    for variance in (0.0, 0.01, 0.5, 2.0):
        predictive = PoissonLikelihood().predictive(mean[:, None], torch.full((5, 1, 1), variance, dtype=dtype))
        rate = (mean.double() + 0.5 * variance).exp()
        assert_close(predictive.mean, rate, "product")
        assert_close(predictive.variance, rate + rate.square() * math.expm1(variance), "derivative")
        if variance == 0.0:
            assert_close(
                predictive.log_prob(torch.arange(5)),
                torch.distributions.Poisson(rate).log_prob(torch.arange(5.0).to(rate)),
            )
        for level in (0.01, 0.25, 0.5, 0.975):
            quantile = predictive.quantile(level)
            assert torch.equal(quantile, quantile.floor())
            assert bool((quantile >= 0.0).all())
            rounding = TOLERANCE[dtype].local
            assert bool((predictive.cdf(quantile) >= level - rounding).all())
            assert bool((predictive.cdf(quantile - 1.0) < level + rounding).all())


def test_poisson_cdf_sums_the_density():
    predictive = PoissonLikelihood().predictive(
        torch.tensor([[0.5], [2.0]], dtype=torch.float64), torch.full((2, 1, 1), 0.8, dtype=torch.float64)
    )
    counts = torch.arange(4_000, dtype=torch.float64)
    density = predictive.log_prob(counts[:, None]).exp()
    assert_close(density.sum(0), torch.ones(2), "derivative")
    for count in (0.0, 1.0, 4.0, 4.7, 30.0):
        assert_close(predictive.cdf(torch.tensor(count)), density[counts <= count].sum(0), "derivative")
    assert not bool(predictive.cdf(torch.tensor(-1.0)).any())


@pytest.mark.parametrize("mean", [18.0, 30.0, 70.0])
def test_poisson_quantiles_of_huge_counts(mean, dtype):
    # Whole numbers are further apart than 1 in this dtype.
    predictive = PoissonLikelihood().predictive(
        torch.full((1, 1), mean, dtype=dtype), torch.full((1, 1, 1), 0.04, dtype=dtype)
    )
    for level in (0.05, 0.5, 0.95):
        expected = math.exp(mean + 0.2 * scipy.stats.norm.ppf(level))  # the counting noise is negligible
        assert float(predictive.quantile(level)) == pytest.approx(expected, rel=0.01)


def test_gaussian_predictive(dtype):
    likelihood = GaussianLikelihood().to(dtype)
    likelihood.noise = 0.3
    mean, variance = torch.randn(6, dtype=dtype), torch.rand(6, dtype=dtype)
    predictive = likelihood.predictive(mean[:, None], variance[:, None, None])
    assert_close(predictive.mean, mean, "local")
    assert_close(predictive.variance, variance + 0.3, "local")
    reference = scipy.stats.norm(mean.double().numpy(), (variance.double().numpy() + 0.3) ** 0.5)
    assert_close(predictive.quantile(0.9), torch.from_numpy(reference.ppf(0.9)), "product")
    y = torch.randn(6, dtype=dtype)
    assert_close(predictive.log_prob(y), torch.from_numpy(reference.logpdf(y.double().numpy())), "product")


def test_fixed_noise_predictive():
    likelihood = as_likelihood(gl.FixedNoiseGaussianLikelihood(_noises(), learn_additional_noise=True).double())
    likelihood.wrapped.second_noise = torch.tensor(0.7, dtype=torch.float64)
    for rows in (5, ROWS):  # new ones, even if they are as many as the training rows
        ones = torch.ones(rows, 1, 1, dtype=torch.float64)
        with torch.no_grad():
            elsewhere = likelihood.predictive(ones[..., 0], ones)
        assert_close(elsewhere.variance, torch.full((rows,), 1.7, dtype=torch.float64), "local")


@pytest.mark.parametrize("name", ["gpytorch-student-t", "gpytorch-laplace", "gpytorch-beta", "gpytorch-gaussian"])
def test_real_mixtures_integrate_to_one(name):
    likelihood, _ = _calculus(name)
    mean = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64)
    with torch.no_grad():
        predictive = likelihood.predictive(mean, torch.full((3, 1, 1), 0.6, dtype=torch.float64))
        assert predictive.batch_shape == (3,)
        if name == "gpytorch-beta":
            y = 0.5 + 0.5 * torch.tanh(torch.linspace(-15.0, 15.0, 20_001, dtype=torch.float64))
        else:
            y = torch.sinh(torch.linspace(-12.0, 12.0, 20_001, dtype=torch.float64))
        density = predictive.log_prob(y[:, None]).exp()
        assert_close(torch.trapezoid(density, y, dim=0), torch.ones(3), "product", dtype=torch.float32)
        moment = torch.trapezoid(density * y[:, None], y, dim=0)
        assert_close(moment, predictive.mean, "derivative", dtype=torch.float32)


@pytest.mark.parametrize(
    "name", ["gpytorch-poisson", "gpytorch-negative-binomial", "poisson", "own-censored", "bernoulli-logit"]
)
def test_discrete_mixtures_sum_to_one(name):
    likelihood, _ = _calculus(name)
    mean = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64)
    with torch.no_grad():
        predictive = likelihood.predictive(mean, torch.full((3, 1, 1), 0.6, dtype=torch.float64))
        counts = torch.arange(2.0 if "own" in name or "bernoulli" in name else 1_000.0, dtype=torch.float64)
        density = predictive.log_prob(counts[:, None]).exp()
        assert_close(density.sum(0), torch.ones(3), "derivative")
        assert_close((density * counts[:, None]).sum(0), predictive.mean, "derivative")


@pytest.mark.parametrize(
    "name", ["gpytorch-laplace", "gpytorch-student-t", "gpytorch-negative-binomial", "gpytorch-beta"]
)
def test_quantiles_of_mixtures(name):
    likelihood, _ = _calculus(name)
    with torch.no_grad():
        predictive = likelihood.predictive(
            torch.tensor([[-1.0], [2.0]], dtype=torch.float64), torch.full((2, 1, 1), 0.6, dtype=torch.float64)
        )
        state = torch.get_rng_state()
        quantiles = {level: predictive.quantile(level) for level in (0.1, 0.5, 0.9)}
        assert torch.equal(torch.get_rng_state(), state)
        samples = predictive.sample(torch.Size([20_000]))
    for level, quantile in quantiles.items():
        below, reached = (samples < quantile).double().mean(0), (samples <= quantile).double().mean(0)
        assert bool((below <= level + 0.02).all())
        assert bool((reached >= level - 0.02).all())


def test_quantiles_of_many_rows():
    likelihood, _ = _calculus("gpytorch-student-t")
    with torch.no_grad():
        predictive = likelihood.predictive(torch.arange(300.0)[:, None], torch.full((300, 1, 1), 1e-6))
        quantile = predictive.quantile(0.9)
    expected = scipy.stats.t(4.0, np.arange(300.0), math.sqrt(0.5)).ppf(0.9)
    assert float((quantile - torch.from_numpy(expected)).abs().max()) < 0.25  # by sampling


def test_two_latent_mixture():
    likelihood, _ = _calculus("own-two-latents")
    mean, covariance = torch.tensor([[0.5, -1.0], [1.0, 0.0]], dtype=torch.float64), _covariances(2, 2, 0.3)
    predictive = likelihood.predictive(mean, covariance)
    draws = torch.randn(200_000, 2, 2, dtype=torch.float64)
    samples = mean + torch.einsum("mij,smj->smi", torch.linalg.cholesky(covariance), draws)
    variance = samples[..., 0].var(0) + (2.0 * samples[..., 1]).exp().mean(0)
    assert bool(((predictive.mean - mean[:, 0]).abs() < 0.02).all())
    assert bool(((predictive.variance / variance - 1.0).abs() < 0.4).all())  # 256 samples


# ------------------------------------------------------------ GPyTorch's habits
def _latent_normal(rows: int = 8) -> MultivariateNormal:
    root = torch.randn(rows, rows, dtype=torch.float64)
    return MultivariateNormal(
        torch.randn(rows, dtype=torch.float64), root @ root.mT + torch.eye(rows, dtype=torch.float64)
    )


def test_probit_equals_gpytorchs():
    latent, ours = _latent_normal(), BernoulliLikelihood("probit")
    with gpytorch.settings.num_gauss_hermite_locs(100):  # its 20 are too few for these marginals
        theirs = gl.BernoulliLikelihood()
    y = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1], dtype=torch.float64)
    assert_close(ours(latent).probs, theirs(latent).probs, "local")
    assert_close(ours.log_marginal(y, latent), theirs.log_marginal(y, latent), "local")
    assert_close(ours.log_marginal(y.long(), latent), theirs.log_marginal(y, latent), "local")
    assert_close(ours.expected_log_prob(y, latent), theirs.expected_log_prob(y, latent), "product", dtype=torch.float32)
    samples = torch.randn(3, 8, dtype=torch.float64)
    assert_close(ours(samples).probs, theirs(samples).probs, "product", dtype=torch.float32)


def test_gaussian_equals_gpytorchs():
    latent, y = _latent_normal(), torch.randn(8, dtype=torch.float64)
    theirs = _with(gl.GaussianLikelihood(), noise=0.3).double()
    ours = GaussianLikelihood(noise=0.3, noise_constraint=gpytorch.constraints.GreaterThan(1e-4)).double()
    joint, expected = ours(latent), theirs(latent)
    assert isinstance(joint, MultivariateNormal)
    assert_close(joint.mean, expected.mean, "local")
    assert_close(joint.covariance_matrix, expected.covariance_matrix, "local")
    assert_close(joint.log_prob(y), expected.log_prob(y), "derivative")
    assert_close(ours.log_marginal(y, latent), theirs.log_marginal(y, latent), "local")
    assert_close(ours.expected_log_prob(y, latent), theirs.expected_log_prob(y, latent), "local")
    (gradient,) = torch.autograd.grad(joint.log_prob(y), [ours.raw_noise])
    (wanted,) = torch.autograd.grad(expected.log_prob(y), [theirs.noise_covar.raw_noise])
    assert_close(gradient, wanted, "derivative")


@torch.no_grad()
def test_gaussian_noise_is_a_gpytorch_parameter():
    likelihood = GaussianLikelihood(
        noise=0.2,
        noise_prior=gpytorch.priors.GammaPrior(2.0, 3.0),
        noise_constraint=gpytorch.constraints.Interval(0.01, 1.0),
    )
    assert float(likelihood.noise) == pytest.approx(0.2)
    likelihood.noise = 0.5
    assert float(likelihood.noise) == pytest.approx(0.5)
    likelihood.initialize(noise=0.7)
    assert float(likelihood.noise) == pytest.approx(0.7)
    assert [name for name, *_ in likelihood.named_priors()] == ["noise_prior"]
    assert likelihood.raw_noise_constraint.upper_bound == 1.0
    _, _, prior, closure, setter = next(likelihood.named_priors())
    assert prior.log_prob(closure(likelihood)).shape == (1,)
    setter(likelihood, torch.tensor(0.3))
    assert float(likelihood.noise) == pytest.approx(0.3)


@pytest.mark.parametrize("name", CASES)
def test_likelihood_of_a_posterior(name):
    model = make_model(name, solver=None)
    x, y = model.train_inputs[0][:6], model.train_targets[:6]
    options = dict.fromkeys(model.likelihood.predictive_options, y[:, 1]) if y.dim() == 2 else {}
    latent, predictive = model(x), model.predict(x, **options)
    observed = model.likelihood(latent, **options)
    if name == "categorical":
        assert_close(observed.probs, predictive.probs, "posterior")
    else:
        assert_close(observed.mean, predictive.mean, "posterior")
    marginal = model.likelihood.log_marginal(y, latent)
    density = predictive.log_prob(y if y.dim() == 1 or y.shape[1] == 3 else y[:, 0])
    if CASES[name].observed == "positive" and y.dim() == 2 and y.shape[1] == 2:  # censored
        density = torch.where(y[:, 1] == 1, density, torch.log1p(-predictive.cdf(y[:, 0])))
    assert_close(marginal, density, "posterior")
    expected = model.likelihood.expected_log_prob(y, latent)
    assert expected.shape == (6,)
    sampling = 0.01 if CASES[name].num_latents > 1 else 1e-6  # of its samples
    assert bool((expected <= marginal + sampling).all())  # Jensen
    samples = model.likelihood(latent.rsample(torch.Size([5])), **options).sample()
    assert samples.shape == (5, 6)


def test_latent_marginals():
    latent = _latent_normal()
    mean, covariance = latent_marginals(latent, 1)
    assert_close(mean[:, 0], latent.mean, "local")
    assert_close(covariance[:, 0, 0], latent.variance, "local")
    root = torch.randn(12, 12, dtype=torch.float64)
    joint, mean = root @ root.mT, torch.randn(4, 3, dtype=torch.float64)
    for interleaved in (True, False):
        multitask = MultitaskMultivariateNormal(mean, joint, interleaved=interleaved)
        blocks = latent_marginals(multitask, 3)[1]
        rows = [torch.arange(3) + 3 * n if interleaved else n + 4 * torch.arange(3) for n in range(4)]
        assert_close(blocks, torch.stack([joint[i][:, i] for i in rows]), "local")
        assert_close(blocks.diagonal(dim1=-2, dim2=-1), multitask.variance, "local")
        with pytest.raises(
            InputError, match=r"needs a distribution over 2 latent function\(s\) per row\. Got 3\. Call"
        ):
            latent_marginals(multitask, 2)
    with pytest.raises(InputError, match=r"over 3 latent function\(s\) per row\. Got 1"):
        CategoricalLikelihood(3)(latent)


# --------------------------------------------------------------------- targets
@pytest.mark.parametrize("targets", [[0, 1, 1], [0.0, 1.0, 1.0], [False, True, True]])
@pytest.mark.parametrize("link", ["logit", "probit"])
def test_binary_targets(targets, link):
    assert BernoulliLikelihood(link).validate_targets(torch.tensor(targets)).tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.uint8, torch.float32, torch.float64])
def test_targets_of_any_number_type(kind):
    y = torch.tensor([0, 2, 1], dtype=kind)
    assert CategoricalLikelihood(3).validate_targets(y).dtype == torch.int64
    assert PoissonLikelihood().validate_targets(y).tolist() == [0.0, 2.0, 1.0]
    assert GaussianLikelihood().validate_targets(y).is_floating_point()


NAN, INF = float("nan"), float("inf")
BAD_TARGETS = [
    ("bernoulli-logit", [0, 1, 2], r"must be labels 0 or 1 for BernoulliLikelihood\. Got values \[2\]\. Re-encode"),
    ("bernoulli-probit", [-1, 1, 1], r"must be labels 0 or 1 for BernoulliLikelihood\. Got values \[-1\]"),
    ("bernoulli-logit", [0.0, 0.5, 1.0], r"must be labels 0 or 1 .* Got the non-integer 0\.5"),
    ("bernoulli-logit", [0.0, NAN, 1.0], r"must be finite\. Got 1 NaN or infinite value\(s\)\. Drop those rows"),
    ("gpytorch-bernoulli", [0, 1, 3], r"must be labels 0 or 1 .* Got values \[3\]"),
    (
        "categorical",
        [0, 1, 7],
        r"must be integers 0\.\.C-1 .* Got values \[7\] with num_classes=3\. Re-encode the labels",
    ),
    ("categorical", [-1, 1, 2], r"Got values \[-1\] with num_classes=3"),
    ("categorical", [0.0, 1.5, 2.0], r"must be integers 0\.\.2 for CategoricalLikelihood\. Got the non-integer 1\.5"),
    ("categorical", [0.0, INF, 2.0], r"must be finite\. Got 1 NaN or infinite"),
    ("categorical", [[1, 0, 0], [0, 1, 0], [0, 0, 1]], r"shape \(N,\) for .*Got \(3, 3\)\. .* not a one-hot row"),
    ("gpytorch-softmax-mixed", [0, 1, 3], r"Got values \[3\] with num_classes=3"),
    ("poisson", [0, -1, 2], r"must be counts 0, 1, 2, \.\.\. for PoissonLikelihood\. Got -1\. Check the column"),
    ("poisson", [0.0, 1.25, 2.0], r"Got the non-integer 1\.25"),
    ("poisson", [0.0, -INF, 2.0], r"must be finite\. Got 1 NaN"),
    ("gpytorch-poisson", [0, -1, 2], r"must be counts 0, 1, 2, \.\.\. .* Got -1"),
    ("gaussian", [0.0, NAN, INF], r"must be finite\. Got 2 NaN or infinite"),
    ("gaussian", [[0.0], [1.0]], r"must have shape \(N,\) for GaussianLikelihood\. Got \(2, 1\)"),
    ("gpytorch-gaussian", [0.0, NAN], r"must be finite\. Got 1 NaN"),
    ("gpytorch-student-t", [0.0, NAN], r"must be finite\. Got 1 NaN"),
    ("gpytorch-beta", [0.2, 1.5], r"must be in the support of BetaLikelihood .*Got 1\.5"),
    ("gpytorch-negative-binomial", [0.0, -2.0], r"in the support of NegativeBinomialLikelihood .*Got -2\.0"),
    ("gpytorch-negative-binomial", [0.0, 1.5], r"in the support of NegativeBinomialLikelihood .*Got 1\.5"),
    ("own-censored", [0, 1, 2], r"in the support of Censored .*Got 2"),
]


@pytest.mark.parametrize(("name", "targets", "match"), BAD_TARGETS)
def test_bad_targets(name, targets, match):
    likelihood = as_likelihood(GRID[name].make())
    with pytest.raises(InputError, match=f"`train_targets` {match}" if match.startswith("must") else match):
        likelihood.validate_targets(torch.tensor(targets))


@pytest.mark.parametrize("name", CASES)
def test_a_likelihood_says_what_it_observes(name):
    assert CASES[name].make().observes == CASES[name].observed


def test_the_grid_is_complete():
    exported = [
        getattr(likelihoods, name) for name in likelihoods.__all__ if isinstance(getattr(likelihoods, name), type)
    ]
    abstract = {Likelihood, SingleLatentLikelihood, AutomaticLikelihood, likelihoods.IndependentOutputsLikelihood}
    members = {kind for kind in exported if issubclass(kind, Likelihood)} - abstract
    assert {type(case.make()) for case in CASES.values()} == members
    assert isinstance(as_likelihood(Censored()), AutomaticLikelihood)
    covered = {type(kind.make()) for kind in ADAPTED.values()}
    known = {getattr(gl, n) for n in dir(gl) if n.endswith("Likelihood") and not n.startswith("_")}
    several = {
        "Likelihood",
        "MultitaskGaussianLikelihood",
        "DirichletClassificationLikelihood",
        "HadamardGaussianLikelihood",
    }
    assert {kind.__name__ for kind in known - covered} <= several


def test_more_rows_leave_the_samples_of_the_others_as_they_are():
    likelihood = CategoricalLikelihood(3)
    nodes, _ = likelihood.standard_nodes(torch.zeros(41, 3))
    for rows in (1, 7, 40):
        assert torch.equal(likelihood.standard_nodes(torch.zeros(rows, 3))[0], nodes[:, :rows])
    assert not torch.equal(nodes[:, 0], nodes[:, 1])


def test_offsets_of_nodes_in_pieces_are_those_of_all_rows(monkeypatch):
    root = torch.randn(20, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    nodes = torch.randn(4, 20, 3, generator=torch.Generator().manual_seed(1)).double()
    expected = torch.einsum("ncd,snd->snc", root, nodes)
    for rows in (7, 100):
        monkeypatch.setattr(base, "_CHUNK_ROWS", rows)
        for one in (root, root.clone().requires_grad_(True)):
            offsets = base.node_offsets(one, nodes)
            assert offsets.is_contiguous()
            assert offsets.requires_grad == one.requires_grad
            assert_close(offsets, expected)


@pytest.mark.parametrize("latents", [1, 3])
def test_nodes_of_later_rows_do_not_depend_on_where_rows_are_divided(latents, monkeypatch):
    monkeypatch.setattr(base, "_CHUNK_ROWS", 7)
    likelihood = BernoulliLikelihood() if latents == 1 else CategoricalLikelihood(3)
    like = torch.zeros(50, latents)
    nodes, _ = likelihood.standard_nodes(like, seed=3)
    for start in (0, 1, 14, 33):
        part, _ = likelihood.standard_nodes(like[start:], seed=3, skip=start)
        assert torch.equal(part, nodes[:, start:] if latents > 1 else nodes)


# ------------------------------------------------------------ rows that share latents
@pytest.mark.parametrize("name", list(CASES))
def test_observations_of_equal_rows_add_up(name):
    case, kinds, rows = CASES[name], 6, 50
    index = torch.randint(kinds, (rows,), generator=torch.Generator().manual_seed(0))
    index[:kinds] = torch.arange(kinds)
    _, y = case.data(rows, dtype=torch.float64)
    y[25:] = y[:25].clone()  # some equal targets at equal rows
    index[25:] = index[:25].clone()
    weight = 0.5 * (torch.arange(rows) % 4).double()
    likelihood = case.make().double()
    alone = Observations(likelihood, likelihood.validate_targets(y), weight)
    together = alone.over(DistinctRows(torch.arange(kinds), index))
    assert together.num_rows == kinds
    assert together.targets.shape[0] <= 25
    assert together.total_weight == pytest.approx(alone.total_weight)

    def added(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(kinds, *values.shape[1:]).index_add_(0, index, values)

    C = case.num_latents
    f = 0.5 * torch.randn(kinds, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    offsets = 0.3 * torch.randn(5, kinds, C, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    nodes = torch.full((5,), 0.2, dtype=torch.float64)
    covariance = 0.1 * torch.eye(C).double().expand(kinds, C, C)
    at = f[index]
    assert_close(together.log_density(f), added(alone.log_density(at)), "local")
    batch = torch.stack([f, 2.0 * f])
    assert_close(together.log_density(batch)[1], together.log_density(2.0 * f), "local")
    for ours, terms in zip(together.derivatives(f), alone.derivatives(at), strict=True):
        assert_close(ours, added(terms), "local")
    arguments = offsets[:, index], nodes
    assert_close(
        together.expected_log_density(f, offsets, nodes), added(alone.expected_log_density(at, *arguments)), "local"
    )
    expected = alone.expected_derivatives(at, *arguments)
    for ours, terms in zip(together.expected_derivatives(f, offsets, nodes), expected, strict=True):
        assert_close(ours, added(terms), "local")
    density = alone.predictive_log_density(at, covariance[index])
    assert_close(together.predictive_log_density(f, covariance), added(density), "local")
    _, curvature = together.derivatives(f)
    vector = torch.randn(kinds, C, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    product = torch.bmm(curvature, vector.unsqueeze(-1)).squeeze(-1)
    assert_close(together.curvature_product(f, curvature)(vector), product, "local")
    apply, transpose = together.curvature_root(f, curvature)
    torch.testing.assert_close(apply(transpose(vector)), product)
    some = torch.tensor([4, 1, 4])
    torch.testing.assert_close(together.take(some).log_density(f[some]), together.log_density(f)[some])
    part = together.part(2, 3)
    torch.testing.assert_close(part.log_density(f[2:5]), together.log_density(f)[2:5])
    assert part.first_row == 2


@pytest.mark.parametrize("value", [1e-8, 1e-9, -1.0, math.nan, math.inf])
def test_parameters_are_within_their_bounds(value):
    with pytest.raises(InputError, match=r"`noise` must be between 1e-08 and inf, and at neither\. Got "):
        GaussianLikelihood(noise=value)
    likelihood = GaussianLikelihood(noise=2e-8)
    assert float(likelihood.noise.detach()) == pytest.approx(2e-8, rel=1e-3)
    with pytest.raises(InputError, match="`noise` must be between"):
        likelihood.noise = value


def test_finer_samples_do_not_turn_with_rounding():
    """An orthogonal factor of nodes that are near dependent, as some of many rows have, did: rounds did not settle."""
    rows, latents = 100, 10
    root = torch.eye(latents) + 0.3 * torch.randn(latents, latents, generator=torch.Generator().manual_seed(0)).tril(-1)
    covariance = (30.0 * root @ root.mT).expand(rows, latents, latents)
    nodes, _ = sampled.antithetic_nodes(torch.zeros(rows, latents))
    nodes[latents - 1] = 0.3 * nodes[: latents - 1].sum(0) + 1e-6 * nodes[latents - 1]

    def finer(covariance):
        return sampled._finer(base.node_offsets(sampled.psd_root(covariance), nodes), covariance, 1)[0]

    assert (finer(covariance) - finer(covariance * (1.0 + 1e-5))).abs().amax() < 0.01


def test_finer_samples_have_the_moments_of_the_marginals():
    covariance = torch.tensor([[4.0, 1.0, 0.0], [1.0, 9.0, -2.0], [0.0, -2.0, 25.0]]).double().expand(5, 3, 3)
    nodes, _ = sampled.antithetic_nodes(torch.zeros(5, 3, dtype=torch.float64))
    finer, weights = sampled._finer(base.node_offsets(sampled.psd_root(covariance), nodes), covariance, 2)
    torch.testing.assert_close(torch.einsum("s,sni,snj->nij", weights, finer, finer), covariance)
    assert float((finer[:, 0] - finer[:, 1]).abs().amax()) > 1.0  # others for every row


@pytest.mark.parametrize("deg_free", [1.5, 2.0])
def test_noise_with_heavy_tails_has_no_variance(deg_free):
    """That of up to two degrees of freedom is infinite, and not what the formula of more says."""
    likelihood = likelihoods.StudentTLikelihood(
        deg_free=deg_free, deg_free_constraint=gpytorch.constraints.GreaterThan(1.0)
    )
    predictive = likelihood.predictive(torch.zeros(2, 1), torch.ones(2, 1, 1))
    assert bool(torch.isposinf(predictive.variance).all())
