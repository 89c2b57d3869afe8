"""Tables of any kind as numbers: one encoder that estimators and the command line share."""

from __future__ import annotations

try:
    import sklearn as _sklearn  # noqa: F401 - only to say what is missing
except ImportError as error:
    raise ImportError(
        "`itergp.tables` needs scikit-learn. It is not installed. Install it with `pip install itergp[tables]`."
    ) from error

from itergp.tables.columns import (
    CategoricalColumn,
    DateColumn,
    DroppedColumn,
    EncodedColumn,
    GapColumn,
    GroupColumn,
    NumericColumn,
    OrderedColumn,
    TableColumns,
)
from itergp.tables.decoding import decode
from itergp.tables.encoder import TableEncoder
from itergp.tables.files import TableFile, as_file, is_file, open_table
from itergp.tables.reading import read_table
from itergp.tables.table import Table
from itergp.tables.targets import as_target_column, refuse_gaps
from itergp.tables.tasks import TaskGuess, guess_task

__all__ = [
    "CategoricalColumn",
    "DateColumn",
    "DroppedColumn",
    "EncodedColumn",
    "GapColumn",
    "GroupColumn",
    "NumericColumn",
    "OrderedColumn",
    "Table",
    "TableColumns",
    "TableEncoder",
    "TableFile",
    "TaskGuess",
    "as_file",
    "as_target_column",
    "decode",
    "guess_task",
    "is_file",
    "open_table",
    "read_table",
    "refuse_gaps",
]
