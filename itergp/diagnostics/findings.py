"""One thing seen in a trace, and how its numbers are written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something that a trace shows.

    Attributes:
        kind: One word for it.
        observed: What was seen, in sentences with its figures.
        change: What to change, in sentences; empty when nothing needs to change.
    """

    kind: str
    observed: str
    change: str


def number(value: float) -> str:
    """Two or three digits that count, without an exponent where it reads well."""
    size = abs(value)
    if size >= 1e6 or 0.0 < size < 1e-3:
        return f"{value:.2g}"
    return f"{value:,.0f}" if size >= 100 else f"{value:.3g}"


def share(value: float) -> str:
    """A share in per cent."""
    return f"{100.0 * value:.0f} %" if 0.01 <= value <= 0.99 or value in (0.0, 1.0) else f"{100.0 * value:.3g} %"


def memory(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024.0:
            return f"{count:.0f} {unit}"
        count /= 1024.0
    return f"{count:.1f} GiB"


def several(count: int, noun: str, plural: str = "") -> str:
    """``1 pass``, ``2 passes``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
