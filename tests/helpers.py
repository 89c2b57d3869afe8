"""What the tests share: tolerances, small data, a small model."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import gpytorch
import pytest
import torch
from torch import Tensor

from itergp.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianLikelihood,
    Likelihood,
    PoissonLikelihood,
)
from itergp.models import NonConjugateGP

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


@dataclass(frozen=True)
class Case:
    """A likelihood with data that fit it.

    Attributes:
        make: Makes the likelihood.
        data: Makes inputs and targets from a number of rows and keywords ``dtype`` and ``seed``.
    """

    make: Callable[[], Likelihood]
    data: Callable[..., tuple[Tensor, Tensor]]


CASES: dict[str, Case] = {
    "bernoulli-logit": Case(BernoulliLikelihood, make_binary),
    "bernoulli-probit": Case(lambda: BernoulliLikelihood(link="probit"), make_binary),
    "categorical": Case(lambda: CategoricalLikelihood(3), make_classes),
    "poisson": Case(PoissonLikelihood, make_counts),
    "gaussian": Case(lambda: GaussianLikelihood(noise=0.1), make_reals),
}


# ----------------------------------------------------------------------- model
class SimpleGP(NonConjugateGP):
    """A model with any mean and kernel; the default kernel is a scaled Matern-3/2."""

    def __init__(self, x, y, likelihood, *, kernel=None, mean=None, **kwargs):
        super().__init__(x, y, likelihood, **kwargs)
        self.mean_module = gpytorch.means.ConstantMean() if mean is None else mean
        self.covar_module = make_kernel() if kernel is None else kernel

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


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


# ----------------------------------------------------------------------- skips
needs_pykeops = pytest.mark.skipif(importlib.util.find_spec("pykeops") is None, reason="needs pykeops")


def keops_test(function):
    """Marks a test that compiles a KeOps kernel; skipped without pykeops or a C++ compiler."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    no_compiler = pytest.mark.skipif(compiler is None, reason="needs a C++ compiler")
    return pytest.mark.keops(needs_pykeops(no_compiler(function)))
