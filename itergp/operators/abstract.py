"""``AbstractOperator``: a prior covariance as something that multiplies blocks, whatever it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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


class AbstractOperator(ABC):
    """``K = blockdiag(K_1..K_C)`` at the training inputs, and across to other inputs: products, variances and sizes.

    ``KernelOperator`` is the kind that evaluates a kernel. ``SubspaceNewton`` asks for no more than this when its policy is
    ``ClassGradient`` or ``Gradient`` and no neighbours are conditioned on.

    Attributes:
        num_kernels: ``C'``, 1 for a covariance that all latent functions share.
        memory_budget: Bytes for what may be kept.
        counts: What it has done so far; ``matmul`` counts its passes.
        rows: Which of the training rows are here.
        keeps_entries: Whether the matrix is kept between passes.
    """

    num_kernels: int
    memory_budget: int
    counts: KernelCounts
    rows: RowPartition = ALL_ROWS
    keeps_entries: bool = False

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
    def evaluates_groups(self) -> bool:
        """Whether entries within many small groups of rows can be had at once, as neighbours need them."""
        return False

    @property
    def neighbours_pay(self) -> bool:
        """Whether rows near to an input say much about it that few actions on all rows do not."""
        return True

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

    def dense(self) -> Tensor:
        """The matrices ``(C', N, N)``, for small N: one pass."""
        return self.matmul(torch.eye(self.num_rows, dtype=self.dtype, device=self.device))

    def entries(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Entries ``(C', n, m)`` between training rows by their numbers; from the whole matrix if nobody knows better."""
        return self.dense()[:, rows][:, :, cols]
