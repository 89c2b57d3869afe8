"""The comparison of two revisions: what is paired, when a difference counts, and that equal revisions have none."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("pandas")
pytest.importorskip("sklearn")

from benchmarks.suite import paired, revisions
from benchmarks.suite.cli import main
from benchmarks.suite.presets import PRESETS
from benchmarks.workloads import INFERENCE
from itergp.errors import InputError

METHOD, WORKLOAD = "itergp", "breast cancer"
PRESET = replace(PRESETS["smoke"], workloads=(WORKLOAD,), methods=(METHOD,), rulesets=(INFERENCE,), most_seconds=60.0)


def line(densities: list[float] | None, seed: int = 0, **changes) -> dict:
    """A line of results; without densities, one of a run that failed."""
    found = {"ruleset": INFERENCE, "workload": "a", "method": METHOD, "seed": seed, "data": "x", "status": "finished"}
    found |= {"seconds": 2.0, "peak_bytes": 2.0**24}
    found |= {"status": "failed", "error": "ValueError: no"} if densities is None else {"log_density": densities}
    return found | changes


def change(first: list[list[float]], second: list[list[float]]) -> paired.Change:
    sides = ([line(values, seed) for seed, values in enumerate(side)] for side in (first, second))
    (found,) = paired.changes(*sides)
    return found


def test_differences_are_of_the_same_rows():
    """Rows that are hard for both tell nothing about the difference."""
    hard = [-9.0, -0.1, -4.0, -0.5]
    found = change([hard], [[value + gain for value, gain in zip(hard, (0.3, 0.1, 0.3, 0.1), strict=True)]])
    assert found.difference.mean == pytest.approx(0.2)
    assert found.difference.error == pytest.approx(np.std([0.3, 0.1, 0.3, 0.1], ddof=1) / 2.0)
    assert found.nll == pytest.approx(3.4)
    assert found.verdict == "better"


@pytest.mark.parametrize(
    ("gains", "error"),
    [
        (([0.2, 0.2], [0.4, 0.4], [0.3, 0.3]), 0.1 / np.sqrt(3.0)),  # splits differ more than rows tell
        (([0.0, 0.6], [0.0, 0.6], [0.0, 0.6]), 0.3 / np.sqrt(3.0)),  # and they happen to agree
    ],
)
def test_the_standard_error_is_the_larger_of_that_over_rows_and_that_over_splits(gains, error):
    found = change([[0.0, 0.0]] * 3, [list(values) for values in gains])
    assert found.difference.mean == pytest.approx(0.3)
    assert found.difference.error == pytest.approx(error)


@pytest.mark.parametrize(
    ("step", "spread", "verdict"),
    [(-0.1, 0.001, "worse"), (-0.1, 0.2, ""), (-0.004, 0.0001, ""), (-0.006, 0.0001, "worse"), (0.1, 0.001, "better")],
)
def test_a_difference_counts_where_it_is_clear_and_not_small(step, spread, verdict):
    """More than two standard errors, and more than half a per cent of the NLL, which is 1."""
    first = [-1.0] * 4
    second = [-1.0 + step + spread * sign for sign in (1.0, -1.0, 1.0, -1.0)]
    assert change([first], [second]).verdict == verdict


def test_ratios_are_of_the_second_to_the_first():
    first = [line([-1.0], seed, seconds=2.0) for seed in (0, 1)]
    second = [line([-1.0], seed, seconds=seconds, peak_bytes=2.0**25) for seed, seconds in enumerate((1.0, 4.0))]
    (found,) = paired.changes(first, second)
    assert found.seconds == (pytest.approx(1.0), pytest.approx(np.log(2.0)))
    assert found.memory == (pytest.approx(2.0), 0.0)
    (small,) = paired.changes([line([-1.0], peak_bytes=10.0)], [line([-1.0], peak_bytes=1000.0)])
    assert small.memory[0] == 1.0


def test_a_run_that_only_one_revision_can_do():
    (lost,) = paired.changes([line([-1.0]), line([-1.0], 1)], [line(None), line([-1.0], 1)])
    assert (lost.verdict, len(lost.splits)) == ("lost", 1)
    assert "seed 0: failed ValueError: no" in paired.shown([lost], "ab")
    (gained,) = paired.changes([line(None)], [line([-1.0])])
    assert (gained.verdict, gained.gained, gained.splits) == ("", (0,), ())
    assert "1 without results" in paired.shown([gained], "ab")
    json.dumps(gained.line("ab"), allow_nan=False)


def test_other_rows_are_refused():
    with pytest.raises(InputError, match="must have the same rows of a, seed 0"):
        paired.changes([line([-1.0])], [line([-1.0], data="y")])


def test_the_mean_weighs_every_workload_alike():
    one, other = change([[0.0] * 4], [[0.2, 0.0, 0.2, 0.0]]), change([[0.0] * 2], [[0.3, 0.3]])
    found = paired.overall([one, other])
    assert found.mean == pytest.approx(0.2)
    assert found.error == pytest.approx(one.difference.error / 2.0)


@pytest.mark.parametrize(
    ("second", "fail", "status"), [(-2.0, True, 1), (-2.0, False, 0), (-1.0, True, 0), (None, True, 1)]
)
def test_the_exit_status_tells_what_is_worse(monkeypatch, tmp_path, capsys, second, fail, status):
    sides = (
        [line([-1.0] * 3, seed) for seed in (0, 1)],
        [line([-1.0] * 3), line(None if second is None else [second] * 3, 1)],
    )
    sides[1][0]["log_density"] = [-1.0 if second is None else second] * 3
    monkeypatch.setattr(revisions, "compare", lambda *_, **__: paired.changes(*sides))
    monkeypatch.setattr(revisions, "resolve", lambda root, name: f"commit of {name}")
    path = tmp_path / "changes.jsonl"
    assert main(["compare", "v1", "v2", "--output", str(path), *["--fail"][:fail]]) == status
    (found,) = (json.loads(text) for text in path.read_text().splitlines())
    assert found["revisions"] == ["commit of v1", "commit of v2"]
    assert found["verdict"] == {-2.0: "worse", None: "lost", -1.0: ""}[second]
    assert "v2 less v1" in capsys.readouterr().out


def test_only_methods_of_this_package_are_compared_unless_others_are_named(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(revisions, "compare", lambda names, preset, threads, show: asked.append(preset) or [])
    assert main(["compare", "a", "b", "--seeds", "2"]) == 0
    assert main(["compare", "a", "b", "--methods", "logistic regression", "--most-seconds", "3"]) == 0
    assert "itergp.fit" in asked[0].methods
    assert "logistic regression" not in asked[0].methods
    assert (asked[0].seeds, asked[0].workloads, asked[0].most_seconds) == (2, PRESETS["quick"].workloads, float("inf"))
    assert (asked[1].methods, asked[1].most_seconds) == (("logistic regression",), 3.0)


# ------------------------------------------------------------------------------------------------ with git
def git(folder, *words: str) -> None:
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Three revisions of the package: as it is, the same again, and with predictions mixed with a guess."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(revisions.ROOT / "itergp", folder / "itergp", ignore=shutil.ignore_patterns("__pycache__"))
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "as it is")
    git(folder, "tag", "first")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "the same")
    git(folder, "tag", "same")
    module = folder / "itergp" / "diagnostics" / "__init__.py"
    guess = "\n_right = class_probabilities\ndef class_probabilities(probs):\n"
    guess += "    probs = _right(probs)\n    return 0.9 * probs + 0.1 / probs.shape[-1]\n"
    module.write_text(module.read_text() + guess)
    git(folder, "commit", "--quiet", "--all", "--message", "worse")
    git(folder, "tag", "worse")
    return folder


def test_an_unknown_revision_is_refused_before_anything_runs(repository):
    with pytest.raises(InputError, match="'nowhere' must be a revision of the repository"):
        revisions.compare(["first", "nowhere"], PRESET, 1, repository)
    with pytest.raises(InputError, match="There must be something to run"):
        revisions.compare(["first", "same"], replace(PRESET, methods=("itergp.fit",)), 1, repository)


@pytest.mark.slow
def test_equal_revisions_do_not_differ_and_nothing_is_left_behind(repository):
    shown: list[str] = []
    (found,) = revisions.compare(["first", "same"], PRESET, 1, repository, shown.append)
    assert (found.difference.mean, found.difference.error, found.verdict) == (0.0, 0.0, "")
    assert len(found.splits) == len(shown) == 1
    assert 0.2 < found.seconds[0] < 5.0
    trees = subprocess.run(
        ["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True, check=True
    )
    assert len(trees.stdout.splitlines()) == 1


@pytest.mark.slow
def test_a_revision_with_worse_predictions_is_worse(repository):
    (found,) = revisions.compare(["first", "worse"], PRESET, 1, repository, lambda text: None)
    assert found.verdict == "worse"
    assert found.splits[0].nll[1] > found.splits[0].nll[0]


@pytest.mark.slow
def test_a_revision_that_the_suite_does_not_run_with_is_told(repository):
    module = repository / "itergp" / "__init__.py"
    module.write_text("raise ImportError('old and odd')\n")
    git(repository, "commit", "--quiet", "--all", "--message", "broken")
    with pytest.raises(InputError, match="old and odd"):
        revisions.compare(["first", "HEAD"], PRESET, 1, repository, lambda text: None)
