"""Tables in files: CSV and Parquet, through pandas."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from itergp.cli.dialect import Dialect
from itergp.errors import InputError

_PARQUET = (".parquet", ".pq")


class MissingExtraError(ImportError):
    """A package that only some commands need is not installed."""


def require(name: str, purpose: str, extra: str) -> Any:
    """A module that an extra installs.

    Raises:
        MissingExtraError: If it is not there, saying which extra to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs {name.partition('.')[0]}. It is not installed. Install it with `pip install itergp[{extra}]`."
        ) from error


def require_room(name: str) -> Any:
    """A part of the package that needs scikit-learn, by its name.

    Raises:
        MissingExtraError: If scikit-learn is not installed.
    """
    require("sklearn", "This command", "sklearn")
    return importlib.import_module(name)


def read_table(path: Path, separator: str | None = None) -> Any:
    """A data frame from a CSV file, compressed or not, or from a Parquet file; see ``Dialect`` for what is found out.

    Args:
        path: The file.
        separator: What separates columns of text, if that is known.

    Raises:
        InputError: If the file is missing, empty, or not a table.
        MissingExtraError: If pandas is not installed, or for Parquet pyarrow.
    """
    if not path.is_file():
        raise InputError(f"The data must be a file. Got {str(path)!r}, which is none. Check name and folder.")
    pandas = require("pandas", "Reading tables", "tables")
    parquet = path.suffix.lower() in _PARQUET
    if parquet:
        require("pyarrow", "Reading Parquet", "tables")
    try:
        table = pandas.read_parquet(path) if parquet else _read_text(pandas, path, separator)
    except (ValueError, OSError) as error:  # pandas' errors of parsing and Arrow's are ValueErrors
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        kind = "Parquet" if parquet else "CSV"
        raise InputError(
            f"The data must be a {kind} table with a header. Got {str(path)!r}, which cannot be read as one ({reason}). "
            "Check separator and encoding."
        ) from error
    if len(table) == 0:
        raise InputError(f"The data must have rows. Got {str(path)!r} with a header only. Check how it was written.")
    return table


def _read_text(pandas: Any, path: Path, separator: str | None) -> Any:
    dialect = Dialect.of(path, separator)
    return pandas.read_csv(
        path,
        sep=dialect.separator,
        encoding=dialect.encoding,
        decimal=dialect.decimal,
        skipinitialspace=True,
        low_memory=False,
    )


def write_table(table: Any, path: Path) -> None:
    """Writes a data frame as CSV, or as Parquet if the name says so.

    Raises:
        InputError: If the file cannot be written.
        MissingExtraError: If pyarrow is not installed, for Parquet.
    """
    parquet = path.suffix.lower() in _PARQUET
    if parquet:
        require("pyarrow", "Writing Parquet", "tables")
    try:
        if parquet:
            table.to_parquet(path, index=False)
        else:
            table.to_csv(path, index=False)
    except OSError as error:
        raise InputError(
            f"The output must be a file that can be written. Got {str(path)!r} ({str(error).rstrip('.')}). "
            "Choose another folder."
        ) from error


def require_columns(table: Any, names: Sequence[str], purpose: str) -> None:
    """A table must have columns.

    Raises:
        InputError: Naming those it lacks, and the nearest it has.
    """
    missing = [name for name in names if name not in table.columns]
    if missing:
        have = [str(name) for name in table.columns]
        close = difflib.get_close_matches(missing[0], have, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"It has {', '.join(map(repr, have[:8]))}."
        raise InputError(
            f"The data must have the column(s) {', '.join(map(repr, missing[:5]))} for {purpose}. Got none of that name. {hint}"
        )
