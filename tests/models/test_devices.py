"""No operation mixes devices: everything runs on a device that exists only in ``device.py``, to the same numbers."""

from __future__ import annotations

import gpytorch
import pytest
import torch
from device import DEVICE, MixedDevices, OnDevice, device
from helpers import CASES, SimpleGP, assert_close, make_batch_kernel, make_inputs, make_kernel, make_model

import itergp
from itergp.kernels import AdditiveLaplacianKernel, PairwiseLaplacianKernel
from itergp.objectives import ComputationAwareELBO, LaplaceEvidence, PredictiveLogDensity
from itergp.operators import make_operator
from itergp.solvers import DenseNewton, IterNCGP, LinearTimeNewton, SubspaceNewton
from itergp.solvers.policies import (
    CG,
    BlockGradient,
    BlockSparse,
    ClassGradient,
    Gradient,
    KernelColumns,
    Lanczos,
    Mixed,
    PreconditionedCG,
    PreconditionedGradient,
    RandomProbes,
    Scheduled,
    UnitVectors,
)

ROWS = 14


def inner(tensor):
    assert isinstance(tensor, OnDevice), "a tensor of the CPU came out"
    return tensor.inner


# ------------------------------------------------------------------ the device itself
def test_the_device_refuses_what_cuda_refuses():
    with device():
        x = torch.ones(4, 2).to(DEVICE)
        assert x.device == DEVICE
        for mixed in (
            lambda: x + torch.ones(4, 2),
            lambda: torch.cat([x, torch.ones(1, 2)]),
            lambda: x @ torch.ones(2, 3),
            lambda: torch.where(x > 0.0, x, torch.ones(4, 2)),
            lambda: x.index_select(0, torch.arange(2)),
            lambda: torch.randn(3, generator=torch.Generator(), device=DEVICE),
            lambda: torch.zeros(4, 2).add_(x),
        ):
            with pytest.raises(MixedDevices, match=r"got (tensors|a generator)"):
                mixed()
        with pytest.raises((RuntimeError, TypeError), match=r"."):
            x.numpy()


def test_the_device_computes_as_the_cpu_does():
    with device():
        x = torch.arange(8.0).reshape(4, 2).to(DEVICE)
        assert float(x.sum()) == 28.0  # values are there, for control flow
        assert x[torch.arange(2)].shape == (2, 2)  # row numbers may be of the CPU
        assert_close((x * 2.0 + torch.tensor(1.0)).cpu(), torch.arange(8.0).reshape(4, 2) * 2.0 + 1.0)
        zeros = torch.zeros(3, device=DEVICE)
        zeros[1:] += 1.0
        assert zeros.tolist() == [0.0, 1.0, 1.0]
        assert torch.linalg.cholesky(torch.eye(2, device=DEVICE)).device == DEVICE


# ------------------------------------------------------------------------- likelihoods
@pytest.mark.parametrize("name", sorted(CASES))
def test_the_calculus_of_a_likelihood(name):
    case = CASES[name]
    x, targets = case.data(8)
    likelihood = case.make().double()
    y = likelihood.validate_targets(targets)
    f = make_inputs(8, case.num_latents, seed=2)
    root = make_inputs(8 * case.num_latents, case.num_latents, seed=4).reshape(8, case.num_latents, -1)
    covariance = root @ root.mT

    def calculus(likelihood, f, y, covariance):
        nodes, weights = likelihood.standard_nodes(f)
        offsets = nodes * covariance.diagonal(dim1=1, dim2=2).sqrt()
        predictive = likelihood.predictive(f, covariance)
        structure = likelihood.structured_root(f)
        return [
            likelihood.log_density(f, y),
            *likelihood.derivatives(f, y),
            likelihood.expected_log_density(f, offsets, weights, y),
            *likelihood.expected_derivatives(f, offsets, weights, y),
            likelihood.predictive_log_density(f, covariance, y),
            *([] if structure is None else [structure[0](structure[1](f))]),
            *([predictive.probs] if name == "categorical" else [predictive.mean, predictive.variance]),
            *(
                [predictive.quantile(0.7)]
                if hasattr(predictive, "quantile") and case.observed not in ("count", "share")
                else []
            ),
        ]

    expected = calculus(likelihood, f, y, covariance)
    with device(), torch.no_grad():
        moved = case.make().double().to(DEVICE)
        there = moved.validate_targets(targets.to(DEVICE))
        found = calculus(moved, f.to(DEVICE), there, covariance.to(DEVICE))
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(inner(ours), theirs)
    assert x.shape[0] == 8


# --------------------------------------------------------------------------- operators
@pytest.mark.parametrize("kind", ["dense", "blocked"])
@pytest.mark.parametrize("kernel", ["radial", "own", "sum"])
def test_operators(kernel, kind):
    kernels = {
        "radial": make_kernel,
        "own": make_batch_kernel,
        "sum": lambda: make_kernel() + gpytorch.kernels.LinearKernel(),
    }
    count = 3 if kernel == "own" else 1
    x, other, block = make_inputs(300), make_inputs(5, seed=1), make_inputs(300, 4, seed=2)

    def products(k, x, other, block):
        operator = make_operator(k, x, num_kernels=count, kind=kind)
        return [
            operator.matmul(block),
            operator.cross_matmul(other, block),
            operator.diagonal(other),
            operator.scaled_inputs(),
        ]

    with torch.no_grad():
        expected = products(kernels[kernel]().double(), x, other, block)
        with device():
            found = products(kernels[kernel]().double().to(DEVICE), *(t.to(DEVICE) for t in (x, other, block)))
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(inner(ours), theirs)


# ------------------------------------------------------------------------------ solvers
SOLVERS = {
    "subspace": SubspaceNewton(max_passes=6),
    "compressed": SubspaceNewton(max_passes=8, max_rank=8, tolerance=1e-9),
    "many actions": SubspaceNewton(max_passes=6, covariance_rank=3 * ROWS),
    "published": IterNCGP(max_passes=8, step="backtracking"),
    "capped": IterNCGP(max_passes=10, step="backtracking", max_rank=6, compression="informative", tolerance=1e-9),
    "dense": DenseNewton(max_steps=3),
    "linear": LinearTimeNewton(num_support=6, polish=SubspaceNewton(max_passes=5)),
}


def assert_same_on_the_device(make, *, chaotic: bool = False):
    """A model conditions and predicts on the device as it does on the CPU, unless it turns on ties and rounding."""
    x = make_inputs(3, seed=5)
    model = make()
    expected, mean = model.condition(), model.latent_mean(x)
    with device():
        moved = make().to(DEVICE)
        solution = moved.condition()
        predicted = moved.predict(x.to(DEVICE))
        means = inner(moved.latent_mean(x.to(DEVICE)))
        assert inner(predicted.sample()).shape[0] == 3
        assert moved(x.to(DEVICE)).mean.device == DEVICE
    for name in ("representer_weights", "latent_values", "latent_covariance"):
        value = inner(getattr(solution, name))
        assert bool(torch.isfinite(value).all())
        if not chaotic:
            assert_close(value, getattr(expected, name))
    if not chaotic:
        assert_close(means, mean)
        assert solution.status.reason is expected.status.reason  # gaps of 1e-31 are rounding


@pytest.mark.parametrize("name", ["bernoulli-logit", "categorical"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers(solver, name):
    # Which directions of equal information are dropped is decided by rounding.
    assert_same_on_the_device(lambda: make_model(name, ROWS, solver=SOLVERS[solver]), chaotic=solver == "compressed")


@pytest.mark.parametrize("solver", ["subspace", "published"])
def test_kernels_of_their_own_and_weights(solver):
    def make():
        x, y = CASES["categorical"].data(ROWS)
        weight = torch.linspace(0.0, 2.0, ROWS, dtype=torch.float64)
        options = {"kernel": make_batch_kernel(), "sample_weight": weight, "solver": SOLVERS[solver]}
        return SimpleGP(x, y, CASES["categorical"].make(), **options).double().eval()

    assert_same_on_the_device(make)


@pytest.mark.parametrize("pairs", [False, True])
def test_additive_kernels(pairs):
    def make():
        x, y = CASES["categorical"].data(ROWS)
        kernel = AdditiveLaplacianKernel(x.shape[-1])
        kernel = kernel + PairwiseLaplacianKernel([(0, 1)]) if pairs else kernel
        options = {"kernel": kernel, "operator": "scan", "approximation": "laplace"}
        return (
            SimpleGP(x, y, CASES["categorical"].make(), solver=SubspaceNewton(covariance_rank=20), **options)
            .double()
            .eval()
        )

    assert_same_on_the_device(make)


POLICIES = (
    CG(),
    Gradient(),
    ClassGradient(),
    BlockGradient(num_blocks=2),
    BlockSparse(num_blocks=2),
    KernelColumns(num_inputs=4, width=2),
    Lanczos(),
    PreconditionedCG(rank=3),
    PreconditionedGradient(),
    RandomProbes(),
    UnitVectors(order="random", rows=3),
    UnitVectors(order="variance", rows=3),
    UnitVectors(order="spread", rows=3),
    UnitVectors(order="leverage", rows=3),
    Scheduled(((UnitVectors(order="given", rows=2), 2), (Mixed((CG(), RandomProbes())), None))),
)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_policies(policy):
    solver = IterNCGP(policy=policy, max_passes=4, max_steps=3, iterations=2, step="backtracking")
    ties = isinstance(policy, UnitVectors) and policy.order not in (
        "random",
        "given",
    )  # all variances are equal at the start

    def make():
        return make_model("categorical", ROWS, solver=solver, approximation="laplace")

    assert_same_on_the_device(make, chaotic=ties)


# ---------------------------------------------------------------- everything around them
def test_a_decomposition_of_uncertainty():
    x = make_inputs(3, seed=5)
    solver = SubspaceNewton(max_passes=6, covariance_rank=4)
    expected = make_model("categorical", ROWS, solver=solver).decompose_uncertainty(x)
    with device():
        found = make_model("categorical", ROWS, solver=solver).to(DEVICE).decompose_uncertainty(x.to(DEVICE))
    for name, value in vars(expected).items():
        if torch.is_tensor(value):
            assert_close(inner(getattr(found, name)), value)


@pytest.mark.parametrize("objective", [ComputationAwareELBO, LaplaceEvidence, PredictiveLogDensity])
def test_objectives_and_their_gradients(objective):
    def evaluate(place):
        model = make_model("categorical", ROWS, solver=SubspaceNewton(max_passes=6)).to(place).train()
        value = objective(model.likelihood, model)(model(*model.train_inputs), model.train_targets)
        value.backward()
        return value.detach(), [p.grad for p in model.parameters() if p.grad is not None]

    value, gradients = evaluate("cpu")
    with device():
        found, slopes = evaluate(DEVICE)
    assert_close(inner(found), value)
    assert len(slopes) == len(gradients) > 0
    # Together: that of a mean which the softmax takes out is zero but for rounding.
    ours, theirs = (torch.cat([slope.flatten() for slope in kind]) for kind in (map(inner, slopes), gradients))
    assert_close(ours, theirs, "derivative")


def test_learning():
    options = {"max_iterations": 2, "objective": "predictive", "calibrate": False}
    model = make_model("bernoulli-logit", ROWS)
    itergp.fit(model, **options)
    with device():
        moved = make_model("bernoulli-logit", ROWS).to(DEVICE)
        itergp.fit(moved, **options)
    for ours, theirs in zip(moved.parameters(), model.parameters(), strict=True):
        assert_close(inner(ours.detach()), theirs)


@pytest.mark.parametrize("solver", ["subspace", "published", "linear"])
def test_checkpoints_cross_devices(solver, tmp_path):
    class Ended(Exception):
        pass

    def end(record):
        if record.kernel_passes == 3 or record.rank == 6:
            raise Ended("here")

    options = {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 0}
    expected = make_model("categorical", ROWS, solver=SOLVERS[solver]).condition()
    with device():
        model = make_model("categorical", ROWS, solver=SOLVERS[solver]).to(DEVICE)
        with pytest.raises(Ended, match=r"^here$"):
            model.condition(callback=end, **options)
        again = make_model("categorical", ROWS, solver=SOLVERS[solver]).to(DEVICE)
        assert_close(inner(again.condition(**options).latent_values), expected.latent_values)
        model.save(tmp_path / "model.safetensors")
    solution = make_model("categorical", ROWS, solver=SOLVERS[solver]).condition(**options)  # and on the CPU
    assert_close(solution.latent_values, expected.latent_values)


# -------------------------------------------------------------------------- a real one
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", sorted(CASES))
def test_cuda(name, tmp_path):
    x = make_inputs(5, seed=5)
    expected = make_model(name).latent_mean(x)
    model = make_model(name).cuda()
    path = tmp_path / "run.safetensors"
    solution = model.condition(checkpoint=path, checkpoint_every=0)
    assert solution.latent_values.is_cuda
    assert_close(model.latent_mean(x.cuda()).cpu(), expected, "posterior")
    assert model.predict(x.cuda()).sample().is_cuda
    assert_close(make_model(name).cuda().condition(checkpoint=path).latent_values, solution.latent_values)
