"""What is measured, each in a process of its own so that its peak memory is its own."""

from __future__ import annotations

import math
import multiprocessing
import platform
import resource
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gpytorch
import numpy as np
import torch

import itergp
from benchmarks import rivals
from benchmarks.data import Split, additive_binary, flights, mixture, smooth_binary, write_additive
from benchmarks.models import default_model, given_model, scores
from itergp.diagnostics import class_probabilities
from itergp.kernels import AdditiveLaplacianKernel
from itergp.likelihoods import BernoulliLikelihood
from itergp.models import GP, LeafGP
from itergp.operators import make_operator
from itergp.solvers import LinearTimeNewton, SubspaceNewton
from itergp.tables import TableEncoder, TableFile


def peak_memory() -> float:
    """Largest resident memory of this process so far, in GiB."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def kernel_pass(rows: list[int], columns: int = 10, repeats: int = 5) -> dict[str, Any]:
    """Passes of a Matern-3/2 kernel, the best of some, next to a plain loop over half the matrix.

    Sizes take turns, so that a machine whose speed changes does so for all of them.
    """
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)).requires_grad_(False)
    kernel.outputscale, kernel.base_kernel.lengthscale = 1.0, 1.0
    calls = []
    for size in rows:
        x = torch.randn(size, 3, generator=torch.Generator().manual_seed(0))
        block = torch.randn(size, columns, generator=torch.Generator().manual_seed(1))
        operator = make_operator(kernel, x, kind="blocked")
        calls.append((partial(operator.matmul, block), partial(_plain_pass, x, block)))
    seconds = [([math.inf], [math.inf]) for _ in rows]
    for _ in range(repeats):
        for pair, found in zip(calls, seconds, strict=True):
            for call, own in zip(pair, found, strict=True):
                begun = time.perf_counter()
                call()
                own.append(time.perf_counter() - begun)
    return {
        "by_rows": [
            {"rows": size, "seconds": min(ours), "plain_seconds": min(plain)}
            for size, (ours, plain) in zip(rows, seconds, strict=True)
        ]
    }


def _plain_pass(x: torch.Tensor, block: torch.Tensor, step: int = 1000) -> torch.Tensor:
    """What one would write by hand: blocks on and above the diagonal, each for its rows and its columns."""
    scaled = 3.0**0.5 * x
    out = torch.zeros_like(block)
    for i in range(0, len(x), step):
        for j in range(i, len(x), step):
            distance = torch.cdist(scaled[i : i + step], scaled[j : j + step])
            entries = (1.0 + distance) * torch.exp(-distance)
            out[i : i + step] += entries @ block[j : j + step]
            if j > i:
                out[j : j + step] += entries.mT @ block[i : i + step]
    return out


def full(rows: int, rank: int = 100, max_passes: int = 12) -> dict[str, Any]:
    """A mixture of ten classes by the full method, hyperparameters given: the mode, then one variational round."""
    data, records = mixture(rows), []
    begun = time.perf_counter()
    model = given_model(data, 1.0, 10.0, solver=SubspaceNewton(covariance_rank=rank, max_passes=max_passes)).eval()
    plan = model.plan()
    solution = model.condition(callback=lambda record: records.append(record))
    seconds = time.perf_counter() - begun
    probs = model.predict(data.test_x).probs
    assert solution.certificate is not None
    return {
        "plan": str(plan),
        "seconds": seconds,
        "seconds_by_pass": [(r.stage, r.kernel_passes, r.seconds, r.objective_gap) for r in records],
        "passes": solution.kernel_passes,
        "gap_per_row": solution.certificate.objective_gap / rows,
        "memory": peak_memory(),
        **scores(class_probabilities(probs), data),
    }


def mode(rows: int, time_limit: float | None = None) -> dict[str, Any]:
    """The same problem for the mode alone: test NLL, plugged in, after a number of passes."""
    data = mixture(rows)
    begun = time.perf_counter()
    solver = SubspaceNewton(covariance_rank=0, time_limit=time_limit)
    model = given_model(data, 1.0, 10.0, solver=solver, approximation="laplace").eval()
    solution = model.condition()
    seconds = time.perf_counter() - begun
    assert solution.certificate is not None
    return {
        "seconds": seconds,
        "passes": solution.kernel_passes,
        "gap_per_row": solution.certificate.objective_gap / rows,
        "memory": peak_memory(),
        **scores(model.predict(data.test_x, tempering=math.inf).probs, data),
    }


def _end_to_end(data: Split, solver: LinearTimeNewton, **options: Any) -> dict[str, Any]:
    begun = time.perf_counter()
    model = default_model(data)
    model.solver = solver
    result = itergp.fit(model, **options)
    probs = class_probabilities(model.predict(data.test_x).probs)
    return {
        "seconds": time.perf_counter() - begun,
        "learning": result.seconds["learn"],
        "conditioning": result.seconds["condition"],
        "support": result.solution.space.rows.numel(),
        "memory": peak_memory(),
        "boosting": scores(rivals.boosting(data), data)["nll"],
        **scores(probs, data),
    }


def flights_in_time(support: int) -> dict[str, Any]:
    """NYC flights from raw data to predictions in linear time."""
    return _end_to_end(flights(), LinearTimeNewton(num_support=support))


def flights_svgp(seconds: float) -> dict[str, Any]:
    """NYC flights by GPyTorch's SVGP with 1,000 inducing points."""
    data, found = flights(), []
    rivals.svgp(data, seconds, lambda probs, used: found.append((used, scores(probs, data)["nll"])), num_inducing=1000)
    return {"seconds": seconds, "nll": found[-1][1], "by_seconds": found, "memory": peak_memory()}


def million(rows: int) -> dict[str, Any]:
    """A synthetic binary problem from raw data to predictions in linear time."""
    return _end_to_end(smooth_binary(rows), LinearTimeNewton())


def leaves(data: str, rows: int, method: str, size: int) -> dict[str, Any]:
    """Leaves of so many rows, or a support of as many, at hyperparameters learned before: CPU seconds, certified gap, scores."""
    split = flights() if data == "flights" else smooth_binary(rows)
    split = replace(split, train_x=split.train_x[:rows], train_y=split.train_y[:rows])
    model = default_model(split)
    model.solver = LinearTimeNewton(num_support=256)  # of what follows learning, and is not measured
    itergp.fit(model)
    model.eval()
    begun = time.process_time()
    model.solver = SubspaceNewton() if method == "leaves" else LinearTimeNewton(num_support=size)
    predictor = LeafGP(model, num_rows=size) if method == "leaves" else model
    predictor.condition()
    conditioned = time.process_time()
    probs = class_probabilities(predictor.predict(split.test_x, tempering=0.0).probs)
    predicted = time.process_time()
    found: dict[str, Any] = {"leaves": 0, "leaf_rows": 0}
    if isinstance(predictor, LeafGP):
        found = {"leaves": predictor.num_leaves, "leaf_rows": sum(predictor.leaf_sizes)}
        found["gap_per_row"] = (predictor.objective_gap or math.nan) / found["leaf_rows"]
    return {
        "seconds": conditioned - begun,
        "prediction": predicted - conditioned,
        "memory": peak_memory(),
        **found,
        **scores(probs, split),
    }


def additive(rows: int, inputs: int = 10, approximation: str = "laplace") -> dict[str, Any]:
    """A sum of rough functions of single inputs at given hyperparameters: mode, certificate, covariance and predictions."""
    data = additive_binary(rows, inputs)
    likelihood, kernel = BernoulliLikelihood(), AdditiveLaplacianKernel(inputs)
    begun = time.process_time()
    model = GP(data.train_x, data.train_y, likelihood, kernel=kernel, approximation=approximation).eval()
    solution = model.condition()
    conditioned = time.process_time()
    probs = class_probabilities(model.predict(data.test_x).probs)
    predicted = time.process_time()
    assert solution.certificate is not None
    phases = solution.trace.phase_seconds
    return {
        "seconds": conditioned - begun,
        "prediction": predicted - conditioned,
        "wall_seconds_by_phase": phases,
        "passes": solution.kernel_passes,
        "status": str(solution.status),
        "gap_per_row": solution.certificate.objective_gap / rows,
        "variance": float(solution.latent_covariance.mean()),
        "memory": peak_memory(),
        **scores(probs, data),
    }


def additive_file(
    rows: int, inputs: int = 10, test_rows: int = 10_000, memory_budget: int | None = None
) -> dict[str, Any]:
    """The same from a Parquet file, hyperparameters given: read, encoded, mode, certificate, covariance and predictions."""
    with tempfile.TemporaryDirectory() as folder:
        train, test = Path(folder) / "train.parquet", Path(folder) / "test.parquet"
        for path, size, seed in ((train, rows, 0), (test, test_rows, 1)):
            writer = multiprocessing.get_context("spawn").Process(
                target=write_additive, args=(path, size, inputs, seed)
            )
            writer.start()
            writer.join()
        begun = time.process_time()
        table = TableFile(train)
        encoder = TableEncoder().fit(table.without("y"))
        x = torch.from_numpy(encoder.transform(table.without("y"), dtype=np.float32))
        y = torch.from_numpy(table["y"].to_numpy(np.int64))
        read = time.process_time()
        options: dict[str, Any] = {"approximation": "laplace", "memory_budget": memory_budget}
        model = GP(x, y, BernoulliLikelihood(), kernel=AdditiveLaplacianKernel(inputs), **options).eval()
        del x, y
        plan = model.plan()
        solution = model.condition()
        conditioned = time.process_time()
        held_out = TableFile(test)
        test_x = torch.from_numpy(encoder.transform(held_out.without("y"), dtype=np.float32))
        probs = class_probabilities(model.predict(test_x).probs)
        predicted = time.process_time()
        y = torch.from_numpy(held_out["y"].to_numpy(np.int64))
    assert solution.certificate is not None
    return {
        "read": read - begun,
        "seconds": conditioned - read,
        "prediction": predicted - conditioned,
        "wall_seconds_by_phase": solution.trace.phase_seconds,
        "plan": str(plan),
        "passes": solution.kernel_passes,
        "rank": solution.rank,
        "status": str(solution.status),
        "gap_per_row": solution.certificate.objective_gap / rows,
        "variance": float(solution.latent_covariance.mean()),
        "memory": peak_memory(),
        "nll": float(-probs[torch.arange(len(y)), y].log().mean()),
    }


def cost(rows: int, method: str) -> dict[str, Any]:
    """The mode of a binary problem at given hyperparameters."""
    data = smooth_binary(rows)
    solver = SubspaceNewton(covariance_rank=0) if method == "full" else LinearTimeNewton(covariance_rank=0)
    model = given_model(data, 2.0, 10.0, solver=solver, approximation="laplace").eval()
    begun = time.perf_counter()
    solution = model.condition()
    seconds = time.perf_counter() - begun
    probs = class_probabilities(model.predict(data.test_x, tempering=math.inf).probs)
    return {
        "seconds": seconds,
        "passes": solution.kernel_passes,
        "directions": solution.space.rank,
        "memory": peak_memory(),
        **scores(probs, data),
    }


def cost_svgp(rows: int, num_inducing: int = 500) -> dict[str, Any]:
    """GPyTorch's SVGP after half a minute of training."""
    data, found = smooth_binary(rows), []
    seconds = 30.0
    rivals.svgp(data, seconds, lambda probs, used: found.append(scores(probs, data)["nll"]), num_inducing=num_inducing)
    return {"seconds": seconds, "nll": found[-1], "memory": peak_memory()}
