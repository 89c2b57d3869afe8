"""Products by scans: those of the dense matrix, with its derivatives, at a cost that grows with the rows."""

from __future__ import annotations

import copy
import time
import warnings

import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import AdditiveStructureKernel, MaternKernel, PeriodicKernel, RBFKernel, ScaleKernel
from gpytorch.means import ZeroMean
from helpers import DTYPES, assert_close, by_threads

from itergp.errors import InputError
from itergp.kernels import AdditiveLaplacianKernel, LaplacianKernel, PairwiseLaplacianKernel
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood
from itergp.models import GP, NonConjugateGP
from itergp.objectives import ComputationAwareELBO, PredictiveLogDensity
from itergp.operators import DenseOperator, Prior, ScanOperator, make_operator
from itergp.operators.radial import evaluate_kernel
from itergp.operators.scan_form import as_scan_form
from itergp.operators.scan_product import Lines, scan_product
from itergp.operators.scans import ExponentialPolynomial, Scan, SortedColumn, chunked
from itergp.solvers import DenseNewton, LinearTimeNewton, SubspaceNewton

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # AdditiveStructureKernel

COLUMNS = 3


def _matern(nu: float, column: int, lengthscale: float, *, scale: float | None = None, batch: int = 0):
    shape = torch.Size([batch] if batch else [])
    kernel = MaternKernel(nu=nu, active_dims=[column], batch_shape=shape)
    kernel.lengthscale = lengthscale * torch.arange(1.0, max(1, batch) + 1).view(*shape, 1, 1)
    if scale is None:
        return kernel
    scaled = ScaleKernel(kernel, batch_shape=shape)
    scaled.outputscale = scale * torch.arange(1.0, max(1, batch) + 1).view(shape)
    return scaled


def _laplacian(columns: int = COLUMNS, batch: int = 0):
    shape = torch.Size([batch] if batch else [])
    kernel = AdditiveLaplacianKernel(columns, batch_shape=shape)
    kernel.lengthscale = 0.3 + torch.arange(1.0, columns + 1) * torch.ones(*shape, 1, columns)
    kernel.raw_weights.data = torch.arange(float(columns)).expand(*shape, columns).clone()
    return ScaleKernel(kernel, batch_shape=shape)


def _pairs(batch: int = 0):
    """Of a column with ties, as the first and as the second of a pair."""
    shape = torch.Size([batch] if batch else [])
    kernel = PairwiseLaplacianKernel([(0, 1), (1, 2)], batch_shape=shape)
    kernel.lengthscale = 0.3 + torch.arange(1.0, 5.0) * torch.ones(*shape, 1, 4)
    kernel.raw_weights.data = torch.arange(2.0).expand(*shape, 2).clone()
    return ScaleKernel(kernel, batch_shape=shape)


def _structure():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return AdditiveStructureKernel(ScaleKernel(MaternKernel(nu=1.5)), COLUMNS)


KERNELS = {
    "one": lambda: _matern(0.5, 0, 0.7),
    "every smoothness": lambda: (
        _matern(0.5, 0, 0.4, scale=2.0) + _matern(1.5, 1, 0.7, scale=0.5) + _matern(2.5, 2, 1.5, scale=1.2)
    ),
    "twice the same column": lambda: ScaleKernel(_matern(0.5, 1, 0.2, scale=2.0) + _matern(2.5, 1, 2.0)),
    "additive laplacian": _laplacian,
    "laplacian": lambda: LaplacianKernel(active_dims=[2]) + _matern(1.5, 0, 1.0),
    "structure": _structure,
    "pairs": lambda: _pairs(),
    "pairs and columns": lambda: _pairs() + _laplacian() + _matern(2.5, 0, 0.7),
}
BATCHES = {
    "batch": lambda: _matern(0.5, 0, 0.4, scale=2.0, batch=2) + _matern(2.5, 2, 0.7, scale=0.5, batch=2),
    "batch laplacian": lambda: _laplacian(batch=2),
    "batch pairs": lambda: _pairs(batch=2) + _laplacian(batch=2),
}


def _inputs(rows: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    """With ties in the second column, and equal rows."""
    inputs = torch.randn(rows, COLUMNS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inputs[:, 1] = (2.0 * inputs[:, 1]).round()
    inputs[rows // 2 : rows // 2 + 3] = inputs[:1]
    return inputs.to(dtype)


def _near(ours, reference, tolerance: float):
    torch.testing.assert_close(ours, reference, rtol=0.0, atol=tolerance * float(reference.abs().max()))


def _scan(kernel, x, num_kernels=1):
    return make_operator(kernel.to(x.dtype), x, num_kernels=num_kernels, kind="scan")


def _entries(kernel, x, others, num_kernels=1):
    """By GPyTorch, in float64, from exact distances."""
    with torch.no_grad():
        return evaluate_kernel(copy.deepcopy(kernel).double(), x.double(), others.double(), num_kernels)


# ------------------------------------------------------------------- products
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 32, 33, 1_100])
@pytest.mark.parametrize("name", KERNELS)
def test_products_equal_dense_ones(name, rows, dtype):
    x = _inputs(rows, dtype)
    kernel = KERNELS[name]()
    scan, entries = _scan(kernel, x), _entries(kernel, x, x)
    assert isinstance(scan, ScanOperator)
    for columns in (1, 5):
        block = torch.randn(rows, columns, dtype=dtype)
        with torch.no_grad():
            assert_close(scan.matmul(block), entries @ block.double())
    assert (scan.counts.passes, scan.counts.columns, scan.counts.entries) == (2, 6, 0)
    assert_close(scan.diagonal(), entries.diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize("own_inputs", [False, True])
@pytest.mark.parametrize("name", BATCHES)
def test_kernels_of_every_latent_function(name, own_inputs):
    x = torch.stack([_inputs(150), _inputs(150, seed=1)]) if own_inputs else _inputs(150)
    kernel, new = BATCHES[name](), x[..., :40, :] + 0.1
    scan = _scan(kernel, x, 2)
    entries, across = (_entries(kernel, rows, x, 2) for rows in (x, new))
    for block in (torch.randn(150, 2).double(), torch.randn(2, 150, 2).double()):
        with torch.no_grad():
            assert_close(scan.matmul(block), entries @ block)
            assert_close(scan.cross_matmul(new, block), across @ block)
    assert_close(scan.diagonal(), entries.diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_products_across_to_new_inputs(name, dtype):
    """Between training inputs, at them, beyond them, and so few that entries are evaluated."""
    x = _inputs(300, dtype)
    kernel = KERNELS[name]()
    scan = _scan(kernel, x)
    beyond = torch.tensor([[-60.0], [60.0]], dtype=dtype).expand(2, COLUMNS)
    new, block = torch.cat([_inputs(40, dtype, seed=1), x[:5], beyond]), torch.randn(300, 2, dtype=dtype)
    with torch.no_grad():
        for part in (new, new[:3]):
            assert_close(scan.cross_matmul(part, block), _entries(kernel, part, x) @ block.double())


def test_columns_of_chosen_rows():
    x, kernel = _inputs(200), KERNELS["every smoothness"]()
    scan, entries = _scan(kernel, x), _entries(kernel, x, x)
    rows, found = torch.tensor([3, 100, 199]), torch.zeros(200, 3).double()

    def write(i, block):
        found[i] = block[0]

    scan.with_columns(rows, write)
    assert_close(found, entries[0][:, rows], "derivative")  # by distances from products, as all blocks
    assert_close(scan.entries(rows, rows), entries[:, rows][:, :, rows], "derivative")
    assert_close(scan.dense(), entries, "derivative")


@pytest.mark.parametrize("lengthscale", [1e-30, 1e-3, 1e3])
@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5])
def test_lengthscales_far_from_those_of_the_data(nu, lengthscale):
    x = 1e4 + _inputs(500, torch.float32)
    block, single = torch.randn(500, 2), _scan(_matern(nu, 0, lengthscale), x)
    scan = _scan(_matern(nu, 0, lengthscale), x.double())
    expected = _entries(_matern(nu, 0, lengthscale), x, x) @ block.double()
    with torch.no_grad():
        _near(scan.matmul(block.double()), expected, 1e-7)
        _near(single.matmul(block).double(), expected, 2e-6)


@pytest.mark.parametrize("nu", [0.5, 2.5])
@pytest.mark.parametrize("rate", [1e-2, 1.0, 1e3])
def test_rounding_does_not_grow_with_the_rows(nu, rate):
    """Relative to float64, in float32, for vectors that cancel and vectors that add up."""
    profile, rates = ExponentialPolynomial.matern(nu), torch.tensor([rate])
    for rows in (1_000, 300_000):
        x = torch.randn(rows, generator=torch.Generator().manual_seed(0))
        block = torch.randn(2, rows, generator=torch.Generator().manual_seed(1))
        block[1] = block[1].abs()
        products = []
        for dtype in (torch.float32, torch.float64):
            column = SortedColumn(x.to(dtype))
            scan = Scan.of([column], rates, profile.degree)
            vectors = chunked([column], [block.to(dtype)])
            products.append(column.restored(scan.products(vectors, [profile])[0][0]).double())
        error = (products[0] - products[1]).norm(dim=1) / products[1].norm(dim=1)
        assert error.max() < 1e-6


def test_the_answer_does_not_depend_on_the_number_of_threads():
    x, kernel = _inputs(60_000, torch.float32), KERNELS["every smoothness"]().float()

    def products() -> list[torch.Tensor]:
        return [make_operator(kernel, x, kind="scan").matmul(torch.ones(60_000, k)) for k in (1, 12, 40)]

    for one, two in zip(*by_threads(products), strict=True):
        assert torch.equal(one, two)


@pytest.mark.slow
def test_time_and_memory_are_linear():
    """Three columns of 200,000 rows take less than a second; entries would be 4e10."""
    operator = make_operator(_laplacian().float(), _inputs(200_000, torch.float32))
    assert isinstance(operator, ScanOperator)
    with torch.no_grad():
        operator.matmul(torch.ones(200_000, 1))
        begun = time.perf_counter()
        operator.matmul(torch.ones(200_000, 3))
    assert time.perf_counter() - begun < 1.0
    assert operator.held_memory < 60 * 200_000 * COLUMNS


# ---------------------------------------------------------------- derivatives
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("name", [*KERNELS, *BATCHES])
def test_derivatives_equal_those_of_dense_autograd(name, across):
    """In hyperparameters, inputs and blocks; ties included."""
    kernels = 2 if name in BATCHES else 1
    kernel = (KERNELS | BATCHES)[name]().double()
    x, z = _inputs(70).requires_grad_(), _inputs(20, seed=1).requires_grad_()
    block = torch.randn(kernels, 70, 2).double().requires_grad_()
    weights = torch.randn(kernels, 20 if across else 70, 2).double()
    scan, blocked = (make_operator(kernel, x, num_kernels=kernels, kind=kind) for kind in ("scan", "blocked"))
    leaves = [*kernel.parameters(), x, block, *([z] if across else [])]
    found = []
    for operator in (scan, blocked):
        product = operator.cross_matmul(z, block) if across else operator.matmul(block)
        found.append(torch.autograd.grad((product * weights).sum(), leaves))
    assert scan.counts.entries == 0
    for ours, reference in zip(*found, strict=True):
        assert_close(ours, reference, "derivative")


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5])
@pytest.mark.parametrize("odd", [False, True])
def test_first_and_second_derivatives_equal_finite_differences(nu, odd):
    profile = ExponentialPolynomial(ExponentialPolynomial.matern(nu).coefficients, odd)
    make = torch.Generator().manual_seed(0)
    rows, cols = (torch.randn(2, n, generator=make).double().requires_grad_() for n in (5, 12))
    rates, block = torch.tensor([0.7, 3.0]).double().requires_grad_(), torch.randn(2, 2, 12, generator=make).double()

    def product(rows, cols, rates, block):
        return scan_product(rows, cols, rates, block, profile, (Lines(rows), Lines(cols)))

    arguments = rows, cols, rates, block.requires_grad_()
    assert torch.autograd.gradcheck(product, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(product, arguments, fast_mode=True)


# ---------------------------------------------------------------- recognition
NOT_ADDITIVE = {
    "two columns": lambda: MaternKernel(nu=0.5, active_dims=[0, 1]),
    "all columns": lambda: MaternKernel(nu=0.5),
    "smooth": lambda: _matern(0.5, 0, 1.0) + RBFKernel(active_dims=[1]),
    "other": lambda: _matern(0.5, 0, 1.0) + PeriodicKernel(active_dims=[1]),
    "product": lambda: _matern(0.5, 0, 1.0) * _matern(0.5, 1, 1.0),
    "columns of another": lambda: LaplacianKernel() + _matern(0.5, 0, 1.0),
    "subclass of pairs": lambda: type("Mine", (PairwiseLaplacianKernel,), {})([(0, 1)]),
    "subclass": lambda: type("Mine", (MaternKernel,), {})(nu=0.5, active_dims=[0]),
}


@pytest.mark.parametrize("name", NOT_ADDITIVE)
def test_other_kernels_are_refused(name):
    kernel = NOT_ADDITIVE[name]()
    assert as_scan_form(kernel, 1, COLUMNS) is None
    with pytest.raises(InputError, match="The scan operator needs a sum of Matern kernels"):
        make_operator(kernel, _inputs(10), kind="scan")
    assert not isinstance(make_operator(kernel, _inputs(5_000)), ScanOperator)


@pytest.mark.parametrize("name", KERNELS)
def test_auto_chooses_scans_of_many_rows(name):
    kernel = KERNELS[name]().double()
    assert type(make_operator(kernel, _inputs(9_000))) is ScanOperator
    assert type(make_operator(kernel, _inputs(500))) is DenseOperator


def test_sums_that_forward_makes():
    """Kernels called apart, with constants, on columns of their own."""
    first, second = _matern(0.5, 0, 0.4, scale=2.0).double(), MaternKernel(nu=1.5).double()

    def forward(x):
        return MultivariateNormal(ZeroMean()(x), 0.5 * first(x) + second(x[:, 1:2]))

    x = _inputs(100)
    prior = Prior.from_forward(forward, (x,), 1)
    operator = make_operator(prior.kernel, prior.features, kind="scan")
    block = torch.randn(100, 2).double()
    with torch.no_grad():
        assert_close(operator.matmul(block)[0], forward(x).covariance_matrix @ block)


# --------------------------------------------------------------------- solves
def _problem(rows: int, latents: int = 1):
    x = _inputs(rows)
    f = torch.sin(3.0 * x[:, 0]) + x[:, 1].abs() - 0.5 * x[:, 2] - 0.5
    y = (f + 0.5 * torch.randn(rows, generator=torch.Generator().manual_seed(2)).double() > 0).long()
    return x, y if latents == 1 else y + (x[:, 0] > 1).long()


SOLVERS = {
    "subspace": lambda: SubspaceNewton(tolerance=1e-9),
    "dense": DenseNewton,
    "linear time": lambda: LinearTimeNewton(num_support=64, polish=SubspaceNewton(tolerance=1e-9)),
}


@pytest.mark.parametrize("approximation", ["laplace", "variational"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solve_equals_that_of_the_dense_operator(solver, approximation):
    x, y = _problem(400)
    found = []
    for kind in ("scan", "dense"):
        model = GP(
            x, y, BernoulliLikelihood(), kernel=KERNELS["every smoothness"](), solver=SOLVERS[solver](),
            approximation=approximation, operator=kind,
        ).double().eval()  # fmt: skip
        solution = model.condition()
        predictive = model.predict(_inputs(30, seed=5))
        gap = None if solution.certificate is None else solution.certificate.objective_gap
        found.append((solution.latent_mean if hasattr(solution, "latent_mean") else solution.latent_values,
                      predictive.probs, gap))  # fmt: skip
    (ours, probs, gap), (reference, expected, _) = found
    _near(ours, reference, 2e-3)
    _near(probs, expected, 1e-3)
    assert gap is None or gap < 400 * 1e-8


def test_kernels_of_every_class_solve():
    x, y = _problem(300, latents=3)
    found = []
    for kind in ("scan", "dense"):

        class Classes(NonConjugateGP):
            def __init__(self, kind=kind):
                super().__init__(x, y, CategoricalLikelihood(3), operator=kind, solver=SubspaceNewton(tolerance=1e-8))
                self.kernel = _laplacian(batch=3)

            def forward(self, x):
                return MultivariateNormal(x.new_zeros(3, x.shape[0]), self.kernel(x))

        model = Classes().double().eval()
        found.append(model.predict(_inputs(20, seed=3)).probs)
    _near(*found, 2e-3)


def test_a_plan_knows_the_cost():
    x, y = _problem(20_000)
    x = x.float()
    model = GP(x, y, BernoulliLikelihood(), kernel=_laplacian(), approximation="laplace").eval()
    plan = model.plan()
    assert plan.operator == "ScanOperator"
    assert plan.passes > 0
    assert plan.entries == 0
    assert plan.memory["sorted inputs"] == ScanOperator(model.covar_module, x).held_memory
    begun = time.perf_counter()
    model.condition()
    assert plan.seconds < 20.0 * (time.perf_counter() - begun)


@pytest.mark.parametrize("objective", [ComputationAwareELBO, PredictiveLogDensity])
def test_objectives_have_the_same_gradients(objective, monkeypatch):
    """Of products by scans and in blocks."""
    x, y = _problem(300)
    found = []
    for least in (0, 1_000):
        monkeypatch.setattr("itergp.operators.choose.LEAST_ROWS_WITHOUT_MATRIX", least)
        model = GP(x, y, BernoulliLikelihood(), kernel=KERNELS["every smoothness"]()).double()
        torch.manual_seed(0)
        value = objective(model.likelihood, model)(model(x), model.train_targets)
        found.append([value, *torch.autograd.grad(value, list(model.covar_module.parameters()))])
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-7)
