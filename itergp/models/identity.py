"""What the posterior of a model depends on: its ``Identity``."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from itergp._version import __version__
from itergp.models.prior_evaluation import HasPrior, depends_on_mode
from itergp.numerics.sampling import evenly_spaced
from itergp.operators import Prior, make_operator
from itergp.persistence.description import describe
from itergp.persistence.identity import Identity
from itergp.solvers.protocol import Solver

_PROBE_ROWS = 16
_METHOD = ("solver", "approximation", "operator_kind", "share_equal_rows")
# Data, which have names of their own; what only costs or predictions depend on; and the posterior.
_NOT_PRIOR = (
    *("missing_targets", "_nan_targets", "_nan_unasked", "tempering", "memory_budget"),
    *("held_data", "_known", "_batch"),
)


class Identifiable(HasPrior, Protocol):
    """A model as its identity knows it."""

    likelihood: Any
    solver: Solver[Any]
    approximation: str
    operator_kind: Any
    share_equal_rows: bool

    @property
    def train_inputs(self) -> tuple[Tensor, ...]:
        """Training inputs, for whoever may keep them."""

    @property
    def train_targets(self) -> Tensor:
        """Training targets, for whoever may keep them."""

    def data_digests(self) -> dict[str, str]:
        """Digests of the training data by name."""

    def prior_at(self, inputs: tuple[Tensor, ...] | None = None) -> Prior:
        """The prior at the training inputs, or at new ones if these are given."""


def identity_of(model: Identifiable) -> Identity:
    """The identity of the posterior that a model has at present.

    Its cost does not grow with the rows where only the model can have changed the training data, see ``HeldTensors``;
    otherwise all of the data are read.
    """
    method: dict[str, str] = {}
    for name in _METHOD:
        method |= describe(getattr(model, name), name.removesuffix("_kind"))
    return Identity(describe_prior(model), model.data_digests(), method)


def describe_prior(model: Identifiable) -> dict[str, str]:
    """Classes, hyperparameters, buffers and all other attributes of a model, its likelihood and their parts."""
    found = describe(model, "", leave_out=(*_NOT_PRIOR, *_METHOD))
    if depends_on_mode(model):
        found["training"] = repr(model.training)
    return found


def identify(model: Identifiable, **settings: Any) -> dict[str, Any]:
    """What the result of a computation depends on, by name, for its checkpoint.

    Args:
        model: The model.
        **settings: Whatever else the result depends on.
    """
    named = {"the version of itergp": __version__} | identity_of(model).names
    for name, value in settings.items():
        named |= describe(value, name)
    return named | {"the prior": _probe(model)}


def _probe(model: Identifiable) -> list[float]:
    """Prior means and kernel entries of a few rows: they notice what no attribute shows, such as a captured variable."""
    rows = evenly_spaced(model.held_data.targets.shape[0], _PROBE_ROWS, torch.device("cpu"))
    with torch.no_grad():
        whole = model.prior_at()
        prior = whole.take(rows.to(whole.mean.device))
        entries = make_operator(prior.kernel, prior.features, num_kernels=prior.num_kernels, kind="dense").dense()
    return [round(value, 8) for value in torch.cat([prior.mean.reshape(-1), entries.reshape(-1)]).double().tolist()]
