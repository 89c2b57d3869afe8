"""Checks that every part of the package makes, of arguments and of what is installed, with one wording."""

from __future__ import annotations

import importlib
import numbers
from typing import Any

from itergp.errors import InputError, MissingExtraError


def require_positive(name: str, value: float | None, *, integer: bool = False) -> None:
    """Budgets must be positive.

    Raises:
        InputError: If ``value`` is given and not a positive number, or not whole where it must be.
    """
    if value is None:
        return
    wanted = numbers.Integral if integer else numbers.Real
    if isinstance(value, bool) or not isinstance(value, wanted) or not value > 0:
        kind = "a positive whole number" if integer else "a positive number"
        raise InputError(f"`{name}` must be {kind} or None. Got {value!r}. Leave it out for the default.")


def is_nonnegative(value: object) -> bool:
    """Whether a value is a number, not a truth value, and 0 or more."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and float(value) >= 0.0


def require_module(name: str, purpose: str, extra: str) -> Any:
    """A module that an extra installs.

    Args:
        name: Of the module.
        purpose: What needs it, as the first words of a sentence.
        extra: That installs it.

    Raises:
        MissingExtraError: If it is not there, saying which extra to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs {name.partition('.')[0]}. It is not installed. Install it with `pip install itergp[{extra}]`."
        ) from error
