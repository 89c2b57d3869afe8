"""Solvers, their parts, and how they end."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields, replace

import gpytorch
import pytest
import torch
from gpytorch.kernels import LinearKernel
from helpers import (
    CASES,
    CORE,
    SimpleGP,
    assert_close,
    make_batch_kernel,
    make_binary,
    make_classes,
    make_inputs,
    make_kernel,
    make_model,
)

import itergp
from itergp import InputError
from itergp.diagnostics import TraceRecord
from itergp.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    LaplaceSite,
    Likelihood,
    Observations,
    PoissonLikelihood,
    StudentTLikelihood,
    WeibullLikelihood,
    sampled,
)
from itergp.models import GP
from itergp.models.uncertainty import exact_variance
from itergp.operators import AbstractOperator, KernelCounts, make_operator
from itergp.posterior import dense, precision
from itergp.posterior.natural_gradients import DenseProblem
from itergp.solvers import (
    DenseNewton,
    IterNCGP,
    LinearTimeNewton,
    Problem,
    Reason,
    Solution,
    SubspaceNewton,
    WarmStart,
    few_values,
    solve,
)
from itergp.solvers import dense as dense_newton
from itergp.solvers.iterncgp import newton_iterate
from itergp.solvers.policies import ClassGradient, UnitVectors
from itergp.solvers.policies.block_gradient import cluster_rows
from itergp.solvers.subspace import actions, newton, newton_system, subspace_newton
from itergp.solvers.subspace import newton_matrix as newton_matrix_module
from itergp.solvers.subspace.actions import leading_actions
from itergp.solvers.subspace.directions import shared_directions
from itergp.solvers.subspace.newton_matrix import newton_matrix
from itergp.solvers.subspace.search_space import SearchSpace
from itergp.solvers.subspace.subspace_newton import compression


# -------------------------------------------------------------- Newton systems
def _newton_problem(kernel, scale: float = 30.0, rank: int = 12) -> tuple[SearchSpace, torch.Tensor]:
    """A search space, and curvatures of softmax where one class or another is nearly certain."""
    x, generator = make_inputs(90), torch.Generator().manual_seed(0)
    operator = make_operator(kernel.double(), x, num_kernels=kernel.batch_shape.numel())
    space, _ = SearchSpace.empty(operator).extend(torch.randn(90, rank, generator=generator).double(), operator)
    probs = torch.softmax(3.0 * torch.randn(90, 3, generator=generator).double(), -1)
    return space, scale * (torch.diag_embed(probs) - probs.unsqueeze(-1) * probs.unsqueeze(-2))


@pytest.mark.parametrize("kernel", [make_kernel, make_batch_kernel])
@pytest.mark.parametrize("coupled", [36, 9, 3])
@torch.no_grad()
def test_the_preconditioner_is_definite_and_exact_where_functions_are_coupled(kernel, coupled, monkeypatch):
    monkeypatch.setattr(newton_system, "_COUPLED", coupled)
    space, curvature = _newton_problem(kernel())
    matrix, precondition = newton_matrix(space, curvature), newton_system.Preconditioner(space, curvature)
    columns = [precondition(unit.view(3, -1)).flatten() for unit in torch.eye(36, dtype=torch.float64)]
    inverse = torch.stack(columns, 1)
    assert_close(inverse, inverse.mT)
    scaled = torch.linalg.eigvals(inverse @ matrix).real
    assert float(scaled.min()) > 0.0
    if coupled == 36:
        assert_close(inverse @ matrix, torch.eye(36, dtype=torch.float64))


def test_a_factorisation_forgives_what_rounding_does_to_a_changed_kernel_and_no_more():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator).double()).Q
    nearly = basis @ torch.diag(torch.tensor([-3e-5, 0.0, 0.1, 10.0, 100.0, 2e3]).double()) @ basis.mT
    factor = newton_matrix_module.robust_cholesky(nearly, torch.float64)
    assert float((factor @ factor.mT - nearly).abs().max()) < 2e-3
    indefinite = basis @ torch.diag(torch.tensor([-1.0, 0.0, 0.1, 10.0, 100.0, 2e3]).double()) @ basis.mT
    with pytest.raises(torch.linalg.LinAlgError, match="positive-definite"):
        newton_matrix_module.robust_cholesky(indefinite, torch.float64)


def _monthly(kernel: gpytorch.kernels.Kernel, solver) -> SimpleGP:
    x = torch.arange(96.0).double().unsqueeze(-1)
    y = torch.exp(2.0 + torch.sin(2 * torch.pi * x[:, 0] / 12)).round()
    return SimpleGP(x, y, PoissonLikelihood(), kernel=kernel, solver=solver).double().eval()


def _seasonal() -> gpytorch.kernels.ScaleKernel:
    """Its matrix over whole months is singular: 12 rows, again and again."""
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.PeriodicKernel())
    kernel.base_kernel.period_length, kernel.base_kernel.lengthscale, kernel.outputscale = 12.0, 1.0, 10.0
    return kernel


@torch.no_grad()
def test_the_dense_reference_starts_from_an_earlier_solution_only_where_it_is_better():
    model = _monthly(_seasonal(), DenseNewton())
    model.condition()
    model.covar_module.base_kernel.period_length, model.covar_module.outputscale = 13.0, 100.0
    again = model.condition()
    fresh = _monthly(_seasonal(), DenseNewton())
    fresh.covar_module.base_kernel.period_length, fresh.covar_module.outputscale = 13.0, 100.0
    assert again.objective == pytest.approx(fresh.condition().objective, rel=1e-6)
    assert_close(model.latent_mean(model.train_inputs[0]), fresh.latent_mean(model.train_inputs[0]), "posterior")


@torch.no_grad()
def test_the_dense_reference_takes_singular_kernels_and_large_curvatures():
    model = _monthly(_seasonal(), DenseNewton())
    kernel = model.conditioned.operator.dense().double()
    for size in (1.0, 1e8):  # the larger one amplifies the rounding of the kernel beyond one
        root = torch.full((96, 1, 1), size).double()
        joint, factor = dense.factorise(kernel, root)
        assert_close(factor @ factor.mT, joint)
        exact = dense.joint_matrix(kernel, root)
        assert float((joint - exact).abs().max()) < 1e-10 * float(exact.abs().max())
        # What a posterior reports and what it is compared with.
        _, covariance = dense.dense_posterior(kernel, root, kernel.diagonal(dim1=-2, dim2=-1).mT)
        variance = exact_variance(model.conditioned.operator, root.square(), model.train_inputs[0])
        assert float((covariance[:, 0] - variance).abs().max()) < 1e-9


@pytest.mark.parametrize("kernel", [make_kernel, make_batch_kernel])
@torch.no_grad()
def test_sums_over_rows_in_pieces_are_those_in_one(kernel, monkeypatch):
    space, curvature = _newton_problem(kernel())

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(2)

    def everything() -> list[torch.Tensor]:
        found = leading_actions(space, curvature, 7)
        rows = found.values.flatten(0, 1)
        gram = precision.LowRankPrecision.from_products(
            found, found.values * torch.rand(90, 1, 1, generator=seeded())
        ).gram
        applied = actions._apply_information(space, curvature, torch.randn(3, 12, 4, generator=seeded()).double())
        # Eigenvectors have either sign.
        return [newton_matrix(space, curvature), rows @ rows.mT, torch.linalg.eigvalsh(gram), applied]

    whole = everything()
    assert_close(whole[0], whole[0].mT)
    for module, pieces in (
        (newton_matrix_module, {"_CHUNK_ROWS": 7, "_CHUNK_COLUMNS": 5}),
        (precision, {"_CHUNK_ROWS": 7}),
        (actions, {"_CHUNK_ROWS": 7}),
    ):
        for name, size in pieces.items():
            monkeypatch.setattr(module, name, size)
    for parts, one in zip(everything(), whole, strict=True):
        assert_close(parts, one, "derivative")


@torch.no_grad()
def test_coupling_in_leading_directions_improves_the_condition(monkeypatch):
    space, curvature = _newton_problem(make_kernel(), scale=300.0)
    matrix, conditions = newton_matrix(space, curvature), []
    for coupled in (0, 18):
        monkeypatch.setattr(newton_system, "_COUPLED", coupled)
        precondition = newton_system.Preconditioner(space, curvature)
        columns = [precondition(column.view(3, -1)).flatten() for column in matrix]
        values = torch.linalg.eigvals(torch.stack(columns, 1)).real
        conditions.append(float(values.max() / values.min()))
    assert conditions[1] < 0.5 * conditions[0]


@pytest.mark.parametrize("kernel", [make_kernel, make_batch_kernel])
@torch.no_grad()
def test_newton_systems_by_conjugate_gradients_equal_dense_ones(kernel, monkeypatch):
    monkeypatch.setattr(newton_system, "_CG_TOLERANCE", 1e-12)
    monkeypatch.setattr(newton_system, "_COUPLED", 6)
    space, curvature = _newton_problem(kernel())
    right = torch.randn(3, 12, generator=torch.Generator().manual_seed(1)).double()
    dense, system = newton_system.NewtonSystem(space), newton_system.NewtonSystem(space)
    for change in (1.0, 1.001, 100.0):  # the preconditioner of the first serves the second, not the third
        weight = change * curvature

        def weigh(block, weight=weight):
            return torch.matmul(weight, block.unsqueeze(-1)).squeeze(-1)

        before = system._preconditioner
        expected = dense.solve(right, weight, weigh)
        with monkeypatch.context() as patch:
            patch.setattr(newton_system, "_DENSE_LIMIT", 0)
            patch.setattr(newton_system, "_FEW_STEPS", 36 if change < 2.0 else 2)
            assert_close(system.solve(right, weight, weigh), expected)
        assert (system._preconditioner is before) == (change == 1.001)


# ------------------------------------------------------------- dense reference
def test_dense_newton_agrees_with_scikit_learn():
    process = pytest.importorskip("sklearn.gaussian_process")
    x, y = make_binary(80)
    theirs = process.GaussianProcessClassifier(
        process.kernels.ConstantKernel(4.0) * process.kernels.Matern(1.0, nu=1.5), optimizer=None, max_iter_predict=500
    ).fit(x.numpy(), y.numpy())
    model = SimpleGP(x, y, BernoulliLikelihood(), kernel=make_kernel(), solver=DenseNewton(), approximation="laplace")
    model = model.double().eval()
    test_x = make_inputs(9, seed=5)
    assert model.solution.log_marginal_likelihood == pytest.approx(
        theirs.log_marginal_likelihood_value_, abs=1e-6
    )  # where theirs stops
    latent = model(test_x)
    mean, variance = theirs.latent_mean_and_variance(test_x.numpy())
    assert_close(latent.mean, torch.tensor(mean), "posterior")
    assert_close(latent.variance, torch.tensor(variance), "posterior")
    probs = torch.tensor(theirs.predict_proba(test_x.numpy())[:, 1])
    assert (
        float((model.predict(test_x).probs.detach() - probs).abs().max()) < 5e-4
    )  # theirs is a five-term approximation


@pytest.mark.parametrize("kernel", [make_kernel, make_batch_kernel])
def test_algorithm_3_3_equals_the_joint_solve(kernel, monkeypatch):
    model = make_model("categorical", kernel=kernel(), approximation="laplace", solver=DenseNewton())
    joint = model.condition()
    monkeypatch.setattr(dense_newton, "_JOINT_LIMIT", 10)
    other = make_model(
        "categorical", kernel=kernel(), approximation="laplace", solver=DenseNewton(covariance=False)
    ).condition()
    assert_close(other.latent_values, joint.latent_values, "derivative")


def test_algorithm_3_3_knows_weights(monkeypatch):
    weight = torch.linspace(0.0, 40.0, 40).double()  # such that steps without them go astray
    options = {"approximation": "laplace", "sample_weight": weight}
    joint = make_model("categorical", solver=DenseNewton(), **options).condition()
    monkeypatch.setattr(dense_newton, "_JOINT_LIMIT", 10)
    other = make_model("categorical", solver=DenseNewton(covariance=False), **options).condition()
    assert len(other.trace.records) <= len(joint.trace.records) + 1
    assert_close(other.latent_values, joint.latent_values, "derivative")


def test_dense_newton_refuses_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(dense_newton, "_JOINT_LIMIT", 10)
    with pytest.raises(ValueError, match=r"at most N C = 10 latent values jointly. Got 120"):
        make_model("categorical", solver=DenseNewton()).condition()


def test_modes_that_passes_find_slowly_begin_with_dense_matrices(monkeypatch):
    """With directions that the covariance asks for: its bound is no worse than with those that passes come by."""
    x = make_inputs(250, 2)
    torch.manual_seed(0)
    y = torch.sin(2.0 * x.sum(-1)) + 0.1 * torch.distributions.StudentT(4.0).sample((250,)).double()

    def found(**options: object) -> Solution:
        solver = SubspaceNewton(covariance_rank=24, num_neighbours=0, **options)
        likelihood = StudentTLikelihood(noise=0.1, deg_free=4.0)
        model = SimpleGP(x, y, likelihood, kernel=make_kernel(), solver=solver, approximation="laplace")
        return model.double().eval().condition()

    begun, asked = found(), found(policy=ClassGradient())
    assert asked.trace.records[0].kernel_passes > 0  # a policy says what is searched
    monkeypatch.setattr(few_values, "_DENSE_ROWS_WITHOUT_HESSIAN", 0)
    slow = found()
    assert begun.trace.records[0].kernel_passes <= 1
    assert begun.status.reason is slow.status.reason is Reason.STATIONARY
    assert begun.kernel_passes < slow.kernel_passes
    assert begun.objective < slow.objective + 0.05
    assert begun.elbo > slow.elbo - 0.5


def test_rows_that_arrive_later_go_on_from_the_space_that_is_known():
    """And what is conditioned again: dense matrices, which know nothing of it, are for what has no start."""
    x, y = CASES["student-t"].data(200)
    solver, likelihood = SubspaceNewton(num_neighbours=0), StudentTLikelihood(noise=0.1)
    model = SimpleGP(x[:190], y[:190], likelihood, kernel=make_kernel(), solver=solver, approximation="laplace")
    first = model.double().eval().condition()
    problem = Problem(first.latent_values * 0.0, first.operator, LaplaceSite(model.observations))
    assert few_values.solver_of_start(solver, problem, None) is not None
    assert few_values.solver_of_start(solver, problem, first) is None
    assert few_values.solver_of_start(solver, problem, first.without_warm_start()) is not None
    model.append_train_data(x[190:], y[190:])
    assert model.condition().kernel_passes < first.kernel_passes


@torch.no_grad()
def test_probed_directions_are_those_about_which_the_data_say_most():
    operator = make_operator(make_kernel().double(), make_inputs(150, 2).double())
    curvature = torch.linspace(0.0, 4.0, 150, dtype=torch.float64)[:, None, None]
    root = curvature[:, 0].sqrt()
    weighted = root * operator.dense()[0].double() * root.mT
    best = torch.linalg.eigvalsh(weighted)[-10:].sum()
    directions = actions.probed_directions(operator, curvature, 10)
    space = torch.linalg.qr(directions[1:] / root[1:]).Q  # the first row says nothing
    assert float(directions[0].abs().max()) == 0.0
    assert float((space.mT @ weighted[1:, 1:] @ space).trace()) > 0.98 * float(best)
    assert actions.probed_directions(operator, curvature, 0).shape == (150, 0)


def _is_smooth_without_hessian(likelihood: Likelihood) -> bool:
    return likelihood.smooth and likelihood.curvature != "hessian"


def _small_noise() -> Solution:
    """300 values of a rough function with Student-t noise far smaller than what it leaves."""
    torch.manual_seed(0)
    x = torch.randn(300, 1, dtype=torch.float64)
    y = torch.sin(6.0 * x[:, 0]) + 0.1 * torch.distributions.StudentT(4.0).sample((300,)).double()
    likelihood, solver = StudentTLikelihood(noise=1e-3, deg_free=4.0), DenseNewton(tolerance=1e-9, covariance=False)
    model = SimpleGP(x, y, likelihood, kernel=make_kernel(), solver=solver, approximation="laplace")
    return model.double().eval().condition()


def test_steps_without_a_hessian_remember_earlier_ones(monkeypatch):
    """By secants, with which they are less than half as many, and matrices, each of which serves several in the end."""
    factorised = []

    def factorise(*arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        factorised.append(1)
        return dense.factorise(*arguments)

    monkeypatch.setattr(dense_newton, "factorise", factorise)
    quick = _small_noise()
    matrices = len(factorised)
    assert quick.status.reason is Reason.STATIONARY
    assert matrices < 0.5 * len(quick.trace.records)
    monkeypatch.setattr(dense_newton, "with_pair", lambda pairs, pair: pairs)
    monkeypatch.setattr(dense_newton, "_KEPT_STEPS", 1)
    slow = _small_noise()
    assert 2 * len(quick.trace.records) < len(slow.trace.records)
    assert quick.objective == pytest.approx(slow.objective, abs=1.0)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if _is_smooth_without_hessian(case.make())])
def test_steps_without_a_hessian_come_as_near_as_newtons(name):
    solution = make_model(name, solver=DenseNewton(tolerance=1e-14), approximation="laplace").condition()
    assert 0.5 * solution.posterior.norm_squared < 1e-12 * solution.latent_values.shape[0]


def test_dense_newton_finds_a_stationary_point_by_finite_differences():
    model = make_model("categorical", approximation="laplace", solver=DenseNewton())
    solution = model.condition()
    prior = model.prior_at(model.train_inputs)
    kernel = model.covar_module(model.train_inputs[0]).to_dense().detach()
    likelihood = CategoricalLikelihood(3)

    def objective(weights):
        f = prior.mean.detach() + kernel @ weights
        return float(-likelihood.log_density(f, model.train_targets).sum() + 0.5 * (weights * (kernel @ weights)).sum())

    best = objective(solution.representer_weights)
    assert best == pytest.approx(solution.objective, rel=1e-10)
    for _ in range(5):
        step = torch.randn_like(solution.representer_weights)
        slope = (
            objective(solution.representer_weights + 1e-5 * step)
            - objective(solution.representer_weights - 1e-5 * step)
        ) / 2e-5
        assert abs(slope) < 1e-4
        assert objective(solution.representer_weights + 1e-2 * step) > best


# ---------------------------------------------------------------- search space
@pytest.mark.parametrize("num_kernels", [1, 3])
def test_search_space_stays_orthonormal_and_consistent(num_kernels, dtype):
    x = make_inputs(50, dtype=dtype)
    kernel = (make_kernel() if num_kernels == 1 else make_batch_kernel()).to(dtype)
    operator = make_operator(kernel, x, num_kernels=num_kernels)
    with torch.no_grad():
        matrices = operator.dense()
        space = SearchSpace.empty(operator)
        for _ in range(4):
            block = torch.randn(50, 5, dtype=dtype)
            space, products = space.extend(block, operator)
            assert_close(products, matrices @ block, "derivative")
    assert operator.counts.passes == 5  # the dense matrices, and one for every block
    assert space.rank == 20
    assert_close(space.products, matrices @ space.directions, "posterior")
    # Directions whose products the dtype resolves to less than a thirtieth are left out.
    error = 1.0 / 32.0 if dtype == torch.float32 else 1e-6
    identity = torch.eye(20, dtype=torch.float64).expand(num_kernels, -1, -1)
    assert float((space.gram - identity).abs().max()) < error
    held = (space.directions.abs().amax(-2) > 0).to(dtype)  # a kernel may not resolve what another does
    assert float(held.mean()) > 0.7
    assert float((space.directions.mT @ space.products - torch.diag_embed(held)).abs().max()) < error


def test_search_space_drops_dependent_directions():
    operator = make_operator(make_kernel().double(), make_inputs(30))
    with torch.no_grad():
        block = torch.randn(30, 3, dtype=torch.float64)
        space, _ = SearchSpace.empty(operator).extend(torch.cat([block, block[:, :2] + block[:, 1:]], -1), operator)
        assert space.rank == 3
        again, _ = space.extend(block, operator)
        assert again.rank == 3


@pytest.mark.parametrize("lengthscale", [1.0, 2.0, 3.0])
def test_directions_that_the_dtype_does_not_resolve_are_left_out(lengthscale):
    """Eigenvectors of a smooth kernel, the leading ones first: ``S^T K S = I`` holds for those that float32 resolves."""
    kernel, x = gpytorch.kernels.RBFKernel(), make_inputs(60, dtype=torch.float32)
    kernel.lengthscale = lengthscale
    operator = make_operator(kernel.requires_grad_(False), x)
    matrix = kernel.double()(x.double()).to_dense()
    vectors = torch.linalg.eigh(matrix).eigenvectors.flip(1)
    space = SearchSpace.empty(operator)
    for block in vectors[:, :48].split(8, -1):
        mixed = block @ torch.randn(8, 8, dtype=torch.float64)
        space, _ = space.extend(mixed.float(), operator)
        directions = space.directions[0].double()
        assert float((directions.mT @ matrix @ directions - torch.eye(space.rank)).abs().max()) < 0.25
    assert 8 < space.rank < 48


def test_dependent_directions_give_no_further_actions(dtype):
    _, curvature = _newton_problem(make_kernel())
    directions = torch.randn(90, 3, 5, dtype=dtype)
    dependent = torch.cat([directions, directions[..., :2] + directions[..., 3:]], -1)
    values = precision.Actions.from_directions(dependent, curvature.to(dtype)).values
    assert values.shape[-1] == 5
    inverse = torch.linalg.pinv(curvature, rtol=1e-6)
    noise = torch.einsum("ncr,ncd,nds->rs", values.double(), inverse, values.double())
    assert_close(noise, torch.eye(5, dtype=torch.float64), "derivative", dtype=torch.float32)


@torch.no_grad()
def test_compression_wastes_no_direction_on_what_is_dependent():
    """Coordinates of three latent functions that add up to zero: two directions hold them, the best others fill up."""
    generator = torch.Generator().manual_seed(3)
    space, curvature = _newton_problem(make_kernel())
    coordinates = torch.randn(3, space.rank, generator=generator).double()
    coordinates -= coordinates.mean(0)
    nothing = torch.zeros(90, 3, dtype=torch.float64)
    mix = compression(space, newton.Iterate(coordinates, nothing, nothing, curvature, 0.0), 5)[0]
    assert_close(coordinates @ mix @ mix.mT, coordinates)
    weights = curvature.diagonal(dim1=-2, dim2=-1).sum(-1)
    information = space.products[0].mT @ (weights[:, None] * space.products[0])
    held = torch.linalg.qr(coordinates[:2].mT).Q
    away = torch.eye(space.rank, dtype=torch.float64) - held @ held.mT
    best = (held.mT @ information @ held).trace() + torch.linalg.eigvalsh(away @ information @ away)[-3:].sum()
    assert float((mix.mT @ information @ mix).trace()) == pytest.approx(float(best))


def test_shared_directions_drop_the_null_direction():
    residual = torch.randn(40, 4, dtype=torch.float64)
    residual -= residual.mean(1, keepdim=True)
    directions = shared_directions(torch.diag_embed(residual), residual)
    assert directions.shape == (40, 3)
    assert_close(directions.mT @ directions, torch.eye(3, dtype=torch.float64), "derivative")
    assert_close(directions @ (directions.mT @ residual), residual, "derivative")


def test_row_clusters_are_even_and_local():
    x = make_inputs(203)
    labels = cluster_rows(make_operator(make_kernel().double(), x).scaled_inputs(), 16)
    counts = labels.bincount()
    assert len(counts) == 16
    assert int(counts.max() - counts.min()) <= 2
    inside = torch.stack([x[labels == c].var(0).sum() for c in range(16)]).mean()
    assert float(inside) < 0.25 * float(x.var(0).sum())
    residual = torch.randn(203, 1, dtype=torch.float64)
    blocks = shared_directions(residual.unsqueeze(-1) * torch.nn.functional.one_hot(labels).unsqueeze(1), residual)
    assert_close((blocks @ (blocks.mT @ residual)), residual, "derivative")


def test_randomised_actions_are_as_informative_as_exact_ones(monkeypatch):
    from itergp.solvers.subspace import actions as module

    model = make_model("categorical", num_rows=80, solver=SubspaceNewton(tolerance=1e-8), approximation="laplace")
    solution = model.condition()
    _, curvature = CategoricalLikelihood(3).derivatives(solution.latent_values, model.train_targets)
    with torch.no_grad():
        exact = leading_actions(solution.space, curvature, 8)
        monkeypatch.setattr(module, "_DENSE_LIMIT", 4)
        randomised = leading_actions(solution.space, curvature, 8)
    assert exact.rank == randomised.rank == 8
    kernel = model.covar_module(model.train_inputs[0]).to_dense().detach()
    traces = [
        torch.linalg.eigvalsh(torch.einsum("ncr,nm,mcs->rs", a.values, kernel, a.values)).sum()
        for a in (exact, randomised)
    ]
    assert float(traces[1] / traces[0]) > 0.98


# ----------------------------------------------------------------- line searches
class Understated:
    """Targets of zero with a precision of 1,000, whose curvature is said to be zero: full steps go much too far."""

    name, log_concave, likelihood = "laplace", True, None

    def log_density(self, f):
        return -500.0 * float(f.double().square().sum())

    def derivatives(self, f):
        return -1000.0 * f, f.new_zeros(*f.shape, f.shape[1])

    def evaluate(self, f):
        return self.log_density(f), *self.derivatives(f)

    def curvature_product(self, f, curvature):
        return torch.zeros_like


def _within_the_space(problem, values, monkeypatch):
    monkeypatch.setattr(newton, "_MAX_STEPS", 1)
    space, _ = SearchSpace.empty(problem.operator).extend(values, problem.operator)
    start = newton.evaluate(problem, space, space.project(values))
    return start, newton.minimise(problem, space, start, 0.0)


def _between_iterates(problem, values, monkeypatch):
    start = newton_iterate.recomputed(problem, values)
    target = newton_iterate.recomputed(problem, start.gradient)  # the gradient's step, as if there were no curvature
    change = target.latent_values - problem.mean
    return start, newton_iterate.backtracking_step(problem, start, target.weights, change)[0]


@pytest.mark.parametrize("search", [_within_the_space, _between_iterates])
def test_a_line_search_raises_the_objective_by_no_more_than_rounding(search, monkeypatch):
    """From starts of any size: at some of them the step is predicted to gain less than rounding, and loses more."""
    operator = make_operator(make_kernel(scale=1.0).double().requires_grad_(False), make_inputs(20))
    problem = Problem(torch.zeros(20, 1, dtype=torch.float64), operator, Understated())
    judged = 0
    for exponent in torch.arange(-14.0, 0.0, 0.25):
        values = 10.0 ** float(exponent) * torch.ones(20, 1, dtype=torch.float64)
        start, after = search(problem, values, monkeypatch)
        resolution = problem.resolution(start.latent_values, start.gradient, start.objective)
        assert after.objective <= start.objective + resolution
        judged += after.objective < start.objective
    assert judged > 10


# ---------------------------------------------------------- how a solve ends
def test_running_out_of_passes_is_a_valid_result():
    model = make_model("categorical", num_rows=60, kernel=make_kernel(0.3, 50.0), solver=SubspaceNewton(max_passes=3))
    solution = model.condition()
    assert solution.status.reason is Reason.PASSES
    assert "Raise max_passes" in str(solution.status)
    assert bool(torch.isfinite(model.predict(make_inputs(5)).probs).all())
    converged = make_model("categorical", num_rows=60, kernel=make_kernel(0.3, 50.0)).condition()
    assert converged.status.reason is Reason.CONVERGED
    assert converged.kernel_passes > solution.kernel_passes
    assert solution.certificate.objective_gap > converged.certificate.objective_gap


@pytest.mark.parametrize("approximation", ["laplace", "variational"])
@pytest.mark.parametrize("budget", [2, 3, 4, 5, 8])
def test_every_budget_of_passes_is_kept_and_pays_for_a_covariance(budget, approximation):
    solver = SubspaceNewton(max_passes=budget, covariance_rank=10, tolerance=1e-12)
    options = {"kernel": make_kernel(0.3, 50.0), "solver": solver, "approximation": approximation}
    solution = make_model("categorical", num_rows=60, **options).condition()
    assert solution.status.reason is Reason.PASSES
    assert solution.kernel_passes <= budget
    assert solution.rank >= 8
    assert len(solution.trace) >= budget - (2 if approximation == "laplace" or budget < 4 else 4)


@pytest.mark.parametrize("reach", [1.5, 2.0, 2.5])
def test_a_small_budget_pays_for_a_covariance_however_many_samples_there_are(reach, monkeypatch):
    """Preliminary rounds could take its pass, where actions became useless."""
    monkeypatch.setattr(sampled, "_FEW_PAIRS_REACH", reach)
    solver = SubspaceNewton(max_passes=4, covariance_rank=10, tolerance=1e-12)
    solution = make_model("categorical", num_rows=60, kernel=make_kernel(0.3, 50.0), solver=solver).condition()
    assert solution.kernel_passes <= 4
    assert solution.rank >= 8


@pytest.mark.parametrize("rank", [4, 8, 16])
def test_a_full_search_space_that_stops_improving_is_an_honest_status(rank):
    """Rough functions and exponentials: the gradient has more directions than there is room for."""

    def solved(solver):
        options = {"kernel": make_kernel(0.1, 1000.0), "approximation": "laplace", "solver": solver}
        return make_model("poisson", num_rows=60, **options).condition()

    options = {"tolerance": 1e-2, "covariance_rank": 4, "num_neighbours": 0}
    solution, best = solved(SubspaceNewton(max_rank=rank, **options)), solved(DenseNewton(tolerance=1e-10))
    assert solution.status.reason is Reason.RANK
    assert not solution.converged
    assert "Raise max_rank" in str(solution.status)
    assert solution.space.rank == rank
    gap = solution.objective - best.objective
    assert 0.0 < gap <= solution.certificate.objective_gap
    assert solution.certificate.objective_gap > 60 * 1e-2
    explanation = solution.trace.explain()
    assert explanation.limit == "rank"
    assert f"at most {rank} directions" in explanation["rank"].observed
    advised = solved(SubspaceNewton(max_rank=64, **options))
    assert advised.status.reason is Reason.CONVERGED


@pytest.mark.parametrize("name", ["student-t", "poisson"])
def test_only_log_concave_likelihoods_end_with_a_certificate(name):
    solution = make_model(name, approximation="laplace", solver=SubspaceNewton(tolerance=1e-6)).condition()
    assert solution.converged
    log_concave = CASES[name].log_concave
    assert solution.status.reason is (Reason.CONVERGED if log_concave else Reason.STATIONARY)
    assert (solution.certificate is not None) is log_concave


@pytest.mark.parametrize("name", ["laplace", "poisson", "large poisson"])
def test_a_curvature_that_stays_is_factorised_once_in_a_space(name, monkeypatch):
    """Fisher information of Laplace noise is the same everywhere: no step of Newton's method needs another matrix.

    That of counts is another one in each; but where matrices take long, one is the preconditioner of the next systems.
    """
    if name == "large poisson":
        monkeypatch.setattr(newton_system, "_WORTH_KEEPING", 0)
    made, steps, spaces = [], [], []
    whole, find = newton_system.newton_matrix, subspace_newton.minimise

    def counted(*arguments):
        made.append(1)
        return whole(*arguments)

    def watched(*arguments):
        found = find(*arguments)
        steps.append(found.steps)
        spaces.append(found.steps > 0)
        return found

    monkeypatch.setattr(newton_system, "newton_matrix", counted)
    monkeypatch.setattr(subspace_newton, "minimise", watched)
    name, found = name.removeprefix("large "), name
    make_model(name, approximation="laplace", solver=SubspaceNewton()).condition()
    if found == "poisson":
        assert len(made) >= sum(steps)
        return
    assert sum(steps) > 2 * len(steps)
    assert len(made) <= sum(spaces) + 2  # and one or two for what is no step


@pytest.mark.parametrize(("name", "first"), [("laplace", "variational"), ("student-t", "laplace")])
def test_rounds_begin_at_a_mode_only_where_it_is_smooth(name, first):
    """That of Laplace noise sits on the kinks of many rows, where Newton's method takes very long."""
    stages = make_model(name, solver=SubspaceNewton()).condition().trace.stages
    assert (stages[0].stage, stages[-1].stage) == (first, "variational")


@pytest.mark.parametrize("name", ["laplace", "heteroscedastic"])
def test_rounds_of_few_values_begin_where_dense_matrices_find_the_posterior(name, monkeypatch):
    """It is the one that rounds come to, and certified by passes like any other."""
    found = make_model(name, solver=SubspaceNewton(tolerance=1e-8)).condition()
    monkeypatch.setattr(DenseProblem, "variational_posterior", lambda *args, **options: None)
    without = make_model(name, solver=SubspaceNewton(tolerance=1e-8)).condition()
    deviation = without.latent_covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert float(((found.latent_values - without.latent_values) / deviation).abs().max()) < 0.05
    assert found.converged
    assert without.converged
    assert found.variational_residual < 0.02
    assert found.kernel_passes < without.kernel_passes


@pytest.mark.parametrize("name", ["laplace", "heteroscedastic"])
def test_ctrl_c_before_the_first_round_leaves_the_prior(name, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(DenseProblem, "variational_posterior", interrupted)
    model = make_model(name, solver=SubspaceNewton())
    solution = model.condition()
    assert solution.status.reason is Reason.INTERRUPTED
    assert float(solution.representer_weights.abs().max()) == 0.0
    prior, variance = model.prior_at(), solution.latent_covariance.diagonal(dim1=-2, dim2=-1)
    assert_close(variance, prior.kernel(prior.features, diag=True).detach().unsqueeze(-1).expand_as(variance))


def test_the_time_limit_ends_the_solve():
    solver = SubspaceNewton(time_limit=1e-9, tolerance=1e-12)
    solution = make_model("categorical", kernel=make_kernel(0.1, 50.0), solver=solver).condition()
    assert solution.status.reason is Reason.TIME
    assert len(solution.trace) == 1


def test_an_interrupt_returns_the_posterior_so_far():
    model = make_model("categorical", solver=SubspaceNewton(tolerance=1e-12))

    def stop(record):
        if record.kernel_passes == 2:
            raise KeyboardInterrupt

    solution = model.condition(callback=stop)
    assert solution.status.reason is Reason.INTERRUPTED
    assert solution.kernel_passes == 3  # two steps and the covariance
    assert solution.rank > 0
    assert model.predict(make_inputs(5)).probs.shape == (5, 3)


def test_float32_at_its_limit_says_so():
    model = make_model("poisson", dtype=torch.float32, kernel=make_kernel(1.0, 10.0))
    model.solver = SubspaceNewton(tolerance=1e-30)
    solution = model.condition()
    assert solution.status.reason in (Reason.PRECISION, Reason.STALLED)
    assert "float64" in str(solution.status)


@pytest.mark.parametrize("name", sorted(CORE))
def test_the_trace_accounts_for_the_run(name):
    model = make_model(name)
    records = []
    solution = model.condition(callback=records.append)
    assert records == list(solution.trace)
    # The covariance's pass is the last of a Laplace solve; the one that certifies a variational mean is recorded.
    assert solution.trace[-1].kernel_passes == solution.kernel_passes - (name == "gaussian")
    assert set(solution.trace.phase_seconds) == {"kernel", "mode", "covariance"}
    assert sum(solution.trace.phase_seconds.values()) <= solution.seconds * 1.05
    assert all(set(record) == set(TraceRecord.__dataclass_fields__) for record in solution.trace.to_dicts())
    stages = {record.stage for record in records}
    assert stages == ({"laplace"} if name == "gaussian" else {"laplace", "variational"})


def test_rank_zero_leaves_the_prior_covariance():
    model = make_model("bernoulli-logit", solver=SubspaceNewton(covariance_rank=0), approximation="laplace")
    assert_close(model(make_inputs(5)).variance, model.covar_module(make_inputs(5), diag=True), "derivative")
    assert model.solution.rank == 0


def test_solve_refuses_an_unknown_approximation():
    x, y = make_binary(10)
    with pytest.raises(ValueError, match=r"`approximation` must be one of .* Got 'mcmc'"):
        solve(
            make_operator(make_kernel().double(), x),
            torch.zeros(10, 1, dtype=torch.float64),
            Observations(BernoulliLikelihood(), y),
            SubspaceNewton(),
            approximation="mcmc",
        )


@pytest.mark.slow
def test_ten_thousand_rows_condition_in_float32():
    generator = torch.Generator().manual_seed(0)
    means = 1.5 * torch.randn(10, 3, generator=generator)
    y = torch.randint(0, 10, (10_000,), generator=generator)
    x = means[y] + 0.6 * torch.randn(10_000, 3, generator=generator)
    options = {"solver": SubspaceNewton(max_passes=8), "approximation": "laplace"}
    solution = SimpleGP(x, y, CategoricalLikelihood(10), kernel=make_kernel(1.0, 10.0), **options).condition()
    assert solution.kernel_passes <= 9
    assert bool(torch.isfinite(solution.latent_values).all())
    identity = torch.eye(solution.space.rank, dtype=torch.float64)
    assert_close(solution.space.gram[0], identity, "posterior", dtype=torch.float32)


def test_directions_of_a_kernel_that_has_changed_leave_what_is_resolved():
    torch.manual_seed(0)
    load, end = torch.rand(150, 1), 1.5
    failure = torch.exp(1.0 - 2.5 * load[:, 0]) * torch.rand(150).log().neg().pow(1 / 3)
    targets = torch.stack([failure.clamp_max(end), (failure <= end).float()], -1)
    model = GP(load, targets, WeibullLikelihood())
    itergp.fit(model, max_iterations=20)  # conditions from the search space of other hyperparameters
    new = torch.tensor([[0.2], [0.5], [0.8]])
    with torch.no_grad():
        found = model.latent_mean(new)
        afresh = copy.deepcopy(model).double()
        assert float((found - afresh.latent_mean(new.double())).abs().max()) < 0.01


# ------------------------------------------------------------ operators that evaluate no kernel
class Features(AbstractOperator):
    """``K = Phi Phi^T``: what is known of it is how it multiplies."""

    num_kernels, memory_budget = 1, 2**26

    def __init__(self, features):
        self.features, self.counts = features, KernelCounts()

    num_rows = property(lambda self: self.features.shape[0])
    dtype = property(lambda self: self.features.dtype)
    device = property(lambda self: self.features.device)

    def matmul(self, block):
        self.counts.passes += 1
        return self.features @ (self.features.mT @ (block if block.dim() == 3 else block.unsqueeze(0)))

    def cross_matmul(self, inputs, block):
        return inputs @ (self.features.mT @ (block if block.dim() == 3 else block.unsqueeze(0)))

    def diagonal(self, inputs=None):
        return (self.features if inputs is None else inputs).square().sum(-1).unsqueeze(0)


@pytest.mark.parametrize("approximation", ["laplace", "variational"])
def test_an_operator_that_only_multiplies_gives_the_posterior_of_its_kernel(approximation):
    x, y = make_classes(400)
    phi = torch.cat([x, x.sin(), torch.ones(len(x), 1)], -1).double()
    kernel = LinearKernel().double()
    kernel.variance = 1.0
    observations = Observations(CategoricalLikelihood(3), y)
    solver = SubspaceNewton(tolerance=1e-8, covariance_rank=20, num_neighbours=0)
    mean = torch.zeros(len(x), 3, dtype=torch.float64)
    got, expected = (
        solve(operator, mean, observations, solver, approximation=approximation)
        for operator in (Features(phi), make_operator(kernel, phi, kind="blocked"))
    )
    assert got.kernel_passes == expected.kernel_passes
    for name in ("representer_weights", "latent_values", "latent_covariance"):
        assert_close(getattr(got, name), getattr(expected, name), "posterior")


def test_what_needs_entries_says_so_where_there_are_none():
    x, y = make_binary(60)
    mean, observations = torch.zeros(60, 1, dtype=torch.float64), Observations(BernoulliLikelihood(), y)
    for solver in (LinearTimeNewton(), SubspaceNewton(), IterNCGP(policy=UnitVectors())):
        with pytest.raises(InputError, match=r"Kernel entries .* need a KernelOperator\. Got Features"):
            solve(Features(x.double()), mean, observations, solver)


# ------------------------------------------------------------------------------------- what a solution is made of
@dataclass(frozen=True)
class Opaque(WarmStart):
    """What a solver of one's own leaves for the next solve."""

    appended: tuple[int, ...] = ()

    def with_more_rows(self, count):
        return replace(self, appended=(*self.appended, count))


@dataclass(frozen=True)
class Leaving(DenseNewton):
    """Leaves a warm start, and notes those that it finds."""

    found: list = field(default_factory=list, compare=False)

    def init(self, problem, warm_start=None):
        self.found.append(None if warm_start is None else warm_start.warm_start)
        return super().init(problem, warm_start)

    def finish(self, problem, state, *, final):
        return replace(super().finish(problem, state, final=final), warm_start=Opaque())


def test_a_warm_start_comes_back_to_the_solver_unopened():
    x, y = make_binary(30)
    model = SimpleGP(x[:25], y[:25], BernoulliLikelihood(), solver=Leaving(), approximation="laplace").double().eval()
    first = model.condition()
    assert model.solver.found == [None]
    assert first.warm_start == Opaque(operator=first.operator)
    model.covar_module.base_kernel.lengthscale = 0.7
    second = model.condition()
    assert model.solver.found[-1] == first.warm_start  # of another kernel, as its operator says
    model.append_train_data(x[25:28], y[25:28])
    model.append_train_data(x[28:], y[28:])
    model.condition()
    assert model.solver.found[-1] == Opaque(appended=(3, 2), operator=second.operator)  # of the rows before
    assert copy.deepcopy(model).last_solution.warm_start is None
    assert first.to(torch.zeros(1)).warm_start is first.without_warm_start().warm_start is None


def _appended(change=None, **options):
    """A model of 200 rows that was conditioned on 170 of them before, with its operator's products until then."""
    x, y = make_classes(200)
    options = {"kernel": make_kernel(0.5, 10.0), "solver": SubspaceNewton(tolerance=1e-14), **options}
    model = SimpleGP(x[:170], y[:170], CategoricalLikelihood(3), approximation="laplace", **options).double().eval()
    model.condition()
    model.append_train_data(x[170:180], y[170:180])
    model.append_train_data(x[180:], y[180:])
    if change is not None:
        change(model)
    started = []

    def watched(space, earlier, operator, plain=SearchSpace.continued):
        started.append(plain(space, earlier, operator))
        return started[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SearchSpace, "continued", watched)
        model.condition()
    fresh = SimpleGP(x, y, CategoricalLikelihood(3), approximation="laplace", **options).double().eval()
    fresh.load_state_dict(model.state_dict())
    return model, fresh, started


@pytest.mark.parametrize("kernel", [make_kernel(0.5, 10.0), make_batch_kernel(3)])
def test_rows_that_arrive_later_cost_no_product_of_those_before(kernel):
    model, fresh, (space,) = _appended(kernel=kernel)
    dense = model.solution.operator.dense().double()
    assert_close(space.products, dense @ space.directions)
    assert bool((space.directions[:, 170:] == 0.0).all())
    assert model.solution.kernel_passes < fresh.condition().kernel_passes
    assert model.solution.status.converged
    assert_close(model.solution.latent_values, fresh.solution.latent_values, "posterior")


def test_rows_that_arrive_again_and_again_do_not_make_the_space_larger():
    """Of 1,200 to 1,500 rows: with every direction kept it grows by 64 each time."""
    x, y = make_binary(1500)
    options = {"kernel": make_kernel(0.3, 4.0), "solver": SubspaceNewton(covariance_rank=32, num_neighbours=0)}
    model = SimpleGP(x[:1200], y[:1200], BernoulliLikelihood(), approximation="laplace", **options).double().eval()
    ranks = [model.condition().warm_start.space.rank]
    for start in range(1200, 1500, 50):
        model.append_train_data(x[start : start + 50], y[start : start + 50])
        ranks.append(model.condition().warm_start.space.rank)
    assert max(ranks[3:]) == ranks[2]
    fresh = SimpleGP(x, y, BernoulliLikelihood(), approximation="laplace", **options).double().eval()
    with torch.no_grad():
        ours, theirs = model(x[:50]), fresh(x[:50])
    assert float(((ours.mean - theirs.mean) / theirs.variance.sqrt()).abs().max()) < 0.1


def _longer(model):
    model.covar_module.base_kernel.lengthscale = 0.6


def _other_rows(model):
    with torch.no_grad():
        model.train_inputs[0][3] += 0.1


def _rougher(model):
    model.covar_module.base_kernel.nu = 2.5


@pytest.mark.parametrize("change", [_longer, _other_rows, _rougher])
def test_products_of_another_kernel_or_of_other_rows_are_not_used_again(change):
    model, fresh, (space,) = _appended(change)
    assert space is None
    if change is _other_rows:
        fresh.set_train_data(model.train_inputs[0], model.train_targets)
    if change is _rougher:
        _rougher(fresh)
    assert_close(model.solution.latent_values, fresh.condition().latent_values, "posterior")


def test_a_solution_says_all_that_posterior_and_report_say():
    solution = make_model("bernoulli-probit").condition()
    for part in (solution.posterior, solution.report):
        for name in {spec.name for spec in fields(part)} - {"norm_squared", "products", "warm_start"}:
            assert getattr(solution, name) is getattr(part, name), name
    assert solution.posterior.norm_squared == solution.certificate.norm_squared
    assert solution.posterior.products is solution.posterior.warm_start is None  # large, or beside it
    other = solution.with_report(seconds=1.0)
    assert (other.seconds, other.posterior, other.warm_start) == (1.0, solution.posterior, solution.warm_start)
    with pytest.warns(DeprecationWarning, match="without_warm_start"):
        assert solution.without_space().warm_start is None
