"""Which solver finds a mode of few latent values in the least time."""

from __future__ import annotations

from itergp.likelihoods import Likelihood
from itergp.solvers.dense import DenseNewton
from itergp.solvers.protocol import Solver

_DENSE_VALUES = 512  # latent values N C that dense matrices solve for in less time than kernel passes


def are_few(likelihood: Likelihood, num_rows: int, *, sharded: bool = False) -> bool:
    """Whether dense matrices find a mode, and its adjoint, in less time than kernel passes.

    With a stand-in for the Hessian they would end a little short of the mode, by steps that are not Newton's.

    Args:
        likelihood: Of the rows.
        num_rows: N.
        sharded: Whether the rows are divided among processes.
    """
    exact = likelihood.curvature == "hessian" and not sharded
    return exact and num_rows * likelihood.num_latents <= _DENSE_VALUES


def solver_of_mode(solver: Solver, likelihood: Likelihood, num_rows: int, *, tolerance: float) -> Solver:
    """A solver as it is, or where values are few a dense one without a covariance.

    Args:
        solver: For many values.
        likelihood: Of the rows.
        num_rows: N.
        tolerance: Of the dense one, in nats per row.
    """
    return DenseNewton(covariance=False, tolerance=tolerance) if are_few(likelihood, num_rows) else solver
