"""The variational posterior of few latent values by dense matrices: that of every other solver, faster."""

from __future__ import annotations

import pytest
import torch
from helpers import CASES, make_batch_kernel, make_kernel, make_model

from itergp.objectives import ComputationAwareELBO
from itergp.posterior.natural_gradients import DenseProblem
from itergp.solvers import DenseNewton, Reason, SubspaceNewton


def _problem(model) -> DenseProblem:
    with torch.no_grad():
        return DenseProblem.of(model.conditioned.operator, model.prior_at().mean, model.observations)


# Of the heteroscedastic likelihood, curvature is not that of the bound, which the solver's rounds do not need.
@pytest.mark.parametrize("name", sorted(set(CASES) - {"heteroscedastic"}))
@pytest.mark.parametrize("scale", [0.3, 20.0])
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
    assert float(moved.max()) < (0.3 if several else 0.05)


def test_a_bound_only_rises():
    problem = _problem(make_model("poisson", kernel=make_kernel(0.5, 20.0)))
    bounds = [problem.variational_posterior(None, tolerance=tolerance).bound for tolerance in (1.0, 1e-2, 1e-4, 1e-8)]
    assert bounds == sorted(bounds)
    again = problem.variational_posterior(problem.variational_posterior(None, tolerance=1e-8).sites, tolerance=1e-8)
    assert again.bound == pytest.approx(bounds[-1], abs=1e-6)


@pytest.mark.parametrize("kernel", [make_kernel, make_batch_kernel])
@pytest.mark.parametrize("name", ["bernoulli-logit", "poisson", "categorical"])
def test_the_objective_is_that_of_the_solver(name, kernel):
    if kernel is make_batch_kernel and name != "categorical":
        pytest.skip("one latent function has one kernel")
    values = []
    for solver in (
        SubspaceNewton(tolerance=1e-9),
        SubspaceNewton(tolerance=1e-9, max_passes=500),
    ):  # passes are a limit
        model = make_model(name, kernel=kernel(), solver=solver).train()
        objective = ComputationAwareELBO(model.likelihood, model, initialise_kernel=False)
        assert objective.by_dense_matrices == (solver.max_passes is None)
        value = objective(model(*model.train_inputs), model.train_targets)
        value.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        values.append(torch.cat([value.detach().reshape(1), *gradients]))
    scale = float(values[1].abs().max())
    assert float((values[0] - values[1]).abs().max()) < (0.05 if name == "categorical" else 1e-3) * scale


def test_what_cannot_be_found_is_left_to_the_solver():
    model = make_model("poisson")
    problem = _problem(model)
    far = DenseProblem(problem.kernel, problem.variances, problem.mean + 1e4, problem.observations)
    assert far.variational_posterior(None, tolerance=1e-6) is None  # exp(1e4) is infinite
