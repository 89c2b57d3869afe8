"""Transforms of inputs: against SciPy, beyond the data, derivatives, and in models that are saved."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
from helpers import assert_close

import itergp
from itergp.errors import InputError
from itergp.likelihoods import BernoulliLikelihood
from itergp.models import GP, QuantileTransform, Standardize


@pytest.fixture
def x() -> torch.Tensor:
    """Skewed, zero-inflated, and constant columns."""
    skewed = torch.randn(300, dtype=torch.float64).exp()
    zeros = torch.where(torch.rand(300) < 0.4, 0.0, torch.rand(300)).double()
    return torch.stack([skewed, zeros, torch.full((300,), 3.0, dtype=torch.float64)], -1)


def test_ranks_are_scipys(x):
    moved = QuantileTransform(x, num_quantiles=1000)(x)
    for column in range(2):
        ranks = scipy.stats.rankdata(x[:, column].numpy())  # ties at the middle of their ranks
        assert_close(moved[:, column], torch.as_tensor(scipy.stats.zscore(ranks)))
    assert bool((moved[:, 2] == 0.0).all())


def test_scores_are_normal(x):
    moved = QuantileTransform(x, "normal", num_quantiles=1000)(x)[:, 0]
    expected = scipy.stats.zscore(scipy.stats.norm.ppf((scipy.stats.rankdata(x[:, 0].numpy()) - 0.5) / 300))
    assert float((moved - torch.as_tensor(expected)).abs().max()) < 0.15  # the last scores end at three deviations
    assert float((moved - torch.as_tensor(expected)).abs().median()) < 0.01


def test_few_quantiles_are_near_many(x):
    exact, few = QuantileTransform(x, num_quantiles=1000)(x), QuantileTransform(x, num_quantiles=64)(x)
    assert float((exact - few)[:, 0].abs().max()) < 0.05


def test_far_away_stays_far(x):
    transform, far = QuantileTransform(x), x[:1].clone()
    far[0, 0] = x[:, 0].max() + 10.0 * x[:, 0].std()
    assert float(transform(far)[0, 0]) > 10.0


def test_other_columns_stay(x):
    moved = QuantileTransform(x, columns=[1])(x)
    assert torch.equal(moved[:, 0], x[:, 0])
    assert not torch.equal(moved[:, 1], x[:, 1])


def test_derivatives_are_those_of_differences(x):
    transform = QuantileTransform(x[:, :1])
    at = torch.linspace(-1.0, 6.0, 9, dtype=torch.float64).unsqueeze(-1).requires_grad_(True)
    (slope,) = torch.autograd.grad(transform(at).sum(), at)
    differences = (transform(at + 1e-7) - transform(at - 1e-7)) / 2e-7
    assert torch.allclose(slope, differences, atol=1e-5)


def test_batches_are_transformed_row_by_row(x):
    transform = QuantileTransform(x)
    assert torch.equal(transform(x.reshape(3, 100, 3)), transform(x).reshape(3, 100, 3))


def test_standardised_columns(x):
    moved = Standardize(x)(x)
    assert float(moved[:, :2].mean(0).abs().max()) < 1e-14
    assert_close(moved[:, :2].std(0, correction=0), torch.ones(2, dtype=torch.float64))
    assert bool((moved[:, 2] == 0.0).all())


@pytest.mark.parametrize("wrong", [{"output_distribution": "gamma"}, {"columns": [3]}, {"num_quantiles": 0}])
def test_wrong_arguments_are_refused(x, wrong):
    with pytest.raises(InputError, match=f"`{next(iter(wrong))}` must be"):
        QuantileTransform(x, **wrong)


def test_a_model_is_a_function_of_transformed_inputs(x, tmp_path):
    y = (x[:, 0] > 1.0).long()
    model = GP(x, y, BernoulliLikelihood(), input_transform=QuantileTransform(x)).eval()
    plain = GP(QuantileTransform(x)(x), y, BernoulliLikelihood()).eval()
    new = x[:20] + 0.1
    assert_close(model.predict(new).probs, plain.predict(QuantileTransform(x)(new)).probs)
    model.save(tmp_path / "model.safetensors")
    other = GP(x[:50], y[:50], BernoulliLikelihood(), input_transform=QuantileTransform(x[:50]))
    other.load(tmp_path / "model.safetensors")
    assert torch.equal(other.eval().predict(new).probs, model.predict(new).probs)
    assert other.solution.kernel_passes == model.solution.kernel_passes  # nothing is found again
    with pytest.raises(InputError, match=r"`input_transform` must be a torch module"):
        GP(x, y, BernoulliLikelihood(), input_transform="ranks")
    assert itergp.models.QuantileTransform is QuantileTransform
