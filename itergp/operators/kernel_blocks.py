"""Kernel columns at some rows or inputs: products that are no pass over the kernel matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from itergp.operators import KernelOperator
from itergp.operators.blocked import BlockedOperator


def multiply_rows(operator: KernelOperator, rows: Tensor, values: Tensor) -> Tensor:
    """``K[:, rows]`` times ``(m, C, k)``: ``(N, C, k)``, at the cost of m kernel columns."""
    size, latents, width = values.shape
    some, alone = _at(operator, operator.inputs[..., rows, :]), operator.own_variance(rows)
    if operator.num_kernels == 1:
        product = some.cross_matmul(operator.inputs, values.reshape(size, latents * width))[0]
        product = product.unflatten(-1, (latents, width))
    else:
        product = some.cross_matmul(operator.inputs, values.movedim(1, 0)).movedim(0, 1)
    return product if alone is None else product.index_add(0, rows, alone.mT.unsqueeze(-1) * values)


def kernel_columns(operator: KernelOperator, points: Tensor) -> Tensor:
    """``k(X, z)`` for points ``(m, D)`` or ``(C', m, D)``: ``(C', N, m)``."""
    units = torch.eye(points.shape[-2], dtype=operator.dtype, device=operator.device)
    return _at(operator, points).cross_matmul(operator.inputs, units)


def restricted(operator: KernelOperator, rows: Tensor | None) -> KernelOperator:
    """The kernel at some of the training rows, for products across to other inputs; None for all."""
    if rows is None:
        return operator
    points, budget = operator.inputs[..., rows, :], operator.memory_budget
    return BlockedOperator(operator.kernel, points, num_kernels=operator.num_kernels, memory_budget=budget)


def _at(operator: KernelOperator, points: Tensor) -> BlockedOperator:
    operator.counts.entries += operator.num_kernels * operator.num_rows * points.shape[-2]
    budget = operator.memory_budget
    return BlockedOperator(operator.kernel, points, num_kernels=operator.num_kernels, memory_budget=budget)
