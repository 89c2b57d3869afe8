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
        magnitude = np.abs(values).max(0)
        magnitude = np.where(magnitude > 0.0, magnitude, 1.0)
        relative = values / magnitude
        mean = np.average(relative, axis=0, weights=weights)
        deviation = np.sqrt(np.average((relative - mean) ** 2, axis=0, weights=weights))
        constant = (deviation <= _CONSTANT) | (np.ptp(relative, axis=0) == 0.0)
        return cls(magnitude, np.where(constant, relative[0], mean), np.where(constant, 1.0, deviation), constant)

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

    def transform(self, values: Array) -> Array:
        """Rows ``(M, D)`` in the new units."""
        with np.errstate(over="ignore"):
            return (values / self.magnitude - self.mean) / self.deviation

    def restore(self, values: Array) -> Array:
        """Rows ``(M, D)`` in the original units."""
        return (values * self.deviation + self.mean) * self.magnitude
