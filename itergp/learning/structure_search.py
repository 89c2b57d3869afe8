"""Which structure a model should have: successive halving on subsets, judged by held-out rows."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from gpytorch.means import Mean
from torch import Tensor

from itergp.errors import InputError, ItergpWarning, SolverError
from itergp.learning.learner import Learner, Stage
from itergp.learning.parameters import free_parameters
from itergp.learning.structures import InputColumns, Structure
from itergp.likelihoods import Observations
from itergp.models import GP
from itergp.models.starting_values import initialise_model
from itergp.objectives import PredictiveLogDensity
from itergp.operators import make_operator
from itergp.operators.kernel_blocks import restricted
from itergp.posterior.precision import cross_multiply
from itergp.records import Listener
from itergp.solvers import solve

_MOST_ROWS = 4000  # rows drawn: three quarters to learn from, a quarter to judge by
_FEW_ROWS = 1000  # up to here rows are held out in several ways, for one way says little
_WAYS = 2
_FIRST_ROWS, _SECOND_ROWS = 1000, 2000
_FIRST_STEPS, _SECOND_STEPS = 10, 10
_RATE = 0.3
_SURVIVORS = 3
_HOPELESS = 2.0  # standard errors behind the best that end a candidate


@dataclass(frozen=True)
class Trial:
    """What a structure came to.

    Attributes:
        structure: Its description.
        log_density: Mean log-density of held-out rows, in nats, after its last round.
        behind: How far it was behind the best of that round, in nats per row.
        standard_error: Of that difference; 0 of the best itself.
        rounds: In how many it took part.
        seconds: That it took.
    """

    structure: str
    log_density: float
    behind: float
    standard_error: float
    rounds: int
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Structures that were compared on held-out rows, and the one that was chosen.

    Attributes:
        trials: One per structure, simple ones first.
        chosen: Description of the one that was chosen: the simplest that is no worse than the best by more than one
            standard error.
        num_held_out: Rows by which they were judged.
        seconds: That the comparison took.
    """

    trials: tuple[Trial, ...]
    chosen: str
    num_held_out: int
    seconds: float

    def __str__(self) -> str:
        width = max(len(trial.structure) for trial in self.trials)
        lines = [f"{'structure':<{width}}  log-density  behind the best   rounds  seconds"]
        for trial in self.trials:
            mark = "  chosen" if trial.structure == self.chosen else ""
            lines.append(
                f"{trial.structure:<{width}}  {trial.log_density:11.4f}  {trial.behind:7.4f} ± {trial.standard_error:.4f}"
                f"  {trial.rounds:7d}  {trial.seconds:7.2f}{mark}"
            )
        return "\n".join(lines)


@dataclass
class _Contestant:
    """A structure, its models, one for each way of holding rows out, and what these gave."""

    structure: Structure
    models: list[GP]
    densities: Tensor | None = None
    rounds: int = 0
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Mean held-out log-density; negative infinity where it could not be found."""
        if self.densities is None:
            return -math.inf
        value = float(self.densities.mean())
        return value if math.isfinite(value) else -math.inf

    def behind(self, other: _Contestant) -> tuple[float, float]:
        """By how much another is better, and the standard error of that."""
        if self is other or self.densities is None or other.densities is None:
            return 0.0 if self is other else math.inf, 0.0
        difference = other.densities - self.densities
        return float(difference.mean()), float(difference.std(correction=0)) / math.sqrt(len(difference))


@dataclass(frozen=True)
class StructureSearch:
    """Chooses among structures for a model.

    Attributes:
        model: Whose data, likelihood, mean and solver the candidates have.
        structures: The candidates, simple ones first.
        columns: Of the inputs.
        seed: Of the rows drawn.
        deadline: When to end, by ``time.perf_counter``; None for never. The first round of the first structure is always run.
        listener: Hears of learning.
    """

    model: GP
    structures: Sequence[Structure]
    columns: InputColumns
    seed: int
    deadline: float | None
    listener: Listener
    started: float = field(default_factory=time.perf_counter)

    def run(self) -> tuple[GP, Structure, Comparison]:
        """A model of some of the rows with the structure chosen and what it learned, that structure, and the comparison."""
        splits = self._splits()
        contestants = [
            _Contestant(structure, [self._make(structure, train) for train, _ in splits]) for structure in self.structures
        ]
        self._round(contestants, splits, _FIRST_ROWS, _FIRST_STEPS, _RATE)
        survivors = self._surviving(contestants)
        if len(survivors) > 1 and not self._late():
            self._round(survivors, splits, _SECOND_ROWS, _SECOND_STEPS, 0.5 * _RATE)
        chosen = self._choose(survivors)
        best = max(survivors, key=lambda one: one.mean)
        leaders = {id(one): best for one in survivors}
        first = max(contestants, key=lambda one: one.mean)
        trials = tuple(_trial(one, leaders.get(id(one), first)) for one in contestants)
        held_out = sum(len(rows) for _, rows in splits)
        seconds = time.perf_counter() - self.started
        return chosen.models[0], chosen.structure, Comparison(trials, str(chosen.structure), held_out, seconds)

    # ------------------------------------------------------------------ inside
    def _late(self) -> bool:
        return self.deadline is not None and time.perf_counter() >= self.deadline

    def _splits(self) -> list[tuple[Tensor, Tensor]]:
        """Rows to learn from, and rows held out."""
        observations, found = self.model.observations, []
        for way in range(_WAYS if observations.num_rows <= _FEW_ROWS else 1):
            generator = torch.Generator().manual_seed(self.seed + way)
            order = torch.randperm(observations.num_rows, generator=generator).to(observations.targets.device)
            if observations.sample_weight is not None:
                order = order[observations.sample_weight[order] > 0]
            order = order[:_MOST_ROWS]
            count = max(1, len(order) // 4)
            found.append((order[count:], order[:count]))
        return found

    def _make(self, structure: Structure, rows: Tensor) -> GP:
        """A model of some rows with a structure."""
        model, x = self.model, self.model.train_inputs[0][rows]
        likelihood = copy.deepcopy(model.likelihood)
        latents = model.calculus.num_latents
        made = GP(
            x,
            model.train_targets[rows],
            likelihood,
            mean=copy.deepcopy(model.mean_module),
            kernel=structure.make_kernel(self.columns),
            input_transform=structure.make_transform(x, self.columns),
            solver=model.solver,
            approximation=model.approximation,
            memory_budget=model.memory_budget,
            sample_weight=None if model.sample_weight is None else model.sample_weight[rows],
            missing_targets=model.missing_targets,
        )
        initialise_model(made)
        return made

    def _round(
        self, contestants: list[_Contestant], splits: list[tuple[Tensor, Tensor]], rows: int, steps: int, rate: float
    ) -> None:
        """Lets contestants learn, and judges them."""
        for contestant in contestants:
            if self._late() and contestant is not contestants[0]:
                break
            begun, found = time.perf_counter(), []
            for model, (_, held_out) in zip(contestant.models, splits, strict=True):
                self._learn(model, rows, steps, rate, contestant)
                found.append(self._densities(model, held_out))
            contestant.densities = torch.cat(found)
            contestant.rounds += 1
            contestant.seconds += time.perf_counter() - begun

    def _learn(self, model: GP, rows: int, steps: int, rate: float, contestant: _Contestant) -> None:
        free = free_parameters(model)
        integrate = any(parameter.requires_grad for parameter in model.observations.likelihood.parameters())
        objective = PredictiveLogDensity(
            model.likelihood,
            model,
            predictive="variational" if integrate else "plug-in",
            num_rows=min(rows, model.train_targets.shape[0]),
            renew_every=5,
            tolerance=1e-3,
            seed=self.seed + 10 * contestant.rounds,
            initialise_kernel=False,
        )
        model.train()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ItergpWarning)
            learner = Learner(model, free, "adam", self.deadline, self.started, self.listener)
            learner.run(Stage("structures", objective, steps, rate))
        model.eval()

    def _densities(self, model: GP, held_out: Tensor) -> Tensor:
        """Log-densities of held-out rows ``(M,)`` at the mode, float64."""
        with torch.no_grad():
            prior = model.prior_at(model.held_data.inputs)
            validation = model.prior_at((self.model.train_inputs[0][held_out],))
            operator = make_operator(
                prior.kernel, prior.features, num_kernels=prior.num_kernels, kind="auto", memory_budget=model.memory_budget
            )
            unseen = self._unseen(model, held_out)
            solver = model.solver.without_covariance().loosened(10.0)
            try:
                solution = solve(operator, prior.mean, model.observations, solver, approximation="laplace")
            except SolverError:
                return torch.full((len(held_out),), -torch.inf, dtype=torch.float64)
            across, weights = restricted(operator, solution.support), solution.weights_on_support().unsqueeze(-1)
            mean = validation.mean + cross_multiply(across, validation.features, weights)[..., 0]
            return unseen.log_density(mean).double()

    def _unseen(self, model: GP, rows: Tensor) -> Observations:
        """Held-out rows under a candidate's likelihood."""
        ours = self.model.observations.take(rows)
        return Observations(model.calculus, ours.targets, ours.sample_weight)

    def _surviving(self, contestants: list[_Contestant]) -> list[_Contestant]:
        """The best, and those that are not hopelessly behind, at most three, simple ones first."""
        best = max(contestants, key=lambda one: one.mean)
        near = []
        for one in contestants:
            behind, error = one.behind(best)
            if one is best or behind <= _HOPELESS * error:
                near.append(one)
        near = sorted(near, key=lambda one: -one.mean)[:_SURVIVORS]
        return [one for one in contestants if one in near]

    def _choose(self, contestants: list[_Contestant]) -> _Contestant:
        """The simplest within one standard error of the best."""
        best = max(contestants, key=lambda one: one.mean)
        for one in contestants:
            behind, error = one.behind(best)
            if behind <= error:
                return one
        return best


def _trial(contestant: _Contestant, best: _Contestant) -> Trial:
    behind, error = contestant.behind(best)
    return Trial(
        str(contestant.structure), contestant.mean, behind, error, contestant.rounds, round(contestant.seconds, 3)
    )
