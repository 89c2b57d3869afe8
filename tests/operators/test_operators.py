"""Kernel products are the same whatever computes them."""

from __future__ import annotations

import copy
import math

import gpytorch
import pytest
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import (
    AdditiveKernel,
    Kernel,
    LinearKernel,
    MaternKernel,
    MultitaskKernel,
    PeriodicKernel,
    PolynomialKernel,
    ProductKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from gpytorch.kernels import keops as keops_kernels
from gpytorch.means import ConstantMean, LinearMean, MultitaskMean, ZeroMean
from helpers import DTYPES, assert_close, keops_test, make_batch_kernel, make_inputs, make_kernel, needs_pykeops

from itergp import InputError
from itergp.errors import ItergpWarning
from itergp.kernels import (
    AdditiveLaplacianKernel,
    LaplacianKernel,
    TiedLaplacianKernel,
    TiedMaternKernel,
    TiedRBFKernel,
)
from itergp.operators import (
    BlockedOperator,
    DenseOperator,
    KeOpsOperator,
    Prior,
    default_memory_budget,
    keops,
    make_operator,
    tiles,
)
from itergp.operators.radial_product import radial_product

ROWS, COLUMNS = 333, 3  # not a multiple of any block size
BATCH = torch.Size([3])


class Doubled(RBFKernel):
    """A subclass with a ``forward`` of its own: not the kernel it derives from."""

    def forward(self, x1, x2, diag=False, **params):
        return 2.0 * super().forward(x1, x2, diag=diag, **params)


def _ard(kernel: Kernel) -> Kernel:
    kernel.lengthscale = torch.tensor([[0.7, 1.3, 2.1]])
    return kernel


def _scaled(kernel: Kernel, scale: float = 3.0, **kwargs) -> ScaleKernel:
    kernel = ScaleKernel(kernel, **kwargs)
    kernel.outputscale = scale
    return kernel


def _weighted(kernel: AdditiveLaplacianKernel) -> Kernel:
    kernel.weights = torch.tensor([0.2, 0.5, 0.3])
    return kernel


def _tied(kernel) -> Kernel:
    kernel.group_lengthscale = torch.tensor([0.7, 1.6])
    return kernel


def _batch_laplacian() -> Kernel:
    kernel = LaplacianKernel(batch_shape=BATCH, ard_num_dims=3)
    kernel.lengthscale = torch.tensor([0.5, 1.0, 2.0]).reshape(3, 1, 1) * torch.tensor([0.7, 1.3, 2.1])
    return kernel


def _batch_scale_only() -> Kernel:
    kernel = ScaleKernel(MaternKernel(nu=2.5), batch_shape=BATCH)
    kernel.outputscale = torch.tensor([0.5, 1.0, 2.0])
    return kernel


def _batch_nested() -> Kernel:
    kernel = _scaled(make_batch_kernel())
    kernel.base_kernel.base_kernel.lengthscale = torch.tensor([0.5, 1.0, 2.0]).reshape(3, 1, 1)
    return kernel


def _batch_rational_quadratic() -> Kernel:
    kernel = RQKernel(batch_shape=BATCH)
    kernel.lengthscale, kernel.alpha = (
        torch.tensor([0.5, 1.0, 2.0]).reshape(3, 1, 1),
        torch.tensor([[0.5], [1.0], [2.0]]),
    )
    return kernel


def _batch_linear() -> Kernel:
    kernel = LinearKernel(batch_shape=BATCH)
    kernel.variance = torch.tensor([0.5, 1.0, 2.0]).reshape(3, 1, 1)
    return kernel


SHARED = {
    "rbf": lambda: RBFKernel(),
    "matern-1/2": lambda: MaternKernel(nu=0.5),
    "matern-3/2": lambda: MaternKernel(nu=1.5),
    "matern-5/2": lambda: MaternKernel(nu=2.5),
    "rbf ard": lambda: _ard(RBFKernel(ard_num_dims=3)),
    "matern ard": lambda: _ard(MaternKernel(nu=1.5, ard_num_dims=3)),
    "scaled": lambda: _scaled(MaternKernel(nu=1.5)),
    "scaled twice": lambda: _scaled(_scaled(_ard(RBFKernel(ard_num_dims=3)))),
    "active dims": lambda: RBFKernel(active_dims=[0, 2]),
    "active dims scaled": lambda: _scaled(MaternKernel(nu=2.5, active_dims=[2])),
    "active dims ard": lambda: _scaled(MaternKernel(nu=0.5, ard_num_dims=2, active_dims=[2, 0])),
    "scale with active dims": lambda: _scaled(RBFKernel(), active_dims=[1]),
    "subclass": lambda: _scaled(Doubled()),
    "rational quadratic": lambda: _scaled(RQKernel()),
    "periodic": lambda: PeriodicKernel(),
    "sum": lambda: _scaled(RBFKernel()) + LinearKernel(),
    "sum scaled": lambda: _scaled(_scaled(RBFKernel()) + LinearKernel()),
    "product of sums": lambda: ProductKernel(RBFKernel() + LinearKernel(), PeriodicKernel(active_dims=[1])),
    "sum active dims": lambda: RBFKernel(active_dims=[0]) + MaternKernel(nu=0.5, active_dims=[1, 2]),
    "product": lambda: ProductKernel(_scaled(RBFKernel()), PeriodicKernel()),
    "linear": lambda: LinearKernel(),
    "polynomial": lambda: PolynomialKernel(power=2),
    "laplacian": lambda: LaplacianKernel(),
    "laplacian ard": lambda: _scaled(_ard(LaplacianKernel(ard_num_dims=3))),
    "laplacian active dims": lambda: _scaled(LaplacianKernel(ard_num_dims=2, active_dims=[2, 0])),
    "additive laplacian": lambda: _scaled(_weighted(_ard(AdditiveLaplacianKernel(3)))),
    "tied laplacian": lambda: _tied(TiedLaplacianKernel((1, 0, 1))),
    "tied matern": lambda: _scaled(_tied(TiedMaternKernel((1, 0, 1), nu=1.5))),
    "tied rbf": lambda: _tied(TiedRBFKernel((1, 0, 1))),
    "sum of forms": lambda: _scaled(_scaled(MaternKernel(nu=1.5)) + _ard(LaplacianKernel(ard_num_dims=3))),
    "product of forms": lambda: RBFKernel(active_dims=[0]) * _scaled(LaplacianKernel(active_dims=[1, 2])),
    "laplacian and another": lambda: _scaled(LaplacianKernel()) + PeriodicKernel() * LaplacianKernel(active_dims=[1]),
    "keops rbf": lambda: _scaled(keops_kernels.RBFKernel()),
    "keops matern": lambda: keops_kernels.MaternKernel(nu=1.5),
}
BATCHES = {
    "batch radial": make_batch_kernel,
    "batch scale only": _batch_scale_only,
    "batch nested": _batch_nested,
    "batch rational quadratic": _batch_rational_quadratic,
    "batch linear": _batch_linear,
    "batch sum": lambda: make_batch_kernel() + _batch_linear(),
    "batch laplacian": lambda: _batch_laplacian(),
    "batch sum of forms": lambda: make_batch_kernel() + _batch_laplacian() * AdditiveLaplacianKernel(3),
}
KERNELS = {**SHARED, **BATCHES}
NEEDS_PYKEOPS = {"keops rbf", "keops matern"}
SOME = [
    "matern ard",
    "laplacian ard",
    "additive laplacian",
    "sum of forms",
    "active dims ard",
    "scaled twice",
    "sum active dims",
    "polynomial",
    "batch radial",
    "batch sum",
]


def _names(names) -> list:
    return [pytest.param(n, marks=needs_pykeops) if n in NEEDS_PYKEOPS else n for n in names]


def _num_kernels(name: str) -> int:
    return 3 if name in BATCHES else 1


def _reference(kernel: Kernel, rows: torch.Tensor, cols: torch.Tensor | None = None) -> torch.Tensor:
    """Dense entries ``(C', M, N)`` from GPyTorch, in float64."""
    with torch.no_grad():
        return _entries(copy.deepcopy(kernel).double(), rows.double(), None if cols is None else cols.double())


def _entries(kernel: Kernel, rows: torch.Tensor, cols: torch.Tensor | None = None) -> torch.Tensor:
    """Dense entries ``(C', M, N)`` from GPyTorch, term by term: it cannot add every linear kernel to another."""
    terms = kernel.kernels if isinstance(kernel, AdditiveKernel) else [kernel]
    dense = sum(term(rows, cols).to_dense() for term in terms)
    return dense if dense.dim() == 3 else dense.unsqueeze(0)


def _make(name: str, kind: str, x: torch.Tensor, **kwargs):
    kernel = KERNELS[name]().to(x.dtype)
    return make_operator(kernel, x, num_kernels=_num_kernels(name), kind=kind, **kwargs)


# -------------------------------------------------------------------- products
@torch.no_grad()
def test_a_dense_matrix_is_put_together_from_kept_blocks():
    x = make_inputs(700, COLUMNS)
    kept, fresh = (_make("matern ard", kind, x) for kind in ("dense", "blocked"))
    first, again = kept.dense(), kept.counts.entries
    assert again > 0
    assert_close(kept.dense(), first)
    assert_close(kept.matmul(torch.eye(700, dtype=x.dtype)), first)
    assert kept.counts.entries == again
    assert_close(first, fresh.dense())


@pytest.mark.parametrize("name", _names(KERNELS))
@pytest.mark.parametrize("kind", ["dense", "blocked"])
@torch.no_grad()
def test_products_equal_gpytorch(name, kind, dtype):
    x = make_inputs(ROWS, COLUMNS, dtype)
    operator = _make(name, kind, x)
    expected = _reference(operator.kernel, x)
    assert expected.shape[0] == operator.num_kernels == _num_kernels(name)
    assert_close(operator.dense(), expected)
    for columns in (1, 4):
        block = torch.randn(ROWS, columns, dtype=dtype)
        assert_close(operator.matmul(block), expected @ block.double())
    own_blocks = torch.randn(operator.num_kernels, ROWS, 2, dtype=dtype)
    assert_close(operator.matmul(own_blocks), expected @ own_blocks.double())


@pytest.mark.parametrize("name", _names(KERNELS))
@torch.no_grad()
def test_cross_products_and_diagonals_equal_gpytorch(name, dtype):
    x, new = make_inputs(ROWS, COLUMNS, dtype), make_inputs(57, COLUMNS, dtype, seed=7)
    operator = _make(name, "blocked", x, memory_budget=300_000)  # less than one row of blocks
    expected = _reference(operator.kernel, new, x)
    block = torch.randn(ROWS, 3, dtype=dtype)
    assert_close(operator.cross_matmul(new, block), expected @ block.double())
    own_blocks = torch.randn(operator.num_kernels, ROWS, 2, dtype=dtype)
    assert_close(operator.cross_matmul(new, own_blocks), expected @ own_blocks.double())
    assert_close(operator.diagonal(), _reference(operator.kernel, x).diagonal(dim1=-2, dim2=-1))
    assert_close(operator.diagonal(new), _reference(operator.kernel, new).diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["rbf", "sum", "batch radial", "batch linear", "batch sum"])
@torch.no_grad()
def test_diagonal_at_as_few_inputs_as_kernels(name, rows):
    # With as many inputs as kernels, the diagonals (C, M) look like a square matrix.
    new = make_inputs(rows, COLUMNS)
    operator = _make(name, "blocked", make_inputs(10, COLUMNS))
    assert_close(operator.diagonal(new), _reference(operator.kernel, new).diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize("name", ["scaled", "rational quadratic", "batch radial"])
@torch.no_grad()
def test_more_rows_than_one_row_of_blocks(name):
    # 128 + 2048 columns are one block on the diagonal and one beside it.
    x = make_inputs(2_300, COLUMNS, torch.float32)
    operator, block = _make(name, "blocked", x), torch.randn(2_300, 2)
    some = torch.tensor([0, 127, 128, 1_000, 2_175, 2_176, 2_299])
    assert_close(operator.matmul(block)[:, some], _reference(operator.kernel, x[some], x) @ block.double())


@torch.no_grad()
def test_own_inputs_for_every_kernel(dtype):
    # Deep kernels may give every latent function its own features (C, N, D).
    x = torch.stack([make_inputs(50, COLUMNS, dtype, seed=s) for s in range(3)])
    new = torch.stack([make_inputs(7, COLUMNS, dtype, seed=s) for s in range(5, 8)])
    for name in ("batch radial", "batch rational quadratic"):
        operator = _make(name, "blocked", x)
        block = torch.randn(50, 2, dtype=dtype)
        assert_close(operator.matmul(block), _reference(operator.kernel, x) @ block.double())
        assert_close(operator.cross_matmul(new, block), _reference(operator.kernel, new, x) @ block.double())
        assert_close(operator.diagonal(new), _reference(operator.kernel, new).diagonal(dim1=-2, dim2=-1))


@torch.no_grad()
def test_dense_diagonal_is_exact_in_float32():
    # A distance of rounding error instead of zero costs Matern-1/2 almost a percent on the diagonal.
    x = 3.0 * make_inputs(ROWS, 5, torch.float32) + 10.0
    for kind in ("dense", "blocked"):
        operator = make_operator(MaternKernel(nu=0.5), x, kind=kind)
        assert_close(operator.dense().diagonal(dim1=-2, dim2=-1), torch.ones(1, ROWS))
        rest = torch.zeros(ROWS, 1)
        rest[5] = 1.0
        assert_close(operator.matmul(rest)[:, 5], torch.ones(1, 1))


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_equal_and_near_rows_of_a_kernel_with_a_kink_in_float32(columns):
    # The root of the rounding of a squared distance costs Matern-1/2 two thousandths between rows that are equal.
    x = make_inputs(80, columns, torch.float32)
    x = torch.cat([x, x, x + 1e-6])
    kernel = MaternKernel(nu=0.5, batch_shape=torch.Size([2]))
    kernel.lengthscale = torch.tensor([0.7, 3.0]).view(2, 1, 1)
    apart = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    expected = torch.exp(-apart / kernel.lengthscale.double())
    for kind in ("dense", "blocked"):
        operator = make_operator(kernel, x, kind=kind, num_kernels=2)
        with torch.no_grad():
            torch.testing.assert_close(operator.dense().double(), expected, atol=1e-4, rtol=0.0)
        product = operator.cross_matmul(x, torch.eye(len(x)))
        torch.testing.assert_close(product.double(), expected, atol=1e-4, rtol=0.0)


@torch.no_grad()
def test_far_from_the_origin():
    # Distances come from inner products: without centring, float32 loses them to cancellation.
    x = make_inputs(ROWS, COLUMNS, torch.float32)
    near, far = (make_operator(make_kernel(), z, kind="blocked") for z in (x, x + 1024.0))
    block = torch.randn(ROWS, 1)
    assert_close(far.matmul(block), near.matmul(block), "derivative")


@pytest.mark.parametrize("kind", ["dense", "blocked"])
@torch.no_grad()
def test_a_smooth_kernel_plus_a_linear_one_in_float32(kind):
    # GPyTorch factorises the smooth part on its own, which rounding has made indefinite.
    x, block = torch.linspace(-2.0, 2.0, ROWS).unsqueeze(-1), torch.randn(ROWS, 1)
    kernel = _scaled(RBFKernel(), 100.0) + LinearKernel()
    assert_close(make_operator(kernel, x, kind=kind).matmul(block), _reference(kernel, x) @ block.double())


@keops_test
@pytest.mark.parametrize(
    "name", ["matern ard", "active dims", "keops rbf", "batch radial", "additive laplacian", "product of forms"]
)
@torch.no_grad()
def test_keops_products_equal_gpytorch(name):
    x, new = make_inputs(ROWS, COLUMNS, torch.float32), make_inputs(20, COLUMNS, torch.float32, seed=7)
    operator = _make(name, "keops", x)
    assert isinstance(operator, KeOpsOperator)
    block = torch.randn(ROWS, 2)
    assert_close(operator.matmul(block), _reference(operator.kernel, x) @ block.double())
    assert_close(operator.cross_matmul(new, block), _reference(operator.kernel, new, x) @ block.double())
    own_blocks = torch.randn(operator.num_kernels, ROWS, 2)
    assert_close(operator.matmul(own_blocks), _reference(operator.kernel, x) @ own_blocks.double())
    assert operator.counts.passes == 2
    assert operator.counts.entries == 2 * operator.num_kernels * ROWS**2


@keops_test
@pytest.mark.parametrize("nu", [0.5, 2.5])
def test_keops_matern_with_gradients(nu):
    x, block = make_inputs(40, COLUMNS), torch.randn(40, 2, dtype=torch.float64)
    kernel = keops_kernels.MaternKernel(nu=nu).double()
    operator = make_operator(kernel, x, kind="keops")
    with torch.no_grad():
        product = operator.matmul(block)
    assert_close(product, _reference(kernel, x) @ block, "derivative")
    gradients = []
    for one in (kernel, MaternKernel(nu=nu).double()):
        product = make_operator(one, x, kind="keops").matmul(block)
        gradients += torch.autograd.grad(product.square().sum(), [one.raw_lengthscale])
    assert_close(gradients[0], gradients[1], "derivative")


# ---------------------------------------------------------------------- counts
def _counted(operator) -> tuple[int, int, int]:
    return operator.counts.passes, operator.counts.columns, operator.counts.entries


@pytest.mark.parametrize("name", ["scaled", "rational quadratic", "batch radial"])
@torch.no_grad()
def test_symmetric_blocks_are_counted_once(name):
    x, kernels = make_inputs(ROWS, COLUMNS), _num_kernels(name)
    block = torch.randn(ROWS, 2, dtype=x.dtype)
    # Half of the matrix, and half of the squares on its diagonal; blocks of several kernels are smaller.
    squares = [166, 167] if kernels == 1 else [83, 83, 83, 84]
    assert sum(squares) == ROWS
    evaluated = kernels * (ROWS**2 + sum(side**2 for side in squares)) // 2
    blocked, dense = _make(name, "blocked", x), _make(name, "dense", x)
    for operator in (blocked, dense):
        operator.matmul(block)
        assert _counted(operator) == (1, 2, evaluated)
        operator.matmul(block[:, :1])
    assert _counted(blocked) == (2, 3, 2 * evaluated)
    assert _counted(dense) == (2, 3, evaluated)
    dense.release()
    assert_close(dense.matmul(block), blocked.matmul(block))
    assert _counted(dense) == (3, 5, 2 * evaluated)
    assert dense.counts.seconds > 0.0


@torch.no_grad()
def test_blocked_evaluates_little_more_than_half():
    operator = make_operator(make_kernel(), make_inputs(2_000, COLUMNS, torch.float32), kind="blocked")
    operator.matmul(torch.randn(2_000, 1))
    assert operator.counts.entries < 0.57 * 2_000**2


def test_a_pass_with_gradients_counts_every_entry():
    operator = make_operator(make_kernel().double(), make_inputs(50), kind="dense")
    operator.matmul(torch.randn(50, 2, dtype=torch.float64))
    assert _counted(operator) == (1, 2, 50**2)


@torch.no_grad()
def test_counts_are_snapshots_and_cross_products_are_no_passes():
    x = make_inputs(20)
    operator = make_operator(make_kernel().double(), x, kind="blocked")
    before = operator.counts.copy()
    operator.cross_matmul(make_inputs(5, seed=3), torch.randn(20, 2, dtype=x.dtype))
    assert operator.counts.passes == 0
    operator.matmul(torch.randn(20, 1, dtype=x.dtype))
    assert (before.passes, operator.counts.passes) == (0, 1)


# ---------------------------------------------------------------------- choice
@pytest.mark.parametrize("name", ["scaled", "batch radial"])
def test_the_memory_budget_decides(name, dtype):
    x = make_inputs(100, COLUMNS, dtype)
    needed = _num_kernels(name) * 100**2 * x.element_size() // 2
    assert type(_make(name, "auto", x, memory_budget=needed)) is DenseOperator
    assert type(_make(name, "auto", x, memory_budget=needed - 1)) is BlockedOperator
    assert type(_make(name, "auto", x)) is DenseOperator  # a quarter of the free memory


@needs_pykeops
def test_the_faster_of_keops_and_blocks_is_chosen(monkeypatch):
    x, seconds, timed = make_inputs(100, COLUMNS), {KeOpsOperator: 1.0, BlockedOperator: 2.0}, []

    def time(operator, columns):
        timed.append(type(operator))
        return seconds[type(operator)]

    monkeypatch.setattr(keops, "seconds_of_product", time)
    assert type(_make("keops rbf", "auto", x, memory_budget=1_000)) is BlockedOperator  # never on a CPU
    assert not timed
    monkeypatch.setattr(keops, "_DEVICES", ("cpu",))
    monkeypatch.setattr(keops, "_pays", {})
    for _ in range(2):
        assert type(_make("rbf", "auto", x, memory_budget=1_000)) is KeOpsOperator
    assert timed == [BlockedOperator, KeOpsOperator]
    assert type(_make("rbf", "auto", x)) is DenseOperator
    assert type(_make("linear", "auto", x, memory_budget=1_000)) is BlockedOperator
    assert type(_make("rbf", "auto", make_inputs(100, 65), memory_budget=1_000)) is BlockedOperator
    assert len(timed) == 2
    seconds[KeOpsOperator] = 3.0
    assert type(_make("keops matern", "auto", x, memory_budget=1_000)) is BlockedOperator
    assert len(timed) == 4


@keops_test
def test_keops_is_timed_in_earnest(monkeypatch):
    calls, reduce = [], KeOpsOperator._reduce
    monkeypatch.setattr(keops, "_DEVICES", ("cpu",))
    monkeypatch.setattr(keops, "_pays", {})
    monkeypatch.setattr(KeOpsOperator, "_reduce", lambda *args: calls.append(args) or reduce(*args))
    x = make_inputs(100, COLUMNS, torch.float32)
    chosen = type(_make("keops rbf", "auto", x, memory_budget=1_000))
    assert len(calls) == 2
    assert list(keops._pays.values()) == [chosen is KeOpsOperator]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["dense", "blocked", "auto", pytest.param("keops", marks=needs_pykeops)])
@pytest.mark.parametrize("columns", [3, 100])
@torch.no_grad()
def test_products_on_cuda(kind, columns):
    x = make_inputs(5000, COLUMNS, torch.float32)
    block, new = torch.randn(5000, columns), make_inputs(20, COLUMNS, torch.float32, seed=7)
    expected = _make("matern ard", "blocked", x)
    operator = make_operator(
        expected.kernel.cuda(), x.cuda(), kind=kind, memory_budget=10**9 if kind == "dense" else 10**6
    )
    product, cross = operator.matmul(block.cuda()), operator.cross_matmul(new.cuda(), block.cuda())
    assert product.is_cuda
    expected.kernel.cpu()
    assert_close(product.cpu(), expected.matmul(block))
    assert_close(cross.cpu(), expected.cross_matmul(new, block))


@keops_test
@pytest.mark.parametrize("far", [0, 1])
@torch.no_grad()
def test_keops_between_near_and_far_inputs(far):
    # Distances between far inputs need float64, those between near ones do not.
    pair = [make_inputs(30, COLUMNS, torch.float32, seed=seed) for seed in (1, 2)]
    pair[far][0] = 300.0
    x, new = pair
    block = torch.randn(30, 2)
    operator = _make("rbf", "keops", x)
    assert operator.features(x).dtype != operator.features(new).dtype
    expected = _reference(operator.kernel, new, x) @ block.double()
    assert_close(operator.cross_matmul(new, block), expected)


@needs_pykeops
def test_keops_that_does_not_work_is_left_out(monkeypatch):
    def fail(*_):
        raise OSError("no compiler")

    monkeypatch.setattr(keops, "_DEVICES", ("cpu",))
    monkeypatch.setattr(keops, "_pays", {})
    monkeypatch.setattr(KeOpsOperator, "_reduce", fail)
    x = make_inputs(100, COLUMNS)
    with pytest.warns(ItergpWarning, match=r"does not \(OSError: no compiler\), and .* in blocks"):
        assert type(_make("rbf", "auto", x, memory_budget=1_000)) is BlockedOperator
    assert type(_make("rbf", "auto", x, memory_budget=1_000)) is BlockedOperator  # without a warning


@keops_test
@pytest.mark.parametrize("columns", [1, 3, 64, 65])
@torch.no_grad()
def test_wide_products_of_keops_are_made_in_blocks(columns):
    x = make_inputs(ROWS, COLUMNS, torch.float32)
    operator, expected = _make("matern ard", "keops", x), _make("matern ard", "blocked", x)
    block, new = torch.randn(ROWS, columns), make_inputs(9, COLUMNS, torch.float32, seed=7)
    assert_close(operator.matmul(block), expected.matmul(block))
    assert_close(operator.cross_matmul(new, block), expected.cross_matmul(new, block))
    halves = operator.counts.entries == expected.counts.entries
    assert halves == (columns == 65)


def test_default_memory_budget_is_part_of_what_is_free():
    assert 2**20 < default_memory_budget(torch.device("cpu")) < 2**50


def test_unknown_operator():
    with pytest.raises(
        InputError,
        match=r"`operator` must be one of \('auto', 'dense', 'blocked', 'keops', 'scan', 'fourier', 'sharded'\)\. Got 'fast'",
    ):
        make_operator(make_kernel(), make_inputs(5), kind="fast")  # type: ignore[arg-type]


@needs_pykeops
@pytest.mark.parametrize("name", ["linear", "sum", "subclass", "rational quadratic"])
def test_keops_refuses_kernels_it_does_not_know(name):
    with pytest.raises(
        InputError, match=r"needs RBF and Matern kernels, those of .* Got .*Kernel\. Choose operator='blocked'"
    ):
        _make(name, "keops", make_inputs(5, COLUMNS))


def test_keops_without_pykeops(monkeypatch):
    monkeypatch.setattr("itergp.operators.keops.keops_available", lambda: False)
    with pytest.raises(InputError, match=r"needs the package pykeops.*pip install itergp\[keops\]"):
        _make("rbf", "keops", make_inputs(5, COLUMNS))


# ------------------------------------------------------------------- gradients
def _with_grad(name: str, x: torch.Tensor, **kwargs):
    operator = _make(name, "blocked", x.clone().requires_grad_(True), **kwargs)
    return operator, list(operator.kernel.parameters())


@pytest.mark.parametrize(
    "name", _names([*SOME, "matern-1/2", "scaled", "rational quadratic", "linear", "keops rbf", "keops matern"])
)
@pytest.mark.parametrize(
    "of_inputs", [True, False]
)  # without, GPyTorch differentiates RBF and Matern kernels otherwise
def test_gradients_equal_the_dense_ones(name, of_inputs):
    x, new = make_inputs(ROWS, COLUMNS).requires_grad_(of_inputs), make_inputs(40, COLUMNS, seed=7)
    operator = _make(name, "blocked", x)
    parameters = list(operator.kernel.parameters())
    block = torch.randn(ROWS, 2, dtype=x.dtype, requires_grad=True)
    weights = torch.randn(operator.num_kernels, ROWS, 2, dtype=x.dtype)

    leaves = [*parameters, block, *([x] if of_inputs else [])]
    product, expected = operator.matmul(block), _entries(operator.kernel, x) @ block
    assert_close(product, expected, "derivative")
    gradients = torch.autograd.grad((product * weights).sum(), leaves)
    for actual, wanted in zip(gradients, torch.autograd.grad((expected * weights).sum(), leaves), strict=True):
        assert_close(actual, wanted, "derivative")

    leaves += [new.requires_grad_(True)] if of_inputs else []
    product, expected = operator.cross_matmul(new, block), _entries(operator.kernel, new, x) @ block
    assert_close(product, expected)
    gradients = torch.autograd.grad((product * weights[:, :40]).sum(), leaves)
    for actual, wanted in zip(gradients, torch.autograd.grad((expected * weights[:, :40]).sum(), leaves), strict=True):
        assert_close(actual, wanted, "derivative")


@pytest.mark.parametrize("name", [*SOME, "matern-1/2", "rational quadratic"])
def test_products_are_the_same_with_and_without_gradients(name, dtype):
    operator, block = _make(name, "blocked", make_inputs(ROWS, COLUMNS, dtype)), torch.randn(ROWS, 2, dtype=dtype)
    with torch.no_grad():
        expected = operator.matmul(block)
    assert_close(operator.matmul(block), expected, "derivative")


@pytest.mark.parametrize("name", ["scaled", "batch radial"])
def test_gradients_of_the_diagonal(name):
    operator, parameters = _with_grad(name, make_inputs(20, COLUMNS))
    dense = _entries(operator.kernel, operator.inputs).diagonal(dim1=-2, dim2=-1)
    weights = torch.randn_like(dense)
    gradients = torch.autograd.grad((operator.diagonal() * weights).sum(), parameters, allow_unused=True)
    wanted = torch.autograd.grad((dense * weights).sum(), parameters, materialize_grads=True)
    for actual, expected in zip(gradients, wanted, strict=True):
        assert_close(torch.zeros_like(expected) if actual is None else actual, expected, "derivative")


def test_gradients_do_not_depend_on_the_memory_budget():
    x, block = make_inputs(ROWS, COLUMNS), torch.randn(ROWS, 1, dtype=torch.float64)
    gradients = []
    for budget in (10**9, 300_000, 1):
        operator, parameters = _with_grad("matern ard", x, memory_budget=budget)
        gradients.append(torch.autograd.grad(operator.matmul(block).square().sum(), parameters))
    for other in gradients[1:]:
        for actual, expected in zip(other, gradients[0], strict=True):
            assert_close(actual, expected, "derivative")


@pytest.mark.parametrize("name", ["scaled", "rational quadratic", "batch radial"])
def test_the_graph_holds_no_kernel_matrix(name):
    saved: list[int] = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    rows = 600
    operator, parameters = _with_grad(name, make_inputs(rows, COLUMNS))
    block = torch.randn(rows, 2, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = operator.matmul(block).sum() + operator.cross_matmul(make_inputs(500, COLUMNS, seed=1), block).sum()
    assert sum(saved) < rows**2 / 10
    assert all(g is not None for g in torch.autograd.grad(loss, [*parameters, block]))


def test_no_graph_without_need():
    x, block = make_inputs(20), torch.randn(20, 1, dtype=torch.float64)
    kernel = make_kernel().double()
    with torch.no_grad():
        assert not make_operator(kernel, x).matmul(block).requires_grad
    assert make_operator(kernel, x).matmul(block).requires_grad
    frozen = make_operator(kernel.requires_grad_(False), x)
    assert not frozen.matmul(block).requires_grad
    assert frozen.matmul(block.requires_grad_(True)).requires_grad


# ----------------------------------------------------------------------- prior
def _prior_of(covariance, mean=None, x=None, latents=1) -> tuple[Prior, torch.Tensor]:
    x = make_inputs(12, COLUMNS) if x is None else x
    mean = ZeroMean() if mean is None else mean
    with torch.no_grad():
        prior = Prior.from_forward(lambda z: MultivariateNormal(mean(z), covariance(z)), (x,), latents)
    return prior, x


def _dense_prior(prior: Prior) -> torch.Tensor:
    operator = make_operator(prior.kernel, prior.features, num_kernels=prior.num_kernels)
    assert_close(operator.diagonal(), operator.dense().diagonal(dim1=-2, dim2=-1))
    return operator.dense()


@pytest.mark.parametrize("name", [*SOME, "active dims", "active dims scaled", "scale with active dims", "product"])
@torch.no_grad()
def test_prior_of_one_kernel(name):
    kernel = KERNELS[name]().double()
    prior, x = _prior_of(kernel, latents=3)
    assert prior.num_kernels == _num_kernels(name)
    assert prior.mean.shape == (12, 3)
    assert_close(_dense_prior(prior), _reference(kernel, x))
    assert_close(prior.covariance.to_dense().reshape(-1, 12, 12), _reference(kernel, x))


first, second = RBFKernel(active_dims=[0]).double(), _scaled(MaternKernel(nu=0.5)).double()
batch = make_batch_kernel().double()
COMBINATIONS = {
    "sum": (lambda x: first(x) + second(x), lambda x: _reference(first, x) + _reference(second, x)),
    "multiple": (lambda x: 2.5 * second(x), lambda x: 2.5 * _reference(second, x)),
    "tensor multiple": (lambda x: torch.tensor(2.5) * second(x), lambda x: 2.5 * _reference(second, x)),
    "multiple of active dims": (lambda x: 2.5 * first(x), lambda x: 2.5 * _reference(first, x)),
    "quotient": (lambda x: second(x) / 4.0, lambda x: _reference(second, x) / 4.0),
    "weighted sum": (
        lambda x: 0.5 * (2.0 * first(x) + second(x)) + first(x),
        lambda x: 2.0 * _reference(first, x) + 0.5 * _reference(second, x),
    ),
    "different columns": (
        lambda x: second(x[:, :2]) + 3.0 * second(x[:, 1:]),
        lambda x: _reference(second, x[:, :2]) + 3.0 * _reference(second, x[:, 1:]),
    ),
    "features": (
        lambda x: second(torch.tanh(x @ torch.ones(COLUMNS, 5, dtype=x.dtype))),
        lambda x: _reference(second, torch.tanh(x @ torch.ones(COLUMNS, 5, dtype=x.dtype))),
    ),
    "batch multiple": (lambda x: 2.0 * batch(x), lambda x: 2.0 * _reference(batch, x)),
    "batch of multiples": (
        lambda x: torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype)[:, None, None] * batch(x),
        lambda x: torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype)[:, None, None] * _reference(batch, x),
    ),
    "batch sum": (lambda x: batch(x) + 2.0 * batch(x), lambda x: 3.0 * _reference(batch, x)),
    "batch and shared": (lambda x: batch(x) + second(x), lambda x: _reference(batch, x) + _reference(second, x)),
}


@pytest.mark.parametrize("name", COMBINATIONS)
@torch.no_grad()
def test_prior_of_sums_and_multiples(name):
    covariance, expected = COMBINATIONS[name]
    prior, x = _prior_of(covariance, latents=3)
    assert_close(_dense_prior(prior), expected(x))
    assert prior.num_kernels == expected(x).shape[0]
    few, _ = _prior_of(covariance, x=x[:3], latents=3)  # as many rows as kernels
    assert_close(_dense_prior(few), expected(x[:3]))


@torch.no_grad()
def test_prior_means():
    kernel, x = make_kernel().double(), make_inputs(12, COLUMNS)
    shared = LinearMean(COLUMNS).double()
    prior, _ = _prior_of(kernel, shared, x, latents=3)
    assert_close(prior.mean, shared(x)[:, None].expand(12, 3))
    own = LinearMean(COLUMNS, batch_shape=BATCH).double()
    prior, _ = _prior_of(kernel, own, x, latents=3)  # batch of means, one kernel for all
    assert prior.num_kernels == 1
    assert_close(prior.mean, own(x).mT)
    prior, _ = _prior_of(make_batch_kernel().double(), own, x, latents=3)
    assert prior.num_kernels == 3
    assert_close(prior.mean, own(x).mT)


@torch.no_grad()
def test_prior_of_several_arguments():
    kernel, mean = make_kernel().double(), ConstantMean().double()
    first, second = make_inputs(12, 2), make_inputs(12, 1, seed=4)
    prior = Prior.from_forward(
        lambda a, b: MultivariateNormal(mean(a), kernel(torch.cat([a, b], -1))), (first, second), 1
    )
    assert prior.features.shape == (12, 3)
    assert_close(_dense_prior(prior), _reference(kernel, torch.cat([first, second], -1)))


def test_prior_is_lazy_whatever_the_settings():
    with gpytorch.settings.lazily_evaluate_kernels(False):
        prior, x = _prior_of(make_kernel().double())
    assert_close(_dense_prior(prior), _reference(make_kernel(), x))


def _bad(forward, match: str, latents: int = 3) -> None:
    start = r"forward must return a gpytorch MultivariateNormal over the 12 input rows, shared by all \d latent"
    with pytest.raises(InputError, match=f"(?s){start}.*{match}"):
        Prior.from_forward(forward, (make_inputs(12, COLUMNS),), latents)


def test_prior_of_the_wrong_type():
    kernel, mean = make_kernel().double(), ZeroMean()
    _bad(lambda x: mean(x), r"Got Tensor\. Return MultivariateNormal\(mean, covariance\)")
    _bad(lambda x: (mean(x), kernel(x)), r"Got tuple\.")
    _bad(lambda x: None, r"Got NoneType\.")
    _bad(lambda x: MultivariateNormal(mean(x), kernel(x).add_jitter(1e-3)), r"latent noise is not a kernel")


def test_a_covariance_that_is_no_sum_of_kernels_is_known_at_its_rows():
    kernel, mean, x = make_kernel().double(), ZeroMean(), make_inputs(12, COLUMNS)
    expected = kernel(x).to_dense()
    for covariance in (lambda x: kernel(x).to_dense(), lambda x: kernel(x) * kernel(x)):
        prior = Prior.from_forward(lambda x, made=covariance: MultivariateNormal(mean(x), made(x)), (x,), 3)
        wanted = expected if torch.is_tensor(covariance(x)) else expected.square()
        assert_close(make_operator(prior.kernel, prior.features).dense()[0], wanted)
        part = prior.take(torch.tensor([7, 2, 5]))
        assert_close(make_operator(part.kernel, part.features).dense()[0], wanted[[7, 2, 5]][:, [7, 2, 5]])


def test_prior_of_the_wrong_shape():
    kernel, five = make_kernel().double(), torch.Size([5])
    _bad(
        lambda x: MultivariateNormal(ZeroMean()(x[:7]), kernel(x[:7])),
        r"Got a mean of shape \(7,\)\. Check that mean_module and covar_module use batch_shape",
    )
    _bad(lambda x: MultivariateNormal(ConstantMean(batch_shape=five)(x), kernel(x)), r"Got a mean of shape \(5, 12\)")
    _bad(
        lambda x: MultivariateNormal(ZeroMean()(x), make_batch_kernel(5).double()(x)),
        r"Got a (mean|covariance) of shape \(5, 12",
    )
    _bad(lambda x: MultivariateNormal(ZeroMean()(x), make_batch_kernel(3).double()(x)), r"of shape \(3, 12", latents=1)


def test_prior_of_other_outputs_than_the_likelihoods():
    x, mean = make_inputs(12, COLUMNS), MultitaskMean(ConstantMean(), num_tasks=2)
    kernel = MultitaskKernel(make_kernel(), num_tasks=2).double()

    def forward(x, **options):
        return MultitaskMultivariateNormal(mean(x).double(), kernel(x), **options)

    with pytest.raises(InputError, match=r"and the 3 latent function\(s\).*Got a mean of shape \(12, 2\)"):
        Prior.from_forward(forward, (x,), 3)
    with pytest.raises(InputError, match=r"Got one whose outputs are coupled and not interleaved"):
        Prior.from_forward(lambda x: forward(x, interleaved=False), (x,), 2)


# ------------------------------------------------------------------- the grid
def test_the_grid_covers_both_routes():
    x = make_inputs(5, COLUMNS)
    routes = {name: _make(name, "blocked", x).form is not None for name in set(KERNELS) - NEEDS_PYKEOPS}
    assert routes["scaled twice"]
    assert routes["active dims"]
    assert routes["batch nested"]
    assert routes["sum of forms"]
    assert routes["product of forms"]
    assert routes["batch sum of forms"]
    assert not routes["laplacian and another"]
    assert not routes["subclass"]
    assert not routes["linear"]
    assert len(DTYPES) == 2


# ------------------------------------------------------------------ fused products of radial kernels
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kernels", [1, 2])
@pytest.mark.parametrize("smoothness", [0.5, 1.5, 2.5, math.inf])
def test_radial_products_and_their_derivatives(smoothness, kernels, symmetric, monkeypatch):
    """Against the dense formula, with blocks so small that every kind of block occurs."""
    monkeypatch.setattr(tiles, "_SIDE", 4)
    monkeypatch.setattr(tiles, "_SMALLEST_SIDE", 2)
    rows = make_inputs(14 if symmetric else 9, seed=1).expand(kernels, -1, -1).clone().requires_grad_(True)
    cols = rows if symmetric else make_inputs(14).expand(kernels, -1, -1).clone().requires_grad_(True)
    scale = torch.linspace(0.5, 2.0, kernels, dtype=torch.float64).requires_grad_(True)
    block = make_inputs(14 * kernels, 3, seed=2).view(kernels, 14, 3).requires_grad_(True)
    product = radial_product(rows, cols, scale, block, smoothness, symmetric=symmetric)
    apart = (rows.unsqueeze(2) - cols.unsqueeze(1)).square().sum(-1)
    distance = torch.where(apart > 0, apart.clamp_min(1e-300).sqrt(), apart)
    profile = {
        0.5: torch.exp(-distance),
        1.5: (1 + distance) * torch.exp(-distance),
        2.5: (1 + distance + distance.square() / 3) * torch.exp(-distance),
        math.inf: torch.exp(-apart),
    }[smoothness]
    expected = scale[:, None, None] * profile @ block
    assert_close(product, expected)
    probe = make_inputs(product.numel(), 1, seed=3).view_as(product)
    wanted = torch.autograd.grad((expected * probe).sum(), [rows, cols, scale, block][symmetric:])
    got = torch.autograd.grad((product * probe).sum(), [rows, cols, scale, block][symmetric:])
    for actual, oracle in zip(got, wanted, strict=True):
        assert_close(actual, oracle)


def test_differentiable_products_of_far_inputs_keep_their_digits():
    """Inputs thousands of lengthscales apart, in float32: distances of neighbours must not cancel."""
    near = make_inputs(30, dtype=torch.float64)
    x = torch.cat([near, near + 3000.0])
    kernel = make_kernel(lengthscale=0.5)
    block = make_inputs(60, 2, seed=1)
    results = {}
    for dtype in (torch.float32, torch.float64):
        kernel = kernel.to(dtype)
        operator = make_operator(kernel, x.to(dtype), kind="blocked")
        product = operator.matmul(block.to(dtype))
        (slope,) = torch.autograd.grad(product.square().sum(), kernel.base_kernel.raw_lengthscale)
        results[dtype] = product.detach(), slope
    # float32 inputs near 3,000 are themselves rounded to 1e-4
    assert_close(results[torch.float32][0], results[torch.float64][0], "derivative")
    assert_close(results[torch.float32][1], results[torch.float64][1], "derivative")
