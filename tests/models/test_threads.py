"""Several threads at once: GPyTorch's settings belong to the whole process, so posteriors are used by one at a time."""

from __future__ import annotations

import os
import sys
import threading

import gpytorch
import pytest
import torch
from helpers import SimpleGP, make_binary, make_inputs

from itergp.likelihoods import BernoulliLikelihood
from itergp.models.threads import turn


def _together(act, count: int) -> list:
    """What a function returns in several threads at once, or raises."""
    found = [None] * count

    def run(number: int) -> None:
        try:
            found[number] = act(number)
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture
def busy():
    """Threads take turns every ten microseconds."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def test_predictions_of_several_threads_are_those_of_one(busy):
    x, y = make_binary(40)
    kernel = gpytorch.kernels.PeriodicKernel(active_dims=[0]) * gpytorch.kernels.RBFKernel(active_dims=[1])
    model = SimpleGP(x, y, BernoulliLikelihood(), kernel=kernel).double().eval()
    points = make_inputs(9, seed=3)
    expected = model.predict(points).probs.detach()

    def predict(number: int) -> list[torch.Tensor]:
        if number % 2:
            return [torch.cat([part.probs for _, part in model.predict_batches(points, 3)]) for _ in range(20)]
        return [model.predict(points).probs for _ in range(20)]

    found = _together(predict, 6)
    assert not [error for error in found if isinstance(error, Exception)]
    for probs in (probs for part in found for probs in part):
        torch.testing.assert_close(probs.detach(), expected)
    assert gpytorch.settings.lazily_evaluate_kernels.on()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_does_not_have():
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with turn():
            taken.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if turn().acquire(timeout=10.0) else 1)
    _, status = os.waitpid(child, 0)
    done.set()
    holder.join()
    assert status == 0
