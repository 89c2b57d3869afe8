"""Levels with an order, at learned distances from each other."""

from __future__ import annotations

from typing import Any

import torch
from gpytorch.constraints import Interval, Positive
from gpytorch.kernels import Kernel
from gpytorch.priors import Prior
from torch import Tensor

from itergp.errors import InputError
from itergp.kernels.codes import whole_codes


class OrderedCategoricalKernel(Kernel):
    r"""``k(c, c') = exp(-|p(c) - p(c')|)`` on one column of codes 0..L-1, at learned positions ``p(c) = g_1 + ... + g_c``.

    Grades, sizes, stages: neighbouring levels are the most alike, and how far apart two neighbours are is learned. Level 0 lies
    at 0. A level that no training row has leaves only the sum of the gaps around it to learn.

    Args:
        num_levels: Number of levels L, at least 2.
        batch_shape: Of a batch of kernels.
        active_dims: The one column of codes; default the only one.
        gaps_prior: Prior over the gaps.
        gaps_constraint: Default positive.

    Raises:
        InputError: If there are fewer levels, or inputs are several columns, or no codes 0..L-1, as NaN and -1.

    Examples:
        >>> kernel = OrderedCategoricalKernel(num_levels=3)
        >>> kernel.gaps = torch.tensor([0.1, 2.0])
        >>> kernel(torch.tensor([[0.0], [1.0], [2.0]])).to_dense().detach().round(decimals=3)
        tensor([[1.0000, 0.9050, 0.1220],
                [0.9050, 1.0000, 0.1350],
                [0.1220, 0.1350, 1.0000]])
    """

    def __init__(
        self,
        num_levels: int,
        *,
        batch_shape: torch.Size | None = None,
        active_dims: tuple[int, ...] | None = None,
        gaps_prior: Prior | None = None,
        gaps_constraint: Interval | None = None,
    ) -> None:
        if num_levels < 2:
            raise InputError(f"`num_levels` must be at least 2. Got {num_levels}. Count the ordered levels.")
        super().__init__(batch_shape=batch_shape, active_dims=active_dims)
        self.num_levels = int(num_levels)
        self.register_parameter("raw_gaps", torch.nn.Parameter(torch.zeros(*self.batch_shape, self.num_levels - 1)))
        self.register_constraint("raw_gaps", gaps_constraint or Positive())
        if gaps_prior is not None:
            self.register_prior("gaps_prior", gaps_prior, _gaps_of, _set_gaps)

    @property
    def is_stationary(self) -> bool:
        """A step of one level is a longer way here and a shorter one there."""
        return False

    @property
    def gaps(self) -> Tensor:
        """Distances between neighbouring levels ``(*batch_shape, L - 1)``, in lengthscales."""
        return self.raw_gaps_constraint.transform(self.raw_gaps)

    @gaps.setter
    def gaps(self, value: Tensor) -> None:
        value = torch.as_tensor(value).to(self.raw_gaps).expand_as(self.raw_gaps)
        self.initialize(raw_gaps=self.raw_gaps_constraint.inverse_transform(value))

    @property
    def positions(self) -> Tensor:
        """Where the levels lie ``(*batch_shape, L)``."""
        return torch.nn.functional.pad(self.gaps.cumsum(-1), (1, 0))

    def positions_at(self, codes: Tensor) -> Tensor:
        """Positions ``(*batch, n, 1)`` of rows ``(..., n, 1)`` of codes; they have derivatives in the gaps.

        Raises:
            InputError: If there is more than one column, or something else than codes 0..L-1 in it.
        """
        if codes.shape[-1] != 1:
            raise InputError(
                f"OrderedCategoricalKernel reads one column of codes. Got {codes.shape[-1]}. Name it in active_dims, and "
                "multiply kernels for several such columns."
            )
        levels = whole_codes(codes, type(self).__name__, self.num_levels).long().squeeze(-1)
        positions = self.positions
        batch = torch.broadcast_shapes(positions.shape[:-1], levels.shape[:-1])
        table = positions.expand(*batch, self.num_levels)
        return table.gather(-1, levels.expand(*batch, levels.shape[-1])).unsqueeze(-1)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Entries ``(..., b, m)``, or with ``diag`` those of rows with their counterparts ``(..., b)``."""
        first, second = self.positions_at(x1), self.positions_at(x2)
        distance = (first - second).squeeze(-1) if diag else first - second.mT
        return torch.exp(-distance.abs())


def _gaps_of(kernel: OrderedCategoricalKernel) -> Tensor:
    return kernel.gaps


def _set_gaps(kernel: OrderedCategoricalKernel, value: Tensor) -> None:
    kernel.gaps = value
