"""``TableFile``: a table in a file, read column by column or a batch of rows at a time, never whole."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from itergp.checks import require_module
from itergp.errors import InputError
from itergp.tables.dialect import Dialect
from itergp.tables.table import ColumnsOnDemand, Table

_PARQUET = (".parquet", ".pq")
_BATCH_ROWS = 262_144
_ANYTHING = "str"  # as what text is read whose batches seem to be of several kinds


def is_file(X: Any) -> bool:
    """Whether a table is given as the name of a file."""
    return isinstance(X, (str, os.PathLike, TableFile))


def as_file(X: Any) -> TableFile:
    """The file of that name, or itself."""
    return X if isinstance(X, TableFile) else TableFile(X)


class TableFile:
    """A Parquet or CSV file with one row per observation.

    A column is read when it is asked for, and predictions take a batch of rows at a time, so that the file may be larger than
    memory. Of a CSV file, compressed or not, types are found in a first pass, by all of its rows; a second one writes it column
    by column to a temporary Parquet file, which is gone with this object.

    Args:
        path: The file.
        separator: What separates columns of text, if that is known; it is found out otherwise, as are encoding and decimals.

    Attributes:
        path: The file.
        names: Names of its columns.
        num_rows: N.
        types: Arrow's type of each column.

    Raises:
        InputError: If the file is missing, damaged or empty, or not a table.
        ImportError: If pandas or pyarrow is not installed.

    Examples:
        >>> import pandas, tempfile
        >>> from itergp.tables import TableFile
        >>> folder = tempfile.TemporaryDirectory()
        >>> pandas.DataFrame({"age": [31, 54], "ill": ["no", "yes"]}).to_csv(f"{folder.name}/people.csv", index=False)
        >>> people = TableFile(f"{folder.name}/people.csv")
        >>> people.names, people.num_rows, people["ill"].tolist()
        (['age', 'ill'], 2, ['no', 'yes'])
        >>> folder.cleanup()
    """

    def __init__(self, path: str | os.PathLike[str], separator: str | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"The data must be a file. Got {str(path)!r}, which is none. Check name and folder.")
        self._pandas = require_module("pandas", "Reading tables", "tables")
        self._parquet = require_module("pyarrow.parquet", "Reading tables", "tables")
        is_parquet = self.path.suffix.lower() in _PARQUET
        with self._readable("Parquet" if is_parquet else "CSV"):
            self._source = self.path if is_parquet else self._spooled(Dialect.of(self.path, separator))
            file = self._parquet.ParquetFile(self._source)
        metadata = file.schema_arrow.pandas_metadata or {}
        index = [name for name in metadata.get("index_columns", []) if isinstance(name, str)]
        self.names: list[str] = [name for name in file.schema_arrow.names if name not in index]
        self.num_rows: int = file.metadata.num_rows
        self.types: dict[str, Any] = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
        file.close()
        if self.num_rows == 0:
            raise InputError(
                f"The data must have rows. Got {str(path)!r} with a header only. Check how it was written."
            )

    def __getitem__(self, name: str | Sequence[str]) -> Any:
        """A column as a pandas Series ``(N,)``, or several as a data frame."""
        wanted = [name] if isinstance(name, str) else list(name)
        self.require(wanted)
        with self._readable("Parquet"):
            frame = self._pandas.read_parquet(self._source, columns=wanted).reset_index(drop=True)
        return frame[name] if isinstance(name, str) else frame[wanted]

    def table(self, names: Sequence[str] | None = None) -> Table:
        """Columns as a table for ``TableEncoder`` and the estimators; each is read when it is needed.

        Args:
            names: Which; default all.
        """
        names = self.names if names is None else list(names)
        self.require(names)
        return Table(ColumnsOnDemand([partial(self.__getitem__, name) for name in names]), self.num_rows, names, names)

    def without(self, *names: str) -> Table:
        """All columns but some, such as the target, as ``table`` gives them."""
        self.require(names)
        return self.table([name for name in self.names if name not in names])

    def batches(self, names: Sequence[str] | None = None, rows: int = _BATCH_ROWS) -> Iterator[Any]:
        """Data frames of some rows each, in order.

        Args:
            names: Columns; default all.
            rows: At most.
        """
        names = self.names if names is None else list(names)
        self.require(names)
        with self._readable("Parquet"):
            file = self._parquet.ParquetFile(self._source)
            for batch in file.iter_batches(batch_size=rows, columns=names):
                yield batch.to_pandas().reset_index(drop=True)[names]

    def require(self, names: Sequence[str]) -> None:
        """There must be columns of these names.

        Raises:
            InputError: Naming one that there is not.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            shown = ", ".join(map(repr, self.names[:8])) + (", ..." if len(self.names) > 8 else "")
            raise InputError(
                f"The data must have a column {missing[0]!r}. Got {str(self.path)!r} with {shown}. Correct the name."
            )

    # ------------------------------------------------------------------ inside
    def _readable(self, kind: str) -> _Readable:
        return _Readable(kind, self.path)

    def _spooled(self, dialect: Dialect) -> Path:
        """A temporary Parquet file with the columns of the text."""
        arrow = importlib.import_module("pyarrow")
        kinds: dict[str, str] = {}
        for part in self._text(dialect, None):
            found = {name: _kind(part[name]) for name in part.columns}
            kinds = {name: _joined(kinds.get(name), kind) for name, kind in found.items()}
        if not kinds:
            raise InputError(
                f"The data must have rows. Got {str(self.path)!r} with a header only. Check how it was written."
            )
        dtypes = {name: kind for name, kind in kinds.items() if kind != "empty"}
        folder = tempfile.mkdtemp(prefix="itergp-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        target, writer, schema = Path(folder) / "table.parquet", None, None
        try:
            for part in self._text(dialect, dtypes):
                for name, kind in kinds.items():
                    if kind == "empty":
                        part[name] = part[name].astype("float64")
                table = arrow.Table.from_pandas(part, schema=schema, preserve_index=False)
                if writer is None:
                    schema = table.schema
                    schema = _without_nulls(arrow, schema, kinds)
                    table = table.cast(schema)
                    writer = self._parquet.ParquetWriter(target, schema)
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()
        return target

    def _text(self, dialect: Dialect, dtypes: dict[str, str] | None) -> Iterator[Any]:
        with self._pandas.read_csv(
            self.path,
            sep=dialect.separator,
            encoding=dialect.encoding,
            decimal=dialect.decimal,
            skipinitialspace=True,
            low_memory=False,
            dtype=dtypes,
            chunksize=_BATCH_ROWS,
        ) as parts:
            yield from parts


class _Readable:
    """What goes wrong while a file is read, in a sentence that names it."""

    def __init__(self, kind: str, path: Path) -> None:
        self.kind, self.path = kind, path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, (ValueError, OSError)) and not isinstance(error, InputError):
            # pandas' errors of parsing and Arrow's are ValueErrors
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise InputError(
                f"The data must be a {self.kind} table with a header. Got {str(self.path)!r}, which cannot be read as one "
                f"({reason}). Check separator and encoding."
            ) from error


def _kind(column: Any) -> str:
    """What pandas takes a column of some rows of text for."""
    kind = column.dtype.kind
    if kind == "f" and bool(column.isna().all()):
        return "empty"
    if kind in "iufb":
        return {"i": "int64", "u": "uint64", "f": "float64", "b": "bool"}[kind]
    known = column.dropna()
    truths = len(known) > 0 and all(isinstance(value, bool) for value in known)
    return "boolean" if truths else _ANYTHING


def _joined(first: str | None, second: str) -> str:
    """What holds the values of both kinds."""
    if first is None or first == second:
        return second
    kinds = {first, second}
    if "empty" in kinds:
        (other,) = kinds - {"empty"}
        return {"int64": "float64", "uint64": "float64", "bool": "boolean"}.get(other, other)
    if kinds <= {"int64", "uint64", "float64"}:
        return "float64"
    return "boolean" if kinds == {"bool", "boolean"} else _ANYTHING


def _without_nulls(arrow: Any, schema: Any, kinds: dict[str, str]) -> Any:
    """The schema of the first rows as one of all: text that has begun with gaps is text."""
    fields = []
    for field in schema:
        text = kinds[field.name] == _ANYTHING
        fields.append(field.with_type(arrow.string()) if text else field)
    return arrow.schema(fields, metadata=schema.metadata)


def open_table(X: Any, y: Any, *others: Any, inputs: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Inputs, targets and what else is known of rows, where the inputs are a file and others may be names of its columns.

    Args:
        X: The name of a file or a ``TableFile``; anything else comes back as it is, with the rest.
        y: Targets, or the name of their column, or of several; these columns are no inputs.
        *others: Weights and the like: for each values, the name of a column, or None.
        inputs: Names of the inputs; default all columns that have not been named.
    """
    if not is_file(X):
        return (X, y, *others)
    file = as_file(X)
    several = isinstance(y, (list, tuple)) and all(isinstance(name, str) for name in y) and len(y) != file.num_rows
    used = list(y) if several else [y] if isinstance(y, str) else []
    used += [name for name in others if isinstance(name, str)]
    table = file.without(*used) if inputs is None else file.table(list(inputs))
    y = list(y) if several else y
    return (
        table,
        *(file[value] if isinstance(value, str) or (value is y and several) else value for value in (y, *others)),
    )
