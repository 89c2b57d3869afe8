"""Posteriors far from what was asked for: those that can be found are, the others are said to be far."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import gpytorch
import pytest
import torch
from helpers import make_binary

from itergp import ItergpWarning
from itergp.likelihoods import BernoulliLikelihood, GaussianLikelihood, PoissonLikelihood
from itergp.models import GP
from itergp.models.endings import is_far
from itergp.parallel import RowPartition
from itergp.posterior.status import Reason, Status
from itergp.sklearn.model import warn_of_ending
from itergp.solvers import DenseNewton, LinearTimeNewton, SubspaceNewton


@pytest.mark.parametrize("approximation", ["laplace", "variational"])
@pytest.mark.parametrize("solver", [SubspaceNewton(), LinearTimeNewton()], ids=["subspace", "linear time"])
def test_counts_of_a_trillion_from_a_prior_mean_of_zero(solver, approximation):
    x = torch.linspace(0.0, 1.0, 20, dtype=torch.float64).unsqueeze(-1)
    counts = (1e12 * torch.exp(torch.sin(5.0 * x[:, 0]))).round()
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    model = GP(x, counts, PoissonLikelihood(), kernel=kernel, solver=solver, approximation=approximation).eval()
    model.mean_module.constant.data.zero_()
    assert float((model.predict(x).mean / counts - 1.0).abs().max()) < 1e-4


@pytest.mark.parametrize(
    "solver", [SubspaceNewton(), LinearTimeNewton(num_support=20)], ids=["subspace", "linear time"]
)
def test_weights_of_another_kernel_are_no_start_from_which_nothing_leads_back(solver):
    x = torch.linspace(0.0, 1.0, 20, dtype=torch.float64).unsqueeze(-1)
    counts = (1e6 * torch.exp(torch.sin(5.0 * x[:, 0]))).round()
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    model = GP(x, counts, PoissonLikelihood(), kernel=kernel, solver=solver).eval()
    objectives = []
    for lengthscale in (0.5, 2.0, 0.5):  # at the second, weights are a million
        model.covar_module.base_kernel.lengthscale = lengthscale
        objectives.append(model.condition().objective)
    assert objectives[2] == pytest.approx(objectives[0], abs=1e-3)


class Shard(RowPartition):
    """A tenth of the rows."""

    def global_size(self, local_size: int) -> int:
        return 10 * local_size


def test_far_is_by_the_rows_of_all_processes():
    for gap, far in ((150.0, False), (250.0, True)):
        solution = _ended(Reason.PRECISION, gap).solution
        solution = replace(solution, posterior=replace(solution.posterior, rows=Shard()))
        assert is_far(solution, SubspaceNewton(), BernoulliLikelihood()) == far


def _ended(reason: Reason, norm_squared: float, residual: float | None = None, *, certified: bool = True) -> GP:
    """A model whose posterior is said to have ended in some way."""
    x, y = make_binary(10)
    model = GP(x, y, BernoulliLikelihood()).eval()
    solution = model.solution
    certificate = replace(solution.certificate, norm_squared=norm_squared) if certified else None
    posterior = replace(solution.posterior, norm_squared=norm_squared)
    report = {"status": Status(reason), "certificate": certificate, "variational_residual": residual}
    model.adopt(replace(solution, posterior=posterior).with_report(**report))
    return model


NUMERICAL = (Reason.PRECISION, Reason.STALLED, Reason.FAILED, Reason.DIVERGED, Reason.PASSES, Reason.RANK)


@pytest.mark.parametrize("certified", [True, False])
@pytest.mark.parametrize("reason", NUMERICAL)
def test_a_posterior_that_is_far_is_said_to_be(reason, certified):
    model = _ended(reason, 30.0, certified=certified)
    x = model.train_inputs[0]
    for act in (
        model.predict,
        model,
        model.latent_mean,
        model.latent_posterior,
        lambda x: list(model.predict_batches(x)),
    ):
        with pytest.warns(ItergpWarning, match=rf"{reason.value}\. .* Until then predictions may be far off"):
            act(x)
    near = _ended(reason, 10.0, certified=certified)
    near.predict(x)


def test_a_posterior_that_still_moved_is_far_by_its_residual():
    for residual, far in ((0.2, False), (2.0, True), (math.nan, True), (None, True)):
        model = _ended(Reason.ROUNDS, math.inf, residual)
        assert is_far(model.current_solution, model.solver, model.likelihood) == far


def test_what_was_asked_for_is_not_said():
    labels = BernoulliLikelihood()
    for reason in (Reason.CONVERGED, Reason.TIME, Reason.INTERRUPTED, Reason.SUPPORT, Reason.SETTLED, Reason.STEPS):
        assert not is_far(_ended(reason, math.inf).current_solution, SubspaceNewton(), labels)
    far = _ended(Reason.PASSES, math.inf).current_solution
    assert is_far(far, SubspaceNewton(), labels)
    assert is_far(far, DenseNewton(), labels)
    assert not is_far(far, SubspaceNewton(max_passes=3), labels)
    assert not is_far(_ended(Reason.RANK, math.inf).current_solution, SubspaceNewton(max_rank=8), labels)
    assert not is_far(_ended(Reason.PRECISION, math.inf, certified=False).current_solution, SubspaceNewton(), labels)
    rounding = _ended(Reason.PRECISION, math.inf).current_solution
    assert is_far(rounding, SubspaceNewton(), labels)
    assert not is_far(rounding, SubspaceNewton(), GaussianLikelihood())


@pytest.mark.parametrize("reason", [Reason.PRECISION, Reason.STALLED, Reason.DIVERGED])
def test_estimators_say_it_too(reason):
    with pytest.warns(ItergpWarning, match="must be found to the solver's tolerance"):
        warn_of_ending(_ended(reason, 1.0).current_solution, stacklevel=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_ending(_ended(reason, 1e-4).current_solution, stacklevel=1)
