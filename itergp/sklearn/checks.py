"""What arrays and data frames must look like: every common mistake gets one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import _check_sample_weight, column_or_1d, validate_data

from itergp.errors import InputError

_LARGEST = 1e15  # its square is finite in float32


def check_inputs(estimator: Any, X: Any, *, reset: bool) -> NDArray[np.float64]:
    """Inputs as a finite float64 matrix ``(N, D)``, their columns those of the training data.

    Args:
        estimator: Remembers number and names of columns when ``reset``, otherwise compares with what it remembers.
        X: Array, data frame or nested list.
        reset: Whether these are training data.

    Raises:
        InputError: Saying what must hold, what was got, and what to do.
    """
    _explain_container(X)
    names = [str(name) for name in X.columns] if hasattr(X, "columns") else None
    values = _as_array(X)
    _explain_shape(values)
    _explain_values(values, names)
    try:
        checked = validate_data(estimator, X, reset=reset, dtype=np.float64, ensure_all_finite=False)
    except ValueError as error:
        raise InputError(f"{str(error).rstrip()} Select the columns of the training data, in their order.") from error
    bad = ~np.isfinite(checked)
    if bad.any():
        columns = list_columns(np.flatnonzero(bad.any(0)), names)
        raise InputError(
            f"`X` must be finite. Got NaN or infinity in {int(bad.any(1).sum())} of {len(checked)} row(s), in column(s) "
            f"{columns}. Drop those rows or impute the values, for example with sklearn.impute.SimpleImputer."
        )
    return checked


def _explain_container(X: Any) -> None:
    if type(X).__module__.startswith("scipy.sparse"):
        raise InputError(
            "`X` must be dense. Got a sparse matrix. Call X.toarray(), or reduce its columns with "
            "sklearn.decomposition.TruncatedSVD first."
        )
    if not hasattr(X, "columns") or not hasattr(X, "dtypes"):
        return
    names = [str(name) for name in X.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"Columns of `X` must have different names. Got {_quoted(twice)} twice. Rename or drop one.")
    text = [name for name, kind in zip(names, map(str, X.dtypes), strict=True) if kind in ("category", "string", "str")]
    times = [name for name, kind in zip(names, map(str, X.dtypes), strict=True) if "time" in kind or "period" in kind]
    if text:
        raise InputError(_not_numbers(f"text or categories in column(s) {_quoted(text)}"))
    if times:
        raise InputError(
            f"`X` must be numbers. Got dates or times in column(s) {_quoted(times)}. "
            "Convert them, for example to days since a start."
        )


def _as_array(X: Any) -> NDArray[Any]:
    try:
        return np.asarray(X)
    except ValueError as error:
        raise InputError(
            "`X` must have shape (N, D), one row per observation. Got rows of different lengths. Check the data."
        ) from error


def _explain_shape(values: NDArray[Any]) -> None:
    if values.ndim == 1:
        raise InputError(
            f"`X` must be a 2D array of shape (N, D). Got a 1D array of shape {values.shape}. Reshape your data: "
            "X.reshape(-1, 1) for one column, X.reshape(1, -1) for one row."
        )
    if values.ndim != 2:
        raise InputError(
            f"`X` must be a 2D array of shape (N, D). Got {values.ndim} dimensions, {values.shape}. "
            "Flatten every observation to one row: X.reshape(len(X), -1)."
        )
    for size, kind in ((values.shape[0], "sample"), (values.shape[1], "feature")):
        if size == 0:
            raise InputError(
                f"`X` must have rows and columns. Found array with 0 {kind}(s) (shape={values.shape}) while a minimum of 1 "
                "is required. Check how the data were selected."
            )


def _explain_values(values: NDArray[Any], names: Sequence[str] | None) -> None:
    if values.dtype.kind == "c":
        raise InputError(
            "Complex data not supported: `X` must be real numbers. Got complex ones. Pass X.real and X.imag as columns."
        )
    if values.dtype.kind in "mM":
        raise InputError("`X` must be numbers. Got dates or times. Convert them, for example to days since a start.")
    if values.dtype.kind in "USO":
        is_text = np.vectorize(lambda value: isinstance(value, (str, bytes)), otypes=[bool])(values)
        if is_text.any():
            shown = repr(values[is_text][0])
            columns = list_columns(np.flatnonzero(is_text.any(0)), names)
            raise InputError(_not_numbers(f"text such as {shown} in column(s) {columns}"))
    if values.dtype.kind == "O":
        try:
            values.astype(np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            reason = f"`X` must be numbers. Got an array of objects that are not ({error}). Convert them to float."
            raise (TypeError(reason) if isinstance(error, TypeError) else InputError(reason)) from error


def _not_numbers(got: str) -> str:
    return (
        f"`X` must be numbers. Got {got}. Encode them, for example with sklearn.preprocessing.OneHotEncoder or "
        "OrdinalEncoder in a pipeline."
    )


def check_size(values: NDArray[np.float64], names: Sequence[str] | None) -> None:
    """Standardised inputs must be of a size that can be squared.

    Raises:
        InputError: If they are not.
    """
    sizes = np.abs(values).max(0)
    wrong = np.flatnonzero((sizes > _LARGEST) | ((sizes > 0.0) & (sizes < 1.0 / _LARGEST)))
    if len(wrong):
        raise InputError(
            f"Values of `X` must be between {1 / _LARGEST:g} and {_LARGEST:g} in size, or within as many standard deviations "
            f"when standardised. Got {sizes[wrong[0]]:.3g} in column {list_columns(wrong[:1], names)}. Rescale it, or pass "
            "standardize=True."
        )


def check_codes(values: NDArray[np.float64], codes: Mapping[int, int], names: Sequence[str] | None) -> None:
    """Columns that index kernels read must be numbers of categories that they know.

    Args:
        values: Inputs ``(M, D)`` in the units of the data.
        codes: Columns, and how many categories the kernel of each has.
        names: Names of the columns, or None.

    Raises:
        InputError: If they are not.
    """
    for column, count in codes.items():
        given = values[:, column]
        wrong = (given != np.floor(given)) | (given < 0) | (given >= count)
        if wrong.any():
            raise InputError(
                f"Column {list_columns(np.array([column]), names)} of `X` must be whole numbers 0..{count - 1}, which "
                f"its index kernel has rows for. Got {given[wrong][0]:g}. Encode it, for example with OrdinalEncoder, "
                "or pass a kernel with a larger num_tasks."
            )


def check_rows(X: NDArray[Any], y: NDArray[Any]) -> None:
    """As many targets as rows.

    Raises:
        InputError: If not.
    """
    if len(X) != len(y):
        raise InputError(
            f"`X` and `y` must have the same number of rows. Got {len(X)} and {len(y)}. Select the same rows of both."
        )


def as_column(estimator: Any, y: Any) -> NDArray[Any]:
    """Targets as a vector ``(N,)``.

    Raises:
        InputError: If there are none, or several columns.
    """
    name = type(estimator).__name__
    if y is None:
        raise InputError(f"{name} requires y to be passed, but the target y is None. Pass one target per row.")
    values = np.asarray(y)
    if values.ndim > 2 or (values.ndim == 2 and values.shape[1] != 1) or values.ndim == 0:
        raise InputError(
            f"`y` must have shape (N,). Got {values.shape}. Pass one target per row, for classes the label and not "
            "a one-hot row."
        )
    return column_or_1d(y, warn=True)


def as_real(y: NDArray[Any]) -> NDArray[np.float64]:
    """Targets as finite float64 numbers.

    Raises:
        InputError: If they are text, or not finite.
    """
    try:
        values = y.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"`y` must be numbers. Got {y.dtype} values such as {y[0]!r}. Use GPClassifier for classes, or convert them."
        ) from error
    bad = ~np.isfinite(values)
    if bad.any():
        raise InputError(
            f"`y` must be finite. Got NaN or infinity in {int(bad.sum())} of {len(values)} row(s). Drop those rows."
        )
    return values


def check_weights(X: NDArray[Any], sample_weight: Any) -> NDArray[np.float64]:
    """Weights ``(N,)``, one by default.

    Raises:
        InputError: If they are negative, or none is positive.
    """
    try:
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64)
    except ValueError as error:
        raise InputError(
            f"`sample_weight` must be one finite weight per row. {str(error).rstrip('.')}. Select the same rows."
        ) from error
    if (weights < 0.0).any() or not (weights > 0.0).any():
        raise InputError(
            "`sample_weight` must not be negative, and positive somewhere. Got values from "
            f"{weights.min():.3g} to {weights.max():.3g}. Drop or correct those rows."
        )
    return weights


def check_exposure(num_rows: int, exposure: Any) -> NDArray[np.float64]:
    """Exposures ``(N,)``, positive and finite; a single number is that of every row.

    Raises:
        InputError: If they are not.
    """
    try:
        values = np.asarray(exposure, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"`exposure` must be numbers. Got {type(exposure).__name__}: {error}. Convert it to float."
        ) from error
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if values.ndim > 1 or (values.ndim == 1 and len(values) != num_rows):
        raise InputError(
            f"`exposure` must be a number, or one per row with shape ({num_rows},). Got shape {values.shape}. Select the "
            "same rows of both."
        )
    wrong = ~(np.isfinite(values) & (values > 0.0))
    if wrong.any():
        raise InputError(
            f"`exposure` must be positive and finite. Got {values[wrong].flat[0]:g} in {int(wrong.sum())} of {values.size} "
            "row(s). Drop those rows: without exposure they say nothing."
        )
    return np.broadcast_to(values, (num_rows,)).copy()


def list_columns(columns: NDArray[np.intp], names: Sequence[str] | None) -> str:
    """The first columns, by name if they have any, otherwise by number."""
    shown = [repr(names[i]) if names is not None else str(i) for i in columns[:5]]
    return ", ".join(shown) + (", ..." if len(columns) > 5 else "")


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
