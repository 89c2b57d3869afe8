"""Arrays of other libraries as tensors that share their memory."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itergp.errors import InputError

_READ_ONLY = "The given NumPy array is not writable"
_LIBRARIES = ("numpy", "pandas", "pyarrow")


def as_tensor(values: Any, name: str = "values") -> Tensor:
    """A tensor that shares the memory of an array, a data frame or Arrow data wherever their layout allows it.

    No copy is made of NumPy arrays, memory-mapped files among them, of data frames whose columns are of one dtype and
    stored together, of single columns, and of Arrow arrays of one chunk without missing values. Anything else costs one
    copy: Arrow tables and data frames of several blocks hold their columns apart, and are put together here. Nothing in this
    package writes into a tensor it was given, so that files may be opened read-only.

    Args:
        values: A tensor, returned as it is; a NumPy array; a pandas data frame, series or extension array; an Arrow table,
            record batch, array or chunked array.
        name: What the caller's argument is called, for errors.

    Returns:
        The tensor, on the CPU, in the dtype of the data: ``(N, D)`` for tables, ``(N,)`` for columns.

    Raises:
        InputError: If it is none of these, or does not hold numbers.

    Examples:
        >>> import numpy as np
        >>> import itergp
        >>> array = np.arange(6.0).reshape(3, 2)
        >>> np.shares_memory(itergp.as_tensor(array).numpy(), array)
        True
    """
    if torch.is_tensor(values):
        return values
    if not is_array(values):
        raise InputError(
            f"`{name}` must be a torch tensor, a NumPy array, a pandas data frame or Arrow data. Got "
            f"{type(values).__name__}. Use torch.as_tensor(x)."
        )
    array = _as_numpy(values, name)
    if array.dtype.kind not in "fiub":
        raise InputError(
            f"`{name}` must be numbers. Got {type(values).__name__} of {array.dtype}. Encode text and categories, and convert "
            "the columns to one dtype."
        )
    if any(stride < 0 for stride in array.strides) or not array.dtype.isnative:
        array = np.array(array, dtype=array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_READ_ONLY)
        return torch.from_numpy(array)


def is_array(values: Any) -> bool:
    """Whether ``as_tensor`` knows how to share its memory."""
    return any(kind.__module__.split(".")[0] in _LIBRARIES for kind in type(values).__mro__[:-1]) and (
        isinstance(values, np.ndarray) or hasattr(values, "to_numpy") or hasattr(values, "column_names")
    )


def _as_numpy(values: Any, name: str) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return np.asarray(values)  # a memory map becomes a view of its memory
    if hasattr(values, "column_names"):  # an Arrow table or record batch
        return _columns([_arrow(column) for column in values.columns], values.num_rows)
    if type(values).__module__.split(".")[0] == "pyarrow":
        return _arrow(values)
    try:
        return values.to_numpy()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"`{name}` must be numbers without gaps. Got {type(values).__name__} that is not ({error}). Impute missing values."
        ) from error


def _columns(columns: list[np.ndarray], num_rows: int) -> np.ndarray:
    """Columns ``(N,)`` as one matrix ``(N, D)``: a view of a single one, otherwise the one copy there has to be."""
    if len(columns) == 1:
        return columns[0][:, None]
    kinds = [column.dtype for column in columns]
    table = np.empty((len(columns), num_rows), dtype=np.result_type(*kinds) if kinds else np.float64)
    for row, column in zip(table, columns, strict=True):
        row[:] = column
    return table.T


def _arrow(column: Any) -> np.ndarray:
    """An Arrow array or chunked array; missing values become NaN."""
    chunks = getattr(column, "chunks", None)
    if chunks is not None and len(chunks) == 1:
        column = chunks[0]
    elif chunks is not None:
        return column.to_numpy()  # puts the chunks together
    return column.to_numpy(zero_copy_only=False)  # a copy only if there are gaps, or truth values
