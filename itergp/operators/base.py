"""``KernelOperator``: a kernel matrix as something that multiplies blocks of vectors."""

from __future__ import annotations

import functools
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import gpytorch
import torch
from gpytorch.kernels import Kernel
from linear_operator.operators import LinearOperator
from torch import Tensor

from itergp.errors import InputError
from itergp.operators.abstract import AbstractOperator, KernelCounts
from itergp.operators.block_product import BlockProduct
from itergp.operators.derived import DerivedKernel, requires_grad
from itergp.operators.forms import PairwiseForm, as_form
from itergp.operators.groups import evaluates_groups
from itergp.operators.memory import default_memory_budget
from itergp.operators.radial import EvaluatedKernel, RadialKernel, evaluate_diagonal, evaluate_kernel
from itergp.operators.recompute import Recomputation
from itergp.operators.scan_form import as_scan_form
from itergp.operators.special import has_own_diagonal
from itergp.operators.tiles import run, side_of_block, slices, symmetric, threads_for
from itergp.persistence.description import describe


class KernelOperator(AbstractOperator):
    """The prior covariance at the training inputs, ``K = blockdiag(K_1..K_C)``, and across to other inputs.

    One kernel may be shared by all latent functions (``num_kernels == 1``) or each may have its own. Products come
    with a leading dimension ``C'`` = ``num_kernels``. When gradients are enabled and the kernel's parameters, the
    inputs or the block require them, products are differentiable: blocks of rows are recomputed in the backward
    pass instead of being stored, so memory stays at one block.

    Args:
        kernel: Any GPyTorch kernel.
        inputs: Training inputs ``(N, D)``, or ``(C, N, D)`` when each kernel has its own.
        num_kernels: ``C'``, 1 for a shared kernel.
        memory_budget: Bytes for cached entries and blocks; default a quarter of the free memory.

    Attributes:
        derived: What users of the operator made from its inputs, such as search trees; it lives as long as the cached entries.
        held: What is kept between passes besides kernel entries, in a plan's words.
    """

    held: str = "sorted inputs"

    def __init__(
        self, kernel: Kernel, inputs: Tensor, *, num_kernels: int = 1, memory_budget: int | None = None
    ) -> None:
        self._require_outputs(kernel, inputs)
        self.kernel = kernel
        self.inputs = inputs
        self.num_kernels = num_kernels
        self.memory_budget = default_memory_budget(inputs.device) if memory_budget is None else memory_budget
        self.counts = KernelCounts()
        self.derived: dict[Any, Any] = {}
        form = as_form(kernel, num_kernels, inputs.shape[-1])
        self._form = None if form is None else form.detached()
        self._centre = inputs.detach().reshape(-1, inputs.shape[-1]).mean(0)

    @classmethod
    def require(cls, operator: AbstractOperator) -> KernelOperator:
        """The operator, if it evaluates a kernel.

        Raises:
            InputError: If it is of another kind.
        """
        if not isinstance(operator, KernelOperator):
            raise InputError(
                f"Kernel entries at some rows or inputs need a KernelOperator. Got {type(operator).__name__}, which has "
                "products only. Use SubspaceNewton(policy=ClassGradient()) or Gradient(), with num_neighbours=0."
            )
        return operator

    def _require_outputs(self, kernel: Kernel, inputs: Tensor) -> None:
        """One output per input, unless latent functions are coupled.

        Raises:
            InputError: If there are more.
        """
        if not self.couples_latents and int(kernel.num_outputs_per_input(inputs, inputs)) != 1:
            raise InputError(
                f"{type(self).__name__} must have a kernel with one output per input. Got {type(kernel).__name__}, which has "
                "several. Use operator='auto', 'dense' or 'blocked', which couple latent functions."
            )

    # ------------------------------------------------------------------ shape
    @property
    def num_rows(self) -> int:
        """Number of training rows ``N``."""
        return self.inputs.shape[-2]

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the products."""
        return self.inputs.dtype

    @property
    def device(self) -> torch.device:
        """Device of the products."""
        return self.inputs.device

    def timing_sample(self, inputs: Tensor) -> KernelOperator | None:
        """An operator of this kind at some inputs, by which its speed is known; None if blocks of entries are as fast.

        Args:
            inputs: ``(M, D)`` or ``(C, M, D)``.
        """
        return None

    # --------------------------------------------------------------- products
    def matmul(self, block: Tensor) -> Tensor:
        """``K_c`` times a block, for every kernel: one pass.

        Args:
            block: ``(N, k)`` to multiply by every kernel, or ``(C', N, k)``, one block per kernel.

        Returns:
            ``(C', N, k)``.
        """
        started = time.perf_counter()
        if self._needs_grad(self.inputs, block):
            product = self._cross_with_grad(self.inputs, self.inputs, block)
            self.counts.entries += self.num_kernels * self.num_rows**2 if self.evaluates_matrix else 0
        else:
            product = self._matmul(block.detach())
        self.counts.passes += 1
        self.counts.columns += block.shape[-1]
        self.counts.seconds += time.perf_counter() - started
        return product

    def cross_matmul(self, inputs: Tensor, block: Tensor) -> Tensor:
        """``k_c(inputs, X)`` times a block: the product that prediction needs.

        Args:
            inputs: ``(M, D)`` or ``(C, M, D)``.
            block: ``(N, k)`` or ``(C', N, k)``.

        Returns:
            ``(C', M, k)``, differentiable in ``inputs``, the kernel's parameters and ``block`` when those require it.
        """
        if self._needs_grad(inputs, block):
            return self._cross_with_grad(inputs, self.inputs, block)
        return self._cross(inputs.detach(), block.detach())

    def tangent(self, left: Tensor, right: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Zero, with the derivatives of ``sum(left * (k(inputs, X) right))`` where left and right are held fixed.

        Where the package evaluates the kernel itself, blocks are evaluated for these alone, and no product is.

        Args:
            left: ``(M, k)`` or ``(C', M, k)``.
            right: ``(N, k)`` or ``(C', N, k)``.
            inputs: ``(M, D)`` or ``(C, M, D)``; None for the training inputs.
        """
        rows = self.inputs if inputs is None else inputs
        found = (left * self._cross_with_grad(rows, self.inputs, right, value=False)).sum()
        return found - found.detach()

    def product_of_first_rows(self, earlier: AbstractOperator | None, block: Tensor) -> Tensor | None:
        """See ``AbstractOperator``; for kernels that are functions of two rows, and products without errors of their own."""
        if not isinstance(earlier, KernelOperator) or not self._continues(earlier):
            return None
        return earlier.cross_matmul(self.inputs[..., earlier.num_rows :, :], block)

    def _continues(self, earlier: KernelOperator) -> bool:
        size = earlier.num_rows
        if (
            self.rows.sharded
            or earlier.rows.sharded
            or size >= self.num_rows
            or self.num_kernels != earlier.num_kernels
        ):
            return False
        if self.product_error is not None or earlier.product_error is not None or self.couples_latents:
            return False
        if isinstance(self.kernel, DerivedKernel) or has_own_diagonal(self.kernel):
            return False
        if describe(self.kernel, "kernel") != describe(earlier.kernel, "kernel"):
            return False
        return torch.equal(self.inputs[..., :size, :], earlier.inputs)

    def with_columns(self, rows: Tensor, use: Callable[[slice, Tensor], None]) -> None:
        """Hands a function the kernel columns of some training rows, a block at a time.

        Args:
            rows: Row numbers ``(m,)``.
            use: Function of a slice of the own rows and the block ``(C', b, m)``; several threads may call it at once.
        """
        start, size = self.rows.start(), self.num_own_rows
        chosen, own = self.inputs[..., rows, :], self.inputs.narrow(-2, start, size)
        taken = self.features(chosen)
        variances, places = self.diagonal(chosen).detach(), rows - start
        width = max(1, rows.numel(), self.inputs.shape[-1])  # of the arrays that a block of rows needs
        most = max(1, side_of_block(self.device) ** 2 // (width * self.num_kernels))

        def hand(i: slice) -> int:
            entries = self._block(self.features(own[..., i, :]), taken)  # inputs may be in a file, larger than memory
            within = ((places >= i.start) & (places < i.stop)).nonzero().squeeze(-1)
            if within.numel():
                # As in ``entries``: where equal rows have another covariance, the two would not be of one matrix.
                entries = entries.clone()
                entries[:, places[within] - i.start, within] = variances[:, within].to(entries)
            use(i, entries)
            return entries.numel()

        tasks = [((i.start,), functools.partial(hand, i)) for i in slices(size, most)]
        self.counts.entries += run(tasks, self._threads(size * rows.numel()))

    def own_variance(self, rows: Tensor) -> Tensor | None:
        """What the variances of training rows ``(m,)`` are above their covariances with equal rows ``(C', m)``.

        None for kernels where that is nothing, which is all but those of inducing points with a corrected diagonal.
        """
        if not has_own_diagonal(self.kernel):
            return None
        points = self.inputs[..., rows, :].detach()
        low_rank = self._block(points, points.clone()).diagonal(dim1=-2, dim2=-1)
        return self.diagonal(points).detach() - low_rank

    def own_product(self, rows: Tensor, values: Tensor) -> Tensor | None:
        """What training rows ``(m,)`` have with themselves beyond equal rows, times ``(m, C, k)``; None for nothing."""
        alone = self.own_variance(rows)
        return None if alone is None else alone.mT.unsqueeze(-1) * values

    def entries(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Kernel entries ``(C', b, m)`` between training rows ``(b,)`` and ``(m,)``."""
        first, second = self.features(self.inputs[..., rows, :]), self.features(self.inputs[..., cols, :])
        self.counts.entries += self.num_kernels * rows.numel() * cols.numel()
        entries = self._block(first, second).clone()
        if rows is cols:
            entries.diagonal(dim1=-2, dim2=-1).copy_(self.diagonal(self.inputs[..., rows, :]).detach())
        return entries

    def cross_entries(self, inputs: Tensor, cols: Tensor | None = None) -> Tensor:
        """Kernel entries ``(C', M, m)`` between inputs and training rows, for small M and m.

        Args:
            inputs: ``(M, D)`` or ``(C, M, D)``.
            cols: Numbers of the training rows ``(m,)``; None for all N.
        """
        training = self.inputs if cols is None else self.inputs[..., cols, :]
        first, second = self.features(inputs), self.features(training)
        matrix = first.new_empty(self.num_kernels, inputs.shape[-2], training.shape[-2], dtype=self.dtype)
        side = side_of_block(self.device, self.num_kernels)
        for i in slices(matrix.shape[-2], side):
            for j in slices(matrix.shape[-1], side):
                matrix[:, i, j] = self._block(first[..., i, :], second[..., j, :])
        self.counts.entries += matrix.numel()
        return matrix

    def diagonal(self, inputs: Tensor | None = None) -> Tensor:
        """Prior variances ``(C', M)`` at ``inputs`` (default: the training inputs); differentiable."""
        inputs = self.inputs if inputs is None else inputs
        return evaluate_diagonal(self.kernel, inputs, self.num_kernels)

    def covariance(self, inputs: Tensor) -> LinearOperator:
        """The prior covariance ``(M, M)`` or ``(C', M, M)`` between new inputs ``(M, D)`` or ``(C', M, D)``; lazy."""
        own = self.num_kernels > 1 and inputs.dim() == 3  # inputs of every kernel's own
        plain = isinstance(self._form, RadialKernel) or (inputs.dim() > 2 and not own)
        kernel = self.kernel if plain else EvaluatedKernel(self.kernel, self.num_kernels)
        with gpytorch.settings.lazily_evaluate_kernels(True):
            return kernel(inputs, inputs)

    def release(self) -> None:
        """Frees cached kernel entries and what was derived from them; the next pass evaluates them again."""
        self.derived.clear()

    def dense(self) -> Tensor:
        """The kernel matrices ``(C', N, N)``, for small N: one pass."""
        features = self.features(self.inputs)
        matrix = features.new_empty(self.num_kernels, self.num_rows, self.num_rows, dtype=self.dtype)

        def write(i: slice, j: slice) -> int:
            entries = self._block(features[..., i, :], features[..., j, :])
            matrix[:, i, j] = entries
            matrix[:, j, i] = entries.mT
            return entries.numel()

        side, threads = side_of_block(self.device, self.num_kernels), self._threads(self.num_rows**2 // 2)
        self.counts.entries += symmetric(self.num_rows, side, write, threads)
        self.counts.passes += 1
        # Exact, where a rounded distance would not be.
        matrix.diagonal(dim1=-2, dim2=-1).copy_(self.diagonal().detach())
        return matrix

    def scaled_inputs(self, inputs: Tensor | None = None) -> Tensor:
        """Inputs ``(M, D)`` in which distance means what it means to the first kernel; default those of the training rows."""
        training = self.inputs.detach()
        inputs = training if inputs is None else inputs
        if self._form is not None:
            return self._form.points(inputs, self._centre)
        training, inputs = (x[0] if x.dim() == 3 else x for x in (training, inputs))
        return (inputs - training.mean(0)) / training.std(0, correction=0).clamp_min(1e-12)

    @property
    def form(self) -> RadialKernel | PairwiseForm | None:
        """The kernel as a function that the package evaluates itself, or None if it is anything else."""
        return self._form

    @property
    def evaluates_groups(self) -> bool:
        """Whether entries within many small groups of rows can be had at once, as neighbours need them."""
        if "groups" not in self.derived:
            self.derived["groups"] = evaluates_groups(self.kernel, self.inputs, self.num_kernels)
        return self.derived["groups"]

    @property
    def neighbours_pay(self) -> bool:
        """Not of additive kernels of several inputs: rows far apart in all inputs but one share the function of that one.

        Measured with ten inputs and rank 224: 16 neighbours take the variance from 1.031 of the exact one to 1.030.
        """
        form = as_scan_form(self.kernel, self.num_kernels, self.inputs.shape[-1])
        return form is None or len(form.columns) == 1

    @property
    def cross_overhead(self) -> int:
        """New inputs that a product across costs as much as, besides its own: 0 where its cost is proportional to theirs."""
        return 0

    @property
    def held_memory(self) -> int:
        """Bytes that are kept between passes besides kernel entries."""
        return 0

    # -------------------------------------------------- what a subclass gives
    @abstractmethod
    def _matmul(self, block: Tensor) -> Tensor:
        """``(C', N, k)`` without gradients."""

    def _cross(self, inputs: Tensor, block: Tensor) -> Tensor:
        """Blocked product with the cross-kernel, without gradients."""
        rows, cols = self.features(inputs), self.features(self.inputs)
        size = side_of_block(self.device, self.num_kernels)
        product = BlockProduct(block, self.num_kernels, inputs.shape[-2])

        def multiply(i: slice) -> int:
            for j in slices(self.num_rows, max(size, size**2 // (i.stop - i.start))):
                product.add(i, self._block(rows[..., i, :], cols[..., j, :]), j)
            return 0

        tasks = [((i.start,), functools.partial(multiply, i)) for i in slices(inputs.shape[-2], size)]
        run(tasks, self._threads(inputs.shape[-2] * self.num_rows))
        return product.result()

    # ------------------------------------------------------------ block level
    def features(self, inputs: Tensor) -> Tensor:
        """What entries are evaluated from, ``(C', M, ...)``: what the form reads of the inputs, or the inputs themselves."""
        return inputs.detach() if self._form is None else self._form.block_features(inputs.detach(), self._centre)

    @torch.no_grad()
    def _block(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Entries ``(C', b, m)`` between features of rows and of columns."""
        if self._form is None:
            return evaluate_kernel(self.kernel, rows, cols, self.num_kernels)
        return self._form.evaluate(rows, cols)

    def _threads(self, entries: int) -> int:
        """Threads that share so many entries: kernels without a form run code of their authors', in one."""
        return 1 if self._form is None else threads_for(self.device, self.num_kernels * entries)

    def _row_slices(self, num_rows: int) -> list[slice]:
        """Slices of rows such that a block of them against all training rows respects the memory budget."""
        bytes_per_row = 4 * self.num_rows * self.num_kernels * self.inputs.element_size()
        return slices(num_rows, max(1, min(256, self.memory_budget // max(1, bytes_per_row))))

    # --------------------------------------------------------------- gradient
    def _needs_grad(self, *tensors: Tensor) -> bool:
        if not torch.is_grad_enabled():
            return False
        return any(t.requires_grad for t in tensors) or requires_grad(self.kernel)

    def _cross_with_grad(self, rows: Tensor, cols: Tensor, block: Tensor, *, value: bool = True) -> Tensor:
        """The product with derivatives; without ``value`` these alone are wanted, and anything may stand for it."""
        form = as_form(self.kernel, self.num_kernels, cols.shape[-1])
        if form is not None:
            return form.product(cols, None if rows is cols else rows, self._centre, block, value=value)

        own_diagonal = rows is cols and has_own_diagonal(self.kernel)

        def product(i: slice) -> Tensor:
            part = rows[..., i, :]
            entries = evaluate_kernel(self.kernel, part, cols, self.num_kernels)
            if not own_diagonal:
                return entries @ block
            found = entries.diagonal(offset=i.start, dim1=-2, dim2=-1)
            missing = evaluate_diagonal(self.kernel, part, self.num_kernels) - found
            return entries @ block + missing.unsqueeze(-1) * block[..., i, :]

        again = Recomputation()
        parts = [again(functools.partial(product, i)) for i in self._row_slices(rows.shape[-2])]
        return torch.cat(parts, dim=-2)
