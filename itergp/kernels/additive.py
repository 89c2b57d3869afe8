"""A weighted sum of exponential kernels of one input each."""

from __future__ import annotations

from typing import Any

from itergp.kernels.sum_of_laplacians import SumOfLaplacians


class AdditiveLaplacianKernel(SumOfLaplacians):
    r"""``k(x, x') = sum_d w_d exp(-|x_d - x'_d| / l_d)`` with weights that are positive and sum to one.

    A function of each input, added up: the limit of many stumps, and the first order of a Laplacian kernel. Its variance is
    one, so that of a ``ScaleKernel`` around it is the prior variance, and a weight the share of an input in it.

    The derivative in an input is taken as zero where two rows have the same value of it, at which the kernel has a kink.

    Args:
        num_dims: Number of inputs D.
        batch_shape: Of a batch of kernels.
        active_dims: The D columns that it reads; default all.
        lengthscale_prior: Prior over the lengthscales.
        lengthscale_constraint: Default positive.

    Attributes:
        lengthscale: ``(*batch_shape, 1, D)``, in units of the inputs.
        weights: Shares of the inputs in the variance ``(*batch_shape, D)``.

    Raises:
        InputError: If ``num_dims`` is not a positive number.

    Examples:
        >>> import torch
        >>> kernel = AdditiveLaplacianKernel(num_dims=2)
        >>> kernel.weights = torch.tensor([0.25, 0.75])
        >>> kernel.weights
        tensor([0.2500, 0.7500], grad_fn=<SoftmaxBackward0>)
    """

    def __init__(self, num_dims: int, **options: Any) -> None:
        super().__init__(num_dims, **options)
        self.num_dims = int(num_dims)
