"""The commands of ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from benchmarks.methods import methods
from benchmarks.suite import store
from benchmarks.suite.presets import PRESETS, Preset
from benchmarks.suite.runner import run_preset
from benchmarks.workloads import RULESETS, TUNED, workloads
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
    _add_choice(run, "reference", list(RULESETS))
    run.add_argument("--quick", action="store_const", const="quick", dest="preset", help="the same as --preset quick")
    run.add_argument("--trials", type=int, help="settings tried per method in the tuned ruleset")
    run.add_argument("--budget-minutes", type=float, help="when to stop; start again to go on")
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

    compare = commands.add_parser("compare", help="two revisions on the same splits, with paired standard errors")
    compare.add_argument("revisions", nargs=2, metavar="REVISION", help="of git's; B less A is shown")
    _add_choice(compare, "quick", [name for name in RULESETS if name != TUNED])
    compare.add_argument("--output", type=Path, help="file of JSON lines, one for each method on each workload")
    compare.add_argument(
        "--fail",
        action="store_true",
        help="exit with 1 where B is worse by more than two standard errors and 0.5 %%, or has no result",
    )
    compare.set_defaults(command=do_compare)

    micro = commands.add_parser("micro", help="parts of the computation, as ratios between two revisions")
    micro.add_argument("revisions", nargs="*", metavar="REVISION", help="two of git's; none times what is here")
    micro.add_argument("--rows", type=int, default=5_000)
    micro.add_argument("--rounds", type=int, default=5, help="how often each revision is timed, in turn")
    micro.add_argument("--threads", type=int, default=2)
    micro.set_defaults(command=do_micro)
    return parser


def _add_choice(parser: argparse.ArgumentParser, preset: str, rulesets: list[str]) -> None:
    """What is to be run, and for how long."""
    parser.add_argument("--preset", choices=sorted(PRESETS), default=preset)
    parser.add_argument("--workloads", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--rulesets", nargs="+", choices=rulesets, help="only these")
    parser.add_argument("--seeds", type=int, help="how many")
    parser.add_argument("--share", type=float, help="times the workload's training time")
    parser.add_argument("--most-seconds", type=float, help="training time of a run at most")
    parser.add_argument("--importance", type=int, choices=(1, 2, 3), help="least important settings to run")
    parser.add_argument("--threads", type=int, default=2, help="of every run; default 2")


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
    preset = _preset(options)
    path = options.results or store.FOLDER / f"{options.preset}.jsonl"
    run_preset(preset, path, options.threads, lambda text: print(text, flush=True))


def _preset(options: argparse.Namespace) -> Preset:
    given = {spec.name: getattr(options, spec.name, None) for spec in fields(Preset)}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    return replace(PRESETS[options.preset], **changes)


def do_compare(options: argparse.Namespace) -> int:
    """Compares two revisions; 1 where the second is worse and that was asked for."""
    from benchmarks.suite import paired, revisions

    preset = _preset(options)
    if options.methods is None:
        known = methods() if preset.methods is None else preset.methods
        preset = replace(preset, methods=tuple(name for name in known if name in revisions.OWN))
    if options.most_seconds is None:
        preset = replace(preset, most_seconds=math.inf)  # a run that is cut short is no result
    found = revisions.compare(options.revisions, preset, options.threads, show=_to_standard_error)
    print(paired.shown(found, options.revisions))
    if options.output is not None:
        commits = [revisions.resolve(revisions.ROOT, name) for name in options.revisions]
        for change in found:
            store.append(
                options.output, change.line(commits) | {"at": store.now(), **store.environment(options.threads)}
            )
    return int(options.fail and any(change.verdict in ("worse", "lost") for change in found))


def _to_standard_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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
