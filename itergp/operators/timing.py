"""How long a product takes here, found by making it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from itergp.numerics.sampling import sample_of_rows
from itergp.operators.base import KernelOperator
from itergp.operators.blocked import BlockedOperator

FEW_COLUMNS = 8  # of a product whose time is that of evaluating entries
_COLUMNS = 128
_SAMPLE_ROWS = 3072


def seconds_of_product(operator: KernelOperator, columns: int) -> float:
    """The faster of two products with so many columns; the first also warms up, and compiles."""
    block = torch.ones(operator.num_rows, columns, dtype=operator.dtype, device=operator.device)
    block = block.expand(operator.num_kernels, -1, -1) if operator.couples_latents else block
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        float(operator.matmul(block).sum())  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


@dataclass(frozen=True)
class Rates:
    """How fast a kernel is here.

    Attributes:
        seconds_per_entry: Of evaluating kernel entries.
        seconds_per_multiplication: Multiply-adds in products with many columns.
        seconds_per_row: Of every column of a product that needs no entries, 0 for others.
    """

    seconds_per_entry: float
    seconds_per_multiplication: float
    seconds_per_row: float = 0.0

    @classmethod
    @torch.no_grad()
    def measured(cls, operator: KernelOperator) -> Rates:
        """Times products with the kernel matrix of some rows: a fraction of a second."""
        rows, kernels = sample_of_rows(operator.inputs, _SAMPLE_ROWS), operator.num_kernels
        own = operator.timing_sample(rows)
        blocked = own is None or not operator.couples_latents
        sample = BlockedOperator(operator.kernel, rows, num_kernels=kernels) if blocked else own
        assert sample is not None
        few, many = (seconds_of_product(sample, columns) for columns in (FEW_COLUMNS, FEW_COLUMNS + _COLUMNS))
        per_multiplication = max(many - few, 0.0) / (sample.entries_of_pass * _COLUMNS)
        if own is not None and not own.evaluates_matrix and not operator.couples_latents:
            seconds = seconds_of_product(own, FEW_COLUMNS) / (FEW_COLUMNS * own.num_rows)
            return cls(few / sample.entries_evaluated, per_multiplication, seconds)
        if own is not None:  # many columns are multiplied in blocks there too
            few = seconds_of_product(own, FEW_COLUMNS)
        return cls(few / sample.entries_evaluated, per_multiplication)
