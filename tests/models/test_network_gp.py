"""``NetworkGP`` against the generalised Gauss-Newton posterior from explicit Jacobians, which shares nothing with it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import ConstantKernel, LinearKernel
from gpytorch.means import ZeroMean
from helpers import CASES, make_inputs
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from itergp.errors import InputError
from itergp.learning import calibrate_network
from itergp.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianLikelihood,
    Observations,
    StudentTLikelihood,
)
from itergp.models import GP, NetworkGP
from itergp.models.network_gp import TEMPERINGS
from itergp.operators import JacobianOperator, linearise
from itergp.operators.layer_gradients import LayerGradients
from itergp.operators.linearisation import Linearisation, num_rows
from itergp.operators.row_gradients import RowGradients
from itergp.posterior.gauss_newton import GaussNewton
from itergp.posterior.row_information import RowInformation
from itergp.posterior.softmax_information import SoftmaxInformation
from itergp.posterior.tempering import tempered
from itergp.solvers import DenseNewton, SubspaceNewton, policies, solve

ROWS, NEW, CLASSES = 40, 7, 3


# ----------------------------------------------------------------------- networks and their data
class Tied(nn.Module):
    """One weight in two places."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.last = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Attention(nn.Module):
    """Rows of three tokens."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=5, batch_first=True)
        self.last = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.last(self.layer(x).mean(1))


class Recurrent(nn.Module):
    """No gradients of several rows at once, and no forward mode."""

    def __init__(self):
        super().__init__()
        self.cell, self.last = nn.GRU(2, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, x):
        return self.last(self.cell(x)[1][0])


class Named(nn.Module):
    """Two inputs, by position or by name."""

    def __init__(self):
        super().__init__()
        self.table, self.last = nn.Embedding(5, 3), nn.Linear(5, CLASSES)

    def forward(self, values, codes):
        return self.last(torch.tanh(torch.cat([values, self.table(codes)], -1)))


def mlp(latents: int = CLASSES, inputs: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, latents))


NETWORKS = {
    "perceptron": (mlp, lambda n: torch.randn(n, 4)),
    "convolution": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, CLASSES)),
        ),
        lambda n: torch.randn(n, 1, 6, 6),
    ),
    "attention": (Attention, lambda n: torch.randn(n, 3, 4)),
    "recurrent": (Recurrent, lambda n: torch.randn(n, 3, 2)),
    "tied": (Tied, lambda n: torch.randn(n, 4)),
    "tuple": (Named, lambda n: (torch.randn(n, 2), torch.randint(0, 5, (n,)))),
    "dictionary": (Named, lambda n: {"values": torch.randn(n, 2), "codes": torch.randint(0, 5, (n,))}),
}


def double(rows):
    if isinstance(rows, dict):
        return {name: double(x) for name, x in rows.items()}
    if isinstance(rows, tuple):
        return tuple(map(double, rows))
    return rows.double() if rows.is_floating_point() else rows


def call(network, rows):
    return network(**rows) if isinstance(rows, dict) else network(*rows) if isinstance(rows, tuple) else network(rows)


def problem(name: str = "perceptron", rows: int = ROWS):
    """A network in training mode, training inputs, labels and new inputs, float64."""
    make, inputs = NETWORKS[name]
    network = make().double()
    return network, double(inputs(rows)), torch.arange(rows) % CLASSES, double(inputs(NEW))


# ------------------------------------------------------------------------------- the reference
def jacobian(network, names, rows):
    """``(n, C, P)``, from one row after the other."""
    values = {name: value.detach() for name, value in network.named_parameters() if name in names}

    def outputs(values):
        args, keywords = ((), rows) if isinstance(rows, dict) else (rows if isinstance(rows, tuple) else (rows,), {})
        found = functional_call(network, values, args, keywords)
        return found if found.dim() == 2 else found.unsqueeze(-1)

    blocks = jacrev(outputs)(values)
    return torch.cat([blocks[name].flatten(2) for name in names], -1).detach()


def reference(network, x, y, new, likelihood, precision, names=None):
    """Mean, covariances ``(M C, M C)`` and evidence of the dense posterior, for precisions ``(P,)`` or one."""
    network = copy.deepcopy(network).eval()
    names = [name for name, p in network.named_parameters() if p.requires_grad] if names is None else names
    with sdpa_kernel(SDPBackend.MATH):
        J, J_new = jacobian(network, names, x), jacobian(network, names, new)
    with torch.no_grad():
        f, mean = (call(network, rows).reshape(len(block), -1) for rows, block in ((x, J), (new, J_new)))
        W = likelihood.covariance_curvature(f, y)
        H = torch.einsum("ncp,ncd,ndq->pq", J, W, J)
        P = torch.diag(torch.as_tensor(precision).double().expand(len(H)))
        flat = J_new.flatten(0, 1)
        covariance = flat @ torch.linalg.solve(P + H, flat.mT)
        weights = torch.cat([dict(network.named_parameters())[name].flatten() for name in names])
        evidence = likelihood.log_density(f, y).sum() - 0.5 * weights @ P @ weights
        evidence = evidence - 0.5 * (torch.linalg.slogdet(P + H)[1] - torch.linalg.slogdet(P)[1])
    return mean, covariance, float(evidence)


def row_blocks(covariance, latents):
    size = len(covariance) // latents
    return covariance.view(size, latents, size, latents).diagonal(dim1=0, dim2=2).movedim(-1, 0)


# ------------------------------------------------------------------------------ full rank is exact
@pytest.mark.parametrize("rows", [ROWS, 6], ids=["many rows", "few rows"])
@pytest.mark.parametrize("name", NETWORKS)
def test_full_rank_is_the_dense_posterior(name, rows):
    network, x, y, new = problem(name, rows)
    likelihood = CategoricalLikelihood(CLASSES)
    mean, covariance, evidence = reference(network, x, y, new, likelihood, 0.7)
    model = NetworkGP(network, x, y, likelihood, prior_precision=0.7, rank=None)
    means, covariances = model.latent_marginals(new)
    torch.testing.assert_close(means, mean)
    torch.testing.assert_close(covariances, row_blocks(covariance, CLASSES), rtol=1e-6, atol=1e-8)
    for bound in ("lower", "upper"):
        assert model.evidence(bound).item() == pytest.approx(evidence, abs=1e-6)
    joint = model(new)
    assert isinstance(joint, MultitaskMultivariateNormal)
    torch.testing.assert_close(joint.covariance_matrix, covariance, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.regular])
def test_every_likelihood(name):
    case = CASES[name]
    x, y = case.data(ROWS, dtype=torch.float64)
    likelihood, new = case.make().double(), make_inputs(NEW, x.shape[1], seed=3)
    network = nn.Sequential(nn.Linear(x.shape[1], 5), nn.Tanh(), nn.Linear(5, case.num_latents)).double()
    model = NetworkGP(network, x, y, likelihood, rank=None)
    targets = model.calculus.validate_targets(y)
    mean, covariance, evidence = reference(network, x, targets, new, model.calculus, 1.0)
    means, covariances = model.latent_marginals(new)
    torch.testing.assert_close(means, mean)
    torch.testing.assert_close(covariances, row_blocks(covariance, case.num_latents), rtol=1e-6, atol=1e-8)
    assert model.evidence().item() == pytest.approx(evidence, rel=1e-8)
    predictive, expected = model.predict(new), model.calculus.predictive(means, covariances)
    torch.testing.assert_close(predictive.mean, expected.mean, equal_nan=True)
    assert predictive.batch_shape == (NEW,)


def test_one_output_without_a_dimension_for_it():
    network = nn.Sequential(mlp(1), nn.Flatten(0)).double()
    x, new = torch.randn(ROWS, 4).double(), torch.randn(NEW, 4).double()
    y = torch.randint(0, 2, (ROWS,))
    model = NetworkGP(network, x, y, BernoulliLikelihood(), rank=None)
    _, covariance, _ = reference(network, x, y, new, BernoulliLikelihood(), 1.0)
    assert isinstance(model(new), MultivariateNormal)
    torch.testing.assert_close(model(new).covariance_matrix, covariance)


# ------------------------------------------------------------- laws of a low rank
@pytest.mark.parametrize("row_directions", [0, 12])
@pytest.mark.parametrize("coverage", [1.0, 0.9])
@pytest.mark.parametrize("name", ["perceptron", "convolution", "recurrent"])
def test_never_below_exact_and_between_the_bounds(name, coverage, row_directions):
    network, x, y, new = problem(name)
    likelihood = CategoricalLikelihood(CLASSES)
    _, covariance, evidence = reference(network, x, y, new, likelihood, 0.05)
    last = torch.full((NEW,), math.inf)
    for rank in (1, 5, 15, 30):
        options = {"coverage": coverage, "passes": 2, "row_directions": row_directions}
        model = NetworkGP(network, x, y, likelihood, prior_precision=0.05, rank=rank, **options)
        excess = torch.linalg.eigvalsh(model(new).covariance_matrix - covariance)
        assert float(excess.min()) > -1e-9 * float(covariance.diagonal().max())
        variances = model.latent_marginals(new)[1].diagonal(dim1=1, dim2=2).sum(-1).double()
        assert bool((variances < last * 1.01).all())
        assert model.evidence("lower").item() <= evidence + 1e-6 <= model.evidence("upper").item() + 2e-6
        assert model.weight_posterior().rank <= rank + row_directions
        last = variances


def test_few_directions_say_nearly_all():
    network, x, y, new = problem(rows=300)
    _, covariance, evidence = reference(network, x, y, new, CategoricalLikelihood(CLASSES), 1.0)
    model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), rank=25, coverage=1.0, row_directions=0)
    ratio = model(new).covariance_matrix.diagonal() / covariance.diagonal()
    assert float(ratio.min()) > 1.0 - 1e-9
    assert float(ratio.max()) < 1.2
    assert abs(model.evidence().item() - evidence) < 1.0


@pytest.mark.parametrize("row_directions", [0, 7, 12])
@pytest.mark.parametrize("rank", [3, 12])
def test_a_last_layer_is_never_below_exact(rank, row_directions):
    """Directions of rows that are looked at one by one are not among the others."""
    network, x, y, new = problem()
    likelihood = CategoricalLikelihood(CLASSES)
    _, covariance, evidence = reference(network, x, y, new, likelihood, 0.05, ["2.weight", "2.bias"])
    options = {"parameters": ["2"], "rank": rank, "row_directions": row_directions, "coverage": 1.0}
    model = NetworkGP(network, x, y, likelihood, prior_precision=0.05, **options)
    excess = torch.linalg.eigvalsh(model(new).covariance_matrix - covariance)
    assert float(excess.min()) > -1e-9 * float(covariance.diagonal().max())
    assert model.evidence("lower").item() <= evidence + 1e-6 <= model.evidence("upper").item() + 2e-6


def test_rounding_never_narrows_a_low_rank_of_a_last_layer():
    torch.manual_seed(0)
    network, x, y = nn.Sequential(nn.Linear(2, 60), nn.Tanh(), nn.Linear(60, 1)), torch.randn(900, 2), torch.randn(900)
    likelihood, new = GaussianLikelihood(), x[:200]
    options = {"parameters": ["2"], "prior_precision": 0.01, "row_directions": 0}
    variances = NetworkGP(network, x, y, likelihood, rank=59, **options).latent_moments(new)[1].double().flatten()
    exact = NetworkGP(network.double(), x.double(), y.double(), likelihood.double(), rank=None, **options)
    assert bool((variances >= exact.latent_moments(new.double())[1].flatten()).all())


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_one_by_one_are_the_dense_posterior(name):
    """All directions of all rows, or those of a coverage and actions of the rest: exact, or nearly so, and never below."""
    network, x, y, new = problem(name)
    likelihood = CategoricalLikelihood(CLASSES)
    mean, covariance, evidence = reference(network, x, y, new, likelihood, 0.5)
    model = NetworkGP(network, x, y, likelihood, prior_precision=0.5, rank=1, coverage=1.0)
    assert model.conditioned.exact
    means, covariances = model.latent_marginals(new)
    torch.testing.assert_close(means, mean)
    torch.testing.assert_close(covariances, row_blocks(covariance, CLASSES), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(model(new).covariance_matrix, covariance, rtol=1e-6, atol=1e-8)
    for bound in ("lower", "upper"):
        assert model.evidence(bound).item() == pytest.approx(evidence, abs=1e-6)
    part = NetworkGP(network, x, y, likelihood, prior_precision=0.5, rank=5, coverage=1.0, row_directions=60)
    assert not part.conditioned.exact
    assert part.weight_posterior().rank == 65
    assert float(torch.linalg.eigvalsh(part(new).covariance_matrix - covariance).min()) > -1e-9
    fewer = NetworkGP(network, x, y, likelihood, prior_precision=0.5, rank=5, coverage=1.0, row_directions=0)
    variances = [float(one(new).covariance_matrix.diagonal().sum()) for one in (part, fewer)]
    assert variances[0] < min(variances[1], 1.2 * float(covariance.diagonal().sum()))


@pytest.mark.parametrize("kept", [2**28, 0], ids=["kept", "found again"])
@pytest.mark.parametrize("passes", [1, 3])
def test_actions_are_normal_and_go_through_the_network_once(monkeypatch, kept, passes):
    """A gradient of each direction is all that a search takes, where these fit: rows are not gone through again."""
    monkeypatch.setattr("itergp.posterior.gauss_newton._KEPT_BYTES", kept)
    network, x, y, _ = problem("convolution", rows=60)
    options = {"rank": 6, "row_directions": 0, "passes": passes, "coverage": 0.95}
    model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), prior_precision=0.3, **options)
    taken, forward, at, outputs = [], [], LayerGradients.at, Linearisation.outputs

    def counted(self, rows, cotangents, scale):
        taken.append(cotangents.shape[0] * cotangents.shape[1])
        return at(self, rows, cotangents, scale)

    def looked(self, rows):
        forward.append(num_rows(rows))
        return outputs(self, rows)

    monkeypatch.setattr(LayerGradients, "at", counted)
    monkeypatch.setattr(Linearisation, "outputs", looked)
    directions, products = model.conditioned.actions
    kept_directions = model.conditioned.overview.num_kept
    assert sum(taken) == kept_directions * (1 if kept else passes + 1)
    assert sum(forward) == 60
    problem_ = GaussNewton(model.linearisation, model._parts, model._scale(), model.conditioned.overview, model.layers)
    H = problem_.matrix()
    torch.testing.assert_close(directions.mT @ H @ directions, torch.eye(6).double())
    torch.testing.assert_close(products, H @ directions)
    best = torch.linalg.eigvalsh(H)[-6:].sum()
    found = products.square().sum()  # the trace of H within the actions, at most that of its leading eigenvectors
    assert float(found) > (0.9 if passes == 1 else 0.99) * float(best)
    assert float(found) <= float(best) * (1.0 + 1e-9)


def test_rows_that_are_certain_cost_nothing():
    network, x, y, _ = problem(rows=300)
    with torch.no_grad():
        network[-1].weight.mul_(30.0)
    model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), rank=10)
    overview = model.conditioned.overview
    assert overview.num_rows == 300
    assert overview.num_kept < 0.5 * overview.num_directions
    everything = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), rank=10, coverage=1.0)
    assert everything.conditioned.overview.num_kept == overview.num_directions


# --------------------------------------------------------- the last layer, and many classes
@pytest.mark.parametrize("rank", [5, None])
def test_the_last_layer_has_a_structure_of_its_own(rank):
    network, x, y, new = problem()
    likelihood = CategoricalLikelihood(CLASSES)
    options = {"rank": rank, "coverage": 1.0, "row_directions": 0}
    model = NetworkGP(network, x, y, likelihood, parameters=["2"], **options)
    assert model.linearisation.structured
    hidden = nn.Sequential(network, nn.Identity())  # whose last layer is not the network's
    other = NetworkGP(hidden, x, y, likelihood, parameters=["0.2"], **options)
    _, covariance, evidence = reference(network, x, y, new, likelihood, 1.0, ["2.weight", "2.bias"])
    if rank is None:
        torch.testing.assert_close(model(new).covariance_matrix, covariance, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(other(new).covariance_matrix, covariance, rtol=1e-6, atol=1e-9)
        assert model.evidence().item() == pytest.approx(evidence, abs=1e-6)
        return
    exact = row_blocks(covariance, CLASSES)
    for one in (model, other):
        assert float(torch.linalg.eigvalsh(one.latent_marginals(new)[1] - exact).min()) > -1e-9
        assert one.evidence("lower").item() <= evidence <= one.evidence("upper").item()


def test_many_classes_are_multiplied_by(monkeypatch):
    monkeypatch.setattr("itergp.posterior.gauss_newton.MANY_LATENTS", 2)
    network, x, y, new = problem()
    likelihood = CategoricalLikelihood(CLASSES)
    _, covariance, evidence = reference(network, x, y, new, likelihood, 1.0)
    full = NetworkGP(network, x, y, likelihood, rank=None)
    torch.testing.assert_close(full(new).covariance_matrix, covariance, rtol=1e-6, atol=1e-9)
    low = NetworkGP(network, x, y, likelihood, rank=20)
    assert float(torch.linalg.eigvalsh(low(new).covariance_matrix - covariance).min()) > -1e-9
    assert low.evidence("lower").item() <= evidence <= low.evidence("upper").item()


@pytest.fixture
def few_are_many(monkeypatch):
    """Three classes are treated as hundreds are."""
    monkeypatch.setattr("itergp.posterior.gauss_newton.MANY_LATENTS", 2)
    monkeypatch.setattr("itergp.models.network_gp.MANY_LATENTS", 2)


@pytest.mark.parametrize("prior", [{"2": 0.7}, {"2.weight": 0.5, "2.bias": 2.0}])
@pytest.mark.parametrize("parameters", [["2"], ["2.weight"]])
def test_rows_of_a_last_layer_are_the_dense_posterior(few_are_many, parameters, prior):
    network, x, y, new = problem()
    likelihood = CategoricalLikelihood(CLASSES)
    if parameters == ["2.weight"]:
        prior = {"2.weight": 0.5}
    options = {"parameters": parameters, "prior_precision": prior}
    weight = 1 + torch.arange(len(y)) % 3
    model = NetworkGP(network, x, y, likelihood, sample_weight=weight.double(), **options)
    assert isinstance(model.conditioned.information, SoftmaxInformation)
    assert model.conditioned.exact
    names = model.linearisation.names
    sizes = {name: dict(network.named_parameters())[name].numel() for name in names}
    precision = torch.cat([torch.full((sizes[name],), prior.get(name, prior.get("2"))) for name in names])
    every = torch.arange(len(y)).repeat_interleave(weight)
    _, covariance, evidence = reference(network, x[every], y[every], new, likelihood, precision, names)
    torch.testing.assert_close(model(new).covariance_matrix, covariance, rtol=1e-6, atol=1e-9)
    blocks, variances = row_blocks(covariance, CLASSES), model.latent_moments(new)
    torch.testing.assert_close(variances[1], blocks, rtol=1e-6, atol=1e-9)
    left, whole = model._variances(new, model.conditioned)
    torch.testing.assert_close(left, blocks.diagonal(dim1=1, dim2=2), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(whole, variances[2])
    for bound in ("lower", "upper"):
        assert model.evidence(bound).item() == pytest.approx(evidence, abs=1e-6)


@pytest.mark.parametrize("row_directions", [1, 7, 11, 30])
def test_fewer_rows_of_a_last_layer_can_only_widen(few_are_many, row_directions):
    network, x, y, new = problem()
    likelihood = CategoricalLikelihood(CLASSES)
    model = NetworkGP(network, x, y, likelihood, parameters=["2"], row_directions=row_directions)
    probs = network.eval()(x).detach().softmax(-1)
    curvature = 1.0 - probs.square().sum(-1)
    most = curvature.topk(row_directions).indices.sort().values
    torch.testing.assert_close(model.conditioned.information.probs, probs[most])
    assert not model.conditioned.exact
    _, covariance, evidence = reference(network, x, y, new, likelihood, 1.0, ["2.weight", "2.bias"])
    assert float(torch.linalg.eigvalsh(model(new).covariance_matrix - covariance).min()) > -1e-9
    assert model.evidence("lower").item() <= evidence <= model.evidence("upper").item()


def test_few_classes_keep_directions_of_rows_that_are_left_out():
    """Rows of a last layer stand for its directions where they are all there, for then nothing is left to a low rank."""
    network, x, y, _ = problem()
    options = {"parameters": ["2"], "coverage": 1.0, "rank": 4}
    for row_directions, kind in ((7, RowInformation), (len(y), SoftmaxInformation), (2 * len(y), RowInformation)):
        model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), row_directions=row_directions, **options)
        assert isinstance(model.conditioned.information, kind)


def test_rows_without_a_label_say_nothing_of_many_classes(few_are_many):
    network, x, y, new = problem()
    y = y.clone()
    y[:9] = -1
    options = {"parameters": ["2"], "prior_precision": 0.1}
    model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), missing_targets=True, **options)
    without = NetworkGP(network, x[9:], y[9:], CategoricalLikelihood(CLASSES), **options)
    torch.testing.assert_close(model.latent_marginals(new), without.latent_marginals(new))
    assert model.default_tempering() == without.default_tempering()
    assert len(model.conditioned.information.features) == len(y) - 9


@pytest.mark.parametrize("row_directions", ["auto", 7])
@pytest.mark.parametrize("bound", ["lower", "upper"])
def test_derivatives_of_the_evidence_of_a_last_layer(few_are_many, row_directions, bound):
    network, x, y, _ = problem()
    options = {"parameters": ["2"], "prior_precision": {"2.weight": 0.5, "2.bias": 2.0}}
    model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), row_directions=row_directions, **options)
    model.evidence(bound).backward()
    found = model.log_prior_precision.grad.clone()
    for i in range(2):
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                model.log_prior_precision[i] += step
                # The terms hold at any precision: their derivative is that of the rows that were chosen.
                terms = model._terms()[0]
                values.append(float(terms.evidence(model.log_prior_precision, bound)))
                model.log_prior_precision[i] -= step
        assert float(found[i]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4, abs=1e-5)


def test_the_prior_of_a_last_layer_is_learned_as_that_of_few_classes(few_are_many, monkeypatch):
    network, x, y, _ = problem()
    options = {"parameters": ["2"], "prior_precision": 0.1}
    many = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), **options)
    history = many.learn_prior(rounds=2)
    monkeypatch.undo()
    few = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), coverage=1.0, **options)
    few.learn_prior(rounds=2)
    assert history[-1] > history[0]
    torch.testing.assert_close(many.prior_precision, few.prior_precision, rtol=1e-2, atol=0.0)


@pytest.mark.parametrize("row_directions", ["auto", 0])
@pytest.mark.parametrize("tempering", [0.0, 0.5])
def test_predictions_of_many_classes_are_averages_over_functions(few_are_many, monkeypatch, row_directions, tempering):
    network, x, y, new = problem()
    options = {"parameters": ["2"], "rank": 4, "row_directions": row_directions}
    model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), **options)
    mean, covariance, prior = model.latent_moments(new)
    expected = model.calculus.predictive(mean, tempered(covariance, prior, tempering)).probs

    def refuse(*args):
        raise AssertionError("covariances between the classes of a row")

    monkeypatch.setattr("itergp.operators.linearisation.FinalLayer.prior_blocks", refuse)
    monkeypatch.setattr("itergp.posterior.softmax_information.SoftmaxInformation.function_covariance", refuse)
    found = model.predict(new, tempering=tempering)
    assert bool(((found.probs - expected).abs() < 6.0 * found.standard_error + 1e-3).all())
    assert float(found.standard_error.max()) < 0.02
    torch.testing.assert_close(model.predict(new[3:5], tempering=tempering).probs, found.probs[3:5])
    labels = torch.arange(len(new)) % CLASSES
    densities, share = model.tempered_log_densities(new, labels, [tempering, math.inf])
    torch.testing.assert_close(densities[0], found.log_prob(labels), rtol=1e-3, atol=1e-3)
    plugged_in = torch.log_softmax(model.linearisation.outputs(new), -1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(densities[1], plugged_in)
    assert bool(((share > 0.0) & (share < 1.0)).all())


def test_many_classes_are_tempered_by_the_training_rows(few_are_many, tmp_path):
    network, x, _, new = problem()
    with torch.no_grad():
        network[2].weight.mul_(3.0)
    labels = network.eval()(x).argmax(-1)
    options = {"parameters": ["2"], "prior_precision": 0.01}
    model = NetworkGP(network, x, labels, CategoricalLikelihood(CLASSES), **options)
    chosen = model.default_tempering()
    assert chosen > 0.0
    densities = model.tempered_log_densities(x, labels, TEMPERINGS)[0].mean(-1)
    allowed = densities.max() - 0.01 * densities.max().abs()
    where = TEMPERINGS.index(chosen)
    assert densities[where] >= allowed
    assert bool((densities[:where] < allowed).all())
    assert torch.equal(model.predict(new).probs, model.predict(new, tempering=chosen).probs)
    model.save(tmp_path / "model")
    again = NetworkGP(copy.deepcopy(network), None, None, CategoricalLikelihood(CLASSES), **options)
    again.load(tmp_path / "model")
    assert again.tempering == chosen
    torch.testing.assert_close(again.predict(new).probs, model.predict(new).probs)
    calibrated = calibrate_network(model, new, torch.arange(len(new)) % CLASSES)
    assert model.tempering == calibrated.tempering
    assert calibrated.expected_calibration_error is not None


@pytest.mark.parametrize("loader", [False, True])
def test_rows_of_all_the_data_choose_the_tempering_of_many_classes(few_are_many, loader):
    """Data are often sorted by class: the first rows are of one."""
    network, x, _, _ = problem()
    x, y = x.repeat(10, 1), torch.arange(10 * ROWS) * CLASSES // (10 * ROWS)
    given = (torch.utils.data.DataLoader([*zip(x, y, strict=True)], batch_size=32), None) if loader else (x, y)
    model = NetworkGP(network, *given, CategoricalLikelihood(CLASSES), parameters=["2"])
    ((rows, labels),) = model.data.spread(model.calculus, x, 128)
    assert len(rows) == len(labels) == 128
    assert labels.bincount().min() > 40
    seen = []
    model.tempered_log_densities = lambda rows, labels, exponents: (
        seen.append(labels) or torch.zeros(len(exponents), len(labels)),
        None,
    )
    model.default_tempering()
    assert torch.equal(torch.cat(seen), labels)


def test_rows_of_several_shapes_choose_the_tempering_together(few_are_many):
    network = nn.Sequential(nn.AdaptiveAvgPool1d(4), mlp()).double()
    batches = [(torch.randn(5, length).double(), torch.arange(5) % CLASSES) for length in (8, 12, 8)]
    model = NetworkGP(network, batches, None, CategoricalLikelihood(CLASSES), parameters=["1.2"])
    assert sorted(len(labels) for _, labels in model.data.spread(model.calculus, batches[0][0], 128)) == [5, 10]
    assert model.default_tempering() in TEMPERINGS


def test_a_likelihood_with_predictions_of_its_own_keeps_them(few_are_many):
    class Lapses(CategoricalLikelihood):
        def predictive(self, mean, covariance, **observation):
            return torch.distributions.Categorical(
                probs=0.9 * super().predictive(mean, covariance).probs + 0.1 / CLASSES
            )

    network, x, y, new = problem()
    model = NetworkGP(network, x, y, Lapses(CLASSES), parameters=["2"])
    assert float(model.predict(100.0 * new, tempering=math.inf).probs.min()) > 0.03
    assert float(model.predict(100.0 * new, tempering=0.5).probs.min()) > 0.03


def test_a_sure_and_wrong_network_is_as_wrong_as_it_is(few_are_many):
    network, x, y, new = problem()
    with torch.no_grad():
        network[2].bias[0] = 500.0
    model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), parameters=["2"], prior_precision=1e4)
    labels = torch.ones(len(new), dtype=torch.long)
    found = model.tempered_log_densities(new, labels, [math.inf])[0][0]
    torch.testing.assert_close(found, torch.log_softmax(network.eval()(new).detach(), -1)[:, 1])


def test_gradients_of_many_classes_are_few_rows_at_a_time(few_are_many, monkeypatch):
    network, x, y, new = problem()
    model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), rank=5)
    expected, sizes, covariance = model._remaining(new), [], model._covariance
    monkeypatch.setattr(model, "_rows_at_once", lambda: 2)
    monkeypatch.setattr(model, "_covariance", lambda rows, fit: sizes.append(len(rows)) or covariance(rows, fit))
    torch.testing.assert_close(model._remaining(new), expected)
    assert max(sizes) == 2


def test_functions_of_many_weights_are_drawn_again_and_not_kept(few_are_many):
    network, x, y, new = problem()
    probs = []
    for budget in (2**30, 2**14):
        model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), rank=5, memory_budget=budget)
        probs.append(model.predict(new, tempering=0.0).probs)
        assert (model._samples().kept is None) == (budget < 2**20)
    torch.testing.assert_close(*probs)


# ------------------------------------------------------------------- data, parameters, prior
def test_a_loader_streams_the_same_rows():
    network, x, y, new = problem(rows=50)
    data = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(data, batch_size=7, shuffle=True)
    for rank in (10, None):
        ours = NetworkGP(network, loader, None, CategoricalLikelihood(CLASSES), rank=rank, coverage=1.0, passes=3)
        same = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), rank=rank, coverage=1.0, passes=3)
        assert ours.evidence().item() == pytest.approx(same.evidence().item(), abs=0.5 if rank else 1e-8)
        if rank is None:
            torch.testing.assert_close(ours.predict(new).probs, same.predict(new).probs)


class Augmented:
    """Other rows in every epoch."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        yield self.x + 0.1 * torch.randn_like(self.x), self.y


def test_a_loader_of_other_rows_is_refused():
    network, x, y, new = problem()
    model = NetworkGP(network, Augmented(x, y), None, CategoricalLikelihood(CLASSES))
    with pytest.raises(InputError, match="same rows whenever"):
        model.predict(new)


def test_the_rank_is_what_memory_allows():
    network, x, y, _ = problem(rows=300)
    likelihood = CategoricalLikelihood(CLASSES)
    assert NetworkGP(network, x, y, likelihood).conditioned.exact  # of 51 weights
    few = NetworkGP(network, x, y, likelihood, memory_budget=32 * 51 * 8 * 25, row_directions=0)
    assert few.weight_posterior().rank == 25


def test_adapters_are_found_by_themselves():
    network, x, y, new = problem()
    for parameter in network[0].parameters():
        parameter.requires_grad_(False)
    network[0].adapter = nn.Parameter(torch.randn(6, 1).double())
    network[0].register_forward_hook(lambda module, args, output: output + args[0][:, :1] @ module.adapter.mT)
    model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), rank=None)
    names = ["0.adapter", "2.weight", "2.bias"]
    assert model.linearisation.names == names
    _, covariance, _ = reference(network, x, y, new, CategoricalLikelihood(CLASSES), 1.0, names)
    torch.testing.assert_close(model(new).covariance_matrix, covariance, rtol=1e-6, atol=1e-9)


def test_parameters_by_name_and_predicate():
    network, x, y, _ = problem()
    likelihood = CategoricalLikelihood(CLASSES)

    def chosen(parameters):
        return NetworkGP(network, x, y, likelihood, parameters=parameters).linearisation.names

    assert chosen(["0"]) == ["0.weight", "0.bias"]
    assert chosen("2.bias") == ["2.bias"]
    assert chosen(lambda name, parameter: parameter.dim() == 2) == ["0.weight", "2.weight"]


@pytest.mark.parametrize(
    "prior", [{"0": 2.0, "2": 0.3}, {"0": 2.0, "0.bias": 5.0, "2": 0.3}, torch.tensor([2.0, 5.0, 0.3, 1.0])]
)
def test_precisions_of_groups(prior):
    network, x, y, new = problem()
    sizes = torch.tensor([24, 6, 18, 3])
    named = isinstance(prior, dict)
    each = [prior["0"], prior.get("0.bias", prior["0"]), prior["2"], prior["2"]] if named else prior.tolist()
    precision = torch.tensor(each).double().repeat_interleave(sizes)
    likelihood = CategoricalLikelihood(CLASSES)
    _, covariance, evidence = reference(network, x, y, new, likelihood, precision)
    model = NetworkGP(network, x, y, likelihood, prior_precision=prior, rank=None)
    torch.testing.assert_close(model(new).covariance_matrix, covariance, rtol=1e-6, atol=1e-7)
    assert model.evidence().item() == pytest.approx(evidence, abs=1e-5)


def test_a_prior_mean_changes_the_evidence_alone():
    network, x, y, new = problem()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    likelihood = CategoricalLikelihood(CLASSES)
    around = NetworkGP(network, x, y, likelihood, prior_mean=before, rank=None)
    zero = NetworkGP(network, x, y, likelihood, rank=None)
    squares = sum(float(value.square().sum()) for value in before.values())
    assert (around.evidence() - zero.evidence()).item() == pytest.approx(0.5 * squares)
    torch.testing.assert_close(around.predict(new).probs, zero.predict(new).probs)


def test_weights_of_rows_are_repetitions():
    network, x, y, new = problem()
    weight = torch.randint(0, 3, (ROWS,)).double()
    repeated = torch.arange(ROWS).repeat_interleave(weight.long())
    likelihood = CategoricalLikelihood(CLASSES)
    ours = NetworkGP(network, x, y, likelihood, rank=None, sample_weight=weight)
    theirs = NetworkGP(network, x[repeated], y[repeated], likelihood, rank=None)
    torch.testing.assert_close(ours(new).covariance_matrix, theirs(new).covariance_matrix)
    assert ours.evidence().item() == pytest.approx(theirs.evidence().item())


# ------------------------------------------------------------------------------- the network
def test_the_network_is_left_as_it_was():
    network, x, y, new = problem("convolution")
    network.train()
    network[5].eval()
    before = copy.deepcopy(network.state_dict())
    model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), rank=5)
    model.predict(new), model.evidence(), model.sample(new, 2), model.learn_prior(rounds=1)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [module.training for module in network] == [True] * 5 + [False] + [True]
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_change_asks_for_another_posterior():
    network, x, y, new = problem()
    model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), rank=None)
    first, known = model.predict(new).probs, model.conditioned
    assert model.conditioned is known
    with torch.no_grad():
        network[0].weight.mul_(1.5)
    second = model.predict(new).probs
    fresh = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), rank=None)
    torch.testing.assert_close(second, fresh.predict(new).probs)
    assert not torch.allclose(first, second)
    with torch.no_grad():
        model.log_prior_precision.add_(1.0)
    assert not torch.allclose(model.latent_marginals(new)[1], fresh.latent_marginals(new)[1])


@pytest.mark.parametrize(("rank", "row_directions"), [(8, 0), (8, 30), (1, 200), (None, 0)])
def test_another_precision_of_all_weights_multiplies_what_is_known(rank, row_directions, monkeypatch):
    network, x, y, new = problem()
    options = {"rank": rank, "row_directions": row_directions, "coverage": 1.0}
    model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), prior_precision=0.5, **options)
    fresh = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), prior_precision=4.0, **options)
    expected = fresh.latent_marginals(new)[1], fresh.evidence().item(), fresh.weight_posterior()
    model.evidence()
    with monkeypatch.context() as patch:
        patch.setattr(NetworkGP, "_find", lambda *_: pytest.fail("the data are gone through again"))
        with torch.no_grad():
            model.log_prior_precision.fill_(math.log(4.0))
        assert model.evidence().item() == pytest.approx(expected[1], abs=1e-6)
        torch.testing.assert_close(model.latent_marginals(new)[1], expected[0], rtol=1e-6, atol=1e-8)
        weights = model.weight_posterior()
        torch.testing.assert_close(weights.marginal_variances(), expected[2].marginal_variances(), rtol=1e-6, atol=1e-8)
        shifted = {name: p + 0.1 for name, p in network.named_parameters()}
        torch.testing.assert_close(weights.log_density(shifted), expected[2].log_density(shifted), rtol=1e-6, atol=1e-6)
        if row_directions != 30:  # actions of the other rows, by which noise is explained, have no sign
            torch.testing.assert_close(weights.sample(2, seed=0), expected[2].sample(2, seed=0), rtol=1e-5, atol=1e-6)
    network[0].weight.data.mul_(1.5)
    with torch.no_grad():
        model.log_prior_precision.fill_(0.0)
    again = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), prior_precision=1.0, **options)
    assert model.evidence().item() == pytest.approx(again.evidence().item(), abs=1e-6)


# -------------------------------------------------------------------------- weights and functions
@pytest.mark.parametrize(("rank", "row_directions"), [(8, 0), (8, 30), (None, 0)])
def test_the_posterior_of_the_weights(rank, row_directions):
    network, x, y, _ = problem(rows=60)
    options = {"rank": rank, "row_directions": row_directions}
    model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), prior_precision=0.3, **options)
    posterior = model.weight_posterior()
    names = posterior.linearisation.names
    # The covariance of the weights, from that of the functions by which they are seen: units as gradients.
    units = torch.diag(posterior.scale)
    covariance = posterior.information.covariance(units.unsqueeze(0))[0]
    variances = posterior.marginal_variances()
    flat = torch.cat([variances[name].flatten() for name in names])
    torch.testing.assert_close(flat, covariance.diagonal())
    samples = posterior.sample(4000, seed=0)
    drawn = torch.cat([samples[name].flatten(1) for name in names], -1)
    gaussian = torch.distributions.MultivariateNormal(posterior.mean, covariance)
    log_density = posterior.log_density(samples)
    torch.testing.assert_close(log_density, gaussian.log_prob(drawn), rtol=1e-6, atol=1e-6)
    whitened = (drawn - posterior.mean) @ torch.linalg.inv(torch.linalg.cholesky(covariance)).mT
    error = whitened.mT @ whitened / 4000 - torch.eye(len(flat)).double()
    assert float(error.abs().max()) < 6.0 * (2.0 / 4000) ** 0.5
    penalty = posterior.penalty(samples)
    torch.testing.assert_close(log_density + penalty, log_density.mean() + penalty.mean() + torch.zeros_like(penalty))


def test_the_penalty_has_derivatives():
    network, x, y, _ = problem()
    posterior = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), rank=8).weight_posterior()
    penalty = posterior.penalty(dict(network.named_parameters()))
    assert penalty.item() == pytest.approx(0.0, abs=1e-12)
    with torch.no_grad():
        network[0].weight.add_(0.1)
    posterior.penalty(dict(network.named_parameters())).backward()
    assert float(network[0].weight.grad.norm()) > 0.0


def test_samples_of_functions_have_the_joint_covariance():
    network, x, y, new = problem()
    model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), rank=8)
    samples, joint = model.sample(new, 4000, seed=1), model(new)
    assert samples.shape == (4000, NEW, CLASSES)
    root = torch.linalg.cholesky(joint.covariance_matrix + 1e-9 * torch.eye(NEW * CLASSES).double())
    whitened = torch.linalg.solve_triangular(root, (samples - joint.mean).flatten(1).mT, upper=False)
    error = whitened @ whitened.mT / 4000 - torch.eye(NEW * CLASSES).double()
    assert float(error.abs().max()) < 6.0 * (2.0 / 4000) ** 0.5
    torch.testing.assert_close(model.sample(new, 3, seed=1)[:, :2], model.sample(new[:2], 3, seed=1))


# --------------------------------------------------------------------------- evidence and learning
@pytest.mark.parametrize(("rank", "row_directions"), [(10, 0), (10, 60), (None, 0)])
@pytest.mark.parametrize("bound", ["lower", "upper"])
def test_derivatives_of_the_evidence(rank, row_directions, bound):
    x = torch.randn(60, 4).double()
    y = torch.sin(x[:, 0]) + 0.1 * torch.randn(60).double()
    likelihood = GaussianLikelihood(noise=0.3).double()
    options = {"rank": rank, "row_directions": row_directions, "passes": 8}
    model = NetworkGP(mlp(1).double(), x, y, likelihood, prior_precision={"0": 1.0, "2": 0.4}, **options)
    parameters = [model.log_prior_precision, *likelihood.parameters()]
    gradients = torch.autograd.grad(model.evidence(bound), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for index in range(parameter.numel()):
            values = []
            for step in (1e-4, -1e-4):
                with torch.no_grad():
                    parameter.view(-1)[index] += step
                    values.append(model.evidence(bound).item())
                    parameter.view(-1)[index] -= step
            # Directions follow the precision of groups, by which a low rank is not quite at its best.
            tolerance = 1e-5 if rank is None or row_directions or parameter is not parameters[0] else 2e-2
            assert float(gradient.view(-1)[index]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=tolerance)


@pytest.mark.parametrize("most", [100, 20])
def test_what_groups_of_weights_know_adds_up(most):
    """Of rows one by one and of actions of the others, within all pseudo-observations and within the leading ones."""
    network, x, y, _ = problem()
    model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), rank=8, coverage=1.0, row_directions=30)
    known = model.conditioned.information.rescaled(2.0)
    assert known.actions.shape[1] == 8
    first = torch.arange(len(known.actions)) < network[0].weight.numel()
    whole, *parts = known.group_grams([torch.ones_like(first), first, ~first], most)
    torch.testing.assert_close(parts[0] + parts[1], whole)
    leading = torch.linalg.eigvalsh(known.gram())[-min(most, known.rank) :]
    torch.testing.assert_close(torch.linalg.eigvalsh(whole)[-5:], leading[-5:], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rank", [10, None])
def test_learning_finds_the_noise(rank):
    x = 2.0 * torch.randn(400, 2).double()
    y = x[:, 0] - x[:, 1] + 0.2 * torch.randn(400).double()
    network = nn.Linear(2, 1).double()
    with torch.no_grad():
        design = torch.cat([x, torch.ones(400, 1).double()], -1)
        found = torch.linalg.lstsq(design, y[:, None]).solution[:, 0]
        network.weight.copy_(found[:2]), network.bias.copy_(found[2:])
    likelihood = GaussianLikelihood(noise=1.0).double()
    model = NetworkGP(network, x, y, likelihood, prior_precision=100.0, rank=rank)
    history = model.learn_prior()
    assert history[-1] > history[0]
    assert likelihood.noise.item() == pytest.approx(0.04, rel=0.25)
    # Three weights whose squares are 1, 1 and almost 0: the precision is theirs.
    assert model.prior_precision.item() == pytest.approx(1.5, rel=0.1)


def test_learning_never_ends_worse():
    network, x, y, _ = problem(rows=100)
    model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), prior_precision={"0": 7.0, "2": 0.01}, rank=8)
    history = model.learn_prior(rounds=3)
    assert model.evidence().item() == pytest.approx(max(history))
    assert max(history) > history[0]


# ---------------------------------------------------------------- saving, devices, dtypes
@pytest.mark.parametrize(("rank", "row_directions"), [(8, 0), (8, 30), (None, 0)])
@pytest.mark.parametrize("name", ["perceptron", "convolution", "tuple", "dictionary"])
def test_saved_and_loaded_without_data(tmp_path, name, rank, row_directions):
    network, x, y, new = problem(name)
    prior = {"last": 2.0, "table": 0.5} if name in ("tuple", "dictionary") else 2.0
    options = {"rank": rank, "row_directions": row_directions}
    model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), prior_precision=prior, **options)
    expected = model.predict(new).probs
    model.save(tmp_path / "model")
    make, _ = NETWORKS[name]
    prior = dict.fromkeys(prior, 1.0) if isinstance(prior, dict) else 1.0
    again = NetworkGP(make().double(), None, None, CategoricalLikelihood(CLASSES), prior_precision=prior, rank=rank)
    again.load(tmp_path / "model")
    torch.testing.assert_close(again.predict(new).probs, expected)
    torch.testing.assert_close(again.weight_posterior().sample(2, seed=0), model.weight_posterior().sample(2, seed=0))
    with pytest.raises(InputError, match="needs the training data"):
        again.evidence()
    with torch.no_grad():
        next(again.network.parameters()).mul_(2.0)
    with pytest.raises(InputError, match="must be the saved one"):
        again.predict(new)


def test_files_of_other_models_are_refused(tmp_path):
    network, x, y, _ = problem()
    NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), rank=8).save(tmp_path / "model")
    with pytest.raises(InputError, match="must be built as the saved one"):
        NetworkGP(mlp(4), None, None, CategoricalLikelihood(4)).load(tmp_path / "model")
    with pytest.raises(InputError, match="saved one's likelihood"):
        NetworkGP(mlp(1), None, None, BernoulliLikelihood()).load(tmp_path / "model")
    GP(x, y, CategoricalLikelihood(CLASSES)).save(tmp_path / "other")
    with pytest.raises(InputError, match="NetworkGP"):
        NetworkGP(network, None, None, CategoricalLikelihood(CLASSES)).load(tmp_path / "other")


def test_single_precision_is_near_double():
    network, x, y, new = problem(rows=200)
    expected = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), rank=None)
    exact = expected.latent_marginals(new)[1]
    for rank in (None, 30):
        model = NetworkGP(copy.deepcopy(network), x, y, CategoricalLikelihood(CLASSES), rank=rank, coverage=1.0)
        wide = model.latent_marginals(new)[1]
        model = model.float()
        covariance = model.latent_marginals(new)[1]
        assert covariance.dtype == torch.float32
        torch.testing.assert_close(covariance.double(), wide, rtol=1e-3, atol=1e-5)
        ratio = covariance.diagonal(dim1=1, dim2=2) / exact.diagonal(dim1=1, dim2=2)
        assert float(ratio.min()) > 1.0 - 1e-4
    assert model.evidence().item() <= expected.evidence().item() + 1e-2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_predictions_of_a_low_rank_take_no_dense_gradients(monkeypatch, dtype):
    network, x, new = (
        nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 3)),
        torch.randn(90, 30),
        torch.randn(9, 30),
    )
    options = {"rank": 20, "row_directions": 0, "coverage": 1.0}
    model = NetworkGP(network, x, torch.arange(90) % 3, CategoricalLikelihood(3), prior_precision=0.1, **options).to(
        dtype
    )
    fit = model.conditioned
    gradients = model._gradients(new.to(dtype), fit)
    expected = fit.information.to(gradients.double()).covariance(gradients.double())

    def refuse(self):
        raise AssertionError("dense gradients")

    monkeypatch.setattr(RowGradients, "dense", refuse)
    _, covariance, prior = model.latent_moments(new.to(dtype))
    tolerance = 64.0 * torch.finfo(dtype).eps
    torch.testing.assert_close(prior.double(), gradients.double().square().sum(-1), rtol=tolerance, atol=0.0)
    size = float(prior.max())
    torch.testing.assert_close(covariance.double(), expected, rtol=0.0, atol=tolerance * size)
    left, exact = (one.diagonal(dim1=1, dim2=2) for one in (covariance.double(), expected))
    assert bool((left >= exact * (1.0 - 1e-9)).all())


@pytest.mark.parametrize("seed", [0, 2])
def test_rounding_narrows_no_variance(seed):
    """Where data leave less of a variance than single precision resolves, all that they are taken from is rounding."""
    torch.manual_seed(seed)
    x, network, y = torch.randn(20, 4).repeat(5, 1), nn.Linear(4, 1), torch.zeros(100)
    model = NetworkGP(network, x, y, GaussianLikelihood(noise=1e-7), rank=1, coverage=1.0, row_directions=100)
    assert isinstance(model.conditioned.information, RowInformation)
    exact = NetworkGP(
        copy.deepcopy(network).double(), x.double(), y.double(), GaussianLikelihood(noise=1e-7), rank=None
    )
    assert bool((model.latent_marginals(x[:20])[1] >= exact.latent_marginals(x[:20].double())[1]).all())
    for name, variance in model.weight_posterior().marginal_variances().items():
        assert bool((variance >= exact.weight_posterior().marginal_variances()[name]).all())


def test_moving_keeps_the_posterior():
    network, x, y, new = problem()
    model = NetworkGP(network, x, y, CategoricalLikelihood(CLASSES), rank=8)
    known = model.conditioned.information
    assert torch.equal(model.to("cpu").conditioned.information.factor, known.factor)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin.predict(new).probs, model.predict(new).probs, rtol=0.0, atol=0.0)


# ------------------------------------------------------------------------------------ the operator
@pytest.mark.parametrize("parameters", [None, ["2"]])
def test_the_operator_is_the_dense_matrix(parameters):
    network, x, _, new = problem(rows=9)
    operator = JacobianOperator(linearise(network, parameters, x, CLASSES), x, 0.5, memory_budget=100_000)
    names = operator.linearisation.names
    J, J_new = (jacobian(network, names, rows).flatten(0, 1) for rows in (x, new))
    torch.testing.assert_close(operator.dense()[0], 2.0 * J @ J.mT)
    block = torch.randn(CLASSES, 9, 2).double()
    across = (2.0 * J_new @ J.mT @ block.movedim(0, 1).flatten(0, 1)).view(NEW, CLASSES, 2).movedim(1, 0)
    torch.testing.assert_close(operator.cross_matmul(new, block), across)
    torch.testing.assert_close(operator.row_covariance(new), row_blocks(2.0 * J_new @ J_new.mT, CLASSES))
    assert (operator.counts.passes, operator.counts.columns) == (1, 9 * CLASSES)


def test_the_solver_takes_the_operator():
    """The mode of the linearised network, which is another than its MAP, has the covariance of its own curvature."""
    network, x, y, _ = problem(rows=12)
    operator = JacobianOperator(linearise(network, None, x, CLASSES), x, 1.0)
    observations = Observations(CategoricalLikelihood(CLASSES), y)
    solver = SubspaceNewton(policy=policies.ClassGradient(), num_neighbours=0, tolerance=1e-10)
    solution = solve(operator, operator.linearisation.outputs(x), observations, solver, approximation="laplace")
    assert solution.converged
    K = operator.dense()[0]
    W = torch.block_diag(*solution.curvature)
    exact = K - K @ W @ torch.linalg.solve(torch.eye(len(K)).double() + K @ W, K)
    torch.testing.assert_close(solution.latent_covariance, row_blocks(exact, CLASSES), rtol=1e-5, atol=1e-7)


# -------------------------------------------------------------------------------------- errors
class Mixing(nn.Module):
    """Rows that depend on each other."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.last(x - x.mean(0))


def test_what_does_not_fit_is_refused():
    network, x, y, new = problem()
    likelihood = CategoricalLikelihood(CLASSES)
    wrong = {
        "torch module": lambda: NetworkGP(lambda x: x, x, y, likelihood),
        "itself in evaluation mode": lambda: NetworkGP(Mixing().double(), x, y, likelihood),
        r"latent value\(s\) of each row": lambda: NetworkGP(network, x, y, CategoricalLikelihood(4)),
        "one target for each": lambda: NetworkGP(network, x, y[1:], likelihood),
        "must be a loader": lambda: NetworkGP(network, x, None, likelihood),
        "None with a loader": lambda: NetworkGP(network, [(x, y)], None, likelihood, sample_weight=torch.ones(ROWS)),
        "must name parameters or modules of": lambda: NetworkGP(network, x, y, likelihood, parameters=["7"]),
        "must choose some": lambda: NetworkGP(network, x, y, likelihood, parameters=lambda *_: False),
        "must be positive": lambda: NetworkGP(network, x, y, likelihood, prior_precision=0.0),
        "cover all chosen": lambda: NetworkGP(network, x, y, likelihood, prior_precision={"0": 1.0}),
        "one for each of the 4": lambda: NetworkGP(network, x, y, likelihood, prior_precision=torch.ones(3)),
        "`prior_mean`": lambda: NetworkGP(network, x, y, likelihood, prior_mean={"9": x}),
        "`coverage`": lambda: NetworkGP(network, x, y, likelihood, coverage=0.0),
        "`rank`": lambda: NetworkGP(network, x, y, likelihood, rank=0),
        "finite": lambda: NetworkGP(network, x / 0.0, y, likelihood),
        "as many rows": lambda: NetworkGP(network, (x, x[1:]), y, likelihood),
        "labels|integers": lambda: NetworkGP(network, x, y + 1, likelihood).condition(),
        "`bound`": lambda: NetworkGP(network, x, y, likelihood).evidence("middle"),
        "joint distribution": lambda: NetworkGP(network, x, y, likelihood)(x.repeat(100, 1)),
        "data or a saved": lambda: NetworkGP(network, None, None, likelihood).predict(new),
        "`weights` must have": lambda: NetworkGP(network, x, y, likelihood).weight_posterior().penalty({}),
        "block must have shape": lambda: JacobianOperator(linearise(network, None, x, 3), x).matmul(x),
        "`precision` must be": lambda: JacobianOperator(linearise(network, None, x, 3), x, -1.0),
    }
    for message, make in wrong.items():
        with pytest.raises(InputError, match=message):
            make()


def test_a_linear_network_under_student_t_noise_is_a_gaussian_process():
    """Both condition their covariance with the Fisher information, not with the curvature of the steps to the mode."""
    x = torch.randn(ROWS, 3, dtype=torch.float64)
    y, new = x[:, 0] + 0.3 * torch.randn(ROWS, dtype=torch.float64), torch.randn(NEW, 3, dtype=torch.float64)
    linear, constant = LinearKernel().double(), ConstantKernel().double()
    linear.variance = constant.constant = torch.tensor(1.0, dtype=torch.float64)
    process = GP(x, y, StudentTLikelihood(noise=0.1, deg_free=4.0), mean=ZeroMean(), kernel=linear + constant).double()
    process.approximation, process.solver = "laplace", DenseNewton()
    network = nn.Linear(3, 1).double()
    with torch.no_grad():  # the weights of the mode
        shares = process.condition().representer_weights
        network.weight.copy_(shares.mT @ x)
        network.bias.copy_(shares.sum(0))
    model = NetworkGP(network, x, y, StudentTLikelihood(noise=0.1, deg_free=4.0).double(), prior_precision=1.0)
    mean, covariance, _ = model.latent_moments(new)
    expected = process.eval()(new)
    torch.testing.assert_close(mean[:, 0], expected.mean.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(covariance[:, 0, 0], expected.variance.detach(), rtol=1e-6, atol=1e-9)


def test_a_network_is_not_emptied():
    model = NetworkGP(mlp(), torch.randn(ROWS, 4), torch.randint(CLASSES, (ROWS,)), CategoricalLikelihood(CLASSES))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=r"Got to_empty, .* Use model\.to\(device\)"):
        model.to_empty(device="cpu")
    with pytest.raises(
        InputError, match=r"`training data and parameters` must hold values\. Got a tensor on the meta device"
    ):
        model.to("meta")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
