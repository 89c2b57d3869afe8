"""Policies: which directions a solver looks at next.

A policy has one method, ``propose(view)``: it sees the residual, the iterate, the inputs and the past actions, and returns
a block of actions. The solver does everything else. ``IterGP``, ``IterNCGP`` and ``SubspaceNewton`` take any of them.
"""

from itergp.solvers.policies.base import BasePolicy, Policy, View
from itergp.solvers.policies.block_gradient import BlockGradient
from itergp.solvers.policies.block_sparse import BlockSparse
from itergp.solvers.policies.class_gradient import ClassGradient
from itergp.solvers.policies.conjugate_gradients import CG
from itergp.solvers.policies.gradient import Gradient
from itergp.solvers.policies.kernel_columns import KernelColumns
from itergp.solvers.policies.lanczos import Lanczos
from itergp.solvers.policies.memory import Memory
from itergp.solvers.policies.mixed import Mixed, Scheduled
from itergp.solvers.policies.preconditioned_cg import PreconditionedCG
from itergp.solvers.policies.preconditioned_gradient import PreconditionedGradient
from itergp.solvers.policies.random_probes import RandomProbes
from itergp.solvers.policies.unit_vectors import UnitVectors
from itergp.solvers.proposals import Proposal, RowBlock

__all__ = [
    "CG",
    "BasePolicy",
    "BlockGradient",
    "BlockSparse",
    "ClassGradient",
    "Gradient",
    "KernelColumns",
    "Lanczos",
    "Memory",
    "Mixed",
    "Policy",
    "PreconditionedCG",
    "PreconditionedGradient",
    "Proposal",
    "RandomProbes",
    "RowBlock",
    "Scheduled",
    "UnitVectors",
    "View",
]
