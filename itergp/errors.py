"""Errors and warnings of the package."""

from __future__ import annotations

from typing import Any


class SolverError(RuntimeError):
    """The solve could not go on, for example because a NaN appeared.

    Args:
        message: What must hold, what was got and what to do.
        solution: The last good ``Solution``.

    Attributes:
        solution: The last good ``Solution``, a valid if coarser posterior, or None when the failure came before the
            first iterate.
    """

    def __init__(self, message: str, solution: Any = None) -> None:
        """Stores the message and the last good solution."""
        super().__init__(message)
        self.solution = solution


class InputError(ValueError):
    """Inputs, targets or settings that cannot be used, with what must hold, what was got and what to do."""


class MissingExtraError(ImportError):
    """A package that only some parts need is not installed."""


class ItergpWarning(UserWarning):
    """Something works but deserves attention, for example targets of one class only."""
