"""Which operator to use."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from itergp.errors import InputError
from itergp.operators.base import KernelOperator
from itergp.operators.blocked import BlockedOperator, DenseOperator
from itergp.operators.coupled import JointOperator, KroneckerOperator, kronecker_terms, num_outputs
from itergp.operators.fourier import FourierOperator
from itergp.operators.keops import KeOpsOperator, keops_pays
from itergp.operators.memory import default_memory_budget
from itergp.operators.scan import LEAST_ROWS, LEAST_ROWS_OF_PAIRS, LEAST_ROWS_WITHOUT_MATRIX, ScanOperator
from itergp.operators.scan_form import as_scan_form
from itergp.operators.sharded import ShardedOperator
from itergp.parallel import ALL_ROWS, ProcessPartition, RowPartition
from itergp.parallel.process_group import many_processes

OperatorKind = Literal["auto", "dense", "blocked", "keops", "scan", "fourier", "sharded"]
OperatorClass = type[KernelOperator]


def require_operator(kind: Any) -> None:
    """The choice of an operator must be a known name, or a class of operators.

    Raises:
        InputError: If it is not.
    """
    if isinstance(kind, type) and issubclass(kind, KernelOperator):
        return
    if not isinstance(kind, str) or kind not in get_args(OperatorKind):
        raise InputError(
            f"`operator` must be one of {get_args(OperatorKind)}. Got {kind!r}. Choose one, or pass a subclass of "
            "itergp.operators.KernelOperator."
        )


def make_operator(
    kernel: Kernel,
    inputs: Tensor,
    *,
    num_kernels: int = 1,
    kind: OperatorKind | OperatorClass = "auto",
    memory_budget: int | None = None,
    curvature: float = math.inf,
) -> KernelOperator:
    """Builds the operator for a kernel and its training inputs.

    ``"auto"`` multiplies sums of Matern kernels of one input each, and of a ``PairwiseLaplacianKernel``, by scans, from a few
    thousand rows on, and smooth radial kernels of one to three inputs by Fourier transforms, where curvature is small, and
    their grid small enough for the rows. Of other kernels it keeps the dense matrix when it fits the memory budget. Otherwise
    it uses blocks or, on CUDA for RBF and Matern kernels of at most 64 input dimensions, KeOps where a product of some rows
    shows it to be faster. ``"sharded"`` divides the rows among the processes of ``torch.distributed``; a single process has
    them all, as with ``"auto"``.

    Args:
        kernel: Any GPyTorch kernel.
        inputs: ``(N, D)`` or ``(C, N, D)``.
        num_kernels: 1 for a shared kernel, otherwise C; of a kernel with C outputs per input, which couples them, C too.
        kind: ``"auto"``, ``"dense"``, ``"blocked"``, ``"keops"``, ``"scan"``, ``"fourier"`` or ``"sharded"``, or a subclass
            of ``KernelOperator``.
        memory_budget: Bytes; default a quarter of the free memory.
        curvature: A bound on that of any row: the more a row says, the more errors of products weigh, within which the Fourier
            operator works. Infinity if it is not known.

    Raises:
        InputError: If ``kind`` is unknown, or KeOps or processes are asked for where they cannot work.
    """
    require_operator(kind)
    if num_outputs(kernel, inputs) > 1:
        return _coupled(kernel, inputs, num_kernels, kind, memory_budget)
    if isinstance(kind, type):
        return kind(kernel, inputs, num_kernels=num_kernels, memory_budget=memory_budget)
    if kind == "sharded":
        if many_processes():
            return ShardedOperator(kernel, inputs, num_kernels=num_kernels, memory_budget=memory_budget)
        kind = "auto"
    budget = default_memory_budget(inputs.device) if memory_budget is None else memory_budget
    if kind == "auto" and _scans_pay(kernel, inputs, num_kernels, LEAST_ROWS):
        kind = "scan"
    elif kind == "auto" and (fourier := FourierOperator.where_it_pays(kernel, inputs, num_kernels, budget, curvature)):
        return fourier
    elif kind == "auto" and num_kernels * inputs.shape[-2] ** 2 * inputs.element_size() // 2 <= budget:
        kind = "dense"
    elif kind == "auto":
        kind = "keops" if keops_pays(kernel, inputs, num_kernels, budget) else "blocked"
    operators: dict[OperatorKind, OperatorClass] = {
        "dense": DenseOperator,
        "blocked": BlockedOperator,
        "keops": KeOpsOperator,
        "scan": ScanOperator,
        "fourier": FourierOperator,
    }
    return operators[kind](kernel, inputs, num_kernels=num_kernels, memory_budget=budget)


def kind_without_matrix(kernel: Kernel, inputs: Tensor, num_kernels: int) -> OperatorKind:
    """How products are computed that keep no matrix, such as those with derivatives: by scans where these pay, or in blocks.

    Args:
        kernel: Any GPyTorch kernel.
        inputs: ``(N, D)`` or ``(C, N, D)``.
        num_kernels: 1 for a shared kernel, otherwise C.
    """
    return "scan" if _scans_pay(kernel, inputs, num_kernels, LEAST_ROWS_WITHOUT_MATRIX) else "blocked"


def _scans_pay(kernel: Kernel, inputs: Tensor, num_kernels: int, least_rows: int) -> bool:
    """Whether products are by scans from so many rows on, or with pairs of inputs from more."""
    rows = inputs.shape[-2]
    form = as_scan_form(kernel, num_kernels, inputs.shape[-1]) if rows >= least_rows else None
    return form is not None and rows >= least_rows * (LEAST_ROWS_OF_PAIRS if form.pairs else 1)


def _coupled(
    kernel: Kernel, inputs: Tensor, num_kernels: int, kind: OperatorKind | OperatorClass, memory_budget: int | None
) -> KernelOperator:
    """The operator of latent functions that are coupled.

    Raises:
        InputError: For an operator of the user's, or one that divides the rows among processes.
    """
    if isinstance(kind, type):
        raise InputError(
            f"A kernel that couples latent functions has operators of its own. Got {kind.__name__} for "
            f"{type(kernel).__name__}. Use operator='auto'."
        )
    if kind == "sharded" and many_processes():
        raise InputError(
            "Rows can be divided among processes where latent functions are not coupled. Got "
            f"{type(kernel).__name__} with operator='sharded'. Use operator='auto' in one process."
        )
    budget = default_memory_budget(inputs.device) if memory_budget is None else memory_budget
    terms = kronecker_terms(kernel)
    if terms is None:
        keep = kind in ("auto", "dense", "sharded")
        return JointOperator(kernel, inputs, num_kernels=num_kernels, memory_budget=budget, keep=keep)
    share = budget // len(terms)

    def make(part: Kernel, columns: Tensor) -> KernelOperator:
        return make_operator(part, columns, kind=kind, memory_budget=share)

    return KroneckerOperator(kernel, inputs, num_kernels=num_kernels, make=make, memory_budget=budget)


def own_rows(kind: OperatorKind | OperatorClass, total: int, device: torch.device) -> RowPartition:
    """Which of so many training rows an operator of this kind will hold in this process.

    Args:
        kind: How kernel products are computed.
        total: Number of training rows, of all processes.
        device: Where the rows are.

    Raises:
        InputError: If there are fewer rows than processes, or these cannot work together.
    """
    return ProcessPartition.divide(total, device) if kind == "sharded" and many_processes() else ALL_ROWS
