"""What must hold for every problem, against the dense reference."""

from __future__ import annotations

import copy
import itertools

import gpytorch
import pytest
import torch
from helpers import (
    CASES,
    REGULAR,
    TOLERANCE,
    SimpleGP,
    assert_close,
    make_batch_kernel,
    make_inputs,
    make_kernel,
    make_model,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from itergp.likelihoods import GaussianLikelihood, LaplaceSite, VariationalSite, as_likelihood
from itergp.models import LatentPosterior
from itergp.solvers import DenseNewton, Problem, SubspaceNewton, solve_problem

NAMES = sorted(REGULAR)
LOG_CONCAVE = sorted(name for name in NAMES if CASES[name].log_concave)
APPROXIMATIONS = ("laplace", "variational")
STEEPEST = {"bernoulli-logit": 0.25, "categorical": 0.5}  # largest eigenvalues of the curvature of one row
EXACT = SubspaceNewton(tolerance=1e-16, covariance_rank=10_000, max_rank=10_000)


def solved(model: SimpleGP, solver, approximation="laplace"):
    """The model's solution by another solver, on a copy."""
    twin = copy.deepcopy(model)
    twin.solver, twin.approximation = solver, approximation
    twin.prediction_strategy = None
    return twin, twin.condition()


def eigenvalues(matrices: torch.Tensor) -> torch.Tensor:
    return torch.linalg.eigvalsh(matrices.double())


def test_the_grid_is_not_empty():
    assert len(LOG_CONCAVE) >= 12


@pytest.mark.parametrize("approximation", APPROXIMATIONS)
@pytest.mark.parametrize("kernel", [make_kernel, make_batch_kernel], ids=["shared", "one-per-class"])
@pytest.mark.parametrize("name", NAMES)
def test_full_rank_equals_the_dense_reference(name, kernel, approximation):
    if kernel is make_batch_kernel and name != "categorical":
        kernel = lambda: gpytorch.kernels.ScaleKernel(gpytorch.kernels.RQKernel())  # noqa: E731 - not radial either
    model = make_model(name, kernel=kernel())
    x = make_inputs(7, seed=5)
    dense, exact = solved(model, DenseNewton(), approximation)
    ours, solution = solved(model, EXACT, approximation)
    with torch.no_grad():
        expected, actual = dense(x), ours(x)
        assert_close(actual.mean, expected.mean, "posterior")
        assert_close(actual.covariance_matrix, expected.covariance_matrix, "posterior")
    assert_close(solution.latent_values, exact.latent_values, "posterior")
    assert_close(solution.latent_covariance, exact.latent_covariance, "posterior")
    assert solution.objective == pytest.approx(exact.objective, rel=1e-6)
    if approximation == "laplace" or CASES[name].quadratic:
        assert solution.log_marginal_likelihood == pytest.approx(exact.log_marginal_likelihood, rel=1e-6)
    else:
        assert solution.log_marginal_likelihood is exact.log_marginal_likelihood is None
    assert solution.elbo == pytest.approx(exact.elbo, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_near_float64(name):
    solver = SubspaceNewton(tolerance=1e-6, covariance_rank=10_000)  # which actions are kept may turn on rounding
    wide = make_model(name, solver=solver)
    narrow = make_model(name, dtype=torch.float32, solver=solver)
    x = make_inputs(7, seed=5)
    assert narrow.predict(x.float()).mean.dtype == torch.float32
    assert_close(narrow(x.float()).mean, wide(x).mean, "posterior", dtype=torch.float32)
    assert_close(narrow(x.float()).variance, wide(x).variance, "posterior", dtype=torch.float32)


@settings(max_examples=120)
@given(
    name=st.sampled_from(LOG_CONCAVE),
    seed=st.integers(0, 10_000),
    one_per_class=st.booleans(),
    scale=st.floats(0.1, 300.0),
    lengthscale=st.floats(0.05, 20.0),
    passes=st.integers(1, 6),
    approximation=st.sampled_from(APPROXIMATIONS),
)
def test_the_certificate_always_holds(name, seed, one_per_class, scale, lengthscale, passes, approximation):
    case = CASES[name]
    x, y = case.data(30, seed=seed)
    solver = SubspaceNewton(max_passes=passes, tolerance=1e-12, covariance_rank=5)
    kernel = make_kernel(lengthscale, scale)
    if one_per_class and name == "categorical":
        kernel = make_batch_kernel()
        kernel.outputscale = torch.tensor([scale, 1.0, 0.5 * scale])
    model = SimpleGP(x, y, case.make(), kernel=kernel, solver=solver).double().eval()
    model.approximation = approximation
    solution = model.condition()
    dense = _exact_mode(model, solution)
    assert solution.certificate is not None
    slack = 1e-7 * (1.0 + abs(dense.objective))
    assert solution.objective - dense.objective <= solution.certificate.objective_gap + slack
    test_x = make_inputs(11, seed=seed + 1)
    error = (model.latent_mean(test_x) - _latent_mean(model, dense, test_x)).abs()
    assert bool((error <= solution.certificate.latent_error(test_x) + 1e-5 * (1.0 + scale)).all())


@pytest.mark.parametrize("name", sorted(STEEPEST))
@pytest.mark.parametrize("passes", [2, 3, 4])
@pytest.mark.parametrize(("seed", "scale", "lengthscale"), [(0, 0.05, 1.0), (1, 0.3, 0.3), (2, 1.0, 0.1)])
def test_the_certificate_is_as_tight_as_the_curvature_allows(name, seed, scale, lengthscale, passes):
    """In the prior's norm the objective's curvature is 1 to L, so q / 2, the bound on the gap, is at most L times the gap."""
    case = CASES[name]
    x, y = case.data(30, seed=seed)
    options = {"kernel": make_kernel(lengthscale, scale), "approximation": "laplace"}
    model = SimpleGP(x, y, case.make(), **options).double().eval()
    best = solved(model, DenseNewton(covariance=False))[1].objective
    with torch.no_grad():
        largest = 1.0 + STEEPEST[name] * float(eigenvalues(model.covar_module(x).to_dense()).max())
    solver = SubspaceNewton(max_passes=passes, tolerance=1e-12, covariance_rank=5, num_blocks=4)
    _, solution = solved(model, solver)
    slack, gap = 1e-9 * (1.0 + abs(best)), solution.objective - best
    assert gap - slack <= solution.certificate.objective_gap <= largest * gap + slack
    # After a step the gradient is that before it: the gain is known, and what is left of the bound is at most L - 1 of it.
    for before, after in itertools.pairwise(solution.trace):
        bound = (largest - 1.0) * (before.objective - best) + after.objective - best
        assert after.objective_gap <= bound + slack


def _exact_mode(model, solution):
    """The exact mode of the objective that the last stage minimised."""
    prior = model.prior_at(model.train_inputs)
    calculus = as_likelihood(model.likelihood)
    problem = Problem(prior.mean.detach(), model.make_operator(prior), LaplaceSite(model.observations))
    if solution.approximation == "variational" and not calculus.quadratic:
        first = solve_problem(problem, model.solver, final=False)  # deterministic: the same marginals again
        site = VariationalSite.from_covariance(model.observations, first.latent_covariance)
        problem = problem.with_site(site)
    return solve_problem(problem, DenseNewton(covariance=False))


def _latent_mean(model, solution, x):
    with torch.no_grad():
        operator = model.make_operator(model.prior_at(model.train_inputs))
        return LatentPosterior.at(model.prior_at((x,)), operator, solution, covariance=False).mean


@settings(max_examples=60)
@given(
    name=st.sampled_from(NAMES),
    seed=st.integers(0, 10_000),
    scale=st.floats(0.1, 100.0),
    ranks=st.lists(st.integers(1, 60), min_size=2, max_size=3, unique=True),
    narrow=st.booleans(),
)
def test_the_variance_is_never_below_the_exact_one_and_never_grows_with_rank(name, seed, scale, ranks, narrow):
    dtype = torch.float32 if narrow else torch.float64
    case = CASES[name]
    x, y = case.data(30, dtype=dtype, seed=seed)
    test_x = make_inputs(9, dtype=dtype, seed=seed + 1)
    model = SimpleGP(x, y, case.make(), kernel=make_kernel(1.0, scale)).to(dtype).eval()
    tolerance = 1e-6 if narrow else 1e-13
    dense, _ = solved(model, DenseNewton())
    slack = scale * (2e-4 if narrow else 1e-6)
    previous = None
    for rank in sorted(ranks):
        ours, solution = solved(model, SubspaceNewton(tolerance=tolerance, covariance_rank=rank, max_passes=12))
        with torch.no_grad():
            difference = ours(test_x).covariance_matrix - dense(test_x).covariance_matrix
            assert float(eigenvalues(difference).min()) >= -slack
            assert float((ours(test_x).variance - model.covar_module(test_x, diag=True).max()).max()) <= slack
            if previous is not None:
                assert float((ours(test_x).variance - previous).max()) <= slack
            previous = ours(test_x).variance
        assert solution.rank <= rank


@given(
    name=st.sampled_from(NAMES), seed=st.integers(0, 10_000), scale=st.floats(0.1, 1000.0), max_rank=st.integers(6, 80)
)
def test_the_objective_never_increases(name, seed, scale, max_rank):
    case = CASES[name]
    x, y = case.data(40, dtype=torch.float32, seed=seed)
    solver = SubspaceNewton(max_rank=max_rank, tolerance=1e-7, max_passes=15)
    model = SimpleGP(x, y, case.make(), kernel=make_kernel(0.7, scale), solver=solver).eval()
    solution = model.condition()
    for site in {(record.stage, record.round) for record in solution.trace}:
        objectives = [record.objective for record in solution.trace if (record.stage, record.round) == site]
        for before, after in itertools.pairwise(objectives):
            assert after <= before + 1e-4 * (1.0 + abs(before))
    assert max(record.rank for record in solution.trace) <= max(max_rank, 40 if max_rank >= 40 else 0)


@pytest.mark.parametrize("kind", ["dense", "blocked"])
@pytest.mark.parametrize("name", NAMES)
def test_operators_give_the_same_posterior(name, kind):
    x = make_inputs(7, seed=5)
    reference = make_model(name)
    other = make_model(name, operator=kind)
    assert_close(other(x).mean, reference(x).mean, "posterior")
    assert_close(other(x).variance, reference(x).variance, "posterior")


def test_gaussian_likelihood_equals_exact_gp():
    x, y = CASES["gaussian"].data(60)
    test_x = make_inputs(9, seed=5)
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    likelihood.noise = 0.05

    class Exact(gpytorch.models.ExactGP):
        def __init__(self, kernel):
            super().__init__(x, y, likelihood)
            self.mean_module, self.covar_module = gpytorch.means.ConstantMean(), kernel

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    kernel = make_kernel().double()
    ours = SimpleGP(x, y, likelihood, kernel=kernel, solver=EXACT).double().eval()
    exact = Exact(kernel).double()
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, exact)
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
        evidence = objective(exact(x), y) * len(y)
        expected, actual = exact.eval()(test_x), ours(test_x)
        assert_close(actual.mean, expected.mean, "posterior")
        assert_close(actual.covariance_matrix, expected.covariance_matrix, "posterior")
        assert_close(likelihood(actual).variance, likelihood(expected).variance, "posterior")
        assert_close(ours.predict(test_x).variance, likelihood(expected).variance, "posterior")
    assert ours.solution.log_marginal_likelihood == pytest.approx(float(evidence), rel=1e-9)
    assert ours.solution.elbo == pytest.approx(float(evidence), rel=1e-9)


def test_the_elbo_is_below_the_evidence_and_grows_with_rank():
    model = make_model("gaussian", num_rows=60)
    _, exact = solved(model, EXACT)
    bounds = [solved(model, SubspaceNewton(covariance_rank=r, tolerance=1e-12))[1].elbo for r in (0, 1, 3, 10, 30, 60)]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[-1] <= exact.log_marginal_likelihood + 1e-8
    assert bounds[-1] == pytest.approx(exact.log_marginal_likelihood, rel=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_recycling_changes_cost_and_not_the_answer(name):
    x = make_inputs(7, seed=5)
    model = make_model(name, solver=EXACT)
    first = model.condition()
    again = model.condition()
    assert again.kernel_passes < first.kernel_passes
    assert_close(again.latent_values, first.latent_values, "posterior")
    model.covar_module.outputscale = 5.0
    warm = model.condition()
    twin = copy.deepcopy(model)
    twin.prediction_strategy = None
    cold = twin.condition()
    assert warm.kernel_passes <= cold.kernel_passes + 1
    assert_close(model(x).mean, twin(x).mean, "posterior")


@pytest.mark.parametrize("name", LOG_CONCAVE)
def test_compression_keeps_the_iterate_and_the_certificate(name):
    model = make_model(name, num_rows=60, kernel=make_kernel(0.3))
    dense, _ = solved(model, DenseNewton(covariance=False))
    small = SubspaceNewton(max_rank=12, num_blocks=4, max_passes=25, tolerance=1e-9)
    _, solution = solved(model, small)
    assert max(record.rank for record in solution.trace) <= 12
    assert any("compressed" in record.event for record in solution.trace)
    assert solution.certificate is not None
    gap = solution.objective - dense.solution.objective
    assert -1e-8 <= gap <= solution.certificate.objective_gap + 1e-8
    objectives = [record.objective for record in solution.trace]
    assert objectives == sorted(objectives, reverse=True)


def test_permuting_rows_or_classes_permutes_the_answer():
    x, y = CASES["categorical"].data(40)
    test_x = make_inputs(7, seed=5)
    rows, classes = torch.randperm(40), torch.tensor([2, 0, 1])
    solver = SubspaceNewton(tolerance=1e-11)

    def probs(x, y):
        model = SimpleGP(x, y, CASES["categorical"].make(), solver=solver, approximation="laplace").double().eval()
        return torch.softmax(model.latent_mean(test_x), -1).detach()

    reference = probs(x, y)
    assert_close(probs(x[rows], y[rows]), reference, "posterior")
    assert_close(probs(x, classes[y])[:, classes], reference, "posterior")


def test_tolerances_cover_both_dtypes():
    assert set(TOLERANCE) == {torch.float32, torch.float64}


@given(
    name=st.sampled_from(NAMES),
    seed=st.integers(0, 10_000),
    scale=st.floats(0.5, 200.0),
    passes=st.integers(2, 5),
    rank=st.integers(1, 60),
)
def test_stopped_early_the_variance_is_not_below_the_exact_one_at_its_own_curvature(name, seed, scale, passes, rank):
    case = CASES[name]
    x, y = case.data(25, seed=seed)
    solver = SubspaceNewton(max_passes=passes, covariance_rank=rank, tolerance=1e-12)
    model = SimpleGP(x, y, case.make(), kernel=make_kernel(0.5, scale), solver=solver).double().eval()
    model.approximation = "laplace"
    solution = model.condition()
    assert solution.kernel_passes <= passes
    likelihood = as_likelihood(model.likelihood)
    with torch.no_grad():
        curvature = likelihood.covariance_curvature(solution.latent_values, model.train_targets)
        matrix = model.covar_module(x).to_dense()
        latents = curvature.shape[-1]
        prior = torch.kron(matrix, torch.eye(latents, dtype=matrix.dtype))
        exact = torch.linalg.inv(torch.eye(len(prior)) + prior @ torch.block_diag(*curvature)) @ prior
        blocks = exact.unflatten(0, (-1, latents)).unflatten(-1, (-1, latents)).diagonal(dim1=0, dim2=2).movedim(-1, 0)
        assert float(eigenvalues(solution.latent_covariance - blocks).min()) >= -1e-6 * scale


def test_a_certificate_knows_that_the_kernel_matrix_is_indefinite():
    """That of a fine grid is, by 1e-7: a large residual can then have a negative norm, and is not small for that."""
    x = make_inputs(40, 1)
    y = torch.sin(3.0 * x[:, 0])
    grid = gpytorch.kernels.GridInterpolationKernel(
        gpytorch.kernels.RBFKernel(), grid_size=100, grid_bounds=[(-4.0, 4.0)]
    )
    solver = SubspaceNewton(tolerance=1e-14)
    model = SimpleGP(x, y, GaussianLikelihood(noise=0.01), kernel=gpytorch.kernels.ScaleKernel(grid), solver=solver)
    model = model.double().eval()
    with torch.no_grad():
        model(x)
        grid.base_kernel.lengthscale = 1.5
        solution, matrix = model.solution, model.conditioned.operator.dense()[0]
        exact = matrix @ torch.linalg.solve(matrix + 0.01 * torch.eye(40), y)
        error = (solution.latent_values[:, 0] - exact).abs()
        assert bool((error <= solution.certificate.latent_error(x)[:, 0] + 1e-9).all())
