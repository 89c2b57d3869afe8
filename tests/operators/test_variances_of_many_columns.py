"""Variances of stationary kernels, which need no look at the rows."""

from __future__ import annotations

import pytest
import torch
from gpytorch.kernels import LinearKernel, MaternKernel, RBFKernel, ScaleKernel

from itergp.kernels import LaplacianKernel, TiedMaternKernel
from itergp.operators.radial import evaluate_diagonal

KERNELS = {
    "scaled": lambda: ScaleKernel(MaternKernel(nu=1.5, ard_num_dims=4)),
    "sum": lambda: ScaleKernel(RBFKernel(active_dims=(0, 2))) + ScaleKernel(LaplacianKernel(ard_num_dims=4)),
    "product": lambda: ScaleKernel(TiedMaternKernel(nu=0.5, groups=(0, 0, 1, 1)) * RBFKernel()),
    "with a linear term": lambda: ScaleKernel(RBFKernel()) + LinearKernel(),
}


@pytest.mark.parametrize("name", KERNELS)
def test_they_are_those_of_the_kernel(name):
    kernel = KERNELS[name]()
    for module in kernel.modules():
        if isinstance(module, ScaleKernel):
            module.outputscale = 2.5
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(evaluate_diagonal(kernel, x, 1)[0], kernel(x, diag=True))


def test_they_are_differentiable_and_of_each_kernel():
    shape = torch.Size([3])
    kernel = ScaleKernel(MaternKernel(nu=2.5, batch_shape=shape), batch_shape=shape)
    kernel.outputscale = torch.tensor([1.0, 2.0, 3.0])
    found = evaluate_diagonal(kernel, torch.randn(5, 2), 3)
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0, 3.0])[:, None].expand(3, 5))
    found.sum().backward()
    assert bool((kernel.raw_outputscale.grad > 0.0).all())


def test_thousands_of_columns_cost_nothing(monkeypatch):
    """Rows are padded to more than the columns for kernels that have to be called."""
    kernel = ScaleKernel(MaternKernel(nu=1.5))

    def seen(*args: object, **kwargs: object) -> None:
        raise AssertionError("rows were looked at")

    monkeypatch.setattr(torch, "cat", seen)
    assert evaluate_diagonal(kernel, torch.zeros(10, 3000), 1).shape == (1, 10)
