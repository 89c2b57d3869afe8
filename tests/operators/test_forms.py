"""Kernels that the package evaluates itself: the same entries and derivatives as their modules' own code gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, RQKernel, ScaleKernel
from gpytorch.means import ZeroMean
from helpers import assert_close, keops_test, make_inputs
from torch import Tensor

from itergp import InputError
from itergp.kernels import (
    AdditiveLaplacianKernel,
    CategoricalKernel,
    LaplacianKernel,
    OrderedCategoricalKernel,
    PairwiseLaplacianKernel,
    TiedLaplacianKernel,
    TiedMaternKernel,
)
from itergp.operators import BlockedOperator, Neighbourhoods, Prior, make_operator, tiles, two_values
from itergp.operators.forms import as_form
from itergp.operators.radial import evaluate_kernel

REAL, CODES, LEVEL = [0, 1, 2], [3, 4], [5]
BATCH = torch.Size([2])


def _mixed(rows: int, seed: int = 0) -> Tensor:
    """Three real columns, with ties in the first, two of codes, and one of four ordered levels."""
    generator = torch.Generator().manual_seed(seed)
    x = make_inputs(rows, 3, seed=seed)
    x[1::4, 0] = 0.25
    codes = torch.randint(-1, 6, (rows, 2), generator=generator).double()
    return torch.cat([x, codes, torch.randint(0, 4, (rows, 1), generator=generator).double()], -1)


def _spread(kernel: Kernel) -> Kernel:
    """Other hyperparameters everywhere."""
    generator = torch.Generator().manual_seed(5)
    for parameter in kernel.double().parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return kernel


def _laplacian(**options) -> Kernel:
    return LaplacianKernel(ard_num_dims=3, active_dims=REAL, **options)


def _mixed_product(**options) -> Kernel:
    return (
        _laplacian(**options)
        * CategoricalKernel(2, active_dims=CODES, **options)
        * OrderedCategoricalKernel(4, active_dims=LEVEL, **options)
    )


FORMS: dict[str, Callable[..., Kernel]] = {
    "laplacian": _laplacian,
    "one lengthscale": lambda **o: LaplacianKernel(active_dims=REAL, **o),
    "tied": lambda **o: TiedLaplacianKernel((0, 1, 0), active_dims=REAL, **o),
    "additive": lambda **o: AdditiveLaplacianKernel(3, active_dims=REAL, **o),
    "pairs": lambda **o: PairwiseLaplacianKernel([(REAL[0], REAL[2]), (REAL[1], REAL[0])], **o),
    "categorical": lambda **o: CategoricalKernel(2, active_dims=CODES, **o),
    "ordered": lambda **o: OrderedCategoricalKernel(4, active_dims=LEVEL, **o),
    "mixed product": _mixed_product,
    "scaled product": lambda **o: ScaleKernel(_mixed_product(**o), **o),
    "radial times categorical": lambda **o: (
        MaternKernel(nu=1.5, ard_num_dims=3, active_dims=REAL, **o) * CategoricalKernel(2, active_dims=CODES, **o)
    ),
    "sum": lambda **o: (
        ScaleKernel(_laplacian(**o), **o)
        + ScaleKernel(AdditiveLaplacianKernel(3, active_dims=REAL, **o), **o)
        + ScaleKernel(RBFKernel(active_dims=REAL, **o), **o)
        + MaternKernel(nu=0.5, ard_num_dims=3, active_dims=REAL, **o)
    ),
    "scaled sum of products": lambda **o: ScaleKernel(
        _mixed_product(**o)
        + TiedMaternKernel((0, 1, 0), nu=2.5, active_dims=REAL, **o)
        * ScaleKernel(CategoricalKernel(1, active_dims=[4]), **o),
        **o,
    ),
}


@pytest.fixture
def small_tiles(monkeypatch):
    """Blocks so small that every kind of block occurs."""
    monkeypatch.setattr(tiles, "_SIDE", 4)
    monkeypatch.setattr(tiles, "_SMALLEST_SIDE", 2)


def _of(name: str, batch: bool) -> tuple[Kernel, int]:
    return _spread(FORMS[name](**({"batch_shape": BATCH} if batch else {}))), 2 if batch else 1


# ---------------------------------------------------------------------- values
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("name", FORMS)
@torch.no_grad()
def test_products_are_those_of_the_module(name, batch, dtype, small_tiles):
    (kernel, number), x, new = _of(name, batch), _mixed(14).to(dtype), _mixed(9, seed=1).to(dtype)
    kernel = kernel.to(dtype)
    assert as_form(kernel, number, 6) is not None
    operator = BlockedOperator(kernel, x, num_kernels=number)
    expected = evaluate_kernel(kernel.double(), x.double(), x.double(), number)
    across = evaluate_kernel(kernel, new.double(), x.double(), number)
    kernel.to(dtype)
    block = make_inputs(14, 3, dtype)
    assert_close(operator.dense(), expected)
    assert_close(operator.matmul(block), expected @ block.double())
    assert_close(operator.cross_matmul(new, block), across @ block.double())
    assert_close(operator.entries(torch.tensor([2, 5]), torch.tensor([5, 1, 2])), expected[:, [2, 5]][:, :, [5, 1, 2]])
    assert_close(operator.cross_entries(new), across)
    assert_close(operator.diagonal(), expected.diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize("name", ["laplacian", "additive", "mixed product", "sum"])
@torch.no_grad()
def test_inputs_far_from_zero_or_apart(name):
    kernel, x = _spread(FORMS[name]()), _mixed(20).float()
    for shift in (1e3, torch.linspace(0.0, 1e4, 20).unsqueeze(-1)):
        moved = x.clone()
        moved[:, REAL] += shift
        found = BlockedOperator(kernel.float(), moved).dense()
        assert_close(found, evaluate_kernel(kernel.double(), moved.double(), moved.double(), 1))


@torch.no_grad()
def test_sums_with_a_kink_are_exact_for_equal_rows():
    x = make_inputs(40, 5, torch.float32)
    x = torch.cat([x, x])
    for kernel in (MaternKernel(nu=0.5) + RBFKernel(), MaternKernel(nu=0.5) * RBFKernel()):
        entries = BlockedOperator(kernel, x).dense()[0]
        apart = entries[:40, 40:].diagonal() - entries[:40, :40].diagonal()
        assert float(apart.abs().max()) < 1e-5


@keops_test
@torch.no_grad()
def test_keops_has_the_same_entries():
    x, kernel, block = _mixed(20), _spread(FORMS["mixed product"]()), make_inputs(20, 2)
    found, expected = (make_operator(kernel, x, kind=kind) for kind in ("keops", "blocked"))
    assert_close(found.matmul(block), expected.matmul(block))


# ----------------------------------------------------------------- derivatives
@pytest.mark.parametrize("of_inputs", [False, True])
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_derivatives_are_those_of_the_module(name, batch, of_inputs, small_tiles):
    (kernel, number), x, new = _of(name, batch), _mixed(14), _mixed(9, seed=1)
    x.requires_grad_(of_inputs)
    new.requires_grad_(of_inputs)
    block = make_inputs(14, 3).requires_grad_()
    operator = BlockedOperator(kernel, x, num_kernels=number)
    tensors = [*kernel.parameters(), block, *([x] if of_inputs and name not in ("categorical", "ordered") else [])]
    for found, expected in (
        (operator.matmul(block), evaluate_kernel(kernel, x, x, number) @ block),
        (operator.cross_matmul(new, block), evaluate_kernel(kernel, new, x, number) @ block),
    ):
        assert_close(found, expected)
        probe = make_inputs(found.numel(), 1, seed=3).view_as(found)
        values = [torch.autograd.grad((value * probe).sum(), tensors) for value in (found, expected)]
        for actual, oracle in zip(*values, strict=True):
            assert_close(actual, oracle, "derivative")


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_second_derivatives_equal_differences_of_first_ones(name, batch, across):
    """Along a line through everything: hyperparameters, inputs and what is multiplied."""
    (kernel, number), x, new = _of(name, batch), _mixed(14), _mixed(9, seed=1)
    x[1::4, 0] = torch.linspace(0.0, 1.0, len(x[1::4]))  # no ties, which a step would break
    block, real = make_inputs(14, 3).requires_grad_(), torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]).double()
    x.requires_grad_(name not in ("categorical", "ordered"))
    tensors = [*kernel.parameters(), block, *([x] if x.requires_grad else [])]
    line = [make_inputs(t.numel(), 1, seed=4).view_as(t) * (real if t is x else 1.0) for t in tensors]

    def gradients(step: float) -> list[Tensor]:
        kept = [tensor.detach().clone() for tensor in tensors]
        for tensor, way in zip(tensors, line, strict=True):
            tensor.data += step * way
        operator = BlockedOperator(kernel, x, num_kernels=number)
        value = (operator.cross_matmul(new, block) if across else operator.matmul(block)).square().sum()
        found = torch.autograd.grad(value, tensors, create_graph=True)
        for tensor, value in zip(tensors, kept, strict=True):
            tensor.data.copy_(value)
        return list(found)

    step = 1e-6
    differences = [(a - b) / (2.0 * step) for a, b in zip(gradients(step), gradients(-step), strict=True)]
    along = sum((g * way).sum() for g, way in zip(gradients(0.0), line, strict=True))
    for actual, oracle in zip(torch.autograd.grad(along, tensors), differences, strict=True):
        assert_close(actual, oracle, dtype=torch.float32)


@pytest.mark.parametrize("name", ["laplacian", "additive", "mixed product", "scaled sum of products"])
def test_derivatives_equal_finite_differences(name, small_tiles):
    kernel, x, block, step = _spread(FORMS[name]()), _mixed(14), make_inputs(14, 2), 1e-6

    def value() -> Tensor:
        return BlockedOperator(kernel, x).matmul(block).square().sum()

    value().backward()
    for parameter in kernel.parameters():
        for k in range(parameter.numel()):
            ends = []
            for sign in (1.0, -1.0):
                with torch.no_grad():
                    parameter.view(-1)[k] += sign * step
                    ends.append(float(value()))
                    parameter.view(-1)[k] -= sign * step
            slope = (ends[0] - ends[1]) / (2.0 * step)
            assert abs(slope - float(parameter.grad.view(-1)[k])) <= 1e-5 * max(1.0, abs(slope))


@pytest.mark.parametrize("batch", [False, True])
def test_columns_of_two_values_are_a_product(batch, monkeypatch, dtype, small_tiles):
    """Of coded categories, as many of a table's columns are: the same numbers as column by column."""
    x, new = (make_inputs(rows, 9, seed=seed).to(dtype) for rows, seed in ((30, 0), (8, 1)))
    for rows in (x, new):
        rows[:, 1:8] = 1.7 * (rows[:, 1:8] > 0.3) - 0.4
    x[:, 2] = 5.0  # of one value in most blocks
    new[:, 4] = 0.1  # another than the two
    kernel, number = AdditiveLaplacianKernel(9, **({"batch_shape": BATCH} if batch else {})), 2 if batch else 1
    _spread(kernel).to(dtype)
    block, weights, found = make_inputs(30, 2, dtype), make_inputs(30, 2, dtype, seed=3), []
    for fewest in (4, 100):
        monkeypatch.setattr(two_values, "_FEWEST", fewest)
        inputs = x.clone().requires_grad_(True)
        operator = BlockedOperator(kernel, inputs, num_kernels=number)
        value = (weights * operator.matmul(block)).sum() + operator.cross_matmul(new, block).square().sum()
        tensors = [inputs, *kernel.parameters()]
        found.append([operator.dense(), value.detach(), *torch.autograd.grad(value, tensors)])
    for product, oracle in zip(*found, strict=True):
        assert_close(product, oracle, dtype=dtype)


PLAIN = {
    "radial": lambda **o: ScaleKernel(MaternKernel(nu=1.5, ard_num_dims=6, **o), **o),
    "unknown": lambda **o: RQKernel(**o),
}


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("name", [*FORMS, *PLAIN])
def test_a_tangent_has_the_derivatives_of_a_product_and_no_value(name, batch, small_tiles):
    make, number = {**FORMS, **PLAIN}[name], 2 if batch else 1
    kernel, x, new = _spread(make(**({"batch_shape": BATCH} if batch else {}))), _mixed(14), _mixed(9, seed=1)
    right, operator = make_inputs(14, 2), BlockedOperator(kernel, x, num_kernels=number)
    for inputs, product in ((None, operator.matmul(right)), (new, operator.cross_matmul(new, right))):
        left = make_inputs(product.shape[1], 2, seed=2)
        tangent = operator.tangent(left, right, inputs)
        assert float(tangent.detach()) == 0.0
        parameters = list(kernel.parameters())
        expected = torch.autograd.grad((left * product).sum(), parameters)
        for found, oracle in zip(torch.autograd.grad(tangent, parameters), expected, strict=True):
            assert_close(found, oracle)


@pytest.mark.parametrize("kind", ["scan", "dense"])
def test_a_tangent_is_that_of_any_operator(kind):
    kernel, x = _spread(AdditiveLaplacianKernel(3)), make_inputs(20, 3)
    right, left, gradients = make_inputs(20, 2), make_inputs(20, 2, seed=2), []
    operator, reference = make_operator(kernel, x, kind=kind), BlockedOperator(kernel, x)
    for value in (operator.tangent(left, right), (left * reference.matmul(right)).sum()):
        gradients.append(torch.autograd.grad(value, list(kernel.parameters())))
    for found, oracle in zip(*gradients, strict=True):
        assert_close(found, oracle)


# ---------------------------------------------------------------- recognition
def test_what_is_recognised():
    def known(kernel: Kernel, columns: int = 6) -> bool:
        return as_form(kernel, 1, columns) is not None

    class Own(LaplacianKernel):
        pass

    assert not known(Own())
    assert not known(LaplacianKernel() + RQKernel())
    assert not known(LaplacianKernel(ard_num_dims=3))  # of six columns: GPyTorch has a message for that
    assert not known(CategoricalKernel(2))
    assert not known(OrderedCategoricalKernel(4))
    assert known(OrderedCategoricalKernel(4), 1)
    assert len(as_form(_mixed_product(), 1, 6).leaves) == 1  # one exponential
    assert len(as_form(FORMS["scaled sum of products"](), 1, 6).leaves) == 3


def test_sums_of_covariances_are_recognised():
    kernel, other, x = (
        LaplacianKernel(ard_num_dims=2, active_dims=[2, 0]).double(),
        MaternKernel(nu=1.5).double(),
        _mixed(12),
    )

    def forward(x: Tensor) -> MultivariateNormal:
        return MultivariateNormal(ZeroMean()(x), 2.0 * kernel(x) + other(x[:, REAL]))

    prior = Prior.from_forward(forward, (x,), 1)
    assert as_form(prior.kernel, 1, prior.features.shape[-1]) is not None
    expected = 2.0 * kernel(x).to_dense() + other(x[:, REAL]).to_dense()
    assert_close(make_operator(prior.kernel, prior.features).dense()[0], expected)


def test_codes_are_checked_in_every_product():
    x = _mixed(12)
    x[3, 3] = float("nan")
    with pytest.raises(InputError, match=r"must hold codes of levels.*Got nan"):
        BlockedOperator(_mixed_product().double(), x).dense()


# ------------------------------------------------------------------ neighbours
def _correlations(kernel: Kernel, rows: Tensor, cols: Tensor) -> Tensor:
    return evaluate_kernel(kernel, rows, cols, 1)[0]


@pytest.mark.parametrize("name", FORMS)
@torch.no_grad()
def test_neighbours_are_the_most_correlated(name):
    kernel, x, new = _spread(FORMS[name]()), _mixed(60), _mixed(7, seed=1)
    near = Neighbourhoods(BlockedOperator(kernel, x))
    entries = _correlations(kernel, new, x)
    found = entries.gather(1, near.nearest(new, 5)).sort(-1, descending=True).values
    assert_close(found, entries.topk(5).values, dtype=torch.float32)
    rows = near.nearest(new, 5)
    assert_close(near.cross(new, rows)[0], entries.gather(1, rows))
    groups = near.entries(rows)[0]
    assert_close(groups, torch.stack([_correlations(kernel, x[row], x[row]) for row in rows]))


@torch.no_grad()
def test_neighbours_in_many_columns_and_many_rows(monkeypatch):
    from itergp.operators import neighbours

    x = make_inputs(80, 20)
    near = Neighbourhoods(BlockedOperator(LaplacianKernel().double(), x))
    assert bool((near.nearest(x, 1)[:, 0] == torch.arange(80)).all())
    monkeypatch.setattr(neighbours, "_MOST_COLUMNS_SCORED", 10)
    mixed, kernel = _mixed(60), _spread(_mixed_product())
    rows = Neighbourhoods(BlockedOperator(kernel, mixed)).nearest(mixed, 3)
    assert bool((mixed[rows[:, 0]][:, CODES] == mixed[:, CODES]).all())  # equal codes are near
