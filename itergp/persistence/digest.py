"""The content of a tensor as a short text: equal for equal content, whatever the device."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from itergp.errors import InputError

_BLOCK_BYTES = 2**20  # hashed at a time


def digest(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and content, in the order of the entries.

    Memory is copied block by block: a NumPy view of the tensor's own would forbid its owner to resize it.

    Args:
        tensor: Any tensor; those on another device are read block by block.

    Raises:
        InputError: Within a transform of ``torch.func``, which lets nobody read.
    """
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    content = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    rows = tensor.reshape(1, -1) if tensor.dim() == 0 else tensor
    step = max(1, _BLOCK_BYTES // max(1, rows[:1].numel() * rows.element_size()))
    for part in rows.split(step):
        values = part.clone(memory_format=torch.contiguous_format).cpu().reshape(-1)
        content.update(_bytes(values))
    return content.hexdigest()


def _bytes(values: Tensor) -> memoryview:
    try:
        return values.view(torch.uint8).numpy().data
    except RuntimeError as error:
        raise InputError(
            "Parameters and data must be readable where a posterior is used. Got a transform of torch.func, or a tensor without"
            " content. Take derivatives by torch.autograd: torch.autograd.functional.jacobian(lambda x: model(x).mean, x)."
        ) from error
