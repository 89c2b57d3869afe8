"""The plan of a solve: memory that is really taken, passes and time of the right size, refusals before anything starts."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import gpytorch
import psutil
import pytest
import torch
from helpers import LiveMemory, SimpleGP, make_binary, make_classes, make_inputs, make_kernel, make_model

from itergp import InputError
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood, base, categorical, sampled
from itergp.models import Plan, planning
from itergp.operators import Neighbourhoods, default_memory_budget, free_memory, make_operator, neighbours, tiles
from itergp.posterior import local_actions, precision
from itergp.posterior import posterior as posterior_module
from itergp.solvers import DenseNewton, IterNCGP, LinearTimeNewton, SubspaceNewton
from itergp.solvers.policies import UnitVectors
from itergp.solvers.run import rounds
from itergp.solvers.subspace import actions as actions_module
from itergp.solvers.subspace import linear_time

SOLVERS = {
    "subspace": SubspaceNewton(),
    "linear-time": LinearTimeNewton(num_support=100),
    "polished": LinearTimeNewton(num_support=100, polish=SubspaceNewton(max_passes=3)),
    "published": IterNCGP(max_rank=50),
    "cholesky": IterNCGP(policy=UnitVectors(rows=8), max_rank=50),
    "dense": DenseNewton(),
}


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
@pytest.mark.parametrize("name", ["bernoulli-logit", "categorical"])
def test_every_solver_has_a_plan(name, solver):
    model = make_model(name, num_rows=200, solver=solver)
    plan = model.plan()
    assert isinstance(plan, Plan)
    assert plan.fits
    assert plan.seconds > 0.0
    assert plan.total_memory == sum(plan.memory.values()) > 200 * 8
    assert type(solver).__name__ in str(plan)
    assert "200 rows" in str(plan)
    solution = model.condition()
    # Typical, not exact: the work that was done is neither none nor a hundredfold.
    assert plan.entries / 100 < max(solution.kernel_entries, 200 * 100 // 2) < plan.entries * 100


def test_memory_grows_with_the_problem():
    def total(rows: int, **kwargs) -> int:
        return make_model("categorical", num_rows=rows, solver=SubspaceNewton(), **kwargs).plan().total_memory

    assert total(100) < total(200) < total(300)  # every latent value is an action
    assert total(400) < total(800) < total(1600)
    assert total(400, operator="blocked") < total(400, operator="dense")
    assert total(400, dtype=torch.float32) < total(400)


def test_memory_counts_the_matrices_that_a_first_mode_is_found_with():
    def matrices(name: str, **kwargs) -> int:
        return make_model(name, num_rows=200, **kwargs).plan().memory.get("dense matrices of the first mode", 0)

    assert matrices("student-t", solver=SubspaceNewton()) == 5 * 8 * 200**2
    assert matrices("student-t", solver=SubspaceNewton(), memory_budget=10_000) == 0  # passes find it
    assert matrices("student-t", solver=SubspaceNewton(max_passes=3)) == 0
    assert matrices("student-t", solver=LinearTimeNewton()) == 0
    assert matrices("poisson", solver=SubspaceNewton()) == 0


def test_the_budget_limits_the_rank_and_the_support():
    x, y = make_binary(400)
    budget = 400 * 8 * 100  # a hundred numbers per row
    small = SimpleGP(x, y, BernoulliLikelihood(), memory_budget=budget, operator="blocked").double().eval()
    small.solver = SubspaceNewton(tolerance=1e-12)
    assert small.condition().space.rank <= 64
    assert small.solver.rank_limit(400, 1, 8, budget) == 64
    assert SubspaceNewton(max_rank=300).rank_limit(400, 1, 8, budget) == 300
    x, y = make_binary(5000, dtype=torch.float32)
    large = SimpleGP(x, y, BernoulliLikelihood(), memory_budget=5000 * 4 * 600, solver=LinearTimeNewton(tolerance=1e-9))
    large.approximation = "laplace"
    assert large.eval().condition().space.rows.numel() == 512


@pytest.mark.parametrize("solver", [SubspaceNewton(), DenseNewton(), LinearTimeNewton(num_support=2000)])
def test_what_cannot_fit_is_refused_before_it_starts(solver, monkeypatch):
    x, y = make_classes(2000)
    model = SimpleGP(x, y, CategoricalLikelihood(3), kernel=make_kernel(), solver=solver).double().eval()
    monkeypatch.setattr(planning, "free_memory", lambda device: 2**20)
    assert not model.plan().fits
    assert "does not fit" in str(model.plan())
    with pytest.raises(
        InputError, match=r"must fit into the free memory, 1.0 MiB. Got about .* Please lower covariance_rank"
    ):
        model.condition()
    assert model.last_solution is None


@pytest.mark.parametrize("kept", [2**26, 0])
def test_the_plan_counts_neighbours(kept, monkeypatch):
    monkeypatch.setattr(neighbours, "_MOST_KEPT", kept)
    operator = make_operator(make_kernel().double(), make_inputs(300), kind="blocked")
    with torch.no_grad():
        numbers, near = Neighbourhoods(operator).near_training(16)
    held = [near.rows] if near.entries is None else [near.rows, near.entries, near.cross]
    assert (len(held) == 3) == (kept > 0)
    solver = LinearTimeNewton(num_support=50, covariance_rank=20)
    plan = make_model("bernoulli-logit", 300, solver=solver).plan()
    assert plan.memory["neighbours"] == sum(array.numel() * array.element_size() for array in held)
    assert (
        plan.total_memory
        > make_model("bernoulli-logit", 300, solver=replace(solver, num_neighbours=0)).plan().total_memory
    )
    assert make_model("categorical", 300, solver=solver).plan().memory["neighbours"] == 0
    assert torch.equal(numbers.sort().values, torch.arange(300))


def test_many_rows_have_fewer_neighbours(monkeypatch):
    monkeypatch.setattr(linear_time, "_MANY_ROWS", 99)
    many, few = (make_model("bernoulli-logit", n, solver=LinearTimeNewton(num_support=20)) for n in (100, 99))
    assert [model.condition().local.num_neighbours for model in (many, few)] == [8, 16]
    assert many.plan().memory["neighbours"] < few.plan().memory["neighbours"]
    many.solver = LinearTimeNewton(num_support=20, num_neighbours=12)
    assert many.condition().local.num_neighbours == 12


def test_the_budget_is_a_share_of_what_is_free():
    free = free_memory(torch.device("cpu"))
    assert free == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert default_memory_budget(torch.device("cpu")) == pytest.approx(0.25 * free, rel=0.2)


def test_neighbours_are_planned_where_they_can_be_had():
    def plan(kernel: gpytorch.kernels.Kernel) -> int:
        x, y = make_binary(200)
        model = SimpleGP(x, y, BernoulliLikelihood(), kernel=kernel, solver=LinearTimeNewton(num_support=150))
        model = model.double().eval()
        rank = model.plan().memory["covariance"] // (3 * 200 * 8)
        assert rank >= model.condition().rank
        return rank

    points = make_binary(5)[0]
    inducing = gpytorch.kernels.InducingPointKernel(make_kernel(), points, gpytorch.likelihoods.GaussianLikelihood())
    assert (plan(make_kernel()), plan(inducing)) == (128, 256)


# ------------------------------------------------------------------ what is planned is what is taken
PIECES: dict[ModuleType, dict[str, int]] = {  # temporary arrays of thousands of rows: here, of few
    base: {"_CHUNK_ROWS": 128, "_CHUNK_VALUES": 2**10},
    categorical: {"_SUMMED_NUMBERS": 2**10},
    sampled: {"_CHUNK_ROWS": 128, "_MATCHED_ROWS": 32, "_CHUNK_NUMBERS": 2**13},
    actions_module: {"_CHUNK_ROWS": 64},
    posterior_module: {"_CHUNK_ROWS": 64},
    precision: {"_CHUNK_ROWS": 64},
    local_actions: {"_CHUNK_ROWS": 64, "_CHUNK_NUMBERS": 2**14},
    tiles: {"_SIDE": 64, "_SMALLEST_SIDE": 32},
    rounds: {"MAX_ROUNDS": 2},  # all of them take the same
}
FEW = {"max_passes": 4, "num_neighbours": 0, "tolerance": 1e-2}
DEMANDING = {  # what takes much of the memory
    "nodes of several latent functions": (
        "categorical",
        "variational",
        SubspaceNewton(max_rank=6, covariance_rank=16, **FEW),
    ),
    "little but nodes": ("categorical", "variational", SubspaceNewton(max_rank=6, covariance_rank=1, **FEW)),
    **{
        f"nodes of one, {name}": (
            name,
            "variational",
            SubspaceNewton(max_rank=4, covariance_rank=1, num_blocks=2, **FEW),
        )
        for name in ("bernoulli-logit", "poisson")
    },
    "actions": ("categorical", "laplace", SubspaceNewton(max_rank=6, covariance_rank=200, **FEW)),
    "the defaults": ("categorical", "variational", SubspaceNewton(**FEW)),
}


@pytest.mark.parametrize("averaged", [2**10, 2**18], ids=["in pieces", "at once"])  # as on a CPU, as elsewhere
@pytest.mark.parametrize("case", DEMANDING)
def test_the_planned_memory_is_half_to_twice_what_a_row_takes(case, averaged, monkeypatch):
    """Between two sizes, so that neither what does not grow with the rows nor what is there anyway counts."""
    name, approximation, solver = DEMANDING[case]
    monkeypatch.setattr(categorical, "_CACHED_NUMBERS", averaged)
    for module, settings in PIECES.items():
        for setting, value in settings.items():
            monkeypatch.setattr(module, setting, value)
    planned, taken = [], []
    for rows in (400, 800):
        options = {"approximation": approximation, "operator": "blocked", "memory_budget": 10**8}
        model = make_model(name, num_rows=rows, solver=solver, **options)
        planned.append(model.plan().total_memory)
        with LiveMemory() as memory:
            model.condition()
        taken.append(memory.peak)
    assert 0.5 < (planned[1] - planned[0]) / (taken[1] - taken[0]) < 2.0


@pytest.mark.parametrize("kind", ["dense", "blocked"])
def test_the_planned_kernel_matrix_is_the_half_that_is_evaluated(kind):
    """Up to the blocks on the diagonal, which are evaluated whole."""
    solver = SubspaceNewton(num_neighbours=0, covariance_rank=8, max_passes=5)
    model = make_model("bernoulli-logit", num_rows=1500, solver=solver, operator=kind, approximation="laplace")
    plan, solution = model.plan(), model.condition()
    passes = 1 if kind == "dense" else solution.kernel_passes
    planned = plan.entries if kind == "dense" else plan.entries / plan.passes
    assert 1.0 <= solution.kernel_entries / passes / planned < 1.3
    if kind == "dense":
        assert 1.0 <= 8 * solution.kernel_entries / plan.memory["kernel matrix"] < 1.3
