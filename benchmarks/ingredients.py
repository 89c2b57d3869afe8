"""What each ingredient of a default fit is worth, and the picture of successive halving, for the page on learning.

``python -m benchmarks.ingredients phoneme page-blocks0 cut visits`` fits each workload with one ingredient left out at a time, and
prints a table of test NLL and CPU seconds; ``--splits 0 1 2`` takes means over splits, ``--log FILE`` keeps every fit and does not repeat
it, ``--brief`` leaves out fits of every candidate to the end, which take six times as long. ``python -m benchmarks.ingredients --picture`` writes ``docs/images/halving.png``, from the comparison of a fit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

import itergp
from benchmarks.methods.model import other_likelihoods, outcome_probabilities, suite_model
from benchmarks.workloads import ORDERED, Problem, TrainingData, workloads
from itergp.learning import Comparison, InputColumns, Structure
from itergp.learning.structures import candidates
from itergp.likelihoods import CategoricalLikelihood
from itergp.models import GP

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "halving.png"
WORKLOADS = ("phoneme", "page-blocks0", "cut", "visits")
ALL, FULL = "everything", "every candidate learned to the end"
ROUNDS = ("8 steps,\nall", "6 steps more,\nthe best")


def _offered(data: TrainingData) -> tuple[Structure, ...]:
    return candidates("auto", InputColumns.plain(data.x.shape[1]), len(data.y))


def variants(data: TrainingData) -> dict[str, dict[str, Any]]:
    """Arguments of ``fit`` by what is left out."""
    offered, others = _offered(data), other_likelihoods(data)
    plain = [one for one in offered if one.scale == "as given"]
    matern = [Structure("matern32"), Structure("matern32", "ranks")]
    found: dict[str, dict[str, Any]] = {
        ALL: {"structures": "auto", "likelihoods": others},
        "one kernel (Matern-3/2)": {"structures": matern, "likelihoods": others},
        "inputs as given": {"structures": plain, "likelihoods": others},
    }
    if others:
        found["one likelihood"] = {"structures": "auto"}
    return found | {"no choice": {}}


def _preferred(data: TrainingData) -> GP:
    """A model with the likelihood that levels nearly always prefer, so that no candidate has to find it."""
    if data.kind == ORDERED:
        return GP(data.x, data.y, CategoricalLikelihood(data.num_outcomes))
    return suite_model(data)


def _score(model: GP, problem: Problem) -> float:
    with torch.no_grad():
        probs = outcome_probabilities(model.predict(problem.test_x), problem.train)
    return -float(probs.gather(1, problem.test_y[:, None]).clamp_min(1e-30).log().mean())


def measure(problem: Problem, **options: Any) -> dict[str, Any]:
    """Test NLL, CPU seconds and what was chosen by a fit."""
    model, began = suite_model(problem.train), time.process_time()
    result = itergp.fit(model, progress=False, **options)
    chosen = "" if result.comparison is None else result.comparison.chosen
    return {"nll": _score(model, problem), "cpu": time.process_time() - began, "chosen": chosen}


def measure_in_full(problem: Problem) -> dict[str, Any]:
    """The same without halving: every candidate learns to the end, and calibration's held-out rows choose."""
    began, best = time.process_time(), None
    for structure in _offered(problem.train):
        model = _preferred(problem.train)
        result = itergp.fit(model, progress=False, structures=[structure])
        calibration = result.calibration
        reached = -float("inf") if calibration is None else max(calibration.log_densities.values())
        if best is None or reached > best[0]:
            best = reached, _score(model, problem), str(structure)
    assert best is not None
    return {"nll": best[1], "cpu": time.process_time() - began, "chosen": best[2]}


def run(names: Sequence[str], splits: Sequence[int], log: Path | None, brief: bool) -> list[dict[str, Any]]:
    """Every fit that is not in the log."""
    known = [] if log is None or not log.exists() else [json.loads(line) for line in log.read_text().splitlines()]
    done = {(one["workload"], one["split"], one["without"]) for one in known}
    for in_full in (False,) if brief else (False, True):  # which takes six times as long, last
        for name, split in itertools.product(names, splits):
            problem = workloads()[name].problem(split, given=False)
            wanted = {FULL: {}} if in_full else variants(problem.train)
            for left_out, options in wanted.items():
                if (name, split, left_out) in done:
                    continue
                found = measure_in_full(problem) if in_full else measure(problem, **options)
                known.append({"workload": name, "split": split, "without": left_out, **found})
                if log is not None:
                    with log.open("a") as file:
                        file.write(json.dumps(known[-1]) + "\n")
    return known


def table(found: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """A line per workload, with means over splits."""
    known = [name for name in names if any(one["workload"] == name for one in found)]
    columns = list(dict.fromkeys(one["without"] for one in found if one["workload"] in known))
    lines = ["| data | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for name in known:
        cells = []
        for column in columns:
            of = [one for one in found if one["workload"] == name and one["without"] == column]
            mean = {key: sum(one[key] for one in of) / max(len(of), 1) for key in ("nll", "cpu")}
            cells.append(f"{mean['nll']:.4f}, {mean['cpu']:.0f} s" if of else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(axes: Any, comparison: Comparison) -> None:
    """How far each candidate was behind the best of each round."""
    last = max(len(trial.course) for trial in comparison.trials)
    for trial in comparison.trials:
        behind, error = zip(*trial.course, strict=True)
        chosen = trial.structure == comparison.chosen
        style = {"color": "black", "linewidth": 2.2, "zorder": 3} if chosen else {"alpha": 0.8}
        label = f"{trial.structure} (chosen)" if chosen else trial.structure
        marker = "o" if len(behind) == last else "x"
        axes.errorbar(range(len(behind)), behind, error, marker=marker, capsize=3, label=label, **style)
    axes.set_xticks(range(last), ROUNDS[:last])
    axes.set_xlim(-0.3, last - 0.7)
    axes.invert_yaxis()
    axes.set_xlabel("round (x: out after it)")
    axes.set_ylabel("behind the best of the round, nats per held-out row")
    axes.set_title("Successive halving, phoneme")
    axes.legend(fontsize=8)


def picture() -> None:
    """Writes the picture of a default fit's comparison."""
    model = suite_model(workloads()["phoneme"].problem(0, given=False).train)
    comparison = itergp.fit(model, structures="auto", calibrate=False, progress=False).comparison
    assert comparison is not None
    figure, axes = plt.subplots(figsize=(7.0, 4.4), layout="constrained")
    draw(axes, comparison)
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=WORKLOADS)
    parser.add_argument("--splits", nargs="+", type=int, default=[0])
    parser.add_argument("--log", type=Path)
    parser.add_argument("--brief", action="store_true", help="without fits of every candidate to the end")
    parser.add_argument("--picture", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.picture:
        picture()
        return
    print(table(run(options.workloads, options.splits, options.log, options.brief), options.workloads))


if __name__ == "__main__":
    main()
