"""Rounds of a variational posterior: until gradient and curvature are expectations under the marginals that are returned.

A variational site is made from marginals; the mean that it gives, and the covariance for its curvature, have other marginals.
The posterior is stationary in the evidence lower bound where the two agree (Opper & Archambeau 2009). A round takes the site
from the present marginals. Solvers that keep the products of their search space and actions take it at no kernel pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from itergp.likelihoods import Observations, VariationalSite
from itergp.numerics.blocks import psd_root
from itergp.posterior.posterior import Posterior
from itergp.posterior.problem import Problem
from itergp.posterior.status import Status
from itergp.solvers.protocol import Rounds

MAX_ROUNDS = 120  # the widest marginals take that many; most take fewer than ten
_FEW_SAMPLES_ROUNDS = 10  # of few samples: with wide marginals they may oscillate
_FEW_SAMPLES_RESIDUAL = 0.1  # posterior deviations at which more samples take over, which move a mean by more than that
_SHARE = 0.1
_ROUNDING = 1000.0  # units of the dtype's resolution: smaller changes of marginals are rounding
_RESIDUAL, _SAMPLED_RESIDUAL = 0.02, 0.1  # posterior deviations
_LEAST_FALL, _DAMPING = 0.3, 0.5  # a residual that falls less than this, times the share, in a round is damped by half
_LEAST_DAMPING = 1.0 / 32.0
_GROWTH, _MAX_HALVINGS = 8.0, 40
_WIDER = 1.01  # a marginal by how much, to see what that does to its curvature
_CARE, _MOST_CARE = 0.3, 30.0  # the mean moves against a change, which leaves less than a third of it
_MORE_CARE, _LESS_CARE = 2.0, 0.9  # after a turn, and without one
_TURN = 0.3  # share of the last step beyond which a step back is a turn
_FALL = 6.0  # units by which a mean may have to fall in a round
_NEARLY_ALL = 0.7  # of a step: then it is all of it
_SMALL_STEP, _LARGEST_STEP = 1e-3, 40.0  # of a logarithm


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
    """How the covariance of a round follows from that of the round before.

    Under ``exp(f)`` expected curvature grows like ``exp(v / 2)``, and rows compete for who carries it: undamped, they take
    turns. So curvature goes, row by row, a part of its way in the logarithm, ``1 / (1 + care dlog W / dlog v)``, and care grows
    where a row turns back. Marginals are always those of a curvature, never a mixture of two: no row's is wider than all
    together allow.

    Attributes:
        share: Of the new marginals, for all rows, where curvature is bounded; 1 until they oscillate.
        last: Residual of the round before.
        curvature: W ``(N, C, C)`` of the covariance that the site is made from; None where curvature is bounded.
        care: How much the rows ``(N,)`` are damped; None before the first round.
        wanted: Logarithms of how much the curvature of the rows wanted to change in the last round ``(N,)``.
        least: The smallest part of its way that a row's curvature went in the last round.
    """

    share: float = 1.0
    last: float = float("inf")
    curvature: Tensor | None = None
    care: Tensor | None = None
    wanted: Tensor | None = None
    least: float = 1.0

    def begin(self) -> None:
        """Undamped where curvature is bounded, as nothing has oscillated yet; where it is not, care of the rows goes on."""
        self.share, self.last = 1.0, float("inf")

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
        factor = _within_reach(
            problem, mean, marginals, lambda factor: (_GROWTH * factor * known).clamp_min(mean.shape[1])
        )
        if curvature is not None:
            self.curvature = curvature + _narrowing(factor, marginals)
        return factor[:, None, None] * marginals

    def site(self, observations: Observations, marginals: Tensor, *, few: bool = False) -> VariationalSite:
        """The site for marginals ``(N, C, C)``, whose covariance is conditioned as this says.

        Args:
            observations: What was observed.
            marginals: Of the rows.
            few: See ``VariationalSite``.
        """
        site = replace(VariationalSite.from_covariance(observations, marginals), few=few)
        if self.curvature is None:
            return site
        return replace(site, steer=partial(self._steered, observations, marginals))

    def following(
        self,
        problem: Problem,
        mean: Tensor,
        marginals: Tensor,
        site: Tensor,
        residual: float,
        curvature: Tensor | None = None,
    ) -> Tensor:
        """Marginals ``(N, C, C)`` for the next site, after a round.

        Args:
            problem: With any site of the observations.
            mean: Latent means ``(N, C)`` that the round came to.
            marginals: Its marginals ``(N, C, C)``.
            site: Those that its site was made from.
            residual: How much it changed.
            curvature: W ``(N, C, C)`` that its covariance was conditioned with, if that is not bounded.
        """
        if self.curvature is None or curvature is None:
            if residual > (1.0 - _LEAST_FALL * self.share) * self.last:  # a small share falls slowly even without turns
                self.share = max(_DAMPING * self.share, _LEAST_DAMPING)
            self.last = residual
            return marginals if self.share == 1.0 else (1.0 - self.share) * site + self.share * marginals
        observations = problem.site.observations
        wanted, ratio = self._step(observations, site, mean, _expected_curvature(observations, mean, site))
        if self.care is None or self.wanted is None:
            self.care = torch.full_like(wanted, _CARE)
        else:
            turned = (wanted * self.wanted < 0.0) & (wanted.abs() > _TURN * self.wanted.abs())
            self.care = torch.where(turned, _MORE_CARE * self.care, _LESS_CARE * self.care).clamp(_CARE, _MOST_CARE)
        self.wanted, self.curvature = wanted, curvature
        self.least = -float(problem.rows.all_reduce_max(-ratio.amin()))
        return marginals

    def _steered(self, observations: Observations, marginals: Tensor, mean: Tensor, curvature: Tensor) -> Tensor:
        """The curvature ``(N, C, C)`` that a covariance is conditioned with, given the expected one under the marginals."""
        assert self.curvature is not None
        wanted, ratio = self._step(observations, marginals, mean, curvature)
        share = torch.expm1(ratio * wanted) / torch.expm1(wanted)
        share = torch.where(wanted.abs() < _SMALL_STEP, ratio, share)[:, None, None]
        return torch.where(share < 1.0, self.curvature + share * (curvature - self.curvature), curvature)

    def _step(
        self, observations: Observations, marginals: Tensor, mean: Tensor, curvature: Tensor
    ) -> tuple[Tensor, Tensor]:
        """How far the curvature of the rows should go in the logarithm, and which share of it a round does, ``(N,)`` each.

        ``tr(W v)`` is at most C where few actions do not miss it. A round may not widen a marginal so much that what is
        expected under it grows by more than a few units of the logarithm, by which the mean would have to fall one by one.
        """
        assert self.curvature is not None
        tiny = torch.finfo(marginals.dtype).tiny
        now = _information(self.curvature, marginals).clamp_min(tiny)
        new = _information(curvature, marginals).clamp_min(tiny)
        wider = _information(_expected_curvature(observations, mean, _WIDER * marginals), marginals).clamp_min(tiny)
        growth = ((wider / new).log() / math.log(_WIDER)).nan_to_num(posinf=0.0).clamp_min(0.0)  # dlog W / dlog v
        wanted = (new / now).log().nan_to_num().clamp(-_LARGEST_STEP, _LARGEST_STEP)
        care = _CARE if self.care is None else self.care
        ratio = 1.0 / (1.0 + care * growth * (now / mean.shape[1]).clamp_max(1.0))
        most = torch.log1p(_FALL / growth.clamp_min(tiny)) / (-wanted).clamp_min(tiny)
        ratio = torch.minimum(ratio, most)
        return wanted, torch.where(ratio > _NEARLY_ALL, 1.0, ratio)


def _narrowing(factor: Tensor, marginals: Tensor) -> Tensor:
    """Curvature ``(N, C, C)`` that would by itself shrink marginals by factors ``(N,)``."""
    added, shrunk = torch.zeros_like(marginals), factor < 1.0
    if bool(shrunk.any()):
        root = psd_root(marginals[shrunk])
        added[shrunk] = torch.cholesky_inverse(root) * (1.0 / factor[shrunk] - 1.0)[:, None, None]
    return added


def _within_reach(problem: Problem, mean: Tensor, marginals: Tensor, most: Callable[[Tensor], Tensor]) -> Tensor:
    """By how much marginals are shrunk ``(N,)`` to what one round may go to: ``tr(W v)``, at most C where stationary.

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
        return factor
    for step in (0.5, 0.25, 0.125):  # between the last halving and the one before
        larger = torch.where(shrunk, factor * (1.0 + step), factor)
        factor = torch.where(beyond(larger), factor, larger)
    return factor


def _expected_curvature(observations: Observations, mean: Tensor, marginals: Tensor) -> Tensor:
    site = VariationalSite.from_covariance(observations, marginals)
    curvature = site.derivatives(mean)[1]
    return site.covariance_curvature(mean, curvature) if observations.likelihood.majorises else curvature


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
    damping: Damping,
    site: Tensor | None = None,
    advance: Callable[[Problem, Any, bool], tuple[Any, Status | None]] | None = None,
) -> Settled:
    """Takes rounds until they change nothing any more, and then certifies the mean.

    Rounds take no kernel pass, the certificate takes one. A mean that is not near enough is improved by steps of the solver,
    each followed by rounds. Where expectations are averages over samples, the first rounds take few of them.

    Args:
        solver: What takes rounds of the solver's states.
        problem: With the site that the posterior was found for.
        state: The solver's state there.
        posterior: The posterior.
        tolerance: Residual at which to stop, in posterior deviations.
        refine: The solver's ``refine``, with errors for what is not finite.
        ended: Says whether the clock or the user ends the rounds.
        damping: Of the rounds; goes on from where it is.
        site: Marginals ``(N, C, C)`` that the site was made from; None for one that was not made from any.
        advance: Certifies a state, or takes a step from it; with why nothing else may follow. None leaves the mean uncertified.
    """
    observations = problem.site.observations
    if site is None or damping.curvature is None:  # or that of a coarser covariance, whose oscillations are over
        damping.begin()
        mean, covariance = posterior.latent_values, posterior.latent_covariance
        marginals = damping.first(problem, mean, posterior.curvature, covariance)
    else:
        marginals = _next_marginals(damping, problem, posterior, site, float("inf"))
    residual = widening = float("inf")
    few = observations.likelihood.samples
    for number in range(MAX_ROUNDS):
        problem = problem.with_site(damping.site(observations, marginals, few=few))
        state, stop = refine(problem, state), ended()
        shifted = solver.with_mean(problem, state, posterior)
        shift = moved(problem, shifted.latent_values, posterior.latent_values, posterior.latent_covariance)
        settled = advance is not None and max(shift, widening) <= max(tolerance, _FEW_SAMPLES_RESIDUAL)
        if few and stop is None and (settled or number == _FEW_SAMPLES_ROUNDS):
            few = False
            damping.begin()
            continue
        if stop is None and max(shift, widening) <= tolerance and damping.least < 1.0:
            widening = _whole_step(solver, problem, state, shifted, marginals)
        if stop is None and max(shift, widening) <= tolerance and advance is not None:
            for certify in (True, False):
                if stop is None and not solver.certain(problem, state):
                    state, stop = advance(problem, state, certify)
                    damping.last = float("inf")  # what a larger space changes is no oscillation
            shifted = solver.with_mean(problem, state, posterior)
            shift = moved(problem, shifted.latent_values, posterior.latent_values, posterior.latent_covariance)
        residual = max(shift, widening)
        finished = advance is None or solver.certain(problem, state)
        if stop is not None or (residual <= tolerance and finished):
            return Settled(problem, state, shifted, residual, residual <= tolerance, stop)
        posterior = solver.recondition(problem, state, shifted)
        widening = widened(problem, marginals, posterior.latent_covariance)
        marginals = _next_marginals(damping, problem, posterior, marginals, max(shift, widening))
    return Settled(problem, state, posterior, residual, False)


def _next_marginals(damping: Damping, problem: Problem, posterior: Posterior, site: Tensor, residual: float) -> Tensor:
    mean, marginals = posterior.latent_values, posterior.latent_covariance
    return damping.following(problem, mean, marginals, site, residual, posterior.curvature)


def _whole_step(solver: Rounds[Any], problem: Problem, state: Any, posterior: Posterior, marginals: Tensor) -> float:
    """What a round would change that is not damped."""
    whole = VariationalSite.from_covariance(problem.site.observations, marginals)
    after = solver.recondition(problem.with_site(whole), state, posterior).latent_covariance
    return max(widened(problem, marginals, after), drift(problem, posterior.latent_values, marginals, after))
