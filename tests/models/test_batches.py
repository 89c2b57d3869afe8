"""A batch of models is what its elements are by themselves."""

from __future__ import annotations

import copy
import pickle

import gpytorch
import gpytorch.kernels as gk
import gpytorch.likelihoods as gl
import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.priors import GammaPrior, LogNormalPrior, NormalPrior
from helpers import SimpleGP, assert_close, make_inputs
from torch import Tensor

import itergp
from itergp.botorch import BotorchModel
from itergp.errors import InputError
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood, PoissonLikelihood
from itergp.models import NonConjugateGP
from itergp.objectives import ComputationAwareELBO, LaplaceEvidence, PredictiveLogDensity
from itergp.solvers import DenseNewton

SHAPE = torch.Size([2])
ROWS, NEW = 18, 5


class Model(NonConjugateGP):
    """With mean and kernel of some batch shape."""

    def __init__(self, x, y, likelihood, shape=(), dims=2, **options):
        super().__init__(x, y, likelihood, **options)
        shape = torch.Size(shape)
        self.mean_module = gpytorch.means.LinearMean(dims, batch_shape=shape)
        self.covar_module = gk.ScaleKernel(
            gk.MaternKernel(nu=1.5, ard_num_dims=dims, batch_shape=shape), batch_shape=shape
        )

    def forward(self, x):
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))


def _gaussian(shape=()):
    return gl.GaussianLikelihood(batch_shape=torch.Size(shape))


LIKELIHOODS = {
    "gaussian": _gaussian,
    "student-t": lambda shape=(): gl.StudentTLikelihood(batch_shape=torch.Size(shape)),
    "probit": lambda shape=(): gl.BernoulliLikelihood(),
    "logit": lambda shape=(): BernoulliLikelihood(),
    "poisson": lambda shape=(): PoissonLikelihood(),
    "softmax": lambda shape=(): CategoricalLikelihood(3),
}


def _data(name: str = "gaussian", shape: torch.Size = SHAPE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(*shape, ROWS, 2, generator=generator, dtype=torch.float64)
    f = torch.sin(5.0 * x.sum(-1)) + 0.3 * torch.randn(*shape, ROWS, generator=generator, dtype=torch.float64)
    targets = {
        "probit": (f > 0).double(),
        "logit": (f > 0).long(),
        "poisson": torch.poisson((0.5 * f).exp(), generator=generator).long(),
        "softmax": (f > -0.5).long() + (f > 0.5).long(),
    }
    return x, targets.get(name, f)


def _at(tensor: Tensor, index: int) -> Tensor:
    return tensor[index] if tensor.dim() and tensor.shape[0] == SHAPE[0] else tensor


def _set(model: NonConjugateGP, seed: int = 5) -> NonConjugateGP:
    """Parameters that differ from each other."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def _pair(name: str = "gaussian", shape=SHAPE, *, share_inputs: bool = False, **options):
    """A batch, and models of its elements by themselves."""
    x, y = _data(name)
    x = x[0] if share_inputs else x
    batch = _set(Model(x, y, LIKELIHOODS[name](shape), shape, **options).double())
    singles = []
    for index in range(2):
        single = Model(x if share_inputs else x[index], y[index], LIKELIHOODS[name](), **options).double()
        for own, parameter in zip(single.parameters(), batch.parameters(), strict=True):
            own.data = (parameter[index] if shape else parameter).detach().clone().view(own.shape)
        singles.append(single)
    return batch, singles


def _new(*shape: int) -> Tensor:
    return torch.rand(*shape, NEW, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def _stack(values) -> Tensor:
    return torch.stack(list(values))


# -------------------------------------------------------------------- posteriors
@pytest.mark.parametrize("shape", [SHAPE, ()], ids=["own", "shared"])
@pytest.mark.parametrize("share_inputs", [False, True], ids=["inputs", "one set of inputs"])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_posteriors_are_those_of_the_elements(name, share_inputs, shape):
    batch, singles = _pair(name, shape, share_inputs=share_inputs)
    batch.eval()
    for new in (_new(), _new(2)):
        each = [new if new.dim() == 2 else new[index] for index in range(2)]
        with torch.no_grad():
            ours = batch(new)
            theirs = [single.eval()(x) for single, x in zip(singles, each, strict=True)]
        assert ours.mean.shape[:2] == (2, NEW)
        assert_close(ours.mean, _stack(p.mean for p in theirs), "local")
        assert_close(ours.variance, _stack(p.variance for p in theirs), "local")
        assert_close(ours.covariance_matrix, _stack(p.covariance_matrix for p in theirs), "local")
        observed = batch.likelihood(ours)
        alone = [single.likelihood(p) for single, p in zip(singles, theirs, strict=True)]
        attribute = "probs" if name in ("probit", "logit", "softmax") else "mean"
        if name != "student-t":  # a GPyTorch likelihood that draws samples
            expected = _stack(getattr(p, attribute) for p in alone)
            assert_close(getattr(observed, attribute), expected, "local")
        predicted = batch.predict(new)
        for mine, single, x in zip(predicted, singles, each, strict=True):
            assert torch.equal(getattr(mine, attribute), getattr(single.predict(x), attribute))
        assert_close(
            batch.latent_mean(new), _stack(s.latent_mean(x) for s, x in zip(singles, each, strict=True)), "local"
        )


def test_a_batch_of_several_dimensions_and_inputs_with_more_of_them():
    shape = torch.Size([2, 3])
    x, y = _data(shape=shape)
    likelihood = gl.GaussianLikelihood(batch_shape=torch.Size([3]))
    batch = _set(Model(x, y, likelihood, (2, 1), solver=DenseNewton()).double()).eval()
    new = _new(4, 1, 3)
    with torch.no_grad():
        ours = batch(new)
    assert ours.batch_shape == (4, 2, 3)
    single = Model(x[1, 2], y[1, 2], _gaussian(), solver=DenseNewton()).double().eval()
    single.mean_module.weights.data = batch.mean_module.weights[1, 0].detach()
    single.mean_module.bias.data = batch.mean_module.bias[1, 0].detach()
    single.covar_module.raw_outputscale.data = batch.covar_module.raw_outputscale[1, 0].detach()
    single.covar_module.base_kernel.raw_lengthscale.data = batch.covar_module.base_kernel.raw_lengthscale[1, 0].detach()
    single.likelihood.noise = likelihood.noise[2].detach()
    with torch.no_grad():
        alone = single(new[3, 0, 2])
    assert_close(ours.mean[3, 1, 2], alone.mean, "local")
    assert_close(ours.covariance_matrix[3, 1, 2], alone.covariance_matrix, "local")


def test_a_single_model_takes_batches_of_inputs_with_derivatives():
    _, (single, _) = _pair()
    new = _new(3).requires_grad_()
    single.eval()(new).mean.square().sum().backward()
    for index in range(3):
        alone = new.detach()[index].clone().requires_grad_()
        ours = single(alone)
        ours.mean.square().sum().backward()
        assert_close(new.grad[index], alone.grad, "local")
    softmax = _pair("softmax")[1][0].eval()
    with torch.no_grad():
        assert softmax.likelihood(softmax(_new(3))).probs.shape == (3, NEW, 3)


def test_kernels_of_classes_and_kernels_of_elements_are_told_apart():
    x, y = _data("softmax")
    batch = Model(x, y, CategoricalLikelihood(3), (3, 2), solver=DenseNewton())  # a kernel per class and element
    batch.mean_module = gpytorch.means.ZeroMean()
    _set(batch.double()).eval()
    single = Model(x[1], y[1], CategoricalLikelihood(3), (3,), solver=DenseNewton())
    single.mean_module = gpytorch.means.ZeroMean()
    single.double().eval()
    single.covar_module.raw_outputscale.data = batch.covar_module.raw_outputscale[:, 1].detach()
    single.covar_module.base_kernel.raw_lengthscale.data = batch.covar_module.base_kernel.raw_lengthscale[:, 1].detach()
    with torch.no_grad():
        assert_close(batch(_new()).mean[1], single(_new()).mean, "local")


def test_posteriors_are_kept_and_follow_every_change():
    batch, singles = _pair(solver=DenseNewton())
    batch.eval()
    first = batch.solution
    assert batch.solution[0] is first[0]
    with torch.no_grad():
        batch.covar_module.raw_outputscale[1] += 0.5
        singles[1].covar_module.raw_outputscale += 0.5
    assert batch.solution[0] is first[0]  # of an element that has not changed
    assert batch.solution[1] is not first[1]
    batch.train_targets[0] += 1.0  # in place
    singles[0].train_targets[:] += 1.0
    for model in (batch, *singles):
        model.eval()
    with torch.no_grad():
        assert_close(batch(_new()).mean, _stack(s(_new()).mean for s in singles), "posterior")
        again = pickle.loads(pickle.dumps(batch))
        assert_close(again(_new()).mean, batch(_new()).mean, "posterior")
        assert_close(copy.deepcopy(batch)(_new()).mean, batch(_new()).mean, "posterior")
        assert batch.float()(_new().float()).mean.dtype == torch.float32


def test_data_of_a_batch_are_replaced_and_appended():
    batch, singles = _pair(solver=DenseNewton())
    x, y = _data()
    batch.eval()
    batch.set_train_data(x[..., :10, :], y[..., :10], strict=False)
    batch.append_train_data(x[..., 10:, :], y[..., 10:])
    assert batch.train_targets.shape == (2, ROWS)
    with torch.no_grad():
        assert_close(batch(_new()).mean, _stack(s.eval()(_new()).mean for s in singles), "posterior")
    batch.append_train_data(_new(), torch.zeros(2, NEW).double())  # the same inputs for all
    assert batch.train_inputs[0].shape == (2, ROWS + NEW, 2)
    with pytest.raises(InputError, match=r"`noise` of GaussianLikelihood must be one number"):
        batch.set_train_data(x[0], y[0], strict=False)
    shared, _ = _pair(shape=())
    shared.set_train_data(x[0], y[0], strict=False)  # one model from now on
    assert shared.data_batch_shape == ()
    assert shared.batch_elements == (shared,)


def test_weights_and_missing_targets_are_those_of_elements():
    x, y = _data()
    y[0, ::4] = torch.nan
    batch = _set(Model(x, y, _gaussian(SHAPE), SHAPE, missing_targets=True, solver=DenseNewton()).double()).eval()
    for index in range(2):
        single = Model(x[index], y[index], _gaussian(), missing_targets=True, solver=DenseNewton()).double().eval()
        for own, parameter in zip(single.parameters(), batch.parameters(), strict=True):
            own.data = parameter[index].detach().clone()
        with torch.no_grad():
            assert_close(batch(_new()).mean[index], single(_new()).mean, "local")
    with pytest.raises(InputError, match=r"takes all rows alike\. Got a model with sample_weight or missing"):
        gpytorch.ExactMarginalLogLikelihood(batch.likelihood, batch)(batch.train()(x), y)


# ---------------------------------------------------------------------- learning
@pytest.mark.parametrize("name", ["gaussian", "logit"])
@pytest.mark.parametrize("objective", [ComputationAwareELBO, LaplaceEvidence, PredictiveLogDensity])
@pytest.mark.parametrize("shape", [SHAPE, ()], ids=["own", "shared"])
def test_objectives_have_a_value_for_each_and_its_derivatives(objective, name, shape):
    batch, singles = _pair(name, shape)
    for model in (batch, *singles):
        model.covar_module.base_kernel.register_prior("length_prior", GammaPrior(3.0, 6.0), "lengthscale")
        model.covar_module.register_prior("scale_prior", NormalPrior(1.0, 2.0), "outputscale")
        model.double().train()
    mll = objective(batch.likelihood, batch)
    values = mll(batch(*batch.train_inputs), batch.train_targets)
    expected = []
    for single in singles:
        own = objective(single.likelihood, single)
        expected.append(own(single(*single.train_inputs), single.train_targets))
    assert_close(values, _stack(expected), "local")
    factors = torch.tensor([1.0, -2.0]).double()
    (factors * values).sum().backward()
    (factors * _stack(expected)).sum().backward()
    for parameter, *own in zip(batch.parameters(), *(s.parameters() for s in singles), strict=True):
        gradients = _stack(p.grad for p in own)
        gradients = gradients if shape else gradients.sum(0)
        assert_close(parameter.grad.reshape(gradients.shape), gradients, "derivative")


def test_the_exact_marginal_likelihood_is_gpytorchs():
    batch, singles = _pair()
    batch.train()
    values = gpytorch.ExactMarginalLogLikelihood(batch.likelihood, batch)(
        batch(*batch.train_inputs), batch.train_targets
    )
    for value, single in zip(values, singles, strict=True):
        own = gpytorch.ExactMarginalLogLikelihood(single.likelihood, single.train())
        assert_close(value, own(single(*single.train_inputs), single.train_targets), "local")


def test_training_inputs_have_derivatives_in_objectives():
    batch, singles = _pair()
    x = batch.train_inputs[0].clone().requires_grad_()
    batch.set_train_data(x)
    batch.train()
    ComputationAwareELBO(batch.likelihood, batch)(batch(x), batch.train_targets).sum().backward()
    for index, single in enumerate(singles):
        own = x[index].detach().clone().requires_grad_()
        single.set_train_data(own)
        single.train()
        ComputationAwareELBO(single.likelihood, single)(single(own), single.train_targets).backward()
        assert_close(x.grad[index], own.grad, "derivative")


@pytest.mark.parametrize("name", ["gaussian", "probit"])
def test_fit_learns_every_element_as_by_itself(name):
    batch, singles = _pair(name)
    results = itergp.fit(batch, max_iterations=6)
    for index, (result, single) in enumerate(zip(results, singles, strict=True)):
        alone = itergp.fit(single, max_iterations=6, calibrate=False)
        assert result.records[-1].objective == pytest.approx(alone.records[-1].objective, rel=1e-9)
        for parameter, own in zip(batch.parameters(), single.parameters(), strict=True):
            assert_close(parameter[index].reshape(own.shape), own, "derivative")
        assert batch.solution[index] is result.solution
    assert not batch.training


@pytest.mark.parametrize("objective", ["elbo", "predictive"])
@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_fit_learns_what_elements_share_from_all_of_them(objective, optimizer):
    batch, _ = _pair(shape=())
    results = itergp.fit(batch, objective=objective, optimizer=optimizer, max_iterations=6)
    assert results[0].records[-1].objective > results[0].records[0].objective
    assert all(solution is result.solution for solution, result in zip(batch.solution, results, strict=True))
    twice, (single, _) = _pair(shape=())
    x, y = _data()
    twice.set_train_data(x[:1].expand(2, -1, -1), y[:1].expand(2, -1))  # the same data twice
    itergp.fit(twice, objective=objective, optimizer=optimizer, max_iterations=6)
    itergp.fit(single, objective=objective, optimizer=optimizer, max_iterations=6, calibrate=False)
    for parameter, own in zip(twice.parameters(), single.parameters(), strict=True):
        assert_close(parameter, own, "derivative")


def test_priors_of_a_batch_are_counted_as_those_of_the_elements():
    batch, singles = _pair()
    loc = torch.tensor([0.5, -0.5]).double().view(2, 1, 1).expand(2, 1, 2).contiguous()
    batch.covar_module.base_kernel.register_prior("length_prior", NormalPrior(loc, torch.ones_like(loc)), "lengthscale")
    batch.covar_module.register_prior(
        "scale_prior", LogNormalPrior(loc[:, 0, 0], torch.ones(2).double()), "outputscale"
    )
    for index, single in enumerate(singles):
        own = NormalPrior(loc[index], torch.ones_like(loc[index]))
        single.covar_module.base_kernel.register_prior("length_prior", own, "lengthscale")
        own = LogNormalPrior(loc[index, 0, 0], torch.ones(()).double())
        single.covar_module.register_prior("scale_prior", own, "outputscale")
    batch.double().train()
    values = ComputationAwareELBO(batch.likelihood, batch)(batch(*batch.train_inputs), batch.train_targets)
    for value, single in zip(values, singles, strict=True):
        own = ComputationAwareELBO(single.likelihood, single.double().train())
        assert_close(value, own(single(*single.train_inputs), single.train_targets), "local")
    itergp.fit(batch, max_iterations=3)
    itergp.fit(singles[1], max_iterations=3, calibrate=False)
    learned = batch.covar_module.base_kernel.lengthscale[1]
    assert_close(learned, singles[1].covar_module.base_kernel.lengthscale, "posterior")


def test_a_prior_of_a_shared_vector_counts_whole_in_each_element():
    batch, singles = _pair(shape=())
    for model in (batch, *singles):
        model.covar_module.base_kernel.register_prior("sum", NormalPrior(0.0, 1.0), lambda m: m.lengthscale.flatten())
        model.double().train()
    values = ComputationAwareELBO(batch.likelihood, batch)(batch(*batch.train_inputs), batch.train_targets)
    own = ComputationAwareELBO(singles[0].likelihood, singles[0])
    assert_close(values[0], own(singles[0](*singles[0].train_inputs), singles[0].train_targets), "local")


def test_fit_takes_an_objective_of_a_batch():
    batch, _ = _pair()
    results = itergp.fit(batch, objective=LaplaceEvidence(batch.likelihood, batch), max_iterations=4)
    assert len(results) == 2


# ------------------------------------------------------------------------ samples
def test_samples_of_hyperparameters_make_a_batch():
    x, y = (t[0] for t in _data())
    model = Model(x, y, _gaussian(), solver=DenseNewton())
    model.likelihood.register_prior("noise_prior", GammaPrior(2.0, 10.0), "noise")
    model.covar_module.register_prior("scale_prior", GammaPrior(2.0, 1.0), "outputscale")
    model.covar_module.base_kernel.register_prior("length_prior", GammaPrior(3.0, 6.0), "lengthscale")
    model.double().eval()
    noise, scale = torch.tensor([[0.1], [0.2], [0.4]]).double(), torch.tensor([1.0, 2.0, 3.0]).double()
    length = torch.rand(3, 1, 2, generator=torch.Generator().manual_seed(1)).double() + 0.2
    model.pyro_load_from_samples(
        {
            "likelihood.noise_prior": noise,
            "covar_module.scale_prior": scale,
            "covar_module.base_kernel.length_prior": length,
        }
    )
    assert model.data_batch_shape == (3,)
    with torch.no_grad():
        ours, several = model(_new()), model(_new(3))
    for index in range(3):
        single = Model(x, y, _gaussian(), solver=DenseNewton()).double().eval()
        single.mean_module.load_state_dict(model.mean_module.state_dict())
        single.likelihood.noise = noise[index]
        single.covar_module.outputscale = scale[index]
        single.covar_module.base_kernel.lengthscale = length[index]
        with torch.no_grad():
            assert_close(ours.mean[index], single(_new()).mean, "local")
            assert_close(several.covariance_matrix[index], single(_new(3)[index]).covariance_matrix, "local")
            observed = model.likelihood(ours).variance[index]
            assert_close(observed, single.likelihood(single(_new())).variance, "local")


# ----------------------------------------------------------------------- refusals
class LooksAtElements(Model):
    """Its prior of an element depends on the others."""

    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True) if x.dim() > 2 else x)


def test_what_is_no_batch_of_independent_models_is_refused():
    x, y = _data()
    model = LooksAtElements(x, y, _gaussian()).double().eval()
    with pytest.raises(
        InputError, match=r"treat the elements of a batch independently\. Got another prior for element \(0,\)"
    ):
        model(_new())
    with pytest.raises(InputError, match=r"as many data sets: targets of shape \(2, 18\) .*Got \(18,\)"):
        Model(x, y[0], _gaussian())
    with pytest.raises(InputError, match=r"Processes divide the rows of a single model\. Got a batch"):
        Model(x, y, _gaussian(), operator="sharded")
    model = Model(x, y, _gaussian(SHAPE), SHAPE).double().eval()
    with pytest.raises(InputError, match=r"can be broadcast with that of the training data, \(2,\)\. Got \(3, 5, 2\)"):
        model(_new(3))
    with pytest.raises(
        InputError, match=r"must have shape \(M, D\) or \(2, 'M', 'D'\)\. Got \(3, 5, 2\)\. Call model\(x\)"
    ):
        model.predict(_new(3))
    with pytest.raises(
        InputError, match=r"\(N, D\), one row per observation\. Got \(3, 5, 2\), a batch\. Call model\(x\)"
    ):
        _pair()[1][0].predict(_new(3))


def test_what_batches_have_not_is_refused_with_the_way_out(tmp_path):
    model, _ = _pair()
    refused = r"that of a single model\. Got a batch of shape \(2,\)\. .* model\.batch_elements"
    calls = {
        "save": lambda: model.save(tmp_path / "m"),
        "load": lambda: model.load(tmp_path / "m"),
        "plan": model.plan,
        "predict_batches": lambda: model.predict_batches(_new()),
        "decompose_uncertainty": lambda: model.decompose_uncertainty(_new()),
        "observations": lambda: model.observations,
        "checkpoint": lambda: model.condition(checkpoint=tmp_path / "c"),
        "on_posterior": lambda: model.condition(on_posterior=print),
    }
    for name, call in calls.items():
        with pytest.raises(InputError, match=f"`{name}` is {refused}"):
            call()
    for options in ({"checkpoint": tmp_path / "c"}, {"on_posterior": print}):
        with pytest.raises(InputError, match=rf"of `fit` is {refused}"):
            itergp.fit(model, **options)
    with pytest.raises(InputError, match=r"a single model of some data\. Got a batch of shape \(2,\)\."):
        BotorchModel(model)
    assert model.batch_elements[1].save(tmp_path / "one") is None


def test_what_is_done_to_an_element_by_itself_does_not_show_in_the_batch():
    batch, singles = _pair(solver=DenseNewton())
    batch.eval()
    itergp.fit(batch.batch_elements[0], max_iterations=2, calibrate=False)
    batch.batch_elements[1].set_train_data(targets=torch.zeros(ROWS).double())
    with torch.no_grad():
        assert_close(batch(_new()).mean, _stack(s.eval()(_new()).mean for s in singles), "local")


class Scaled(gl.BernoulliLikelihood):
    """A likelihood of one's own with a matrix that is no batch."""

    def __init__(self):
        super().__init__()
        self.register_parameter("matrix", torch.nn.Parameter(torch.ones(2, 2)))

    def forward(self, function_samples, *args, **kwargs):
        return super().forward(self.matrix.sum() * function_samples, *args, **kwargs)


def test_matrices_of_likelihoods_are_no_batches():
    x, y = _data("probit")
    batch = _set(Model(x, y, Scaled(), SHAPE).double())
    assert batch.batch_elements[0].likelihood.matrix.shape == (2, 2)
    assert batch.shared_parameters() == ["likelihood.matrix"]


def test_batch_shapes_that_are_not_those_of_the_data_are_refused():
    x, y = _data()
    with pytest.raises(
        InputError, match=r"Got batch shape \(3,\) of 'noise_covar\.raw_noise' and data of batch shape \(2,\)"
    ):
        Model(x, y, _gaussian((3,)))
    with pytest.raises(InputError, match=r"`sample_weight` must have shape \(18,\) or \(2, 18\)\. Got \(2,\)"):
        Model(x, y, _gaussian(), sample_weight=torch.ones(2))
    with pytest.raises(InputError, match=r"Inputs must have one batch shape\. Got \(2, 18, 2\), \(3, 18, 1\)"):
        Model((x, torch.zeros(3, 18, 1).double()), y, _gaussian())


def test_a_batch_of_posteriors_is_gpytorchs_distribution():
    batch, singles = _pair()
    batch.eval()
    with torch.no_grad():
        ours, alone = batch(_new()), singles[1].eval()(_new())
        assert_close(ours[1].mean, alone.mean, "local")
        assert_close(ours[1].covariance_matrix, alone.covariance_matrix, "local")
        assert_close(ours[..., 2:].covariance_matrix[1], alone.covariance_matrix[2:, 2:], "local")
        assert ours.rsample(torch.Size([4])).shape == (4, 2, NEW)
        observed, single = batch.likelihood(ours), singles[1].likelihood(alone)
        values = torch.zeros(2, NEW).double()
        assert_close(observed.log_prob(values)[1], single.log_prob(values[1]), "derivative")
        assert_close(observed.confidence_region()[0][1], single.confidence_region()[0], "local")
        assert_close(ours.expand((3, 2)).covariance_matrix[2, 1], alone.covariance_matrix, "local")


def test_a_kernel_per_class_does_not_become_one_per_element():
    x, y = (t[0] for t in _data("softmax"))
    model = Model(x, y, CategoricalLikelihood(3), (3,))
    model.mean_module = gpytorch.means.ConstantMean(batch_shape=torch.Size([3]))
    model.covar_module.register_prior("scale_prior", GammaPrior(2.0, 1.0), "outputscale")
    model.double().eval()
    labels = torch.zeros(3, NEW).long()
    samples = {"covar_module.scale_prior": torch.ones(2, 3).double()}
    for act in (lambda: model.get_fantasy_model(_new(), labels), lambda: model.pyro_load_from_samples(samples)):
        with pytest.raises(
            InputError, match=r"only if mean and kernel have no batch_shape.*Got one of latent functions"
        ):
            act()
    with pytest.raises(InputError, match=r"A GP is a single model\. Got data of batch shape \(2,\)"):
        itergp.models.GP(*_data(), _gaussian())


# ---------------------------------------------------------------------- no data
def test_a_model_without_data_is_its_prior_until_it_has_some():
    x, y = (t[0] for t in _data())
    model = Model(None, None, _gaussian()).double().eval()
    reference = _set(Model(x, y, _gaussian()).double()).eval()
    model.load_state_dict(reference.state_dict())
    with torch.no_grad():
        with gpytorch.settings.prior_mode(True):
            prior = reference(_new())
        assert_close(model(_new()).mean, prior.mean)
        assert_close(model.likelihood(model(_new())).variance, model.likelihood(prior).variance)
    assert model.train_inputs is None
    assert model.train_targets is None
    for call in (
        lambda: model.condition(),
        lambda: model.predict(_new()),
        lambda: itergp.fit(model),
        lambda: model.train()(x),
    ):
        with pytest.raises(InputError, match=r"needs training data\. Got a model of the prior alone"):
            call()
    with pytest.raises(InputError, match=r"must be a torch tensor or a tuple of them\. Got NoneType"):
        Model(None, y, _gaussian())
    model.set_train_data(x, y)
    with torch.no_grad():
        assert_close(model.eval()(_new()).mean, reference(_new()).mean)


def test_fantasies_bring_known_noise_of_their_own():
    x, y = make_inputs(12, 1, torch.float64), torch.randn(12, dtype=torch.float64)
    noise = torch.rand(12, dtype=torch.float64) + 0.1
    model = SimpleGP(x, y, gl.FixedNoiseGaussianLikelihood(noise), solver=DenseNewton()).eval()
    model(x)
    new, targets = torch.randn(3, 2, 1, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    extra = torch.rand(3, 2, dtype=torch.float64) + 0.1
    batch = model.get_fantasy_model(new, targets, noise=extra)
    for index in range(3):
        one = model.get_fantasy_model(new[index], targets[index], noise=extra[index])
        assert_close(batch(x).mean[index], one(x).mean)
