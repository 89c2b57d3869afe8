"""Tiles of a kernel matrix, shared among threads: each evaluates blocks that stay in its own core's cache.

Dividing every elementwise operation among threads, as PyTorch does, moves a block from core to core between operations and
waits for all of them after each. One block for one thread does neither.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import torch

# Rows and columns of a block: a mebibyte in float32, or enough for all of a GPU.
_SIDE, _SMALLEST_SIDE, _SIDE_ELSEWHERE = 512, 128, 4096
_MANY_COLUMNS = 256  # of a product whose time is that of multiplying, whatever is in the cache
_MANY_TILES, _MAX_TILES = 4, 64  # along one side of the matrix
_WORTH_A_THREAD = 2**20  # entries

Task = tuple[tuple[Hashable, ...], Callable[[], int]]
Work = Callable[[slice, slice], int]


def side_of_block(device: torch.device, num_kernels: int = 1, columns: int = 0) -> int:
    """Rows and columns of a block of entries for so many kernels at once, multiplied by so many columns."""
    side = _SIDE if device.type == "cpu" else _SIDE_ELSEWHERE
    side *= 2 if columns >= _MANY_COLUMNS else 1
    return max(_SMALLEST_SIDE, int(side / math.sqrt(num_kernels)))


def slices(size: int, most: int, start: int = 0) -> list[slice]:
    """``range(start, start + size)`` in as few slices as it takes, of nearly the same size.

    Args:
        size: How many numbers.
        most: Of them in a slice.
        start: The first.
    """
    number = math.ceil(size / most)
    edges = [start + size * k // number for k in range(number + 1)] if number else []
    return [slice(low, high) for low, high in itertools.pairwise(edges)]


def symmetric(size: int, side: int, work: Work, threads: int) -> int:
    """Calls a function for every block on and above the diagonal; no other call has any of its rows and columns meanwhile.

    Args:
        size: Rows and columns of the matrix.
        side: Most of a block.
        work: Function of a slice of rows and one of columns, the same slice or a later one. It returns the entries evaluated.
        threads: See ``run``.

    Returns:
        Entries evaluated.
    """
    parts, tasks = _bands(size, side), []
    for a, b in _pairs(len(parts)):
        most = max(1, side // 2) if a == b else side  # squares on the diagonal are evaluated whole
        tasks.append(((a, b), functools.partial(_each, work, parts[a], parts[b], most, upper=a == b)))
    return run(tasks, threads)


def rectangular(rows: int, cols: int, side: int, work: Work, threads: int) -> int:
    """Calls a function for every block of a rectangle; no other call has any of its rows, or of its columns, meanwhile.

    Args:
        rows: Number of rows.
        cols: Number of columns.
        side: Most of a block.
        work: Function of a slice of rows and one of columns. It returns the entries evaluated.
        threads: See ``run``.

    Returns:
        Entries evaluated.
    """
    tasks: list[Task] = []
    of_rows, of_cols = _bands(rows, side), _bands(cols, side)
    for shift in range(len(of_cols)):
        for a, band in enumerate(of_rows):
            b = (a + shift) % len(of_cols)
            claims = ("rows", a), ("columns", b)
            tasks.append((claims, functools.partial(_each, work, band, of_cols[b], side)))
    return run(tasks, threads)


def _each(work: Work, rows: slice, cols: slice, most: int, upper: bool = False) -> int:
    """Calls a function for the blocks of a tile; of one on the diagonal, for those on and above it."""
    sides = [slices(band.stop - band.start, most, band.start) for band in (rows, cols)]
    blocks = itertools.product(*sides)
    return sum(work(i, j) for i, j in blocks if i.start <= j.start or not upper)


def _bands(size: int, side: int) -> list[slice]:
    """Rows of the bands whose pairs are the tiles: enough of them for every core, whatever their number here."""
    blocks = max(1, math.ceil(size / (side * _MAX_TILES)))  # along a side of a tile
    number = max(1, min(2 * size // side, _MANY_TILES), math.ceil(size / (side * blocks)))
    return slices(size, math.ceil(size / number))


def _pairs(number: int) -> Iterator[tuple[int, int]]:
    """All pairs ``a <= b`` of so many bands, each with itself first, then in rounds in which no band occurs twice.

    The rounds are those of a tournament: one band stays, the others move round by one place.
    """
    yield from ((a, a) for a in range(number))
    ring = list(range(number + number % 2))  # an odd one out rests
    for _ in range(len(ring) - 1):
        for a, b in zip(ring[: len(ring) // 2], reversed(ring), strict=False):
            if max(a, b) < number:
                yield min(a, b), max(a, b)
        ring[1:] = [ring[-1], *ring[1:-1]]


def threads_for(device: torch.device, entries: int) -> int:
    """Threads worth sharing so many entries: PyTorch's number on a CPU, one for few entries and elsewhere."""
    return min(torch.get_num_threads(), max(1, entries // _WORTH_A_THREAD)) if device.type == "cpu" else 1


def run(tasks: Sequence[Task], threads: int) -> int:
    """Calls every task, in several threads at once; the sum of what they return.

    Tasks with a claim in common run one after another in the order given, so that what they add up does not depend on the
    number of threads.

    Args:
        tasks: For each its claims, anything hashable, and a function. It runs without derivatives.
        threads: How many; PyTorch is left a single one in each of them. With one, everything happens in the calling thread.

    Raises:
        Exception: What the first failing task raised; those not yet begun are left out.
    """
    if threads == 1 or len(tasks) < 2:
        with torch.no_grad():
            return sum(call() for _, call in tasks)
    queue, inference = _Queue(tasks), torch.is_inference_mode_enabled()

    def work() -> int:
        with torch.inference_mode(inference), torch.no_grad():  # both are a thread's own
            return sum(call() for call in queue)

    futures = [_pool(torch.get_num_threads()).submit(queue.guard, work) for _ in range(threads)]
    try:
        return sum(future.result() for future in futures)
    except BaseException:  # a task's, or Ctrl-C, which comes to the main thread alone
        queue.stop()
        wait(futures)
        raise


class _Queue:
    """Tasks in order, each handed out when those before it that share a claim are done."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._done: Counter[Hashable] = Counter()
        self._changed = threading.Condition()
        self._stopped = False
        self._items = iter(_with_turns(tasks))

    def __iter__(self) -> Iterator[Callable[[], int]]:
        """Tasks for one thread, until there are none or the queue is stopped."""
        while (item := self._next()) is not None:
            turns, call = item
            yield call
            with self._changed:
                self._done.update(turns.keys())
                self._changed.notify_all()

    def _next(self) -> tuple[dict[Hashable, int], Callable[[], int]] | None:
        with self._changed:
            item = None if self._stopped else next(self._items, None)
            if item is not None:
                turns = item[0]
                self._changed.wait_for(lambda: self._stopped or all(self._done[c] == n for c, n in turns.items()))
            return None if self._stopped else item

    def stop(self) -> None:
        """Hands out nothing more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def guard(self, work: Callable[[], int]) -> int:
        """The result of ``work``; if it fails, the other threads stop as well."""
        try:
            return work()
        except BaseException:
            self.stop()
            raise


def _with_turns(tasks: Sequence[Task]) -> Iterator[tuple[dict[Hashable, int], Callable[[], int]]]:
    """For each task, how many before it have each of its claims."""
    before: Counter[Hashable] = Counter()
    for claims, call in tasks:
        yield {claim: before[claim] for claim in claims}, call
        before.update(set(claims))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads in each of which PyTorch uses one."""
    everyone = threading.Barrier(threads)

    def begin() -> None:
        torch.get_num_threads()  # the process's number is read once in every thread: before it is changed
        torch.set_num_threads(1)
        everyone.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="itergp-tiles", initializer=begin)
    wait([pool.submit(int) for _ in range(threads)])
    torch.set_num_threads(threads)  # for threads to come: the last call in any thread counts for those
    return pool


if hasattr(os, "register_at_fork"):  # threads do not live on in a forked process
    os.register_at_fork(after_in_child=_pool.cache_clear)
