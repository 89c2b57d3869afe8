"""Objects as plain data, arrays by name and what JSON can express, and back: what numerical code need not know."""

from __future__ import annotations

import collections.abc
import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor

from itergp.errors import InputError

T = TypeVar("T")
_ATOMS = (bool, int, float, str, type(None))
_NOT_FINITE = "not finite"  # stands before such a number, which JSON does not know
# Of a field that is no part of an object's state, as in ``field(metadata=DERIVED)``: ``rebuild`` gives it, or its default.
DERIVED = types.MappingProxyType({"derived": True})


@dataclass(frozen=True)
class StateDict:
    """Arrays by name, and values that JSON can express.

    Attributes:
        arrays: Arrays on any device; those inside a value are called ``name.part``.
        values: Anything JSON can express. Where an array belongs stands None.
    """

    arrays: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def add_section(self, name: str, section: StateDict) -> None:
        """Takes in another state under a name of its own."""
        self.arrays.update({f"{name}.{key}": value for key, value in section.arrays.items()})
        self.values[name] = section.values

    def section(self, name: str) -> StateDict:
        """What was taken in under a name."""
        prefix = f"{name}."
        arrays = {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}
        return StateDict(arrays, self.values[name])

    def to(self, device: torch.device) -> StateDict:
        """The same on another device."""
        return StateDict({name: array.to(device) for name, array in self.arrays.items()}, self.values)


def to_state(value: Any) -> StateDict:
    """An object's state: the fields of a dataclass, or what its ``to_fields()`` gives, and those of all its parts.

    Fields may hold tensors, numbers, text, None, members of an ``Enum``, other such objects, and lists, tuples and dictionaries
    by text of all these. Nothing is copied.

    Args:
        value: An instance of a dataclass, or an object with ``to_fields``.

    Raises:
        InputError: If a field holds something else.
    """
    arrays: dict[str, Tensor] = {}
    values = {name: _encode(part, name, type(value), arrays) for name, part in _fields(value).items()}
    return StateDict(arrays, values)


def from_state(kind: type[T], state: StateDict, context: Any = None) -> T:
    """The object that ``to_state`` gave the state of; it shares the arrays.

    Types are those that the annotations name: reading a state makes no other object and calls nothing but ``rebuild`` and
    constructors. Of a union of classes it is the one with most fields that the state has all of.

    Args:
        kind: The object's class. Where it has a class method ``rebuild(context, **fields)``, that makes the object; otherwise
            the constructor does, and fields that are no arguments of it are set. A class with ``to_fields`` has ``rebuild``
            too, which gets its parts as tensors, numbers, text, lists and dictionaries.
        state: Its state, the arrays where the object's are to be.
        context: What ``rebuild`` needs besides: for the state of a solver, the ``Problem``.

    Raises:
        InputError: If a field is missing that has no default, or a class is annotated by what cannot be found.
    """
    return _make(kind, "", state.values, state.arrays, context)


def has_state(kind: Any) -> bool:
    """Whether objects of this class have a state that ``to_state`` can take."""
    return isinstance(kind, type) and (dataclasses.is_dataclass(kind) or hasattr(kind, "to_fields"))


# ----------------------------------------------------------------------- writing
def _fields(value: Any) -> dict[str, Any]:
    if hasattr(value, "to_fields"):
        return value.to_fields()
    return {spec.name: getattr(value, spec.name) for spec in _stored(type(value))}


def _stored(kind: Any) -> list[dataclasses.Field]:
    return [spec for spec in dataclasses.fields(kind) if not spec.metadata.get("derived")]


def _encode(value: Any, path: str, owner: type, arrays: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        arrays[path] = value.detach()
        return None
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, float) and not math.isfinite(value):
        return {_NOT_FINITE: str(value)}
    if isinstance(value, _ATOMS):
        return value
    if has_state(type(value)):
        return {name: _encode(part, f"{path}.{name}", type(value), arrays) for name, part in _fields(value).items()}
    if isinstance(value, collections.abc.Mapping) and all(isinstance(key, str) for key in value):
        return {key: _encode(part, f"{path}.{key}", owner, arrays) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(part, f"{path}.{index}", owner, arrays) for index, part in enumerate(value)]
    raise InputError(
        f"A state must be made of tensors, numbers, text and dataclasses of them. Got {type(value).__name__} as `{path}` of "
        f"{owner.__name__}. Give the field `metadata=itergp.persistence.DERIVED` and make it again in `rebuild`."
    )


# ----------------------------------------------------------------------- reading
def _make(kind: Any, path: str, values: dict[str, Any], arrays: dict[str, Tensor], context: Any) -> Any:
    head = f"{path}." if path else ""
    own = hasattr(kind, "to_fields")  # and ``rebuild`` takes what it gave, as tensors, numbers, text and lists of these
    hints = {} if own else _hints(kind)
    names = list(values) if own else [spec.name for spec in _stored(kind)]
    parts = {
        name: _decode(hints.get(name, Any), head + name, values.get(name), arrays, context)
        for name in names
        if name in values or head + name in arrays
    }
    if hasattr(kind, "rebuild"):
        return kind.rebuild(context, **parts)
    missing = _required(kind) - parts.keys()
    if missing:
        raise InputError(
            f"The state of a {kind.__name__} must have every field. Got none called {', '.join(sorted(missing))}. "
            "It is another version's: find it again."
        )
    later = {spec.name for spec in dataclasses.fields(kind) if not spec.init}
    made = kind(**{name: part for name, part in parts.items() if name not in later})
    for name in later & parts.keys():
        object.__setattr__(made, name, parts[name])
    return made


def _decode(hint: Any, path: str, value: Any, arrays: dict[str, Tensor], context: Any) -> Any:
    if path in arrays:
        return arrays[path]
    if value is None or hint is Tensor:
        return None
    if isinstance(value, dict) and value.keys() == {_NOT_FINITE}:
        return float(value[_NOT_FINITE])
    choices = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if isinstance(value, dict):
        classes = [choice for choice in choices if has_state(choice)]
        if classes:
            return _make(_chosen(classes, value), path, value, arrays, context)
    for choice in choices:
        origin, inner = typing.get_origin(choice) or choice, typing.get_args(choice)
        if isinstance(origin, type) and issubclass(origin, Enum):
            return origin[value]
        if isinstance(value, list) and origin is tuple:
            types_ = inner[:1] * len(value) if inner[1:] == (...,) else inner or (Any,) * len(value)
            return tuple(_elements(types_, path, value, arrays, context))
        if isinstance(value, list) and origin is list:
            return _elements((inner or (Any,)) * len(value), path, value, arrays, context)
        if isinstance(value, dict) and inner:
            return {key: _decode(inner[1], f"{path}.{key}", part, arrays, context) for key, part in value.items()}
    if isinstance(value, list):
        return _elements((Any,) * len(value), path, value, arrays, context)
    if isinstance(value, dict):
        return {key: _decode(Any, f"{path}.{key}", part, arrays, context) for key, part in value.items()}
    return value


def _elements(hints: tuple[Any, ...], path: str, value: list, arrays: dict[str, Tensor], context: Any) -> list[Any]:
    pairs = zip(hints, value, strict=True)
    return [_decode(hint, f"{path}.{index}", part, arrays, context) for index, (hint, part) in enumerate(pairs)]


def _chosen(classes: list[Any], values: dict[str, Any]) -> Any:
    """The class with most fields that a state has all of."""
    sizes = [(len(names), kind) for kind in classes if (names := _required(kind)) <= values.keys()]
    return max(sizes, key=lambda pair: pair[0])[1] if sizes else classes[0]


def _required(kind: Any) -> set[str]:
    """Fields of a class that its state must have."""
    if not dataclasses.is_dataclass(kind):
        return set()
    missing = dataclasses.MISSING
    return {s.name for s in _stored(kind) if s.default is missing and s.default_factory is missing}


def _hints(kind: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except NameError as error:
        raise InputError(
            f"The annotations of {kind.__name__} must name what its module imports at run time, for its state to be read. Got "
            f"{error.name!r}, which it does not. Import it outside `if TYPE_CHECKING`."
        ) from error
