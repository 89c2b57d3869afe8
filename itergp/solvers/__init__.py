"""How the posterior is found."""

from itergp.solvers.dense_newton import DenseNewton
from itergp.solvers.driver import APPROXIMATIONS, solve, solve_problem
from itergp.solvers.problem import Problem
from itergp.solvers.solution import Certificate, Solution
from itergp.solvers.status import Reason, Status
from itergp.solvers.subspace_newton import SubspaceNewton

__all__ = [
    "APPROXIMATIONS",
    "Certificate",
    "DenseNewton",
    "Problem",
    "Reason",
    "Solution",
    "Status",
    "SubspaceNewton",
    "solve",
    "solve_problem",
]
