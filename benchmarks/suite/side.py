"""One side of a comparison of revisions: runs what it is told, with the package in the folder it was started in.

A line of JSON on standard input is a run, one on standard output its result; what libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import psutil

import itergp
from benchmarks.suite import store
from benchmarks.suite.executor import context, execute
from benchmarks.suite.runner import MEMORY_SHARE
from benchmarks.suite.worker import Run


def main() -> None:
    """Answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    found = Path(itergp.__file__).resolve().parents[1]
    if found != Path.cwd().resolve():
        raise SystemExit(f"The package must come from {Path.cwd()}. Got {found}. Leave PYTHONPATH to `compare`.")
    processes, memory = context(), int(MEMORY_SHARE * psutil.virtual_memory().available)
    for text in sys.stdin:
        line = execute(Run(**json.loads(text)), processes, memory, rows=True)
        answers.write(json.dumps(store.plain(line)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
