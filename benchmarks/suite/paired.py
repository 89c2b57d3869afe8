"""What two revisions differ in on the same splits: log-density row by row, and ratios of time and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.suite import store
from itergp.diagnostics.estimates import Estimate
from itergp.errors import InputError

CLEAR = 2.0  # standard errors
SMALL = 0.005  # share of the NLL below which a difference does not matter, however clear
_LEAST_BYTES = 2.0**20  # of a run's memory, below which a ratio says nothing

Line = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """One split: what the second revision has more than the first.

    Attributes:
        seed: Of the split.
        difference: Log-density per test row, with the standard error over rows.
        nll: Of either side.
        seconds: Of training, of either side.
        peak_bytes: Of memory while training, of either side.
    """

    seed: int
    difference: Estimate
    nll: tuple[float, float]
    seconds: tuple[float, float]
    peak_bytes: tuple[float, float]

    @classmethod
    def of(cls, first: Line, second: Line) -> Split:
        """From the lines of results of the two sides.

        Raises:
            InputError: If they are not of the same rows.
        """
        if first["data"] != second["data"] or len(first["log_density"]) != len(second["log_density"]):
            raise InputError(
                f"Both revisions must have the same rows of {first['workload']}, seed {first['seed']}. Got training rows with "
                f"the checksums {first['data']} and {second['data']}. Compare revisions that prepare them alike."
            )
        a, b = (np.array(line["log_density"]) for line in (first, second))
        sizes = (max(float(line.get("peak_bytes") or 0.0), _LEAST_BYTES) for line in (first, second))
        difference = Estimate.of(b - a, np.ones(len(a)))
        return cls(
            first["seed"],
            difference,
            (-float(a.mean()), -float(b.mean())),
            (first["seconds"], second["seconds"]),
            (next(sizes), next(sizes)),
        )


@dataclass(frozen=True)
class Change:
    """One method on one workload, over its splits.

    Attributes:
        ruleset: Of the suite.
        workload: Its name.
        method: Its name.
        splits: Where both revisions have a result.
        lost: What happened where only the first has one.
        gained: Seeds where only the second has one.
    """

    ruleset: str
    workload: str
    method: str
    splits: tuple[Split, ...]
    lost: tuple[str, ...] = ()
    gained: tuple[int, ...] = ()

    @property
    def difference(self) -> Estimate:
        """Log-density per test row, second less first; positive is better.

        The standard error is the larger one of that over the rows of each split and that over splits: the former leaves
        the choice of training rows out, the latter is itself uncertain for the few splits there are.
        """
        means, errors = (np.array([getattr(s.difference, name) for s in self.splits]) for name in ("mean", "error"))
        if not len(means):
            return Estimate(math.nan, math.nan)
        within = float(np.sqrt(np.square(errors).sum()) / len(errors))
        between = float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else 0.0
        return Estimate(float(means.mean()), max(within, between))

    @property
    def nll(self) -> float:
        """Of the first revision: the mean over splits."""
        return float(np.mean([split.nll[0] for split in self.splits])) if self.splits else math.nan

    @property
    def seconds(self) -> tuple[float, float]:
        """Geometric mean of the ratios of training times, second over first, and its relative standard error."""
        return _ratio([split.seconds for split in self.splits])

    @property
    def memory(self) -> tuple[float, float]:
        """The same of the memory while training."""
        return _ratio([split.peak_bytes for split in self.splits])

    @property
    def verdict(self) -> str:
        """``"worse"`` or ``"better"`` by more than two standard errors and 0.5 % of the NLL; ``"lost"``; or nothing."""
        if self.lost:
            return "lost"
        found = self.difference
        if not self.splits or abs(found.mean) <= max(CLEAR * found.error, SMALL * abs(self.nll)):
            return ""
        return "better" if found.mean > 0.0 else "worse"

    def line(self, revisions: Sequence[str]) -> Line:
        """As JSON has it."""
        found = {
            "ruleset": self.ruleset,
            "workload": self.workload,
            "method": self.method,
            "revisions": list(revisions),
        }
        found |= {"log_density_difference": self.difference.mean, "standard_error": self.difference.error}
        found |= {"first_nll": self.nll, "verdict": self.verdict, "lost": list(self.lost), "gained": list(self.gained)}
        found |= {"seconds_ratio": list(self.seconds), "memory_ratio": list(self.memory)}
        splits = [
            {
                "seed": split.seed,
                "log_density_difference": split.difference.mean,
                "standard_error": split.difference.error,
                "nll": split.nll,
                "seconds": split.seconds,
                "peak_bytes": split.peak_bytes,
            }
            for split in self.splits
        ]
        return store.plain(found | {"splits": splits})


def _ratio(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    logs = np.array([math.log(max(b, 1e-9) / max(a, 1e-9)) for a, b in pairs])
    if not len(logs):
        return math.nan, math.nan
    error = float(logs.std(ddof=1) / np.sqrt(len(logs))) if len(logs) > 1 else math.nan
    return float(np.exp(logs.mean())), error


def changes(first: Sequence[Line], second: Sequence[Line]) -> list[Change]:
    """Lines of the same runs, in the same order, by ruleset, workload and method."""
    groups: dict[tuple[str, str, str], list[tuple[Line, Line]]] = {}
    for a, b in zip(first, second, strict=True):
        groups.setdefault((a["ruleset"], a["workload"], a["method"]), []).append((a, b))
    found = []
    for key, pairs in groups.items():
        both = [Split.of(a, b) for a, b in pairs if "log_density" in a and "log_density" in b]
        lost = [f"seed {b['seed']}: {_ended(b)}" for a, b in pairs if "log_density" in a and "log_density" not in b]
        gained = [b["seed"] for a, b in pairs if "log_density" not in a and "log_density" in b]
        found.append(Change(*key, tuple(both), tuple(lost), tuple(gained)))
    return found


def _ended(line: Line) -> str:
    return f"{line['status']} {line.get('error', '')}".strip()


def overall(found: Sequence[Change]) -> Estimate:
    """Mean over workloads and methods, which are what they are: only their rows and splits are random."""
    used = [change.difference for change in found if change.splits]
    if not used:
        return Estimate(math.nan, math.nan)
    return Estimate(
        float(np.mean([one.mean for one in used])), float(np.sqrt(sum(one.error**2 for one in used)) / len(used))
    )


def shown(found: Sequence[Change], revisions: Sequence[str]) -> str:
    """A table for a terminal."""
    width = max([len(change.method) for change in found] + [6])
    place = max([len(change.workload) for change in found] + [8])
    a, b = (name[:12] for name in revisions)
    lines = [
        f"Log-density per test row: {b} less {a}, positive is better; ± is one standard error. Time and memory: {b} over {a}.",
        f"{'ruleset':<10} {'workload':<{place}} {'method':<{width}} {'NLL of ' + a:>19} {'difference':>22} "
        f"{'time':>14} {'memory':>7}",
    ]
    for change in found:
        numbers = "-" if not change.splits else f"{change.nll:.4f}"
        difference = "-" if not change.splits else change.difference.signed()
        cells = (
            f"{change.ruleset:<10} {change.workload:<{place}} {change.method:<{width}} {numbers:>19} {difference:>22}"
        )
        lines.append(
            f"{cells} {_times(*change.seconds):>14} {_times(change.memory[0], math.nan):>7} {change.verdict}".rstrip()
        )
    lines += [f"lost: {change.workload}, {change.method}, {text}" for change in found for text in change.lost]
    verdicts = [change.verdict for change in found]
    without = sum(not change.splits for change in found)
    counts = ", ".join(f"{name} {verdicts.count(name)}" for name in ("better", "worse", "lost"))
    lines.append(
        f"Mean {overall(found).signed()}; {counts}, of {len(found)}"
        + (f"; {without} without results" if without else "")
    )
    return "\n".join(lines)


def _times(ratio: float, error: float) -> str:
    if not math.isfinite(ratio):
        return "-"
    return f"{ratio:.2f}" + (f" ± {ratio * error:.2f}" if math.isfinite(error) else "")
