"""``MedianTree``: points divided at medians, again and again, by weights that fade across every border."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Share of a node's points, at most, that one child may get of the widest column, or another column is tried.
_LARGEST_SHARE = 0.8


@dataclass(frozen=True)
class MedianTree:
    """Weights of overlapping leaves at any point: at least 0, summing to 1, continuously differentiable in the point.

    A node divides points by one column: what lies below ``lower`` goes to its first child, what lies above ``upper`` to its
    second, and what lies between to both, with weights that fade like a cubic. The weight of a leaf is the product of those on
    the way to it. A hard border where equal values are many: the band then lies between two values that follow one another.

    Attributes:
        columns: Column that each node divides by, -1 for a leaf ``(n,)``, the root first.
        bands: ``lower`` and ``upper`` of each node ``(n, 2)``, float64.
        children: Numbers of both children ``(n, 2)``.
    """

    columns: Tensor
    bands: Tensor
    children: Tensor

    @property
    def num_leaves(self) -> int:
        """Number of leaves."""
        return int((self.columns < 0).sum())

    @classmethod
    def grow(cls, points: Tensor, num_points: int, overlap: float) -> MedianTree:
        """Divides points until no leaf has weight at more than ``num_points`` of them.

        Each node takes the column in which its points differ most, unless that leaves nearly all of them together. Where all
        points of a node are equal, they stay together however many there are.

        Args:
            points: ``(N, D)``, in units in which columns compare.
            num_points: Points of a leaf, at most.
            overlap: Share of a node's points, around the median, that both children get; at least 0, less than a half.
        """
        columns: list[int] = []
        bands: list[tuple[float, float]] = []
        children: list[list[int]] = []
        waiting: list[tuple[Tensor, int]] = [(torch.arange(points.shape[0], device=points.device), -1)]
        while waiting:
            rows, place = waiting.pop()
            number = len(columns)
            if place >= 0:
                children[place // 2][place % 2] = number
            found = _division(points, rows, overlap) if rows.numel() > num_points else None
            columns.append(-1 if found is None else found[0])
            bands.append((0.0, 0.0) if found is None else found[1])
            children.append([-1, -1])
            if found is not None:
                share = _share(points, rows, *found)
                waiting.append((rows[share > 0.0], 2 * number + 1))
                waiting.append((rows[share < 1.0], 2 * number))
        device = points.device
        return cls(
            torch.tensor(columns, device=device),
            torch.tensor(bands, dtype=torch.float64, device=device),
            torch.tensor(children, device=device),
        )

    def leaves(self, points: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each leaf in order the numbers of the points ``(m,)`` where its weight is not 0, and those weights, float64.

        Args:
            points: ``(M, D)``, in the units of the tree's.
        """
        everything = torch.arange(points.shape[0], device=points.device)
        waiting = [(0, everything, points.new_ones(points.shape[0], dtype=torch.float64))]
        columns, bands, children = self.columns.tolist(), self.bands.tolist(), self.children.tolist()
        while waiting:
            node, rows, weights = waiting.pop()
            if columns[node] < 0:
                yield rows, weights
                continue
            share = _share(points, rows, columns[node], bands[node])
            for child, part in ((children[node][1], share), (children[node][0], 1.0 - share)):
                inside = part > 0.0
                waiting.append((child, rows[inside], (weights * part)[inside]))


def _share(points: Tensor, rows: Tensor, column: int, band: Sequence[float]) -> Tensor:
    """The weight of the second child at some points ``(m,)``, float64."""
    lower, upper = band
    share = ((points[rows, column].double() - lower) / (upper - lower)).clamp(0.0, 1.0)
    return share.square() * (3.0 - 2.0 * share)


def _division(points: Tensor, rows: Tensor, overlap: float) -> tuple[int, tuple[float, float]] | None:
    """Column and band by which a node divides its points; None where these are all equal."""
    widths = [float(column[rows].double().std(correction=0)) for column in points.unbind(-1)]
    best: tuple[int, int, tuple[float, float]] | None = None
    for column in sorted(range(len(widths)), key=lambda number: -widths[number]):
        found = _band(points[rows, column].double().sort().values, overlap)
        if found is None:
            continue
        largest, band = found
        if best is None or largest < best[0]:
            best = largest, column, band
        if largest <= _LARGEST_SHARE * rows.numel():
            return column, band
    return None if best is None else best[1:]


def _band(values: Tensor, overlap: float) -> tuple[int, tuple[float, float]] | None:
    """The band around the median of sorted values ``(m,)``, and how many points the larger child gets; None of equal ones."""
    size = values.numel()
    half = int(0.5 * overlap * size)
    lower, upper = float(values[(size - 1) // 2 - half]), float(values[size // 2 + half])
    bands = [(lower, upper)]
    if not lower < upper:  # equal values at the median: from these to the next ones above, or below
        above, below = values[values > upper], values[values < lower]
        bands = [(upper, float(above[0]))] if above.numel() else []
        bands += [(float(below[-1]), lower)] if below.numel() else []
    sizes = [max(int((values < high).sum()), int((values > low).sum())) for low, high in bands]
    return min(zip(sizes, bands, strict=True), default=None)
