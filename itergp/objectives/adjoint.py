"""The adjoint equation ``(I + K W) lambda = q``, by conjugate gradients preconditioned with the search space."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from itergp.operators import KernelOperator
from itergp.solvers.newton import newton_matrix, robust_cholesky, weighted_gram
from itergp.solvers.precision import multiply
from itergp.solvers.search_space import SearchSpace

_MAX_STEPS = 200
_DENSE_LIMIT = 1500


def solve_adjoint(
    operator: KernelOperator, space: SearchSpace, curvature: Tensor, right: Tensor, tolerance: float
) -> Tensor:
    """``W lambda`` for ``(I + K W) lambda = q``.

    With ``W = H^2`` the symmetric system ``(I + H K H) z = H q`` gives ``W lambda = H z``. Within the space
    ``K ~ T T^T``, so that ``(I + H T T^T H)^{-1}`` is a good preconditioner, and a small solve by Woodbury's identity.

    Args:
        operator: K.
        space: A whitened search space, usually that of the mode.
        curvature: W ``(N, C, C)``.
        right: q ``(N, C)``.
        tolerance: Relative residual at which to stop.

    Returns:
        ``(N, C)``.
    """
    root = _symmetric_root(curvature)
    precondition = _preconditioner(space, root)

    def weigh(block: Tensor) -> Tensor:
        return torch.bmm(root, block.unsqueeze(-1)).squeeze(-1)

    def apply(z: Tensor) -> Tensor:
        return z + weigh(multiply(operator, weigh(z).unsqueeze(-1))[..., 0])

    z = torch.zeros_like(right)
    residual = weigh(right)
    size = residual.norm()
    direction = preconditioned = precondition(residual)
    rho = (residual * preconditioned).sum()
    for _ in range(_MAX_STEPS):
        if residual.norm() <= tolerance * size:
            break
        product = apply(direction)
        step = rho / (direction * product).sum()
        z, residual = z + step * direction, residual - step * product
        preconditioned = precondition(residual)
        previous, rho = rho, (residual * preconditioned).sum()
        direction = preconditioned + (rho / previous) * direction
    return weigh(z)


def _symmetric_root(curvature: Tensor) -> Tensor:
    """H ``(N, C, C)`` with ``H^2 = W``."""
    if curvature.shape[-1] == 1:
        return curvature.clamp_min(0.0).sqrt()
    values, vectors = torch.linalg.eigh(curvature)
    return (vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)) @ vectors.mT


def _preconditioner(space: SearchSpace, root: Tensor) -> Callable[[Tensor], Tensor]:
    """``(I + H T T^T H)^{-1}``, exact when its inner matrix is small, otherwise with the class-diagonal part of H."""
    latents, dtype = root.shape[-1], space.products.dtype
    if latents * space.rank <= _DENSE_LIMIT:
        factor = robust_cholesky(newton_matrix(space, root @ root), dtype)

        def exact(z: Tensor) -> Tensor:
            inside = space.project(torch.bmm(root, z.unsqueeze(-1)).squeeze(-1))
            solved = torch.cholesky_solve(inside.reshape(-1, 1), factor).reshape(inside.shape)
            return z - torch.bmm(root, space.latent(solved).unsqueeze(-1)).squeeze(-1)

        return exact
    diagonal = root.diagonal(dim1=-2, dim2=-1)
    blocks = torch.stack([weighted_gram(space, diagonal[:, c].square(), c, c) for c in range(latents)]) + space.gram
    factors = robust_cholesky(blocks, dtype)

    def by_class(z: Tensor) -> Tensor:
        solved = torch.cholesky_solve(space.project(diagonal * z).unsqueeze(-1), factors).squeeze(-1)
        return z - diagonal * space.latent(solved)

    return by_class
