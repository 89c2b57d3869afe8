"""Learning hyperparameters."""

from __future__ import annotations

import gpytorch
import pytest
import torch
from helpers import CASES, SimpleGP, make_binary, make_inputs, make_kernel

import itergp
from itergp.learning import fit
from itergp.learning.parameters import free_parameters, initialise
from itergp.likelihoods import BernoulliLikelihood
from itergp.objectives import ComputationAwareELBO, LaplaceEvidence


def default_kernel() -> gpytorch.kernels.ScaleKernel:
    return gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5))


def binary(num_rows: int = 200, **options) -> SimpleGP:
    x, y = make_binary(num_rows, dtype=torch.float32)
    return SimpleGP(x, y, BernoulliLikelihood(), **options)


@pytest.mark.parametrize("objective", ["predictive", "elbo"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_learning_improves_held_out_density(name, objective):
    case = CASES[name]
    x, y = case.data(240, dtype=torch.float32)
    kernel = make_kernel(lengthscale=0.05, scale=0.1)  # a bad start
    model = SimpleGP(x[:160], y[:160], case.make(), kernel=kernel).eval()
    targets = y[160:] if name == "categorical" else y[160:].float()
    with torch.no_grad():
        before = model.predict(x[160:]).log_prob(targets).mean()
    result = itergp.fit(model, objective=objective, max_iterations=25)
    with torch.no_grad():
        after = model.predict(x[160:]).log_prob(targets).mean()
    assert float(after) > float(before) + 0.02
    assert result.solution is model.solution
    assert len(result.records) == 25
    assert result.reason == "all iterations were taken"
    assert set(result.seconds) == {"learn", "calibrate", "condition"}
    assert not model.training


def test_equal_seeds_give_equal_results():
    results = [itergp.fit(binary(), max_iterations=6, seed=seed) for seed in (3, 3, 4)]
    trajectories = [[record.objective for record in result.records] for result in results]
    assert trajectories[0] == trajectories[1] != trajectories[2]
    assert torch.equal(results[0].solution.representer_weights, results[1].solution.representer_weights)


def test_defaults_are_initialised_from_the_data_and_choices_are_kept():
    x = 100.0 * make_inputs(50, dtype=torch.float32)
    kernel = default_kernel()
    assert initialise(kernel, x) == ["outputscale", "base_kernel.lengthscale"]
    kernel.requires_grad_(False)
    assert float(kernel.base_kernel.lengthscale) == pytest.approx(0.5 * float(torch.pdist(x).median()), rel=1e-4)
    assert float(kernel.outputscale) == pytest.approx(10.0, rel=1e-4)
    chosen = make_kernel(2.0, 3.0)
    assert initialise(chosen, x) == []
    fixed = default_kernel()
    fixed.raw_outputscale.requires_grad_(False)
    assert initialise(fixed, x) == ["base_kernel.lengthscale"]


def test_positive_parameters_move_by_their_logarithm():
    model = binary(50, kernel=make_kernel(2.0, 5.0)).double()
    for parameter in free_parameters(model):
        before = parameter.parameter.detach().clone()
        parameter.write()
        assert torch.allclose(parameter.parameter, before, atol=1e-6)
        if parameter.constraint is None:
            continue
        # The chain rule against a finite difference, through a function of the constrained value.
        parameter.parameter.grad = None
        parameter.constraint.transform(parameter.parameter).square().sum().backward()
        parameter.read_gradient()
        value = parameter.constraint.transform(parameter.parameter).detach()
        assert torch.allclose(parameter.variable.grad, 2.0 * value.square(), rtol=1e-5)


def test_fixed_parameters_stay():
    model = binary()
    model.covar_module.outputscale = 7.0
    model.covar_module.raw_outputscale.requires_grad_(False)
    fit(model, max_iterations=4)
    assert model.covar_module.outputscale.item() == pytest.approx(7.0)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match=r"needs parameters to learn\. Got none"):
        fit(model)


def test_an_interrupt_and_the_clock_end_learning_with_a_posterior():
    def stop(record):
        if record.iteration == 2:
            raise KeyboardInterrupt

    result = fit(binary(), max_iterations=30, callback=stop)
    assert result.reason == "learning was interrupted"
    assert len(result.records) == 3
    assert result.solution.rank > 0
    result = fit(binary(), max_iterations=1000, time_limit=1e-6)
    assert result.reason == "the time limit was reached"
    assert len(result.records) == 1


def test_a_nan_keeps_the_last_good_parameters():
    model = binary()

    class Broken(ComputationAwareELBO):
        calls = 0

        def evidence(self, *arguments):
            Broken.calls += 1
            return super().evidence(*arguments) * (float("nan") if Broken.calls > 3 else 1.0)

    with pytest.warns(
        itergp.ItergpWarning, match="became NaN or infinite in evaluation 3; the last good parameters are kept"
    ):
        result = fit(model, objective=Broken(model.likelihood, model), max_iterations=10)
    assert result.reason == "the objective became NaN or infinite"
    assert len(result.records) == 3
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert bool(torch.isfinite(model.predict(make_inputs(5, dtype=torch.float32)).probs).all())


def test_an_objective_of_ones_own_and_a_wrong_name():
    model = binary(60).double()
    model.set_train_data(make_inputs(60), model.train_targets.double(), strict=False)
    result = fit(model, objective=LaplaceEvidence(model.likelihood, model), max_iterations=5)
    assert result.records[-1].objective > result.records[0].objective
    with pytest.raises(ValueError, match=r"`objective` must be 'auto', .* or an objective\. Got 'mll'"):
        fit(model, objective="mll")


def test_separable_classes_warn_of_a_diverging_scale():
    x = make_inputs(60, dtype=torch.float32)
    model = SimpleGP(x, (x[:, 0] > 0).long(), BernoulliLikelihood(), kernel=make_kernel(3.0, 9e4))
    with pytest.warns(itergp.ItergpWarning, match="raw_outputscale diverged, as it does when classes are separable"):
        fit(model, max_iterations=8)


def test_ard_finds_the_relevant_input():
    x = make_inputs(400, num_columns=4, dtype=torch.float32)
    y = (torch.sin(3.0 * x[:, 1]) > 0).long()
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=4))
    model = SimpleGP(x, y, BernoulliLikelihood(), kernel=kernel)
    fit(model, max_iterations=30)
    lengthscales = kernel.base_kernel.lengthscale.detach().reshape(-1)
    assert int(lengthscales.argmin()) == 1
    others = lengthscales[[0, 2, 3]]
    assert float(others.min()) > 2.0 * float(lengthscales[1])
