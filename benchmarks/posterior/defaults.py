"""The prediction that ``itergp.fit`` makes by default, beside the mode of the same model plugged in: all classification workloads."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

import itergp
from benchmarks.methods.model import other_likelihoods, predictions, suite_model
from benchmarks.methods.ours import DENSE_VALUES
from benchmarks.posterior.results import Results
from benchmarks.suite.metrics import auroc, entropy, scores
from benchmarks.workloads import COUNTS, Problem, workloads
from itergp.models import GP
from itergp.solvers import DenseNewton

NAMES = (
    "banana",
    "phoneme",
    "magic",
    "satimage",
    "penbased",
    "page-blocks0",
    "digits",
    "breast cancer",
    "flights 20,000",
    "cut",
    "mixture 1,000",
    "mixture 5,000",
)
SEEDS = (0, 1, 2)


def _judged(model: GP, problem: Problem, tempering: float | None = None) -> dict[str, float]:
    predict, _ = predictions(model, problem.train, tempering)
    probs = predict(problem.test_x)
    outside = auroc(entropy(probs), entropy(predict(problem.outside_x)))
    return {"nll": scores(probs, problem.test_y, problem.train.kind)["nll"], "auroc": outside}


def run(results: Results, names: Iterable[str] = NAMES, seeds: Iterable[int] = SEEDS, rows: int | None = None) -> None:
    """One fit with its defaults for every workload and seed; then its mode, and its variational posterior, exact where affordable."""
    for name, seed in ((name, seed) for name in names for seed in seeds):
        if results.find("defaults", data=name, seed=seed) is not None:
            continue
        problem = workloads()[name].problem(seed, given=False)
        assert problem.train.kind != COUNTS
        data = problem.train if rows is None else problem.train.head(rows)
        model = suite_model(data)
        fitted = itergp.fit(model, structures="auto", likelihoods=other_likelihoods(data), seed=seed)
        assert fitted.calibration is not None
        chosen = fitted.calibration.approximation, fitted.calibration.tempering
        found = {"default": _judged(model, problem)}
        latents, solver = model.observations.likelihood.num_latents, model.solver
        with torch.no_grad():
            model.approximation = "laplace"
            found["mode"] = _judged(model, problem, math.inf)
            model.approximation = "variational"
            found["untempered"] = _judged(model, problem, 0.0)
            if latents == 1 and len(data.y) <= DENSE_VALUES:
                model.solver = DenseNewton()
                found["exact"] = _judged(model, problem, 0.0)
                model.solver = solver
        figures = {f"{what}_{key}": value for what, both in found.items() for key, value in both.items()}
        results.add("defaults", data=name, seed=seed, approximation=chosen[0], tempering=str(chosen[1]), **figures)
