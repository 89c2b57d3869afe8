"""Weights of the terms of a sum that are shares of its variance."""

from __future__ import annotations

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from itergp.errors import InputError


class Shares(Kernel):
    """What sums with learned weights share: ``raw_weights`` ``(*batch_shape, T)``, whose softmax is the weights."""

    raw_weights: torch.nn.Parameter

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
