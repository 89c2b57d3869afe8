"""``Conditioned``: what a model holds after conditioning, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from itergp.likelihoods import Observations
from itergp.operators import AbstractOperator, KernelOperator
from itergp.operators.derived import TabulatedKernel
from itergp.persistence.identity import Identity
from itergp.solvers import Solution


@dataclass(frozen=True)
class KnownPosterior:
    """A posterior alone: a copy's or one from a file, whose operator is made when it predicts, or a start for the next one.

    Attributes:
        solution: The posterior, of the distinct training rows where equal ones share their latent values.
        key: What it depends on; None for a mere start, which is the posterior of nothing present.
    """

    solution: Solution
    key: Identity | None

    @cached_property
    def solution_of_given_rows(self) -> Solution:
        """The posterior as users see it: arrays of rows have an entry for each training row."""
        return self.solution.of_given_rows()

    def alone(self) -> KnownPosterior:
        """Without what can be made again."""
        return KnownPosterior(self.solution, self.key)

    def without_warm_start(self) -> KnownPosterior:
        """What a copy takes along: neither kernel caches nor what the next solve could go on from."""
        return KnownPosterior(self.solution.without_warm_start(), self.key)

    def views(self) -> list[Tensor]:
        """Tensors that may refer to the memory of the training data."""
        return [] if self.solution.operator is None else _tensors_of(self.solution.operator)


@dataclass(frozen=True)
class Conditioned(KnownPosterior):
    """A posterior with all that it was found with; nothing in it changes when the model does.

    The prior at other inputs is not in it: only the model's ``forward`` knows. Whether that is still the prior which the
    posterior belongs to, the key says.

    Attributes:
        operator: Kernel operator of the training inputs, of a snapshot of the kernel.
        observations: Targets, weights and likelihood, by views that share the memory of the model's data.
        training: Whether the model was in training mode, in which it is not seen if ``forward`` takes rows one by one.
    """

    operator: KernelOperator
    observations: Observations
    training: bool

    @property
    def looks_at_rows_together(self) -> bool:
        """Whether ``forward`` makes of a row what depends on others: the prior was evaluated whole."""
        return isinstance(self.operator.kernel, TabulatedKernel)

    def serves(self, *, training: bool) -> bool:
        """Whether the operator is also that of a model in this mode."""
        return training == self.training or not (self.training or self.looks_at_rows_together)

    def views(self) -> list[Tensor]:
        """Tensors that may refer to the memory of the training data."""
        weight = self.observations.sample_weight
        found = [*super().views(), *_tensors_of(self.operator), self.observations.targets]
        return found if weight is None else [*found, weight]


def _tensors_of(operator: AbstractOperator) -> list[Tensor]:
    found: list[Tensor] = []
    for part in vars(operator).values():
        found += [part] if torch.is_tensor(part) else _tensors_of(part) if isinstance(part, AbstractOperator) else []
    return found
