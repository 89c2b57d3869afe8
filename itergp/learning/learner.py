"""The optimiser's loop: stages of an objective, budgets, what is remembered."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import asdict, dataclass, field
from enum import Enum

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from itergp.errors import ItergpWarning, SolverError
from itergp.learning.parameters import FreeParameter
from itergp.learning.resuming import pack_adam, pack_list, restore_adam, unpack_list
from itergp.models import NonConjugateGP
from itergp.objectives.base import Objective
from itergp.records import FitRecord, Listener
from itergp.solvers.packing import Keeper, Packed

OPTIMIZERS = ("adam", "lbfgs")
_MODEL, _RANDOM = "model", "random_state"  # in a checkpoint
_AVERAGED_SHARE = 0.25
_SETTLED = 0.01  # largest move of a variable, between means over a window, that counts as none
_WINDOW = 5
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
    """

    name: str
    objective: Objective
    iterations: int
    learning_rate: float


@dataclass
class Learner:
    """Moves the free parameters of a model up an objective.

    Attributes:
        model: The model, in training mode.
        free: Its parameters.
        optimizer: ``"adam"`` or ``"lbfgs"``.
        deadline: When to end, by ``time.perf_counter``; None for never.
        started: When ``fit`` began.
        listener: Hears of stages and records.
        keeper: Where the state is kept between steps, or None.
        position: Where in the course of its stages learning is, for whoever resumes it.
        earlier: State of the stage that is to be resumed, or None; used once.
    """

    model: NonConjugateGP
    free: list[FreeParameter]
    optimizer: str
    deadline: float | None
    started: float
    listener: Listener
    records: list[FitRecord] = field(default_factory=list)
    good: list[Tensor] = field(default_factory=list)  # the last variables with a finite value and gradient
    evaluations: int = 0
    keeper: Keeper | None = None
    position: Packed = field(default_factory=Packed)
    earlier: Packed | None = None
    best: list[Tensor] = field(default_factory=list)  # of the present stage, by the values along its path
    best_value: float = -math.inf

    @property
    def seconds(self) -> float:
        """Since ``fit`` began."""
        return time.perf_counter() - self.started

    def run(self, stage: Stage) -> Stop:
        """Runs a stage and says why it ended; the parameters are then the mean of its tail (Adam) or its best (L-BFGS)."""
        self.listener.begin(stage.name, unit="step", total=stage.iterations)
        if self.earlier is None:
            self.best, self.best_value = [], -math.inf
        history: list[list[Tensor]] = []
        try:
            run = self._adam if self.optimizer == "adam" else self._lbfgs
            reason = run(stage, history)
        except _NotFinite:
            reason = self._give_up()
        except _OutOfTime:
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
        optimizer = torch.optim.Adam([p.variable for p in self.free], lr=stage.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, stage.iterations)
        visited: list[list[Tensor]] = []
        if (earlier := self._take_up(stage)) is not None:
            visited = restore_adam(optimizer, schedule, earlier)
            history[:] = _tail(visited)
            self.listener.advance(stage.name, len(visited))
        for _ in range(len(visited), stage.iterations):
            self._evaluate(stage)
            visited.append(self.good)
            self.listener.advance(stage.name, len(visited))
            history[:] = _tail(visited)
            self._check_time()
            if _settled(visited):
                return Stop.SETTLED
            optimizer.step()
            schedule.step()
            self._write()
            if self._due():
                self._keep(stage, pack_adam(optimizer, schedule, visited))
        return Stop.ITERATIONS

    def _lbfgs(self, stage: Stage, history: list[list[Tensor]]) -> Stop:
        best, steps = -math.inf, 0
        start = _flatten(self.variables())
        bounds = [(x - _FARTHEST, x + _FARTHEST) for x in start]  # the first steps of a line search know no scale
        if (earlier := self._take_up(stage)) is not None:  # SciPy cannot be resumed: it begins anew at the best so far
            best, steps, bounds = (earlier.values[name] for name in ("best", "steps", "bounds"))
            history[:] = [unpack_list(earlier)]
            start = _flatten(history[0])

        def closure(flat: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal best
            self.restore(self._unflatten(flat))
            value = self._evaluate(stage)
            self.listener.advance(stage.name, steps)
            if value > best:
                best, history[:] = value, [self.good]
            self._check_time()
            if self._due():
                packed = pack_list(history[0])
                packed.values.update(best=best, steps=steps, bounds=bounds)
                self._keep(stage, packed)
            slopes = [
                p.variable.new_zeros(p.variable.shape) if p.variable.grad is None else p.variable.grad
                for p in self.free
            ]
            return -value, _flatten(slopes)

        def count(_: np.ndarray) -> None:
            nonlocal steps
            steps += 1
            self.listener.advance(stage.name, steps)

        scipy.optimize.minimize(
            closure,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": max(1, stage.iterations - steps)},
            callback=count,
        )
        return Stop.ITERATIONS if steps >= stage.iterations else Stop.CONVERGED

    def _unflatten(self, flat: np.ndarray) -> list[Tensor]:
        sizes = [p.variable.numel() for p in self.free]
        parts = torch.as_tensor(flat).split(sizes)
        return [part.view_as(p.variable).to(p.variable) for part, p in zip(parts, self.free, strict=True)]

    # -------------------------------------------------------------- checkpoint
    def take_up(self, packed: Packed) -> None:
        """Goes back to where an earlier run was; its stage goes on when it is run."""
        self.model.load_state_dict(packed.part(_MODEL).arrays)
        with torch.no_grad():
            for parameter, value in zip(self.free, unpack_list(packed.part("variables")), strict=True):
                parameter.variable.copy_(value)
        self.good = unpack_list(packed.part("good"))
        self.best, self.best_value = unpack_list(packed.part("best")), packed.values["best_value"]
        self.records[:] = [FitRecord(**record) for record in packed.values["records"]]
        self.evaluations = packed.values["evaluations"]
        self.position = packed.part("position")
        torch.set_rng_state(packed.arrays[_RANDOM].cpu())
        self.earlier = packed

    def pack(self, objective: Objective) -> Packed:
        """Variables, the model's parameters and buffers, records, torch's random state, and the objective's state."""
        packed = Packed(
            {_RANDOM: torch.get_rng_state()},
            {
                "records": [asdict(record) for record in self.records],
                "evaluations": self.evaluations,
                "best_value": self.best_value,
                "seconds": self.seconds,
            },
        )
        packed.add(_MODEL, Packed({name: value.detach() for name, value in self.model.state_dict().items()}))
        packed.add("variables", pack_list(self.variables()))
        packed.add("good", pack_list(self.good))
        packed.add("best", pack_list(self.best))
        packed.add("position", self.position)
        packed.add("objective", objective.pack())
        return packed

    def _take_up(self, stage: Stage) -> Packed | None:
        earlier, self.earlier = self.earlier, None
        if earlier is None:
            return None
        stage.objective.unpack(earlier.part("objective"))
        return earlier.part("optimizer")

    def _due(self) -> bool:
        return self.keeper is not None and self.keeper.due()

    def _keep(self, stage: Stage, optimizer: Packed) -> None:
        assert self.keeper is not None
        packed = self.pack(stage.objective)
        packed.add("optimizer", optimizer)
        self.keeper.keep(packed)

    # ------------------------------------------------------------------ inside
    def evaluate(self, objective: Objective) -> float:
        """The objective per row, of a batch of models its mean; the variables get the gradient of its negative."""
        self.model.zero_grad(set_to_none=True)
        value = objective(self.model(*self.model.train_inputs), self.model.train_targets).mean()
        (-value).backward()
        for parameter in self.free:
            parameter.read_gradient()
        return float(value.detach())

    def value(self, objective: Objective) -> float:
        """The objective per row, NaN where it cannot be found."""
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

    def _check_time(self) -> None:
        if self.deadline is not None and time.perf_counter() >= self.deadline:
            raise _OutOfTime

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


class _OutOfTime(Exception):
    """The time limit was reached."""


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
    ]
    return max(float(move) for move in moves) < _SETTLED
