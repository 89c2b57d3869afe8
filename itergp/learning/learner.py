"""The optimiser's loop: stages of an objective, budgets, what is remembered."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from itergp.errors import ItergpWarning, SolverError
from itergp.learning.parameters import FreeParameter
from itergp.models import NonConjugateGP
from itergp.objectives import Deadline, OutOfTimeError
from itergp.objectives.base import Objective
from itergp.persistence import Checkpointer, StateDict, from_state, to_state
from itergp.records import FitRecord, Listener

OPTIMIZERS = ("auto", "adam", "lbfgs")
_OBJECTIVE, _OPTIMIZER = "objective", "optimizer"  # in a checkpoint
_AVERAGED_SHARE = 0.25
_DECAY, _TINY = (0.9, 0.999), 1e-8  # of Adam, as in the paper
_SETTLED = 0.01  # largest move of a variable, between means over a window, that counts as none
_WINDOW = 5
_ENOUGH = 1e-4  # gain of a step of L-BFGS, in nats per row, at which it ends
_FARTHEST = 7.0  # farthest move of a variable by L-BFGS: a factor of 1,100 for a positive parameter


class Stop(Enum):
    """Why a stage of learning ended."""

    ITERATIONS = "all iterations were taken"
    SETTLED = "the parameters settled"
    CONVERGED = "the objective stopped improving"
    TIME = "the time limit was reached"
    INTERRUPTED = "learning was interrupted"
    NOT_FINITE = "the objective became NaN or infinite"

    @property
    def ends_learning(self) -> bool:
        """Whether no other stage follows."""
        return self in (Stop.TIME, Stop.INTERRUPTED)


@dataclass(frozen=True)
class Stage:
    """One stage of learning.

    Attributes:
        name: Its name in records.
        objective: What it maximises.
        iterations: Steps of Adam, or of L-BFGS, at most.
        learning_rate: Of Adam, at the start of the stage.
        optimizer: ``"adam"`` or ``"lbfgs"``.
    """

    name: str
    objective: Objective
    iterations: int
    learning_rate: float
    optimizer: str = "adam"


@dataclass(frozen=True)
class Position:
    """Where in its course learning is: stage, attempt within the first, and what earlier attempts came to."""

    stage: int = 0
    attempt: int = 0
    candidates: list[tuple[float, list[Tensor]]] = field(default_factory=list)


@dataclass(frozen=True)
class LearnerState:
    """What learning is made of between steps, objective and optimiser aside.

    Attributes:
        records: One per evaluation.
        evaluations: How many there were.
        seconds: Since ``fit`` began.
        random_state: Of torch.
        model: The model's parameters and buffers.
        variables: The free parameters.
        good: The last variables with a finite value and gradient.
        best: The best of the present stage.
        best_value: The value there.
        position: Where in its course learning is.
        reason: Why it ended, the name of a ``Stop``; None before.
    """

    records: list[FitRecord]
    evaluations: int
    seconds: float
    random_state: Tensor
    model: dict[str, Tensor]
    variables: list[Tensor]
    good: list[Tensor]
    best: list[Tensor]
    best_value: float
    position: Position
    reason: str | None = None


@dataclass(frozen=True)
class AdamState:
    """Moments of the gradient, one tensor per variable, and the trajectory, stacked."""

    means: list[Tensor]
    squares: list[Tensor]
    visited: list[Tensor]

    @property
    def trajectory(self) -> list[list[Tensor]]:
        """The variables of every step."""
        return [list(row) for row in zip(*(stack.unbind(0) for stack in self.visited), strict=True)]


@dataclass
class Adam:
    """Adam (Kingma & Ba 2015) with a rate that falls to zero along a cosine; torch's own takes a second to import.

    Attributes:
        variables: What is moved; their ``grad`` is the gradient of a loss.
        rate: At the start.
        steps: After how many the rate is zero.
        means: Running means of the gradients.
        squares: Running means of their squares.
        taken: Steps so far.
    """

    variables: list[Tensor]
    rate: float
    steps: int
    means: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)
    taken: int = 0

    def __post_init__(self) -> None:
        """Begins without gradients."""
        self.means = [torch.zeros_like(variable) for variable in self.variables]
        self.squares = [torch.zeros_like(variable) for variable in self.variables]

    def state(self, visited: list[list[Tensor]]) -> AdamState:
        """Its state on its way."""
        stacks = [torch.stack(values) for values in zip(*visited, strict=True)]
        return AdamState([mean.clone() for mean in self.means], [square.clone() for square in self.squares], stacks)

    def resume(self, state: AdamState) -> list[list[Tensor]]:
        """Goes on from a state; returns the trajectory."""
        self.means, self.squares, trajectory = list(state.means), list(state.squares), state.trajectory
        self.taken = len(trajectory)
        return trajectory

    @torch.no_grad()
    def step(self) -> None:
        """Moves the variables that have a gradient."""
        rate = 0.5 * self.rate * (1.0 + math.cos(math.pi * self.taken / self.steps))
        self.taken += 1
        first, second = 1.0 - _DECAY[0] ** self.taken, 1.0 - _DECAY[1] ** self.taken
        for variable, mean, square in zip(self.variables, self.means, self.squares, strict=True):
            if variable.grad is None:
                continue
            mean.lerp_(variable.grad, 1.0 - _DECAY[0])
            square.lerp_(variable.grad.square(), 1.0 - _DECAY[1])
            variable.sub_(rate * (mean / first) / ((square / second).sqrt() + _TINY))


@dataclass(frozen=True)
class LBFGSState:
    """Where L-BFGS began, and what every evaluation gave: told the same again, SciPy goes the same way.

    Attributes:
        start: The variables in a row ``(P,)``, float64.
        losses: Of the evaluations ``(E,)``, float64.
        slopes: Their gradients ``(E, P)``, float64.
    """

    start: Tensor
    losses: Tensor
    slopes: Tensor


@dataclass
class Learner:
    """Moves the free parameters of a model up an objective.

    Attributes:
        model: The model, in training mode.
        free: Its parameters.
        deadline: When to end: an evaluation that is not over by then is given up.
        started: When ``fit`` began.
        listener: Hears of stages and records.
        checkpointer: Where the state is saved between steps, or None.
        position: Where in the course of its stages learning is, for whoever resumes it.
        checkpoint_state: Of an earlier run whose stage is to be resumed, or None; used once.
    """

    model: NonConjugateGP
    free: list[FreeParameter]
    deadline: Deadline
    started: float
    listener: Listener
    records: list[FitRecord] = field(default_factory=list)
    good: list[Tensor] = field(default_factory=list)  # the last variables with a finite value and gradient
    evaluations: int = 0
    checkpointer: Checkpointer | None = None
    position: Position = field(default_factory=Position)
    checkpoint_state: StateDict | None = None
    best: list[Tensor] = field(default_factory=list)  # of the present stage, by the values along its path
    best_value: float = -math.inf

    @property
    def seconds(self) -> float:
        """Since ``fit`` began."""
        return time.perf_counter() - self.started

    def run(self, stage: Stage) -> Stop:
        """Runs a stage and says why it ended; the parameters are then the mean of its tail (Adam) or its best (L-BFGS)."""
        self.listener.begin(stage.name, unit="step", total=stage.iterations)
        if self.checkpoint_state is None:
            self.best, self.best_value = [], -math.inf
        history: list[list[Tensor]] = []
        try:
            run = self._adam if stage.optimizer == "adam" else self._lbfgs
            reason = run(stage, history)
        except _NotFinite:
            reason = self._give_up()
        except OutOfTimeError:
            reason = Stop.TIME
        except KeyboardInterrupt:
            reason = Stop.INTERRUPTED
        if history:
            self.restore([torch.stack(values).mean(0) for values in zip(*history, strict=True)])
        elif self.good:
            self.restore(self.good)
        self.listener.end(stage.name)
        return reason

    # -------------------------------------------------------------- optimisers
    def _adam(self, stage: Stage, history: list[list[Tensor]]) -> Stop:
        optimizer = Adam([p.variable for p in self.free], stage.learning_rate, stage.iterations)
        visited: list[list[Tensor]] = []
        if (saved := self._resume_stage(stage)) is not None:
            visited = optimizer.resume(from_state(AdamState, saved))
            history[:] = _tail(visited)
            self.listener.advance(stage.name, len(visited))
        for _ in range(len(visited), stage.iterations):
            self._evaluate(stage)
            visited.append(self.good)
            self.listener.advance(stage.name, len(visited))
            history[:] = _tail(visited)
            self.deadline.check()
            if _settled(visited):
                return Stop.SETTLED
            optimizer.step()
            self._write()
            if self._due():
                self._save(stage, optimizer.state(visited))
        return Stop.ITERATIONS

    def _lbfgs(self, stage: Stage, history: list[list[Tensor]]) -> Stop:
        best, steps = -math.inf, 0
        start = _flatten(self.variables())
        losses: list[float] = []
        slopes: list[np.ndarray] = []
        known: list[tuple[float, np.ndarray]] = []
        if (saved := self._resume_stage(stage)) is not None:
            earlier = from_state(LBFGSState, saved)
            start = earlier.start.numpy()
            known = list(zip(earlier.losses.tolist(), earlier.slopes.numpy(), strict=True))

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal best
            again = len(losses) < len(known)
            self.restore(self._unflatten(flat))
            value, slope = known[len(losses)] if again else self._loss(stage)
            losses.append(value)
            slopes.append(slope)
            if -value > best:
                best, history[:] = -value, [self.variables()]
            self.listener.advance(stage.name, steps)
            if not again:
                self.deadline.check()
                if self._due():
                    self._save(stage, LBFGSState(*map(torch.as_tensor, (start, np.array(losses), np.stack(slopes)))))
            return value, slope

        def count(_: np.ndarray) -> None:
            nonlocal steps
            steps += 1
            self.listener.advance(stage.name, steps)

        scipy.optimize.minimize(
            loss,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=[(x - _FARTHEST, x + _FARTHEST) for x in start],  # the first steps of a line search know no scale
            options={"maxiter": stage.iterations, "ftol": _ENOUGH},
            callback=count,
        )
        return Stop.ITERATIONS if steps >= stage.iterations else Stop.CONVERGED

    def _loss(self, stage: Stage) -> tuple[float, np.ndarray]:
        """The negative of the objective, and its gradient in a row."""
        value = self._evaluate(stage)
        slopes = [torch.zeros_like(p.variable) if p.variable.grad is None else p.variable.grad for p in self.free]
        return -value, _flatten(slopes)

    def _unflatten(self, flat: np.ndarray) -> list[Tensor]:
        sizes = [p.variable.numel() for p in self.free]
        parts = torch.as_tensor(flat).split(sizes)
        return [part.view_as(p.variable).to(p.variable) for part, p in zip(parts, self.free, strict=True)]

    # -------------------------------------------------------------- checkpoint
    def resume(self, saved: StateDict) -> LearnerState:
        """Goes back to where an earlier run was; its stage goes on when it is run."""
        earlier = from_state(LearnerState, saved)
        self.model.load_state_dict(earlier.model)
        with torch.no_grad():
            for parameter, value in zip(self.free, earlier.variables, strict=True):
                parameter.variable.copy_(value)
        self.good, self.best, self.best_value = earlier.good, earlier.best, earlier.best_value
        self.records[:], self.evaluations = earlier.records, earlier.evaluations
        self.position = earlier.position
        torch.set_rng_state(earlier.random_state.cpu())
        self.checkpoint_state = saved
        return earlier

    def state(self, objective: Objective, reason: Stop | None = None) -> StateDict:
        """Variables, the model's parameters and buffers, records, torch's random state, and the objective's state."""
        state = to_state(
            LearnerState(
                records=self.records,
                evaluations=self.evaluations,
                seconds=self.seconds,
                random_state=torch.get_rng_state(),
                model=self.model.state_dict(),
                variables=self.variables(),
                good=self.good,
                best=self.best,
                best_value=self.best_value,
                position=self.position,
                reason=None if reason is None else reason.name,
            )
        )
        if objective.state_type is not None:
            state.add_section(_OBJECTIVE, to_state(objective.checkpoint_state()))
        return state

    def _resume_stage(self, stage: Stage) -> StateDict | None:
        """The optimiser's state in the stage that is to be resumed, whose objective goes on too."""
        saved, self.checkpoint_state = self.checkpoint_state, None
        if saved is None:
            return None
        resume_objective(stage.objective, saved)
        return saved.section(_OPTIMIZER)

    def _due(self) -> bool:
        return self.checkpointer is not None and self.checkpointer.due()

    def _save(self, stage: Stage, optimizer: AdamState | LBFGSState) -> None:
        assert self.checkpointer is not None
        state = self.state(stage.objective)
        state.add_section(_OPTIMIZER, to_state(optimizer))
        self.checkpointer.save(state)

    # ------------------------------------------------------------------ inside
    def evaluate(self, objective: Objective) -> float:
        """The objective per row, of a batch of models its mean; the variables get the gradient of its negative.

        Raises:
            OutOfTimeError: If that takes until after the deadline.
        """
        objective.deadline = self.deadline
        self.model.zero_grad(set_to_none=True)
        value = objective(self.model(*self.model.train_inputs), self.model.train_targets).mean()
        (-value).backward()
        for parameter in self.free:
            parameter.read_gradient()
        return float(value.detach())

    def value(self, objective: Objective) -> float:
        """The objective per row, NaN where it cannot be found.

        Raises:
            OutOfTimeError: If that takes until after the deadline.
        """
        objective.deadline = self.deadline
        try:
            return float(objective(self.model(*self.model.train_inputs), self.model.train_targets).mean().detach())
        except SolverError:
            return math.nan

    def _evaluate(self, stage: Stage) -> float:
        value = self.evaluate(stage.objective)
        gradients = [p.variable.grad for p in self.free if p.variable.grad is not None]
        if not math.isfinite(value) or not all(bool(torch.isfinite(g).all()) for g in gradients):
            raise _NotFinite
        self.good = self.variables()
        if value > self.best_value:
            self.best, self.best_value = self.good, value
        names = {p.name: p.value.reshape(-1).tolist() for p in self.free if p.variable.numel() <= 64}
        steepness = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        record = FitRecord(stage.name, self.evaluations, time.perf_counter() - self.started, value, names, steepness)
        self.evaluations += 1
        self.records.append(record)
        self.listener(record)
        return value

    def variables(self) -> list[Tensor]:
        """A copy of the optimiser's variables."""
        return [p.variable.detach().clone() for p in self.free]

    def restore(self, values: list[Tensor]) -> None:
        """Sets variables and parameters."""
        with torch.no_grad():
            for parameter, value in zip(self.free, values, strict=True):
                parameter.variable.copy_(value)
        self._write()

    def _write(self) -> None:
        for parameter in self.free:
            parameter.write()

    def _give_up(self) -> Stop:
        warnings.warn(
            f"The objective or its gradient became NaN or infinite in evaluation {self.evaluations}; the last good parameters "
            "are kept. Lower learning_rate, use float64, or put a prior on the output scale.",
            ItergpWarning,
            stacklevel=4,
        )
        return Stop.NOT_FINITE


class _NotFinite(Exception):
    """The objective or its gradient is NaN or infinite."""


def _flatten(tensors: list[Tensor]) -> np.ndarray:
    return torch.cat([t.detach().double().cpu().reshape(-1) for t in tensors]).numpy()


def _tail(visited: list[list[Tensor]]) -> list[list[Tensor]]:
    """The part of a trajectory that is averaged."""
    return visited[-max(1, round(_AVERAGED_SHARE * len(visited))) :]


def _settled(visited: list[list[Tensor]]) -> bool:
    """Whether no variable moved between the means over the last two windows."""
    if len(visited) < 2 * _WINDOW:
        return False
    last, before = visited[-_WINDOW:], visited[-2 * _WINDOW : -_WINDOW]
    moves = [
        (torch.stack(a).mean(0) - torch.stack(b).mean(0)).abs().max()
        for a, b in zip(zip(*last, strict=True), zip(*before, strict=True), strict=True)
        if a[0].numel()  # two ordered levels have no distances between cutpoints
    ]
    return max((float(move) for move in moves), default=0.0) < _SETTLED


def resume_objective(objective: Objective, saved: StateDict) -> None:
    """Gives an objective what its evaluations had left behind."""
    if objective.state_type is not None:
        objective.resume(from_state(objective.state_type, saved.section(_OBJECTIVE)))
