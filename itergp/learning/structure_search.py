"""Which structure a model should have: successive halving on subsets, judged by held-out rows."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from gpytorch.kernels import Kernel, ScaleKernel
from gpytorch.likelihoods import Likelihood
from gpytorch.means import ConstantMean, Mean, ZeroMean
from torch import Tensor

from itergp.errors import ItergpWarning
from itergp.learning.held_out import held_out_splits, judging_splits, learning_split
from itergp.learning.judging import approximation_of, held_out_densities, held_out_residuals, plugs_in
from itergp.learning.learner import Learner, Stage, Stop
from itergp.learning.parameters import free_parameters
from itergp.learning.structures import InputColumns, Structure
from itergp.likelihoods import GaussianLikelihood, as_likelihood
from itergp.likelihoods import Likelihood as LocalLikelihood
from itergp.models import GP
from itergp.models.offset_mean import OffsetMean
from itergp.models.starting_values import initialise_model
from itergp.objectives import ComputationAwareELBO, Deadline, PredictiveLogDensity
from itergp.objectives.base import Objective
from itergp.records import Listener, Listeners
from itergp.solvers import SubspaceNewton

ENOUGH_ROWS = 60  # held-out rows of fewer choose by luck
_LEARNING_ROWS, _JUDGING_ROWS = 3000, 4000  # at most: judging by many costs next to nothing
_BEST = 2  # structures that a preferred likelihood meets
_LEARNING_VALUES, _STEP_VALUES = 60_000, 16_000  # rows times latent functions
_LEAST_ROWS, _LEAST_STEPS = 500, 4
_HOPELESS = 2.0  # standard errors behind the best that end a candidate
# Share of the log-density, and of a standard error: a weak signal of few rows is one, and what learned from none has no gain.
_INVISIBLE, _LUCK = 0.003, 0.5
_TOLERANCE = 1e-3  # of modes and posteriors, in nats per row: what is compared differs by far more
_GRACE = 0.1  # share of the time of the search by which judging a candidate, and then a constant, may take longer
_STAGE = "structures"
_Split = tuple[Tensor, Tensor]  # rows to condition on, and rows that are held out
_CONSTANT = Structure("constant")  # what is learned without inputs
_REFERENCE = Structure("matern32")  # that likelihoods are compared with


@dataclass(frozen=True)
class _Round:
    """Rows of a subset, and rows times latent functions, steps of the optimiser, its rate, and how many take part at most."""

    rows: int
    values: int
    steps: int
    rate: float
    contestants: int


_BRIEF = _Round(500, 3000, 4, 0.3, 100)  # where time is short
_ROUNDS = (_Round(1000, 6000, 8, 0.3, 100), _Round(2000, 16_000, 6, 0.2, 3))
_LEVELS = (_BRIEF, *_ROUNDS)
_BRIEF_COST = 10.0  # times as long a turn of the first round takes, or nearly


@dataclass(frozen=True)
class Trial:
    """What a structure came to.

    Attributes:
        structure: Its description, with the likelihood where several compete.
        log_density: Mean log-density of held-out rows after its last round, in nats; negative infinity if it took part in none,
            or time was up before it was judged.
        behind: How far it was then behind the best of those that took part as long or longer, in nats per row.
        standard_error: Of that difference; 0 for the best itself.
        rounds: In how many it took part.
        seconds: That these took.
        course: How far it was behind the best of each round that it was judged in, and the standard error, one after another.
    """

    structure: str
    log_density: float
    behind: float
    standard_error: float
    rounds: int
    seconds: float
    course: tuple[tuple[float, float], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Comparison:
    """Structures that were compared on held-out rows, and the one that was chosen.

    Attributes:
        trials: One per structure, in their order.
        chosen: Description of the best of the last round; of few rows, of the simplest that is no worse by more than one
            standard error.
        structure: That one.
        likelihood: Number of the likelihood chosen: 0 for the model's own, then those that competed with it, in their order.
        num_held_out: Rows by which the one chosen was judged in its last round.
        seconds: That the comparison took.
        interrupted: Whether Ctrl-C ended it.
        gain: By how much held-out rows are predicted better than by a constant, in nats per row; NaN if the mean is none,
            or time was up.
        gain_error: Standard error of that.
    """

    trials: tuple[Trial, ...]
    chosen: str
    structure: Structure
    likelihood: int
    num_held_out: int
    seconds: float
    interrupted: bool = False
    gain: float = math.nan
    gain_error: float = math.nan

    @property
    def found_something(self) -> bool:
        """Whether held-out rows are better predicted with the inputs than by a constant, visibly and not by mere luck."""
        reached = next(trial.log_density for trial in self.trials if trial.structure == self.chosen)
        return not self.gain <= max(_INVISIBLE * abs(reached), _LUCK * self.gain_error)

    def __str__(self) -> str:
        """A table with a line per structure."""
        width = max(len("structure"), *(len(trial.structure) for trial in self.trials))
        lines = [f"{'structure':<{width}}  log-density  behind the best    rounds  seconds"]
        for trial in self.trials:
            mark = "  chosen" if trial.structure == self.chosen else ""
            lines.append(
                f"{trial.structure:<{width}}  {trial.log_density:11.4f}  {trial.behind:7.4f} ± {trial.standard_error:.4f}"
                f"  {trial.rounds:7d}  {trial.seconds:7.2f}{mark}"
            )
        return "\n".join(lines)


@dataclass
class _Contestant:
    """A structure with a likelihood, its model of some rows, and the log-densities of held-out rows that it gave."""

    structure: Structure
    likelihood: int  # its number
    shown: str
    model: GP | None = None
    densities: dict[int, Tensor] = field(default_factory=dict)  # by the number of the round
    kernel: Kernel | None = None  # learned with another likelihood
    rounds: int = 0
    seconds: float = 0.0

    @property
    def level(self) -> int:
        """Number of the last round that it was judged in; -1 before."""
        return max(self.densities, default=-1)

    @property
    def mean(self) -> float:
        """Mean held-out log-density; negative infinity where it is not known."""
        value = float(self.densities[self.level].mean()) if self.densities else -math.inf
        return value if math.isfinite(value) else -math.inf

    @property
    def size(self) -> tuple[int, int]:
        """How many latent functions it has, and how many numbers it learns."""
        assert self.model is not None
        learned = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        return self.model.calculus.num_latents, learned

    def behind(self, other: _Contestant, level: int | None = None) -> tuple[float, float]:
        """By how much another is better, by a round or the last of both, and the standard error of that."""
        if self is other:
            return 0.0, 0.0
        level = max(self.densities.keys() & other.densities.keys(), default=-1) if level is None else level
        if level < 0 or self.mean == -math.inf:
            return math.inf, 0.0
        difference = other.densities[level] - self.densities[level]
        return float(difference.mean()), float(difference.std(correction=0)) / math.sqrt(len(difference))


@dataclass
class StructureSearch:
    """Chooses among structures for a model, and among likelihoods.

    Every candidate learns on subsets, all of them briefly, then those that are not clearly behind for longer. The best by
    nearly every row is chosen; of few rows, which are not judged again, the simplest within one standard error of the best:
    that with the fewest latent functions and learned numbers, and of equals the best.
    Learning goes on from what was learned before. Other likelihoods are tried with one structure; the one chosen then meets
    the best structures.

    Attributes:
        model: Whose data, likelihood, mean and solver the candidates have.
        structures: The candidates.
        likelihoods: Others than the model's for the same targets, which compete too.
        columns: Of the inputs.
        seed: Of the rows drawn.
        deadline: When to end: a candidate that is not judged by then is none. The first stays in any case.
        listener: Hears how many turns are over.
        outputscale: Prior variance that candidates start from.
    """

    model: GP
    structures: Sequence[Structure]
    likelihoods: Sequence[Likelihood]
    columns: InputColumns
    seed: int
    deadline: Deadline
    listener: Listener
    outputscale: float
    _interrupted: bool = field(default=False, init=False)
    _started: float = field(default=0.0, init=False)
    _train: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long), init=False)  # rows to learn from
    _judging: float = field(default=0.0, init=False)  # seconds that the last candidate took to be judged by a split

    def run(self) -> tuple[GP, Comparison]:
        """A model of some of the rows, with the structure and the likelihood chosen and what it learned, and the comparison."""
        started, observations = time.perf_counter(), self.model.observations
        self._started = started
        split = learning_split(observations, most_to_learn=self._most, most_to_judge=_JUDGING_ROWS, seed=self.seed)
        self._train = split[0]
        own = [self._contestant(structure, 0) for structure in self.structures]
        tried = self._first_turns(own, split)
        finalists = self._surviving(tried, _ROUNDS[1].contestants)
        splits = [split]
        if len(finalists) > 1:
            splits = judging_splits(observations, most_to_learn=self._most, seed=self.seed) or splits
            self._round(sorted(finalists, key=_promise), splits, _ROUNDS[1])
        # Where nearly every row judges, the best is the best of any seed; of few rows, the simplest that could be.
        by_every_row = splits[-1] is not split and all(one.level == _LEVELS.index(_ROUNDS[1]) for one in finalists)
        chosen = _best(finalists) if by_every_row else _simplest(finalists)
        tried += [one for one in own if not one.rounds]
        trials = tuple(_trial(one, tried) for one in tried)
        seconds, found = time.perf_counter() - started, (chosen.shown, chosen.structure, chosen.likelihood)
        assert chosen.model is not None
        splits = {_LEVELS.index(_BRIEF): [_part(split)], _LEVELS.index(_ROUNDS[1]): splits}.get(chosen.level, [split])
        gain = self._gain(chosen, splits, self._later(2.0))
        held_out = sum(len(rows) for _, rows in splits)
        return chosen.model, Comparison(trials, *found, held_out, seconds, self._interrupted, *gain)

    # ------------------------------------------------------------------ inside
    def _first_turns(self, own: list[_Contestant], split: _Split) -> list[_Contestant]:
        """Those that had a turn, of the structures with the model's own likelihood, and of the others with the one preferred.

        Where time may not do for a turn each, all have a brief one, and the most promising go on while there is some left.
        """
        reference = next((one for one in own if one.structure == _REFERENCE), own[0])
        others = [self._contestant(reference.structure, 1 + number) for number in range(len(self.likelihoods))]
        brief = self._is_short(reference, [_part(split)], len(own) + len(others))
        splits, phase = ([_part(split)], _BRIEF) if brief else ([split], _ROUNDS[0])
        # Likelihoods first: a wrong one costs more than any kernel, and time may end the round.
        turns = [reference, *others, *(one for one in own if one is not reference)]
        waiting = [one for one in turns if not one.rounds]
        dear = [one for one in others if as_likelihood(self._competing[one.likelihood]).varying_noise]
        self._round([one for one in waiting if one not in dear], splits, phase)
        if dear and self._noise_varies(reference):
            self._round(dear, splits, phase)
        tried = [one for one in (*own, *others) if one.rounds]
        preferred = _simplest([reference, *others]) if reference.rounds else own[0]
        if preferred in others:  # meets the structures that did best with the model's own likelihood
            met = [self._with_likelihood(one, preferred) for one in self._surviving(own, _BEST) if one is not reference]
            self._round(met, splits, phase)
            tried += [one for one in met if one.rounds]
        if brief:
            self._round(sorted(self._surviving(tried, len(tried)), key=_promise), [split], _ROUNDS[0])
        return tried

    def _noise_varies(self, reference: _Contestant) -> bool:
        """Whether squared residuals of held-out rows depend on the inputs, by more than a standard error of what that gains.

        Cubic roots of them are nearly Gaussian where the noise is (Wilson and Hilferty 1931), and targets like any others.
        """
        if reference.model is None or reference.model.calculus.varying_noise or self._over():
            return False
        try:
            model = self._model_of_residuals(reference.model)
            if model is None:
                return False
            search = replace(self, model=model, structures=[_REFERENCE], likelihoods=(), listener=Listeners())
            _, comparison = search.run()
        except KeyboardInterrupt:
            self._interrupted = True
            return False
        self._interrupted |= comparison.interrupted
        return comparison.gain > comparison.gain_error

    def _model_of_residuals(self, model: GP) -> GP | None:
        """Of their cubic roots, standardised, as functions of the inputs; None if they are unknown, or say nothing at all."""
        splits, known = held_out_splits(self.model.observations, num_rows=self._most, seed=self.seed), []
        for split in splits:
            residuals, interrupted = held_out_residuals(model, self.model, *split, self.deadline)
            self._interrupted |= interrupted
            if residuals is None or self._over():
                return None
            known.append(residuals)
        rows, roots = torch.cat([held_out for _, held_out in splits]), torch.cat(known).pow(1.0 / 3.0)
        spread = roots.std()
        if not 0.0 < float(spread) < math.inf:  # a variance may be infinite
            return None
        kernel, targets = _REFERENCE.make_kernel(self.columns, torch.Size([])), (roots - roots.mean()) / spread
        return GP(self.model.train_inputs[0][rows], targets, GaussianLikelihood(), mean=ConstantMean(), kernel=kernel)

    def _is_short(self, first: _Contestant, splits: list[_Split], number: int) -> bool:
        """Whether time is limited, and a brief turn of the first says that so many longer ones would not fit."""
        if self.deadline.left() is None:
            return False
        self._round([first], splits, _BRIEF)
        left = self.deadline.left()
        if left is not None and number * _BRIEF_COST * first.seconds > left:
            return True
        first.model, first.rounds, first.seconds = None, 0, 0.0  # as without a limit
        first.densities.clear()
        return False

    def _gain(self, chosen: _Contestant, splits: list[_Split], deadline: Deadline) -> tuple[float, float]:
        """By how much held-out rows are predicted better than by a constant, and its error.

        NaN if the mean is none, or time is up.
        """
        if not isinstance(self.model.mean_module, (ConstantMean, ZeroMean)) or not chosen.densities:
            return math.nan, math.nan
        constant = self._contestant(_CONSTANT, chosen.likelihood)
        plain = replace(self, columns=InputColumns.plain(self.columns.num_columns))  # groups are inputs too
        few = [(train[:_LEAST_ROWS], held_out) for train, held_out in splits]
        model = plain._make(constant, few[0][0])
        for part in (model.mean_module, model.covar_module):  # conditioning finds the constant
            part.requires_grad_(False)
        if free_parameters(model):  # a noise as it starts would make any model look good
            for phase in _ROUNDS:
                if plain._learn(model, phase, self.seed, deadline) is Stop.TIME:
                    return math.nan, math.nan
        densities = plain._densities(model, few, deadline)
        if densities is None:
            return math.nan, math.nan
        constant.densities[chosen.level] = densities
        return constant.behind(chosen)

    def _contestant(self, structure: Structure, likelihood: int) -> _Contestant:
        names = [type(one).__name__ for one in self._competing]
        name = names[likelihood] if names.count(names[likelihood]) == 1 else f"{names[likelihood]} {1 + likelihood}"
        return _Contestant(structure, likelihood, f"{structure}, {name}" if self.likelihoods else str(structure))

    @property
    def _most(self) -> int:
        """Rows to learn from."""
        return max(_LEAST_ROWS, min(_LEARNING_ROWS, _LEARNING_VALUES // self.model.calculus.num_latents))

    @property
    def _competing(self) -> tuple[Likelihood, ...]:
        """Likelihoods by their numbers."""
        return self.model.likelihood, *self.likelihoods

    def _with_likelihood(self, contestant: _Contestant, preferred: _Contestant) -> _Contestant:
        """A structure with the likelihood that was preferred, and the kernel that it learned with another."""
        made = self._contestant(contestant.structure, preferred.likelihood)
        assert contestant.model is not None
        made.kernel = contestant.model.covar_module
        return made

    def _round(self, contestants: list[_Contestant], splits: list[_Split], phase: _Round) -> None:
        """A turn for each contestant; in any case for the first of all, without which there is nothing to choose from."""
        self.listener.begin(_STAGE, unit="candidate", total=len(contestants))
        for number, contestant in enumerate(contestants):
            first = number == 0 and not contestant.rounds and phase in _LEVELS[:2] and contestant.kernel is None
            if self._over() and not first:
                break
            try:
                self._turn(contestant, splits, phase, first)
            except KeyboardInterrupt:
                if first:
                    raise
                self._interrupted = True
                break
            self.listener.advance(_STAGE, number + 1)
        self.listener.end(_STAGE)

    def _later(self, times: float) -> Deadline:
        """The deadline, with so many times the grace after it."""
        return Deadline(self.deadline.at + times * _GRACE * (self.deadline.at - self._started))

    def _over(self) -> bool:
        return self._interrupted or self.deadline.over

    def _make(self, contestant: _Contestant, rows: Tensor) -> GP:
        """A model of some rows."""
        model, x, structure = self.model, self.model.train_inputs[0][rows], contestant.structure
        likelihood = copy.deepcopy(self._competing[contestant.likelihood])
        calculus = as_likelihood(likelihood)
        shape, mean = model.covar_module.batch_shape, self._make_mean(contestant, calculus, rows)
        if calculus.num_latents != model.calculus.num_latents:
            shape = torch.Size([calculus.num_latents] if calculus.distinct_latents else [])
        kernel = structure.make_kernel(self.columns, shape)
        scales = [module for module in kernel.modules() if isinstance(module, ScaleKernel)]
        for scale in scales:
            scale.outputscale = self.outputscale / len(scales)
        made = GP(
            x,
            model.train_targets[rows],
            likelihood,
            mean=mean,
            kernel=kernel,
            input_transform=structure.make_transform(x, self.columns),
            solver=SubspaceNewton(covariance_rank=0 if plugs_in(calculus) else None, tolerance=_TOLERANCE),
            memory_budget=model.memory_budget,
            sample_weight=None if model.sample_weight is None else model.sample_weight[rows],
            missing_targets=model.missing_targets,
        )
        initialise_model(made)
        if contestant.kernel is not None and contestant.kernel.batch_shape == shape:
            kernel.load_state_dict(contestant.kernel.state_dict())
        return made

    def _make_mean(self, contestant: _Contestant, calculus: LocalLikelihood, rows: Tensor) -> Mean | None:
        """The model's, or where another likelihood has another idea of it, a constant that starts there; None for zeros."""
        mean = copy.deepcopy(self.model.mean_module)
        if isinstance(mean, OffsetMean) and calculus.num_latents != self.model.calculus.num_latents:
            return mean.for_latents(calculus.num_latents)
        if isinstance(mean, OffsetMean) or contestant.likelihood == 0 or not any(True for _ in mean.parameters()):
            return mean
        start = calculus.typical_latents(calculus.validate_targets(self.model.train_targets[rows]))
        if start is None:
            return mean if calculus.num_latents == self.model.calculus.num_latents else None
        made = ConstantMean(batch_shape=torch.Size([len(start)] if len(start) > 1 else []))
        made.constant = start if len(start) > 1 else start[0]
        return made

    def _turn(self, contestant: _Contestant, splits: list[_Split], phase: _Round, first: bool) -> None:
        """Lets a contestant learn, and judges it; one for which there is no time had no turn, but for the first of all."""
        begun = time.perf_counter()
        if contestant.model is None:
            contestant.model = self._make(contestant, self._train)
        in_time = Deadline(self.deadline.at - self._judging * len(splits))  # to be judged
        self._learn(contestant.model, phase, self.seed + 10 * contestant.rounds, in_time)
        learned = time.perf_counter()
        densities = self._densities(contestant.model, splits, self._later(1.0))
        ended = time.perf_counter()
        self._judging = (ended - learned) / len(splits)
        contestant.seconds += ended - begun
        if densities is None and not first:
            return
        if densities is not None:
            contestant.densities[_LEVELS.index(phase)] = densities
        contestant.rounds += 1

    def _learn(self, model: GP, phase: _Round, seed: int, deadline: Deadline) -> Stop:
        """Steps of the optimiser, as far as time allows; says why they ended."""
        objective = _objective(model, min(_rows_of(phase, model), model.train_targets.shape[0]), seed)
        model.train()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ItergpWarning)  # what becomes of a candidate shows in its density
            learner = Learner(model, free_parameters(model), deadline, time.perf_counter(), Listeners())
            reason = learner.run(Stage(_STAGE, objective, _steps_of(phase, model), phase.rate))
        self._interrupted |= reason is Stop.INTERRUPTED
        model.eval()
        return reason

    def _densities(self, model: GP, splits: list[_Split], deadline: Deadline) -> Tensor | None:
        """Log-densities of held-out rows, float64, of all splits in a row; None if time is up before."""
        found = []
        for split in splits:
            densities, interrupted = held_out_densities(model, self.model, *split, deadline)
            self._interrupted |= interrupted
            if densities is None:
                return None
            found.append(densities)
        return torch.cat(found)

    @staticmethod
    def _surviving(contestants: list[_Contestant], most: int) -> list[_Contestant]:
        """The best, and those that are not clearly behind, at most so many, in their order."""
        tried = [one for one in contestants if one.rounds]
        if not tried:
            return []
        best = _best(tried)
        near = [one for one in tried if one is best or one.behind(best)[0] <= _HOPELESS * one.behind(best)[1]]
        kept = sorted(near, key=_promise)[:most]
        return [one for one in contestants if one in kept]


def _objective(model: GP, num_rows: int, seed: int) -> Objective:
    """The density of held-out rows, by the posterior that judges; or the bound, where no mode begins one and values are few."""
    likelihood = model.calculus
    if not likelihood.bounded_density:
        bound = ComputationAwareELBO(model.likelihood, model, initialise_kernel=False)
        if bound.by_dense_matrices:
            return bound
    predictive = "plug-in" if plugs_in(likelihood) else approximation_of(likelihood)
    options: dict[str, Any] = {
        "num_rows": num_rows,
        "renew_every": 1,
        "tolerance": _TOLERANCE,
        "seed": seed,
        "initialise_kernel": False,
    }
    return PredictiveLogDensity(model.likelihood, model, predictive=predictive, **options)


def _rows_of(phase: _Round, model: GP) -> int:
    """Rows of a subset: fewer of many latent functions."""
    return max(min(_LEAST_ROWS, phase.rows), min(phase.rows, phase.values // model.calculus.num_latents))


def _steps_of(phase: _Round, model: GP) -> int:
    """Steps of the optimiser: fewer of so many latent functions that the least rows are many values."""
    values = min(_rows_of(phase, model), model.train_targets.shape[0]) * model.calculus.num_latents
    return max(min(_LEAST_STEPS, phase.steps), min(phase.steps, phase.steps * _STEP_VALUES // values))


def _best(contestants: list[_Contestant]) -> _Contestant:
    """The best of those that came farthest: where time ended a round, the most promising had their turn."""
    farthest = max(one.level for one in contestants)
    return max((one for one in contestants if one.level == farthest), key=lambda one: one.mean)


def _promise(contestant: _Contestant) -> tuple[int, float]:
    """By which the most promising are sorted first."""
    return -contestant.level, -contestant.mean


def _part(split: _Split) -> _Split:
    """Some of the rows of a split."""
    return split[0][: _BRIEF.rows], split[1][: _BRIEF.rows]


def _simplest(contestants: list[_Contestant]) -> _Contestant:
    """Of those within one standard error of the best, the best of the fewest latent functions and learned numbers."""
    best = _best(contestants)
    near = [best]
    for one in contestants:
        behind, error = one.behind(best)
        if one is not best and behind <= error:
            near.append(one)
    return min(near, key=lambda one: (*one.size, *_promise(one)))


def _trial(contestant: _Contestant, tried: list[_Contestant]) -> Trial:
    behind, error = contestant.behind(_best([one for one in tried if one.rounds >= contestant.rounds]))
    course = []
    for level in sorted(contestant.densities):
        of_round = [one for one in tried if level in one.densities]
        course.append(contestant.behind(max(of_round, key=lambda one: float(one.densities[level].mean())), level))
    rounds, seconds = contestant.rounds, contestant.seconds
    return Trial(contestant.shown, contestant.mean, behind, error, rounds, seconds, tuple(course))
