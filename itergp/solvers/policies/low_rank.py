"""Low-rank approximations ``K ~ U U^T`` of a kernel matrix, for preconditioning."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.operators import KernelOperator
from itergp.operators.kernel_blocks import kernel_columns

_OVERSAMPLING = 2


def pivoted_cholesky(operator: KernelOperator, rank: int, seed: int = 0) -> Tensor:
    """Partial Cholesky decomposition with the largest remaining variance as pivot (Harbrecht, Peters & Schneider 2012).

    Args:
        operator: K; ``rank`` columns of it are evaluated, which is no kernel pass.
        rank: Number of columns.
        seed: Not used.

    Returns:
        U ``(C', N, rank)`` with ``K - U U^T`` positive semi-definite.
    """
    del seed
    remaining = operator.diagonal().detach().clone()  # (C', N)
    kernels, size = remaining.shape
    root = remaining.new_zeros(kernels, size, rank)
    tiny = 10.0 * torch.finfo(root.dtype).eps * remaining.amax(-1)
    for i in range(rank):
        pivot, rows = remaining.max(-1)
        column = _pivot_columns(operator, rows)
        for c in range(kernels):
            if pivot[c] <= tiny[c]:
                continue
            new = (column[c] - root[c, :, :i] @ root[c, rows[c], :i]) / pivot[c].sqrt()
            root[c, :, i] = new
            remaining[c] = (remaining[c] - new.square()).clamp_min(0.0)
            remaining[c, rows[c]] = 0.0
    return root


def _pivot_columns(operator: KernelOperator, rows: Tensor) -> Tensor:
    """Column ``rows[c]`` of each kernel matrix, ``(C', N)``."""
    unique, position = rows.unique(return_inverse=True)
    columns = kernel_columns(operator, operator.inputs[..., unique, :])
    return columns[torch.arange(rows.numel(), device=rows.device), :, position]


def sketched_eigenvectors(operator: KernelOperator, rank: int, seed: int = 0) -> Tensor:
    """Leading eigenvectors of K by a randomised sketch (Halko, Martinsson & Tropp 2011), computed by ``skerch``.

    Args:
        operator: K; multiplied in two passes per kernel.
        rank: Number of eigenvectors.
        seed: Of the sketch.

    Returns:
        U ``(C', N, rank)``, eigenvectors scaled by the roots of their eigenvalues.

    Raises:
        InputError: If ``skerch`` is not installed.
    """
    try:
        algorithms = importlib.import_module("skerch.algorithms")
    except ImportError as error:
        raise InputError(
            "A sketched preconditioner needs the skerch library. Got an environment without it. Install it by "
            "pip install 'itergp[sketch]', or use PreconditionedCG(method=\"cholesky\")."
        ) from error
    width = min(operator.num_rows, _OVERSAMPLING * rank)
    roots = []
    for c in range(operator.num_kernels):
        product = _Product(operator, c)
        values, vectors = algorithms.seigh(product, operator.device, operator.dtype, width, seed=seed)
        keep = values.argsort(descending=True)[:rank]
        roots.append(vectors[:, keep] * values[keep].clamp_min(0.0).sqrt())
    return torch.stack(roots)


class _Product:
    """One kernel matrix in the interface that ``skerch`` expects: a shape, and products from both sides."""

    def __init__(self, operator: KernelOperator, index: int) -> None:
        self.operator = operator
        self.index = index
        self.shape = (operator.num_rows, operator.num_rows)

    def __matmul__(self, block: Tensor) -> Tensor:
        wide = block if block.dim() == 2 else block.unsqueeze(-1)
        product = self.operator.matmul(wide.to(self.operator.dtype))[self.index]
        return product if block.dim() == 2 else product.squeeze(-1)

    def __rmatmul__(self, block: Tensor) -> Tensor:
        return (self @ block.mT).mT if block.dim() == 2 else self @ block
