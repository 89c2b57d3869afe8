"""The preconditioner of additive kernels: exact where every value has a bin, and passes that fall by a factor where not."""

from __future__ import annotations

import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import MaternKernel, ScaleKernel
from helpers import assert_close

from itergp.kernels import AdditiveLaplacianKernel, PairwiseLaplacianKernel
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood, PoissonLikelihood
from itergp.models import GP, NonConjugateGP
from itergp.operators import DenseOperator, ScanOperator, binned
from itergp.operators.binned import BinnedColumn, BinnedPreconditioner
from itergp.solvers import SubspaceNewton
from itergp.solvers.policies import ClassGradient, PreconditionedGradient, View

COLUMNS = 3


def _matern(nu: float, column: int, lengthscale: float, batch: int = 0):
    shape = torch.Size([batch] if batch else [])
    kernel = MaternKernel(nu=nu, active_dims=[column], batch_shape=shape)
    kernel.lengthscale = lengthscale * torch.arange(1.0, max(1, batch) + 1).view(*shape, 1, 1)
    return ScaleKernel(kernel, batch_shape=shape)


def _laplacian(batch: int = 0, columns: int = COLUMNS):
    shape = torch.Size([batch] if batch else [])
    kernel = AdditiveLaplacianKernel(columns, batch_shape=shape)
    kernel.raw_weights.data = torch.arange(float(columns)).expand(*shape, columns).clone()
    return ScaleKernel(kernel, batch_shape=shape)


def _pairs(batch: int = 0):
    shape = torch.Size([batch] if batch else [])
    return ScaleKernel(PairwiseLaplacianKernel([(0, 1), (2, 0)], batch_shape=shape), batch_shape=shape)


KERNELS = {
    "laplacian": _laplacian,
    "smooth": lambda batch=0: _matern(1.5, 0, 0.8, batch) + _matern(2.5, 2, 0.6, batch),
    "pairs": lambda batch=0: _laplacian(batch) + _pairs(batch),
    "pairs alone": lambda batch=0: _pairs(batch),
    "two of one column": lambda batch=0: _matern(0.5, 1, 0.2, batch) + _matern(2.5, 1, 2.0, batch),
}


def _inputs(rows: int, columns: int = COLUMNS, *, levels: int | None = None, seed: int = 0):
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x if levels is None else (levels * x / 6.0).round() * 6.0 / levels


def _curvature(rows: int, latents: int, seed: int = 1):
    f = 2.0 * torch.randn(rows, latents, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if latents == 1:
        return (torch.sigmoid(f) * torch.sigmoid(-f)).unsqueeze(-1)
    p = f.softmax(-1)
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def _joint(operator: ScanOperator, curvature: torch.Tensor):
    """K and W ``(N C, N C)``, latent functions of a row side by side."""
    latents = curvature.shape[-1]
    matrices = operator.dense().double().expand(latents, -1, -1)
    joint = torch.diag_embed(matrices.permute(1, 2, 0)).permute(0, 2, 1, 3)
    size = curvature.shape[0] * latents
    return joint.reshape(size, size), torch.block_diag(*curvature)


# ------------------------------------------------------------------------ bins
@pytest.mark.parametrize("most", [8, 64])
def test_bins_are_small_and_ties_share_theirs(most):
    x = torch.cat([_inputs(500, 1)[:, 0], torch.full((300,), 0.25).double(), torch.tensor([40.0, 41.0]).double()])
    values, order = x.sort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(x.numel())
    bins = BinnedColumn(values, rank, most)
    assert bins.size <= most
    assert bins.index[500:800].unique().numel() == 1
    assert bins.index[-1] != bins.index[0]  # of two far from the rest
    for number in range(bins.size):
        inside = x[bins.index == number]
        assert inside.unique().numel() == 1 or inside.numel() - 300 * (inside == 0.25).any() <= 2 * x.numel() / most + 1
        assert inside.max() - inside.min() <= 2.0 * (values[-1] - values[0]) / most + 1e-12
    assert_close(bins.centres, bins.sums(x) / bins.sums(torch.ones_like(x)))
    assert_close(bins.at_rows(bins.centres)[500:800], bins.centres[bins.index[500]].expand(300))


def test_few_values_have_bins_of_their_own():
    x = _inputs(300, 1, levels=20)[:, 0]
    values, order = x.sort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(x.numel())
    bins = BinnedColumn(values, rank, 64)
    assert bins.size == x.unique().numel()
    assert_close(bins.at_rows(bins.centres), x)


# --------------------------------------------------------------------- systems
@pytest.mark.parametrize("latents", [1, 3])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_systems_are_solved_where_every_value_has_a_bin(name, latents, own):
    x, curvature = _inputs(150, levels=30), _curvature(150, latents)
    curvature[::7] = 0.0  # rows without a target
    operator = ScanOperator(KERNELS[name](latents if own else 0).double(), x, num_kernels=latents if own else 1)
    gradient = torch.randn(150, latents, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = operator.preconditioner(curvature).solve(gradient)
    kernel, weights = _joint(operator, curvature)
    expected = torch.linalg.solve(torch.eye(len(kernel)).double() + weights @ kernel, gradient.reshape(-1, 1))
    assert_close(found, expected.view_as(found), dtype=torch.float32)


def test_inputs_that_go_together_take_few_steps(monkeypatch):
    monkeypatch.setattr(binned, "_MAX_STEPS", 20)
    x = _inputs(300, 10)
    x = (4.0 * (x[:, :1] + 0.3 * x)).round() / 4.0
    kernel, curvature = _laplacian(columns=10).double(), _curvature(300, 1)
    kernel.outputscale = 25.0
    operator = ScanOperator(kernel, x)
    gradient = torch.randn(300, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = operator.preconditioner(curvature).solve(gradient)
    matrix, weights = _joint(operator, curvature)
    expected = torch.linalg.solve(torch.eye(300).double() + weights @ matrix, gradient)
    error = found - expected
    assert float((error.mT @ matrix @ error) / (expected.mT @ matrix @ expected)) < 1e-3**2


@pytest.mark.parametrize("latents", [1, 3])
@pytest.mark.parametrize("name", KERNELS)
def test_directions_are_those_that_the_data_say_most_about(name, latents):
    """Their information is that of the leading eigenvectors of ``W^{1/2} K W^{1/2}``."""
    x, curvature, rank = _inputs(150, levels=30), _curvature(150, latents), 12
    operator = ScanOperator(KERNELS[name]().double(), x)
    found = operator.preconditioner(curvature).directions(rank)
    kernel, weights = _joint(operator, curvature)
    actions = weights @ found.reshape(-1, rank)
    noise = found.reshape(-1, rank).mT @ actions
    ratios = torch.linalg.eigvals(torch.linalg.solve(noise, actions.mT @ kernel @ actions)).real.sort().values
    values, vectors = torch.linalg.eigh(weights)
    root = vectors * values.clamp_min(0.0).sqrt()
    expected = torch.linalg.eigvalsh(root.mT @ kernel @ root)[-rank:]
    assert found.shape == (150, latents, rank)
    assert_close(ratios, expected, dtype=torch.float32)


def test_another_order_of_rows_is_another_order_of_the_answer():
    x, curvature = _inputs(3_000), _curvature(3_000, 1)
    gradient, order = torch.randn_like(x[:, :1]), torch.randperm(3_000, generator=torch.Generator().manual_seed(0))
    plain = ScanOperator(_laplacian().double(), x).preconditioner(curvature)
    mixed = ScanOperator(_laplacian().double(), x[order]).preconditioner(curvature[order])
    assert_close(mixed.solve(gradient[order]), plain.solve(gradient)[order], dtype=torch.float32)
    assert_close(mixed.directions(5).abs(), plain.directions(5)[order].abs(), dtype=torch.float32)


def test_the_number_of_bins_follows_what_the_data_say():
    operator = ScanOperator(_laplacian(columns=1).double(), _inputs(1_000, 1))
    sizes = [
        operator.preconditioner(scale * _curvature(1_000, 1)).directions(1_000).shape[-1] for scale in (1e-3, 10.0, 1e3)
    ]
    assert sizes[0] <= 64
    assert 2 * sizes[0] < sizes[1] < sizes[2]


def test_a_sample_of_the_rows_stands_for_all():
    """How functions go together is a sum over rows: of a tenth of them it is ten times as much."""
    x, curvature = _inputs(4_000, 3), _curvature(4_000, 1)
    parts = ScanOperator(_laplacian().double(), x).preconditioner(curvature)._parts
    functions = [part.kernel[:, len(part.kernel) // 2].unsqueeze(-1) for part in parts]
    pairs = len(parts) * (len(parts) + 1) // 2
    every, some = (binned._information(parts, functions, curvature, pairs * rows) for rows in (4_000, 400))
    assert 0.8 < float(some.trace() / every.trace()) < 1.25


# ---------------------------------------------------------------------- policy
def _view(operator, curvature, gradient):
    return View(
        gradient=gradient, curvature=curvature, weights=gradient, latent_values=gradient, operator=operator, memory={}
    )


def test_the_gradient_is_left_where_there_is_no_preconditioner_or_no_finite_answer():
    x, curvature = _inputs(80), _curvature(80, 1)
    gradient = torch.randn(80, 1, dtype=torch.float64)
    scan, dense = ScanOperator(_laplacian().double(), x), DenseOperator(_laplacian().double(), x)
    policy = PreconditionedGradient()
    assert policy.propose(_view(scan, curvature, gradient)).shape == (80, 1, 1)
    assert torch.equal(policy.propose(_view(dense, curvature, gradient)), gradient.unsqueeze(-1))
    curvature[3] = float("inf")
    assert torch.equal(policy.propose(_view(scan, curvature, gradient)), gradient.unsqueeze(-1))


# ---------------------------------------------------------------------- solves
def _problem(rows: int, columns: int = 10, seed: int = 0):
    x = _inputs(rows, columns, seed=seed)
    f = sum(torch.sin((1.0 + j / 3.0) * x[:, j]) for j in range(columns))
    generator = torch.Generator().manual_seed(seed + 1)
    return x, f, (torch.rand(rows, generator=generator).double() < torch.sigmoid(f)).long()


def _passes(x, y, likelihood, kernel, **options):
    solver = SubspaceNewton(tolerance=1e-6, covariance_rank=0, **options)
    model = GP(x, y, likelihood, kernel=kernel, solver=solver, approximation="laplace", operator="scan").double().eval()
    solution = model.condition()
    assert solution.certificate.objective_gap <= 1e-6 * len(x)
    return solution


@pytest.mark.parametrize("kind", ["binary", "classes", "counts", "smooth"])
def test_passes_fall_by_a_factor(kind):
    x, f, y = _problem(3_000)
    likelihood, kernel = BernoulliLikelihood(), _laplacian(columns=10)
    if kind == "classes":
        y, likelihood = y + (x[:, 0] > 0.7).long(), CategoricalLikelihood(3)
    if kind == "counts":
        y = torch.poisson(torch.exp(0.3 * f), generator=torch.Generator().manual_seed(5))
        likelihood = PoissonLikelihood()
    if kind == "smooth":
        kernel = _matern(1.5, 0, 0.5)
        for column in range(1, 10):
            kernel = kernel + _matern(2.5 if column % 2 else 1.5, column, 0.5)
    solutions = [_passes(x, y, likelihood, kernel, policy=policy) for policy in (None, ClassGradient())]
    assert float((solutions[0].latent_values - solutions[1].latent_values).abs().max()) < 0.02
    assert 3 * solutions[0].kernel_passes < solutions[1].kernel_passes


def test_correlated_inputs_take_few_passes():
    x, _, y = _problem(3_000)
    x = 0.3 * x + x[:, :1]
    assert _passes(x, y, BernoulliLikelihood(), _laplacian(columns=10)).kernel_passes <= 6


def test_every_pass_moves_the_iterate():
    """However little the gradient says of the direction that is best."""
    x, _, y = _problem(3_000)
    kernel = _laplacian(columns=10)
    kernel.outputscale = 100.0
    solution = _passes(0.02 * x + x[:, :1], y, BernoulliLikelihood(), kernel)
    assert all(record.newton_steps > 0 for record in solution.trace)


def test_a_million_times_the_variance_of_noise_is_no_obstacle_in_single_precision():
    """Products of kernels whose largest eigenvalue is near the inverse of the dtype's resolution."""
    x, _, y = _problem(10_000)
    kernel = _laplacian(columns=10)
    kernel.outputscale = 100.0
    options = {"kernel": kernel, "approximation": "laplace", "operator": "scan"}
    solver = SubspaceNewton(covariance_rank=0)
    solution = GP(x.float(), y, BernoulliLikelihood(), solver=solver, **options).eval().condition()
    assert solution.status.converged
    assert solution.kernel_passes <= 20


@pytest.mark.parametrize("latents", [1, 3])
def test_the_gradient_goes_on_where_the_preconditioner_gives_nothing_new(latents, monkeypatch):
    monkeypatch.setattr(BinnedPreconditioner, "solve", lambda _, gradient: torch.zeros_like(gradient))
    x, _, y = _problem(500)
    likelihood = BernoulliLikelihood() if latents == 1 else CategoricalLikelihood(3)
    y = y if latents == 1 else y + (x[:, 0] > 0.7).long()
    options = {"kernel": _laplacian(columns=10), "approximation": "laplace", "operator": "scan"}
    solver = SubspaceNewton(covariance_rank=0, tolerance=1e-3)
    solution = GP(x, y, likelihood, solver=solver, **options).double().eval().condition()
    assert solution.status.converged


def test_rows_without_targets_and_weights_count_as_they_should():
    x, _, y = _problem(600)
    weights = torch.ones(600, dtype=torch.float64)
    weights[:100], weights[100:200] = 0.0, 2.0
    options = {"kernel": _laplacian(columns=10), "approximation": "laplace", "operator": "scan"}
    solver = SubspaceNewton(tolerance=1e-10)
    ours = GP(x, y, BernoulliLikelihood(), sample_weight=weights, solver=solver, **options).double().eval()
    missing = y.double()
    missing[:100] = float("nan")
    rows = torch.cat([torch.arange(600), torch.arange(100, 200)])
    twice = GP(
        x[rows], missing[rows], BernoulliLikelihood(), missing_targets=True, share_equal_rows=False, solver=solver, **options
    ).double().eval()  # fmt: skip
    inputs = _inputs(20, 10, seed=9)
    assert_close(ours.predict(inputs).probs, twice.predict(inputs).probs, "posterior", dtype=torch.float32)


def test_variances_are_near_the_least_that_so_many_actions_can_give():
    x, _, y = _problem(1_500)
    model = GP(
        x, y, BernoulliLikelihood(), kernel=_laplacian(columns=10), operator="scan", approximation="laplace",
        solver=SubspaceNewton(covariance_rank=64),
    ).double().eval()  # fmt: skip
    found = model.condition()
    root = found.curvature[:, 0, 0].sqrt()
    with torch.no_grad():
        kernel = ScanOperator(model.covar_module, x).dense()[0]
    values, vectors = torch.linalg.eigh(root[:, None] * kernel * root)
    leading = kernel @ (root[:, None] * vectors[:, -64:]) * (1.0 + values[-64:]).rsqrt()
    least = kernel.diagonal() - leading.square().sum(-1)
    ratio = (root.square() * found.latent_covariance[:, 0, 0]).sum() / (root.square() * least).sum()
    assert 0.999 < ratio < 1.01


def test_a_plan_expects_few_directions():
    x, _, y = _problem(20_000)
    options = {"kernel": _laplacian(columns=10), "approximation": "laplace", "operator": "scan"}
    plans = []
    for policy in (None, ClassGradient()):
        model = GP(x, y, BernoulliLikelihood(), solver=SubspaceNewton(policy=policy), **options).double().eval()
        plans.append(model.plan())
    assert plans[0].memory["search space"] < plans[1].memory["search space"]
    assert plans[0].memory["preconditioner"] > 0
    assert "preconditioner" not in plans[1].memory


class Classes(NonConjugateGP):
    """Three classes, each with a kernel of its own."""

    def __init__(self, x, y, **options):
        super().__init__(x, y, CategoricalLikelihood(3), operator="scan", **options)
        self.kernel = _laplacian(batch=3)

    def forward(self, x):
        return MultivariateNormal(x.new_zeros(3, x.shape[0]), self.kernel(x))


def test_inputs_of_every_class_have_bins_of_their_own():
    x = torch.stack([_inputs(200, seed=seed) for seed in range(3)])
    curvature, gradient = _curvature(200, 3), torch.randn(200, 3, dtype=torch.float64)
    operator = ScanOperator(_laplacian(batch=3).double(), x, num_kernels=3)
    diagonal = torch.diag_embed(curvature.diagonal(dim1=-2, dim2=-1))
    found = operator.preconditioner(diagonal).solve(gradient)
    for c in range(3):
        kernel = _laplacian(batch=3).double()
        alone = ScanOperator(kernel, x, num_kernels=3).dense()[c]
        expected = torch.linalg.solve(torch.eye(200).double() + diagonal[:, c, c, None] * alone, gradient[:, c])
        assert (found[:, c] - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("approximation", ["laplace", "variational"])
def test_what_is_resumed_goes_on_to_the_same_bits(approximation, step, tmp_path):
    x, _, y = _problem(400, COLUMNS)

    def make():
        return Classes(x, y + (x[:, 0] > 1).long(), solver=SubspaceNewton(tolerance=1e-8), approximation=approximation)

    class Killed(BaseException):
        """Stands in for the end of a process."""

    seen = []

    def callback(record):
        seen.append(record)
        if len(seen) == step:
            raise Killed("kill -9")

    expected = make().double().eval().condition()
    options = {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 0}
    with pytest.raises(Killed, match=r"^kill -9$"):
        make().double().eval().condition(callback=callback, **options)
    solution = make().double().eval().condition(**options)
    assert torch.equal(solution.representer_weights, expected.representer_weights)
    assert torch.equal(solution.precision.actions, expected.precision.actions)
    assert torch.equal(solution.latent_covariance, expected.latent_covariance)
    assert solution.kernel_passes == expected.kernel_passes
