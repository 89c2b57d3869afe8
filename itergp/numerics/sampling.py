"""Evenly spaced rows: a sample that stands for all of them and is the same every time."""

from __future__ import annotations

import torch
from torch import Tensor


def evenly_spaced(size: int, most: int, device: torch.device) -> Tensor:
    """At most so many of ``size`` row numbers, the first and the last among them."""
    number = min(size, most)
    return torch.arange(number, device=device) * (size - 1) // max(1, number - 1)


def sample_of_rows(inputs: Tensor, most: int) -> Tensor:
    """At most so many rows of inputs ``(..., N, D)``, evenly spaced."""
    return inputs[..., evenly_spaced(inputs.shape[-2], most, inputs.device), :]
