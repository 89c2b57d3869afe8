"""What a running solve is made of, as arrays by name and what JSON can express: it can be kept, and go on elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.parallel import ALL_ROWS, RowPartition
from itergp.posterior.problem import Problem
from itergp.solvers.subspace.search_space import SearchSpace
from itergp.solvers.subspace.support_space import SupportSpace

_SPACE = ("directions", "products", "gram")
_SUPPORT = ("rows", "explained")

StateT = TypeVar("StateT")


@dataclass(frozen=True)
class Packed:
    """Arrays by name, and values that JSON can express.

    Attributes:
        arrays: Arrays on any device.
        values: Anything JSON can express; infinite and NaN numbers are allowed.
    """

    arrays: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, part: Packed) -> None:
        """Takes in a part under a name of its own."""
        self.arrays.update({f"{name}.{key}": value for key, value in part.arrays.items()})
        self.values[name] = part.values

    def part(self, name: str) -> Packed:
        """What was taken in under a name."""
        prefix = f"{name}."
        arrays = {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}
        return Packed(arrays, self.values[name])

    def to(self, device: torch.device) -> Packed:
        """The same on another device."""
        return Packed({name: array.to(device) for name, array in self.arrays.items()}, self.values)


class Resumable(Protocol[StateT]):
    """A solver whose state can be kept and taken up again, so that what follows is what would have followed."""

    def pack(self, state: StateT) -> Packed:
        """What a state is made of, less what can be computed from it and the problem to the last bit."""

    def unpack(self, problem: Problem, packed: Packed) -> StateT:
        """The state that ``pack`` took apart."""


class Keeper(Protocol):
    """Where the driver keeps a running solve."""

    @property
    def earlier(self) -> Packed | None:
        """What an earlier run kept, or None to begin anew."""

    def due(self) -> bool:
        """Whether it is time to keep the present state."""

    def keep(self, packed: Packed) -> bool:
        """Keeps it in place of what was kept before; returns whether that could be done."""


def require_resumable(solver: Any) -> None:
    """A checkpoint needs a solver that gives its state as plain data, and so do all that it takes turns with.

    Raises:
        InputError: If it has none.
    """
    if any(part.resumable is None for part in (solver, *solver.sequence)):
        raise InputError(
            "`checkpoint` needs a solver whose state can be kept, by methods `pack` and `unpack`. Got "
            f"{type(solver).__name__}. Leave `checkpoint` out, or use SubspaceNewton."
        )


def pack_scalars(state: Any) -> dict[str, Any]:
    """Fields of a state that are numbers, truth values or text."""
    held = {spec.name: getattr(state, spec.name) for spec in fields(state)}
    return {name: value for name, value in held.items() if isinstance(value, (bool, int, float, str))}


def pack_space(space: SearchSpace) -> Packed:
    """A search space, products included: they cost kernel passes, or columns of it for a support."""
    names = _SPACE + (_SUPPORT if isinstance(space, SupportSpace) else ())
    return Packed({name: getattr(space, name) for name in names})


def unpack_space(packed: Packed, partition: RowPartition = ALL_ROWS, capacity: int | None = None) -> SearchSpace:
    """The space that ``pack_space`` took apart.

    Args:
        packed: What it was taken apart into.
        partition: Which of the rows are here.
        capacity: That of a support's buffer, default what is in it.
    """
    arrays = packed.arrays
    if "rows" not in arrays:
        return SearchSpace(*(arrays[name] for name in _SPACE), partition=partition)
    return SupportSpace.of(capacity=capacity, partition=partition, **{name: arrays[name] for name in _SPACE + _SUPPORT})


def pack_memory(memory: dict[Any, Any]) -> Packed:
    """The notes of policies: arrays, and lists of numbers, arrays and None. Other notes are made again."""
    packed = Packed()
    for key, note in memory.items():
        listed = isinstance(note, list)
        items = note if listed else [note]
        if all(item is None or isinstance(item, (int, Tensor)) for item in items):
            name = key if isinstance(key, str) else repr(key)
            packed.values[name] = [None if isinstance(item, Tensor) else item for item in items] if listed else None
            packed.arrays.update({f"{name}.{i}": item for i, item in enumerate(items) if isinstance(item, Tensor)})
    return packed


def unpack_memory(packed: Packed, policy: Any) -> dict[Any, Any]:
    """Notes by the policies that made them: those inside ``policy``, by their settings."""
    keys: dict[str, Any] = {repr(owner): owner for owner in _inside(policy)} | {"inputs": "inputs"}
    memory = {}
    for name, values in packed.values.items():
        if name in keys:
            items = [packed.arrays.get(f"{name}.{i}", value) for i, value in enumerate(values or [None])]
            memory[keys[name]] = items[0] if values is None else items
    return memory


def _inside(policy: Any) -> Iterator[Any]:
    """A policy and those it is made of."""
    if isinstance(policy, (tuple, list)):
        for item in policy:
            yield from _inside(item)
    elif is_dataclass(policy):
        yield policy
        for spec in fields(policy):
            yield from _inside(getattr(policy, spec.name))
