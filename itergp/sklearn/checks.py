"""What targets, weights and standardised inputs must be: every common mistake gets one sentence that says what to do."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import _check_sample_weight, column_or_1d

from itergp.errors import InputError, ItergpWarning
from itergp.tables import as_target_column, refuse_gaps

_LARGEST = 1e15  # its square is finite in float32
_HEAVY = 10.0  # mean of weights that are hardly counts of equal rows


def check_size(values: NDArray[np.float64], titles: Sequence[str]) -> None:
    """Standardised inputs must be of a size that can be squared.

    Args:
        values: Inputs ``(M, E)``.
        titles: What messages call the columns.

    Raises:
        InputError: If they are not.
    """
    sizes = np.maximum(values.max(0), -values.min(0))
    wrong = np.flatnonzero((sizes > _LARGEST) | ((sizes > 0.0) & (sizes < 1.0 / _LARGEST)))
    if len(wrong):
        raise InputError(
            f"Values of `X` must be between {1 / _LARGEST:g} and {_LARGEST:g} in size, or within as many standard deviations "
            f"when standardised. Got {sizes[wrong[0]]:.3g} in column {list_columns(wrong[:1], titles)}. Rescale it, or pass "
            "standardize=True."
        )


def check_codes(values: NDArray[np.float64], codes: Mapping[int, int], titles: Sequence[str]) -> None:
    """Columns that index kernels read must be numbers of categories that they know.

    Args:
        values: Inputs ``(M, E)`` in the units of the data.
        codes: Columns, and how many categories the kernel of each has.
        titles: What messages call the columns.

    Raises:
        InputError: If they are not.
    """
    for column, count in codes.items():
        given = values[:, column]
        wrong = (given != np.floor(given)) | (given < 0) | (given >= count)
        if wrong.any():
            raise InputError(
                f"Column {titles[column]} of `X` must be whole numbers 0..{count - 1}, which "
                f"its index kernel has rows for. Got {given[wrong][0]:g}. Encode it, for example with OrdinalEncoder, "
                "or pass a kernel with a larger num_tasks."
            )


def check_rows(num_rows: int, y: NDArray[Any]) -> None:
    """As many targets as rows.

    Raises:
        InputError: If not.
    """
    if num_rows != len(y):
        raise InputError(
            f"`X` and `y` must have the same number of rows. Got {num_rows} and {len(y)}. Select the same rows of both."
        )


def as_column(estimator: Any, y: Any) -> NDArray[Any]:
    """Targets as a vector ``(N,)``.

    Raises:
        InputError: If there are none, or several columns.
    """
    name = type(estimator).__name__
    if y is None:
        raise InputError(f"{name} requires y to be passed, but the target y is None. Pass one target per row.")
    values = as_target_column(y)
    if values.ndim > 2 or (values.ndim == 2 and values.shape[1] != 1) or values.ndim == 0:
        raise InputError(
            f"`y` must have shape (N,). Got {values.shape}. Pass one target per row, for classes the label and not "
            "a one-hot row."
        )
    return column_or_1d(values, warn=True)


def as_real(y: NDArray[Any]) -> NDArray[np.float64]:
    """Targets ``(N,)``, or ``(N, C)`` for several outputs, as finite float64 numbers.

    Raises:
        InputError: If they are text, or not finite.
    """
    if y.ndim == 2:
        return np.column_stack([as_real(column) for column in y.T])
    refuse_gaps(y)
    try:
        values = y.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"`y` must be numbers. Got {y.dtype} values such as {y[0]!r}. Use GPClassifier for classes, or convert them."
        ) from error
    bad = ~np.isfinite(values)
    if bad.any():
        raise InputError(
            f"`y` must be finite. Got infinity in {int(bad.sum())} of {len(values)} row(s), first in row "
            f"{np.flatnonzero(bad)[0]}. Drop those rows."
        )
    return values


def check_weights(num_rows: int, sample_weight: Any) -> NDArray[np.float64]:
    """Weights ``(N,)``, one by default.

    Raises:
        InputError: If they are negative, or none is positive.
    """
    try:
        weights = _check_sample_weight(sample_weight, np.empty((num_rows, 1)), dtype=np.float64)
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


def warn_of_heavy_weights(weights: NDArray[np.float64], *, stacklevel: int) -> None:
    """Says what weights that are large on average mean, for those of surveys are meant otherwise."""
    used = weights[weights > 0.0]
    if used.mean() <= _HEAVY:
        return
    warnings.warn(
        f"`sample_weight` must count rows: one of weight w is w equal rows, as elsewhere in scikit-learn. Got a mean of "
        f"{used.mean():.3g}: {len(used):,} rows say as much as {used.sum():,.0f}, and predictions are as sure. If weights say "
        "how many others a row stands for, as in surveys, divide them by their mean.",
        ItergpWarning,
        stacklevel=stacklevel,
    )


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


def list_columns(columns: NDArray[np.intp], titles: Sequence[str]) -> str:
    """The first columns, as messages call them."""
    return ", ".join(titles[i] for i in columns[:5]) + (", ..." if len(columns) > 5 else "")
