"""Rivals whose calculation is our own, and those that need what cannot be installed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import gpytorch
import numpy as np
import pytest
import torch

pytest.importorskip("pandas")
pytest.importorskip("sklearn")

from benchmarks.methods import Budget, methods
from benchmarks.methods.base import Method
from benchmarks.methods.dirichlet import DirichletGP, _predictions
from benchmarks.methods.foundation import WEIGHTS, InContext
from benchmarks.methods.polya_gamma import PolyaGammaGP
from benchmarks.methods.vnngp import NearestNeighbourGP
from benchmarks.suite.presets import PRESETS, plan
from benchmarks.workloads import COUNTS, END_TO_END, INFERENCE, TrainingData
from benchmarks.workloads.base import GivenKernel
from benchmarks.workloads.synthetic import Mixture


def two_classes(rows: int = 60) -> TrainingData:
    return Mixture("small", GivenKernel(1.0, 3.0), rows=100, classes=2).problem(0, given=True).train.head(rows)


# ---------------------------------------------------------------------------------------------- Polya-Gamma
def dense_polya_gamma(kernel: np.ndarray, y: np.ndarray, rounds: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the latent values at the rows, by coordinate ascent on the whole matrix."""
    precision, sign = np.linalg.inv(kernel), 2.0 * y - 1.0
    mean, covariance = np.zeros(len(y)), kernel
    for _ in range(rounds):
        root = np.sqrt(mean**2 + np.diag(covariance))
        covariance = np.linalg.inv(precision + np.diag(np.tanh(root / 2.0) / (2.0 * root)))
        mean = covariance @ (0.5 * sign)
    return mean, covariance


def test_with_an_inducing_input_at_every_row_it_is_the_dense_optimum():
    data = two_classes()
    model = PolyaGammaGP(data, data.x)
    every = torch.arange(len(data.y))
    for _ in range(200):
        model.natural_step(every, 1.0)
    with torch.no_grad():
        kernel = model.kernel(data.x.double()).to_dense().numpy()
        mean, variance = model.latent(data.x.double())
    expected, covariance = dense_polya_gamma(kernel + 1e-6 * np.eye(len(kernel)), data.y.numpy())
    np.testing.assert_allclose(mean, expected, atol=2e-3)
    np.testing.assert_allclose(variance, np.diag(covariance), atol=2e-3)


@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_natural_steps_raise_the_bound_until_it_stays(rate):
    """With few inducing inputs and a prior mean; the bound includes the divergence of the whitened variables."""
    data = two_classes()
    model = PolyaGammaGP(data, data.x[:10])
    model.mean = gpytorch.means.ConstantMean().double()
    model.mean.constant.data.fill_(0.7)
    every = torch.arange(len(data.y))

    def bound() -> float:
        with torch.no_grad():
            centre, factor = model.variational()
            trace = torch.cholesky_inverse(factor).trace()
            log_determinant = 2.0 * factor.diagonal().log().sum()
            divergence = 0.5 * (trace + centre @ centre - len(centre) + log_determinant)
            return float(len(every) * model.bound(every) - divergence)

    values = [bound()]
    for _ in range(150):
        model.natural_step(every, rate)
        values.append(bound())
    assert min(np.diff(values)) > -1e-9
    assert values[1] > values[0] + 0.1
    assert values[-1] - values[-2] < 1e-5


def test_a_batch_counts_for_all_rows():
    """Means over batches are the step of all rows."""
    data = two_classes()
    whole, parts = PolyaGammaGP(data, data.x[:10]), []
    for rows in torch.arange(len(data.y)).split(len(data.y) // 4):
        part = PolyaGammaGP(data, data.x[:10])
        part.natural_step(rows, 0.5)
        parts.append(part)
    whole.natural_step(torch.arange(len(data.y)), 0.5)
    shares = torch.tensor([len(r) for r in torch.arange(len(data.y)).split(len(data.y) // 4)]).double()
    shares /= shares.sum()
    torch.testing.assert_close(sum(s * p.shift for s, p in zip(shares, parts, strict=True)), whole.shift)
    torch.testing.assert_close(sum(s * p.precision for s, p in zip(shares, parts, strict=True)), whole.precision)


def test_more_than_two_classes_are_refused():
    method = methods()["Polya-Gamma SVGP 100"]
    assert method.refuses(INFERENCE, "classes", 100, 2) is None
    assert method.refuses(INFERENCE, "classes", 100, 3) == "predicts two classes only"
    assert "does not predict" in method.refuses(END_TO_END, COUNTS, 100, 2)


# ------------------------------------------------------------------------------------------ GPyTorch's
def test_probabilities_of_the_dirichlet_model_are_means_of_the_softmax():
    from gpytorch.likelihoods import DirichletClassificationLikelihood

    data = Mixture("small", GivenKernel(1.0, 3.0), rows=100, classes=3).problem(0, given=False).train
    model = DirichletGP(data.x, DirichletClassificationLikelihood(data.y, learn_additional_noise=True)).eval()
    probs, variance = _predictions(model, 0)
    new = data.x[:7]
    with torch.no_grad():
        latent = model(new)
        samples = latent.mean + latent.variance.sqrt() * torch.randn(20_000, 3, 7)
    found = probs(new)
    torch.testing.assert_close(found.sum(-1), torch.ones(7).double())
    assert float((found - samples.double().softmax(-2).mean(0).mT).abs().max()) < 0.05  # of 512 samples
    assert variance(new).shape == (7,)


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [("GPBoost Vecchia", 90, None), ("GPBoost FITC", 90, 90), ("GPBoost VIF", 90, 45), ("GPBoost VIF", 9_000, 200)],
)
def test_inducing_inputs_are_fewer_than_rows_where_they_must_be(name, rows, expected):
    assert methods()[name].num_inducing(rows) == expected


@pytest.mark.filterwarnings("ignore::ImportWarning")
def test_nearest_neighbours_are_half_of_the_rows_at_most():
    data = two_classes(30)
    model = NearestNeighbourGP(data, data.x, 1, 256, 64)
    assert model.nearest.k == len(data.y) // 2
    assert not any(p.requires_grad for p in model.covar_module.parameters())  # the kernel is given


# ------------------------------------------------------------------------------------ weights of networks
@pytest.mark.parametrize("name", ["TabPFN", "TabICL"])
def test_without_weights_a_network_is_skipped_with_the_reason(name, monkeypatch, tmp_path):
    method = methods()[name]
    monkeypatch.delenv(WEIGHTS, raising=False)
    assert WEIGHTS in method.missing[-1]
    preset = replace(PRESETS["smoke"], workloads=("breast cancer",), methods=(name,), rulesets=(END_TO_END,))
    runs, (refusal,) = plan(preset, 1)
    assert not runs
    assert refusal.reason.startswith("not installed")
    assert WEIGHTS in refusal.reason

    monkeypatch.setenv(WEIGHTS, str(tmp_path))
    assert WEIGHTS in method.missing[-1]
    for version in ("v2", "v3"):
        (tmp_path / f"{name.lower()}-{version}-classifier.ckpt").write_bytes(b"")
        (tmp_path / f"{name.lower()}-{version}-regressor.ckpt").write_bytes(b"")
    assert method.weights.name == f"{name.lower()}-v3-classifier.ckpt"
    assert not any(WEIGHTS in text for text in method.missing)


def test_a_network_is_told_the_training_rows_and_asked_for_probabilities():
    @dataclass(frozen=True)
    class Echo(InContext):
        setup = "as it is"

        def make(self, budget):
            return self

        def predict_proba(self, x):
            return np.tile(np.bincount(seen[-1][1]) / len(seen[-1][1]), (len(x), 1))

        def fit(self, *values):
            if isinstance(values[0], np.ndarray):
                seen.append(values)
                return self
            return super().fit(*values)

    seen, found, data = [], [], two_classes()
    Echo("echo", "echo").fit(data, Budget(1.0, 0, 1), lambda predict, *_, **__: found.append(predict(data.x[:3])))
    assert np.array_equal(seen[0][0], data.x.numpy())
    assert found[0].shape == (3, 2)
    assert float(found[0][0, 1]) == pytest.approx(float(data.y.double().mean()))


def test_every_setting_says_where_it_comes_from():
    known = methods().values()
    assert all(isinstance(method, Method) and len(method.setup) > 20 for method in known)
    families = {method.family for method in known}
    assert families >= {"EBM", "random forest", "xRFM", "Dirichlet GP", "Polya-Gamma SVGP", "VNNGP", "TabPFN", "TabICL"}
    mains = {method.family for method in known if method.importance == 1}
    assert mains == families
