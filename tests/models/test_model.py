"""The model keeps GPyTorch's habits, and predictions are what the posterior says."""

from __future__ import annotations

import copy
import io
import math
import pickle
import time

import gpytorch
import gpytorch.likelihoods as gl
import pytest
import scipy.stats
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import LinearKernel, MaternKernel, RBFKernel, ScaleKernel
from helpers import (
    CASES,
    CORE,
    SimpleGP,
    assert_close,
    make_batch_kernel,
    make_binary,
    make_classes,
    make_counts,
    make_inputs,
    make_kernel,
    make_model,
    make_reals,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from itergp import InputError
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood, GaussianLikelihood, PoissonLikelihood
from itergp.models import NonConjugateGP
from itergp.objectives import ComputationAwareELBO
from itergp.operators import BlockedOperator, DenseOperator
from itergp.solvers import DenseNewton, IterNCGP, LinearTimeNewton, Reason, SubspaceNewton
from itergp.solvers.policies import UnitVectors
from itergp.solvers.subspace import linear_time

EXACT = DenseNewton()
cases = pytest.mark.parametrize("name", CORE)
two_cases = pytest.mark.parametrize("name", ["bernoulli-logit", "categorical"])


def _predictions(model: NonConjugateGP, x: Tensor | None = None) -> list[Tensor]:
    """Everything a model predicts: latent means, latent variances, and means or probabilities of observations."""
    x = make_inputs(6, seed=9).to(model.train_inputs[0]) if x is None else x
    with torch.no_grad():
        latent, predictive = model(x), model.predict(x)
        observed = predictive.probs if hasattr(predictive, "probs") else predictive.mean
        return [latent.mean, latent.variance, observed, model.latent_mean(x)]


def _assert_same(first: list[Tensor], second: list[Tensor]) -> None:
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def _assert_near(first: list[Tensor], second: list[Tensor], kind: str, *, rows: slice = slice(None)) -> None:
    for index, (one, other) in enumerate(zip(first, second, strict=True)):
        if index == 2 and one.dim() == 2:  # class probabilities are sampled
            assert float((one - other[rows]).abs().max()) < 2e-3
        else:
            assert_close(one, other[rows], kind)


def _differ(first: list[Tensor], second: list[Tensor]) -> bool:
    return not torch.allclose(first[0], second[0], rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------ prior, posterior
@pytest.mark.parametrize("kernel", [make_kernel, make_batch_kernel], ids=["shared", "one-per-class"])
def test_training_mode_returns_the_prior(kernel):
    x, y = make_classes(20)
    mean = gpytorch.means.ConstantMean()
    model = SimpleGP(x, y, CategoricalLikelihood(3), kernel=kernel(), mean=mean).double().train()
    prior = model(x)
    assert type(prior) is MultivariateNormal
    assert_close(prior.mean, model.mean_module(x).expand(prior.mean.shape))
    assert_close(prior.covariance_matrix, model.covar_module(x).to_dense())
    prior.covariance_matrix.sum().backward()
    assert all(p.grad is not None for p in model.covar_module.parameters())
    for other in (x[:5], x + 1.0, make_inputs(20, 3), x.float() + 1.0):
        with pytest.raises(
            InputError, match=r"must be called on its training inputs\. Got others\. Call model\.eval\(\)"
        ):
            model(other)
    with pytest.raises(InputError, match="must be called on its training inputs"):
        model(x, x)


def test_modes():
    model = make_model("bernoulli-logit")
    assert not model.training
    assert not model.likelihood.training
    x = model.train_inputs[0]
    posterior = model(x).mean
    assert not bool(model.train()(x).mean.any())
    assert torch.equal(model.eval()(x).mean, posterior)


@cases
@pytest.mark.parametrize("approximation", ["laplace", "variational"])
def test_what_a_call_returns(name, approximation, dtype):
    model = make_model(name, dtype=dtype, approximation=approximation)
    x = make_inputs(7, dtype=dtype, seed=3)
    posterior = model(x)
    assert posterior.mean.dtype == dtype
    if name == "categorical":
        assert type(posterior) is MultitaskMultivariateNormal
        assert posterior.mean.shape == posterior.variance.shape == (7, 3)
        assert posterior._interleaved
    else:
        assert type(posterior) is MultivariateNormal
        assert posterior.mean.shape == posterior.variance.shape == (7,)
    assert_close(model.latent_mean(x), posterior.mean.reshape(7, -1), "local")
    predictive = model.predict(x)
    assert predictive.batch_shape == (7,)
    assert predictive.mean.dtype == dtype or name == "categorical"
    assert model.solution.approximation == approximation
    assert model.solution.converged
    assert model.predict((x,)).batch_shape == (7,)


@cases
def test_the_posterior_is_that_of_the_solution(name):
    model = make_model(name)
    solution, x = model.solution, model.train_inputs[0]
    posterior = model(x)
    assert_close(posterior.mean.reshape(40, -1), solution.latent_values, "derivative")
    variance = solution.latent_covariance.diagonal(dim1=-2, dim2=-1)
    assert_close(posterior.variance.reshape(40, -1), variance, "derivative")
    assert bool((posterior.variance < 4.0 + 1e-9).all())  # below the prior's


@cases
def test_predictions_at_the_training_inputs_make_sense(name):
    model = make_model(name, 60)
    x, y = model.train_inputs[0], model.train_targets
    with torch.no_grad():
        log_prob = model.predict(x).log_prob(y)
        ignorant = model.predict(x + 1e3).log_prob(y)  # far away: the prior
    assert bool(torch.isfinite(log_prob).all())
    assert float(log_prob.mean()) > float(ignorant.mean()) + 0.1


def test_tempering_joins_plug_in_and_posterior():
    for name in CORE:
        model = make_model(name)
        x = make_inputs(5, seed=3)
        with torch.no_grad():
            latent, zeros = model.latent_mean(x), torch.zeros(5, 3 if name == "categorical" else 1, 1)
            size = latent.shape[1]
            plug_in = model.calculus.predictive(latent, zeros.double().expand(5, size, size))
            first, last = model.predict(x, tempering=math.inf), model.predict(x, tempering=0.0)
            if size == 1:
                assert_close(first.mean, plug_in.mean)
                half = model.predict(x, tempering=0.5)
                assert bool(((half.variance - first.variance) * (half.variance - last.variance) <= 1e-12).all())
                assert_close(last.mean, model.predict(x).mean)
            else:
                assert_close(first.probs, plug_in.probs)
                assert torch.equal(last.probs, model.predict(x).probs)
                assert float(last.probs.amax(-1).mean()) < float(first.probs.amax(-1).mean())


def test_prior_mode():
    model = make_model("bernoulli-logit")
    x = make_inputs(5, seed=3)
    with gpytorch.settings.prior_mode(True):
        prior = model(x)
    assert_close(prior.covariance_matrix, model.covar_module(x).to_dense())
    assert_close(prior.mean, torch.zeros(5, dtype=torch.float64))
    assert not torch.allclose(model(x).mean, prior.mean, atol=0.1)


# ---------------------------------------------------------------- round trips
def _through_state_dict(model: SimpleGP) -> SimpleGP:
    name = next(n for n in CORE if type(CASES[n].make()) is type(model.likelihood) and n != "bernoulli-probit")
    other = make_model(name, dtype=model.train_inputs[0].dtype)
    other.load_state_dict(model.state_dict())
    return other


def _through_file(model: SimpleGP) -> SimpleGP:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


ROUND_TRIPS = {
    "state_dict": _through_state_dict,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "file": _through_file,
    "to": lambda model: copy.deepcopy(model).to(torch.float64),
    "double": lambda model: copy.deepcopy(model).double(),
    "cpu": lambda model: copy.deepcopy(model).cpu(),
    "twice": lambda model: pickle.loads(pickle.dumps(copy.deepcopy(model))),
}


@cases
@pytest.mark.parametrize("trip", ROUND_TRIPS)
def test_round_trips_keep_predictions(trip, name):
    if name == "bernoulli-probit" and trip == "state_dict":
        name = "bernoulli-logit"
    model = make_model(name)
    model.covar_module.base_kernel.lengthscale = 0.8
    model.mean_module.constant = 0.3
    before = _predictions(model)
    other = ROUND_TRIPS[trip](model)
    assert other is not model
    assert not other.training
    _assert_same(_predictions(other), before)
    _assert_same(_predictions(model), before)
    if trip != "state_dict":  # the posterior came along: it was not found again
        assert other.solution.seconds == model.solution.seconds
        assert other.solution.status == model.solution.status
        x = make_inputs(4, seed=3)
        assert_close(other.solution.certificate.latent_error(x), model.solution.certificate.latent_error(x), "local")
    other.covar_module.outputscale = 0.01  # a copy: the original does not notice
    assert _differ(_predictions(other), before)
    _assert_same(_predictions(model), before)


@pytest.mark.parametrize("trip", ROUND_TRIPS)
def test_round_trips_before_conditioning(trip):
    model = make_model("bernoulli-logit")
    other = ROUND_TRIPS[trip](model)
    _assert_same(_predictions(other), _predictions(model))


@pytest.mark.parametrize("likelihood", [gl.SoftmaxLikelihood(num_features=2, num_classes=3), CategoricalLikelihood(3)])
def test_copies_with_priors_and_own_kernels(likelihood):
    batch = torch.Size([likelihood.num_features if isinstance(likelihood, gl.SoftmaxLikelihood) else 3])
    prior = gpytorch.priors.GammaPrior(2.0, 0.5)
    kernel = ScaleKernel(RBFKernel(batch_shape=batch), batch_shape=batch, outputscale_prior=prior)
    model = SimpleGP(*make_classes(30), likelihood, kernel=kernel).double().eval()
    for trip in ("deepcopy", "pickle", "file"):
        _assert_same(_predictions(ROUND_TRIPS[trip](model)), _predictions(model))


def test_a_gaussian_noise_prior_can_be_pickled_where_gpytorchs_can():
    prior = gpytorch.priors.GammaPrior(2.0, 3.0)
    pickle.loads(pickle.dumps(gl.GaussianLikelihood(noise_prior=prior)))
    x, y = make_reals(20)
    model = SimpleGP(x, y, GaussianLikelihood(noise_prior=prior)).double().eval()
    for trip in ("deepcopy", "pickle"):
        other = ROUND_TRIPS[trip](model)
        _assert_same(_predictions(other), _predictions(model))
        _, module, prior, closure, _ = next(other.named_priors())
        other.likelihood.noise = 0.2
        assert float(closure(module).detach()) == pytest.approx(0.2)


@cases
def test_changing_the_dtype(name):
    solver = SubspaceNewton(tolerance=1e-6, covariance_rank=10_000)  # which actions are kept may turn on rounding
    single = make_model(name, dtype=torch.float32, solver=solver)
    before = _predictions(single)
    double = copy.deepcopy(single).double()
    assert double.solution.representer_weights.dtype == torch.float64
    assert double.train_inputs[0].dtype == torch.float64
    assert double.train_targets.dtype == (torch.int64 if name == "categorical" else torch.float64)
    assert double.solution is not single.solution  # found again, with the digits that were asked for
    for one, other in zip(_predictions(double), before, strict=True):
        assert one.dtype == torch.float64
        assert_close(one, other.double(), "posterior", dtype=torch.float32)
    back = copy.deepcopy(double).float()
    for one, other in zip(_predictions(back), before, strict=True):
        assert one.dtype == torch.float32
        assert_close(one, other, "posterior")
    assert double.condition().converged
    assert back.condition().converged


def test_parameters_only():
    model = make_model("bernoulli-logit")
    assert set(model.state_dict()) == {
        "mean_module.raw_constant",
        "covar_module.raw_outputscale",
        "covar_module.raw_outputscale_constraint.lower_bound",
        "covar_module.raw_outputscale_constraint.upper_bound",
        "covar_module.base_kernel.raw_lengthscale",
        "covar_module.base_kernel.raw_lengthscale_constraint.lower_bound",
        "covar_module.base_kernel.raw_lengthscale_constraint.upper_bound",
    }
    model.solution  # noqa: B018 - conditions the model
    assert len(model.state_dict()) == 7
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})


def test_priors_and_constraints():
    x, y = make_reals(20)
    kernel = ScaleKernel(
        MaternKernel(
            nu=1.5,
            lengthscale_prior=gpytorch.priors.LogNormalPrior(0.0, 1.0),
            lengthscale_constraint=gpytorch.constraints.Interval(0.1, 5.0),
        ),
        outputscale_prior=gpytorch.priors.GammaPrior(2.0, 0.5),
    )
    likelihood = GaussianLikelihood(noise_prior=gpytorch.priors.GammaPrior(1.1, 2.0))
    model = SimpleGP(x, y, likelihood, kernel=kernel).double().eval()
    assert {name for name, *_ in model.named_priors()} == {
        "likelihood.noise_prior",
        "covar_module.outputscale_prior",
        "covar_module.base_kernel.lengthscale_prior",
    }
    assert {name for name, _ in model.named_constraints()} >= {"likelihood.raw_noise_constraint"}
    model.initialize(**{"covar_module.base_kernel.lengthscale": 0.7, "likelihood.noise": 0.5})
    assert float(model.covar_module.base_kernel.lengthscale.detach()) == pytest.approx(0.7)
    assert float(model.likelihood.noise.detach()) == pytest.approx(0.5)
    assert model.solution.converged


# ------------------------------------------------------------------- new data
def test_new_training_data():
    model = make_model("bernoulli-logit")
    first = model.solution
    x, y = make_binary(40, seed=5)
    model.set_train_data(x, y)
    assert model.solution is not first
    fresh = SimpleGP(x, y, BernoulliLikelihood()).double().eval()
    _assert_same(_predictions(model), _predictions(fresh))

    model.set_train_data(targets=1 - y)
    assert _differ(_predictions(model), _predictions(fresh))
    model.set_train_data(inputs=x, targets=y)
    model.set_train_data(inputs=(x + 0.5,))
    assert torch.equal(model.train_inputs[0], x + 0.5)
    assert torch.equal(model.train_targets, y.double())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"inputs": make_inputs(30)},
            r"shape, dtype and device of the old\. Got \(30, 2\) for \(40, 2\)\. Pass strict",
        ),
        ({"inputs": make_inputs(40, 3)}, r"Got \(40, 3\) for \(40, 2\)"),
        ({"inputs": make_inputs(40).float()}, r"dtype and device of the old"),
        ({"inputs": (make_inputs(40), make_inputs(40))}, r"shape, dtype and device of the old"),
        (
            {"targets": torch.ones(30)},
            r"New targets must have the shape of the old\. Got \(30,\) for \(40,\)\. Pass strict",
        ),
        ({"targets": 3 * torch.ones(40, dtype=torch.int64)}, r"labels 0 or 1 .* Got values \[3\]"),
        ({"inputs": make_inputs(40) * math.nan}, r"`inputs` must be finite"),
    ],
)
def test_bad_new_data_change_nothing(changes, match):
    model = make_model("bernoulli-logit")
    before = _predictions(model)
    with pytest.raises(InputError, match=match):
        model.set_train_data(**changes)
    _assert_same(_predictions(model), before)


def test_more_training_data():
    model = make_model("categorical")
    x, y = make_classes(55, seed=3)
    model.set_train_data(x, y, strict=False)
    fresh = SimpleGP(x, y, CategoricalLikelihood(3)).double().eval()
    _assert_same(_predictions(model), _predictions(fresh))
    with pytest.raises(InputError, match=r"same number of rows\. Got 10 and 55"):
        model.set_train_data(x[:10], strict=False)
    x, y = make_classes(30, num_columns=4)
    model.set_train_data(x, y, strict=False)
    assert model.predict(make_inputs(3, 4)).probs.shape == (3, 3)


# --------------------------------------------------------------- invalidation
def _by_initialize(model):
    model.initialize(**{"covar_module.outputscale": 9.0})


def _by_attribute(model):
    model.covar_module.base_kernel.lengthscale = 0.3


def _by_optimiser(model):
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    (model.covar_module.outputscale.sum() + model.covar_module.base_kernel.lengthscale.sum()).backward()
    optimiser.step()


def _by_state_dict(model):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state["covar_module.raw_outputscale"] += 2.0
    model.load_state_dict(state)


def _by_data(model):
    model.covar_module.base_kernel.raw_lengthscale.data.sub_(1.0)


def _by_mean(model):
    model.mean_module.initialize(constant=1.0)


CHANGES = [_by_initialize, _by_attribute, _by_optimiser, _by_state_dict, _by_data, _by_mean]


@two_cases
@pytest.mark.parametrize("change", CHANGES)
def test_changed_hyperparameters_are_noticed(name, change):
    model = make_model(name)
    before, first = _predictions(model), model.solution
    change(model)
    after = _predictions(model)
    assert model.solution is not first
    assert _differ(after, before)
    fresh = make_model(name)
    fresh.load_state_dict(model.state_dict())
    for one, other in zip(after, _predictions(fresh), strict=True):  # found from another start, to the same tolerance
        assert float((one - other).abs().max()) < 0.1 * float(other.abs().max())


@pytest.mark.parametrize("likelihood", [GaussianLikelihood, gl.GaussianLikelihood, gl.StudentTLikelihood])
def test_changed_likelihoods_are_noticed(likelihood):
    model = SimpleGP(*make_reals(30), likelihood()).double().eval()
    before, first = _predictions(model), model.solution
    model.likelihood.noise = 5.0
    assert _differ(_predictions(model), before)
    assert model.solution is not first


def test_unchanged_hyperparameters_keep_the_solution():
    model = make_model("categorical")
    first = model.solution
    assert model.condition() is not first  # an explicit call always runs, from where the last ended
    first = model.solution
    for act in (
        lambda: model(make_inputs(3)),
        lambda: model.predict(make_inputs(3)),
        lambda: model.latent_mean(make_inputs(3)),
        lambda: model.train().eval(),
        lambda: model.covar_module(make_inputs(3)).to_dense().sum().backward(),
        lambda: model.load_state_dict(model.state_dict()),
        lambda: model.initialize(
            **{"covar_module.raw_outputscale": model.covar_module.raw_outputscale.detach().clone()}
        ),
        lambda: model.requires_grad_(False),
        lambda: model.zero_grad(),
    ):
        act()
        assert model.solution is first


def test_conditioning_again_starts_where_the_last_ended():
    model = make_model("bernoulli-logit", 200, approximation="laplace")
    before, first = _predictions(model), model.solution
    again = model.condition()
    assert again.kernel_passes < first.kernel_passes
    assert again.certificate.norm_squared <= (1.0 + 1e-9) * first.certificate.norm_squared  # the same, but for rounding
    for one, other in zip(_predictions(model), before, strict=True):
        assert_close(one, other, "posterior", dtype=torch.float32)


def test_callback_and_progress(capsys):
    model = make_model("bernoulli-logit")
    records = []
    solution = model.condition(callback=records.append)
    assert records == list(solution.trace)
    assert capsys.readouterr().out == ""
    model.condition(progress=True)


def test_the_posterior_so_far_predicts_until_the_next_is_there():
    model, x = make_model("categorical"), make_inputs(5, seed=3)
    seen = []

    def early(solution):
        assert model.solution is solution
        assert bool((solution.certificate.latent_error(x) >= 0.0).all())
        inputs = x.clone().requires_grad_(True)
        assert model.latent_mean(inputs).requires_grad
        seen.append((solution, model.predict(x, tempering=math.inf).probs))

    final = model.condition(on_posterior=early)
    assert model.solution is final
    posteriors = [solution for solution, _ in seen]
    running = [one for one in posteriors if one.status.reason is Reason.RUNNING]
    (stage,) = (one for one in posteriors if one.status.reason is not Reason.RUNNING)
    steps = [record for record in final.trace if record.round == 0]
    assert len(running) == len(steps) - 2  # the last step of a stage ends it
    assert all(one.rank == 0 for one in running)
    assert stage.approximation == "laplace"
    assert stage.rank > 0
    assert [one.kernel_passes for one in posteriors] == sorted(one.kernel_passes for one in posteriors)
    laplace = [one.objective for one in running if one.approximation == "laplace"]
    assert laplace == sorted(laplace, reverse=True)
    mode = make_model("categorical", approximation="laplace").predict(x, tempering=math.inf).probs
    distances = [float((probs - mode).abs().max()) for solution, probs in seen if solution.approximation == "laplace"]
    assert distances[-1] < min(0.02, 0.2 * distances[0])


def test_looking_at_the_posterior_so_far_changes_nothing():
    looked, plain = make_model("categorical"), make_model("categorical")
    looked.condition(on_posterior=lambda solution: None)
    assert torch.equal(looked.solution.representer_weights, plain.solution.representer_weights)
    assert looked.solution.kernel_passes == plain.solution.kernel_passes
    assert len(looked.solution.trace.stages) == len(plain.solution.trace.stages)


@pytest.mark.parametrize(
    "solver",
    [
        LinearTimeNewton(num_support=40, policy=UnitVectors(order="random", rows=5), tolerance=1e-12, time_limit=0.6),
        SubspaceNewton(tolerance=1e-14, time_limit=0.6),
        IterNCGP(tolerance=1e-14, time_limit=0.6),
    ],
)
def test_looks_count_in_the_time_limit(solver, monkeypatch):
    monkeypatch.setattr(linear_time, "_FIRST", 5)
    model = make_model("categorical", 60, solver=solver, approximation="laplace")
    seen = []

    def slow(solution):
        seen.append(solution)
        time.sleep(0.25)

    solution = model.condition(on_posterior=slow)
    assert solution.status.reason is Reason.TIME
    assert 1 <= len(seen) <= 3


def test_the_model_keeps_what_it_had_if_a_look_at_an_early_posterior_fails():
    model, x = make_model("bernoulli-logit"), make_inputs(5, seed=3)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        model.condition(on_posterior=lambda solution: 1 / 0)
    assert model.last_solution is None

    def press(solution):
        if solution.status.reason is not Reason.RUNNING:
            raise KeyboardInterrupt

    stopped = model.condition(on_posterior=press)
    assert stopped.status.reason is Reason.INTERRUPTED
    assert stopped.approximation == "laplace"
    assert model.predict(x).probs.isfinite().all()


# ----------------------------------------------------------- differentiability
def _check_gradient(function, x: Tensor, tolerance: float = 1e-5) -> None:
    """The derivative of a scalar function along a direction, against central differences."""
    x = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(function(x), x)
    direction = torch.randn_like(x)
    with torch.no_grad():
        difference = (function(x + 1e-5 * direction) - function(x - 1e-5 * direction)) / 2e-5
    expected = float((gradient * direction).sum())
    assert abs(expected) > 1e-3
    assert float(difference) == pytest.approx(expected, rel=tolerance, abs=tolerance)


@cases
@pytest.mark.parametrize("kernel", [make_kernel, make_batch_kernel], ids=["shared", "one-per-class"])
def test_predictions_are_differentiable_in_the_inputs(name, kernel):
    if kernel is make_batch_kernel and name != "categorical":
        kernel = lambda: ScaleKernel(RBFKernel())  # noqa: E731
    model = make_model(name, kernel=kernel())
    x = make_inputs(5, seed=3)
    weights = torch.randn(5, 3 if name == "categorical" else 1, dtype=torch.float64)
    _check_gradient(lambda z: (model(z).mean.reshape(5, -1) * weights).sum(), x)
    _check_gradient(lambda z: (model(z).variance.reshape(5, -1) * weights).sum(), x)
    _check_gradient(lambda z: (model.latent_mean(z) * weights).sum(), x)
    if name == "categorical":
        _check_gradient(lambda z: (model.predict(z, tempering=math.inf).probs * weights).sum(), x)
        assert model.predict(x.clone().requires_grad_(True)).probs.requires_grad
    else:
        _check_gradient(lambda z: (model.predict(z).mean * weights[:, 0]).sum(), x)
        _check_gradient(lambda z: (model.predict(z).variance * weights[:, 0]).sum(), x, 1e-4)


def test_joint_covariances_are_differentiable():
    model = make_model("bernoulli-logit")
    weights = torch.randn(4, 4, dtype=torch.float64)
    _check_gradient(lambda z: (model(z).covariance_matrix * weights).sum(), make_inputs(4, seed=3))
    samples = model(make_inputs(4, seed=3).requires_grad_(True)).rsample(torch.Size([2]))
    assert samples.requires_grad


# ------------------------------------------------------------ lazy covariances
class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["bernoulli-logit", "categorical", "one-per-class"])
def test_no_dense_covariance_for_variances(name, grad):
    options = {"kernel": make_batch_kernel()} if name == "one-per-class" else {}
    model = make_model("categorical" if options else name, dtype=torch.float32, **options)
    model.solution  # noqa: B018 - conditions the model
    rows = 20_000
    x = make_inputs(rows, dtype=torch.float32, seed=3)
    with torch.set_grad_enabled(grad), LargestTensor() as largest:
        posterior = model(x)
        variance = posterior.variance
        posterior.stddev  # noqa: B018
        posterior.confidence_region()
    # Cross-covariances with 40 training rows for at most 3 kernels and as many actions.
    assert largest.numel <= 3 * rows * 3 * 41
    assert largest.numel < rows**2 / 50
    assert bool((variance > 0.0).all())
    some = torch.tensor([0, 77, rows - 1])
    with torch.no_grad():
        assert_close(variance[some], model(x[some]).variance, "derivative")


def _model_of(name: str, **options) -> SimpleGP:
    if name == "one-per-class":
        return make_model("categorical", kernel=make_batch_kernel(), **options)
    return make_model(name, **options)


@pytest.mark.parametrize("rank", [0, 1, 5, None])
@pytest.mark.parametrize("name", ["bernoulli-logit", "categorical", "one-per-class"])
def test_joint_covariance(name, rank):
    model = _model_of(name, solver=SubspaceNewton(covariance_rank=rank))
    rows = 3 if name == "one-per-class" else 8  # as many rows as classes: shapes that are easily confused
    x = make_inputs(rows, seed=3)
    with torch.no_grad():
        posterior = model(x)
        covariance = posterior.covariance_matrix
        row_covariance = model.latent_posterior(x).row_covariance()
    assert model.solution.rank <= (40 * 3 if rank is None else rank)
    size = covariance.shape[0]
    assert covariance.shape == (size, size)
    assert_close(covariance, covariance.mT, "local")
    assert float(torch.linalg.eigvalsh(covariance).min()) > -1e-9
    assert_close(covariance.diagonal(), posterior.variance.flatten(), "derivative")
    latents = size // rows
    blocks = torch.stack(
        [covariance[n * latents : (n + 1) * latents, n * latents : (n + 1) * latents] for n in range(rows)]
    )
    assert_close(row_covariance, blocks, "derivative")
    kernel = model.covar_module(x).to_dense().detach()
    kernel = kernel.expand(latents, rows, rows)
    prior = torch.zeros(rows, latents, rows, latents, dtype=torch.float64)
    for c in range(latents):
        prior[:, c, :, c] = kernel[c]
    if rank == 0:
        assert_close(covariance, prior.reshape(size, size))
    else:
        assert float(torch.linalg.eigvalsh(prior.reshape(size, size) - covariance).min()) > -1e-9


@pytest.mark.parametrize("name", ["bernoulli-logit", "categorical", "one-per-class"])
def test_samples(name):
    model = _model_of(name)
    x = make_inputs(5, seed=3)
    with torch.no_grad():
        posterior = model(x)
        samples = posterior.rsample(torch.Size([20_000]))
    assert samples.shape == (20_000, *posterior.mean.shape)
    flat, covariance = samples.flatten(1), posterior.covariance_matrix
    error = (covariance.diagonal() / len(flat)).sqrt()
    assert bool(((flat.mean(0) - posterior.mean.flatten()).abs() < 5.0 * error).all())
    scale = covariance.diagonal().sqrt()
    assert float(((flat.mT.cov() - covariance) / scale[:, None] / scale).abs().max()) < 0.05
    assert model(x).sample().shape == posterior.mean.shape


@cases
def test_log_prob_of_latents(name):
    model = make_model(name)
    x = make_inputs(4, seed=3)
    with torch.no_grad():
        posterior = model(x)
        value = posterior.mean + 0.1
        expected = scipy.stats.multivariate_normal(
            posterior.mean.flatten().numpy(), posterior.covariance_matrix.numpy(), allow_singular=True
        ).logpdf(value.flatten().numpy())
    assert float(posterior.log_prob(value).detach()) == pytest.approx(expected, rel=1e-6)


# --------------------------------------------------------------------- batches
@pytest.mark.parametrize("name", ["bernoulli-logit", "categorical", "one-per-class", "poisson"])
def test_predictions_do_not_depend_on_the_memory_budget(name):
    x = make_inputs(101, seed=3)
    expected = _predictions(_model_of(name), x)
    for budget in (1, 40_000, 10**9):
        model = _model_of(name, memory_budget=budget)
        _assert_near(_predictions(model, x), expected, "posterior")
        kind = BlockedOperator if budget == 1 else DenseOperator
        assert budget == 40_000 or type(model.solution.operator) is kind


def test_the_operator_can_be_chosen():
    for kind, expected in (("dense", DenseOperator), ("blocked", BlockedOperator)):
        assert type(make_model("poisson", operator=kind).solution.operator) is expected


# ----------------------------------------------------- any likelihood of GPyTorch
def _student_t() -> gl.StudentTLikelihood:
    return gl.StudentTLikelihood().initialize(noise=0.2)


GPYTORCH = {
    "bernoulli": (gl.BernoulliLikelihood, make_binary),
    "softmax": (lambda: gl.SoftmaxLikelihood(num_features=3, num_classes=3, mixing_weights=False), make_classes),
    "softmax-mixed": (lambda: gl.SoftmaxLikelihood(num_features=2, num_classes=3), make_classes),
    "poisson": (gl.PoissonLikelihood, make_counts),
    "gaussian": (gl.GaussianLikelihood, make_reals),
    "fixed-noise": (lambda: gl.FixedNoiseGaussianLikelihood(torch.linspace(0.1, 1.0, 40)), make_reals),
    "student-t": (_student_t, make_reals),
    "laplace": (gl.LaplaceLikelihood, make_reals),
    "beta": (gl.BetaLikelihood, lambda n, **k: (make_inputs(n), torch.sigmoid(make_reals(n, **k)[1]))),
    "negative-binomial": (gl.NegativeBinomialLikelihood, make_counts),
}


@pytest.mark.parametrize("approximation", ["laplace", "variational"])
@pytest.mark.parametrize("name", GPYTORCH)
def test_gpytorchs_likelihoods_as_they_are(name, approximation):
    make, data = GPYTORCH[name]
    likelihood = make()
    x, y = data(40)
    model = SimpleGP(x, y, likelihood, approximation=approximation).double().eval()
    assert model.likelihood is likelihood
    solution = model.solution
    assert solution.latent_values.shape == (40, {"softmax": 3, "softmax-mixed": 2}.get(name, 1))
    assert (solution.certificate is None) is (name in ("student-t", "beta", "negative-binomial"))
    with torch.no_grad():
        predictive = model.predict(x[:9])
        assert predictive.batch_shape == (9,)
        assert bool(torch.isfinite(predictive.log_prob(model.train_targets[:9])).all())
        score = float(model.predict(x).log_prob(model.train_targets).mean())
        far = float(model.predict(x + 1e3).log_prob(model.train_targets).mean())
        assert score > far
        if name == "fixed-noise":
            return  # warns that it does not know the noise of other rows
        theirs = model.likelihood(model(x[:9]))  # GPyTorch's own integration, by quadrature or by samples
        assert isinstance(theirs, torch.distributions.Distribution)
        if name in ("bernoulli", "gaussian"):
            assert_close(theirs.mean, predictive.mean, "product")
            assert_close(theirs.variance, predictive.variance, "product")


def test_the_same_model_with_gpytorchs_likelihood_and_ours():
    for theirs, ours, data in (
        (gl.BernoulliLikelihood(), BernoulliLikelihood("probit"), make_binary),
        (gl.SoftmaxLikelihood(num_classes=3, mixing_weights=False), CategoricalLikelihood(3), make_classes),
    ):
        x, y = data(40)
        _assert_same(
            _predictions(SimpleGP(x, y, theirs).double().eval()), _predictions(SimpleGP(x, y, ours).double().eval())
        )


# ------------------------------------------------------------- kinds of forward
class DeepKernel(NonConjugateGP):
    """A network makes the features that the kernel sees."""

    def __init__(self, x, y, likelihood):
        super().__init__(x, y, likelihood)
        self.network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
        self.mean_module = gpytorch.means.LinearMean(3)
        self.covar_module = make_kernel()

    def forward(self, x):
        features = self.network(x)
        return MultivariateNormal(self.mean_module(features), self.covar_module(features))


def test_deep_kernel():
    x, y = make_binary(40)
    model = DeepKernel(x, y, BernoulliLikelihood()).double().eval()
    before = _predictions(model)
    features = model.network(x).detach()
    plain = SimpleGP(features, y, BernoulliLikelihood(), kernel=model.covar_module, mean=model.mean_module).eval()
    for one, other in zip(before, _predictions(plain, model.network(make_inputs(6, seed=9)).detach()), strict=True):
        assert_close(one, other, "derivative")
    _check_gradient(lambda z: model(z).mean.sum(), make_inputs(5, seed=3))
    model.network[0].weight.data.mul_(3.0)
    assert _differ(_predictions(model), before)
    _assert_same(_predictions(copy.deepcopy(model)), _predictions(model))
    model.train()(x).covariance_matrix.sum().backward()
    assert model.network[0].weight.grad is not None


class TwoInputs(NonConjugateGP):
    """A kernel on each of two inputs, summed."""

    def __init__(self, x, y, likelihood, **kwargs):
        super().__init__(x, y, likelihood, **kwargs)
        self.mean_module = gpytorch.means.ConstantMean()
        self.first, self.second = make_kernel(0.5), make_kernel(2.0)

    def forward(self, a, b):
        return MultivariateNormal(self.mean_module(a), 0.5 * self.first(a) + self.second(b))


def test_forward_of_several_arguments():
    a, y = make_counts(40)
    b = make_inputs(40, 1, seed=8)
    model = TwoInputs((a, b), y, PoissonLikelihood()).double()
    assert_close(model(a, b).covariance_matrix, 0.5 * model.first(a).to_dense() + model.second(b).to_dense())
    model.eval()
    new = make_inputs(5, seed=3), make_inputs(5, 1, seed=4)
    assert model(*new).mean.shape == model.predict(new).mean.shape == (5,)
    assert_close(model.latent_mean(new)[:, 0], model(*new).mean, "local")
    joint = ScaleKernel(MaternKernel(nu=1.5, active_dims=[0, 1])) + ScaleKernel(MaternKernel(nu=1.5, active_dims=[2]))
    joint.kernels[0].outputscale, joint.kernels[0].base_kernel.lengthscale = 2.0, 0.5
    joint.kernels[1].outputscale, joint.kernels[1].base_kernel.lengthscale = 4.0, 2.0
    one = SimpleGP(torch.cat([a, b], -1), y, PoissonLikelihood(), kernel=joint).double().eval()
    assert_close(model(*new).mean, one(torch.cat(new, -1)).mean, "derivative")
    assert_close(model(*new).variance, one(torch.cat(new, -1)).variance, "derivative")
    assert_close(model.predict(new).mean, one.predict(torch.cat(new, -1)).mean, "derivative")
    with pytest.raises(InputError, match=r"The model takes 2 input\(s\)\. Got 1\. Pass what `forward` takes"):
        model(a)
    with pytest.raises(InputError, match=r"takes 2 input\(s\)\. Got 1"):
        model.predict(a)
    _assert_same([ROUND_TRIPS["pickle"](model).latent_mean(new)], [model.latent_mean(new)])


def test_one_kernel_per_class():
    x, y = make_classes(40)
    shared = SimpleGP(x, y, CategoricalLikelihood(3), solver=EXACT).double().eval()
    batch = torch.Size([3])
    kernel = ScaleKernel(MaternKernel(nu=1.5, batch_shape=batch), batch_shape=batch)
    kernel.outputscale, kernel.base_kernel.lengthscale = torch.full(batch, 4.0), torch.ones(3, 1, 1)
    own = SimpleGP(x, y, CategoricalLikelihood(3), kernel=kernel, solver=EXACT).double().eval()
    for one, other in zip(_predictions(own), _predictions(shared), strict=True):  # three times the same kernel
        assert_close(one, other, "posterior")
    own.covar_module.outputscale = torch.tensor([4.0, 4.0, 0.01])
    with torch.no_grad():
        far = own(make_inputs(4) + 100.0).variance
    assert_close(far, torch.tensor([4.0, 4.0, 0.01]).expand(4, 3), "derivative")


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_as_few_test_rows_as_classes(rows):
    model = make_model("categorical", kernel=make_batch_kernel())
    x = make_inputs(20, seed=3)
    expected = _predictions(model, x)
    _assert_near(_predictions(model, x[:rows]), expected, "derivative", rows=slice(rows))


def test_a_mean_of_its_own_for_every_class():
    batch = torch.Size([3])
    mean = gpytorch.means.ConstantMean(batch_shape=batch)
    mean.constant = torch.tensor([0.0, 5.0, -5.0])
    model = make_model("categorical", mean=mean)
    with torch.no_grad():
        far = model(make_inputs(4) + 1e3)
    assert_close(far.mean, torch.tensor([0.0, 5.0, -5.0]).expand(4, 3))


def test_a_sum_with_a_linear_kernel():
    kernel = make_kernel() + LinearKernel()
    model = make_model("bernoulli-logit", 150, dtype=torch.float32, kernel=kernel)
    assert model.solution.converged
    assert all(bool(torch.isfinite(t).all()) for t in _predictions(model))


# ------------------------------------------- what GPyTorch's exact models can do besides
class Exact(gpytorch.models.ExactGP):
    """The same prior with exact inference."""

    def __init__(self, x, y, likelihood):
        super().__init__(x, y, likelihood)
        self.mean_module, self.covar_module = gpytorch.means.ConstantMean(), make_kernel()

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


@pytest.mark.parametrize("fixed", [False, True])
def test_a_fantasy_model_is_gpytorchs(fixed):
    x, y = make_reals(30)
    new, values, test = make_inputs(4, seed=7), torch.randn(4).double(), make_inputs(6, seed=3)
    noise = torch.linspace(0.1, 0.5, 30).double()

    def likelihood():
        return gl.FixedNoiseGaussianLikelihood(noise) if fixed else gl.GaussianLikelihood()

    more = {"noise": torch.full((4,), 0.2).double()} if fixed else {}
    ours = SimpleGP(x, y, likelihood(), solver=DenseNewton()).double().eval()
    theirs = Exact(x, y, likelihood()).double().eval()
    with torch.no_grad():
        before = ours(test).mean
        theirs(test)
        fantasy, expected = ours.get_fantasy_model(new, values, **more), theirs.get_fantasy_model(new, values, **more)
        assert_close(fantasy(test).mean, expected(test).mean, "posterior")
        assert_close(fantasy(test).variance, expected(test).variance, "posterior")
        assert_close(ours(test).mean, before)
    assert not fantasy.training
    batch = torch.randn(3, 4).double()
    several = {name: value.expand(3, 4) for name, value in more.items()}
    for inputs in (new, torch.stack([new, 2.0 * new, new + 1.0])):
        fantasies = ours.get_fantasy_model(inputs, batch, **several)
        assert fantasies.data_batch_shape == (3,)
        for index, element in enumerate(fantasies.batch_elements):
            alone = ours.get_fantasy_model(inputs if inputs.dim() == 2 else inputs[index], batch[index], **more)
            with torch.no_grad():
                assert_close(fantasies(test).mean[index], alone(test).mean, "local")
                assert_close(element(test).covariance_matrix, alone(test).covariance_matrix, "local")
    with torch.no_grad():
        assert_close(fantasies(test).mean, theirs.get_fantasy_model(inputs, batch, **several)(test).mean, "posterior")
    with pytest.raises(
        InputError, match=r"Pass noise=" if fixed else r"Got some with GaussianLikelihood. Leave it out"
    ):
        ours.get_fantasy_model(new, values, **({} if fixed else {"noise": torch.ones(4)}))


@pytest.mark.parametrize("fixed", [False, True])
def test_predictions_have_derivatives_in_the_training_data_of_gaussian_noise(fixed):
    x, y = make_reals(20)
    new, test = make_inputs(3, seed=7), make_inputs(6, seed=3)
    noise = torch.linspace(0.1, 0.5, 20).double()
    gradients, values = [], []
    for kind in (SimpleGP, Exact):
        likelihood = gl.FixedNoiseGaussianLikelihood(noise) if fixed else gl.GaussianLikelihood()
        inputs, targets = x.clone().requires_grad_(), y.clone().requires_grad_()
        points, fantasies = test.clone().requires_grad_(), new.clone().requires_grad_()
        model = kind(inputs, targets, likelihood).double().eval()
        with gpytorch.settings.detach_test_caches(False):
            latent = model(points)
            more = {"noise": torch.full((3,), 0.2).double()} if fixed else {}
            seen = model.get_fantasy_model(fantasies, torch.ones(3).double(), **more)(test)
            total = (latent.mean * torch.arange(6)).sum() + latent.covariance_matrix.square().sum()
            total = total + seen.mean.square().sum() + seen.variance.sum()
            gradients.append(torch.autograd.grad(total, [inputs, targets, points, fantasies]))
        values.append(total)
    assert_close(values[0], values[1], "derivative")
    for ours, theirs in zip(*gradients, strict=True):
        assert_close(ours, theirs, "derivative")


@pytest.mark.parametrize("fixed", [False, True])
def test_predictions_have_derivatives_in_hyperparameters_of_gaussian_noise_where_gpytorch_is_asked_for_them(fixed):
    x, y = make_reals(20)
    test, noise = make_inputs(6, seed=3), torch.linspace(0.1, 0.5, 20).double()
    gradients = []
    for kind in (SimpleGP, Exact):
        likelihood = gl.GaussianLikelihood()
        if fixed:
            likelihood = gl.FixedNoiseGaussianLikelihood(noise, learn_additional_noise=True)
        model = kind(x, y, likelihood).double().eval()
        with gpytorch.settings.detach_test_caches(False):
            latent = model(test)
        total = (latent.mean * torch.arange(6)).sum() + latent.covariance_matrix.square().sum()
        gradients.append(torch.autograd.grad(total, [parameter for _, parameter in sorted(model.named_parameters())]))
    for ours, theirs in zip(*gradients, strict=True):
        assert_close(ours, theirs, "derivative")
    ours = SimpleGP(x, y, gl.GaussianLikelihood()).double().eval()
    with torch.no_grad(), gpytorch.settings.detach_test_caches(False):
        assert not ours(test).mean.requires_grad
    assert not ours(test).mean.requires_grad


def test_derivatives_in_the_training_data_of_other_likelihoods_are_refused():
    x, y = make_reals(20)
    for inputs, targets in ((x.clone().requires_grad_(), y), (x, y.clone().requires_grad_())):
        model = SimpleGP(inputs, targets, gl.StudentTLikelihood()).double().eval()
        with pytest.raises(InputError, match=r"for Gaussian noise, otherwise in new inputs only\. Got .* Detach those"):
            model(x[:3])
        with torch.no_grad():
            assert model(x[:3]).mean.shape == (3,)


def test_the_exact_marginal_likelihood_is_gpytorchs():
    x, y = make_reals(30)
    values = []
    for model in (SimpleGP(x, y, gl.GaussianLikelihood()), Exact(x, y, gl.GaussianLikelihood())):
        model.double().train()
        values.append(gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)(model(x), y))
    assert_close(values[0], values[1])


@pytest.mark.parametrize("options", [{"sample_weight": torch.linspace(0.5, 1.5, 30)}, {"missing_targets": True}])
def test_the_exact_marginal_likelihood_is_refused_where_rows_differ_in_weight(options):
    x, y = make_reals(30)
    y[3] = torch.nan if "missing_targets" in options else y[3]
    model = SimpleGP(x, y, gl.GaussianLikelihood(), **options).double().train()
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    with pytest.raises(InputError, match=r"takes all rows alike\. Got a model with sample_weight or missing targets"):
        mll(model(x), model.train_targets)
    objective = ComputationAwareELBO(model.likelihood, model)  # which knows of weights
    assert bool(torch.isfinite(objective(model(x), model.train_targets)))


class Tasks(NonConjugateGP):
    """Two coupled outputs."""

    def __init__(self, x, y, likelihood):
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.MultitaskMean(gpytorch.means.ConstantMean(), num_tasks=2)
        self.covar_module = gpytorch.kernels.MultitaskKernel(gpytorch.kernels.RBFKernel(), num_tasks=2, rank=1)

    def forward(self, x):
        return gpytorch.distributions.MultitaskMultivariateNormal(self.mean_module(x), self.covar_module(x))


@pytest.mark.parametrize("act", [lambda m: m.eval()(m.train_inputs[0]), lambda m: m.train()(*m.train_inputs)])
@pytest.mark.parametrize("kind", ["tasks", "derivatives"])
def test_outputs_of_another_number_than_the_likelihoods_are_refused_with_the_way_out(kind, act):
    x, y = make_reals(12)
    if kind == "tasks":
        model = Tasks(x, y, gl.GaussianLikelihood())
    else:
        model = SimpleGP(x, y, gl.GaussianLikelihood(), kernel=gpytorch.kernels.RBFKernelGrad())
    match = r"latent function.*(IndependentOutputs|as many latent functions)|(24|36) rows of covariance: outputs are coupled"
    with pytest.raises(InputError, match=match):
        act(model.double())


class Misspelt(SimpleGP):
    """Its ``forward``, and a property of its own, ask for what does not exist."""

    @property
    def half_scale(self):
        return 0.5 * self.covar_modul.outputscale

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_modul(x))


@pytest.mark.parametrize("ask", [lambda m: m(m.train_inputs[0]), lambda m: m.solution, lambda m: m.half_scale])
def test_an_attribute_error_of_the_users_shows_as_itself(ask):
    x, y = CASES["bernoulli-logit"].data(12)
    model = Misspelt(x, y, CASES["bernoulli-logit"].make()).double().eval()
    with pytest.raises(AttributeError, match=r"has no attribute 'covar_modul'"):
        ask(model)
    with pytest.raises(AttributeError, match=r"has no attribute 'unknown'"):
        _ = model.unknown


def test_forward_must_be_defined():
    model = NonConjugateGP(*make_binary(10), BernoulliLikelihood()).eval()
    with pytest.raises(NotImplementedError, match=r"Define forward\(self, x\) in the subclass"):
        model.condition()


# --------------------------------------------------------------- kinds of data
@cases
def test_duplicate_inputs(name, dtype):
    x, y = CASES[name].data(12, dtype=dtype)
    model = SimpleGP(x.repeat(4, 1), y.repeat(4), CASES[name].make()).to(dtype).eval()
    assert model.solution.status.reason.name in ("CONVERGED", "PRECISION")
    assert all(bool(torch.isfinite(t).all()) for t in _predictions(model))
    with torch.no_grad():
        mean = model.latent_mean(x.repeat(4, 1)).reshape(4, 12, -1)
    assert_close(mean[0], mean[3], "derivative")


def test_all_inputs_equal(dtype):
    x, y = torch.ones(20, 2, dtype=dtype), torch.arange(20) % 2
    model = SimpleGP(x, y, BernoulliLikelihood()).to(dtype).eval()
    assert float((model.predict(x[:1]).probs.detach() - 0.5).abs()) < 1e-3


@cases
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:All .* targets are of one class")
def test_very_few_rows(name, rows, dtype):
    x, y = CASES[name].data(3, dtype=dtype)
    model = SimpleGP(x[:rows], y[:rows], CASES[name].make()).to(dtype).eval()
    assert model.solution.converged
    assert all(bool(torch.isfinite(t).all()) for t in _predictions(model))
    if name == "gaussian":
        kernel, noise = model.covar_module(x[:rows]).to_dense(), model.likelihood.noise
        exact = kernel @ torch.linalg.solve(kernel + noise * torch.eye(rows, dtype=dtype), y[:rows])
        assert_close(model(x[:rows]).mean, exact, "posterior")


@pytest.mark.parametrize("solver", [SubspaceNewton(), DenseNewton()], ids=["subspace", "dense"])
@pytest.mark.parametrize("likelihood", [PoissonLikelihood, GaussianLikelihood])
def test_targets_that_the_prior_mean_explains(likelihood, solver, dtype):
    # The gradient at the start is exactly zero: there is no first direction, and still something to condition on.
    x = make_inputs(12, dtype=dtype)
    y = torch.ones(12, dtype=dtype) if likelihood is PoissonLikelihood else torch.zeros(12, dtype=dtype)
    model = SimpleGP(x, y, likelihood(), solver=solver, approximation="laplace").to(dtype).eval()
    assert model.solution.converged
    posterior = model(x)
    assert not bool(posterior.mean.any())
    assert bool((posterior.variance < 2.0).all())


def test_one_column_without_its_dimension():
    x, y = make_binary(40, 1)
    flat = SimpleGP(x[:, 0], y, BernoulliLikelihood()).double().eval()
    column = SimpleGP(x, y, BernoulliLikelihood()).double().eval()
    new = make_inputs(6, 1, seed=9)
    assert flat.train_inputs[0].shape == (40, 1)
    _assert_same(_predictions(flat, new[:, 0]), _predictions(column, new))
    assert flat.train()(x[:, 0]).mean.shape == (40,)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.uint8, torch.bool, torch.float32])
def test_targets_of_any_type(kind):
    x, y = make_binary(40, dtype=torch.float32)
    expected = _predictions(SimpleGP(x, y, BernoulliLikelihood()).eval())
    _assert_same(_predictions(SimpleGP(x, y.to(kind), BernoulliLikelihood()).eval()), expected)


def test_permuted_rows_and_classes():
    x, y = make_classes(40)
    rows, classes = torch.randperm(40), torch.tensor([2, 0, 1])
    exact = {"solver": DenseNewton(), "approximation": "laplace"}  # no samples
    for kernel in (make_kernel, make_batch_kernel):
        model = SimpleGP(x, y, CategoricalLikelihood(3), kernel=kernel(), **exact).double().eval()
        permuted = kernel()
        if kernel is make_batch_kernel:
            permuted.outputscale = permuted.outputscale.detach()[classes]
            permuted.base_kernel.lengthscale = permuted.base_kernel.lengthscale.detach()[classes]
        labels = classes.argsort()[y]
        other = SimpleGP(x[rows], labels[rows], CategoricalLikelihood(3), kernel=permuted, **exact).double().eval()
        first, second = _predictions(model), _predictions(other)
        for quantity, tolerance in ((0, 1e-6), (1, 1e-6), (2, 1e-3), (3, 1e-6)):  # the third is sampled
            assert float((first[quantity][:, classes] - second[quantity]).abs().max()) < tolerance


# ----------------------------------------------------------------- side effects
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_global_state_stays_as_it_was(default, dtype):
    previous = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        for name in CORE:
            model = make_model(name, dtype=dtype)
            state = torch.get_rng_state()
            with torch.enable_grad():
                predictions = _predictions(model)
                assert torch.is_grad_enabled()
            assert torch.get_default_dtype() == default
            assert torch.equal(torch.get_rng_state(), state)
            assert all(p.dtype == dtype for p in predictions)
            assert gpytorch.settings.lazily_evaluate_kernels.on()
    finally:
        torch.set_default_dtype(previous)


def test_training_data_are_not_changed():
    x, y = make_binary(40)
    x_before, y_before = x.clone(), y.clone()
    model = SimpleGP(x, y, BernoulliLikelihood()).double().eval()
    _predictions(model)
    assert torch.equal(x, x_before)
    assert torch.equal(y, y_before)


def test_posterior_does_not_follow_later_changes():
    model = make_model("bernoulli-logit")
    x = make_inputs(4, seed=3)
    with torch.no_grad():
        posterior = model(x)
        mean, variance = posterior.mean.clone(), posterior.variance.clone()
        model.covar_module.outputscale = 0.1
        model(x)
    assert torch.equal(posterior.mean, mean)
    assert torch.equal(posterior.variance, variance)


# -------------------------------------------------------------- weights and missing targets
@pytest.mark.parametrize("approximation", ["laplace", "variational"])
@pytest.mark.parametrize("name", list(CASES))
def test_a_row_of_weight_two_counts_as_two_rows(name, approximation):
    if name == "categorical" and approximation == "variational":
        pytest.skip("its samples differ from row to row")
    case = CASES[name]
    x, y = case.data(20, dtype=torch.float64)
    weight = torch.ones(20, dtype=torch.float64)
    weight[:5] = 2.0
    kwargs = {"solver": DenseNewton(), "approximation": approximation}
    one = SimpleGP(x, y, case.make(), sample_weight=weight, **kwargs).double().eval()
    two = SimpleGP(torch.cat([x, x[:5]]), torch.cat([y, y[:5]]), case.make(), **kwargs).double().eval()
    test = make_inputs(6, seed=3)
    assert_close(one(test).mean, two(test).mean, "posterior")
    assert_close(one(test).variance, two(test).variance, "posterior")


@pytest.mark.parametrize("missing", [float("nan"), -1])
@pytest.mark.parametrize("name", list(CASES))
def test_missing_targets_carry_no_information(name, missing):
    case = CASES[name]
    if missing == -1 and not name.startswith(("bernoulli", "categorical", "ordinal")):
        pytest.skip("only labels have a number that says missing")
    x, y = case.data(24, dtype=torch.float64)
    holes = y.double() if missing != -1 else y.clone()
    holes[[3, 4, 17]] = missing
    kept = torch.tensor([i not in (3, 4, 17) for i in range(24)])
    kwargs = {"solver": DenseNewton(), "approximation": "laplace"}
    part = SimpleGP(x, holes, case.make(), missing_targets=True, **kwargs).double().eval()
    rest = SimpleGP(x[kept], y[kept], case.make(), **kwargs).double().eval()
    assert_close(part(x).mean, rest(x).mean, "posterior")
    assert_close(part(x).variance, rest(x).variance, "posterior")
    with pytest.raises(InputError, match=r"`train_targets` must be"):
        SimpleGP(x, holes, case.make())


def test_weights_move_with_the_model_and_with_new_targets():
    x, y = CASES["bernoulli-logit"].data(12, dtype=torch.float32)
    weight = torch.linspace(0.0, 2.0, 12)
    model = SimpleGP(x, y, CASES["bernoulli-logit"].make(), sample_weight=weight).eval()
    before = model(x).mean
    assert model.double().sample_weight.dtype == torch.float64
    model.set_train_data(targets=1 - y)
    assert model.sample_weight is None
    model.set_train_data(targets=y, sample_weight=weight)
    assert_close(model(x.double()).mean, before, "posterior", dtype=torch.float32)


def test_new_weights_do_not_turn_missing_targets_into_data():
    x, y = CASES["bernoulli-logit"].data(12, dtype=torch.float32)
    y = torch.where(torch.arange(12) == 3, -1, y)
    model = SimpleGP(x, y, CASES["bernoulli-logit"].make(), missing_targets=True)
    with pytest.raises(InputError, match=r"`targets` must be given with `sample_weight` when some .* may be missing"):
        model.set_train_data(sample_weight=torch.ones(12))
    model.set_train_data(targets=y, sample_weight=torch.full((12,), 2.0))
    assert model.sample_weight.tolist() == [2.0 * (i != 3) for i in range(12)]


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(3), r"`sample_weight` must be a tensor of shape \(12,\), one weight per row. Got \(3,\)"),
        ([1.0] * 12, r"`sample_weight` must be a tensor of shape \(12,\).* Got list"),
        (-torch.ones(12), r"`sample_weight` must be finite and not negative"),
        (torch.zeros(12), r"positive somewhere"),
        (torch.full((12,), float("nan")), r"`sample_weight` must be finite"),
    ],
)
def test_bad_weights(weight, message):
    x, y = CASES["bernoulli-logit"].data(12, dtype=torch.float32)
    with pytest.raises(InputError, match=message):
        SimpleGP(x, y, CASES["bernoulli-logit"].make(), sample_weight=weight)


def test_all_targets_missing():
    x = make_inputs(5)
    with pytest.raises(InputError, match=r"At least one target must be observed"):
        SimpleGP(x, torch.full((5,), -1), CASES["bernoulli-logit"].make(), missing_targets=True)
