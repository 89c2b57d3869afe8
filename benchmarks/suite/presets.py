"""What is run, in which order, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.methods import methods
from benchmarks.suite.worker import Run
from benchmarks.workloads import COUNTS, END_TO_END, INFERENCE, TUNED, Workload, workloads
from itergp.errors import InputError

_LAG = 3  # settings of importance 3 wait until the others have had this many seeds


@dataclass(frozen=True)
class Preset:
    """A choice of runs.

    Attributes:
        workloads: Names; None for all that are installed.
        methods: Names; None for all that are installed.
        rulesets: Names.
        seeds: How many.
        trials: Settings that every method tries in the tuned ruleset.
        share: Times the workload's training time.
        most_seconds: Training time of a run at most.
        budget_minutes: When to stop.
        importance: Least important settings that are run.
    """

    workloads: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    rulesets: tuple[str, ...] = (INFERENCE, END_TO_END)
    seeds: int = 3
    trials: int = 5
    share: float = 1.0
    most_seconds: float = 1e9
    budget_minutes: float = 60.0 * 24
    importance: int = 3


_SMALL = ("digits", "breast cancer", "mixture 1,000")
_REFERENCE = (
    "banana",
    "phoneme",
    "magic",
    "satimage",
    "penbased",
    "mnist",
    "digits",
    "mixture 1,000",
    "mixture 5,000",
    "mixture 20,000",
    "page-blocks0",
    "visits",
    "cut",
    "flights 20,000",
    "letter",
    "banana (noisy labels)",
    "mixture 5,000 (inputs times 20)",
    "mixture 5,000 (large output scale)",
    "mixture 5,000 (long lengthscale)",
)
_QUICK_METHODS = (
    "itergp",
    "itergp, Laplace",
    "dense Laplace",
    "IterNCGP-CG",
    "subset of data, 500 rows",
    "scikit-learn GP, 500 rows",
    "SVGP 100, Adam",
    "itergp.fit",
    "boosting (scikit-learn)",
    "logistic regression",
)

PRESETS = {
    "quick": Preset(_SMALL, _QUICK_METHODS, seeds=3, most_seconds=7.0, budget_minutes=5.0),
    "smoke": Preset(("breast cancer", "mixture 1,000"), _QUICK_METHODS, seeds=1, most_seconds=2.0, budget_minutes=1.5),
    "reference": Preset(_REFERENCE, seeds=3, share=0.5, budget_minutes=40.0),
    "overnight": Preset(rulesets=(INFERENCE, END_TO_END, TUNED), seeds=5, share=4.0, budget_minutes=60.0 * 12),
}


@dataclass(frozen=True)
class Refusal:
    """A run that does not take place, and why."""

    run: Run
    reason: str


def plan(preset: Preset, threads: int) -> tuple[list[Run], list[Refusal]]:
    """Runs in order: every workload's first seed before the second, important settings first; and what is refused.

    Raises:
        InputError: If a name is unknown.
    """
    known_workloads, known_methods = workloads(), methods()
    chosen = _choose("workload", preset.workloads, list(known_workloads))
    settings = _choose("method", preset.methods, list(known_methods))
    runs: list[tuple[tuple[int, ...], Run]] = []
    refusals: list[Refusal] = []
    for ruleset in _choose("ruleset", preset.rulesets, [INFERENCE, END_TO_END, TUNED]):
        for i, workload in enumerate(known_workloads[name] for name in chosen):
            seconds = min(preset.share * workload.seconds(ruleset), preset.most_seconds)
            for j, method in enumerate(known_methods[name] for name in settings):
                if method.importance > preset.importance or ruleset not in workload.rulesets:
                    continue
                trials = range(preset.trials if ruleset == TUNED else 1)
                for seed in range(preset.seeds):
                    for trial in trials:
                        run = Run(workload.name, method.name, ruleset, seed, trial, seconds, threads)
                        lag = seed + (_LAG if method.importance > 2 or ruleset == TUNED else 0)
                        order = (lag, method.importance, int(bool(workload.variant_of)), i, j, trial)
                        if reason := _refused(run, workload, known_methods):
                            refusals.append(Refusal(run, reason))
                        else:
                            runs.append((order, run))
    return [run for _, run in sorted(runs, key=lambda pair: pair[0])], refusals


def _choose(what: str, wanted: tuple[str, ...] | None, known: list[str]) -> list[str]:
    if wanted is None:
        return known
    if unknown := sorted(set(wanted) - set(known)):
        raise InputError(f"Every {what} must be one of {known}. Got {unknown}. See `python -m benchmarks list`.")
    return list(wanted)


def _refused(run: Run, workload: Workload, known_methods: dict) -> str | None:
    method = known_methods[run.method]
    if workload.missing or method.missing:
        return f"not installed: {', '.join([*workload.missing, *method.missing])}"
    rows, outcomes = shape(workload)
    return method.refuses(run.ruleset, workload.kind, rows, outcomes)


_SHAPES: dict[str, tuple[int, int]] = {}


def shape(workload: Workload) -> tuple[int, int]:
    """Training rows and outcomes of the first split."""
    if workload.name not in _SHAPES:
        _, y = workload.raw(0)
        validation, test = workload.splits(len(y))
        _SHAPES[workload.name] = len(y) - validation - test, int(y.max()) + (2 if workload.kind == COUNTS else 1)
    return _SHAPES[workload.name]
