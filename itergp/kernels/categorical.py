"""Levels without an order: equal, or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.kernels.codes import whole_codes
from itergp.kernels.columnwise import ColumnwiseKernel


class CategoricalKernel(ColumnwiseKernel):
    r"""``k(c, c') = prod_d exp(-[c_d != c'_d] / l_d)`` on columns of integer codes, whose levels are exchangeable.

    Two rows that differ in column d are correlated by ``exp(-1 / l_d)`` there, whichever their levels: one parameter per
    column, for any number of levels, of which new ones may appear after training. It is what a ``LaplacianKernel`` makes of
    one-hot columns that share a lengthscale of ``2 l_d``, without the columns.

    Codes are whole numbers. Every number is a level of its own, negative ones as well: -1, pandas' code for a missing value,
    says "missing". NaN is refused. Codes beyond 2^24 need float64.

    Args:
        num_dims: Number of columns D.
        batch_shape: Of a batch of kernels.
        active_dims: The D columns of codes; default all.
        lengthscale_prior: Prior over the lengthscales.
        lengthscale_constraint: Default positive.

    Attributes:
        lengthscale: ``(*batch_shape, 1, D)``: how little it matters that levels differ. It has no unit.

    Raises:
        InputError: If ``num_dims`` is not a positive number, or inputs are no codes.

    Examples:
        >>> kernel = CategoricalKernel(num_dims=2)
        >>> kernel.lengthscale = torch.tensor([1.0, 0.5])
        >>> codes = torch.tensor([[0.0, 7.0], [1.0, 7.0], [1.0, 8.0]])
        >>> kernel(codes).to_dense().detach().round(decimals=3)
        tensor([[1.0000, 0.3680, 0.0500],
                [0.3680, 1.0000, 0.1350],
                [0.0500, 0.1350, 1.0000]])
    """

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Tensor:
        """Entries ``(..., b, m)``, or with ``diag`` those of rows with their counterparts ``(..., b)``.

        Raises:
            InputError: If inputs are no codes, or every column is asked for by itself.
        """
        if last_dim_is_batch:
            raise InputError(
                "CategoricalKernel multiplies its columns, and has no last_dim_is_batch. Got last_dim_is_batch=True. Add "
                "kernels with active_dims for sums over columns."
            )
        first, second = (whole_codes(x, type(self).__name__) for x in (x1, x2))
        cost = 1.0 / self.lengthscale
        if diag:
            return torch.exp(-((first != second) * cost).sum(-1))
        total: Tensor | None = None
        for x, y, own in zip(first.unbind(-1), second.unbind(-1), cost.unbind(-1), strict=True):
            term = (x.unsqueeze(-1) != y.unsqueeze(-2)) * own.unsqueeze(-1)
            total = term if total is None else total + term
        assert total is not None
        return torch.exp(-total)
