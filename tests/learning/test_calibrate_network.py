"""How much of a network's posterior its predictions integrate, chosen on held-out rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from itergp.errors import InputError
from itergp.learning import calibrate_network
from itergp.likelihoods import CategoricalLikelihood, GaussianLikelihood
from itergp.models import NetworkGP


def trained(rows: int):
    """A perceptron of many weights at its MAP, whose untempered posterior is far too careful."""
    x = torch.randn(rows + 400, 4)
    y = (x[:, 0] + x[:, 1] > 0).long() + (x[:, 2] > 0.7).long()
    network = nn.Sequential(nn.Linear(4, 60), nn.Tanh(), nn.Linear(60, 3))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        decay = sum(p.square().sum() for p in network.parameters())
        (nn.functional.cross_entropy(network(x[:rows]), y[:rows]) + 0.5 / rows * decay).backward()
        optimiser.step()
    return network, x[:rows], y[:rows], x[rows:], y[rows:]


def test_the_choice_is_no_worse_than_its_neighbours_and_is_kept():
    network, x, y, new, held_out = trained(300)
    model = NetworkGP(network, x, y, CategoricalLikelihood(3), prior_precision=0.3)
    found = calibrate_network(model, new[:200], held_out[:200])
    assert found.num_held_out == 200
    assert model.tempering == found.tempering
    assert 0.0 < found.tempering < math.inf
    # The densities are those of predictions, and the choice is within a standard error, or one per cent, of the best.
    losses = {p: float(model.predict(new[:200], tempering=p).log_prob(held_out[:200]).mean()) for p in (0.0, 1.0, 4.0)}
    for exponent, value in losses.items():
        assert found.log_densities["laplace", exponent] == pytest.approx(value, rel=1e-2)
    best = max(value for (_, exponent), value in found.log_densities.items() if exponent < math.inf)
    chosen = found.log_densities["laplace", found.tempering]
    assert best - chosen <= 0.01 * abs(best) + 1e-9
    # On other rows it gains what the posterior as it is loses.
    others = [float(model.predict(new[200:], tempering=p).log_prob(held_out[200:]).mean()) for p in (None, 0.0)]
    assert others[0] > others[1] + 0.02
    assert found.expected_calibration_error is not None


def test_regression_and_rows_that_do_not_fit():
    x = torch.randn(60, 2)
    network = nn.Linear(2, 1)
    model = NetworkGP(network, x, x[:, 0], GaussianLikelihood())
    found = calibrate_network(model, x + 0.1, x[:, 0] + 0.1)
    assert found.reliability is None
    with pytest.raises(InputError, match="one target for each"):
        calibrate_network(model, x, x[1:, 0])
