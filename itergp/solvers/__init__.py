"""How the posterior is found."""

from itergp.solvers import policies
from itergp.solvers.action_buffer import ActionBuffer
from itergp.solvers.base import Solver, State
from itergp.solvers.demand import Demand
from itergp.solvers.dense_newton import DenseNewton
from itergp.solvers.driver import APPROXIMATIONS, solve, solve_problem
from itergp.solvers.iter_gp import IterGP, LinearSolution
from itergp.solvers.iter_ncgp import IterNCGP
from itergp.solvers.linear_time import LinearTimeNewton
from itergp.solvers.noise import Noise
from itergp.solvers.packing import Packed
from itergp.solvers.posterior import Posterior
from itergp.solvers.problem import Problem
from itergp.solvers.solution import Certificate, Solution
from itergp.solvers.status import Reason, Status
from itergp.solvers.subspace_newton import SubspaceNewton

__all__ = [
    "APPROXIMATIONS",
    "ActionBuffer",
    "Certificate",
    "Demand",
    "DenseNewton",
    "IterGP",
    "IterNCGP",
    "LinearSolution",
    "LinearTimeNewton",
    "Noise",
    "Packed",
    "Posterior",
    "Problem",
    "Reason",
    "Solution",
    "Solver",
    "State",
    "Status",
    "SubspaceNewton",
    "policies",
    "solve",
    "solve_problem",
]
