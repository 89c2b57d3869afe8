"""What weighted sums of exponential kernels share, of one column or of several."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.kernels.columnwise import ColumnwiseKernel
from itergp.kernels.distances import scaled


class SumOfLaplacians(ColumnwiseKernel):
    """``sum_t w_t exp(-|x_t - x'_t|_1)`` over terms of as many scaled columns each, with weights that sum to one.

    Args:
        num_dims: Columns of all terms together, those of the first term first.
        **options: As of ``ColumnwiseKernel``.
    """

    columns_of_term: ClassVar[int] = 1

    def __init__(self, num_dims: int, **options: Any) -> None:
        super().__init__(num_dims, **options)
        terms = int(num_dims) // self.columns_of_term
        self.register_parameter("raw_weights", torch.nn.Parameter(torch.zeros(*self.batch_shape, terms)))

    @property
    def weights(self) -> Tensor:
        """Shares of the terms in the variance ``(*batch_shape, T)``."""
        return self.raw_weights.softmax(-1)

    @weights.setter
    def weights(self, value: Tensor) -> None:
        value, size = torch.as_tensor(value).to(self.raw_weights), self.raw_weights.shape[-1]
        if value.shape[-1:] not in ((1,), (size,)) or bool((value <= 0).any()):
            raise InputError(
                f"`weights` must be {size} positive numbers, of which the proportions count. Got {value.tolist()}. "
                "Leave out what has no weight."
            )
        value = value / value.expand(*value.shape[:-1], size).sum(-1, keepdim=True)
        self.initialize(raw_weights=value.log().expand_as(self.raw_weights))

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Tensor:
        """Entries ``(..., b, m)``, or with ``diag`` those of rows with their counterparts ``(..., b)``.

        Raises:
            InputError: If every column is asked for by itself.
        """
        if last_dim_is_batch:
            raise InputError(
                f"{type(self).__name__} adds its terms up, and has no last_dim_is_batch. Got last_dim_is_batch=True. Use "
                "LaplacianKernel for kernels of each column."
            )
        (first, second), weights = scaled(x1, x2, self.lengthscale), self.weights
        if diag:
            apart = (first - second).abs().unflatten(-1, (-1, self.columns_of_term)).sum(-1)
            return ((-apart).exp() * weights.unsqueeze(-2)).sum(-1)
        rows, cols = (x.unflatten(-1, (-1, self.columns_of_term)).unbind(-2) for x in (first, second))
        total: Tensor | None = None
        for a, b, weight in zip(rows, cols, weights.unbind(-1), strict=True):
            each = [(x.unsqueeze(-1) - y.unsqueeze(-2)).abs() for x, y in zip(a.unbind(-1), b.unbind(-1), strict=True)]
            term = (-sum(each[1:], each[0])).exp() * weight[..., None, None]
            total = term if total is None else total + term
        assert total is not None
        return total
