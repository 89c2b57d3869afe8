"""``Identity``: what a posterior depends on, by name, so that two computations can be told apart."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from itergp._version import __version__
from itergp.models.description import CODE, describe
from itergp.models.prior_evaluation import depends_on_mode
from itergp.numerics.sampling import evenly_spaced
from itergp.operators import Prior, make_operator
from itergp.parallel import RowPartition

if TYPE_CHECKING:
    from itergp.models.nonconjugate_gp import NonConjugateGP

_PROBE_ROWS = 16
_METHOD = ("solver", "approximation", "operator_kind")
# Data, which have names of their own; what only costs or predictions depend on; and the posterior.
_NOT_PRIOR = (
    *("missing_targets", "_nan_targets", "_nan_unasked", "tempering", "memory_budget"),
    *("_held_data", "_solution", "_operator", "_made_in_training", "_identity", "_batch"),
)


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

    @classmethod
    def of(cls, model: NonConjugateGP) -> Identity:
        """The identity of the posterior that a model has at present.

        Its cost does not grow with the rows where only the model can have changed the training data, see ``HeldTensors``;
        otherwise all of the data are read.
        """
        method: dict[str, str] = {}
        for name in _METHOD:
            method |= describe(getattr(model, name), name.removesuffix("_kind"))
        return cls(describe_prior(model), model._data_digests(), method)

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


def describe_prior(model: NonConjugateGP) -> dict[str, str]:
    """Classes, hyperparameters, buffers and all other attributes of a model, its likelihood and their parts."""
    found = describe(model, "", leave_out=(*_NOT_PRIOR, *_METHOD))
    if depends_on_mode(model):
        found["training"] = repr(model.training)
    return found


def identify(model: NonConjugateGP, **settings: Any) -> dict[str, Any]:
    """What the result of a computation depends on, by name, for its checkpoint.

    Args:
        model: The model.
        **settings: Whatever else the result depends on.
    """
    named = {"the version of itergp": __version__} | Identity.of(model).names
    for name, value in settings.items():
        named |= describe(value, name)
    return named | {"the prior": _probe(model)}


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


def _probe(model: NonConjugateGP) -> list[float]:
    """Prior means and kernel entries of a few rows: they notice what no attribute shows, such as a captured variable."""
    rows = evenly_spaced(model.train_targets.shape[0], _PROBE_ROWS, torch.device("cpu"))
    with torch.no_grad():
        whole: Prior = model._prior(model.train_inputs)
        prior = whole.take(rows.to(whole.mean.device))
        entries = make_operator(prior.kernel, prior.features, num_kernels=prior.num_kernels, kind="dense").dense()
    return [round(value, 8) for value in torch.cat([prior.mean.reshape(-1), entries.reshape(-1)]).double().tolist()]


def _is_count(text: str) -> bool:
    return text.removeprefix("-").isdigit()


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return "other values"
    return f"{value[:8]}..." if re.fullmatch(r"[0-9a-f]{64}", str(value)) else str(value)
