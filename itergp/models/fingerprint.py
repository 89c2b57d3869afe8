"""Whether a posterior is still that of its model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.operators import BlockedOperator, Rows

if TYPE_CHECKING:
    from itergp.models.nonconjugate_gp import NonConjugateGP

_BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class Fingerprint:
    """What a posterior depends on: hyperparameters by value, data by checksum, settings."""

    tensors: list[Tensor]
    data: list[tuple[tuple[int, ...], float, float] | None]
    settings: tuple[Any, ...]

    @classmethod
    def of(cls, model: NonConjugateGP, data: tuple[Tensor | None, ...], settings: tuple[Any, ...]) -> Fingerprint:
        """The fingerprint of a model's parameters and buffers, its data and its settings."""
        noise = getattr(model.likelihood, "noise", None)  # fixed noise is neither a parameter nor a buffer
        tensors = [*model.parameters(), *model.buffers(), *([noise] if torch.is_tensor(noise) else [])]
        return cls([t.detach().clone() for t in tensors], [None if t is None else _checksum(t) for t in data], settings)

    def equals(self, other: Fingerprint) -> bool:
        """Whether nothing has changed."""
        return (
            self.data == other.data
            and len(self.tensors) == len(other.tensors)
            and all(a is b or a == b for a, b in zip(self.settings, other.settings, strict=True))
            and all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(self.tensors, other.tensors, strict=True))
        )

    def require_same(self, rows: Rows) -> None:
        """Every process must have the same hyperparameters and data.

        Raises:
            InputError: In every process, if they differ.
        """
        data = [(math.prod(numbers[0]), *numbers[1:]) for numbers in self.data if numbers is not None]
        rows.require_same("hyperparameters", [number for tensor in self.tensors for number in _checksum(tensor)[1:]])
        rows.require_same("training data", [float(number) for numbers in data for number in numbers])


def _checksum(tensor: Tensor) -> tuple[tuple[int, ...], float, float]:
    total = square = 0.0
    for part in torch.atleast_1d(tensor.detach()).split(_BLOCK_ROWS):  # without a float64 copy of the whole
        total, square = total + float(part.double().sum()), square + float(part.double().square().sum())
    return tuple(tensor.shape), total, square


class PriorVariance:
    """Prior variance at inputs, for a certificate; refuses once the hyperparameters it belongs to have changed."""

    def __init__(self, model: NonConjugateGP, fingerprint: Fingerprint) -> None:
        self.model = model
        self.fingerprint = fingerprint

    def __call__(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        """``k_c(x, x)`` ``(M, C)``."""
        if not self.model._state_now().equals(self.fingerprint):
            raise InputError(
                "The certificate belongs to hyperparameters or data that have since changed. "
                "Take it from model.solution again."
            )
        with torch.no_grad():
            prior = self.model._prior(self.model._test_inputs(x))
            operator = BlockedOperator(prior.kernel, prior.features, num_kernels=prior.num_kernels)
            return operator.diagonal().mT.expand(prior.mean.shape)


@contextmanager
def frozen(module: torch.nn.Module) -> Iterator[None]:
    """Parameters that do not require gradients for a while."""
    free = [p for p in module.parameters() if p.requires_grad]
    try:
        for parameter in free:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in free:
            parameter.requires_grad_(True)
