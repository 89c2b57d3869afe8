"""Spectra of radial kernels: how much of one is at which frequencies, how far it reaches, and what bounds the rest.

Distances and frequencies are in units in which the kernel is ``profile(r)``, see ``RadialKernel``. A kernel of variance one is
``k(r) = integral of S(xi) exp(i xi r) d xi / (2 pi)^d`` with a spectrum S >= 0 that falls with ``|xi|``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, gammaincc

Array = np.ndarray
# Rates of envelopes: of a squared exponential's squares, and of a Matern kernel's distances in units of the cutoff.
_RBF_SHARE, _MATERN_RATE = 4.0, 2.0


@dataclass(frozen=True)
class Spectrum:
    """Of a Matern-1/2, -3/2 or -5/2 or squared exponential kernel of variance one.

    Attributes:
        smoothness: 0.5, 1.5 or 2.5, or infinity for ``exp(-r^2)``.
        dim: Number of inputs d.
    """

    smoothness: float
    dim: int

    def profile(self, distance: Array) -> Array:
        """The kernel at distances."""
        if self.smoothness == math.inf:
            return np.exp(-np.square(distance))
        factor = {0.5: 1.0, 1.5: 1.0 + distance, 2.5: 1.0 + distance + np.square(distance) / 3.0}[self.smoothness]
        return factor * np.exp(-distance)

    def density(self, squared: Array) -> Array:
        """S at squared frequencies."""
        d, nu = self.dim, self.smoothness
        if nu == math.inf:
            return math.pi ** (d / 2) * np.exp(-0.25 * squared)
        constant = (4.0 * math.pi) ** (d / 2) * math.gamma(nu + d / 2) / math.gamma(nu)
        return constant * (1.0 + squared) ** -(nu + d / 2)

    def beyond(self, frequency: float) -> float:
        """At most this share of the spectrum lies outside of the cube of frequencies up to ``frequency``."""
        d, nu, squared = self.dim, self.smoothness, frequency**2
        if nu == math.inf:
            return float(min(gammaincc(d / 2, squared / 4), d * gammaincc(0.5, squared / 4)))
        return float(min(betainc(nu, d / 2, 1 / (1 + squared)), d * betainc(nu, 0.5, 1 / (1 + squared))))

    def cutoff(self, share: float) -> float:
        """The frequency beyond which no more than that share of the spectrum lies."""
        return _bisected(lambda frequency: self.beyond(frequency) <= share)

    def reach(self, value: float) -> float:
        """The distance from which the kernel is no more than that."""
        return _bisected(lambda distance: float(self.profile(np.asarray(distance))) <= value)

    def envelope_ratio(self, squared: Array, cutoff: float) -> Array:
        """S over the spectrum of ``envelope``, at squared frequencies; it falls with these.

        What has at most this ratio times the envelope's spectrum is at most this ratio times the envelope's matrix, as a
        quadratic form, whatever the rows.
        """
        d, nu = self.dim, self.smoothness
        if nu == math.inf:
            return _RBF_SHARE ** (d / 2) * np.exp(-0.25 * (1.0 - 1.0 / _RBF_SHARE) * squared)
        rate = _MATERN_RATE * cutoff
        return rate**d * ((1.0 + squared / rate**2) / (1.0 + squared)) ** (nu + d / 2)

    def envelope(self, distance: Array, cutoff: float) -> Array:
        """A kernel that reaches no further than frequencies near the cutoff resolve."""
        rate = math.sqrt(_RBF_SHARE) if self.smoothness == math.inf else _MATERN_RATE * cutoff
        return self.profile(rate * distance)


def _bisected(holds: Callable[[float], bool]) -> float:
    """The least positive number, to a thousandth, from which on a condition holds."""
    low, high = 0.0, 1.0
    while not holds(high):
        low, high = high, 2.0 * high
    while high - low > 1e-3 * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
