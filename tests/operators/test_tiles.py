"""Tiles of a matrix: each block once, no two at the same place at once, whatever the number of threads."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import threading
import time

import pytest
import torch
from helpers import assert_close, make_inputs, make_kernel
from hypothesis import given
from hypothesis import strategies as st

from itergp.operators import make_operator, tiles
from itergp.operators.block_store import BlockStore


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "_SIDE", 8)
    monkeypatch.setattr(tiles, "_SMALLEST_SIDE", 4)
    monkeypatch.setattr(tiles, "_WORTH_A_THREAD", 1)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


@given(start=st.integers(0, 50), size=st.integers(0, 500), most=st.integers(1, 60))
def test_slices_cover_a_range_evenly(start, size, most):
    found = tiles.slices(size, most, start)
    assert [k for piece in found for k in range(piece.start, piece.stop)] == list(range(start, start + size))
    sizes = [piece.stop - piece.start for piece in found]
    assert max(sizes, default=0) <= most
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [1, 7, 33, 64, 601])
def test_every_entry_of_the_upper_half_is_visited_once(size, threads, small_tiles, three_threads):
    visits, squares = torch.zeros(size, size, dtype=torch.int64), []

    def work(i: slice, j: slice) -> int:
        visits[i, j] += 1
        if i == j:
            squares.append(i)
        return (i.stop - i.start) * (j.stop - j.start)

    evaluated = tiles.symmetric(size, 8, work, threads)
    for i in squares:
        visits[i, i] = visits[i, i].triu()
    assert torch.equal(visits, torch.ones(size, size, dtype=torch.int64).triu())
    assert evaluated == size * (size + 1) // 2 + sum((i.stop - i.start) * (i.stop - i.start - 1) // 2 for i in squares)
    visits = torch.zeros(size, 45, dtype=torch.int64)
    assert tiles.rectangular(size, 45, 8, work, threads) == size * 45
    assert bool((visits == 1).all())


def test_tasks_that_share_a_claim_run_in_order_and_others_together(three_threads):
    running, most, order = set(), [], []
    lock = threading.Lock()

    def task(number: int, claims: tuple[int, ...]) -> int:
        with lock:
            assert not running.intersection(claims)
            running.update(claims)
            most.append(len(running) // 2)
        time.sleep(0.002)
        assert torch.get_num_threads() == 1
        assert not torch.is_grad_enabled()
        with lock:
            running.difference_update(claims)
            order.append((number, claims))
        return 1

    claims = [pair for pair in tiles._pairs(7) if pair[0] != pair[1]]
    tasks = [(pair, lambda n=n, pair=pair: task(n, pair)) for n, pair in enumerate(claims)]
    assert tiles.run(tasks, three_threads) == len(claims) == 21
    assert max(most) > 1
    for band in range(7):
        numbers = [n for n, pair in order if band in pair]
        assert numbers == sorted(numbers)
        assert len(numbers) == 6
    assert torch.get_num_threads() == 3


def test_a_failing_task_ends_the_others_and_is_told(three_threads):
    done = []

    def task(number: int) -> int:
        if number == 4:
            raise ValueError("the fifth")
        time.sleep(0.001)
        done.append(number)
        return 1

    tasks = [((n,), lambda n=n: task(n)) for n in range(400)]
    with pytest.raises(ValueError, match="the fifth"):
        tiles.run(tasks, three_threads)
    assert len(done) < 100
    assert tiles.run(tasks[:4], three_threads) == 4


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no such signals on this system")
def test_ctrl_c_ends_a_pass_at_once(three_threads):
    done = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    def task(number: int) -> int:
        if number == 4:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.001)
        done.append(number)
        return 1

    tasks = [((n,), lambda n=n: task(n)) for n in range(4000)]
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT011 - it has no message
            tiles.run(tasks, three_threads)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(done) < 2000
    assert tiles.run(tasks[:4], three_threads) == 4


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", ["blocked", "dense"])
def test_threads_change_no_product(kind, mode, small_tiles, three_threads):
    """To the last bit: what is added up does not depend on who gets there first."""
    x, block = make_inputs(333, 3, torch.float32), torch.randn(333, 5)
    for width in (1, 40):  # vectors as rows, and as columns
        found = []
        for threads in (1, 3, 3):
            torch.set_num_threads(threads)
            with mode():
                operator = make_operator(make_kernel(), x, kind=kind)
                vectors = block[:, :1].repeat(1, width)
                found.append((operator.matmul(vectors), operator.cross_matmul(x[:50], vectors)))
        for products in found[1:]:
            for product, wanted in zip(products, found[0], strict=True):
                assert torch.equal(product, wanted)


def test_derivatives_in_threads(small_tiles, three_threads):
    x, gradients = make_inputs(60, 2), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        kernel = make_kernel().double()
        inputs = x.clone().requires_grad_(True)
        block = make_inputs(60, 2, seed=1).requires_grad_(True)
        product = make_operator(kernel, inputs, kind="blocked").matmul(block)
        wanted = [inputs, block, kernel.base_kernel.raw_lengthscale, kernel.raw_outputscale]
        gradients.append(torch.autograd.grad(product.square().sum(), wanted))
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_has_threads_of_its_own(three_threads):
    tasks = [((n,), lambda: 1) for n in range(20)]
    assert tiles.run(tasks, three_threads) == 20
    child = os.fork()
    if child == 0:
        os._exit(tiles.run(tasks, three_threads))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 20


def test_kept_blocks_lie_side_by_side():
    store, blocks = BlockStore(1000), {(0, k): torch.randn(2, 3, 7 + k) for k in range(20)}
    for key, entries in blocks.items():
        assert torch.equal(store.keep(key, entries), entries)
    assert len(store) == 20
    assert (0, 3) in store
    assert (1, 3) not in store
    assert all(torch.equal(store[key], entries) for key, entries in blocks.items())
    pieces = {store[key].untyped_storage().data_ptr() for key in blocks}
    assert len(pieces) <= 4
    assert all(store[key].data_ptr() % 64 == 0 for key in blocks)
    other = pickle.loads(pickle.dumps(copy.deepcopy(store)))
    assert len(other) == 0
    assert torch.equal(other.keep((0, 0), blocks[0, 0]), blocks[0, 0])
