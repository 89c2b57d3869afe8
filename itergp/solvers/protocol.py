"""The solver protocol: immutable configuration, explicit state. All that is used of a solver and of its state is here."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor

from itergp.errors import InputError
from itergp.likelihoods import Observations
from itergp.posterior.posterior import Posterior
from itergp.posterior.problem import Problem
from itergp.posterior.solution import Solution
from itergp.posterior.status import Status
from itergp.solvers.demand import Demand, ProblemSize
from itergp.solvers.run.budget import Budget


class State(Protocol):
    """What changes while a solver runs, as far as the driver needs to know it. ``BaseState`` has defaults."""

    @property
    def objective(self) -> float:
        """``Psi``."""

    @property
    def norm_squared(self) -> float:
        """Q at or above the squared distance to the mode, infinite before it is known."""

    @property
    def residual(self) -> float:
        """Squared prior norm of the gradient before the last step, infinite where it is not known."""

    @property
    def gradient_residual(self) -> Tensor | None:
        """``g - V`` ``(N, C)``, zero at the mode, which the trace follows class by class; None if a solver does not say."""

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


class BaseState:
    """A state of which only ``objective``, ``rank`` and ``finite`` are left to say. A dataclass gives its fields defaults."""

    @property
    def norm_squared(self) -> float:
        """Not known."""
        return float("inf")

    @property
    def residual(self) -> float:
        """Not known."""
        return float("inf")

    @property
    def gradient_residual(self) -> Tensor | None:
        """Not said."""
        return None

    @property
    def newton_steps(self) -> int:
        """A step of the solver is one."""
        return 1

    @property
    def step_length(self) -> float:
        """Full steps."""
        return 1.0

    @property
    def event(self) -> str:
        """Nothing."""
        return ""


StateT = TypeVar("StateT", bound=State)


class Solver(Protocol[StateT]):
    """How a posterior is found. The driver calls ``init``, then ``step`` until ``status`` or a budget says stop.

    ``BaseSolver`` has defaults for all but ``tolerance``, ``init``, ``step``, ``status``, ``finish``, ``demand`` and
    ``without_covariance``.
    """

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
    def max_rank(self) -> int | None:
        """Most directions or actions held, or None; for the record."""

    @property
    def gives_covariance(self) -> bool:
        """Whether ``finish`` conditions a covariance, or leaves the prior's."""

    @property
    def exact_values(self) -> int:
        """Latent values N C up to which a posterior without other limits is the exact one, to a tolerance."""

    @property
    def shards_rows(self) -> bool:
        """Whether the rows can be divided among processes: every sum over rows goes through ``problem.rows``."""

    @property
    def on_support(self) -> bool:
        """Whether weights and actions are zero outside a support of some rows, so that batches of others estimate the bound."""

    @property
    def begins_anywhere(self) -> bool:
        """Whether a mode that another solver finds sooner, where values are few, is where this one begins."""

    @property
    def sequence(self) -> tuple[Solver[Any], ...]:
        """The solvers that take a stage in turn, each from where the last came to; the solver alone by default."""

    @property
    def rounds(self) -> Rounds[StateT] | None:
        """What takes rounds of a variational site without a kernel pass, mostly the solver itself; None for stages instead."""

    @property
    def state_type(self) -> type[StateT] | None:
        """The class of its states, a dataclass, as which a checkpoint is read; None if they cannot be saved."""

    def loosened(self, factor: float) -> Solver[StateT]:
        """The same solver with a tolerance larger by a factor, for a stage that another follows."""

    def without_covariance(self) -> Solver[StateT]:
        """The same solver with ``gives_covariance`` False."""

    def demand(self, size: ProblemSize) -> Demand:
        """What a solve of this size is expected to need."""

    def init(self, problem: Problem, warm_start: Solution | None = None) -> StateT:
        """The first state."""

    def step(self, problem: Problem, state: StateT, budget: Budget) -> StateT:
        """The next state. ``budget`` says what is left: passes, and seconds by the only clock there is."""

    def status(self, problem: Problem, state: StateT, budget: Budget) -> Status | None:
        """Why the state is final, or None when it is not."""

    def finish(self, problem: Problem, state: StateT, *, final: bool) -> Posterior:
        """The posterior at a state: weights and covariance. ``final`` is False when another stage follows."""


class Rounds(Protocol[StateT]):
    """Mean and covariance for another site from what a stage has multiplied already: rounds of a variational posterior."""

    def refine(self, problem: Problem, state: StateT) -> StateT:
        """The minimiser for another site among what is at hand, without a kernel pass."""

    def certify(self, problem: Problem, state: StateT) -> StateT:
        """The same state with what one pass tells about its distance to the mode."""

    def certain(self, problem: Problem, state: StateT) -> bool:
        """Whether nothing more needs to be known about the distance to the mode."""

    def with_mean(self, problem: Problem, state: StateT, posterior: Posterior) -> Posterior:
        """A posterior with the mean of a state."""

    def recondition(self, problem: Problem, state: StateT, posterior: Posterior) -> Posterior:
        """The posterior at a state's mean and curvature."""


SolverT = TypeVar("SolverT", bound="BaseSolver[Any]")


class BaseSolver(ABC, Generic[StateT]):
    """A solver that divides no rows, takes rounds as stages, is not checkpointed and has no limits, until it says otherwise.

    Solvers are frozen dataclasses; a field that is a member here needs a default.
    """

    state_type: ClassVar[Any] = None

    @property
    @abstractmethod
    def tolerance(self) -> float:
        """Certified gap at which the solve has converged, in nats per row."""

    @property
    def time_limit(self) -> float | None:
        """None."""
        return None

    @property
    def max_passes(self) -> int | None:
        """None."""
        return None

    @property
    def max_rank(self) -> int | None:
        """None."""
        return None

    @property
    def gives_covariance(self) -> bool:
        """It does."""
        return True

    @property
    def exact_values(self) -> int:
        """None is promised to be exact."""
        return 0

    @property
    def shards_rows(self) -> bool:
        """They cannot be divided."""
        return False

    @property
    def on_support(self) -> bool:
        """They are not."""
        return False

    @property
    def begins_anywhere(self) -> bool:
        """It does not: its own steps are what is asked for."""
        return False

    @property
    def sequence(self) -> tuple[Solver[Any], ...]:
        """Alone."""
        return (self,)

    @property
    def rounds(self) -> Rounds[StateT] | None:
        """None: as stages."""
        return None

    def loosened(self: SolverT, factor: float) -> SolverT:
        """The same solver with a larger tolerance."""
        return with_setting(self, "tolerance", factor * self.tolerance)

    @abstractmethod
    def without_covariance(self: SolverT) -> SolverT:
        """The same solver with ``gives_covariance`` False."""

    @abstractmethod
    def demand(self, size: ProblemSize) -> Demand:
        """What a solve of this size is expected to need."""

    @abstractmethod
    def init(self, problem: Problem, warm_start: Solution | None = None) -> StateT:
        """The first state."""

    @abstractmethod
    def step(self, problem: Problem, state: StateT, budget: Budget) -> StateT:
        """The next state."""

    @abstractmethod
    def status(self, problem: Problem, state: StateT, budget: Budget) -> Status | None:
        """Why the state is final, or None when it is not."""

    @abstractmethod
    def finish(self, problem: Problem, state: StateT, *, final: bool) -> Posterior:
        """The posterior at a state."""


def with_setting(solver: SolverT, name: str, value: Any) -> SolverT:
    """A copy of an immutable solver in which one setting, known to be valid, is another."""
    other = copy.copy(solver)
    object.__setattr__(other, name, value)
    return other


def require_solver(solver: object) -> None:
    """A solver must be an instance with the protocol's members.

    Raises:
        InputError: If it is a class, a name or anything else, or lacks a member.
    """
    if isinstance(solver, type) or not all(hasattr(solver, name) for name in ("init", "step", "status", "finish")):
        got = f"the class {solver.__name__}" if isinstance(solver, type) else repr(solver)
        raise InputError(
            f"`solver` must be a solver. Got {got}. Pass an instance, for example SubspaceNewton(max_passes=20)."
        )
    missing = [name for name in vars(Solver) if not name.startswith("_") and not hasattr(solver, name)]
    if missing:
        raise InputError(
            f"`solver` must have every member of itergp.solvers.Solver. Got {type(solver).__name__}, which has no "
            f"{', '.join(missing)}. Subclass itergp.solvers.BaseSolver, which has defaults."
        )


def require_shareable(solver: Solver[Any], observations: Observations) -> None:
    """Rows can be divided among processes only where every sum over rows is taken over all of them.

    Raises:
        InputError: If the solver or its policy does not do that, or rows of the likelihood differ by more than their targets.
    """
    if not solver.shards_rows:
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
