"""Kernel columns at some rows or inputs: products that are no pass over the kernel matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.operators import AbstractOperator, KernelOperator, make_operator


def multiply_rows(operator: KernelOperator, rows: Tensor, values: Tensor) -> Tensor:
    """``K[:, rows]`` times ``(m, C, k)``: ``(N, C, k)``, at the cost of m kernel columns."""
    size, latents, width = values.shape
    some, alone = _at(operator, operator.inputs[..., rows, :]), operator.own_product(rows, values)
    if operator.num_kernels == 1:
        product = some.cross_matmul(operator.inputs, values.reshape(size, latents * width))[0]
        product = product.unflatten(-1, (latents, width))
    else:
        product = some.cross_matmul(operator.inputs, values.movedim(1, 0)).movedim(0, 1)
    return product if alone is None else product.index_add(0, rows, alone)


def kernel_columns(operator: KernelOperator, points: Tensor) -> Tensor:
    """``k(X, z)`` for points ``(m, D)`` or ``(C', m, D)``: ``(C', N, m)``.

    Raises:
        InputError: If latent functions are coupled.
    """
    require_uncoupled(operator, "Kernel columns of every latent function by itself")
    units = torch.eye(points.shape[-2], dtype=operator.dtype, device=operator.device)
    return _at(operator, points).cross_matmul(operator.inputs, units)


def joint_columns(operator: KernelOperator, points: Tensor) -> Tensor:
    """``Cov(f_c(x_n), f_d(z_m))`` ``(N, C, m, C)`` for points ``(m, D)``, where latent functions are coupled."""
    size, latents = points.shape[-2], operator.num_kernels
    units = torch.eye(size * latents, dtype=operator.dtype, device=operator.device).view(size, latents, -1)
    columns = _at(operator, points).cross_matmul(operator.inputs, units.movedim(1, 0))
    return columns.movedim(0, 1).unflatten(-1, (size, latents))


def restricted(operator: KernelOperator, rows: Tensor | None) -> KernelOperator:
    """The kernel at some of the training rows, for products across to other inputs; None for all."""
    if rows is None:
        return operator
    return at_points(operator, operator.inputs[..., rows, :])


def at_points(operator: KernelOperator, points: Tensor) -> KernelOperator:
    """The operator of the same kernel at other inputs, its entries evaluated in blocks."""
    settings: dict[str, Any] = {"num_kernels": operator.num_kernels, "memory_budget": operator.memory_budget}
    return make_operator(operator.kernel, points, kind="blocked", **settings)


def require_uncoupled(operator: AbstractOperator, what: str) -> None:
    """Latent functions must not be coupled.

    Args:
        operator: K.
        what: Needs that.

    Raises:
        InputError: If they are.
    """
    if operator.couples_latents:
        raise InputError(
            f"{what} must be those of latent functions that are not coupled. Got {type(operator).__name__}, which couples "
            "them. Use SubspaceNewton() with its default policy, or IterNCGP with CG, Gradient, ClassGradient or UnitVectors."
        )


def _at(operator: KernelOperator, points: Tensor) -> KernelOperator:
    operator.counts.entries += operator.num_kernels * operator.num_rows * points.shape[-2]
    return at_points(operator, points)
