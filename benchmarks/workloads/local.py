"""The classics of UCI and OpenML, from files that you have: nothing is downloaded.

Put ``NAME.csv`` (a header, the target as the last column) and ``NAME.csv.sha256`` (as ``sha256sum NAME.csv`` prints it) in a
folder and set ``ITERGP_BENCHMARK_DATA`` to it: the file becomes a workload of that name. Columns that are not numbers become
indicators. The kernel of the inference ruleset has half the median distance as lengthscale and output scale 10.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.workloads.base import GivenKernel, Workload
from itergp.errors import InputError

FOLDER = "ITERGP_BENCHMARK_DATA"


@dataclass(frozen=True)
class LocalFile(Workload):
    """A CSV file whose checksum is checked each time it is read."""

    path: Path = Path()

    @property
    def summary(self) -> str:
        return f"local file {self.path.name}"

    def raw(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        verify(self.path)
        return read(self.path)


def verify(path: Path) -> None:
    """Compares the checksum of a file with the one beside it."""
    stated = path.with_name(path.name + ".sha256")
    remedy = f"Run `sha256sum {path.name} > {stated.name}` once you trust the file."
    if not stated.exists():
        raise InputError(f"A data file must have its checksum beside it. Got no {stated.name}. {remedy}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if stated.read_text().split()[0] != found:
        raise InputError(f"{path.name} must have the checksum in {stated.name}. Got {found}. {remedy}")


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels from a CSV file; rows with missing values are left out."""
    frame = pd.read_csv(path, skipinitialspace=True, na_values="?").dropna()
    target = frame.columns[-1]
    x = pd.get_dummies(frame.drop(columns=target), drop_first=True).to_numpy(dtype=float)
    _, y = np.unique(frame[target].astype(str), return_inverse=True)
    return x, y


def local_files() -> list[Workload]:
    """One workload for each CSV file in the folder; its kernel from the first 1,000 rows."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return []
    found: list[Workload] = []
    for path in sorted(Path(folder).glob("*.csv")):
        x, _ = read(path)
        x = ((x - x.mean(0)) / np.maximum(x.std(0), 1e-12))[:1000]
        distances = np.sqrt(np.maximum(((x[:, None] - x[None, :300]) ** 2).sum(-1), 0.0))
        kernel = GivenKernel(round(float(np.median(distances)) / 2.0, 2), 10.0)
        found.append(LocalFile(path.stem, kernel, path=path, inference_seconds=60.0, end_to_end_seconds=120.0))
    return found
