"""What explanations need besides the package itself, asked for when it is used."""

from __future__ import annotations

import importlib
from typing import Any


def pandas_for(purpose: str) -> Any:
    """The module pandas.

    Raises:
        ImportError: If it is not installed, saying what needs it.
    """
    return _module("pandas", purpose, "tables")


def matplotlib_for(purpose: str, module: str = "matplotlib") -> Any:
    """A module of matplotlib.

    Raises:
        ImportError: If it is not installed, saying what needs it.
    """
    return _module(module, purpose, "plot")


def _module(name: str, purpose: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs {name.partition('.')[0]}. It is not installed. Install it with `pip install itergp[{extra}]`."
        ) from error
