"""One method on one table, in a process of its own; a line of results for each."""

from __future__ import annotations

import resource
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.suite import store
from benchmarks.suite.executor import context
from benchmarks.tables.catalogue import Source, checksum, sources
from benchmarks.tables.methods import OURS, methods
from itergp.baselines.rows import LABELLED, SURVIVAL, Forecast, Rows
from itergp.diagnostics.estimates import Estimate
from itergp.sklearn.comparison.methods import Own
from itergp.sklearn.comparison.scores import SECOND, concordance, second_scores
from itergp.tables import guess_task

_TEST_SHARE, _MOST_TEST_ROWS = 0.25, 2_000
_GRACE = 60.0  # seconds for what is not training


@dataclass(frozen=True)
class Job:
    """What is to be run.

    Attributes:
        table: Its name.
        method: Its name.
        seed: Of the split and the method.
        most_rows: Training rows at most; 0 for all.
        time_limit: Seconds of a fit of this package, or None.
    """

    table: str
    method: str
    seed: int
    most_rows: int
    time_limit: float | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What identifies it; how long this package may take is no part of what rivals do."""
        return (self.table, self.method, self.seed, self.most_rows, self.time_limit if self.method == OURS else None)


def key(line: dict[str, Any]) -> tuple[Any, ...]:
    """What identifies the job of a line of results."""
    return Job(*(line[name] for name in ("table", "method", "seed", "most_rows", "time_limit"))).key


def split(source: Source, seed: int, most_rows: int) -> tuple[Rows, Rows, dict[str, Any]]:
    """Training and test rows, and facts about the table; every label of a test row is one of training."""
    frame = source.frame()
    facts = {"rows": len(frame), "columns": frame.shape[1], "data": checksum(frame), "guess": _guess(source, frame)}
    order = np.random.default_rng(seed).permutation(len(frame))
    num_test = min(round(_TEST_SHARE * len(frame)), _MOST_TEST_ROWS)
    test, train = order[:num_test], order[num_test:]
    train = train[:most_rows] if most_rows else train
    if source.task in LABELLED:
        known = frame[source.target].iloc[train].unique()
        test = test[frame[source.target].iloc[test].isin(known)]
    parts = [source.rows(frame.iloc[np.sort(part)].reset_index(drop=True)) for part in (train, test)]
    return parts[0], parts[1], facts | {"train": len(train), "test": len(test), "task": source.task}


def _guess(source: Source, frame: pd.DataFrame) -> str:
    """The task that the target alone calls for."""
    return source.task if source.task == SURVIVAL else guess_task(frame[source.target]).task


def run(job: Job, channel: Any) -> None:
    """Runs, and sends the results."""
    found: dict[str, Any] = {}
    try:
        source, method = sources()[job.table], methods(job.time_limit)[job.method]
        train, test, found = split(source, job.seed, job.most_rows)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            started, used = time.perf_counter(), time.process_time()
            forecast = method.forecast(train, test, job.seed)
            found |= {"seconds": time.perf_counter() - started, "cpu": time.process_time() - used}
        found |= scores(forecast, test) | {"peak_mib": _peak()}
        if isinstance(method, Own):
            said = {str(w.message) for w in heard if type(w.message).__name__ == "ItergpWarning"}
            found |= {"warnings": sorted(said), **_chosen(method.fitted)}
    except Exception as error:  # a failure is a result
        found["failed"] = f"{type(error).__name__}: {error}"[:500]
    channel.send(found)
    channel.close()


def scores(forecast: Forecast, test: Rows) -> dict[str, Any]:
    """Means over the test rows with their standard errors, and the log-density of each row."""
    density, covered = Estimate.of(forecast.log_density, test.weights), Estimate.of(forecast.coverage, test.weights)
    if test.task == SURVIVAL:
        second = Estimate(concordance(forecast, test), float("nan"))
    else:
        second = Estimate.of(second_scores(forecast, test), test.weights)
    return {
        "log_density": [density.mean, density.error],
        "score": [SECOND[test.task][0], second.mean, second.error],
        "coverage": [covered.mean, covered.error],
        "densities": [float(f"{value:.5g}") for value in forecast.log_density],
        "weights": None if test.weighted is None else [float(f"{value:.5g}") for value in test.weights],
    }


def _chosen(estimator: Any) -> dict[str, Any]:
    comparison, result = estimator.comparison_, estimator.result_
    return {
        "likelihood": estimator.likelihood_,
        "structure": None if comparison is None else comparison.chosen,
        "trials": None if comparison is None else str(comparison).splitlines(),
        "phases": None if result is None else result.seconds,
        "ended": None if result is None else result.reason,
        "left_out": [column.name for column in estimator.columns_ if column.role == "dropped"],
    }


def _peak() -> float:
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (2**20 if sys.platform == "darwin" else 2**10)


def execute(job: Job, most_seconds: float) -> dict[str, Any]:
    """Runs a job in a process, and gives its line of results, whatever comes of it.

    Args:
        job: The job.
        most_seconds: After which it is ended.
    """
    processes = context()
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=run, args=(job, sender), daemon=True)
    process.start()
    sender.close()
    try:
        found = receiver.recv() if receiver.poll(most_seconds + _GRACE) else {"failed": f"more than {most_seconds:g} s"}
    except EOFError:
        process.join()
        found = {"failed": f"the process ended with code {process.exitcode}"}
    finally:
        process.join(2.0)
        if process.is_alive():
            process.kill()
            process.join()
        receiver.close()
    return {**asdict(job), **found}


def run_all(jobs: list[Job], path: Path, most_seconds: float) -> None:
    """Runs what has no line yet.

    Raises:
        InputError: If the file was timed on another machine.
    """
    lines = store.load([path]) if path.exists() else []
    store.require_same_machine([line.get("environment") or {} for line in lines], path, 1)
    known = {key(line) for line in lines}
    left = [job for job in jobs if job.key not in known]
    print(f"{len(jobs)} runs, {len(jobs) - len(left)} of them done; results in {path}.", flush=True)
    for number, job in enumerate(left, 1):
        line = {**execute(job, most_seconds), "time": store.now(), "environment": store.environment(1)}
        store.append(path, line)
        print(f"[{number}/{len(left)}] {job.table}, {job.method}, seed {job.seed}: {_shown(line)}", flush=True)


def _shown(line: dict[str, Any]) -> str:
    if "failed" in line:
        return f"failed: {line['failed'][:150]}"
    mean, error = line["log_density"]
    return f"log-density {mean:.4f} ± {error or 0.0:.4f}, covers {line['coverage'][0]:.2f}, {line['cpu']:.1f} s"
