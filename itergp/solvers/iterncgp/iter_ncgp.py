"""``IterNCGP``: Newton's method with a probabilistic linear solver inside, as published."""

from __future__ import annotations

import numbers
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch

from itergp.checks import require_positive
from itergp.errors import InputError
from itergp.posterior.posterior import Posterior, prior_covariance
from itergp.posterior.precision import multiply
from itergp.posterior.problem import Problem, inner
from itergp.posterior.solution import Solution
from itergp.posterior.status import Reason, Status
from itergp.solvers.demand import Demand, ProblemSize, likelihood_memory
from itergp.solvers.iterncgp.iter_gp import view
from itergp.solvers.iterncgp.iter_ncgp_state import (
    IterNCGPState,
    Phase,
    RecycledActions,
    add_weights,
    linear_system,
    recycled_buffer,
    whole,
)
from itergp.solvers.iterncgp.newton_iterate import NewtonIterate, backtracking_step, full_step, recomputed, zero
from itergp.solvers.policies import CG, Policy
from itergp.solvers.policies.memory import Memory
from itergp.solvers.policies.mixed import require_policy
from itergp.solvers.protocol import BaseSolver, with_setting
from itergp.solvers.run.budget import Budget

StepRule = Literal["full", "backtracking"]
Compression = Literal["published", "informative"]

_DEFAULT_MAX_PASSES = 100
_EXPECTED_PASSES, _EXPECTED_SYSTEMS = 60, 10
_DEFAULT_TOLERANCE = 1e-4
_DEFAULT_INNER_TOLERANCE = 0.01
_DEFAULT_ITERATIONS = 5
# Full steps that go up and end above the objective of the prior mean, after which the iteration counts as diverged.
_PATIENCE = 3
# Newton steps in a row that gain nothing, after which the iteration counts as stalled.
_IDLE = 3


@dataclass(frozen=True, init=False)
class IterNCGP(BaseSolver[IterNCGPState]):
    """Newton's method in which every step is Gaussian process regression by a probabilistic linear solver.

    A step from f solves ``(K + W^+) v = f - m + W^+ g`` by actions of a policy (``IterGP``). Kernel products are kept from one
    Newton step to the next (recycling: only ``W^+`` has changed), and the number of actions can be capped (compression).

    Cost: one kernel pass per proposal of the policy (none for unit vectors, which cost one kernel column per row), and one
    more whenever the iteration seems to have converged: it certifies that, or shows that it is not so and is not wasted,
    because the gradient that it multiplies becomes an action. Memory while it runs: two ``(N, C, R)`` arrays. The result
    holds its covariance's actions besides.

    Args:
        policy: Proposes actions; default ``CG()``.
        recycle: Keep actions and products between Newton steps, stages and conditionings; default True.
        max_rank: R, most actions held. When they are full the linear solve ends, and the next begins with as many of them as
            leave room for its own. Default none.
        compression: Which directions are kept then: ``"published"``, the largest eigenvalues of ``S^T (K + W^+) S``, or
            ``"informative"``, the largest signal-to-noise ratios.
        iterations: Most proposals per Newton step: a number, or a sequence whose last number repeats; None for no limit.
            Default 5.
        inner_tolerance: Relative residual at which a linear solve ends before; default 0.01.
        step: ``"full"``, as published, or ``"backtracking"``: as far as the objective decreases. Full steps diverge when
            probabilities saturate, as they do with large output scales.
        max_steps: Newton steps per stage; default none.
        max_passes: Kernel passes, all stages together; default 100.
        tolerance: Certified gap to the mode at which to stop, in nats per row; default 1e-4.
        time_limit: Seconds for all stages together; default none.
        reorthogonalise: Make actions orthogonal to earlier ones before they are multiplied; changes rounding only.
        covariance: Whether to condition a covariance; without it the prior's is returned.

    Raises:
        InputError: If a setting is not valid.

    Differs from the paper (arXiv 2310.20285): (1) the linear solver's recursion is kept as a Cholesky factor, see ``IterGP``;
    (2) eigenvalues of W that are zero up to rounding are lifted before they are inverted, see ``Noise.from_curvature``,
    and actions are projected away from directions in which a row has infinite noise; (3) the cap on the rank holds within
    a Newton step too; (4) the covariance of the result belongs to the curvature at the returned mean, one more virtual
    solver run and no product; (5) the last kernel pass certifies the result; (6) with ``step="backtracking"`` the current
    weights are an action of every Newton step, at no product, so that the step is one of descent even after compression;
    (7) full steps that diverge are stopped, and the result is the iterate with the lowest objective.

    Examples:
        >>> from itergp.solvers import IterNCGP
        >>> from itergp.solvers.policies import UnitVectors
        >>> solver = IterNCGP(policy=UnitVectors(order="random", rows=50), iterations=(10, 5), step="backtracking")
    """

    state_type: ClassVar[type[IterNCGPState]] = IterNCGPState
    policy: Policy
    recycle: bool = True
    max_rank: int | None = None
    compression: Compression = "published"
    iterations: tuple[int, ...] | None = (_DEFAULT_ITERATIONS,)
    inner_tolerance: float = _DEFAULT_INNER_TOLERANCE
    step_rule: StepRule = "full"  # the argument is called step, but that is the name of the driver's method
    max_steps: int | None = None
    max_passes: int | None = None
    tolerance: float = _DEFAULT_TOLERANCE
    time_limit: float | None = None
    reorthogonalise: bool = True
    covariance: bool = True

    def __init__(
        self,
        *,
        policy: Policy | None = None,
        recycle: bool = True,
        max_rank: int | None = None,
        compression: Compression = "published",
        iterations: int | tuple[int, ...] | None = _DEFAULT_ITERATIONS,
        inner_tolerance: float = _DEFAULT_INNER_TOLERANCE,
        step: StepRule = "full",
        max_steps: int | None = None,
        max_passes: int | None = None,
        tolerance: float = _DEFAULT_TOLERANCE,
        time_limit: float | None = None,
        reorthogonalise: bool = True,
        covariance: bool = True,
    ) -> None:
        settings = {
            "policy": CG() if policy is None else policy,
            "recycle": recycle,
            "max_rank": max_rank,
            "compression": compression,
            "iterations": _schedule(iterations),
            "inner_tolerance": inner_tolerance,
            "step_rule": step,
            "max_steps": max_steps,
            "max_passes": max_passes,
            "tolerance": tolerance,
            "time_limit": time_limit,
            "reorthogonalise": reorthogonalise,
            "covariance": covariance,
        }
        for name, value in settings.items():  # immutable from here on
            object.__setattr__(self, name, value)
        require_policy(self.policy)
        for name in ("max_rank", "max_steps", "max_passes"):
            require_positive(name, getattr(self, name), integer=True)
        for name in ("inner_tolerance", "tolerance", "time_limit"):
            require_positive(name, getattr(self, name))
        _require_choice("step", step, get_args(StepRule))
        _require_choice("compression", compression, get_args(Compression))

    @property
    def gives_covariance(self) -> bool:
        """Whether a covariance is conditioned."""
        return self.covariance

    def without_covariance(self) -> IterNCGP:
        """The same solver for the mean alone."""
        return with_setting(self, "covariance", False)

    @property
    def _sparse(self) -> bool:
        """Whether the policy looks at a few rows at a time: the weights, which involve many, then come last."""
        return self.policy.sparse

    def demand(self, size: ProblemSize) -> Demand:
        """What a solve of this size is expected to need: passes of a typical problem, memory for their actions."""
        latents = size.num_latents
        passes = min(self.max_passes or _EXPECTED_PASSES, _EXPECTED_PASSES)
        stages = 2 if size.variational else 1
        rank = min(self.max_rank or stages * passes, size.num_rows * latents)
        memory = {"actions and their products": 2 * size.array(latents * rank), "rows": likelihood_memory(size)}
        work = size.num_rows * latents * rank**2 * _EXPECTED_SYSTEMS
        columns = passes * latents // size.num_kernels
        if self._sparse:  # kernel columns instead of passes
            return Demand(0, 0, size.num_kernels * size.num_rows * rank, work, memory)
        return Demand(passes, columns, 0, work, memory)

    # ------------------------------------------------------------------- start
    def init(self, problem: Problem, warm_start: Solution | None = None) -> IterNCGPState:
        """Starts at the prior mean, or from an earlier solution's weights and actions."""
        start = zero(problem)
        iterate, earlier = start, warm_start
        if earlier is not None and earlier.representer_weights.shape == problem.mean.shape:
            weights = earlier.representer_weights.to(problem.mean)
            if earlier.operator is problem.operator:
                iterate = NewtonIterate.at(problem, weights, earlier.latent_values.to(problem.mean))
            else:
                iterate = recomputed(problem, weights)
            # Under another kernel the same weights can be another function, from which Newton's method does not find back.
            iterate = iterate if iterate.objective <= start.objective else start
        buffer = recycled_buffer(problem, warm_start if self.recycle else None, self.max_rank)
        belief = self._linearise(problem, iterate, buffer, 0)
        return IterNCGPState(belief, iterate, iterate, start.objective, Memory())

    def _linearise(self, problem: Problem, iterate: NewtonIterate, buffer: Any, newton_step: int) -> Any:
        if not self.recycle:
            buffer.clear()
        room = None
        if self.max_rank is not None:
            own = self.iterations[min(newton_step, len(self.iterations) - 1)] if self.iterations else self.max_rank // 2
            room = max(1, self.max_rank - min(own, (self.max_rank + 1) // 2))
            room = None if self.max_rank >= problem.mean.numel() else room  # more than N C are dependent
        return linear_system(
            problem,
            iterate,
            buffer,
            hold_weights=self.step_rule == "backtracking" and not self._sparse,
            room=room,
            compression=self.compression,
            reorthogonalise=self.reorthogonalise,
        )

    # -------------------------------------------------------------------- step
    def step(self, problem: Problem, state: IterNCGPState, budget: Budget) -> IterNCGPState:
        """One proposal, and the Newton update if the linear system is solved with it; or the pass that certifies."""
        del budget
        if state.phase is Phase.SETTLED:
            return self._certified(problem, state)
        if state.phase is not Phase.SOLVING:
            belief = self._linearise(problem, state.iterate, state.belief.buffer, state.newton_step)
            state = replace(state, belief=belief)
        belief = state.belief
        proposal = None
        if not state.exhausted:
            seen = view(
                problem.kernel_operator,
                belief,
                state.memory,
                index=state.index,
                step=state.inner_step,
                newton_step=state.newton_step,
                mean=problem.mean,
            )
            proposal = self.policy.propose(seen)
        room = None if self.max_rank is None else self.max_rank - belief.rank
        if proposal is not None and (room is None or room > 0):
            belief.observe(problem.kernel_operator, proposal, room)
        state = replace(
            state,
            index=state.index + 1,
            inner_step=state.inner_step + 1,
            exhausted=proposal is None,
            newton_steps=0,
            phase=Phase.SOLVING,
            event="",
        )
        return self._updated(problem, state) if self._solved(state) else state

    def _solved(self, state: IterNCGPState) -> bool:
        """Whether the linear system has had its share of actions."""
        full = self.max_rank is not None and state.belief.rank >= self.max_rank
        if state.exhausted or full or state.belief.rank >= state.belief.noise.rank:
            return True
        if self.iterations and state.inner_step >= self.iterations[min(state.newton_step, len(self.iterations) - 1)]:
            return True
        belief = state.belief
        scale = float(belief.noise.project(belief.right.double()).norm())
        return float(belief.residual().norm()) <= self.inner_tolerance * scale

    def _updated(self, problem: Problem, state: IterNCGPState) -> IterNCGPState:
        """The Newton update: a new iterate. Its linear system is set up by the next step, if there is one."""
        belief, old = state.belief, state.iterate
        if self.step_rule == "backtracking" and self._sparse:
            add_weights(problem, old, belief)
        move = full_step if self.step_rule == "full" else backtracking_step
        new, length = move(problem, old, belief.weights(), belief.latent())
        if not new.finite:
            event = "the full step was not finite"
            return replace(state, phase=Phase.DIVERGED, newton_steps=1, step_length=0.0, event=event)
        gain = old.objective - new.objective
        resolution = problem.resolution(new.latent_values, new.gradient, new.objective)
        worse = new.objective > max(state.reference, old.objective) + resolution
        above = state.above + 1 if worse else 0 if new.objective <= state.reference else state.above
        event = "" if length > 0.0 else "no step decreases the objective"
        event = "the full step increased the objective" if gain < -resolution else event
        bound = state.norm_squared
        if problem.site.log_concave and bound < float("inf"):
            bound = max(bound - 2.0 * gain, 0.0) + 2.0 * resolution
        phase = Phase.SETTLED if abs(gain) <= self.tolerance * problem.num_rows else Phase.UPDATED
        return replace(
            state,
            iterate=new,
            best=new if new.objective < state.best.objective else state.best,
            newton_step=state.newton_step + 1,
            inner_step=0,
            index=state.index if self.recycle else 0,
            norm_squared=bound,
            gain=gain,
            step_length=length,
            newton_steps=1,
            above=above,
            idle=state.idle + 1 if abs(gain) <= 2.0 * resolution else 0,
            phase=Phase.DIVERGED if above >= _PATIENCE else phase,
            event=event,
        )

    def _certified(self, problem: Problem, state: IterNCGPState) -> IterNCGPState:
        """Multiplies the gradient: how far the iterate is from the mode, and one more action."""
        gradient = state.iterate.residual
        product = multiply(problem.operator, gradient.unsqueeze(-1))
        norm_squared = abs(inner(gradient, product.squeeze(-1)))
        self._use(state, gradient, product)
        resolution = problem.resolution(state.iterate.latent_values, state.iterate.gradient, state.objective)
        bound = norm_squared + problem.entry_rounding(gradient) + 2.0 * resolution
        return replace(
            state,
            norm_squared=bound,
            residual=norm_squared,
            newton_steps=0,
            phase=Phase.CERTIFIED,
            event="certified",
        )

    def _use(self, state: IterNCGPState, gradient: Any, product: Any) -> None:
        """The multiplied gradient as an action, if there is room; its product is known."""
        belief = state.belief
        size = float(gradient.double().norm())
        free = self.max_rank is None or belief.rank < self.max_rank
        if not (free and size > 0.0):
            return
        if belief.noise.covers(gradient):
            belief.observe_known(gradient.unsqueeze(-1) / size, product / size)

    # --------------------------------------------------------------------- end
    def status(self, problem: Problem, state: IterNCGPState, budget: Budget) -> Status | None:
        """Converged, diverged, out of a budget, or unable to improve."""
        per_row = 0.5 * state.norm_squared / problem.num_rows
        detail = f"gap {per_row:.2g} nats per row, tolerance {self.tolerance:.2g}"
        if state.phase is Phase.DIVERGED:
            return Status(Reason.DIVERGED, f"after {state.newton_step} Newton steps")
        if per_row <= self.tolerance:
            return Status(Reason.CONVERGED if problem.site.log_concave else Reason.STATIONARY, detail)
        if state.phase is Phase.CERTIFIED and state.exhausted:
            return Status(Reason.POLICY, detail)
        if state.phase is Phase.CERTIFIED and state.idle >= _IDLE:
            return Status(Reason.STALLED if state.step_length == 0.0 else Reason.PRECISION, detail)
        if self.max_steps is not None and state.newton_step >= self.max_steps:
            return Status(Reason.STEPS, detail)
        if budget.passes_left(_DEFAULT_MAX_PASSES) <= 0:
            return Status(Reason.PASSES, f"{budget.committed} passes, {detail}")
        return None

    def finish(self, problem: Problem, state: IterNCGPState, *, final: bool) -> Posterior:
        """The Newton update with the actions so far, the covariance at the new iterate, and the pass that certifies it."""
        state = whole(state) if self.covariance else state  # the mean needs no linear system
        if state.phase is not Phase.DIVERGED and self.covariance and state.inner_step > 0:
            updated = self._updated(problem, state)
            state = replace(state, phase=Phase.DIVERGED) if updated.phase is Phase.DIVERGED else updated
        if state.phase is Phase.DIVERGED:
            state = replace(state, iterate=state.best, norm_squared=float("inf"))
        iterate, buffer = state.iterate, state.belief.buffer
        if not self.covariance:
            nothing = prior_covariance(problem)
            precision, covariance = nothing.precision, nothing.latent_covariance
        else:
            if state.phase is not Phase.CERTIFIED:
                state = self._certified(problem, state)
            iterate, belief = self._covariance_belief(problem, iterate, buffer)
            precision, mix = belief.precision()
            covariance = belief.marginal_covariance(precision, mix, problem.prior_marginals())
        return Posterior(
            representer_weights=iterate.weights,
            latent_values=iterate.latent_values,
            latent_covariance=covariance,
            precision=precision,
            objective=iterate.objective,
            norm_squared=state.norm_squared,
            curvature=iterate.curvature.to(iterate.weights),
            warm_start=RecycledActions(buffer) if self.covariance and self.recycle else None,
        )

    def _covariance_belief(self, problem: Problem, iterate: NewtonIterate, buffer: Any) -> tuple[NewtonIterate, Any]:
        """The linear system whose belief is the covariance, at the curvature that a covariance is conditioned with.

        Where that is as good as singular for the actions at hand, the curvature that they were found with takes its place.
        """
        options: dict[str, Any] = {
            "hold_weights": self.step_rule == "backtracking" and self.max_rank is None,
            "room": None,
            "compression": self.compression,
            "reorthogonalise": self.reorthogonalise,
            "exact": True,
        }
        curvature = problem.site.covariance_curvature(iterate.latent_values, iterate.curvature)
        averaged = replace(iterate, curvature=curvature)
        try:
            return averaged, linear_system(problem, averaged, buffer, **options)
        except torch.linalg.LinAlgError:
            return iterate, linear_system(problem, iterate, buffer, **options)


def _schedule(iterations: Any) -> tuple[int, ...] | None:
    if iterations is None:
        return None
    given = (iterations,) if isinstance(iterations, numbers.Integral) else tuple(iterations)
    if not given:
        raise InputError(
            "`iterations` must be a number or a sequence of numbers. Got an empty one. Leave it out for None."
        )
    for number in given:
        require_positive("iterations", number, integer=True)
    return tuple(int(number) for number in given)


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"`{name}` must be one of {choices}. Got {value!r}.")
