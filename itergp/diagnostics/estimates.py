"""Means over held-out rows with their standard errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Estimate:
    """A mean over rows, or what is made of it, and its standard error.

    Attributes:
        mean: The mean.
        error: Its standard error; NaN where it has none.
    """

    mean: float
    error: float

    @classmethod
    def of(cls, values: NDArray[np.float64], weights: NDArray[np.float64]) -> Estimate:
        """Of values ``(M,)`` that are independent, as rows are given what was learned."""
        share = weights / weights.sum()
        mean = float(share @ values)
        used = int((share > 0.0).sum())
        if used < 2:
            return cls(mean, float("nan"))
        return cls(mean, float(np.sqrt(used / (used - 1) * (share**2 @ (values - mean) ** 2))))

    def __str__(self) -> str:
        """The mean, to the second digit of its standard error if it has one."""
        return self._shown("")

    def signed(self) -> str:
        """With its sign, as a difference is written."""
        return self._shown("+")

    def _shown(self, sign: str) -> str:
        if not np.isfinite(self.error) or self.error <= 0.0:
            return f"{self.mean:{sign},.4g}"
        digits = int(np.clip(1 - np.floor(np.log10(self.error)), 0, 6))
        return f"{self.mean:{sign},.{digits}f} ± {self.error:,.{digits}f}"
