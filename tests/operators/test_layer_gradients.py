"""Gradients of rows by layers against those of the linearisation, which knows no layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from itergp.errors import InputError
from itergp.operators import linearise
from itergp.operators.layer_gradients import LayerGradients
from itergp.operators.linearisation import Linearisation
from itergp.operators.row_gradients import RowGradients, WeightBlock, WeightLayout

CLASSES, ROWS = 3, 5


class Functional(nn.Module):
    """A layer that is called, and whose weight is used once more without it."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.last(torch.tanh(functional.linear(torch.tanh(self.first(x)), self.first.weight)))


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.last(torch.tanh(self.first(torch.tanh(self.first(x)))))


class Capricious(Twice):
    """A layer that is called once for the rows of a model, and twice for others."""

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return self.last(torch.tanh(self.first(hidden)) if bool((x > 9.0).any()) else hidden)


class Positions(nn.Module):
    """A linear layer at many positions, after one that is changed in place, and a keyword."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 4, bias=False), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.last(input=functional.relu(self.first(x.view(-1, 2, 2)), inplace=True).sum(1))


NETWORKS = {
    "in place": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, CLASSES)), 2),
    "functional": (Functional, 0),
    "twice": (Twice, 1),
    "positions": (Positions, 2),
    "convolution": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1, stride=2), nn.Flatten(), nn.Linear(12, CLASSES)
        ),
        2,
    ),
    "groups": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (2, 2, 1)), nn.Conv2d(2, 4, 1, groups=2), nn.Flatten(), nn.Linear(8, CLASSES)
        ),
        1,
    ),
}


def gradients(make, chosen=None):
    torch.manual_seed(0)
    network, x = make().double(), torch.randn(ROWS, 4).double()
    lin = linearise(network, chosen, x, CLASSES)
    cotangents = torch.randn(ROWS, 2, CLASSES).double()
    scale = torch.cat([torch.full((size,), float(torch.rand(()))) for size in lin.sizes]).double()
    return LayerGradients(lin, x), x, cotangents, scale


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_linearisation(name):
    make, layers = NETWORKS[name]
    ours, x, cotangents, scale = gradients(make)
    expected = ours.linearisation.row_gradients(x, cotangents) * scale
    found = ours.at(x, cotangents, scale)
    torch.testing.assert_close(found.dense(), expected)
    structured = len(found.layout.layers) + (name in ("positions", "convolution"))  # which have one more, at positions
    assert structured == layers


def test_products_are_those_of_dense_gradients():
    ours, x, cotangents, scale = gradients(NETWORKS["convolution"][0])
    found = ours.at(x, cotangents, scale)
    dense, flat = found.dense(), found.flatten()
    rows, weights = dense.flatten(0, 1), torch.randn(dense.shape[-1], 4).double()
    assert found.layout.width < found.layout.num_weights
    torch.testing.assert_close(flat.dense()[:, 0], rows)
    torch.testing.assert_close(found.inner(flat), (rows @ rows.mT).view(ROWS, 2, -1))
    torch.testing.assert_close(found.blocks(), dense @ dense.mT)
    torch.testing.assert_close(found.squares(), dense.square().sum(-1))
    torch.testing.assert_close(found.times(weights), dense @ weights)
    mix = torch.randn(2 * ROWS, 3).double()
    torch.testing.assert_close(flat.mixed(mix), rows.mT @ mix)
    torch.testing.assert_close(found.mixed(mix.view(ROWS, 2, 3)), rows.mT @ mix)
    torch.testing.assert_close(found.times(WeightBlock.of(found.layout, weights)), dense @ weights)
    torch.testing.assert_close(WeightBlock.of(found.layout, weights).weights(), weights)
    torch.testing.assert_close(RowGradients.stacked([found[:2], found[2:]]).dense(), dense)
    columns = torch.zeros_like(rows)
    for where, values in flat.columns():
        columns[:, where] = values
    torch.testing.assert_close(columns, rows)
    assert WeightLayout.from_tensor(found.layout.as_tensor()) == found.layout


@pytest.mark.parametrize("name", NETWORKS)
def test_sparse_mixtures_are_those_of_dense_gradients(name):
    ours, x, cotangents, scale = gradients(NETWORKS[name][0])
    found = ours.at(x, cotangents, scale)
    buckets, signs = torch.randint(6, (*found.shape, 3)), torch.randn(*found.shape, 3).double()
    buckets[0, 0] = 1  # in one of them more than once
    mix = (
        torch.zeros(found.shape[0] * found.shape[1], 6)
        .double()
        .scatter_add_(1, buckets.flatten(0, 1), signs.flatten(0, 1))
    )
    total = torch.ones(6, found.layout.num_weights).double()
    found.collect_into(total, buckets, signs)
    torch.testing.assert_close(total - 1.0, mix.mT @ found.dense().flatten(0, 1))


@pytest.mark.parametrize(("size", "expected"), [(9, 9), (10, 10), (12, 10)])
def test_rows_that_rounding_adds_or_leaves_out_are_not_made_up(size, expected):
    ours, x, cotangents, scale = gradients(NETWORKS["convolution"][0])
    flat = ours.at(x, cotangents, scale).flatten()
    joined = RowGradients.joined([flat[:4], flat[4:]], size, flat.layout, scale)
    torch.testing.assert_close(joined.dense(), flat.dense()[:expected])


@pytest.mark.parametrize("chosen", [["2.weight"], ["2.bias"], ["2"], ["0.weight", "2.bias"]])
def test_some_of_a_layer(chosen):
    ours, x, cotangents, scale = gradients(NETWORKS["in place"][0], chosen)
    expected = ours.linearisation.row_gradients(x, cotangents) * scale
    torch.testing.assert_close(ours.at(x, cotangents, scale).dense(), expected)


def test_frozen_layers_before_chosen_ones():
    torch.manual_seed(0)
    network, x = NETWORKS["in place"][0]().double().requires_grad_(False), torch.randn(ROWS, 4).double()
    lin = linearise(network, ["0", "2"], x, CLASSES)
    cotangents, ones = torch.randn(ROWS, 2, CLASSES).double(), torch.ones(lin.num_weights).double()
    torch.testing.assert_close(LayerGradients(lin, x).at(x, cotangents, ones).dense(), lin.row_gradients(x, cotangents))
    assert not any(p.requires_grad for p in network.parameters())


def test_a_layer_that_is_called_another_time_is_refused():
    ours, x, cotangents, scale = gradients(Capricious)
    with pytest.raises(InputError, match="call its layers alike"):
        ours.at(x + 100.0, cotangents, scale)


def test_rows_at_once_leave_room_for_what_goes_through_a_convolution():
    """Its input at every position is more than its weights are."""
    network = nn.Sequential(
        nn.Unflatten(1, (1, 32, 32)),
        nn.Conv2d(1, 2, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 3),
    )
    x = torch.randn(ROWS, 1024)
    ours = LayerGradients(linearise(network, None, x, CLASSES), x)
    budget = 4 * 100 * 1024 * 9  # bytes of a hundred rows' positions
    assert 1 <= ours.rows_at_once(CLASSES, budget) <= 100 / CLASSES
    assert ours.rows_at_once(CLASSES, 1) == 1


def test_many_outputs_are_tried_by_few_of_their_functions(monkeypatch):
    """All outputs at once would be as many gradients of all weights, which is most of the memory that a model takes."""
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 50))
    probe = torch.randn(2, 3)
    linearisation = Linearisation(network, None, probe, 50)
    shapes = []
    taken = Linearisation.row_gradients

    def recorded(self, rows, cotangents):
        shapes.append(tuple(cotangents.shape))
        return taken(self, rows, cotangents)

    monkeypatch.setattr(Linearisation, "row_gradients", recorded)
    LayerGradients(linearisation, probe)
    assert shapes
    assert all(count <= 8 for _, count, _ in shapes)
