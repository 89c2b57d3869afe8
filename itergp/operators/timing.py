"""How long a product takes here, found by making it."""

from __future__ import annotations

import time

import torch

from itergp.operators.base import KernelOperator

FEW_COLUMNS = 8  # of a product whose time is that of evaluating entries


def seconds_of_product(operator: KernelOperator, columns: int) -> float:
    """The faster of two products with so many columns; the first also warms up, and compiles."""
    block = torch.ones(operator.num_rows, columns, dtype=operator.dtype, device=operator.device)
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        float(operator.matmul(block).sum())  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
