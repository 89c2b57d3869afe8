"""This package in TabArena's model interface: the real one where it is installed, otherwise what of it is used."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
import sys
import types

import numpy as np
import pytest
import torch

pd = pytest.importorskip("pandas")
pytest.importorskip("sklearn")

from benchmarks import tabarena  # noqa: E402
from itergp.errors import InputError  # noqa: E402
from itergp.sklearn import GPClassifier, GPRegressor  # noqa: E402

REAL = importlib.util.find_spec("tabarena") is not None


class Interface:
    """What of AutoGluon's ``AbstractModel`` is used; its ways with probabilities of two classes included."""

    def __init__(self, problem_type, hyperparameters=None, num_classes=None):
        self.problem_type, self.num_classes, self.model = problem_type, num_classes, None
        self._params = hyperparameters or {}

    def _get_model_params(self):
        return dict(self._params)

    def preprocess(self, X, is_train=False, **kwargs):
        return X

    def _convert_proba_to_unified_form(self, probs):
        return probs[:, 1] if self.problem_type == "binary" and probs.ndim == 2 else probs


@pytest.fixture
def adapter(monkeypatch):
    """The module, as it is where AutoGluon is installed."""
    for name in ("autogluon", "autogluon.core", "autogluon.core.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["autogluon.core.models"].AbstractModel = Interface
    spec = importlib.util.spec_from_file_location("tabarena_adapter", tabarena.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def table(rows: int = 60) -> pd.DataFrame:
    rng = np.random.RandomState(0)
    frame = pd.DataFrame({"number": rng.randn(rows), "level": pd.Categorical(rng.choice(list("xyz"), rows))})
    frame["gaps"] = np.where(rng.rand(rows) < 0.1, np.nan, rng.randn(rows))
    return frame.set_index(pd.Index(range(100, 100 + rows)))


QUICK = {"kernel": "matern32", "max_iterations": 3, "random_state": 0}


@pytest.mark.filterwarnings("ignore")
def test_probabilities_are_in_the_columns_of_the_classes(adapter):
    """A fold without one of the classes has a probability of zero for it; two classes are one column."""
    frame = table()
    codes = np.where(frame["number"] > 0.0, 2, 0)
    model = adapter.GaussianProcessModel("multiclass", QUICK, num_classes=4)
    model._fit(frame, pd.Series(codes, index=frame.index))
    probs = model._predict_proba(frame)
    assert probs.shape == (60, 4)
    assert not probs[:, [1, 3]].any()
    assert (probs.argmax(1) == codes).mean() > 0.9
    pair = adapter.GaussianProcessModel("binary", QUICK, num_classes=2)
    pair._fit(frame, pd.Series(codes // 2, index=frame.index))
    assert pair._predict_proba(frame).shape == (60,)
    assert ((pair._predict_proba(frame) > 0.5) == (codes == 2)).mean() > 0.9
    assert np.array_equal(pickle.loads(pickle.dumps(pair))._predict_proba(frame), pair._predict_proba(frame))


@pytest.mark.filterwarnings("ignore")
def test_a_regression_gives_means(adapter):
    frame = table()
    model = adapter.GaussianProcessModel("regression", QUICK)
    model._fit(frame, 3.0 * frame["number"])
    assert np.corrcoef(model._predict_proba(frame), frame["number"])[0, 1] > 0.95
    assert isinstance(model.model, GPRegressor)


@pytest.mark.parametrize(
    ("given", "limit", "expected"),
    [
        ({}, 10.0, {"time_limit": 9.0}),
        ({"fit_options": {"learning_rate": 0.1}}, 10.0, {"time_limit": 9.0, "learning_rate": 0.1}),
        ({"fit_options": {"time_limit": 2.0}}, 10.0, {"time_limit": 2.0}),
        ({}, None, None),
    ],
)
def test_budget_and_weights_reach_the_estimator(adapter, monkeypatch, given, limit, expected):
    seen = {}

    def fit(self, X, y, sample_weight=None):
        seen.update(options=self.fit_options, weights=sample_weight, threads=torch.get_num_threads())
        return self

    monkeypatch.setattr(GPClassifier, "fit", fit)
    before, frame = torch.get_num_threads(), table()
    model = adapter.GaussianProcessModel("binary", given, num_classes=2)
    options = {"time_limit": limit, "num_cpus": before + 1, "sample_weight": pd.Series(2.0, index=frame.index)}
    model._fit(frame, pd.Series(0, index=frame.index), X_val=frame, y_val=None, **options)
    assert seen["options"] == expected
    assert np.array_equal(seen["weights"], np.full(60, 2.0))
    assert seen["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_the_memory_of_a_fit_grows_with_the_table(adapter):
    few, many = (adapter.GaussianProcessModel._estimate_memory_usage_static(X=table(n)) for n in (10, 1000))
    assert 1e9 < few < many


def test_configurations_are_arguments_of_the_estimators():
    found = tabarena.random_configurations(20)
    assert found[:5] == tabarena.random_configurations(5)
    assert len({repr(one) for one in found}) == 20
    for one in found:
        assert set(one) <= set(GPClassifier().get_params()) & set(GPRegressor().get_params())
        assert 0.05 <= one["fit_options"]["learning_rate"] <= 0.51


@pytest.mark.parametrize(
    ("values", "kind"),
    [(["a", "b"] * 20, "binary"), ([0, 1, 2] * 10, "multiclass"), (np.arange(40) / 7, "regression")],
)
def test_the_task_is_that_of_the_target(values, kind):
    frame = pd.DataFrame({"x": range(len(values)), "target": values})
    assert tabarena.problem_type(frame["target"]) == kind
    parts = tabarena.folds_of(frame, 2, 0)
    assert sorted(np.concatenate([test for _, test in parts])) == list(range(len(values)))
    if kind != "regression":
        counts = [np.unique(frame["target"].iloc[test], return_counts=True)[1] for _, test in parts]
        assert np.array_equal(*counts)


@pytest.mark.skipif(REAL, reason="TabArena is installed")
def test_without_tabarena_the_message_says_what_to_install(tmp_path, capsys):
    with pytest.raises(InputError, match=r"Got no autogluon\.core\. Run `pip install tabarena`"):
        tabarena.GaussianProcessModel(problem_type="binary")
    with pytest.raises(InputError, match=r"Got no tabarena\. Run `pip install tabarena`"):
        tabarena.configurations()
    assert tabarena.main([str(tmp_path / "none.csv")]) == 2
    assert "pip install tabarena" in capsys.readouterr().err


@pytest.mark.skipif(not REAL, reason="needs TabArena")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_a_file_is_run_by_the_harness_of_the_board(kind, tmp_path):
    frame = table(120)
    values = {
        "binary": np.where(frame["number"] > 0, "yes", "no"),
        "multiclass": np.digitize(frame["number"], [-0.5, 0.5]),
        "regression": frame["number"] * 2.0,
    }
    path = tmp_path / "mine.csv"
    frame.assign(target=values[kind]).to_csv(path, index=False)
    beside = tmp_path / "mine.csv.sha256"
    beside.write_text(hashlib.sha256(path.read_bytes()).hexdigest() + "  mine.csv\n")
    found = tabarena.run(path, 2, 0, 20.0, 1)
    assert len(found) == 2
    assert max(fold["error"] for fold in found) < {"binary": 0.05, "multiclass": 0.5, "regression": 0.5}[kind]
    assert min(fold["fit_seconds"] for fold in found) > 0.0
