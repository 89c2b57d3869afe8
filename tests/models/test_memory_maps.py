"""Inputs in a file larger than what memory there is: checked, learned from, conditioned on and predicted a part at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from itergp.likelihoods import BernoulliLikelihood
from itergp.models import GP
from itergp.solvers import LinearTimeNewton

# Memory of the process's own is what the limit is on: pages of a file that is mapped are the system's, which takes them back.
PROGRAM = """
    import resource, sys
    import numpy as np, torch, itergp
    from itergp.likelihoods import BernoulliLikelihood
    from itergp.models import GP
    from itergp.solvers import LinearTimeNewton
    torch.set_num_threads(1)

    def run(x, steps, budget):
        y = torch.from_numpy((x[:, 0] > 0).astype(np.int64))
        solver = LinearTimeNewton(num_support=32, covariance_rank=16, num_neighbours=0)
        model = GP(x, y, BernoulliLikelihood(), solver=solver, approximation="laplace", memory_budget=budget).eval()
        if steps:
            itergp.fit(model, max_iterations=steps)
        else:
            model.condition()
        return sum(len(part.probs) for _, part in model.predict_batches(x))

    run(np.random.default_rng(0).normal(size=(2000, 5)).astype(np.float32), 1, 2**26)  # what libraries keep for themselves
    held = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (held + int(sys.argv[2]),) * 2)
    x = np.load(sys.argv[1], mmap_mode="r")
    assert run(x, int(sys.argv[3]), 2**26) == len(x)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what is a process's own")
@pytest.mark.parametrize(
    ("rows", "columns", "steps", "budget"),
    [(18_000, 4_000, 0, 150_000_000), pytest.param(120_000, 1_000, 2, 350_000_000, marks=pytest.mark.slow)],
)
def test_memory_is_not_that_of_the_inputs(tmp_path, rows, columns, steps, budget):
    """A map of 290 or 480 MB, of which only what is not zero is on disk; learning takes some thousand rows besides."""
    x = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(rows, columns))
    x[:, :8] = np.random.default_rng(0).normal(size=(rows, 8))
    x.flush()
    assert x.nbytes > budget
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path / "x.npy"), str(budget), str(steps)]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_the_answer_is_that_of_arrays(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(3000, 6)).astype(np.float32))
    inputs = np.load(tmp_path / "x.npy"), np.load(tmp_path / "x.npy", mmap_mode="r")
    found = []
    for x in inputs:
        y = torch.from_numpy((x[:, 0] > x[:, 1]).astype(np.int64))
        model = GP(x, y, BernoulliLikelihood(), solver=LinearTimeNewton(num_support=128), memory_budget=2**26).eval()
        found.append((json.dumps(str(model.condition().status)), model.predict(x[:50]).probs))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
