"""The variational posterior of few latent values by dense matrices: that of every other solver, faster."""

from __future__ import annotations

from dataclasses import replace

import gpytorch
import pytest
import torch
from helpers import CASES, make_batch_kernel, make_kernel, make_model

from itergp.likelihoods import GaussianLikelihood, StudentTLikelihood
from itergp.models import GP
from itergp.numerics.fixed_point import AndersonExtrapolation
from itergp.objectives import ComputationAwareELBO
from itergp.posterior import natural_gradients
from itergp.posterior.natural_gradients import DenseProblem
from itergp.solvers import DenseNewton, LinearTimeNewton, Reason, SubspaceNewton


def _problem(model) -> DenseProblem:
    with torch.no_grad():
        return DenseProblem.of(model.conditioned.operator, model.prior_at().mean, model.observations)


@pytest.mark.parametrize(
    ("name", "scale"),
    # The solver that heteroscedastic noise is compared with takes long at the wider prior.
    [(name, scale) for name in sorted(CASES) for scale in (0.3, 20.0) if (name, scale) != ("heteroscedastic", 20.0)],
)
def test_the_posterior_is_that_of_dense_newton(name, scale):
    model = make_model(name, kernel=make_kernel(0.8, scale), solver=DenseNewton(tolerance=1e-14))
    expected, rows = model.solution, model.train_targets.shape[0]
    with torch.no_grad():
        found = _problem(model).variational_posterior(None, tolerance=1e-6)
    assert found is not None
    several = expected.latent_values.shape[1] > 1  # whose expectations are averages over a few samples
    assert expected.status.reason in (Reason.CONVERGED, Reason.STATIONARY, Reason.PRECISION, Reason.ROUNDS)
    assert found.bound >= float(expected.elbo) - (0.02 if several else 1e-4) * rows
    deviation = expected.latent_covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    moved = ((found.centred + model.prior_at().mean - expected.latent_values).abs() / deviation).detach()
    assert float(moved.max()) < (0.3 if several else 0.1)


def test_independent_latent_functions_are_factorised_one_by_one(monkeypatch):
    """With the same posterior as all together, and the same derivatives of its bound."""
    model = make_model("heteroscedastic", kernel=make_batch_kernel(2))
    found, problem = [], _problem(model)
    size = problem.mean.shape[0]
    whole = torch.zeros(1, size, 2, size, 2, dtype=torch.float64)
    for c in range(2):
        whole[0, :, c, :, c] = problem.kernel[c]
    together = replace(problem, kernel=whole.view(1, 2 * size, 2 * size), variances=torch.diag_embed(problem.variances))
    sizes, factorise = [], natural_gradients.factorise

    def noted(kernel, root):
        sizes.append(kernel.shape[-1])
        return factorise(kernel, root)

    monkeypatch.setattr(natural_gradients, "factorise", noted)
    for one in (problem, together):
        posterior = one.variational_posterior(None, tolerance=1e-12)
        kernel = one.kernel.clone().requires_grad_()
        replace(one, kernel=kernel).bound(posterior.weights, posterior.sites.curvature).backward()
        gradient = (
            kernel.grad
            if one is problem
            else kernel.grad[0].view(size, 2, size, 2).diagonal(dim1=1, dim2=3).movedim(-1, 0)
        )
        found.append((torch.tensor(posterior.bound), posterior.centred, posterior.marginals, gradient))
    assert set(sizes) == {size, 2 * size}
    for separate, joint in zip(*found, strict=True):
        torch.testing.assert_close(separate, joint, rtol=1e-5, atol=1e-7)


def test_a_bound_only_rises():
    problem = _problem(make_model("poisson", kernel=make_kernel(0.5, 20.0)))
    bounds = [problem.variational_posterior(None, tolerance=tolerance).bound for tolerance in (1.0, 1e-2, 1e-4, 1e-8)]
    assert bounds == sorted(bounds)
    again = problem.variational_posterior(problem.variational_posterior(None, tolerance=1e-8).sites, tolerance=1e-8)
    assert again.bound == pytest.approx(bounds[-1], abs=1e-6)


@pytest.mark.parametrize("kernel", [make_kernel, make_batch_kernel])
@pytest.mark.parametrize("name", ["bernoulli-logit", "poisson", "categorical", "heteroscedastic", "laplace"])
def test_the_objective_is_that_of_the_solver(name, kernel):
    if kernel is make_batch_kernel and name not in ("categorical", "heteroscedastic"):
        pytest.skip("one latent function has one kernel")
    values = []
    for solver in (
        SubspaceNewton(tolerance=1e-9),
        SubspaceNewton(tolerance=1e-9, max_passes=500),
    ):  # passes are a limit
        number = (2 if name == "heteroscedastic" else 3,) if kernel is make_batch_kernel else ()
        model = make_model(name, kernel=kernel(*number), solver=solver).train()
        objective = ComputationAwareELBO(model.likelihood, model, initialise_kernel=False)
        assert objective.by_dense_matrices == (solver.max_passes is None)
        value = objective(model(*model.train_inputs), model.train_targets)
        value.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        values.append(torch.cat([value.detach().reshape(1), *gradients]))
    scale = float(values[1].abs().max())
    assert float((values[0] - values[1]).abs().max()) < (0.05 if name == "categorical" else 1e-3) * scale


@pytest.mark.parametrize(
    "solver",
    [SubspaceNewton(tolerance=1e-9), SubspaceNewton(tolerance=1e-9, max_passes=500), LinearTimeNewton(tolerance=1e-9)],
)
@pytest.mark.parametrize("name", ["student-t", "laplace"])
def test_derivatives_go_through_a_stand_in_for_the_curvature(name, solver):
    """In which the bound is not stationary, and which moves with the noise."""
    dense = isinstance(solver, SubspaceNewton) and solver.max_passes is None
    model = make_model(name, solver=solver).train()
    parameters = list(model.likelihood.parameters())

    def value() -> torch.Tensor:
        objective = ComputationAwareELBO(model.likelihood, model, initialise_kernel=False)
        assert objective.by_dense_matrices is dense
        return objective(model(*model.train_inputs), model.train_targets)

    gradients = torch.autograd.grad(value(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        start, ends = parameter.data.clone(), []
        for step in (1e-4, -1e-4):
            parameter.data = start + step
            ends.append(value().item())
        parameter.data = start
        assert gradient.item() == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-3)


@pytest.mark.parametrize("deg_free", [3.0, 25.0])
def test_targets_far_off_in_units_of_the_noise_are_met(deg_free):
    """A function without noise: steps by the Fisher information go a thousandth of the way, and end far from the mode."""
    x = torch.linspace(0.0, 3.0, 60, dtype=torch.float64).unsqueeze(-1)
    y = torch.sin(2.0 * x[:, 0]) + x[:, 0]
    kernel = make_kernel(0.5, 4.0)
    model = GP(x, y, StudentTLikelihood(noise=1e-6, deg_free=deg_free), kernel=kernel).double()
    for approximation in ("laplace", "variational"):
        model.approximation = approximation
        solution = model.condition()
        assert solution.converged
        assert (solution.latent_values[:, 0] - y).abs().max() < 0.01
    dense = _problem(model).variational_posterior(None, tolerance=1e-9)
    torch.testing.assert_close(dense.marginals, solution.latent_covariance, rtol=1e-4, atol=1e-12)
    assert float(solution.elbo) == pytest.approx(dense.bound, abs=0.01)
    exact = GP(x, y, GaussianLikelihood(noise=1e-6), kernel=kernel).double().condition()
    assert dense.bound == pytest.approx(float(exact.elbo), abs=5.0)  # without outliers hardly another model


def test_rows_without_curvature_leave_derivatives_finite():
    model = make_model("laplace")
    targets = model.train_targets.clone()
    targets[0] += 1e5  # so far off that its expected curvature is zero
    model.set_train_data(targets=targets, strict=False)
    model.train()
    objective = ComputationAwareELBO(model.likelihood, model, initialise_kernel=False)
    objective(model(*model.train_inputs), model.train_targets).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_what_cannot_be_found_is_left_to_the_solver():
    model = make_model("poisson")
    problem = _problem(model)
    far = DenseProblem(problem.kernel, problem.variances, problem.mean + 1e4, problem.observations)
    assert far.variational_posterior(None, tolerance=1e-6) is None  # exp(1e4) is infinite


def test_a_bound_in_float32_is_one():
    """Noise far below what float32 resolves of a kernel that is almost singular: the evidence would be any number."""
    x = torch.linspace(-2.0, 2.0, 100).unsqueeze(-1)
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    kernel.base_kernel.lengthscale = 1.2
    values = []
    for dtype in (torch.float32, torch.float64):
        model = GP(x.to(dtype), torch.sin(2.0 * x[:, 0]).to(dtype), GaussianLikelihood(noise=3e-4), kernel=kernel).to(
            dtype
        )
        objective = ComputationAwareELBO(model.likelihood, model.train(), initialise_kernel=False)
        values.append(objective(model(*model.train_inputs), model.train_targets).item())
    assert values[0] == pytest.approx(values[1], abs=0.02)


@pytest.mark.parametrize("name", ["poisson", "bernoulli-cloglog"])
def test_a_prior_that_says_nothing_is_no_reason_to_give_up(name):
    problem = _problem(make_model(name, num_rows=80, kernel=make_kernel(0.05, 100.0)))
    assert problem.variational_posterior(None, tolerance=1e-8) is not None


def test_a_step_that_cannot_be_taken_far_from_the_top_is_no_posterior():
    problem = _problem(make_model("weibull", num_rows=80, kernel=make_kernel(0.05, 100.0)))
    assert problem.variational_posterior(None, tolerance=1e-8) is None  # the bound at the prior mean is -1e37
    assert problem.variational_posterior(problem._at_prior_mean(), tolerance=1e-8) is None


def test_sites_that_oscillate_settle_in_few_steps(monkeypatch):
    """Curvature that shrinks the variance which made it: by steps of their own, sites turn back and forth for very long."""
    problem, counted = _problem(make_model("bernoulli-probit", num_rows=80, kernel=make_kernel(0.05, 100.0))), []
    posterior = DenseProblem.posterior
    monkeypatch.setattr(DenseProblem, "posterior", lambda self, sites: counted.append(sites) or posterior(self, sites))
    steps = []
    for extrapolate in (True, False):
        counted.clear()
        if not extrapolate:
            monkeypatch.setattr(AndersonExtrapolation, "after", lambda self, point, residual: None)
        assert problem.variational_posterior(None, tolerance=1e-8) is not None
        steps.append(len(counted))
    assert steps[0] < 0.7 * steps[1], steps
