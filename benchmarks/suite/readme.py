"""The README's claims, from the results."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from benchmarks.suite.analysis import families, medians
from benchmarks.suite.findings import FAMILY, OURS
from benchmarks.suite.tables import Table, number, seconds
from itergp.errors import InputError

BEGIN, END = "<!-- benchmarks: written by `python -m benchmarks report --readme` -->", "<!-- /benchmarks -->"


def claims(runs: pd.DataFrame, targets: pd.DataFrame, ruleset: str) -> str:
    """One table: on every base workload the defaults of this package and the best setting of every other family."""
    mine = OURS[ruleset]
    part = runs[(runs["ruleset"] == ruleset) & (runs["trial"] == 0) & (runs["variant_of"] == "") & runs["applies"]]
    groups = part.dropna(subset=["nll"]).groupby(["method", "workload"])
    nll, counts = groups["nll"].mean().unstack("workload"), groups["seed"].nunique().unstack("workload").fillna(0)
    nll = nll.where(2 * counts > counts.max())  # means over few of the splits tell of other data
    time = part.groupby(["method", "workload"])["seconds"].median().unstack("workload")
    reached, family = medians(runs, targets, ruleset), families(runs)
    rivals = [name for name in dict.fromkeys(part["family"]) if name != FAMILY]
    rows = []
    for workload in nll.columns:
        chosen: list[str | None] = []
        for group in (FAMILY, *rivals):
            names = [name for name in nll.index if (name == mine if group == FAMILY else family[name] == group)]
            known = nll.loc[names, workload].dropna()
            chosen.append(None if known.empty else known.idxmin())
        most = counts[workload].max()
        complete = [name for name in chosen if name is not None and counts[workload][name] == most]
        best = min(complete, key=lambda name: nll[workload][name])
        cells = [workload]
        for name in chosen:
            if name is None:
                cells.append("-")
                continue
            value, count = nll[workload][name], counts[workload][name]
            text = f"**{number(value, 3)}**" if name == best else number(value, 3)
            few = "" if count == most else f" ({count:.0f} of {most:.0f})"
            cells.append(f"{text} in {seconds(time[workload][name])} s{few}")
        first = reached[workload].idxmin() if workload in reached else ""
        cells.append(first if first and math.isfinite(reached[workload].min()) else "nobody")
        rows.append(cells)
    header = ["", f"`{mine}`", *rivals, "first at the target"]
    return Table("readme", "", header, rows).markdown()


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
    after = rest.split(END, 1)[1]
    seeds = runs["seed"].nunique()
    parts = [
        BEGIN,
        f"Test NLL and training seconds, {seeds} split{'s' if seeds > 1 else ''}, the best setting of every family:",
    ]
    for ruleset, title in (("end to end", "From raw data, defaults only"), ("inference", "Hyperparameters given")):
        if ruleset in set(runs["ruleset"]):
            parts += [f"{title}.", claims(runs, targets, ruleset).strip()]
    readme.write_text(before + "\n\n".join([*parts, END]) + after)
