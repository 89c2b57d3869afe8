"""How targets vary around means that were predicted for rows left out: what makes a density of a prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import minimize_scalar

Array = NDArray[np.float64]

LEAST_RATE = 1e-9


def residual_deviation(y: Array, mean: Array | float, weights: Array) -> float:
    """Root mean square of residuals of predictions for rows that these were not learned from; positive."""
    found = float(np.sqrt(np.average((y - mean) ** 2, weights=weights)))
    return max(found, 1e-6 * float(np.abs(y).max()), 1e-12)


@dataclass(frozen=True)
class CountNoise:
    """How counts vary around their mean: ``size`` of a negative binomial distribution, or None for Poisson's."""

    size: float | None

    @classmethod
    def learn(cls, y: Array, mean: Array, weights: Array) -> CountNoise:
        """The more probable one for means ``(N,)`` of rows that these were not learned from."""
        mean = np.maximum(mean, LEAST_RATE)

        def loss(log_size: float) -> float:
            return -float(weights @ cls(float(np.exp(log_size))).distribution(mean).logpmf(y))

        best = minimize_scalar(loss, bounds=(-5.0, 12.0), method="bounded")
        poisson = -float(weights @ stats.poisson(mean).logpmf(y))
        return cls(float(np.exp(best.x)) if best.fun < poisson else None)

    def distribution(self, mean: Array) -> Any:
        """Frozen distributions of counts with means ``(M,)``."""
        return stats.poisson(mean) if self.size is None else stats.nbinom(self.size, self.size / (self.size + mean))
