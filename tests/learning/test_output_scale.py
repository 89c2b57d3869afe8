"""Output scales for predictions that integrate over the posterior."""

from __future__ import annotations

import math
from unittest import mock

import gpytorch
import pytest
import torch
from gpytorch.kernels import LinearKernel, MaternKernel, ScaleKernel

import itergp
from itergp.errors import SolverError
from itergp.learning import Calibration, calibrate_predictions, calibration, output_scale
from itergp.learning.output_scale import raise_output_scales
from itergp.learning.predictives import Candidates
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

    def score(raise_scales: bool) -> float:
        found = calibrate_predictions(model, raise_scales=raise_scales)
        model.approximation, model.tempering = found.approximation, found.tempering
        with torch.no_grad():
            return float(model.predict(x).log_prob(y.float()).mean())

    before = score(False)
    assert model.covar_module.outputscale.item() == 1.0
    after = score(True)
    assert model.covar_module.outputscale.item() >= 8.9
    assert model.approximation == "variational"
    assert after > before + 0.02


def test_labels_with_noise_ask_for_nothing():
    model = classifier(600, flipped=0.3, variance=4.0)
    calibrate_predictions(model, raise_scales=True)
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
    learned, compare = candidates(-1.0), mock.Mock(side_effect=AssertionError)
    assert raise_output_scales(model, learned, compare) is learned
    assert compare.call_count == 0


def candidates(*densities: float) -> list[Candidates]:
    """Of ten rows of each split; the plugged-in mean is better, and does not count."""
    plugged_in, approximation = {("variational", math.inf): torch.zeros(10)}, ("variational", 1.0)
    return [Candidates({}, plugged_in | {approximation: torch.full((10,), value)}, {}) for value in densities]


@pytest.mark.parametrize("error", [SolverError("no"), OutOfTimeError()])
def test_a_posterior_that_is_not_found_ends_it_with_what_was_gained(error):
    better, model = candidates(-0.9, -0.8), classifier(100)
    compare = mock.Mock(side_effect=[*better, candidates(-0.7)[0], error])
    assert raise_output_scales(model, candidates(-1.0, -1.0), compare) == better
    assert model.covar_module.outputscale.item() == pytest.approx(3.0)
    assert [call.args for call in compare.call_args_list] == [(0,), (1,), (0,), (1,)]


@pytest.mark.parametrize(("densities", "asked"), [((-1.0, -0.5), 1), ((-0.9, -1.2), 2), ((-0.1, -1.8), 2)])
def test_a_scale_that_is_not_clearly_better_is_taken_back(densities, asked):
    """No better on the first rows, or on all, or by less than two standard errors."""
    learned, model = candidates(-1.0, -1.0), classifier(100)
    compare = mock.Mock(side_effect=candidates(*densities))
    assert raise_output_scales(model, learned, compare) is learned
    assert compare.call_count == asked
    assert model.covar_module.outputscale.item() == pytest.approx(1.0)


@pytest.mark.parametrize("lead", [-0.5, 0.0, None])
def test_a_variational_posterior_that_is_not_ahead_needs_no_other_scale(lead, monkeypatch):
    monkeypatch.setattr(calibration, "lead_of", lambda _: lead)
    raised = mock.Mock(side_effect=AssertionError)
    monkeypatch.setattr(calibration, "raise_output_scales", raised)
    calibrate_predictions(classifier(100), raise_scales=True)
    assert raised.call_count == 0


def test_time_that_is_over_leaves_scales_as_they_are():
    model = classifier(100)
    with pytest.raises(OutOfTimeError, match=r"^$"):
        calibrate_predictions(model, deadline=Deadline(-math.inf), raise_scales=True)
    assert model.covar_module.outputscale.item() == 1.0


@pytest.mark.parametrize("kind", ["binary", "few rows", "noise to learn", "classes", "a bound"])
def test_fit_does_so_where_it_learns_a_mode_of_one_function(kind, monkeypatch):
    called = []

    def calibrated(*_, raise_scales, **__):
        called.append(raise_scales)
        return Calibration("laplace", 0.0, {}, 0.0, 10, None)

    monkeypatch.setattr("itergp.learning.fitting.calibrate_predictions", calibrated)
    x, y = chequers(200 if kind == "few rows" else 520)
    likelihood = {"noise to learn": GaussianLikelihood(), "classes": CategoricalLikelihood(2)}
    targets = y.float() if kind == "noise to learn" else y
    model = GP(x, targets, likelihood.get(kind, BernoulliLikelihood()))
    itergp.fit(model, max_iterations=1, **({"objective": "elbo"} if kind == "a bound" else {}))
    assert called == [kind == "binary"]
