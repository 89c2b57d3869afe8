"""Tables of any container as columns with names: arrays, data frames, Arrow and polars tables, sparse matrices, records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from scipy import sparse

from itergp.checks import require_module
from itergp.errors import InputError
from itergp.tables.files import as_file, is_file
from itergp.tables.table import Table

_NUMBERS = "biuf"  # kinds of NumPy's dtypes
_MOST_MEMORY = 0.5  # share of what is free that a sparse matrix may take once it is dense


def read_table(X: Any) -> Table:
    """Takes in a table.

    Args:
        X: A data frame of pandas or polars, a pyarrow Table, an array of numbers, of objects or structured, a sparse matrix, a
            list of dictionaries, a dictionary of columns, or nested lists; or the name of a Parquet or CSV file.

    Raises:
        InputError: If it is no table, has no rows or columns, or two columns of one name.
    """
    if isinstance(X, Table):
        return X
    if is_file(X):
        return as_file(X).table()
    if sparse.issparse(X):
        return _from_array(_densified(X))
    frame = _as_frame(X)
    if frame is None:
        array = _as_array(X)
        if array.dtype.kind in _NUMBERS:
            return _from_array(array)
        frame = require_module("pandas", "An array of objects", "tables").DataFrame(array, dtype=object)
        return _from_frame(frame, None)
    return _from_frame(frame, _labels(frame))


def _as_frame(X: Any) -> Any:
    """A pandas data frame of what has columns of its own, otherwise None."""
    kind = type(X).__module__.partition(".")[0]
    if kind == "pandas":
        return X if hasattr(X, "columns") else _refuse_vector(X)
    if kind == "pyarrow" and hasattr(X, "column_names"):
        _check_names([str(name) for name in X.column_names])
        return X.to_pandas(date_as_object=False)
    if kind == "polars":
        X = X.collect() if hasattr(X, "collect") else X
        return X.to_pandas() if hasattr(X, "columns") else _refuse_vector(X)
    if isinstance(X, np.ndarray) and X.dtype.names is not None:
        return require_module("pandas", "A structured array", "tables").DataFrame(
            {name: X[name] for name in X.dtype.names}
        )
    records = isinstance(X, (list, tuple)) and len(X) > 0 and all(isinstance(row, Mapping) for row in X)
    if records or isinstance(X, Mapping):
        return require_module("pandas", "A list of dictionaries", "tables").DataFrame(X)
    if hasattr(X, "to_pandas"):
        return X.to_pandas()
    return require_module("pandas", "A table", "tables").DataFrame(X) if hasattr(X, "__dataframe__") else None


def _refuse_vector(X: Any) -> Any:
    raise InputError(
        f"`X` must be a 2D array of shape (N, D). Got a 1D array of shape ({len(X)},). Reshape your data: "
        "X.to_frame() for one column, X.to_frame().T for one row."
    )


def _as_array(X: Any) -> NDArray[Any]:
    try:
        array = np.asarray(X)
    except ValueError as error:
        raise InputError(
            "`X` must have shape (N, D), one row per observation. Got rows of different lengths. Check the data."
        ) from error
    if array.dtype.kind in "USO" and not isinstance(X, np.ndarray):
        array = np.asarray(X, dtype=object)  # lists of numbers and text would all become text
    if array.ndim == 0:
        raise InputError(
            f"`X` must be a table, a 2D array of shape (N, D). Got {type(X).__name__}. Pass a data frame, or an array with one "
            "row per observation."
        )
    if array.ndim == 1:
        raise InputError(
            f"`X` must be a 2D array of shape (N, D). Got a 1D array of shape {array.shape}. Reshape your data: "
            "X.reshape(-1, 1) for one column, X.reshape(1, -1) for one row."
        )
    if array.ndim != 2:
        raise InputError(
            f"`X` must be a 2D array of shape (N, D). Got {array.ndim} dimensions, {array.shape}. "
            "Flatten every observation to one row: X.reshape(len(X), -1)."
        )
    if array.dtype.kind == "c":
        raise InputError(
            "Complex data not supported: `X` must be real numbers. Got complex ones. Pass X.real and X.imag as columns."
        )
    return array


def _from_array(array: NDArray[Any]) -> Table:
    _check_shape(array.shape)
    matrix = np.asarray(array, dtype=np.float64)
    return Table(list(matrix.T), len(matrix), None, None, matrix)


def _from_frame(frame: Any, labels: list[Any] | None) -> Table:
    names = None if labels is None else [str(label) for label in labels]
    if names is not None:
        _check_names(names)
    _check_shape(frame.shape)
    columns = [frame.iloc[:, index].reset_index(drop=True) for index in range(frame.shape[1])]
    matrix = None
    if all(isinstance(kind, np.dtype) and kind.kind in "iuf" for kind in frame.dtypes):
        matrix = frame.to_numpy(dtype=np.float64)
    return Table(columns, len(frame), names, labels, matrix)


def _labels(frame: Any) -> list[Any] | None:
    """Names of columns; the numbers 0..D-1 that frames without names get are none."""
    labels = frame.columns.tolist()
    plain = all(isinstance(label, int) for label in labels) and labels == list(range(len(labels)))
    return None if plain and labels else labels


def _check_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        shown = ", ".join(map(repr, twice[:5])) + (", ..." if len(twice) > 5 else "")
        raise InputError(f"Columns of `X` must have different names. Got {shown} twice. Rename or drop one.")


def _check_shape(shape: tuple[int, ...]) -> None:
    for size, kind in ((shape[0], "sample"), (shape[1], "feature")):
        if size == 0:
            raise InputError(
                f"`X` must have rows and columns. Found array with 0 {kind}(s) (shape={shape}) while a minimum of 1 "
                "is required. Check how the data were selected."
            )


def _densified(X: Any) -> NDArray[Any]:
    if X.ndim != 2:
        raise InputError(f"`X` must be a sparse matrix of shape (N, D). Got shape {X.shape}. Reshape it.")
    if X.dtype.kind == "c":
        raise InputError(
            "Complex data not supported: `X` must be real numbers. Got a complex sparse matrix. Pass X.real."
        )
    size, free = 8 * X.shape[0] * X.shape[1], psutil.virtual_memory().available
    if size > _MOST_MEMORY * free:
        raise InputError(
            f"A sparse `X` must fit into memory once dense. Got {X.shape[0]:,} x {X.shape[1]:,}, {size / 2**30:.1f} GiB of "
            f"{free / 2**30:.1f} GiB free. Reduce its columns with sklearn.decomposition.TruncatedSVD first."
        )
    return X.toarray()
