"""Random expressions of GPyTorch's kernels: what a model predicts is what the matrix of all rows says."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import gpytorch
import gpytorch.kernels as gk
import gpytorch.likelihoods as gl
import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from helpers import make_inputs
from torch import Tensor

from itergp.models import NonConjugateGP
from itergp.solvers import DenseNewton

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
    pytest.mark.filterwarnings("ignore::linear_operator.utils.warnings.NumericalWarning"),
]
ROWS, NEW, NOISE, SMALL = 30, 5, 0.1, 1e-4


def _inputs() -> Tensor:
    """Training rows and new ones below: two numbers and a category."""
    x = torch.sigmoid(make_inputs(ROWS + NEW, 3))
    x[:, 2] = torch.arange(ROWS + NEW) % 3
    return x


def _scaled() -> gk.Kernel:
    return gk.ScaleKernel(gk.RBFKernel())


def _points(dims: list[int]) -> Tensor:
    return _inputs()[:5, dims].clone()


LEAVES: list[Callable[[list[int]], gk.Kernel]] = [
    lambda dims: gk.RBFKernel(ard_num_dims=len(dims), active_dims=dims),
    lambda dims: gk.MaternKernel(nu=random.choice([0.5, 1.5, 2.5]), active_dims=dims),
    lambda dims: gk.RQKernel(active_dims=dims),
    lambda dims: gk.PeriodicKernel(active_dims=dims),
    lambda dims: gk.LinearKernel(active_dims=dims),
    lambda dims: gk.PolynomialKernel(power=2, active_dims=dims),
    lambda dims: gk.RFFKernel(num_samples=20, num_dims=len(dims), active_dims=dims),
    lambda dims: gk.GridInterpolationKernel(gk.RBFKernel(), grid_size=20, num_dims=len(dims), active_dims=dims),
    lambda dims: gk.GridInterpolationKernel(
        gk.RBFKernel(), grid_size=20, grid_bounds=[(-0.5, 2.5)] * len(dims), active_dims=dims
    ),
    lambda dims: gk.IndexKernel(num_tasks=3, rank=2, active_dims=[2]),
    lambda dims: gk.ConstantKernel(),
    lambda dims: gk.InducingPointKernel(_scaled(), _points(dims), gl.GaussianLikelihood(), active_dims=dims),
    lambda dims: gk.AdditiveStructureKernel(_scaled(), num_dims=len(dims), active_dims=dims),
    lambda dims: gk.ProductStructureKernel(_scaled(), num_dims=len(dims), active_dims=dims),
    lambda dims: gk.PiecewisePolynomialKernel(q=2, active_dims=dims),
    lambda dims: gk.SpectralMixtureKernel(num_mixtures=2, ard_num_dims=len(dims), active_dims=dims),
    lambda dims: gk.ArcKernel(gk.MaternKernel(nu=2.5), ard_num_dims=len(dims), active_dims=dims),
]
FORWARDS: list[Callable[[gk.Kernel, Tensor], object]] = [
    lambda kernel, x: kernel(x),
    lambda kernel, x: kernel(x) * kernel(x),
    lambda kernel, x: 2.0 * kernel(x) + kernel(x),
]


def _expression(depth: int) -> gk.Kernel:
    kind = random.random()
    if depth == 0 or kind < 0.3:
        return random.choice(LEAVES)(random.choice([[0], [1], [0, 1]]))
    if kind < 0.5:
        return gk.ScaleKernel(_expression(depth - 1))
    first, second = _expression(depth - 1), _expression(depth - 1)
    return first + second if kind < 0.75 else first * second


class _Model(NonConjugateGP):
    def __init__(self, x: Tensor, y: Tensor, kernel: gk.Kernel, covariance: Callable) -> None:
        likelihood = gl.GaussianLikelihood()
        likelihood.noise = NOISE
        super().__init__(x, y, likelihood, solver=DenseNewton())
        self.mean_module, self.covar_module, self.covariance = gpytorch.means.ZeroMean(), kernel, covariance

    def forward(self, x: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(x), self.covariance(self.covar_module, x))


@torch.no_grad()
def _check(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    kernel, covariance = _expression(3).double(), random.choice(FORWARDS)
    rows = _inputs()
    x, new, y = rows[:ROWS], rows[ROWS:], torch.sin(5.0 * rows[:ROWS, 0]) + rows[:ROWS, 1]
    whole = copy.deepcopy(kernel)
    for module in whole.modules():  # copies of some of GPyTorch's kernels are in training mode
        module.training = False
    matrix = covariance(whole, rows).to_dense()
    system, cross = matrix[:ROWS, :ROWS] + NOISE * torch.eye(ROWS), matrix[ROWS:, :ROWS]
    mean = cross @ torch.linalg.solve(system, y)
    variance = (matrix[ROWS:, ROWS:] - cross @ torch.linalg.solve(system, cross.mT)).diagonal()
    latent = _Model(x, y, kernel, covariance).double().eval()(new)
    assert float((latent.mean - mean).abs().max()) < SMALL * (float(mean.abs().max()) + 1e-3), kernel
    assert float((latent.variance - variance).abs().max()) < SMALL * float(matrix.diagonal().max()), kernel


@pytest.mark.parametrize("seed", range(30))
def test_predictions_are_those_of_the_whole_matrix(seed):
    _check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(100, 400, 50))
def test_predictions_are_those_of_the_whole_matrix_for_many(start):
    for seed in range(start, start + 50):
        _check(seed)
