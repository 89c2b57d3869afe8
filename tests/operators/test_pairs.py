"""Products with kernels of pairs of inputs: those of the dense matrix, with its derivatives, in N log N."""

from __future__ import annotations

import copy
import math
import time

import pytest
import torch
from gpytorch.kernels import ScaleKernel
from helpers import DTYPES, assert_close, by_threads
from torch import Tensor

from itergp.kernels import AdditiveLaplacianKernel, PairwiseLaplacianKernel
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood
from itergp.models import GP
from itergp.models.starting_values import initialise
from itergp.objectives import ComputationAwareELBO
from itergp.operators import DenseOperator, ScanOperator, make_operator
from itergp.operators.choose import kind_without_matrix
from itergp.operators.pair_levels import BLOCK_ROWS, PairOrders, node_sizes
from itergp.operators.pair_product import pair_product
from itergp.operators.radial import evaluate_kernel
from itergp.operators.scans import SortedColumn
from itergp.solvers import SubspaceNewton
from itergp.solvers.policies import ClassGradient


def _kernel(batch: int = 0):
    shape = torch.Size([batch] if batch else [])
    kernel = PairwiseLaplacianKernel([(0, 2), (1, 0)], batch_shape=shape)
    kernel.lengthscale = 0.3 + 0.2 * torch.arange(4.0) + torch.arange(1.0, max(1, batch) + 1).view(*shape, 1, 1)
    kernel.raw_weights.data = torch.arange(2.0).expand(*shape, 2).clone()
    return ScaleKernel(kernel, batch_shape=shape)


def _inputs(rows: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    """With a value of the first column in every third row, few values of the second, and equal rows."""
    inputs = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inputs[::3, 0] = 0.25
    inputs[:, 1] = (2.0 * inputs[:, 1]).round()
    inputs[rows // 2 : rows // 2 + 3] = inputs[:1]
    return inputs.to(dtype)


def _entries(kernel, x, others, num_kernels=1):
    """By GPyTorch, in float64."""
    with torch.no_grad():
        return evaluate_kernel(copy.deepcopy(kernel).double(), x.double(), others.double(), num_kernels)


# ---------------------------------------------------------------------- orders
@pytest.mark.parametrize("rows", [1, BLOCK_ROWS, BLOCK_ROWS + 1, 2 * BLOCK_ROWS, 1_000])
def test_every_two_rows_part_once(rows):
    """In one half each of the same node of a single level, or they are in one block."""
    first, second = (
        SortedColumn(column) for column in torch.randn(2, rows, generator=torch.Generator().manual_seed(0))
    )
    orders, met = PairOrders(first, second), torch.zeros(rows, rows)
    for number, size in enumerate(node_sizes(rows)):
        order, sides = orders.levels[number].rows().long(), orders.sides(number, torch.tensor(0.0))
        lower, upper = (side.mT.reshape(-1)[:rows] for side in sides)
        node = torch.arange(rows) // size
        together = (node[:, None] == node) * (lower[:, None] * upper + upper[:, None] * lower)
        met[order[:, None], order] += together
        ascending = second.by_row()[order].diff()
        assert bool((ascending[node.diff() == 0] >= 0).all())
        assert bool(torch.isinf(orders.gaps(number, torch.tensor(1.0)))[::size].all())
    block = torch.arange(rows) // BLOCK_ROWS
    order = orders.blocks.rows().long()
    met[order[:, None], order] += (block[:, None] == block).float()
    assert torch.equal(met, torch.ones(rows, rows))


# -------------------------------------------------------------------- products
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [BLOCK_ROWS, BLOCK_ROWS + 1, 2 * BLOCK_ROWS + 1, 1_500])
def test_products_equal_dense_ones(rows, dtype):
    x, kernel = _inputs(rows, dtype), _kernel()
    scan, entries = make_operator(kernel.to(dtype), x, kind="scan"), _entries(kernel, x, x)
    for columns in (1, 5):
        block = torch.randn(rows, columns, dtype=dtype)
        with torch.no_grad():
            assert_close(scan.matmul(block), entries @ block.double())
    assert scan.counts.entries == 0


@pytest.mark.parametrize("own_inputs", [False, True])
def test_products_across_join_the_trees(own_inputs, monkeypatch):
    """Between training inputs, at them and beyond them, with kernels of every latent function."""
    monkeypatch.setattr(ScanOperator, "_direct_rows", lambda operator, columns: 0)
    x = torch.stack([_inputs(200), _inputs(200, seed=1)]) if own_inputs else _inputs(200)
    kernel = (_kernel(batch=2) + AdditiveLaplacianKernel(3, batch_shape=torch.Size([2]))).double()
    new = torch.cat([x[..., :40, :] + 0.1, x[..., :3, :], x[..., :1, :] - 60.0, x[..., :1, :] + 60.0], -2)
    scan, across = make_operator(kernel, x, num_kernels=2, kind="scan"), _entries(kernel, new, x, 2)
    for block in (torch.randn(200, 2).double(), torch.randn(2, 200, 2).double()):
        with torch.no_grad():
            assert_close(scan.cross_matmul(new, block), across @ block)


@pytest.mark.parametrize("lengthscales", [(1e-30, 1.0), (1.0, 1e-30), (1e-3, 1e-3), (1e3, 1e-3), (1e3, 1e3)])
def test_lengthscales_far_from_those_of_the_data(lengthscales):
    x = 1e4 + _inputs(500, torch.float32)
    kernel = PairwiseLaplacianKernel([(0, 2)])
    kernel.lengthscale = torch.tensor(lengthscales)
    block, entries = torch.randn(500, 2), _entries(kernel, x, x)
    with torch.no_grad():
        for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 2e-6)):
            scan = make_operator(copy.deepcopy(kernel).to(dtype), x.to(dtype), kind="scan")
            error = scan.matmul(block.to(dtype)).double() - entries @ block.double()
            assert float(error.abs().max()) < tolerance * float((entries @ block.double()).abs().max())


def test_rounding_does_not_grow_with_the_rows():
    for rows in (1_000, 60_000):
        x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
        block = torch.randn(rows, 2, generator=torch.Generator().manual_seed(1))
        block[:, 1].abs_()
        with torch.no_grad():
            products = [
                make_operator(_kernel().to(dtype), x.to(dtype), kind="scan").matmul(block.to(dtype)).double()
                for dtype in (torch.float32, torch.float64)
            ]
        error = (products[0] - products[1]).norm(dim=1) / products[1].norm(dim=1)
        assert error.max() < 1e-6


def test_the_answer_does_not_depend_on_the_number_of_threads():
    x, block = _inputs(20_000, torch.float32), torch.randn(20_000, 12)

    def products() -> list[Tensor]:
        operator = make_operator(_kernel(), x, kind="scan")
        return [operator.matmul(block[:, :k]) for k in (1, 12)]

    for one, two in zip(*by_threads(products), strict=True):
        assert torch.equal(one, two)


@pytest.mark.slow
def test_time_and_memory_are_nearly_linear():
    """200,000 rows take seconds; entries would be 4e10."""
    operator = make_operator(_kernel(), torch.randn(200_000, 3))
    assert isinstance(operator, ScanOperator)
    with torch.no_grad():
        operator.matmul(torch.ones(200_000, 1))
        begun = time.perf_counter()
        operator.matmul(torch.ones(200_000, 1))
    assert time.perf_counter() - begun < 10.0
    assert operator.held_memory < 2 * 400 * 200_000


# ----------------------------------------------------------------- derivatives
@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("across", [False, True])
def test_derivatives_equal_those_of_dense_autograd(across, batch):
    """In hyperparameters, inputs and blocks, over several levels; ties on both sides of a border included."""
    kernels, kernel = max(1, batch), _kernel(batch).double()
    x, z = _inputs(700).requires_grad_(), _inputs(20, seed=1).requires_grad_()
    block = torch.randn(kernels, 700, 2).double().requires_grad_()
    weights = torch.randn(kernels, 20 if across else 700, 2).double()
    scan, blocked = (make_operator(kernel, x, num_kernels=kernels, kind=kind) for kind in ("scan", "blocked"))
    leaves, found = [*kernel.parameters(), x, block, *([z] if across else [])], []
    for operator in (scan, blocked):
        product = operator.cross_matmul(z, block) if across else operator.matmul(block)
        found.append(torch.autograd.grad((product * weights).sum(), leaves))
    assert scan.counts.entries == 0
    for ours, reference in zip(*found, strict=True):
        assert_close(ours, reference, "derivative")


def test_first_and_second_derivatives_equal_finite_differences(monkeypatch):
    monkeypatch.setattr("itergp.operators.pair_product._BLOCK_ROWS", 2)
    make = torch.Generator().manual_seed(0)
    points = torch.randn(7, 2, generator=make).double().requires_grad_()
    rates, block = torch.tensor([0.7, 3.0]).double().requires_grad_(), torch.randn(2, 7, generator=make).double()
    arguments = points, rates, block.requires_grad_()
    assert torch.autograd.gradcheck(pair_product, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(pair_product, arguments, fast_mode=True)


# ---------------------------------------------------------------------- solves
def _problem(rows: int, latents: int):
    x = _inputs(rows)
    f = 2.0 * torch.sign(x[:, 0] * x[:, 2]) + 0.5 * x[:, 1]
    y = (f + 0.5 * torch.randn(rows, generator=torch.Generator().manual_seed(2)).double() > 0).long()
    return x, y if latents == 1 else y + (x[:, 0] > 1).long()


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("latents", [1, 3])
def test_a_solve_equals_that_of_the_dense_operator(latents, additive):
    x, y = _problem(400, latents)
    likelihood, found = BernoulliLikelihood if latents == 1 else lambda: CategoricalLikelihood(3), []
    for kind in ("scan", "dense"):
        kernel = _kernel() + AdditiveLaplacianKernel(3) if additive else _kernel()
        options = {"solver": SubspaceNewton(tolerance=1e-9), "approximation": "laplace", "operator": kind}
        model = GP(x, y, likelihood(), kernel=kernel, **options).double().eval()
        solution = model.condition()
        assert solution.certificate.objective_gap < 400 * 1e-8
        found.append((solution.latent_values, model.predict(_inputs(30, seed=5), tempering=math.inf).probs))
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=0.0, atol=2e-3 * float(reference.abs().max()))


def test_the_bins_of_pairs_save_passes():
    """Steps of Newton's method within them, where gradients of a rough function of two inputs take many."""
    x, y = _problem(1_500, 1)
    x = x + 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(7)).double()
    kernel = _kernel() + AdditiveLaplacianKernel(3)
    options = {"kernel": kernel, "approximation": "laplace", "operator": "scan"}
    passes = [
        GP(x, y, BernoulliLikelihood(), solver=solver, **options).double().eval().condition().kernel_passes
        for solver in (SubspaceNewton(), SubspaceNewton(policy=ClassGradient()))
    ]
    assert passes[0] <= 0.5 * passes[1]


def test_objectives_have_the_same_gradients(monkeypatch):
    """Of products by trees and in blocks."""
    x, y = _problem(300, 1)
    found = []
    for least in (0, 1_000):
        monkeypatch.setattr("itergp.operators.choose.LEAST_ROWS_WITHOUT_MATRIX", least)
        model = GP(x, y, BernoulliLikelihood(), kernel=_kernel() + AdditiveLaplacianKernel(3)).double()
        torch.manual_seed(0)
        value = ComputationAwareELBO(model.likelihood, model)(model(x), model.train_targets)
        found.append([value, *torch.autograd.grad(value, list(model.covar_module.parameters()))])
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-7)


def test_a_model_with_pairs_is_planned_and_saved(tmp_path):
    x, y = _problem(4_200, 1)
    x = (x + 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(7))).float()
    options = {"approximation": "laplace", "solver": SubspaceNewton(covariance_rank=16), "operator": "scan"}
    model = GP(x, y, BernoulliLikelihood(), kernel=_kernel() + AdditiveLaplacianKernel(3), **options).eval()
    plan = model.plan()
    assert (plan.operator, plan.entries) == ("ScanOperator", 0)
    assert plan.memory["sorted inputs"] == ScanOperator(model.covar_module, x).held_memory
    assert model.condition().certificate.objective_gap < 4_200 * 1e-4
    path, new = tmp_path / "model.safetensors", _inputs(30, torch.float32, seed=5)
    model.save(path)
    other = GP(x[:20], y[:20], BernoulliLikelihood(), kernel=_kernel() + AdditiveLaplacianKernel(3), **options).load(
        path
    )
    assert_close(other.predict(new).probs, model.predict(new).probs)


def test_lengthscales_start_at_the_data():
    """Half of the median distance in every column, as those of a sum over columns."""
    x = _inputs(300) * torch.tensor([1.0, 10.0, 100.0]).double()
    pairs, additive = PairwiseLaplacianKernel([(1, 2)]), AdditiveLaplacianKernel(2, active_dims=(1, 2))
    with torch.no_grad():
        initialise(pairs.double(), x)
        initialise(additive.double(), x)
    found = pairs.lengthscale.detach()
    assert_close(found, additive.lengthscale)
    assert float(found[0, 1]) > 4.0 * float(found[0, 0])


def test_auto_chooses_trees_of_more_rows_than_scans():
    for rows, kind in ((5_000, DenseOperator), (9_000, ScanOperator)):
        assert type(make_operator(_kernel(), torch.randn(rows, 3))) is kind
    assert [kind_without_matrix(_kernel(), torch.randn(rows, 3), 1) for rows in (1_500, 3_000)] == ["blocked", "scan"]
