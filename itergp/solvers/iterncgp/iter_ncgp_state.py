"""State of ``IterNCGP``, and how its linear systems are set up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from itergp.posterior.precision import multiply
from itergp.posterior.problem import Problem
from itergp.posterior.solution import Solution
from itergp.posterior.warm_start import WarmStart
from itergp.solvers.iterncgp.action_buffer import ActionBuffer
from itergp.solvers.iterncgp.linear_belief import LinearBelief
from itergp.solvers.iterncgp.newton_iterate import NewtonIterate, pseudo_targets
from itergp.solvers.iterncgp.noise import Noise
from itergp.solvers.policies.memory import Memory
from itergp.solvers.protocol import BaseState


class Phase(str, Enum):
    """What the next step of ``IterNCGP`` does."""

    SOLVING = "one more proposal for the linear system"
    UPDATED = "the iterate is new: its linear system is set up"
    SETTLED = "the last update gained nothing: the iterate is certified"
    CERTIFIED = "the certificate is the iterate's: a linear system is set up there if it does not suffice"
    DIVERGED = "nothing: full steps went astray"


@dataclass(frozen=True)
class IterNCGPState(BaseState):
    """State of ``IterNCGP``: the iterate, the linear system that is being solved there, and what comes next.

    The belief's arrays grow in place, so that only the latest state can be continued; iterates are never changed.
    """

    belief: LinearBelief
    iterate: NewtonIterate
    best: NewtonIterate
    reference: float
    memory: Memory
    newton_step: int = 0
    inner_step: int = 0
    index: int = 0
    norm_squared: float = float("inf")
    residual: float = float("inf")
    gain: float = float("inf")
    step_length: float = 1.0
    newton_steps: int = 0
    above: int = 0
    idle: int = 0
    exhausted: bool = False
    phase: Phase = Phase.SOLVING
    event: str = ""

    def __post_init__(self) -> None:
        """A phase is kept by its text."""
        object.__setattr__(self, "phase", Phase(self.phase))

    @property
    def objective(self) -> float:
        """Psi at the iterate."""
        return self.iterate.objective

    @property
    def rank(self) -> int:
        """Number of actions."""
        return self.belief.rank

    @property
    def gradient_residual(self) -> Tensor:
        """``g - V`` ``(N, C)``: zero at the mode."""
        return self.iterate.residual

    @property
    def finite(self) -> bool:
        """Whether the iterate is finite."""
        return self.iterate.finite


def linear_system(
    problem: Problem,
    iterate: NewtonIterate,
    buffer: ActionBuffer,
    *,
    hold_weights: bool,
    room: int | None,
    compression: str,
    reorthogonalise: bool,
    exact: bool = False,
) -> LinearBelief:
    """The Newton system at an iterate, given the actions that the buffer holds: no kernel product.

    Args:
        problem: The problem.
        iterate: Where the likelihood is expanded.
        buffer: Recycled actions; emptied before if there are to be none.
        hold_weights: Whether the iterate's weights become an action, so that the new solution is no worse than the iterate.
        room: Most actions to keep; the rest is compressed away.
        compression: How, see ``LinearBelief.compress``.
        reorthogonalise: Whether actions are made orthogonal.
        exact: Whether noise is as large as it is, as a covariance needs it: where it is bounded for float32, a row counts as
            saying more than it does, which the mean does not notice.
    """
    noise = Noise.from_curvature(iterate.curvature, torch.float64 if exact else problem.mean.dtype)
    right = pseudo_targets(problem, iterate, noise.apply(iterate.gradient))
    belief = LinearBelief(buffer, noise, right.to(problem.mean), reorthogonalise)
    if room is not None:
        belief.compress(max(1, room - int(hold_weights)), compression)
    if hold_weights:
        add_weights(problem, iterate, belief)
    return belief


def whole(state: IterNCGPState) -> IterNCGPState:
    """A state whose linear system fits its actions, also if it was interrupted while they grew."""
    belief = state.belief
    if {belief.factor.shape[0], belief.white.shape[0], belief.noise_gram.shape[0]} == {belief.rank}:
        return state
    return replace(state, belief=LinearBelief(belief.buffer, belief.noise, belief.right, belief.reorthogonalise))


def add_weights(problem: Problem, iterate: NewtonIterate, belief: LinearBelief) -> None:
    """The iterate's weights as an action, whose kernel product ``f - m`` is known."""
    if not bool(iterate.weights.any()):
        return
    size = iterate.weights.double().norm().to(iterate.weights)
    smooth = iterate.latent_values - problem.mean
    rows = iterate.weights.any(-1).nonzero().squeeze(-1)
    held = None if rows.numel() == problem.num_rows else rows
    belief.observe_known((iterate.weights / size).unsqueeze(-1), (smooth / size).unsqueeze(-1), rows=held)


@dataclass(frozen=True)
class RecycledActions(WarmStart):
    """What ``IterNCGP`` leaves for the next solve.

    Attributes:
        actions: Actions and their products with the kernel of ``operator``.
    """

    actions: ActionBuffer


def recycled_buffer(problem: Problem, earlier: Solution | None, limit: int | None) -> ActionBuffer:
    """Actions of an earlier solution: with their products when the kernel is the same, else renewed in one pass."""
    buffer = ActionBuffer(problem.mean, limit)
    recycled = None if earlier is None else earlier.warm_start
    if not isinstance(recycled, RecycledActions) or recycled.actions.actions.shape[:2] != problem.mean.shape:
        return buffer
    held = recycled.actions
    same = recycled.operator is problem.operator
    if same and held.limit == limit:
        return held
    room = held.rank if limit is None else min(held.rank, limit)
    block = held.actions[..., held.rank - room :].to(problem.mean)
    if room:
        products = held.products[..., held.rank - room :] if same else multiply(problem.operator, block)
        buffer.append(block, products)
    return buffer
