"""``SubspaceNewton``: minimise the objective itself within a growing space of search directions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from itergp.checks import require_positive
from itergp.errors import InputError
from itergp.numerics.spectral import leading_eigenvectors
from itergp.posterior.posterior import (
    COLUMNS_TOGETHER,
    EXACT_VALUES,
    Posterior,
    exact_covariance,
    neighbours_of,
    posterior_covariance,
    prior_covariance,
    reconditioned,
    wanted_neighbours,
)
from itergp.posterior.precision import multiply
from itergp.posterior.problem import Problem
from itergp.posterior.solution import Solution, is_finite
from itergp.posterior.status import Reason, Status
from itergp.solvers.demand import Demand, ProblemSize, likelihood_memory
from itergp.solvers.policies import BlockGradient, ClassGradient, Policy, PreconditionedGradient, View
from itergp.solvers.policies.memory import Memory
from itergp.solvers.policies.mixed import require_policy
from itergp.solvers.protocol import BaseSolver
from itergp.solvers.run.budget import Budget
from itergp.solvers.subspace.actions import leading_actions, probed_directions
from itergp.solvers.subspace.directions import holds, shared_directions
from itergp.solvers.subspace.joint_space import JointSpace, empty_space
from itergp.solvers.subspace.newton import Iterate, evaluate, minimise, start_at
from itergp.solvers.subspace.newton_matrix import information_block
from itergp.solvers.subspace.recycled import RecycledSpace, recycled_space
from itergp.solvers.subspace.search_space import SearchSpace
from itergp.solvers.subspace.search_state import SearchState

_DEFAULT_MAX_PASSES = 60
_DEFAULT_TOLERANCE = 1e-4
_BEYOND_ACTIONS = 96  # directions, for a mean that moves in rounds
_CONTINUED = 128  # directions that are kept for rows which arrive later
_RECYCLING_PASSES = 6  # of fewer, none are spent on directions that are known
_DEFAULT_MAX_RANK, _SMALLEST_MAX_RANK = 1024, 64
_EXPECTED_PASSES, _EXPECTED_PRECONDITIONED = 12, 6
_DEFAULT_COVARIANCE_RANK = {False: 128, True: 224}  # with several latent functions, with one
_DEFAULT_COVARIANCE_COLUMNS = 1280  # r C columns go through the covariance's kernel pass
_FEW_ACTIONS = 32  # where only neighbours know much
_PRELIMINARY_SHARE, _PRELIMINARY_RANK = 4, 8
# Of the size of the actions: themselves, put beside the residual, their products, and both again for neighbours, or for another
# curvature in a variational round. Fewer actions than these are not worth a pass.
_ARRAYS, _VARIATIONAL_ARRAYS, _FEWEST_ACTIONS = 4, 5, 32
_BLOCKS = 32
# The search within the space stops when its own gradient is this small a share of the functional gradient.
_INNER_SHARE = 1e-3
_PRECONDITIONED_SHARE = (
    1e-6  # such directions say little of the gradient itself, and its rest is what the certificate sees
)
_REFINED = 1e-4  # times the tolerance: where the mean of a variational round ends
_DEPENDENT = 1e-13  # share of the largest singular value that is rounding in float64


@dataclass(frozen=True)
class SubspaceState(SearchState):
    """State of ``SubspaceNewton``: the space, the iterate in it, and what is known about its distance to the mode."""

    space: SearchSpace | JointSpace
    iterate: Iterate
    weights: Tensor
    memory: Memory
    steps: int = 0
    exhausted: bool = False
    norm_squared: float = float("inf")
    residual: float = float("inf")
    grew: bool = True
    compressed: bool = False
    gain: float = float("inf")
    plain: bool = False  # what the preconditioner made of the gradient was not resolved: the gradient itself is next
    event: str = ""

    @property
    def gradient_residual(self) -> Tensor:
        """``g - V`` ``(N, C)``: zero at the mode."""
        return self.iterate.gradient - self.weights

    @property
    def finite(self) -> bool:
        """Whether the iterate and the weights are finite."""
        return super().finite and is_finite(self.weights)


@dataclass(frozen=True, kw_only=True)
class SubspaceNewton(BaseSolver[SubspaceState]):
    """Newton's method on the objective restricted to ``f = m + K S U``, the space S growing by the functional gradient.

    Between kernel passes the objective, convex for log-concave likelihoods, is minimised over U to convergence: search
    directions are recycled across all Newton steps by construction. Each pass adds the columns of the gradient
    ``g(f) - V``: one direction per latent function, each serving every latent function; with a single latent function
    the gradient is split by cluster of rows instead.

    Cost: one kernel pass per step and one for the covariance; memory two ``(N, B)`` arrays for the space and two
    ``(N, C r)`` arrays for the covariance. Where W is a majoriser, which makes steps many, up to 3,000 rows begin at the mode
    that ``DenseNewton`` finds, with the directions of which the data say most.

    Args:
        max_passes: Kernel passes, all stages together; default 60.
        max_rank: Directions kept in the search space; beyond it the least informative are dropped. Default 1024, fewer where
            two arrays of so many columns exceed the memory budget.
        covariance_rank: Actions r that the covariance is conditioned on at all inputs; default 224 for one latent function, 128
            for several, fewer (down to 32) beyond 10 of them, and all where N C is at most 1,024: the covariance is then exact.
            Of additive kernels in linear time fewer, down to 32, where N C r numbers exceed the memory budget. 0 leaves the
            prior's covariance.
        num_neighbours: Training rows near to an input that its covariance is conditioned on besides; default 16 for one latent
            function, 0 for several and for additive kernels, none where the kernel is no function of two rows. They cost no
            kernel pass.
        tolerance: Certified gap to the mode at which to stop, in nats per row; default 1e-4.
        time_limit: Seconds for all stages together; default none.
        num_blocks: Clusters of rows when C = 1 and there is no policy; default 32.
        policy: Proposes the directions of a pass, see ``itergp.solvers.policies``. Every column of every latent function
            serves all latent functions. Default ``ClassGradient()``, or ``BlockGradient(num_blocks)`` when C = 1; for additive
            kernels, whose operator has a preconditioner, ``PreconditionedGradient()``. The
            gradient is multiplied in the same pass in any case, for the certificate.

    Raises:
        InputError: If a budget is not positive.

    Differs from the paper (arXiv 2310.20285): (1) the objective is minimised within the space instead of solving one linear
    system per Newton step; (2) directions are shared by all latent functions; (3) actions for the covariance are taken in
    the range of W, so that W is never inverted; (4) every step is safeguarded by a line search.
    """

    state_type: ClassVar[type[SubspaceState]] = SubspaceState
    max_passes: int | None = None
    max_rank: int | None = None
    covariance_rank: int | None = None
    num_neighbours: int | None = None
    tolerance: float = _DEFAULT_TOLERANCE
    time_limit: float | None = None
    num_blocks: int = _BLOCKS
    policy: Policy | None = None

    def __post_init__(self) -> None:
        """Fills in defaults given as None, and checks the budgets."""
        for name, default in (("tolerance", _DEFAULT_TOLERANCE), ("num_blocks", _BLOCKS)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        require_positive("max_passes", self.max_passes, integer=True)
        require_positive("max_rank", self.max_rank, integer=True)
        require_positive("tolerance", self.tolerance)
        require_positive("time_limit", self.time_limit)
        require_positive("num_blocks", self.num_blocks, integer=True)
        if self.policy is not None:
            require_policy(self.policy)
        for name in ("covariance_rank", "num_neighbours"):
            if getattr(self, name) != 0:
                require_positive(name, getattr(self, name), integer=True)

    def demand(self, size: ProblemSize) -> Demand:
        """What a solve of this size is expected to need: passes of a typical problem, memory for the ranks they lead to."""
        latents, kernels = size.num_latents, size.num_kernels
        preconditioned = size.preconditioner_memory > 0 and self.policy is None
        expected = _EXPECTED_PRECONDITIONED if preconditioned else _EXPECTED_PASSES
        passes = min(self.max_passes or expected, expected)
        width = latents if latents > 1 and not size.coupled else self.num_blocks
        width = latents if preconditioned else width
        rank = min(passes * width, self.rank_limit(size.num_rows, kernels, size.itemsize, size.memory_budget))
        pay = size.actions_pay
        neighbours = wanted_neighbours(latents, self.num_neighbours, pay=size.neighbours_pay, alone=not pay)
        values, one = size.num_rows * latents * size.processes, size.array(latents)
        actions, early = (self._covariance_rank(latents, values, final=final, pay=pay) for final in (True, False))
        early, arrays = early if size.variational else 0, _VARIATIONAL_ARRAYS if size.variational else _ARRAYS
        by_columns = (
            not size.evaluates_matrix and neighbours == 0 and self._by_columns(actions, one, size.memory_budget)
        )
        columns = (actions + early) * latents // kernels
        if by_columns:
            actions, arrays = self._affordable(actions, one, size.memory_budget), 1
            columns = 2 * (actions + early) * latents // kernels
        memory = {
            "search space": 4 * size.array(kernels * rank),  # two arrays, twice while they grow
            "covariance": arrays * size.array(latents * actions) + (3 * COLUMNS_TOGETHER * one if by_columns else 0),
            "neighbours": size.neighbours(neighbours) if actions > 0 else 0,
            "rows": likelihood_memory(size),
        }
        if preconditioned:
            memory["preconditioner"] = size.preconditioner_memory
        work = size.num_rows * kernels * rank**2 * (4 + latents)
        return Demand(passes, passes * width + columns, 0, work, memory)

    def rank_limit(self, num_rows: int, num_kernels: int, itemsize: int, memory_budget: int) -> int:
        """Most directions in the space: what was asked for, or what the memory budget allows."""
        if self.max_rank is not None:
            return self.max_rank
        affordable = memory_budget // (2 * num_rows * num_kernels * itemsize)
        return max(_SMALLEST_MAX_RANK, min(_DEFAULT_MAX_RANK, affordable))

    def _rank_limit(self, problem: Problem) -> int:
        operator, limit = problem.operator, 2 * problem.num_latents
        size = problem.mean.element_size()
        rows = operator.num_rows // operator.rows.num_processes  # in each of them
        affordable = self.rank_limit(rows, operator.num_kernels, size, operator.memory_budget)
        return affordable if self.max_rank is not None else max(limit, affordable)

    def _covariance_rank(self, latents: int, values: int, *, final: bool, pay: bool) -> int:
        """Actions of a stage's covariance; fewer where the operator says that they do not pay."""
        rank = self.covariance_rank
        if values <= self.exact_values:
            return values
        if rank is None:
            rank = min(_DEFAULT_COVARIANCE_RANK[latents == 1], max(32, _DEFAULT_COVARIANCE_COLUMNS // latents))
            rank = _FEW_ACTIONS if latents == 1 and not pay and self.num_neighbours is None else rank
        # The next stage only needs a rough one to start from.
        return rank if final else max(rank // _PRELIMINARY_SHARE, min(rank, _PRELIMINARY_RANK))

    @staticmethod
    def _by_columns(rank: int, one: int, memory_budget: int) -> bool:
        """Whether products with so many actions, ``one`` array of bytes each, are too large to keep beside these."""
        return _ARRAYS * rank * one > memory_budget

    def _affordable(self, rank: int, one: int, memory_budget: int) -> int:
        """Actions of the default number that there is memory for, or those that were asked for."""
        return (
            rank
            if self.covariance_rank is not None
            else max(min(rank, _FEWEST_ACTIONS), min(rank, memory_budget // one))
        )

    def initial_rank(self, problem: Problem) -> int:
        """Directions that a start may bring, so that there is room to grow."""
        return self._rank_limit(problem) // 2

    @property
    def gives_covariance(self) -> bool:
        """Whether a covariance is conditioned."""
        return self.covariance_rank != 0

    @property
    def exact_values(self) -> int:
        """As many as there are actions at most."""
        return EXACT_VALUES if self.covariance_rank is None else min(EXACT_VALUES, self.covariance_rank)

    @property
    def shards_rows(self) -> bool:
        """Whether the rows can be divided among processes: by default, and with policies that can."""
        return self.policy is None or self.policy.shards_rows

    @property
    def begins_anywhere(self) -> bool:
        """Unless a policy says what is searched, or there is no pass for what it takes."""
        return self.policy is None and not self._is_brief

    @property
    def rounds(self) -> SubspaceNewton:
        """Itself."""
        return self

    def without_covariance(self) -> SubspaceNewton:
        """The same solver for the mean alone."""
        return replace(self, covariance_rank=0)

    # ------------------------------------------------------------------- start
    def init(self, problem: Problem, warm_start: Solution | None = None) -> SubspaceState:
        """Starts at the prior mean, or at an earlier solution's weights if the objective is lower there, in its search space.

        Raises:
            InputError: If ``max_rank`` has no room for a step.
        """
        latents = problem.num_latents
        limit = self._rank_limit(problem)
        if limit < 2 * latents:
            raise InputError(
                f"`max_rank` must be at least twice the number of latent functions, {2 * latents}. Got {limit}. Raise it."
            )
        space, coordinates = self._recycle(problem, warm_start)
        iterate = start_at(problem, space, coordinates)
        return SubspaceState(space, iterate, space.weights(iterate.coordinates), Memory())

    def _recycle(self, problem: Problem, earlier: Solution | None) -> tuple[SearchSpace, Tensor]:
        empty = empty_space(problem.operator)
        sets = empty.coordinate_sets(problem.num_latents)
        nothing = torch.zeros(sets, 0, dtype=torch.float64, device=problem.mean.device)
        if earlier is None or earlier.rows != problem.rows or earlier.representer_weights.shape != problem.mean.shape:
            return empty, nothing
        recycled = recycled_space(earlier)
        if recycled is not None and recycled.space.rank == 0:
            return empty, nothing
        if earlier.operator is problem.operator and recycled is not None and recycled.coordinates is not None:
            return recycled.space.at_all_rows(recycled.coordinates, earlier.curvature, self.initial_rank(problem))
        if (continued := self._continued(problem, earlier)) is not None:
            return continued
        if self._is_brief:
            return empty, nothing
        # Of another kernel, whose directions are worth keeping and whose products are not, or of a solver without directions.
        # One pass makes the products.
        weights = earlier.representer_weights.to(problem.mean)
        block = empty.of_each(weights.unsqueeze(-1))
        kept = None if recycled is None or recycled.space.support is not None else recycled.space.directions
        if recycled is None and earlier.operator is problem.operator:
            kept = self._informative(problem, earlier)
        if kept is not None and kept.shape[:2] == empty.directions.shape[:2]:
            block = torch.cat([block, kept.to(problem.mean)[..., : self.initial_rank(problem)]], -1)
        space, _ = empty.extend(block, problem.operator)
        gram = space.gram.expand(sets, -1, -1)
        return space, torch.linalg.solve(gram, space.project(weights).unsqueeze(-1)).squeeze(-1)

    def _informative(self, problem: Problem, earlier: Solution) -> Tensor | None:
        """Directions ``(1, N, r)`` for a mean that another solver found: what the covariance, and rounds, will ask for."""
        if problem.num_latents > 1 or problem.rows.sharded:
            return None
        values = problem.num_rows * problem.num_latents
        rank = self._covariance_rank(problem.num_latents, values, final=True, pay=problem.operator.actions_pay)
        wanted = min(rank + _BEYOND_ACTIONS, self.initial_rank(problem) - 1) if rank else 0
        curvature = problem.site.covariance_curvature(earlier.latent_values, earlier.curvature)
        return probed_directions(problem.operator, curvature.to(problem.mean), wanted).unsqueeze(0)

    @property
    def _is_brief(self) -> bool:
        """Whether the budget is better spent on new directions."""
        return self.max_passes is not None and self.max_passes < _RECYCLING_PASSES

    def _continued(self, problem: Problem, earlier: Solution) -> tuple[SearchSpace, Tensor] | None:
        """The space and coordinates of a solution of the first rows, with the products at the others, or None.

        No more than some directions and the mean are kept: where rows arrive again and again, the space would become larger
        every time, and each step in it dearer.
        """
        recycled = recycled_space(earlier)
        if recycled is None or recycled.coordinates is None or recycled.space.support is not None:
            return None
        space = recycled.space.continued(earlier.operator, problem.operator)
        if space is None:
            return None
        start = evaluate(problem, space, recycled.coordinates)
        state = SubspaceState(space, start, earlier.representer_weights, Memory())
        state = self._make_room(problem, state, 0, min(_CONTINUED, self.initial_rank(problem)))
        return state.space, state.iterate.coordinates

    # -------------------------------------------------------------------- step
    def step(self, problem: Problem, state: SubspaceState, budget: Budget) -> SubspaceState:
        """One kernel pass: grow the space by the gradient at the iterate, then minimise within it."""
        del budget
        residual = state.iterate.gradient - state.weights
        directions = self._directions(problem, residual, state)
        state = self._make_room(problem, state, directions.shape[-1], self._rank_limit(problem))
        own = state.space.as_directions(residual.unsqueeze(-1))
        if holds(directions, own, problem.rows):
            space, products = state.space.extend(directions, problem.operator)
            norm_squared = self._norm_squared(problem, own, directions, products)
        else:
            space, extra = state.space.extend_with(directions, residual, problem.operator)
            norm_squared = abs(problem.inner(residual, extra))
        grew = space.rank > state.space.rank
        # A space that cannot grow is searched to the end.
        share = _INNER_SHARE if grew else 0.0
        inner_tolerance = max(share * norm_squared, 0.02 * self.tolerance * problem.num_rows)
        if self._preconditions(problem):
            inner_tolerance = _PRECONDITIONED_SHARE * norm_squared
        iterate = minimise(problem, space, state.iterate, inner_tolerance)
        gain = state.objective - iterate.objective
        # Psi(new) - min Psi <= q / 2 - (Psi(old) - Psi(new)), and strong convexity turns the gap into a distance.
        # Without log-concavity neither holds: the gradient before the step is then all there is to judge by.
        bound = norm_squared
        if problem.site.log_concave:
            bound = max(norm_squared + problem.entry_rounding(residual) - 2.0 * gain, 0.0) + 2.0 * _resolution(
                problem, iterate
            )
        stuck = iterate.step_length == 0.0
        return replace(
            state,
            space=space,
            iterate=iterate,
            weights=space.weights(iterate.coordinates),
            norm_squared=bound,
            residual=norm_squared,
            steps=state.steps + 1,
            exhausted=directions.shape[-1] == 0,
            grew=grew,
            gain=gain,
            plain=not grew and not state.plain and self._preconditions(problem),
            event="no step decreases the objective" if stuck else state.event,
        )

    def _directions(self, problem: Problem, residual: Tensor, state: SubspaceState) -> Tensor:
        limit = self._rank_limit(problem) // 2
        seen = View(
            gradient=residual,
            curvature=state.iterate.curvature,
            weights=state.weights,
            latent_values=state.iterate.latent_values,
            operator=problem.operator,
            index=state.steps,
            step=state.steps,
            memory=state.memory,
        )
        proposal = self._policy(problem, plain=state.plain).propose(seen)
        if proposal is None:
            return state.space.as_directions(residual.new_zeros(*residual.shape, 0))
        return shared_directions(proposal, residual, problem.rows, state.space)[:, :limit]

    def _preconditions(self, problem: Problem) -> bool:
        """Whether directions are what the operator's preconditioner makes of the gradient."""
        return self.policy is None and problem.operator.preconditioner_memory > 0

    def _policy(self, problem: Problem, *, plain: bool) -> Policy:
        if self.policy is not None:
            return self.policy
        if self._preconditions(problem):
            return ClassGradient() if plain else PreconditionedGradient()
        limit, latents = self._rank_limit(problem) // 2, problem.num_latents
        if problem.operator.couples_latents:  # every latent function of a block of rows is a direction of its own
            return BlockGradient(num_blocks=max(1, min(self.num_blocks, limit) // latents))
        return ClassGradient() if latents > 1 else BlockGradient(num_blocks=min(self.num_blocks, limit))

    @staticmethod
    def _norm_squared(problem: Problem, residual: Tensor, directions: Tensor, products: Tensor) -> float:
        """``q = <R, K R>`` from the products of the directions, whose span holds R, itself given by ``as_directions``."""
        scale = problem.rows.all_reduce_sum(directions.square().sum(0))
        scale = scale.clamp_min(torch.finfo(scale.dtype).tiny)[:, None]
        mix = problem.rows.all_reduce_sum(directions.mT @ residual) / scale  # orthogonal columns
        applied = products[0] @ mix if products.shape[0] == 1 else torch.einsum("cnb,bc->nc", products, mix)
        return abs(problem.inner(residual, applied))  # negative where the kernel matrix is not positive semi-definite

    @staticmethod
    def _make_room(problem: Problem, state: SubspaceState, width: int, limit: int) -> SubspaceState:
        """Drops the least informative directions when the block would exceed the maximum rank; the iterate stays."""
        space, iterate = state.space, state.iterate
        values = problem.num_rows * (problem.num_latents if problem.operator.couples_latents else 1)
        if space.rank + width <= limit or limit >= values:  # more directions than that are dependent
            return replace(state, event="")
        keep = limit - width
        mix = compression(space, iterate, keep)
        if space.gram.shape[0] == 1:
            coordinates = iterate.coordinates @ mix[0]
        else:
            coordinates = torch.bmm(iterate.coordinates.unsqueeze(1), mix).squeeze(1)
        return replace(
            state,
            space=space.compress(mix),
            iterate=replace(iterate, coordinates=coordinates),
            compressed=True,
            event=f"search space compressed from {space.rank} to {keep}",
        )

    # --------------------------------------------------------------------- end
    def status(self, problem: Problem, state: SubspaceState, budget: Budget) -> Status | None:
        """Converged, out of passes, or unable to improve."""
        per_row = 0.5 * state.norm_squared / problem.num_rows
        detail = f"gap {per_row:.2g} nats per row, tolerance {self.tolerance:.2g}"
        if per_row <= self.tolerance:
            return Status(Reason.CONVERGED if problem.site.log_concave else Reason.STATIONARY, detail)
        if state.step_length == 0.0:
            return Status(Reason.STALLED, detail)
        if state.exhausted and self.policy is not None:
            return Status(Reason.POLICY, detail)
        exhausted = 0.5 * state.residual <= 2.0 * _resolution(problem, state.iterate)
        if exhausted or (not state.grew and not state.plain and state.gain <= 0.01 * self.tolerance * problem.num_rows):
            return Status(Reason.PRECISION, detail)
        if state.compressed and state.gain < 0.01 * self.tolerance * problem.num_rows:
            return Status(Reason.RANK, f"rank {state.rank}, {detail}")
        if budget.passes_left(_DEFAULT_MAX_PASSES) <= 0:
            return Status(Reason.PASSES, f"{budget.committed} passes, {detail}")
        return None

    def finish(self, problem: Problem, state: SubspaceState, *, final: bool) -> Posterior:
        """Conditions on the leading actions in one pass, which also renews the certificate at the iterate."""
        iterate = state.iterate
        curvature = problem.site.covariance_curvature(iterate.latent_values, iterate.curvature)
        return self._posterior(problem, state, curvature, final=final)

    def _posterior(self, problem: Problem, state: SubspaceState, curvature: Tensor, *, final: bool) -> Posterior:
        iterate, norm_squared = state.iterate, state.norm_squared
        values, pay = problem.num_rows * problem.num_latents, problem.operator.actions_pay
        rank = self._covariance_rank(problem.num_latents, values, final=final, pay=pay)
        residual = iterate.gradient - state.weights
        if rank == 0:
            result = prior_covariance(problem)
        elif self._is_exact(problem):
            result = exact_covariance(problem, curvature, residual)
        else:
            number, operator = neighbours_of(problem, self.num_neighbours), problem.operator
            one = problem.mean.numel() * problem.mean.element_size()
            by_columns = (
                not operator.evaluates_matrix and number == 0 and self._by_columns(rank, one, operator.memory_budget)
            )
            if by_columns:
                rank = self._affordable(rank, one, operator.memory_budget)
            actions = leading_actions(state.space, curvature, rank, preconditioner=operator.preconditioner(curvature))
            how: dict[str, Any] = {"num_neighbours": number, "by_columns": by_columns}
            result = posterior_covariance(problem, actions, curvature, residual, **how)
        if result.extra is not None:
            found, rounding = problem.inner(residual, result.extra), problem.entry_rounding(residual)
            renewed = abs(found) + rounding + 2.0 * _resolution(problem, iterate)
            # A kernel matrix that is indefinite by more than rounding has no bound but what is seen of it.
            norm_squared = min(state.norm_squared, renewed) if found >= -rounding else max(state.norm_squared, renewed)
        return Posterior(
            representer_weights=state.weights,
            latent_values=iterate.latent_values,
            latent_covariance=result.latent_covariance,
            precision=result.precision,
            objective=iterate.objective,
            norm_squared=norm_squared,
            curvature=curvature,
            products=result.products,
            local=result.local,
            warm_start=RecycledSpace(state.space, iterate.coordinates),
        )

    def _is_exact(self, problem: Problem) -> bool:
        """Whether there are as many actions as latent values."""
        values = problem.num_rows * problem.num_latents
        return values <= self.exact_values and not problem.rows.sharded

    # ------------------------------------------------- rounds of a variational site
    def refine(self, problem: Problem, state: SubspaceState) -> SubspaceState:
        """The minimiser within the space for another site, at no kernel pass; its distance to the mode is not known."""
        start = evaluate(problem, state.space, state.iterate.coordinates)
        iterate = minimise(problem, state.space, start, _REFINED * self.tolerance * problem.num_rows)
        return replace(
            state,
            iterate=iterate,
            weights=state.space.weights(iterate.coordinates),
            norm_squared=float("inf"),
            residual=float("inf"),
            compressed=False,
            gain=float("inf"),
        )

    def certify(self, problem: Problem, state: SubspaceState) -> SubspaceState:
        """The same state with a bound on its distance to the mode, from one pass over the kernel with its gradient."""
        residual = state.iterate.gradient - state.weights
        product = multiply(problem.operator, residual.unsqueeze(-1)).squeeze(-1)
        norm_squared = abs(problem.inner(residual, product))
        bound = norm_squared
        if problem.site.log_concave:
            bound += problem.entry_rounding(residual) + 2.0 * _resolution(problem, state.iterate)
        return replace(state, norm_squared=bound, residual=norm_squared, event="certified")

    def certain(self, problem: Problem, state: SubspaceState) -> bool:
        """Whether the state's distance to the mode of its site is known and small enough."""
        return 0.5 * state.norm_squared <= self.tolerance * problem.num_rows

    def with_mean(self, problem: Problem, state: SubspaceState, posterior: Posterior) -> Posterior:
        """A posterior with the mean of a state."""
        return replace(
            posterior,
            representer_weights=state.weights,
            latent_values=state.iterate.latent_values,
            objective=state.iterate.objective,
            norm_squared=state.norm_squared,
            warm_start=RecycledSpace(state.space, state.iterate.coordinates),
        )

    def recondition(self, problem: Problem, state: SubspaceState, posterior: Posterior) -> Posterior:
        """The posterior at a state's mean and curvature, its actions kept: no pass unless they became useless."""
        posterior, iterate = self.with_mean(problem, state, posterior), state.iterate
        curvature = problem.site.covariance_curvature(iterate.latent_values, iterate.curvature)
        if self._is_exact(problem):
            result = exact_covariance(problem, curvature)
            covariance = result.latent_covariance
            return replace(posterior, precision=result.precision, latent_covariance=covariance, curvature=curvature)
        return reconditioned(problem, posterior, curvature) or self._posterior(problem, state, curvature, final=True)


def _resolution(problem: Problem, iterate: Iterate) -> float:
    return problem.resolution(iterate.latent_values, iterate.gradient, iterate.objective)


def compression(space: SearchSpace, iterate: Iterate, keep: int) -> Tensor:
    """Orthonormal mixing ``(C', B, keep)`` that holds the iterate exactly and otherwise the most informative directions."""
    latents = iterate.coordinates.shape[0]
    mixes = []
    for c in range(space.gram.shape[0]):
        own = range(latents) if space.gram.shape[0] == 1 else range(c, c + 1)
        weights = space.combined_curvature(iterate.curvature, c)
        largest = space.partition.all_reduce_max(weights.amax()).clamp(1.0, torch.finfo(weights.dtype).max)
        scaled = weights.clamp(-largest, largest) / largest  # only their relation counts
        information = information_block(space.of_kernel(c), scaled, 0, 0)
        held, sizes, _ = torch.linalg.svd(iterate.coordinates[list(own)].mT, full_matrices=False)
        held = held[:, sizes > _DEPENDENT * sizes.max()]  # those of softmax add up to zero
        away = torch.eye(space.rank, dtype=held.dtype, device=held.device) - held @ held.mT
        others = leading_eigenvectors(away @ information @ away, keep - held.shape[1])
        mixes.append(torch.cat([held, others], -1))
    mix = torch.stack(mixes)
    return space.partition.broadcast(torch.linalg.qr(mix).Q)
