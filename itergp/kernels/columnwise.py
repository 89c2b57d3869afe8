"""What kernels share that look at each of their columns by itself."""

from __future__ import annotations

import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import Kernel
from gpytorch.priors import Prior

from itergp.errors import InputError


class ColumnwiseKernel(Kernel):
    """A kernel that knows how many columns it reads, and has a lengthscale for each.

    Args:
        num_dims: Number of columns D.
        batch_shape: Of a batch of kernels.
        active_dims: The D columns that it reads; default all.
        lengthscale_prior: Prior over the lengthscales.
        lengthscale_constraint: Default positive.

    Raises:
        InputError: If ``num_dims`` is not a positive number.
    """

    has_lengthscale = True

    def __init__(
        self,
        num_dims: int,
        *,
        batch_shape: torch.Size | None = None,
        active_dims: tuple[int, ...] | None = None,
        lengthscale_prior: Prior | None = None,
        lengthscale_constraint: Interval | None = None,
    ) -> None:
        if num_dims < 1:
            raise InputError(f"`num_dims` must be the number of columns, 1 or more. Got {num_dims}. Count the columns.")
        super().__init__(
            ard_num_dims=int(num_dims),
            batch_shape=batch_shape,
            active_dims=active_dims,
            lengthscale_prior=lengthscale_prior,
            lengthscale_constraint=lengthscale_constraint,
        )
