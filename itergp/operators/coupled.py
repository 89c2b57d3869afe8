"""Operators of latent functions that are coupled: ``K`` is no longer block-diagonal over them."""

from __future__ import annotations

import functools
import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from gpytorch.kernels import AdditiveKernel, Kernel, LCMKernel, MultitaskKernel, ScaleKernel
from linear_operator import to_linear_operator
from linear_operator.operators import KroneckerProductLinearOperator, LinearOperator, SumLinearOperator
from torch import Tensor

from itergp.errors import InputError
from itergp.operators.base import KernelOperator
from itergp.operators.derived import CalledKernel, DerivedKernel, SumOfTerms
from itergp.operators.radial import evaluate_kernel
from itergp.operators.recompute import Recomputation
from itergp.operators.special import has_own_diagonal
from itergp.operators.tiles import slices

_ROWS_AT_ONCE = 32  # whose covariances among their own outputs are cut out of one block
_SHARE_KEPT = 0.5  # of the memory budget that a kept matrix may take

MakeOperator = Callable[[Kernel, Tensor], KernelOperator]


class CoupledOperator(KernelOperator):
    """The prior covariance of C coupled latent functions: ``Cov(f_c(x), f_d(x')) = k_cd(x, x')``.

    Blocks are ``(C, N, k)``, those of one vector over all latent functions; matrices of entries are ``(1, n C, m C)``, with the
    latent functions of a row side by side. The kernels of a batch are not: they come as ``(C, n, m)``, latent functions apart.

    Args:
        kernel: A kernel with C outputs per input.
        inputs: Training inputs ``(N, D)``.
        num_kernels: C.
        memory_budget: Bytes for cached entries and blocks; default a quarter of the free memory.
    """

    @property
    def couples_latents(self) -> bool:
        """They are."""
        return True

    @property
    def evaluates_groups(self) -> bool:
        """Neighbours are not conditioned on."""
        return False

    # --------------------------------------------------------------- products
    def matmul(self, block: Tensor) -> Tensor:
        """``K`` times a block ``(C, N, k)``: ``(C, N, k)``, in one pass."""
        started = time.perf_counter()
        product = self._product(self.inputs, self._checked(block), training=True)
        self.counts.passes += 1
        self.counts.columns += block.shape[-1]
        self.counts.seconds += time.perf_counter() - started
        return product

    def cross_matmul(self, inputs: Tensor, block: Tensor) -> Tensor:
        """``k(inputs, X)`` times a block ``(C, N, k)``: ``(C, M, k)``, for inputs ``(M, D)``."""
        return self._product(inputs, self._checked(block), training=False)

    def _cross_with_grad(self, rows: Tensor, cols: Tensor, block: Tensor, *, value: bool = True) -> Tensor:
        return self._product(rows, self._checked(block), training=rows is cols)

    def with_columns(self, rows: Tensor, use: Callable[[slice, Tensor], None]) -> None:
        """Hands a function the columns of all latent values of some training rows, a block at a time.

        Args:
            rows: Row numbers ``(m,)``.
            use: Function of a slice of the rows and the block ``(1, b C, m C)``.
        """
        for i in self._row_slices(self.num_rows):
            numbers = torch.arange(i.start, i.stop, device=rows.device)
            entries = self.entries(numbers, rows)
            own = self.own_covariance(rows)
            if own is not None:
                same = (numbers.unsqueeze(-1) == rows).to(entries)
                entries = entries + (same[:, None, :, None] * own.movedim(0, 1)[None]).reshape(entries.shape)
            use(i, entries)

    def own_product(self, rows: Tensor, values: Tensor) -> Tensor | None:
        """What training rows ``(m,)`` have with themselves beyond equal rows, times ``(m, C, k)``; None for nothing."""
        own = self.own_covariance(rows)
        return None if own is None else torch.bmm(own, values)

    def own_covariance(self, rows: Tensor) -> Tensor | None:
        """What the covariances ``(m, C, C)`` of training rows with themselves are above those with equal rows, or None."""
        return None

    def own_variance(self, rows: Tensor) -> Tensor | None:
        """The diagonal of ``own_covariance``, ``(C, m)``."""
        own = self.own_covariance(rows)
        return None if own is None else own.diagonal(dim1=-2, dim2=-1).mT

    def diagonal(self, inputs: Tensor | None = None) -> Tensor:
        """Prior variances ``(C, M)`` at ``inputs`` (default: the training inputs); differentiable."""
        return self.row_covariance(inputs).diagonal(dim1=-2, dim2=-1).mT

    def dense(self) -> Tensor:
        """The matrix ``(1, N C, N C)``, for small N: one pass."""
        everything = torch.arange(self.num_rows, device=self.device)
        self.counts.passes += 1
        return self.entries(everything, everything)

    def _checked(self, block: Tensor) -> Tensor:
        if block.dim() != 3 or block.shape[0] != self.num_kernels:
            raise InputError(
                f"A block must have shape ({self.num_kernels}, N, k) where latent functions are coupled. Got "
                f"{tuple(block.shape)}. Use itergp.posterior.precision.multiply, which takes (N, C, k)."
            )
        return block

    def _matmul(self, block: Tensor) -> Tensor:
        return self._product(self.inputs, block, training=True)

    # -------------------------------------------------- what a subclass gives
    @abstractmethod
    def _product(self, inputs: Tensor, block: Tensor, *, training: bool) -> Tensor:
        """``k(inputs, X)`` times ``(C, N, k)``: ``(C, M, k)``; with ``training`` the inputs are the training inputs."""

    @abstractmethod
    def row_covariance(self, inputs: Tensor | None = None) -> Tensor:
        """Prior covariances between the latent functions of each row ``(M, C, C)``; differentiable."""

    @abstractmethod
    def entries(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Entries ``(1, n C, m C)`` between the latent values of training rows ``(n,)`` and ``(m,)``."""

    @property
    @abstractmethod
    def entries_of_pass(self) -> int:
        """Kernel entries that a pass multiplies by."""


@dataclass(frozen=True)
class Term:
    """One of the terms ``k(x, x') B_cd`` of a sum.

    Attributes:
        kernel: k.
        tasks: B ``(C, C)``, with derivatives.
        columns: Of the inputs that k sees; None for all.
    """

    kernel: Kernel
    tasks: Tensor
    columns: slice | None = None


class KroneckerOperator(CoupledOperator):
    """``K = sum_q K_q (x) B_q``, with kernels of the inputs and covariances of the outputs: ``MultitaskKernel``, ``LCMKernel``.

    Cost of a pass: one pass over every ``K_q`` with ``C k`` columns, and ``N C^2 k`` operations.

    Args:
        kernel: A kernel of which ``kronecker_terms`` knows the terms.
        inputs: Training inputs ``(N, D)``.
        num_kernels: C.
        memory_budget: Bytes for cached entries and blocks.
        make: Makes the operator of one ``K_q``.
    """

    def __init__(
        self, kernel: Kernel, inputs: Tensor, *, num_kernels: int, make: MakeOperator, memory_budget: int | None = None
    ) -> None:
        super().__init__(kernel, inputs, num_kernels=num_kernels, memory_budget=memory_budget)
        self._make = make
        self.parts = [make(term.kernel, _columns(term, inputs)) for term in self._terms()]

    def timing_sample(self, inputs: Tensor) -> KernelOperator:
        """The operator at some inputs."""
        return KroneckerOperator(
            self.kernel, inputs, num_kernels=self.num_kernels, make=self._make, memory_budget=self.memory_budget
        )

    def _terms(self) -> list[Term]:
        """The terms as they are now: covariances of the outputs with derivatives, if these are wanted."""
        terms = kronecker_terms(self.kernel)
        assert terms is not None
        return terms

    @property
    def keeps_entries(self) -> bool:  # type: ignore[override]
        """Whether every part does."""
        return all(part.keeps_entries for part in self.parts)

    @property
    def entries_of_pass(self) -> int:
        """Those of every part: outputs cost none."""
        return sum(part.num_rows**2 for part in self.parts)

    def scaled_inputs(self, inputs: Tensor | None = None) -> Tensor:
        """Inputs ``(M, D)`` in which distance means what it means to the first kernel of the inputs."""
        return self.parts[0].scaled_inputs(None if inputs is None else _columns(self._terms()[0], inputs))

    def release(self) -> None:
        """Frees cached kernel entries."""
        super().release()
        for part in self.parts:
            part.release()

    def row_covariance(self, inputs: Tensor | None = None) -> Tensor:
        """``sum_q k_q(x, x) B_q`` ``(M, C, C)``."""
        total = None
        for term, part in zip(self._terms(), self.parts, strict=True):
            variance = part.diagonal(None if inputs is None else _columns(term, inputs))[0]
            own = variance[:, None, None] * term.tasks
            total = own if total is None else total + own
        assert total is not None
        return total

    def own_covariance(self, rows: Tensor) -> Tensor | None:
        """Those of the parts times the covariances of the outputs."""
        total = None
        for term, part in zip(self._terms(), self.parts, strict=True):
            variance = part.own_variance(rows)
            if variance is not None:
                own = variance[0][:, None, None] * term.tasks.detach()
                total = own if total is None else total + own
        return total

    def entries(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Entries ``(1, n C, m C)``."""
        return self._summed(lambda part: part.entries(rows, cols)[0])

    def dense(self) -> Tensor:
        """The matrix ``(1, N C, N C)``."""
        matrix = self._summed(lambda part: part.dense()[0])
        self.counts.passes += 1
        return matrix

    def covariance(self, inputs: Tensor) -> LinearOperator:
        """The prior covariance ``(M C, M C)`` between new inputs ``(M, D)``; lazy."""
        terms = [
            KroneckerProductLinearOperator(part.covariance(_columns(term, inputs)), to_linear_operator(term.tasks))
            for term, part in zip(self._terms(), self.parts, strict=True)
        ]
        return terms[0] if len(terms) == 1 else SumLinearOperator(*terms)

    def _summed(self, entries: Callable[[KernelOperator], Tensor]) -> Tensor:
        total = None
        for term, part in zip(self._terms(), self.parts, strict=True):
            before = part.counts.entries
            own = torch.kron(entries(part), term.tasks.detach())
            self.counts.entries += part.counts.entries - before
            total = own if total is None else total.add_(own)
        assert total is not None
        return total.unsqueeze(0)

    def _product(self, inputs: Tensor, block: Tensor, *, training: bool) -> Tensor:
        latents, size, width = block.shape
        flat = block.movedim(0, 1).reshape(size, latents * width)
        total = None
        for term, part in zip(self._terms(), self.parts, strict=True):
            before = part.counts.entries
            found = part.matmul(flat) if training else part.cross_matmul(_columns(term, inputs), flat)
            self.counts.entries += part.counts.entries - before
            mixed = torch.einsum("cd,ndk->cnk", term.tasks.to(found), found[0].unflatten(-1, (latents, width)))
            total = mixed if total is None else total + mixed
        assert total is not None
        return total


class JointOperator(CoupledOperator):
    """Any kernel with several outputs per input, such as a kernel of a function and its derivatives.

    Entries are evaluated in blocks of rows, or kept where all of them take no more than half of the memory budget.

    Cost of a pass: ``(N C)^2`` kernel entries, and as many multiply-adds per column.

    Args:
        kernel: A kernel with C outputs per input.
        inputs: Training inputs ``(N, D)``.
        num_kernels: C.
        memory_budget: Bytes for kept entries and blocks; default a quarter of the free memory.
        keep: Whether entries may be kept.

    Raises:
        InputError: For a kernel of inducing points, whose covariance of a row with itself is one of its own.
    """

    def __init__(
        self, kernel: Kernel, inputs: Tensor, *, num_kernels: int, memory_budget: int | None = None, keep: bool = True
    ) -> None:
        super().__init__(kernel, inputs, num_kernels=num_kernels, memory_budget=memory_budget)
        if has_own_diagonal(kernel):
            raise InputError(
                "A kernel of inducing points with several outputs must be the data_covar_module of a MultitaskKernel. Got "
                f"another in {type(kernel).__name__}. Use the base kernel itself."
            )
        needed = self.entries_of_pass * inputs.element_size()
        self.keeps_entries = keep and needed <= _SHARE_KEPT * self.memory_budget
        self._kept: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files are without the entries, which can be evaluated again."""
        return {**vars(self), "_kept": None}

    def timing_sample(self, inputs: Tensor) -> KernelOperator:
        """The operator at some inputs, which keeps nothing."""
        budget = self.memory_budget
        return JointOperator(self.kernel, inputs, num_kernels=self.num_kernels, memory_budget=budget, keep=False)

    @property
    def entries_of_pass(self) -> int:
        """All of them."""
        return (self.num_rows * self.num_kernels) ** 2

    @property
    def entries_evaluated(self) -> int:
        """All of them."""
        return self.entries_of_pass

    def release(self) -> None:
        """Frees kept entries."""
        super().release()
        self._kept = None

    def row_covariance(self, inputs: Tensor | None = None) -> Tensor:
        """Blocks ``(M, C, C)`` on the diagonal, cut out of blocks of some rows."""
        inputs, latents, parts = self.inputs if inputs is None else inputs, self.num_kernels, []
        for part in inputs.split(_ROWS_AT_ONCE, -2):
            block = joint_entries(self.kernel, part, part)
            by_row = block.unflatten(-1, (-1, latents)).unflatten(-3, (-1, latents))
            parts.append(by_row.diagonal(dim1=0, dim2=2).movedim(-1, 0))
        return torch.cat(parts) if parts else inputs.new_zeros(0, latents, latents)

    @torch.no_grad()
    def entries(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Entries ``(1, n C, m C)``."""
        self.counts.entries += rows.numel() * cols.numel() * self.num_kernels**2
        return joint_entries(self.kernel, self.inputs[rows], self.inputs[cols]).unsqueeze(0)

    def covariance(self, inputs: Tensor) -> LinearOperator:
        """The prior covariance ``(M C, M C)`` between new inputs ``(M, D)``; evaluated when it is asked for."""
        return EvaluatedJointKernel(self.kernel, self.num_kernels)(inputs, inputs)

    def _product(self, inputs: Tensor, block: Tensor, *, training: bool) -> Tensor:
        latents, size, width = block.shape
        flat = block.movedim(0, 1).reshape(size * latents, width)
        if self._needs_grad(inputs, self.inputs, block):
            product = self._product_with_grad(inputs, flat)
        else:
            product = self._kept_matrix() @ flat if training and self.keeps_entries else self._blocked(inputs, flat)
        return product.unflatten(0, (-1, latents)).movedim(1, 0)

    def _kept_matrix(self) -> Tensor:
        if self._kept is None:
            everything = torch.arange(self.num_rows, device=self.device)
            self._kept = self.entries(everything, everything)[0]
        return self._kept

    @torch.no_grad()
    def _blocked(self, inputs: Tensor, flat: Tensor) -> Tensor:
        product = flat.new_empty(inputs.shape[-2] * self.num_kernels, flat.shape[-1])
        for i in self._row_slices(inputs.shape[-2]):
            rows = slice(i.start * self.num_kernels, i.stop * self.num_kernels)
            product[rows] = joint_entries(self.kernel, inputs[i], self.inputs) @ flat
        self.counts.entries += inputs.shape[-2] * self.num_rows * self.num_kernels**2
        return product

    def _product_with_grad(self, inputs: Tensor, flat: Tensor) -> Tensor:
        def product(i: slice) -> Tensor:
            return joint_entries(self.kernel, inputs[i], self.inputs) @ flat

        self.counts.entries += inputs.shape[-2] * self.num_rows * self.num_kernels**2
        again = Recomputation()
        return torch.cat([again(functools.partial(product, i)) for i in self._row_slices(inputs.shape[-2])])

    def _row_slices(self, num_rows: int) -> list[slice]:
        bytes_per_row = 4 * self.num_rows * self.num_kernels**2 * self.inputs.element_size()
        return slices(num_rows, max(1, min(256, self.memory_budget // max(1, bytes_per_row))))


class EvaluatedJointKernel(DerivedKernel):
    """A kernel with several outputs whose entries are those of ``joint_entries``, for GPyTorch.

    Args:
        kernel: Any kernel with several outputs per input.
        num_outputs: C.
    """

    def __init__(self, kernel: Kernel, num_outputs: int) -> None:
        super().__init__()
        self.kernel, self._num_outputs = kernel, num_outputs

    @property
    def dtype(self) -> torch.dtype:
        """The kernel's, which may have no parameters to tell it by."""
        return self.kernel.dtype

    @property
    def device(self) -> torch.device:
        """The kernel's."""
        return self.kernel.device

    def num_outputs_per_input(self, x1: Tensor, x2: Tensor) -> int:
        """C."""
        return self._num_outputs

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Entries ``(b C, m C)``, or variances."""
        entries = joint_entries(self.kernel, x1, x2)
        return entries.diagonal(dim1=-2, dim2=-1) if diag else entries

    def detach_tensors(self) -> None:
        """There are none of its own."""


def joint_entries(kernel: Kernel, first: Tensor, second: Tensor) -> Tensor:
    """Entries ``(n C, m C)`` of a kernel with C outputs, those of a row side by side; differentiable if gradients are on."""
    return evaluate_kernel(kernel, first, second, 1)[0]


def num_outputs(kernel: Kernel, inputs: Tensor) -> int:
    """Outputs per input of a kernel: 1 unless it couples latent functions."""
    return int(kernel.num_outputs_per_input(inputs, inputs))


def kronecker_terms(kernel: Kernel) -> list[Term] | None:
    """A kernel with several outputs as a sum of terms ``k(x, x') B``; None if it is anything else."""
    return None if kernel.active_dims is not None else _terms(kernel)


def _terms(kernel: Kernel) -> list[Term] | None:
    """The terms of a kernel's own ``forward``, which knows nothing of its ``active_dims``."""
    if kernel.batch_shape.numel() != 1:
        return None
    if type(kernel) is MultitaskKernel:
        tasks = kernel.task_covar_module.covar_matrix.to_dense()
        return [Term(_as_called(kernel.data_covar_module), tasks.reshape(tasks.shape[-2:]))]
    if type(kernel) is LCMKernel:
        return _joined([_terms(part) for part in kernel.covar_module_list])
    if type(kernel) is AdditiveKernel:
        return _joined([kronecker_terms(part) for part in kernel.kernels])
    if type(kernel) is ScaleKernel:
        return _scaled(_terms(kernel.base_kernel), kernel.outputscale)
    if type(kernel) is CalledKernel:
        return _terms(kernel.kernel) if kernel.takes_inputs_as_they_are else None
    if type(kernel) is SumOfTerms:
        return _joined([_scaled(_at(kronecker_terms(part), own), factor) for part, own, factor in kernel.parts()])
    return None


def _as_called(kernel: Kernel) -> Kernel:
    """As ``MultitaskKernel`` calls it: past its own choice of columns."""
    return kernel if kernel.active_dims is None else CalledKernel(kernel, {}, torch.get_default_dtype())


def _joined(parts: list[list[Term] | None]) -> list[Term] | None:
    return None if any(part is None for part in parts) else [term for part in parts if part for term in part]


def _scaled(terms: list[Term] | None, factor: Tensor | None) -> list[Term] | None:
    if terms is None or factor is None:
        return terms
    return None if factor.numel() != 1 else [replace(term, tasks=factor.reshape(()) * term.tasks) for term in terms]


def _at(terms: list[Term] | None, columns: slice) -> list[Term] | None:
    if terms is None or any(term.columns is not None for term in terms):
        return None
    return [replace(term, columns=columns) for term in terms]


def _columns(term: Term, inputs: Tensor) -> Tensor:
    return inputs if term.columns is None else inputs[..., term.columns]
