"""Posteriors that are far from what data and prior say although nobody asked for less."""

from __future__ import annotations

import math
import warnings

from itergp.errors import ItergpWarning
from itergp.likelihoods import Likelihood
from itergp.models.conditioned import Conditioned
from itergp.posterior.status import Reason
from itergp.solvers import Solution

_FAR = 1.0  # nats per row; posterior deviations of one that still moved
# Limits that a solver has by itself count, those that it was given do not.
_LIMITS = {Reason.PASSES: "max_passes", Reason.RANK: "max_rank"}
_ASKED = frozenset(
    (Reason.RUNNING, Reason.TIME, Reason.STEPS, Reason.POLICY, Reason.SUPPORT, Reason.SETTLED, Reason.INTERRUPTED)
)


def is_far(solution: Solution, solver: object, likelihood: Likelihood) -> bool:
    """Whether a posterior is far from the one that was asked for.

    Args:
        solution: The posterior.
        solver: Which found it, with the limits that it was given.
        likelihood: Of the rows. Where it is quadratic, a mean that ends by rounding is as near as numbers are, however large
            the bound: with little noise a small distance is many nats.
    """
    reason = solution.status.reason
    if reason is Reason.PRECISION and likelihood.quadratic:
        return False
    if solution.converged or reason in _ASKED or getattr(solver, _LIMITS.get(reason, ""), None) is not None:
        return False
    if reason is Reason.ROUNDS:
        residual = solution.variational_residual
        return not (math.inf if residual is None else residual) < _FAR
    certificate = solution.certificate
    gap = solution.posterior.norm_squared if certificate is None else certificate.norm_squared
    if certificate is None and math.isinf(gap):  # not known
        return False
    return not 0.5 * gap < _FAR * solution.rows.global_size(len(solution.representer_weights))


def warn_if_far(conditioned: Conditioned, solver: object, stacklevel: int) -> None:
    """Says that predictions from such a posterior are not to be relied upon."""
    if is_far(conditioned.solution, solver, conditioned.observations.likelihood):
        warnings.warn(
            f"The posterior must be near to what data and prior say for predictions to be right. "
            f"{conditioned.solution.status} Until then predictions may be far off: look at model.solution.",
            ItergpWarning,
            stacklevel=stacklevel,
        )
