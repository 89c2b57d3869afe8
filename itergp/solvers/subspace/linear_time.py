"""``LinearTimeNewton``: Newton's method over functions that kernels at some of the rows can make."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from itergp.checks import require_positive
from itergp.errors import InputError
from itergp.posterior.posterior import (
    Posterior,
    neighbours_of,
    prior_covariance,
    reconditioned,
    support_covariance,
    wanted_neighbours,
)
from itergp.posterior.precision import columns_times
from itergp.posterior.problem import Problem
from itergp.posterior.solution import Solution
from itergp.posterior.status import Reason, Status
from itergp.solvers.demand import Demand, ProblemSize, likelihood_memory
from itergp.solvers.policies import Policy, UnitVectors, View
from itergp.solvers.policies.memory import Memory
from itergp.solvers.policies.mixed import require_policy
from itergp.solvers.proposals import values_and_rows
from itergp.solvers.protocol import BaseSolver, Solver
from itergp.solvers.run.budget import Budget
from itergp.solvers.subspace.actions import leading_actions
from itergp.solvers.subspace.newton import Iterate, evaluate, minimise, start_at
from itergp.solvers.subspace.recycled import RecycledSpace, recycled_space
from itergp.solvers.subspace.search_state import SearchState
from itergp.solvers.subspace.subspace_newton import SubspaceNewton
from itergp.solvers.subspace.support_space import JointSupportSpace, SupportSpace, start_support

_DEFAULT_SUPPORT = 4096
_DEFAULT_TOLERANCE = 1e-4
_DEFAULT_COVARIANCE_RANK = {False: 256, True: 128}  # without and with neighbours, who resolve what a rank does not
_PRELIMINARY_SHARE = 4
# Of one latent function, by default. So many rows are near each other, and there is no kernel pass beside which 16 are cheap.
_MANY_ROWS, _NEIGHBOURS_OF_MANY = 200_000, 8
_FIRST = 512  # rows in the first support
_BATCH = 512  # rows that join at once when the policy is the default
# Cost of the next step over that of the last, with twice the rows: between linear and quadratic in the support.
_GROWTH_COST = 3.0
_REFINED = 1e-4  # times the tolerance: where the mean of a variational round ends
_PRODUCTS = 100  # products with the space in the Newton steps of a stage


@dataclass(frozen=True)
class LinearTimeState(SearchState):
    """State of ``LinearTimeNewton``: the space, the iterate in it, and where it comes from."""

    space: SupportSpace | JointSupportSpace
    iterate: Iterate
    memory: Memory = field(default_factory=Memory)
    proposals: int = 0
    exhausted: bool = False
    steps: int = 0
    settled: bool = False
    gain: float = float("inf")
    last_seconds: float = 0.0
    event: str = ""

    @property
    def weights(self) -> Tensor:
        """V ``(N, C)``."""
        return self.space.weights(self.iterate.coordinates)

    @property
    def gradient_residual(self) -> Tensor:
        """``g - V`` ``(N, C)``: zero at the mode, and not at the best that a small support can do."""
        return self.iterate.gradient - self.weights


@dataclass(frozen=True, kw_only=True)
class LinearTimeNewton(BaseSolver[LinearTimeState]):
    """Newton's method with all rows in the likelihood and kernels at M of them, the support: no pass over the kernel matrix.

    The posterior mean is ``m(x) + k(x, X_M) v``. The support doubles, its rows chosen by a policy, each time starting from the
    minimiser on the last one, so that the objective never increases; it ends at ``num_support`` rows, when doubling no longer
    lowers the objective by ``tolerance`` per row, or with the time limit. The covariance is conditioned on actions of the
    support's rows alone: fewer data, so it is never below that of the exact computation for the same curvature.

    Cost: ``N M`` kernel entries and ``O(N M^2)`` operations in all; ``N M`` numbers of memory. Each Newton system is solved by
    conjugate gradients, preconditioned from a sample of rows.

    Args:
        num_support: Rows M of the largest support; default 4,096 divided by the square root of the number of latent functions,
            at most a quarter of the rows (but 512), and fewer where ``N M`` numbers exceed the memory budget.
        policy: Which rows come next: any policy that proposes single rows; default ``UnitVectors(order="leverage")``.
        covariance_rank: Actions of the support's rows that the covariance is conditioned on at all inputs; default 128, and 256
            without neighbours. 0 leaves the prior's covariance.
        num_neighbours: Training rows near to an input, of all N, that its covariance is conditioned on besides; default 16 for
            one latent function, 8 beyond 200,000 rows, and 0 for several and for additive kernels. None where the kernel is no
            function of two rows.
        tolerance: Decrease of the objective per row, in nats, at which a larger support is not worth it; default 1e-4.
        time_limit: Seconds for all stages together; the support grows as far as it allows.
        polish: A ``SubspaceNewton`` that goes on from the last support with passes over all rows, which also certify the
            result; default none.

    Raises:
        InputError: If a budget is not positive, or a policy does not propose single rows.

    Source: inducing functions at training rows, as in the projected-process approximation (GPML, section 8.3.4), found by an
    inexact Newton method; covariance with actions of few rows as in CaGP (Wenger et al. 2024).
    """

    state_type: ClassVar[type[LinearTimeState]] = LinearTimeState
    num_support: int | None = None
    policy: Policy | None = None
    covariance_rank: int | None = None
    num_neighbours: int | None = None
    tolerance: float = _DEFAULT_TOLERANCE
    time_limit: float | None = None
    polish: SubspaceNewton | None = None

    def __post_init__(self) -> None:
        """Checks the budgets."""
        require_positive("num_support", self.num_support, integer=True)
        require_positive("tolerance", self.tolerance)
        require_positive("time_limit", self.time_limit)
        for name in ("covariance_rank", "num_neighbours"):
            if getattr(self, name) != 0:
                require_positive(name, getattr(self, name), integer=True)
        if self.policy is not None:
            require_policy(self.policy)
            if not self.policy.sparse:
                raise InputError(
                    f"`policy` of LinearTimeNewton must propose single rows. Got {self.policy!r}. Use UnitVectors(order=...)."
                )
        if self.polish is not None and not isinstance(self.polish, SubspaceNewton):
            raise InputError(f"`polish` must be a SubspaceNewton or None. Got {self.polish!r}.")

    @property
    def max_passes(self) -> int | None:
        """Passes over all rows, which only the polish makes."""
        return None if self.polish is None else self.polish.max_passes

    @property
    def gives_covariance(self) -> bool:
        """Whether a covariance is conditioned."""
        return self.covariance_rank != 0

    @property
    def shards_rows(self) -> bool:
        """Whether the rows can be divided among processes: with ``UnitVectors``, and a polish that can."""
        policy = self.policy is None or self.policy.agrees_on_rows
        return policy and (self.polish is None or self.polish.shards_rows)

    @property
    def on_support(self) -> bool:
        """They are, without a polish."""
        return self.polish is None

    @property
    def sequence(self) -> tuple[Solver[Any], ...]:
        """The support, and then the polish, which starts from it."""
        return (self,) if self.polish is None else (replace(self, polish=None), self.polish)

    @property
    def rounds(self) -> LinearTimeNewton:
        """Itself."""
        return self

    def loosened(self, factor: float) -> LinearTimeNewton:
        """The same solver for a stage that another follows: without polish."""
        del factor  # the support is what costs time, and the stage that follows uses it too
        return replace(self, polish=None)

    def without_covariance(self) -> LinearTimeNewton:
        """The same solver for the mean alone."""
        polish = None if self.polish is None else self.polish.without_covariance()
        return replace(self, covariance_rank=0, polish=polish)

    def demand(self, size: ProblemSize) -> Demand:
        """What a solve of this size is expected to need: the largest support."""
        coupled = size.num_latents if size.coupled else 1  # columns of every row of the support
        bytes_per_column = size.num_kernels * size.itemsize * coupled
        rows, budget = size.num_rows * size.processes, size.memory_budget * size.processes
        support = self._most(rows, size.num_latents, bytes_per_column, budget)
        latents, rank, neighbours = size.num_latents, 0, 0
        if self.gives_covariance:
            neighbours = self._neighbours(rows, latents, pay=size.neighbours_pay) if size.has_neighbours else 0
            rank = self._covariance_rank(neighbours)
        stages = 2 if size.variational else 1
        columns = size.num_kernels * support * coupled
        cells = size.num_rows * columns
        work = cells * (support + latents * (rank + stages * _PRODUCTS))
        polish = None if self.polish is None else self.polish.demand(size)
        memory = {
            "products with the support": size.array(columns),
            "covariance": 3 * size.array(latents * rank),  # products with the actions, twice, and what neighbours need
            "neighbours": size.neighbours(neighbours),
            "directions and small matrices": (4 * size.num_kernels + size.num_latents) * coupled * support**2 * 8,
            "rows": likelihood_memory(size),
        }
        if polish is None:
            return Demand(0, 0, (1 + stages) * cells, work, memory)
        return Demand(polish.passes, polish.columns, (1 + stages) * cells, work, memory | polish.memory)

    # ------------------------------------------------------------------- start
    def init(self, problem: Problem, warm_start: Solution | None = None) -> LinearTimeState:
        """Starts at the prior mean, or from an earlier solution's support and weights."""
        space, settled = start_support(problem.kernel_operator, self._limit(problem)), False
        sets = space.coordinate_sets(problem.num_latents)
        coordinates = torch.zeros(sets, 0, dtype=torch.float64, device=problem.mean.device)
        recycled = recycled_space(warm_start)
        if (
            warm_start is not None
            and recycled is not None
            and recycled.space.support is not None
            and warm_start.representer_weights.shape == problem.mean.shape
        ):
            assert isinstance(recycled.space, SupportSpace)
            if recycled.operator is problem.operator and recycled.coordinates is not None:
                space, coordinates = recycled.space, recycled.coordinates
                settled = warm_start.status.reason is Reason.SETTLED
            else:  # another kernel: the support is worth keeping, its products are not
                for rows in recycled.space.rows[: self._limit(problem)].split(_BATCH):
                    space = space.with_rows(rows, problem.kernel_operator)
                coordinates = space.project(warm_start.representer_weights.to(problem.mean))
                coordinates = torch.linalg.solve(space.gram, coordinates.unsqueeze(-1)).squeeze(-1)
        return LinearTimeState(space, start_at(problem, space, coordinates), settled=settled)

    def _limit(self, problem: Problem) -> int:
        operator = problem.kernel_operator
        size = problem.mean.element_size() * operator.num_kernels
        size *= problem.num_latents if operator.couples_latents else 1
        budget = operator.memory_budget * operator.rows.num_processes
        return self._most(operator.num_rows, problem.num_latents, size, budget)

    def _most(self, num_rows: int, num_latents: int, bytes_per_column: int, memory_budget: int) -> int:
        """Rows of the largest support."""
        if self.num_support is not None:
            return min(self.num_support, num_rows)
        affordable = memory_budget // (bytes_per_column * num_rows)
        wanted = min(_DEFAULT_SUPPORT / num_latents**0.5, num_rows // 4, affordable)
        return min(num_rows, max(_FIRST, int(wanted) // _FIRST * _FIRST))

    # -------------------------------------------------------------------- step
    def step(self, problem: Problem, state: LinearTimeState, budget: Budget) -> LinearTimeState:
        """Twice the support, then the minimiser on it. A support that came along is searched first."""
        begun = budget.seconds()
        arrived = state.steps == 0 and state.space.rank > 0
        grown = state if arrived else self._grow(problem, state, self._next_size(problem, state, budget))
        iterate = minimise(problem, grown.space, state.iterate, 0.02 * self.tolerance * problem.num_rows)
        gain = state.objective - iterate.objective
        return replace(
            grown,
            iterate=iterate,
            steps=state.steps + 1,
            settled=state.settled or (not arrived and gain <= self.tolerance * problem.num_rows),
            gain=gain,
            last_seconds=budget.seconds() - begun,
            event=f"support of {grown.space.rows.numel():,} rows",
        )

    def _next_size(self, problem: Problem, state: LinearTimeState, budget: Budget) -> int:
        """Twice the support, or as much more as the time that is left allows."""
        size, limit = state.space.rows.numel(), self._limit(problem)
        if size == 0:
            return min(_FIRST, limit)
        if budget.time_limit is None:
            return min(limit, 2 * size)
        expected = _GROWTH_COST * state.last_seconds
        share = min(1.0, budget.time_left() / max(expected, 1e-9))
        more = torch.tensor(max(1, int(share * size)), device=problem.mean.device)
        return min(limit, size + int(problem.rows.broadcast(more)))  # by the clock of the first process

    def _grow(self, problem: Problem, state: LinearTimeState, size: int) -> LinearTimeState:
        space, proposals, operator = state.space, state.proposals, problem.kernel_operator
        policy = self.policy if self.policy is not None else UnitVectors(order="leverage", rows=_BATCH)
        gradient = (state.iterate.gradient - state.weights).to(problem.mean)
        while space.rows.numel() < size:
            proposal = policy.propose(
                View(
                    gradient=gradient,
                    curvature=state.iterate.curvature,
                    weights=state.weights,
                    latent_values=state.iterate.latent_values,
                    operator=operator,
                    index=proposals,
                    step=proposals,
                    known_variance=space.missing_variance(operator).mT.expand(problem.mean.shape),
                    memory=state.memory,
                )
            )
            if proposal is None:
                return replace(state, space=space, proposals=proposals, exhausted=True)
            proposals += 1
            _, proposed = values_and_rows(proposal)
            assert proposed is not None
            rows = proposed[~torch.isin(proposed, space.rows)][: size - space.rows.numel()]
            if rows.numel():
                space = space.with_rows(rows, operator)
        return replace(state, space=space, proposals=proposals)

    # --------------------------------------------------------------------- end
    def status(self, problem: Problem, state: LinearTimeState, budget: Budget) -> Status | None:
        """Why the support does not grow any more, or None while it does."""
        size, gain = state.space.rows.numel(), state.gain / problem.num_rows
        if size == 0 or state.steps == 0 or (not state.iterate.finished and gain > self.tolerance):
            return None  # a search that goes on without gaining follows rounding
        detail = (
            f"{size:,} of {problem.num_rows:,} rows; the last change lowered the objective by {gain:.2g} nats per row"
        )
        if size >= self._limit(problem) or state.exhausted:
            return Status(Reason.SUPPORT, detail)
        if state.settled:
            return Status(Reason.SETTLED, detail)
        too_late = budget.time_limit is not None and budget.time_left() <= 0.1 * _GROWTH_COST * state.last_seconds
        if budget.time_limit is not None and problem.rows.all_reduce_any(too_late):
            return Status(Reason.TIME, detail)
        return None

    def finish(self, problem: Problem, state: LinearTimeState, *, final: bool) -> Posterior:
        """Conditions the covariance on actions of the support's rows, at the cost of its kernel columns."""
        curvature = problem.site.covariance_curvature(state.iterate.latent_values, state.iterate.curvature)
        return self._posterior(problem, state, curvature, final=final)

    def _posterior(self, problem: Problem, state: LinearTimeState, curvature: Tensor, *, final: bool) -> Posterior:
        space, iterate = state.space, state.iterate
        pay = problem.operator.neighbours_pay
        neighbours = neighbours_of(problem, self._neighbours(problem.num_rows, problem.num_latents, pay=pay))
        rank, support = self._covariance_rank(neighbours), None
        if rank == 0 or space.rank == 0:
            result = prior_covariance(problem)
        else:
            rank = rank if final else max(1, rank // _PRELIMINARY_SHARE)
            support, rows = space.rows, problem.rows
            actions = leading_actions(space.on_support(), rows.select(curvature, support), rank)
            actions = replace(actions, values=rows.broadcast(actions.values))
            products = self._products(problem, actions.values, support)
            result = support_covariance(problem, actions, curvature, products, support, num_neighbours=neighbours)
        return Posterior(
            representer_weights=state.weights,
            latent_values=iterate.latent_values,
            latent_covariance=result.latent_covariance,
            precision=result.precision,
            objective=iterate.objective,
            norm_squared=float("inf"),
            curvature=curvature,
            support=support,
            products=result.products,
            local=result.local,
            warm_start=RecycledSpace(space, iterate.coordinates),
        )

    @staticmethod
    def _products(problem: Problem, actions: Tensor, support: Tensor) -> Tensor:
        """``K A`` ``(N, C, r)`` for actions on the support, from its kernel columns."""
        products = problem.mean.new_empty(problem.mean.shape[0], *actions.shape[1:])

        def write(rows: slice, entries: Tensor) -> None:
            products[rows] = columns_times(entries, actions)

        problem.kernel_operator.with_columns(support, write)
        return products

    def _neighbours(self, num_rows: int, num_latents: int, *, pay: bool) -> int:
        wanted = wanted_neighbours(num_latents, self.num_neighbours, pay=pay)
        return min(wanted, _NEIGHBOURS_OF_MANY) if self.num_neighbours is None and num_rows > _MANY_ROWS else wanted

    def _covariance_rank(self, neighbours: int) -> int:
        return _DEFAULT_COVARIANCE_RANK[neighbours > 0] if self.covariance_rank is None else self.covariance_rank

    # ------------------------------------------------- rounds of a variational site
    def refine(self, problem: Problem, state: LinearTimeState) -> LinearTimeState:
        """The minimiser on the support for another site."""
        start = evaluate(problem, state.space, state.iterate.coordinates)
        iterate = minimise(problem, state.space, start, _REFINED * self.tolerance * problem.num_rows)
        return replace(state, iterate=iterate)

    def certify(self, problem: Problem, state: LinearTimeState) -> LinearTimeState:
        """The same state: it takes passes over all rows to tell more, which are none of this solver's."""
        del problem
        return state

    def certain(self, problem: Problem, state: LinearTimeState) -> bool:
        """Always, for the same reason."""
        del problem, state
        return True

    def with_mean(self, problem: Problem, state: LinearTimeState, posterior: Posterior) -> Posterior:
        """A posterior with the mean of a state."""
        return replace(
            posterior,
            representer_weights=state.weights,
            latent_values=state.iterate.latent_values,
            objective=state.iterate.objective,
            warm_start=RecycledSpace(state.space, state.iterate.coordinates),
        )

    def recondition(self, problem: Problem, state: LinearTimeState, posterior: Posterior) -> Posterior:
        """The posterior at a state's mean and curvature, its actions and neighbours kept."""
        curvature = problem.site.covariance_curvature(state.iterate.latent_values, state.iterate.curvature)
        posterior = self.with_mean(problem, state, posterior)
        return reconditioned(problem, posterior, curvature) or self._posterior(problem, state, curvature, final=True)
