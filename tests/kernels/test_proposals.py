"""Which pairs of inputs interact: those that were made to, and nothing else."""

from __future__ import annotations

import pytest
import torch

from itergp.errors import InputError
from itergp.kernels import AdditiveLaplacianKernel, propose_pairs
from itergp.likelihoods import BernoulliLikelihood
from itergp.models import GP
from itergp.solvers import SubspaceNewton


def _inputs(rows: int) -> torch.Tensor:
    """Five columns, the last one of few values, the first two correlated."""
    x = torch.randn(rows, 5, generator=torch.Generator().manual_seed(0))
    x[:, 1] += x[:, 0]
    x[:, 4] = (x[:, 4]).round()
    return x


def test_pairs_that_interact_come_first():
    """Effects of single inputs, however large, and of correlated ones, count for nothing."""
    x = _inputs(3_000)
    noise = torch.randn(3_000, generator=torch.Generator().manual_seed(1))
    f = (
        3.0 * x[:, 0].sign()
        - 2.0 * x[:, 1].abs()
        + 2.0 * (x[:, 2] * x[:, 4]).sign()
        + (x[:, 3] * x[:, 0]).sign()
        + noise
    )
    assert propose_pairs(x, f - f.mean(), 2) == [(2, 4), (0, 3)]
    assert propose_pairs(x, torch.stack([noise, f], -1), 1) == [(2, 4)]
    assert len(propose_pairs(x, f, 100)) == 10


def test_the_mode_of_an_additive_model_says_which():
    x = _inputs(600)
    y = (x[:, 0] + 2.0 * (x[:, 1] * x[:, 3]).sign() > 0).long()
    options = {"solver": SubspaceNewton(covariance_rank=0), "approximation": "laplace"}
    model = GP(x, y, BernoulliLikelihood(), kernel=AdditiveLaplacianKernel(5), **options).eval()
    assert propose_pairs(x, model.condition().representer_weights, 1) == [(1, 3)]


def test_many_levels_are_no_interaction():
    """Cells that explain noise alone have no gain, however many there are."""
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    x[:, 2:] = (x[:, 2:] > 0).float()
    noise = torch.randn(400, generator=torch.Generator().manual_seed(1))
    assert propose_pairs(x, noise + 0.3 * (2.0 * x[:, 2] - 1.0) * (2.0 * x[:, 3] - 1.0), 1) == [(2, 3)]


def test_a_constant_column_interacts_with_nothing():
    x = _inputs(500)
    x[:, 2] = 1.0
    assert propose_pairs(x, (x[:, 0] * x[:, 3]).sign(), 1) == [(0, 3)]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"inputs": torch.zeros(4, 1)}, "`inputs` must be"),
        ({"gradient": torch.zeros(3)}, "`inputs` must be"),
        ({"num_pairs": 0}, "Pairs must be 1 or more"),
        ({"gradient": torch.full((4,), torch.nan)}, "must be finite"),
    ],
)
def test_what_does_not_fit_is_refused(change, match):
    with pytest.raises(InputError, match=match):
        propose_pairs(**({"inputs": torch.zeros(4, 2), "gradient": torch.zeros(4), "num_pairs": 1} | change))
