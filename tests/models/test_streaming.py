"""Predictions in batches, and data that stay where they are: memory maps, data frames, Arrow."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CASES, SimpleGP, assert_close, make_binary, make_classes, make_inputs, make_kernel, make_model

import itergp
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood
from itergp.models import streaming

pd = pytest.importorskip("pandas")


# ------------------------------------------------------------------------------- batches
@pytest.mark.parametrize("size", [1, 7, 25, 100])
@pytest.mark.parametrize("name", ["bernoulli-logit", "categorical", "poisson", "heteroscedastic", "ordinal-logit"])
def test_batches_together_are_the_prediction(name, size):
    model, x = make_model(name), make_inputs(25, seed=3)
    whole = model.predict(x)
    found = list(model.predict_batches(x, size))
    assert [rows for rows, _ in found] == [slice(i, min(25, i + size)) for i in range(0, 25, size)]
    for moment in ("probs",) if name == "categorical" else ("mean", "variance"):
        assert_close(torch.cat([getattr(part, moment) for _, part in found]), getattr(whole, moment), "posterior")


@pytest.mark.parametrize("tempering", [0.0, 2.5, math.inf])
@pytest.mark.parametrize("name", sorted(CASES))
def test_small_batches_change_nothing(name, tempering, monkeypatch):
    model, x = make_model(name), make_inputs(12, seed=3)
    whole, mean = model.predict(x, tempering=tempering), model.latent_mean(x)
    monkeypatch.setattr(streaming, "_MOST_ROWS", 5)
    parts = model.predict(x, tempering=tempering)
    assert type(parts) is type(whole)
    assert parts.batch_shape == whole.batch_shape
    assert_close(model.latent_mean(x), mean)
    if name != "categorical":
        assert_close(parts.mean, whole.mean, "posterior")
    if hasattr(whole, "standard_error"):
        assert_close(parts.probs, whole.probs, "posterior")
        assert_close(parts.standard_error, whole.standard_error, "posterior")


def test_what_is_known_of_rows_goes_with_them():
    model, x = make_model("poisson-exposure"), make_inputs(10, seed=3)
    exposure = torch.linspace(0.5, 3.0, 10, dtype=torch.float64)
    whole = model.predict(x, exposure=exposure).mean
    found = torch.cat([part.mean for _, part in model.predict_batches(x, 3, exposure=exposure)])
    assert_close(found, whole)
    doubled = torch.cat([part.mean for _, part in model.predict_batches(x, 3, exposure=2.0)])
    assert_close(doubled, model.predict(x, exposure=2.0).mean)


def test_mistakes_are_found_before_the_first_batch():
    model, x = make_model("poisson"), make_inputs(10)
    with pytest.raises(itergp.InputError, match=r"`batch_size` must be a positive whole number"):
        model.predict_batches(x, 0)
    with pytest.raises(itergp.InputError, match=r"must have the 2 column"):
        model.predict_batches(x[:, :1])
    with pytest.raises(itergp.InputError, match=r"Keywords of `predict` must be those of the likelihood"):
        model.predict_batches(x, trials=3)
    with pytest.raises(itergp.InputError, match=r"`tempering` must be a number, 0 or more"):
        model.predict_batches(x, tempering=-2.0)


def test_progress_counts_rows(capfd):
    model, x = make_model("categorical"), make_inputs(20)
    model.predict(x, progress=True)
    model.latent_mean(x, progress=True)
    list(model.predict_batches(x, 6, progress=True))
    assert capfd.readouterr().err.count("20/20") >= 3


def test_predictions_in_batches_keep_their_derivatives(monkeypatch):
    monkeypatch.setattr(streaming, "_MOST_ROWS", 4)
    model, x = make_model("categorical"), make_inputs(6, seed=3).requires_grad_(True)
    (slope,) = torch.autograd.grad(model.latent_mean(x)[:, 0].sum(), x)
    assert bool((slope.abs().sum(-1) > 0.0).all())
    (slope,) = torch.autograd.grad(model.predict(x).probs[:, 0].sum(), x)
    assert bool((slope.abs().sum(-1) > 0.0).all())


MEMORY = """
import json, resource, sys
import numpy as np, torch
sys.path.insert(0, {tests!r})
from helpers import make_model

model = make_model("bernoulli-logit", 60, torch.float32, memory_budget=2**24)
model.condition()
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
for rows, part in model.predict_batches(np.zeros((5000, 2), dtype=np.float32)):
    pass
before = peak()
x = np.lib.format.open_memmap({path!r}, mode="r")
assert len(x) == 30_000
total = 0
for rows, part in model.predict_batches(x):
    total += len(part.probs)
print(json.dumps([total, peak() - before]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="units of the memory peak")
def test_memory_does_not_grow_with_the_rows(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).normal(scale=3.0, size=(30_000, 2)))
    folder = Path(__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder.parent)}
    script = MEMORY.format(tests=str(folder), path=str(path))
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert ended.returncode == 0, ended.stderr
    total, grown = json.loads(ended.stdout.splitlines()[-1])
    assert total == 30_000
    assert grown < 30.0  # MiB; latent covariances and points of all rows would be hundreds


# ------------------------------------------------------------------------------- arrays
def _memmap(folder, values):
    path = folder / f"{len(list(folder.iterdir()))}.npy"
    np.save(path, values)
    return np.load(path, mmap_mode="r")


def _frame(values, copy=False):
    return pd.DataFrame(values, columns=[f"c{i}" for i in range(values.shape[1])], copy=copy)


def test_memory_is_shared(tmp_path):
    values = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    mapped = _memmap(tmp_path, values)
    for given, memory in (
        (values, values),
        (values[::2, 1:], values),
        (np.asfortranarray(values), None),
        (mapped, mapped),
        (_frame(values), values),
        (_frame(values)["c1"], values),
        (pd.Series(values[:, 0]), values),
    ):
        tensor = itergp.as_tensor(given)
        assert tensor.dtype == torch.float32
        np.testing.assert_array_equal(tensor.numpy(), np.asarray(given))
        assert memory is None or np.shares_memory(tensor.numpy(), memory), type(given)
    tensor = torch.zeros(3)
    assert itergp.as_tensor(tensor) is tensor


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6.0).reshape(3, 2)[::-1],
        np.arange(6.0).reshape(3, 2).astype(">f8"),
        pd.DataFrame({"a": [1.0, 2.0], "b": [3, 4]}),
        pd.DataFrame({"a": pd.array([1.0, 2.0], dtype="Float64")}),
    ],
    ids=["backwards", "other byte order", "two kinds of columns", "extension columns"],
)
def test_what_cannot_be_shared_is_copied(values):
    assert_close(
        itergp.as_tensor(values), torch.tensor(np.asarray(values, dtype=np.float64).tolist(), dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0]], r"must be a torch tensor, a NumPy array, a pandas data frame or Arrow data\. Got list"),
        (np.array(["a"]), r"must be numbers\. Got ndarray of <U1\. Encode text"),
        (pd.DataFrame({"a": ["x"], "b": [1.0]}), r"must be numbers\. Got DataFrame of object"),
        (np.array([np.datetime64("2020-01-01")]), r"must be numbers\. Got ndarray of datetime64"),
    ],
)
def test_what_is_not_numbers_is_refused(values, message):
    with pytest.raises(itergp.InputError, match=message):
        itergp.as_tensor(values)


def test_arrow(tmp_path):
    pa = pytest.importorskip("pyarrow")
    values = np.random.default_rng(0).normal(size=20)
    column = pa.array(values)
    assert np.shares_memory(itergp.as_tensor(column).numpy(), column.to_numpy())
    chunked = pa.chunked_array([column])
    assert np.shares_memory(itergp.as_tensor(chunked).numpy(), column.to_numpy())
    single = pa.table({"a": column})
    assert np.shares_memory(itergp.as_tensor(single).numpy(), column.to_numpy())
    table = pa.table({"a": column, "b": pa.chunked_array([values[:5], values[5:]])})
    assert_close(itergp.as_tensor(table), torch.from_numpy(np.stack([values, values], -1)))
    assert_close(itergp.as_tensor(table.to_batches()[0]), torch.from_numpy(np.stack([values[:5], values[:5]], -1)))
    gaps = itergp.as_tensor(pa.array([1.0, None]))
    assert bool(gaps.isnan()[1])


FORMS = {
    "array": lambda values, folder: values,
    "memory map": lambda values, folder: _memmap(folder, values),
    "frame": lambda values, folder: _frame(values),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_models_take_arrays_and_do_not_copy_them(form, tmp_path):
    x, y = make_classes(50, dtype=torch.float32)
    given = form(x.numpy(), tmp_path)
    expected = SimpleGP(x, y, CategoricalLikelihood(3), kernel=make_kernel()).eval()
    model = SimpleGP(given, y.numpy(), CategoricalLikelihood(3), kernel=make_kernel()).eval()
    assert np.shares_memory(model.train_inputs[0].numpy(), np.asarray(given))
    test = make_inputs(8, dtype=torch.float32, seed=3)
    assert_close(model.predict(form(test.numpy(), tmp_path)).probs, expected.predict(test).probs)
    # Of another dtype, in batches.
    assert_close(model.latent_mean(form(test.double().numpy(), tmp_path)), expected.latent_mean(test))
    assert model(form(test.numpy(), tmp_path)).mean.shape == (8, 3)
    np.testing.assert_array_equal(np.asarray(given), x.numpy())


def test_new_rows_and_weights_may_be_arrays():
    x, y = make_binary(40)
    weight = np.linspace(0.5, 2.0, 40)
    model = SimpleGP(x.numpy(), y.numpy(), BernoulliLikelihood(), kernel=make_kernel(), sample_weight=weight).double()
    assert_close(model.sample_weight, torch.from_numpy(weight))
    model.set_train_data(x.numpy() + 1.0, y.numpy())
    model.append_train_data(x[:3].numpy(), y[:3].numpy())
    assert model.train_inputs[0].shape == (43, 2)
    assert torch.isfinite(model.eval().predict(x.numpy()).probs).all()


def test_gaps_are_found_in_any_block(monkeypatch):
    monkeypatch.setattr("itergp.models.validation._BLOCK_NUMBERS", 8)
    x, y = make_binary(10)
    x[9, 1] = float("nan")
    x[2, 0] = float("inf")
    with pytest.raises(itergp.InputError, match=r"NaN or infinite values in 2 of 10 row\(s\)"):
        SimpleGP(x, y, BernoulliLikelihood())


# ----------------------------------------------------------------------------- estimators
def test_estimators_predict_in_batches(monkeypatch):
    estimators = pytest.importorskip("itergp.sklearn")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2))
    rows = rng.normal(size=(11, 2))
    classifier = estimators.GPClassifier(optimizer=None).fit(X, (X[:, 0] > 0).astype(int) + (X[:, 1] > 0))
    counter = estimators.GPCountRegressor(optimizer=None).fit(X, rng.poisson(np.exp(X[:, 0])))
    expected = (
        classifier.predict_proba(rows),
        *counter.predict(rows, return_std=True),
        counter.predict_quantiles(rows),
    )
    monkeypatch.setattr(streaming, "_MOST_ROWS", 4)
    found = (classifier.predict_proba(rows), *counter.predict(rows, return_std=True), counter.predict_quantiles(rows))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
