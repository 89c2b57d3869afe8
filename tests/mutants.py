"""Breaks the package line by line and says whether the tests notice: ``python tests/mutants.py``.

A test is worth what it kills. The lines are chosen by hand in ``mutant_list.py``: decisions, tightness and cost, which no
comparison of answers sees. Each is broken in a copy of the package, where the tests that guard it then run. Caught is what
makes one of them fail that passes without it; what cannot be imported or collected is no mutant, and an error.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent
_COPIED = ("itergp", "tests", "pyproject.toml")
_NOT_RUN = ("NameError", "ImportError", "ModuleNotFoundError", "SyntaxError")  # what nobody would have committed
_SECONDS = 1800  # for one run of tests


@functools.lru_cache(maxsize=1)
def sources(folder: Path) -> dict[Path, str]:
    """Every file of the package in a folder, with its text."""
    return {path: path.read_text() for path in sorted((folder / "itergp").rglob("*.py"))}


def place(snippet: str, folder: Path = ROOT) -> Path:
    """The file of the package that a snippet is in.

    Raises:
        LookupError: If the package does not say it exactly once.
    """
    counts = {path: text.count(snippet) for path, text in sources(folder).items()}
    if (total := sum(counts.values())) != 1:
        raise LookupError(f"A mutant's snippet must occur exactly once in itergp/. Got {total} times: {snippet!r}")
    return next(path for path, count in counts.items() if count)


def find_tests(name: str) -> str:
    """Where a file of tests lies, from the root."""
    return str(next((ROOT / "tests").rglob(name)).relative_to(ROOT))


def copy_package(folder: Path) -> None:
    """The package and its tests, without what was compiled."""
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)


def run_tests(folder: Path, *arguments: str) -> tuple[str, str]:
    """``"pass"``, ``"fail"`` or ``"error"`` of the tests of a folder, and what pytest said last."""
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "error", f"no end after {_SECONDS} s"
    said = (done.stdout.strip().splitlines() or [done.stderr.strip()])[-1]
    if done.returncode not in (0, 1) or not report.exists():
        return "error", said
    suites = list(ET.parse(report).getroot().iter("testsuite"))
    failures, errors = (sum(int(suite.attrib[kind]) for suite in suites) for kind in ("failures", "errors"))
    messages = [str(failure.get("message")) for suite in suites for failure in suite.iter("failure")]
    if any(message.startswith(_NOT_RUN) for message in messages):
        return "error", messages[0].splitlines()[0]
    return "fail" if failures else "error" if errors else "pass", said


def unsound(mutants: Sequence[Mutant]) -> dict[str, str]:
    """Files whose guards do not all pass as the package is, so that they guard nothing; with what pytest said."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        copy_package(Path(name))
        for file in dict.fromkeys(mutant.tests[0] for mutant in mutants):
            chosen = " or ".join(f"({mutant.tests[1]})" for mutant in mutants if mutant.tests[0] == file)
            outcome, said = run_tests(Path(name), find_tests(file), "-k", chosen)
            if outcome != "pass":
                found[file] = f"without the mutant: {said}"
    return found


def try_mutant(mutant: Mutant, *, all_tests: bool) -> tuple[str, str]:
    """``"caught"``, ``"survives"`` or ``"error"``, and what pytest said."""
    everything = ("tests", "-m", "not slow", "--ignore=tests/laws/test_mutants.py")  # which looks for the unbroken line
    wanted = everything if all_tests else (find_tests(mutant.tests[0]), "-k", mutant.tests[1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_package(folder)
        file = place(mutant.snippet, folder)
        file.write_text(file.read_text().replace(mutant.snippet, mutant.replacement))
        outcome, said = run_tests(folder, "-x", *wanted)
    return {"fail": "caught", "pass": "survives", "error": "error"}[outcome], said


def main() -> None:
    """Prints a table; its last line counts the mutants that were caught."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", metavar="NAME", help="mutants whose names contain this")
    parser.add_argument("--all-tests", action="store_true", help="run the whole suite against each, not its guards")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if options.only is None or any(part in m.name for part in options.only)]
    outcomes, broken = [], unsound(chosen)
    for mutant in chosen:
        begun, said = time.perf_counter(), broken.get(mutant.tests[0])
        outcome, said = ("error", said) if said else try_mutant(mutant, all_tests=options.all_tests)
        outcomes.append(outcome)
        print(f"{outcome:<9} {time.perf_counter() - begun:5.0f} s  {mutant.name:<64} {said}", flush=True)
    print(f"{outcomes.count('caught')} of {len(outcomes)} caught")
    sys.exit(outcomes.count("caught") < len(outcomes))


if __name__ == "__main__":
    main()
