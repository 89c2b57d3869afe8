"""The adjoint equation ``(I + K W) lambda = q``: how a mode moves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from itergp.likelihoods import Observations
from itergp.numerics.blocks import Root, apply_blocks
from itergp.objectives.deadline import NEVER, Deadline
from itergp.operators import KernelOperator
from itergp.posterior.dense import kernel_columns
from itergp.posterior.precision import multiply
from itergp.solvers.subspace.newton_matrix import information_block, newton_matrix, robust_cholesky
from itergp.solvers.subspace.search_space import SearchSpace

_MAX_STEPS = 200
_MAX_INDEFINITE_STEPS = 1000
_DENSE_LIMIT = 1500


def linearise(
    observations: Observations, f: Tensor, offsets: Tensor | None, node_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient of the (expected) log-density at fixed ``f`` and its exact negative Hessian there.

    Args:
        observations: What was observed.
        f: Latent values ``(N, C)``.
        offsets: Offsets of the nodes ``(S, N, C)``, or None for the log-density at ``f`` itself.
        node_weights: Their weights ``(S,)``.

    Returns:
        g ``(N, C)``, differentiable in the offsets and in the likelihood's parameters, and ``-d2 log p`` ``(N, C, C)``,
        without gradients, indefinite where the log-density is not concave.
    """
    f = f.detach()
    if observations.likelihood.curvature == "hessian":
        if offsets is None:
            gradient, hessian = observations.derivatives(f)
        else:
            gradient, hessian = observations.expected_derivatives(f, offsets, node_weights)
        return gradient, hessian.detach()
    with torch.enable_grad():
        point = f.requires_grad_(True)
        if offsets is None:
            value = observations.log_density(point)
        else:
            value = observations.expected_log_density(point, offsets, node_weights)
        (gradient,) = torch.autograd.grad(value.sum(), point, create_graph=True)
        columns = []
        for c in range(f.shape[1]):
            total = gradient[:, c].sum()
            column = None
            if total.requires_grad:
                (column,) = torch.autograd.grad(total, point, retain_graph=True, allow_unused=True)
            columns.append(torch.zeros_like(f) if column is None else column)
    hessian = -torch.stack(columns, -1).detach()
    return gradient, 0.5 * (hessian + hessian.mT)


def solve_adjoint(
    operator: KernelOperator,
    space: SearchSpace,
    curvature: Tensor,
    right: Tensor,
    tolerance: float,
    root: Root | None,
    deadline: Deadline = NEVER,
) -> Tensor:
    """``W lambda`` for ``(I + K W) lambda = q``.

    With ``W = H H^T`` the symmetric system ``(I + H^T K H) z = H^T q`` gives ``W lambda = H z``. Within the space
    ``K ~ T T^T``, so that ``(I + H^T T T^T H)^{-1}`` is a good preconditioner, and a small solve by Woodbury's identity.
    An indefinite W has no such root; ``I + W K`` is then still self-adjoint, and at a mode positive, in the inner product of
    K, in which conjugate gradients solve ``(I + W K) w = W q`` without a preconditioner.

    Args:
        operator: K.
        space: A whitened search space, usually that of the mode.
        curvature: W ``(N, C, C)``.
        right: q ``(N, C)``.
        tolerance: Relative residual at which to stop.
        root: Multiplication by H and by ``H^T``; None if W is indefinite.
        deadline: When to give up.

    Returns:
        ``(N, C)``.

    Raises:
        OutOfTimeError: If that is past.
    """
    if root is None:
        return _solve_indefinite(operator, curvature, right, tolerance, deadline)
    factor, transpose = root
    precondition = _preconditioner(space, curvature, root)

    def apply(z: Tensor) -> Tensor:
        return z + transpose(multiply(operator, factor(z).unsqueeze(-1))[..., 0])

    z = torch.zeros_like(right)
    residual = transpose(right)
    size = residual.norm()
    direction = preconditioned = precondition(residual)
    rho = (residual * preconditioned).sum()
    for _ in range(_MAX_STEPS):
        deadline.check()
        if residual.norm() <= tolerance * size:
            break
        product = apply(direction)
        step = rho / (direction * product).sum()
        z, residual = z + step * direction, residual - step * product
        preconditioned = precondition(residual)
        previous, rho = rho, (residual * preconditioned).sum()
        direction = preconditioned + (rho / previous) * direction
    return factor(z)


def solve_adjoint_exactly(operator: KernelOperator, curvature: Tensor, right: Tensor) -> Tensor:
    """``W lambda`` for ``(I + K W) lambda = q``, by a dense matrix of all latent values.

    Args:
        operator: K.
        curvature: W ``(N, C, C)``.
        right: q ``(N, C)``.

    Returns:
        ``(N, C)``.
    """
    inside = kernel_columns(operator.dense().double(), curvature.double()).flatten(0, 1)
    inside.diagonal().add_(1.0)
    solved = torch.linalg.solve(inside, right.double().reshape(-1)).view_as(right)
    return apply_blocks(curvature, solved.to(right))


def _solve_indefinite(
    operator: KernelOperator, curvature: Tensor, right: Tensor, tolerance: float, deadline: Deadline
) -> Tensor:
    """Conjugate gradients for ``(I + W K) w = W q`` in the inner product of K; one kernel pass per step."""
    w, residual = torch.zeros_like(right), apply_blocks(curvature, right)
    residual_product = multiply(operator, residual.unsqueeze(-1))[..., 0]
    direction, product = residual, residual_product  # p and K p
    rho = start = (residual * residual_product).sum()
    for _ in range(_MAX_INDEFINITE_STEPS):
        deadline.check()
        if not rho > tolerance**2 * start:
            break
        applied = direction + apply_blocks(curvature, product)
        curved = (product * applied).sum()
        if not curved > 0.0:  # not a mode in this direction
            break
        step = rho / curved
        w, residual = w + step * direction, residual - step * applied
        residual_product = multiply(operator, residual.unsqueeze(-1))[..., 0]
        previous, rho = rho, (residual * residual_product).sum()
        direction = residual + (rho / previous) * direction
        product = residual_product + (rho / previous) * product
    return w


def _preconditioner(space: SearchSpace, curvature: Tensor, root: Root) -> Callable[[Tensor], Tensor]:
    """``(I + H^T T T^T H)^{-1}``, exact when its inner matrix is small, otherwise with the diagonal of W for every function."""
    latents, dtype = curvature.shape[-1], space.products.dtype
    sets = space.coordinate_sets(latents)
    if sets == 1 or sets * space.rank <= _DENSE_LIMIT:
        cholesky = robust_cholesky(newton_matrix(space, curvature), dtype)
        factor, transpose = root

        def exact(z: Tensor) -> Tensor:
            inside = space.project(factor(z))
            solved = torch.cholesky_solve(inside.reshape(-1, 1), cholesky).reshape(inside.shape)
            return z - transpose(space.latent(solved))

        return exact
    diagonal = curvature.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
    weights = torch.diag_embed(diagonal.square())
    blocks = torch.stack([information_block(space, weights, c, c) for c in range(latents)]) + space.gram
    factors = robust_cholesky(blocks, dtype)

    def by_class(z: Tensor) -> Tensor:
        solved = torch.cholesky_solve(space.project(diagonal * z).unsqueeze(-1), factors).squeeze(-1)
        return z - diagonal * space.latent(solved)

    return by_class
