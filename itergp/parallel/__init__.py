"""Which process holds which rows, and what processes do together."""

from itergp.parallel.partition import ALL_ROWS, Interrupt, RowPartition, require_everywhere
from itergp.parallel.process_group import exchange, many_processes
from itergp.parallel.process_partition import ProcessPartition

__all__ = [
    "ALL_ROWS",
    "Interrupt",
    "ProcessPartition",
    "RowPartition",
    "exchange",
    "many_processes",
    "require_everywhere",
]
