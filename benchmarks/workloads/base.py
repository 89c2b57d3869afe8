"""What a workload is: data, preparation, splits, the kernel of the inference ruleset, and time limits."""

from __future__ import annotations

import hashlib
import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from itergp.errors import InputError

CLASSES, ORDERED, COUNTS = "classes", "ordered levels", "counts"
INFERENCE, END_TO_END, TUNED = "inference", "end to end", "tuned"
RULESETS = {
    INFERENCE: "kernel hyperparameters given, the same for all methods",
    END_TO_END: "raw data to predictions, every method with its defaults, which may tune themselves",
    TUNED: "raw data to predictions, with a fixed number of trials of other settings for every method",
}
MOST_EVALUATED, FEWEST_EVALUATED = 2_000, 200  # rows of the validation, and of the test split


@dataclass(frozen=True)
class GivenKernel:
    """Hyperparameters of the inference ruleset: a scaled isotropic Matern-3/2 kernel, mean zero."""

    lengthscale: float
    outputscale: float


@dataclass(frozen=True)
class TrainingData:
    """All that a method sees.

    Attributes:
        x: Inputs ``(N, D)``, float32.
        y: Outcomes ``(N,)``, int64: labels, levels or counts from 0.
        kind: ``"classes"``, ``"ordered levels"`` or ``"counts"``.
        num_outcomes: K: predictions are probabilities of the outcomes 0 to K - 1, the last of counts standing for more, too.
        given: The kernel, in the inference ruleset; None where a method has to find its own.
    """

    x: Tensor
    y: Tensor
    kind: str
    num_outcomes: int
    given: GivenKernel | None

    def head(self, rows: int) -> TrainingData:
        """The first rows, and one of each label beyond, for a warm-up."""
        first = torch.arange(min(rows, len(self.y)))
        if self.kind != COUNTS:
            labels = [int((self.y == label).nonzero()[0]) for label in range(self.num_outcomes)]
            first = torch.unique(torch.cat([first, torch.tensor(labels)]))
        return TrainingData(self.x[first], self.y[first], self.kind, self.num_outcomes, self.given)


@dataclass(frozen=True)
class Problem:
    """Splits of one workload for one seed.

    Attributes:
        train: What a method sees.
        validation_x: Inputs that progress is measured at, with ``validation_y``; no method sees them.
        test_x: Inputs that results are reported for, with ``test_y``.
        outside_x: Inputs unlike the training inputs, which a latent variance should tell from the test inputs.
    """

    train: TrainingData
    validation_x: Tensor
    validation_y: Tensor
    test_x: Tensor
    test_y: Tensor
    outside_x: Tensor

    @property
    def base_nll(self) -> float:
        """Validation NLL of the frequencies of the outcomes, with one more of each."""
        counts = torch.bincount(self.train.y, minlength=self.train.num_outcomes).double() + 1.0
        return float(-(counts / counts.sum()).log()[self.validation_y].mean())

    @property
    def fingerprint(self) -> str:
        """Checksum of the training rows, so that results of other data are not mixed with these."""
        digest = hashlib.sha256(self.train.x.numpy().tobytes())
        digest.update(self.train.y.numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Workload(ABC):
    """One test problem.

    Attributes:
        name: As reports and commands call it.
        kernel: Hyperparameters of the inference ruleset.
        inference_seconds: Training time a method gets in the inference ruleset; presets multiply it.
        end_to_end_seconds: The same from raw data to predictions.
        kind: What outcomes are.
        standardise: Whether inputs are brought to mean 0 and deviation 1 by the training rows.
        packages: What must be installed.
        variant_of: The workload that this one changes to catch methods tuned to one setting; empty for a base workload.
        rulesets: Where it belongs: one that only changes the given kernel says nothing end to end.
    """

    name: str
    kernel: GivenKernel
    inference_seconds: float = 30.0
    end_to_end_seconds: float = 60.0
    kind: str = CLASSES
    standardise: bool = True
    packages: tuple[str, ...] = ()
    variant_of: str = ""
    rulesets: tuple[str, ...] = (INFERENCE, END_TO_END, TUNED)

    @property
    @abstractmethod
    def summary(self) -> str:
        """What the data are, in a line."""

    @abstractmethod
    def raw(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and outcomes of all rows, before splitting."""

    def seconds(self, ruleset: str) -> float:
        """Training time of a run."""
        return self.inference_seconds if ruleset == INFERENCE else self.end_to_end_seconds

    @property
    def missing(self) -> list[str]:
        """Packages that are needed and not installed."""
        return [package for package in self.packages if importlib.util.find_spec(package) is None]

    def splits(self, num_rows: int) -> tuple[int, int]:
        """Rows to validate on and rows to test on: a tenth each, but 200 to 2,000, and a fifth at most."""
        held_out = min(MOST_EVALUATED, max(round(0.1 * num_rows), FEWEST_EVALUATED), num_rows // 5)
        return held_out, held_out

    def problem(self, seed: int, *, given: bool) -> Problem:
        """A random split, prepared.

        Args:
            seed: Of the split, and of synthetic data.
            given: Whether methods are told the kernel's hyperparameters.
        """
        x, y = self.raw(seed)
        rng = np.random.RandomState(seed)
        order = rng.permutation(len(y))
        num_validation, num_test = self.splits(len(y))
        train = order[num_validation + num_test :]
        validation, test = order[:num_validation], order[num_validation : num_validation + num_test]
        if self.standardise:
            x = (x - x[train].mean(0)) / np.maximum(x[train].std(0), 1e-12)
        x, y = x.astype(np.float32), y.astype(np.int64)
        if self.kind == COUNTS:
            y = np.minimum(y, y[train].max() + 1)
        num_outcomes = int(y[train].max()) + (2 if self.kind == COUNTS else 1)
        if len(y) and y.max() >= num_outcomes:
            raise InputError(
                f"Every outcome must occur in the training rows. Got {int(y.max())} with the largest trained "
                f"{num_outcomes - 1} in {self.name}, seed {seed}. Use another seed or merge rare outcomes."
            )
        data = TrainingData(
            torch.from_numpy(x[train]),
            torch.from_numpy(y[train]),
            self.kind,
            num_outcomes,
            self.kernel if given else None,
        )
        outside = outside_inputs(x[test], x[train], rng)
        tensors = [torch.from_numpy(a) for a in (x[validation], y[validation], x[test], y[test], outside)]
        return Problem(data, *tensors)


def outside_inputs(test: np.ndarray, train: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Test inputs with columns shuffled independently and stretched to twice their distance from the mean.

    Marginals stay plausible; what is lost is how columns go together, and the middle of the data.
    """
    columns = [rng.permutation(column) for column in test.T]
    centre = train.mean(0)
    return (centre + 2.0 * (np.stack(columns, 1) - centre)).astype(np.float32)
