"""Distances between rows from their differences, wherever a library takes them from products."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class ExactDistances(TorchFunctionMode):
    """Within it, ``torch.cdist`` takes differences: the distance of equal rows is zero, not the root of the rounding."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function, ``torch.cdist`` with the mode that takes differences."""
        kwargs = {} if kwargs is None else kwargs
        if func is torch.cdist:
            kwargs = kwargs | {"compute_mode": "donot_use_mm_for_euclid_dist"}
        return func(*args, **kwargs)
