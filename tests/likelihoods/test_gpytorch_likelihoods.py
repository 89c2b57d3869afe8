"""GPyTorch's likelihoods that are not what they seem: right, or refused with the way out."""

from __future__ import annotations

import warnings

import gpytorch
import gpytorch.likelihoods as gl
import pytest
import torch
from helpers import SimpleGP, assert_close, make_binary, make_inputs, make_kernel, make_reals
from torch.distributions import Independent, Normal

import itergp
from itergp.errors import InputError
from itergp.likelihoods import GaussianLikelihood
from itergp.models import NonConjugateGP
from itergp.objectives import ComputationAwareELBO, LaplaceEvidence
from itergp.solvers import DenseNewton

X, Y = make_reals(30)


class _Exact(gpytorch.models.ExactGP):
    def __init__(self, x, y, likelihood):
        super().__init__(x, y, likelihood)
        self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), make_kernel()

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def _missing_obs() -> gl.Likelihood:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # GPyTorch prefers its setting
        return gl.GaussianLikelihoodWithMissingObs()


def _with_holes() -> tuple[torch.Tensor, torch.Tensor]:
    y = Y.clone()
    y[::4] = torch.nan
    return y, ~y.isnan()


@pytest.mark.parametrize(("policy", "make"), [("ignore", _missing_obs), ("mask", gl.GaussianLikelihood)])
def test_missing_observations_say_nothing(policy, make):
    y, seen = _with_holes()
    with gpytorch.settings.observation_nan_policy(policy):
        ours = SimpleGP(X, y, make(), solver=DenseNewton()).double().eval()
    exact = _Exact(X[seen], Y[seen], gl.GaussianLikelihood()).double().eval()
    new = make_inputs(7, seed=3)
    with torch.no_grad():
        mean, variance = exact(new).mean, exact(new).variance
        assert_close(ours(new).mean, mean, "posterior")
        assert_close(ours(new).variance, variance, "posterior")
    assert ours.sample_weight.eq(0.0).equal(~seen)
    ours.set_train_data(targets=y)  # outside the setting too
    assert_close(ours(new).mean, mean, "posterior")


def test_objectives_take_the_targets_with_their_holes():
    y, seen = _with_holes()
    with gpytorch.settings.observation_nan_policy("mask"):
        model = SimpleGP(X, y, gl.GaussianLikelihood(), solver=DenseNewton()).double().train()
        objective = ComputationAwareELBO(model.likelihood, model)
        value = objective(model(X), y)
        exact = _Exact(X, y, gl.GaussianLikelihood()).double().train()
        exact.mean_module = gpytorch.means.ConstantMean().double()
        mll = gpytorch.mlls.ExactMarginalLogLikelihood(exact.likelihood, exact)
        assert_close(value, mll(exact(X), y), "posterior")
        assert_close(gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)(model(X), y), value, "posterior")
    with pytest.raises(InputError, match=r"needs the model's own training targets\. Got others"):
        objective(model(X), torch.where(seen, 0.0, y))


def test_a_policy_about_nan_says_nothing_about_labels_of_minus_one():
    x, labels = make_binary(20)
    labels = labels.double()
    signs, holes = 2.0 * labels - 1.0, torch.where(torch.arange(20) < 3, torch.nan, labels)
    with gpytorch.settings.observation_nan_policy("mask"):
        with pytest.raises(InputError, match=r"must be labels 0 or 1 .*Got values \[-1\]"):
            SimpleGP(x, signs, gl.BernoulliLikelihood())
        model = SimpleGP(x, holes, gl.BernoulliLikelihood())
    with pytest.raises(InputError, match=r"`targets` must be given with `sample_weight`"):
        model.set_train_data(sample_weight=torch.ones(20))
    model.append_train_data(x[:2], holes[:2])
    assert model.sample_weight.tolist() == [0.0] * 3 + [1.0] * 17 + [0.0] * 2


def test_missing_observations_are_refused_without_a_word_about_them():
    y, seen = _with_holes()
    for likelihood in (gl.StudentTLikelihood(), GaussianLikelihood()):
        with pytest.raises(InputError, match=r"Got 8 NaN .* or pass missing_targets=True"):
            SimpleGP(X, y, likelihood)
    new = make_inputs(7, seed=3)
    model = SimpleGP(X, y, gl.GaussianLikelihood(), solver=DenseNewton()).double()  # GPyTorch asks when they are used
    for use in (lambda: model.train()(X), lambda: model.eval()(new), model.condition, lambda: model.observations):
        with pytest.raises(InputError, match=r"must be finite\. Got NaN .* or pass missing_targets=True"):
            use()
    again = SimpleGP(X, Y, gl.GaussianLikelihood()).double().eval()
    again.set_train_data(targets=y)
    appended = SimpleGP(X, y, gl.GaussianLikelihood()).double().eval()
    appended.append_train_data(new, torch.zeros(7).double())
    for other in (again, appended):
        with pytest.raises(InputError, match=r"must be finite\. Got NaN"):
            other(new)
    exact = _Exact(X[seen], Y[seen], gl.GaussianLikelihood()).double().eval()
    with torch.no_grad():
        for policy in ("mask", "fill"):
            with gpytorch.settings.observation_nan_policy(policy), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert_close(model.eval()(new).mean, exact(new).mean, "posterior")
            assert any("fills nothing in" in str(w.message) for w in caught) == (policy == "fill")
        assert_close(model(new).mean, exact(new).mean, "posterior")  # they are known to be missing from now on


def test_dirichlet_classification_is_refused():
    x, labels = make_binary(20)
    labels = labels.long()
    likelihood = gl.DirichletClassificationLikelihood(labels)
    message = r"Got DirichletClassificationLikelihood, .* Use itergp\.likelihoods\.CategoricalLikelihood"
    model = SimpleGP(x, labels, likelihood).double().eval()
    with pytest.raises(InputError, match=message):
        model(x)
    with pytest.raises(InputError, match=message):  # what the notebook passes
        SimpleGP(x, likelihood.transformed_targets.double(), likelihood)

    class Own(gl.DirichletClassificationLikelihood):
        pass

    with pytest.raises(InputError, match=message):
        SimpleGP(x, labels, Own(labels)).double().eval()(x)


class _PerRow(gl.FixedNoiseGaussianLikelihood):
    def forward(self, function_samples, *args, **kwargs):
        return Normal(function_samples, self.noise.sqrt() * 2.0)


class _NeedsInputs(gl.GaussianLikelihood):
    def forward(self, function_samples, inputs):
        return Normal(function_samples, inputs.abs())


class _OneNumberInAll(gl.GaussianLikelihood):
    def forward(self, function_samples, *args, **kwargs):
        return Independent(Normal(function_samples, self.noise.sqrt()), 1)


def _heteroskedastic() -> gl.Likelihood:
    noise_model = _Exact(X, Y, gl.GaussianLikelihood())
    return gl._GaussianLikelihoodBase(gl.HeteroskedasticNoise(noise_model))


REFUSED = {
    "list": (lambda: gl.LikelihoodList(gl.GaussianLikelihood()), r"Got LikelihoodList\. Use Multitask"),
    "singular": (
        lambda: gl.MultitaskGaussianLikelihood(num_tasks=2, rank=1, has_global_noise=False),
        r"must be positive definite\. Got rank 1 for 2 outputs",
    ),
    "heteroskedastic": (_heteroskedastic, r"needs the inputs\. Use itergp\.likelihoods\.HeteroscedasticGaussian"),
    "batch of noises": (lambda: gl.GaussianLikelihood(batch_shape=torch.Size([2])), r"Got shape \(2, 1\)\. Leave out"),
    "batch of degrees": (lambda: gl.StudentTLikelihood(batch_shape=torch.Size([2])), r"Got shape \(2, 1\)\. Leave out"),
    "batch of rows": (lambda: gl.FixedNoiseGaussianLikelihood(torch.ones(2, 30)), r"\(N,\)\. Got \(2, 30\)"),
    "noise of other rows": (
        lambda: gl.FixedNoiseGaussianLikelihood(torch.ones(9)),
        r"Got 9 noise\(s\) and 30 row\(s\)",
    ),
    "own rows": (lambda: _PerRow(torch.ones(30)), r"_PerRow, which overrides that\. .*exchangeable = False"),
    "inputs": (_NeedsInputs, r"from the latent values alone\. Got an error: .*inputs"),
    "one number in all": (_OneNumberInAll, r"one number per row, batch shape \(30,\)\. Got batch shape \(\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_likelihoods_of_something_else_are_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        SimpleGP(X, Y, make())


def test_more_rows_than_known_noises_are_refused():
    model = SimpleGP(X, Y, gl.FixedNoiseGaussianLikelihood(torch.full((30,), 0.1)))
    with pytest.raises(InputError, match=r"Got 30 noise\(s\) and 32 row\(s\)\. Replace the likelihood"):
        model.append_train_data(X[:2], Y[:2])


def test_a_subclass_with_the_noise_of_every_row_is_that_of_gpytorch():
    class Named(gl.FixedNoiseGaussianLikelihood):
        pass

    noise = torch.linspace(0.1, 1.0, 30).double()
    ours = SimpleGP(X, Y, Named(noise), solver=DenseNewton()).double().eval()
    exact = _Exact(X, Y, gl.FixedNoiseGaussianLikelihood(noise)).double().eval()
    assert_close(ours(X[:5]).mean, exact(X[:5]).mean, "posterior")


def test_the_rows_may_be_set_before_their_noise():
    """GPyTorch's order; checked when the posterior is wanted."""
    x, y = make_reals(15)
    model = SimpleGP(x[:10], y[:10], gl.FixedNoiseGaussianLikelihood(torch.full((10,), 0.1).double())).double().eval()
    model.set_train_data(x, y, strict=False)
    with pytest.raises(InputError, match=r"the noise of every training row\. Got 10 noise\(s\) and 15 row\(s\)"):
        model.condition()
    model.likelihood.noise_covar.noise = torch.full((15,), 0.2).double()
    other = SimpleGP(x, y, gl.FixedNoiseGaussianLikelihood(torch.full((15,), 0.2).double())).double().eval()
    with torch.no_grad():
        assert_close(model(x).mean, other(x).mean, "posterior")


def test_the_marginal_likelihood_counts_no_row_by_a_weight_it_does_not_know():
    x, y = make_reals(10)
    gone = y.clone()
    gone[3] = float("nan")
    with gpytorch.settings.observation_nan_policy("mask"):
        weighted = SimpleGP(x, y, gl.GaussianLikelihood(), sample_weight=torch.linspace(0.5, 2.0, 10).double())
        some = SimpleGP(x, gone, gl.GaussianLikelihood())
        for model in (weighted.double().train(), some.double().train()):
            mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
            with pytest.raises(InputError, match="takes all rows alike"):
                mll(model(x), model.train_targets)  # where what is missing was filled in
        rest = ~gone.isnan()
        alone = SimpleGP(x[rest], y[rest], gl.GaussianLikelihood()).double().train()
        expected = gpytorch.mlls.ExactMarginalLogLikelihood(alone.likelihood, alone)(alone(x[rest]), y[rest])
        assert_close(mll(some(x), gone) * 10.0, expected * 9.0)


# ----------------------------------------------------------- independent outputs
class Outputs(NonConjugateGP):
    """Two outputs, each with mean and kernel of its own, and nothing in common."""

    def __init__(self, x, y, likelihood, *, whole=False, **options):
        super().__init__(x, y, likelihood, **options)
        shape = torch.Size([2])
        self.whole = whole
        self.mean_module = gpytorch.means.ConstantMean(batch_shape=shape)
        self.covar_module = gpytorch.kernels.RBFKernel(batch_shape=shape)

    def forward(self, x):
        kernel = self.covar_module(x) * 2.0 if not self.whole else self.covar_module(x).mul(self.covar_module(x))
        batch = gpytorch.distributions.MultivariateNormal(self.mean_module(x), kernel)
        return gpytorch.distributions.MultitaskMultivariateNormal.from_batch_mvn(batch)


def _outputs(**options):
    likelihood = gl.MultitaskGaussianLikelihood(num_tasks=2, **options.pop("noise", {}))
    y = torch.stack([Y, Y.flip(0)], -1)
    model = Outputs(X, options.pop("y", y), likelihood, **options).double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize("noise", [{}, {"has_global_noise": False}, {"has_task_noise": False}])
@pytest.mark.parametrize("whole", [False, True])
def test_independent_outputs_are_single_ones(noise, whole):
    model = _outputs(noise=dict(noise), whole=whole, solver=DenseNewton()).eval()
    new = make_inputs(7, seed=3)
    with torch.no_grad():
        latent = model(new)
        observed = model.likelihood(latent)
        predicted = model.predict(new)
    expected = []
    for output in range(2):
        kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
        length = model.covar_module.lengthscale[output].detach()
        kernel.base_kernel.lengthscale = length / 2.0**0.5 if whole else length
        kernel.outputscale = 1.0 if whole else 2.0
        single = SimpleGP(
            X, model.train_targets[:, output], gl.GaussianLikelihood(), kernel=kernel, solver=DenseNewton()
        )
        single.double().eval()
        single.mean_module.constant = model.mean_module.constant[output].detach()
        variance = torch.zeros(()).double()
        if "has_task_noise" not in noise:
            variance = variance + model.likelihood.task_noises[output].detach()
        if "has_global_noise" not in noise:
            variance = variance + model.likelihood.noise.detach()
        single.likelihood.noise = variance
        with torch.no_grad():
            alone = single.likelihood(single(new))
        assert_close(latent.mean[:, output], alone.mean, "posterior")
        assert_close(observed.variance[:, output], alone.variance, "posterior")
        assert_close(predicted.mean[:, output], alone.mean, "posterior")
        assert_close(predicted.variance[:, output], alone.variance, "posterior")
        mll = gpytorch.ExactMarginalLogLikelihood(single.likelihood, single.train())
        expected.append(mll(single(X), single.train_targets))
    model.train()
    total = torch.stack(expected).sum()
    for objective in (ComputationAwareELBO, LaplaceEvidence):
        value = objective(model.likelihood, model, initialise_kernel=False)(model(X), model.train_targets)
        assert_close(value, total, "posterior")
    mll = gpytorch.ExactMarginalLogLikelihood(model.likelihood, model)
    assert_close(mll(model(X), model.train_targets), 0.5 * total, "posterior")  # GPyTorch's is per number


def test_independent_outputs_learn():
    model = _outputs()
    result = itergp.fit(model, max_iterations=5)
    assert result.records[-1].objective > result.records[0].objective


def test_missing_outputs():
    y = torch.stack([Y, Y.flip(0)], -1)
    y[3, 0] = torch.nan
    with pytest.raises(InputError, match=r"must be finite\. Got NaN value"):
        _outputs(y=y).eval()(X)
    for missing in ((3, 0), (3,)):
        y[missing] = torch.nan
        model = _outputs(y=y, missing_targets=True, solver=DenseNewton()).train()
        mll = gpytorch.ExactMarginalLogLikelihood(model.likelihood, model)
        with pytest.raises(InputError, match="takes all rows alike"):
            mll(model(X), model.train_targets)
        with gpytorch.settings.observation_nan_policy("mask"):
            expected = mll(model(X), model.train_targets) * y.numel()
        for objective in (ComputationAwareELBO, LaplaceEvidence):
            value = objective(model.likelihood, model, initialise_kernel=False)(model(X), model.train_targets)
            assert_close(value * len(Y), expected, "posterior")
    weighted = _outputs(y=y, missing_targets=True, sample_weight=torch.full_like(Y, 2.0)).train()
    with gpytorch.settings.observation_nan_policy("mask"), pytest.raises(InputError, match="takes all rows alike"):
        gpytorch.ExactMarginalLogLikelihood(weighted.likelihood, weighted)(weighted(X), weighted.train_targets)


def test_outputs_of_the_wrong_shape_are_refused():
    with pytest.raises(InputError, match=r"must have shape \(N, 2\) for MultitaskGaussianLikelihood\. Got \(30,\)"):
        _outputs(y=Y)
    with pytest.raises(InputError, match=r"must be one per output\. Got a batch of such"):
        _outputs(noise={"batch_shape": torch.Size([3])})
