"""The interface of policies: a small read-only view in, a block of actions out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from itergp.operators import AbstractOperator, KernelOperator
from itergp.solvers.iterncgp.linear_belief import LinearBelief
from itergp.solvers.iterncgp.noise import Noise
from itergp.solvers.policies.memory import Memory
from itergp.solvers.proposals import Proposal


@dataclass(frozen=True)
class View:
    """What a policy may look at. Nothing in it is to be changed, except ``memory``.

    Attributes:
        gradient: ``W r`` ``(N, C)`` for the residual r of the linear system: the negative gradient of the objective that the
            step minimises. For the Newton system at the current iterate it is ``g(f) - V``. It has no entries of the size
            of ``W^+``.
        curvature: W ``(N, C, C)``.
        weights: Current v ``(N, C)``.
        latent_values: ``m + K v`` ``(N, C)``.
        operator: K; evaluating it costs what the policy's docstring says.
        index: Proposals made since the actions were last emptied; with recycling, since the solve began.
        step: Proposals made in the current linear system.
        newton_step: Number of the Newton step, from 0.
        belief: S, T and the small matrices; None in solvers that keep none.
        known_variance: What ``variance`` says, in solvers without a belief ``(N, C)``; None for the prior's.
        memory: A policy's own notes for the length of one solve.
    """

    gradient: Tensor
    curvature: Tensor
    weights: Tensor
    latent_values: Tensor
    operator: AbstractOperator
    index: int = 0
    step: int = 0
    newton_step: int = 0
    belief: LinearBelief | None = None
    known_variance: Tensor | None = None
    memory: MutableMapping[Any, Any] = field(default_factory=Memory)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows N and latent functions C."""
        return self.gradient.shape[0], self.gradient.shape[1]

    @property
    def kernel_operator(self) -> KernelOperator:
        """K, where its entries are asked for.

        Raises:
            InputError: If it is of a kind that has products only.
        """
        return KernelOperator.require(self.operator)

    @property
    def residual(self) -> Tensor:
        """``r = b - (K + W^+) v`` of the linear system ``(N, C)``, on the range of W, in the data's dtype."""
        if self.belief is not None:
            return self.belief.residual().to(self.gradient)
        return Noise.from_curvature(self.curvature).apply(self.gradient).to(self.gradient)

    @property
    def inputs(self) -> Tensor:
        """Training inputs ``(N, D)`` in which distance means what it means to the kernel."""
        if "inputs" not in self.memory:
            self.memory["inputs"] = self.kernel_operator.scaled_inputs()
        return self.memory["inputs"]

    def variance(self) -> Tensor:
        """Posterior variance at the training inputs ``(N, C)``; costs ``N C R^2`` where there is a belief."""
        if self.known_variance is not None:
            return self.known_variance
        prior = self.operator.diagonal().detach().mT.expand(self.shape)
        return prior if self.belief is None else self.belief.variance(prior)

    def generator(self, seed: int) -> torch.Generator:
        """Random numbers that depend on the policy's seed and on how many proposals were made."""
        return torch.Generator().manual_seed(1_000_003 * (self.index + 1) + seed)


class Policy(Protocol):
    """Proposes the next actions. A frozen dataclass: equal settings, equal proposals. ``BasePolicy`` has defaults."""

    @property
    def sparse(self) -> bool:
        """Whether every proposal is a ``RowBlock``."""

    @property
    def shards_rows(self) -> bool:
        """Whether it looks at the rows of its own process only, or at sums over all: a block has the own rows."""

    @property
    def agrees_on_rows(self) -> bool:
        """Whether it proposes the same ``RowBlock`` in every process, its row numbers those among all rows."""

    def propose(self, view: View) -> Proposal | None:
        """The next actions.

        Args:
            view: What is known so far.

        Returns:
            A block ``(N, C, k)``, whose product is one kernel pass; a ``RowBlock``, whose product costs a few kernel
            columns; or None when there is nothing more to propose. Length and dependence on earlier actions do not matter.
        """


class BasePolicy(ABC):
    """A policy that proposes blocks of all rows and knows nothing of other processes, until it says otherwise."""

    sparse: ClassVar[bool] = False
    shards_rows: ClassVar[bool] = False
    agrees_on_rows: ClassVar[bool] = False

    @abstractmethod
    def propose(self, view: View) -> Proposal | None:
        """The next actions."""


def columns(block: Tensor, latents: int) -> Tensor:
    """Directions ``(N, k)`` for each latent function in turn: actions ``(N, C, k C)``."""
    eye = torch.eye(latents, dtype=block.dtype, device=block.device)
    return torch.einsum("nk,cd->nckd", block, eye).flatten(2)
