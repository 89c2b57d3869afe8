"""What a comparison found, as data and as a table of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from itergp.baselines.rows import Array
from itergp.diagnostics.estimates import Estimate


@dataclass(frozen=True)
class MethodResult:
    """How one method did.

    Attributes:
        name: Of the method.
        log_density: Held-out log-density per row in nats.
        behind: By how much that is below the best method's, from the same rows; zero for the best.
        score: The other score, see ``ModelComparison.score``.
        coverage: Share of held-out rows inside 90 % intervals; of labels, inside sets of probability 0.9.
        seconds: Processor seconds of a fold.
        densities: Log-densities of the rows that all methods predicted, in their order.
        failed: Why there is no result; empty if there is one.
    """

    name: str
    log_density: Estimate
    behind: Estimate
    score: Estimate
    coverage: Estimate
    seconds: float
    densities: Array
    failed: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The result as numbers and text."""
        if self.failed:
            return {"method": self.name, "failed": self.failed}
        names = ("log_density", "behind", "score", "coverage")
        found = {
            name: {"mean": _plain(e.mean), "standard_error": _plain(e.error)} for name, e in self._estimates(names)
        }
        return {"method": self.name, **found, "cpu_seconds_per_fold": self.seconds}

    def _estimates(self, names: Sequence[str]) -> Iterator[tuple[str, Estimate]]:
        return ((name, getattr(self, name)) for name in names)


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class ModelComparison:
    """Methods compared on the same held-out rows; printing it shows a table.

    Attributes:
        task: What was predicted.
        reason: Why that, if it was guessed.
        score: Name of the other score.
        higher_is_better: Whether more of it is better.
        num_rows: Rows that all methods predicted, each by a fit without it.
        num_folds: Fits per method.
        results: One per method, in the order in which they were asked for.
    """

    task: str
    reason: str
    score: str
    higher_is_better: bool
    num_rows: int
    num_folds: int
    results: tuple[MethodResult, ...]

    @property
    def best(self) -> MethodResult:
        """The method with the largest held-out log-density."""
        return max((r for r in self.results if not r.failed), key=lambda result: result.log_density.mean)

    def to_dict(self) -> dict[str, Any]:
        """The comparison as numbers and text, for JSON."""
        return {
            "task": self.task,
            "reason": self.reason,
            "score": self.score,
            "higher_is_better": self.higher_is_better,
            "rows": self.num_rows,
            "folds": self.num_folds,
            "best": self.best.name,
            "results": [result.to_dict() for result in self.results],
        }

    def __str__(self) -> str:
        """A table with a line per method, the best marked."""
        return self.table()

    def table(self, *, with_cost: bool = True) -> str:
        """The same, with or without processor seconds."""
        head = ("", "log-density", "behind the best", self.score, "90 % covers", "CPU s")
        lines = [head, *map(self._line, self.results)]
        lines = lines if with_cost else [line[:-1] for line in lines]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        rows = []
        for name, *cells in lines:
            right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
            rows.append("  ".join([name.ljust(widths[0]), *right]))
        return "\n".join([*rows, *(f"{r.name} failed: {r.failed}" for r in self.results if r.failed)])

    def _line(self, result: MethodResult) -> tuple[str, ...]:
        if result.failed:
            return (result.name, "-", "-", "-", "-", "-")
        behind = "best" if result is self.best else str(result.behind)
        cells = (str(result.log_density), behind, str(result.score))
        return (result.name, *cells, f"{100.0 * result.coverage.mean:.0f} %", f"{result.seconds:.1f}")
