"""LinearTimeNewton: exact on a full support, monotone, never overconfident, linear in the number of rows."""

from __future__ import annotations

import copy
import itertools
from typing import get_args

import gpytorch.kernels as gk
import pytest
import torch
from helpers import (
    CORE,
    SimpleGP,
    assert_close,
    assert_same_posterior,
    make_batch_kernel,
    make_binary,
    make_inputs,
    make_kernel,
    make_model,
)

import itergp
from itergp import InputError
from itergp.likelihoods import BernoulliLikelihood
from itergp.objectives import ComputationAwareELBO
from itergp.operators import DenseOperator, make_operator
from itergp.solvers import DenseNewton, LinearTimeNewton, Reason, SubspaceNewton
from itergp.solvers.policies import CG, UnitVectors
from itergp.solvers.policies.unit_vectors import Order
from itergp.solvers.subspace.support_space import SupportSpace

NAMES = (*CORE, "ordinal-logit", "weibull", "student-t")
KERNELS = [*((name, make_kernel) for name in NAMES), ("categorical", make_batch_kernel)]
ALL = {"covariance_rank": 10_000, "tolerance": 1e-14}
SMALL = UnitVectors(order="leverage", rows=8)


def binary(num_rows: int = 300, dtype: torch.dtype = torch.float64, **kwargs) -> SimpleGP:
    """A binary model, in evaluation mode."""
    x, y = make_binary(num_rows, dtype=dtype)
    return SimpleGP(x, y, BernoulliLikelihood(), kernel=make_kernel(), **kwargs).to(dtype).eval()


@pytest.mark.parametrize("approximation", ["laplace", "variational"])
@pytest.mark.parametrize(("name", "kernel"), KERNELS)
def test_a_support_of_all_rows_gives_the_dense_reference(name, kernel, approximation):
    exact = make_model(name, kernel=kernel(), solver=DenseNewton(), approximation=approximation)
    solver = LinearTimeNewton(policy=SMALL, **ALL)
    ours = make_model(name, kernel=kernel(), solver=solver, approximation=approximation)
    solution = ours.condition()
    assert solution.status.reason is Reason.SUPPORT
    assert solution.kernel_passes == 0
    assert_same_posterior(ours, exact)


@pytest.mark.parametrize("kernel", [gk.MaternKernel(nu=1.5) * gk.RBFKernel(), gk.RQKernel()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rows_are_no_direction_of_their_difference(kernel, dtype):
    x, y = make_binary(40, dtype=dtype)
    x = 100.0 * x[torch.arange(40) % 16]  # covariances of equal rows are not quite variances
    options = {"solver": LinearTimeNewton(), "share_equal_rows": False}
    model = SimpleGP(x, y, BernoulliLikelihood(), kernel=kernel, **options).to(dtype).eval()
    solution = model.condition()
    assert float(torch.linalg.eigvalsh(solution.space.gram).min()) > 0.4
    assert float(solution.representer_weights.abs().max()) < 2.0  # gradients are within 1


def test_directions_whose_products_are_rounding_are_left_out():
    x, _ = make_binary(40)

    class Spoilt(DenseOperator):
        def with_columns(self, rows, use):
            super().with_columns(
                rows, lambda part, entries: use(part, 0.1 * entries * (rows == 7) + entries * (rows != 7))
            )

    operator = Spoilt(make_kernel().double(), x)
    space = SupportSpace.start(operator, 40).with_rows(torch.arange(20), operator)
    values = torch.linalg.eigvalsh(space.gram[0])
    assert 0 < space.rank < 20
    assert float(values.min()) > 0.4
    assert_close(space.gram, space.directions.mT @ space.products[:, :20], "posterior")


@pytest.mark.parametrize("order", get_args(Order))
def test_every_order_lowers_the_objective_with_every_doubling(order):
    objectives = []
    solver = LinearTimeNewton(num_support=128, policy=UnitVectors(order=order, rows=16), tolerance=1e-12)
    model = binary(600, solver=solver, approximation="laplace")
    solution = model.condition(callback=lambda record: objectives.append(record.objective))
    mode = binary(600, solver=SubspaceNewton(tolerance=1e-8), approximation="laplace").condition().objective
    assert len(objectives) == 1  # the first support holds 512 rows, more than there may be
    assert solution.space.rows.unique().numel() == 128
    assert mode - 1e-6 <= solution.objective
    larger = copy.deepcopy(model)
    larger.solver = LinearTimeNewton(num_support=560, policy=UnitVectors(order=order, rows=16), tolerance=1e-12)
    larger.condition(callback=lambda record: objectives.append(record.objective))
    assert len(objectives) >= 3
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(objectives))
    assert objectives[-1] - mode < 0.1 * (objectives[0] - mode) + 1e-3


def test_the_space_never_explains_more_than_the_prior():
    x = make_inputs(200)
    operator = make_operator(make_kernel().double(), x)
    space = SupportSpace.start(operator, 64)
    before = operator.diagonal()
    for rows in torch.randperm(200)[:60].split(20):
        space = space.with_rows(rows, operator)
        missing = space.missing_variance(operator)
        assert bool((missing <= before + 1e-10).all())
        before = missing
    kernel = operator.dense()[0]
    support = kernel[:, space.rows]
    nystrom = support @ torch.linalg.solve(kernel[space.rows][:, space.rows], support.mT)
    assert_close(space.products[0] @ space.products[0].mT, nystrom, "posterior")
    assert_close(space.missing_variance(operator)[0], (kernel - nystrom).diagonal(), "posterior")
    assert_close(space.gram[0], torch.eye(60, dtype=torch.float64), "posterior")


def test_copies_of_rows_add_nothing():
    x, y = make_binary(60)
    x, y = x.repeat(8, 1), y.repeat(8)
    solver = LinearTimeNewton(policy=UnitVectors(order="random", rows=50), **ALL)
    options = {"solver": solver, "approximation": "laplace", "share_equal_rows": False}
    model = SimpleGP(x, y, BernoulliLikelihood(), **options).double().eval()
    solution = model.condition()
    assert solution.space.rank == 60
    assert solution.space.rows.numel() == 480
    exact = SimpleGP(x, y, BernoulliLikelihood(), solver=DenseNewton(), approximation="laplace").double().eval()
    assert_close(solution.latent_values, exact.condition().latent_values, "posterior")


@pytest.mark.parametrize("name", ["bernoulli-logit", "categorical"])
def test_the_variance_is_never_below_the_exact_one(name):
    solver = LinearTimeNewton(num_support=16, policy=SMALL)
    model = make_model(name, num_rows=80, solver=solver, approximation="laplace")
    parts = model.decompose_uncertainty(make_inputs(20, seed=9))
    assert bool((parts.computational >= -1e-9).all())
    assert float(parts.computational.max()) > 1e-3
    larger = copy.deepcopy(model)
    larger.solver = LinearTimeNewton(num_support=80, policy=SMALL, covariance_rank=10_000)
    assert float(larger.decompose_uncertainty(make_inputs(20, seed=9)).computational.max()) < 1e-3


def test_predictions_evaluate_the_kernel_at_the_support_alone():
    model = binary(solver=LinearTimeNewton(num_support=20, policy=SMALL, num_neighbours=0))
    solution = model.condition()
    assert solution.support is not None
    assert solution.precision.actions.shape[0] == 20
    assert int((solution.representer_weights != 0.0).sum()) <= 20
    assert solution.kernel_entries < 10 * 20 * 300
    full = model.latent_posterior(make_inputs(5, seed=3))
    with torch.no_grad():
        cross = model.covar_module(make_inputs(5, seed=3), model.train_inputs[0]).to_dense()
        assert_close(full.mean, model.mean_module.constant + cross @ solution.representer_weights, "posterior")
        products = solution.precision.whiten((cross @ solution.all_actions()[:, 0]).unsqueeze(1))
        assert_close(full.whitened, products, "posterior")


def test_a_polish_certifies_the_result_and_improves_it():
    plain = binary(600, solver=LinearTimeNewton(num_support=40, policy=SMALL), approximation="laplace").condition()
    polish = SubspaceNewton(max_passes=12, tolerance=1e-7)
    solver = LinearTimeNewton(num_support=40, policy=SMALL, polish=polish)
    model = binary(600, solver=solver, approximation="laplace")
    solution = model.condition()
    exact = binary(600, solver=DenseNewton(), approximation="laplace").condition()
    assert plain.certificate.norm_squared == float("inf")
    assert solution.objective < plain.objective
    assert solution.objective - exact.objective <= solution.certificate.objective_gap + 1e-8
    assert solution.certificate.objective_gap < 0.1
    assert 1 <= solution.kernel_passes <= 12


def test_another_solver_goes_on_from_the_support():
    model = binary(600, solver=LinearTimeNewton(num_support=60, policy=SMALL), approximation="laplace")
    first = model.condition()
    model.solver = SubspaceNewton(max_passes=8)
    first_objectives = []
    model.condition(callback=lambda record: first_objectives.append(record.objective))
    assert first_objectives[0] <= first.objective + 1e-9


def test_the_support_survives_new_hyperparameters():
    model = binary(solver=LinearTimeNewton(num_support=30, policy=SMALL), approximation="laplace")
    rows = model.condition().space.rows
    model.covar_module.outputscale = 2.0
    again = model.condition()
    assert torch.equal(again.space.rows, rows)
    fresh = binary(solver=LinearTimeNewton(num_support=30, policy=SMALL), approximation="laplace")
    fresh.covar_module.outputscale = 2.0
    assert again.objective == pytest.approx(fresh.condition().objective, rel=0.02)


def test_appended_rows_and_saved_models_keep_the_support(tmp_path):
    model = binary(solver=LinearTimeNewton(num_support=30, policy=SMALL))
    model.condition()
    x = make_inputs(9, seed=4)
    model.save(tmp_path / "m.safetensors")
    other = binary(solver=LinearTimeNewton(num_support=30, policy=SMALL))
    other.load(tmp_path / "m.safetensors")
    assert torch.equal(other.predict(x).probs, model.predict(x).probs)
    rows = model.solution.space.rows
    model.append_train_data(x, torch.ones(9, dtype=torch.int64))
    assert torch.equal(model.condition().space.rows, rows)
    assert model.solution.representer_weights.shape[0] == 309


def test_the_reason_for_stopping_is_that_more_rows_do_not_help():
    model = binary(
        2500, torch.float32, solver=LinearTimeNewton(num_support=2048, tolerance=1e-3), approximation="laplace"
    )
    model.covar_module.base_kernel.lengthscale = 4.0
    solution = model.condition()
    assert solution.status.reason is Reason.SETTLED
    assert solution.space.rows.numel() == 1024
    assert "nats per row" in str(solution.status)


def test_a_time_limit_ends_with_a_valid_posterior():
    model = binary(
        1500, solver=LinearTimeNewton(num_support=1400, tolerance=1e-12, time_limit=1e-3), approximation="laplace"
    )
    solution = model.condition()
    assert solution.status.reason is Reason.TIME
    assert bool(torch.isfinite(model.predict(make_inputs(3)).probs).all())


def test_both_stages_end_by_one_clock(monkeypatch):
    deadlines, step = [], LinearTimeNewton.step

    def watched(self, problem, state, budget):
        deadlines.append(budget.time_left())
        return step(self, problem, state, budget)

    monkeypatch.setattr(LinearTimeNewton, "step", watched)
    binary(60, solver=LinearTimeNewton(time_limit=1000.0)).condition()
    assert deadlines == pytest.approx([500.0, 1000.0], abs=60.0)
    binary(60, solver=LinearTimeNewton()).condition()
    assert deadlines[2:] == [float("inf"), float("inf")]


def test_learning_and_the_elbo_work_with_a_support():
    model = binary(200, solver=LinearTimeNewton(num_support=60, policy=SMALL))
    result = itergp.fit(model, max_iterations=3)
    assert result.solution.support is not None
    model.train()
    objective = ComputationAwareELBO(model.likelihood, model)
    value = objective(model(model.train_inputs[0]), model.train_targets)
    value.backward()
    assert float(value.detach()) * 200 == pytest.approx(model.eval().condition().elbo, rel=1e-3)


@pytest.mark.parametrize("name", ["bernoulli-logit", "categorical"])
def test_the_bound_from_batches_is_unbiased(name):
    model = make_model(name, num_rows=60, solver=LinearTimeNewton(num_support=20, policy=SMALL)).train()
    settings = {"condition_every": 10_000}
    whole = ComputationAwareELBO(model.likelihood, model, **settings)
    parts = ComputationAwareELBO(model.likelihood, model, batch_rows=15, **settings)
    x, y = model.train_inputs[0], model.train_targets

    def evaluated(objective) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        value = objective(model(x), y)
        value.backward()
        return float(value.detach()), model.covar_module.raw_outputscale.grad.detach().reshape(())

    expected, slope = evaluated(whole)
    drawn = [evaluated(parts) for _ in range(300)]
    for sample, target in (
        (torch.tensor([v for v, _ in drawn]), expected),
        (torch.stack([g for _, g in drawn]), slope),
    ):
        assert float(sample.std()) > 0.0
        assert abs(float(sample.mean() - target)) < 4.0 * float(sample.std()) / 300**0.5


def test_the_bound_on_a_support_has_the_right_gradient():
    model = binary(100, solver=LinearTimeNewton(num_support=30, policy=SMALL)).train()
    objective = ComputationAwareELBO(model.likelihood, model, condition_every=10_000)
    x, y = model.train_inputs[0], model.train_targets
    objective(model(x), y).backward()
    raw = model.covar_module.base_kernel.raw_lengthscale
    slope, at = float(raw.grad), raw.detach().clone()
    values = []
    for step in (1e-5, -1e-5):
        raw.data.copy_(at + step)
        values.append(float(objective(model(x), y).detach()))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-5)


def test_batches_need_a_support():
    model = binary(60).train()
    objective = ComputationAwareELBO(model.likelihood, model, batch_rows=10)
    with pytest.raises(InputError, match=r"`batch_rows` needs a posterior .* Use LinearTimeNewton\(\)"):
        objective(model(model.train_inputs[0]), model.train_targets)


def test_learning_by_the_bound_takes_batches_when_rows_are_many():
    solver = LinearTimeNewton(num_support=64, policy=UnitVectors(order="leverage", rows=64), covariance_rank=32)
    model = binary(5000, torch.float32, solver=solver)
    model.covar_module.base_kernel.lengthscale = 20.0
    values = []
    itergp.fit(
        model,
        objective="elbo",
        max_iterations=12,
        calibrate=False,
        callback=lambda record: values.append(record.objective),
    )
    assert len(set(values)) == 12
    assert model.covar_module.base_kernel.lengthscale.item() < 10.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": CG()}, r"must propose single rows. Got CG\(\)"),
        ({"policy": UnitVectors}, r"must have a method propose"),
        ({"polish": "yes"}, r"`polish` must be a SubspaceNewton or None. Got 'yes'"),
        ({"num_support": 0}, r"`num_support` must be a positive whole number"),
        ({"covariance_rank": -1}, r"`covariance_rank` must be"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        LinearTimeNewton(**settings)
