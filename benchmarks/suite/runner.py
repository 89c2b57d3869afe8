"""Goes through a plan: skips what is there, appends what comes, shows progress, ends in time."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from benchmarks.suite import store
from benchmarks.suite.executor import context, execute
from benchmarks.suite.presets import Preset, plan
from benchmarks.suite.worker import Run
from benchmarks.workloads import workloads

MEMORY_SHARE = 0.7  # of the memory that is available at the start
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LOKY_MAX_CPU_COUNT")
_OVERHEAD = 4.0  # seconds to start, load, warm up and evaluate, before anything is known


def run_preset(preset: Preset, path: Path, threads: int, show: Callable[[str], None] = print) -> int:
    """Runs what is not in the file yet, and returns how many runs it was.

    Args:
        preset: What to run.
        path: The file of results.
        threads: Threads of every run.
        show: Where progress goes.

    Raises:
        InputError: If a name is unknown, or the file was timed on another machine.
    """
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)  # inherited by every process that is started from now on
    done = store.load([path]) if path.exists() else []
    store.require_same_machine(done, path, threads)
    known = {store.key(line) for line in done}
    runs, refusals = plan(preset, threads)
    for refusal in refusals:
        quiet = refusal.reason.startswith(("nothing to tune", "not installed", "not in the ruleset"))
        if refusal.run.key not in known and not quiet:
            status = {"status": f"does not apply: {refusal.reason}", "curve": [], "facts": {}, "seconds": 0.0}
            store.append(path, asdict(refusal.run) | {"limit": refusal.run.seconds} | status | _about(refusal.run))
    left = [run for run in runs if run.key not in known]
    show(f"{len(runs)} runs, {len(runs) - len(left)} of them done; results in {path}")
    return _go(left, preset, path, threads, show, [line for line in done if "wall_seconds" in line])


def _go(
    left: list[Run],
    preset: Preset,
    path: Path,
    threads: int,
    show: Callable[[str], None],
    done: list[dict[str, Any]],
) -> int:
    processes, started = context(), time.monotonic()
    limit = 60.0 * preset.budget_minutes
    memory = int(MEMORY_SHARE * psutil.virtual_memory().available)
    for index, run in enumerate(left):
        spent = time.monotonic() - started
        expected = _expected(run, done)
        if spent + min(expected, 0.5 * limit) > limit:
            show(f"stopped after {spent / 60:.1f} minutes, {len(left) - index} runs left: start again to go on")
            return index
        remaining = min(sum(_expected(other, done) for other in left[index:]), limit - spent)
        begun = time.monotonic()
        line = execute(run, processes, memory) | {"wall_seconds": time.monotonic() - begun}
        line |= {**_about(run), "at": store.now(), **store.environment(threads)}
        store.append(path, line)
        done.append(line)
        show(f"[{index + 1}/{len(left)}, {_duration(remaining)} left] {_describe(run, line)}")
    return len(left)


def _about(run: Run) -> dict[str, Any]:
    """What the report says of the workload and the method, so that it needs the results alone."""
    workload, method = workloads()[run.workload], run.configured()
    return {
        "summary": workload.summary,
        "variant_of": workload.variant_of,
        "family": method.family,
        "importance": method.importance,
        "setup": method.setup,
        "configuration": method.configuration,
    }


def _expected(run: Run, done: list[dict[str, Any]]) -> float:
    """Wall-clock seconds of a run: as in other seeds, or as this method's share of its limit elsewhere."""
    same = [line for line in done if line["method"] == run.method and line["ruleset"] == run.ruleset]
    twins = [line["wall_seconds"] for line in same if line["workload"] == run.workload]
    if twins:
        return statistics.median(twins)
    if same:
        return run.seconds * statistics.fmean(min(1.0, line["seconds"] / line["limit"]) for line in same) + _OVERHEAD
    return 0.5 * run.seconds + _OVERHEAD


def _describe(run: Run, line: dict[str, Any]) -> str:
    trial = f", trial {run.trial}" if run.trial else ""
    what = f"{run.ruleset}, {run.workload}, {run.method}, seed {run.seed}{trial}"
    if "test" not in line:
        return f"{what}: {line['status']} {line.get('error', '')}"
    best = min(point["nll"] for point in line["curve"])
    return f"{what}: validation NLL {best:.4f}, {line['seconds']:.1f} s, {line['status']}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
