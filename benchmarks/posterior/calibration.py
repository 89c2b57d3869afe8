"""What predictive distributions are worth, on test rows and on rows unlike the data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from benchmarks.methods.model import predictions
from benchmarks.posterior.problems import BINARY, SEVERAL, load
from benchmarks.posterior.results import Results
from benchmarks.suite.metrics import auroc, entropy, scores
from itergp.solvers import DenseNewton, SubspaceNewton

NAMES = [*BINARY, *SEVERAL]


_NEIGHBOURS = 16


def choices(learned: dict[str, Any]) -> dict[str, tuple[str, float, SubspaceNewton | DenseNewton]]:
    """Approximation, tempering and solver of what is compared."""
    chosen, default = (learned["approximation"], learned["tempering"]), SubspaceNewton()
    found: dict[str, tuple[str, float, SubspaceNewton | DenseNewton]] = {
        "mode plugged in": ("laplace", math.inf, default),
        "variational, not tempered": ("variational", 0.0, default),
        "as fit chose": (*chosen, default),
    }
    if learned["latents"] > 1:  # where neighbours are off by default, and dense matrices too large
        near = SubspaceNewton(num_neighbours=_NEIGHBOURS)
        found[f"not tempered, {_NEIGHBOURS} neighbours"] = ("variational", 0.0, near)
        found[f"as fit chose, {_NEIGHBOURS} neighbours"] = (*chosen, near)
    else:
        found["exact, not tempered"] = ("variational", 0.0, DenseNewton())
    return found


def run(results: Results, names: Iterable[str] = NAMES, rows: int | None = None) -> None:
    """NLL and accuracy on test rows, and how well the entropy tells rows unlike the data from test rows."""
    for name in names:
        case = load(name, results, rows)
        problem = case.problem
        for title, (approximation, tempering, solver) in choices(case.learned).items():
            place = {"data": name, "rows": len(problem.train.y), "prediction": title}
            if results.find("calibration", **place) is not None:
                continue
            model = case.model(approximation=approximation, solver=solver)
            predict, _ = predictions(model, problem.train, tempering)
            probs = predict(problem.test_x)
            found = scores(probs, problem.test_y, problem.train.kind)
            outside = auroc(entropy(probs), entropy(predict(problem.outside_x)))
            kept = {key: found[key] for key in ("nll", "accuracy", "ece")}
            with torch.no_grad():
                residual = model.solution.variational_residual
            chosen = {"approximation": approximation, "tempering": str(tempering)}
            results.add("calibration", **place, **chosen, **kept, auroc=outside, residual=residual)
