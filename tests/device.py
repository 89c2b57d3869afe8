"""A device that does not exist: tensors on it compute on the CPU, and refuse to meet tensors that are not on it.

Fake tensors of PyTorch on ``cuda`` refuse mixed devices too, but have no values, so that loops, line searches and ranks cannot
be followed, and a build of PyTorch without CUDA cannot even index them. These have values, and report the device ``meta``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("meta")
_aten = torch.ops.aten
_MOVES = (_aten._to_copy.default, _aten.copy_.default)
# CUDA takes row numbers from the CPU.
_INDEXING = (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default)


class MixedDevices(Exception):
    """An operation that CUDA would refuse."""


class OnDevice(Tensor):
    """A tensor on the device.

    Attributes:
        inner: Its values on the CPU.
    """

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
            requires_grad=False,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.inner!r})"


@contextmanager
def device() -> Iterator[torch.device]:
    """While it is on, tensors can be made on the device, and moved to and from it."""
    with _Dispatch(), _Functions():
        yield DEVICE


class _Functions(TorchFunctionMode):
    """Makers of tensors from numbers, which PyTorch does not dispatch for this device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == DEVICE and not torch.is_tensor(args[0]):
            return func(*args, **(kwargs | {"device": "cpu"})).to(DEVICE)
        if func in (Tensor.__getitem__, Tensor.__setitem__):  # row numbers in a list are made into a tensor here, too
            index = args[1]
            parts = [
                torch.tensor(i, dtype=None if i else torch.int64) if isinstance(i, list) else i
                for i in (index if type(index) is tuple else (index,))
            ]
            args = (args[0], tuple(parts) if type(index) is tuple else parts[0], *args[2:])
        return func(*args, **kwargs)


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    operands = tree_flatten((args, kwargs))[0]
    held = [x for x in operands if isinstance(x, OnDevice)]
    wanted = kwargs.get("device")
    if not held and wanted != DEVICE:
        return func(*args, **kwargs)
    if func not in _MOVES:
        _check(func, operands, held, kwargs)
    back = func is _aten._to_copy.default and wanted is not None and wanted != DEVICE
    onto_cpu = func is _aten.copy_.default and not isinstance(args[0], OnDevice)
    inner_args, inner_kwargs = tree_map_only(OnDevice, lambda x: x.inner, (args, kwargs))
    if wanted is not None:
        inner_kwargs = inner_kwargs | {"device": torch.device("cpu")}
    result = func(*inner_args, **inner_kwargs)
    if back or onto_cpu:
        return args[0] if onto_cpu else result
    changed = {id(x.inner): x for x in held}
    return tree_map_only(Tensor, lambda x: changed[id(x)] if id(x) in changed else OnDevice(x), result)


def _check(func: Any, operands: list[Any], held: list[OnDevice], kwargs: dict[str, Any]) -> None:
    indices = func in _INDEXING
    strange = [x for x in operands if isinstance(x, Tensor) and not isinstance(x, OnDevice) and x.dim() > 0]
    if indices:
        strange = [x for x in strange if x.is_floating_point() or not isinstance(operands[0], OnDevice)]
    if held and strange:
        shapes = [tuple(x.shape) for x in strange]
        raise MixedDevices(f"{func} got tensors on the CPU of shape {shapes} beside {len(held)} on the device")
    if kwargs.get("generator") is not None:
        raise MixedDevices(f"{func} got a generator of the CPU for a tensor on the device")
