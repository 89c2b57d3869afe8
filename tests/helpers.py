"""What the tests share: tolerances, small data, a small model."""

from __future__ import annotations

import importlib.util
import shutil
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import gpytorch
import numpy as np
import pytest
import scipy.special
import scipy.stats as sps
import torch
from scipy.special import expit
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from itergp.likelihoods import (
    BernoulliLikelihood,
    BetaLikelihood,
    BinomialLikelihood,
    CategoricalLikelihood,
    CensoredLogNormalLikelihood,
    ExponentialLikelihood,
    GammaLikelihood,
    GaussianLikelihood,
    HeteroscedasticGaussianLikelihood,
    LaplaceLikelihood,
    Likelihood,
    LogLogisticLikelihood,
    LogNormalLikelihood,
    NegativeBinomialLikelihood,
    OrdinalLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
    WeibullLikelihood,
    ZeroInflatedPoissonLikelihood,
)
from itergp.models import GP

DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Tolerance:
    """Largest error allowed, as a share of the largest magnitude of what is expected.

    Attributes:
        local: Of elementwise formulas: densities, gradients, curvatures.
        product: Of kernel entries and products with them.
        derivative: Of derivatives of products, and of anything through a factorisation.
        posterior: Of posteriors at convergence.
    """

    local: float
    product: float
    derivative: float
    posterior: float


TOLERANCE = {
    torch.float32: Tolerance(local=2e-5, product=2e-4, derivative=1e-3, posterior=5e-3),
    torch.float64: Tolerance(local=1e-11, product=1e-11, derivative=1e-6, posterior=1e-6),
}


def assert_close(actual: Tensor, expected: Tensor, kind: str = "product", *, dtype: torch.dtype | None = None) -> None:
    """Asserts equal shapes, and errors below a share of the largest magnitude of ``expected``.

    Args:
        actual: What was computed; its dtype chooses the tolerance.
        expected: The reference, of any dtype.
        kind: Column of the tolerance table.
        dtype: Chooses the tolerance instead of the dtype of ``actual``.
    """
    assert actual.shape == expected.shape
    actual, tolerance = actual.detach(), getattr(TOLERANCE[dtype or actual.dtype], kind)
    expected = expected.detach().double()
    assert bool(torch.isfinite(actual).all())
    error = float((actual.double() - expected).abs().max())
    assert error <= tolerance * max(float(expected.abs().max()), 1e-300), f"error {error:.3g}"


# ------------------------------------------------------------------------ data
def by_threads(compute: Callable[[], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """What is computed, without derivatives, by one thread and by two."""
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            with torch.no_grad():
                found.append(compute())
    finally:
        torch.set_num_threads(threads)
    return found[0], found[1]


def make_inputs(num_rows: int, num_columns: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Standard normal inputs ``(N, D)``, the same points in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, num_columns, generator=generator, dtype=torch.float64).to(dtype)


def _signal(x: Tensor, shift: float = 0.0) -> Tensor:
    x = x.double()
    return 2.0 * torch.sin(2.0 * x[:, 0] + shift) + x[:, -1]


def make_binary(num_rows: int, num_columns: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0):
    """Inputs and noisy labels 0 and 1, int64."""
    x = make_inputs(num_rows, num_columns, dtype, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    uniform = torch.rand(num_rows, generator=generator, dtype=torch.float64)
    return x, (uniform < torch.sigmoid(_signal(x))).long()


def make_classes(
    num_rows: int, num_classes: int = 3, num_columns: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0
):
    """Inputs and noisy labels 0..C-1, int64; every class occurs."""
    x = make_inputs(num_rows, num_columns, dtype, seed)
    logits = torch.stack([_signal(x, 2.0 * c) for c in range(num_classes)], -1)
    generator = torch.Generator().manual_seed(seed + 1)
    y = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator).squeeze(-1)
    y[:num_classes] = torch.arange(num_classes)
    return x, y


def make_counts(num_rows: int, num_columns: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0):
    """Inputs and counts, int64."""
    x = make_inputs(num_rows, num_columns, dtype, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    return x, torch.poisson((0.5 * _signal(x)).exp(), generator=generator).long()


def make_reals(num_rows: int, num_columns: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0):
    """Inputs and real targets in the inputs' dtype."""
    x = make_inputs(num_rows, num_columns, dtype, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    noise = torch.randn(num_rows, generator=generator, dtype=torch.float64)
    return x, (_signal(x) + 0.3 * noise).to(dtype)


def _drawn(make: Callable[[], Likelihood], scale: float = 1.0):
    """A data maker: targets drawn from the likelihood itself, at a smooth function of the inputs."""

    def data(num_rows: int, num_columns: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0):
        x = make_inputs(num_rows, num_columns, dtype, seed)
        likelihood = make().double()
        latents = [scale * _signal(x, 2.0 * c) / (1.0 + c) for c in range(likelihood.num_latents)]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed + 1)
            y = likelihood(latents[0] if len(latents) == 1 else torch.stack(latents, -1)).sample()
        return x, y.to(dtype) if y.is_floating_point() else y

    return data


def make_binomial(num_rows: int, num_columns: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0):
    """Inputs and successes among 1 to 8 trials ``(N, 2)``."""
    x = make_inputs(num_rows, num_columns, dtype, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    trials = torch.arange(num_rows) % 8 + 1
    y = torch.binomial(trials.double(), torch.sigmoid(_signal(x)), generator=generator)
    return x, torch.stack([y, trials.double()], -1).to(dtype)


def make_exposed(num_rows: int, num_columns: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0):
    """Inputs, and counts with an exposure between a half and two ``(N, 2)``."""
    x = make_inputs(num_rows, num_columns, dtype, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    exposure = 0.5 + 0.25 * (torch.arange(num_rows) % 7).double()
    y = torch.poisson(exposure * (0.5 * _signal(x)).exp(), generator=generator)
    return x, torch.stack([y, exposure], -1).to(dtype)


def make_survival(num_rows: int, num_columns: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0):
    """Inputs, and times with event indicators ``(N, 2)``; about a third is censored."""
    x = make_inputs(num_rows, num_columns, dtype, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    uniform = torch.rand(2, num_rows, generator=generator, dtype=torch.float64)
    time, end = (0.5 * _signal(x)).exp() * (-uniform[0].log()).sqrt(), 3.0 * uniform[1] + 0.01
    return x, torch.stack([torch.minimum(time, end), (time <= end).double()], -1).to(dtype)


def make_intervals(num_rows: int, num_columns: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0):
    """Inputs, and times with event indicators and ends of intervals ``(N, 3)``, all kinds of censoring in turn."""
    x = make_inputs(num_rows, num_columns, dtype, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    uniform = torch.rand(2, num_rows, generator=generator, dtype=torch.float64)
    time = (0.5 * _signal(x)).exp() * (-uniform[0].log()).sqrt() + 1e-3
    kind = (torch.arange(num_rows) % 4).double()
    start = torch.where(kind == 3, time * uniform[1], torch.where(kind == 2, 1.5 * time, time))
    end = torch.where(kind == 3, time + 0.1 + uniform[1], start)
    return x, torch.stack([start, kind, end], -1).to(dtype)


def _cdf_density(cdf: Callable, cutpoints: list[float]):
    """Log-probabilities of levels, each from the side on which its two terms are small."""

    def density(f: np.ndarray, y: np.ndarray) -> np.ndarray:
        bounds = np.array([-np.inf, *cutpoints, np.inf])
        upper, lower = bounds[y.astype(int) + 1] - f[:, 0], bounds[y.astype(int)] - f[:, 0]
        return np.log(np.where(lower > 0, cdf(-lower) - cdf(-upper), cdf(upper) - cdf(lower)))

    return density


def _labels_of(log_cdf: Callable):
    return lambda f, y: log_cdf((2.0 * y - 1.0) * f[:, 0])


def _binomial(f: np.ndarray, y: np.ndarray) -> np.ndarray:
    ways = np.log(scipy.special.comb(y[:, 1], y[:, 0]))
    failures = y[:, 1] - y[:, 0]
    return ways + y[:, 0] * scipy.special.log_expit(f[:, 0]) + failures * scipy.special.log_expit(-f[:, 0])


def _zero_inflated(f: np.ndarray, y: np.ndarray) -> np.ndarray:
    counted = np.log(0.7) + sps.poisson(np.exp(f[:, 0])).logpmf(y)
    return np.where(y == 0, np.logaddexp(np.log(0.3), counted), counted)


class _LogLogistic:
    """SciPy's, with the logarithms of its tails to all digits."""

    def __init__(self, shape: float, scale: np.ndarray) -> None:
        self._odds = lambda y: shape * (np.log(y) - np.log(scale))
        times = sps.fisk(shape, scale=scale)
        self.cdf, self.logpdf = times.cdf, times.logpdf

    def logcdf(self, y: np.ndarray) -> np.ndarray:
        return scipy.special.log_expit(self._odds(y))

    def logsf(self, y: np.ndarray) -> np.ndarray:
        return scipy.special.log_expit(-self._odds(y))


class _LogNormal:
    """The same of log-normal times, by the variance of their logarithm."""

    def __init__(self, noise: float, scale: np.ndarray) -> None:
        self._standardised = lambda y: (np.log(y) - np.log(scale)) / noise**0.5
        times = sps.lognorm(noise**0.5, scale=scale)
        self.cdf, self.logpdf = times.cdf, times.logpdf

    def logcdf(self, y: np.ndarray) -> np.ndarray:
        return scipy.special.log_ndtr(self._standardised(y))

    def logsf(self, y: np.ndarray) -> np.ndarray:
        return scipy.special.log_ndtr(-self._standardised(y))


def _censored(shape: float, distribution=sps.weibull_min):
    def density(f: np.ndarray, y: np.ndarray) -> np.ndarray:
        times = distribution(shape, scale=np.exp(f[:, 0]))
        return np.where(y[:, 1] == 1.0, times.logpdf(y[:, 0]), times.logsf(y[:, 0]))

    return density


def _intervals(shape: float, distribution=sps.weibull_min):
    def density(f: np.ndarray, y: np.ndarray) -> np.ndarray:
        times, between = distribution(shape, scale=np.exp(f[:, 0])), y[:, 1] == 3.0
        upper = np.where(between, y[:, 2], 2.0 * y[:, 0])
        ends = times.logsf(y[:, 0]), times.logsf(upper), times.logcdf(upper), times.logcdf(y[:, 0])
        left = times.cdf(y[:, 0]) < 0.5  # the difference from the side on which both are small
        high, low = np.where(left, ends[2], ends[0]), np.where(left, ends[3], ends[1])
        mass = high + np.log(-np.expm1(low - high))
        return np.select([between, y[:, 1] == 2.0, y[:, 1] == 1.0], [mass, ends[3], times.logpdf(y[:, 0])], ends[0])

    return density


def _elementwise(distribution: Callable):
    """The log-density of a SciPy distribution made from the latent values."""

    def density(f: np.ndarray, y: np.ndarray) -> np.ndarray:
        frozen = distribution(f[:, 0] if f.shape[1] == 1 else f)
        return frozen.logpmf(y) if hasattr(frozen.dist, "logpmf") else frozen.logpdf(y)

    return density


@dataclass(frozen=True)
class Case:
    """A likelihood with data that fit it, and what is known about it.

    Attributes:
        make: Makes the likelihood.
        data: Makes inputs and targets from a number of rows and keywords ``dtype`` and ``seed``.
        density: SciPy's log-density of targets ``y`` at latent values ``f`` ``(N, C)``.
        curvature: What W is.
        log_concave: Whether there is a certificate.
        quadratic: Whether the log-density is quadratic.
        num_latents: C.
        regular: Whether the mode is one and smooth, so that every solver finds it to full accuracy.
        observed: What an observation is: ``"label"``, ``"level"``, ``"count"``, ``"real"``, ``"positive"`` or ``"share"``.
    """

    make: Callable[[], Likelihood]
    data: Callable[..., tuple[Tensor, Tensor]]
    density: Callable[[np.ndarray, np.ndarray], np.ndarray]
    observed: str
    curvature: str = "hessian"
    log_concave: bool = True
    quadratic: bool = False
    num_latents: int = 1
    regular: bool = True


def _member(make: Callable[[], Likelihood], observed: str, distribution: Callable, scale: float = 1.0, **known) -> Case:
    return Case(make, _drawn(make, scale), _elementwise(distribution), observed, **known)


FISHER = {"curvature": "fisher", "log_concave": False}
CUTPOINTS = [-1.0, 0.2, 1.5]

# Every likelihood of the package is a row here, and every test of likelihoods runs over the rows.
CASES: dict[str, Case] = {
    "bernoulli-logit": Case(BernoulliLikelihood, make_binary, _labels_of(scipy.special.log_expit), "label"),
    "bernoulli-probit": Case(
        lambda: BernoulliLikelihood("probit"),
        make_binary,
        _labels_of(scipy.special.log_ndtr),
        "label",
    ),
    "bernoulli-cloglog": Case(
        lambda: BernoulliLikelihood("cloglog"),
        make_binary,
        lambda f, y: np.where(y == 1, np.log(-np.expm1(-np.exp(f[:, 0]))), -np.exp(f[:, 0])),
        "label",
    ),
    "categorical": Case(
        lambda: CategoricalLikelihood(3),
        make_classes,
        lambda f, y: scipy.special.log_softmax(f, -1)[np.arange(len(y)), y.astype(int)],
        "label",
        num_latents=3,
    ),
    "binomial": Case(
        BinomialLikelihood,
        make_binomial,
        _binomial,
        "count",
    ),
    "ordinal-logit": Case(
        lambda: OrdinalLikelihood(4, cutpoints=torch.tensor(CUTPOINTS)),
        _drawn(lambda: OrdinalLikelihood(4)),
        _cdf_density(expit, CUTPOINTS),
        "level",
    ),
    "ordinal-probit": Case(
        lambda: OrdinalLikelihood(4, "probit", cutpoints=torch.tensor(CUTPOINTS)),
        _drawn(lambda: OrdinalLikelihood(4, "probit")),
        _cdf_density(sps.norm.cdf, CUTPOINTS),
        "level",
    ),
    "poisson": Case(PoissonLikelihood, make_counts, _elementwise(lambda f: sps.poisson(np.exp(f))), "count"),
    "poisson-exposure": Case(
        PoissonLikelihood,
        make_exposed,
        lambda f, y: sps.poisson(y[:, 1] * np.exp(f[:, 0])).logpmf(y[:, 0]),
        "count",
    ),
    "poisson-softplus": Case(
        lambda: PoissonLikelihood("softplus"),
        make_exposed,
        lambda f, y: sps.poisson(y[:, 1] * np.log1p(np.exp(f[:, 0]))).logpmf(y[:, 0]),
        "count",
    ),
    "negative-binomial": _member(
        lambda: NegativeBinomialLikelihood(dispersion=0.5),
        "count",
        lambda f: sps.nbinom(2.0, 2.0 / (2.0 + np.exp(f))),
        scale=0.5,
    ),
    "zero-inflated-poisson": Case(
        lambda: ZeroInflatedPoissonLikelihood(inflation=0.3),
        _drawn(lambda: ZeroInflatedPoissonLikelihood(inflation=0.3), 0.5),
        _zero_inflated,
        "count",
        curvature="complete-data",
        log_concave=False,
    ),
    "gaussian": Case(
        lambda: GaussianLikelihood(noise=0.1),
        make_reals,
        _elementwise(lambda f: sps.norm(f, 0.1**0.5)),
        "real",
        quadratic=True,
    ),
    "heteroscedastic": _member(
        HeteroscedasticGaussianLikelihood,
        "real",
        lambda f: sps.norm(f[:, 0], np.exp(0.5 * f[:, 1])),
        num_latents=2,
        regular=False,
        **FISHER,
    ),
    "student-t": _member(
        lambda: StudentTLikelihood(noise=0.1, deg_free=4.0),
        "real",
        lambda f: sps.t(4.0, f, 0.1**0.5),
        curvature="complete-data",
        log_concave=False,
    ),
    "laplace": _member(
        lambda: LaplaceLikelihood(noise=0.1),
        "real",
        lambda f: sps.laplace(f, 0.1**0.5),
        curvature="fisher",
        regular=False,
    ),
    "gamma": _member(
        lambda: GammaLikelihood(shape=3.0), "positive", lambda f: sps.gamma(3.0, scale=np.exp(f) / 3.0), scale=0.5
    ),
    "log-normal": _member(
        lambda: LogNormalLikelihood(noise=0.1),
        "positive",
        lambda f: sps.lognorm(0.1**0.5, scale=np.exp(f)),
        scale=0.5,
        quadratic=True,
    ),
    "beta": _member(
        lambda: BetaLikelihood(precision=5.0),
        "share",
        lambda f: sps.beta(5.0 * expit(f), 5.0 * expit(-f)),
        scale=0.3,
        **FISHER,
    ),
    "weibull": Case(lambda: WeibullLikelihood(shape=2.0), make_survival, _censored(2.0), "positive"),
    "weibull-intervals": Case(lambda: WeibullLikelihood(shape=2.0), make_intervals, _intervals(2.0), "positive"),
    "log-logistic-intervals": Case(
        lambda: LogLogisticLikelihood(shape=2.0), make_intervals, _intervals(2.0, _LogLogistic), "positive"
    ),
    "log-logistic": Case(
        lambda: LogLogisticLikelihood(shape=2.0), make_survival, _censored(2.0, _LogLogistic), "positive"
    ),
    "log-normal-intervals": Case(
        lambda: CensoredLogNormalLikelihood(noise=0.25), make_intervals, _intervals(0.25, _LogNormal), "positive"
    ),
    "log-normal-times": Case(
        lambda: CensoredLogNormalLikelihood(noise=0.25), make_survival, _censored(0.25, _LogNormal), "positive"
    ),
    "exponential": Case(ExponentialLikelihood, make_survival, _censored(1.0), "positive"),
}
REGULAR = tuple(name for name, case in CASES.items() if case.regular)
# Those that tests of something else than likelihoods run over.
CORE = ("bernoulli-logit", "bernoulli-probit", "categorical", "poisson", "gaussian")


# ----------------------------------------------------------------------- model
class SimpleGP(GP):
    """A model whose mean is one constant, and whose kernel is one with given hyperparameters, unless others are given."""

    def __init__(self, x, y, likelihood, *, kernel=None, mean=None, **kwargs):
        mean = gpytorch.means.ConstantMean() if mean is None else mean
        super().__init__(x, y, likelihood, mean=mean, kernel=make_kernel() if kernel is None else kernel, **kwargs)


def make_kernel(lengthscale: float = 1.0, scale: float = 4.0) -> gpytorch.kernels.ScaleKernel:
    """A scaled Matern-3/2 kernel."""
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5))
    kernel.outputscale, kernel.base_kernel.lengthscale = scale, lengthscale
    return kernel


def make_batch_kernel(num_kernels: int = 3) -> gpytorch.kernels.ScaleKernel:
    """A kernel of its own for every latent function."""
    batch = torch.Size([num_kernels])
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(batch_shape=batch), batch_shape=batch)
    kernel.base_kernel.lengthscale = torch.linspace(0.5, 2.0, num_kernels).reshape(-1, 1, 1)
    kernel.outputscale = torch.linspace(1.0, 4.0, num_kernels)
    return kernel


def make_model(name: str, num_rows: int = 40, dtype: torch.dtype = torch.float64, **kwargs) -> SimpleGP:
    """A model for one of ``CASES``, in evaluation mode, its parameters in the dtype of the data."""
    case = CASES[name]
    return SimpleGP(*case.data(num_rows, dtype=dtype), case.make(), **kwargs).to(dtype).eval()


def assert_same_posterior(ours: SimpleGP, exact: SimpleGP) -> None:
    """Asserts equal marginals, bounds and latent posteriors elsewhere."""
    expected, solution = exact.solution, ours.solution
    assert_close(solution.latent_values, expected.latent_values, "posterior")
    assert_close(solution.latent_covariance, expected.latent_covariance, "posterior")
    assert solution.elbo == pytest.approx(expected.elbo, rel=1e-6)
    x = make_inputs(7, seed=5)
    with torch.no_grad():
        assert_close(ours(x).mean, exact(x).mean, "posterior")
        assert_close(ours(x).covariance_matrix, exact(x).covariance_matrix, "posterior")


# ----------------------------------------------------------------------- skips
needs_pykeops = pytest.mark.skipif(importlib.util.find_spec("pykeops") is None, reason="needs pykeops")


def keops_test(function):
    """Marks a test that compiles a KeOps kernel; skipped without pykeops or a C++ compiler."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    no_compiler = pytest.mark.skipif(compiler is None, reason="needs a C++ compiler")
    return pytest.mark.keops(needs_pykeops(no_compiler(function)))


class LiveMemory(TorchDispatchMode):
    """Bytes of all tensors that are alive at once, at most."""

    def __init__(self):
        super().__init__()
        self.live, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if torch.is_tensor(tensor) and (key := tensor.untyped_storage()._cdata) not in self.live:
                self.live[key] = tensor.untyped_storage().nbytes()
                self.now += self.live[key]
                weakref.finalize(tensor.untyped_storage(), self.free, key)
        self.peak = max(self.peak, self.now)
        return found

    def free(self, key):
        self.now -= self.live.pop(key)
