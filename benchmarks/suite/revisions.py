"""Two revisions of this package, checked out side by side, on the same runs in turn.

Workloads, splits and methods are those of this file's revision; the package is that of each side. Predictions are those that a
run ends with, so that they do not depend on which checkpoints were evaluated.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from benchmarks.methods import ours
from benchmarks.suite.paired import Change, changes
from benchmarks.suite.presets import Preset, plan
from benchmarks.suite.runner import THREAD_VARIABLES
from benchmarks.suite.worker import Run
from itergp.errors import InputError

ROOT = Path(__file__).parents[2]
OWN = tuple(method.name for method in ours.METHODS)
"""Methods that are this package's: what others do is the same in both revisions."""


class Side:
    """A process that runs with one revision's package.

    Args:
        tree: The checked-out revision, with this revision's benchmarks.
        threads: Threads of every run.
        said: File for what it prints.
    """

    def __init__(self, tree: Path, threads: int, said: IO[str]) -> None:
        self._tree, self._said = tree, said
        environment = {**os.environ, "PYTHONPATH": str(tree), "KEOPS_VERBOSE": "0"}
        environment |= dict.fromkeys(THREAD_VARIABLES, str(threads))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.suite.side"],
            cwd=tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )

    def execute(self, run: Run) -> dict[str, Any]:
        """The line of results of a run.

        Raises:
            InputError: If the process ended, as where the suite asks for what the revision does not have.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        text = ""
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(asdict(run)) + "\n")
            self.process.stdin.flush()
            text = self.process.stdout.readline()
        if not text:
            self._said.seek(0)
            raise InputError(
                f"The suite must run with the package of both revisions, here that in {self._tree}. Got: "
                f"{self._said.read().strip()[-500:]}. Compare with a revision that has what the suite asks for."
            )
        return json.loads(text)

    def close(self) -> None:
        """Ends it: without more input it ends by itself, and otherwise is ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def worktree(root: Path, commit: str, folder: Path) -> Iterator[Path]:
    """A worktree of a commit, with the benchmarks that are running in place of its own; removed at the end."""
    _git(root, "worktree", "add", "--detach", "--quiet", str(folder), commit)
    try:
        shutil.rmtree(folder / "benchmarks", ignore_errors=True)
        shutil.copytree(
            ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("results", "__pycache__")
        )
        yield folder
    finally:
        _git(root, "worktree", "remove", "--force", str(folder))


def resolve(root: Path, revision: str) -> str:
    """The commit of a revision.

    Raises:
        InputError: If there is no such revision.
    """
    return _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", about=revision)


def _git(root: Path, *words: str, about: str = "") -> str:
    found = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    if found.returncode != 0:
        what = (
            f"{about!r} must be a revision of the repository {root}"
            if about
            else f"`git {' '.join(words[:2])}` must work"
        )
        raise InputError(f"{what}. Git says: {found.stderr.strip() or 'unknown'}. See `git log`.")
    return found.stdout.strip()


def compare(
    revisions: Sequence[str],
    preset: Preset,
    threads: int,
    root: Path = ROOT,
    show: Callable[[str], None] = print,
) -> list[Change]:
    """Runs everything with both revisions in turn, the first of each pair changing from one to the next.

    Args:
        revisions: Two of git's.
        preset: What to run. Runs that do not end in their time say nothing, so give them enough.
        threads: Threads of every run.
        root: A folder of the repository.
        show: Where progress goes.

    Raises:
        InputError: If a revision or a name is unknown, there is nothing to run, the suite does not run with a revision, or no
            run has a result with both.
    """
    runs, _ = plan(preset, threads)
    if not runs:
        raise InputError(
            "There must be something to run. Got methods that take part in none of the runs. See `python -m benchmarks list`."
        )
    commits = [resolve(root, revision) for revision in revisions]
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes = []
        for name, commit in zip(("first", "second"), commits, strict=True):
            tree = stack.enter_context(worktree(root, commit, folder / name))
            said = stack.enter_context((folder / f"{name}.log").open("w+"))
            processes.append(Side(tree, threads, said))
            stack.callback(processes[-1].close)
        for index, run in enumerate(runs):
            for which in (0, 1) if index % 2 == 0 else (1, 0):
                sides[which].append(processes[which].execute(run))
            show(
                f"[{index + 1}/{len(runs)}] {run.ruleset}, {run.workload}, {run.method}, seed {run.seed}: {_nlls(sides)}"
            )
    found = changes(*sides)
    if not any(change.splits for change in found):
        ended = sorted({line["status"] for side in sides for line in side})
        raise InputError(
            f"Some run must have a result with both revisions. Got {ended}. Give more time with `--most-seconds`, or try `run`."
        )
    return found


def _nlls(sides: tuple[list[dict[str, Any]], ...]) -> str:
    texts = []
    for side in sides:
        densities = side[-1].get("log_density")
        texts.append(
            side[-1]["status"]
            if densities is None
            else f"NLL {-sum(densities) / len(densities):.4f}, {side[-1]['seconds']:.1f} s"
        )
    return " | ".join(texts)
