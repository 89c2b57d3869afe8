"""How the kernel matrix times a block of vectors is computed."""

import warnings
from typing import Any

from itergp import parallel
from itergp.operators.abstract import AbstractOperator, KernelCounts
from itergp.operators.base import KernelOperator
from itergp.operators.blocked import BlockedOperator, DenseOperator
from itergp.operators.choose import (
    OperatorClass,
    OperatorKind,
    kind_without_matrix,
    make_operator,
    own_rows,
    require_operator,
)
from itergp.operators.coupled import CoupledOperator, JointOperator, KroneckerOperator
from itergp.operators.fourier import FourierOperator
from itergp.operators.jacobian import JacobianOperator
from itergp.operators.keops import KeOpsOperator
from itergp.operators.linearisation import FinalLayer, Linearisation, linearise
from itergp.operators.memory import default_memory_budget, free_memory
from itergp.operators.neighbours import Near, Neighbourhoods, kept_entries
from itergp.operators.preconditioner import Preconditioner
from itergp.operators.prior import Prior
from itergp.operators.scan import ScanOperator
from itergp.operators.sharded import ShardedOperator
from itergp.operators.tiles import slices

__all__ = [
    "AbstractOperator",
    "BlockedOperator",
    "CoupledOperator",
    "DenseOperator",
    "FinalLayer",
    "FourierOperator",
    "JacobianOperator",
    "JointOperator",
    "KeOpsOperator",
    "KernelCounts",
    "KernelOperator",
    "KroneckerOperator",
    "Linearisation",
    "Near",
    "Neighbourhoods",
    "OperatorClass",
    "OperatorKind",
    "Preconditioner",
    "Prior",
    "ScanOperator",
    "ShardedOperator",
    "default_memory_budget",
    "free_memory",
    "kept_entries",
    "kind_without_matrix",
    "linearise",
    "make_operator",
    "own_rows",
    "require_operator",
    "slices",
]

_RENAMED = {"Rows": "RowPartition", "ProcessRows": "ProcessPartition"}


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    now = _RENAMED[name]
    warnings.warn(f"itergp.operators.{name} is itergp.parallel.{now} now.", DeprecationWarning, stacklevel=2)
    return getattr(parallel, now)
