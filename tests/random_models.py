"""Random models: kernels, means, likelihoods, data and solvers, as a strategy of Hypothesis.

A ``Spec`` is a value that prints as it is written, so that a failing one is a regression test as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gpytorch.kernels as gk
import gpytorch.likelihoods as gl
import gpytorch.means as gm
import torch
from gpytorch.constraints import Interval
from gpytorch.distributions import MultivariateNormal
from helpers import CASES, make_inputs
from hypothesis import strategies as st
from linear_operator import to_dense
from torch import Tensor

from itergp.kernels import (
    AdditiveLaplacianKernel,
    CategoricalKernel,
    LaplacianKernel,
    OrderedCategoricalKernel,
    TiedLaplacianKernel,
    TiedMaternKernel,
)
from itergp.models import NonConjugateGP
from itergp.solvers import DenseNewton, IterNCGP, LinearTimeNewton, SubspaceNewton
from itergp.solvers.policies import (
    CG,
    BlockGradient,
    BlockSparse,
    ClassGradient,
    Gradient,
    KernelColumns,
    Lanczos,
    Mixed,
    PreconditionedCG,
    RandomProbes,
    UnitVectors,
)

CATEGORIES = 3  # values of the last column where there are categories
LETTERS = 4  # columns of a one-hot letter
TASKS = 2

TIME = {"time_limit": 0.4}  # seconds: what takes longer is a valid posterior that says so
POLICIES = {
    "cg": CG(),
    "block gradient": BlockGradient(),
    "block sparse": BlockSparse(),
    "class gradient": ClassGradient(),
    "gradient": Gradient(),
    "kernel columns": KernelColumns(),
    "lanczos": Lanczos(),
    "preconditioned cg": PreconditionedCG(),
    "random probes": RandomProbes(),
    "unit vectors": UnitVectors(rows=4),
    "mixed": Mixed((UnitVectors(rows=3), Gradient())),
}
SOLVERS: dict[str, Callable[[], Any]] = {
    "dense": lambda: DenseNewton(**TIME),
    "subspace": lambda: SubspaceNewton(**TIME),
    "subspace tight": lambda: SubspaceNewton(tolerance=1e-12, **TIME),
    "subspace low rank": lambda: SubspaceNewton(covariance_rank=4, max_rank=16, **TIME),
    "subspace few passes": lambda: SubspaceNewton(max_passes=3, covariance_rank=6, num_neighbours=3, **TIME),
    "linear time": lambda: LinearTimeNewton(**TIME),
    "linear time small": lambda: LinearTimeNewton(num_support=8, covariance_rank=4, num_neighbours=4, **TIME),
    "linear time polished": lambda: LinearTimeNewton(num_support=8, polish=SubspaceNewton(), **TIME),
    "iterncgp": lambda: IterNCGP(step="backtracking", **TIME),
    "iterncgp rows": lambda: IterNCGP(policy=UnitVectors(rows=5), step="backtracking", **TIME),
    "iterncgp full": lambda: IterNCGP(**TIME),
    "dense mean": lambda: DenseNewton(covariance=False, **TIME),
    "linear time random": lambda: LinearTimeNewton(num_support=12, policy=UnitVectors(order="random", rows=3), **TIME),
    **{f"subspace {name}": partial(SubspaceNewton, policy=policy, **TIME) for name, policy in POLICIES.items()},
    **{
        f"iterncgp {name}": partial(IterNCGP, policy=policy, step="backtracking", **TIME)
        for name, policy in POLICIES.items()
    },
}
# Solvers that condition on every latent value of data this small: their covariance is exact.
EXACT = ("dense", "subspace", "subspace tight")

# GPyTorch's own likelihoods: how they are made for N rows, and the case whose targets and density they share.
THEIRS: dict[str, tuple[Callable[[int], gl.Likelihood], str | None]] = {
    "gl bernoulli": (lambda n: gl.BernoulliLikelihood(), "bernoulli-probit"),
    "gl softmax": (lambda n: gl.SoftmaxLikelihood(num_classes=3, mixing_weights=False), "categorical"),
    "gl mixed softmax": (lambda n: gl.SoftmaxLikelihood(num_features=2, num_classes=3), None),
    "gl gaussian": (lambda n: gl.GaussianLikelihood(), "gaussian"),
    "gl gaussian with missing": (lambda n: gl.GaussianLikelihoodWithMissingObs(), "gaussian"),
    "gl fixed noise": (lambda n: gl.FixedNoiseGaussianLikelihood(torch.linspace(0.05, 0.5, n)), None),
    "gl fixed and learned noise": (
        lambda n: gl.FixedNoiseGaussianLikelihood(torch.linspace(0.05, 0.5, n), learn_additional_noise=True),
        None,
    ),
    "gl hadamard": (lambda n: gl.HadamardGaussianLikelihood(num_tasks=TASKS), None),
    "gl student-t": (lambda n: gl.StudentTLikelihood(), None),
    "gl laplace": (lambda n: gl.LaplaceLikelihood(), None),
    "gl poisson": (lambda n: gl.PoissonLikelihood(), None),
    "gl negative binomial": (lambda n: gl.NegativeBinomialLikelihood(), None),
    "gl beta": (lambda n: gl.BetaLikelihood(), None),
}
_TARGETS_OF = {
    "gl mixed softmax": "categorical",
    "gl fixed noise": "gaussian",
    "gl fixed and learned noise": "gaussian",
    "gl hadamard": "gaussian",
    "gl student-t": "student-t",
    "gl laplace": "laplace",
    "gl poisson": "poisson",
    "gl negative binomial": "negative-binomial",
    "gl beta": "beta",
}
LIKELIHOODS = (*CASES, *THEIRS)


@dataclass(frozen=True)
class Spec:
    """A model, all of it.

    Attributes:
        kernel: A tree of tuples, see ``make_kernel``.
        forward: A key of ``FORWARDS``.
        rows: N.
        new: Number of new inputs.
        columns: D of real numbers.
        inputs: A kind of inputs, see ``make_rows``.
        dtype: ``"float32"`` or ``"float64"``.
        likelihood: A key of ``CASES`` or ``THEIRS``.
        mean: ``"zero"``, ``"constant"`` or ``"linear"``.
        batch: Whether every latent function has a kernel of its own.
        weights: ``"none"``, ``"positive"`` or ``"some zero"``.
        missing: Whether some targets are missing.
        approximation: ``"laplace"`` or ``"variational"``.
        solver: A key of ``SOLVERS``.
        level: Largest prior variance at the inputs, by one more scale around the kernel; None leaves it as it is.
        spread: Orders of magnitude that hyperparameters lie around 1.
        seed: Of all that is drawn at random.
    """

    kernel: tuple
    forward: str = "kernel"
    rows: int = 12
    new: int = 3
    columns: int = 2
    inputs: str = "normal"
    dtype: str = "float64"
    likelihood: str = "gaussian"
    mean: str = "zero"
    batch: bool = False
    weights: str = "none"
    missing: bool = False
    approximation: str = "laplace"
    solver: str = "dense"
    level: float | None = None
    spread: float = 0.3
    seed: int = 0


# ---------------------------------------------------------------------- kernels
def _structure(kind: type, base: gk.Kernel, dims: list[int], **place: Any) -> gk.Kernel:
    return kind(base, num_dims=len(dims), **place)


def _line() -> gk.Kernel:
    return gk.GridInterpolationKernel(gk.RBFKernel(), grid_size=16, num_dims=1)


def make_kernel(tree: tuple, x: Tensor, batch: int) -> gk.Kernel:
    """The kernel of a tree: ``(name, dims, ard)``, ``("scale", tree)``, ``("sum", a, b)`` or ``("product", a, b)``.

    Args:
        tree: The tree.
        x: Training inputs, for inducing points.
        batch: C where every latent function has a kernel of its own, otherwise 0.
    """
    shape = torch.Size([batch] if batch else [])
    if tree[0] == "scale":
        return gk.ScaleKernel(make_kernel(tree[1], x, batch), batch_shape=shape)
    if tree[0] in ("sum", "product"):
        first, second = (make_kernel(part, x, batch) for part in tree[1:])
        return first + second if tree[0] == "sum" else first * second
    return _leaf(*tree, x=x, shape=shape)


def _leaf(name: str, dims: tuple[int, ...] | None, ard: bool, *, x: Tensor, shape: torch.Size) -> gk.Kernel:
    count = x.shape[-1] if dims is None else len(dims)
    place: dict[str, Any] = {} if dims is None else {"active_dims": list(dims)}
    plain = place | {"batch_shape": shape, "ard_num_dims": count if ard else None}
    if name.startswith("matern"):
        return gk.MaternKernel(nu=float(name[7:]), **plain)
    if name.startswith("piecewise"):
        return gk.PiecewisePolynomialKernel(q=int(name[-1]), **plain)
    if name.startswith("polynomial"):
        return gk.PolynomialKernel(power=int(name[-1]), batch_shape=shape, **place)
    if name == "laplacian":
        return LaplacianKernel(**plain)
    if name in ("rbf", "rq"):
        return (gk.RBFKernel if name == "rbf" else gk.RQKernel)(**plain)
    others: dict[str, Callable[[], gk.Kernel]] = {
        "periodic": lambda: gk.PeriodicKernel(batch_shape=shape, ard_num_dims=count, **place),
        "cosine": lambda: gk.CosineKernel(batch_shape=shape, **place),
        "linear": lambda: gk.LinearKernel(batch_shape=shape, **place),
        "constant": lambda: gk.ConstantKernel(batch_shape=shape),
        "spectral mixture": lambda: gk.SpectralMixtureKernel(
            num_mixtures=2, ard_num_dims=count, batch_shape=shape, **place
        ),
        "spectral delta": lambda: gk.SpectralDeltaKernel(num_dims=count, num_deltas=8, **place),
        "rff": lambda: gk.RFFKernel(num_samples=8, num_dims=count, **place),
        "grid": lambda: gk.GridInterpolationKernel(gk.RBFKernel(), grid_size=16, num_dims=count, **place),
        "bounded grid": lambda: gk.GridInterpolationKernel(
            gk.ScaleKernel(gk.RBFKernel()), grid_size=16, grid_bounds=_bounds(x, dims), **place
        ),
        "inducing": lambda: gk.InducingPointKernel(
            gk.ScaleKernel(gk.MaternKernel(nu=2.5)), _points(x, dims), gl.GaussianLikelihood(), **place
        ),
        "additive": lambda: _structure(gk.AdditiveStructureKernel, gk.RBFKernel(), [*range(count)], **place),
        "product structure": lambda: _structure(
            gk.ProductStructureKernel, gk.MaternKernel(nu=1.5), [*range(count)], **place
        ),
        "skip": lambda: _structure(gk.ProductStructureKernel, _line(), [*range(count)], **place),
        "additive grid": lambda: _structure(gk.AdditiveStructureKernel, _line(), [*range(count)], **place),
        "additive periodic": lambda: _structure(
            gk.AdditiveStructureKernel, gk.PeriodicKernel(), [*range(count)], **place
        ),
        "additive piecewise": lambda: _structure(
            gk.AdditiveStructureKernel, gk.PiecewisePolynomialKernel(q=1), [*range(count)], **place
        ),
        "product linear": lambda: _structure(
            gk.ProductStructureKernel, gk.ScaleKernel(gk.LinearKernel()), [*range(count)], **place
        ),
        "linear ard": lambda: gk.LinearKernel(ard_num_dims=count, batch_shape=shape, **place),
        "symmetrized kl": lambda: gk.GaussianSymmetrizedKLKernel(**place),
        "grid kernel": lambda: gk.GridKernel(gk.RBFKernel(), [torch.linspace(-2.0, 2.0, 9).double()], **place),
        "keops rbf": lambda: gk.keops.RBFKernel(**plain),
        "keops matern": lambda: gk.keops.MaternKernel(nu=1.5, **plain),
        "newton girard": lambda: gk.NewtonGirardAdditiveKernel(
            gk.RBFKernel(ard_num_dims=count), num_dims=count, max_degree=2, **place
        ),
        "arc": lambda: gk.ArcKernel(gk.MaternKernel(nu=2.5), ard_num_dims=count, **place),
        "index": lambda: gk.IndexKernel(num_tasks=CATEGORIES, rank=1, batch_shape=shape, active_dims=[x.shape[-1] - 1]),
        "additive laplacian": lambda: AdditiveLaplacianKernel(count, batch_shape=shape, **place),
        "tied laplacian": lambda: TiedLaplacianKernel(_groups(count), batch_shape=shape, **place),
        "tied matern": lambda: TiedMaternKernel(_groups(count), nu=1.5, batch_shape=shape, **place),
        "categorical": lambda: CategoricalKernel(1, batch_shape=shape, active_dims=[x.shape[-1] - 1]),
        "ordered": lambda: OrderedCategoricalKernel(CATEGORIES, batch_shape=shape, active_dims=[x.shape[-1] - 1]),
        "hamming": lambda: gk.HammingIMQKernel(vocab_size=LETTERS, batch_shape=shape),
        "cylindrical": lambda: gk.CylindricalKernel(3, gk.MaternKernel(nu=2.5), **place),
    }
    return others[name]()


def _groups(count: int) -> list[int]:
    return [k // 2 for k in range(count)]


def _bounds(x: Tensor, dims: tuple[int, ...] | None) -> list[tuple[float, float]]:
    points = x if dims is None else x[:, list(dims)]
    width = points.abs().amax(0).double() * 4.0 + 1.0
    return [(-float(w), float(w)) for w in width]


def _points(x: Tensor, dims: tuple[int, ...] | None) -> Tensor:
    return (x if dims is None else x[:, list(dims)])[:5].clone()


def _set_hyperparameters(module: torch.nn.Module, spread: float, generator: torch.Generator) -> None:
    """Draws every positive parameter from a few orders of magnitude, and the others near zero."""
    for _, parameter, constraint in module.named_parameters_and_constraints():
        draw = torch.rand(parameter.shape, generator=generator).to(parameter)
        if isinstance(constraint, Interval):
            low, high = float(constraint.lower_bound), float(constraint.upper_bound)
            bounded = low > float("-inf") and high < float("inf")
            value = low + (high - low) * (0.1 + 0.8 * draw) if bounded else low + 10.0 ** (spread * (2.0 * draw - 1.0))
            parameter.data.copy_(constraint.inverse_transform(value))


FORWARDS: dict[str, Callable[[gk.Kernel, Tensor], Any]] = {
    "kernel": lambda kernel, x: kernel(x),
    "evaluated": lambda kernel, x: kernel(x).evaluate_kernel(),
    "product of matrices": lambda kernel, x: kernel(x) * kernel(x),
    "weighted sum": lambda kernel, x: 2.0 * kernel(x) + kernel(x),
    "features": lambda kernel, x: kernel(torch.tanh(x)),
    "two views": lambda kernel, x: kernel(x) + 0.5 * kernel(0.5 * x),
}


# -------------------------------------------------------------------------- data
def make_rows(spec: Spec) -> Tensor:
    """Training inputs and new ones below them, in the dtype of the model."""
    size, dtype = spec.rows + spec.new, getattr(torch, spec.dtype)
    base = make_inputs(size, spec.columns, torch.float64, spec.seed)
    generator = torch.Generator().manual_seed(spec.seed + 7)
    if spec.inputs == "ball":
        base = 0.9 * base / (1.0 + base.norm(dim=-1, keepdim=True))
    elif spec.inputs == "wide":
        base = 100.0 * base
    elif spec.inputs == "far":
        base = base + 1e3
    elif spec.inputs == "duplicates":
        base = base[torch.randint(0, max(1, size // 2), (size,), generator=generator)]
    elif spec.inputs == "collinear":
        base[:, 1:] = base[:, :1] * torch.arange(2.0, spec.columns + 1.0).double()
    elif spec.inputs == "constant":
        base[:, -1] = 0.7
    elif spec.inputs == "grid":
        base = base.round()
    elif spec.inputs == "letters":
        letters = torch.randint(0, LETTERS, (size, 2), generator=generator)
        base = torch.nn.functional.one_hot(letters, LETTERS).double().flatten(1)
    elif spec.inputs == "categories":
        base = torch.cat([base, (torch.arange(size) % CATEGORIES).double().unsqueeze(-1)], -1)
    if spec.new > 1:
        base[-1] = base[0]  # a new input that has been seen
    return base.to(dtype)


def case_of(likelihood: str) -> str:
    """The case whose targets a likelihood takes."""
    return likelihood if likelihood in CASES else THEIRS[likelihood][1] or _TARGETS_OF[likelihood]


def make_likelihood(spec: Spec) -> gl.Likelihood:
    """The likelihood; GPyTorch's with drawn parameters."""
    if spec.likelihood in CASES:
        return CASES[spec.likelihood].make()
    torch.manual_seed(spec.seed)
    made = THEIRS[spec.likelihood][0](spec.rows)
    if case_of(spec.likelihood) == "gaussian" and "fixed" not in spec.likelihood and "hadamard" not in spec.likelihood:
        made.noise = 0.1
    elif "bernoulli" not in spec.likelihood and "softmax" not in spec.likelihood:
        _set_hyperparameters(made, 0.5, torch.Generator().manual_seed(spec.seed + 3))
    return made


def make_targets(spec: Spec) -> Tensor:
    """Targets, none of them missing."""
    dtype = getattr(torch, spec.dtype)
    name, size = case_of(spec.likelihood), max(spec.rows, 5)
    _, y = CASES[name].data(size, num_columns=spec.columns, dtype=dtype, seed=spec.seed)
    y = y[: spec.rows]
    if name == "beta":
        y = y.clamp(1e-3, 1.0 - 1e-3)
    theirs = spec.likelihood in THEIRS and "softmax" not in spec.likelihood
    return y.to(dtype) if theirs and not y.is_floating_point() else y


def missing_rows(spec: Spec) -> Tensor:
    """Which targets are missing ``(N,)``; never the first few."""
    gone = torch.zeros(spec.rows, dtype=torch.bool)
    if spec.missing:
        gone[3::4] = True
    return gone


def sample_weight(spec: Spec) -> Tensor | None:
    """Weights of the rows in float64, or None."""
    if spec.weights == "none":
        return None
    weight = 0.2 + 2.0 * torch.rand(spec.rows, generator=torch.Generator().manual_seed(spec.seed + 5)).double()
    if spec.weights == "some zero":
        weight[1::3] = 0.0
    return weight.to(getattr(torch, spec.dtype)).double()


# ------------------------------------------------------------------------- models
class RandomGP(NonConjugateGP):
    """A model of one real input, and perhaps the number of a task."""

    def __init__(self, inputs: Any, y: Tensor, likelihood: gl.Likelihood, forward: Callable, **options: Any) -> None:
        super().__init__(inputs, y, likelihood, **options)
        self.covariance = forward

    def forward(self, x: Tensor, task: Tensor | None = None) -> MultivariateNormal:
        covariance = self.covariance(self.covar_module, x)
        if task is not None:
            covariance = covariance.mul(self.task_module(task))
        return MultivariateNormal(self.mean_module(x), covariance)


def make_mean(spec: Spec, columns: int, latents: int) -> gm.Mean:
    """The prior mean, one of its own for each of several latent functions with kernels of their own."""
    shape = torch.Size([latents] if spec.batch else [])
    if spec.mean == "linear":
        return gm.LinearMean(columns, batch_shape=shape)
    return gm.ConstantMean(batch_shape=shape) if spec.mean == "constant" else gm.ZeroMean(batch_shape=shape)


def num_latents(spec: Spec) -> int:
    """C."""
    return {"gl softmax": 3, "gl mixed softmax": 2}.get(spec.likelihood) or CASES[case_of(spec.likelihood)].num_latents


def inputs_of(spec: Spec, rows: Tensor, first: int) -> tuple[Tensor, ...]:
    """Arguments of ``forward``: the rows, and for a Hadamard likelihood the tasks of rows from number ``first`` on."""
    if spec.likelihood != "gl hadamard":
        return (rows,)
    return rows, ((torch.arange(rows.shape[0]) + first) % TASKS).unsqueeze(-1)


def make_model(spec: Spec) -> tuple[RandomGP, tuple[Tensor, ...]]:
    """The model in evaluation mode, and new inputs."""
    rows, y, dtype = make_rows(spec), make_targets(spec), getattr(torch, spec.dtype)
    x, new = rows[: spec.rows], rows[spec.rows :]
    gone = missing_rows(spec)
    if bool(gone.any()):
        labels = CASES[case_of(spec.likelihood)].observed == "label"
        y = y.clone() if labels else y.to(dtype)  # counts have no value that says "missing"
        y[gone] = float("nan") if y.is_floating_point() else -1
    weight = sample_weight(spec)
    likelihood = make_likelihood(spec).to(dtype)
    if isinstance(likelihood, gl.FixedNoiseGaussianLikelihood):
        likelihood.noise_covar.noise = likelihood.noise_covar.noise.to(dtype)
    options = {"solver": SOLVERS[spec.solver](), "approximation": spec.approximation, "missing_targets": spec.missing}
    model = RandomGP(
        inputs_of(spec, x, 0),
        y,
        likelihood,
        FORWARDS[spec.forward],
        sample_weight=None if weight is None else weight.to(dtype),
        **options,
    )
    generator = torch.Generator().manual_seed(spec.seed + 11)
    torch.manual_seed(spec.seed)
    latents = num_latents(spec)
    model.mean_module = make_mean(spec, rows.shape[-1], latents)
    model.covar_module = make_kernel(spec.kernel, x.double(), latents if spec.batch else 0)
    _set_hyperparameters(model.covar_module, spec.spread, generator)
    if spec.level is not None:
        _rescale(model, rows, spec.level)
    if spec.likelihood == "gl hadamard":
        model.task_module = gk.IndexKernel(num_tasks=TASKS, rank=1)
    for parameter in model.mean_module.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype).eval(), inputs_of(spec, new, spec.rows)


class NoModel(Exception):
    """GPyTorch itself has no such kernel matrix: rows outside of a grid, a kernel without batches, entries too large."""


def _rescale(model: RandomGP, rows: Tensor, level: float) -> None:
    kernel = model.covar_module.double().eval()
    try:
        with torch.no_grad():
            largest = model.covariance(kernel, rows.double()).to_dense().diagonal(dim1=-1, dim2=-2).max()
    except (RuntimeError, ValueError) as error:
        raise NoModel(str(error)) from error
    if not bool(torch.isfinite(largest)):
        raise NoModel("no finite variances")
    if model.covariance is FORWARDS["product of matrices"]:
        largest, level = largest.sqrt(), level**0.5
    kernel._clear_cache()
    for module in kernel.modules():
        if isinstance(module, gk.Kernel):
            module._clear_cache()
    scaled = gk.ScaleKernel(kernel)
    scaled.outputscale = level / largest.clamp(1e-12, 1e12)
    model.covar_module = scaled


class _ExactProduct(gk.ProductKernel):
    """Products of entries: GPyTorch multiplies structured matrices by roots of them, with jitter on their diagonals."""

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        return math.prod(to_dense(kernel(x1, x2, diag=diag, **params)) for kernel in self.kernels)


class _ExactSum(gk.AdditiveKernel):
    """Sums of entries: GPyTorch adds a root to a dense matrix by the Cholesky factor of the latter, which may be singular."""

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        return sum(to_dense(kernel(x1, x2, diag=diag, **params)) for kernel in self.kernels)


class _ExactProductStructure(gk.ProductStructureKernel):
    """The same over dimensions."""

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        factors = to_dense(self.base_kernel(x1, x2, diag=diag, last_dim_is_batch=True))
        return factors.prod(-2 if diag else -3)


class _ExactScale(gk.ScaleKernel):
    """Numbers times entries: GPyTorch cannot multiply some structured matrices by a batch of numbers."""

    def forward(
        self, x1: Tensor, x2: Tensor, last_dim_is_batch: bool = False, diag: bool = False, **params: Any
    ) -> Tensor:
        entries = to_dense(
            self.base_kernel.forward(x1, x2, diag=diag, last_dim_is_batch=last_dim_is_batch, **params)
        )  # of which it has the active_dims
        scale = self.outputscale.unsqueeze(-1) if last_dim_is_batch else self.outputscale
        return entries * (scale.unsqueeze(-1) if diag else scale[..., None, None])


_EXACT_PRODUCTS = {
    gk.AdditiveKernel: _ExactSum,
    gk.ProductKernel: _ExactProduct,
    gk.ProductStructureKernel: _ExactProductStructure,
    gk.ScaleKernel: _ExactScale,
}


def prior_of(model: RandomGP, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean ``(n, C')`` and covariance ``(C', n, n)`` by GPyTorch in one call, float64 numbers computed in ``dtype``.

    Args:
        model: A model of which nothing else is asked: GPyTorch's kernels share what they keep with their copies.
        inputs: All rows.
        dtype: To compute in.
    """
    x = inputs[0].to(dtype)
    for module in (model.mean_module, model.covar_module):
        module.to(dtype)
    for module in model.covar_module.modules():
        if type(module) in _EXACT_PRODUCTS and model.covariance is not FORWARDS["evaluated"]:  # which is GPyTorch's own
            module.__class__ = _EXACT_PRODUCTS[type(module)]
    matrix = model.covariance(model.covar_module, x)
    if len(inputs) > 1:
        matrix = to_dense(matrix) * to_dense(model.task_module.to(dtype)(inputs[1]))  # not of roots, with their jitter
    matrix, mean = to_dense(matrix).detach().double(), model.mean_module(x).detach().double()
    size = x.shape[0]
    return mean.reshape(-1, size).mT, matrix.reshape(-1, size, size)


# --------------------------------------------------------------------- strategies
_REAL = (
    "rbf", "matern 0.5", "matern 1.5", "matern 2.5", "rq", "periodic", "linear", "polynomial 2", "polynomial 3",
    "piecewise 0", "piecewise 2", "spectral mixture", "spectral delta", "constant", "rff", "grid", "bounded grid",
    "inducing", "additive", "product structure", "newton girard", "arc", "cosine", "laplacian", "laplacian",
    "additive laplacian", "tied laplacian", "tied matern", "skip", "additive grid", "additive periodic", "additive piecewise",
    "product linear", "linear ard", "symmetrized kl", "grid kernel", "keops rbf", "keops matern",
)  # fmt: skip
_GRIDS = ("grid", "bounded grid")
_ONE_COLUMN = ("cosine", "grid kernel")
_OF_CATEGORIES = ("index", "categorical", "ordered")
INPUTS = (
    "normal", "normal", "normal", "ball", "wide", "far", "duplicates", "collinear", "constant", "grid", "letters",
    "categories", "categories",
)  # fmt: skip


def _leaves(columns: int, inputs: str) -> st.SearchStrategy[tuple]:
    if inputs == "letters":
        return st.tuples(st.sampled_from(("hamming", "rbf", "linear", "matern 1.5")), st.none(), st.booleans())
    names = (
        _REAL
        + (_OF_CATEGORIES * 3 if inputs == "categories" else ())
        + (("cylindrical",) * 4 if inputs == "ball" else ())
    )
    dims = st.lists(st.integers(0, columns - 1), min_size=1, max_size=columns, unique=True).map(tuple)

    @st.composite
    def leaf(draw: Callable) -> tuple:
        name, chosen = draw(st.sampled_from(names)), draw(dims)
        whole = inputs != "categories" and draw(st.booleans())
        if name in _ONE_COLUMN or name in _GRIDS:
            chosen, whole = chosen[: 1 if name in _ONE_COLUMN else 2], False
        if name == "symmetrized kl":
            chosen, whole = (0, columns - 1), False
        if name == "cylindrical":
            chosen, whole = chosen, True
        return name, None if whole or name in ("constant", *_OF_CATEGORIES) else chosen, draw(st.booleans())

    return leaf()


def kernels(columns: int, inputs: str) -> st.SearchStrategy[tuple]:
    """Trees of kernels."""
    return st.recursive(
        _leaves(columns, inputs),
        lambda parts: st.one_of(
            st.tuples(st.just("scale"), parts),
            st.tuples(st.just("sum"), parts, parts),
            st.tuples(st.just("product"), parts, parts),
        ),
        max_leaves=4,
    )


@st.composite
def specs(draw: Callable) -> Spec:
    """Models that make sense, and some that ask for much."""
    likelihood = draw(st.sampled_from(LIKELIHOODS))
    inputs = draw(st.sampled_from(INPUTS))
    columns = draw(st.integers(1, 5))
    fits_batch = num_latents(Spec(("constant",), likelihood=likelihood)) > 1
    labels = case_of(likelihood) == "categorical" or "bernoulli" in likelihood
    automatic = likelihood in ("gl beta", "gl negative binomial")  # whose expectations take seconds
    spread = draw(st.sampled_from((0.0, 0.3, 0.3, 1.0, 2.0)))
    # Powers of large numbers are more than any dtype holds.
    tame = spread <= 0.3 and inputs not in ("wide", "far")
    weighable = likelihood not in ("gl fixed noise", "gl fixed and learned noise", "gl hadamard")
    return Spec(
        kernel=draw(kernels(columns, inputs)),
        forward=draw(st.sampled_from(("kernel",) * 5 + tuple(FORWARDS)[1:]))
        if inputs not in ("letters", "categories")
        else "kernel",
        rows=draw(st.integers(3 if labels else 1, 40)),
        new=draw(st.integers(1, 5)),
        columns=columns,
        inputs=inputs,
        dtype=draw(st.sampled_from(("float32", "float64", "float64"))),
        likelihood=likelihood,
        mean=draw(st.sampled_from(("zero", "constant", "linear"))),
        batch=fits_batch and draw(st.booleans()),
        weights=draw(st.sampled_from(("none", "none", "positive", "some zero"))) if weighable else "none",
        missing=(labels or weighable) and draw(st.sampled_from((False, False, True))),
        approximation="laplace" if automatic else draw(st.sampled_from(("laplace", "variational"))),
        solver=draw(st.sampled_from(tuple(SOLVERS))),
        level=draw(st.sampled_from((0.1, 1.0, 1.0, 10.0, 10.0, 100.0, 1000.0) + tame * (None,))),
        spread=spread,
        seed=draw(st.integers(0, 2**16)),
    )
