"""The clock and the callback of a run: training is timed, evaluation is not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from benchmarks.methods.base import OutOfTime, Predict
from benchmarks.suite.metrics import LEAST, auroc, entropy, scores
from benchmarks.workloads import Problem

SPACING = 1.1  # checkpoints nearer than this factor in time are passed over
FIRST = 0.02  # seconds before which checkpoints are passed over
SETTLED, PATIENCE = (
    0.002,
    5.0,
)  # a run ends that gained less than this share of the NLL in its second half, of so many seconds
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class Clock:
    """Wall-clock and CPU seconds while it runs."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self._since: tuple[float, float] | None = None

    def start(self) -> None:
        """Goes on."""
        self._since = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Stands still."""
        if self._since is not None:
            self.wall += time.perf_counter() - self._since[0]
            self.cpu += time.process_time() - self._since[1]
            self._since = None


def peak_memory() -> int:
    """Largest resident memory of this process in bytes since it was last reset."""
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak_memory() -> None:
    """Forgets the peak so far, where the system allows it (Linux): evaluation does not count."""
    try:
        _RESET.write_text("5")
    except OSError:
        return


class Recorder:
    """The callback of one run.

    Args:
        problem: The splits.
        seconds: Training time.
        send: Gets every event: ``start``, ``pause``, ``checkpoint``, ``result``.
        settles: Whether the run ends when it no longer improves.
    """

    def __init__(
        self, problem: Problem, seconds: float, send: Callable[[dict[str, Any]], None], *, settles: bool = False
    ) -> None:
        self._problem, self._seconds, self._send, self._settles = problem, seconds, send, settles
        self.clock = Clock()
        self._baseline = psutil.Process().memory_info().rss
        self._peak = 0
        self._next = FIRST
        self._best = float("inf")
        self._history: list[tuple[float, float]] = []
        self._latest: tuple[Predict, Predict | None, dict[str, Any]] | None = None
        self._evaluated = True
        self._found: dict[str, Any] = {}
        self._outside: dict[str, float] = {}

    def start(self) -> None:
        """Begins to time."""
        reset_peak_memory()
        self._send({"event": "start", "seconds": self.clock.wall})
        self.clock.start()

    def __call__(self, predict_proba: Predict, latent_variance: Predict | None = None, **facts: Any) -> None:
        """A checkpoint; see ``benchmarks.methods.base.Callback``."""
        self.clock.stop()
        self._latest, self._evaluated = (predict_proba, latent_variance, facts), False
        spent = self.clock.wall >= self._seconds
        if spent or self.clock.wall >= self._next:
            self._next = max(self.clock.wall * SPACING, self.clock.wall + FIRST)
            self._evaluate()
        if spent:
            raise OutOfTime("the training time is spent")
        if self._settles and self._evaluated and self._settled():
            raise OutOfTime("settled")
        self.clock.start()

    def finish(self) -> None:
        """Ends the run; what was passed over last is evaluated."""
        self.clock.stop()
        if not self._evaluated:
            self._evaluate()

    def log_densities(self) -> Tensor:
        """Log-density ``(M,)`` of every test outcome by the latest predictions, which are those that a user is left with."""
        assert self._latest is not None
        probs = self._latest[0](self._problem.test_x).double()
        return probs.clamp_min(LEAST).log().gather(1, self._problem.test_y[:, None])[:, 0]

    def _evaluate(self) -> None:
        assert self._latest is not None
        self._peak = max(self._peak, peak_memory())
        predict, variance, facts = self._latest
        problem, kind = self._problem, self._problem.train.kind
        self._send({"event": "pause", "seconds": self.clock.wall, "peak": self._peak - self._baseline})
        validation = scores(predict(problem.validation_x), problem.validation_y, kind)
        point = {
            "seconds": round(self.clock.wall, 4),
            "cpu": round(self.clock.cpu, 4),
            "nll": round(validation["nll"], 6),
        }
        self._send({"event": "checkpoint", "point": point, "facts": facts})
        better = validation["nll"] < self._best
        if better:  # what early stopping on the validation rows would return
            self._best = validation["nll"]
            self._found = self._result(predict) | {"at": point["seconds"]}
        if variance is not None:  # the latest there is, also where plugging in the mean predicts better
            self._outside = self._detection(variance)
        if better or (variance is not None and self._found):
            self._send({"event": "result", "result": self._found | self._outside})
        self._history.append((self.clock.wall, self._best))
        self._evaluated = True
        reset_peak_memory()
        self._send({"event": "start", "seconds": self.clock.wall})

    def _settled(self) -> bool:
        earlier = [best for seconds, best in self._history if seconds <= 0.5 * self.clock.wall]
        if self.clock.wall < PATIENCE or not earlier:
            return False
        return earlier[-1] - self._best < SETTLED * abs(self._best)

    def _result(self, predict: Predict) -> dict[str, Any]:
        problem = self._problem
        begun = time.perf_counter()
        probs = predict(problem.test_x)
        seconds = time.perf_counter() - begun
        found = scores(probs, problem.test_y, problem.train.kind) | {"predict_seconds": round(seconds, 4)}
        found["ood_entropy"] = auroc(entropy(probs), entropy(predict(problem.outside_x)))
        return found

    def _detection(self, variance: Predict) -> dict[str, float]:
        """How well the latent variance tells test inputs from those far from the data."""
        inside, outside = variance(self._problem.test_x), variance(self._problem.outside_x)
        return {"ood_variance": auroc(inside, outside)} if bool(torch.isfinite(inside).all()) else {}
