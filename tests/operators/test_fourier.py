"""Products by a lattice of frequencies: those of the dense matrix within bounds that are known, and what follows from these."""

from __future__ import annotations

import math

import pytest
import torch
from gpytorch.kernels import MaternKernel, PeriodicKernel, RBFKernel, ScaleKernel
from helpers import DTYPES, assert_close

from itergp.errors import InputError
from itergp.kernels import LaplacianKernel
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood, PoissonLikelihood
from itergp.models import GP
from itergp.operators import BlockedOperator, FourierOperator, make_operator
from itergp.operators.fourier_form import as_fourier_form
from itergp.operators.radial import evaluate_kernel
from itergp.solvers import DenseNewton, SubspaceNewton
from itergp.solvers.policies import ClassGradient

ROWS = 200


def _kernel(nu: float, lengthscale: float | list[float] = 0.7, scale: float = 2.0, batch: int = 0, **options):
    shape = torch.Size([batch] if batch else [])
    size = len(lengthscale) if isinstance(lengthscale, list) else None
    options = {"ard_num_dims": size, "batch_shape": shape, **options}
    kernel = RBFKernel(**options) if nu == math.inf else MaternKernel(nu=nu, **options)
    factors = torch.arange(1.0, max(1, batch) + 1)
    kernel.lengthscale = torch.as_tensor(lengthscale) * factors.view(*shape, 1, 1)
    scaled = ScaleKernel(kernel, batch_shape=shape)
    scaled.outputscale = scale * factors.view(shape)
    return scaled.double().requires_grad_(False)


def _cloud(kind: str, dim: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, dim, generator=generator).double()
    if kind == "clusters":
        x = 3.0 * x[torch.randint(5, (ROWS,), generator=generator)] + 0.003 * x
    if kind == "repeated":
        x = x[torch.randint(20, (ROWS,), generator=generator)]
    if kind == "line":
        x = x[:, :1] * torch.tensor([1.0, 0.5, 0.0]).double()[:dim]
    if kind == "uniform":
        x = 4.0 * torch.rand(ROWS, dim, generator=generator).double()
    return x


def _errors(operator, kernel, x, num_kernels=1):
    """Entries that products are of, and how far they are from those of the kernel."""
    with torch.no_grad():
        found = operator.matmul(torch.eye(x.shape[-2], dtype=x.dtype)).double()
        return found, found - evaluate_kernel(kernel, x.double(), x.double(), num_kernels)


# ---------------------------------------------------------------------- bounds
@pytest.mark.parametrize("kind", ["normal", "clusters", "repeated", "line", "uniform"])
@pytest.mark.parametrize("nu", [1.5, 2.5, math.inf])
@pytest.mark.parametrize(("dim", "tolerance"), [(1, 1e-6), (2, 1e-2), (2, 1e-4), (3, 1e-2)])
def test_errors_are_within_their_bounds(dim, tolerance, nu, kind):
    x, kernel = _cloud(kind, dim), _kernel(nu, 0.7 if dim < 3 else 1.5)
    operator = FourierOperator(kernel, x, tolerance=tolerance)
    found, error = _errors(operator, kernel, x)
    assert float(error.abs().max()) <= float(operator.entry_error) <= 2.0 * 1.5 * tolerance
    spectral = float(torch.linalg.matrix_norm(error, 2))
    assert spectral <= float(operator.product_error) <= ROWS * float(operator.entry_error)
    assert float(torch.linalg.eigvalsh(found[0])[0]) >= -1e-12 * ROWS
    assert_close(found, found.mT)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bound_says_something(dtype):
    """Of rows that are spread out: far less than the sum of all entries' errors, as that of the grid would be."""
    x, kernel = _cloud("uniform", 2).to(dtype), _kernel(1.5, 0.3)
    operator = FourierOperator(kernel.to(dtype), x, tolerance=1e-4)
    _, error = _errors(operator, _kernel(1.5, 0.3), x)
    assert float(error.abs().max()) > 0.3 * float(operator.entry_error)  # neither is the first one loose
    assert float(operator.product_error) < 0.3 * ROWS * float(operator.entry_error)


# -------------------------------------------------------------------- products
KERNELS = {
    "ard": lambda: _kernel(2.5, [0.5, 1.5]),
    "sum": lambda: _kernel(1.5, 1.0) + _kernel(math.inf, 0.5, 0.3) + ScaleKernel(_kernel(2.5, [0.4, 2.0])).double(),
    "columns": lambda: _kernel(2.5, 0.6, active_dims=[1]),
    "other order": lambda: _kernel(2.5, [0.6, 1.2], active_dims=[1, 0]),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_products_equal_dense_ones(name, dtype):
    x, kernel = _cloud("normal", 2).to(dtype), KERNELS[name]().requires_grad_(False)
    operator = make_operator(kernel.to(dtype), x, kind="fourier")
    assert isinstance(operator, FourierOperator)
    _, error = _errors(operator, KERNELS[name]().requires_grad_(False), x)
    assert float(error.abs().max()) <= float(operator.entry_error) + 20.0 * torch.finfo(dtype).eps
    assert (operator.counts.passes, operator.counts.entries) == (1, 0)


@pytest.mark.parametrize("own_inputs", [False, True])
def test_kernels_of_every_latent_function(own_inputs):
    x = torch.stack([_cloud("normal", 2), _cloud("uniform", 2)]) if own_inputs else _cloud("normal", 2)
    kernel = _kernel(2.5, 0.5, batch=2)
    operator = make_operator(kernel, x, num_kernels=2, kind="fourier")
    entries = evaluate_kernel(kernel, x, x, 2)
    for block in (torch.randn(ROWS, 3).double(), torch.randn(2, ROWS, 11).double()):
        with torch.no_grad():
            error = (operator.matmul(block) - entries @ block).norm(dim=1).amax(-1)
        assert bool((error <= operator.product_error * block.norm(dim=-2).max()).all())
    with torch.no_grad():
        new = x[..., :90, :] + 0.01
        block = torch.randn(ROWS, 1).double()
        assert_close(operator.cross_matmul(new, block), evaluate_kernel(kernel, new, x, 2) @ block, "posterior")


def test_new_inputs_within_the_box_and_beyond_it(monkeypatch):
    x, kernel = _cloud("uniform", 2), _kernel(1.5, 0.3)
    operator = make_operator(kernel, x, kind="fourier")
    new = torch.cat([_cloud("uniform", 2, seed=1), torch.tensor([[-0.4, 2.0], [2.0, 100.0], [4.3, 4.3]]).double()])
    monkeypatch.setattr("itergp.operators.fourier._SECONDS_EVALUATED", 1.0)  # the grid, however small the product
    block = torch.randn(ROWS, 9).double()
    with torch.no_grad():
        found, expected = operator.cross_matmul(new, block), evaluate_kernel(kernel, new, x, 1) @ block
    assert_close(found[:, -3:], expected[:, -3:])
    error = (found - expected).abs().amax(1)
    assert bool((error <= operator.entry_error * block.abs().sum(0)).all())
    assert float(error.max()) > 0.0


def test_derivatives_are_those_of_entries():
    x = _cloud("normal", 2).requires_grad_()
    gradients = []
    for kind in ("fourier", "blocked"):
        kernel, block = _kernel(1.5).requires_grad_(True), torch.ones(ROWS, 2).double()
        product = make_operator(kernel, x, kind=kind).matmul(block)
        wanted = [x, *kernel.parameters()]
        gradients.append(torch.autograd.grad(product.sin().sum(), wanted))
    for found, expected in zip(*gradients, strict=True):
        assert_close(found, expected)


# ----------------------------------------------------------------- recognition
def test_what_is_refused():
    x = _cloud("normal", 2)
    refused = {
        "rough": _kernel(0.5),
        "laplacian": LaplacianKernel(),
        "other columns": _kernel(1.5, active_dims=[0]) + _kernel(1.5),
        "product": _kernel(1.5) * _kernel(2.5),
        "periodic": PeriodicKernel(),
    }
    for kernel in refused.values():
        assert as_fourier_form(kernel, 1, 2) is None
        with pytest.raises(InputError, match="same one to three input columns"):
            make_operator(kernel.double(), x, kind="fourier")
    assert as_fourier_form(_kernel(1.5), 1, 4) is None
    assert as_fourier_form(_kernel(1.5, active_dims=[0, 1, 3]), 1, 4) is not None


def test_what_is_not_finite_is_refused():
    x, kernel = _cloud("normal", 2), _kernel(1.5)
    kernel.base_kernel.raw_lengthscale.data.fill_(math.nan)
    missing = torch.where(torch.arange(2 * ROWS).view(ROWS, 2) == 5, math.nan, x)
    for own, inputs in ((kernel, x), (_kernel(1.5), missing)):
        with pytest.raises(InputError, match="finite inputs and lengthscales"):
            make_operator(own, inputs, kind="fourier")
        assert FourierOperator.where_it_pays(own, inputs.repeat(30, 1), 1, 2**30, 1.0) is None


def test_a_plan_says_what_it_takes():
    x = torch.rand(20_000, 2)
    model = GP(x, (x[:, 0] > x[:, 1]).long(), BernoulliLikelihood(), kernel=_kernel(1.5, 0.1).float()).eval()
    plan = model.plan()
    assert (plan.operator, plan.entries) == ("FourierOperator", 0)
    assert plan.memory["windows and grids"] == model.make_operator(model.prior_at(), model.observations).held_memory
    assert 0.0 < plan.seconds < 600.0


def test_it_is_chosen_where_its_grid_is_small():
    x = torch.rand(30_000, 2)
    for kernel, budget, kind in (
        (_kernel(1.5, 0.1).float(), 2**30, FourierOperator),
        (_kernel(1.5, 0.1).float(), 2**24, BlockedOperator),  # its windows do not fit
        (_kernel(1.5, 1e-4).float(), 2**30, BlockedOperator),  # ten thousand lengthscales across
        (_kernel(1.5, 1e-30).float(), 2**30, BlockedOperator),
        (_kernel(0.5, 0.1).float(), 2**30, BlockedOperator),
    ):
        assert type(make_operator(kernel, x, memory_budget=budget, curvature=0.25)) is kind
        assert type(make_operator(kernel, x, memory_budget=budget)) is not FourierOperator  # rows could say anything


# -------------------------------------------------------------- preconditioner
def _curvature(latents: int) -> torch.Tensor:
    logits = torch.randn(ROWS, latents, generator=torch.Generator().manual_seed(3)).double()
    probs = logits.softmax(-1)
    if latents == 1:
        return 5.0 + logits.unsqueeze(-1).abs()
    return torch.diag_embed(probs) - probs.unsqueeze(-1) * probs.unsqueeze(-2)


@pytest.mark.parametrize("kind", ["uniform", "line", "clusters"])
@pytest.mark.parametrize("latents", [1, 3])
@pytest.mark.parametrize("nu", [1.5, math.inf])
def test_the_preconditioner_solves_systems(nu, latents, kind):
    x, curvature = _cloud(kind, 2), _curvature(latents)
    kernel = _kernel(nu, 1.0, batch=latents if latents > 1 else 0)
    operator = make_operator(kernel, x, num_kernels=latents, kind="fourier")
    known = operator.preconditioner(curvature)
    gradient = torch.randn(ROWS, latents, generator=torch.Generator().manual_seed(4)).double()
    matrix = torch.block_diag(*evaluate_kernel(kernel, x, x, latents))
    weights = torch.zeros(latents, ROWS, latents, ROWS).double()
    weights.diagonal(dim1=1, dim2=3).copy_(curvature.permute(1, 2, 0))
    weights = weights.view(latents * ROWS, -1)
    system = torch.eye(latents * ROWS).double() + weights @ matrix
    expected = torch.linalg.solve(system, gradient.mT.reshape(-1))
    found = known.solve(gradient).mT.reshape(-1)
    error = matrix @ (found - expected)
    assert float(error.norm()) < 0.2 * float((matrix @ expected).norm())
    if latents == 1:  # directions hold what the data say most about
        directions = known.directions(10)[:, 0]
        root = torch.linalg.cholesky(matrix + 1e-9 * torch.eye(ROWS))
        information = torch.linalg.eigvalsh(root.mT @ weights @ root).flip(0)
        actions = torch.linalg.qr(torch.linalg.solve(root, directions)).Q
        held = torch.linalg.eigvalsh(actions.mT @ root.mT @ weights @ root @ actions).flip(0)
        assert float(held.sum()) > 0.9 * float(information[:10].sum())


@pytest.mark.parametrize("latents", [1, 3])
def test_the_log_determinant_is_estimated(latents, monkeypatch):
    x, curvature = _cloud("uniform", 2), _curvature(latents)
    kernel = _kernel(1.5, 0.5, batch=latents if latents > 1 else 0)
    operator = make_operator(kernel, x, num_kernels=latents, kind="fourier")
    root = torch.linalg.cholesky(curvature + 1e-10 * torch.eye(latents).double())
    total = torch.zeros(ROWS, latents, ROWS, latents).double()
    for c, matrix in enumerate(evaluate_kernel(kernel, x, x, latents)):
        total += torch.einsum("na,nm,mb->namb", root[:, c], matrix, root[:, c])
    expected = torch.linalg.slogdet(torch.eye(ROWS * latents).double() + total.view(ROWS * latents, -1)).logabsdet
    assert operator.log_determinant(curvature) is None  # actions know it
    monkeypatch.setattr(FourierOperator, "actions_pay", False)
    found = operator.log_determinant(curvature)
    assert abs(found - float(expected)) < 0.07 * float(expected)


# ------------------------------------------------------------------------ modes
def _problem(likelihood, rows: int = 1_200):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(rows, 2, generator=generator).double()
    f = torch.sin(6.0 * x[:, 0]) + torch.cos(9.0 * x[:, 1])
    if isinstance(likelihood, PoissonLikelihood):
        return x, torch.poisson(f.exp(), generator=generator)
    y = (torch.rand(rows, generator=generator).double() < torch.sigmoid(2.0 * f)).long()
    return x, y + (x[:, 0] > 0.8) if isinstance(likelihood, CategoricalLikelihood) else y


def _condition(likelihood, operator, **options):
    x, y = _problem(likelihood)
    kernel = _kernel(1.5, 0.2, 3.0)
    model = GP(x, y, likelihood, kernel=kernel, approximation="laplace", operator=operator, **options).double().eval()
    return model, model.condition()


@pytest.mark.parametrize("likelihood", [BernoulliLikelihood(), PoissonLikelihood(), CategoricalLikelihood(3)], ids=repr)
def test_the_mode_takes_few_passes_and_its_certificate_holds(likelihood):
    solver = SubspaceNewton(tolerance=1e-6, covariance_rank=0)
    model, solution = _condition(likelihood, "fourier", solver=solver)
    _, reference = _condition(likelihood, "dense", solver=DenseNewton(covariance=False))
    assert solution.kernel_passes <= 8
    error = (solution.latent_values - reference.latent_values).abs()
    bound = solution.certificate.latent_error(model.train_inputs[0])
    assert bool((error <= bound).all())
    assert solution.certificate.objective_gap <= 1e-4 * len(error)


class _Coarse(FourierOperator):
    """With errors that are seen."""

    def __init__(self, kernel, inputs, **options):
        super().__init__(kernel, inputs, tolerance=5e-2, **options)


def test_errors_of_products_are_part_of_the_certificate():
    likelihood = BernoulliLikelihood()
    _, solution = _condition(likelihood, _Coarse, solver=SubspaceNewton(tolerance=1e-9, covariance_rank=0))
    _, reference = _condition(likelihood, "dense", solver=DenseNewton(covariance=False))
    x, _ = _problem(likelihood)
    matrix = evaluate_kernel(_kernel(1.5, 0.2, 3.0), x, x, 1)[0]
    difference = (solution.representer_weights - reference.representer_weights)[:, 0]
    squared = float(difference @ matrix @ difference)  # of the function that predictions are made with
    without = solution.trace[-1].objective_gap
    assert 2.0 * without < squared <= solution.certificate.norm_squared
    assert bool(((matrix @ difference).abs() <= solution.certificate.latent_error(x)[:, 0]).all())


def test_a_preconditioner_saves_passes():
    passes = []
    for policy in (None, ClassGradient()):
        solver = SubspaceNewton(tolerance=1e-5, covariance_rank=0, policy=policy)
        passes.append(_condition(BernoulliLikelihood(), "fourier", solver=solver)[1].kernel_passes)
    assert 3 * passes[0] < passes[1]


@pytest.mark.parametrize("approximation", ["laplace", "variational"])
def test_posteriors_equal_those_of_the_dense_matrix(approximation):
    x, y = _problem(BernoulliLikelihood())
    found = []
    for operator in ("fourier", "dense"):
        solver = SubspaceNewton(tolerance=1e-7, covariance_rank=120, num_neighbours=8)
        options = {"kernel": _kernel(1.5, 0.2, 3.0), "approximation": approximation, "operator": operator}
        model = GP(x, y, BernoulliLikelihood(), solver=solver, **options).double().eval()
        with torch.no_grad():
            latent = model(torch.cat([x[:50] + 0.01, 5.0 + x[:3]]))
        found.append((latent.mean.flatten(), latent.variance.flatten()))
    assert_close(found[0][0], found[1][0], "posterior", dtype=torch.float32)
    ratio = found[0][1] / found[1][1]  # of other directions
    assert float(ratio.min()) > 0.9
    assert float(ratio.max()) < 1.1


@torch.no_grad()
def test_rows_that_say_much_are_multiplied_exactly():
    """Counts of three thousand make errors of 5e-6 large: the mode was nine deviations off, and 0.4 nats per row below."""
    x = torch.rand(6000, 2, dtype=torch.float64)
    y = torch.poisson((8.0 + torch.sin(6.0 * x[:, 0])).exp())
    counts = GP(x, y, PoissonLikelihood(), kernel=_kernel(2.5, 0.3)).double().eval()
    labels = GP(x, (y > y.mean()).long(), BernoulliLikelihood(), kernel=_kernel(2.5, 0.3)).double().eval()
    weighty = GP(
        x,
        (y > y.mean()).long(),
        BernoulliLikelihood(),
        kernel=_kernel(2.5, 0.3),
        sample_weight=1000.0 * torch.ones(6000),
    )
    for model, kind in ((counts, False), (labels, True), (weighty.double().eval(), False)):
        operator = model.make_operator(model.prior_at(), model.observations)
        assert isinstance(operator, FourierOperator) is kind


@torch.no_grad()
def test_a_certificate_beyond_the_tolerance_is_no_convergence():
    x = torch.rand(1500, 2, dtype=torch.float64)
    y = torch.poisson((4.0 + torch.sin(6.0 * x[:, 0])).exp())
    kernel = _kernel(math.inf, 0.3)
    model = GP(x, y, PoissonLikelihood(), kernel=kernel, operator="fourier").double().eval()
    model.mean_module.constant.data.fill_(4.0)
    solution = model.condition()
    assert solution.certificate.objective_gap > 1e-4 * 1500
    assert not solution.status.converged
    assert "blocked" in str(solution.status)
