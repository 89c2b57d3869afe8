"""A lattice of frequencies on which radial kernels of few inputs are sums, and the grid on which these are fast transforms.

On a box that is longer than the inputs by what the kernel reaches, ``k(x - x') = sum_k c_k exp(i xi_k (x - x'))`` but for
kernels of the images next to it (Poisson's summation), with ``c_k`` the spectrum at the frequencies ``xi_k`` of the box. Those
up to a cutoff are kept. A window of w grid points per input takes rows to a regular grid and back, and what it does to each
frequency is divided out (Dutt & Rokhlin 1993; Kaiser-Bessel windows: Jackson et al. 1991; kernels by such sums: Greengard,
Rachh & Barnett 2022).

Every step's error is bounded: entries by sums of what is left out, and the matrix of errors as a quadratic form by that of
``Spectrum.envelope``, which reaches few grid points, so that its rows sum up to little.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
from scipy.special import i0e

from itergp.operators.spectra import Array, Spectrum
from itergp.operators.tiles import slices

_IMAGES = 3  # to either side, of which the kernel's values are added up
_IMAGE_ROW_SUM = 1e-3  # of one row with all others' images
_FEWEST_POINTS, _MOST_POINTS = 16, 2.0**40  # along an axis; no memory holds the latter
_WINDOWS = range(3, 15)
_SHAPES = np.linspace(1.7, 3.1, 15)  # of windows, per grid point of width
# What is divided by a window's transform, beside the lowest frequency: rounding is amplified, too.
_MOST_AMPLIFIED = 100.0
_FINER = (1.0, 1.2, 1.5, 2.0)  # grids than the cutoff needs, for which windows may be narrower
_ALIASES = 4
_SAMPLED_FREQUENCIES = 128
_SHARE_OF_CUT = 1.2  # of the quadratic form's error, the window's at most
_SLAB = 2**22
# Seconds of a core: a grid point there and back in its transforms, and an entry of the window both ways.
SECONDS_PER_POINT, SECONDS_PER_WEIGHT = 2e-8, 1.2e-9


@dataclass(frozen=True)
class LatticeTerm:
    """``weight * k(rate (x - x'))``, k of variance one, for each of ``C'`` kernels.

    Attributes:
        smoothness: Of ``Spectrum``.
        rates: ``(C', d)``.
        weights: ``(C',)``.
    """

    smoothness: float
    rates: Array
    weights: Array


@dataclass(frozen=True)
class Window:
    """A Kaiser-Bessel window of some grid points.

    Attributes:
        width: w.
        shape: Its parameter beta.
    """

    width: int
    shape: float

    def __call__(self, offset: Array) -> Array:
        """Values at distances from its middle, in grid points."""
        root = np.sqrt(np.clip(1.0 - np.square(2.0 * offset / self.width), 0.0, None))
        return i0e(self.shape * root) * np.exp(self.shape * (root - 1.0)) / i0e(self.shape)

    def transform(self, angle: Array) -> Array:
        """Its Fourier transform at frequencies in radians per grid point."""
        squared = self.shape**2 - np.square(0.5 * self.width * angle)
        root = np.sqrt(np.abs(squared))
        scale = self.width / (i0e(self.shape) * math.exp(self.shape))
        with np.errstate(over="ignore", invalid="ignore"):
            growing = np.where(root > 0.0, np.sinh(root) / np.where(root > 0.0, root, 1.0), 1.0)
        return scale * np.where(squared > 0.0, growing, np.sinc(root / math.pi))

    def aliasing(self, angle: Array) -> Array:
        """Sum of its transforms at a frequency's aliases over that at itself."""
        shifts = [2.0 * math.pi * n for n in range(-_ALIASES, _ALIASES + 1) if n]
        return sum(np.abs(self.transform(angle + shift)) for shift in shifts) / np.abs(self.transform(angle))


@dataclass(frozen=True)
class Lattice:
    """The lattice and the grid for some terms and a box of inputs.

    Attributes:
        terms: The kernels.
        low: Least inputs ``(d,)``.
        extent: Largest minus least ``(d,)``.
        lengths: Of the periodic box ``(d,)``.
        shape: Grid points of the box for each input.
        window: The window.
    """

    terms: tuple[LatticeTerm, ...]
    low: Array
    extent: Array
    lengths: Array
    shape: tuple[int, ...]
    window: Window

    @classmethod
    def design(
        cls, terms: tuple[LatticeTerm, ...], low: Array, high: Array, num_rows: int, tolerance: float
    ) -> Lattice:
        """That of least cost whose entries are wrong by about a share of the prior variance.

        Args:
            terms: The kernels.
            low: Least inputs ``(d,)``.
            high: Largest.
            num_rows: N.
            tolerance: The share.
        """
        dim, extent = low.shape[0], high - low
        spectra = [Spectrum(term.smoothness, dim) for term in terms]
        image = min(0.125 * tolerance, _IMAGE_ROW_SUM / max(1, num_rows)) / (2 * dim)
        pads = [spectrum.reach(image) / term.rates.min(0) for spectrum, term in zip(spectra, terms, strict=True)]
        lengths = extent + np.max(pads, 0)
        cutoffs = [spectrum.cutoff(0.5 * tolerance) for spectrum in spectra]
        highest = np.max([cutoff * term.rates.max(0) for cutoff, term in zip(cutoffs, terms, strict=True)], 0)
        found = []
        for finer in _FINER:
            wanted = np.minimum(np.ceil(finer * lengths * highest / math.pi), _MOST_POINTS).astype(np.int64)
            shape = tuple(scipy.fft.next_fast_len(max(_FEWEST_POINTS, int(n)), real=True) for n in wanted)
            grid = math.pi * np.asarray(shape) / lengths
            window, error = _narrowest(spectra, [float((grid / term.rates).min()) for term in terms], tolerance)
            found.append((max(error, 1.0), cls(terms, low, extent, lengths, shape, window)))
        least = min(error for error, _ in found)  # 1, but for tolerances near rounding
        return min((own for error, own in found if error == least), key=lambda lattice: lattice.seconds(num_rows))

    @property
    def dim(self) -> int:
        """Number of inputs."""
        return len(self.shape)

    @property
    def spacing(self) -> Array:
        """Of the grid ``(d,)``."""
        return self.lengths / np.asarray(self.shape)

    def angles(self, axis: int) -> Array:
        """Frequencies of an axis, in radians per grid point, as a transform orders them."""
        return 2.0 * math.pi * scipy.fft.fftfreq(self.shape[axis])

    def seconds(self, num_rows: int) -> float:
        """About how long a pass of one column takes a core."""
        points = math.prod(self.shape)
        return points * SECONDS_PER_POINT + num_rows * self.window.width**self.dim * SECONDS_PER_WEIGHT

    # ------------------------------------------------------------ coefficients
    def coefficients(self, kernel: int, counts: tuple[int, ...] | None = None) -> Array:
        """``c_k`` of a kernel at the frequencies of a half transform, of the grid or of fewer points ``counts``."""
        return self._coefficients(kernel, self._squares(self.shape if counts is None else counts))

    def _coefficients(self, kernel: int, squares: Sequence[Array]) -> Array:
        total = np.zeros(())
        for term in self.terms:
            rate = term.rates[kernel]
            density = Spectrum(term.smoothness, self.dim).density(self._scaled(squares, rate))
            total = total + term.weights[kernel] / float((self.lengths * rate).prod()) * density
        return total

    def _squares(self, counts: tuple[int, ...]) -> list[Array]:
        """Squared frequencies along each axis of a half transform, in reciprocal units of the inputs."""
        numbers = [scipy.fft.fftfreq(n, 1.0 / n) for n in counts[:-1]] + [np.arange(counts[-1] // 2 + 1.0)]
        return [np.square(2.0 * math.pi * n / length) for n, length in zip(numbers, self.lengths, strict=True)]

    def _scaled(self, squares: Sequence[Array], rates: Array) -> Array:
        """Squared frequencies of all axes together, in the units of a kernel with such rates."""
        return functools.reduce(np.add.outer, [square / rate**2 for square, rate in zip(squares, rates, strict=True)])

    @property
    def _twice(self) -> Array:
        """How often a half transform stands for each frequency of its last axis."""
        twice = np.full(self.shape[-1] // 2 + 1, 2.0)
        twice[0] = 1.0
        if self.shape[-1] % 2 == 0:
            twice[-1] = 1.0
        return twice

    def variance(self, kernel: int) -> float:
        """The prior variance."""
        return float(sum(term.weights[kernel] for term in self.terms))

    def window_transform(self, counts: tuple[int, ...]) -> Array:
        """The window's transform at the frequencies of a half transform of so many points of the box."""
        angles = [2.0 * math.pi * scipy.fft.fftfreq(n, 1.0 / n) / m for n, m in zip(counts, self.shape, strict=True)]
        angles[-1] = np.abs(angles[-1][: counts[-1] // 2 + 1])
        return functools.reduce(np.multiply.outer, [self.window.transform(angle) for angle in angles])

    # ----------------------------------------------------------------- errors
    def cutoff(self, term: LatticeTerm, kernel: int) -> float:
        """The frequency up to which all are kept, in the units of a term's kernel."""
        return float((math.pi / (self.spacing * term.rates[kernel])).min())

    @functools.cached_property
    def aliasing(self) -> list[Array]:
        """``Window.aliasing`` for every axis."""
        return [self.window.aliasing(self.angles(axis)) for axis in range(self.dim)]

    def errors(self, kernel: int) -> tuple[float, float]:
        """Bounds on the error of any entry, and on what the error's quadratic form is of the envelope's.

        The first is of frequencies left out, images and the window; the second not of images, see ``image_error``. A window and
        its aliases on either side add at most ``gain`` times a frequency's share.
        """
        squares, kept, window, ratios = self._squares(self.shape), 0.0, 0.0, np.zeros((len(self.terms), 2))
        for rows in slices(len(squares[0]), max(1, _SLAB // math.prod(self.shape[1:]))):
            part, gain = [squares[0][rows], *squares[1:]], self._gain(rows)
            share = self._coefficients(kernel, part) * (self._twice if self.dim > 1 else self._twice[rows])
            share = np.where(gain < 1.0, share, 0.0)
            kept, window = kept + float(share.sum()), window + float((share * gain).sum())
            for t, term in enumerate(self.terms):
                spectrum, cutoff = Spectrum(term.smoothness, self.dim), self.cutoff(term, kernel)
                ratio = spectrum.envelope_ratio(self._scaled(part, term.rates[kernel]), cutoff)
                for dropped, wrong in enumerate(
                    (np.where(gain < 1.0, ratio * gain, 0.0), np.where(gain < 1.0, 0.0, ratio))
                ):
                    ratios[t, dropped] = max(ratios[t, dropped], float(wrong.max()))
        images = self._images(kernel, 0.0)
        left_out = max(self.variance(kernel) + images - kept, 0.0)
        quadratic = 0.0
        for term, (wrong, dropped) in zip(self.terms, ratios, strict=True):
            quadratic += float(term.weights[kernel]) * (wrong + max(dropped, self._cut(term, kernel)))
        return left_out + self._images(kernel, 1.0) + window, quadratic

    def kept(self) -> Array:
        """Which frequencies of a half transform are kept: not those that the window is more wrong about than zero."""
        return self._gain(slice(None)) < 1.0

    def _gain(self, rows: slice) -> Array:
        """``prod_j (1 + a_j)^2 - 1`` of the frequencies of a half transform, for some along the first axis."""
        gains = [np.square(1.0 + alias) for alias in self.aliasing]
        gains[-1] = gains[-1][: self.shape[-1] // 2 + 1]
        gains[0] = gains[0][rows]
        return functools.reduce(np.multiply.outer, gains) - 1.0

    def image_error(self, kernel: int) -> float:
        """A bound on what images add to any entry."""
        return self._images(kernel, 1.0)

    def envelope(self, kernel: int, distance: Array) -> Array:
        """The largest of the terms' envelopes, at distances in grid points along each axis ``(..., d)``."""
        values = []
        for term in self.terms:
            scaled = np.sqrt(np.square(distance * self.spacing * term.rates[kernel]).sum(-1))
            values.append(Spectrum(term.smoothness, self.dim).envelope(scaled, self.cutoff(term, kernel)))
        return np.max(values, 0)

    def _images(self, kernel: int, apart: float) -> float:
        """Kernels of all images, of rows ``apart`` times the extent from one another."""
        numbers = np.stack(np.meshgrid(*[np.arange(-_IMAGES, _IMAGES + 1)] * self.dim, indexing="ij"), -1)
        numbers = numbers.reshape(-1, self.dim)
        numbers = np.abs(numbers[np.any(numbers != 0, -1)])
        distances = np.where(numbers > 0, np.clip(numbers * self.lengths - apart * self.extent, 0.0, None), 0.0)
        total = 0.0
        for term in self.terms:
            scaled = np.sqrt(np.square(distances * term.rates[kernel]).sum(-1))
            total += float(term.weights[kernel] * Spectrum(term.smoothness, self.dim).profile(scaled).sum())
        return total

    def _cut(self, term: LatticeTerm, kernel: int) -> float:
        cutoff = self.cutoff(term, kernel)
        return float(Spectrum(term.smoothness, self.dim).envelope_ratio(np.asarray(cutoff**2), cutoff))


def _narrowest(spectra: Sequence[Spectrum], cutoffs: Sequence[float], tolerance: float) -> tuple[Window, float]:
    """The narrowest window whose errors are no more than those of the cutoffs, or the best, and the ratio of these.

    Args:
        spectra: Of the terms.
        cutoffs: The grid's highest frequency in the units of each.
        tolerance: Of entries.
    """
    shares = np.square(np.linspace(0.0, 1.0, _SAMPLED_FREQUENCIES))  # of the cutoff
    found: list[tuple[float, Window]] = []
    for width in _WINDOWS:
        of_width = []
        for relative in _SHAPES:
            window = Window(width, float(relative * width))
            gain = np.minimum(np.square(1.0 + window.aliasing(math.pi * shares)) - 1.0, 1.0)
            worst = 0.0
            for spectrum, cutoff in zip(spectra, cutoffs, strict=True):
                along = Spectrum(spectrum.smoothness, 1).density(np.square(cutoff * shares))
                entry = spectrum.dim * cutoff / math.pi * float(np.trapezoid(along * gain, shares))
                amplified = (
                    along / along[0] * np.square(window.transform(np.zeros(1)) / window.transform(math.pi * shares))
                )
                if float(amplified.max()) > _MOST_AMPLIFIED:
                    worst = math.inf
                ratio = spectrum.envelope_ratio(np.square(cutoff * shares), cutoff)
                quadratic = float((ratio * gain).max()) / (_SHARE_OF_CUT * max(float(ratio[-1]), tolerance))
                worst = max(worst, entry / (0.4 * tolerance), quadratic)
            of_width.append((worst, window))
        found.append(min(of_width, key=operator.itemgetter(0)))
        if found[-1][0] <= 1.0:
            break
    error, window = min(found, key=operator.itemgetter(0))
    return window, error
