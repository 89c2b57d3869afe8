"""Tables in files: CSV and Parquet."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from itergp.checks import require_module
from itergp.errors import InputError

_PARQUET = (".parquet", ".pq")


def require_room(name: str) -> Any:
    """A part of the package that needs scikit-learn, by its name.

    Raises:
        MissingExtraError: If scikit-learn is not installed.
    """
    require_module("sklearn", "This command", "sklearn")
    return importlib.import_module(name)


def open_file(path: Path, separator: str | None = None) -> Any:
    """A ``TableFile``, see there.

    Args:
        path: A CSV file, compressed or not, or a Parquet file.
        separator: What separates columns of text, if that is known.

    Raises:
        InputError: If the file is missing, empty, or not a table.
        MissingExtraError: If scikit-learn, pandas or pyarrow is not installed.
    """
    for name in ("pandas", "pyarrow"):
        require_module(name, "Reading tables", "tables")
    return require_room("itergp.tables").TableFile(path, separator)


class TableWriter:
    """Writes data frames, one below the other, to a CSV file, or to Parquet if the name says so.

    Args:
        path: The file; None for CSV on standard output.
        types: Arrow's types of columns that come from a file: what the first rows of these look like may be less.

    Raises:
        InputError: If the file cannot be written.
        MissingExtraError: If pyarrow is not installed, for Parquet.
    """

    def __init__(self, path: Path | None, types: dict[str, Any]) -> None:
        self._path, self._types = path, types
        self._parquet: Any = None
        self._begun = False
        if path is not None and path.suffix.lower() in _PARQUET:
            self._arrow = require_module("pyarrow", "Writing Parquet", "tables")
            self._library = require_module("pyarrow.parquet", "Writing Parquet", "tables")
        else:
            self._library = None

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._parquet is not None:
            self._parquet.close()

    def write(self, frame: Any) -> None:
        """Adds rows."""
        try:
            if self._library is None:
                target = sys.stdout if self._path is None else self._path
                mode = "a" if self._begun else "w"
                frame.to_csv(target, index=False, header=not self._begun, mode=mode)
            else:
                if self._parquet is None:
                    fields = self._arrow.Schema.from_pandas(frame, preserve_index=False)
                    known = [field.with_type(self._types.get(field.name, field.type)) for field in fields]
                    self._parquet = self._library.ParquetWriter(self._path, self._arrow.schema(known))
                rows = self._arrow.Table.from_pandas(frame, schema=self._parquet.schema, preserve_index=False)
                self._parquet.write_table(rows)
        except OSError as error:
            if self._path is None:
                raise  # a reader that has seen enough
            raise InputError(
                f"The output must be a file that can be written. Got {str(self._path)!r} ({str(error).rstrip('.')}). "
                "Choose another folder."
            ) from error
        self._begun = True


def require_columns(file: Any, names: Sequence[str], purpose: str) -> None:
    """A file must have columns.

    Raises:
        InputError: Naming those it lacks, and the nearest it has.
    """
    missing = [name for name in names if name not in file.names]
    if missing:
        have = file.names
        close = difflib.get_close_matches(missing[0], have, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"It has {', '.join(map(repr, have[:8]))}."
        raise InputError(
            f"The data must have the column(s) {', '.join(map(repr, missing[:5]))} for {purpose}. Got none of that name. {hint}"
        )
