"""``HeldTensors``: training data, and whether anybody but their model can have changed them."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable

import torch
from torch import Tensor

from itergp.persistence.digest import digest

# Not in every version of PyTorch; without it, no memory counts as private.
_num_users = getattr(torch._C, "_storage_Use_Count", None)


class HeldTensors:
    """Tensors that a model holds, with digests of their content.

    A write through ``tensor.data``, or through a NumPy array that shares the memory, leaves no trace, not even in the
    tensor's version. So the content is read again whenever digests are asked for, unless nobody can have written: the
    memory is PyTorch's own and was never lent to NumPy, no other tensor and no other variable refers to it, and ``lend``
    was not called since it was read. Writes to bare addresses (``data_ptr``), and by other processes to shared memory of
    CUDA, are not noticed.

    Args:
        tensors: Training inputs, then targets, then weights; None for those that there are not.
    """

    def __init__(self, tensors: tuple[Tensor | None, ...]) -> None:
        self._tensors = tensors
        self._digests: list[str | None] | None = None

    def lend(self) -> tuple[Tensor | None, ...]:
        """The tensors, for whoever may keep or change them."""
        self._digests = None
        return self._tensors

    def look(self) -> tuple[Tensor | None, ...]:
        """The tensors, for whoever does neither."""
        return self._tensors

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Training inputs ``(N, D)`` or ``(*b, N, D)`` each, to look at; none of a model without data."""
        return self._tensors[:-2]  # type: ignore[return-value]

    @property
    def targets(self) -> Tensor:
        """Training targets ``(N,)`` or ``(*b, N)``, to look at."""
        return self._tensors[-2]  # type: ignore[return-value]

    @property
    def sample_weight(self) -> Tensor | None:
        """Their weights, to look at; None if all are 1."""
        return self._tensors[-1]

    @property
    def like(self) -> Tensor:
        """An empty tensor of the dtype and on the device of the inputs."""
        return self.inputs[0].new_empty(0)

    def digests(self, views: Iterable[Tensor] = ()) -> list[str | None]:
        """The SHA-256 of each tensor; their cost does not depend on the size of tensors that only the model can change.

        Args:
            views: Tensors of the model's posterior, which may refer to the same memory and do not change it.
        """
        if self._digests is not None:
            return self._digests
        private = self._private(list(views))
        digests = [None if tensor is None else digest(tensor) for tensor in self._tensors]
        self._digests = digests if private else None
        return digests

    def __getstate__(self) -> dict[str, object]:
        """A copy has other memory, of which nothing is known."""
        return {"_tensors": self._tensors, "_digests": None}

    # ------------------------------------------------------------------ inside
    def _private(self, views: list[Tensor]) -> bool:
        if _num_users is None:
            return False
        views = list({id(view): view for view in views}.values())
        mine = [tensor for tensor in self._tensors if tensor is not None]
        addresses = [_address(tensor) for tensor in (*mine, *views)]
        users = [addresses.count(_address(tensor)) for tensor in mine]
        del mine
        return self._references() <= _REFERENCES and all(
            _is_ours(tensor) and _users(tensor) == _USERS + count - 1
            for tensor, count in zip((t for t in self._tensors if t is not None), users, strict=True)
        )

    def _references(self) -> int:
        """The most references from Python to one of the tensors."""
        return max(
            (
                sys.getrefcount(self._tensors[i]) + weakref.getweakrefcount(self._tensors[i])
                for i in range(len(self._tensors))
                if self._tensors[i] is not None
            ),
            default=0,
        )


def _is_ours(tensor: Tensor) -> bool:
    """Whether PyTorch made the memory for this process, and neither took it from NumPy or a file nor lent it to NumPy."""
    if type(tensor) is not Tensor or tensor.layout is not torch.strided or tensor.requires_grad:
        return False
    storage = tensor.untyped_storage()
    return storage.resizable() and not (storage.device.type == "cpu" and storage.is_shared())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if type(tensor) is Tensor and tensor.layout is torch.strided else 0


def _users(tensor: Tensor) -> int:
    """How many tensors refer to the memory, as PyTorch counts them."""
    assert _num_users is not None
    return _num_users(tensor.untyped_storage()._cdata)


# What is counted for a tensor that nobody else has.
_REFERENCES = HeldTensors((torch.empty(1),))._references()
_USERS = 0 if _num_users is None else _users(torch.empty(1))
