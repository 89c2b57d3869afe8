"""A symmetric matrix whose diagonal is known, and whose entries are made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from linear_operator.operators import DenseLinearOperator, LinearOperator
from torch import Tensor


class DeferredLinearOperator(LinearOperator):
    """A symmetric matrix ``(n, n)``, or a batch of such, that is made on first use.

    Args:
        diagonal: Its diagonal ``(*b, n)``.
        matrix: Makes it.
    """

    def __init__(self, diagonal: Tensor, *, matrix: Callable[[], Tensor]) -> None:
        super().__init__(diagonal, matrix=matrix)
        self._known_diagonal, self._make = diagonal, matrix
        self._made: Tensor | None = None

    def to_dense(self) -> Tensor:
        """The matrix ``(*b, n, n)``."""
        if self._made is None:
            self._made = self._make()
        return self._made

    def _size(self) -> torch.Size:
        return torch.Size([*self._known_diagonal.shape, self._known_diagonal.shape[-1]])

    def _transpose_nonbatch(self) -> DeferredLinearOperator:
        return self

    def _matmul(self, rhs: Tensor) -> Tensor:
        return self.to_dense() @ rhs

    def _diagonal(self) -> Tensor:
        return self._known_diagonal

    def _getitem(self, row_index: Any, col_index: Any, *batch_indices: Any) -> LinearOperator:
        return DenseLinearOperator(self.to_dense())._getitem(row_index, col_index, *batch_indices)

    def _get_indices(self, row_index: Tensor, col_index: Tensor, *batch_indices: Tensor) -> Tensor:
        return self.to_dense()[(*batch_indices, row_index, col_index)]

    def _expand_batch(self, batch_shape: torch.Size) -> LinearOperator:
        return DenseLinearOperator(self.to_dense())._expand_batch(batch_shape)
