"""Rounds of a variational posterior: until gradient and curvature are expectations under the marginals that are returned.

A variational site is made from marginals; the mean that it gives, and the covariance for its curvature, have other marginals.
The posterior is stationary in the evidence lower bound where the two agree (Opper & Archambeau 2009). A round takes the site
from the present marginals. Solvers that keep the products of their search space and actions take it at no kernel pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from itergp.likelihoods import Observations, VariationalSite
from itergp.posterior.posterior import Posterior
from itergp.posterior.problem import Problem
from itergp.posterior.status import Status
from itergp.solvers.protocol import Rounds

MAX_ROUNDS = 40
_MAX_SLOW_ROUNDS = 120  # where rows are damped one by one
_SHARE = 0.1
_ROUNDING = 1000.0  # units of the dtype's resolution: smaller changes of marginals are rounding
_RESIDUAL, _SAMPLED_RESIDUAL = 0.02, 0.1  # posterior deviations
_CONTRACTION, _DAMPING = 0.7, 0.5  # a residual that falls less than this from round to round is damped by half
_LEAST_DAMPING = 1.0 / 32.0
_LITTLE_INFORMATION, _GROWTH, _MAX_HALVINGS = 0.25, 8.0, 40
_RESPONSE = 0.3  # the mean moves against it, which leaves less than a third: measured, a fifth oscillates


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
    """How the marginals of the next site follow from those that the last one led to.

    Under ``exp(f)`` expected curvature grows like ``exp(v / 2)``, and rows compete for who carries it: undamped, they take
    turns. Each is then damped by how much its own variance would answer, ``1 / (1 + v dW / d log v)``.

    Attributes:
        share: Of the new marginals, for all rows; 1 until they oscillate.
        last: Residual of the round before.
    """

    share: float = 1.0
    last: float = float("inf")

    def first(self, problem: Problem, mean: Tensor, curvature: Tensor | None, marginals: Tensor) -> Tensor:
        """Marginals for the first variational site ``(N, C, C)``, from those of another one's posterior.

        Args:
            problem: With any site of the observations.
            mean: Latent means ``(N, C)``.
            curvature: Curvature ``(N, C, C)`` that the marginals were conditioned with, or None if it is not known.
            marginals: ``(N, C, C)``.
        """
        if problem.likelihood.bounded_curvature:
            return marginals
        known = 0.0 if curvature is None else _information(curvature, marginals)
        return _within_reach(
            problem, mean, marginals, lambda factor: (_GROWTH * factor * known).clamp_min(mean.shape[1])
        )

    def following(self, problem: Problem, mean: Tensor, marginals: Tensor, site: Tensor, residual: float) -> Tensor:
        """Marginals for the next site, from those of the posterior and of the last site; other arguments as for ``first``."""
        if problem.likelihood.bounded_curvature:
            if residual > _CONTRACTION * self.last:
                self.share = max(_DAMPING * self.share, _LEAST_DAMPING)
            self.last = residual
            return marginals if self.share == 1.0 else (1.0 - self.share) * site + self.share * marginals
        most = _GROWTH * _information(_expected_curvature(problem.site.observations, mean, site), site)
        most = most.clamp_min(_LITTLE_INFORMATION)
        reached = _within_reach(problem, mean, marginals, lambda factor: most)
        response = _response(problem, mean, torch.where(_wider(reached, site), reached, site))
        share = 1.0 / (1.0 + _RESPONSE * response)[:, None, None]
        mixed = site + share * (marginals - site)
        return torch.where(_wider(mixed, reached) & _wider(mixed, site), reached, mixed)


def _within_reach(problem: Problem, mean: Tensor, marginals: Tensor, most: Callable[[Tensor], Tensor]) -> Tensor:
    """Marginals shrunk, row by row, to what one round may go to: ``tr(W v)``, at most C where stationary, is limited.

    From wider ones Newton's method would descend by 1 per step, to a mean far below the stationary one.

    Args:
        problem: With any site of the observations.
        mean: Latent means ``(N, C)``.
        marginals: ``(N, C, C)``.
        most: The largest ``tr(W v)`` of each row ``(N,)``, given by how much its marginals were shrunk.
    """
    observations = problem.site.observations

    def beyond(factor: Tensor) -> Tensor:
        shrunk = factor[:, None, None] * marginals
        return ~(_information(_expected_curvature(observations, mean, shrunk), shrunk) <= most(factor))  # NaN too

    factor = marginals.new_ones(marginals.shape[0])
    for _ in range(_MAX_HALVINGS):
        too_far = beyond(factor)
        if not bool(too_far.any()):
            break
        factor = torch.where(too_far, 0.5 * factor, factor)
    shrunk = factor < 1.0
    if not bool(shrunk.any()):
        return marginals
    for step in (0.5, 0.25, 0.125):  # between the last halving and the one before
        larger = torch.where(shrunk, factor * (1.0 + step), factor)
        factor = torch.where(beyond(larger), factor, larger)
    return factor[:, None, None] * marginals


def _wider(first: Tensor, second: Tensor) -> Tensor:
    """Whether a row's marginal is the wider one ``(N, 1, 1)``."""
    return (_trace(first) > _trace(second))[:, None, None]


def _trace(marginals: Tensor) -> Tensor:
    return marginals.diagonal(dim1=-2, dim2=-1).sum(-1)


def _response(problem: Problem, mean: Tensor, marginals: Tensor) -> Tensor:
    """``tr(v dW / d log v)`` of each row ``(N,)``, where positive: how strongly a wider marginal would narrow itself.

    Where ``tr(W v)`` exceeds C, the covariance does not answer to a row's own curvature by as much: few actions do not see it.
    """
    observations, ratio = problem.site.observations, 1.01
    curvature = _expected_curvature(observations, mean, marginals)
    change = _expected_curvature(observations, mean, ratio * marginals) - curvature
    unseen = (_information(curvature, marginals) / mean.shape[1]).clamp_min(1.0)
    answer = _information(change, marginals) / (math.log(ratio) * unseen)
    return answer.nan_to_num(posinf=0.0).clamp_min(0.0)


def _expected_curvature(observations: Observations, mean: Tensor, marginals: Tensor) -> Tensor:
    return VariationalSite.from_covariance(observations, marginals).derivatives(mean)[1]


def _information(curvature: Tensor, marginals: Tensor) -> Tensor:
    """``tr(W v)`` of each row ``(N,)``."""
    return (curvature * marginals.mT).sum((-2, -1))


def moved(problem: Problem, first: Tensor, second: Tensor, covariance: Tensor) -> float:
    """The largest distance between means ``(N, C)``, in the deviations of marginals ``(N, C, C)``."""
    scale = _deviations(problem, covariance)
    return float(problem.rows.all_reduce_max(((first - second).abs() / scale).amax()))


def widened(problem: Problem, first: Tensor, second: Tensor) -> float:
    """The largest relative change of a deviation between marginals ``(N, C, C)``."""
    a, b = _deviations(problem, first), _deviations(problem, second)
    return float(problem.rows.all_reduce_max(((a - b).abs() / b).amax()))


def drift(problem: Problem, mean: Tensor, first: Tensor, second: Tensor) -> float:
    """How far means ``(N, C)`` would move if marginals ``(N, C, C)`` changed from the first to the second, row by row.

    In deviations of the second. Where log-densities are exponentials, a small relative change of a large variance moves a mean
    by much more than that.
    """
    observations = problem.site.observations
    before, after = (
        VariationalSite.from_covariance(observations, marginals).derivatives(mean)[0] for marginals in (first, second)
    )
    shift = torch.einsum("ncd,nd->nc", second, after - before)
    return moved(problem, mean + shift, mean, second)


def _deviations(problem: Problem, covariance: Tensor) -> Tensor:
    """Posterior deviations ``(N, C)``, at least the rounding of the prior's."""
    rounding = 4.0 * torch.finfo(covariance.dtype).eps * problem.prior_variance()
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    return torch.maximum(variance, rounding).clamp_min(torch.finfo(covariance.dtype).tiny).sqrt()


def max_rounds(problem: Problem) -> int:
    """Rounds after which a posterior that still moves is returned."""
    return MAX_ROUNDS if problem.likelihood.bounded_curvature else _MAX_SLOW_ROUNDS


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
    solver: Rounds[Any],
    problem: Problem,
    state: Any,
    posterior: Posterior,
    tolerance: float,
    refine: Callable[[Problem, Any], Any],
    ended: Callable[[], Status | None],
    advance: Callable[[Problem, Any, bool], tuple[Any, Status | None]] | None = None,
) -> Settled:
    """Takes rounds until they change nothing any more, and then certifies the mean.

    Rounds take no kernel pass, the certificate takes one. A mean that is not near enough is improved by steps of the solver,
    each followed by rounds.

    Args:
        solver: What takes rounds of the solver's states.
        problem: With the site that the posterior was found for.
        state: The solver's state there.
        posterior: The posterior.
        tolerance: Residual at which to stop, in posterior deviations.
        refine: The solver's ``refine``, with errors for what is not finite.
        ended: Says whether the clock or the user ends the rounds.
        advance: Certifies a state, or takes a step from it; with why nothing else may follow. None leaves the mean uncertified.
    """
    observations = problem.site.observations
    damping = Damping()
    marginals = damping.first(problem, posterior.latent_values, posterior.curvature, posterior.latent_covariance)
    residual = widening = float("inf")
    for _ in range(max_rounds(problem)):
        problem = problem.with_site(VariationalSite.from_covariance(observations, marginals))
        state, stop = refine(problem, state), ended()
        shifted = solver.with_mean(problem, state, posterior)
        shift = moved(problem, shifted.latent_values, posterior.latent_values, posterior.latent_covariance)
        if stop is None and max(shift, widening) <= tolerance and advance is not None:
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
        marginals = damping.following(
            problem,
            posterior.latent_values,
            posterior.latent_covariance,
            marginals,
            max(shift, widening),
        )
    return Settled(problem, state, posterior, residual, False)
