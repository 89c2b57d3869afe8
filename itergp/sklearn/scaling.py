"""Columns brought to mean 0 and standard deviation 1, whatever their size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_CONSTANT = 1e-12  # standard deviation, as a share of the largest magnitude, that is rounding


@dataclass(frozen=True)
class Scaling:
    """``(x / magnitude - mean) / deviation``, column by column.

    Dividing by the largest magnitude first keeps squares of huge and tiny values finite.

    Attributes:
        magnitude: Largest absolute value ``(D,)``; 1 where it is zero.
        mean: Weighted mean after that ``(D,)``.
        deviation: Weighted standard deviation after that ``(D,)``; 1 for constant columns, which become zero.
        constant: Which columns are constant ``(D,)``.
    """

    magnitude: Array
    mean: Array
    deviation: Array
    constant: NDArray[np.bool_]

    @classmethod
    def learn(cls, values: Array, weights: Array) -> Scaling:
        """From rows ``(N, D)`` and their weights ``(N,)``."""
        magnitude, mean, deviation = (np.empty(values.shape[1]) for _ in range(3))
        constant = np.empty(values.shape[1], dtype=bool)
        # One after another: the arrays in between are as large as what they are made of.
        for i, column in enumerate(values.T):
            largest = np.abs(column).max()
            magnitude[i] = largest if largest > 0.0 else 1.0
            relative = column / magnitude[i]
            mean[i] = np.average(relative, weights=weights)
            deviation[i] = np.sqrt(np.average((relative - mean[i]) ** 2, weights=weights))
            constant[i] = deviation[i] <= _CONSTANT or np.ptp(relative) == 0.0
            if constant[i]:
                mean[i], deviation[i] = relative[0], 1.0
        return cls(magnitude, mean, deviation, constant)

    def except_for(self, columns: NDArray[np.bool_], deviation: Array | None = None) -> Scaling:
        """The same, but for some columns, which are only divided by a number of theirs.

        Args:
            columns: Which ``(D,)``.
            deviation: The numbers ``(D,)``; default 1, which leaves columns as they are.
        """
        return Scaling(
            np.where(columns, 1.0, self.magnitude),
            np.where(columns, 0.0, self.mean),
            np.where(columns, 1.0 if deviation is None else deviation, self.deviation),
            self.constant & ~columns,
        )

    @classmethod
    def nothing(cls, values: Array) -> Scaling:
        """Leaves columns as they are."""
        ones = np.ones(values.shape[1])
        return cls(ones, np.zeros_like(ones), ones, np.zeros(values.shape[1], dtype=bool))

    @property
    def scale(self) -> Array:
        """Standard deviation in the original units ``(D,)``."""
        return self.magnitude * self.deviation

    def transform(self, values: Array, out: Array | None = None) -> Array:
        """Rows ``(M, D)`` in the new units; ``out`` may be the rows themselves, which are then written over."""
        with np.errstate(over="ignore"):
            scaled = np.divide(values, self.magnitude, out=out)
            scaled -= self.mean
            scaled /= self.deviation
        return scaled

    def restore(self, values: Array) -> Array:
        """Rows ``(M, D)`` in the original units."""
        return (values * self.deviation + self.mean) * self.magnitude
