"""How much memory a computation may take."""

from __future__ import annotations

import psutil
import torch

_FRACTION = 0.25


def default_memory_budget(device: torch.device) -> int:
    """Bytes that may be used for cached kernel entries and for blocks: a quarter of what is free on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(_FRACTION * free)
    return int(_FRACTION * psutil.virtual_memory().available)
