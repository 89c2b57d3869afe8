"""How the kernel matrix times a block of vectors is computed."""

from itergp.operators.base import KernelCounts, KernelOperator
from itergp.operators.blocked import BlockedOperator, DenseOperator
from itergp.operators.choose import OperatorClass, OperatorKind, make_operator, own_rows, require_operator
from itergp.operators.keops import KeOpsOperator
from itergp.operators.memory import default_memory_budget, free_memory
from itergp.operators.neighbours import Near, Neighbourhoods
from itergp.operators.prior import Prior
from itergp.operators.process_rows import ProcessRows
from itergp.operators.rows import Rows
from itergp.operators.sharded import ShardedOperator
from itergp.operators.tiles import slices

__all__ = [
    "BlockedOperator",
    "DenseOperator",
    "KeOpsOperator",
    "KernelCounts",
    "KernelOperator",
    "Near",
    "Neighbourhoods",
    "OperatorClass",
    "OperatorKind",
    "Prior",
    "ProcessRows",
    "Rows",
    "ShardedOperator",
    "default_memory_budget",
    "free_memory",
    "make_operator",
    "own_rows",
    "require_operator",
    "slices",
]
