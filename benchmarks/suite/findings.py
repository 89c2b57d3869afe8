"""What the report says of the results: who is first, where this package loses and why, what approximations cost."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from benchmarks.suite.analysis import families, medians, target_of
from benchmarks.suite.tables import Table, factor, mark_best, number, seconds
from benchmarks.workloads import END_TO_END, INFERENCE, TUNED

OURS = {INFERENCE: "itergp", END_TO_END: "itergp.fit", TUNED: "itergp.fit"}
"""The setting of this package that stands for it: its defaults."""

FAMILY = "itergp"
PAIRS = (
    ("itergp", "dense variational"),
    ("itergp, Laplace", "dense Laplace"),
    ("itergp, linear time", "dense variational"),
    ("subset of data, 500 rows", "dense variational"),
    ("subset of data, 2,000 rows", "dense variational"),
    ("SVGP 500, Adam", "dense variational"),
    ("IterNCGP-CG", "dense Laplace"),
)
"""A method, and the exact answer to what it approximates."""

METRICS = {
    "nll": "NLL",
    "accuracy": "accuracy",
    "brier": "Brier",
    "ece": "calibration error",
    "coverage": "coverage of 90 %",
    "ood_variance": "AUROC, latent variance",
    "ood_entropy": "AUROC, entropy",
}


def firsts(runs: pd.DataFrame, targets: pd.DataFrame, ruleset: str, level: str = "standard") -> Table:
    """For every workload: the target, who reaches it first, the best of the other families, and the defaults of this package."""
    table, family = medians(runs, targets, ruleset, level), families(runs)
    rows = []
    for workload in _order(runs, table):
        column = table[workload]
        first, least = column.idxmin(), column.min()
        target = targets[level].xs(workload, level="workload").xs(_base(ruleset), level="ruleset").median()
        if not math.isfinite(least):
            rows.append([workload, number(target), "none", "∞", "", "", seconds(column.get(OURS[ruleset], math.inf))])
            continue
        others = column[[family[name] != family[first] for name in column.index]]
        second = others.idxmin() if len(others) and math.isfinite(others.min()) else ""
        rows.append(
            [
                workload,
                number(target),
                first,
                seconds(least),
                second or "no other family",
                factor(others.min() / least) if second else "∞",
                seconds(column.get(OURS[ruleset], math.inf)),
            ]
        )
    header = ["workload", "target NLL", "first", "seconds", "next family", "times as long", OURS[ruleset] + ", seconds"]
    return Table(f"first-{_slug(ruleset)}", f"Who reaches the target first: {ruleset}", header, rows)


def losses(runs: pd.DataFrame, targets: pd.DataFrame, ruleset: str, level: str = "standard") -> Table:
    """Workloads where a setting of another family reaches the target before the defaults of this package do, and why."""
    table, family, ours = medians(runs, targets, ruleset, level), families(runs), OURS[ruleset]
    rows = []
    for workload in _order(runs, table):
        column = table[workload]
        others = column[[family[name] != FAMILY for name in column.index]]
        if ours not in column or others.empty or not others.min() < column[ours]:
            continue
        mine = runs[(runs["workload"] == workload) & (runs["method"] == ours) & (runs["ruleset"] == ruleset)]
        lead = factor(column[ours] / others.min())
        rows.append([workload, others.idxmin(), seconds(others.min()), lead, _why(mine, targets, level)])
    header = ["workload", "first", "seconds", f"{ours} takes, times as long", "why"]
    return Table(f"losses-{_slug(ruleset)}", f"Where {ours} is not first: {ruleset}", header, rows)


def _why(mine: pd.DataFrame, targets: pd.DataFrame, level: str) -> str:
    if not mine["applies"].any():
        return mine["status"].iloc[0]
    failed = mine[mine["best"] == math.inf]
    if len(failed) > len(mine) / 2:
        return str(failed["status"].mode().iloc[0])
    wanted = target_of(mine, targets, level)
    behind = (mine["best"] - wanted)[mine["best"] > wanted]
    if len(behind) > len(mine) / 2:
        return f"its NLL stays {behind.median():.3f} above the target"
    phases = pd.DataFrame([facts.get("phases") or {} for facts in mine["facts"]]).mean()
    passes = pd.Series([facts.get("kernel_passes") for facts in mine["facts"]], dtype=float).dropna().median()
    if phases.empty:
        return f"it takes {seconds(mine['seconds'].median())} s"
    parts = ", ".join(f"{name} {seconds(value)} s" for name, value in phases.sort_values(ascending=False).items())
    return f"slower: {parts}" + (f"; {passes:.0f} kernel passes" if math.isfinite(passes) else "")


def worse(runs: pd.DataFrame, ruleset: str, share: float = 0.01) -> Table:
    """Workloads where the defaults of this package end with a test NLL more than 1 % above another family's, on the same seeds."""
    ours, rows, family = OURS[ruleset], [], families(runs)
    chosen = runs[(runs["ruleset"] == ruleset) & (runs["trial"] == 0)]
    table = _mean(chosen, "nll")
    for workload in _order(runs, table):
        nll = chosen[chosen["workload"] == workload].pivot_table(index="seed", columns="method", values="nll")
        if ours not in nll:
            others = nll.mean()
            pairs = {name: (value, math.inf) for name, value in others.items() if family[name] != FAMILY}
        else:
            common = {name: nll[[name, ours]].dropna() for name in nll if family[name] != FAMILY}
            pairs = {name: (part[name].mean(), part[ours].mean()) for name, part in common.items() if len(part)}
        if not pairs:
            continue
        best = min(pairs, key=lambda name: pairs[name][0] - pairs[name][1])
        theirs, mine = pairs[best]
        if mine > theirs + share * abs(theirs):
            rows.append([workload, best, number(theirs), number(mine) if math.isfinite(mine) else "no result"])
    header = ["workload", "best of the others", "its test NLL", f"{ours}, test NLL"]
    return Table(f"worse-{_slug(ruleset)}", f"Where {ours} ends with a worse NLL: {ruleset}", header, rows)


def against_dense(runs: pd.DataFrame) -> Table:
    """Test NLL of approximations less that of the exact answer with the same kernel, and the time of both."""
    chosen = runs[(runs["ruleset"] == INFERENCE) & runs["nll"].notna()] if "nll" in runs else runs.iloc[:0]
    by = chosen.set_index(["method", "workload", "seed"])[["nll", "seconds"]]
    rows = []
    for method, exact in PAIRS:
        if not {method, exact} <= set(chosen["method"]):
            continue
        both = by.loc[method].join(by.loc[exact], rsuffix="_exact", how="inner")
        for workload, part in both.groupby(level="workload"):
            gap = part["nll"] - part["nll_exact"]
            spread = f" ± {gap.std():.4f}" if len(gap) > 1 else ""
            cells = [method, str(workload), number(part["nll_exact"].mean()), f"{gap.mean():+.4f}{spread}"]
            rows.append([*cells, seconds(part["seconds"].median()), seconds(part["seconds_exact"].median())])
    header = ["method", "workload", "exact NLL", "difference", "seconds", "exact, seconds"]
    return Table("dense", "What approximations cost in test NLL", header, rows)


def quality(runs: pd.DataFrame, ruleset: str, workload: str, targets: pd.DataFrame) -> Table:
    """Every method on one workload: metrics on the test rows, time to target, training, prediction, memory, CPU, passes."""
    part = runs[(runs["ruleset"] == ruleset) & (runs["workload"] == workload) & (runs["trial"] == 0)]
    part = part.sort_values(["importance", "method"])
    reached, names = medians(part, targets, ruleset), list(dict.fromkeys(part["method"]))
    columns: list[list[str]] = [names]
    for metric in METRICS:
        values = [_metric(part, name, metric) for name in names]
        texts = [number(value, 3 if metric != "nll" else 4) for value in values]
        best = metric != "coverage"
        columns.append(mark_best(values, texts, largest=metric not in ("nll", "brier", "ece")) if best else texts)
    times = [reached[workload].get(name, math.inf) for name in names]
    columns.append(mark_best(times, [seconds(value) for value in times]))
    for what in ("seconds", "predict_seconds", "cpu"):
        columns.append([number(_metric(part, name, what, median=True), 2) for name in names])
    columns.append([number(_metric(part, name, "peak_bytes", median=True) / 2**20, 0) for name in names])
    columns.append([_passes(part, name) for name in names])
    columns.append([_status(part, name) for name in names])
    header = ["method", *METRICS.values(), "to target, s", "training, s", "prediction, s", "CPU, s", "memory, MiB"]
    rows = [list(cells) for cells in zip(*columns, strict=True)]
    title = f"{workload}, {ruleset}"
    return Table(f"all-{_slug(ruleset)}-{_slug(workload)}", title, [*header, "passes", "ended"], rows)


def _metric(part: pd.DataFrame, method: str, what: str, *, median: bool = False) -> float:
    if what not in part:
        return math.nan
    values = part.loc[part["method"] == method, what].dropna()
    if values.empty:
        return math.nan
    return float(values.median() if median else values.mean())


def _passes(part: pd.DataFrame, method: str) -> str:
    facts: list[dict[str, Any]] = list(part.loc[part["method"] == method, "facts"])
    values = [fact["kernel_passes"] for fact in facts if "kernel_passes" in fact]
    return f"{pd.Series(values).median():.0f}" if values else "-"


def _status(part: pd.DataFrame, method: str) -> str:
    counts = part.loc[part["method"] == method, "status"].value_counts()
    return "; ".join(status if count == counts.sum() else f"{count} {status}" for status, count in counts.items())


def _mean(runs: pd.DataFrame, what: str) -> pd.DataFrame:
    if what not in runs or runs.empty:
        return pd.DataFrame()
    return runs.groupby(["method", "workload"])[what].mean().unstack("workload")


def _order(runs: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """Base workloads in the order of the results, variants last."""
    pairs = runs[["workload", "variant_of"]].drop_duplicates()
    names = [*pairs.loc[pairs["variant_of"] == "", "workload"], *pairs.loc[pairs["variant_of"] != "", "workload"]]
    return [name for name in names if name in table]


def _base(ruleset: str) -> str:
    return END_TO_END if ruleset == TUNED else ruleset


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower()).strip("-")
