"""Kernels of the package's own are what their formulas say, as GPyTorch kernels."""

from __future__ import annotations

import copy
import io
import math

import gpytorch
import pytest
import torch
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, ScaleKernel
from helpers import assert_close, make_inputs
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
    TiedRBFKernel,
)

LENGTHSCALES = torch.tensor([0.7, 1.3, 2.1], dtype=torch.float64)
GROUPS = (0, 1, 1)
GAPS = torch.tensor([0.1, 0.7, 2.0], dtype=torch.float64)
BATCH = torch.Size([2])


def _real(rows: int, seed: int = 0) -> Tensor:
    x = make_inputs(rows, 3, seed=seed)
    x[1::5, 0] = x[0, 0]  # ties, where there is a kink
    return x


def _codes(rows: int, seed: int = 0) -> Tensor:
    return torch.randint(-1, 5, (rows, 3), generator=torch.Generator().manual_seed(seed)).double()


def _levels(rows: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 4, (rows, 1), generator=torch.Generator().manual_seed(seed)).double()


def _set(kernel: Kernel, **values: Tensor | float) -> Kernel:
    kernel.double()
    for name, value in values.items():
        setattr(kernel, name, torch.as_tensor(value, dtype=torch.float64))
    return kernel


def _differences(x: Tensor, y: Tensor) -> Tensor:
    return (x.unsqueeze(-2) - y.unsqueeze(-3)).abs()


def _positions(codes: Tensor) -> Tensor:
    return torch.cat([GAPS.new_zeros(1), GAPS.cumsum(0)])[codes.long()]


WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
PAIR_COLUMNS, PAIR_LENGTHS = torch.tensor([[0, 2], [2, 1]]), torch.tensor([[0, 2], [1, 0]])
PAIR_WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
TIED = LENGTHSCALES[[0, 1, 1]]
# name -> how it is made, its inputs, and its entries from |x - y| and whether x equals y
CASES = {
    "laplacian": (
        lambda **o: _set(LaplacianKernel(ard_num_dims=3, **o), lengthscale=LENGTHSCALES),
        _real,
        lambda x, y: torch.exp(-(_differences(x, y) / LENGTHSCALES).sum(-1)),
    ),
    "one lengthscale": (
        lambda **o: _set(LaplacianKernel(**o), lengthscale=0.7),
        _real,
        lambda x, y: torch.exp(-_differences(x, y).sum(-1) / 0.7),
    ),
    "additive": (
        lambda **o: _set(AdditiveLaplacianKernel(3, **o), lengthscale=LENGTHSCALES, weights=10.0 * WEIGHTS),
        _real,
        lambda x, y: torch.exp(-_differences(x, y) / LENGTHSCALES) @ WEIGHTS,
    ),
    "pairs": (
        lambda **o: _set(
            PairwiseLaplacianKernel(PAIR_COLUMNS.tolist(), **o),
            lengthscale=LENGTHSCALES[PAIR_LENGTHS.flatten()],
            weights=2.0 * PAIR_WEIGHTS,
        ),
        _real,
        lambda x, y: (
            torch.exp(-_differences(x, y)[..., PAIR_COLUMNS] / LENGTHSCALES[PAIR_LENGTHS]).prod(-1) @ PAIR_WEIGHTS
        ),
    ),
    "categorical": (
        lambda **o: _set(CategoricalKernel(3, **o), lengthscale=LENGTHSCALES),
        _codes,
        lambda x, y: torch.exp(-((_differences(x, y) > 0) / LENGTHSCALES).sum(-1)),
    ),
    "ordered": (
        lambda **o: _set(OrderedCategoricalKernel(4, **o), gaps=GAPS),
        _levels,
        lambda x, y: torch.exp(-_differences(_positions(x), _positions(y)).sum(-1)),
    ),
    "tied laplacian": (
        lambda **o: _set(TiedLaplacianKernel(GROUPS, **o), group_lengthscale=LENGTHSCALES[:2]),
        _real,
        lambda x, y: torch.exp(-(_differences(x, y) / TIED).sum(-1)),
    ),
    "tied rbf": (
        lambda **o: _set(TiedRBFKernel(GROUPS, **o), group_lengthscale=LENGTHSCALES[:2]),
        _real,
        lambda x, y: torch.exp(-0.5 * (_differences(x, y) / TIED).square().sum(-1)),
    ),
    "tied matern": (
        lambda **o: _set(TiedMaternKernel(GROUPS, nu=1.5, **o), group_lengthscale=LENGTHSCALES[:2]),
        _real,
        lambda x, y: (lambda r: (1.0 + r) * torch.exp(-r))(
            math.sqrt(3.0) * (_differences(x, y) / TIED).square().sum(-1).sqrt()
        ),
    ),
}
OF_REAL_INPUTS = [name for name, case in CASES.items() if case[1] is _real]


# ---------------------------------------------------------------------- values
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_entries_are_what_the_formula_says(name, dtype):
    make, inputs, formula = CASES[name]
    x, y = inputs(17).to(dtype), inputs(9, seed=1).to(dtype)
    kernel = make().to(dtype)
    assert_close(kernel(x, y).to_dense(), formula(x.double(), y.double()))
    assert_close(kernel(x).to_dense(), formula(x.double(), x.double()))
    assert_close(kernel(x, x, diag=True), torch.ones(17))
    assert_close(kernel(x[:9], y, diag=True), formula(x[:9].double(), y.double()).diagonal())
    assert bool((kernel(x).to_dense().diagonal() - 1.0).abs().max() < 4.0 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_batches_of_kernels_and_of_inputs(name):
    make, inputs, formula = CASES[name]
    x, y = inputs(7), inputs(5, seed=1)
    kernel = make(batch_shape=BATCH).double()
    assert kernel.batch_shape == BATCH
    assert_close(kernel(x, y).to_dense(), formula(x, y).expand(2, 7, 5))
    assert_close(kernel[0](x, y).to_dense(), formula(x, y))
    assert_close(kernel(x, x, diag=True), torch.ones(2, 7).double())
    groups = torch.stack([inputs(4, seed=s) for s in range(3)])
    assert_close(make().double()(groups, groups).to_dense(), formula(groups, groups))


@pytest.mark.parametrize("name", OF_REAL_INPUTS)
@torch.no_grad()
def test_distances_far_from_zero_keep_their_digits(name):
    make, inputs, formula = CASES[name]
    x = (inputs(17) + 1e3).float()
    assert_close(make().float()(x).to_dense(), formula(x.double(), x.double()))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_positive_semidefinite(name):
    make, inputs, _ = CASES[name]
    eigenvalues = torch.linalg.eigvalsh(make().double()(inputs(60)).to_dense())
    assert float(eigenvalues.min()) > -1e-12


# ------------------------------------------------------------------- derivatives
def _differentiable_inputs(rows: int, seed: int = 0) -> Tensor:
    return make_inputs(rows, 3, seed=seed).requires_grad_()


@pytest.mark.parametrize("name", [name for name in CASES if name != "tied matern"])  # whose entries are GPyTorch's
def test_derivatives_equal_finite_differences(name):
    make, inputs, _ = CASES[name]
    kernel, real = make().double(), inputs is _real
    x, y = (_differentiable_inputs(5, s) if real else inputs(5, s) for s in (0, 1))
    names, values = zip(*kernel.named_parameters(), strict=True)

    def entries(*tensors: Tensor) -> Tensor:
        first, second = tensors[:2]
        called = torch.func.functional_call(kernel, dict(zip(names, tensors[2:], strict=True)), (first, second))
        return called.to_dense()

    def direct(*tensors: Tensor) -> Tensor:
        with gpytorch.settings.lazily_evaluate_kernels(False):
            return entries(*tensors)

    tensors = (x, y, *(v.detach().clone().requires_grad_() for v in values))
    assert torch.autograd.gradcheck(direct, tensors)
    assert torch.autograd.gradgradcheck(direct, tensors)


def test_equal_values_have_no_derivative():
    for kernel in (LaplacianKernel(), AdditiveLaplacianKernel(3), PairwiseLaplacianKernel([(0, 1), (1, 2)])):
        x = torch.ones(4, 3, requires_grad=True)
        kernel(x, x.detach().clone()).to_dense().sum().backward()
        assert not x.grad.any()


# -------------------------------------------------------------------- parameters
def test_weights_are_shares():
    kernel = AdditiveLaplacianKernel(4)
    assert_close(kernel.weights, torch.full((4,), 0.25))
    kernel.weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert_close(kernel.weights, torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert kernel.lengthscale.shape == (1, 4)
    for wrong in (torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.ones(3)):
        with pytest.raises(InputError, match="`weights` must be 4 positive numbers"):
            kernel.weights = wrong


def test_tied_lengthscales_are_parameters_of_groups():
    kernel = TiedMaternKernel((0, 1, 1, 0, 2), nu=2.5, lengthscale_prior=gpytorch.priors.GammaPrior(2.0, 1.0))
    assert kernel.raw_lengthscale.shape == (1, 3)
    kernel.lengthscale = torch.tensor([1.0, 2.0, 8.0, 1.0, 5.0])
    assert_close(kernel.group_lengthscale, torch.tensor([[1.0, 4.0, 5.0]]))
    assert_close(kernel.lengthscale, torch.tensor([[1.0, 4.0, 4.0, 1.0, 5.0]]))
    ((_, _, prior, read, write),) = kernel.named_priors()
    assert prior.log_prob(read(kernel)).shape == (1, 3)  # a group counts once
    write(kernel, torch.tensor([[1.0, 2.0, 3.0]]))
    assert_close(kernel.group_lengthscale, torch.tensor([[1.0, 2.0, 3.0]]))


@pytest.mark.parametrize("groups", [(), (0, 2), (1, 1), (-1, 0)])
def test_groups_are_numbered_from_zero(groups):
    with pytest.raises(InputError, match="`groups` must hold the number of a group for each input"):
        TiedRBFKernel(groups)
    with pytest.raises(InputError, match=r"Got .* and ard_num_dims"):
        TiedRBFKernel((0, 1), ard_num_dims=2)


def test_constraints_and_priors():
    bounds = gpytorch.constraints.Interval(0.1, 3.0)
    for kernel in (
        LaplacianKernel(ard_num_dims=3, lengthscale_constraint=bounds),
        AdditiveLaplacianKernel(3, lengthscale_constraint=bounds),
        PairwiseLaplacianKernel([(0, 1)], lengthscale_constraint=bounds),
        CategoricalKernel(3, lengthscale_constraint=bounds),
        TiedLaplacianKernel(GROUPS, lengthscale_constraint=bounds),
    ):
        assert bool((kernel.lengthscale < 3.0).all())
        with pytest.raises((RuntimeError, ValueError), match=r"[Cc]onstraint|bounds"):
            kernel.lengthscale = 5.0
    prior = gpytorch.priors.GammaPrior(2.0, 1.0)
    kernel = OrderedCategoricalKernel(3, gaps_prior=prior, gaps_constraint=gpytorch.constraints.GreaterThan(0.5))
    assert bool((kernel.gaps > 0.5).all())
    ((_, _, found, read, write),) = kernel.named_priors()
    assert found is prior
    write(kernel, torch.tensor([1.0, 2.0]))
    assert_close(read(kernel), torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_copies_and_files_are_the_same_kernel(name):
    make, inputs, _ = CASES[name]
    x, kernel, file = inputs(6), make().double(), io.BytesIO()
    torch.save(kernel.state_dict(), file)
    file.seek(0)
    again = make().double()
    for parameter in again.parameters():
        parameter.data.zero_()
    again.load_state_dict(torch.load(file))
    for twin in (copy.deepcopy(kernel), again):
        assert_close(twin(x).to_dense(), kernel(x).to_dense())


# --------------------------------------------------------------- relations, sums
@torch.no_grad()
def test_relations_to_other_kernels():
    x = _real(12)[:, 1:2]
    of_one = LaplacianKernel()
    assert_close(of_one(x).to_dense(), MaternKernel(nu=0.5)(x).to_dense(), dtype=torch.float32)
    codes = _codes(12) + 1.0
    one_hot = torch.nn.functional.one_hot(codes[:, 0].long(), 6).double()
    exchangeable = _set(CategoricalKernel(1, active_dims=[0]), lengthscale=0.8).double()
    assert_close(exchangeable(codes).to_dense(), _set(LaplacianKernel(), lengthscale=1.6).double()(one_hot).to_dense())
    tied = _set(TiedRBFKernel((0,) * 6), group_lengthscale=0.8).double()
    assert_close(tied(one_hot).to_dense(), _set(RBFKernel(), lengthscale=0.8).double()(one_hot).to_dense())


@torch.no_grad()
def test_sums_products_and_scales():
    x = torch.cat([_real(12), _codes(12)[:, :1], _levels(12)], -1)
    laplacian = ScaleKernel(LaplacianKernel(ard_num_dims=3, active_dims=[0, 1, 2])).double()
    categorical, ordered = (
        CategoricalKernel(1, active_dims=[3]).double(),
        OrderedCategoricalKernel(4, active_dims=[4]).double(),
    )
    rbf = RBFKernel(active_dims=[0]).double()
    a, b, c, d = (k(x).to_dense() for k in (laplacian, categorical, ordered, rbf))
    assert_close((laplacian * categorical * ordered + rbf)(x).to_dense(), a * b * c + d)


# --------------------------------------------------------------------- categories
@torch.no_grad()
def test_thousands_of_levels_and_new_ones():
    kernel = CategoricalKernel(1)
    codes, new = torch.arange(5_000.0).unsqueeze(-1), torch.tensor([[9_999.0], [4_999.0], [-1.0]])
    found, apart = kernel(new, codes).to_dense(), float(torch.exp(-1.0 / kernel.lengthscale))
    assert_close(found[0], torch.full((5_000,), apart))
    assert float(found[1, 4_999]) == 1.0
    assert float(kernel(new, new).to_dense()[2, 2]) == 1.0


@pytest.mark.parametrize("value", [0.5, math.nan, math.inf])
def test_what_is_no_code_is_refused(value):
    for kernel in (CategoricalKernel(1), OrderedCategoricalKernel(4)):
        with pytest.raises(InputError, match=f"must hold codes of levels.*Got {value:.6g}"):
            kernel(torch.tensor([[1.0], [value]])).to_dense()


def test_levels_with_an_order_are_known():
    for value in (-1.0, 4.0):
        with pytest.raises(InputError, match=r"whole numbers 0\.\.3"):
            OrderedCategoricalKernel(4)(torch.tensor([[value]])).to_dense()
    with pytest.raises(InputError, match=r"reads one column of codes\. Got 2"):
        OrderedCategoricalKernel(4)(torch.zeros(3, 2)).to_dense()
    with pytest.raises(InputError, match="`num_levels` must be at least 2"):
        OrderedCategoricalKernel(1)


@pytest.mark.parametrize("pairs", [[], [(0, 0)], [(0, 1), (1, 0)], [(0, -1)], [(0, 1, 2)]])
def test_pairs_are_of_two_columns(pairs):
    with pytest.raises(InputError, match="`pairs` must hold different pairs of two different columns"):
        PairwiseLaplacianKernel(pairs)
    with pytest.raises(InputError, match=r"Got .* and active_dims"):
        PairwiseLaplacianKernel([(0, 1)], active_dims=(0, 1))


@torch.no_grad()
def test_batches_of_pairs_keep_their_columns():
    x, kernel = _real(7), CASES["pairs"][0](batch_shape=torch.Size([2, 3])).double()
    expected = CASES["pairs"][0]()(x).to_dense()
    for part, shape in (
        (kernel[1, 2], ()),
        (kernel[0], (3,)),
        (CASES["pairs"][0]().expand_batch(torch.Size([2])), (2,)),
    ):
        assert_close(part.double()(x).to_dense(), expected.expand(*shape, 7, 7))


def test_weights_of_pairs_are_shares():
    kernel = PairwiseLaplacianKernel([(0, 1), (2, 1)])
    kernel.weights = torch.tensor([1.0, 3.0])
    assert_close(kernel.weights, torch.tensor([0.25, 0.75]))
    with pytest.raises(InputError, match="`weights` must be 2 positive numbers"):
        kernel.weights = torch.ones(3)


def test_numbers_of_columns_are_positive():
    for kind in (AdditiveLaplacianKernel, CategoricalKernel):
        with pytest.raises(InputError, match="`num_dims` must be"):
            kind(0)


@pytest.mark.filterwarnings("ignore:The last_dim_is_batch argument:DeprecationWarning")
def test_columns_by_themselves():
    x = _real(6)
    kernel = CASES["laplacian"][0]().double()
    lines = kernel(x, last_dim_is_batch=True).to_dense()
    assert_close(lines.prod(0), kernel(x).to_dense())
    for other in (AdditiveLaplacianKernel(3), CategoricalKernel(3), PairwiseLaplacianKernel([(0, 1)])):
        with pytest.raises(InputError, match="last_dim_is_batch"):
            other(_codes(6), last_dim_is_batch=True).to_dense()
