"""The results as a Markdown page."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np

from benchmarks.tables.catalogue import sources
from benchmarks.tables.methods import BASELINE, LINEAR, OURS
from itergp.diagnostics.estimates import Estimate

_LOW, _HIGH = 0.85, 0.95  # coverage that 90 % intervals should have
_CLEAR = 2.0  # standard errors

Lines = dict[str, list[dict[str, Any]]]
"""Lines of one table by method."""


def page(lines: list[dict[str, Any]], note: str = "") -> str:
    """All tables, what they are, and what went wrong.

    Args:
        lines: Of results.
        note: What a reader has to know about them.
    """
    tables: dict[str, Lines] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        tables[line["table"]][line["method"]].append(line)
    order = [name for name in sources() if name in tables]
    parts = [
        "# Real tables",
        "",
        *([note, ""] if note else []),
        *_head(lines, tables),
        "",
        *_results(order, tables),
        "",
        *_about(order, tables),
    ]
    return "\n".join([*parts, "", *_failures(lines)]) + "\n"


def _head(lines: list[dict[str, Any]], tables: dict[str, Lines]) -> list[str]:
    seeds = sorted({line["seed"] for line in lines})
    most = sorted({line["most_rows"] for line in lines})
    behind, ahead, even = (
        sum(_verdict(table) == word for table in tables.values()) for word in ("behind", "ahead", "even")
    )
    rows = " and ".join("all" if rows == 0 else f"at most {rows:,}" for rows in most)
    limits = sorted({line["time_limit"] or 0.0 for line in lines if line["method"] == OURS})
    limit = " or ".join(f"{value:g} s" if value else "any time" for value in limits) or "any time"
    return [
        f"Mean log-density of held-out rows in nats, {len(seeds)} random split(s), {rows} training rows, the same for all methods; ",
        f"`itergp` is the estimator of this package with its defaults on the table as it is, in {limit} by the clock. Differences are taken row by row, with "
        "their standard errors; positive ones are in favour of `itergp`. Coverage is that of 90 % intervals, of labels of the smallest "
        "sets of probability 0.9; whole numbers can only be covered more. CPU is the ratio of processor seconds to those of the best rival.",
        "",
        f"Against the best rival of each table by more than {_CLEAR:g} standard errors: ahead on {ahead}, behind on {behind}, neither on "
        f"{even}.",
    ]


def _results(order: list[str], tables: dict[str, Lines]) -> list[str]:
    head = (
        "table",
        "itergp",
        "best rival",
        "its",
        "difference",
        "linear",
        "over linear",
        "over baseline",
        "coverage",
        "CPU",
        "MiB",
    )
    found = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name in order:
        found.append("| " + " | ".join(_row(name, tables[name])) + " |")
    return found


def _row(name: str, table: Lines) -> list[str]:
    ours = _good(table, OURS)
    if not ours:
        return [name, "-", *[""] * 9]
    rival = _best_rival(table)
    mean = float(np.mean([line["log_density"][0] for line in ours]))
    cells = [name, f"{mean:.4f}"]
    cells += [rival, f"{_mean(table, rival):.4f}", _difference(table, rival)] if rival else ["-", "-", "-"]
    cells += [f"{_mean(table, LINEAR):.4f}" if _good(table, LINEAR) else "-"]
    cells += [_difference(table, LINEAR), _difference(table, BASELINE)]
    coverage, error = (float(np.mean([line["coverage"][part] or 0.0 for line in ours])) for part in (0, 1))
    far = max(_LOW - coverage, coverage - _HIGH) > _CLEAR * error
    cells += [f"{100 * coverage:.0f} %" + (" !" if far else "")]
    cost = np.mean([line["cpu"] for line in ours])
    cells += [f"{cost / np.mean([line['cpu'] for line in _good(table, rival)]):.1f}" if rival else "-"]
    return [*cells, f"{max(line['peak_mib'] for line in ours):.0f}"]


def _about(order: list[str], tables: dict[str, Lines]) -> list[str]:
    head = ("table", "source", "rows", "trained on", "columns", "task", "guessed as", "chosen", "SHA-256 begins")
    found = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name in order:
        ours = _good(tables[name], OURS)
        if not ours:
            continue
        line = ours[0]
        cells = [
            name,
            sources()[name].address,
            f"{line['rows']:,}",
            f"{line['train']:,}",
            str(line["columns"]),
            line["task"],
        ]
        cells += [line["guess"], f"{line['structure']}, {line['likelihood']}", line["data"]]
        found.append("| " + " | ".join(cells) + " |")
    return found


def _failures(lines: list[dict[str, Any]]) -> list[str]:
    failed = [
        f"- {line['table']}, {line['method']}, seed {line['seed']}: {line['failed']}"
        for line in lines
        if "failed" in line
    ]
    return ["Failures:", "", *failed] if failed else ["No run failed."]


def _good(table: Lines, method: str) -> list[dict[str, Any]]:
    return [line for line in table.get(method, []) if "failed" not in line]


def _mean(table: Lines, method: str) -> float:
    return float(np.mean([line["log_density"][0] for line in _good(table, method)]))


def _best_rival(table: Lines) -> str:
    rivals = [name for name in table if name not in (OURS, BASELINE) and _good(table, name)]
    return max(rivals, key=lambda name: _mean(table, name)) if rivals else ""


def difference(table: Lines, rival: str) -> Estimate | None:
    """Mean of our log-density minus a rival's over the rows of all seeds that both have; None without any."""
    theirs = {line["seed"]: line for line in _good(table, rival)}
    means, errors = [], []
    for line in _good(table, OURS):
        other = theirs.get(line["seed"])
        if other is None or other["data"] != line["data"]:
            continue
        weights = np.ones(line["test"]) if line["weights"] is None else np.array(line["weights"])
        found = Estimate.of(np.array(line["densities"]) - np.array(other["densities"]), weights)
        means.append(found.mean)
        errors.append(found.error)
    if not means:
        return None
    return Estimate(float(np.mean(means)), math.sqrt(float(np.sum(np.square(errors)))) / len(errors))


def _difference(table: Lines, rival: str) -> str:
    found = difference(table, rival)
    return "-" if found is None else f"{found.mean:+.4f} ± {found.error:.4f}"


def _verdict(table: Lines) -> str:
    rival = _best_rival(table)
    found = difference(table, rival) if rival else None
    if found is None:
        return ""
    return "even" if abs(found.mean) <= _CLEAR * found.error else "ahead" if found.mean > 0.0 else "behind"
