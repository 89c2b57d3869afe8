"""How the posterior is found."""

import warnings
from typing import Any

from itergp.persistence import StateDict
from itergp.posterior.posterior import Posterior
from itergp.posterior.problem import Problem
from itergp.posterior.solution import Certificate, Report, Solution
from itergp.posterior.status import Reason, Status
from itergp.posterior.warm_start import WarmStart
from itergp.solvers import policies
from itergp.solvers.demand import Demand
from itergp.solvers.dense import DenseNewton
from itergp.solvers.iterncgp.action_buffer import ActionBuffer
from itergp.solvers.iterncgp.iter_gp import IterGP, LinearSolution
from itergp.solvers.iterncgp.iter_ncgp import IterNCGP
from itergp.solvers.iterncgp.noise import Noise
from itergp.solvers.protocol import BaseSolver, BaseState, Rounds, Solver, State
from itergp.solvers.run.budget import Budget
from itergp.solvers.run.solve import APPROXIMATIONS, solve, solve_problem
from itergp.solvers.subspace.linear_time import LinearTimeNewton
from itergp.solvers.subspace.subspace_newton import SubspaceNewton

__all__ = [
    "APPROXIMATIONS",
    "ActionBuffer",
    "BaseSolver",
    "BaseState",
    "Budget",
    "Certificate",
    "Demand",
    "DenseNewton",
    "IterGP",
    "IterNCGP",
    "LinearSolution",
    "LinearTimeNewton",
    "Noise",
    "Posterior",
    "Problem",
    "Reason",
    "Report",
    "Rounds",
    "Solution",
    "Solver",
    "State",
    "Status",
    "SubspaceNewton",
    "WarmStart",
    "policies",
    "solve",
    "solve_problem",
]


def __getattr__(name: str) -> Any:
    """Deprecated: what was here before states were saved by ``itergp.persistence``."""
    if name != "Packed":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("itergp.solvers.Packed is itergp.persistence.StateDict now.", DeprecationWarning, stacklevel=2)
    return StateDict
