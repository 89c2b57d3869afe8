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
    by text of all these. The annotation of a field names the classes of objects in it. A tuple comes back as one where it is
    annotated so. Nothing is copied.

    Args:
        value: An instance of a dataclass, or an object with ``to_fields``.

    Raises:
        InputError: If a field holds something else.
    """
    writer = _Writer()
    values = writer.object(value, "")
    return StateDict(writer.arrays, values)


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
    return isinstance(kind, type) and (dataclasses.is_dataclass(kind) or _own_fields(kind))


# ----------------------------------------------------------------------- writing
def _stored(kind: Any) -> list[dataclasses.Field]:
    return [spec for spec in dataclasses.fields(kind) if not spec.metadata.get("derived")]


def _own_fields(kind: Any) -> bool:
    """Whether a class says itself what its parts are: tensors, numbers, text, lists and dictionaries."""
    return hasattr(kind, "to_fields")


@dataclass
class _Writer:
    """A state while it is written: arrays by name, and all names, arrays or not."""

    arrays: dict[str, Tensor] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def object(self, value: Any, head: str) -> dict[str, Any]:
        """The values of an object's parts, whose names begin with ``head``."""
        kind = type(value)
        own = _own_fields(kind)
        hints = {} if own else _hints(kind)
        parts = value.to_fields() if own else {spec.name: getattr(value, spec.name) for spec in _stored(kind)}
        return {name: self.write(part, hints.get(name, Any), head + name, kind) for name, part in parts.items()}

    def write(self, value: Any, hint: Any, name: str, owner: type) -> Any:
        """What JSON can express of a part that is annotated by ``hint``."""
        if name in self.names:  # {"a.b": 1, "a": {"b": 2}}
            raise InputError(f"Parts of a state must have names of their own. Got two called `{name}`. Rename one.")
        self.names.add(name)
        if isinstance(value, Tensor):
            self.arrays[name] = value.detach()
            return None
        if isinstance(value, Enum) and any(choice is type(value) for choice in _choices(hint)):
            return value.name
        if isinstance(value, float) and not math.isfinite(value):
            return {_NOT_FINITE: str(value)}
        if isinstance(value, _ATOMS) and not isinstance(value, Enum):
            return value
        if has_state(type(value)) and _is_annotated(type(value), hint):
            return self.object(value, f"{name}.")
        if isinstance(value, collections.abc.Mapping) and all(isinstance(key, str) for key in value):
            return {key: self.write(part, _inner(hint, dict), f"{name}.{key}", owner) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            hints = _of_elements(hint, type(value), len(value))
            pairs = zip(hints, value, strict=True)
            return [self.write(part, kind, f"{name}.{index}", owner) for index, (kind, part) in enumerate(pairs)]
        raise InputError(
            f"A state must be made of tensors, numbers, text, and objects whose class is annotated. Got {type(value).__name__} "
            f"as `{name}` of {owner.__name__}. Annotate its class, a dataclass, or give the field "
            "`metadata=itergp.persistence.DERIVED` and make it again in `rebuild`."
        )


def _is_annotated(kind: type, hint: Any) -> bool:
    """Whether an annotation names a class, or one that says for it what its parts are."""
    return any(choice is kind or (_own_fields(choice) and issubclass(kind, choice)) for choice in _choices(hint))


# ------------------------------------------------------------------- annotations
def _choices(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or what is none."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _inner(hint: Any, kind: type) -> Any:
    """What values of a dictionary are annotated by."""
    found = [typing.get_args(choice)[1] for choice in _choices(hint) if typing.get_origin(choice) is kind]
    return found[0] if found else Any


def _of_elements(hint: Any, kind: type, size: int) -> tuple[Any, ...]:
    """What the elements of a list or a tuple are annotated by."""
    for choice in _choices(hint):
        inner = typing.get_args(choice)
        if inner and typing.get_origin(choice) is kind:
            return inner if kind is tuple and inner[1:] != (...,) else inner[:1] * size
    return (Any,) * size


# ----------------------------------------------------------------------- reading
def _make(kind: Any, path: str, values: dict[str, Any], arrays: dict[str, Tensor], context: Any) -> Any:
    head = f"{path}." if path else ""
    own = _own_fields(kind)
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
    if value is None:
        return arrays.get(path)
    choices = _choices(hint)
    if isinstance(value, dict) and value.keys() == {_NOT_FINITE}:
        return float(value[_NOT_FINITE])
    if isinstance(value, dict):
        classes = [choice for choice in choices if has_state(choice)]
        if classes:
            return _make(_chosen(classes, value), path, value, arrays, context)
        inner = _inner(hint, dict)
        return {key: _decode(inner, f"{path}.{key}", part, arrays, context) for key, part in value.items()}
    if isinstance(value, list):
        kind = tuple if any(typing.get_origin(choice) is tuple for choice in choices) else list
        pairs = zip(_of_elements(hint, kind, len(value)), value, strict=True)
        return kind(_decode(part, f"{path}.{i}", item, arrays, context) for i, (part, item) in enumerate(pairs))
    enums = [choice for choice in choices if isinstance(choice, type) and issubclass(choice, Enum)]
    return enums[0][value] if enums else value


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
