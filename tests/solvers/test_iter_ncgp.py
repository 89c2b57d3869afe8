"""IterNCGP against the dense reference: the published method, its cost, and how it ends."""

from __future__ import annotations

import copy
import gc
import itertools

import pytest
import torch
from helpers import (
    CASES,
    CORE,
    DTYPES,
    SimpleGP,
    assert_close,
    assert_same_posterior,
    make_batch_kernel,
    make_inputs,
    make_kernel,
    make_model,
)

from itergp import InputError, SolverError
from itergp.models import UncertaintyDecomposition
from itergp.solvers import DenseNewton, IterNCGP, Reason, SubspaceNewton, policies

NAMES = (*CORE, "ordinal-logit", "weibull")
APPROXIMATIONS = ("laplace", "variational")
KERNELS = [*((name, make_kernel) for name in NAMES), ("categorical", make_batch_kernel)]
FULL_RANK = {
    "cholesky": {"policy": policies.UnitVectors(rows=8), "iterations": 5},
    "cg": {"policy": policies.CG(), "iterations": None, "inner_tolerance": 1e-13},
    "preconditioned": {"policy": policies.PreconditionedCG(rank=10), "iterations": None, "inner_tolerance": 1e-13},
    "mixed": {"policy": policies.Mixed((policies.ClassGradient(), policies.UnitVectors(rows=8))), "iterations": 5},
}
TIGHT = {"tolerance": 1e-12, "max_passes": 2000, "step": "backtracking"}


# ------------------------------------------------------------- the dense reference
@pytest.mark.parametrize("approximation", APPROXIMATIONS)
@pytest.mark.parametrize("policy", ["cholesky", "mixed"])
@pytest.mark.parametrize(("name", "kernel"), KERNELS)
def test_all_actions_equal_the_dense_reference(name, policy, kernel, approximation):
    exact = make_model(name, kernel=kernel(), solver=DenseNewton(), approximation=approximation)
    solver = IterNCGP(**FULL_RANK[policy], **TIGHT)
    ours = make_model(name, kernel=kernel(), solver=solver, approximation=approximation)
    expected, solution = exact.condition(), ours.condition()
    assert solution.converged
    assert_same_posterior(ours, exact)
    if approximation == "laplace":
        assert solution.log_marginal_likelihood == pytest.approx(expected.log_marginal_likelihood, rel=1e-6)


@pytest.mark.parametrize("policy", sorted(FULL_RANK))
@pytest.mark.parametrize("name", NAMES)
def test_every_policy_finds_the_mode(name, policy):
    exact = make_model(name, solver=DenseNewton(), approximation="laplace").condition()
    solver = IterNCGP(**FULL_RANK[policy], **TIGHT)
    solution = make_model(name, solver=solver, approximation="laplace").condition()
    assert solution.objective == pytest.approx(exact.objective, abs=1e-7)
    assert_close(solution.latent_values, exact.latent_values, "derivative")


@pytest.mark.parametrize("name", NAMES)
def test_one_newton_step_with_all_actions_is_the_published_one(name):
    solver = IterNCGP(policy=policies.UnitVectors(rows=40), iterations=1, max_steps=1, step="full", tolerance=1e-14)
    model = make_model(name, kernel=make_kernel(1.0, 0.3), solver=solver, approximation="laplace")
    solution = model.condition()
    prior = model.prior_at(model.train_inputs)
    mean, kernel = prior.mean.detach(), model.covar_module(model.train_inputs[0]).to_dense().detach()
    gradient, curvature = model.likelihood.derivatives(mean, model.train_targets)
    latents = mean.shape[1]
    joint = torch.kron(kernel, torch.eye(latents, dtype=torch.float64))
    b = gradient.reshape(-1, 1)  # W (f - m) + g at f = m
    system = torch.eye(len(joint), dtype=torch.float64) + joint @ torch.block_diag(*curvature)
    expected = mean + torch.linalg.solve(system, joint @ b).reshape(mean.shape)
    assert_close(solution.latent_values, expected, "posterior")
    assert solution.trace[-1].newton_steps == 1


# ------------------------------------------------------------------------------ laws
@pytest.mark.parametrize("recycle", [True, False])
@pytest.mark.parametrize("compression", ["published", "informative"])
@pytest.mark.parametrize("name", NAMES)
def test_backtracking_never_increases_the_objective_and_the_certificate_holds(name, compression, recycle):
    solver = IterNCGP(
        step="backtracking", max_rank=12, compression=compression, recycle=recycle, max_passes=40, tolerance=1e-8
    )
    model = make_model(name, kernel=make_kernel(0.5, 30.0), solver=solver, approximation="laplace")
    solution = model.condition()
    exact = make_model(
        name, kernel=make_kernel(0.5, 30.0), solver=DenseNewton(covariance=False), approximation="laplace"
    ).condition()
    objectives = [record.objective for record in solution.trace]
    assert all(after <= before + 1e-9 * (1 + abs(before)) for before, after in itertools.pairwise(objectives))
    assert solution.objective - exact.objective <= solution.certificate.objective_gap + 1e-7
    assert max(record.rank for record in solution.trace) <= 12
    assert solution.kernel_passes <= 40


@pytest.mark.parametrize("max_rank", [None, 15])
@pytest.mark.parametrize("name", NAMES)
def test_the_variance_is_never_below_the_exact_one(name, max_rank):
    x = make_inputs(9, seed=5)
    for passes in (2, 5, 9):
        solver = IterNCGP(step="backtracking", max_rank=max_rank, max_passes=passes, tolerance=1e-12)
        model = make_model(name, kernel=make_kernel(0.7, 20.0), solver=solver, approximation="laplace")
        parts = model.decompose_uncertainty(x)
        assert parts.exact
        combined, exact = parts.combined, parts.mathematical
        assert bool((combined >= exact - 1e-9).all())
        assert_close(combined, model(x).variance.reshape(combined.shape), "derivative")
        assert model.solution.kernel_passes <= passes


@pytest.mark.parametrize("name", NAMES)
def test_full_rank_compression_and_recycling_change_nothing_but_cost(name):
    settings = {"step": "backtracking", "tolerance": 1e-14, "max_passes": 800}
    plain = make_model(name, solver=IterNCGP(**settings), approximation="laplace").condition()
    capped = make_model(name, solver=IterNCGP(max_rank=200, **settings), approximation="laplace").condition()
    forgetful = IterNCGP(recycle=False, iterations=None, inner_tolerance=1e-9, **settings)
    other = make_model(name, solver=forgetful, approximation="laplace").condition()
    assert capped.kernel_passes == plain.kernel_passes
    assert_close(capped.latent_values, plain.latent_values)
    assert_close(other.latent_values, plain.latent_values, "derivative")
    assert other.kernel_passes > plain.kernel_passes or name == "gaussian"


@pytest.mark.parametrize("name", NAMES)
def test_one_kernel_product_per_action(name):
    solver = IterNCGP(step="backtracking", iterations=3, inner_tolerance=1e-14, max_passes=11, tolerance=1e-14)
    model = make_model(name, solver=solver, approximation="laplace")
    solution = model.condition()
    assert solution.kernel_passes == 11
    # One product per action, the last of them for the certificate; the weights are an action at no product.
    assert [record.kernel_passes for record in solution.trace] == list(range(1, 11))
    assert solution.rank <= 11 + 1
    assert model.last_conditioned.operator.counts.columns == 11 * model.solution.representer_weights.shape[1]


@pytest.mark.parametrize("name", ["bernoulli-logit", "categorical"])
def test_solutions_are_recycled_by_the_next_conditioning(name):
    solver = IterNCGP(step="backtracking", tolerance=1e-14, max_passes=300)
    model = make_model(name, solver=solver, approximation="laplace")
    first = model.condition()
    again = model.condition()
    assert again.kernel_passes <= 3
    assert_close(again.latent_values, first.latent_values, "derivative")
    model.covar_module.outputscale = 5.0
    warm = model.condition()
    cold = copy.deepcopy(model)
    cold.prediction_strategy = None
    assert warm.kernel_passes <= cold.condition().kernel_passes + 1
    assert_close(warm.latent_values, cold.solution.latent_values, "derivative")


@pytest.mark.parametrize("dtype", DTYPES)
def test_saturated_classes_stay_finite(dtype):
    x = make_inputs(60, dtype=dtype)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    for step in ("full", "backtracking"):
        solver = IterNCGP(step=step, max_passes=40)
        likelihood = CASES["categorical"].make()
        model = SimpleGP(x, y, likelihood, kernel=make_kernel(1.0, 500.0), solver=solver).to(dtype).eval()
        solution = model.condition()
        assert bool(torch.isfinite(solution.latent_values).all())
        probs = model.predict(make_inputs(9, dtype=dtype, seed=3)).probs
        assert bool(torch.isfinite(probs).all())
        assert str(solution.status)


def test_divergence_is_said_and_the_best_state_returned():
    solver = IterNCGP(iterations=1, max_passes=60, tolerance=1e-12)
    model = make_model(
        "categorical", num_rows=80, kernel=make_kernel(0.4, 2000.0), solver=solver, approximation="laplace"
    )
    solution = model.condition()
    before = model.train_targets.numel() * torch.log(torch.tensor(3.0))  # the prior mean's objective
    assert solution.status.reason is Reason.DIVERGED
    assert 'step="backtracking"' in str(solution.status)
    assert solution.objective <= float(before) + 1e-6
    assert any("increased" in record.event for record in solution.trace)
    model.solver = IterNCGP(iterations=1, max_passes=60, tolerance=1e-12, step="backtracking")
    assert model.condition().objective < solution.objective


def test_no_third_large_array_while_it_runs():
    solver = IterNCGP(step="backtracking", max_rank=24, max_passes=60, tolerance=1e-13, inner_tolerance=1e-14)
    model = make_model("poisson", num_rows=3000, dtype=torch.float32, solver=solver, approximation="laplace")
    model.operator_kind = "blocked"
    seen = []

    def large() -> set[int]:  # by memory, because views share it
        gc.collect()
        storages = [t.untyped_storage() for t in gc.get_objects() if type(t) is torch.Tensor and t.numel() >= 3000 * 12]
        return {storage.data_ptr() for storage in storages if storage.nbytes() >= 3000 * 24 * 4}

    def watch(record):
        if record.rank == 24:
            seen.append(len(large() - before))

    held = [
        t for t in gc.get_objects() if type(t) is torch.Tensor
    ]  # of other tests, whose memory is not to be had again
    before = large()
    model.condition(callback=watch)
    assert seen
    assert max(seen) == 2
    del held


# --------------------------------------------------------------- how a solve ends
def test_status_says_how_the_solve_ended():
    few = policies.KernelColumns(num_inputs=3, width=3)
    cases = {
        Reason.PASSES: IterNCGP(max_passes=4, tolerance=1e-12),
        Reason.STEPS: IterNCGP(max_steps=2, tolerance=1e-12),
        Reason.TIME: IterNCGP(time_limit=1e-9, tolerance=1e-12),
        Reason.POLICY: IterNCGP(policy=few, tolerance=1e-12, step="backtracking"),
        Reason.CONVERGED: IterNCGP(),
    }
    for reason, solver in cases.items():
        solution = make_model("bernoulli-logit", solver=solver, approximation="laplace").condition()
        assert solution.status.reason is reason, str(solution.status)
        assert solution.rank > 0


def test_what_is_not_known_is_infinite():
    solver = IterNCGP(max_passes=3, covariance=False, tolerance=1e-12)
    solution = make_model("bernoulli-logit", solver=solver, approximation="laplace").condition()
    assert solution.certificate.objective_gap == float("inf")
    assert solution.rank == 0


def test_a_nan_carries_the_last_good_solution(monkeypatch):
    model = make_model("bernoulli-logit", solver=IterNCGP(max_passes=20, tolerance=1e-12), approximation="laplace")
    model.condition()
    original, calls = type(model.likelihood).derivatives, []

    def spoiled(self, f, targets):
        calls.append(1)
        gradient, curvature = original(self, f, targets)
        return (gradient * float("nan"), curvature) if len(calls) > 2 else (gradient, curvature)

    monkeypatch.setattr(type(model.likelihood), "derivatives", spoiled)
    model.prediction_strategy = None
    try:
        solution = model.condition()
    except SolverError as error:
        solution = error.solution
    assert bool(torch.isfinite(solution.latent_values).all())
    assert not solution.converged


def test_solvers_compare_by_their_settings():
    assert IterNCGP(iterations=3) == IterNCGP(iterations=(3,))
    assert IterNCGP() != IterNCGP(step="backtracking")
    assert IterNCGP(policy=policies.CG()) == IterNCGP()
    assert IterNCGP(step="backtracking").loosened(10.0).step_rule == "backtracking"
    model = make_model("bernoulli-logit", solver=IterNCGP())
    first = model.solution
    assert model.solution is first
    model.solver = IterNCGP(policy=policies.Gradient())
    assert model.solution is not first


# ----------------------------------------------------------- parts of uncertainty
@pytest.mark.parametrize("approximation", APPROXIMATIONS)
@pytest.mark.parametrize(("name", "kernel"), KERNELS)
def test_bounds_enclose_the_exact_decomposition(name, approximation, kernel):
    solver = SubspaceNewton(covariance_rank=4)
    model = make_model(name, num_rows=50, kernel=kernel(), solver=solver, approximation=approximation)
    x = make_inputs(9, seed=5)
    exact = model.decompose_uncertainty(x)
    assert isinstance(exact, UncertaintyDecomposition)
    assert exact.exact
    assert_close(exact.combined, model(x).variance.reshape(exact.combined.shape), "derivative")
    assert_close(exact.mathematical + exact.computational, exact.combined)
    assert float(exact.computational.max()) > 1e-3
    widths = []
    for passes in (1, 2, 6):
        bounds = model.decompose_uncertainty(x, passes=passes, dense_limit=1)
        assert not bounds.exact
        assert bool((bounds.mathematical >= exact.mathematical - 1e-9).all())
        assert bool((bounds.mathematical - bounds.slack <= exact.mathematical + 1e-9).all())
        assert bool((bounds.computational <= exact.computational + 1e-9).all())
        widths.append(float(bounds.slack.max()))
    assert widths[0] >= widths[1] >= widths[2]
    assert widths[2] < 0.1 * widths[0] + 1e-9


def test_the_exact_decomposition_of_the_reference_has_no_computational_part():
    model = make_model("categorical", solver=DenseNewton(), approximation="laplace")
    parts = model.decompose_uncertainty(make_inputs(5, seed=5))
    assert float(parts.computational.max()) < 1e-9


def test_a_solution_without_curvature_cannot_be_decomposed():
    import dataclasses

    model = make_model("poisson")
    found = model.condition()
    model.adopt(dataclasses.replace(found, posterior=dataclasses.replace(found.posterior, curvature=None)))
    with pytest.raises(InputError, match=r"need the curvature .* Got a solution without it"):
        model.decompose_uncertainty(make_inputs(3))


def test_the_plot_shows_both_parts():
    figure = pytest.importorskip("matplotlib.figure")
    from itergp.diagnostics import plot_uncertainty

    model = make_model("poisson", num_rows=30, solver=SubspaceNewton(covariance_rank=2))
    x = make_inputs(20, seed=5)
    parts = model.decompose_uncertainty(x)
    axes = figure.Figure().subplots()
    plot_uncertainty(axes, x[:, 0], model.latent_mean(x), parts)
    labels = [artist.get_label() for artist in axes.collections] + [line.get_label() for line in axes.lines]
    assert {"computational", "mathematical", "posterior mean"} <= set(labels)
    top = max(path.vertices[:, 1].max() for band in axes.collections[:1] for path in band.get_paths())
    highest = model.latent_mean(x)[:, 0] + 2.0 * parts.combined[:, 0].sqrt()
    assert top == pytest.approx(float(highest.max()), rel=1e-6)
