"""Starts a run in a process of its own, watches time and memory, and makes one line of results of what it says."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from benchmarks.suite.worker import Run, work

_PREPARATION = 180.0  # seconds to load, split and warm up
_EVALUATION = 240.0  # seconds for one evaluation
_GRACE = 1.2  # times the training time, plus two seconds, after which a method that does not call back is ended
_POLL = 0.25
_ENDS = {"finished": "finished", "settled": "settled"}


def context() -> Any:
    """How processes start: from a server that has imported what all runs need, where the system has that."""
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    chosen = multiprocessing.get_context(kind)
    if kind == "forkserver":
        chosen.set_forkserver_preload(["benchmarks.suite.worker"])
    return chosen


@dataclass
class _Watch:
    """What is known of a run from its events."""

    run: Run
    line: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    phase: str = "preparation"
    since: float = field(default_factory=time.perf_counter)
    trained: float = 0.0
    status: str = ""

    def hear(self, event: dict[str, Any]) -> None:
        """Takes in an event."""
        kind = event["event"]
        if kind in ("start", "pause"):
            self.phase = "training" if kind == "start" else "evaluation"
            self.since, self.trained = time.perf_counter(), event["seconds"]
        if kind == "pause":
            self.line["peak_bytes"] = max(event["peak"], self.line.get("peak_bytes", 0))
        elif kind == "problem":
            self.line.update(event["problem"])
        elif kind == "checkpoint":
            self.curve.append(event["point"])
            self.facts.update({key: value for key, value in event["facts"].items() if value is not None})
        elif kind == "result":
            self.line["test"] = event["result"]
        elif kind == "rows":
            self.line["log_density"] = event["log_density"]
        elif kind == "done":
            self.status = _ENDS.get(event["reason"], "used all its time")
            self.line.update(seconds=event["seconds"], cpu=event["cpu"])
        elif kind == "failed":
            self.status = "failed"
            self.line.update(error=event["error"], where=event["where"], seconds=self._seconds())

    def overdue(self) -> str:
        """Why the run is to be ended, or nothing."""
        if self.phase == "preparation" and self._passed() > _PREPARATION:
            return "failed: preparation took too long"
        if self.phase == "evaluation" and self._passed() > _EVALUATION:
            return "ended: its predictions took too long"
        if self.phase == "training" and self._seconds() > _GRACE * self.run.seconds + 2.0:
            return "ended: out of time without a result" if not self.curve else "used all its time"
        return ""

    def end(self, status: str) -> None:
        """Notes how it ended."""
        self.status = status
        self.line.setdefault("seconds", self._seconds())

    def _passed(self) -> float:
        return time.perf_counter() - self.since

    def _seconds(self) -> float:
        return self.trained + (self._passed() if self.phase == "training" else 0.0)

    def result(self) -> dict[str, Any]:
        """The line of results."""
        return {
            **asdict(self.run),
            "limit": self.run.seconds,
            "status": self.status,
            **self.line,
            "curve": self.curve,
            "facts": self.facts,
        }


def execute(run: Run, processes: Any, memory_bytes: int, *, rows: bool = False) -> dict[str, Any]:
    """Runs to an end, whatever it is.

    Args:
        run: The run.
        processes: Where processes come from, see ``context``.
        memory_bytes: Resident memory at which a run is ended.
        rows: Whether the line has the ``log_density`` of every test row by the last predictions.
    """
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=work, args=(run, sender, rows), daemon=True)
    process.start()
    sender.close()
    watch = _Watch(run)
    try:
        _listen(watch, receiver, process, memory_bytes)
    finally:
        process.join(2.0)
        if process.is_alive():
            process.kill()
            process.join()
        receiver.close()
    return watch.result()


def _listen(watch: _Watch, receiver: Any, process: Any, memory_bytes: int) -> None:
    while not watch.status:
        try:
            if receiver.poll(_POLL):
                watch.hear(receiver.recv())
                continue
        except (EOFError, OSError):
            process.join(5.0)
            watch.end(f"failed: the process ended with code {process.exitcode}")
            return
        if reason := watch.overdue():
            watch.end(reason)
        elif _resident(process.pid) > memory_bytes:
            watch.end("ended: out of memory")


def _resident(pid: int) -> int:
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:  # it has just ended
        return 0
