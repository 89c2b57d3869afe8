"""``FitProgress``: how far a fit has come, in the words of someone with a table."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console

from itergp.diagnostics import ProgressBar
from itergp.records import Listener

_SEARCH = "structures"  # a round of the choice of a structure; all other stages are steps of learning
_CHOOSING, _COMPARING, _LEARNING, _CONCLUDING = (
    words.ljust(21) for words in ("choosing a model", "comparing the best", "learning", "preparing predictions")
)


class FitProgress(Listener):
    """Bars for what a fit does one after another, erased in the end: a context manager, and a listener of the fit.

    Each says how much of it is done, how long that took and about how long the rest will take. Nothing is drawn where standard
    error is no terminal: in a file or a pipe, bars are noise.

    Args:
        enabled: Draw nothing when False.
        console: Where to draw; default standard error.
    """

    def __init__(self, *, enabled: bool = True, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._bar = ProgressBar(enabled=enabled and console.is_terminal, console=console, transient=True)
        self._stage, self._rounds = "", 0

    def __enter__(self) -> FitProgress:
        """Starts drawing."""
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops drawing, and leaves nothing behind."""
        self._bar.__exit__(kind, value, traceback)

    def begin(
        self, stage: str, *, unit: str = "pass", total: int | None = None, tolerance: float | None = None
    ) -> None:
        """Begins to choose or to learn."""
        self._stage, unit = _LEARNING, "steps"
        if stage == _SEARCH:
            self._stage, unit = _COMPARING if self._rounds else _CHOOSING, "models"
            self._rounds += 1
        self._bar.begin(self._stage, unit=unit, total=total)

    def advance(self, stage: str, done: int) -> None:
        """So much is done."""
        self._bar.advance(self._stage, done)

    def end(self, stage: str) -> None:
        """After learning come predictions, which have no parts."""
        self._bar.end(self._stage)
        if stage != _SEARCH:
            self._bar.begin(_CONCLUDING, unit="")
