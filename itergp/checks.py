"""Checks of arguments that every part of the package makes, with one wording."""

from __future__ import annotations

import numbers

from itergp.errors import InputError


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
