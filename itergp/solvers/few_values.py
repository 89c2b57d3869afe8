"""Which solver finds a mode of few latent values in the least time."""

from __future__ import annotations

from itergp.likelihoods import Likelihood
from itergp.solvers.dense import DenseNewton
from itergp.solvers.protocol import Solver

# Latent values N C that dense matrices solve for in less time than kernel passes: of several functions, and of one. (Student-t
# noise of 1e-3, 1,000 rows: 0.3 s, and 10. Of more rows it depends: steps by a majoriser are few or many.)
_DENSE_VALUES, _DENSE_ROWS = 512, 1000
# Nats per row: nearer to a mode, steps that are not Newton's end a little short of it, and before that they are many.
_NEAREST, _MAJORISED_STEPS = 1e-7, 1000


def are_few(likelihood: Likelihood, num_rows: int, *, tolerance: float, sharded: bool = False) -> bool:
    """Whether dense matrices find a mode, and its adjoint, in less time than kernel passes.

    With a stand-in for the Hessian they find it as nearly as most ask for if that is a majoriser, and otherwise not.

    Args:
        likelihood: Of the rows.
        num_rows: N.
        tolerance: How near the mode is to be, in nats per row.
        sharded: Whether the rows are divided among processes.
    """
    most = _DENSE_ROWS if likelihood.num_latents == 1 else _DENSE_VALUES // likelihood.num_latents
    nearly = likelihood.majorises and likelihood.num_latents == 1 and tolerance >= _NEAREST
    return num_rows <= most and (likelihood.curvature == "hessian" or nearly) and not sharded


def dense_solver(likelihood: Likelihood, *, tolerance: float) -> DenseNewton:
    """The one of few values, without a covariance.

    Args:
        likelihood: Of the rows.
        tolerance: In nats per row.
    """
    steps = None if likelihood.curvature == "hessian" else _MAJORISED_STEPS
    return DenseNewton(covariance=False, tolerance=tolerance, max_steps=steps)


def solver_of_mode(solver: Solver, likelihood: Likelihood, num_rows: int, *, tolerance: float) -> Solver:
    """A solver as it is, or where values are few a dense one without a covariance.

    Args:
        solver: For many values.
        likelihood: Of the rows.
        num_rows: N.
        tolerance: Of the dense one, in nats per row.
    """
    few = are_few(likelihood, num_rows, tolerance=tolerance)
    return dense_solver(likelihood, tolerance=tolerance) if few else solver
