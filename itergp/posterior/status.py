"""``Status``: how a solve ended, why, and what to try."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Reason(Enum):
    """Why a solve ended, or that it has not. The value says what happened; ``remedy`` what to try."""

    RUNNING = "this is the posterior so far"
    CONVERGED = "the certified gap to the mode is within the tolerance"
    STATIONARY = "the gradient is within the tolerance; the likelihood is not log-concave, so no gap can be certified"
    PASSES = "the budget of kernel passes was used up"
    RANK = "the search space reached its maximum rank and stopped improving"
    STEPS = "the budget of Newton steps was used up"
    FAILED = "the next step was not finite; this is the last good state"
    TIME = "the time limit was reached"
    PRECISION = "floating-point precision was exhausted before the tolerance was met"
    STALLED = "no step along the search space decreases the objective any more"
    POLICY = "the policy has no more actions to propose"
    SUPPORT = "the support reached its largest size"
    SETTLED = "a larger support no longer lowers the objective"
    DIVERGED = "full Newton steps diverged; this is the best state before"
    ROUNDS = "the variational posterior still moved after its last round"
    INTERRUPTED = "the solve was interrupted"

    @property
    def remedy(self) -> str:
        """What to change for a closer answer; empty when nothing needs to change."""
        return _REMEDIES[self]


_REMEDIES = {
    Reason.RUNNING: "",
    Reason.CONVERGED: "",
    Reason.STATIONARY: "",
    Reason.PASSES: "The posterior is valid and the certificate says how far it is. Raise max_passes for a closer one.",
    Reason.RANK: "Raise max_rank, or accept the gap that the certificate states.",
    Reason.STEPS: "Raise max_steps.",
    Reason.FAILED: "Check the kernel's hyperparameters and the scale of inputs and targets, or use float64.",
    Reason.TIME: "The posterior is valid and the certificate says how far it is. Raise time_limit for a closer one.",
    Reason.PRECISION: "Use float64 inputs (model.double()), or accept the gap that the certificate states.",
    Reason.STALLED: "Use float64 inputs (model.double()); for likelihoods that are not log-concave this may be a local mode.",
    Reason.POLICY: "Raise the number of actions of the policy, or follow it by CG() with Scheduled.",
    Reason.SUPPORT: "Raise num_support or memory_budget, or pass polish=SubspaceNewton() for a few passes over all rows.",
    Reason.SETTLED: "Lower tolerance for more, or pass polish=SubspaceNewton() if passes over all rows are affordable.",
    Reason.ROUNDS: "The residual says how far, in posterior deviations. Use float64, or condition again to go on.",
    Reason.DIVERGED: 'Use step="backtracking", or SubspaceNewton.',
    Reason.INTERRUPTED: "The posterior so far is valid. Condition again to go on; the search space is reused.",
}


@dataclass(frozen=True)
class Status:
    """How a solve ended.

    Attributes:
        reason: Why it ended.
        detail: Figures behind the reason.
    """

    reason: Reason
    detail: str = ""

    @property
    def converged(self) -> bool:
        """Whether the tolerance was met."""
        return self.reason in (Reason.CONVERGED, Reason.STATIONARY)

    def __str__(self) -> str:
        """One sentence, with the remedy."""
        detail = f" ({self.detail})" if self.detail else ""
        if self.reason is Reason.RUNNING:
            return f"Running: {self.reason.value}."
        remedy = f" {self.reason.remedy}" if self.reason.remedy else ""
        return f"Stopped because {self.reason.value}{detail}.{remedy}"
