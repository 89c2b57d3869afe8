"""Output scales for predictions that integrate over the posterior."""

from __future__ import annotations

import math

import gpytorch
import pytest
import torch
from gpytorch.kernels import LinearKernel, MaternKernel, ScaleKernel

import itergp
from itergp.errors import SolverError
from itergp.learning import calibrate_predictions, output_scale
from itergp.learning.output_scale import raise_output_scales
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood, GaussianLikelihood
from itergp.models import GP
from itergp.objectives import Deadline, OutOfTimeError


def chequers(rows: int, flipped: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels of a chequerboard, without noise or with some of them flipped."""
    generator = torch.Generator().manual_seed(0)
    x = 4.0 * torch.rand(rows, 2, generator=generator)
    y = (x.floor().sum(-1) % 2 == 1) ^ (torch.rand(rows, generator=generator) < flipped)
    return x, y.long()


def classifier(rows: int, flipped: float = 0.0, variance: float = 1.0) -> GP:
    kernel = ScaleKernel(MaternKernel(nu=0.5))
    kernel.outputscale, kernel.base_kernel.lengthscale = variance, 1.0
    return GP(*chequers(rows, flipped), BernoulliLikelihood(), kernel=kernel).eval()


def test_labels_without_noise_are_better_followed():
    """The scale is multiplied, and test rows agree with those that were held out."""
    x, y = (part[600:] for part in chequers(1000))
    model = classifier(600)

    def score() -> float:
        found = calibrate_predictions(model)
        model.approximation, model.tempering = found.approximation, found.tempering
        with torch.no_grad():
            return float(model.predict(x).log_prob(y.float()).mean())

    before = score()
    factor = raise_output_scales(model)
    assert factor >= 9.0
    assert model.covar_module.outputscale.item() == pytest.approx(factor)
    assert score() > before + 0.02


def test_labels_with_noise_ask_for_nothing():
    model = classifier(600, flipped=0.3, variance=4.0)
    assert raise_output_scales(model) == 1.0
    assert model.covar_module.outputscale.item() == 4.0


def test_every_term_of_a_sum_and_one_factor_of_a_product():
    kernel = ScaleKernel(MaternKernel()) + ScaleKernel(MaternKernel()) * ScaleKernel(MaternKernel()) + LinearKernel()
    first, product, _ = kernel.kernels
    assert output_scale._learned_scales(kernel) == [first, product.kernels[0]]
    nested = ScaleKernel(ScaleKernel(MaternKernel()))
    assert output_scale._learned_scales(nested) == [nested]


@pytest.mark.parametrize("why", ["fixed", "prior", "bound", "none"])
def test_scales_that_are_the_users_stay(why):
    kernel = ScaleKernel(MaternKernel())
    if why == "fixed":
        kernel.raw_outputscale.requires_grad_(False)
    if why == "prior":
        kernel = ScaleKernel(MaternKernel(), outputscale_prior=gpytorch.priors.GammaPrior(2.0, 1.0))
    if why == "bound":
        kernel = ScaleKernel(MaternKernel(), outputscale_constraint=gpytorch.constraints.Interval(0.1, 10.0))
    if why == "none":
        kernel = MaternKernel()
    model = GP(*chequers(100), BernoulliLikelihood(), kernel=kernel).eval()
    assert raise_output_scales(model) == 1.0


@pytest.mark.parametrize("error", [SolverError("no"), OutOfTimeError()])
def test_a_posterior_that_is_not_found_ends_it_with_what_was_gained(error, monkeypatch):
    densities, asked = iter([-1.0, -0.9, error]), []

    def density(*arguments):
        asked.append(arguments[3])
        found = next(densities)
        if isinstance(found, Exception):
            raise found
        return torch.full((10,), found)

    monkeypatch.setattr(output_scale, "_best_density", density)
    model = classifier(100)
    assert raise_output_scales(model) == 3.0
    assert model.covar_module.outputscale.item() == pytest.approx(3.0)
    assert asked == [output_scale.APPROXIMATIONS, ("variational",), ("variational",)]


def test_time_that_is_over_leaves_scales_as_they_are():
    model = classifier(100)
    with pytest.raises(OutOfTimeError, match=r"^$"):
        raise_output_scales(model, deadline=Deadline(-math.inf))
    assert model.covar_module.outputscale.item() == 1.0


@pytest.mark.parametrize("kind", ["binary", "few rows", "noise to learn", "classes", "a bound", "not to choose"])
def test_fit_does_so_where_it_learns_a_mode_of_one_function(kind, monkeypatch):
    called = []
    monkeypatch.setattr("itergp.learning.fitting.raise_output_scales", lambda *_, **__: called.append(True))
    x, y = chequers(200 if kind == "few rows" else 520)
    likelihood = {"noise to learn": GaussianLikelihood(), "classes": CategoricalLikelihood(2)}
    targets = y.float() if kind == "noise to learn" else y
    model = GP(x, targets, likelihood.get(kind, BernoulliLikelihood()))
    options = {"a bound": {"objective": "elbo"}, "not to choose": {"calibrate": False}}.get(kind, {})
    itergp.fit(model, max_iterations=1, **options)
    assert bool(called) is (kind == "binary")
