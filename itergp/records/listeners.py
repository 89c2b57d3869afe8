"""``Listener``: what is told of a run while it happens, be it a bar, a trace, a live view, a log or a user's function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from itergp.records.records import Record


class Listener:
    """Hears of a solve, of learning or of predictions while they happen. Every method does nothing until it is overridden.

    A plain function of a record hears the records only: see ``as_listener``.

    Examples:
        >>> class Names(Listener):
        ...     def begin(self, stage, *, unit="pass", total=None, tolerance=None):
        ...         print(stage, "in", unit)
        >>> Names().begin("laplace", tolerance=1e-3)
        laplace in pass
    """

    def begin(
        self, stage: str, *, unit: str = "pass", total: int | None = None, tolerance: float | None = None
    ) -> None:
        """A stage begins.

        Args:
            stage: Its name, as in the records.
            unit: What is counted: ``"pass"`` of a solve, ``"step"`` of learning, ``"rows"`` of a prediction.
            total: How many of them at most; None where that is not known.
            tolerance: Certified gap at which a solve has converged, nats; None for what has none.
        """

    def __call__(self, record: Record) -> None:
        """A step was taken."""

    def advance(self, stage: str, done: int) -> None:
        """So many of the stage's total are done."""

    def end(self, stage: str) -> None:
        """A stage has ended."""


class Listeners(Listener):
    """Several listeners as one, in the order given.

    Args:
        *listeners: Listeners or functions of a record; None for nobody.
    """

    def __init__(self, *listeners: Callable[[Any], None] | None) -> None:
        self._listeners = [as_listener(listener) for listener in listeners if listener is not None]

    def begin(
        self, stage: str, *, unit: str = "pass", total: int | None = None, tolerance: float | None = None
    ) -> None:
        """Tells all of them."""
        for listener in self._listeners:
            listener.begin(stage, unit=unit, total=total, tolerance=tolerance)

    def __call__(self, record: Record) -> None:
        """Tells all of them."""
        for listener in self._listeners:
            listener(record)

    def advance(self, stage: str, done: int) -> None:
        """Tells all of them."""
        for listener in self._listeners:
            listener.advance(stage, done)

    def end(self, stage: str) -> None:
        """Tells all of them."""
        for listener in self._listeners:
            listener.end(stage)


def as_listener(function: Callable[[Any], None]) -> Listener:
    """A listener, from a function of a record or a listener itself."""
    return function if isinstance(function, Listener) else _OnRecord(function)


class _OnRecord(Listener):
    """A function that hears the records."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        self._function = function

    def __call__(self, record: Record) -> None:
        self._function(record)
