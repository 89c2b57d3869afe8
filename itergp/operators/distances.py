"""Distances between rows from their differences, wherever a library takes them from products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class ExactDistances(TorchFunctionMode):
    """Within it, ``torch.cdist`` takes differences: the distance of equal rows is zero, not the root of the rounding."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function, and instead of Euclidean ``torch.cdist`` what takes differences."""
        kwargs = {} if kwargs is None else kwargs
        if func is torch.cdist and len(args) == 2 and kwargs.get("p", 2.0) == 2.0:
            return exact_distances(*args)
        return func(*args, **kwargs)


def exact_distances(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distances ``(..., b, m)`` of rows ``(..., b, D)`` and ``(..., m, D)``, with derivatives of any order.

    That of a distance of zero is zero. PyTorch's distances from differences have first derivatives only.
    """
    distances = torch.cdist(first.detach(), second.detach(), compute_mode="donot_use_mm_for_euclid_dist")
    if not torch.is_grad_enabled() or not (first.requires_grad or second.requires_grad):
        return distances
    centre = second.detach().mean(-2, keepdim=True)
    first, second = first - centre, second - centre
    squared = first.square().sum(-1, keepdim=True) + second.square().sum(-1).unsqueeze(-2) - 2.0 * first @ second.mT
    squared = squared + (distances.square() - squared.detach())  # their derivatives, without their rounding
    apart = distances > 0.0
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)
