"""``BlockStore``: kept blocks of a kernel matrix, side by side in a few large pieces of memory."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

_PIECE = 2**24  # numbers
_ALIGNED = 16  # numbers: the last bits of a product may depend on where in a cache line a block begins


class BlockStore:
    """Blocks of entries by where they begin.

    Kept one by one, among temporary blocks of the same size, they would leave holes that nothing fits in: twice the memory.

    Args:
        expected: Numbers that are going to be kept.
    """

    def __init__(self, expected: int) -> None:
        self._piece_size = max(1, min(_PIECE, expected))
        self._blocks: dict[tuple[int, int], Tensor] = {}
        self._room: Tensor | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[BlockStore], tuple[int]]:
        """Copies and files are without the blocks: evaluating them again costs less than a file of that size."""
        return BlockStore, (self._piece_size,)

    def __contains__(self, key: tuple[int, int]) -> bool:
        return key in self._blocks

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        return self._blocks[key]

    def __len__(self) -> int:
        return len(self._blocks)

    def keep(self, key: tuple[int, int], entries: Tensor) -> Tensor:
        """Keeps a copy of a block; any number of threads may do so at once."""
        shape = entries.shape
        kept = self._take(entries).view(shape).copy_(entries)
        self._blocks[key] = kept
        return kept

    def _take(self, entries: Tensor) -> Tensor:
        number = math.prod(entries.shape)
        taken = -(-number // _ALIGNED) * _ALIGNED
        with self._lock:
            if self._room is None or self._room.numel() < taken:
                self._room = torch.empty(max(taken, self._piece_size), dtype=entries.dtype, device=entries.device)
            room, self._room = self._room[:number], self._room[taken:]
        return room
