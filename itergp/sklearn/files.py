"""Names of files and of their columns as arguments of estimators."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from itergp.tables import as_file, is_file, open_table

_Method = TypeVar("_Method", bound=Callable[..., Any])
_OF_ROWS = ("sample_weight", "exposure", "trials")  # arguments that may be columns of the file


def takes_files(method: _Method) -> _Method:
    """Lets a method of an estimator take the name of a file for ``X``, and names of its columns for what is said of its rows.

    Args:
        method: Of ``X``, ``y`` and perhaps weights and the like. If it is ``fit``, all other columns are inputs; otherwise
            those of the training data.
    """
    signature = inspect.signature(method)

    @functools.wraps(method)
    def opened(self: Any, X: Any, y: Any, *arguments: Any, **keywords: Any) -> Any:
        if not is_file(X):
            return method(self, X, y, *arguments, **keywords)
        bound = signature.bind(self, X, y, *arguments, **keywords).arguments
        known = {name: value for name, value in bound.items() if name in _OF_ROWS}
        inputs = None if method.__name__ == "fit" else getattr(self, "feature_names_in_", None)
        X, y, *found = open_table(X, y, *known.values(), inputs=inputs)
        given = bound | {"X": X, "y": y} | dict(zip(known, found, strict=True))
        return method(**given)

    return opened  # type: ignore[return-value]


def column_of(X: Any, value: Any) -> Any:
    """What is said of the rows of a file by the name of a column; anything else as it is."""
    return as_file(X)[value] if is_file(X) and isinstance(value, str) else value
