"""Models of several outputs whose latent functions are coupled, against dense algebra over all latent values."""

from __future__ import annotations

import importlib

import gpytorch
import gpytorch.likelihoods as gl
import numpy as np
import pytest
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import LCMKernel, MaternKernel, MultitaskKernel, RBFKernel, RBFKernelGrad, ScaleKernel
from helpers import assert_close, make_inputs
from torch import Tensor

import itergp
from itergp.errors import InputError
from itergp.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianLikelihood,
    IndependentOutputsLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)
from itergp.models import NonConjugateGP
from itergp.objectives import ComputationAwareELBO, LaplaceEvidence, PredictiveLogDensity
from itergp.operators import KernelOperator
from itergp.solvers import DenseNewton, IterNCGP, LinearTimeNewton, SubspaceNewton
from itergp.solvers.policies import (
    CG,
    BlockGradient,
    BlockSparse,
    ClassGradient,
    Gradient,
    KernelColumns,
    Lanczos,
    PreconditionedCG,
    RandomProbes,
    UnitVectors,
)
from itergp.solvers.subspace import newton_system

ROWS, OUTPUTS = 10, 3


class Outputs(NonConjugateGP):
    """Constant means and a kernel with several outputs."""

    def __init__(self, x, y, likelihood, kernel, **options):
        super().__init__(x, y, likelihood, **options)
        self.mean_module = gpytorch.means.MultitaskMean(gpytorch.means.ConstantMean(), num_tasks=OUTPUTS)
        self.covar_module = kernel

    def forward(self, x):
        return MultitaskMultivariateNormal(self.mean_module(x), self.covar_module(x))


def _multitask():
    return MultitaskKernel(ScaleKernel(MaternKernel(nu=1.5)), num_tasks=OUTPUTS, rank=2)


def _sum():
    return LCMKernel([RBFKernel(), MaternKernel(nu=2.5)], num_tasks=OUTPUTS, rank=1)


KERNELS = {
    "multitask": _multitask,
    "linear coregionalisation": _sum,
    "scaled, with columns": lambda: MultitaskKernel(RBFKernel(), OUTPUTS, active_dims=(0,)) + ScaleKernel(_multitask()),
    "derivatives": lambda: ScaleKernel(RBFKernelGrad()),
}
LIKELIHOODS = {
    "softmax": lambda: CategoricalLikelihood(OUTPUTS),
    "mixed": lambda: IndependentOutputsLikelihood(
        BernoulliLikelihood(), PoissonLikelihood(), GaussianLikelihood(noise=0.3)
    ),
    "gaussian": lambda: gl.MultitaskGaussianLikelihood(OUTPUTS, rank=2),
}
SOLVERS = {
    "dense": DenseNewton(),
    "subspace": SubspaceNewton(tolerance=1e-12),
    "linear time": LinearTimeNewton(num_support=ROWS, covariance_rank=ROWS * OUTPUTS, tolerance=1e-13),
    "published": IterNCGP(policy=UnitVectors(rows=7), iterations=None, step="backtracking", tolerance=1e-12),
}


def _targets(name: str, rows: int = ROWS, missing: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if name == "softmax":
        return torch.randint(OUTPUTS, (rows,), generator=generator)
    y = torch.randn(rows, OUTPUTS, generator=generator, dtype=torch.float64)
    if name == "mixed":
        y = torch.stack([(y[:, 0] > 0).double(), y[:, 1].exp().round(), y[:, 2]], -1)
    if missing:
        y[1, 0] = y[4, 1] = y[5] = y[8, 2] = torch.nan
    return y


def _model(kernel: str, likelihood: str, rows: int = ROWS, missing: bool = False, **options) -> Outputs:
    x = make_inputs(rows, 2)
    torch.manual_seed(1)
    model = Outputs(
        x,
        _targets(likelihood, rows, missing),
        LIKELIHOODS[likelihood](),
        KERNELS[kernel](),
        missing_targets=missing,
        **options,
    ).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.eval()


# ------------------------------------------------------- dense algebra, by itself
def _log_density(model: Outputs, f: Tensor) -> Tensor:
    """``log p(y | f)`` of all rows, from the definitions."""
    y, likelihood = model.train_targets, model.likelihood
    if isinstance(likelihood, CategoricalLikelihood):
        return torch.log_softmax(f, -1)[torch.arange(len(y)), y].sum()
    seen = ~y.isnan()
    y = torch.where(seen, y, 1.0)
    if isinstance(likelihood, IndependentOutputsLikelihood):
        noise = likelihood.likelihoods[2].noise
        labels = y[:, 0] * torch.nn.functional.logsigmoid(f[:, 0]) + (1 - y[:, 0]) * torch.nn.functional.logsigmoid(
            -f[:, 0]
        )
        counts = y[:, 1] * f[:, 1] - f[:, 1].exp() - torch.lgamma(y[:, 1] + 1)
        reals = -0.5 * ((y[:, 2] - f[:, 2]).square() / noise + torch.log(2 * torch.pi * noise))
        return (torch.stack([labels, counts, reals], -1) * seen).sum()
    noise, total = likelihood.task_noise_covar + likelihood.noise * torch.eye(OUTPUTS).double(), f.new_zeros(())
    for which in seen.unique(dim=0):
        rows = (seen == which).all(-1)
        if bool(which.any()):
            own = torch.distributions.MultivariateNormal(f[rows][:, which], noise[which][:, which])
            total = total + own.log_prob(y[rows][:, which]).sum()
    return total


def _dense_prior(model: Outputs, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        covariance = model.covar_module(x).to_dense()
        return model.mean_module(x).reshape(-1), 0.5 * (covariance + covariance.mT)


def _reference(model: Outputs, new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Laplace: mean and joint covariance at new inputs, and the evidence, all by dense Newton steps."""
    x = model.train_inputs[0]
    rows, size = len(x), len(x) * OUTPUTS
    mean, joint = _dense_prior(model, torch.cat([x, new]))
    K, across = joint[:size, :size], joint[size:, :size]

    def density(f):
        return _log_density(model, f.view(rows, OUTPUTS))

    f = mean[:size]
    eye = torch.eye(size, dtype=f.dtype)
    for _ in range(100):
        f = f.detach().requires_grad_(True)
        (g,) = torch.autograd.grad(density(f), f)
        W = -torch.autograd.functional.hessian(density, f.detach())
        step = mean[:size] + K @ torch.linalg.solve(eye + W @ K, W @ (f.detach() - mean[:size]) + g) - f.detach()
        f = f.detach() + (0.5 if float(step.abs().max()) > 2.0 else 1.0) * step
        if float(step.abs().max()) < 1e-12:
            break
    weights = torch.autograd.functional.jacobian(density, f)
    W = -torch.autograd.functional.hessian(density, f)
    system = eye + W @ K
    evidence = density(f) - 0.5 * weights @ (f - mean[:size]) - 0.5 * torch.linalg.slogdet(system).logabsdet
    covariance = joint[size:, size:] - across @ torch.linalg.solve(system, W @ across.mT)
    return (mean[size:] + across @ weights).view(-1, OUTPUTS).detach(), covariance.detach(), evidence.detach()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_laplace_posterior_is_that_of_dense_algebra(kernel, likelihood, solver):
    model = _model(kernel, likelihood, approximation="laplace", solver=SOLVERS[solver])
    new = make_inputs(5, 2, seed=4)
    with torch.no_grad():
        found = model(new)
    mean, covariance, evidence = _reference(model, new)
    assert_close(found.mean, mean, "derivative")
    assert_close(found.covariance_matrix, covariance, "derivative")
    assert_close(
        found.row_covariance(), torch.stack([covariance[i : i + 3, i : i + 3] for i in range(0, 15, 3)]), "derivative"
    )
    assert model.solution.log_marginal_likelihood == pytest.approx(float(evidence), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("solver", ["dense", "subspace", "linear time", "published"])
@pytest.mark.parametrize("likelihood", ["mixed", "gaussian"])
def test_outputs_that_were_not_observed_say_nothing(likelihood, solver):
    model = _model("multitask", likelihood, missing=True, approximation="laplace", solver=SOLVERS[solver])
    new = make_inputs(5, 2, seed=4)
    with torch.no_grad():
        found = model(new)
    mean, covariance, evidence = _reference(model, new)
    assert_close(found.mean, mean, "derivative")
    assert_close(found.covariance_matrix, covariance, "derivative")
    assert model.solution.log_marginal_likelihood == pytest.approx(float(evidence), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("likelihood", ["softmax", "mixed"])
def test_equal_rows_are_several_observations(likelihood):
    model = _model("multitask", likelihood, approximation="laplace", solver=SOLVERS["subspace"])
    x = model.train_inputs[0].clone()
    x[5:] = x[:5]
    model.set_train_data(x, model.train_targets)
    new = make_inputs(5, 2, seed=4)
    with torch.no_grad():
        found = model(new)
    mean, covariance, evidence = _reference(model, new)
    assert_close(found.mean, mean, "derivative")
    assert_close(found.covariance_matrix, covariance, "derivative")
    assert model.solution.log_marginal_likelihood == pytest.approx(float(evidence), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("solver", ["dense", "subspace", "linear time"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_variational_posterior_is_stationary(kernel, solver):
    model = _model(kernel, "mixed", missing=True, solver=SOLVERS[solver])
    solution, y = model.solution, model.train_targets
    _, K = _dense_prior(model, model.train_inputs[0])
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    nodes, weights = torch.tensor(nodes), torch.tensor(weights / weights.sum())
    f = solution.latent_values
    at = f.unsqueeze(-1) + solution.latent_covariance.diagonal(dim1=-2, dim2=-1).sqrt().unsqueeze(-1) * nodes
    p, rate, noise = torch.sigmoid(at[:, 0]), at[:, 1].exp(), model.likelihood.likelihoods[2].noise.detach()
    g = torch.stack([y[:, 0:1] - p, y[:, 1:2] - rate, (y[:, 2:] - at[:, 2]) / noise], 1) @ weights
    W = torch.stack([p * (1 - p), rate, torch.ones_like(rate) / noise], 1) @ weights
    g, W = (torch.where(y.isnan(), 0.0, part).reshape(-1) for part in (g, W))
    assert_close(f.reshape(-1), (_dense_prior(model, model.train_inputs[0])[0] + K @ g), "derivative")
    covariance = torch.linalg.solve(torch.eye(len(W)).double() + K * W, K)
    blocks = torch.stack([covariance[i : i + 3, i : i + 3] for i in range(0, len(W), 3)])
    assert float((solution.latent_covariance - blocks).abs().max()) < 1e-3 * float(blocks.abs().max())


# ------------------------------------------------------------------------ laws
def _tasks(order: list[int], y: Tensor, approximation: str = "variational") -> Outputs:
    """A model of outputs in another order."""
    model = _model("multitask", "gaussian", approximation=approximation)
    members = [BernoulliLikelihood(), PoissonLikelihood(), GaussianLikelihood(noise=0.3)]
    likelihood = IndependentOutputsLikelihood(*(members[c] for c in order))
    kernel = model.covar_module
    turned = (
        Outputs(model.train_inputs[0], y[:, order], likelihood, kernel, approximation=approximation).double().eval()
    )
    with torch.no_grad():
        tasks = kernel.task_covar_module
        tasks.covar_factor.copy_(tasks.covar_factor[order])
        tasks.raw_var.copy_(tasks.raw_var[order])
        for c, place in enumerate(order):
            turned.mean_module.base_means[c].constant.fill_(0.1 * place)
    return turned


def test_permuting_outputs_permutes_the_answer():
    y, new, order = _targets("mixed"), make_inputs(6, 2, seed=4), [2, 0, 1]
    with torch.no_grad():
        straight, turned = _tasks([0, 1, 2], y)(new), _tasks(order, y)(new)
    assert_close(turned.mean, straight.mean[:, order], "posterior")
    expected = straight.covariance_matrix.view(6, 3, 6, 3)[:, order][:, :, :, order].reshape(18, 18)
    assert_close(turned.covariance_matrix, expected, "derivative")


class Alone(NonConjugateGP):
    """Latent functions that share a kernel and are not coupled."""

    def __init__(self, x, y, likelihood, **options):
        super().__init__(x, y, likelihood, **options)
        self.covar_module = ScaleKernel(MaternKernel(nu=1.5))

    def forward(self, x):
        return MultivariateNormal(torch.zeros_like(x[:, 0]), self.covar_module(x))


@pytest.mark.parametrize("approximation", ["laplace", "variational"])
@pytest.mark.parametrize("likelihood", ["softmax", "mixed"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_functions_that_are_coupled_by_nothing_are_those_of_a_shared_kernel(solver, likelihood, approximation):
    x, y, options = (
        make_inputs(ROWS, 2),
        _targets(likelihood),
        {"solver": SOLVERS[solver], "approximation": approximation},
    )
    coupled = Outputs(x, y, LIKELIHOODS[likelihood](), _multitask(), **options).double().eval()
    alone = Alone(x, y, LIKELIHOODS[likelihood](), **options).double().eval()
    with torch.no_grad():
        coupled.covar_module.task_covar_module.covar_factor.zero_()
        coupled.covar_module.task_covar_module.var = torch.ones(OUTPUTS).double()
        new = make_inputs(6, 2, seed=4)
        found, expected = coupled(new), alone(new)
    kind = {"dtype": torch.float32} if solver == "published" and approximation == "variational" else {}
    assert_close(found.mean, expected.mean, "derivative", **kind)
    assert_close(found.covariance_matrix, expected.covariance_matrix, "derivative", **kind)
    assert coupled.solution.elbo == pytest.approx(alone.solution.elbo, rel=1e-3 if kind else 1e-5)


@pytest.mark.parametrize("rank", [6, 20])
@pytest.mark.parametrize("kernel", KERNELS)
def test_fewer_actions_widen_the_covariance(kernel, rank):
    exact = _model(kernel, "softmax", rows=60, solver=DenseNewton(), approximation="laplace")
    model = _model(kernel, "softmax", rows=60, approximation="laplace", solver=SubspaceNewton(covariance_rank=rank))
    new = make_inputs(4, 2, seed=4)
    with torch.no_grad():
        wider = model(new).covariance_matrix - exact(new).covariance_matrix
    assert model.solution.rank == rank
    assert float(torch.linalg.eigvalsh(wider).min()) > -1e-5 * float(wider.abs().max())


@pytest.mark.parametrize("passes", [1, 2, 4])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_certificate_holds(kernel, passes):
    exact = _model(kernel, "softmax", rows=60, solver=DenseNewton(), approximation="laplace").solution
    solver = SubspaceNewton(max_passes=passes + 1, num_blocks=6, tolerance=1e-14)
    model = _model(kernel, "softmax", rows=60, approximation="laplace", solver=solver)
    solution = model.solution
    gap = solution.objective - exact.objective
    assert gap + 1e-9 >= 0.0
    assert gap <= solution.certificate.objective_gap + 1e-9
    error = (solution.latent_values - exact.latent_values).abs()
    assert bool((error <= solution.certificate.latent_error(model.train_inputs[0]) + 1e-9).all())


@pytest.mark.parametrize(
    "solver",
    [
        SubspaceNewton(policy=ClassGradient(), tolerance=1e-9),
        SubspaceNewton(policy=Gradient(), tolerance=1e-9),
        SubspaceNewton(policy=BlockGradient(num_blocks=4), tolerance=1e-9),
        SubspaceNewton(policy=UnitVectors(rows=8), tolerance=1e-9),
        SubspaceNewton(policy=RandomProbes(width=4), tolerance=1e-9, max_passes=100),
        SubspaceNewton(max_rank=60, tolerance=1e-6),
        SubspaceNewton(tolerance=1e-9, covariance_rank=100),
        LinearTimeNewton(num_support=20, polish=SubspaceNewton(tolerance=1e-9)),
        IterNCGP(policy=CG(), step="backtracking", max_passes=400, tolerance=1e-9),
        IterNCGP(policy=Gradient(), step="backtracking", max_passes=400, tolerance=1e-9),
        IterNCGP(policy=ClassGradient(), step="backtracking", max_passes=400, tolerance=1e-9),
        IterNCGP(policy=UnitVectors(order="variance", rows=5), step="backtracking", tolerance=1e-9, iterations=None),
        IterNCGP(policy=BlockSparse(), step="backtracking", max_passes=400, tolerance=1e-9),
        IterNCGP(
            policy=KernelColumns(num_inputs=40), step="backtracking", max_passes=400, tolerance=1e-9, iterations=None
        ),
        IterNCGP(policy=Lanczos(), step="backtracking", max_passes=400, tolerance=1e-9),
    ],
    ids=repr,
)
@pytest.mark.parametrize("kernel", ["multitask", "derivatives"])
def test_solvers_and_policies_find_the_same_mode(kernel, solver):
    exact = _model(kernel, "mixed", rows=40, solver=DenseNewton(), approximation="laplace").solution
    solution = _model(kernel, "mixed", rows=40, solver=solver, approximation="laplace").solution
    assert solution.converged
    assert solution.objective == pytest.approx(exact.objective, abs=40 * 2.0 * solver_tolerance(solver))


def solver_tolerance(solver) -> float:
    """Of the last stage."""
    return solver.sequence[-1].tolerance


def test_policies_that_take_kernels_by_themselves_are_refused():
    model = _model("multitask", "mixed", solver=IterNCGP(policy=PreconditionedCG()))
    with pytest.raises(
        InputError, match=r"not coupled\. Got KroneckerOperator, which couples them\. Use SubspaceNewton"
    ):
        model.condition()


def test_newton_systems_of_many_unknowns(monkeypatch):
    monkeypatch.setattr(newton_system, "_DENSE_WORK", 0.0)
    monkeypatch.setattr(newton_system, "_DENSE_LIMIT", 0)
    monkeypatch.setattr(newton_system, "_SAMPLE_ROWS", 8)
    monkeypatch.setattr(newton_system, "_WORTH_STEPS", 0)
    exact = _model("multitask", "mixed", rows=60, solver=DenseNewton(), approximation="laplace").solution
    solver = SubspaceNewton(num_blocks=6, tolerance=1e-9)
    solution = _model("multitask", "mixed", rows=60, solver=solver, approximation="laplace").solution
    assert solution.objective == pytest.approx(exact.objective, abs=1e-6)


def test_single_precision():
    exact = _model("multitask", "mixed", rows=60)
    model = _model("multitask", "mixed", rows=60, solver=SubspaceNewton(tolerance=1e-6))
    model.float()
    new = make_inputs(5, 2, seed=4)
    with torch.no_grad():
        found, expected = model(new.float()), exact(new)
    assert_close(found.mean, expected.mean, "posterior")
    assert_close(found.variance, expected.variance, "posterior")


# ------------------------------------------------------------------- objectives
def _differences(model: Outputs, evaluate) -> None:
    """Gradients equal central differences, along every parameter."""
    evaluate().backward()
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.add_(step * direction)
            values.append(float(evaluate().detach()))
            with torch.no_grad():
                parameter.add_(-step * direction)
        expected = (values[0] - values[1]) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=2e-4, abs=2e-6), name


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_of_objectives_are_those_of_finite_differences(kernel, likelihood):
    model = _model(kernel, likelihood, missing=likelihood == "mixed", solver=DenseNewton()).train()
    evidence = LaplaceEvidence(model.likelihood, model, initialise_kernel=False)
    value = evidence(model(*model.train_inputs), model.train_targets)
    assert_close(ROWS * value, _reference(model, make_inputs(1, 2))[2], "posterior")
    _differences(model, lambda: evidence(model(*model.train_inputs), model.train_targets))
    model.zero_grad()
    bound = ComputationAwareELBO(model.likelihood, model, condition_every=10_000, initialise_kernel=False)
    _differences(model, lambda: bound(model(*model.train_inputs), model.train_targets))


@pytest.mark.parametrize("kernel", KERNELS)
def test_dense_matrices_give_the_bound_of_the_solver(kernel):
    values = []
    for max_passes in (None, 500):  # a limit, with which the solver's own posterior is taken
        model = _model(
            kernel, "gaussian", missing=True, solver=SubspaceNewton(tolerance=1e-12, max_passes=max_passes)
        ).train()
        bound = ComputationAwareELBO(model.likelihood, model, initialise_kernel=False)
        assert bound.by_dense_matrices == (max_passes is None)
        value = bound(model(*model.train_inputs), model.train_targets)
        value.backward()
        slopes = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        values.append(torch.cat([value.detach().reshape(1), *slopes]))
    assert_close(values[0], values[1], "posterior")


@pytest.mark.parametrize("predictive", ["plug-in", "variational"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_gradients_of_held_out_densities(likelihood, predictive):
    model = _model("multitask", likelihood, rows=20).train()
    options = {"predictive": predictive, "renew_every": None, "tolerance": 1e-14, "warm_start": False}
    held_out = PredictiveLogDensity(model.likelihood, model, initialise_kernel=False, **options)
    _differences(model, lambda: held_out(model(*model.train_inputs), model.train_targets))


def test_bounds_lie_below_the_evidence_and_are_exact_for_gaussian_noise():
    model = _model("linear coregionalisation", "gaussian", missing=True)
    _, _, evidence = _reference(model, make_inputs(1, 2))
    assert model.solution.elbo == pytest.approx(float(evidence), rel=1e-6)


# ----------------------------------------------------------------- predictions
def test_predictions_of_outputs_are_those_of_their_likelihoods():
    model = _model("multitask", "mixed", missing=True)
    new = make_inputs(6, 2, seed=4)
    with torch.no_grad():
        predicted, latent = model.predict(new), model(new)
    assert predicted.mean.shape == predicted.variance.shape == (6, 3)
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(200_000, 6, 3, generator=generator, dtype=torch.float64)
    f = latent.mean + draws * latent.variance.sqrt()
    noise = model.likelihood.likelihoods[2].noise
    expected = torch.stack([torch.sigmoid(f[..., 0]).mean(0), f[..., 1].exp().mean(0), f[..., 2].mean(0)], -1)
    assert torch.allclose(predicted.mean, expected, rtol=0.03)
    assert_close(predicted.variance[:, 2], latent.variance[:, 2] + noise.detach())
    y = _targets("mixed", 6)
    y[2, 1] = torch.nan
    density = predicted.log_prob(y)
    assert float(density[2, 1]) == 0.0
    covariance = latent.row_covariance()
    observed = model.observations.likelihood.predictive_log_density(latent.mean, covariance, y)
    assert_close(density.sum(-1), observed, dtype=torch.float32)
    assert len(predicted.outputs) == 3
    assert predicted.quantile(0.5).shape == (6, 3)
    assert predicted.sample((4,)).shape == (4, 6, 3)
    with torch.no_grad():
        assert_close(model.likelihood(latent).mean, predicted.mean)


# ------------------------------------------------------- what goes on around it
@pytest.mark.parametrize("solver", ["subspace", "linear time", "published"])
@pytest.mark.parametrize("kernel", ["multitask", "derivatives"])
def test_saved_models_predict_alike(kernel, solver, tmp_path):
    model, other = (_model(kernel, "mixed", missing=True, solver=SOLVERS[solver]) for _ in range(2))
    new = make_inputs(5, 2, seed=4)
    with torch.no_grad():
        expected = model(new)
        model.save(tmp_path / "model.safetensors")
        other.covar_module.initialize(**{name: p + 1.0 for name, p in other.covar_module.named_parameters()})
        other.load(tmp_path / "model.safetensors")
        assert other.current_solution is not None
        found = other(new)
    assert torch.equal(found.mean, expected.mean)
    assert_close(found.covariance_matrix, expected.covariance_matrix)


class Stop(Exception):
    """Ends a solve."""


@pytest.mark.parametrize("kernel", ["multitask", "derivatives"])
@pytest.mark.parametrize(
    "solver",
    [
        SubspaceNewton(num_blocks=6, tolerance=1e-9),
        LinearTimeNewton(num_support=40, tolerance=1e-9),
        IterNCGP(step="backtracking", max_passes=60),
        DenseNewton(),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_an_interrupted_solve_goes_on(kernel, solver, tmp_path):
    def make():
        return _model(kernel, "mixed", rows=60, solver=solver)

    path = tmp_path / "checkpoint"

    def stop(record):
        raise Stop("now")

    with pytest.raises(Stop, match="now"):
        make().condition(callback=stop, checkpoint=path, checkpoint_every=0.0)
    resumed, whole = make(), make()
    found, expected = resumed.condition(checkpoint=path, checkpoint_every=0.0), whole.condition()
    assert_close(found.latent_values, expected.latent_values, "posterior")
    assert_close(found.latent_covariance, expected.latent_covariance, "posterior")


def test_a_posterior_is_where_the_next_one_starts():
    solver = SubspaceNewton(num_blocks=6, tolerance=1e-8)
    model = _model("multitask", "mixed", rows=60, solver=solver)
    cold = model.condition()
    with torch.no_grad():
        model.covar_module.task_covar_module.covar_factor.mul_(1.001)
    warm = model.condition()
    assert warm.converged
    assert warm.kernel_passes <= cold.kernel_passes
    model.append_train_data(make_inputs(5, 2, seed=8), _targets("mixed", 5))
    more = model.condition()
    data = *model.train_inputs, model.train_targets
    fresh = Outputs(*data, model.likelihood, model.covar_module, solver=solver).double().eval()
    fresh.mean_module = model.mean_module
    assert_close(more.latent_values, fresh.condition().latent_values, dtype=torch.float32)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_hyperparameters_are_learned(likelihood):
    model = _model("multitask", likelihood, rows=30, missing=likelihood == "mixed")
    before = model.covar_module.task_covar_module.covar_factor.clone()
    result = itergp.fit(model, max_iterations=4)
    assert result.records[-1].objective >= result.records[0].objective
    assert not torch.equal(before, model.covar_module.task_covar_module.covar_factor)


@pytest.mark.parametrize("kernel", ["multitask", "derivatives"])
def test_bayesian_optimisation_sees_the_same_posterior(kernel):
    pytest.importorskip("botorch")
    model, more = (_model(kernel, "mixed", solver=DenseNewton()) for _ in range(2))
    wrapped, points = (
        importlib.import_module("itergp.botorch").BotorchModel(model),
        make_inputs(8, 2, seed=4).view(4, 2, 2),
    )
    rows = make_inputs(2, 2, seed=9), _targets("mixed", 2)
    more.append_train_data(*rows)
    with torch.no_grad():
        for found, expected in ((wrapped, model), (wrapped.condition_on_observations(*rows), more)):
            batch = found.posterior(points).distribution
            one = expected(points[1])
            assert_close(batch.mean[1], one.mean, "posterior")
            assert_close(batch.covariance_matrix[1], one.covariance_matrix, "posterior")
    with pytest.raises(InputError, match="must be False for several outputs"):
        wrapped.posterior(points, observation_noise=True)


def test_plans_count_what_outputs_cost():
    one, many = _model("multitask", "mixed", rows=200).plan(), _model("derivatives", "mixed", rows=200).plan()
    assert one.entries == pytest.approx(200**2 // 2, rel=0.1)  # kept, and outputs cost no entries
    assert many.entries == pytest.approx((200 * OUTPUTS) ** 2, rel=0.1)
    assert "200 rows x 3 latent (KroneckerOperator)" in str(one)


@pytest.mark.parametrize("kernel", ["multitask", "derivatives"])
def test_parts_of_uncertainty(kernel):
    options = {"rows": 60, "approximation": "laplace"}
    model = _model(kernel, "mixed", solver=SubspaceNewton(covariance_rank=10, tolerance=1e-9), **options)
    exact, new = _model(kernel, "mixed", solver=DenseNewton(), **options), make_inputs(5, 2, seed=4)
    with torch.no_grad():
        expected = exact(new).variance
        found, bounds = (model.decompose_uncertainty(new, passes=6, dense_limit=n) for n in (4000, 1))
    assert found.exact
    assert_close(found.mathematical, expected, "derivative", dtype=torch.float32)
    assert_close(found.combined, model(new).variance)
    assert bool((found.computational > 0.0).any())
    assert not bounds.exact
    low, high = bounds.mathematical - bounds.slack, bounds.mathematical
    assert bool(((low <= found.mathematical + 1e-6) & (found.mathematical <= high + 1e-6)).all())
    assert float(bounds.slack.max()) < 0.5 * float(found.combined.max())


class Own(KernelOperator):
    """Somebody's own."""

    def _matmul(self, block):
        raise NotImplementedError


def test_operators_of_the_users_are_refused():
    with pytest.raises(
        InputError, match=r"couples latent functions has operators of its own\. Got Own for MultitaskKernel"
    ):
        _model("multitask", "mixed", operator=Own).condition()


def test_likelihoods_of_outputs_are_checked():
    with pytest.raises(InputError, match="must have a likelihood for each output"):
        IndependentOutputsLikelihood()
    with pytest.raises(InputError, match=r"of one latent function .* Got CategoricalLikelihood"):
        IndependentOutputsLikelihood(CategoricalLikelihood(3))
    assert IndependentOutputsLikelihood(GaussianLikelihood(), gl.GaussianLikelihood()).quadratic
    assert not IndependentOutputsLikelihood(GaussianLikelihood(), StudentTLikelihood()).log_concave
    likelihood = LIKELIHOODS["mixed"]()
    for wrong, match in (
        (torch.zeros(4), r"shape \(N, 3\) .* Got \(4,\)"),
        (torch.full((4, 3), torch.nan), "At least one target must be observed"),
        (torch.full((4, 3), 0.5), "non-integer 0.5"),
        (torch.tensor([[1.0, -1.0, 0.0]]), "counts 0, 1, 2"),
        (torch.tensor([[1.0, 1.0, torch.inf]]), "must be finite"),
    ):
        with pytest.raises(InputError, match=match):
            likelihood.validate_targets(wrong)
