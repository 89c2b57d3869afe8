"""Rounds of a variational posterior: until gradient and curvature are expectations under the marginals that are returned.

A variational site is made from marginals; the mean that it gives, and the covariance for its curvature, have other marginals.
The posterior is stationary in the evidence lower bound where the two agree (Opper & Archambeau 2009). A round takes the site
from the present marginals. Solvers that keep the products of their search space and actions take it at no kernel pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from itergp.likelihoods import VariationalSite
from itergp.solvers.base import Solver
from itergp.solvers.posterior import Posterior
from itergp.solvers.problem import Problem
from itergp.solvers.status import Status

MAX_ROUNDS = 40
_SHARE = 0.1
_ROUNDING = 1000.0  # units of the dtype's resolution: smaller changes of marginals are rounding
_RESIDUAL, _SAMPLED_RESIDUAL = 0.02, 0.1  # posterior deviations
_CONTRACTION, _DAMPING = 0.7, 0.5  # a residual that falls less than this from round to round is damped by half
_LEAST_DAMPING = 1.0 / 32.0


def residual_tolerance(problem: Problem, tolerance: float) -> float:
    """Residual at which a variational posterior is stationary, in posterior deviations.

    A fiftieth; a tenth where expectations are averages over samples, whose own error is of that size. Less if the tolerance in
    the objective asks for it: a move of d deviations costs ``d^2 / 2`` nats, which is to be a hundredth of the tolerance.

    Args:
        problem: The problem.
        tolerance: Of the objective, nats per row.
    """
    usual = _RESIDUAL if problem.num_latents == 1 else _SAMPLED_RESIDUAL
    resolved = _ROUNDING * torch.finfo(problem.mean.dtype).eps
    return max(resolved, min(usual, _SHARE * (2.0 * tolerance * problem.num_rows) ** 0.5))


@dataclass
class Damping:
    """How much of each new set of marginals the next site is made from.

    Attributes:
        share: Of the new marginals; 1 until they oscillate.
        last: Residual of the round before.
    """

    share: float = 1.0
    last: float = float("inf")

    def mix(self, site: Tensor, new: Tensor, residual: float) -> Tensor:
        """Marginals for the next site ``(N, C, C)``, from those of the last and those that it led to."""
        if residual > _CONTRACTION * self.last:
            self.share = max(_DAMPING * self.share, _LEAST_DAMPING)
        self.last = residual
        return new if self.share == 1.0 else (1.0 - self.share) * site + self.share * new


def moved(problem: Problem, first: Tensor, second: Tensor, covariance: Tensor) -> float:
    """The largest distance between means ``(N, C)``, in the deviations of marginals ``(N, C, C)``."""
    scale = _deviations(problem, covariance)
    return float(problem.rows.largest(((first - second).abs() / scale).amax()))


def widened(problem: Problem, first: Tensor, second: Tensor) -> float:
    """The largest relative change of a deviation between marginals ``(N, C, C)``."""
    a, b = _deviations(problem, first), _deviations(problem, second)
    return float(problem.rows.largest(((a - b).abs() / b).amax()))


def _deviations(problem: Problem, covariance: Tensor) -> Tensor:
    """Posterior deviations ``(N, C)``, at least the rounding of the prior's."""
    rounding = 4.0 * torch.finfo(covariance.dtype).eps * problem.prior_variance()
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    return torch.maximum(variance, rounding).clamp_min(torch.finfo(covariance.dtype).tiny).sqrt()


def can_refine(solver: Solver[Any]) -> bool:
    """Whether a solver finds mean and covariance for another site by itself."""
    return all(hasattr(solver, name) for name in ("refine", "certify", "with_mean", "recondition"))


@dataclass(frozen=True)
class Settled:
    """Where rounds ended.

    Attributes:
        problem: With the last site.
        state: The solver's, at the minimiser for that site.
        posterior: Its mean, and the covariance whose marginals the site was made from.
        residual: See ``Solution.variational_residual``.
        stationary: Whether the residual is within the tolerance.
        status: Why the rounds ended early, or None.
    """

    problem: Problem
    state: Any
    posterior: Posterior
    residual: float
    stationary: bool
    status: Status | None = None


def settle(
    solver: Any,
    problem: Problem,
    state: Any,
    posterior: Posterior,
    tolerance: float,
    refine: Callable[[Problem, Any], Any],
    advance: Callable[[Problem, Any, bool], tuple[Any, Status | None]] | None = None,
) -> Settled:
    """Takes rounds until they change nothing any more, and then certifies the mean.

    Rounds take no kernel pass, the certificate takes one. A mean that is not near enough is improved by steps of the solver,
    each followed by rounds.

    Args:
        solver: With ``with_mean`` and ``recondition``.
        problem: With the site that the posterior was found for.
        state: The solver's state there.
        posterior: The posterior.
        tolerance: Residual at which to stop, in posterior deviations.
        refine: The solver's ``refine``, with errors for what is not finite.
        advance: Certifies a state, or takes a step from it; with why nothing else may follow. None leaves the mean uncertified.
    """
    observations = problem.site.observations
    damping, marginals = Damping(), posterior.latent_covariance
    residual = widening = float("inf")
    for _ in range(MAX_ROUNDS):
        problem = problem.with_site(VariationalSite.from_covariance(observations, marginals))
        state, stop = refine(problem, state), None
        shifted = solver.with_mean(problem, state, posterior)
        shift = moved(problem, shifted.latent_values, posterior.latent_values, posterior.latent_covariance)
        if max(shift, widening) <= tolerance and advance is not None:
            for certify in (True, False):
                if stop is None and not solver.certain(problem, state):
                    state, stop = advance(problem, state, certify)
            shifted = solver.with_mean(problem, state, posterior)
            shift = moved(problem, shifted.latent_values, posterior.latent_values, posterior.latent_covariance)
        residual = max(shift, widening)
        finished = advance is None or solver.certain(problem, state)
        if stop is not None or (residual <= tolerance and finished):
            return Settled(problem, state, shifted, residual, residual <= tolerance, stop)
        posterior = solver.recondition(problem, state, shifted)
        widening = widened(problem, marginals, posterior.latent_covariance)
        marginals = damping.mix(marginals, posterior.latent_covariance, max(shift, widening))
    return Settled(problem, state, posterior, residual, False)
