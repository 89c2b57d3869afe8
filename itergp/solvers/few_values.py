"""Which solver finds a mode of few latent values in the least time."""

from __future__ import annotations

from itergp.likelihoods import Likelihood
from itergp.operators import AbstractOperator
from itergp.posterior.problem import Problem
from itergp.posterior.solution import Solution
from itergp.solvers.dense import DenseNewton, memory_of_matrices
from itergp.solvers.protocol import Solver

# Latent values N C that dense matrices solve for in less time than kernel passes, of several functions; rows of one, where
# steps are Newton's, and where W is no Hessian and passes can be very many. (Student-t noise of 0.01, 2,200 rows of rough
# functions in eight columns: 2.3 s, and 70; noise of 1, which leaves smooth ones: 0.9, and 0.7.)
_DENSE_VALUES, _DENSE_ROWS, _DENSE_ROWS_WITHOUT_HESSIAN = 512, 1000, 3000
_SHARE = 0.1  # of a tolerance, to begin with what then is certified


def are_few(likelihood: Likelihood, operator: AbstractOperator) -> bool:
    """Whether dense matrices find a mode, and its adjoint, in less time than kernel passes, if there are no kinks.

    Args:
        likelihood: Of the rows.
        operator: Prior covariance at their inputs.
    """
    rows, latents, newton = operator.num_rows, likelihood.num_latents, likelihood.curvature == "hessian"
    if operator.rows.sharded or memory_of_matrices(rows * latents) > operator.memory_budget:
        return False
    if latents > 1:
        return newton and rows <= _DENSE_VALUES // latents
    return rows <= (_DENSE_ROWS if newton else _DENSE_ROWS_WITHOUT_HESSIAN)


def solver_of_mode(solver: Solver, likelihood: Likelihood, operator: AbstractOperator, *, tolerance: float) -> Solver:
    """A solver as it is, or where values are few a dense one without a covariance.

    Args:
        solver: For many values.
        likelihood: Of the rows.
        operator: Prior covariance at their inputs.
        tolerance: Of the dense one, in nats per row.
    """
    few = likelihood.smooth and are_few(likelihood, operator)
    return DenseNewton(covariance=False, tolerance=tolerance) if few else solver


def begins_densely(solver: Solver, likelihood: Likelihood, operator: AbstractOperator) -> bool:
    """Whether dense matrices find the Laplace mode that a solver begins with, which can begin anywhere.

    Args:
        solver: For many values.
        likelihood: Of the rows.
        operator: Prior covariance at their inputs.
    """
    slow = likelihood.majorises and likelihood.has_smooth_mode and likelihood.num_latents == 1
    return solver.begins_anywhere and slow and operator.preconditioner_memory == 0 and are_few(likelihood, operator)


def solver_of_start(solver: Solver, problem: Problem, earlier: Solution | None) -> DenseNewton | None:
    """The dense one whose mode a solver begins with, or None.

    Args:
        solver: For many values.
        problem: With its site.
        earlier: A solution that is known. If what it holds for the solver is of this kernel matrix, or of that of the first
            rows, it is the better start.
    """
    if problem.site.averages or not begins_densely(solver, problem.likelihood, problem.operator):
        return None
    known = None if earlier is None or earlier.warm_start is None else earlier.operator
    if known is not None and (known is problem.operator or known.num_rows < problem.num_rows):
        return None
    return DenseNewton(covariance=False, tolerance=_SHARE * solver.tolerance)


def memory_of_start(solver: Solver, likelihood: Likelihood, operator: AbstractOperator) -> int:
    """Bytes of the dense matrices that a solver begins with; 0 where there are none.

    Args:
        solver: For many values.
        likelihood: Of the rows.
        operator: Prior covariance at their inputs.
    """
    return memory_of_matrices(operator.num_rows) if begins_densely(solver, likelihood, operator) else 0
