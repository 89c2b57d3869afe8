"""``DenseNewton``: the exact Newton iteration with dense matrices, for small problems and as the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from itergp.checks import require_positive
from itergp.errors import InputError
from itergp.numerics.blocks import apply_blocks, curvature_eigen, curvature_root
from itergp.numerics.line_search import MAX_HALVINGS, backtrack
from itergp.numerics.secants import Pairs, SecantPair, secant_direction, with_pair
from itergp.persistence import DERIVED
from itergp.posterior.dense import apply_kernels, couples, dense_posterior, factorise
from itergp.posterior.posterior import Posterior, prior_covariance
from itergp.posterior.precision import LowRankPrecision
from itergp.posterior.problem import Problem, inner
from itergp.posterior.solution import Solution, is_finite
from itergp.posterior.status import Reason, Status
from itergp.solvers.demand import Demand, ProblemSize, likelihood_memory
from itergp.solvers.protocol import BaseSolver, BaseState
from itergp.solvers.run.budget import UNLIMITED, Budget
from itergp.solvers.subspace.subspace_newton import SubspaceNewton

_DEFAULT_MAX_STEPS, _DEFAULT_MAX_SECANTS = 100, 1000
_KEPT_STEPS = 10  # at most, that share the factors of a matrix where W is no Hessian
_POLISHED = 0.25  # of the squared residual: what a step of rounding leaves
_ROUNDING = torch.finfo(torch.float64).eps
_EXPECTED_STEPS, _MATRICES = 8, 5
_JOINT_LIMIT = 8000  # N C beyond which an (N C)^2 matrix is refused


@dataclass(frozen=True)
class KeptMatrix:
    """The Newton matrix of an earlier iterate.

    Attributes:
        curvature: Its W ``(N, C, C)``, float64.
        age: Steps since.
        root: H with ``H H^T = W``.
        factor: The Cholesky factor of ``I + H^T K H``.
    """

    curvature: Tensor
    age: int = 0
    root: Tensor = field(default_factory=lambda: torch.empty(0), metadata=DERIVED)
    factor: Tensor = field(default_factory=lambda: torch.empty(0), metadata=DERIVED)

    def factorised(self, kernel: Tensor) -> KeptMatrix:
        """With its factor."""
        root = curvature_root(self.curvature)
        return replace(self, root=root, factor=factorise(kernel, root)[1])

    def solve(self, residual: Tensor, pushed: Tensor) -> Tensor:
        """``(I + W K)^{-1} R``, given R and ``K R``."""
        inside = apply_blocks(self.root.mT, pushed).reshape(-1, 1)
        return residual - apply_blocks(self.root, torch.cholesky_solve(inside, self.factor).reshape(residual.shape))


@dataclass(frozen=True)
class DenseState(BaseState):
    """State of ``DenseNewton``; every array is float64."""

    kernel: Tensor = field(metadata=DERIVED)
    weights: Tensor
    latent_values: Tensor = field(metadata=DERIVED)
    gradient: Tensor = field(metadata=DERIVED)
    curvature: Tensor = field(metadata=DERIVED)
    pushed: Tensor = field(metadata=DERIVED)  # K times the residual
    objective: float
    norm_squared: float = float("inf")
    residual: float = float("inf")
    newton_steps: int = 0
    step_length: float = 1.0
    steps: int = 0
    polished: bool = False
    event: str = ""
    matrix: KeptMatrix | None = None
    pairs: Pairs = ()

    @classmethod
    def at(cls, problem: Problem, kernel: Tensor, weights: Tensor) -> DenseState:
        """The state at given weights."""
        f = problem.mean.double() + apply_kernels(kernel, weights)
        gradient, curvature = problem.site.derivatives(f)
        pushed = apply_kernels(kernel, gradient - weights)
        q = abs(inner(gradient - weights, pushed))
        objective = -problem.site.log_density(f) + 0.5 * inner(weights, f - problem.mean.double())
        return cls(kernel, weights, f, gradient, curvature, pushed, objective, q)

    @classmethod
    def rebuild(cls, problem: Problem, weights: Tensor, matrix: KeptMatrix | None = None, **fields: Any) -> DenseState:
        """The state of a checkpoint, for one evaluation of the kernel matrix."""
        kernel = problem.operator.dense().double()
        matrix = None if matrix is None else matrix.factorised(kernel)
        return replace(cls.at(problem, kernel, weights), matrix=matrix, **fields)

    @property
    def rank(self) -> int:
        """Everything is searched: N."""
        return self.weights.shape[0]

    @property
    def gradient_residual(self) -> Tensor:
        """``g - V`` ``(N, C)``: zero at the mode."""
        return self.gradient - self.weights

    @property
    def is_fresh(self) -> bool:
        """Whether the next direction is that of its own W alone."""
        return self.matrix is not None and self.matrix.age == 0 and not self.pairs

    @property
    def finite(self) -> bool:
        """Whether the iterate is finite."""
        arrays = self.latent_values, self.gradient, self.curvature, self.weights
        return is_finite(*arrays) and self.objective < float("inf")


@dataclass(frozen=True, kw_only=True)
class DenseNewton(BaseSolver[DenseState]):
    """Newton's method with dense float64 matrices and a line search: GPML algorithms 3.1 and 3.3.

    Where W is no Hessian, a quasi-Newton method: limited-memory BFGS (Nocedal & Wright 2006, algorithm 7.4) that begins with
    the Newton matrix of an earlier iterate, at first of the last one, in the end of up to ten steps ago.

    One latent function costs ``N^3`` per step. Several are solved jointly, ``(N C)^3``, up to N C = 8,000; beyond that
    the softmax is solved by algorithm 3.3, ``(C + 1) N^3``, for the mode only (``covariance=False``), if its latent functions
    are not coupled.

    Args:
        tolerance: Gap to the mode at which to stop, in nats per row; default 1e-16.
        max_steps: Steps per stage; default 100, or 1,000 where W is no Hessian.
        time_limit: Seconds for all stages together.
        covariance: Whether to compute the exact posterior covariance; without it the prior's is returned.

    Raises:
        InputError: If the problem is too large for its matrices.
    """

    state_type: ClassVar[type[DenseState]] = DenseState
    tolerance: float = 1e-16
    max_steps: int | None = None
    time_limit: float | None = None
    covariance: bool = True

    def __post_init__(self) -> None:
        """Checks the budgets."""
        require_positive("tolerance", self.tolerance)
        require_positive("max_steps", self.max_steps, integer=True)
        require_positive("time_limit", self.time_limit)

    @property
    def gives_covariance(self) -> bool:
        """Whether the covariance is computed."""
        return self.covariance

    @property
    def exact_values(self) -> int:
        """Every one."""
        return _JOINT_LIMIT if self.covariance else 0

    def without_covariance(self) -> DenseNewton:
        """The same solver for the mean alone."""
        return replace(self, covariance=False)

    def demand(self, size: ProblemSize) -> Demand:
        """What a solve of this size is expected to need: some dense matrices and their factors."""
        latents = size.num_latents
        joint = latents if self.covariance or latents == 1 else 1
        order, blocks = size.num_rows * joint, latents // joint
        steps = _EXPECTED_STEPS * (2 if size.variational else 1)
        memory = {"dense matrices": blocks * memory_of_matrices(order), "rows": likelihood_memory(size)}
        return Demand(0, 0, size.num_kernels * size.num_rows**2, steps * (blocks + 1) * order**3, memory)

    def init(self, problem: Problem, warm_start: Solution | None = None) -> DenseState:
        """Starts at the prior mean, or at an earlier solution's weights if the objective is lower there.

        Where densities at both are exponentials of a hundred, dense steps have no digits: a search space that grows has,
        and what it comes to is the start.

        Raises:
            InputError: If there are too many latent values.
        """
        joint = problem.num_rows * problem.num_latents
        alone = _is_softmax(problem) and not problem.operator.couples_latents
        if joint > _JOINT_LIMIT and (self.covariance or not alone) and problem.num_latents > 1:
            raise InputError(
                f"DenseNewton solves at most N C = {_JOINT_LIMIT:,} latent values jointly. Got {joint:,}. Use SubspaceNewton, "
                "or DenseNewton(covariance=False) for the Laplace mode of a softmax."
            )
        kernel = problem.operator.dense().double()
        state = DenseState.at(problem, kernel, torch.zeros_like(problem.mean, dtype=torch.float64))
        if warm_start is not None and warm_start.representer_weights.shape == state.weights.shape:
            # Under another kernel the same weights can be another function, from which Newton's method does not find
            # back.
            earlier = DenseState.at(problem, kernel, warm_start.representer_weights.double())
            state = earlier if earlier.objective < state.objective else state
        if _ROUNDING * abs(state.objective) > 1.0:
            reached = DenseState.at(problem, kernel, _weights_by_subspaces(problem))
            state = reached if reached.objective < state.objective else state
        return state

    def step(self, problem: Problem, state: DenseState, budget: Budget) -> DenseState:
        """One step with backtracking on the objective: of Newton's, or where W is no Hessian of a quasi-Newton method."""
        del budget
        remembers = _remembers(problem)
        if remembers:
            state = _with_matrix(state)
            direction = _quasi_newton_direction(state)
        else:
            direction = self._newton_weights(problem, state) - state.weights
        # Along V + a D the slope of Psi at a = 0 is <K D, V - g>.
        slope = inner(apply_kernels(state.kernel, direction), state.weights - state.gradient)
        polishing = -slope < problem.resolution(state.latent_values, state.gradient, state.objective, state.curvature)
        trial = state

        def objective(length: float) -> float:
            nonlocal trial
            trial = DenseState.at(problem, state.kernel, state.weights + length * direction)
            # Too near for the objective to judge, Newton's step is right. A NaN is for the driver to report.
            return -math.inf if polishing or math.isnan(trial.objective) else trial.objective

        uphill = remembers and slope >= 0.0
        found = None if uphill else backtrack(objective, state.objective, slope, halvings=MAX_HALVINGS)
        if found is None:
            return self._follow(state, state, 0.0, spent=True, remembers=remembers)
        length, gain = found[0], state.objective - trial.objective
        spent = length < 1.0 and gain <= _ROUNDING * abs(state.objective)  # a shorter step gains nothing either
        spent = spent or (polishing and trial.norm_squared > _POLISHED * state.norm_squared)
        return self._follow(state, trial, length, spent=spent, remembers=remembers)

    @staticmethod
    def _follow(state: DenseState, trial: DenseState, length: float, *, spent: bool, remembers: bool) -> DenseState:
        return replace(
            _remembering(state, trial, spent=spent) if remembers else trial,
            residual=state.norm_squared,
            newton_steps=1,
            step_length=length,
            steps=state.steps + 1,
            polished=spent and (state.is_fresh or not remembers),  # what old secants say can be wrong
        )

    @staticmethod
    def _newton_weights(problem: Problem, state: DenseState) -> Tensor:
        """V after a full Newton step: ``(K + W^+) V = f - m + W^+ g``.

        ``V = b - H B^{-1} H^T K b`` with ``b = W (f - m) + g``, ``W = H H^T`` and ``B = I + H^T K H``, has no digits where W is
        huge: there ``b = H e``, and ``H e`` contributes ``H B^{-1} e``. Where W may be zero there is no such e.
        """
        centred = state.latent_values - problem.mean.double()
        b = apply_blocks(state.curvature, centred) + state.gradient
        if b.numel() > _JOINT_LIMIT and b.shape[1] > 1 and not couples(state.kernel, b.shape[0]):
            return _softmax_weights(state, b, problem.site.observations.sample_weight)
        values, vectors = curvature_eigen(state.curvature)
        root, lengths = vectors * values.sqrt().unsqueeze(-2), values.sqrt()
        informative = values * problem.prior_variance().double().amax(-1, keepdim=True) > 1.0
        inside = torch.where(informative, apply_blocks(vectors.mT, b) / lengths, 0.0)
        rest = b - apply_blocks(root, inside)
        _, factor = factorise(state.kernel, root)
        inside = inside - apply_blocks(root.mT, apply_kernels(state.kernel, rest))
        solved = torch.cholesky_solve(inside.reshape(-1, 1), factor).reshape(b.shape)
        return rest + apply_blocks(root, solved)

    def status(self, problem: Problem, state: DenseState, budget: Budget) -> Status | None:
        """Converged, or unable to go on."""
        del budget
        detail = f"gap {0.5 * state.norm_squared / problem.num_rows:.2g} nats per row"
        if 0.5 * state.norm_squared <= self.tolerance * problem.num_rows:
            return Status(Reason.CONVERGED if problem.site.log_concave else Reason.STATIONARY, detail)
        if state.polished:
            return Status(Reason.PRECISION, detail)
        if state.steps >= (self.max_steps or (_DEFAULT_MAX_SECANTS if _remembers(problem) else _DEFAULT_MAX_STEPS)):
            return Status(Reason.STEPS, detail)
        return None

    def finish(self, problem: Problem, state: DenseState, *, final: bool) -> Posterior:
        """The exact posterior covariance at the iterate."""
        curvature = state.curvature
        if self.covariance:
            curvature = problem.site.covariance_curvature(state.latent_values, state.curvature)
            precision, covariance = dense_posterior(state.kernel, curvature_root(curvature), problem.prior_marginals())
        else:
            result = prior_covariance(problem)
            precision, covariance = result.precision, result.latent_covariance
        like = problem.mean
        return Posterior(
            representer_weights=state.weights.to(like),
            latent_values=state.latent_values.to(like),
            latent_covariance=covariance.to(like),
            precision=LowRankPrecision(precision.actions.to(like), precision.gram, precision.factor),
            objective=state.objective,
            norm_squared=state.norm_squared,
            curvature=curvature.to(like),
        )


def memory_of_matrices(order: int) -> int:
    """Bytes of the dense matrices of one order that a solve needs at once."""
    return 8 * _MATRICES * order**2


def _remembers(problem: Problem) -> bool:
    """Whether W is no Hessian, so that secants know what it does not; on kinks they do not either."""
    return problem.likelihood.curvature != "hessian" and problem.site.smooth


def _with_matrix(state: DenseState) -> DenseState:
    """The state with a Newton matrix, its own if the last is old: at first of every step, later of ever more."""
    if state.matrix is not None and state.matrix.age < min(_KEPT_STEPS, 1 + state.steps // 2):
        return state
    return replace(state, matrix=KeptMatrix(state.curvature).factorised(state.kernel))


def _quasi_newton_direction(state: DenseState) -> Tensor:
    """From the kept matrix and the secants since: V moves by ``(I + W K)^{-1} (g - V)`` and what these add."""
    assert state.matrix is not None
    return secant_direction(
        state.pairs,
        state.gradient_residual,
        state.pushed,
        state.matrix.solve,
        partial(apply_kernels, state.kernel),
    )


def _remembering(state: DenseState, trial: DenseState, *, spent: bool) -> DenseState:
    """The next state with the pair of its step; where that gained nothing, without pairs and matrix, to begin with its own."""
    if spent:
        return replace(trial, matrix=None, pairs=())
    assert state.matrix is not None
    pair = SecantPair(
        trial.weights - state.weights,
        trial.latent_values - state.latent_values,
        state.gradient_residual - trial.gradient_residual,
        state.pushed - trial.pushed,
    )
    matrix = replace(state.matrix, age=state.matrix.age + 1)
    return replace(trial, matrix=matrix, pairs=with_pair(state.pairs, pair))


def _weights_by_subspaces(problem: Problem) -> Tensor:
    """V ``(N, C)`` that ``SubspaceNewton`` comes to, at a kernel pass for each of its steps."""
    solver = SubspaceNewton(covariance_rank=0)
    state = solver.init(problem)
    while solver.status(problem, state, UNLIMITED) is None:
        state = solver.step(problem, state, UNLIMITED)
    return state.weights.double()


def _is_softmax(problem: Problem) -> bool:
    return problem.likelihood.softmax and not problem.site.averages


def _softmax_weights(state: DenseState, b: Tensor, sample_weight: Tensor | None) -> Tensor:
    """GPML algorithm 3.3, lines 4 to 13: a Newton step of the softmax in ``(C + 1)`` factorisations of N x N matrices.

    Differs from the book: rows have weights w, for which D is ``w pi``. Those of weight zero say nothing.
    """
    expected = torch.softmax(state.latent_values, -1)
    size, latents = b.shape
    total = b.new_zeros(size, size)
    if sample_weight is not None:
        expected = expected * sample_weight.to(b).unsqueeze(-1)
        total.diagonal().add_((sample_weight == 0.0).to(b))  # where all blocks are zero
    blocks = []
    for c in range(latents):
        kernel = state.kernel[min(c, state.kernel.shape[0] - 1)]
        scale = expected[:, c].sqrt()
        inside = scale[:, None] * kernel * scale
        inside.diagonal().add_(1.0)
        blocks.append(scale[:, None] * torch.cholesky_inverse(torch.linalg.cholesky(inside)) * scale)
        total += blocks[-1]
    factor = torch.linalg.cholesky(total)
    prior = apply_kernels(state.kernel, b)
    middle = torch.stack([blocks[c] @ prior[:, c] for c in range(latents)], -1)
    shared = torch.cholesky_solve(middle.sum(-1, keepdim=True), factor).squeeze(-1)
    return b - middle + torch.stack([blocks[c] @ shared for c in range(latents)], -1)
