"""``fit``: learn hyperparameters, choose the predictive distribution, then condition on all rows."""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gpytorch
import torch
from gpytorch.kernels import ScaleKernel
from torch import Tensor

from itergp.checks import require_positive
from itergp.diagnostics import ProgressBar, Trace
from itergp.errors import InputError, ItergpWarning, SolverError
from itergp.learning.calibration import Calibration, calibrate_predictions
from itergp.learning.held_out import num_weighted
from itergp.learning.humility import limit_lengthscales
from itergp.learning.judging import approximation_of, plugs_in
from itergp.learning.learner import OPTIMIZERS, Learner, Position, Stage, Stop, resume_objective
from itergp.learning.parameters import FreeParameter, free_parameters
from itergp.learning.resuming import open_checkpointer, save_learned
from itergp.learning.structure_search import ENOUGH_ROWS, Comparison, StructureSearch
from itergp.learning.structures import InputColumns, Structure, candidates
from itergp.models import GP, NonConjugateGP
from itergp.models.batches import refuse_without_data
from itergp.models.run_options import RunOptions
from itergp.models.starting_values import INITIAL_OUTPUTSCALE, initialise_model
from itergp.objectives import ComputationAwareELBO, Deadline, OutOfTimeError, PredictiveLogDensity
from itergp.objectives.base import Objective, log_density_of_priors
from itergp.operators import own_rows
from itergp.parallel import RowPartition
from itergp.persistence import StateDict
from itergp.persistence.checkpoint import CheckpointSection
from itergp.records import FitRecord, LearningTrace, Listeners
from itergp.solvers import Reason, Solution

_APPROACH = 10  # steps of Adam before L-BFGS
_FEW_ROWS = 500  # up to here the bound on the evidence of all rows beats the density of some of them
_SUBSET_ROWS = 1000
_REFINEMENT_ROWS, _REFINEMENT_VALUES = 3000, 48_000  # rows, and rows times latent functions
# Rows times latent functions squared, as a search space grows with their number: 500 rows of 50 classes.
_REFINEMENT_COST, _LEAST_ROWS = 1_250_000, 500
_BATCH_ROWS = 4096  # of the bound when the posterior has a support and rows are many
_MANY_ROWS = 20_000  # from here more data have more to say about hyperparameters than a subset of that size can hold
_SUBSET_SHARE = 0.4  # of the iterations
_SEARCHED_SHARE = 0.5  # of them that choosing a structure stands for
# Steps that share a split. With one for five, what was learned hung on the last two: of phoneme 1 to 3 % of the NLL, with one
# each 0.5 to 1 %, at 1.4 times the cost, which fewer steps pay for where choosing a structure has begun to learn.
_RENEW_EVERY = 5
_SPREAD = 1.5  # standard deviation of the random starts, in the optimiser's variables
# Of a time limit, when to be over: choosing a structure, learning, and comparing what was learned with where it began. What is
# then left until the last share is the predictive distribution's: one that is not tempered can lose more than any step gains
# (departures, 2,000 rows: -2.38, tempered -1.84). The last share is what conditioning always has.
_SEARCH_SHARE, _LEARNING_SHARE, _COMPARING_SHARE, _LAST_SHARE = 0.33, 0.6, 0.67, 0.2
_REFINEMENT_RATE = 0.7  # of the learning rate
_FIRST_ROWS = 400  # rows that choose where time may end before more of them have
_COLLAPSED, _DIVERGED = 1e-3, 1e5
_NO_NOISE = 1e-6  # a noise variance that nobody misses
_NEAR = 0.05  # share of a bound above it: nearer, an objective gains too little for L-BFGS to go on
_VISIBLE = 0.05  # share of the objective whose loss is worth a warning
_MARGIN = 1e-3  # share of the objective by which a point of the path must beat the mean of its tail
_LOOK_FACTOR = 100.0  # times the tolerance, for a look at the posterior on the way


@dataclass(frozen=True)
class FitResult:
    """What ``fit`` did.

    Attributes:
        solution: The posterior of all rows at the learned hyperparameters.
        records: The trajectory.
        reason: Why learning stopped.
        seconds: Time by stage: of learning, ``"calibrate"`` and ``"condition"``.
        initialised: Names of hyperparameters that were at their default and got a starting value from the data.
        calibration: The predictive distribution chosen on held-out rows, or None.
        comparison: The structures that competed, or None.
    """

    solution: Solution
    records: list[FitRecord] = field(repr=False)
    reason: str
    seconds: dict[str, float]
    initialised: list[str]
    calibration: Calibration | None
    comparison: Comparison | None = None

    @property
    def trace(self) -> Trace:
        """What happened, learning and conditioning: ``trace.plot()``, ``trace.explain()``."""
        return Trace.of(self.solution.trace)


def fit(
    model: NonConjugateGP,
    *,
    objective: str | Objective = "auto",
    optimizer: str = "auto",
    max_iterations: int = 50,
    learning_rate: float = 0.2,
    max_rows: int | Literal["auto"] | None = "auto",
    num_restarts: int = 0,
    calibrate: bool = True,
    structures: Literal["auto"] | Sequence[Structure] | None = None,
    likelihoods: Sequence[gpytorch.likelihoods.Likelihood] = (),
    columns: InputColumns | None = None,
    time_limit: float | None = None,
    initialise_kernel: bool = True,
    seed: int = 0,
    progress: bool | None = None,
    callback: Callable[[FitRecord], None] | None = None,
    on_posterior: Callable[[Solution], None] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 30.0,
) -> FitResult:
    """Learns every trainable parameter of a model, chooses its predictive distribution, then conditions on all rows.

    The held-out objective is maximised in two stages: on random subsets of 1,000 rows, then on random subsets of
    ``max_rows``. Positive parameters move by their logarithm; with Adam the learning rate falls to zero along a cosine, a
    stage ends early when the parameters have settled, and the last quarter of its trajectory is averaged. A NaN ends
    learning with a warning and the last good parameters. Ctrl-C ends it with those so far.

    Args:
        model: The model; afterwards in evaluation mode, conditioned.
        objective: ``"predictive"``, the density of held-out rows on random subsets; ``"elbo"``, the bound on all rows, its
            likelihood term from random batches of rows when they are many and the solver is ``LinearTimeNewton``;
            ``"auto"``, the former beyond 500 rows where the likelihood allows it; or an objective of the model.
        optimizer: ``"adam"``; ``"lbfgs"``, on one fixed split per stage; ``"auto"``, L-BFGS for the bound of so few rows that
            their posterior is exact, and else Adam.
        max_iterations: Steps of the optimiser, all stages together; where a structure is chosen, half of them follow.
        learning_rate: Of Adam, at the start: relative change per step of a positive parameter.
        max_rows: Rows in a subset of the last stage; ``"auto"`` for 3,000, fewer beyond 16 latent functions, and with the cube
            root of the number of rows more beyond 20,000 of them; None for all.
        num_restarts: How often the first stage starts again from random parameters; the best on a common split goes on.
        calibrate: Whether to choose between the Laplace and the variational posterior, and how predictions temper its
            covariance, on held-out rows; the choice becomes the model's ``approximation`` and ``tempering``, and
            ``model.predict(x, tempering=0.0)`` still integrates the posterior itself. If not, the approximation stays, and
            predictions integrate the posterior.
        structures: Candidates for the kernel and the scale of the inputs of an ``itergp.models.GP``, or
            ``"auto"`` for a handful that suit tables: they compete on held-out rows, and the best (up to 1,000 rows the
            simplest within one standard error of it) replaces the model's ``covar_module`` and ``input_transform``.
            ``FitResult.comparison`` says what was tried.
            None keeps the model's. Below 60 rows, and where rows cannot be held out, the model's are kept too.
        likelihoods: Others than the model's for the same targets, that compete together with the structures;
            the one chosen becomes the model's, with a constant mean where its latent functions are others in number.
        columns: What structures may know of the columns; default numbers, each on its own.
        time_limit: Seconds of the whole call, of which the choice of a structure takes at most a third, learning is over after
            two thirds, and conditioning takes a fifth or more: the posterior so far is valid whenever it ends. What is late
            is given up: a candidate, a step of learning, the choice of the predictive distribution; a single step of the solver
            is finished. Without time for one step of learning, hyperparameters are those that the data say to begin with.
        initialise_kernel: Whether lengthscales, output scales and cutpoints still at their default get a start from the data.
        seed: Of the random splits and restarts. Equal seeds give equal results.
        progress: Draw a progress bar; None for one in a terminal if it takes more than two seconds.
        callback: Called with every record; an ``itergp.records.Listener`` hears of stages too.
        on_posterior: Called with posteriors of all rows on the way, which the model predicts from until the function returns:
            those on the way to the mode at the hyperparameters that each stage of learning begins or resumes with, found for
            this purpose, without a covariance (plug in the mean by ``tempering=math.inf``), and those that
            ``NonConjugateGP.condition`` passes through in the end. With rows divided among processes only the latter. It
            does not change what is learned, except through a ``time_limit``; a mode costs some kernel passes, with
            ``LinearTimeNewton`` a whole support.
        checkpoint: File in which learning, and then conditioning, is kept while it runs. If it exists, ``fit`` of a model at
            the same starting values goes on from there, after the same choice of a structure: to the same answer as without the
            interruption, to the last bit on the same machine with as many threads. Calibration, a few seconds, is done again.
            torch's global random state is restored too. With rows divided among processes, which must all see the file,
            conditioning is kept in files beside it whose names begin with its name and ``.condition``.
        checkpoint_every: Seconds between writes; longer where writing would take more than a twentieth of the time.
            0 writes after every step.

    Returns:
        What was done, a ``FitResult``; of a batch of models a tuple of such. Its elements learn one after another, or
        together, by the mean of their objectives, where they share parameters. They have no predictive distribution of
        their own to choose, so ``calibrate`` does nothing.

    Raises:
        InputError: If the model has nothing to learn, or an argument is out of its range, or the checkpoint is damaged or
            belongs to something else.
    """
    settings = Settings(
        objective=objective,
        optimizer=optimizer,
        max_iterations=max_iterations,
        learning_rate=learning_rate,
        max_rows=max_rows,
        num_restarts=num_restarts,
        calibrate=calibrate,
        time_limit=time_limit,
        initialise_kernel=initialise_kernel,
        seed=seed,
        structures=structures,
        likelihoods=tuple(likelihoods),
        columns=columns,
    )
    options = RunOptions(progress, callback, on_posterior, checkpoint, checkpoint_every)
    if _learns_by_element(model, objective, options):
        return _fit_elements(model, settings, options)
    settings.check()
    return _fit(model, settings, options)


@dataclass(frozen=True)
class Settings:
    """What the result of ``fit`` depends on; see there."""

    objective: str | Objective
    optimizer: str
    max_iterations: int
    learning_rate: float
    max_rows: int | str | None
    num_restarts: int
    calibrate: bool
    time_limit: float | None
    initialise_kernel: bool
    seed: int
    structures: str | Sequence[Structure] | None = None
    likelihoods: tuple[gpytorch.likelihoods.Likelihood, ...] = ()
    columns: InputColumns | None = None

    def deadline(self, called: float, share: float = 1.0) -> Deadline:
        """When a share of the time limit is over, for a call that began at some value of ``time.perf_counter``."""
        return Deadline() if self.time_limit is None else Deadline(called + share * self.time_limit)

    def plain(self) -> dict[str, Any]:
        """By name, as what a checkpoint is the checkpoint of."""
        chosen = None if self.structures is None else [str(one) for one in self.structures]
        others = [type(likelihood).__name__ for likelihood in self.likelihoods]
        return vars(self) | {"structures": chosen, "columns": str(self.columns), "likelihoods": others}

    def check(self) -> None:
        """Refuses what is out of range.

        Raises:
            InputError: Naming the first of these.
        """
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"`optimizer` must be one of {OPTIMIZERS}. Got {self.optimizer!r}.")
        require_positive("max_iterations", self.max_iterations, integer=True)
        if self.max_rows != "auto":
            require_positive("max_rows", self.max_rows, integer=True)  # type: ignore[arg-type] # anything else is refused
        require_positive("learning_rate", self.learning_rate)
        require_positive("time_limit", self.time_limit)
        if self.likelihoods and self.structures is None:
            raise InputError(
                f"`likelihoods` compete together with `structures`. Got {len(self.likelihoods)} and no structures. Pass "
                'structures="auto".'
            )
        if self.num_restarts < 0:
            raise InputError(f"`num_restarts` must be 0 or more. Got {self.num_restarts}. Leave it out for none.")


@dataclass(frozen=True)
class _Learned:
    """What learning came to.

    Attributes:
        learner: At the end.
        reason: Why it ended.
        started: When, by the clock of this run.
        initialised: Names of hyperparameters that got a starting value.
        part: Where the conditioning that follows is kept, or None.
    """

    learner: Learner
    reason: Stop
    started: float
    initialised: list[str]
    part: CheckpointSection | Path | None


def _fit(model: NonConjugateGP, settings: Settings, options: RunOptions) -> Any:
    """Chooses the structure, learns, chooses the predictive distribution, and conditions."""
    called, seconds = time.perf_counter(), {}
    comparison = None
    if settings.structures is not None:
        comparison = _choose_structure(model, settings, options, called)
        seconds["structures"] = time.perf_counter() - called
    learned = _learn(model, settings, options, called, comparison)
    _warn_of_extremes(learned.learner.free)
    model.eval()
    seconds["learn"] = time.perf_counter() - learned.started
    latest = settings.deadline(called, 1.0 - _LAST_SHARE)
    calibration = _calibrate(model, settings, seconds, latest) if settings.calibrate else None
    begun, left = time.perf_counter(), settings.deadline(called).left()
    solution = model.condition(
        progress=options.progress,
        on_posterior=options.on_posterior,
        checkpoint=learned.part,
        checkpoint_every=options.checkpoint_every,
        time_limit=None if left is None else max(left, _LAST_SHARE * settings.time_limit),  # type: ignore[operator]
    )
    seconds["condition"] = time.perf_counter() - begun
    records, reason = learned.learner.records, learned.reason
    logarithmic = [parameter.name for parameter in learned.learner.free if parameter.constraint is not None]
    learning = LearningTrace(records, reason.name, seconds, logarithmic)
    result = FitResult(solution, records, reason.value, seconds, learned.initialised, calibration, comparison)
    return _results(solution, learning, result)


def _choose_structure(
    model: NonConjugateGP, settings: Settings, options: RunOptions, called: float
) -> Comparison | None:
    """Gives the model the structure and the likelihood that held-out rows prefer; None if these cannot choose.

    Raises:
        InputError: If the model is none whose structure can be exchanged.
    """
    if not isinstance(model, GP) or type(model).forward is not GP.forward:
        raise InputError(
            f"`structures` are those of an itergp.models.GP. Got a {type(model).__name__}, whose forward is its own. Leave "
            "`structures` out, or use itergp.models.GP."
        )
    inputs = model.train_inputs[0]
    if own_rows(model.operator_kind, len(inputs), inputs.device).sharded:
        raise InputError(
            "`structures` are chosen by one process. Got rows that are divided among several. Choose before."
        )
    columns = InputColumns.plain(inputs.shape[1]) if settings.columns is None else settings.columns
    competing = candidates(settings.structures, columns, len(inputs))  # type: ignore[arg-type] # there are some
    calculus, first = model.calculus, torch.zeros(1, dtype=torch.long, device=inputs.device)
    of_rows = calculus.take(first) is not calculus  # such as known noise variances
    if len(inputs) < ENOUGH_ROWS or of_rows or not PredictiveLogDensity.supports(calculus):
        return None
    deadline = settings.deadline(called, _SEARCH_SHARE)
    start = _first_outputscale(model)
    with ProgressBar(enabled=options.progress) as bar:
        listeners = Listeners(bar, options.callback)
        search = StructureSearch(
            model, competing, settings.likelihoods, columns, settings.seed, deadline, listeners, start
        )
        found, comparison = search.run()
    if not comparison.found_something:
        warnings.warn(
            f"Inputs should say something about the targets. {comparison.num_held_out} held-out rows were predicted no better "
            f"than by a constant (gain {comparison.gain:.2g} ± {comparison.gain_error:.2g} nats per row). Leave out columns "
            "that cannot matter, or find more rows; until then predictions say little more than how frequent targets are.",
            ItergpWarning,
            stacklevel=5,
        )
    model.covar_module = found.covar_module
    model.input_transform = comparison.structure.make_transform(inputs, columns)
    if comparison.likelihood == 0:
        model.mean_module.load_state_dict(found.mean_module.state_dict())
        model.likelihood.load_state_dict(found.likelihood.state_dict())
    else:
        model.mean_module, model.likelihood = found.mean_module, found.likelihood
    return comparison


def _first_outputscale(model: GP) -> float:
    """The output scale that a model was given; one at its default, which sums would divide, is none."""
    scales = [module for module in model.covar_module.modules() if isinstance(module, ScaleKernel)]
    given = bool(scales) and bool(scales[0].raw_outputscale.any())
    return float(scales[0].outputscale.detach().mean()) if given else INITIAL_OUTPUTSCALE


def _learn(
    model: NonConjugateGP, settings: Settings, options: RunOptions, called: float, comparison: Comparison | None
) -> _Learned:
    """Learns hyperparameters; the model is in training mode afterwards.

    Args:
        model: The model.
        settings: Of ``fit``.
        options: Of ``fit``.
        called: When ``fit`` began.
        comparison: In which the structure was chosen and began to learn, or None.
    """
    inputs = model.held_data.inputs[0]
    rows = own_rows(model.operator_kind, model.held_data.targets.shape[0], inputs.device)
    options.require_everywhere(rows)
    file, path = None, options.checkpoint
    if path is not None and not isinstance(path, CheckpointSection):
        file = open_checkpointer(model, path, options.checkpoint_every, settings.plain(), rows)
    earlier = None if file is None else file.checkpoint_state
    started = time.perf_counter() - (0.0 if earlier is None else earlier.values["seconds"])
    before = [parameter.variable.detach().clone() for parameter in free_parameters(model)]
    initialised = initialise_model(model) if settings.initialise_kernel and comparison is None else []
    free = free_parameters(model)
    if not free:
        raise InputError(
            "`fit` needs parameters to learn. Got none that require gradients. Use model.condition() instead."
        )
    for parameter in free:
        parameter.leave_bound()
    stages = _stages(model, settings, renew_every=_RENEW_EVERY if comparison is None else 1)
    if comparison is not None:  # which did what the first stage is for
        iterations = max(1, round((1.0 - _SEARCHED_SHARE) * settings.max_iterations))
        stages = [replace(stages[-1], iterations=iterations)]
    deadline = settings.deadline(called, _LEARNING_SHARE)
    model.tempering = 0.0  # what was chosen for other hyperparameters
    model.train()
    on_posterior = options.on_posterior
    with ProgressBar(enabled=options.progress) as bar, rows.abort_together():
        listeners, saved_by = Listeners(bar, options.callback), file if rows.first else None
        learner = Learner(model, free, deadline, started, listeners, checkpointer=saved_by)
        look = partial(_look, model, on_posterior) if on_posterior is not None and not rows.sharded else None
        reason = Stop.INTERRUPTED
        if comparison is None or not comparison.interrupted:
            reason = _run(learner, stages, settings, before, earlier, look, called)
    reason = _agree(model, reason, rows)
    part = None
    if file is not None and reason is not Stop.INTERRUPTED:  # an interrupted run is to go on learning
        part = save_learned(file, learner.state(stages[-1].objective, reason), rows)
    return _Learned(learner, reason, started, initialised, part)


def _results(solution: Any, learning: LearningTrace, result: FitResult) -> Any:
    """The result with its trace; of a batch of models one for each solution."""
    several = isinstance(solution, tuple)
    results = [replace(result, solution=found) for found in (solution if several else (solution,))]
    for one in results:
        one.solution.trace.learning = learning
    return tuple(results) if several else results[0]


def _learns_by_element(model: NonConjugateGP, objective: str | Objective, options: RunOptions) -> bool:
    """Whether this is a batch of models that share nothing; arguments of single models are refused for any batch.

    Raises:
        InputError: If there are no data, or such an argument is given for a batch.
    """
    if model.train_inputs is None:
        refuse_without_data("fit")
    if not model.data_batch_shape:
        return False
    for name, value in options.of_single_models.items():
        if value is not None:
            raise InputError(
                f"`{name}` of `fit` is that of a single model. Got a batch of shape {tuple(model.data_batch_shape)}. Leave it "
                "out, or fit the models in model.batch_elements."
            )
    if isinstance(objective, Objective) or model.shared_parameters():
        return False
    each = torch.stack([log_density_of_priors(element) for element in model.batch_elements])
    return torch.allclose(each, log_density_of_priors(model).flatten())  # not if a prior could not be divided


def _fit_elements(model: NonConjugateGP, settings: Settings, options: RunOptions) -> Any:
    """Fits every element of a batch of models by itself; a tuple where a single model gives one result."""
    settings = replace(settings, calibrate=False)
    settings.check()
    results = tuple(_fit(element, settings, options) for element in model.batch_elements)
    model.collect_elements()
    model.tempering = 0.0
    model.eval()
    return results


def _largest_subset(model: NonConjugateGP) -> int:
    """Rows of the last stage's subsets."""
    element = model.batch_elements[0]
    latents = element.observations.likelihood.num_latents
    growth = max(1.0, element.train_targets.shape[0] / _MANY_ROWS) ** (1.0 / 3.0)
    rows = max(_SUBSET_ROWS, min(round(growth * _REFINEMENT_ROWS), _REFINEMENT_VALUES // latents))
    return max(_LEAST_ROWS, min(rows, _REFINEMENT_COST // latents**2))


def _calibrate(
    model: NonConjugateGP, settings: Settings, seconds: dict[str, float], deadline: Deadline
) -> Calibration | None:
    """Chooses the predictive distribution on held-out rows, if some can be held out in time, and makes it the model's."""
    if (
        deadline.over
        or model.data_batch_shape
        or not model.observations.likelihood.exchangeable
        or num_weighted(model.observations) < 2
    ):
        return None
    begun, seed = time.perf_counter(), settings.seed
    calibration = None
    half = Deadline(0.5 * (begun + deadline.at))
    with contextlib.suppress(OutOfTimeError):
        limit_lengthscales(model, seed=seed, deadline=half)
    single = model.observations.likelihood.num_latents == 1
    raise_scales = single and _learns_the_mode(model, settings)
    # Where time may end, few rows choose first: of many classes, any choice beats the posterior itself (leaves, 1,430 rows of
    # 32 classes: held-out log-density -5.1, tempered -0.02).
    with contextlib.suppress(OutOfTimeError):
        for number in (None,) if deadline.left() is None else (_FIRST_ROWS, None):
            raises = raise_scales and number is None
            calibration = calibrate_predictions(
                model, num_rows=number, seed=seed, deadline=deadline, raise_scales=raises
            )
            model.approximation, model.tempering = calibration.approximation, calibration.tempering
    seconds["calibrate"] = time.perf_counter() - begun
    return calibration


def _agree(model: NonConjugateGP, reason: Stop, rows: RowPartition) -> Stop:
    """Gives every process the first one's hyperparameters and reason: a clock may have ended learning elsewhere in each.

    If one of them was interrupted, all were.
    """
    if not rows.sharded:
        return reason
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(rows.broadcast(parameter.detach()))
    if rows.all_reduce_any(reason is Stop.INTERRUPTED):
        return Stop.INTERRUPTED
    reasons = list(Stop)
    return reasons[int(rows.broadcast(torch.tensor(reasons.index(reason), device=model.train_inputs[0].device)))]


def _stages(model: NonConjugateGP, settings: Settings, *, renew_every: int) -> list[Stage]:
    objective, optimizer, seed = settings.objective, settings.optimizer, settings.seed
    max_iterations, learning_rate = settings.max_iterations, settings.learning_rate
    max_rows = _largest_subset(model) if settings.max_rows == "auto" else settings.max_rows
    if isinstance(objective, Objective):
        return [Stage("learn", objective, max_iterations, learning_rate, "adam" if optimizer == "auto" else optimizer)]
    element = model.batch_elements[0]
    likelihood = element.observations.likelihood
    if objective == "elbo" or (objective == "auto" and _prefers_bound(element)):
        options: dict[str, Any] = {"initialise_kernel": False}  # that is over
        if optimizer != "lbfgs" and likelihood.exchangeable and _has_large_support(element):
            options |= {"batch_rows": _BATCH_ROWS, "seed": seed}
        bound = ComputationAwareELBO(model.likelihood, model, **options)
        if optimizer == "auto" and max_iterations >= 2 * _APPROACH and bound.by_dense_matrices:
            # Where an objective is flat, a line search sees no reason to move.
            approach = Stage("approach", bound, _APPROACH, learning_rate)
            return [approach, Stage("learn", bound, max_iterations - _APPROACH, learning_rate, "lbfgs")]
        return [Stage("learn", bound, max_iterations, learning_rate, "adam" if optimizer == "auto" else optimizer)]
    if objective not in ("auto", "predictive"):
        raise InputError(f"`objective` must be 'auto', 'predictive', 'elbo' or an objective. Got {objective!r}.")
    predictive = "plug-in" if _learns_the_mode(model, settings) else _integrated(model, settings)
    options = {"predictive": predictive, "initialise_kernel": False}
    options |= {"renew_every": renew_every, "tolerance": 1e-3, "seed": seed}
    if optimizer == "lbfgs":  # a line search compares values: one split, and no trace of earlier evaluations in them
        options |= {"renew_every": None, "tolerance": 1e-6, "warm_start": False}
    optimizer = "adam" if optimizer == "auto" else optimizer
    total = element.train_targets.shape[0]
    last = total if max_rows is None else min(total, int(max_rows))
    if last <= _SUBSET_ROWS or max_iterations < 2:
        held_out = PredictiveLogDensity(model.likelihood, model, num_rows=last, **options)
        return [Stage("learn", held_out, max_iterations, learning_rate, optimizer)]
    share = max(1, round(_SUBSET_SHARE * max_iterations))
    subset = PredictiveLogDensity(model.likelihood, model, num_rows=_SUBSET_ROWS, **options)
    options["seed"] = seed + 1
    refined = PredictiveLogDensity(model.likelihood, model, num_rows=last, **options)
    return [
        Stage("subset", subset, share, learning_rate, optimizer),
        Stage("refinement", refined, max(1, max_iterations - share), _REFINEMENT_RATE * learning_rate, optimizer),
    ]


def _prefers_bound(model: NonConjugateGP) -> bool:
    """Whether the bound on the evidence is the objective where none is named."""
    few = model.train_targets.shape[0] <= _FEW_ROWS
    return few or not PredictiveLogDensity.supports(model.observations.likelihood)


def _learns_the_mode(model: NonConjugateGP, settings: Settings) -> bool:
    """Whether what is learned is the density of held-out rows at the mode.

    Without a choice of how much of the latent variance predictions integrate, they integrate all; see ``plugs_in`` too.
    """
    element, objective = model.batch_elements[0], settings.objective
    if objective != "predictive" and (objective != "auto" or _prefers_bound(element)):
        return False
    return settings.calibrate and plugs_in(element.observations.likelihood)


def _integrated(model: NonConjugateGP, settings: Settings) -> str:
    """The approximation that learning integrates over: the model's; where one is chosen later, that which judges structures."""
    likelihood = model.batch_elements[0].observations.likelihood
    return approximation_of(likelihood) if settings.calibrate else model.approximation


def _has_large_support(model: NonConjugateGP) -> bool:
    """Whether the bound can be estimated from batches of rows, and there are so many that it pays."""
    return model.solver.on_support and model.train_targets.shape[0] > _BATCH_ROWS


def _look(model: NonConjugateGP, on_posterior: Callable[[Solution], None]) -> bool:
    """Hands out posteriors on the way to a loosely converged mode at the present hyperparameters, and leaves no trace.

    Returns whether it was interrupted.
    """
    solver, approximation = model.solver, model.approximation
    with model.keeping_posterior():
        model.eval()
        model.solver, model.approximation = solver.loosened(_LOOK_FACTOR).without_covariance(), "laplace"
        try:
            solution = model.condition(on_posterior=on_posterior)
            on_posterior(solution)
            return solution.status.reason is Reason.INTERRUPTED
        except KeyboardInterrupt:
            return True
        except SolverError:  # learning may lead away from here; if not, conditioning in the end will say it
            return False
        finally:
            model.solver, model.approximation = solver, approximation
            model.train()


def _run(
    learner: Learner,
    stages: list[Stage],
    settings: Settings,
    given: list[Tensor],
    earlier: StateDict | None,
    look: Callable[[], bool] | None,
    called: float,
) -> Stop:
    """Runs the stages, the first from several starts; returns why learning stopped.

    Before each, there may be a look at the posterior.
    """
    start = learner.variables()
    at = learner.position
    if earlier is not None:
        known = learner.resume(earlier)
        at = known.position
        if known.reason is not None:  # learning was over
            resume_objective(stages[-1].objective, earlier)
            learner.checkpoint_state = None
            return Stop[known.reason]
    reason = Stop.ITERATIONS
    if at.stage == 0:
        if look is not None and look():
            return Stop.INTERRUPTED
        reason = _search(learner, stages[0], settings.num_restarts, settings.seed, start, at)
    for index in range(max(1, at.stage), len(stages)):
        if reason.ends_learning:
            break
        learner.position = Position(stage=index)
        if look is not None and look():
            return Stop.INTERRUPTED
        reason = learner.run(stages[index])
    if reason is not Stop.INTERRUPTED:
        learner.deadline = settings.deadline(called, _COMPARING_SHARE)
        _keep_best(learner, stages[-1].objective, [start, given], settings.seed)
    return reason


def _keep_best(learner: Learner, objective: Objective, starts: list[list[Tensor]], seed: int) -> None:
    """Ends at the best of what learning came to, the best along its path, and where it began, all measured alike.

    If time is up, of those that are measured by then; otherwise at what learning came to.

    Args:
        learner: At what it came to.
        objective: Of the last stage.
        starts: Where it began: the start from the data, and the values that the model had.
        seed: Of the split by which they are compared.
    """
    yardstick, ended = _common(objective, seed), learner.variables()
    path = [learner.best] if learner.best and not _are_equal(learner.best, ended) else []
    different: list[list[Tensor]] = []
    for values in starts:
        if not any(_are_equal(values, other) for other in (ended, *different)):
            different.append(values)
    candidates = [(ended, 0.0), *((values, _MARGIN) for values in path), *((values, 0.0) for values in different)]
    chosen, reached, first = 0, -math.inf, math.nan
    for index, (candidate, margin) in enumerate(candidates):
        learner.restore(candidate)
        try:
            value = learner.value(yardstick)
        except OutOfTimeError:
            break
        first = value if index == 0 else first
        if math.isfinite(value) and value > reached + margin * abs(reached if math.isfinite(reached) else 0.0):
            chosen, reached = index, value
    learner.restore(candidates[chosen][0])
    fallen = not math.isfinite(first) or reached - first > _VISIBLE * abs(reached)
    if chosen > len(path) and learner.evaluations > 1 and fallen:
        warnings.warn(
            f"Learning must raise its objective. It fell from {reached:.4g} per row at the starting values to {first:.4g}; the "
            "starting values are kept. Lower learning_rate, raise max_iterations, or fix the parameters that you know.",
            ItergpWarning,
            stacklevel=4,
        )


def _are_equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def _search(learner: Learner, stage: Stage, num_restarts: int, seed: int, start: list[Tensor], at: Position) -> Stop:
    """The first stage from several starts; the best goes on."""
    generator = torch.Generator().manual_seed(seed)
    starts = [start, *(_scattered(start, generator) for _ in range(num_restarts))]
    reason = Stop.ITERATIONS
    candidates = list(at.candidates)
    for attempt in range(at.attempt, 1 + num_restarts):
        if attempt > at.attempt:
            learner.restore(starts[attempt])
        learner.position = Position(0, attempt, list(candidates))
        reason = learner.run(stage)
        if num_restarts == 0 or reason.ends_learning:
            return reason
        try:
            candidates.append((learner.evaluate(_common(stage.objective, seed)), learner.variables()))
        except OutOfTimeError:
            reason = Stop.TIME
            break
    if finite := [c for c in candidates if math.isfinite(c[0])]:
        learner.restore(max(finite, key=lambda c: c[0])[1])
    return reason


def _scattered(start: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    return [v + _SPREAD * torch.randn(v.shape, generator=generator).to(v) for v in start]


def _common(objective: Objective, seed: int) -> Objective:
    """The objective by which starts are compared: the same split for all."""
    return objective.on_one_split(seed + 2) if isinstance(objective, PredictiveLogDensity) else objective


def _warn_of_extremes(free: list[FreeParameter]) -> None:
    for parameter in free:
        value: Tensor = parameter.variable.detach().exp()
        if parameter.name.endswith("raw_lengthscale") and bool((value < _COLLAPSED).any()):
            problem, remedy = "collapsed", "standardise the inputs, or put a prior on the lengthscale"
        elif parameter.name.endswith("raw_outputscale") and bool((value > _DIVERGED).any()):
            problem, remedy = "diverged, as it does when classes are separable", "put a prior on the output scale"
        elif parameter.name.endswith("noise") and _at_bound(parameter):
            bound = float(parameter.constraint.lower_bound)  # type: ignore[union-attr] # it has one
            warnings.warn(
                f"{parameter.name} reached its lower bound, {bound:g}: targets have less noise than predictions "
                "claim. Please pass the likelihood a noise_constraint with a lower bound, such as GreaterThan(1e-8).",
                ItergpWarning,
                stacklevel=3,
            )
            continue
        else:
            continue
        warnings.warn(
            f"{parameter.name} {problem}: values from {float(value.min()):.3g} to {float(value.max()):.3g}. Please {remedy}.",
            ItergpWarning,
            stacklevel=3,
        )


def _at_bound(parameter: FreeParameter) -> bool:
    """Whether a noise is at a bound that shows in predictions of standardised targets."""
    if parameter.constraint is None or not float(parameter.constraint.lower_bound) > _NO_NOISE:
        return False
    return bool((parameter.value.exp() < _NEAR * parameter.constraint.lower_bound).any())
