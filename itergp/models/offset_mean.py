"""A prior mean that is linear in some columns of the inputs, such as the predictions of another model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gpytorch.means import Mean
from torch import Tensor

from itergp.errors import InputError


class OffsetMean(Mean):
    """``m_c(x) = constant_c + weight * x[column_c]``: one column for each of the first latent functions.

    What is left to the others is their constant. The weight, one for all, says how far the columns are to be believed.

    Args:
        columns: Of the inputs, one for each of at most C latent functions.
        constant: Where the constants start, one for each latent function; default zero for as many as there are columns.
        weight: Where the weight starts.

    Raises:
        InputError: If there are no columns, or more than latent functions.

    Examples:
        >>> mean = OffsetMean([2], weight=0.5)
        >>> mean(torch.tensor([[1.0, 2.0, 6.0]])).tolist()
        [3.0]
    """

    def __init__(self, columns: Sequence[int], *, constant: Sequence[float] | None = None, weight: float = 1.0) -> None:
        super().__init__()
        self.columns = tuple(columns)
        start = [0.0] * len(self.columns) if constant is None else list(constant)
        if not 0 < len(self.columns) <= len(start):
            raise InputError(
                f"`columns` must be at least one, and at most one for each latent function. Got {len(self.columns)} for "
                f"{len(start)}. Pass a constant for each function."
            )
        self.batch_shape = torch.Size([len(start)] if len(start) > 1 else [])
        self.register_parameter("constant", torch.nn.Parameter(torch.tensor(start)))
        self.register_parameter("weight", torch.nn.Parameter(torch.tensor(weight)))

    def forward(self, x: Tensor) -> Tensor:
        """Means ``(N,)`` at inputs ``(N, D)``, or ``(C, N)``."""
        offsets = self.weight * x[..., list(self.columns)].movedim(-1, 0)
        missing = len(self.constant) - len(self.columns)
        if missing:
            offsets = torch.cat([offsets, offsets.new_zeros(missing, *offsets.shape[1:])])
        found = self.constant.reshape(-1, *[1] * (offsets.dim() - 1)) + offsets
        return found if self.batch_shape else found[0]

    def for_latents(self, count: int) -> OffsetMean:
        """One of the same weight for another number of latent functions, C."""
        columns = self.columns if len(self.columns) <= count else self.columns[:count]
        kept = self.constant.detach().tolist()[:count]
        return OffsetMean(columns, constant=[*kept, *[0.0] * (count - len(kept))], weight=float(self.weight.detach()))
