"""BoTorch takes the model as one of its own: t-batches, samples, gradients, fantasies, more rows."""

from __future__ import annotations

import copy
import importlib
import math
import sys

import gpytorch
import pytest
import torch
from helpers import (
    CASES,
    CORE,
    SimpleGP,
    assert_close,
    make_batch_kernel,
    make_classes,
    make_inputs,
    make_kernel,
    make_model,
)

botorch = pytest.importorskip("botorch")

from botorch import acquisition  # noqa: E402
from botorch.acquisition.active_learning import qNegIntegratedPosteriorVariance  # noqa: E402
from botorch.acquisition.knowledge_gradient import qKnowledgeGradient  # noqa: E402
from botorch.acquisition.objective import ScalarizedPosteriorTransform  # noqa: E402
from botorch.fit import fit_gpytorch_mll  # noqa: E402
from botorch.models import SingleTaskGP  # noqa: E402
from botorch.models.model import ModelList  # noqa: E402
from botorch.models.transforms.input import Normalize  # noqa: E402
from botorch.models.transforms.outcome import Standardize  # noqa: E402
from botorch.optim import optimize_acqf  # noqa: E402
from botorch.posteriors import GPyTorchPosterior  # noqa: E402
from botorch.sampling import IIDNormalSampler, SobolQMCNormalSampler  # noqa: E402
from botorch.sampling.get_sampler import get_sampler  # noqa: E402
from gpytorch.likelihoods import GaussianLikelihood  # noqa: E402
from gpytorch.mlls import ExactMarginalLogLikelihood  # noqa: E402

from itergp import InputError  # noqa: E402
from itergp.botorch import BotorchModel, FantasyModel, ResponsePosterior  # noqa: E402
from itergp.botorch.look_ahead import _nodes, look_ahead  # noqa: E402
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood, Likelihood, PoissonLikelihood  # noqa: E402
from itergp.models import NonConjugateGP  # noqa: E402
from itergp.solvers import DenseNewton, LinearTimeNewton, SubspaceNewton  # noqa: E402

EXACT = DenseNewton(tolerance=1e-14)
TIGHT = SubspaceNewton(tolerance=1e-14)
cases = pytest.mark.parametrize("name", CORE)
BOUNDS = torch.tensor([[-2.0, -2.0], [2.0, 2.0]], dtype=torch.float64)


def _points(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 5) -> torch.Tensor:
    return make_inputs(math.prod(shape), seed=seed).to(dtype).view(*shape, 2)


def _approximation(name: str) -> str:
    """With several latent functions a variational posterior has the errors of its samples, which change with the rows."""
    return "variational" if CASES[name].num_latents == 1 else "laplace"


def _dense(distribution) -> torch.Tensor:
    return distribution.covariance_matrix


# ------------------------------------------------------------------- posterior
@cases
@pytest.mark.parametrize("batch", [(4,), (2, 3)], ids=str)
def test_every_t_batch_is_the_joint_posterior_of_its_points(name, batch, dtype):
    model = make_model(name, dtype=dtype)
    X = _points(*batch, 3, dtype=dtype)
    posterior = BotorchModel(model).posterior(X)
    assert isinstance(posterior, GPyTorchPosterior)
    latents = CASES[name].num_latents
    assert posterior.mean.shape == posterior.variance.shape == (*batch, 3, latents)
    for index in torch.cartesian_prod(*map(torch.arange, batch)).view(-1, len(batch)).tolist():
        with torch.no_grad():
            alone = model(X[tuple(index)])
        assert_close(posterior.mean[tuple(index)], alone.mean.view(3, latents), "local")
        assert_close(_dense(posterior.distribution)[tuple(index)], _dense(alone), "local")


def test_a_kernel_for_every_class():
    x, y = make_classes(40)
    model = SimpleGP(x, y, CategoricalLikelihood(3), kernel=make_batch_kernel(3)).double().eval()
    X = _points(4, 3)
    posterior = BotorchModel(model).posterior(X)
    for b in range(4):
        alone = model(X[b])
        assert_close(posterior.mean[b], alone.mean)
        assert_close(_dense(posterior.distribution)[b], _dense(alone))


@pytest.mark.parametrize("name", ["bernoulli-logit", "categorical"])
def test_one_set_of_points_is_a_batch_of_one(name):
    model = BotorchModel(make_model(name))
    X = _points(5)
    assert_close(model.posterior(X).mean, model.posterior(X.unsqueeze(0)).mean[0])
    assert_close(model.posterior(X).variance, model.posterior(X.unsqueeze(0)).variance[0])


@cases
def test_gradients_in_the_points(name):
    model = BotorchModel(make_model(name, 20))

    def moments(X):
        posterior = model.posterior(X)
        return posterior.mean, _dense(posterior.distribution)

    assert torch.autograd.gradcheck(moments, (_points(2, 2).requires_grad_(),), atol=1e-5)


def test_variances_are_not_negative_where_rounding_is_largest():
    x, y = make_classes(60, 2, dtype=torch.float32)
    model = SimpleGP(x, y, BernoulliLikelihood())
    model.covar_module.outputscale = 1e5
    posterior = BotorchModel(model).posterior(x[:, None, :].repeat(1, 2, 1))  # twice the same point
    assert bool((posterior.variance > 0).all())
    assert bool(torch.isfinite(posterior.rsample(torch.Size([2]))).all())


def test_outputs_are_chosen_by_index():
    model = BotorchModel(make_model("categorical"))
    X = _points(2, 3)
    full = model.posterior(X)
    for one in (model.posterior(X, output_indices=[2, 0]), model.subset_output([2, 0]).posterior(X)):
        assert_close(one.mean, full.mean[..., [2, 0]])
        assert_close(one.variance, full.variance[..., [2, 0]])
    single = model.subset_output([1])
    assert single.num_outputs == 1
    assert_close(single.posterior(X).mean, full.mean[..., [1]])
    assert single.subset_output([0]).outputs == (1,)
    for wrong in ([3], [], ["a"]):
        with pytest.raises(InputError, match=r"Outputs must be among 0\.\.2"):
            model.subset_output(wrong)


def test_a_posterior_transform_is_applied():
    model = BotorchModel(make_model("categorical"))
    weights = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    X = _points(2, 3)
    scalar = model.posterior(X, posterior_transform=ScalarizedPosteriorTransform(weights))
    assert_close(scalar.mean.squeeze(-1), model.posterior(X).mean @ weights)


def test_an_input_transform_comes_first():
    model = make_model("bernoulli-logit")
    transform = Normalize(2, bounds=torch.tensor([[-3.0, -1.0], [5.0, 2.0]], dtype=torch.float64))
    X = _points(4, 1)
    wrapped = BotorchModel(model, input_transform=transform)
    assert_close(wrapped.posterior(X).mean, BotorchModel(model).posterior(transform(X)).mean)
    longer = wrapped.condition_on_observations(X[:, 0], torch.ones(4, 1, dtype=torch.float64))
    assert_close(longer.train_inputs[0][-4:], transform(X[:, 0]))
    wrapped.train()
    assert wrapped.train_inputs[0] is model.train_inputs[0]


# ------------------------------------------------------- as BoTorch's own regression
def _regression(solver=EXACT):
    """A model of standardised outcomes, and BoTorch's model of the same prior and noise."""
    x = make_inputs(30)
    y = (100.0 + 5.0 * torch.sin(2.0 * x.sum(-1))).unsqueeze(-1)
    transform = Standardize(1)
    targets, _ = transform(y)
    model = SimpleGP(x, targets.squeeze(-1), GaussianLikelihood(), solver=solver).double().eval()
    model.likelihood.noise = 0.01
    theirs = SingleTaskGP(
        x, y, outcome_transform=Standardize(1), likelihood=GaussianLikelihood(), covar_module=make_kernel()
    ).double()
    theirs.likelihood.noise = 0.01
    theirs.mean_module.constant.data.zero_()
    return model, transform, theirs.eval(), y


def test_an_outcome_transform_gives_posteriors_and_fantasies_in_the_units_of_the_outcomes():
    model, transform, theirs, _ = _regression()
    ours, X = BotorchModel(model, outcome_transform=transform), _points(4, 3)
    new, Y = _points(2, seed=9), torch.tensor([[103.0], [98.0]], dtype=torch.float64)
    with torch.no_grad():
        theirs.posterior(X)
        pairs = [(ours, theirs), (ours.condition_on_observations(new, Y), theirs.condition_on_observations(new, Y))]
        batch = Y.expand(3, 2, 1) + torch.arange(3.0).double().view(3, 1, 1)
        pairs.append(
            (ours.condition_on_observations(new, batch), theirs.condition_on_observations(new.expand(3, 2, 2), batch))
        )
        for one, other in pairs:
            points = X if one is not pairs[-1][0] else X[:3]
            for noise in (False, True):
                got, expected = (m.posterior(points, observation_noise=noise) for m in (one, other))
                assert_close(got.mean, expected.mean, "posterior")
                assert_close(got.variance, expected.variance, "posterior")
        fantasy = ours.fantasize(new, SobolQMCNormalSampler(torch.Size([8]), seed=0))
        assert abs(float(fantasy.posterior(X[0]).mean.mean()) - 100.0) < 10.0
    function = acquisition.LogExpectedImprovement(ours, best_f=103.0)
    expected = acquisition.LogExpectedImprovement(theirs, best_f=103.0)
    assert_close(function(_points(5, 1)), expected(_points(5, 1)), "posterior")


def test_an_outcome_transform_of_latent_functions_is_refused():
    with pytest.raises(InputError, match=r"needs a Gaussian likelihood.* Got BernoulliLikelihood, .* Leave it out"):
        BotorchModel(make_model("bernoulli-logit"), outcome_transform=Standardize(1))


def test_botorch_fits_a_model_with_gaussian_noise_by_the_exact_marginal_likelihood():
    model, _, theirs, _ = _regression()
    for fitted in (model, theirs):
        fit_gpytorch_mll(ExactMarginalLogLikelihood(fitted.likelihood, fitted))
    assert not model.training
    X = _points(6)
    with torch.no_grad():
        got = BotorchModel(model, outcome_transform=theirs.outcome_transform).posterior(X)
        # Noise-free targets: the optimum is flat in the noise, not in what is predicted.
        assert_close(got.mean, theirs.posterior(X).mean, "posterior", dtype=torch.float32)
    weighted = SimpleGP(
        *model.train_inputs, model.train_targets, GaussianLikelihood(), sample_weight=torch.ones(30)
    ).double()
    with pytest.raises(InputError, match=r"takes all rows alike"):
        fit_gpytorch_mll(ExactMarginalLogLikelihood(weighted.likelihood, weighted))


# ---------------------------------------------------------------- observations
@pytest.mark.parametrize("name", CASES)
def test_samples_of_observations_have_the_predictive_mean(name):
    model = BotorchModel(make_model(name, 30))
    posterior = model.posterior(_points(2, 2), observation_noise=True)
    sampler = get_sampler(posterior, torch.Size([512]), seed=0)
    samples = sampler(posterior)
    assert samples.shape == (512, *posterior.mean.shape)
    assert torch.equal(samples, sampler(posterior))
    mean, variance = posterior.mean.detach(), posterior.variance.detach()
    assert bool(((samples.mean(0) - mean).abs() < 5.0 * (variance / 512).sqrt() + 1e-3).all())


@cases
def test_observations_fit_the_likelihood(name):
    model = make_model(name, 30)
    posterior = BotorchModel(model).posterior(_points(3, 2), observation_noise=True)
    samples = posterior.rsample(torch.Size([4]))
    assert samples.shape == posterior._extended_shape(torch.Size([4]))
    labels = samples.argmax(-1) if name == "categorical" else samples.squeeze(-1)
    model.calculus.validate_targets(labels.flatten())
    assert isinstance(posterior, GPyTorchPosterior if name == "gaussian" else ResponsePosterior)
    if name == "gaussian":
        alone = model.likelihood(model(_points(3, 2)[0]))
        assert_close(_dense(posterior.distribution)[0], _dense(alone))
    else:
        assert posterior.device == torch.device("cpu")
        assert posterior.dtype == torch.float64
        predicted = model.predict(_points(3, 2).view(6, 2))
        assert_close(
            posterior.mean.view(6, -1).squeeze(-1),
            predicted.probs if CASES[name].observed == "label" else predicted.mean,
            "local",
        )


@pytest.mark.parametrize(
    ("name", "make", "columns"),
    [
        ("bernoulli-probit", gpytorch.likelihoods.BernoulliLikelihood, 1),
        ("gaussian", gpytorch.likelihoods.GaussianLikelihood, 1),
        ("categorical", lambda: gpytorch.likelihoods.SoftmaxLikelihood(num_classes=3, mixing_weights=False), 3),
        ("categorical", lambda: gpytorch.likelihoods.SoftmaxLikelihood(num_features=3, num_classes=3), 3),
    ],
    ids=["bernoulli", "gaussian", "softmax", "mixed softmax"],
)
def test_likelihoods_of_gpytorch(name, make, columns):
    x, y = CASES[name].data(30)
    y = y.double() if name == "bernoulli-probit" else y
    model = BotorchModel(SimpleGP(x, y, make()).double())
    posterior = model.posterior(_points(2, 2), observation_noise=True)
    assert isinstance(posterior, GPyTorchPosterior) == (name == "gaussian")
    assert posterior.rsample(torch.Size([3])).shape == (3, 2, 2, columns)
    assert bool(torch.isfinite(posterior.mean).all())
    fantasy = model.fantasize(_points(1, 2), SobolQMCNormalSampler(torch.Size([3]), seed=0))
    assert bool(torch.isfinite(fantasy.posterior(_points(1, 2, seed=8)).variance).all())


def test_many_points_are_sampled_without_sobol_numbers():
    posterior = BotorchModel(make_model("poisson", 20)).posterior(_points(1, 3), observation_noise=True)
    assert isinstance(get_sampler(posterior, torch.Size([2])), SobolQMCNormalSampler)
    posterior.shape = torch.Size([1, 20_000])
    assert isinstance(get_sampler(posterior, torch.Size([2])), IIDNormalSampler)


def test_a_support_instead_of_all_rows():
    model = make_model("bernoulli-logit", 60, solver=LinearTimeNewton(num_support=30))
    X = _points(3, 2)
    posterior = BotorchModel(model).posterior(X)
    assert_close(_dense(posterior.distribution)[1], _dense(model(X[1])))
    longer = BotorchModel(model).condition_on_observations(X[0], torch.ones(2, 1, dtype=torch.float64))
    assert bool((longer.posterior(X[0]).mean > posterior.mean[0]).all())


# ------------------------------------------------------------------ more rows
@pytest.mark.parametrize("name", ["bernoulli-probit", "categorical", "poisson-exposure", "gaussian"])
def test_more_observations_are_conditioned_on_with_all_others(name):
    case = CASES[name]
    x, y = case.data(50)
    options = {"solver": TIGHT, "approximation": _approximation(name)}
    together = SimpleGP(x, y, case.make(), **options).double().eval()
    model = BotorchModel(SimpleGP(x[:40], y[:40], case.make(), **options).double().eval())
    Y = y[40:].double().view(10, -1)
    longer = model.condition_on_observations(x[40:], Y)
    assert longer.num_outputs == case.num_latents
    assert longer.batch_shape == torch.Size()
    assert len(model.train_targets) == 40
    assert len(longer.train_targets) == 50
    X = _points(3, 2)
    exact, warm = BotorchModel(together).posterior(X), longer.posterior(X)
    assert_close(warm.mean, exact.mean, "posterior")
    assert warm.mean.sub(model.posterior(X).mean).abs().max() > 0.01
    assert longer.model.solution.kernel_passes <= together.solution.kernel_passes


def test_classes_may_be_given_as_columns():
    x, y = make_classes(50)
    model = BotorchModel(SimpleGP(x[:40], y[:40], CategoricalLikelihood(3)).double())
    columns = torch.nn.functional.one_hot(y[40:], 3).double()
    assert torch.equal(model.condition_on_observations(x[40:], columns).train_targets, y)


def test_an_exposure_may_be_left_out():
    x, y = CASES["poisson-exposure"].data(40)
    model = BotorchModel(SimpleGP(x, y, PoissonLikelihood()).double())
    assert torch.equal(
        model.condition_on_observations(x[:3], y[:3, :1]).train_targets[40:, 1], torch.ones(3, dtype=y.dtype)
    )


# ------------------------------------------------------------------- fantasies
@pytest.mark.parametrize("approximation", ["laplace", "variational"])
@pytest.mark.parametrize("name", [*CORE, "ordinal-logit", "student-t", "gamma"])
def test_looking_ahead_from_the_prior_is_the_dense_posterior(name, approximation, monkeypatch):
    def shared(self, like, seed=0, skip=0):
        nodes, weights = _nodes(like.shape[1], like)
        return nodes.expand(-1, len(like), -1), weights

    monkeypatch.setattr(Likelihood, "standard_nodes", shared)
    model = make_model(name, 8, solver=EXACT, approximation=approximation)
    prior = model.train()(model.train_inputs[0]).covariance_matrix.detach()
    solution, latents = model.eval().solution, CASES[name].num_latents
    S = torch.kron(prior, torch.eye(latents, dtype=prior.dtype))
    mean = torch.zeros(1, 8, latents, dtype=prior.dtype)
    with torch.no_grad():
        v, A = look_ahead(
            model.calculus, mean, S[None], model.train_targets, variational=approximation == "variational"
        )
    posterior = (S - S @ A[0] @ S).diagonal().view(8, latents)
    exact = solution.latent_covariance.diagonal(dim1=-2, dim2=-1)
    scale = float(solution.latent_values.abs().max())
    assert float((S @ v[0] - solution.latent_values.flatten()).abs().max()) < 1e-5 * scale
    assert float((posterior - exact).abs().max()) < 1e-5 * float(exact.max())
    assert_close(A, A.mT, "local")


def test_fantasies_of_gaussian_observations_are_exact():
    model = BotorchModel(make_model("gaussian", 30, solver=EXACT))
    new, Y = _points(2, 4), torch.randn(3, 2, 4, 1, dtype=torch.float64)
    fantasy = model.condition_on_observations(new, Y)
    assert isinstance(fantasy, FantasyModel)
    assert fantasy.batch_shape == (3, 2)
    X = _points(1, 5, seed=8)
    posterior = fantasy.posterior(X)
    assert posterior.mean.shape == (3, 2, 5, 1)
    for i in range(3):
        for b in range(2):
            alone = model.condition_on_observations(new[b], Y[i, b]).posterior(X[0])
            assert_close(posterior.mean[i, b], alone.mean, "posterior")
            assert_close(_dense(posterior.distribution)[i, b], _dense(alone.distribution), "posterior")


@pytest.mark.parametrize("name", ["bernoulli-logit", "categorical", "poisson"])
def test_fantasies_are_near_the_posterior_of_all_rows(name):
    model = BotorchModel(make_model(name, 40, solver=EXACT, approximation=_approximation(name)))
    new = _points(1, 2)
    Y = torch.ones(1, 2, 1, dtype=torch.float64)
    fantasy, exact = model.condition_on_observations(new, Y), model.condition_on_observations(new[0], Y[0])
    X = _points(6, seed=8)
    shift = exact.posterior(X).mean - model.posterior(X).mean
    error = fantasy.posterior(X).mean[0] - exact.posterior(X).mean
    assert float(error.norm()) < 0.15 * float(shift.norm())
    assert bool((fantasy.posterior(X).variance <= model.posterior(X).variance + 1e-10).all())


@pytest.mark.parametrize(
    ("name", "approximation"),
    [
        ("bernoulli-logit", "variational"),
        ("bernoulli-probit", "laplace"),
        ("categorical", "laplace"),
        ("categorical", "variational"),
        ("gaussian", "laplace"),
        ("student-t", "laplace"),  # its curvature is not the Hessian
    ],
)
def test_fantasies_have_exact_gradients(name, approximation):
    model = BotorchModel(make_model(name, 15, approximation=approximation))
    Y = torch.ones(1, 1, 2, 1, dtype=torch.float64)

    def moments(new, X):
        posterior = model.condition_on_observations(new, Y).posterior(X)
        return posterior.mean, posterior.variance

    new, X = _points(1, 2).requires_grad_(), _points(1, 1, seed=8).requires_grad_()
    assert torch.autograd.gradcheck(moments, (new, X), atol=1e-5, rtol=1e-3)


def test_fantasies_upon_fantasies():
    model = BotorchModel(make_model("bernoulli-logit"))
    new, Y = _points(2, 3), torch.randint(0, 2, (4, 2, 3, 1)).double()
    at_once = model.condition_on_observations(new, Y)
    in_turn = model.condition_on_observations(new[:, :2], Y[..., :2, :]).condition_on_observations(
        new[:, 2:], Y[..., 2:, :]
    )
    X = _points(1, 3, seed=8)
    assert_close(at_once.posterior(X).mean, in_turn.posterior(X).mean)
    assert at_once.subset_output([0]).posterior(X).mean.shape == (4, 2, 3, 1)
    deeper = at_once.fantasize(new[:, :1], SobolQMCNormalSampler(torch.Size([5]), seed=0))
    assert deeper.batch_shape == (5, 4, 2)


# ------------------------------------------------------- acquisition functions
def _acquisitions(model: BotorchModel):
    sampler = SobolQMCNormalSampler(torch.Size([16]), seed=0)
    return {
        "mean": acquisition.PosteriorMean(model),
        "ucb": acquisition.UpperConfidenceBound(model, beta=4.0),
        "logei": acquisition.LogExpectedImprovement(model, best_f=0.5),
        "qlogei": acquisition.qLogExpectedImprovement(model, best_f=0.5, sampler=sampler),
        "qlognei": acquisition.qLogNoisyExpectedImprovement(model, X_baseline=_points(6), sampler=sampler),
        "qnipv": qNegIntegratedPosteriorVariance(model, mc_points=_points(15, seed=8)),
    }


@pytest.mark.parametrize("which", ["mean", "ucb", "logei", "qlogei", "qlognei", "qnipv"])
def test_acquisition_functions_are_optimised(which):
    torch.manual_seed(0)
    function = _acquisitions(BotorchModel(make_model("bernoulli-logit")))[which]
    q = 2 if which.startswith("q") else 1
    random = function(torch.rand(16, q, 2, dtype=torch.float64) * 4.0 - 2.0)
    assert random.shape == (16,)
    best, value = optimize_acqf(
        function, BOUNDS, q=q, num_restarts=2, raw_samples=16, options={"maxiter": 30, "seed": 0}
    )
    assert best.shape == (q, 2)
    assert bool((best >= BOUNDS[0]).all() and (best <= BOUNDS[1]).all())
    assert float(value) >= float(random.max()) - 1e-6


def test_the_knowledge_gradient_has_gradients():
    model = BotorchModel(make_model("poisson", 30))
    function = qKnowledgeGradient(model, num_fantasies=4)
    X = _points(3, 1 + 4).requires_grad_()
    value = function(X)
    value.sum().backward()
    assert value.shape == (3,)
    assert bool(torch.isfinite(X.grad).all() and (X.grad != 0).any())


def test_evaluating_an_acquisition_function_keeps_the_search_space():
    model = make_model("bernoulli-logit")
    solution, operator = model.solution, model.conditioned.operator
    acquisition.PosteriorMean(BotorchModel(model))(_points(3, 1))  # moves its model to the points
    assert model.solution is solution
    assert model.conditioned.operator is operator
    assert model.float().train_inputs[0].dtype == torch.float32


def test_models_side_by_side():
    both = ModelList(BotorchModel(make_model("bernoulli-logit")), BotorchModel(make_model("poisson")))
    posterior = both.posterior(_points(3, 2))
    assert posterior.mean.shape == (3, 2, 2)
    assert IIDNormalSampler(torch.Size([4]))(both.models[0].posterior(_points(3, 2))).shape == (4, 3, 2, 1)


def test_a_copy_is_independent():
    model = BotorchModel(make_model("bernoulli-logit"))
    before = model.posterior(_points(2, 1)).mean
    other = copy.deepcopy(model)
    other.model.covar_module.outputscale = 0.1
    assert torch.equal(model.posterior(_points(2, 1)).mean, before)
    assert not torch.allclose(other.posterior(_points(2, 1)).mean, before, atol=1e-3)


# ---------------------------------------------------------------------- errors
class TwoInputs(NonConjugateGP):
    def __init__(self, x, y, likelihood):
        super().__init__(x, y, likelihood)
        self.mean_module, self.covar_module = gpytorch.means.ConstantMean(), make_kernel()

    def forward(self, x, z):
        x = torch.cat([x, z], -1)
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def test_errors():
    with pytest.raises(InputError, match=r"`model` must be a NonConjugateGP\. Got Linear\."):
        BotorchModel(torch.nn.Linear(1, 1))
    x, y = make_classes(20, 2)
    with pytest.raises(InputError, match=r"BoTorch's models take one input\. Got a model of 2\."):
        BotorchModel(TwoInputs((x, x), y, BernoulliLikelihood()))
    model = BotorchModel(make_model("bernoulli-logit"))
    X, Y = _points(3), torch.ones(3, 1, dtype=torch.float64)
    with pytest.raises(InputError, match="`observation_noise` must be True or False"):
        model.posterior(X, observation_noise=Y)
    with pytest.raises(InputError, match=r"New observations have the noise of the likelihood.*\['noise'\]"):
        model.condition_on_observations(X, Y, noise=Y)
    with pytest.raises(InputError, match=r"the same n\. Got \(3, 2\) and \(3,\)\. Add a last dimension"):
        model.condition_on_observations(X, Y[:, 0])
    with pytest.raises(InputError, match=r"`Y` must have 1 column\(s\), like the training targets\. Got 2"):
        model.condition_on_observations(X, Y.expand(3, 2))
    x, y = CASES["gaussian"].data(20)
    fixed = BotorchModel(SimpleGP(x, y, gpytorch.likelihoods.FixedNoiseGaussianLikelihood(torch.ones(20).double())))
    with pytest.raises(InputError, match=r"the same for all rows\. Got FixedNoiseGaussianLikelihood"):
        fixed.condition_on_observations(X, Y)
    with pytest.raises(InputError, match="`train_targets` must be"):
        model.condition_on_observations(X, 0.5 * Y)
    with pytest.raises(InputError, match=r"Inputs must have the 2 column\(s\) of the training inputs\. Got 3"):
        model.posterior(torch.zeros(4, 1, 3, dtype=torch.float64))


def test_without_botorch_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "botorch", None)
    monkeypatch.delitem(sys.modules, "itergp.botorch")
    with pytest.raises(ImportError, match=r"`itergp\.botorch` needs BoTorch\. .*`pip install itergp\[botorch\]`\."):
        importlib.import_module("itergp.botorch")


# ---------------------------------------------------- values of BoTorch's own regression
@pytest.fixture(params=["subspace", "dense"])
def both(request):
    """Models of the same prior, noise and data, ours and BoTorch's."""
    x = make_inputs(25)
    y = torch.sin(2.0 * x.sum(-1)) + 0.1 * x[:, 0]
    solver = {"dense": EXACT, "subspace": TIGHT}[request.param]
    model = SimpleGP(x, y, GaussianLikelihood(), solver=solver, mean=gpytorch.means.ZeroMean()).double().eval()
    theirs = SingleTaskGP(
        x,
        y.unsqueeze(-1),
        outcome_transform=None,
        likelihood=GaussianLikelihood(),
        covar_module=make_kernel(),
        mean_module=gpytorch.means.ZeroMean(),
    ).double()
    for likelihood in (model.likelihood, theirs.likelihood):
        likelihood.noise = 0.05
    return BotorchModel(model), theirs.eval()


def _sobol(samples: int, seed: int = 0) -> SobolQMCNormalSampler:
    return SobolQMCNormalSampler(torch.Size([samples]), seed=seed)


VALUES = {
    "mean": (1, lambda m: acquisition.PosteriorMean(m)),
    "deviation": (1, lambda m: acquisition.PosteriorStandardDeviation(m)),
    "ucb": (1, lambda m: acquisition.UpperConfidenceBound(m, beta=4.0)),
    "ei": (1, lambda m: acquisition.ExpectedImprovement(m, best_f=0.5)),
    "logei": (1, lambda m: acquisition.LogExpectedImprovement(m, best_f=0.5)),
    "pi": (1, lambda m: acquisition.ProbabilityOfImprovement(m, best_f=0.5)),
    "qei": (3, lambda m: acquisition.qExpectedImprovement(m, best_f=0.5, sampler=_sobol(64))),
    "qlogei": (3, lambda m: acquisition.qLogExpectedImprovement(m, best_f=0.5, sampler=_sobol(64))),
    "qucb": (3, lambda m: acquisition.qUpperConfidenceBound(m, beta=4.0, sampler=_sobol(64))),
    "qnei": (
        2,
        lambda m: acquisition.qNoisyExpectedImprovement(
            m, X_baseline=_points(5), sampler=_sobol(64), prune_baseline=False, cache_root=False
        ),
    ),
    "qlognei": (
        2,
        lambda m: acquisition.qLogNoisyExpectedImprovement(
            m, X_baseline=_points(5), sampler=_sobol(64), prune_baseline=False, cache_root=False
        ),
    ),
    "knowledge gradient": (5, lambda m: qKnowledgeGradient(m, num_fantasies=4, sampler=_sobol(4))),
    "variance reduction": (2, lambda m: qNegIntegratedPosteriorVariance(m, mc_points=_points(9, seed=8))),
}


@pytest.mark.filterwarnings("ignore:.*has known numerical issues")
@pytest.mark.parametrize("which", VALUES)
def test_acquisition_values_and_gradients_are_those_of_exact_regression(which, both):
    q, make = VALUES[which]
    ours, theirs = map(make, both)
    X = _points(2, q, seed=9).requires_grad_()
    value = ours(X)
    (gradient,) = torch.autograd.grad(value.sum(), X)
    assert_close(value, theirs(X.detach()), "posterior")
    # By differences: BoTorch's own derivative of a fantasy's variance leaves a part out.
    steps = 1e-5 * torch.eye(X.numel(), dtype=X.dtype).view(-1, *X.shape)
    with torch.no_grad():
        slope = torch.stack([(theirs(X + step).sum() - theirs(X - step).sum()) / 2e-5 for step in steps])
    assert_close(gradient.flatten(), slope, "derivative", dtype=torch.float32)


def test_joint_posteriors_and_samples_are_those_of_exact_regression(both):
    X = _points(3, 4, seed=9)
    ours, theirs = (model.posterior(X) for model in both)
    assert_close(ours.mean, theirs.mean, "posterior")
    assert_close(ours.variance, theirs.variance, "posterior")
    assert_close(_dense(ours.distribution), _dense(theirs.distribution), "posterior")
    assert_close(_sobol(16)(ours), _sobol(16)(theirs), "posterior", dtype=torch.float32)
    ours, theirs = (model.posterior(X, observation_noise=True) for model in both)
    assert_close(_dense(ours.distribution), _dense(theirs.distribution), "posterior")
