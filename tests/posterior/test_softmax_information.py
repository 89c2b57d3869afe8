"""``SoftmaxInformation`` against the dense matrix of all weights."""

from __future__ import annotations

import pytest
import torch

from itergp.operators.row_gradients import LayerWeights
from itergp.posterior.softmax_information import SoftmaxInformation

ROWS, CLASSES, WIDTH = 7, 5, 4
LAYERS = {
    "weight and bias": LayerWeights(CLASSES, WIDTH - 1, 0, CLASSES * (WIDTH - 1)),
    "bias first": LayerWeights(CLASSES, WIDTH - 1, CLASSES, 0),
    "weight": LayerWeights(CLASSES, WIDTH, 0, -1),
}


def rows(sharpness: float = 2.0, size: float = 1.0):
    """Features, probabilities and weights, one of which is 0."""
    features = size * torch.randn(ROWS, WIDTH).double()
    weights = torch.rand(ROWS).double()
    weights[2] = 0.0
    return features, (sharpness * torch.randn(ROWS, CLASSES).double()).softmax(-1), weights


def gradients(layer, features):
    """J ``(n, C, P)``."""
    columns = torch.einsum("cd,ni->ncdi", torch.eye(CLASSES).double(), features)
    found = torch.zeros(len(features), CLASSES, CLASSES * WIDTH).double()
    layer.put(columns, found)
    return found


def dense(layer, features, probs, weights):
    """H, row by row."""
    blocks = torch.diag_embed(probs) - probs.unsqueeze(-1) * probs.unsqueeze(-2)
    J = gradients(layer, features)
    return torch.einsum("n,ncp,ncd,ndq->pq", weights, J, blocks, J)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("most", "tile"), [(2**22, 512), (1, 3)])
def test_it_is_the_dense_inverse(name, most, tile, monkeypatch):
    monkeypatch.setattr("itergp.posterior.softmax_information._NUMBERS", most)
    monkeypatch.setattr("itergp.posterior.softmax_information._TILE", tile)
    layer, data = LAYERS[name], rows()
    information = SoftmaxInformation.of(layer, *data)
    precision = torch.eye(CLASSES * WIDTH).double() + dense(layer, *data)
    inverse = torch.linalg.inv(precision)
    new = torch.randn(3, WIDTH).double()
    J = gradients(layer, new)
    expected = (J.flatten(0, 1) @ inverse @ J.flatten(0, 1).mT).view(3, CLASSES, 3, CLASSES)
    by_row = expected.diagonal(dim1=0, dim2=2).movedim(-1, 0)
    torch.testing.assert_close(information.function_covariance(new), expected)
    torch.testing.assert_close(information.row_covariance(new), by_row)
    torch.testing.assert_close(information.covariance(J), by_row)
    torch.testing.assert_close(information.function_variances(new), by_row.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(information.variances(), inverse.diagonal())
    assert information.log_determinant() == pytest.approx(float(torch.logdet(precision)), abs=1e-10)
    root = information.sample(torch.eye(CLASSES * WIDTH + information.num_noise).double())
    torch.testing.assert_close(root @ root.mT, inverse)
    weights = torch.randn(2, CLASSES * WIDTH).double()
    torch.testing.assert_close(information.quadratic(weights), ((weights @ precision) * weights).sum(-1))
    assert float(information.traces().sum()) == pytest.approx(float(dense(layer, *data).trace()))


def test_another_precision_and_a_file():
    layer, data = LAYERS["weight and bias"], rows()
    information = SoftmaxInformation.of(layer, *data)
    ratios = torch.tensor([0.5, 0.5, 0.5, 3.0]).double()
    expected = SoftmaxInformation.of(layer, data[0] * ratios.sqrt(), *data[1:])
    assert information.rescaled(ratios).log_determinant() == pytest.approx(expected.log_determinant())
    again = SoftmaxInformation.from_tensors(information.tensors())
    assert again.layer == layer
    torch.testing.assert_close(again.variances(), information.variances())
    assert again.to(torch.zeros(1)).features.dtype == torch.float64


@pytest.mark.parametrize("sharpness", [0.0, 5.0, 100.0, 1e4])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_rows_that_are_certain_or_say_much(sharpness, size):
    """A function that is common to all classes is the prior's, whatever the rows say of their differences."""
    layer, data = LAYERS["weight"], rows(sharpness, size)
    information = SoftmaxInformation.of(layer, *data)
    covariance = information.row_covariance(data[0])
    assert float(torch.linalg.eigvalsh(covariance).min()) >= -1e-9 * size**2
    common = covariance.mean((-1, -2))
    torch.testing.assert_close(common, data[0].square().sum(-1) / CLASSES, rtol=1e-6, atol=0.0)


def test_what_float64_does_not_resolve_is_left_alone():
    features, probs, weights = rows(0.0, 1e9)
    assert SoftmaxInformation.of(LAYERS["weight"], features, probs, weights) is None
