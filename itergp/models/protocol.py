"""What functions on models ask of a model: the face of ``NonConjugateGP`` that they share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from itergp.likelihoods import Observations
from itergp.models.conditioned import Conditioned
from itergp.models.identity import Identifiable
from itergp.operators import KernelOperator, Prior
from itergp.solvers import Solution


class Model(Identifiable, Protocol):
    """A model of some data, as those see it who find its posterior, predict from it, save it, or change its data."""

    memory_budget: int | None
    tempering: float
    missing_targets: bool

    # ------------------------------------------------------------ data
    @property
    def sample_weight(self) -> Tensor | None:
        """Weights of the targets ``(N,)``, or None."""

    @property
    def data_batch_shape(self) -> torch.Size:
        """The shape of a batch of models, empty for a single one."""

    @property
    def batch_elements(self) -> tuple[Any, ...]:
        """The models of a batch by themselves; of a single model, itself."""

    def collect_elements(self) -> None:
        """Gives a batch the hyperparameters of its elements."""

    @property
    def may_miss_targets(self) -> bool:
        """Whether targets may be missing."""

    @property
    def observations(self) -> Observations:
        """Targets, their weights and the likelihood."""

    def viewed_observations(self) -> Observations:
        """``observations`` by views that a posterior keeps."""

    def hold(
        self,
        inputs: tuple[Tensor, ...],
        targets: Any,
        sample_weight: Any,
        *,
        keeps: bool = False,
        check_rows: bool = True,
    ) -> None:
        """Takes training data, checked."""

    def replace_data(self, inputs: tuple[Tensor, ...], targets: Tensor | None, sample_weight: Tensor | None) -> None:
        """Takes training data that are known to be valid."""

    # ------------------------------------------------------- posterior
    @property
    def last_solution(self) -> Solution | None:
        """The last posterior, of the present state or not."""

    @property
    def current_solution(self) -> Solution | None:
        """The posterior if it is known."""

    @property
    def conditioned(self) -> Conditioned:
        """Posterior, operator and observations of the present state; found now if they are not known."""

    @property
    def last_conditioned(self) -> Conditioned | None:
        """The last posterior with what it was found with, if that was kept."""

    def make_operator(self, prior: Prior, observations: Observations | None = None) -> KernelOperator:
        """The kernel operator of a prior, for what was observed at its rows."""

    def adopt(self, solution: Solution) -> None:
        """Takes a solution as that of the present state."""

    def start_from(self, solution: Solution) -> None:
        """Takes a solution as the start of the next one."""

    def continue_from(self, earlier: Any) -> None:
        """Takes over the posterior of an earlier copy."""

    def keeping_posterior(self, meanwhile: Conditioned | None = None) -> AbstractContextManager[None]:
        """Whatever happens to the posterior meanwhile, afterwards it is the present one again."""

    # ---------------------------------------------------------- module
    def state_dict(self) -> dict[str, Any]:
        """Parameters and buffers."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Takes parameters and buffers."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Moves the model."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """All parameters."""

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Parameters by name."""

    def named_parameters_and_constraints(self) -> Iterator[tuple[str, torch.nn.Parameter, Any]]:
        """Parameters and their constraints by name."""


AnyModel = TypeVar("AnyModel", bound=Model)
