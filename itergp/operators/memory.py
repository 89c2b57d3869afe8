"""How much memory a computation may take."""

from __future__ import annotations

import psutil
import torch

_FRACTION = 0.25


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def default_memory_budget(device: torch.device) -> int:
    """Bytes that may be used for cached kernel entries and for blocks: a quarter of what is free on the device."""
    return int(_FRACTION * free_memory(device))
