"""Derivatives of products made in blocks, whose intermediate results are evaluated again instead of being stored."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from itergp.errors import InputError


class Recomputation:
    """Functions whose intermediate results are evaluated again, one function's at a time, instead of being stored.

    Unlike ``torch.utils.checkpoint``, what was evaluated again may be read any number of times, as the autograd
    functions of ``linear_operator`` do. Second derivatives work.
    """

    def __init__(self) -> None:
        self._block: _Block | None = None

    def __call__(self, function: Callable[[], Tensor]) -> Tensor:
        """The function's value, with derivatives in whatever it depends on.

        Args:
            function: It must do the same in every call.
        """
        block = _Block(function, self)
        with saved_tensors_hooks(block.pack, block.unpack):
            return function()

    def hold(self, block: _Block) -> None:
        """Frees what another block has evaluated again."""
        if self._block is not None and self._block is not block:
            self._block.free()
        self._block = block


class _Block:
    def __init__(self, function: Callable[[], Tensor], owner: Recomputation) -> None:
        self._function, self._owner = function, owner
        self._number = 0
        self._values: list[tuple[Tensor, int]] = []

    def pack(self, tensor: Tensor) -> int:
        self._number += 1
        return self._number - 1

    def unpack(self, index: int) -> Tensor:
        self._owner.hold(self)
        if not self._values:
            self._values = self._again()
        value, version = self._values[index]
        if value._version != version:  # which autograd would refuse too
            raise RuntimeError("A tensor that a kernel's derivatives need was changed in place after it was used.")
        return value

    def free(self) -> None:
        self._values = []

    def _again(self) -> list[tuple[Tensor, int]]:
        values: list[tuple[Tensor, int]] = []

        def keep(tensor: Tensor) -> int:
            values.append((tensor.detach(), tensor._version))
            return len(values) - 1

        with torch.enable_grad(), saved_tensors_hooks(keep, lambda index: values[index][0]):
            self._function()
        if len(values) != self._number:
            raise InputError(
                f"A kernel must do the same in every call. Got one that kept {self._number} tensors for its "
                f"derivatives in "
                f"the first and {len(values)} in the second. Draw random numbers and fill caches in __init__."
            )
        return values
