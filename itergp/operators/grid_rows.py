"""Rows on the grid of a lattice: sums of their values by a window, and values of the grid read off by it."""

from __future__ import annotations

import math
import warnings

import numpy as np
import scipy.fft
import scipy.sparse
import torch
from torch import Tensor

from itergp.operators.lattice import Lattice
from itergp.operators.tiles import slices

_CHUNK_ROWS = 2**16
_LARGEST_INDEX = 2**31 - 1
_MOST_CELLS = 2**23
_REACH = 6  # grid points beyond which envelopes are next to nothing


class GridRows:
    """Some rows, and the matrix of the window's values at their grid points.

    Args:
        lattice: The lattice.
        points: The rows' inputs ``(N, d)``, within the lattice's box.
        both_ways: Whether values of the rows are to be summed as well.
    """

    def __init__(self, lattice: Lattice, points: Tensor, *, both_ways: bool = True) -> None:
        self._device = points.device
        places = (points.detach().double().cpu().numpy() - lattice.low) / lattice.spacing
        first = np.ceil(places - 0.5 * lattice.window.width).astype(np.int64)
        cells = np.ravel_multi_index(tuple(np.mod(first, lattice.shape).T), lattice.shape)
        order = cells.argsort(kind="stable")  # neighbours one after another: their grid points stay in the cache
        matrix = self._matrix(lattice, places[order], first[order], np.dtype(str(points.dtype).removeprefix("torch.")))
        self._order = torch.from_numpy(order).to(points.device)
        self._back = torch.empty_like(self._order)
        self._back[self._order] = torch.arange(len(order), device=points.device)
        self._from_grid = self._tensor(matrix)
        self._to_grid = self._tensor(matrix.T.tocsr()) if both_ways else None

    @property
    def num_rows(self) -> int:
        """N."""
        return self._order.numel()

    @staticmethod
    def memory_of(lattice: Lattice, num_rows: int, itemsize: int) -> int:
        """Bytes that so many rows keep."""
        entries = num_rows * lattice.window.width**lattice.dim
        return 2 * entries * (itemsize + (4 if entries <= _LARGEST_INDEX else 8)) + 16 * num_rows

    @staticmethod
    def _matrix(lattice: Lattice, places: np.ndarray, first: np.ndarray, dtype: np.dtype) -> scipy.sparse.csr_matrix:
        """Values ``(N, G)`` of the window."""
        width, size = lattice.window.width, places.shape[0]
        number = width**lattice.dim
        index = np.int32 if max(size * number, math.prod(lattice.shape)) <= _LARGEST_INDEX else np.int64
        data, columns = np.empty((size, number), dtype), np.empty((size, number), index)
        offsets = np.arange(width)
        for rows in slices(size, _CHUNK_ROWS):
            values, numbers = np.ones((rows.stop - rows.start, 1)), np.zeros((rows.stop - rows.start, 1), np.int64)
            for axis, points in enumerate(lattice.shape):
                near = first[rows, axis, None] + offsets
                window = lattice.window(near - places[rows, axis, None])
                values = (values[:, :, None] * window[:, None]).reshape(len(values), -1)
                numbers = (numbers[:, :, None] * points + np.mod(near, points)[:, None]).reshape(len(values), -1)
            data[rows], columns[rows] = values, numbers
        starts = np.arange(0, size * number + 1, number, dtype=index)
        shape = (size, math.prod(lattice.shape))
        return scipy.sparse.csr_matrix((data.ravel(), columns.ravel(), starts), shape=shape)

    def _tensor(self, matrix: scipy.sparse.csr_matrix) -> Tensor:
        parts = (matrix.indptr, matrix.indices, matrix.data)
        starts, numbers, values = (torch.from_numpy(part).to(self._device) for part in parts)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
            return torch.sparse_csr_tensor(starts, numbers, values, size=matrix.shape, check_invariants=False)

    def sums(self, values: Tensor) -> Tensor:
        """Sums ``(G, k)`` at the grid's points of values ``(N, k)``."""
        assert self._to_grid is not None
        return self._to_grid @ values.index_select(0, self._order)

    def at_rows(self, grid: Tensor) -> Tensor:
        """Values ``(N, k)`` from the grid's ``(G, k)``."""
        return (self._from_grid @ grid).index_select(0, self._back)


def largest_row_sum(lattice: Lattice, points: Tensor, kernel: int) -> float:
    """A bound on the largest sum of a row of the matrix of ``Lattice.envelope``, from how many rows are in each cell."""
    parts = 2 if math.prod(lattice.shape) * 2**lattice.dim <= _MOST_CELLS else 1  # of a grid point's spacing
    places = (points.detach().double().cpu().numpy() - lattice.low) / lattice.spacing * parts
    cells = np.floor(places).astype(np.int64)
    cells -= cells.min(0)
    reach, used = _REACH * parts, cells.max(0) + 1
    shape = tuple(scipy.fft.next_fast_len(int(n), real=True) for n in used + reach)
    counts = np.bincount(np.ravel_multi_index(tuple(cells.T), shape), minlength=math.prod(shape)).reshape(shape)
    axes = [np.minimum(np.arange(n), n - np.arange(n)) for n in shape]
    # How far rows of such cells are apart at least.
    near = [np.maximum(axis[axis <= reach] - 1.0, 0.0) / parts for axis in axes]
    values = np.zeros(shape)
    distances = np.stack(np.meshgrid(*near, indexing="ij"), -1)
    values[np.ix_(*[axis <= reach for axis in axes])] = lattice.envelope(kernel, distances)
    sums = scipy.fft.irfftn(scipy.fft.rfftn(counts) * scipy.fft.rfftn(values), s=shape)
    beyond = lattice.envelope(kernel, np.eye(lattice.dim) * (_REACH - 1.0 / parts)).max()
    rounding = 64.0 * np.finfo(float).eps * len(places)
    return float(sums.max()) + len(places) * (float(beyond) + rounding)
