"""This package: its defaults, its approximations, the published method, exact inference, and a subset of the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

import itergp
from benchmarks.methods.base import Budget, Callback, Method, Range
from benchmarks.methods.model import other_likelihoods, predictions, suite_model
from benchmarks.workloads import COUNTS, END_TO_END, INFERENCE, ORDERED, TrainingData
from itergp.solvers import DenseNewton, IterNCGP, LinearTimeNewton, Solution, SubspaceNewton, policies

ALL_KINDS = ("classes", ORDERED, COUNTS)
_PRECONDITIONER_RANK = 50
DENSE_VALUES = 6_000  # latent values N C: a matrix of (N C)^2 in float64, and its cube in operations


@dataclass(frozen=True)
class Inference(Method):
    """Conditions once at the given hyperparameters; until the end, predictions plug in the mean so far.

    Attributes:
        solver: Makes the solver.
        approximation: ``"variational"`` or ``"laplace"``.
        plug_in: Whether predictions plug in the posterior mean.
        subset: Random rows to condition on; None for all.
        text: Where the setting comes from.
    """

    rulesets: tuple[str, ...] = (INFERENCE,)
    kinds: tuple[str, ...] = ALL_KINDS
    solver: Callable[[int], Any] = lambda seed: SubspaceNewton()
    approximation: str = "variational"
    plug_in: bool = False
    subset: int | None = None
    text: str = "defaults of this package"

    @property
    def setup(self) -> str:
        return self.text

    @property
    def configuration(self) -> dict[str, Any]:
        return super().configuration | {"solver": repr(self.solver(0))}

    def refuses_size(self, num_rows: int, latents: int) -> str | None:
        if self.subset is not None and num_rows < 2 * self.subset:
            return "the subset is most of the data"
        return super().refuses_size(num_rows, latents)

    def fit(self, data: TrainingData, budget: Budget, callback: Callback) -> None:
        if self.subset is not None:
            data = subset_of(data, self.subset, budget.seed)
        solver = self.solver(budget.seed)
        model = suite_model(data, solver=solver, approximation=self.approximation).eval()
        integrated, plug_in = predictions(model, data), predictions(model, data, math.inf)

        def report(solution: Solution, final: bool = False) -> None:
            certificate = solution.certificate
            probs, variance = integrated if final and not self.plug_in else plug_in
            callback(
                probs,
                variance if final and not self.plug_in else None,
                kernel_passes=solution.kernel_passes,
                rank=solution.rank,
                gap_per_row=None if certificate is None else certificate.objective_gap / len(data.y),
                phases=solution.trace.phase_seconds,
                ended=solution.status.reason.name,
            )

        report(model.condition(on_posterior=report), final=True)


@dataclass(frozen=True)
class Learning(Method):
    """``itergp.fit`` from raw data; until the end, predictions plug in the mean so far.

    Attributes:
        learning_seconds: Time limit of learning; None for none.
        learning_rate: Of ``itergp.fit``.
        max_iterations: Of ``itergp.fit``.
    """

    rulesets: tuple[str, ...] = (END_TO_END,)
    kinds: tuple[str, ...] = ALL_KINDS
    learning_seconds: float | None = None
    learning_rate: float = 0.2
    max_iterations: int = 50

    @property
    def setup(self) -> str:
        limit = "" if self.learning_seconds is None else f" with `time_limit={self.learning_seconds:g}`"
        return (
            f'`itergp.fit(model, structures="auto", likelihoods=...)`{limit}: kernel and scale of the inputs chosen on held-out rows, '
            "as in the estimators; levels between cutpoints or softmax, counts Poisson, negative binomial or zero-inflated"
        )

    @property
    def search(self) -> dict[str, Range]:
        return {"learning_rate": Range(0.05, 0.5), "max_iterations": Range(25, 150, integer=True)}

    def fit(self, data: TrainingData, budget: Budget, callback: Callback) -> None:
        model = suite_model(data)
        options = {"learning_rate": self.learning_rate, "max_iterations": self.max_iterations, "seed": budget.seed}
        plug_in, _ = predictions(model, data, math.inf)
        result = itergp.fit(
            model,
            structures="auto",
            likelihoods=other_likelihoods(data),
            time_limit=self.learning_seconds,
            on_posterior=lambda _: callback(plug_in),
            **options,
        )
        probs, variance = predictions(model, data)
        chosen = result.calibration
        callback(
            probs,
            variance,
            kernel_passes=result.solution.kernel_passes,
            rank=result.solution.rank,
            phases=result.seconds,
            chosen=None if chosen is None else [chosen.approximation, chosen.tempering],
            structure=None if result.comparison is None else result.comparison.chosen,
            ended=result.reason,
        )


@dataclass(frozen=True)
class Growing(Inference):
    """Conditions with budgets of passes that double, each from the posterior before: a result at any time."""

    text: str = "as itergp, interrupted after 4, 8, 16, 32 and 64 kernel passes and resumed"

    def fit(self, data: TrainingData, budget: Budget, callback: Callback) -> None:
        solver, spent = SubspaceNewton(), 0
        model = suite_model(data, solver=solver, approximation=self.approximation).eval()
        for passes in (4, 8, 16, 32, 64):
            model.solver = replace(solver, max_passes=passes)
            solution = model.condition()
            spent += solution.kernel_passes
            callback(*predictions(model, data), kernel_passes=spent, ended=solution.status.reason.name)
            if solution.converged:
                break


def subset_of(data: TrainingData, rows: int, seed: int) -> TrainingData:
    """Random rows, with one of each label."""
    order = torch.randperm(len(data.y), generator=torch.Generator().manual_seed(seed))
    if data.kind != COUNTS:
        first = torch.stack([(data.y[order] == label).nonzero()[0, 0] for label in range(data.num_outcomes)])
        order = torch.cat([order[first], order[~torch.isin(torch.arange(len(order)), first)]])
    keep = order[:rows]
    return replace(data, x=data.x[keep], y=data.y[keep])


def _cholesky(seed: int) -> IterNCGP:
    return IterNCGP(policy=policies.UnitVectors(order="random", rows=100, seed=seed), step="backtracking", max_steps=10)


def _own() -> list[Method]:
    own = "defaults of this package"
    return [
        Inference("itergp", "itergp"),
        Inference(
            "itergp, Laplace", "itergp", importance=2, approximation="laplace", text=f"{own}, `approximation='laplace'`"
        ),
        Inference(
            "itergp, plug-in",
            "itergp",
            importance=2,
            approximation="laplace",
            plug_in=True,
            text=f"{own}, the mode of the posterior and `tempering=math.inf`",
        ),
        Growing("itergp, doubling budgets", "itergp", importance=2),
        Learning("itergp.fit", "itergp", kinds=ALL_KINDS),
        Learning("itergp.fit, 2 s of learning", "itergp", importance=2, learning_seconds=2.0),
        Inference(
            "itergp, linear time", "itergp", solver=lambda seed: LinearTimeNewton(), text=f"{own}, `LinearTimeNewton()`"
        ),
        *(
            Inference(
                f"subset of data, {rows:,} rows",
                "subset of data",
                importance=importance,
                subset=rows,
                text=f"{rows:,} random rows and {own}",
            )
            for rows, importance in ((500, 2), (2_000, 1))
        ),
    ]


def _published() -> list[Method]:
    published = "arXiv 2310.20285"
    return [
        Inference(
            "IterNCGP-CG",
            "IterNCGP",
            solver=lambda seed: IterNCGP(max_rank=50),
            approximation="laplace",
            text=f"{published}: conjugate gradients, recycling, at most 50 directions, full Newton steps",
        ),
        Inference(
            "IterNCGP-CG, line search",
            "IterNCGP",
            importance=2,
            solver=lambda seed: IterNCGP(max_rank=50, step="backtracking"),
            approximation="laplace",
            text=f"{published}, with the line search of this package",
        ),
        Inference(
            "IterNCGP, preconditioned CG",
            "IterNCGP",
            importance=2,
            solver=lambda seed: IterNCGP(
                max_rank=50, step="backtracking", policy=policies.PreconditionedCG(rank=_PRECONDITIONER_RANK)
            ),
            approximation="laplace",
            text=f"{published}, with the line search of this package and a preconditioner of rank {_PRECONDITIONER_RANK}",
        ),
        Inference(
            "IterNCGP-Cholesky",
            "IterNCGP",
            importance=2,
            solver=_cholesky,
            approximation="laplace",
            text=f"{published}: unit vectors of random rows, with the line search of this package",
        ),
    ]


def _exact() -> list[Method]:
    return [
        Inference(
            "dense Laplace",
            "dense",
            solver=lambda seed: DenseNewton(),
            approximation="laplace",
            most_values=DENSE_VALUES,
            text="exact Newton iteration in float64 (GPML algorithms 3.1 and 3.3)",
        ),
        Inference(
            "dense variational",
            "dense",
            importance=2,
            solver=lambda seed: DenseNewton(),
            most_values=DENSE_VALUES,
            text="exact, one variational round after the Laplace mode, as this package's default",
        ),
    ]


METHODS = [*_own(), *_published(), *_exact()]
