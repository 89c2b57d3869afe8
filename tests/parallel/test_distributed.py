"""Rows divided among processes: the same answers, joint decisions, and failures that end the job with a message."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import gpytorch
import pytest
import torch
from distributed_program import FEW, ROUNDED, ROWS, SCENARIOS
from helpers import SimpleGP, assert_close, make_binary, make_inputs, make_model

import itergp
from itergp.errors import InputError
from itergp.likelihoods import BernoulliLikelihood
from itergp.models import LeafGP
from itergp.operators import BlockedOperator, DenseOperator, make_operator, sharded
from itergp.parallel import ALL_ROWS, ProcessPartition, RowPartition
from itergp.solvers import SubspaceNewton

TESTS = Path(__file__).parent


def run(folder: Path, part: str, size: int) -> list[tuple[int, str]]:
    """Return codes and outputs of the program in several processes."""
    folder.mkdir(exist_ok=True)
    paths = os.pathsep.join([str(TESTS.parents[1]), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    processes = []
    for rank in range(size):
        told = {"RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        command = [sys.executable, str(TESTS / "distributed_program.py"), str(folder), part]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, env=os.environ | told, **pipes))
    try:
        if part == "sleep":  # the sleeper is late for ever
            outputs = [process.communicate(timeout=200)[0] for process in processes[:-1]]
            processes[-1].kill()
            outputs.append(processes[-1].communicate()[0])
        else:
            outputs = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """What two processes wrote, before one of them failed."""
    folder = tmp_path_factory.mktemp("pair")
    for code, output in run(folder, "raise", 2):
        assert code == 0, output
        assert "finished" in output
    return folder


def assert_same(folder: Path, size: int, name: str) -> None:
    """Every process must have found what one process finds alone."""
    torch.manual_seed(0)
    expected = SCENARIOS[name]("auto")
    for rank in range(size):
        found = torch.load(folder / f"results.{rank}.pt")[name]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if name not in ROUNDED:
                torch.testing.assert_close(found[key], value, rtol=1e-8, atol=1e-8)
            elif key != "numbers":  # of passes and directions, and a gap that is nearly nothing
                assert_close(found[key], value, "posterior", dtype=torch.float32)


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_find_what_one_finds(pair, name):
    assert_same(pair, 2, name)


def test_one_process_reads_what_two_saved(pair):
    model = make_model("categorical", 20).load(pair / "model.safetensors")
    assert model.current_solution is not None
    for rank in range(2):
        assert_close(torch.load(pair / f"predicted.{rank}.pt"), model.predict(make_inputs(7)).probs)


def test_one_process_finds_the_same_leaves(pair):
    leaves = LeafGP(make_model("categorical", ROWS), num_rows=50)
    for rank in range(2):
        assert_close(torch.load(pair / f"leaves.{rank}.pt"), leaves.predict(make_inputs(7)).probs)


def test_three_processes_find_it_too_and_notice_when_one_dies(tmp_path):
    *others, (code, _) = run(tmp_path, "exit", 3)
    assert code == 1
    for other, output in others:
        assert other == 0, output
        assert "finished" in output
    for name in FEW:
        assert_same(tmp_path, 2, name)


def test_killed_processes_go_on_from_their_checkpoint(tmp_path):
    (code, output), (killed, _) = run(tmp_path / "killed", "killed", 2)
    assert code == 0, output
    assert killed == -9
    for code, output in run(tmp_path / "resumed", "resumed", 2):
        assert code == 0, output
        assert "finished" in output
    alone = make_model("categorical", ROWS, solver=SubspaceNewton(tolerance=1e-6))
    with pytest.raises(InputError, match=r"`checkpoint` must be of the same model"):
        alone.condition(checkpoint=tmp_path / "kept.safetensors")


@pytest.mark.slow
def test_a_process_that_does_not_answer_ends_the_job(tmp_path):
    started = time.perf_counter()
    (code, output), _ = run(tmp_path, "sleep", 2)
    assert code == 0, output
    assert "finished" in output
    assert time.perf_counter() - started < 60.0


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8])
def test_every_pair_of_rows_is_evaluated_once(size):
    """By the process of one of them: in the square of its own rows, or in a rectangle with another's."""
    total = 5 * size + 3
    bounds = tuple(p * total // size for p in range(size + 1))
    counts = torch.zeros(total, total, dtype=torch.int64)
    for rank in range(size):
        rows = ProcessPartition(bounds, rank, torch.device("cpu"))
        counts[bounds[rank] : bounds[rank + 1], bounds[rank] : bounds[rank + 1]] += 1
        for step in range(1, size // 2 + 1):
            rectangle = sharded._Rectangle.of(rows, step)
            counts[rectangle.rows, rectangle.columns] += 1
            counts[rectangle.columns, rectangle.rows] += 1
    assert bool((counts == 1).all())


def test_one_process_needs_no_group():
    x = make_inputs(30)
    operator = make_operator(gpytorch.kernels.RBFKernel().double(), x, kind="sharded")
    assert type(operator) in (DenseOperator, BlockedOperator)
    assert operator.rows is ALL_ROWS
    solution = make_model("bernoulli-logit", 30, operator="sharded").condition()
    assert solution.gather() is solution


@pytest.mark.parametrize("total", [7, 30, 31])
def test_processes_take_their_rows_in_as_many_chunks(total):
    parts = [ProcessPartition(tuple(p * total // 3 for p in range(4)), rank, torch.device("cpu")) for rank in range(3)]
    for most in (1, 4, 100):
        chunks = [part.chunks(total, most) for part in parts]
        assert len({len(part) for part in chunks}) == 1
        for part, own in zip(parts, chunks, strict=True):
            assert torch.equal(
                torch.cat([torch.arange(part.local_size(total))[i] for i in own]), torch.arange(part.local_size(total))
            )
            assert max(i.stop - i.start for i in own) <= most
    assert ALL_ROWS.chunks(10, 4) == [slice(0, 3), slice(3, 6), slice(6, 10)]


def test_former_names_warn_and_work():
    with pytest.warns(DeprecationWarning, match="`same` of RowPartition is `broadcast` now"):
        assert ALL_ROWS.same(3) == 3
    with pytest.warns(DeprecationWarning, match="is itergp.parallel.RowPartition now"):
        assert itergp.operators.Rows is RowPartition
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = ALL_ROWS.nonsense
    with pytest.raises(AttributeError, match="no attribute 'Columns'"):
        _ = itergp.operators.Columns


def test_processes_must_have_met(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    model = SimpleGP(*make_binary(30), BernoulliLikelihood(), operator="sharded").double()
    with pytest.raises(InputError, match=r"(?s)joined a group .*init_process_group"):
        model.condition()
