"""``fit``: learn hyperparameters, then condition on all rows."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from itergp.errors import InputError, ItergpWarning
from itergp.learning.parameters import FreeParameter, free_parameters, initialise
from itergp.likelihoods import as_likelihood
from itergp.models import NonConjugateGP
from itergp.objectives import ComputationAwareELBO, PredictiveLogDensity
from itergp.objectives.base import Objective
from itergp.solvers import Solution

_SUBSET_VALUES = 20_000  # latent values (rows times functions) of the rows that the held-out objective draws
_AVERAGED_SHARE = 0.25
_COLLAPSED, _DIVERGED = 1e-3, 1e5


@dataclass(frozen=True)
class FitRecord:
    """One step of the optimiser.

    Attributes:
        iteration: Number of the step, from 0.
        seconds: Since the start.
        objective: Value per row before the step; higher is better.
        parameters: The optimiser's variables by name: logarithms of positive parameters.
    """

    iteration: int
    seconds: float
    objective: float
    parameters: dict[str, list[float]]


@dataclass(frozen=True)
class FitResult:
    """What ``fit`` did.

    Attributes:
        solution: The posterior of all rows at the learned hyperparameters.
        records: The trajectory.
        reason: Why learning stopped.
        seconds: Time by stage: ``"learn"`` and ``"condition"``.
        initialised: Names of hyperparameters that were at their default and got a starting value from the data.
    """

    solution: Solution
    records: list[FitRecord] = field(repr=False)
    reason: str
    seconds: dict[str, float]
    initialised: list[str]


def fit(
    model: NonConjugateGP,
    *,
    objective: str | Objective = "auto",
    max_iterations: int = 50,
    learning_rate: float = 0.2,
    time_limit: float | None = None,
    initialise_kernel: bool = True,
    seed: int = 0,
    progress: bool = False,
    callback: Callable[[FitRecord], None] | None = None,
) -> FitResult:
    """Learns every trainable parameter of a model with Adam, then conditions on all rows.

    Positive parameters move by their logarithm; the learning rate falls to zero along a cosine, and the last quarter of the
    trajectory is averaged. A NaN ends learning with a warning and the last good parameters. Ctrl-C ends it with those so far.

    Args:
        model: The model; afterwards in evaluation mode, conditioned.
        objective: ``"predictive"``, the density of held-out rows on random subsets; ``"elbo"``, the bound on all rows;
            ``"auto"``, the former where the likelihood allows it; or an objective of the model.
        max_iterations: Steps of the optimiser.
        learning_rate: Of Adam, at the start: relative change per step of a positive parameter.
        time_limit: Seconds of learning.
        initialise_kernel: Whether lengthscales and output scales still at GPyTorch's default get a start from the data.
        seed: Of the random splits. Equal seeds give equal results.
        progress: Draw a progress bar.
        callback: Called with every record.

    Raises:
        InputError: If the model has nothing to learn, or the objective is unknown.
    """
    started = time.perf_counter()
    initialised = []
    if initialise_kernel:
        with torch.no_grad():
            prior = model._prior(model.train_inputs)
            features = prior.features if prior.features.dim() == 2 else prior.features[0]
            initialised = initialise(prior.kernel, features)
    free = free_parameters(model)
    if not free:
        raise InputError(
            "`fit` needs parameters to learn. Got none that require gradients. Use model.condition() instead."
        )
    goal = _objective(objective, model, seed)
    model.train()
    learner = _Learner(model, goal, free, max_iterations, learning_rate, time_limit, started, callback)
    with _bar(progress) as bar:
        reason = learner.run(bar)
    learner.write_average()
    _warn_of_extremes(free)
    learned = time.perf_counter()
    model.eval()
    solution = model.condition(progress=progress)
    seconds = {"learn": learned - started, "condition": time.perf_counter() - learned}
    return FitResult(solution, learner.records, reason, seconds, initialised)


def _objective(objective: str | Objective, model: NonConjugateGP, seed: int) -> Objective:
    if isinstance(objective, Objective):
        return objective
    likelihood = as_likelihood(model.likelihood)
    if objective == "elbo" or (objective == "auto" and not PredictiveLogDensity.supports(likelihood)):
        return ComputationAwareELBO(model.likelihood, model)
    if objective in ("auto", "predictive"):
        rows = max(500, min(3000, _SUBSET_VALUES // likelihood.num_latents))
        return PredictiveLogDensity(model.likelihood, model, num_rows=rows, renew_every=5, tolerance=1e-3, seed=seed)
    raise InputError(f"`objective` must be 'auto', 'predictive', 'elbo' or an objective. Got {objective!r}.")


@dataclass
class _Learner:
    """The optimiser's loop and what it remembers."""

    model: NonConjugateGP
    objective: Objective
    free: list[FreeParameter]
    max_iterations: int
    learning_rate: float
    time_limit: float | None
    started: float
    callback: Callable[[FitRecord], None] | None
    records: list[FitRecord] = field(default_factory=list)
    history: list[list[Tensor]] = field(default_factory=list)

    def run(self, bar: Progress) -> str:
        """Steps until a budget ends; returns why."""
        task = bar.add_task("learning", total=self.max_iterations, value="-")
        optimizer = torch.optim.Adam([p.variable for p in self.free], lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.max_iterations)
        try:
            for iteration in range(self.max_iterations):
                value = self._evaluate()
                if not math.isfinite(value) or not self._gradients_finite():
                    return self._give_up(iteration)
                self.history.append([p.variable.detach().clone() for p in self.free])
                self._record(iteration, value)
                bar.update(task, advance=1, value=f"{value:.4f}")
                optimizer.step()
                schedule.step()
                for parameter in self.free:
                    parameter.write()
                if self.time_limit is not None and time.perf_counter() - self.started >= self.time_limit:
                    return "the time limit was reached"
        except KeyboardInterrupt:
            return "learning was interrupted"
        return "all iterations were taken"

    def _evaluate(self) -> float:
        self.model.zero_grad(set_to_none=True)
        value = self.objective(self.model(*self.model.train_inputs), self.model.train_targets)
        (-value).backward()
        for parameter in self.free:
            parameter.read_gradient()
        return float(value.detach())

    def _gradients_finite(self) -> bool:
        return all(p.variable.grad is None or bool(torch.isfinite(p.variable.grad).all()) for p in self.free)

    def _give_up(self, iteration: int) -> str:
        warnings.warn(
            f"The objective or its gradient became NaN or infinite in step {iteration}; the last good parameters are kept. "
            "Lower learning_rate, use float64, or put a prior on the output scale.",
            ItergpWarning,
            stacklevel=4,
        )
        return "the objective became NaN or infinite"

    def _record(self, iteration: int, value: float) -> None:
        names = {p.name: p.variable.detach().reshape(-1).tolist() for p in self.free if p.variable.numel() <= 64}
        record = FitRecord(iteration, time.perf_counter() - self.started, value, names)
        self.records.append(record)
        if self.callback is not None:
            self.callback(record)

    def write_average(self) -> None:
        """Sets the parameters to the mean of the last quarter of the trajectory."""
        tail = self.history[-max(1, round(_AVERAGED_SHARE * len(self.history))) :]
        if not tail:
            return
        with torch.no_grad():
            for parameter, values in zip(self.free, zip(*tail, strict=True), strict=True):
                parameter.variable.copy_(torch.stack(values).mean(0))
                parameter.write()


def _warn_of_extremes(free: list[FreeParameter]) -> None:
    for parameter in free:
        value = parameter.variable.detach().exp()
        if parameter.name.endswith("raw_lengthscale") and bool((value < _COLLAPSED).any()):
            problem, remedy = "collapsed", "standardise the inputs, or put a prior on the lengthscale"
        elif parameter.name.endswith("raw_outputscale") and bool((value > _DIVERGED).any()):
            problem, remedy = "diverged, as it does when classes are separable", "put a prior on the output scale"
        else:
            continue
        warnings.warn(
            f"{parameter.name} {problem}: values from {float(value.min()):.3g} to {float(value.max()):.3g}. Please {remedy}.",
            ItergpWarning,
            stacklevel=3,
        )


def _bar(enabled: bool) -> Progress:
    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=24),
        TextColumn("step {task.completed:>3.0f}  objective per row {task.fields[value]:>8}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not enabled,
    )
