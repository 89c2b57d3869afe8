"""Tables in files: read column by column and by batches of rows, with the answers that the same table in memory gives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pandas
import pytest

from itergp import InputError
from itergp.sklearn import GPClassifier, GPCountRegressor, GPRegressor, GPSurvival
from itergp.tables import TableEncoder, TableFile, encoder, files, open_table
from itergp.tables.table import ColumnsOnDemand


def make_frame(rows: int = 90, seed: int = 0) -> pandas.DataFrame:
    """Columns of every role, gaps among them, and targets."""
    rng = np.random.default_rng(seed)
    frame = pandas.DataFrame(
        {
            "age": rng.integers(20, 80, rows),
            "height": rng.normal(1.7, 0.1, rows),
            "city": rng.choice(["Oslo", "Rome", "Bern"], rows),
            "sure": rng.random(rows) < 0.5,
            "since": pandas.Timestamp("2020-01-01") + pandas.to_timedelta(rng.integers(0, 900, rows), "D"),
        }
    )
    frame.loc[::7, "height"] = np.nan
    frame.loc[1::8, "city"] = None
    frame["copy"], frame["same"] = frame["age"], 3
    frame["late"] = np.where(frame.age + 10.0 * rng.normal(size=rows) > 50, "yes", "no")
    frame["count"] = rng.poisson(frame.age / 20.0)
    frame["time"], frame["happened"] = rng.exponential(frame.age), rng.random(rows) < 0.7
    frame["w"] = rng.integers(1, 3, rows).astype(float)
    return frame


TARGETS = ["late", "count", "time", "happened", "w"]


@pytest.fixture(params=["table.parquet", "table.csv", "table.csv.gz"])
def path(request, tmp_path):
    """The table in a file."""
    target = tmp_path / request.param
    frame = make_frame()
    frame.to_parquet(target) if target.suffix == ".parquet" else frame.to_csv(target, index=False)
    return target


@pytest.mark.filterwarnings("ignore:Columns of `X` should")
def test_an_encoder_of_a_file_is_that_of_the_table(path, monkeypatch):
    monkeypatch.setattr(files, "_BATCH_ROWS", 16)
    inputs = make_frame().drop(columns=TARGETS)
    file = TableFile(path)
    assert (file.num_rows, file.names) == (90, list(make_frame().columns))
    table = file.without(*TARGETS)
    whole, ours = TableEncoder().fit(inputs), TableEncoder().fit(table)
    assert str(ours.columns_) == str(whole.columns_)
    np.testing.assert_allclose(ours.transform(table), whole.transform(inputs), rtol=1e-15)  # of text, by pandas' reader
    np.testing.assert_array_equal(ours.transform(table, dtype=np.float32), ours.transform(table).astype(np.float32))
    assert whole.transform(table).dtype == np.float64
    batches = list(file.batches(["age", "city"], rows=40))
    assert [len(part) for part in batches] == [40, 40, 10]
    assert pandas.concat(batches).age.tolist() == inputs.age.tolist()


def test_one_column_is_in_memory_at_a_time(path):
    """What has been read is let go of before the next one is."""
    import gc
    import weakref

    alive: list[weakref.ref] = []

    def listen(column):
        gc.collect()
        assert sum(one() is not None for one in alive) <= 1
        alive.append(weakref.ref(column))
        return column

    table = TableFile(path).table(["age", "height", "sure"])
    assert isinstance(table.columns, ColumnsOnDemand)
    table = type(table)(table.columns.then(listen), table.num_rows, table.names, table.labels)
    TableEncoder().fit(table).transform(table)
    assert len(alive) == 6


def test_beyond_the_free_memory_the_matrix_is_in_a_file(path, monkeypatch):
    table = TableFile(path).table(["age", "height"])
    expected = TableEncoder().fit(table).transform(table)
    monkeypatch.setattr(encoder.psutil, "virtual_memory", lambda: type("Free", (), {"available": 100})())
    found = TableEncoder().fit(table).transform(table)
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(
        InputError, match=r"must fit into memory. Got 90 rows of 3 columns.* Pass the name of a Parquet file"
    ):
        TableEncoder().fit(make_frame()[["age", "height"]]).transform(make_frame()[["age", "height"]])


LIMITED = """
    import resource, sys, types
    import numpy as np
    from itergp.tables import TableEncoder, TableFile, encoder
    free = int(sys.argv[2])
    encoder.psutil = types.SimpleNamespace(virtual_memory=lambda: types.SimpleNamespace(available=free))

    def read(path):
        file = TableFile(path)
        matrix = TableEncoder().fit(file.without("y")).transform(file.without("y"))
        return matrix.nbytes, float(sum(part.sum() for part in np.array_split(matrix, 50)))

    read(sys.argv[3])  # what libraries keep for themselves
    held = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (held + free,) * 2)
    size, total = read(sys.argv[1])
    assert size > 1.5 * free, size
    print(total)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what is a process's own")
def test_a_file_larger_than_memory_is_encoded(tmp_path):
    """A matrix of 80 MB by a process that may not take 50 MB of its own."""
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame({f"x{i}": rng.normal(size=200_000) for i in range(50)}).assign(y=1)
    frame.to_parquet(tmp_path / "t.parquet")
    frame[:100].to_parquet(tmp_path / "small.parquet")
    arguments = [str(tmp_path / "t.parquet"), "50000000", str(tmp_path / "small.parquet")]
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert float(ran.stdout.splitlines()[-1]) == pytest.approx(frame.drop(columns="y").to_numpy().sum(), rel=1e-9)


TEXT = """a,b,c,d,e,f
1,1,1,,True,
2,2,2,,False,
,x,2.5,07,,
4,4,3,1,True,
"""


def test_types_of_text_are_those_of_all_rows(tmp_path, monkeypatch):
    """However few rows are looked at together: whole numbers with gaps, numbers that turn out text, truth values with gaps."""
    monkeypatch.setattr(files, "_BATCH_ROWS", 1)
    (tmp_path / "t.csv").write_text(TEXT)
    file = TableFile(tmp_path / "t.csv")
    whole = pandas.read_csv(tmp_path / "t.csv")
    assert file["a"].tolist()[:2] == [1.0, 2.0]
    assert file["a"].isna().tolist() == [False, False, True, False]
    assert file["b"].tolist() == whole["b"].tolist() == ["1", "2", "x", "4"]
    assert file["c"].tolist() == [1.0, 2.0, 2.5, 3.0]
    assert file["d"].dropna().tolist() in ([7.0, 1.0], [7, 1])
    assert file["e"].dropna().tolist() == [True, False, True]
    assert file["f"].isna().all()
    folder = file._source.parent
    assert folder.exists()
    del file
    assert not folder.exists()


def test_estimators_take_a_file_and_names_of_its_columns(path, recwarn):
    frame, X = make_frame(), make_frame().drop(columns=TARGETS)
    options = {"kernel": "matern32", "max_iterations": 2}
    file = TableFile(path)
    names = [name for name in X.columns]
    others = [name for name in TARGETS if name not in ("late", "w")]
    table, late, weight = open_table(file, "late", "w")
    assert table.names == [*names, *others]
    assert late.tolist() == frame.late.tolist()
    assert weight.tolist() == frame.w.tolist()
    whole = GPClassifier(**options).fit(frame.drop(columns=["late", "w"]), frame.late, frame.w)
    ours = GPClassifier(**options).fit(str(path), "late", "w")
    np.testing.assert_allclose(ours.predict_proba(path), whole.predict_proba(frame[ours.feature_names_in_]), rtol=1e-6)
    np.testing.assert_allclose(
        ours.predictive_log_density(str(path), "late"),
        whole.predictive_log_density(frame[ours.feature_names_in_], frame.late),
        rtol=1e-6,
    )
    assert ours.score(path, "late") == whole.score(frame[ours.feature_names_in_], frame.late)


@pytest.mark.filterwarnings("ignore")
def test_every_estimator_does(path):
    """Counts with an exposure, times with an event, real values; rows that are added."""
    options = {"kernel": "matern32", "max_iterations": 2}
    file, frame = TableFile(path), make_frame()
    counts = GPCountRegressor(**options).fit(file, "count", exposure="w")
    reference = GPCountRegressor(**options).fit(frame.drop(columns=["count", "w"]), frame["count"], exposure=frame.w)
    np.testing.assert_allclose(counts.predict(file), reference.predict(frame[counts.feature_names_in_]), rtol=1e-5)
    times = GPSurvival(**options).fit(file, ["happened", "time"])
    reference = GPSurvival(**options).fit(frame.drop(columns=["happened", "time"]), frame[["happened", "time"]])
    np.testing.assert_allclose(times.predict(file), reference.predict(frame[times.feature_names_in_]), rtol=1e-5)
    real = GPRegressor(**options).fit(file, "time").partial_fit(file, "time")
    assert len(real.model_.train_targets) == 180


def test_predictions_are_made_a_batch_of_rows_at_a_time(path, monkeypatch):
    frame = make_frame()
    fitted = GPClassifier(kernel="matern32", max_iterations=2).fit(frame[["age", "height"]], frame.late)
    expected = fitted.predict_proba(frame[["age", "height"]])
    monkeypatch.setattr(TableFile.batches, "__defaults__", (None, 25))
    seen = []
    encoded = GPClassifier._encoded
    monkeypatch.setattr(
        GPClassifier, "_encoded", lambda self, table: seen.append(table.num_rows) or encoded(self, table)
    )
    np.testing.assert_allclose(fitted.predict_proba(str(path)), expected, rtol=1e-6)
    assert seen == [25, 25, 25, 15]


def test_reading_says_how_far_it_has_come(path, capsys):
    GPClassifier(kernel="matern32", max_iterations=1, verbose=True).fit(
        TableFile(path).table(["age", "height"]), make_frame().late
    )
    assert "4/4 columns" in capsys.readouterr().err
    GPClassifier(kernel="matern32", max_iterations=1, verbose=True).fit(
        make_frame()[["age", "height"]], make_frame().late
    )
    assert "columns" not in capsys.readouterr().err


# ---------------------------------------------------------------------- mistakes
def test_mistakes_name_the_file_the_column_and_the_row(tmp_path):
    frame = make_frame()
    frame["age"] = frame.age.astype(float)
    frame.loc[5, "age"] = np.inf
    path = tmp_path / "t.parquet"
    frame.to_parquet(path)
    with pytest.raises(InputError, match=r"Column 'age' of `X` must be finite. Got inf in row 5"):
        GPClassifier().fit(path, "late")
    with pytest.raises(
        InputError, match=r"a column 'lat'. Got '.*t.parquet' with 'age', 'height', .* Correct the name"
    ):
        GPClassifier().fit(path, "lat")
    with pytest.raises(InputError, match=r"The data must be a file. Got 'no.parquet', which is none"):
        GPClassifier().fit("no.parquet", "late")
    path.write_bytes(b"PAR1 and something else")
    with pytest.raises(
        InputError, match=r"must be a Parquet table with a header. Got '.*t.parquet', which cannot be read"
    ):
        TableFile(path)
    text = tmp_path / "t.csv"
    text.write_text("a,b\n1,2\n3,4\n5,6,7\n")
    with pytest.raises(
        InputError, match=r"must be a CSV table with a header. Got '.*t.csv', which cannot be .* line 4, saw 3"
    ):
        TableFile(text)
    text.write_text("a,b\n")
    with pytest.raises(InputError, match=r"The data must have rows. Got '.*t.csv' with a header only"):
        TableFile(text)


def test_a_column_that_ends_early_is_said_to(tmp_path):
    """A file that is cut off in the middle of its data."""
    path = tmp_path / "t.parquet"
    pandas.DataFrame({"a": np.random.default_rng(0).normal(size=50_000), "y": 1.0}).to_parquet(path)
    content = bytearray(path.read_bytes())
    content[1000:200_000] = bytes(199_000)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"Got '.*t.parquet', which cannot be read"):
        TableFile(path)["a"]


# ---------------------------------------------------------------------- kill -9
PROGRAM = """
    import os, signal, sys
    import numpy as np, torch
    from itergp.kernels import AdditiveLaplacianKernel
    from itergp.operators import ScanOperator
    from itergp.sklearn import GPClassifier
    torch.set_num_threads(1)
    path, checkpoint, fatal = sys.argv[1], sys.argv[2], int(sys.argv[3])
    passes, multiply, log = 0, ScanOperator._matmul, open(sys.argv[4], "a")

    def counted(self, block):
        global passes
        if self.num_rows < 6000:  # of learning, on some of the rows
            return multiply(self, block)
        passes += 1
        log.write("pass\\n"); log.flush()
        if passes == fatal:  # half of the product is there
            multiply(self, block[..., : max(1, block.shape[-1] // 2)])
            os.kill(os.getpid(), signal.SIGKILL)
        return multiply(self, block)

    ScanOperator._matmul = counted
    options = {"checkpoint": checkpoint, "checkpoint_every": 0, "calibrate": False}
    kernel = AdditiveLaplacianKernel(3)
    model = GPClassifier(kernel, max_iterations=2, fit_options=options, approximation="laplace").fit(path, "y")
    np.save(sys.argv[5], model.predict_proba(path))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_fit_to_a_file_goes_on_after_kill_9_in_the_middle_of_a_pass(tmp_path):
    """With the same answer to the last bit, and one pass more than without."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8000, 3))
    y = rng.random(8000) < 1.0 / (1.0 + np.exp(-3.0 * np.sin(2.0 * x[:, 0]) - x[:, 1]))
    path = tmp_path / "t.parquet"
    pandas.DataFrame(x, columns=["a", "b", "c"]).assign(y=y).to_parquet(path)

    def run(name, fatal):
        arguments = [
            str(path),
            str(tmp_path / name),
            str(fatal),
            str(tmp_path / f"{name}.log"),
            str(tmp_path / f"{name}.npy"),
        ]
        command = [sys.executable, "-c", textwrap.dedent(PROGRAM), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})

    ran = run("whole", -1)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert run("killed", 3).returncode == -signal.SIGKILL
    ran = run("killed", -1)
    assert ran.returncode == 0, ran.stderr[-2000:]
    whole, killed = (np.load(tmp_path / f"{name}.npy") for name in ("whole", "killed"))
    np.testing.assert_array_equal(killed, whole)
    passes = [len((tmp_path / f"{name}.log").read_text().splitlines()) for name in ("whole", "killed")]
    assert passes[0] >= 4
    assert passes[1] <= passes[0] + 1
