"""Kernels of pairs of inputs: what a product costs, and what a model of pairs that interact does."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from gpytorch.kernels import ScaleKernel

from benchmarks.data import INTERACTIONS, interacting_binary
from benchmarks.models import scores
from benchmarks.scale.items import peak_memory
from itergp.diagnostics import class_probabilities
from itergp.kernels import AdditiveLaplacianKernel, PairwiseLaplacianKernel
from itergp.likelihoods import BernoulliLikelihood
from itergp.models import GP
from itergp.operators import KernelOperator, make_operator

_ROWS_OF_BLOCKS = 20_000  # from which the time of more is extrapolated


def pairs_pass(rows: int) -> dict[str, Any]:
    """Products with the kernel of one pair of inputs, beside those of one input, and of blocks of fewer rows."""
    x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0))
    kernel, found = PairwiseLaplacianKernel([(0, 1)]), {}
    kernel.lengthscale = 1.0
    kinds = {"pair": kernel, "column": AdditiveLaplacianKernel(1, active_dims=(0,))}
    with torch.no_grad():
        for name, part in kinds.items():
            begun = time.process_time()
            operator = make_operator(part, x, kind="scan")
            single = operator.matmul(torch.ones(rows, 1)).double()
            found[f"{name}, first"] = time.process_time() - begun
            found |= {f"{name}, {columns}": _seconds(operator, columns) for columns in (1, 8)}
            found[f"{name}, held"] = operator.held_memory / 2**30
            if name == "pair":
                double = make_operator(copy.deepcopy(kernel).double(), x.double(), kind="scan")
                exact = double.matmul(torch.ones(rows, 1).double())
                found["error"] = float((single - exact).norm() / exact.norm())
                del double
        few = make_operator(kernel, x[:_ROWS_OF_BLOCKS], kind="blocked")
        found["blocks"] = _seconds(few, 1) * (rows / _ROWS_OF_BLOCKS) ** 2
    return {**found, "memory": peak_memory()}


def _seconds(operator: KernelOperator, columns: int) -> float:
    """CPU seconds of the faster of two products."""
    block, seconds = torch.ones(operator.num_rows, columns), []
    for _ in range(2):
        begun = time.process_time()
        operator.matmul(block)
        seconds.append(time.process_time() - begun)
    return min(seconds)


def pairs(rows: int, inputs: int = 10) -> dict[str, Any]:
    """Functions of single inputs and of two pairs of them, at given hyperparameters, with a kernel that has these pairs and without."""
    data, found = interacting_binary(rows, inputs), {}
    for name in ("with", "without"):
        effects = ScaleKernel(AdditiveLaplacianKernel(inputs))
        effects.outputscale = 4.0
        interactions = ScaleKernel(PairwiseLaplacianKernel(INTERACTIONS))
        interactions.outputscale = 2.0
        kernel = effects + interactions if name == "with" else effects
        begun = time.process_time()
        model = GP(data.train_x, data.train_y, BernoulliLikelihood(), kernel=kernel, approximation="laplace").eval()
        solution = model.condition()
        conditioned = time.process_time()
        probs = class_probabilities(model.predict(data.test_x).probs)
        assert solution.certificate is not None
        found[name] = {
            "seconds": conditioned - begun,
            "prediction": time.process_time() - conditioned,
            "passes": solution.kernel_passes,
            "gap_per_row": solution.certificate.objective_gap / rows,
            **scores(probs, data),
        }
    return {**found, "memory": peak_memory()}
