"""``Identity``: what a posterior depends on, by name, so that two computations can be told apart."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import torch

from itergp.parallel import RowPartition
from itergp.persistence.description import CODE


@dataclass(frozen=True)
class Identity:
    """What a posterior depends on, by name, as text: settings in words, tensors by SHA-256.

    Two posteriors with the same identity are the same. It is the key under which a model keeps its posterior, and what
    checkpoints, saved files and processes that share rows are checked by.

    Attributes:
        prior: Classes, hyperparameters, buffers and all other attributes of the model, its likelihood and their parts.
        data: Training inputs, targets and weights, with their order.
        method: The solver, the approximation and the kind of operator.
        counters: Names in ``prior`` of whole numbers that evaluating the model changes, which say nothing about it.
    """

    prior: dict[str, str]
    data: dict[str, str]
    method: dict[str, str]
    counters: frozenset[str] = frozenset()

    def matches(self, now: Identity) -> bool:
        """Whether nothing has changed that a posterior of this identity depends on."""
        changed = {name for name in self.prior.keys() | now.prior.keys() if self.prior.get(name) != now.prior.get(name)}
        return changed <= self.counters and (self.data, self.method) == (now.data, now.method)

    def with_counters(self, before: dict[str, str], after: dict[str, str]) -> Identity:
        """The same, if only evaluations of the model lie between two descriptions of its prior."""
        numbers = {name for name in before.keys() & after.keys() if _is_count(before[name]) and _is_count(after[name])}
        return replace(self, counters=frozenset(name for name in numbers if before[name] != after[name]))

    @property
    def names(self) -> dict[str, str]:
        """Everything by name."""
        return self.data | self.prior | self.method

    def require_same(self, rows: RowPartition) -> None:
        """Every process must have the same data, in the same order, and the same model and settings.

        Raises:
            InputError: In every process, if they differ.
        """
        rows.require_same("training data", self.data)
        rows.require_same("hyperparameters and attributes", self.prior)
        rows.require_same("solver and settings", self.method)


def difference(theirs: dict[str, Any], ours: dict[str, Any]) -> tuple[str, str, str] | None:
    """The first name whose values differ, with both, or None."""
    for name in [*ours, *theirs]:
        first, second = theirs.get(name), ours.get(name)
        if isinstance(first, list) and isinstance(second, list):
            same = len(first) == len(second) and torch.allclose(torch.tensor(first), torch.tensor(second), rtol=1e-3)
        else:
            same = first == second
        if not same:
            return name, _short(first), _short(second)
    return None


def prior_difference(theirs: dict[str, str], ours: dict[str, str], *, code: bool) -> tuple[str, str, str] | None:
    """The first name in which two priors differ, with both values, or None.

    What only one of them knows does not count: libraries add attributes from one version to the next.

    Args:
        theirs: ``Identity.prior`` of one.
        ours: That of the other.
        code: Whether the code of functions counts, which is the same in one version of Python only.
    """
    known = {name for name in theirs.keys() & ours.keys() if code or not name.startswith(CODE)}
    return difference(*({name: text for name, text in names.items() if name in known} for names in (theirs, ours)))


def _is_count(text: str) -> bool:
    return text.removeprefix("-").isdigit()


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return "other values"
    return f"{value[:8]}..." if re.fullmatch(r"[0-9a-f]{64}", str(value)) else str(value)
