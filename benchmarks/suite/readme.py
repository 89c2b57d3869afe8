"""The README's claims, from the results."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from benchmarks.suite.analysis import families, medians
from benchmarks.suite.findings import FAMILY, OURS
from benchmarks.suite.tables import Table, number, seconds
from benchmarks.workloads import END_TO_END
from itergp.errors import InputError

BEGIN, END = "<!-- benchmarks: written by `python -m benchmarks report --readme` -->", "<!-- /benchmarks -->"
_MOST = 7  # data sets: those with most rows


def claims(runs: pd.DataFrame, targets: pd.DataFrame, ruleset: str = END_TO_END) -> Table:
    """On the data sets with most rows, the defaults of this package and the best setting of every other family.

    Families with results on less than half of these data sets are left out.
    """
    part = runs[(runs["ruleset"] == ruleset) & (runs["trial"] == 0) & (runs["variant_of"] == "") & runs["applies"]]
    largest = part.groupby("workload")["rows"].max().nlargest(_MOST)
    part = part[part["workload"].isin(largest.index)]
    groups = part.dropna(subset=["nll"]).groupby(["method", "workload"])
    nll, counts = groups["nll"].mean().unstack("workload"), groups["seed"].nunique().unstack("workload").fillna(0)
    nll = nll.where(2 * counts > counts.max())  # means over few of the splits tell of other data
    time = part.groupby(["method", "workload"])["seconds"].median().unstack("workload")
    settings: dict[str, list[str]] = {FAMILY: [OURS[ruleset]]}
    for method, family in families(part).items():
        if family != FAMILY and method in nll.index:
            settings.setdefault(family, []).append(method)
    known = {family: nll.loc[names].notna().any().sum() for family, names in settings.items()}
    shown = {family: names for family, names in settings.items() if 2 * known[family] >= len(largest)}
    reached, rows = medians(runs, targets, ruleset), []
    for workload, count in largest.items():
        chosen = [nll.loc[names, workload].dropna().sort_values().index[:1].tolist() for names in shown.values()]
        of = pd.DataFrame({"nll": nll[workload], "splits": counts[workload], "seconds": time[workload]})
        column = reached[workload] if workload in reached else pd.Series([math.inf])
        first = column.idxmin() if math.isfinite(column.min()) else "nobody"
        rows.append(
            [f"{workload} ({count:,.0f})", *_cells([name for names in chosen for name in names or [""]], of), first]
        )
    rivals = [family for family in shown if family != FAMILY]
    return Table("readme", "", ["data (rows)", f"`{OURS[ruleset]}`", *rivals, "first at the target"], rows)


def _cells(chosen: list[str], of: pd.DataFrame) -> list[str]:
    """NLL and seconds of some methods; bold is the best of those with a result on all splits."""
    most = of["splits"].max()
    complete = [name for name in chosen if name and of["splits"][name] == most]
    best = min(complete, key=lambda name: of["nll"][name])
    cells = []
    for name in chosen:
        if not name:
            cells.append("-")
            continue
        text = f"**{number(of['nll'][name], 3)}**" if name == best else number(of["nll"][name], 3)
        few = "" if of["splits"][name] == most else f" ({of['splits'][name]:.0f} of {most:.0f} splits)"
        cells.append(f"{text} in {seconds(of['seconds'][name])} s{few}")
    return cells


def update(readme: Path, runs: pd.DataFrame, targets: pd.DataFrame) -> None:
    """Replaces what is between the marks.

    Raises:
        InputError: If the marks are missing.
    """
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise InputError(
            f"{readme.name} must have the lines {BEGIN!r} and {END!r}. Got none. Add them where claims belong."
        )
    before, rest = text.split(BEGIN, 1)
    ruleset = END_TO_END if END_TO_END in set(runs["ruleset"]) else str(runs["ruleset"].iloc[0])
    parts = [BEGIN, claims(runs, targets, ruleset).markdown().strip(), END]
    readme.write_text(before + "\n\n".join(parts) + rest.split(END, 1)[1])
