"""Leading eigenspaces against dense ones, and what they share with choices of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from itergp.diagnostics import Eigenspace
from itergp.errors import InputError
from itergp.likelihoods import CategoricalLikelihood
from itergp.models import NetworkGP
from itergp.numerics import leading_eigenspace

ROWS, CLASSES = 50, 3


def network():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()


def curvature(net, x):
    """``J^T W J``, dense."""
    values = {name: value.detach() for name, value in net.named_parameters()}
    blocks = jacrev(lambda v: functional_call(net, v, (x,)))(values)
    J = torch.cat([block.flatten(2) for block in blocks.values()], -1)
    p = net(x).detach().softmax(-1)
    W = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    return torch.einsum("ncp,ncd,ndq->pq", J, W, J)


@pytest.mark.parametrize("posterior", [False, True])
@pytest.mark.parametrize("parameters", [None, ["2"]])
def test_it_is_that_of_the_dense_matrix(posterior, parameters):
    net, x = network(), torch.randn(ROWS, 4).double()
    prior = {"0": 0.1, "2": 0.3} if parameters is None else 0.3
    model = NetworkGP(
        net,
        x,
        torch.arange(ROWS) % CLASSES,
        CategoricalLikelihood(CLASSES),
        parameters=parameters,
        prior_precision=prior,
    )
    found = model.eigenspace(5, posterior=posterior, coverage=1.0, passes=12)
    H = curvature(net, x)
    first = sum(p.numel() for p in net[0].parameters())
    if parameters is not None:
        H = H[first:, first:]
    if posterior:
        precision = torch.full((len(H),), 0.3).double()
        if parameters is None:
            precision[:first] = 0.1
        H = H + torch.diag(precision)
    values, vectors = torch.linalg.eigh(H)
    torch.testing.assert_close(found.values, values.flip(0)[:5])
    torch.testing.assert_close((found.vectors.mT @ vectors[:, -5:]).square().sum(), torch.tensor(5.0).double())
    assert float(found.residuals.max()) < 1e-5 * float(found.values[0])
    largest = torch.cat([p.detach().flatten() for p in model.linearisation.parameters()]).abs()
    mask = largest >= largest.topk(8).values[-1]
    overlap = found.overlap(mask)
    assert overlap.share == pytest.approx(float(vectors[mask][:, -5:].square().sum()) / 5.0, abs=1e-6)
    assert overlap.chance == pytest.approx(8.0 / len(H))


def test_residuals_bound_the_error_of_a_short_search():
    torch.manual_seed(3)
    orthogonal = torch.linalg.qr(torch.randn(200, 200).double()).Q
    values = torch.arange(1.0, 201.0).double().reciprocal()
    H = (orthogonal * values) @ orthogonal.mT
    found = Eigenspace(*leading_eigenspace(lambda block: H @ block, torch.randn(200, 12).double(), 6, passes=2))
    nearest = (found.values.unsqueeze(-1) - values).abs().amin(-1)
    assert bool((nearest <= found.residuals + 1e-12).all())
    assert bool((found.values <= values[:6] + 1e-12).all())
    assert float(found.residuals.max()) > 1e-4
    better = Eigenspace(*leading_eigenspace(lambda block: H @ block, torch.randn(200, 12).double(), 6, passes=6))
    assert float(better.residuals.max()) < 1e-3 * float(found.residuals.max())
    torch.testing.assert_close(better.vectors.mT @ better.vectors, torch.eye(6).double())


def test_a_matrix_of_low_rank_ends_the_search():
    """Nothing is left to look at after two passes: what rounding leaves is no direction."""
    for dtype in (torch.float32, torch.float64):
        root, calls = torch.randn(60, 3).to(dtype), []

        def product(block, root=root, calls=calls):
            calls.append(block.shape[1])
            return root @ (root.mT @ block)

        found = Eigenspace(*leading_eigenspace(product, torch.randn(60, 4).to(dtype), 3, passes=9))
        assert sum(calls) <= 8
        torch.testing.assert_close(
            found.values, torch.linalg.eigvalsh((root.mT @ root).double()).flip(0), rtol=1e-4, atol=0.0
        )


def test_overlaps_lie_between_none_and_all():
    torch.manual_seed(0)
    unit, values = torch.eye(40).double(), torch.ones(4).double()
    space = Eigenspace(values, unit[:, :4], values)
    assert space.overlap(torch.arange(40) < 4).share == 1.0
    assert space.overlap(torch.arange(40) < 9).share == 1.0
    assert space.overlap(torch.arange(40) < 2).share == 1.0
    assert space.overlap(torch.arange(40) >= 4).share == 0.0
    assert space.overlap(Eigenspace(values, unit[:, 2:6], values)).share == 0.5
    drawn = [Eigenspace(values, torch.linalg.qr(torch.randn(40, 4).double()).Q, values) for _ in range(200)]
    shares = torch.tensor([space.overlap(one).share for one in drawn])
    assert float(shares.mean()) == pytest.approx(
        space.overlap(drawn[0]).chance, abs=6.0 * float(shares.std()) / 200**0.5
    )


def test_what_does_not_fit_is_refused():
    space = Eigenspace(torch.ones(2), torch.eye(5)[:, :2], torch.zeros(2))
    with pytest.raises(InputError, match="truth values"):
        space.overlap(torch.arange(5))
    with pytest.raises(InputError, match="must choose some"):
        space.overlap(torch.zeros(5, dtype=torch.bool))
    with pytest.raises(InputError, match="must choose some"):
        space.overlap(torch.ones(4, dtype=torch.bool))
    with pytest.raises(InputError, match="at most the columns of `start` times"):
        leading_eigenspace(lambda block: block, torch.eye(5)[:, :2], 5, passes=2)
    net, x = network(), torch.randn(3, 4).double()
    model = NetworkGP(net, x, torch.arange(3), CategoricalLikelihood(CLASSES))
    with pytest.raises(InputError, match="at most 6"):
        model.eigenspace(7, coverage=1.0)
    with pytest.raises(InputError, match="needs the training data"):
        NetworkGP(net, None, None, CategoricalLikelihood(CLASSES)).eigenspace(2)
