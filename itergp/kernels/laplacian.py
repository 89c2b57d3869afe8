"""The Laplacian kernel: the exponential of an L1 distance."""

from __future__ import annotations

from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from itergp.kernels.distances import manhattan_distance, scaled


class LaplacianKernel(Kernel):
    r"""``k(x, x') = exp(-sum_d |x_d - x'_d| / l_d)``, a product of exponential kernels of one input each.

    Its samples are continuous, nowhere smooth, and have edges along the axes, as sums of deep trees do: it is the limit of
    Mondrian forests. Of one input it is the Matern-1/2 kernel. Source: Balog et al. 2016, The Mondrian Kernel.

    The derivative in an input is taken as zero where two rows have the same value of it, at which the kernel has a kink.

    Args:
        ard_num_dims: D for a lengthscale per input, None for one.
        batch_shape: Of a batch of kernels.
        active_dims: The columns that it reads; default all.
        lengthscale_prior: Prior over the lengthscales.
        lengthscale_constraint: Default positive.

    Attributes:
        lengthscale: ``(*batch_shape, 1, D)`` or ``(*batch_shape, 1, 1)``, in units of the inputs.

    Examples:
        >>> kernel = LaplacianKernel(ard_num_dims=2)
        >>> kernel.lengthscale = torch.tensor([1.0, 2.0])
        >>> kernel(torch.zeros(1, 2), torch.ones(1, 2)).to_dense()
        tensor([[0.2231]], grad_fn=<ExpBackward0>)
    """

    has_lengthscale = True

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Tensor:
        """Entries ``(..., b, m)``, or with ``diag`` those of rows with their counterparts ``(..., b)``."""
        first, second = scaled(x1, x2, self.lengthscale)
        if last_dim_is_batch:
            first, second = (x.mT.unsqueeze(-1) for x in (first, second))
        if diag:
            return torch.exp(-(first - second).abs().sum(-1))
        return torch.exp(-manhattan_distance(first, second))
