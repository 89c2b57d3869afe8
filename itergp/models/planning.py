"""``Plan``: what conditioning will take, known before it begins."""

from __future__ import annotations

from dataclasses import dataclass, replace

from itergp.errors import InputError
from itergp.likelihoods import Observations
from itergp.operators import KernelOperator, free_memory
from itergp.operators.timing import Rates
from itergp.solvers.demand import Demand, ProblemSize
from itergp.solvers.few_values import memory_of_start
from itergp.solvers.protocol import Solver


@dataclass(frozen=True)
class Plan:
    """What conditioning a model is expected to take.

    Passes and time are those of typical problems at the solver's tolerance, extrapolated from a calibration of a fraction of a
    second; memory is the peak of what the solver keeps.

    Attributes:
        solver: Name of the solver.
        operator: Name of the kernel operator.
        size: The numbers that cost depends on.
        passes: Passes over the kernel matrix.
        entries: Kernel entries evaluated.
        seconds: Expected time.
        memory: Bytes at the peak, by what they hold.
        free_memory: Bytes free now.
        given_rows: Training rows as they were given, of which those of ``size`` are the distinct ones.
    """

    solver: str
    operator: str
    size: ProblemSize
    passes: int
    entries: int
    seconds: float
    memory: dict[str, int]
    free_memory: int
    given_rows: int

    @property
    def total_memory(self) -> int:
        """Bytes at the peak."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether the peak is below what is free."""
        return self.total_memory <= self.free_memory

    def __str__(self) -> str:
        """One sentence, and another if it does not fit."""
        size = self.size
        work = f"{self.passes} kernel passes, " if self.passes else ""
        rows = f"{size.num_rows:,} rows"
        if size.num_rows < self.given_rows:
            rows = f"{size.num_rows:,} distinct of {self.given_rows:,} rows"
        text = (
            f"{self.solver} on {rows} x {size.num_latents} latent ({self.operator}): about {work}"
            f"{self.entries:.2g} kernel entries, {_duration(self.seconds)}, {_gigabytes(self.total_memory)} of "
            f"{_gigabytes(self.free_memory)} free."
        )
        return text if self.fits else f"{text} It does not fit: {_REMEDY}"


@dataclass(frozen=True)
class LeafPlan:
    """What conditioning the leaves of a model is expected to take, from the largest of them.

    Attributes:
        leaf: The plan of the largest leaf.
        sizes: Rows of each leaf, those near borders counted in each.
        given_rows: Training rows of the model.
        processes: That divide the leaves.
    """

    leaf: Plan
    sizes: tuple[int, ...]
    given_rows: int
    processes: int = 1

    @property
    def num_leaves(self) -> int:
        """Number of leaves."""
        return len(self.sizes)

    @property
    def seconds(self) -> float:
        """Expected time, of each process: a leaf's grows with the square of its rows."""
        largest = max(self.sizes)
        return self.leaf.seconds * sum((size / largest) ** 2 for size in self.sizes) / self.processes

    def __str__(self) -> str:
        """How many leaves, their rows, and the time of all of them."""
        shared = f" in each of {self.processes} processes" if self.processes > 1 else ""
        return (
            f"{self.num_leaves:,} leaves of {min(self.sizes):,} to {max(self.sizes):,} rows, {sum(self.sizes):,} in all for "
            f"{self.given_rows:,}: about {_duration(self.seconds)}{shared}. The largest: {self.leaf}"
        )


_REMEDY = (
    "lower covariance_rank or max_rank, or use LinearTimeNewton(num_support=...), "
    "which keeps one number per row and support row."
)


def problem_size(
    operator: KernelOperator, observations: Observations, approximation: str, solver: Solver
) -> ProblemSize:
    """The numbers that the cost of conditioning a model depends on."""
    return ProblemSize(
        num_rows=operator.num_rows,
        num_latents=observations.likelihood.num_latents,
        num_kernels=operator.num_kernels,
        itemsize=operator.inputs.element_size(),
        variational=approximation == "variational" and not observations.likelihood.quadratic,
        num_nodes=observations.num_nodes,
        memory_budget=operator.memory_budget,
        has_neighbours=operator.evaluates_groups,
        neighbours_pay=operator.neighbours_pay,
        actions_pay=operator.actions_pay,
        coupled=operator.couples_latents,
        preconditioner_memory=operator.preconditioner_memory,
        evaluates_matrix=operator.evaluates_matrix,
        first_mode_memory=memory_of_start(solver, observations.likelihood, operator),
    )


def make_plan(operator: KernelOperator, solver: Solver, size: ProblemSize, *, given_rows: int) -> Plan:
    """The plan of a solve; times the kernel for a fraction of a second.

    Args:
        operator: Of the distinct rows.
        solver: The solver.
        size: What cost depends on.
        given_rows: Training rows, distinct or not.
    """
    demand, rates = solver.demand(_own(operator, size)), Rates.measured(operator)
    matrix = _matrix(operator)
    kept = operator.keeps_entries and demand.passes > 0
    evaluated = _evaluated(operator)
    entries = demand.entries + (min(demand.passes, 1) if kept else demand.passes) * evaluated
    multiplications = demand.multiplications + demand.columns * matrix
    return Plan(
        solver=type(solver).__name__,
        operator=type(operator).__name__,
        size=size,
        passes=demand.passes,
        entries=entries,
        seconds=entries * rates.seconds_per_entry
        + multiplications * rates.seconds_per_multiplication
        + demand.columns * size.num_rows * rates.seconds_per_row,
        memory=_memory(operator, size, demand),
        free_memory=_free_memory(operator),
        given_rows=given_rows,
    )


def check_memory(operator: KernelOperator, solver: Solver, size: ProblemSize) -> None:
    """Refuses what cannot fit, before anything is computed.

    Raises:
        InputError: With the peak by what it holds.
    """
    memory = _memory(operator, size, solver.demand(_own(operator, size)))
    free = _free_memory(operator)
    if operator.rows.all_reduce_any(sum(memory.values()) > free):
        parts = ", ".join(f"{name} {_gigabytes(value)}" for name, value in memory.items())
        total = _gigabytes(sum(memory.values()))
        raise InputError(
            f"What {type(solver).__name__} keeps must fit into the free memory, {_gigabytes(free)}. Got about {total} for "
            f"{size.num_rows:,} rows x {size.num_latents} latent: {parts}. Please {_REMEDY}"
        )


def _matrix(operator: KernelOperator) -> int:
    """Entries that a pass of one process goes through, of both halves of the matrix; none where it needs no entries."""
    return operator.entries_of_pass // operator.rows.num_processes if operator.evaluates_matrix else 0


def _evaluated(operator: KernelOperator) -> int:
    """Those among them that one process evaluates."""
    return operator.entries_evaluated // operator.rows.num_processes if operator.evaluates_matrix else 0


def _own(operator: KernelOperator, size: ProblemSize) -> ProblemSize:
    """The share of one process."""
    processes = operator.rows.num_processes
    return replace(size, num_rows=-(-size.num_rows // processes), processes=processes)


def _free_memory(operator: KernelOperator) -> int:
    """Bytes that are free for one process."""
    return free_memory(operator.device) // operator.rows.sharing(operator.device)


def _memory(operator: KernelOperator, size: ProblemSize, demand: Demand) -> dict[str, int]:
    memory = dict(demand.memory)
    if operator.keeps_entries and demand.passes > 0:
        memory["kernel matrix"] = _evaluated(operator) * size.itemsize
    if size.first_mode_memory > 0:
        memory["dense matrices of the first mode"] = size.first_mode_memory
    if operator.held_memory > 0:
        memory[operator.held] = operator.held_memory
    return memory


def _gigabytes(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 120.0:
        return f"{seconds:.1f} s" if seconds >= 0.1 else "less than 0.1 s"
    return f"{seconds / 60.0:.0f} min" if seconds < 7200.0 else f"{seconds / 3600.0:.1f} h"
