"""Places of dates in time, in the year, in the week and in the day."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PARTS = ("trend", "season", "weekday", "hour")
_YEAR = 365.2425  # days, the mean of the Gregorian calendar
_THURSDAY = 3.0  # 1970 began on one


def encode_part(part: str, days: Array) -> Array:
    """One aspect of dates.

    Args:
        part: One of ``PARTS``.
        days: Days since 1970 ``(N,)``, finite.

    Returns:
        ``(N, 1)`` years since 1970 for the trend, otherwise ``(N, 2)`` sine and cosine of the place in the year, week or
        day. The places in the week and in the year are those of whole days.
    """
    if part == "trend":
        return days[:, None] / _YEAR
    whole = np.floor(days)
    if part == "hour":
        turn = days - whole
    elif part == "weekday":
        turn = (whole + _THURSDAY) % 7.0 / 7.0
    else:
        dates = whole.astype("datetime64[D]")
        first = dates.astype("datetime64[Y]")
        length = (first + 1).astype("datetime64[D]") - first.astype("datetime64[D]")
        turn = (dates - first.astype("datetime64[D]")).astype(np.float64) / length.astype(np.float64)
    angle = 2.0 * np.pi * turn
    return np.stack([np.sin(angle), np.cos(angle)], -1)
