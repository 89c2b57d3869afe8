"""Leaves: blended posteriors against dense algebra, bounds that hold, kept and saved, divided among processes elsewhere."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import gpytorch
import pytest
import torch
from helpers import CASES, SimpleGP, assert_close, make_batch_kernel, make_inputs, make_kernel, make_model
from torch import Tensor

from itergp.errors import InputError, ItergpWarning
from itergp.kernels import AdditiveLaplacianKernel, LaplacianKernel
from itergp.likelihoods import BernoulliLikelihood
from itergp.models import LeafGP, NonConjugateGP, leaf_posteriors
from itergp.posterior.status import Status
from itergp.solvers import DenseNewton, LinearTimeNewton, Reason, SubspaceNewton

ROWS = 120


def leaf_rows(leaves: LeafGP) -> list[Tensor]:
    """Training rows of each leaf."""
    return list(leaves._divided().rows)


def leaf_weights(leaves: LeafGP, x: Tensor) -> Tensor:
    """Weights ``(L, M)`` at inputs."""
    task = leaves._divided()
    dense = torch.zeros(leaves.num_leaves, x.shape[0], dtype=torch.float64)
    for own, (rows, weights) in zip(dense, task.tree.leaves(task.points((x,))), strict=True):
        own[rows] = weights
    return dense


def part_of(model: SimpleGP, rows: Tensor, **settings) -> SimpleGP:
    """The same model of some rows alone, by dense algebra."""
    x, y = model.train_inputs[0][rows], model.train_targets[rows]
    weight = None if model.sample_weight is None else model.sample_weight[rows]
    settings = {"approximation": model.approximation, "solver": DenseNewton(), "sample_weight": weight} | settings
    settings |= {"missing_targets": model.missing_targets, "mean": model.mean_module, "kernel": model.covar_module}
    return SimpleGP(x, y, model.likelihood, **settings).to(x.dtype).eval()


def blended(parts: list[tuple[Tensor, Tensor]], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance by the formula, from means ``(M, C)`` and covariances ``(M, C, C)`` of leaves."""
    means, covariances = (torch.stack(own).double() for own in zip(*parts, strict=True))
    roots = covariances.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt()
    total = (weights * roots).sum(0)
    spread = torch.einsum("lm,lmcd->mcd", weights / roots, covariances)
    return torch.einsum("lm,lmc->mc", weights, means), total[:, None, None] * spread


def posterior(model: SimpleGP, x: Tensor) -> tuple[Tensor, Tensor]:
    latent = model.latent_posterior(x)
    return latent.mean.detach(), latent.row_covariance().detach()


@pytest.mark.parametrize(
    ("approximation", "dtype", "tolerance"),
    [("laplace", torch.float64, 1e-12), ("laplace", torch.float32, 1e-5), ("variational", torch.float64, 1e-7)],
)
@pytest.mark.parametrize("name", ["bernoulli-logit", "categorical", "poisson", "gaussian"])
def test_moments_are_those_of_dense_leaves_blended(name, approximation, dtype, tolerance):
    solver = SubspaceNewton(tolerance=tolerance)
    model = make_model(name, ROWS, dtype, approximation=approximation, solver=solver)
    leaves, x = LeafGP(model, num_rows=50, overlap=0.2), make_inputs(40, dtype=dtype, seed=7)
    mean, covariance, variance = leaves.latent_moments(x)
    assert leaves.num_leaves >= 4
    weights = leaf_weights(leaves, x)
    assert int((weights > 0.0).sum(0).max()) > 1
    parts = [posterior(part_of(model, rows), x) for rows in leaf_rows(leaves)]
    expected, spread = blended(parts, weights)
    kind = torch.float32 if approximation == "variational" else dtype  # whose rounds end at a tolerance
    assert_close(mean, expected, "posterior", dtype=kind)
    assert_close(covariance, spread, "posterior", dtype=kind)
    assert_close(variance, model.latent_posterior(x).prior_variance)
    assert all(status.converged for status in leaves.statuses)
    assert 0.0 <= leaves.objective_gap < 0.01


def test_the_bound_holds_for_the_error_of_the_blended_mean():
    """Of a linear predictor ``a(x)^T y`` the error's variance is known exactly."""
    model = make_model("gaussian", ROWS)
    leaves, x = LeafGP(model, num_rows=40, overlap=0.2), make_inputs(60, seed=7)
    _, covariance, _ = leaves.latent_moments(x)
    weights, inputs = leaf_weights(leaves, x), model.train_inputs[0]
    with torch.no_grad():
        kernel, cross = model.covar_module(inputs).to_dense(), model.covar_module(x, inputs).to_dense()
        prior = model.covar_module(x).to_dense().diagonal()
    noisy = kernel + model.likelihood.noise.detach() * torch.eye(ROWS, dtype=torch.float64)
    predictor = torch.zeros_like(cross)
    for own, rows in zip(weights, leaf_rows(leaves), strict=True):
        predictor[:, rows] += own[:, None] * torch.linalg.solve(noisy[rows][:, rows], cross[:, rows].mT).mT
    error = prior - 2.0 * (predictor * cross).sum(-1) + ((predictor @ noisy) * predictor).sum(-1)
    exact = prior - (cross * torch.linalg.solve(noisy, cross.mT).mT).sum(-1)
    reported = covariance.flatten()
    assert bool((reported >= error - 1e-9).all())
    assert bool((error >= exact - 1e-9).all())
    assert float((reported / error).max()) < 1.6  # and is no wide bound
    assert float((error / exact).median()) < 1.2


@pytest.mark.parametrize("name", ["bernoulli-logit", "categorical"])
def test_covariances_are_not_below_the_exact_ones_for_the_curvature_of_the_leaves(name):
    model = make_model(name, ROWS, approximation="laplace")
    leaves, x = LeafGP(model, num_rows=50, overlap=0.2), make_inputs(60, seed=7)
    _, covariance, _ = leaves.latent_moments(x)
    latents = covariance.shape[-1]
    total = torch.zeros(ROWS, latents, latents, dtype=torch.float64)  # a bound on the curvature of each leaf
    for rows, leaf in zip(leaf_rows(leaves), leaves._known.own, strict=True):
        total[rows] += leaf.solution.curvature
    values, vectors = torch.linalg.eigh(total)
    root = torch.block_diag(*(vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)))
    eye = torch.eye(latents, dtype=torch.float64)
    with torch.no_grad():
        inputs = model.train_inputs[0]
        kernel = torch.kron(model.covar_module(inputs).to_dense(), eye)
        cross = torch.kron(model.covar_module(x, inputs).to_dense(), eye)
    inner = torch.eye(ROWS * latents, dtype=torch.float64) + root.mT @ kernel @ root
    half = torch.linalg.solve_triangular(torch.linalg.cholesky(inner), root.mT @ cross.mT, upper=False)
    half = half.mT.reshape(60, latents, -1)
    exact = 4.0 * eye - half @ half.mT
    assert float(torch.linalg.eigvalsh(covariance - exact).min()) > -1e-7


@pytest.mark.parametrize("name", ["bernoulli-logit", "categorical"])
def test_one_leaf_is_the_model(name, dtype):
    model, x = make_model(name, 60, dtype), make_inputs(30, dtype=dtype, seed=7)
    leaves = LeafGP(model, num_rows=60)
    assert leaves.leaf_sizes == (60,)
    for tempering in (0.0, 1.0, math.inf):
        found, expected = (each.predict(x, tempering=tempering).probs for each in (leaves, model))
        assert_close(found, expected, dtype=dtype)
    assert_close(leaves.latent_mean(x), model.latent_mean(x), dtype=dtype)


def test_predictions_are_continuous_with_their_slopes_across_borders():
    leaves = LeafGP(make_model("bernoulli-logit", ROWS), num_rows=50, overlap=0.2)
    borders = leaves._divided().tree.bands[0]
    units = float(leaves._divided().points((torch.eye(2, dtype=torch.float64),)).diff(dim=0).abs().max())
    column = int(leaves._divided().tree.columns[0])
    start = leaves._divided().points((torch.zeros(1, 2, dtype=torch.float64),))[0, column]
    step = 1e-4
    for border in ((borders - start) / units).tolist():
        x = torch.zeros(3, 2, dtype=torch.float64)
        x[:, column] = border + torch.tensor([-step, 0.0, step])
        x[:, 1 - column] = 0.4
        mean, covariance, _ = leaves.latent_moments(x)
        for values in (mean.flatten(), covariance.flatten()):
            first, second = values.diff() / step
            assert abs(first) > 1e-3
            assert abs(first - second) < 0.02 * abs(first) + 2e-3


def test_far_from_the_data_there_is_the_prior():
    model = make_model("categorical", ROWS)
    mean, covariance, _ = LeafGP(model, num_rows=50).latent_moments(1e4 * make_inputs(5, seed=7))
    assert_close(mean, torch.zeros(5, 3, dtype=torch.float64) + float(model.mean_module.constant.detach()))
    assert_close(covariance, (4.0 * torch.eye(3, dtype=torch.float64)).expand(5, 3, 3), "posterior")


@pytest.mark.parametrize("name", ["bernoulli-logit", "categorical"])
def test_another_order_of_rows_changes_nothing(name):
    solver = SubspaceNewton(tolerance=1e-12)
    model, x = make_model(name, ROWS, approximation="laplace", solver=solver), make_inputs(30, seed=7)
    other = part_of(model, torch.randperm(ROWS), solver=solver)
    expected = LeafGP(model, num_rows=50).predict(x).probs
    assert_close(LeafGP(other, num_rows=50).predict(x).probs, expected, "posterior")


def test_leaves_may_have_supports():
    model, x = make_model("categorical", ROWS, approximation="laplace"), make_inputs(30, seed=7)
    expected = LeafGP(model, num_rows=50)
    mean, covariance, _ = expected.latent_moments(x)
    model.solver = LinearTimeNewton(num_support=30)
    found, wider, _ = LeafGP(model, num_rows=50).latent_moments(x)
    assert float((found - mean).abs().max()) < 0.5
    trace = (wider - covariance).diagonal(dim1=-2, dim2=-1).sum(-1)
    assert float(trace.mean()) > 0.0
    model.solver = LinearTimeNewton(num_support=50, tolerance=1e-12)
    assert_close(LeafGP(model, num_rows=50).latent_mean(x), mean, "posterior", dtype=torch.float32)


def test_weights_missing_targets_and_equal_rows_count_as_in_the_model():
    x, y = CASES["bernoulli-logit"].data(ROWS)
    x, y = torch.cat([x, x[:60]]), torch.cat([y, y[:60]])
    y[::9] = -1
    weight = torch.linspace(0.5, 2.0, ROWS + 60, dtype=torch.float64)
    settings = {"missing_targets": True, "sample_weight": weight, "solver": SubspaceNewton(tolerance=1e-12)}
    model = SimpleGP(x, y, BernoulliLikelihood(), approximation="laplace", **settings).double().eval()
    leaves, new = LeafGP(model, num_rows=80), make_inputs(30, seed=7)
    mean, covariance, _ = leaves.latent_moments(new)
    assert leaves._known.own[0].solution.representer_weights.shape[0] < leaves.leaf_sizes[0]  # equal rows are one
    parts = [posterior(part_of(model, rows, share_equal_rows=False), new) for rows in leaf_rows(leaves)]
    expected, spread = blended(parts, leaf_weights(leaves, new))
    assert_close(mean, expected, "posterior")
    assert_close(covariance, spread, "posterior")


@pytest.mark.parametrize(
    "kernel",
    [
        make_batch_kernel(),
        gpytorch.kernels.ScaleKernel(LaplacianKernel(ard_num_dims=2)),
        AdditiveLaplacianKernel(2),
        gpytorch.kernels.RBFKernel(active_dims=[0]) + gpytorch.kernels.MaternKernel(nu=0.5),
    ],
    ids=["own kernels", "laplacian", "additive", "sum"],
)
def test_kernels_of_several_kinds(kernel):
    model = make_model(
        "categorical", ROWS, kernel=kernel, approximation="laplace", solver=SubspaceNewton(tolerance=1e-12)
    )
    leaves, x = LeafGP(model, num_rows=60), make_inputs(20, seed=7)
    mean, covariance, _ = leaves.latent_moments(x)
    parts = [posterior(part_of(model, rows), x) for rows in leaf_rows(leaves)]
    expected, spread = blended(parts, leaf_weights(leaves, x))
    assert_close(mean, expected, "posterior")
    assert_close(covariance, spread, "posterior")


# ------------------------------------------------------------------------------------------- in pieces, kept and saved
def test_batches_are_parts_of_the_whole(monkeypatch):
    leaves, x = LeafGP(make_model("poisson-exposure", ROWS), num_rows=50), make_inputs(30, seed=7)
    exposure = torch.linspace(0.5, 2.0, 30, dtype=torch.float64)
    whole = leaves.predict(x, exposure=exposure).mean
    parts = list(leaves.predict_batches(x, 7, exposure=exposure))
    assert [rows.stop - rows.start for rows, _ in parts] == [6, 6, 6, 6, 6]
    assert_close(torch.cat([part.mean for _, part in parts]), whole)
    monkeypatch.setattr(leaf_posteriors, "_CHUNK_NUMBERS", 30)
    assert_close(leaves.predict(x, exposure=exposure).mean, whole)


def test_leaves_are_found_again_when_the_model_changes():
    model, x = make_model("bernoulli-logit", ROWS), make_inputs(30, seed=7)
    leaves = LeafGP(model, num_rows=50)
    first, known = leaves.predict(x).probs, leaves._known
    leaves.predict(x)
    assert leaves._known is known
    model.covar_module.base_kernel.lengthscale = 0.3
    assert float((leaves.predict(x).probs - first).abs().max()) > 0.01
    assert leaves._known is not known


def test_found_leaves_are_read_from_the_folder(tmp_path, monkeypatch):
    model, x = make_model("categorical", ROWS), make_inputs(30, seed=7)
    leaves, folder = LeafGP(model, num_rows=50), tmp_path / "leaves"
    leaves.condition(checkpoint=folder)
    expected = leaves.predict(x).probs
    assert len(list(folder.iterdir())) == leaves.num_leaves
    sorted(folder.iterdir())[-1].unlink()
    solved = []
    solve = leaf_posteriors.solve
    monkeypatch.setattr(leaf_posteriors, "solve", lambda *args, **kwargs: solved.append(1) or solve(*args, **kwargs))
    again = LeafGP(model, num_rows=50)
    again.condition(checkpoint=folder)
    assert len(solved) == 1
    assert torch.equal(again.predict(x).probs, expected)
    with pytest.raises(InputError, match=r"`checkpoint` must be of the same model, .* num_rows differs"):
        LeafGP(model, num_rows=60).condition(checkpoint=folder)
    with pytest.raises(InputError, match=r"`checkpoint` must be a folder"):
        again.condition(checkpoint=tmp_path / "none" / "leaves")


def test_saved_leaves_predict_without_being_found_again(tmp_path, monkeypatch):
    solver, path, x = SubspaceNewton(covariance_rank=12), tmp_path / "leaves.safetensors", make_inputs(30, seed=7)
    leaves = LeafGP(make_model("bernoulli-logit", ROWS, solver=solver), num_rows=50, overlap=0.3)
    expected = leaves.predict(x).probs
    leaves.save(path)
    monkeypatch.setattr(leaf_posteriors, "solve", None)
    loaded = LeafGP(make_model("bernoulli-logit", 10, solver=solver)).load(path)
    assert (loaded.num_rows, loaded.overlap, loaded.leaf_sizes) == (50, 0.3, leaves.leaf_sizes)
    assert torch.equal(loaded.predict(x).probs, expected)
    assert [str(status) for status in loaded.statuses] == [str(status) for status in leaves.statuses]
    with pytest.raises(InputError, match=r"Build the model with the same likelihood"):
        LeafGP(make_model("categorical", 10)).load(path)
    loaded.model.save(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"`path` must be a file that LeafGP.save wrote"):
        loaded.load(tmp_path / "model.safetensors")


# ------------------------------------------------------------------------------------------------------ plans, endings
def test_the_plan_says_how_many_leaves_and_rows():
    leaves = LeafGP(make_model("bernoulli-logit", ROWS), num_rows=50)
    plan = leaves.plan()
    assert (plan.num_leaves, plan.sizes, plan.given_rows) == (leaves.num_leaves, leaves.leaf_sizes, ROWS)
    assert f"{leaves.num_leaves} leaves of {min(plan.sizes)} to {max(plan.sizes)} rows" in str(plan)
    assert "leaves" not in repr(leaves)
    leaves.condition()
    assert f"{leaves.num_leaves} leaves" in repr(leaves)
    halved = replace(plan, sizes=(*plan.sizes, *plan.sizes))
    assert halved.seconds == pytest.approx(2.0 * plan.seconds)


def test_leaves_that_are_far_are_told():
    model = make_model("bernoulli-logit", ROWS, approximation="laplace")
    leaves = LeafGP(model, num_rows=50)
    leaves.condition()
    now = leaves._known
    assert now.num_far == 0
    far = Status(Reason.PASSES)
    leaves._known = replace(now, num_far=2, statuses=(far, *now.statuses[1:]))
    with pytest.warns(ItergpWarning, match=rf"2 of {leaves.num_leaves} that are not, such as: .* Raise max_passes"):
        leaves.predict(make_inputs(3))


def test_a_time_limit_is_shared_by_the_leaves():
    model = make_model("categorical", ROWS, solver=SubspaceNewton(tolerance=1e-9))
    leaves = LeafGP(model, num_rows=50)
    statuses = leaves.condition(time_limit=1e-3)
    assert {status.reason for status in statuses} == {Reason.TIME}
    assert bool(leaves.predict(make_inputs(5)).probs.isfinite().all())


def test_leaves_that_ran_out_of_time_go_on(tmp_path):
    make = partial(make_model, "categorical", ROWS, approximation="laplace", solver=SubspaceNewton(tolerance=1e-9))
    leaves = LeafGP(make(), num_rows=50)
    leaves.condition(checkpoint=tmp_path / "leaves", time_limit=1e-3)
    again = LeafGP(make(), num_rows=50)
    for each in (leaves, again):
        statuses = each.condition(checkpoint=None if each is leaves else tmp_path / "leaves")
        assert all(status.converged for status in statuses)
    assert_close(again.latent_mean(make_inputs(5)), leaves.latent_mean(make_inputs(5)), "posterior")
    passes = [leaf.solution.kernel_passes for leaf in leaves._known.own]
    leaves.condition()
    assert sum(leaf.solution.kernel_passes for leaf in leaves._known.own) < sum(passes)


def test_an_interrupt_keeps_the_leaves_so_far(tmp_path, monkeypatch):
    leaves, solve = LeafGP(make_model("bernoulli-logit", ROWS), num_rows=50), leaf_posteriors.solve
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        solution = solve(*args, **kwargs)
        return solution.with_report(status=Status(Reason.INTERRUPTED)) if len(calls) == 3 else solution

    monkeypatch.setattr(leaf_posteriors, "solve", interrupted)
    with pytest.raises(KeyboardInterrupt, match="2 leaves were found"):
        leaves.condition(checkpoint=tmp_path / "leaves")
    assert len(list((tmp_path / "leaves").iterdir())) == 2
    leaves.condition(checkpoint=tmp_path / "leaves")
    assert len(calls) == 1 + leaves.num_leaves


def test_a_leaf_without_information_is_the_prior():
    x, y = CASES["bernoulli-logit"].data(ROWS)
    y[x[:, 0] > -0.5] = -1
    model = SimpleGP(x, y, BernoulliLikelihood(), missing_targets=True).double().eval()
    mean, covariance, _ = LeafGP(model, num_rows=40).latent_moments(torch.tensor([[3.0, 0.0]], dtype=torch.float64))
    assert float(mean.abs().max()) < 1e-9
    assert float(covariance) == pytest.approx(4.0)


def test_a_leaf_without_a_certificate_gives_none():
    assert LeafGP(make_model("student-t", 60), num_rows=40).objective_gap is None
    model = make_model("bernoulli-logit", 60, solver=LinearTimeNewton(num_support=20))
    assert LeafGP(model, num_rows=40).objective_gap == math.inf


def test_what_does_not_fit_into_memory_is_refused_after_the_first_leaf(monkeypatch):
    monkeypatch.setattr(leaf_posteriors, "free_memory", lambda device: 1000)
    with pytest.raises(
        InputError, match=r"(?s)posteriors of all leaves must fit into the free memory.*covariance_rank"
    ):
        LeafGP(make_model("bernoulli-logit", ROWS), num_rows=50).condition()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_rows": 0}, "`num_rows` must be a positive whole number"),
        ({"overlap": 0.5}, "`overlap` must be a share, 0 or more and less than 0.5. Got 0.5"),
        ({"overlap": math.nan}, "`overlap` must be a share"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(InputError, match=message):
        LeafGP(make_model("bernoulli-logit", 20), **settings)


def test_models_that_leaves_cannot_be_made_of():
    with pytest.raises(InputError, match=r"`model` must be a single NonConjugateGP .* Got str"):
        LeafGP("model")
    x, y = CASES["gaussian"].data(20)
    for data in ((x, y.expand(2, 20)), (None, None)):
        with pytest.raises(InputError, match="Got NonConjugateGP without data, or a batch"):
            LeafGP(NonConjugateGP(*data, CASES["gaussian"].make()))
    linear = make_model("gaussian", 20, kernel=gpytorch.kernels.LinearKernel())
    with pytest.raises(InputError, match=r"(?s)Leaves need a kernel made of those .*Got LinearKernel"):
        LeafGP(linear).condition()
    noise = torch.linspace(0.1, 1.0, 20, dtype=torch.float64)
    known = SimpleGP(
        x, y, gpytorch.likelihoods.FixedNoiseGaussianLikelihood(noise, learn_additional_noise=True)
    ).double()
    with pytest.raises(InputError, match=r"Got FixedNoiseGaussianLikelihood, which holds something for each row"):
        LeafGP(known, num_rows=10).condition()
    leaves = LeafGP(make_model("bernoulli-logit", 20, kernel=make_kernel()))
    with pytest.raises(InputError, match="inputs"):
        leaves.predict(make_inputs(5, 3))
    with pytest.raises(InputError, match="`tempering` must be a number, 0 or more"):
        leaves.predict(make_inputs(5), tempering=-1.0)
