"""``GP``: its defaults, what it refuses, and that it is kept and continued as any model is."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext

import gpytorch
import numpy as np
import pytest
import torch
from helpers import CASES, CORE, assert_close, make_binary, make_inputs, make_kernel

import itergp
from itergp import InputError, ItergpWarning
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood
from itergp.models import GP, NonConjugateGP
from itergp.models.gp import MAX_ARD_COLUMNS
from itergp.models.starting_values import initialise_model
from itergp.sklearn import model as sklearn_model
from itergp.solvers import DenseNewton


class Written(NonConjugateGP):
    """The class that a GP replaces."""

    def __init__(self, x, y, likelihood, mean, kernel, **options):
        super().__init__(x, y, likelihood, **options)
        self.mean_module, self.covar_module = mean, kernel

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


@pytest.mark.parametrize("name", CORE)
@torch.no_grad()
def test_it_is_the_class_that_one_would_write(name):
    (x, y), new = CASES[name].data(40), make_inputs(5, seed=3)
    parts = {"mean": gpytorch.means.ConstantMean(), "kernel": make_kernel()}
    models = [
        kind(x, y, CASES[name].make(), **copy.deepcopy(parts), solver=DenseNewton(), approximation="laplace")
        for kind in (GP, Written)
    ]
    own, written = (model.double().eval() for model in models)
    assert_close(own(new).mean, written(new).mean, "posterior")
    assert_close(own(new).covariance_matrix, written(new).covariance_matrix, "posterior")
    assert own.approximation == "laplace"


@pytest.mark.parametrize("name", CASES)
def test_defaults_predict_for_every_likelihood(name):
    x, y = CASES[name].data(20)
    model = GP(x, y, CASES[name].make(), approximation="laplace")
    latents = model.observations.likelihood.num_latents
    assert model.mean_module.constant.shape == ((latents,) if latents > 1 else ())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    # Newton's method does not find the mode of a density with a kink, which is said.
    far = pytest.warns(ItergpWarning, match="far off") if name == "laplace" else nullcontext()
    with torch.no_grad(), far:
        assert model.eval().predict(x[:3]).batch_shape == (3,)


def test_hyperparameters_start_where_learning_would_start_them():
    x, y = make_binary(60)
    model = GP(3.0 * x, y, BernoulliLikelihood())
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=x.shape[1]))
    other = GP(3.0 * x, y, BernoulliLikelihood(), kernel=kernel)
    assert not bool(kernel.raw_outputscale.any()), "a kernel that is given keeps its values"
    assert len(initialise_model(other)) == 2
    assert_close(model.covar_module.base_kernel.lengthscale, kernel.base_kernel.lengthscale)
    assert_close(model.covar_module.outputscale, kernel.outputscale)
    assert model.covar_module.base_kernel.lengthscale.shape == (1, x.shape[1])


def test_many_columns_share_a_lengthscale():
    for columns, lengthscales in ((MAX_ARD_COLUMNS, MAX_ARD_COLUMNS), (MAX_ARD_COLUMNS + 1, 1)):
        model = GP(torch.randn(5, columns), torch.tensor([0, 1, 0, 1, 1]), BernoulliLikelihood())
        assert model.covar_module.base_kernel.lengthscale.numel() == lengthscales


def test_classes_share_the_kernel_unless_one_is_given_for_each():
    (x, y), batch = CASES["categorical"].data(40), torch.Size([3])
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(batch_shape=batch), batch_shape=batch)
    for given, count in ((None, 1), (kernel, 3)):
        model = GP(x, y, CategoricalLikelihood(3), kernel=given).eval()
        assert model.solution.operator.num_kernels == count


def test_arrays_are_inputs():
    x, y = make_binary(30)
    model = GP(np.asarray(x), np.asarray(y), BernoulliLikelihood()).eval()
    expected = GP(x, y, BernoulliLikelihood()).eval()
    with torch.no_grad():
        assert_close(model.predict(np.asarray(x)).probs, expected.predict(x).probs)


def test_it_survives_pickle_copies_and_files(tmp_path):
    x, y = make_binary(40)
    model = GP(x, y, BernoulliLikelihood())
    itergp.fit(model, max_iterations=2)
    model.eval().save(tmp_path / "model.safetensors")
    built = GP(x[:4], y[:4], BernoulliLikelihood()).eval()
    with torch.no_grad():
        expected = model.predict(x).probs
        for other in (
            pickle.loads(pickle.dumps(model)),
            copy.deepcopy(model),
            built.load(tmp_path / "model.safetensors"),
        ):
            assert torch.equal(other.predict(x).probs, expected)
            assert other.solution.kernel_passes == model.solution.kernel_passes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "rbf"}, r"`kernel` must be a GPyTorch kernel\. Got 'rbf'\. Pass one of gpytorch\.kernels"),
        ({"mean": 0.0}, r"`mean` must be a GPyTorch mean\. Got 0\.0\. Pass one of gpytorch\.means"),
    ],
)
def test_parts_of_another_kind_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        GP(*make_binary(10), BernoulliLikelihood(), **options)


def test_several_inputs_are_refused():
    x, y = make_binary(10)
    with pytest.raises(InputError, match=r"must be one matrix of inputs\. Got 2\. Concatenate their columns"):
        GP((x, x), y, BernoulliLikelihood())


def test_the_former_name_warns():
    with pytest.warns(DeprecationWarning, match="`EstimatorGP` is `itergp.models.GP` now"):
        assert sklearn_model.EstimatorGP is GP
    with pytest.raises(AttributeError, match="no attribute 'EstimatorGB'"):
        sklearn_model.EstimatorGB  # noqa: B018
