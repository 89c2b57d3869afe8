"""Operators of coupled latent functions: what they multiply by is the kernel's own dense matrix."""

from __future__ import annotations

import copy

import gpytorch
import pytest
import torch
from gpytorch.kernels import (
    AdditiveKernel,
    InducingPointKernel,
    Kernel,
    LCMKernel,
    MaternKernel,
    MultitaskKernel,
    RBFKernel,
    RBFKernelGrad,
    ScaleKernel,
)
from helpers import assert_close, make_inputs

from itergp.errors import InputError
from itergp.operators import AbstractOperator, BlockedOperator, JointOperator, KernelCounts, KroneckerOperator, Prior
from itergp.operators.choose import make_operator
from itergp.operators.kernel_blocks import multiply_rows, restricted
from itergp.posterior.precision import columns_times, cross_multiply, multiply

OUTPUTS, ROWS = 3, 25


class Convolved(Kernel):
    """A user's: two outputs that see the input shifted, not a Kronecker product."""

    has_lengthscale = True

    def num_outputs_per_input(self, x1, x2):
        return OUTPUTS

    def forward(self, x1, x2, diag=False, **params):
        shifts = torch.arange(OUTPUTS, dtype=x1.dtype) * 0.3
        first, second = ((x[..., :1] + shifts).flatten(-2) for x in (x1, x2))
        entries = torch.exp(-0.5 * ((first[:, None] - second) / self.lengthscale.squeeze()).square())
        return entries.diagonal(dim1=-2, dim2=-1) if diag else entries


KERNELS = {
    "multitask": (lambda: MultitaskKernel(RBFKernel(), OUTPUTS, rank=2), True),
    "sum": (lambda: LCMKernel([ScaleKernel(RBFKernel()), MaternKernel(nu=1.5)], OUTPUTS, rank=1), True),
    "scaled": (lambda: ScaleKernel(MultitaskKernel(MaternKernel(nu=0.5), OUTPUTS)), True),
    "added": (
        lambda: AdditiveKernel(*(MultitaskKernel(kernel, OUTPUTS) for kernel in (RBFKernel(), MaternKernel()))),
        True,
    ),
    "columns inside": (lambda: MultitaskKernel(RBFKernel(active_dims=(1,)), OUTPUTS), True),
    "added to another column": (
        lambda: AdditiveKernel(
            MultitaskKernel(RBFKernel(), OUTPUTS), MultitaskKernel(RBFKernel(), OUTPUTS, active_dims=(0,))
        ),
        False,
    ),
    "derivatives": (lambda: ScaleKernel(RBFKernelGrad()), False),
    "user's": (Convolved, False),
}


def _kernel(name: str) -> Kernel:
    torch.manual_seed(0)
    kernel = KERNELS[name][0]().double()
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape).double())
    return kernel


def _operator(name: str, kind: str = "auto"):
    x = make_inputs(ROWS, 2)
    return make_operator(_kernel(name), x, num_kernels=OUTPUTS, kind=kind), _kernel(name)(x).to_dense().detach()


@pytest.mark.parametrize("kind", ["auto", "dense", "blocked"])
@pytest.mark.parametrize("name", KERNELS)
def test_products_are_those_of_the_dense_matrix(name, kind):
    operator, matrix = _operator(name, kind)
    assert isinstance(operator, KroneckerOperator if KERNELS[name][1] else JointOperator)
    new, block = make_inputs(7, 2, seed=3), torch.randn(ROWS, OUTPUTS, 4).double()
    with torch.no_grad():
        expected = (matrix @ block.flatten(0, 1)).view_as(block)
        for _ in range(2):
            assert_close(multiply(operator, block), expected)
        assert operator.counts.passes == 2
        across = _kernel(name)(new, operator.inputs).to_dense()
        assert_close(cross_multiply(operator, new, block), (across @ block.flatten(0, 1)).view(7, OUTPUTS, 4))
        assert_close(operator.dense()[0], matrix)
        assert_close(AbstractOperator.dense(operator)[0], matrix)
        rows, cols = torch.tensor([3, 8, 1]), torch.tensor([8, 20])
        picked = matrix.view(ROWS, OUTPUTS, ROWS, OUTPUTS)[rows][:, :, cols].reshape(9, 6)
        assert_close(operator.entries(rows, cols)[0], picked)
        assert_close(AbstractOperator.entries(operator, rows, cols)[0], picked)
        joint = _kernel(name)(new).to_dense()
        blocks = torch.stack([joint[i : i + OUTPUTS, i : i + OUTPUTS] for i in range(0, 7 * OUTPUTS, OUTPUTS)])
        assert_close(operator.row_covariance(new), blocks)
        assert_close(operator.diagonal(new), blocks.diagonal(dim1=-2, dim2=-1).mT)
        assert_close(operator.covariance(new).to_dense(), joint)
        part = torch.randn(3, OUTPUTS, 2).double()
        on_rows = torch.zeros(ROWS, OUTPUTS, 2).double().index_copy(0, rows, part)
        expected = (matrix @ on_rows.flatten(0, 1)).view_as(on_rows)
        assert_close(multiply_rows(operator, rows, part), expected)
        assert_close(cross_multiply(restricted(operator, rows), operator.inputs, part), expected)
        found = torch.zeros_like(expected)
        operator.with_columns(rows, lambda i, entries: found.__setitem__(i, columns_times(entries, part)))
        assert_close(found, expected)


@pytest.mark.parametrize("name", KERNELS)
def test_derivatives_of_products_are_those_of_the_dense_matrix(name):
    kernel, twin = _kernel(name), _kernel(name)
    x, other = (make_inputs(ROWS, 2).requires_grad_(True) for _ in range(2))
    block, left = torch.randn(ROWS, OUTPUTS, 2).double(), torch.randn(ROWS, OUTPUTS, 2).double()
    operator = make_operator(kernel, x, num_kernels=OUTPUTS, kind="blocked")
    (multiply(operator, block) * left).sum().backward()
    product = (twin(other).to_dense() @ block.flatten(0, 1)).view_as(block)
    (product * left).sum().backward()
    for (key, mine), theirs in zip(kernel.named_parameters(), twin.parameters(), strict=True):
        assert mine.grad is not None, key
        assert_close(mine.grad, theirs.grad, "derivative")
    assert_close(x.grad, other.grad, "derivative")
    variances = operator.row_covariance()
    assert variances.requires_grad


def test_a_pass_over_kronecker_products_costs_one_over_each_kernel():
    operator, _ = _operator("sum", "blocked")
    operator.matmul(torch.randn(OUTPUTS, ROWS, 5).double())
    assert operator.entries_of_pass == 2 * ROWS**2
    alone = BlockedOperator(RBFKernel().double(), operator.inputs)
    alone.matmul(torch.randn(ROWS, 1).double())
    assert operator.counts.entries == 2 * alone.counts.entries


@torch.no_grad()
def test_kept_entries_are_evaluated_once_and_given_back():
    operator, _ = _operator("derivatives", "auto")
    assert operator.keeps_entries
    block = torch.randn(OUTPUTS, ROWS, 5).double()
    first = operator.matmul(block)
    evaluated = operator.counts.entries
    assert torch.equal(operator.matmul(block), first)
    assert operator.counts.entries == evaluated == (ROWS * OUTPUTS) ** 2
    assert copy.deepcopy(operator)._kept is None
    operator.release()
    operator.matmul(block)
    assert operator.counts.entries == 2 * evaluated


def test_blocks_of_one_vector_for_all_functions_are_refused():
    operator, _ = _operator("multitask")
    with pytest.raises(InputError, match=r"must have shape \(3, N, k\) .* Got \(25, 2\)"):
        operator.matmul(torch.zeros(ROWS, 2).double())


def test_operators_of_one_output_refuse_kernels_of_several():
    with pytest.raises(InputError, match=r"one output per input\. Got MultitaskKernel, which has several"):
        BlockedOperator(_kernel("multitask"), make_inputs(5, 2))


def test_inducing_points_of_several_outputs():
    x = make_inputs(20, 2)
    likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(OUTPUTS)
    kernel = InducingPointKernel(RBFKernel(), x[:5].clone(), likelihood)
    operator = make_operator(MultitaskKernel(kernel, OUTPUTS).double().eval(), x, num_kernels=OUTPUTS)
    with torch.no_grad():
        matrix = MultitaskKernel.forward(operator.kernel, x, x).to_dense()
        assert_close(operator.dense()[0], matrix, "derivative")
        block = torch.randn(20, OUTPUTS, 2).double()
        assert_close(multiply(operator, block), (matrix @ block.flatten(0, 1)).view_as(block), "derivative")
        rows, part = torch.tensor([4, 11]), torch.randn(2, OUTPUTS, 2).double()
        expected = (matrix.view(60, 20, 3)[:, rows].reshape(60, 6) @ part.flatten(0, 1)).view(20, 3, 2)
        assert_close(multiply_rows(operator, rows, part), expected, "derivative")
        found = torch.zeros_like(expected)
        operator.with_columns(rows, lambda i, entries: found.__setitem__(i, columns_times(entries, part)))
        assert_close(found, expected, "derivative")
    derivatives = InducingPointKernel(RBFKernelGrad(), x[:5].clone(), likelihood).double().eval()
    with pytest.raises(InputError, match="must be the data_covar_module of a MultitaskKernel"):
        make_operator(derivatives, x, num_kernels=OUTPUTS)


class Other(AbstractOperator):
    """Couples latent functions, and does not say how those of a row are."""

    num_kernels, memory_budget, couples_latents, num_rows = 2, 1, True, 3
    dtype, device, counts = torch.float64, torch.device("cpu"), KernelCounts()

    def matmul(self, block):
        return block

    def cross_matmul(self, inputs, block):
        return block

    def diagonal(self, inputs=None):
        return torch.ones(2, 3)


def test_an_operator_that_couples_says_how():
    with pytest.raises(NotImplementedError, match=r"Other\.row_covariance"):
        Other().row_covariance()


def test_a_covariance_of_outputs_that_is_no_kernel_is_evaluated_whole():
    x, kernel = make_inputs(9, 2), _kernel("multitask")
    mean = torch.zeros(9, OUTPUTS).double()

    def forward(x):
        return gpytorch.distributions.MultitaskMultivariateNormal(mean[: len(x)], kernel(x).to_dense())

    prior = Prior.from_forward(forward, (x,), OUTPUTS)
    assert prior.tabulated
    assert prior.coupled
    matrix = kernel(x).to_dense()
    assert_close(make_operator(prior.kernel, prior.features, num_kernels=OUTPUTS).dense()[0], matrix)
    last = Prior.from_forward(forward, (x,), OUTPUTS).whole(first=6)
    operator = make_operator(prior.kernel, prior.features[:6], num_kernels=OUTPUTS)
    block = torch.randn(6, OUTPUTS, 2).double()
    found = cross_multiply(last.across(operator), last.features, block)
    assert_close(found, (matrix[18:, :18] @ block.flatten(0, 1)).view(3, OUTPUTS, 2))
