"""A covariance whose products are made a few columns at a time is that of the same actions, with less memory."""

from __future__ import annotations

import pytest
import torch
from helpers import LiveMemory

from itergp.kernels import AdditiveLaplacianKernel
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood
from itergp.models import GP
from itergp.solvers import SubspaceNewton


def _model(rows: int, latents: int = 1, **options) -> GP:
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    y = (
        torch.sin(2.0 * x[:, 0]) + 0.5 * torch.randn(rows, generator=torch.Generator().manual_seed(1)) > x[:, 1]
    ).long()
    if latents > 1:
        y, likelihood = y + (x[:, 2] > 0.5).long(), CategoricalLikelihood(3)
    else:
        likelihood = BernoulliLikelihood()
    return GP(x, y, likelihood, kernel=AdditiveLaplacianKernel(3), operator="scan", **options).eval()


@pytest.mark.parametrize("approximation", ["laplace", "variational"])
@pytest.mark.parametrize("latents", [1, 3])
def test_it_equals_that_of_products_that_are_kept(latents, approximation):
    test = torch.randn(300, 3, generator=torch.Generator().manual_seed(2)).double()
    found = []
    for budget in (2**30, 2**18):
        solver = SubspaceNewton(covariance_rank=40, tolerance=1e-6)
        model = _model(2000, latents, solver=solver, approximation=approximation, memory_budget=budget).double()
        solution = model.condition()
        found.append((solution.latent_covariance, model.predict(test).probs, solution.rank, solution.certificate))
    (covariance, probs, rank, certificate), (ours, our_probs, our_rank, our_certificate) = found
    assert rank == our_rank == 40
    if approximation == "laplace":
        torch.testing.assert_close(ours, covariance, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(our_probs, probs, rtol=1e-5, atol=1e-6)
    else:  # rounds choose actions anew, where others go on with those that there are
        assert float(ours.sum() / covariance.sum()) == pytest.approx(1.0, abs=0.02)
        torch.testing.assert_close(our_probs, probs, rtol=0.05, atol=0.005)
    assert our_certificate.objective_gap < 2000 * 1e-6 > certificate.objective_gap


def test_a_pass_is_one_whatever_its_columns():
    kept, made_again = (_model(2000, approximation="laplace", memory_budget=b).condition() for b in (2**30, 2**18))
    assert kept.kernel_passes <= made_again.kernel_passes <= kept.kernel_passes + 1


def test_memory_of_the_actions_is_all_there_is():
    """By default there are as many as the budget has room for, and the plan says so."""
    rows, budget = 100_000, 2**25
    model = _model(rows, approximation="laplace", memory_budget=budget)
    plan = model.plan()
    with LiveMemory() as memory:
        rank = model.condition().rank
    assert rank == budget // (4 * rows)
    assert memory.peak < plan.total_memory
    assert plan.memory["covariance"] < 2 * budget
