"""The solver protocol: immutable configuration, explicit state."""

from __future__ import annotations

from typing import Protocol, TypeVar

from itergp.errors import InputError
from itergp.likelihoods import Observations
from itergp.posterior.posterior import Posterior
from itergp.posterior.problem import Problem
from itergp.posterior.solution import Solution
from itergp.posterior.status import Status
from itergp.solvers.demand import Demand, ProblemSize


class State(Protocol):
    """What changes while a solver runs, as far as the driver needs to know it."""

    @property
    def objective(self) -> float:
        """``Psi``."""

    @property
    def norm_squared(self) -> float:
        """Q at or above the squared distance to the mode, infinite before it is known."""

    @property
    def residual(self) -> float:
        """Squared prior norm of the gradient before the last step."""

    @property
    def rank(self) -> int:
        """Size of the search space."""

    @property
    def newton_steps(self) -> int:
        """Newton steps inside the last step."""

    @property
    def step_length(self) -> float:
        """Smallest step length of the last step."""

    @property
    def event(self) -> str:
        """Something worth knowing about the last step, otherwise empty."""

    @property
    def finite(self) -> bool:
        """Whether every number in the state is finite."""


StateT = TypeVar("StateT", bound=State)


class Solver(Protocol[StateT]):
    """How a posterior is found. The driver calls ``init``, then ``step`` until ``status`` or a budget says stop."""

    @property
    def tolerance(self) -> float:
        """Certified gap at which the solve has converged, in nats per row."""

    @property
    def time_limit(self) -> float | None:
        """Seconds for all stages together."""

    @property
    def max_passes(self) -> int | None:
        """Kernel passes for all stages together, or None."""

    @property
    def gives_covariance(self) -> bool:
        """Whether ``finish`` conditions a covariance, or leaves the prior's."""

    def loosened(self, factor: float) -> Solver[StateT]:
        """The same solver with a tolerance larger by a factor, for a stage that another follows."""

    def without_covariance(self) -> Solver[StateT]:
        """The same solver with ``gives_covariance`` False."""

    def demand(self, size: ProblemSize) -> Demand:
        """What a solve of this size is expected to need."""

    def init(self, problem: Problem, warm_start: Solution | None = None) -> StateT:
        """The first state."""

    def step(self, problem: Problem, state: StateT) -> StateT:
        """The next state."""

    def status(self, problem: Problem, state: StateT, passes: int) -> Status | None:
        """Why the state is final, or None when it is not. ``passes`` counts the kernel passes of all stages."""

    def finish(self, problem: Problem, state: StateT, *, final: bool) -> Posterior:
        """The posterior at a state: weights and covariance. ``final`` is False when another stage follows."""


def require_solver(solver: object) -> None:
    """A solver must be an instance with the protocol's methods.

    Raises:
        InputError: If it is a class, a name or anything else.
    """
    if isinstance(solver, type) or not all(hasattr(solver, name) for name in ("init", "step", "status", "finish")):
        got = f"the class {solver.__name__}" if isinstance(solver, type) else repr(solver)
        raise InputError(
            f"`solver` must be a solver. Got {got}. Pass an instance, for example SubspaceNewton(max_passes=20)."
        )


def require_shareable(solver: Solver[StateT], observations: Observations) -> None:
    """Rows can be divided among processes only where every sum over rows is taken over all of them.

    Raises:
        InputError: If the solver or its policy does not do that, or rows of the likelihood differ by more than their targets.
    """
    if not getattr(solver, "shards_rows", False):
        raise InputError(
            "Rows can be divided among processes by SubspaceNewton with its default policy, ClassGradient, BlockGradient or "
            f"Gradient, and by LinearTimeNewton with UnitVectors. Got {solver!r}. Use one of these, or operator='auto' in "
            "one process."
        )
    if not observations.likelihood.exchangeable:
        raise InputError(
            "Rows can be divided among processes when they share one likelihood. Got "
            f"{type(observations.likelihood).__name__}, which holds something for each row. Use operator='auto' in one process."
        )
