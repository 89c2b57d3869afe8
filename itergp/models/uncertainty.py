"""How much of the posterior variance is due to the data, and how much to unfinished computation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.numerics.blocks import curvature_root
from itergp.numerics.rounding import thresholds
from itergp.numerics.spectral import whitening
from itergp.operators import KernelOperator
from itergp.operators.kernel_blocks import joint_columns, kernel_columns, restricted
from itergp.posterior.dense import factorise
from itergp.posterior.local_actions import reduced
from itergp.posterior.precision import LowRankPrecision, cross_multiply, marginal_covariance, multiply
from itergp.solvers import Solution

_COLUMNS = 64  # that share one kernel pass
_SEED = 0


@dataclass(frozen=True)
class UncertaintyDecomposition:
    """Posterior variance of the latent functions at M inputs, in two parts: ``combined = mathematical + computational``.

    The mathematical part is that of the exact computation with all data, for the curvature at the posterior mean. The rest is
    computational: it vanishes as the solver goes on (Wenger et al. 2022, eq. 3).

    Attributes:
        combined: Variance of the posterior ``(M, C)``: what the model reports.
        mathematical: Variance that no computation removes ``(M, C)``; when not ``exact``, an upper bound on it.
        computational: The difference ``(M, C)``; when not ``exact``, a lower bound.
        slack: The exact mathematical variance is at most this much below ``mathematical`` ``(M, C)``; zero when ``exact``.
        exact: Whether a dense computation was possible.
    """

    combined: Tensor
    mathematical: Tensor
    computational: Tensor
    slack: Tensor
    exact: bool

    @classmethod
    def of(cls, combined: Tensor, mathematical: Tensor, slack: Tensor | None = None) -> UncertaintyDecomposition:
        """From the combined variance and the mathematical one, or its upper bound and slack."""
        mathematical = torch.minimum(mathematical.clamp_min(0.0), combined)
        exact = slack is None
        slack = torch.zeros_like(combined) if slack is None else torch.minimum(slack, mathematical)
        return cls(combined, mathematical, combined - mathematical, slack, exact)


@torch.no_grad()
def decompose(
    operator: KernelOperator, solution: Solution, points: Tensor, *, passes: int, dense_limit: int
) -> UncertaintyDecomposition:
    """The decomposition for a solution at kernel inputs ``points``; see ``NonConjugateGP.decompose_uncertainty``.

    Raises:
        InputError: If the solution does not say which curvature its covariance belongs to.
    """
    curvature = solution.curvature
    if curvature is None:
        raise InputError(
            "The parts of uncertainty need the curvature that the covariance belongs to. Got a solution without it. "
            "Use SubspaceNewton, IterNCGP or DenseNewton, or let the solver give Posterior its curvature."
        )
    combined = posterior_variance(operator, solution, points)
    if curvature[..., 0].numel() <= dense_limit:
        return UncertaintyDecomposition.of(combined, exact_variance(operator, curvature, points).to(combined))
    upper, slack = bounded_variance(operator, curvature, points, passes)
    operator.release()
    slack = slack - (upper - combined.double()).clamp_min(0.0)  # the lower end stays where it is
    return UncertaintyDecomposition.of(combined, upper.to(combined), slack.clamp_min(0.0).to(combined))


def exact_variance(operator: KernelOperator, curvature: Tensor, points: Tensor) -> Tensor:
    """``k - k (K + W^+)^{-1} k`` at points ``(m, D)``: ``(m, C)``, float64, by dense matrices of size N C.

    Args:
        operator: K.
        curvature: W ``(N, C, C)``.
        points: Kernel inputs.
    """
    root = curvature_root(curvature.double())
    latents = root.shape[1]
    _, factor = factorise(operator.dense().double(), root)
    cross, explained = _Columns(operator, points), []
    for c in range(latents):
        half = cross.weighed(c, root.mT).flatten(0, 1)
        explained.append(torch.linalg.solve_triangular(factor, half, upper=False).square().sum(0))
    return _prior(operator, points, latents).double() - torch.stack(explained, -1)


def bounded_variance(operator: KernelOperator, curvature: Tensor, points: Tensor, passes: int) -> tuple[Tensor, Tensor]:
    """An upper bound on the exact variance at points, and how far it can be above it: both ``(m, C)``.

    Conditions on actions ``A = W U`` with U in the block Krylov space of ``K W`` from random combinations of the kernel columns
    ``k(X, x)``: the directions that tell most about these very points. Writing ``b = k(X, x)`` and r for the residual of the
    Galerkin solution, ``b^T (K + W^+)^{-1} b`` exceeds what the actions explain by ``r^T (K + W^+)^{-1} r <= r^T W r``.

    Args:
        operator: K.
        curvature: W ``(N, C, C)``.
        points: Kernel inputs ``(m, D)``.
        passes: Kernel passes to spend.
    """
    latents = curvature.shape[-1]
    cross = _Columns(operator, points)
    directions, actions, products = _krylov(operator, curvature, cross, passes)
    gram = actions.flatten(0, 1).mT.double() @ products.flatten(0, 1).double()
    precision = LowRankPrecision.from_gram(actions, 0.5 * (gram + gram.mT))
    applied = products + directions  # (K + W^+) A
    upper, slack = [], []
    for c in range(latents):
        inner = cross.projected(c, actions)  # A^T b
        upper.append(torch.linalg.solve_triangular(precision.factor, inner, upper=False).square().sum(0))
        rest = -(applied @ torch.cholesky_solve(inner, precision.factor).to(applied))
        rest = cross.added(c, rest)
        slack.append((rest * torch.bmm(curvature.to(rest), rest)).sum((0, 1)).double())
    return _prior(operator, points, latents).double() - torch.stack(upper, -1), torch.stack(slack, -1)


class _Columns:
    """``Cov(f(X), f_c(z))`` for points z, where latent functions are coupled or not.

    Args:
        operator: K.
        points: Kernel inputs ``(m, D)`` or ``(C', m, D)``.
    """

    def __init__(self, operator: KernelOperator, points: Tensor) -> None:
        self.coupled = operator.couples_latents
        self.values = joint_columns(operator, points) if self.coupled else kernel_columns(operator, points)
        self.number = points.shape[-2]

    def _of(self, latent: int) -> Tensor:
        """``(N, C, m)`` where coupled, otherwise ``(N, m)`` of that latent function alone."""
        return self.values[..., latent] if self.coupled else self.values[min(latent, self.values.shape[0] - 1)]

    def weighed(self, latent: int, blocks: Tensor) -> Tensor:
        """One small matrix per row ``(N, C, C)`` times these columns ``(N, C, m)``, float64."""
        column = self._of(latent).double()
        return torch.bmm(blocks, column) if self.coupled else blocks[:, :, latent, None] * column[:, None, :]

    def projected(self, latent: int, actions: Tensor) -> Tensor:
        """``A^T b`` ``(r, m)``, float64, for actions ``(N, C, r)``."""
        column = self._of(latent).double()
        if self.coupled:
            return actions.flatten(0, 1).mT.double() @ column.flatten(0, 1)
        return actions[:, latent].mT.double() @ column

    def added(self, latent: int, block: Tensor) -> Tensor:
        """These columns added to a block ``(N, C, m)``, which is changed."""
        if self.coupled:
            return block.add_(self._of(latent))
        block[:, latent] += self._of(latent)
        return block

    def mixed(self, mix: Tensor) -> Tensor:
        """Their combinations ``(N, C, k)`` by ``(C, m, k)``."""
        mix = mix.to(self.values)
        if self.coupled:
            return torch.einsum("ncmd,dmk->nck", self.values, mix)
        return torch.einsum("cnm,cmk->nck", self.values.expand(len(mix), -1, -1), mix)


def _krylov(operator: KernelOperator, curvature: Tensor, cross: _Columns, passes: int) -> tuple[Tensor, Tensor, Tensor]:
    """U, ``A = W U`` and ``K A`` ``(N, C, r)`` with ``U^T W U = I``."""
    size, latents = curvature.shape[:2]
    generator = torch.Generator().manual_seed(_SEED)
    width = max(1, min(cross.number, _COLUMNS // latents))
    mix = torch.randn(latents, cross.number, width, generator=generator, dtype=torch.float64)
    block = cross.mixed(mix)
    block = torch.einsum("nck,cd->nckd", block, torch.eye(latents).to(block)).flatten(2)
    directions = actions = products = block.new_zeros(size, latents, 0)
    for _ in range(passes):
        for _ in range(2):
            block = block - directions @ (actions.flatten(0, 1).mT @ block.flatten(0, 1))
            weighed = torch.bmm(curvature, block)
            gram = (block.flatten(0, 1).mT @ weighed.flatten(0, 1)).double()
            block = block @ whitening(gram, thresholds(gram.dtype).dependent_krylov, relative=True).to(block)
        if block.shape[-1] == 0 or directions.shape[-1] + block.shape[-1] > size * latents:
            break
        weighed = torch.bmm(curvature, block)
        product = multiply(operator, weighed)
        directions = torch.cat([directions, block], -1)
        actions, products = torch.cat([actions, weighed], -1), torch.cat([products, product], -1)
        block = product
    return directions, actions, products


def posterior_variance(operator: KernelOperator, solution: Solution, points: Tensor) -> Tensor:
    """Variance that a posterior reports at points: ``(m, C)``."""
    precision, support = solution.precision, restricted(operator, solution.support)
    prior = _prior(operator, points, precision.actions.shape[1])
    if precision.rank == 0:
        return prior
    whitened = precision.whiten(cross_multiply(support, points, precision.actions))
    covariance = marginal_covariance(prior, whitened)
    if (local := solution.local) is not None and operator.evaluates_groups:
        covariance = reduced(covariance, local.at(local.neighbourhoods(operator), points, whitened).reduction)
    return covariance.diagonal(dim1=-2, dim2=-1)


def _prior(operator: KernelOperator, points: Tensor, latents: int) -> Tensor:
    return operator.diagonal(points).detach().mT.expand(points.shape[-2], latents)
