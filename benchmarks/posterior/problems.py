"""Data, hyperparameters learned once, and models at these hyperparameters."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import itergp
from benchmarks.methods.model import suite_model
from benchmarks.posterior.results import Results
from benchmarks.workloads import Problem, workloads
from itergp.models import GP

BINARY = ("phoneme", "magic", "banana")
SEVERAL = ("satimage", "digits")
_MOST_ROWS = {"magic": 5_000}
_FEW_ITERATIONS = 5
TEST_ROWS = 500  # at which variances are compared


@dataclass(frozen=True)
class Case:
    """One data set, and what was learned from it.

    Attributes:
        name: Of the workload.
        problem: Its splits, seed 0.
        learned: Hyperparameters and the choice of the predictive distribution, as they are kept in the results.
    """

    name: str
    problem: Problem
    learned: dict[str, Any]

    def model(self, dtype: torch.dtype = torch.float32, **options: Any) -> GP:
        """A model at the learned hyperparameters, not conditioned."""
        data = self.problem.train
        model = suite_model(replace(data, x=data.x.to(dtype)), **options).to(dtype)
        kernel = model.covar_module
        model.mean_module.constant.data.fill_(self.learned["mean"])
        kernel.outputscale = torch.tensor(self.learned["outputscale"], dtype=dtype)
        kernel.base_kernel.lengthscale = torch.tensor(self.learned["lengthscale"], dtype=dtype)
        return model.eval()

    def test_x(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Inputs at which variances are compared."""
        return self.problem.test_x[:TEST_ROWS].to(dtype)


def load(name: str, results: Results, most_rows: int | None = None) -> Case:
    """The data, and the hyperparameters that one ``itergp.fit`` comes to; from the results if they are there.

    Args:
        name: Of the workload.
        results: Where hyperparameters are kept.
        most_rows: Training rows at most, from which little is learned; default all, 5,000 of MAGIC.
    """
    problem = workloads()[name].problem(0, given=False)
    rows = min(most_rows or len(problem.train.y), _MOST_ROWS.get(name, len(problem.train.y)))
    problem = replace(problem, train=problem.train.head(rows))
    learned = results.find("hyperparameters", data=name, rows=len(problem.train.y))
    if learned is None:
        learned = results.add(
            "hyperparameters", data=name, rows=len(problem.train.y), **_learn(problem, most_rows is not None)
        )
    return Case(name, problem, learned)


def _learn(problem: Problem, briefly: bool) -> dict[str, Any]:
    model, begun = suite_model(problem.train), time.perf_counter()
    result = itergp.fit(model, max_iterations=_FEW_ITERATIONS) if briefly else itergp.fit(model)
    seconds, kernel = time.perf_counter() - begun, model.covar_module
    assert result.calibration is not None
    return {
        "latents": model.observations.likelihood.num_latents,
        "mean": model.mean_module.constant.item(),
        "outputscale": kernel.outputscale.item(),
        "lengthscale": kernel.base_kernel.lengthscale.detach().flatten().tolist(),
        "approximation": result.calibration.approximation,
        "tempering": result.calibration.tempering,
        "standard_error": result.calibration.standard_error,
        "seconds": seconds,
    }
