"""A saved model is the same model; a file that is not one says so; new rows start from the old posterior."""

from __future__ import annotations

import json
import os
import struct

import gpytorch
import gpytorch.likelihoods as gl
import pytest
import safetensors
import safetensors.torch
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from helpers import (
    CASES,
    SimpleGP,
    assert_close,
    make_batch_kernel,
    make_binary,
    make_classes,
    make_inputs,
    make_kernel,
    make_model,
    make_reals,
)

from itergp import InputError
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood, GaussianLikelihood
from itergp.persistence import files
from itergp.solvers import DenseNewton, IterNCGP, SubspaceNewton

cases = pytest.mark.parametrize("name", CASES)


def _outputs(model, x):
    with torch.no_grad():
        latent, predicted = model(x), model.predict(x)
    return latent.mean, latent.variance, predicted.probs if hasattr(predicted, "probs") else predicted.variance


def _assert_same_model(one, other, x):
    for left, right in zip(_outputs(one, x), _outputs(other, x), strict=True):
        assert torch.equal(left, right)


# ----------------------------------------------------------------- round trips
@cases
@pytest.mark.filterwarnings("ignore:The posterior must be near")  # modes at kinks are not
@pytest.mark.parametrize("approximation", ["laplace", "variational"])
def test_a_loaded_model_predicts_the_same_without_conditioning(name, approximation, dtype, tmp_path):
    model = make_model(name, dtype=dtype, approximation=approximation)
    model.covar_module.outputscale = 7.0
    solution, x = model.condition(), make_inputs(9, dtype=dtype, seed=3)
    model.save(tmp_path / "model.safetensors")
    other = make_model(name, 20, dtype=torch.float32).load(tmp_path / "model.safetensors")  # other data, other dtype
    assert other.solution.seconds == solution.seconds  # not found again
    assert other.approximation == approximation
    _assert_same_model(other, model, x)
    restored = other.solution
    for field in ("status", "kernel_passes", "kernel_entries", "log_marginal_likelihood", "elbo", "objective"):
        assert getattr(restored, field) == getattr(solution, field)
    assert restored.trace.to_dicts() == solution.trace.to_dicts()
    if solution.certificate is None:  # not log-concave
        assert restored.certificate is None
    else:
        assert torch.equal(restored.certificate.latent_error(x), solution.certificate.latent_error(x))
    other.covar_module.outputscale = 1.0  # and it is alive
    assert not torch.equal(other(x).mean, model(x).mean)


def _weighted(**options):
    x, y = make_binary(40)
    weight = torch.linspace(0.5, 2.0, 40, dtype=torch.float64)
    return SimpleGP(x, y, BernoulliLikelihood(), sample_weight=weight, kernel=make_kernel(), **options).double().eval()


def _own_kernels(**options):
    return SimpleGP(*make_classes(30), CategoricalLikelihood(3), kernel=make_batch_kernel(), **options).double().eval()


def _fixed_noise(level=0.3, **options):
    x, y = make_reals(30)
    noise = torch.linspace(0.1, level, 30, dtype=torch.float64)
    return SimpleGP(x, y, gl.FixedNoiseGaussianLikelihood(noise), kernel=make_kernel(), **options).double().eval()


def _two_missing(**options):
    x, y = make_reals(30)
    y[:2] = torch.nan
    return SimpleGP(x, y, GaussianLikelihood(), missing_targets=True, kernel=make_kernel(), **options).double().eval()


def _tied(**options):
    kernel = RBFKernel()
    return (
        SimpleGP(*make_binary(30), BernoulliLikelihood(), kernel=ScaleKernel(kernel) + kernel, **options)
        .double()
        .eval()
    )


@pytest.mark.parametrize("make", [_weighted, _own_kernels, _fixed_noise, _two_missing, _tied])
def test_everything_a_posterior_depends_on_is_saved(make, tmp_path):
    path, x = tmp_path / "model.safetensors", make_inputs(5, seed=3)
    model = make()
    model.condition()
    model.save(path)
    other = (make(level=0.9) if make is _fixed_noise else make()).load(path)
    assert other.solution.seconds == model.solution.seconds
    _assert_same_model(other, model, x)
    assert other.condition().converged


def test_an_unconditioned_model_is_saved_without_posterior(tmp_path):
    model = make_model("bernoulli-logit")
    model.save(tmp_path / "model.safetensors")
    assert model.last_solution is None  # saving a checkpoint costs no solve
    other = make_model("bernoulli-logit", 20).load(tmp_path / "model.safetensors")
    _assert_same_model(other, model, make_inputs(5, seed=3))


def test_a_stale_posterior_is_not_saved(tmp_path):
    model = make_model("bernoulli-logit")
    model.condition()
    model.covar_module.outputscale = 0.1
    model.save(tmp_path / "model.safetensors")
    other = make_model("bernoulli-logit").load(tmp_path / "model.safetensors")
    assert other.last_solution is None
    fresh = make_model("bernoulli-logit")
    fresh.covar_module.outputscale = 0.1
    _assert_same_model(other, fresh, make_inputs(5, seed=3))


@pytest.mark.parametrize("solver", [SubspaceNewton(), DenseNewton(), IterNCGP()], ids=lambda s: type(s).__name__)
def test_the_posterior_of_every_solver_is_saved_and_grows(solver, tmp_path):
    model, x = make_model("categorical", solver=solver), make_inputs(5, seed=3)
    model.condition()
    model.save(tmp_path / "model.safetensors")
    other = make_model("categorical", solver=solver).load(tmp_path / "model.safetensors")
    _assert_same_model(other, model, x)
    one, two = model.decompose_uncertainty(x), other.decompose_uncertainty(x)
    assert torch.equal(one.computational, two.computational)
    for loaded_or_not in (model, other):
        loaded_or_not.append_train_data(x, model.train_targets[:5])
        assert loaded_or_not.solution.representer_weights.shape == (45, 3)


# ------------------------------------------------------------------- the file
def test_the_file_is_plain_safetensors_and_json(tmp_path):
    path = tmp_path / "model.safetensors"
    make_model("bernoulli-logit").save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["itergp"])
        assert "data.input.0" in file.keys()  # noqa: SIM118 - not a mapping
    assert about["format"] == files.FORMAT_VERSION
    assert about["likelihood"] == "BernoulliLikelihood"


def test_saving_replaces_in_one_step(tmp_path, monkeypatch):
    path, x = tmp_path / "model.safetensors", make_inputs(5, seed=3)
    model = make_model("bernoulli-logit")
    model.save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", fail)
        with pytest.raises(InputError, match=r"that can be written\. Got .*No space left on device\)\. Choose another"):
            model.save(path)
    assert path.read_bytes() == before
    model.covar_module.outputscale = 9.0
    model.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]  # no drafts left
    _assert_same_model(make_model("bernoulli-logit").load(path), model, x)


def test_an_impossible_path():
    with pytest.raises(InputError, match=r"`path` must be a file that can be written\. Got '/nonexistent/m' "):
        make_model("bernoulli-logit").save("/nonexistent/m")


def _rewrite(path, **changes):
    """The file with other metadata, its checksum made to match."""
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = json.dumps(json.loads(file.metadata()["itergp"]) | changes)
    metadata = {"itergp": text, "checksum": files._checksum(text, tensors)}
    safetensors.torch.save_file(tensors, path, metadata)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def _break_header(path):
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    path.write_bytes(content[: 8 + size].replace(b'\\"format\\":', b'\\"farmot\\":') + content[8 + size :])


DAMAGE = {
    "missing": (lambda path: path.unlink(), r"must be a saved model\. Got .*, which is not a file\. Check the name"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), r"damaged or of another kind .*Save the"),
    "empty": (lambda path: path.write_bytes(b""), r"damaged or of another kind"),
    "text": (lambda path: path.write_text("a,b\n1,2\n"), r"damaged or of another kind"),
    "pickle": (lambda path: torch.save({"a": torch.ones(1)}, path), r"damaged or of another kind"),
    "one bit": (_flip, r"does not match its checksum: it is damaged\. Save the model again"),
    "header": (_break_header, r"whose header is damaged"),
    "foreign": (
        lambda path: safetensors.torch.save_file({"a": torch.ones(1)}, path),
        r"a safetensors file of another program\. Pass a file written by save\(\)",
    ),
    "newer": (
        lambda path: _rewrite(path, format=99, version="9.0"),
        r"of file format 2 or older, .*of format 99, written by itergp 9\.0\. Upgrade: `pip install --upgrade",
    ),
    "an estimator's": (
        lambda path: _rewrite(path, kind="estimator"),
        r"which an estimator wrote\. Read it with itergp\.sklearn",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_files_that_cannot_be_loaded_say_why(kind, tmp_path):
    path = tmp_path / "model.safetensors"
    make_model("bernoulli-logit").save(path)
    damage, match = DAMAGE[kind]
    damage(path)
    model = make_model("bernoulli-logit")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=match):
        model.load(path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


OTHERS = {
    "kernel": (
        lambda: SimpleGP(*make_binary(20), BernoulliLikelihood(), kernel=ScaleKernel(RBFKernel(ard_num_dims=2))),
        r"Got 'covar_module\.base_kernel\.raw_lengthscale' of shape \(1, 2\) where the file has \(1, 1\)",
    ),
    "mean": (
        lambda: SimpleGP(*make_binary(20), BernoulliLikelihood(), mean=gpytorch.means.ZeroMean()),
        r"Got 'mean_module\.raw_constant' of shape none where the file has \(\)\. Use the same class",
    ),
    "likelihood": (
        lambda: SimpleGP(*make_classes(20), CategoricalLikelihood(3)),
        r"must have the saved one's likelihood, BernoulliLikelihood\. Got CategoricalLikelihood",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_model_built_differently_refuses_the_file(kind, tmp_path):
    make_model("bernoulli-logit").save(tmp_path / "model.safetensors")
    make, match = OTHERS[kind]
    with pytest.raises(InputError, match=match):
        make().load(tmp_path / "model.safetensors")


# ------------------------------------------------------------------- new rows
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.make().log_concave])
def test_appended_rows_give_the_posterior_of_all_rows(name):
    x, y = CASES[name].data(60)
    solver = DenseNewton()
    model = SimpleGP(x[:45], y[:45], CASES[name].make(), solver=solver, kernel=make_kernel()).double().eval()
    model.condition()
    model.append_train_data(x[45:], y[45:])
    whole = SimpleGP(x, y, CASES[name].make(), solver=solver, kernel=make_kernel()).double().eval()
    assert torch.equal(model.train_inputs[0], whole.train_inputs[0])
    assert torch.equal(model.train_targets, whole.train_targets)
    assert_close(model.solution.latent_values, whole.solution.latent_values, "posterior")


def test_appended_rows_with_weights():
    x, y = make_binary(30)
    weight = torch.linspace(0.5, 2.0, 10, dtype=torch.float64)
    model = SimpleGP(x[:20], y[:20], BernoulliLikelihood()).double().eval()
    model.append_train_data(x[20:], y[20:], sample_weight=weight)
    assert torch.equal(model.sample_weight, torch.cat([torch.ones(20, dtype=torch.float64), weight]))
    model.append_train_data(x[:2], y[:2])
    assert model.sample_weight[-2:].tolist() == [1.0, 1.0]


def test_few_new_rows_cost_few_passes():
    x, y = make_classes(620, num_columns=5)
    model = SimpleGP(x[:600], y[:600], CategoricalLikelihood(3), kernel=make_kernel(2.0, 20.0)).double().eval()
    model.condition()
    model.append_train_data(x[600:], y[600:])
    warm = model.condition()
    cold = SimpleGP(x, y, CategoricalLikelihood(3), kernel=make_kernel(2.0, 20.0)).double().eval().condition()
    assert warm.converged
    assert warm.kernel_passes < cold.kernel_passes


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (lambda x, y: (x[:, :1], y), r"must have the 2 column\(s\) of the training inputs\. Got 1"),
        (lambda x, y: (x.float(), y), r"must have the dtype and device of the training inputs"),
        (lambda x, y: (x, y[:3]), r"must have the same number of rows\. Got 10 and 3"),
        (lambda x, y: (x, y + 1), r"must be labels 0 or 1 .*Got values \[2\]"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows, match):
    x, y = make_binary(30)
    model = SimpleGP(x[:20], y[:20], BernoulliLikelihood()).double().eval()
    solution = model.solution
    with pytest.raises(InputError, match=match):
        model.append_train_data(*rows(x[20:], y[20:]))
    assert model.solution is solution
