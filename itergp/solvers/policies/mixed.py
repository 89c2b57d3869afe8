"""Policies joined: at the same time, or one after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from itergp.checks import require_positive
from itergp.errors import InputError
from itergp.solvers.policies.base import BasePolicy, Policy, View
from itergp.solvers.proposals import Proposal, dense_block


@dataclass(frozen=True)
class Mixed(BasePolicy):
    """Several policies at once: their actions share one kernel pass.

    Args:
        policies: The policies.

    Raises:
        InputError: If there is none.
    """

    policies: tuple[Policy, ...]

    def __post_init__(self) -> None:
        """Makes a tuple of what was given, and checks it."""
        object.__setattr__(self, "policies", require_policies(self.policies))

    def propose(self, view: View) -> Proposal | None:
        """The proposals side by side; a policy that has nothing more to propose is left out."""
        proposals = [proposal for policy in self.policies if (proposal := policy.propose(view)) is not None]
        if len(proposals) <= 1:
            return proposals[0] if proposals else None
        return torch.cat([dense_block(proposal, view.gradient) for proposal in proposals], -1)


@dataclass(frozen=True)
class Scheduled(BasePolicy):
    """Policies one after the other: each for a number of proposals, the last for good.

    Args:
        phases: Pairs of a policy and its number of proposals; the number of the last may be None.

    Raises:
        InputError: If a phase is not such a pair.

    Examples:
        >>> from itergp.solvers.policies import CG, Scheduled, UnitVectors
        >>> policy = Scheduled(((UnitVectors(order="random"), 10), (CG(), None)))
    """

    phases: tuple[tuple[Policy, int | None], ...]

    def __post_init__(self) -> None:
        """Makes tuples of what was given, and checks them."""
        phases = tuple(tuple(phase) for phase in self.phases)
        valid = all(len(phase) == 2 for phase in phases) and all(phase[1] is not None for phase in phases[:-1])
        if not valid:
            raise InputError(
                "`phases` must be pairs (policy, number of proposals); only the last number may be None. "
                f"Got {self.phases!r}."
            )
        require_policies(tuple(phase[0] for phase in phases))  # type: ignore[misc]
        for phase in phases:
            require_positive("number of proposals", phase[1], integer=True)  # type: ignore[arg-type]
        object.__setattr__(self, "phases", phases)

    def propose(self, view: View) -> Proposal | None:
        """The proposal of the policy whose turn it is; it counts its own proposals."""
        before = 0
        for policy, number in self.phases:
            if number is None or view.index < before + number:
                return policy.propose(replace(view, index=view.index - before))
            before += number
        return None


def require_policies(policies: tuple[Policy, ...]) -> tuple[Policy, ...]:
    """At least one policy, and nothing else.

    Raises:
        InputError: Otherwise.
    """
    given = tuple(policies)
    if not given:
        raise InputError("At least one policy is needed. Got none. Pass for example (CG(),).")
    for policy in given:
        require_policy(policy)
    return given


def require_policy(policy: object) -> None:
    """A policy must be an instance with a ``propose`` method, and with the rest of the protocol.

    Raises:
        InputError: If it is a class, a name or anything else, or lacks a member.
    """
    if isinstance(policy, type) or not callable(getattr(policy, "propose", None)):
        got = f"the class {policy.__name__}" if isinstance(policy, type) else repr(policy)
        raise InputError(f"`policy` must have a method propose(view). Got {got}. Pass an instance, for example CG().")
    missing = [name for name in ("sparse", "shards_rows", "agrees_on_rows") if not hasattr(policy, name)]
    if missing:
        raise InputError(
            f"`policy` must have every member of itergp.solvers.policies.Policy. Got {type(policy).__name__}, which has no "
            f"{', '.join(missing)}. Subclass itergp.solvers.policies.BasePolicy, which has defaults."
        )
