"""IterGP and its policies: laws, and what they are known to be equal to."""

from __future__ import annotations

import itertools
import sys

import gpytorch
import pytest
import torch
from helpers import SimpleGP, assert_close, make_batch_kernel, make_classes, make_inputs, make_kernel, make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from itergp import InputError
from itergp.likelihoods import CategoricalLikelihood
from itergp.operators import make_operator
from itergp.solvers import IterGP, IterNCGP, Noise, Reason, SubspaceNewton, policies
from itergp.solvers.iterncgp.action_buffer import ActionBuffer
from itergp.solvers.iterncgp.linear_belief import LinearBelief
from itergp.solvers.policies.low_rank import pivoted_cholesky

ROWS = 24
CLASSES = 3
POLICIES = {
    "cg": policies.CG(),
    "gradient": policies.Gradient(),
    "class-gradient": policies.ClassGradient(),
    "block-gradient": policies.BlockGradient(num_blocks=4),
    "block-sparse": policies.BlockSparse(num_blocks=4),
    "unit-given": policies.UnitVectors(),
    "unit-random": policies.UnitVectors(order="random", rows=5),
    "unit-variance": policies.UnitVectors(order="variance", rows=2),
    "kernel-columns": policies.KernelColumns(num_inputs=ROWS, width=5),
    "random": policies.RandomProbes(width=3),
    "lanczos": policies.Lanczos(width=4),
    "preconditioned": policies.PreconditionedCG(rank=6),
    "preconditioned-0": policies.PreconditionedCG(rank=0),
    "preconditioned-gradient": policies.PreconditionedGradient(),
    "mixed": policies.Mixed((policies.CG(), policies.UnitVectors(rows=2))),
    "scheduled": policies.Scheduled(((policies.UnitVectors(rows=3), 2), (policies.Gradient(), None))),
}
# Policies whose actions come to span everything, whatever the right-hand side is.
COMPLETE = sorted(set(POLICIES) - {"block-sparse"})
NAMES = sorted(POLICIES)


def system(kind="softmax", scale=4.0, seed=0, dtype=torch.float64):
    """A kernel operator, its joint matrix, noise, the joint noise, and a right-hand side in the range of W."""
    x = make_inputs(ROWS, dtype=dtype, seed=seed)
    kernel = make_batch_kernel(CLASSES) if kind == "own-kernels" else make_kernel(1.0, scale)
    latents = 1 if kind == "one" else CLASSES
    operator = make_operator(kernel.to(dtype), x, num_kernels=CLASSES if kind == "own-kernels" else 1)
    generator = torch.Generator().manual_seed(seed)
    f = 2.0 * torch.randn(ROWS, latents, generator=generator, dtype=torch.float64)
    if latents == 1:
        W = torch.sigmoid(f).mul(torch.sigmoid(-f)).unsqueeze(-1)
    else:
        p = torch.softmax(f, -1)
        W = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    noise = Noise.from_curvature(W, dtype)
    with torch.no_grad():
        matrices = operator.dense().double().expand(latents, -1, -1)
    operator.counts.passes = operator.counts.entries = 0
    joint = torch.zeros(ROWS, latents, ROWS, latents, dtype=torch.float64)
    for c in range(latents):
        joint[:, c, :, c] = matrices[c]
    right = noise.project(torch.randn(ROWS, latents, generator=generator, dtype=torch.float64)).to(dtype)
    size = ROWS * latents
    return operator, joint.reshape(size, size), noise, torch.block_diag(*noise.covariance), right


def exact_inverse(kernel, noise, W):
    """``(K + W^+)^{-1}`` with infinite noise in the null directions of W: ``W - W (K^{-1} + W)^{-1} W``."""
    eye = torch.eye(len(kernel), dtype=torch.float64)
    joint = torch.block_diag(*W.curvature)
    return joint - joint @ torch.linalg.solve(eye + kernel @ joint, kernel @ joint)


def dense_precision(solution):
    A = solution.precision.actions.flatten(0, 1).double()
    return A @ torch.cholesky_solve(A.mT, solution.precision.factor)


# ------------------------------------------------------------------------- laws
def test_the_grid_is_not_empty():
    public = [getattr(policies, name) for name in policies.__all__]
    proposers = {
        p
        for p in public
        if isinstance(p, type) and hasattr(p, "propose") and p not in (policies.Policy, policies.BasePolicy)
    }
    assert proposers == {type(policy) for policy in POLICIES.values()}


@pytest.mark.parametrize("kind", ["one", "softmax", "own-kernels"])
@pytest.mark.parametrize("name", COMPLETE)
def test_all_actions_give_the_exact_solution(name, kind):
    operator, kernel, noise, _, right = system(kind)
    solution = IterGP(policy=POLICIES[name], tolerance=1e-12).solve(operator, noise, right)
    exact = exact_inverse(kernel, None, noise)
    assert_close(solution.weights, (exact @ right.reshape(-1, 1)).reshape(right.shape), "derivative")
    assert_close(solution.latent.reshape(-1, 1), kernel @ solution.weights.reshape(-1, 1), "derivative")
    if solution.rank == noise.rank:
        assert_close(dense_precision(solution), exact, "derivative")
    assert solution.multiply_precision(right) == pytest.approx(solution.weights, abs=1e-8)


@settings(max_examples=60)
@given(
    name=st.sampled_from(NAMES),
    kind=st.sampled_from(["one", "softmax", "own-kernels"]),
    seed=st.integers(0, 1000),
    scale=st.floats(0.1, 100.0),
)
def test_the_precision_never_exceeds_the_exact_one_and_grows_with_every_action(name, kind, seed, scale):
    operator, kernel, noise, _, right = system(kind, scale, seed)
    exact, previous = exact_inverse(kernel, None, noise), torch.zeros_like(kernel)
    slack = 2e-8 * float(exact.abs().max())
    for count in (1, 2, 3, 5, 8):
        solution = IterGP(policy=POLICIES[name], max_iterations=count, tolerance=1e-12).solve(operator, noise, right)
        precision = dense_precision(solution)
        assert float(torch.linalg.eigvalsh(exact - precision).min()) >= -slack
        assert float(torch.linalg.eigvalsh(precision - previous).min()) >= -slack
        assert solution.residual_norms[0] == pytest.approx(1.0)
        previous = precision


@pytest.mark.parametrize("reorthogonalise", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_recycled_start_equals_the_old_actions_again_at_no_product(name, reorthogonalise):
    operator, _, noise, _, right = system()
    operator.kernel.requires_grad_(False)
    solver = IterGP(policy=POLICIES[name], max_iterations=4, tolerance=1e-12, reorthogonalise=reorthogonalise)
    first = solver.solve(operator, noise, right)
    other = Noise.from_curvature(0.3 * noise.curvature + 0.1 * noise.curvature.flip(0))
    passes, entries = operator.counts.passes, operator.counts.entries
    virtual = LinearBelief(first.belief.buffer, other, right)
    assert (operator.counts.passes, operator.counts.entries) == (passes, entries)
    again = LinearBelief(ActionBuffer(right), other, right, reorthogonalise=False)
    for i in range(first.belief.rank):
        assert again.observe(operator, first.belief.buffer.actions[..., i : i + 1]) == 1
    assert_close(virtual.weights(), again.weights(), "derivative")
    assert float((virtual.residual() - again.residual()).abs().max()) <= 1e-7 * float(right.abs().max())
    assert_close(virtual.precision()[0].gram.diagonal().sum(), again.precision()[0].gram.diagonal().sum(), "derivative")


@pytest.mark.parametrize("name", NAMES)
def test_passes_are_what_the_policy_says(name):
    operator, _, noise, _, right = system()
    solution = IterGP(policy=POLICIES[name], max_iterations=3, tolerance=1e-12).solve(operator, noise, right)
    proposals = len(solution.residual_norms) - 1
    assert proposals == 3
    free = {"unit-given": 3, "unit-random": 3, "unit-variance": 3, "block-sparse": 3, "scheduled": 2}.get(name, 0)
    assert operator.counts.passes == proposals - free


def test_results_do_not_depend_on_the_order_of_unit_vectors():
    operator, _, noise, _, right = system()
    solutions = [
        IterGP(policy=policies.UnitVectors(order=order, seed=seed), tolerance=1e-14).solve(operator, noise, right)
        for order, seed in (("given", 0), ("random", 0), ("random", 1), ("variance", 0))
    ]
    for other in solutions[1:]:
        assert_close(other.weights, solutions[0].weights, "derivative")
        assert_close(dense_precision(other), dense_precision(solutions[0]), "derivative")


# -------------------------------------------------------------- known equivalents
def conjugate_gradients(matrix, right, count):
    """The textbook method; iterates after each step."""
    v, r = torch.zeros_like(right), right.clone()
    p, iterates = r.clone(), []
    for _ in range(count):
        step = (r @ r) / (p @ (matrix @ p))
        v, new = v + step * p, r - step * (matrix @ p)
        p, r = new + (new @ new) / (r @ r) * p, new
        iterates.append(v.clone())
    return iterates


@pytest.mark.parametrize("kind", ["one", "softmax"])
@pytest.mark.parametrize("reorthogonalise", [True, False])
def test_the_cg_policy_is_conjugate_gradients(kind, reorthogonalise):
    operator, kernel, noise, covariance, right = system(kind)
    centre = torch.eye(right.shape[1], dtype=torch.float64) - (1.0 / right.shape[1] if noise.centred else 0.0)
    project = torch.block_diag(*[centre] * ROWS)
    iterates = conjugate_gradients(project @ (kernel + covariance) @ project, right.flatten(), 6)
    for count, expected in enumerate(iterates, 1):
        solver = IterGP(max_iterations=count, tolerance=1e-14, reorthogonalise=reorthogonalise)
        assert_close(solver.solve(operator, noise, right).weights.flatten(), expected, "derivative")


@pytest.mark.parametrize("distinct", [1, 2, 4])
def test_conjugate_gradients_end_after_as_many_actions_as_distinct_eigenvalues(distinct):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, distinct - 1, generator=generator, dtype=torch.float64) if distinct > 1 else torch.zeros(30, 1)
    kernel = gpytorch.kernels.LinearKernel().double()  # of rank D, with D different eigenvalues, and zero
    operator = make_operator(kernel, x.double())
    right = torch.randn(30, 1, generator=generator, dtype=torch.float64)
    solution = IterGP(tolerance=1e-9).solve(operator, 0.5, right)
    assert len(solution.residual_norms) - 1 == distinct
    assert solution.converged


def test_unit_vectors_are_the_subset_of_data():
    x, y = make_classes(40)
    subset = torch.arange(12)
    solver = IterNCGP(policy=policies.UnitVectors(rows=4), recycle=False, iterations=3, max_steps=1)
    model = SimpleGP(x, y, CategoricalLikelihood(3), solver=solver, approximation="laplace").double().eval()
    noise = Noise.from_curvature(_prior_curvature(40))
    right = torch.randn(40, 3, dtype=torch.float64)
    operator = model.make_operator(model.prior_at(model.train_inputs))
    linear = IterGP(policy=policies.UnitVectors(rows=4), max_iterations=3).solve(operator, noise, right)
    small = make_operator(model.covar_module, x[subset])
    few = Noise.from_curvature(_prior_curvature(12))
    exact = IterGP(policy=policies.UnitVectors(), tolerance=1e-14).solve(small, few, right[subset])
    assert float(linear.weights[12:].abs().max()) == 0.0
    assert_close(linear.weights[:12], exact.weights, "derivative")
    assert_close(linear.precision.gram.diagonal().sum(), exact.precision.gram.diagonal().sum(), "derivative")


def _prior_curvature(size):
    p = torch.full((size, 3), 1.0 / 3.0, dtype=torch.float64)
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def test_kernel_columns_are_the_posterior_at_pseudo_inputs():
    operator, kernel, noise, covariance, right = system("one")
    points = make_inputs(5, seed=9)
    policy = policies.KernelColumns(inputs=points, width=2)
    solution = IterGP(policy=policy, tolerance=1e-14).solve(operator, noise, right)
    assert solution.rank == 5
    assert operator.counts.passes == 3
    # Gaussian process regression on the five numbers k(Z, X) y alone, as an independent linear-Gaussian model.
    cross = operator.kernel(operator.inputs, points).to_dense().detach()
    observed_by_prior = cross.mT @ kernel
    gain = torch.linalg.solve(observed_by_prior @ cross + cross.mT @ covariance @ cross, cross.mT @ right)
    assert_close(solution.latent, observed_by_prior.mT @ gain, "derivative")


def test_pivoted_cholesky_bounds_the_kernel_from_below():
    for kind in ("one", "own-kernels"):
        operator, _, _, _, _ = system(kind)
        with torch.no_grad():
            root, matrices = pivoted_cholesky(operator, 6), operator.dense()
        rest = matrices - root @ root.mT
        assert float(torch.linalg.eigvalsh(rest).min()) >= -1e-9
        assert float(rest.diagonal(dim1=-2, dim2=-1).sum()) < 0.5 * float(matrices.diagonal(dim1=-2, dim2=-1).sum())
        assert operator.counts.passes == 1  # the dense matrices of this test


def test_the_preconditioner_inverts_what_it_approximates():
    operator, kernel, noise, _, right = system("own-kernels")
    policy = policies.PreconditionedCG(rank=ROWS)
    solution = IterGP(policy=policy, max_iterations=1, tolerance=1e-14).solve(operator, noise, right)
    exact = exact_inverse(kernel, None, noise) @ right.reshape(-1, 1)
    assert_close(solution.weights.reshape(-1, 1), exact, "derivative")


@pytest.mark.parametrize("kind", ["one", "own-kernels"])
def test_a_sketched_preconditioner_saves_passes(kind):
    pytest.importorskip("skerch")
    operator, _, noise, _, right = system(kind, scale=100.0)
    plain = IterGP(policy=policies.Gradient(), tolerance=1e-8).solve(operator, noise, right)
    sketched = policies.PreconditionedCG(rank=12, method="sketch")
    solution = IterGP(policy=sketched, tolerance=1e-8).solve(operator, noise, right)
    assert solution.converged
    assert len(solution.residual_norms) < len(plain.residual_norms)
    assert_close(solution.weights, plain.weights, "derivative")


def test_a_missing_sketch_library_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "skerch", None)
    monkeypatch.setitem(sys.modules, "skerch.algorithms", None)
    operator, _, noise, _, right = system("one")
    with pytest.raises(InputError, match=r"needs the skerch library.*pip install 'itergp\[sketch\]'"):
        IterGP(policy=policies.PreconditionedCG(method="sketch")).solve(operator, noise, right)


# ------------------------------------------------------------------ noise, compression
def test_noise_of_a_softmax_is_the_pseudo_inverse():
    p = torch.softmax(torch.randn(10, 4, dtype=torch.float64), -1)
    W = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    noise = Noise.from_curvature(W)
    centre = torch.eye(4, dtype=torch.float64) - 0.25
    assert noise.centred
    assert noise.rank == 30
    assert_close(noise.covariance, centre @ torch.diag_embed(1.0 / p) @ centre, "derivative")


def test_rows_that_say_nothing_take_no_part():
    W = torch.rand(6, 1, 1, dtype=torch.float64)
    W[2] = 0.0
    noise = Noise.from_curvature(W)
    assert noise.rank == 5
    assert float(noise.project(torch.ones(6, 1, dtype=torch.float64))[2]) == 0.0


@pytest.mark.parametrize(
    "noise", [0.5, torch.rand(ROWS) + 0.1, torch.rand(ROWS, 3) + 0.1, torch.eye(3).expand(ROWS, 3, 3)]
)
def test_noise_of_any_shape(noise):
    operator, kernel, _, _, right = system()
    solution = IterGP(tolerance=1e-11).solve(operator, noise, right)
    blocks = torch.block_diag(*Noise.from_covariance(noise, right).covariance)
    expected = torch.linalg.solve(kernel + blocks, right.reshape(-1, 1)).reshape(right.shape)
    assert_close(solution.weights, expected, "derivative")


@pytest.mark.parametrize("how", ["published", "informative"])
def test_compression_keeps_the_best_subspace_in_its_sense(how):
    operator, kernel, noise, covariance, right = system()
    solver = IterGP(policy=policies.RandomProbes(), max_iterations=12, tolerance=1e-12)
    belief = solver.solve(operator, noise, right).belief
    S = belief.buffer.actions.flatten(0, 1).clone()
    worth = S.mT @ (kernel + covariance) @ S if how == "published" else S.mT @ kernel @ S
    relative = S.mT @ S if how == "published" else S.mT @ covariance @ S
    root = torch.linalg.cholesky(relative)
    half = torch.linalg.solve_triangular(root, worth, upper=False)
    ratios = torch.linalg.eigvalsh(torch.linalg.solve_triangular(root, half.mT, upper=False))
    unchanged = belief.weights()
    belief.compress(12, how)
    assert_close(belief.weights(), unchanged)
    passes = operator.counts.passes
    belief.compress(5, how)
    assert operator.counts.passes == passes
    assert belief.rank == 5
    kept = belief.buffer.actions.flatten(0, 1)
    assert_close(belief.buffer.products.flatten(0, 1), kernel @ kept, "derivative")
    best = kernel + covariance if how == "published" else kernel
    base = torch.eye(len(kernel), dtype=torch.float64) if how == "published" else covariance
    achieved = torch.linalg.solve(kept.mT @ base @ kept, kept.mT @ best @ kept).diagonal().sum()
    assert float(achieved) == pytest.approx(float(ratios[-5:].sum()), rel=1e-8)


def test_there_is_no_third_large_array():
    operator, _, noise, _, right = system()
    belief = IterGP(policy=policies.CG(), max_iterations=20, max_rank=20, tolerance=1e-14).solve(
        operator, noise, right
    ).belief  # fmt: skip
    held = [value for value in vars(belief).values() if torch.is_tensor(value)]
    held += [value for value in vars(belief.buffer).values() if torch.is_tensor(value)]
    large = [value for value in held if value.numel() >= right.numel() * belief.rank]
    assert len(large) == 2
    assert belief.buffer.capacity == 20


# ----------------------------------------------------------------- SubspaceNewton
@pytest.mark.parametrize("kernel", [make_kernel, make_batch_kernel], ids=["shared", "one-per-class"])
@pytest.mark.parametrize("name", NAMES)
def test_policies_drive_the_subspace_solver(name, kernel):
    reference = make_model(
        "categorical", kernel=kernel(), approximation="laplace", solver=SubspaceNewton(tolerance=1e-9)
    )
    solver = SubspaceNewton(policy=POLICIES[name], max_passes=30, tolerance=1e-7)
    model = make_model("categorical", kernel=kernel(), approximation="laplace", solver=solver)
    solution, mode = model.condition(), reference.condition()
    gap = solution.objective - mode.objective
    assert -1e-6 <= gap <= solution.certificate.objective_gap + 1e-6
    assert solution.kernel_passes <= 31
    objectives = [record.objective for record in solution.trace]
    assert all(later <= earlier * (1.0 + 1e-14) for earlier, later in itertools.pairwise(objectives))  # up to rounding


def test_the_default_directions_are_policies():
    for name, policy in (("categorical", policies.ClassGradient()), ("poisson", policies.BlockGradient())):
        default, chosen = make_model(name), make_model(name, solver=SubspaceNewton(policy=policy))
        assert_close(chosen.condition().latent_values, default.condition().latent_values)


def test_a_policy_with_nothing_more_to_say_ends_the_solve():
    solver = SubspaceNewton(policy=policies.UnitVectors(rows=5), tolerance=1e-12, max_passes=40)
    few = SubspaceNewton(policy=policies.KernelColumns(num_inputs=4), tolerance=1e-12)
    assert make_model("poisson", solver=solver, approximation="laplace").condition().status.converged
    status = make_model("poisson", solver=few, approximation="laplace").condition().status
    assert status.reason is Reason.POLICY
    assert "Scheduled" in str(status)


# ------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: IterGP(policy=policies.CG), r"`policy` must have a method propose.* Got the class CG"),
        (lambda: SubspaceNewton(policy="cg"), r"`policy` must have a method propose.* Got 'cg'"),
        (lambda: IterNCGP(policy=3), r"`policy` must have a method propose.* Got 3"),
        (lambda: IterNCGP(step="half"), r"`step` must be one of .* Got 'half'"),
        (lambda: IterNCGP(compression="svd"), r"`compression` must be one of .* Got 'svd'"),
        (lambda: IterNCGP(iterations=()), r"`iterations` must be a number or a sequence.* Got an empty one"),
        (lambda: IterNCGP(iterations=(3, 0)), r"`iterations` must be a positive whole number.* Got 0"),
        (lambda: IterNCGP(max_rank=0), r"`max_rank` must be a positive whole number.* Got 0"),
        (lambda: IterGP(tolerance=0.0), r"`tolerance` must be a positive number.* Got 0.0"),
        (lambda: policies.UnitVectors(order="last"), r"`order` must be one of .* Got 'last'"),
        (lambda: policies.KernelColumns(inputs=torch.ones(3)), r"`inputs` must be a matrix .* Got \(3,\)"),
        (lambda: policies.PreconditionedCG(method="lu"), r"`method` must be one of .* Got 'lu'"),
        (lambda: policies.Mixed(()), r"At least one policy is needed. Got none"),
        (lambda: policies.Scheduled(((policies.CG(), None), (policies.CG(), 2))), r"`phases` must be pairs"),
        (lambda: policies.BlockGradient(num_blocks=0), r"`num_blocks` must be a positive whole number"),
    ],
)
def test_bad_settings_are_refused(make, match):
    with pytest.raises(InputError, match=match):
        make()


@pytest.mark.parametrize(
    ("noise", "right", "match"),
    [
        (0.1, torch.ones(ROWS, dtype=torch.float64), r"`right` must have shape \(24, C\). Got \(24,\)"),
        (torch.ones(5), None, r"`noise` must be a variance.* Got \(5,\)"),
        (torch.zeros(ROWS), None, r"`noise` must be positive definite in every row.* row 0"),
    ],
)
def test_bad_systems_are_refused(noise, right, match):
    operator, _, _, _, good = system("one")
    with pytest.raises(InputError, match=match):
        IterGP().solve(operator, noise, good if right is None else right)
