"""One run, in a process of its own."""

from __future__ import annotations

import os
import traceback
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.methods import Budget, Method, OutOfTime, methods
from benchmarks.methods.base import Predict
from benchmarks.suite.recorder import Recorder
from benchmarks.workloads import COUNTS, INFERENCE, TrainingData, workloads

_WARM_UP_ROWS = 60


@dataclass(frozen=True)
class Run:
    """What is to be run.

    Attributes:
        workload: Its name.
        method: Its name.
        ruleset: Of the suite.
        seed: Of the data, the split and the method.
        trial: Of the tuned ruleset; 0 is the default setting.
        seconds: Training time.
        threads: Threads.
    """

    workload: str
    method: str
    ruleset: str
    seed: int
    trial: int
    seconds: float
    threads: int

    @property
    def key(self) -> tuple[str, str, str, int, int]:
        """What identifies the run."""
        return (self.workload, self.method, self.ruleset, self.seed, self.trial)

    def configured(self) -> Method:
        """The method in the setting of the trial."""
        return methods()[self.method].tuned(self.trial, self.seed)


def work(run: Run, channel: Any, rows: bool = False) -> None:
    """Runs, and sends events through the channel; the last is ``done`` or ``failed``.

    Args:
        run: The run.
        channel: Where events go.
        rows: Whether the log-density of every test row by the last predictions is sent, too.
    """
    torch.set_num_threads(run.threads)
    os.environ["KEOPS_VERBOSE"] = "0"
    warnings.simplefilter("ignore")  # results say what happened
    try:
        method = run.configured()
        problem = workloads()[run.workload].problem(run.seed, given=run.ruleset == INFERENCE)
        facts = {"rows": len(problem.train.y), "inputs": problem.train.x.shape[1], "kind": problem.train.kind}
        facts |= {"outcomes": problem.train.num_outcomes, "data": problem.fingerprint, "base_nll": problem.base_nll}
        channel.send({"event": "problem", "problem": facts})
        budget = Budget(run.seconds, run.seed, run.threads)
        warm_up(method, problem.train, budget)
        recorder = Recorder(problem, run.seconds, channel.send, settles=method.endless)
        torch.manual_seed(run.seed)
        recorder.start()
        try:
            method.fit(problem.train, budget, recorder)
            reason = "finished"
        except OutOfTime as ended:
            reason = str(ended)
        recorder.finish()
        if rows:
            channel.send({"event": "rows", "log_density": recorder.log_densities().tolist()})
        clock = recorder.clock
        channel.send({"event": "done", "reason": reason, "seconds": clock.wall, "cpu": clock.cpu})
    except Exception as error:  # a failure is a result
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error}"[:300]
        channel.send({"event": "failed", "error": text, "where": f"{os.path.basename(where.filename)}:{where.lineno}"})
    finally:
        channel.close()


def warm_up(method: Method, data: TrainingData, budget: Budget) -> None:
    """A fit of a few rows, not timed: no method pays for imports and compilation."""

    def callback(predict_proba: Predict, latent_variance: Predict | None = None, **facts: Any) -> None:
        predict_proba(data.x[:5])
        if method.endless:
            raise OutOfTime

    few = data.head(_WARM_UP_ROWS)
    if few.kind == COUNTS:
        few = replace(few, y=few.y.clamp_max(5))
    try:
        method.fit(few, budget, callback)
    except Exception:  # of too few rows, say; the run itself tells
        return
