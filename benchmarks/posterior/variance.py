"""Latent variances over exact ones against time: global actions, local ones, and both."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from benchmarks.posterior.problems import BINARY, Case, load
from benchmarks.posterior.results import Results
from itergp.solvers import DenseNewton, SubspaceNewton

GLOBAL = [(rank, 0) for rank in (32, 64, 128, 192, 256, 512)]
LOCAL = [(1, neighbours) for neighbours in (8, 16, 32, 64, 128)]
JOINT = [(rank, neighbours) for rank in (64, 128, 192, 224, 256) for neighbours in (8, 16, 32)]
DEFAULT = (224, 16)
SETTINGS = {
    torch.float64: [DEFAULT, *GLOBAL, *LOCAL, *(setting for setting in JOINT if setting != DEFAULT)],
    torch.float32: [DEFAULT, (192, 16), (192, 0), (1, 32), (192, 32)],
}
_QUANTILE = 0.95


@dataclass(frozen=True)
class Reference:
    """Exact variances at test inputs for any curvature, by dense float64 matrices.

    Attributes:
        kernel: K ``(N, N)``.
        cross: ``k(X, x)`` ``(N, M)``.
        variance: ``k(x, x)`` ``(M,)``.
    """

    kernel: Tensor
    cross: Tensor
    variance: Tensor

    @classmethod
    def of(cls, case: Case) -> Reference:
        """At the learned hyperparameters."""
        kernel = case.model(torch.float64).covar_module
        train, test = case.problem.train.x.double(), case.test_x(torch.float64)
        with torch.no_grad():
            return cls(kernel(train).to_dense(), kernel(train, test).to_dense(), kernel(test, diag=True))

    def exact(self, curvature: Tensor) -> Tensor:
        """``k - k(x, X) H (I + H^T K H)^{-1} H^T k(X, x)`` ``(M,)`` for a curvature ``(N,)`` with ``H = W^{1/2}``."""
        root = curvature.double().clamp_min(0.0).sqrt()
        joint = root[:, None] * self.kernel * root
        joint.diagonal().add_(1.0)
        factor = torch.linalg.cholesky(joint)
        half = torch.linalg.solve_triangular(factor, root[:, None] * self.cross, upper=False)
        return self.variance - half.square().sum(0)


def ratios(variance: Tensor, exact: Tensor) -> dict[str, float]:
    """Median, smallest, largest, 5 % and 95 % quantiles of variances over the exact ones, and the mean distance of their logarithms."""
    ratio = variance.double() / exact
    return {
        "median": float(ratio.median()),
        "least": float(ratio.min()),
        "most": float(ratio.max()),
        "low": float(ratio.quantile(1.0 - _QUANTILE)),
        "quantile": float(ratio.quantile(_QUANTILE)),
        "distance": float(ratio.clamp_min(1e-12).log().abs().mean()),
    }


def conditioned(
    case: Case, dtype: torch.dtype, approximation: str, solver: SubspaceNewton
) -> tuple[Any, Tensor, float]:
    """The solution, latent variances at test inputs, and the processor seconds that both took."""
    model, x = case.model(dtype, approximation=approximation, solver=solver), case.test_x(dtype)
    begun = time.process_time()
    with torch.no_grad():
        solution = model.condition()
        variance = model(x).variance
    return solution, variance, time.process_time() - begun


def exact_laplace(case: Case, reference: Reference) -> Tensor:
    """The exact variance at the exact mode ``(M,)``."""
    model = case.model(torch.float64, approximation="laplace", solver=DenseNewton(covariance=False))
    with torch.no_grad():
        latent = model.condition().latent_values
        _, curvature = model.observations.derivatives(latent)
    return reference.exact(curvature[:, 0, 0])


def measure(
    case: Case,
    results: Results,
    settings: Mapping[torch.dtype, Iterable[tuple[int, int]]] = MappingProxyType(SETTINGS),
) -> None:
    """Every setting of the variational posterior, against the exact variance for the curvature of its own solution."""
    reference = Reference.of(case)
    for dtype, pairs in settings.items():
        for rank, neighbours in pairs:
            place = {
                "data": case.name,
                "rows": len(case.problem.train.y),
                "dtype": str(dtype).removeprefix("torch."),
                "rank": rank,
                "neighbours": neighbours,
            }
            if results.find("variance", **place) is not None:
                continue
            solver = SubspaceNewton(covariance_rank=rank, num_neighbours=neighbours)
            solution, variance, seconds = conditioned(case, dtype, "variational", solver)
            found = ratios(variance, reference.exact(solution.curvature[:, 0, 0]))
            results.add(
                "variance",
                **place,
                **found,
                seconds=seconds,
                passes=solution.kernel_passes,
                residual=solution.variational_residual,
                ended=solution.status.reason.name,
            )


def run(results: Results, names: Iterable[str] = BINARY, rows: int | None = None, **options: Any) -> None:
    """All data sets."""
    for name in names:
        measure(load(name, results, rows), results, **options)
