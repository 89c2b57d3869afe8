"""From lines of results to targets, times to them, performance profiles and scores. Nothing here knows a method by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.workloads import END_TO_END, TUNED

LEVELS = {"easy": 4, "standard": 3, "hard": 2}
"""How many families of methods reach the target in the reference run, at any time within their limit."""

RELAXED = 0.01  # targets are this share of the NLL above what the family of that rank reached
FARTHEST = 0.05  # no target is farther than this from the best NLL, on the way to that of the outcomes' frequencies
TAU = (4.0, 64.0)
SPLIT = ["ruleset", "workload", "seed"]


def frame(lines: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per run, with test metrics in columns of their own; the last line of a run counts.

    Methods that do not apply are left out of splits on which nothing was run.
    """
    rows = {}
    for line in lines:
        row = {name: value for name, value in line.items() if name != "test"} | (line.get("test") or {})
        row["best"] = min((p["nll"] for p in line["curve"] if p["nll"] is not None), default=math.inf)
        row["applies"] = not line["status"].startswith("does not apply")
        rows[tuple(line[name] for name in ("workload", "method", "ruleset", "seed", "trial"))] = row
    table = pd.DataFrame(list(rows.values()))
    return table[table.groupby(SPLIT)["applies"].transform("any")].reset_index(drop=True)


def compute_targets(runs: pd.DataFrame) -> pd.DataFrame:
    """Validation NLL to reach, for every split, by level: what two, three or four families of methods reach, but near the best.

    A family counts once, by the best of its settings, so that no family weighs more for having many; trials of the tuned
    ruleset do not count.
    """
    usable = runs[(runs["trial"] == 0) & (runs["ruleset"] != TUNED)]
    best = usable.groupby([*SPLIT, "family"])["best"].min()
    least, base = best.groupby(level=SPLIT).min(), usable.groupby(SPLIT)["base_nll"].first()
    most = (least + FARTHEST * (base - least).clip(lower=0.0)).replace(math.inf, -math.inf)
    found = {level: best.groupby(level=SPLIT).apply(_at, rank) for level, rank in LEVELS.items()}
    return pd.DataFrame({level: values.combine(most, min) for level, values in found.items()})


def _at(values: pd.Series, rank: int) -> float:
    """The value at a rank among those that there are, relaxed."""
    ordered = np.sort(values[np.isfinite(values)].to_numpy())
    if not len(ordered):
        return -math.inf
    value = float(ordered[min(rank, len(ordered)) - 1])
    return value + RELAXED * abs(value)


def freeze(targets: pd.DataFrame, path: Path) -> None:
    """Writes targets, so that results that come later are measured by the same."""
    rows = targets.replace([math.inf, -math.inf], np.nan).reset_index()
    path.write_text(json.dumps(json.loads(rows.to_json(orient="records")), indent=0) + "\n")


def thaw(path: Path) -> pd.DataFrame:
    """Reads targets."""
    return pd.DataFrame(json.loads(path.read_text())).set_index(SPLIT).astype(float).fillna(-math.inf)


def target_of(runs: pd.DataFrame, targets: pd.DataFrame, level: str) -> pd.Series:
    """The target of every run; the tuned ruleset has those of the end-to-end ruleset."""
    rulesets = runs["ruleset"].replace(TUNED, END_TO_END)
    index = pd.MultiIndex.from_arrays([rulesets, runs["workload"], runs["seed"]], names=SPLIT)
    return pd.Series(targets[level].reindex(index).to_numpy(), index=runs.index).fillna(-math.inf)


def time_to_target(curve: list[dict[str, float]], target: float, what: str = "seconds") -> float:
    """Seconds of the first checkpoint that is at the target or below; infinite if none is."""
    return next((p[what] for p in curve if p["nll"] is not None and p["nll"] <= target), math.inf)


def times(runs: pd.DataFrame, targets: pd.DataFrame, level: str, what: str = "seconds") -> pd.Series:
    """Time to target of every run."""
    wanted = target_of(runs, targets, level)
    reached = [time_to_target(curve, target, what) for curve, target in zip(runs["curve"], wanted, strict=True)]
    return pd.Series(reached, index=runs.index, dtype=float)


def medians(runs: pd.DataFrame, targets: pd.DataFrame, ruleset: str, level: str = "standard") -> pd.DataFrame:
    """Median over seeds of the time to target: methods by workloads. A miss, or a run that does not apply, is infinite.

    In the tuned ruleset the trial that is fastest counts, as in AlgoPerf: trials could run at the same time.
    """
    chosen = runs[runs["ruleset"] == ruleset]
    if chosen.empty:
        return pd.DataFrame()
    found = chosen.assign(time=times(chosen, targets, level))
    best = found.groupby(["method", "workload", "seed"])["time"].min()
    return best.groupby(level=["method", "workload"]).median().unstack("workload").fillna(math.inf)


def ratios(table: pd.DataFrame, variants: dict[str, str] | None = None) -> pd.DataFrame:
    """Times over that of the fastest method on each workload; workloads whose target no method reaches are left out.

    Args:
        table: Methods by workloads.
        variants: Variant to base workload. A variant does not weigh; a method that misses it, or takes more than 4 times
            as long as the fastest there, is infinite on the base, as in AlgoPerf.
    """
    least = table.min()
    found = table / least
    found = found.loc[:, np.isfinite(least.to_numpy())]
    for variant, base in (variants or {}).items():
        if variant in found and base in found:
            found.loc[found[variant] > TAU[0], base] = math.inf
    return found.drop(columns=[name for name in variants or {} if name in found])


def profile(found: pd.DataFrame, tau: np.ndarray) -> pd.DataFrame:
    """Share of workloads on which a method is within a factor tau of the fastest: methods by tau."""
    shares = [(found <= value).mean(axis=1) for value in tau]
    return pd.concat(shares, axis=1, keys=tau)


def score(found: pd.DataFrame, tau_max: float) -> pd.Series:
    """Integral of the performance profile from 1 to ``tau_max``, over its length: 1 is first everywhere.

    Exact: a workload at ratio r contributes ``(tau_max - r) / (tau_max - 1)``.
    """
    return ((tau_max - found).clip(lower=0.0) / (tau_max - 1.0)).mean(axis=1)


def variants_of(runs: pd.DataFrame) -> dict[str, str]:
    """Variant to base workload."""
    pairs = runs[["workload", "variant_of"]].drop_duplicates()
    return {row.workload: row.variant_of for row in pairs.itertuples() if row.variant_of}


def families(runs: pd.DataFrame) -> dict[str, str]:
    """Method to family."""
    return dict(runs[["method", "family"]].drop_duplicates().itertuples(index=False))
