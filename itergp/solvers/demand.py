"""What a solve will need, before it begins: kernel entries, multiplications, memory."""

from __future__ import annotations

from dataclasses import dataclass

from itergp.likelihoods.sampled import FINER, KEPT_NUMBERS
from itergp.operators import kept_entries

_NODE_ARRAYS = 5  # measured, with several latent functions: 5 where rows are averaged in pieces, 7 where at once


@dataclass(frozen=True)
class ProblemSize:
    """The numbers that cost depends on.

    Attributes:
        num_rows: N.
        num_latents: C.
        num_kernels: C', 1 for a kernel shared by all latent functions.
        itemsize: Bytes of a number.
        variational: Whether a variational stage follows the Laplace stage.
        num_nodes: Nodes of a row over which a variational site averages.
        memory_budget: Bytes for what may be kept.
        processes: That share the rows.
        has_neighbours: Whether kernel entries among the neighbours of an input can be had.
        neighbours_pay: Whether rows near to an input say much about it that few actions do not.
        actions_pay: Whether some hundred actions on all rows know most of what the data say.
        coupled: Whether latent functions are coupled; C' is C then.
        preconditioner_memory: Bytes of the operator's preconditioner, 0 where it has none.
        evaluates_matrix: Whether the cost of a pass grows with the entries of the matrix.
        first_mode_memory: Bytes of the dense matrices that find a first mode, 0 where the solver finds it itself.
    """

    num_rows: int
    num_latents: int
    num_kernels: int
    itemsize: int
    variational: bool
    num_nodes: int
    memory_budget: int
    processes: int = 1
    has_neighbours: bool = True
    neighbours_pay: bool = True
    actions_pay: bool = True
    coupled: bool = False
    preconditioner_memory: int = 0
    evaluates_matrix: bool = True
    first_mode_memory: int = 0

    def neighbours(self, number: int) -> int:
        """Bytes of the neighbours of N rows: their numbers, and kernel entries among them where these are kept."""
        number = min(number, self.num_rows * self.processes) if self.has_neighbours else 0
        return 8 * self.num_rows * number + kept_entries(self.num_rows, number, self.num_kernels) * self.itemsize

    def array(self, columns: int) -> int:
        """Bytes of N rows of so many numbers."""
        return self.num_rows * columns * self.itemsize


@dataclass(frozen=True)
class Demand:
    """What a solver expects to need.

    Attributes:
        passes: Passes over the kernel matrix, 0 where there is none.
        columns: Columns multiplied in those passes, all together.
        entries: Kernel entries outside of passes.
        multiplications: Multiply-adds outside of passes.
        memory: Bytes at the peak by what they hold, without cached kernel entries.
    """

    passes: int
    columns: int
    entries: int
    multiplications: int
    memory: dict[str, int]


def likelihood_memory(size: ProblemSize) -> int:
    """Bytes of f, g, W and covariances of this and the last posterior, and of every node.

    Nodes are those of this and the next site, and as many again and more while one is made or averaged over; of several latent
    functions also finer ones, as if every row's marginal asked for those of the first level.
    """
    latents = size.num_latents
    nodes = size.num_nodes if size.variational else 1
    finer = min(KEPT_NUMBERS, FINER * size.num_rows * latents * nodes) if size.variational and latents > 1 else 0
    return (size.num_rows * latents * (4 + 3 * latents + _NODE_ARRAYS * nodes) + finer) * size.itemsize
