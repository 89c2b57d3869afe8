"""Laws of the posterior: local actions, rounds until it is stationary, tempering."""

from __future__ import annotations

import copy
import math

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from helpers import CASES, SimpleGP, assert_close, make_batch_kernel, make_binary, make_inputs, make_kernel, make_model
from hypothesis import given
from hypothesis import strategies as st

import itergp
from itergp.learning import calibration
from itergp.likelihoods import BernoulliLikelihood, LaplaceSite, PoissonLikelihood, VariationalSite
from itergp.models.uncertainty import exact_variance
from itergp.objectives import ComputationAwareELBO
from itergp.operators import Neighbourhoods, make_operator
from itergp.operators.neighbours import NearestRows
from itergp.posterior.tempering import EXPONENTS, remaining_share, tempered
from itergp.solvers import (
    DenseNewton,
    IterNCGP,
    LinearTimeNewton,
    Problem,
    Reason,
    SubspaceNewton,
    policies,
    solve_problem,
)
from itergp.solvers.run import rounds

SINGLE, SEVERAL = "bernoulli-logit", "categorical"


def _rough(scale: float = 20.0):
    return make_kernel(0.3, scale)


def _composite():
    return ScaleKernel(RBFKernel()) + ScaleKernel(MaternKernel(nu=0.5))


KERNELS = {"radial": _rough, "not radial": _composite, "one per class": make_batch_kernel}


def _model(name: str = SINGLE, kernel=_rough, *, rank: int = 6, neighbours: int = 5, rows: int = 60, **options):
    solver = options.pop("solver", SubspaceNewton(covariance_rank=rank, num_neighbours=neighbours, tolerance=1e-10))
    return make_model(name, num_rows=rows, kernel=kernel(), solver=solver, **options)


def _exact(model, x) -> torch.Tensor:
    """The exact variance for the curvature at the returned mean ``(M, C)``."""
    with torch.no_grad():
        return exact_variance(model.conditioned.operator, model.solution.curvature, model.prior_at((x,)).features)


def _cases():
    for name in (SINGLE, SEVERAL):
        for kind in KERNELS:
            if name == SEVERAL or kind != "one per class":
                yield pytest.param(name, KERNELS[kind], id=f"{name}, {kind}")


# -------------------------------------------------------------- local actions
@pytest.mark.parametrize(("name", "kernel"), list(_cases()))
def test_joint_actions_are_between_the_exact_variance_and_either_alone(name, kernel):
    x = make_inputs(25, seed=4)
    joint = _model(name, kernel, approximation="laplace")
    shared = _model(name, kernel, neighbours=0, approximation="laplace")
    alone = _model(name, kernel, rank=1, approximation="laplace")
    with torch.no_grad():
        both, few, near = (model(x).variance.reshape(25, -1) for model in (joint, shared, alone))
    exact = _exact(joint, x)
    assert float((both / exact).min()) > 1.0 - 1e-9
    assert float((both - torch.minimum(few, near)).max()) < 1e-9
    assert float((both / few).median()) < 0.99  # neighbours do say something


@pytest.mark.parametrize(("name", "kernel"), list(_cases()))
def test_the_joint_covariance_of_a_call_exceeds_the_exact_one(name, kernel):
    model, x = _model(name, kernel, approximation="laplace"), make_inputs(12, seed=4)
    dense = _model(name, kernel, solver=DenseNewton(), approximation="laplace")
    with torch.no_grad():
        latent = model(x)
        covariance, exact = latent.covariance_matrix, dense(x).covariance_matrix
        assert_close(covariance.diagonal(), latent.variance.flatten(), "posterior")
        assert float(torch.linalg.eigvalsh(covariance).min()) > -1e-8
        assert float(torch.linalg.eigvalsh(covariance - exact).min()) > -1e-6
        marginal = model.latent_posterior(x).row_covariance()
        assert_close(latent.variance.reshape(12, -1), marginal.diagonal(dim1=-2, dim2=-1), "posterior")
        # A process: some of the inputs have the covariance that they have among all.
        size = covariance.shape[0] // 12
        assert_close(model(x[:5]).covariance_matrix, covariance[: 5 * size, : 5 * size], "posterior")


def test_large_calls_have_the_covariance_of_small_ones(monkeypatch):
    model, x = _model(approximation="laplace"), make_inputs(12, seed=4)
    with torch.no_grad():
        small = model(x)
        monkeypatch.setattr("itergp.models.latent._EAGER_VALUES", 4)
        large = model(x)
        assert_close(large.covariance_matrix, small.covariance_matrix, "posterior")
        assert_close(large.variance, small.variance, "posterior")
        assert_close(large[3:7].covariance_matrix, small.covariance_matrix[3:7, 3:7], "posterior")
        assert large.rsample(torch.Size([2])).shape == (2, 12)


@pytest.mark.parametrize("approximation", ["laplace", "variational"])
@pytest.mark.parametrize("name", [SINGLE, "poisson"])
def test_all_rows_as_neighbours_are_exact(name, approximation):
    x = make_inputs(9, seed=4)
    ours = _model(name, neighbours=60, rank=4, approximation=approximation)
    dense = _model(name, solver=DenseNewton(), approximation=approximation)
    with torch.no_grad():
        assert_close(ours(x).mean, dense(x).mean, "posterior")
        assert_close(ours(x).covariance_matrix, dense(x).covariance_matrix, "posterior")


@given(seed=st.integers(0, 1000), scale=st.floats(0.5, 200.0), rank=st.integers(1, 20))
def test_the_variance_never_grows_with_more_neighbours(seed, scale, rank):
    x, y = make_binary(50, seed=seed)
    test_x, previous = make_inputs(15, seed=seed + 1), None
    for neighbours in (0, 1, 3, 10, 50):
        solver = SubspaceNewton(covariance_rank=rank, num_neighbours=neighbours, tolerance=1e-8)
        options = {"kernel": make_kernel(0.4, scale), "solver": solver, "approximation": "laplace"}
        model = SimpleGP(x, y, BernoulliLikelihood(), **options).double().eval()
        with torch.no_grad():
            variance = model(test_x).variance
        if previous is not None:
            assert float((variance - previous).max()) <= 1e-8 * scale
        previous = variance


def test_rows_that_say_nothing_are_no_neighbours():
    """Ten observed rows among sixty: ten neighbours are all of them."""
    x, y = make_binary(60)
    weight = torch.zeros(60, dtype=torch.float64)
    weight[::6] = 1.0
    solver = SubspaceNewton(covariance_rank=2, num_neighbours=10, tolerance=1e-10)
    options = {"kernel": _rough(), "approximation": "laplace"}
    some = SimpleGP(x, y, BernoulliLikelihood(), solver=solver, sample_weight=weight, **options).double().eval()
    observed = SimpleGP(x[::6], y[::6], BernoulliLikelihood(), solver=DenseNewton(), **options).double().eval()
    test_x = make_inputs(9, seed=4)
    with torch.no_grad():
        assert_close(some(test_x).covariance_matrix, observed(test_x).covariance_matrix, "posterior")


def test_permuting_rows_changes_nothing():
    x, y = make_binary(60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    test_x = make_inputs(9, seed=4)
    found = []
    for rows in (torch.arange(60), order):
        solver = SubspaceNewton(covariance_rank=60, num_neighbours=5, tolerance=1e-12)
        model = SimpleGP(x[rows], y[rows], BernoulliLikelihood(), kernel=_rough(), solver=solver).double().eval()
        with torch.no_grad():
            found.append(model(test_x).variance)
    assert_close(found[1], found[0], "posterior")


@pytest.mark.parametrize("kernel", [_rough, _composite])
def test_linear_time_has_neighbours_among_all_rows(kernel):
    x = make_inputs(25, seed=4)
    options = {"policy": policies.UnitVectors(order="random", rows=10), "covariance_rank": 8}
    near = _model(kernel=kernel, rows=80, solver=LinearTimeNewton(num_support=10, num_neighbours=12, **options))
    none = _model(kernel=kernel, rows=80, solver=LinearTimeNewton(num_support=10, num_neighbours=0, **options))
    with torch.no_grad():
        ratio = near(x).variance[:, None] / _exact(near, x)
        wide = none(x).variance[:, None] / _exact(none, x)
    assert float(ratio.min()) > 1.0 - 1e-9
    assert float(ratio.median()) < 0.8 * float(wide.median())


def test_variances_with_neighbours_are_differentiable_in_the_inputs():
    model = _model(kernel=lambda: ScaleKernel(RBFKernel()), approximation="laplace")
    x = make_inputs(4, seed=3).requires_grad_(True)
    model(x).variance.sum().backward()
    numeric, step = torch.zeros_like(x), 1e-6
    with torch.no_grad():
        for i in range(4):
            for d in range(2):
                moved = x.detach().clone()
                moved[i, d] += step
                above = model(moved).variance.sum()
                moved[i, d] -= 2 * step
                numeric[i, d] = (above - model(moved).variance.sum()) / (2 * step)
    assert_close(x.grad, numeric, dtype=torch.float32)


def test_files_and_copies_keep_local_actions(tmp_path):
    model, x = _model(), make_inputs(9, seed=4)
    with torch.no_grad():
        expected = model(x).covariance_matrix
    model.save(tmp_path / "model.safetensors")
    other = _model()
    other.load(tmp_path / "model.safetensors")
    for again in (other, copy.deepcopy(model)):
        assert again.solution.local.num_neighbours == 5
        with torch.no_grad():
            assert_close(again(x).covariance_matrix, expected, "posterior")


def test_a_tree_finds_the_nearest_rows():
    points = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = NearestRows(points).nearest(points[:20], 7)
    expected = torch.cdist(points[:20], points).topk(7, largest=False).indices
    assert torch.equal(found, expected)
    some = torch.arange(0, 500, 5)
    assert bool(torch.isin(NearestRows(points, some).nearest(points[:20], 7), some).all())
    assert NearestRows(points, some[:3]).nearest(points[:20], 7).shape == (20, 3)


@pytest.mark.parametrize("kernel", [_rough, _composite, make_batch_kernel])
def test_entries_of_neighbourhoods_are_those_of_the_kernel(kernel):
    kernel, x = kernel().double(), make_inputs(40)
    operator = make_operator(kernel.requires_grad_(False), x, num_kernels=kernel.batch_shape.numel())
    hoods, z = Neighbourhoods(operator), make_inputs(6, seed=1)
    rows = hoods.nearest(z, 5)
    dense = operator.dense()
    for m in range(6):
        assert_close(hoods.entries(rows)[:, m], dense[:, rows[m]][:, :, rows[m]])
    cross = kernel(z, x).to_dense().reshape(-1, 6, 40)
    assert_close(hoods.cross(z, rows), cross.gather(-1, rows.expand(len(cross), -1, -1)))


# ------------------------------------------------------------------- rounds
def _counts(level: float, rows: int = 100):
    x = torch.linspace(0.0, 3.46, rows, dtype=torch.float64)[:, None]
    generator = torch.Generator().manual_seed(0)
    return x, torch.poisson((level + torch.sin(1.73 * x[:, 0])).exp(), generator=generator)


def _counting(level: float, solver, **options):
    x, y = _counts(level)
    model = SimpleGP(x, y, PoissonLikelihood(), kernel=make_kernel(0.5, 1.0), solver=solver, **options).double().eval()
    model.mean_module.constant.data.fill_(level)
    return model


@pytest.mark.parametrize("level", [0.0, 6.0, 10.0, 14.0])
def test_the_variational_mean_is_that_of_the_dense_solver(level):
    ours, dense = _counting(level, SubspaceNewton(tolerance=1e-10)), _counting(level, DenseNewton())
    a, b = ours.condition(), dense.condition()
    assert a.status.converged
    deviation = b.latent_covariance[..., 0].sqrt()
    assert float(((a.latent_values - b.latent_values) / deviation).abs().max()) < 1e-3
    assert a.elbo == pytest.approx(b.elbo, abs=0.01)


@pytest.mark.parametrize(
    "solver", [SubspaceNewton(), SubspaceNewton(covariance_rank=20), LinearTimeNewton(), DenseNewton()]
)
@pytest.mark.parametrize("name", ["bernoulli-probit", "poisson", "weibull", SEVERAL])
def test_gradients_are_expected_under_the_marginals_that_are_returned(name, solver):
    model = _model(name, rows=80, solver=solver)
    solution = model.condition()
    assert solution.variational_residual <= (0.1 if name == SEVERAL else 0.02)
    if isinstance(solver, LinearTimeNewton) and solution.support is not None and len(solution.support) < 80:
        return
    site = VariationalSite.from_covariance(model.observations, solution.latent_covariance)
    with torch.no_grad():
        gradient, _ = site.derivatives(solution.latent_values)
    deviation = solution.latent_covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    step = ((gradient - solution.representer_weights) * deviation).abs().max()
    assert float(step) < 0.1


# Two of the densities have several local optima.
EXPONENTIAL = ("poisson", "poisson-exposure", "exponential", "weibull")
BOUNDED = sorted(set(CASES) - {"student-t", "beta"})
STEEP = (
    "bernoulli-probit",
    "binomial",
    "ordinal-logit",
    "negative-binomial",
    "gamma",
    "heteroscedastic",
    "laplace",
    "log-normal",
    *EXPONENTIAL,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scale"), [(name, scale) for scale in (1e-2, 30.0) for name in BOUNDED] + [(name, 300.0) for name in STEEP]
)
def test_the_bound_is_that_of_the_dense_solver(name, scale):
    kernel = lambda: make_kernel(0.7, scale)  # noqa: E731
    ours = _model(name, kernel, rows=150, solver=SubspaceNewton())
    dense = _model(name, kernel, rows=150, solver=DenseNewton())
    assert abs(ours.condition().elbo - dense.condition().elbo) < 0.01 * 150


@pytest.mark.parametrize("name", ["poisson", "weibull", "exponential", "bernoulli-cloglog"])
@pytest.mark.parametrize("solver", [SubspaceNewton(), DenseNewton()], ids=["subspace", "dense"])
def test_rows_that_compete_for_curvature_settle(name, solver):
    """Of neighbours without events each may carry the curvature of all: undamped, they take turns."""
    model = make_model(name, num_rows=60, kernel=make_kernel(0.7, 100.0), solver=solver)
    solution = model.condition()
    assert solution.variational_residual < 0.02
    assert solution.status.converged
    assert solution.elbo > -5.0 * 60


@pytest.mark.parametrize("level", [0.0, 6.0, 12.0])
def test_the_bound_has_the_gradient_of_finite_differences(level):
    model = _counting(level, SubspaceNewton(tolerance=1e-8)).train()
    objective, parameter = ComputationAwareELBO(model.likelihood, model), model.mean_module.raw_constant
    value = lambda: objective(model(*model.train_inputs), model.train_targets)  # noqa: E731
    model.zero_grad()
    value().backward()
    values, step = [], 1e-4
    for direction in (1.0, -2.0):
        with torch.no_grad():
            parameter += direction * step
        values.append(value().item())
    assert parameter.grad.item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-3)


def test_rounds_cost_no_passes_but_one():
    """A pass for the certificate of the last site; the rest is done with products that are known."""
    model = _model(rows=200, rank=12)
    solution = model.condition()
    final = [record for record in solution.trace if record.round > 0]
    assert solution.status.reason is Reason.CONVERGED
    assert len(final) <= 2
    assert solution.certificate.objective_gap <= model.solver.tolerance * 200


def test_rounds_go_on_while_deviations_change():
    """Both labels at every input: the mean is zero whatever the marginals."""
    x, y = make_inputs(20).repeat(2, 1), torch.arange(40) // 20
    options = {"kernel": make_kernel(0.5, 30.0), "solver": SubspaceNewton(num_neighbours=0)}
    model = SimpleGP(x, y, BernoulliLikelihood(), **options).double().eval()
    solution = model.condition()
    assert float(solution.latent_values.abs().max()) < 1e-6
    site = VariationalSite.from_covariance(model.observations, solution.latent_covariance)
    prior = model.prior_at(model.train_inputs)
    again = solve_problem(Problem(prior.mean.detach(), model.make_operator(prior), site), DenseNewton())
    ratio = (solution.latent_covariance / again.latent_covariance).sqrt()
    assert float((ratio - 1.0).abs().max()) <= solution.variational_residual <= 0.02


@pytest.mark.parametrize("name", ["exponential", "poisson"])
@pytest.mark.parametrize("scale", [30.0, 100.0, 300.0])
def test_a_residual_is_what_an_undamped_round_would_move(name, scale):
    """Which is much more than a damped one does, where a small change of a large variance changes its curvature by half."""
    x, y = CASES[name].data(12)
    solver = SubspaceNewton(num_neighbours=0, tolerance=1e-3)
    model = SimpleGP(x, y, CASES[name].make(), kernel=make_kernel(0.3, scale), solver=solver).double().eval()
    solution = model.condition()
    site = VariationalSite.from_covariance(model.observations, solution.latent_covariance)
    prior = model.prior_at(model.train_inputs)
    again = solve_problem(Problem(prior.mean.detach(), model.make_operator(prior), site), DenseNewton())
    deviation = solution.latent_covariance[..., 0].sqrt()
    shift = float(((again.latent_values - solution.latent_values).abs() / deviation).max())
    widening = float(((again.latent_covariance[..., 0].sqrt() - deviation).abs() / deviation).max())
    assert max(shift, widening) <= 2.0 * solution.variational_residual + 1e-6


def test_marginals_that_oscillate_are_damped_until_they_settle():
    """Rounds that overshoot by half never settle by themselves."""
    model = _model(rows=20)
    prior = model.prior_at(model.train_inputs)
    problem = Problem(prior.mean.detach(), model.make_operator(prior), LaplaceSite(model.observations))
    settled = torch.ones(20, 1, 1, dtype=torch.float64)
    site, damping = 1.5 * settled, rounds.Damping()
    for _ in range(rounds.MAX_ROUNDS):
        marginals = settled - 1.5 * (site - settled)
        site = damping.following(problem, problem.mean, marginals, site, float((marginals - site).abs().max()))
    assert_close(site, settled, "derivative")
    contracting = rounds.Damping(last=1.0).following(problem, problem.mean, marginals, site, 0.5)
    assert contracting is marginals  # all of the new ones


def test_what_is_damped_is_not_damped_for_falling_as_its_share_allows():
    """A share of a quarter falls by a quarter in a round at the most; halved for that, it would end at a thirty-second."""
    model = _model(rows=20)
    prior = model.prior_at(model.train_inputs)
    problem = Problem(prior.mean.detach(), model.make_operator(prior), LaplaceSite(model.observations))
    settled = torch.ones(20, 1, 1, dtype=torch.float64)
    site, damping = 1.5 * settled, rounds.Damping(share=0.25)
    for _ in range(rounds.MAX_ROUNDS):
        site = damping.following(problem, problem.mean, settled, site, float((settled - site).abs().max()))
    assert damping.share == 0.25
    torch.testing.assert_close(site, settled, rtol=1e-4, atol=0.0)  # 0.01 otherwise


@pytest.mark.parametrize(
    ("name", "tolerance", "scale"),
    [
        *((name, tolerance, 20.0) for name in (SINGLE, "poisson", SEVERAL) for tolerance in (1e-3, 1e-6)),
        *((name, 1e-3, 300.0) for name in (SINGLE, SEVERAL)),
    ],
)
def test_rounds_that_converged_have_a_certificate_within_the_tolerance(name, tolerance, scale):
    solver = SubspaceNewton(covariance_rank=12, num_neighbours=0, tolerance=tolerance)
    solution = _model(name, lambda: _rough(scale), rows=80, solver=solver).condition()
    assert solution.status.reason is Reason.CONVERGED
    assert solution.certificate.objective_gap <= tolerance * 80


def test_rounds_that_converged_go_on_until_the_mean_is_certain(monkeypatch):
    asked, answers = [], iter([False, False, False])  # for the certificate, for a step, and at the end of the round
    monkeypatch.setattr(SubspaceNewton, "certain", lambda *_: asked.append(None) or next(answers, True))
    _model(SINGLE, rows=20).condition()
    assert len(asked) > 3


def test_a_limit_of_rounds_is_an_honest_status(monkeypatch):
    monkeypatch.setattr("itergp.solvers.run.rounds.MAX_ROUNDS", 1)
    solution = _counting(8.0, SubspaceNewton(tolerance=1e-12)).condition()
    assert solution.status.reason is Reason.ROUNDS
    assert solution.variational_residual > 0.0
    assert "posterior deviations" in str(solution.status)


def test_the_published_solver_is_stationary_too():
    solver = IterNCGP(
        policy=policies.UnitVectors(order="random", rows=100), iterations=(1,), step="backtracking", tolerance=1e-8
    )
    ours, dense = _counting(6.0, solver).condition(), _counting(6.0, DenseNewton()).condition()
    deviation = dense.latent_covariance[..., 0].sqrt()
    assert float(((ours.latent_values - dense.latent_values) / deviation).abs().max()) < 0.05
    assert ours.variational_residual < 0.02


def test_time_that_ends_between_rounds_is_an_honest_status(monkeypatch):
    solver = IterNCGP(policy=policies.UnitVectors(rows=100), iterations=(1,), step="backtracking", tolerance=1e-12)
    asked = iter([False, True])  # after the first variational stage, and before the second

    def late(run) -> bool:
        return len(run.recorder.trace.stages) == 2 and next(asked)

    monkeypatch.setattr("itergp.solvers.run.loop.Run.late", late)
    solution = _counting(6.0, solver).condition()
    assert solution.status.reason is Reason.ROUNDS
    assert solution.trace.stages[-1].reason == "ROUNDS"
    assert 0.0 < solution.variational_residual < 0.01  # small, but more than was asked for


@pytest.mark.parametrize("solver", [IterNCGP(step="backtracking"), SubspaceNewton()])
def test_time_that_ends_before_the_variational_stage_is_an_honest_status(solver, monkeypatch):
    monkeypatch.setattr("itergp.solvers.run.loop.Run.late", lambda run: len(run.recorder.trace.stages) == 1)
    solution = _counting(6.0, solver).condition()
    assert solution.approximation == "laplace"
    assert solution.status.reason is Reason.TIME
    assert "before the variational stage" in str(solution.status)


# --------------------------------------------------------------- predictions
def test_tempering_leaves_ignorance_alone():
    prior = torch.full((4, 3), 2.0, dtype=torch.float64)
    covariance = torch.diag_embed(prior * torch.tensor([1.0, 0.5, 0.1, 0.0]).double()[:, None])
    for exponent in (0.0, 0.7, 1.0, 64.0, math.inf):
        left = tempered(covariance, prior, exponent)
        share = remaining_share(left, prior)
        assert bool((share[1:] <= share[:-1] + 1e-12).all())
        if exponent < math.inf:
            assert_close(left[0], covariance[0])
    assert float(tempered(covariance, prior, 3.0)[1, 0, 0]) == pytest.approx(0.5**3)
    assert not bool(tempered(covariance, prior, math.inf).any())


@pytest.mark.parametrize("exponent", [0.0, 0.5, 3.0, math.inf])
@pytest.mark.parametrize("name", ["gaussian", "categorical"])
def test_factors_of_tempering_are_those_of_predictions(name, exponent):
    """Near to the data, and so far that nothing is known and only infinity changes anything."""
    model, x = (
        make_model(name, approximation="laplace"),
        torch.cat([make_inputs(4, seed=3), torch.full((1, 2), 1e6)]).double(),
    )
    model.tempering = exponent
    with torch.no_grad():
        factors = model.tempering_factors(x)
        whole, integrated = (next(model._stream(x).marginals(p))[2] for p in (0.0, exponent))
    assert_close(factors.square()[:, None, None] * whole, integrated)
    assert float(factors[-1]) == pytest.approx(0.0 if math.isinf(exponent) else 1.0)
    assert torch.equal(model.tempering_factors(x, tempering=0.0), torch.ones(5, dtype=torch.float64))


def test_the_humblest_of_equals_is_chosen():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, generator=generator).double()
    equal = {("variational", p): -1.0 + 0.1 * noise for p in EXPONENTS}
    humility = {key: 1.0 / (1.0 + key[1]) for key in equal}
    assert calibration.humblest(equal, humility) == (("variational", 0.0), 0.0)
    better = equal | {("variational", 4.0): equal["variational", 4.0] + 0.2}
    assert calibration.humblest(better, humility)[0] == ("variational", 4.0)
    nearly = equal | {("variational", 4.0): equal["variational", 4.0] + 0.001}
    assert calibration.humblest(nearly, humility)[0] == ("variational", 0.0)


@pytest.mark.parametrize(
    ("worse", "error", "near"),
    [(0.0015, 0.0, True), (0.004, 0.001, False), (0.004, 0.006, True), (0.006, 0.004, False), (0.006, 0.05, False)],
)
def test_the_humblest_is_within_a_standard_error_up_to_half_a_hundredth(worse, error, near):
    """Shares of the best's log-density: 0.2 % is nothing, 0.5 % too much, and between them a standard error decides."""
    best = torch.full((400,), -1.0, dtype=torch.float64)
    spread = 20.0 * error * torch.tensor([1.0, -1.0]).double().repeat(200)  # of a mean of 400 the error
    densities = {("laplace", 2.0): best, ("laplace", 0.0): best - worse + spread}
    chosen, reported = calibration.humblest(densities, {("laplace", 2.0): 0.1, ("laplace", 0.0): 0.9})
    assert chosen == ("laplace", 0.0 if near else 2.0)
    assert reported == pytest.approx(error if near else 0.0, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [499, 501, 2000])
def test_far_from_two_moons_the_default_does_not_know(rows):
    datasets, estimators = pytest.importorskip("sklearn.datasets"), pytest.importorskip("itergp.sklearn")
    X, y = datasets.make_moons(rows, noise=0.25, random_state=0)
    classifier = estimators.GPClassifier().fit(X, y)
    probability = classifier.predict_proba(np.array([[0.0, 6.3]]))[0, 0]
    assert 0.3 < probability < 0.7
    assert classifier.score(X, y) > 0.9


# ------------------------------------------------------------------ learning
def test_learning_never_ends_below_its_start():
    """A period that is given is soon lost by steps of a fifth."""
    x = torch.arange(96.0, dtype=torch.float64)[:, None]
    y = torch.poisson(
        (2.0 + torch.sin(2.0 * math.pi * x[:, 0] / 12.0)).exp(), generator=torch.Generator().manual_seed(0)
    )
    kernel = ScaleKernel(gpytorch.kernels.PeriodicKernel())
    kernel.base_kernel.period_length, kernel.base_kernel.lengthscale = 12.0, 1.0
    model = SimpleGP(x, y, PoissonLikelihood(), kernel=kernel).double().eval()
    model.mean_module.constant.data.fill_(2.0)
    before = model.condition().elbo
    with pytest.warns(itergp.ItergpWarning, match="Learning must raise its objective. It fell from"):
        result = itergp.fit(model, max_iterations=8, learning_rate=0.5, calibrate=False)
    assert result.solution.elbo >= before - 1e-6
    assert float(kernel.base_kernel.period_length.detach()) == pytest.approx(12.0)


def test_large_counts_ask_for_float64():
    estimators = pytest.importorskip("itergp.sklearn")
    X = np.linspace(0.0, 1.0, 2100)[:, None]
    rng = np.random.default_rng(0)
    rates = {"few": 20.0, "many": 20_000.0}
    found = {}
    for name, level in rates.items():
        y = rng.poisson(level * np.exp(np.sin(6.0 * X[:, 0])))
        fitted = estimators.GPCountRegressor(optimizer=None).fit(X, y)
        found[name] = fitted.model_.train_inputs[0].dtype
        low, _, high = fitted.predict_quantiles(X).T
        inside = ((low <= y) & (y <= high)).mean()
        assert abs(inside - 0.9) < 0.04
    assert found == {"few": torch.float32, "many": torch.float64}
