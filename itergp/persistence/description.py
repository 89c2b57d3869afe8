"""What an object is, by name and as text: its classes, settings and tensors, and those of all its parts."""

from __future__ import annotations

import enum
import hashlib
import logging
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import gpytorch
import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from itergp.persistence.digest import digest

CODE = "the code of "
_ATOMS = (type(None), bool, int, float, complex, str, bytes)
_NAMES = (torch.dtype, torch.layout, torch.memory_format, np.dtype)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, np.ufunc)
# What says nothing about values: a state of random numbers moves on, the rest belongs to the program.
_OPAQUE = (torch.Generator, np.random.Generator, types.ModuleType, logging.Logger, weakref.ReferenceType)
_MODE_MATTERS = (_NormBase, _DropoutNd)
# What GPyTorch's kernels and linear operators keep of an evaluation, and what every module has.
_CACHES = frozenset({"_memoize_cache", "_cached_kernel_mat", "_cached_kernel_inv_root", "distance_module"})
_BOOKKEEPING = frozenset(vars(gpytorch.Module()))
# Whose code comes with a version number; any other code may be edited while a program runs.
_LIBRARIES = frozenset({"abc", "builtins", "gpytorch", "itergp", "linear_operator", "numpy", "torch", "typing"})


def describe(value: Any, name: str, *, leave_out: Iterable[str] = ()) -> dict[str, str]:
    """The content of an object by name, such that objects with equal descriptions compute the same.

    Modules are described by their class, parameters, buffers and every other attribute, and so are their parts; tensors
    and arrays by a hash of their content; functions by name and code, not by the variables they capture; any other object
    by its class and attributes. The address of an object says nothing: a copy has the description of the original.

    Args:
        value: The object.
        name: What it is called; its parts are called ``name.part``, and those of an unnamed one ``part``.
        leave_out: Attributes of the object itself that do not count.
    """
    writer = _Writer()
    if isinstance(value, torch.nn.Module):
        writer.module(value, name, frozenset(leave_out))
    else:
        writer.write(value, name)
    return writer.entries


@dataclass
class _Writer:
    """A description while it is written.

    Attributes:
        entries: Texts by name.
        seen: Names of objects by address, with the objects, so that no address is used again meanwhile.
    """

    entries: dict[str, str] = field(default_factory=dict)
    seen: dict[int, tuple[str, Any]] = field(default_factory=dict)

    def write(self, value: Any, name: str) -> None:
        """Adds what a value is."""
        if isinstance(value, _ATOMS) and not isinstance(value, enum.Enum):
            self.entries[name] = repr(value)
        elif isinstance(value, Tensor):
            self.entries[name] = digest(value)
        elif isinstance(value, (tuple, frozenset)) and not hasattr(value, "__dict__"):
            self._container(value, name)
        elif isinstance(value, _FUNCTIONS):
            self.entries[name] = f"function {getattr(value, '__name__', '')}"
            self._code(name, [value])
        elif isinstance(value, type):
            self._class(value, name, name)
        elif (text := _as_text(value)) is not None:
            self.entries[name] = text
        elif id(value) in self.seen:
            self.entries[name] = f"the same as {self.seen[id(value)][0]}"
        elif isinstance(value, torch.nn.Module):
            self.module(value, name)
            del self.seen[id(value)]  # one module in two places is what two equal ones are
        else:
            self.seen[id(value)] = name, value
            if isinstance(value, (Mapping, list, set, tuple, frozenset)):
                self._container(value, name)
                self._attributes(value, f"{name}.", frozenset())
            else:
                self._object(value, name)

    def module(self, module: torch.nn.Module, name: str, leave_out: frozenset[str] = frozenset()) -> None:
        """Adds a module: its class, its attributes, and its parts."""
        self.seen[id(module)] = name, module
        head = f"{name}." if name else ""
        self._class(type(module), name or "the model", f"the class of {name or 'the model'}")
        if isinstance(module, _MODE_MATTERS):
            self.entries[f"{head}training"] = repr(module.training)
        for kind, tensors in (("hyperparameter", module._parameters), ("buffer", module._buffers)):
            for key, tensor in tensors.items():
                if tensor is not None:
                    self.entries[f"{kind} {head}{key}"] = digest(tensor)
        for key, part in module._modules.items():
            if part is not None:
                self.write(part, f"{head}{key}")
        self._attributes(module, head, _BOOKKEEPING | leave_out)

    # ------------------------------------------------------------------ inside
    def _container(self, value: Any, name: str) -> None:
        self.entries[name] = f"{type(value).__qualname__} of {len(value)}"
        if isinstance(value, Mapping):
            for key, part in value.items():
                self.write(part, f"{name}[{_key(key)}]")
        elif isinstance(value, (set, frozenset)):
            self.entries[name] += f": {sorted(_key(part) for part in value)}"
        elif all(isinstance(part, _ATOMS) for part in value):
            self.entries[name] = f"{type(value).__qualname__} {[*value]!r}"
        else:
            for index, part in enumerate(value):
                self.write(part, f"{name}[{index}]")

    def _object(self, value: Any, name: str) -> None:
        self._class(type(value), name, name)
        if hasattr(value, "__dict__"):
            self._attributes(value, f"{name}.", frozenset())
            if type(value).__reduce__ is object.__reduce__ and type(value).__reduce_ex__ is object.__reduce_ex__:
                return
        try:
            parts = value.__reduce_ex__(2)  # where attributes do not say it all: what a copy is made from
        except Exception:  # such as a lock or an open file, which are not part of a value
            return
        if isinstance(parts, tuple):
            plain = [list(part) if hasattr(part, "__next__") else part for part in parts[1:]]
            self.write(plain, f"{name}.content")

    def _attributes(self, value: Any, head: str, leave_out: frozenset[str]) -> None:
        shared = {key: part for key, part in _of_class(type(value)).items() if _is_setting(key, part)}
        for key, part in (shared | _in_slots(value) | getattr(value, "__dict__", {})).items():
            if key not in leave_out and key not in _CACHES:
                self.write(part, head + key)

    def _class(self, kind: type, name: str, entry: str) -> None:
        self.entries[entry] = _class_name(kind)
        self._code(name, _of_class(kind).values())

    def _code(self, name: str, functions: Iterable[Any]) -> None:
        """Adds a hash of the code of functions; of what is none of Python's there is nothing to say."""
        found = [repr(_constant(code)) for function in functions for code in _codes(function)]
        if found:
            self.entries[CODE + name] = hashlib.sha256("".join(found).encode()).hexdigest()


def _as_text(value: Any) -> str | None:
    """Values that have no parts, and those of which only the name counts."""
    if isinstance(value, enum.Enum):
        return f"{_class_name(type(value))}.{value.name}"
    if isinstance(value, torch.device):
        return value.type  # processes have a device of their own each
    if isinstance(value, _NAMES):
        return str(value)
    if isinstance(value, np.generic):
        return repr(value.item())
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        about = f"{value.dtype} {value.shape}".encode()
        return hashlib.sha256(about + np.ascontiguousarray(value).tobytes()).hexdigest()
    if isinstance(value, type):
        return _class_name(value)
    return _class_name(type(value)) if isinstance(value, _OPAQUE) else None


def _codes(function: Any) -> Iterator[types.CodeType]:
    """The code of a function, of the one a method has, and of those of a property."""
    if isinstance(function, property):
        for part in (function.fget, function.fset):
            yield from _codes(part)
        return
    function = getattr(function, "__func__", function)
    if _package(getattr(function, "__module__", None)) not in _LIBRARIES:
        code = getattr(function, "__code__", None)
        yield from [code] if isinstance(code, types.CodeType) else []


def _constant(value: Any) -> Any:
    """A constant in code, or code, as something whose text is the same in every process."""
    if isinstance(value, types.CodeType):
        return value.co_code.hex(), [_constant(part) for part in value.co_consts], value.co_names
    if isinstance(value, frozenset):
        return sorted(repr(_constant(part)) for part in value)
    return [_constant(part) for part in value] if isinstance(value, tuple) else repr(value)


def _of_class(kind: type) -> dict[str, Any]:
    """What classes of a user's have for all their instances."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if _package(base.__module__) not in _LIBRARIES:
            found |= vars(base)
    return found


def _is_setting(key: str, value: Any) -> bool:
    return not key.startswith("__") and isinstance(value, (*_ATOMS, tuple, list, dict, Tensor, np.ndarray))


def _in_slots(value: Any) -> dict[str, Any]:
    names = [name for base in type(value).__mro__ for name in _as_tuple(vars(base).get("__slots__", ()))]
    return {name: getattr(value, name) for name in names if name != "__dict__" and hasattr(value, name)}


def _as_tuple(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _class_name(kind: type) -> str:
    """The name of a class, for those of libraries with the name of the library."""
    package = _package(kind.__module__)
    return f"{package}.{kind.__name__}" if package in _LIBRARIES else kind.__name__


def _package(module: str | None) -> str:
    return (module or "").split(".")[0]


def _key(key: Any) -> str:
    return repr(key) if isinstance(key, (*_ATOMS, tuple)) else _as_text(key) or _class_name(type(key))
