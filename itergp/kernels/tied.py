"""Lengthscales that several inputs share, such as the one-hot columns of one original column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel
from torch import Tensor

from itergp.errors import InputError
from itergp.kernels.laplacian import LaplacianKernel


class TiedLengthscales(Kernel):
    """What kernels with tied lengthscales share: parameters by group, and ``lengthscale`` by input.

    Args:
        groups: For each of the D inputs the number of its group, 0..G-1, each of which occurs.
        options: Those of the kernel that it is mixed into; it has no ``ard_num_dims``.

    Raises:
        InputError: If the groups are not numbered so.
    """

    def __init__(self, groups: Sequence[int], **options: Any) -> None:
        numbers = tuple(int(group) for group in groups)
        extra = " and ard_num_dims" if "ard_num_dims" in options else ""
        if not numbers or set(numbers) != set(range(max(numbers) + 1)) or extra:
            raise InputError(
                "`groups` must hold the number of a group for each input, 0 to G-1 with none left out, in place of "
                f"ard_num_dims. Got {tuple(groups)}{extra}. For example (0, 1, 1, 1): "
                "the last three inputs share a lengthscale."
            )
        super().__init__(ard_num_dims=max(numbers) + 1, **options)
        self.ard_num_dims = len(numbers)
        self.groups = numbers

    @property
    def group_lengthscale(self) -> Tensor:
        """Lengthscales of the groups ``(*batch_shape, 1, G)``."""
        return self.raw_lengthscale_constraint.transform(self.raw_lengthscale)

    @group_lengthscale.setter
    def group_lengthscale(self, value: Tensor) -> None:
        value = torch.as_tensor(value).to(self.raw_lengthscale).expand_as(self.raw_lengthscale)
        self.initialize(raw_lengthscale=self.raw_lengthscale_constraint.inverse_transform(value))

    @property
    def lengthscale(self) -> Tensor:
        """Lengthscales of the inputs ``(*batch_shape, 1, D)``. Set, each group takes the geometric mean over its inputs."""
        return self.group_lengthscale[..., list(self.groups)]

    @lengthscale.setter
    def lengthscale(self, value: Tensor) -> None:
        self._set_lengthscale(value)

    def _lengthscale_param(self, m: Kernel) -> Tensor:
        return self.group_lengthscale  # a prior counts a group once, whatever its number of inputs

    def _lengthscale_closure(self, m: Kernel, v: Tensor) -> None:
        self.group_lengthscale = v

    def _set_lengthscale(self, value: Tensor) -> None:
        value = torch.as_tensor(value).to(self.raw_lengthscale)
        wide = value.expand(*self.raw_lengthscale.shape[:-1], len(self.groups))
        groups = torch.tensor(self.groups, device=wide.device)
        sums = torch.zeros_like(self.raw_lengthscale).index_add_(-1, groups, wide.detach().log())
        self.group_lengthscale = (sums / groups.bincount()).exp()


class TiedLaplacianKernel(TiedLengthscales, LaplacianKernel):
    """A ``LaplacianKernel`` whose inputs share lengthscales by groups.

    One lengthscale per *original* column is what many one-hot columns need: with one each, small tables overfit.

    Args:
        groups: For each of the D inputs the number of its group, 0..G-1.
        options: Those of ``LaplacianKernel`` but ``ard_num_dims``.

    Attributes:
        lengthscale: Of the inputs ``(*batch_shape, 1, D)``.
        group_lengthscale: Of the groups ``(*batch_shape, 1, G)``, which are the parameters.

    Raises:
        InputError: If the groups are not 0..G-1, or ``ard_num_dims`` is given.

    Examples:
        >>> kernel = TiedLaplacianKernel(groups=(0, 1, 1))
        >>> kernel.group_lengthscale = torch.tensor([1.0, 3.0])
        >>> kernel.lengthscale.detach()
        tensor([[1., 3., 3.]])
    """


class TiedRBFKernel(TiedLengthscales, RBFKernel):
    """GPyTorch's ``RBFKernel`` whose inputs share lengthscales by groups, see ``TiedLaplacianKernel``.

    Args:
        groups: For each of the D inputs the number of its group, 0..G-1.
        options: Those of ``RBFKernel`` but ``ard_num_dims``.

    Raises:
        InputError: If the groups are not 0..G-1, or ``ard_num_dims`` is given.
    """


class TiedMaternKernel(TiedLengthscales, MaternKernel):
    """GPyTorch's ``MaternKernel`` whose inputs share lengthscales by groups, see ``TiedLaplacianKernel``.

    Args:
        groups: For each of the D inputs the number of its group, 0..G-1.
        options: Those of ``MaternKernel``, such as ``nu``, but ``ard_num_dims``.

    Raises:
        InputError: If the groups are not 0..G-1, or ``ard_num_dims`` is given.
    """
