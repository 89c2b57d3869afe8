"""Draws many random models and says which are answered wrongly: ``python tests/random_run.py 10000 --seed 7000 --log FILE``.

Models come in blocks, each with a seed of its own, from ``--seed`` upwards. The log has one line of JSON for each block and for
each fault; a block that it has is not drawn again, so that a run which was interrupted goes on where it was. With ``--laws``
models are held to the laws of ``random_laws.py``, in place of a reference.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from dense_reference import check
from hypothesis import HealthCheck, Phase, given, seed, settings
from random_laws import LAWS, Skip
from random_models import NoModel, Spec, specs

from itergp import InputError, SolverError
from itergp.solvers.run.budget import Budget

BLOCK = 250


def process_seconds(budget: Budget) -> float:
    """Time of this process since it was first asked for: whoever shares the machine ends no solve."""
    return time.process_time() - vars(budget).setdefault("first_asked", time.process_time())


def outcome_of_law(name: str, spec: Spec) -> str:
    """Holds a model to a law: ``"right"``, ``"skipped: .."`` or ``"refused: .."``.

    Raises:
        Exception: If it does not hold, or an error is not the package's.
    """
    try:
        LAWS[name](spec)
    except Skip as reason:
        return f"skipped: {reason}"
    except (InputError, SolverError, NoModel) as error:
        return f"refused: {str(error)[:70]}"
    return "right"


def against_laws(spec: Spec) -> Iterator[tuple[str, Callable[[], str]]]:
    """Every law by its name."""
    for name in LAWS:
        yield f"{name}: ", lambda name=name: outcome_of_law(name, spec)


def against_reference(spec: Spec) -> Iterator[tuple[str, Callable[[], str]]]:
    """The comparison with dense algebra."""
    yield "", lambda: check(spec)


def draw(
    number: int, count: int, checks: Callable[[Spec], Iterator[tuple[str, Callable[[], str]]]] = against_reference
) -> tuple[Counter[str], list[dict[str, str]]]:
    """Checks one block of models.

    Args:
        number: The block's seed.
        count: Number of models.
        checks: What a model is held to.

    Returns:
        How many had which outcome, and the faults: what was wrong, and the model as it is written.
    """
    outcomes: Counter[str] = Counter()
    faults: list[dict[str, str]] = []
    seen: set[Spec] = set()

    @seed(number)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(specs())
    def one(spec: Spec) -> None:
        if spec in seen:
            outcomes["the same again"] += 1
            return
        seen.add(spec)
        for name, held in checks(spec):
            try:
                outcome = held()
            except Exception as error:  # all kinds of faults are wanted, not the smallest of the first
                outcome = "wrong"
                faults.append({"fault": f"{name}{type(error).__name__}: {error}", "spec": repr(spec)})
            outcomes[name + outcome] += 1
            if outcome.startswith("no reference"):  # which the generator should not make
                faults.append({"fault": outcome, "spec": repr(spec)})

    with warnings.catch_warnings(), mock.patch.object(Budget, "seconds", process_seconds):
        warnings.simplefilter("ignore")
        one()
    return outcomes, faults


def _read(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def summary(lines: list[dict]) -> str:
    """Totals of a log, the commonest outcomes first."""
    blocks = [line for line in lines if "outcomes" in line]
    total: Counter[str] = Counter()
    for block in blocks:
        total.update(block["outcomes"])
    seconds = sum(block["seconds"] for block in blocks)
    wrong = sum(count for outcome, count in total.items() if outcome.endswith("wrong"))
    text = [f"{total.total()} checks, {len(blocks)} blocks, {seconds:.0f} s of CPU, {wrong} wrong"]
    return "\n".join(text + [f"{count:7d} {outcome}" for outcome, count in total.most_common()])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=int, nargs="?", default=0, help=f"how many, in blocks of {BLOCK}")
    parser.add_argument("--seed", type=int, default=0, help="of the first block")
    parser.add_argument("--log", type=Path, required=True, help="file that lines are added to")
    parser.add_argument("--laws", action="store_true", help="hold models to laws, in place of a reference")
    chosen = parser.parse_args()
    done = {line["block"] for line in _read(chosen.log) if "outcomes" in line}
    for number in range(chosen.seed, chosen.seed - (-chosen.models // BLOCK)):
        if number in done:
            continue
        began = time.process_time()
        outcomes, faults = draw(number, BLOCK, against_laws if chosen.laws else against_reference)
        lines = [{"block": number, **fault} for fault in faults]
        lines.append({"block": number, "seconds": time.process_time() - began, "outcomes": dict(outcomes)})
        with chosen.log.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        print(f"block {number}: {len(faults)} wrong of {outcomes.total()}", flush=True)
    lines = _read(chosen.log)
    print(summary(lines))
    return int(any("fault" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
