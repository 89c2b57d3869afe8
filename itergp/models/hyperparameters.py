"""A model's hyperparameters: their values as people know them, and as constants for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import gpytorch
import torch

_MOST = 64  # elements beyond which a parameter is a network's weights, and not read by people


def hyperparameters(model: gpytorch.Module) -> dict[str, list[float]]:
    """Values within their constraints by name, without GPyTorch's ``raw_``; parameters of many elements are left out."""
    found = {}
    for name, parameter, constraint in model.named_parameters_and_constraints():
        if parameter.numel() > _MOST:
            continue
        value = parameter.detach() if constraint is None else constraint.transform(parameter.detach())
        head, _, tail = name.rpartition(".")
        found[f"{head}.{tail.removeprefix('raw_')}".lstrip(".")] = value.reshape(-1).tolist()
    return found


class HasParameters(Protocol):
    """A module, or what stands for one."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """All parameters."""


@contextmanager
def frozen(module: HasParameters) -> Iterator[None]:
    """Parameters that do not require gradients for a while."""
    free = [p for p in module.parameters() if p.requires_grad and not p.is_inference()]
    try:
        for parameter in free:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in free:
            parameter.requires_grad_(True)


def kept_tensors(module: HasParameters) -> AbstractContextManager[None]:
    """Inside, tensors are such as derivatives may be taken of later, also where ``torch.inference_mode`` is on.

    Not if the module was made there itself: it has none.
    """
    made_there = any(p.is_inference() for p in module.parameters())
    return nullcontext() if made_there or not torch.is_inference_mode_enabled() else torch.inference_mode(False)
