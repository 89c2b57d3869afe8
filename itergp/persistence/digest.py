"""The content of a tensor as a short text: equal for equal content, whatever the device."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_BLOCK_BYTES = 2**20  # hashed at a time


def digest(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and content, in the order of the entries.

    Memory is copied block by block: a NumPy view of the tensor's own would forbid its owner to resize it.

    Args:
        tensor: Any tensor; those on another device are read block by block.
    """
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    content = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    rows = tensor.reshape(1, -1) if tensor.dim() == 0 else tensor
    step = max(1, _BLOCK_BYTES // max(1, rows[:1].numel() * rows.element_size()))
    for part in rows.split(step):
        values = part.clone(memory_format=torch.contiguous_format).cpu().reshape(-1)
        content.update(values.view(torch.uint8).numpy().data)
    return content.hexdigest()
