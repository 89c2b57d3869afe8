"""Functions that keep their digits in the tails, for log-densities and distribution functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# exp(f) overflows float32 above 88: beyond this value it is continued linearly, which keeps log-densities finite,
# concave and differentiable once; no posterior lives there.
MAX_EXPONENT = 80.0

_SMALL = 0.25  # up to here series for masses of short intervals; their next terms are below 1e-12
_NEGLIGIBLE = 5.0  # exp(-exp(5)) is no number beside 1
_SHORT = 1e-4  # interval of a standard normal, times its distance: differences lose digits there, and a series does not

_CHUNK = 2**18  # elements of a continued fraction that are iterated together: few enough to stay in cache
_MAX_ITERATIONS = 20_000
_LARGE = 2_000.0  # both parameters above this: a normal approximation is more accurate than 2e-5


def continued_exp(x: Tensor, limit: float = MAX_EXPONENT) -> tuple[Tensor, Tensor]:
    """``exp(x)`` and its derivative, continued linearly beyond ``limit``."""
    capped = x.clamp_max(limit)
    slope = capped.exp()
    return slope * (1.0 + x - capped), slope


def log1mexp(x: Tensor) -> Tensor:
    """``log(1 - exp(-x))`` for ``x > 0``, accurate for small and large ``x``."""
    small = x.clamp(torch.finfo(x.dtype).tiny, 1.0)
    return torch.where(x < 0.7, torch.log(-torch.expm1(-small)), torch.log1p(-torch.exp(-x.clamp_min(0.5))))


def log_mass(log_x: Tensor) -> Tensor:
    """``log(1 - exp(-x))`` given ``log(x)``, accurate and twice differentiable wherever ``x`` itself under- or overflows."""
    small = log_x.clamp_max(math.log(_SMALL)).exp()
    series = small * (-0.5 + small / 24.0 * (1.0 - small.square() / 120.0 * (1.0 - small.square() / 63.0)))
    large = log_x.clamp(math.log(_SMALL), _NEGLIGIBLE).exp()
    return torch.where(log_x < math.log(_SMALL), log_x + series, torch.log(-torch.expm1(-large)))


def mass_slopes(log_x: Tensor) -> tuple[Tensor, Tensor]:
    """``r = x / (exp(x) - 1)``, the slope of ``log_mass`` in ``log(x)``, and ``-x r'(x)``, without cancellation.

    Args:
        log_x: ``log(x)``.
    """
    x = log_x.clamp_max(_NEGLIGIBLE).exp()
    small, large = x.clamp_max(_SMALL), x.clamp_min(_SMALL)
    square = small.square()
    above = 0.5 * small + square / 12.0 * (1.0 - square / 60.0 * (1.0 - square / 42.0 * (1.0 - square / 40.0)))
    ratio = torch.where(x < _SMALL, 1.0 - small + above, large / torch.expm1(large))
    return ratio, ratio * torch.where(x < _SMALL, above, large + ratio - 1.0)


def inverse_mills(margin: Tensor) -> Tensor:
    """``N(z) / Phi(z)``, through the scaled complementary error function so that neither tail overflows."""
    root_half, root_two_over_pi = math.sqrt(0.5), math.sqrt(2.0 / math.pi)
    lower = root_two_over_pi / torch.special.erfcx(-root_half * margin.clamp_max(0.0))
    positive = margin.clamp_min(0.0)
    upper = torch.exp(-0.5 * positive.square()) / (math.sqrt(2.0 * math.pi) * torch.special.ndtr(positive))
    return torch.where(margin > 0.0, upper, lower)


def mills_slope(margin: Tensor, ratio: Tensor) -> Tensor:
    """``r (r + z)``, minus the second derivative of ``log Phi(z)``, given ``r = inverse_mills(z)``.

    It tends to 1 as z -> -inf; there the difference cancels and a series replaces it.
    """
    inverse_square = margin.clamp_max(-1.0).square().reciprocal()
    # ratio + z = 1/|z| - 2/|z|^3 + 10/|z|^5 - ...; ratio ~ |z| + 1/|z| - 2/|z|^3 + 10/|z|^5
    tail = 1.0 - inverse_square * (1.0 - inverse_square * (6.0 - 50.0 * inverse_square))
    cut = -12.0 if margin.dtype == torch.float32 else -1e3
    return torch.where(margin < cut, tail, ratio * (ratio + margin)).clamp_min(0.0)


def normal_interval(upper: Tensor, lower: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probability that a standard normal falls between two bounds, with its relative derivatives.

    The interval is reflected so that its middle is not positive. Where all of it is, the probability is a scaled
    complementary error function times what the lower end leaves of it, and no difference of two numbers near 0 or 1 is
    taken; otherwise it is a sum of two error functions. Float64 throughout.

    Args:
        upper: Upper bounds, finite.
        lower: Lower bounds, finite, each below the upper.

    Returns:
        ``log P``, ``N(upper) / P`` and ``N(lower) / P``, float64.
    """
    upper, lower = upper.double(), lower.double()
    reflect = upper + lower > 0.0
    high, low = torch.where(reflect, -lower, upper), torch.where(reflect, -upper, lower)
    root_half, tail = math.sqrt(0.5), high <= 0.0

    far_high, far_low = high.clamp_max(0.0), torch.where(tail, low, -1.0 + high.clamp_max(0.0))
    exponent = 0.5 * (far_high - far_low) * (far_high + far_low)  # log N(low) - log N(high)
    scaled = torch.special.erfcx(-root_half * far_high)
    drop = torch.log(scaled) - exponent - torch.log(torch.special.erfcx(-root_half * far_low))
    log_tail = -0.5 * far_high.square() + torch.log(0.5 * scaled) + log1mexp(drop)
    tail_high = math.sqrt(2.0 / math.pi) / (scaled * -torch.expm1(-drop))
    tail_low = tail_high * torch.exp(exponent)

    near_high, near_low = high.clamp_min(0.0), torch.where(tail, -1.0, low)
    mass = 0.5 * (torch.erf(root_half * near_high) - torch.erf(root_half * near_low))
    scale = math.sqrt(2.0 * math.pi) * mass
    middle_high, middle_low = torch.exp(-0.5 * near_high**2) / scale, torch.exp(-0.5 * near_low**2) / scale

    log_mass = torch.where(tail, log_tail, torch.log(mass))
    at_high, at_low = torch.where(tail, tail_high, middle_high), torch.where(tail, tail_low, middle_low)
    return log_mass, torch.where(reflect, at_low, at_high), torch.where(reflect, at_high, at_low)


def interval_curvature(upper: Tensor, lower: Tensor, at_upper: Tensor, at_lower: Tensor) -> Tensor:
    """Minus the second derivative of ``log P(l < Z < u)`` for a shift of both bounds, between 0 and 1; float64.

    Args:
        upper: u.
        lower: l.
        at_upper: ``N(u) / P``, see ``normal_interval``.
        at_lower: ``N(l) / P``.
    """
    curvature = (at_upper - at_lower).square() + upper.double() * at_upper - lower.double() * at_lower
    return curvature.clamp(0.0, 1.0)


def interval_slopes(lower: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``log P(a < Z < a + h)`` of a standard normal, minus its slope in a, and minus its curvature, which is between 0 and 1.

    Args:
        lower: a, finite.
        width: h, positive, however small.

    Returns:
        The three, float64.
    """
    lower, width = lower.double(), width.double()
    middle, square = lower + 0.5 * width, width.square()
    short = width * (1.0 + middle.abs()) < _SHORT
    upper = lower + torch.where(short, 1.0, width)
    log_probability, at_upper, at_lower = normal_interval(upper, lower)
    bend = interval_curvature(upper, lower, at_upper, at_lower)
    # The density in the middle times the width, and the next term of the expansion of the integral.
    density = width.log() - 0.5 * middle.square() - 0.5 * math.log(2.0 * math.pi)
    log_short = density + square * (middle.square() - 1.0) / 24.0
    slope = torch.where(short, middle * (1.0 - square / 12.0), at_lower - at_upper)
    return torch.where(short, log_short, log_probability), slope, torch.where(short, 1.0 - square / 12.0, bend)


@torch.no_grad()
def betainc(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """Regularised incomplete beta function ``I_x(a, b)``, float64.

    A continued fraction (Abramowitz & Stegun 26.5.8, evaluated by the modified Lentz algorithm) to 1e-12; where both
    parameters exceed 2,000, the normal approximation 26.5.22, to 2e-5.

    Args:
        a: Positive, broadcast with the others.
        b: Positive.
        x: Between 0 and 1.
    """
    a, b, x = torch.broadcast_tensors(a.double(), b.double(), x.double())
    out = torch.empty_like(x).flatten()
    flat = [t.flatten() for t in (a, b, x)]
    for rows in torch.arange(out.numel(), device=out.device).split(_CHUNK):
        out[rows] = _betainc(*(t[rows] for t in flat))
    return out.view(x.shape)


def _betainc(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    swap = x > (a + 1.0) / (a + b + 2.0)  # the fraction converges on one side, symmetry gives the other
    first, second, at = torch.where(swap, b, a), torch.where(swap, a, b), torch.where(swap, 1.0 - x, x)
    inside = (at > 0.0) & (torch.minimum(first, second) < _LARGE)
    value = torch.zeros_like(x)
    if bool(inside.any()):
        p, q, t = first[inside], second[inside], at[inside]
        log_front = p * t.log() + q * torch.log1p(-t) + torch.lgamma(p + q) - torch.lgamma(p) - torch.lgamma(q)
        value[inside] = torch.exp(log_front) * _beta_fraction(p, q, t) / p
    value = torch.where(swap, 1.0 - value, value).clamp(0.0, 1.0)
    large = (torch.minimum(a, b) >= _LARGE) & (x > 0.0) & (x < 1.0)
    return torch.where(large, _large_betainc(a, b, x), value)


def _beta_fraction(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    tiny = 1e-300
    c = torch.ones_like(x)
    d = 1.0 - (a + b) * x / (a + 1.0)
    d = torch.where(d.abs() < tiny, tiny, d).reciprocal()
    total = d.clone()
    for m in range(1, _MAX_ITERATIONS):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0)),
        ):
            d = 1.0 + numerator * d
            d = torch.where(d.abs() < tiny, tiny, d).reciprocal()
            c = 1.0 + numerator / c
            c = torch.where(c.abs() < tiny, tiny, c)
            factor = c * d
            total = total * factor
        if m % 4 == 0 and float((factor - 1.0).abs().max()) < 1e-13:
            break
    return total


def _large_betainc(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """Cube roots of Gamma variables are nearly normal (Abramowitz & Stegun 26.5.22)."""
    first, second = (b * x).pow(1.0 / 3.0), (a * (1.0 - x)).pow(1.0 / 3.0)
    spread = (first.square() / b + second.square() / a).clamp_min(1e-300).sqrt()
    return torch.special.ndtr(3.0 * (first * (1.0 - 1.0 / (9.0 * b)) - second * (1.0 - 1.0 / (9.0 * a))) / spread)
