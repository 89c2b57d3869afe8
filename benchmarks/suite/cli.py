"""The commands of ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.methods import methods
from benchmarks.suite import store
from benchmarks.suite.presets import PRESETS, Preset
from benchmarks.suite.runner import run_preset
from benchmarks.workloads import RULESETS, workloads
from itergp.errors import InputError

DOCS = Path(__file__).parents[2] / "docs"
TARGETS = "targets.json"


def main(words: Sequence[str] | None = None) -> int:
    """Parses the command line and does what it says; returns the exit status."""
    options = _parser().parse_args(words)
    try:
        return int(options.command(options) or 0)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    about = sys.modules.get("benchmarks.__main__") or sys.modules["__main__"]
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks", description=about.__doc__, formatter_class=form)
    commands = parser.add_subparsers(required=True)
    commands.add_parser("list", help="workloads, methods, presets").set_defaults(command=show_list)

    run = commands.add_parser("run", help="run a preset, or what is left of it")
    run.add_argument("--preset", choices=sorted(PRESETS), default="reference")
    run.add_argument("--quick", action="store_const", const="quick", dest="preset", help="the same as --preset quick")
    run.add_argument("--workloads", nargs="+", metavar="NAME", help="only these")
    run.add_argument("--methods", nargs="+", metavar="NAME", help="only these")
    run.add_argument("--rulesets", nargs="+", choices=list(RULESETS), help="only these")
    run.add_argument("--seeds", type=int, help="how many")
    run.add_argument("--trials", type=int, help="settings tried per method in the tuned ruleset")
    run.add_argument("--share", type=float, help="times the workload's training time")
    run.add_argument("--most-seconds", type=float, help="training time of a run at most")
    run.add_argument("--budget-minutes", type=float, help="when to stop; start again to go on")
    run.add_argument("--importance", type=int, choices=(1, 2, 3), help="least important settings to run")
    run.add_argument("--threads", type=int, default=2, help="of every run; default 2")
    run.add_argument("--results", type=Path, help="file of results; default benchmarks/results/suite/PRESET.jsonl")
    run.set_defaults(command=do_run)

    report = commands.add_parser("report", help="pages and figures from results")
    report.add_argument("--results", type=Path, nargs="+", default=[store.FOLDER / "reference.jsonl"])
    report.add_argument(
        "--targets", type=Path, help=f"frozen targets; default {TARGETS} beside the results, if it exists"
    )
    report.add_argument("--freeze", action="store_true", help="compute targets from these results and write them there")
    report.add_argument("--output", type=Path, help="folder for everything; default the documentation")
    report.add_argument("--latex", type=Path, help="folder for the tables in LaTeX; default none are written")
    report.add_argument("--readme", type=Path, help="also renew the claims in this file")
    report.set_defaults(command=do_report)

    micro = commands.add_parser("micro", help="parts of the computation, as ratios between two revisions")
    micro.add_argument("revisions", nargs="*", metavar="REVISION", help="two of git's; none times what is here")
    micro.add_argument("--rows", type=int, default=5_000)
    micro.add_argument("--rounds", type=int, default=5, help="how often each revision is timed, in turn")
    micro.add_argument("--threads", type=int, default=2)
    micro.set_defaults(command=do_micro)
    return parser


def show_list(options: argparse.Namespace) -> None:
    """Prints what there is."""
    print("Workloads (training seconds: inference, end to end)")
    for workload in workloads().values():
        missing = f"  [install {', '.join(workload.missing)}]" if workload.missing else ""
        limits = f"{workload.inference_seconds:.0f}, {workload.end_to_end_seconds:.0f}"
        print(f"  {workload.name:<36} {limits:>9}  {workload.summary}{missing}")
    print("\nMethods (importance)")
    for method in methods().values():
        missing = f"  [install {', '.join(method.missing)}]" if method.missing else ""
        print(f"  {method.name:<40} {method.importance}  {', '.join(method.rulesets)}{missing}\n      {method.setup}")
    print("\nRulesets")
    for name, text in RULESETS.items():
        print(f"  {name:<12} {text}")
    print("\nPresets")
    for name, preset in PRESETS.items():
        print(f"  {name:<12} {preset.seeds} seeds, {preset.budget_minutes:g} minutes, {', '.join(preset.rulesets)}")


def do_run(options: argparse.Namespace) -> None:
    """Runs a preset with what was changed on the command line."""
    names = (
        "workloads",
        "methods",
        "rulesets",
        "seeds",
        "trials",
        "share",
        "most_seconds",
        "budget_minutes",
        "importance",
    )
    changes: dict[str, Any] = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    preset: Preset = replace(PRESETS[options.preset], **changes)
    path = options.results or store.FOLDER / f"{options.preset}.jsonl"
    run_preset(preset, path, options.threads, lambda text: print(text, flush=True))


def do_report(options: argparse.Namespace) -> None:
    """Writes the report."""
    from benchmarks.suite import analysis, readme  # pandas and matplotlib, which a run does not need
    from benchmarks.suite.page import write_report

    runs = analysis.frame(store.load(options.results))
    path = options.targets or options.results[0].with_name(TARGETS)
    if options.freeze:
        analysis.freeze(analysis.compute_targets(runs), path)
    targets = analysis.compute_targets(runs)
    if path.exists():
        targets = analysis.thaw(path).combine_first(targets)  # splits that the reference run did not have
    folder: Path | None = options.output
    page = DOCS / "benchmarks.md" if folder is None else folder / "benchmarks.md"
    beside = options.results[0].with_suffix(".note.md")
    note = beside.read_text() if beside.exists() else ""
    written = write_report(runs, targets, page, page.parent / "images", options.latex, note)
    if options.readme:
        readme.update(options.readme, runs, targets)
    print(f"{len(written)} files, the page is {page}")


def do_micro(options: argparse.Namespace) -> None:
    """Times parts of the computation."""
    from benchmarks import micro

    micro.run(options.revisions, options.rows, options.rounds, options.threads)
