"""What a few new observations do to a Gaussian belief, for many sets of them at once, with derivatives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from itergp.likelihoods import Likelihood
from itergp.likelihoods.base import node_offsets
from itergp.likelihoods.quadrature import gauss_hermite
from itergp.numerics.blocks import psd_root
from itergp.numerics.line_search import backtrack_each

_ROUNDS = 12  # of the variational sites, at most
_STATIONARY = 1e-7  # relative change of a variance that ends them
_NUM_NODES, _NUM_PAIRS = 20, 128
_STEPS, _HALVINGS, _POLISHING = 300, 20, 3  # Fisher scoring takes many steps through a flat tail
_SETTLED = 1e-12
_ROUNDING = 1e-10  # relative increase of the objective that a step may have

Derivatives = Callable[[Tensor], tuple[Tensor, Tensor]]
Density = Callable[[Tensor], Tensor]


def look_ahead(
    likelihood: Likelihood, mean: Tensor, covariance: Tensor, targets: Tensor, *, variational: bool
) -> tuple[Tensor, Tensor]:
    """Conditions a Gaussian belief about n rows on their observations, the earlier data's sites held fixed.

    With the belief ``N(m, S)`` as prior, finds v and the symmetric A with posterior mean ``m + S v`` and covariance
    ``S - S A S``; at other points the cross-covariance takes the place of S. Exact for a Gaussian likelihood; otherwise
    Newton's method for the mode, then a round with averaged derivatives if ``variational``. Derivatives are those of the
    fixed point: one Newton step from it, with the Jacobian held fixed.

    Args:
        likelihood: The calculus of one observation.
        mean: m ``(B, n, C)``, float64.
        covariance: S ``(B, n C, n C)``, latent functions innermost.
        targets: Validated targets of the ``B n`` rows.
        variational: Whether to average over the new posterior.

    Returns:
        v ``(B, n C)`` and A ``(B, n C, n C)``.
    """
    batch, size, latents = mean.shape

    def rows(values: Tensor) -> Tensor:
        return values.reshape(batch * size, latents)

    def plain(f: Tensor) -> tuple[Tensor, Tensor]:
        return likelihood.derivatives(rows(f), targets)

    def density(f: Tensor) -> Tensor:
        return likelihood.log_density(rows(f), targets).view(batch, size).sum(-1)

    def curvature(f: Tensor) -> Tensor:
        return likelihood.covariance_curvature(rows(f), targets)

    weights, precision = _condition(mean, covariance, plain, curvature, density, torch.zeros_like(mean).flatten(1))
    for _ in range(_ROUNDS if variational and not likelihood.quadratic else 0):
        posterior = covariance - covariance @ precision @ covariance
        nodes, node_weights = _nodes(latents, mean)
        root = psd_root(_row_blocks(posterior, latents))
        offsets = node_offsets(root, nodes.expand(-1, root.shape[0], -1))

        def averaged(f: Tensor, o: Tensor = offsets, w: Tensor = node_weights) -> tuple[Tensor, Tensor]:
            return likelihood.expected_derivatives(rows(f), o, w, targets)

        def broad(f: Tensor, o: Tensor = offsets, w: Tensor = node_weights) -> Tensor:
            if not likelihood.majorises:
                return likelihood.expected_derivatives(rows(f), o, w, targets)[1]
            return likelihood.expected_curvature(rows(f), o, w, targets)

        def expected(f: Tensor, o: Tensor = offsets, w: Tensor = node_weights) -> Tensor:
            return likelihood.expected_log_density(rows(f), o, w, targets).view(batch, size).sum(-1)

        before = posterior.diagonal(dim1=-2, dim2=-1)
        weights, precision = _condition(mean, covariance, averaged, broad, expected, weights)
        after = (covariance - covariance @ precision @ covariance).diagonal(dim1=-2, dim2=-1)
        if float(((after - before).abs() / before.clamp_min(1e-300)).detach().max()) < _STATIONARY:
            break
    return weights, precision


def _nodes(latents: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Standard normal nodes ``(S, 1, C)``, the same for every row so that t-batches do not differ, and weights ``(S,)``."""
    if latents == 1:
        nodes, weights = gauss_hermite(_NUM_NODES, like=like)
        return nodes[:, None, None], weights
    half = torch.special.ndtri(torch.quasirandom.SobolEngine(latents, scramble=True, seed=0).draw(_NUM_PAIRS).double())
    factor = torch.linalg.cholesky(half.mT @ half / _NUM_PAIRS)
    half = torch.linalg.solve_triangular(factor, half.mT, upper=False).mT.to(like)  # second moments exact
    return torch.cat([half, -half]).unsqueeze(1), like.new_full((2 * _NUM_PAIRS,), 0.5 / _NUM_PAIRS)


def _condition(
    mean: Tensor,
    covariance: Tensor,
    derivatives: Derivatives,
    curvature: Callable[[Tensor], Tensor],
    density: Density,
    start: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mode and precision for one set of sites; the precision for a curvature of its own."""
    shape = mean.shape
    centre = mean.flatten(1)

    def values(weights: Tensor) -> Tensor:
        return centre + (covariance @ weights.unsqueeze(-1)).squeeze(-1)

    def jacobian_at(weights: Tensor) -> Tensor:
        return _system(_slope(derivatives, values(weights).detach().view(shape)), covariance.detach(), shape)

    with torch.no_grad():
        weights = _newton(centre, covariance, derivatives, density, values, start.detach())
        for _ in range(_POLISHING):  # a curvature that is not the Hessian converges slowly
            rest = weights - derivatives(values(weights))[0].view_as(weights)
            if float(rest.abs().max()) < _SETTLED * (1.0 + float(weights.abs().max())):
                break
            proposed = weights - torch.linalg.solve(jacobian_at(weights), rest)
            left = proposed - derivatives(values(proposed))[0].view_as(weights)
            weights = torch.where((left.norm(dim=-1) < rest.norm(dim=-1))[:, None], proposed, weights)
    jacobian = jacobian_at(weights)
    # One step of Newton's method from the mode changes nothing, but carries the derivatives of the mode.
    gradient, _ = derivatives(values(weights))
    weights = weights - torch.linalg.solve(jacobian, weights - gradient.view_as(weights))
    known = curvature(values(weights))
    return weights, torch.linalg.solve(_system(known, covariance, shape), _block_diagonal(known, shape))


def _newton(
    centre: Tensor,
    covariance: Tensor,
    derivatives: Derivatives,
    density: Density,
    values: Callable[[Tensor], Tensor],
    weights: Tensor,
) -> Tensor:
    """Weights v with ``v = g(m + S v)``, by Newton's method with backtracking, every set at its own step length."""

    def objective(v: Tensor) -> Tensor:
        return 0.5 * (v * (values(v) - centre)).sum(-1) - density(values(v))

    shape = torch.Size([*centre.shape[:1], -1, 0])
    current = objective(weights)
    for _ in range(_STEPS):
        gradient, curvature = derivatives(values(weights))
        step = torch.linalg.solve(_system(curvature, covariance, shape), gradient.view_as(weights) - weights)
        along = partial(_at, objective, weights, step)
        bound = current + _ROUNDING * (
            1.0 + current.abs()
        )  # no more is asked of a step than not to increase the objective
        length, proposed = backtrack_each(along, bound, torch.zeros_like(bound), halvings=_HALVINGS)
        weights = weights + length[:, None] * step
        current = torch.where(length > 0.0, proposed, current)
        if float((step.square().sum(-1) / (1.0 + weights.square().sum(-1))).max()) < _SETTLED**2:
            break
    return weights


def _at(objective: Callable[[Tensor], Tensor], weights: Tensor, step: Tensor, length: Tensor) -> Tensor:
    """Objectives ``(B,)`` at step lengths ``(B,)``."""
    return objective(weights + length[:, None] * step)


def _slope(derivatives: Derivatives, f: Tensor) -> Tensor:
    """Minus the derivative of the gradient ``(B n, C, C)``, which the curvature need not be."""
    with torch.enable_grad():
        f = f.flatten(0, -2).requires_grad_()
        gradient, _ = derivatives(f)
        columns = [-torch.autograd.grad(gradient[:, c].sum(), f, retain_graph=True)[0] for c in range(f.shape[-1])]
    return torch.stack(columns, -2)


def _block_diagonal(curvature: Tensor, shape: torch.Size) -> Tensor:
    """W as ``(B, n C, n C)`` from its blocks ``(B n, C, C)``."""
    batch, latents = shape[0], curvature.shape[-1]
    blocks = curvature.reshape(batch, -1, latents, latents)
    full = torch.diag_embed(blocks.movedim(1, -1))  # (B, C, C, n, n)
    return full.permute(0, 3, 1, 4, 2).flatten(3, 4).flatten(1, 2)


def _system(curvature: Tensor, covariance: Tensor, shape: torch.Size) -> Tensor:
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return eye + _block_diagonal(curvature, shape) @ covariance


def _row_blocks(covariance: Tensor, latents: int) -> Tensor:
    """Covariances of single rows ``(B n, C, C)``."""
    blocks = covariance.unflatten(-1, (-1, latents)).unflatten(-3, (-1, latents))  # (B, n, C, n, C)
    return blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3).flatten(0, 1)
