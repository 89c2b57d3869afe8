"""``AbstractOperator``: a prior covariance as something that multiplies blocks, whatever it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from itergp.operators.preconditioner import Preconditioner
from itergp.parallel import ALL_ROWS, RowPartition


@dataclass
class KernelCounts:
    """What an operator has done so far.

    Attributes:
        passes: Products with the training kernel matrix, whatever their number of columns.
        columns: Columns multiplied, summed over those products.
        entries: Kernel entries evaluated (a symmetric block counts once; cached entries are not counted again).
        seconds: Time inside products.
    """

    passes: int = 0
    columns: int = 0
    entries: int = 0
    seconds: float = 0.0

    def copy(self) -> KernelCounts:
        """A snapshot."""
        return replace(self)

    @contextmanager
    def as_one_pass(self) -> Iterator[None]:
        """Products meanwhile are those of one pass, a few columns at a time."""
        passes = self.passes
        yield
        self.passes = passes + 1


class AbstractOperator(ABC):
    """``K`` at the training inputs, and across to other inputs: products, variances and sizes.

    ``K = blockdiag(K_1..K_C)``, unless it ``couples_latents``.

    ``KernelOperator`` is the kind that evaluates a kernel. ``SubspaceNewton`` asks for no more than this when its policy is
    ``ClassGradient`` or ``Gradient`` and no neighbours are conditioned on.

    Attributes:
        num_kernels: ``C'``, 1 for a covariance that all latent functions share.
        memory_budget: Bytes for what may be kept.
        counts: What it has done so far; ``matmul`` counts its passes.
        rows: Which of the training rows are here.
        keeps_entries: Whether the matrix is kept between passes.
        evaluates_matrix: Whether a pass evaluates, or multiplies, the entries of the matrix: its cost grows with their number,
            and where it does not, a column costs as much by itself as among others.
    """

    num_kernels: int
    memory_budget: int
    counts: KernelCounts
    rows: RowPartition = ALL_ROWS
    keeps_entries: bool = False
    evaluates_matrix: bool = True

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """Number of training rows ``N``."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Data type of the products."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the products."""

    @property
    def num_own_rows(self) -> int:
        """Number of training rows of this process, ``N`` unless they are divided."""
        return self.rows.local_size(self.num_rows)

    @property
    def couples_latents(self) -> bool:
        """Whether ``K`` is not block-diagonal over the latent functions: blocks are then ``(C, N, k)`` and mixed by it."""
        return False

    @property
    def entries_of_pass(self) -> int:
        """Kernel entries that a pass multiplies by, those of all processes."""
        return self.num_kernels * self.num_rows**2

    @property
    def entries_evaluated(self) -> int:
        """Those among them that are evaluated, and kept if any are: half of a symmetric matrix."""
        return self.entries_of_pass // 2

    @property
    def evaluates_groups(self) -> bool:
        """Whether entries within many small groups of rows can be had at once, as neighbours need them."""
        return False

    @property
    def neighbours_pay(self) -> bool:
        """Whether rows near to an input say much about it that few actions on all rows do not."""
        return True

    @property
    def actions_pay(self) -> bool:
        """Whether some hundred actions on all rows know most of what the data say."""
        return True

    @property
    def product_error(self) -> Tensor | None:
        """Bounds ``(C',)`` on the spectral norm of what products are of, less each ``K_c``; None for rounding alone."""
        return None

    def product_of_first_rows(self, earlier: AbstractOperator | None, block: Tensor) -> Tensor | None:
        """What a product has at the rows that an earlier operator has not, of a block that is zero there; or None.

        None unless that operator's rows are the first of these, and its kernel is the same.

        Args:
            earlier: The operator of fewer rows, ``M`` of them.
            block: At its rows ``(C', M, k)``.

        Returns:
            ``(C', N - M, k)``: rows that arrive later cost what they add.
        """
        del earlier, block
        return None

    def preconditioner(self, curvature: Tensor) -> Preconditioner | None:
        """What stands for K in systems with a curvature, which solvers then use by themselves; None if nothing does.

        It must follow from the operator and the curvature alone, so that what is resumed goes on to the same answer.

        Args:
            curvature: W ``(N, C, C)``.
        """
        del curvature
        return None

    def log_determinant(self, curvature: Tensor) -> float | None:
        """About ``log |I + W K|`` of all rows; None where the actions of a covariance know it as well.

        Args:
            curvature: W ``(N, C, C)``.
        """
        del curvature
        return None

    @property
    def preconditioner_memory(self) -> int:
        """Bytes of a preconditioner; 0 where there is none."""
        return 0

    @abstractmethod
    def matmul(self, block: Tensor) -> Tensor:
        """``K_c`` times a block, for every kernel: one pass.

        Args:
            block: ``(N, k)`` to multiply by every kernel, or ``(C', N, k)``, one block per kernel.

        Returns:
            ``(C', N, k)``.
        """

    @abstractmethod
    def cross_matmul(self, inputs: Tensor, block: Tensor) -> Tensor:
        """``k_c(inputs, X)`` times a block: the product that prediction needs.

        Args:
            inputs: ``(M, D)`` or ``(C, M, D)``.
            block: ``(N, k)`` or ``(C', N, k)``.

        Returns:
            ``(C', M, k)``.
        """

    @abstractmethod
    def diagonal(self, inputs: Tensor | None = None) -> Tensor:
        """Prior variances ``(C', M)`` at ``inputs`` (default: the training inputs)."""

    def row_covariance(self, inputs: Tensor | None = None) -> Tensor:
        """Prior covariances ``(M, C', C')`` between the functions of each row; those of kernels by themselves are diagonal.

        Raises:
            NotImplementedError: If latent functions are coupled: an operator of such says what they are.
        """
        if self.couples_latents:
            raise NotImplementedError(f"{type(self).__name__}.row_covariance")
        return torch.diag_embed(self.diagonal(inputs).mT)

    def dense(self) -> Tensor:
        """The matrices ``(C', N, N)``, for small N: one pass. ``(1, N C, N C)`` where latent functions are coupled."""
        size, latents = self.num_rows, self.num_kernels
        if not self.couples_latents:
            return self.matmul(torch.eye(size, dtype=self.dtype, device=self.device))
        units = torch.eye(size * latents, dtype=self.dtype, device=self.device).view(size, latents, -1)
        return self.matmul(units.movedim(1, 0)).movedim(0, 1).reshape(1, size * latents, -1)

    def entries(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Entries ``(C', n, m)`` between training rows by their numbers; from the whole matrix if nobody knows better.

        ``(1, n C, m C)`` where latent functions are coupled.
        """
        if self.couples_latents:
            latents = torch.arange(self.num_kernels, device=self.device)
            rows, cols = ((self.num_kernels * x.unsqueeze(-1) + latents).flatten() for x in (rows, cols))
        return self.dense()[:, rows][:, :, cols]
