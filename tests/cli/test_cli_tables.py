"""From a table to a saved model to predictions on the command line; what goes wrong is one sentence and an exit code."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas
import pytest
from helpers import make_model
from rich.console import Console

from itergp import SolverError
from itergp.cli import main
from itergp.cli.learning import TASKS
from itergp.cli.progress import FitProgress
from itergp.records import FitRecord
from itergp.sklearn import load
from itergp.tables import TableFile, guess_task

QUICK = ["--quiet", "--max-iterations", "3"]


def make_table(target: str, num_rows: int = 60) -> pandas.DataFrame:
    rng = np.random.default_rng(0)
    table = pandas.DataFrame({"age": rng.uniform(20, 80, num_rows), "height": rng.normal(1.7, 0.1, num_rows)})
    signal = np.sin(table["age"] / 10.0)
    columns = {
        "class": np.where(signal > 0, "yes", "no"),
        "grade": np.array(["poor", "fair", "good"])[np.digitize(signal, [-0.4, 0.4])],
        "count": rng.poisson(20.0 * np.exp(signal)),
        "value": 100.0 + 10.0 * signal + rng.normal(size=num_rows),
    }
    return table.assign(**{target: columns[target]})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with one table per target."""
    for target in ("class", "grade", "count", "value"):
        make_table(target).to_csv(tmp_path / f"{target}.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


CASES = {
    "class": (["--target", "class"], "GPClassifier", ["prediction", "probability_no", "probability_yes"]),
    "grade": (
        ["--target", "grade", "--task", "ordinal", "--levels", "poor", "fair", "good"],
        "GPOrdinalClassifier",
        ["prediction", "probability_fair", "probability_good", "probability_poor"],
    ),
    "count": (
        ["--target", "count", "--noise", "negative_binomial"],
        "GPCountRegressor",
        ["prediction", "std", "quantile_0.05", "quantile_0.5", "quantile_0.95"],
    ),
    "value": (
        ["--target", "value", "--noise", "student_t", "--kernel", "rbf"],
        "GPRegressor",
        ["prediction", "std", "quantile_0.05", "quantile_0.5", "quantile_0.95"],
    ),
}


@pytest.mark.parametrize("target", CASES)
def test_fit_predict_and_info(target, folder, capsys):
    words, estimator, columns = CASES[target]
    assert main(["fit", f"{target}.csv", *words, *QUICK, "--save", "m.safetensors"]) == 0
    said, progress = capsys.readouterr()
    assert progress == ""
    assert f"{estimator}: " in said
    assert "On 12 held-out rows, which it had not seen:\n" in said
    assert re.search(r"itergp +-?\d+\.\d+ ± \d+\.\d+ ", said)
    assert re.search(r"baseline +-?\d+\.\d+ ± ", said)
    assert not any(
        word in said for word in ("kernel pass", "tolerance", "latent", "certif", "solve", "condition", "matern")
    )
    assert "Predictions are now made from all 60 rows" in said
    assert ("The task was guessed" in said) == ("--task" not in words)

    assert main(["predict", "m.safetensors", f"{target}.csv"]) == 0
    printed = pandas.read_csv(io.StringIO(capsys.readouterr().out))
    assert list(printed.columns) == columns
    assert main(["predict", "m.safetensors", f"{target}.csv", "--output", "out.csv", "--with-inputs"]) == 0
    assert "60 predictions written to out.csv." in capsys.readouterr().err
    written = pandas.read_csv("out.csv")
    assert list(written.columns) == ["age", "height", target, *columns]
    pandas.testing.assert_frame_equal(written[columns], printed)
    model = load("m.safetensors")
    expected = model.predict(make_table(target)[["age", "height"]])
    if expected.dtype.kind == "f":  # the table's memory layout is not the frame's
        np.testing.assert_allclose(written["prediction"], expected, rtol=1e-12)
    else:
        np.testing.assert_array_equal(written["prediction"].astype(expected.dtype), expected)
        probs = model.predict_proba(make_table(target)[["age", "height"]])
        np.testing.assert_allclose(written[columns[1:]], probs, rtol=1e-5)
        assert all(len(text) < 14 for text in pandas.read_csv("out.csv", dtype=str)[columns[1]])  # no 17 digits

    assert main(["info", "m.safetensors"]) == 0
    facts = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert facts["kind"].strip() == estimator
    assert facts["training rows"].strip() == "60"
    assert facts["columns"].strip() == "2 (age, height)"
    assert facts["posterior"].strip().startswith("variational, rank ")
    assert "file format 2" in facts["written by"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_predictions_are_written_a_batch_of_rows_at_a_time(kind, folder, capsys, monkeypatch):
    """Also where a column has no value in the first of them."""
    assert main(["fit", "class.csv", "--target", "class", *QUICK, "--save", "m"]) == 0
    new = make_table("class").assign(note=[None] * 40 + ["late"] * 20, day=[np.nan] * 30 + [1.0] * 30)
    new.to_parquet("new.parquet")
    for rows in (1000, 17):
        monkeypatch.setattr(TableFile.batches, "__defaults__", (None, rows))
        assert main(["predict", "m", "new.parquet", "--output", f"{rows}.{kind}", "--with-inputs"]) == 0
        assert f"60 predictions written to {rows}.{kind}." in capsys.readouterr().err
    whole, parts = (getattr(pandas, f"read_{kind}")(f"{rows}.{kind}") for rows in (1000, 17))
    pandas.testing.assert_frame_equal(parts, whole, rtol=1e-5)
    assert whole["note"].isna().sum() == 40


def test_options(folder, capsys):
    make_table("value").assign(name="x", w=1.0, other=0.5).to_csv("more.csv", index=False)
    words = ["fit", "more.csv", "--target", "value", "--drop", "name", "other", "--weights", "w", "--test-size", "0"]
    assert main([*words, *QUICK, "--save", "m"]) == 0
    assert "held-out" not in capsys.readouterr().out
    assert load("m").feature_names_in_.tolist() == ["age", "height"]
    assert main(["fit", "more.csv", "--target", "value", "--features", "height", *QUICK, "--save", "m"]) == 0
    assert load("m").feature_names_in_.tolist() == ["height"]
    capsys.readouterr()
    assert main(["predict", "m", "more.csv", "--quantiles", "0.25", "0.75"]) == 0
    assert capsys.readouterr().out.startswith("prediction,std,quantile_0.25,quantile_0.75\n")


def test_a_report_is_judged_by_the_rows_that_are_held_out(folder, capsys):
    """Those of the printed scores; without such rows a copy learns from a part of the others."""
    pytest.importorskip("matplotlib")
    make_table("value").assign(w=np.where(np.arange(60) % 3, 1.0, 4.0)).to_csv("weighted.csv", index=False)
    words = ["fit", "weighted.csv", "--target", "value", "--weights", "w", "--kernel", "rbf", *QUICK]
    assert main([*words, "--report", "out.html", "--save", "m"]) == 0
    said, page = capsys.readouterr().out, Path("out.html").read_text(encoding="utf-8")
    assert said.index("Report written to out.html.") < said.index("Predictions are now made from all 60 rows.")
    assert "12 rows that the model has not seen judge." in page
    printed = re.search(r"itergp +-(\d+\.\d+ ± \d+\.\d+)", said)[1]
    assert printed in page  # the same rows, weights and model
    assert load("m").model_.train_targets.shape == (60,)
    assert main([*words, "--report", "own.html", "--test-size", "0"]) == 0
    assert "A copy of the estimator learned" in Path("own.html").read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_is_refused_before_learning(folder, capsys):
    pytest.importorskip("matplotlib")
    assert main(["fit", "value.csv", "--target", "value", *QUICK, "--report", "nowhere/out.html"]) == 2
    said, error = capsys.readouterr()
    assert "`--report` must be a file in a folder that exists. Got 'nowhere/out.html'" in error
    assert said == ""


def test_exposures_of_counts(folder, capsys):
    rng = np.random.default_rng(1)
    age, years = rng.uniform(20, 80, 80), rng.uniform(0.5, 5.0, 80)
    table = pandas.DataFrame({"age": age, "years": years, "claims": rng.poisson(years * np.exp(np.sin(age / 10.0)))})
    table.to_csv("claims.csv", index=False)
    words = [
        "fit",
        "claims.csv",
        "--target",
        "claims",
        "--task",
        "counts",
        "--exposure",
        "years",
        "--save",
        "m.safetensors",
    ]
    assert main([*words, *QUICK]) == 0
    assert "counts, 80 rows, 1 columns" in capsys.readouterr().out  # years are no input
    estimator = load("m.safetensors")
    found = {}
    for name, more in {"rates": [], "counts": ["--exposure", "years"]}.items():
        assert main(["predict", "m.safetensors", "claims.csv", *more]) == 0
        found[name] = pandas.read_csv(io.StringIO(capsys.readouterr().out))["prediction"].to_numpy()
    np.testing.assert_allclose(found["counts"], found["rates"] * years, rtol=1e-6)
    np.testing.assert_allclose(found["counts"], estimator.predict(table[["age"]], exposure=years), rtol=1e-6)

    assert main(["fit", "class.csv", "--target", "class", "--exposure", "age", *QUICK]) == 2
    assert "`--exposure` must be left out for classification. Got 'age'." in capsys.readouterr().err
    assert main(["predict", "m.safetensors", "claims.csv", "--exposure", "yeers"]) == 2
    assert "Did you mean 'years'?" in capsys.readouterr().err
    assert main(["fit", "class.csv", "--target", "class", "--save", "c.safetensors", *QUICK]) == 0
    assert main(["predict", "c.safetensors", "class.csv", "--exposure", "age"]) == 2
    assert "must be left out for GPClassifier" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Inputs should say something")  # ages that do not
def test_times_with_events(folder, capsys):
    rng = np.random.default_rng(1)
    age, failure, left = rng.uniform(20, 80, 80), rng.weibull(2.0, 80), rng.uniform(0.5, 2.0, 80)
    died, days = failure <= left, np.minimum(failure, left)
    table = pandas.DataFrame({"age": age, "died": died.astype(int), "days": days, "status": 1 + died})
    table.to_csv("times.csv", index=False)
    words = ["fit", "times.csv", "--target", "days", *QUICK, "--save", "m", "--features", "age"]
    assert main([*words, "--event", "died"]) == 0
    said = capsys.readouterr().out
    assert "GPSurvival: survival, 80 rows, 1 columns" in said
    assert "as there is an --event" in said
    assert "On 16 held-out rows, which it had not seen:" in said
    assert re.search("log-density +behind the best +concordance", said)
    assert main(["predict", "m", "times.csv"]) == 0
    printed = pandas.read_csv(io.StringIO(capsys.readouterr().out))
    assert list(printed.columns) == ["prediction", "quantile_0.05", "quantile_0.5", "quantile_0.95"]
    np.testing.assert_allclose(printed["prediction"], load("m").predict(table[["age"]]), rtol=1e-9)
    assert main([*words, "--event", "died", "--noise", "log_logistic"]) == 0
    assert load("m").likelihood_ == "log_logistic"
    capsys.readouterr()
    for more, what in (
        (["--event", "status"], "Code them: status == 2"),
        (["--task", "survival"], "`--event` must be given for survival"),
        (["--event", "died", "--task", "counts"], "Got 'died' with --task counts"),
        (["--event", "die"], "Did you mean 'died'?"),
    ):
        assert main([*words, *more]) == 2
        assert what in capsys.readouterr().err
    assert main(["predict", "m", "times.csv", "--exposure", "age"]) == 2
    assert "must be left out for GPSurvival" in capsys.readouterr().err


def test_what_was_chosen_is_named(folder, capsys):
    table = make_table("value", 160).drop(columns="value")
    mean = 4.0 * np.exp(1.5 * np.sin(table["age"] / 10.0))
    counts = np.random.default_rng(0).negative_binomial(2.0, 2.0 / (2.0 + mean))
    table.assign(count=counts).to_csv("count.csv", index=False)
    assert main(["fit", "count.csv", "--target", "count", *QUICK, "--time-limit", "60", "--verbose"]) == 0
    said = capsys.readouterr().out
    assert re.search(r", \w+ .*  chosen\n", said)
    assert "counts, as it has " in said
    assert main(["fit", "count.csv", "--target", "count", "--kernel", "rbf", *QUICK, "--verbose", "--save", "m"]) == 0
    said = capsys.readouterr().out
    assert "Structures compared" not in said
    assert "kernel passes" in said
    assert load("m").distribution == "negative_binomial"  # nothing competes: what the target looks like


def test_numbers_that_rarely_repeat_are_real_values(folder, capsys):
    make_table("value").assign(value=lambda t: (1000 * t["value"]).round().astype(int)).to_csv("whole.csv", index=False)
    assert main(["fit", "whole.csv", "--target", "value", *QUICK]) == 0
    assert (
        "regression, as it has 60 different whole numbers that rarely repeat; choose by --task."
        in capsys.readouterr().out
    )


def test_groups_are_held_out_together(folder, capsys):
    table = make_table("value").assign(person=[f"p{i % 15}" for i in range(60)])
    table.to_csv("people.csv", index=False)
    assert main(["fit", "people.csv", "--target", "value", "--together", "person", *QUICK, "--save", "m"]) == 0
    assert "On 12 held-out rows" in capsys.readouterr().out  # three people of four rows
    assert load("m").feature_names_in_.tolist() == ["age", "height"]
    assert main(["fit", "people.csv", "--target", "value", "--group", "person", *QUICK, "--save", "m"]) == 0
    assert load("m").feature_names_in_.tolist() == ["age", "height", "person"]
    assert load("m").groups == ["person"]


def test_the_separator_can_be_said(folder, capsys):
    make_table("value").to_csv("odd.txt", index=False, sep="&")
    assert main(["fit", "odd.txt", "--target", "value", *QUICK]) == 2
    capsys.readouterr()
    assert main(["fit", "odd.txt", "--target", "value", "--sep", "&", *QUICK, "--save", "m"]) == 0
    assert "60 rows, 2 columns" in capsys.readouterr().out
    assert main(["predict", "m", "odd.txt", "--sep", "&"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 61


def test_compare(folder, capsys):
    words = ["compare", "class.csv", "--target", "class", "--folds", "2", "--max-iterations", "2"]
    assert main(words) == 0
    said, progress = capsys.readouterr()
    assert "classification, 60 rows, 2 columns, 2 classes" in said
    assert "The task was guessed from the target 'class': classification, as it has 2 different labels" in said
    lines = {line.split("  ")[0]: line for line in said.splitlines()}
    assert {"itergp", "boosting (scikit-learn)", "linear model", "baseline"} <= lines.keys()
    assert sum(" best " in line for name, line in lines.items() if name) == 1
    assert "itergp, part 2 of 2 ..." in progress

    assert main([*words, "--json", "--quiet"]) == 0
    said, progress = capsys.readouterr()
    assert progress == ""
    found = json.loads(said)
    assert (found["task"], found["score"], found["rows"], found["folds"]) == ("classification", "accuracy", 60, 2)
    results = {result["method"]: result for result in found["results"]}
    assert results[found["best"]]["behind"] == {"mean": 0.0, "standard_error": 0.0}
    assert all(result["behind"]["mean"] >= 0.0 for result in results.values())
    assert main([*words, "--folds", "1"]) == 2
    assert "`num_folds` must be 2 to 60, the number of rows or groups. Got 1." in capsys.readouterr().err


def test_without_a_terminal_no_progress_is_drawn(folder, capsys):
    assert main(["fit", "value.csv", "--target", "value", "--max-iterations", "2"]) == 0
    said, progress = capsys.readouterr()
    assert progress == ""
    assert "Nothing was saved. --save FILE keeps the model" in said


def test_progress_speaks_of_what_a_fit_does_and_not_of_solvers():
    stream = io.StringIO()
    with FitProgress(console=Console(file=stream, force_terminal=True, width=120)) as progress:
        for _ in range(2):
            progress.begin("structures", unit="candidate", total=4)
            progress.advance("structures", 1)
            progress.end("structures")
        progress.begin("refinement", unit="step", total=30)
        progress.advance("refinement", 7)
        progress(FitRecord("refinement", 0, 0.1, -0.5, {}))
        progress.end("refinement")
    drawn = stream.getvalue()
    for words in (
        "choosing a model",
        "comparing the best",
        "4 models",
        "learning",
        "30 steps",
        "preparing predictions",
    ):
        assert words in drawn
    assert not any(word in drawn for word in ("pass", "gap", "objective", "candidate", "refinement", "structures"))


def test_the_listener_of_progress_is_no_setting_of_the_model(folder, capsys):
    """What is saved has the arguments that the options say."""
    words = ["fit", "value.csv", "--target", "value", *QUICK, "--time-limit", "60", "--save", "m"]
    assert main(words) == 0
    assert load("m").fit_options == {"time_limit": 60.0}


def test_info_of_a_model_that_is_not_an_estimators(folder, capsys):
    model = make_model("bernoulli-logit")
    model.save("m")
    assert main(["info", "m"]) == 0
    assert "none: it is found on the first prediction" in capsys.readouterr().out
    model.condition()
    model.save("m")
    assert main(["info", "m"]) == 0
    said = capsys.readouterr().out
    assert "model of class SimpleGP" in said
    assert "nats per row" in said


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["a", "b"], "classification"),
        ([True, False], "classification"),
        ([1, 2, 3], "classification"),
        ([0.0, 1.0], "classification"),
        (pandas.Categorical(["low", "high"], ["low", "high"], ordered=True), "ordinal"),
        (range(30), "regression"),  # whole numbers that do not repeat
        (range(-15, 15), "regression"),
        ([0.5, 1.5], "regression"),
        ([*range(10)] * 20, "classification"),  # digits
        ([1, 2, 3, 4, 5] * 20, "classification"),
        (np.random.default_rng(0).poisson(3.0, 200), "counts"),
        (np.random.default_rng(0).integers(18, 80, 500), "regression"),  # ages
    ],
)
def test_the_task_is_guessed(values, task):
    guess = guess_task(pandas.Series(values))
    assert guess.task == task
    assert guess.reason
    assert task in TASKS


def test_the_likelihood_is_guessed():
    rng = np.random.default_rng(0)
    for values, likelihood in (
        (rng.poisson(2.0, 300), "poisson"),
        (rng.negative_binomial(1, 0.2, 300), "negative_binomial"),
        (rng.normal(size=300), "gaussian"),
        (rng.standard_cauchy(300), "student_t"),
    ):
        assert guess_task(pandas.Series(values)).likelihood == likelihood


# ----------------------------------------------------------------------- any table
def people(num_rows: int = 60) -> pandas.DataFrame:
    """Text, truth values, dates, identifiers and gaps."""
    table = make_table("value", num_rows)
    rng = np.random.default_rng(1)
    return table.assign(
        name=[f"Müller {i}" for i in range(num_rows)],
        city=rng.choice(["Oslo", "Zürich", "Rome"], num_rows),
        born=pandas.date_range("1950-01-01", periods=num_rows, freq="97D").strftime("%Y-%m-%d"),
        member=rng.random(num_rows) > 0.5,
        height=table["height"].where(table.index % 7 != 0),
        one=1,
    )


@pytest.mark.parametrize(
    "dialect", ["plain", "semicolons and commas", "tabs in Windows", "UTF-16", "with a mark", "gzip"]
)
def test_any_table_in_any_dialect(dialect, folder, capsys):
    options = {
        "plain": {},
        "semicolons and commas": {"sep": ";", "decimal": ","},
        "tabs in Windows": {"sep": "\t", "encoding": "cp1252"},
        "UTF-16": {"encoding": "utf-16"},
        "with a mark": {"encoding": "utf-8-sig", "sep": "|"},
        "gzip": {},
    }[dialect]
    path = "people.csv.gz" if dialect == "gzip" else "people.csv"
    people().to_csv(path, index=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["fit", path, "--target", "value", *QUICK, "--save", "m"]) == 0
        said = capsys.readouterr().out
        assert main(["predict", "m", path, "--output", "out.csv"]) == 0
    assert "GPRegressor: regression, 60 rows, 5 columns" in said
    assert "regression, as it has numbers that are not whole; choose by" in said
    estimator = load("m")
    roles = {column.name: column.role for column in reversed(estimator.columns_)}
    assert roles == {
        "age": "numeric", "height": "numeric", "city": "categorical", "born": "date", "member": "categorical",
    }  # fmt: skip
    assert next(c for c in estimator.columns_ if c.name == "city").levels == ("Oslo", "Rome", "Zürich")
    np.testing.assert_allclose(
        pandas.read_csv("out.csv")["prediction"], estimator.predict(people()[estimator.feature_names_in_]), rtol=1e-9
    )


def test_parquet(folder, capsys):
    pytest.importorskip("pyarrow")
    make_table("value").to_parquet("value.parquet")
    assert main(["fit", "value.parquet", "--target", "value", *QUICK, "--save", "m"]) == 0
    assert main(["predict", "m", "value.parquet", "--output", "out.parquet"]) == 0
    assert main(["predict", "m", "value.csv", "--output", "out.csv"]) == 0
    pandas.testing.assert_frame_equal(pandas.read_parquet("out.parquet"), pandas.read_csv("out.csv"), rtol=1e-9)


# ---------------------------------------------------------------------- errors
FIT = ["fit", "class.csv", "--target", "class", *QUICK]
ERRORS = {
    "no file": (["fit", "no.csv", "--target", "y"], 2, "The data must be a file. Got 'no.csv', which is none. Check"),
    "no target": (["fit", "class.csv", "--target", "klass"], 2, "Got none of that name. Did you mean 'class'?"),
    "no feature": ([*FIT, "--features", "weight"], 2, "The data must have the column(s) 'weight' for the features."),
    "no weights": (
        [*FIT, "--weights", "w"],
        2,
        "the column(s) 'w' for the weights, exposures and what is held out together. Got none of that name. It has 'age', ",
    ),
    "no features left": (
        [*FIT, "--drop", "age", "height"],
        2,
        "must have columns to predict from. Got the target alone",
    ),
    "free text": (
        ["fit", "prose.csv", "--target", "class", *QUICK],
        2,
        "Column 'remarks' of `X` must be numbers, levels or",
    ),
    "a target with gaps": (
        ["fit", "missing.csv", "--target", "age", *QUICK],
        2,
        "Got none in 1 of 60 row(s), first in row 0.",
    ),
    "a target of one value": (
        ["fit", "prose.csv", "--target", "one", *QUICK],
        2,
        "The target must vary. Got 1 in every row.",
    ),
    "a target of names": (
        ["fit", "prose.csv", "--target", "remarks", *QUICK],
        2,
        "labels that repeat. Got 60 different values",
    ),
    "a kernel": ([*FIT, "--kernel", "RFB"], 2, "Got 'RFB'. Did you mean 'rbf'?"),
    "noise of classes": ([*FIT, "--noise", "gaussian"], 2, "`--noise` must be left out for classification."),
    "levels of classes": ([*FIT, "--levels", "no", "yes"], 2, "`--levels` must be left out for classification."),
    "an unknown level": (
        ["fit", "grade.csv", "--target", "grade", "--task", "ordinal", "--levels", "poor", "good", *QUICK],
        2,
        "Labels must be among the classes ['poor', 'good']",
    ),
    "all held out": ([*FIT, "--test-size", "1"], 2, "`--test-size` must be at least 0 and below 1. Got 1.0."),
    "regression of text": (
        ["fit", "class.csv", "--target", "class", "--task", "regression"],
        2,
        "`y` must be numbers.",
    ),
    "a device": ([*FIT, "--device", "cuda:9"], 2, "`device` must be a device that torch can use. Got 'cuda:9'."),
    "no folder to save to": ([*FIT, "--save", "no/m"], 2, "`path` must be a file that can be written. Got 'no/m'"),
    "an empty table": (
        ["fit", "header.csv", "--target", "class"],
        2,
        "must have rows. Got 'header.csv' with a header only",
    ),
    "an empty file": (["fit", "empty.csv", "--target", "class"], 2, "cannot be read as one (No columns to parse from"),
    "no text file": (["fit", "binary.csv", "--target", "class"], 2, "cannot be read as one ("),
    "no model": (["predict", "no.m", "class.csv"], 2, "Got 'no.m', which is not a file. Check the name."),
    "no model's info": (["info", "no.m"], 2, "Got 'no.m', which is not a file. Check the name."),
    "a table as a model": (["predict", "class.csv", "class.csv"], 2, "which is damaged or of another kind"),
    "infinite values": (
        ["fit", "infinite.csv", "--target", "class", *QUICK],
        2,
        "Column 'age' of `X` must be finite. Got inf in row 7",
    ),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_are_one_sentence_and_an_exit_code(kind, folder, capsys):
    (folder / "header.csv").write_text("age,class\n")
    (folder / "empty.csv").write_text("")
    (folder / "binary.csv").write_bytes(bytes(range(128, 256)) * 10)
    table = make_table("class")
    remarks = [f"a long text of many words that somebody wrote about row {i}" for i in range(len(table))]
    table.assign(remarks=remarks, one=1).to_csv("prose.csv", index=False)
    table.assign(age=table["age"].where(table.index != 0)).to_csv("missing.csv", index=False)
    table.assign(age=table["age"].where(table.index != 7, np.inf)).to_csv("infinite.csv", index=False)
    words, code, sentence = ERRORS[kind]
    assert main(words) == code
    error = capsys.readouterr().err
    assert error.startswith("itergp: ")
    assert sentence in error
    assert error.count("\n") == 1


def test_columns_that_the_model_needs(folder, capsys):
    assert main([*FIT, "--save", "m"]) == 0
    make_table("class").drop(columns="age").to_csv("less.csv", index=False)
    assert main(["predict", "m", "less.csv"]) == 2
    assert "must have the column(s) 'age' for the model. Got none of that name." in capsys.readouterr().err
    assert main(["predict", "m", "class.csv", "--output", "no/out.csv"]) == 2
    assert "The output must be a file that can be written. Got 'no/out.csv'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (SolverError("A matrix failed. Use float64."), 1, "itergp: A matrix failed. Use float64.\n"),
        (KeyboardInterrupt("Ctrl-C"), 130, "itergp: Interrupted.\n"),
        (
            ZeroDivisionError("division by zero\nsecond line"),
            1,
            "itergp: Something went wrong: ZeroDivisionError (division by zero). Run `itergp --traceback info ...` to see "
            "where.\n",
        ),
        (BrokenPipeError("Broken pipe"), 0, ""),
    ],
)
def test_failures(error, code, sentence, folder, capsys, monkeypatch):
    def fail(_):
        raise error

    monkeypatch.setattr("itergp.cli.info.read_file", fail)
    monkeypatch.setattr(sys.stderr, "close", lambda: None, raising=False)
    assert main(["info", "m"]) == code
    assert capsys.readouterr().err == sentence
    with pytest.raises(type(error), match=re.escape(str(error))):
        main(["--traceback", "info", "m"])


@pytest.mark.parametrize("missing", ["pandas", "sklearn"])
def test_a_missing_extra_is_named(missing, folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(FIT) == 1
    extra = "tables" if missing == "pandas" else "sklearn"
    assert (
        f"needs {missing}. It is not installed. Install it with `pip install itergp[{extra}]`."
        in capsys.readouterr().err
    )


def test_files_without_pyarrow(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (folder / "table.parquet").write_bytes(b"PAR1")
    assert main(["fit", "table.parquet", "--target", "y"]) == 1
    assert "Reading tables needs pyarrow. It is not installed. Install it with" in capsys.readouterr().err


def test_warnings_are_one_line(folder, capsys):
    make_table("class").assign(constant=1.0).to_csv("constant.csv", index=False)
    with pytest.warns(UserWarning, match="Got one value only"):
        main(["--traceback", "fit", "constant.csv", "--target", "class", *QUICK])
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["fit", "constant.csv", "--target", "class", *QUICK]) == 0
    assert capsys.readouterr().err.startswith(
        "itergp: warning: Columns of `X` should vary. Got one value only in 1 of 3:"
    )


def test_standard_output_has_predictions_and_nothing_else(folder):
    assert main(["fit", "class.csv", "--target", "class", "--save", "m.safetensors", *QUICK]) == 0
    environment = {name: value for name, value in os.environ.items() if name != "KEOPS_VERBOSE"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "itergp", "predict", "m.safetensors", "class.csv"]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    written = pandas.read_csv(io.StringIO(ran.stdout))
    assert written.columns[0] == "prediction"
    assert len(written) == len(pandas.read_csv(folder / "class.csv"))


def test_infinite_targets_are_left_to_who_refuses_them():
    """By a sentence, before which no warning of arithmetic belongs."""
    assert guess_task(np.array([0.5, 1.5, np.inf, 2.0])).task == "regression"
