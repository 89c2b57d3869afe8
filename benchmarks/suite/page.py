"""The report: pages of the documentation, figures and LaTeX tables, from lines of results alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.suite import findings
from benchmarks.suite.analysis import LEVELS, TAU, medians, ratios, score, variants_of
from benchmarks.suite.figures import draw_all
from benchmarks.suite.tables import Table, mark_best, number
from benchmarks.workloads import INFERENCE, RULESETS, TUNED

PROTOCOL = Path(__file__).parent / "protocol.md"
_WHAT = {
    "profiles": "Performance profiles: the share of workloads on which a method is within a factor of the fastest.",
    "curves": "Validation NLL against training time, per workload: the median over seeds, bands and bars from smallest to "
    "largest; the dotted line is the target. One setting per family: this package's defaults, the best of every other family.",
    "reliability": "Accuracy against confidence on the test rows of all seeds; bins with at least 15 rows.",
    "cost": "Training time and memory against the rows of the mixtures, for methods that end by themselves.",
}


def write_report(
    runs: pd.DataFrame, targets: pd.DataFrame, page: Path, images: Path, latex: Path | None = None, note: str = ""
) -> list[Path]:
    """Writes pages, figures and tables.

    Args:
        runs: As ``analysis.frame`` gives them.
        targets: As ``analysis.compute_targets`` or ``analysis.thaw`` give them.
        page: The Markdown file of protocol, profiles and losses; the tables lie in a folder of its name beside it.
        images: Folder of the figures, beside or below the page.
        latex: Folder of the LaTeX tables; default none.
        note: What to know about the results, as Markdown.

    Returns:
        What was written.
    """
    drawn = draw_all(runs, targets, images)
    place = Path(*images.parts[len(page.parent.parts) :])
    rulesets, tables = [name for name in RULESETS if name in set(runs["ruleset"])], []
    pages = {page: _front(runs, targets, rulesets, drawn, place, tables, note)}
    folder = page.with_suffix("")
    for ruleset in rulesets:
        pages[folder / f"{_slug(ruleset)}.md"] = _ruleset(runs, targets, ruleset, drawn, ".." / place, tables)
    pages[folder / "workloads.md"] = _workloads(runs, targets, tables)
    pages[folder / "setups.md"] = ["# How every method is set up", _setups(runs), _failures(runs)]
    for path, parts in pages.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(part.strip() for part in parts if part.strip()) + "\n")
    written = [*pages, *(images / name for name in drawn)]
    for table in tables if latex is not None else []:
        written.append(table.write(latex))
    return written


def _front(
    runs: pd.DataFrame,
    targets: pd.DataFrame,
    rulesets: list[str],
    drawn: list[str],
    place: Path,
    tables: list[Table],
    note: str,
) -> list[str]:
    """Protocol, profiles and losses."""
    links = [f"- [{name.capitalize()}](benchmarks/{_slug(name)}.md): who is first, scores, curves" for name in rulesets]
    links += [
        "- [Every workload, every method](benchmarks/workloads.md)",
        "- [How every method is set up](benchmarks/setups.md), and what failed",
        "- [Adding a rival](benchmarks/adding.md)",
    ]
    parts = [PROTOCOL.read_text(), machine(runs), note, "\n".join(links)]
    for ruleset in rulesets:
        parts += [
            f"**{ruleset.capitalize()}**: {RULESETS[ruleset]}.",
            _figure(f"profiles-{_slug(ruleset)}", drawn, place),
        ]
    return parts + _losses(runs, targets, tables)


def machine(runs: pd.DataFrame) -> str:
    """What the results were taken on, and how much there is."""
    ran = runs[runs["machine"].notna()] if "machine" in runs else runs.iloc[:0]
    revisions: dict[str, list[str]] = {}
    for line in ran.to_dict("records"):
        known = revisions.setdefault(_machine_text(line), [])
        known += [] if line["revision"] in known else [line["revision"]]
    texts = [f"- {text}; revision {', '.join(names)}" for text, names in revisions.items()]
    seeds = runs.groupby(["ruleset", "workload", "method"])["seed"].nunique()
    split = f"{len(ran):,} runs, {runs['workload'].nunique()} workloads, {runs['method'].nunique()} settings of "
    split += f"{runs['family'].nunique()} families, {seeds.min()} to {seeds.max()} seeds; {ran['seconds'].sum() / 3600:.1f} hours of training."
    return "\n".join(["## Results", "", split + _allowances(ran), "", *texts])


def _allowances(ran: pd.DataFrame) -> str:
    """Who was allowed more training time than others on the same workload; those that end by themselves may need it."""
    if ran.empty:
        return ""
    factor = ran["limit"] / ran.groupby(["ruleset", "workload"])["limit"].transform("min")
    most = factor.groupby(ran["method"]).max()
    more = [f"{method} {number(value, 1)}" for method, value in most[most > 1.0].items()]
    return f" Times the training time that others were allowed: {', '.join(more)}." if more else ""


def _machine_text(line: dict[str, Any]) -> str:
    place, versions = line["machine"], line["versions"]
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{place['processor']} ({place['architecture']}), {place['threads']} of {place['cores']} cores, {place['memory_gib']} GiB, "
        f"{place['system']}, Python {place['python']}; {software}"
    )


def _ruleset(
    runs: pd.DataFrame, targets: pd.DataFrame, ruleset: str, drawn: list[str], place: Path, tables: list[Table]
) -> list[str]:
    """The page of a ruleset."""
    slug = _slug(ruleset)
    first = findings.firsts(runs, targets, ruleset)
    scored = scores_table(runs, targets, ruleset)
    tables += [first, scored]
    parts = [
        f"# {ruleset.capitalize()}",
        f"{RULESETS[ruleset][:1].upper()}{RULESETS[ruleset][1:]}. [Protocol](../benchmarks.md#protocol).",
        "## Who is first",
        "Who reaches the standard target first, which other family is next, and how much longer it takes (∞: no other does). The target\n"
        "is the median over seeds.",
        first.markdown(),
        "## Scores",
        "From 0 to 1, by target and largest τ; the last two columns leave variants out of account.",
        scored.markdown(),
        "## Curves",
        _figure(f"curves-{slug}", drawn, place),
        _figure(f"reliability-{slug}", drawn, place) if ruleset != TUNED else "",
    ]
    return [*parts, *_dense(runs, tables), _figure("cost", drawn, place)] if ruleset == INFERENCE else parts


def scores_table(runs: pd.DataFrame, targets: pd.DataFrame, ruleset: str) -> Table:
    """Integrated performance profiles of every method, at every target."""
    variants = variants_of(runs)
    columns: dict[str, pd.Series] = {}
    for level in LEVELS:
        found = ratios(medians(runs, targets, ruleset, level), variants)
        for tau in TAU:
            columns[f"{level}, τ to {tau:.0f}"] = score(found, tau)
    plain = medians(runs, targets, ruleset)
    plain = ratios(plain[[name for name in plain if name not in variants]])
    for tau in TAU:
        columns[f"no variants, τ to {tau:.0f}"] = score(plain, tau)
    table = pd.DataFrame(columns).fillna(0.0).sort_values("standard, τ to 4", ascending=False)
    cells = [mark_best(list(table[name]), [number(v, 2) for v in table[name]], largest=True) for name in table]
    rows = [[str(method), *values] for method, *values in zip(table.index, *cells, strict=True)]
    return Table(f"scores-{_slug(ruleset)}", f"Scores: {ruleset}", ["method", *table.columns], rows)


def _losses(runs: pd.DataFrame, targets: pd.DataFrame, tables: list[Table]) -> list[str]:
    parts = [
        "## Where this package loses, and why",
        "Generated from the results: workloads on which a setting of another family reaches the standard target before this package's\n"
        "defaults do, and those on which the defaults end with a test NLL more than 1 % above another's.",
    ]
    for ruleset in (name for name in RULESETS if name in set(runs["ruleset"])):
        slower, worse = findings.losses(runs, targets, ruleset), findings.worse(runs, ruleset)
        for table, nothing in ((slower, "No other family is first"), (worse, "None ends with a worse test NLL")):
            if table.rows:
                tables.append(table)
                parts += [f"**{table.title}**", table.markdown()]
            else:
                parts.append(f"{nothing} on any workload: {ruleset}.")
    return parts


def _dense(runs: pd.DataFrame, tables: list[Table]) -> list[str]:
    table = findings.against_dense(runs)
    if not table.rows:
        return []
    tables.append(table)
    return [
        "## What approximations cost",
        "Test NLL with the same kernel, less that of the exact (dense) computation, on the workloads where that can be done: mean and\n"
        "standard deviation over seeds.",
        table.markdown(),
    ]


def _workloads(runs: pd.DataFrame, targets: pd.DataFrame, tables: list[Table]) -> list[str]:
    parts = [
        "# Every workload, every method",
        "Means over seeds of test metrics, medians of costs, both of what there is. [Protocol](../benchmarks.md#protocol).",
    ]
    for name in dict.fromkeys(runs["workload"]):
        here = runs[runs["workload"] == name]
        known = here[here["rows"].notna()].head(1).to_dict("records") if "rows" in here else []
        parts.append(f"## {name}")
        summary = str(here["summary"].iloc[0])
        if known:
            line = known[0]
            summary += (
                f"; {line['rows']:,.0f} training rows, {line['inputs']:.0f} inputs, {line['outcomes']:.0f} outcomes"
            )
        parts.append(summary[:1].upper() + summary[1:] + ".")
        for ruleset in (rule for rule in RULESETS if rule in set(here["ruleset"]) and rule != TUNED):
            table = findings.quality(runs, ruleset, name, targets)
            if table.rows:
                tables.append(table)
                parts.append(
                    f'<details markdown="1"><summary>{table.title}</summary>\n\n{table.markdown()}\n</details>'
                )
    return parts


def _setups(runs: pd.DataFrame) -> str:
    lines = ["| method | setup | configuration |", "| --- | --- | --- |"]
    chosen = runs[runs["trial"] == 0].drop_duplicates("method").sort_values(["importance", "method"])
    for line in chosen.to_dict("records"):
        settings = ", ".join(
            f"{name} = {_short(value)}" for name, value in line["configuration"].items() if name != "text"
        )
        lines.append(f"| {line['method']} | {line['setup']} | {_cell(settings)} |")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _failures(runs: pd.DataFrame) -> str:
    bad = runs[~runs["status"].isin(["finished", "settled", "used all its time"]) & runs["applies"]]
    if bad.empty:
        return "## Failures\n\nNone: every run ended with a result."
    lines = ["## Failures", "", "Runs without a result, or ended before their time.", ""]
    lines += ["| ruleset | workload | method | seeds | what happened |", "| --- | --- | --- | --- | --- |"]
    errors = bad["error"].fillna("") if "error" in bad else pd.Series("", index=bad.index)
    told = bad.assign(what=(bad["status"] + " " + errors).str.strip().str.slice(0, 160).map(_cell))
    for (ruleset, workload, method, what), part in told.groupby(["ruleset", "workload", "method", "what"], sort=False):
        seeds = ", ".join(str(seed) for seed in sorted(set(part["seed"])))
        lines.append(f"| {ruleset} | {workload} | {method} | {seeds} | {what} |")
    return "\n".join(lines)


def _figure(name: str, drawn: list[str], place: Path) -> str:
    file = f"benchmarks-{name}.png"
    if file not in drawn:
        return ""
    return f"![{_WHAT[name.split('-')[0]]}]({(place / file).as_posix()})\n\n*{_WHAT[name.split('-')[0]]}*"


def _slug(ruleset: str) -> str:
    return ruleset.replace(" ", "-")
