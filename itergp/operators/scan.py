"""``ScanOperator``: sums of Matern kernels of one input, and of exponential ones of two, in linear time or nearly."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from gpytorch.kernels import Kernel
from torch import Tensor
from torch.nn.functional import pad

from itergp.errors import InputError
from itergp.operators.base import KernelOperator
from itergp.operators.binned import BinnedColumn, BinnedPair, BinnedPreconditioner, Bins
from itergp.operators.pair_levels import PairOrders
from itergp.operators.pair_product import pair_product
from itergp.operators.scan_form import PairTerm, ScanForm, ScanTerm, as_scan_form
from itergp.operators.scan_groups import BlockGroup, PairGroup, SortedGroup, TermGroup
from itergp.operators.scan_product import Lines, scan_product
from itergp.operators.scans import Interpolation, Scan, SortedColumn
from itergp.operators.tiles import run, slices, threads_for

_PIECE = 2**21  # numbers of an array that a scan works on: more leave the cache
_PIECE_ELSEWHERE = 2**27  # on a GPU
_MOVED_COLUMNS = 16  # a line of the cache: sorting them takes the time of a few
# Arrays of so many columns that there are at once, and the share of the memory budget that they may take.
_MOVED_ARRAYS, _MOVED_SHARE = 4, 0.25
_TERMS_TOGETHER = 2**18  # rows of terms that advance at once
_DIRECT_SHARE = 3  # new inputs per column below which kernel entries are evaluated instead
# With pairs of inputs, in the time that one input takes of an entry: of a training row for the tree of a pair, for each column
# of its products, and for each column of products with entries.
_TREE_OF_ROW, _TREE_OF_COLUMN, _MULTIPLYING = 1350, 150, 0.035
_TIMED_ROWS = 2**15
_LEAST_BINS = 64  # of a column, for the preconditioner
_UNRESOLVED = 0.1  # signal-to-noise ratio of what is left out within a bin: passes take care of that
# Of the matrices of all bins: at least, for every row, and at most.
_FEW_BINNED_NUMBERS, _BINNED_NUMBERS_OF_ROW, _MANY_BINNED_NUMBERS = 2**22, 64, 2**24
# Rows from which a pass by scans takes less time than one with a matrix that is kept already, see docs/scale.md.
LEAST_ROWS = 4096
LEAST_ROWS_WITHOUT_MATRIX = 1024
LEAST_ROWS_OF_PAIRS = 2  # times as many, with pairs of inputs

Group = TypeVar("Group", bound=TermGroup)


class _Room:
    """Arrays that are written over again and again: memory that is new costs as much as what is written."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """An array of a shape, with anything in it."""
        if name not in self._kept or self._kept[name].shape != shape:
            self._kept.pop(name, None)
            self._kept[name] = self._like.new_empty(shape)
        return self._kept[name]


class ScanOperator(KernelOperator):
    """The covariance of additive functions, a sum of Matern-1/2, -3/2 and -5/2 kernels of one input each, without its entries.

    There may be a ``PairwiseLaplacianKernel`` in the sum, of functions of two inputs.

    Each input is sorted once. A product is then a forward and a backward recursion over the sorted rows, with one, two or three
    numbers of state, and exact: ``O(N k)`` time for each kernel of the sum, memory for a few numbers per row. Products across
    to other inputs interpolate the states between training inputs. Derivatives in lengthscales, weights, inputs and blocks are
    scans as well. Equal inputs are at distance zero, in any order.

    For a pair of inputs the rows are sorted ``log2(N / 64)`` times, by the nodes of a tree over the one and within a node by
    the other, and a product is a scan in each of these orders: ``O(N k log N)``.

    No kernel entries are evaluated, but where they are asked for: among neighbours, in kernel columns of chosen rows, and for a
    handful of new inputs.

    Args:
        kernel: A GPyTorch kernel that ``as_scan_form`` recognises.
        inputs: Training inputs ``(N, D)``, or ``(C, N, D)`` when each kernel has its own.
        num_kernels: ``C'``, 1 for a shared kernel.
        memory_budget: Bytes; default a quarter of the free memory.

    Raises:
        InputError: If the kernel is anything else.
    """

    evaluates_matrix = False

    def __init__(
        self, kernel: Kernel, inputs: Tensor, *, num_kernels: int = 1, memory_budget: int | None = None
    ) -> None:
        super().__init__(kernel, inputs, num_kernels=num_kernels, memory_budget=memory_budget)
        form = as_scan_form(kernel, num_kernels, inputs.shape[-1])
        if form is None:
            raise InputError(
                "The scan operator needs a sum of Matern kernels (nu 0.5, 1.5 or 2.5) of one input column each, and of "
                f"PairwiseLaplacianKernel. Got {type(kernel).__name__}, which is, or has, something else. Give every kernel of "
                "the sum one of active_dims, or choose operator='auto'."
            )
        self._scan_form = form.detached()

    def timing_sample(self, inputs: Tensor) -> ScanOperator:
        """The same at some inputs, repeated until a product takes longer than its overhead; ties cost no less."""
        times = -(-_TIMED_ROWS // inputs.shape[-2])
        repeated = inputs.repeat_interleave(times, dim=-2)
        return ScanOperator(self.kernel, repeated, num_kernels=self.num_kernels, memory_budget=self.memory_budget)

    # --------------------------------------------------------------- products
    def _matmul(self, block: Tensor) -> Tensor:
        return self._products(block, [*self._groups(), *self._pair_groups()])

    def _products(self, block: Tensor, groups: Sequence[TermGroup]) -> Tensor:
        """The sum of what groups make of a block ``(C', N, k)``."""

        def multiply(group: TermGroup, sorted_part: Tensor, out: Tensor, room: _Room) -> None:
            for b in slices(sorted_part.shape[1], self._columns_of_piece(group.arrays)):
                group.multiply(sorted_part[:, b])
            for (c, term), order, product in zip(group.terms, group.orders, sorted_part, strict=True):
                scratch = room("rows", order.steps * order.chunks, len(product))
                order.add_restored_rows(product, out[c], float(term.weight[c]), scratch)

        return self._summed(block, self.num_rows, groups, work=multiply)

    def _cross(self, inputs: Tensor, block: Tensor) -> Tensor:
        if inputs.shape[-2] < self._direct_rows(block.shape[-1]):
            return super()._cross(inputs, block)
        product = self._cross_of_terms(inputs if inputs.dim() == 3 else inputs.unsqueeze(0), block)
        if not self._scan_form.pairs:
            return product
        # New inputs join the trees as rows that nothing is known of.
        joined = inputs.dim() == 3 or self.inputs.dim() == 3
        both = [x.expand(self.num_kernels, -1, -1) if joined else x for x in (self.inputs.detach(), inputs)]
        joint = ScanOperator(
            self.kernel, torch.cat(both, -2), num_kernels=self.num_kernels, memory_budget=self.memory_budget
        )
        padded = torch.cat([block, block.new_zeros(*block.shape[:-2], inputs.shape[-2], block.shape[-1])], -2)
        return product.add_(joint._products(padded, joint._pair_groups())[:, self.num_rows :])

    def _direct_rows(self, columns: int) -> int:
        """New inputs for so many columns below which kernel entries are evaluated."""
        pairs = len(self._scan_form.pairs)
        if not pairs:
            return _DIRECT_SHARE * columns
        per_row = len(self._scan_form.terms) + 2 * pairs + _MULTIPLYING * columns
        return int(pairs * (_TREE_OF_ROW + _TREE_OF_COLUMN * columns) / per_row)

    def _cross_of_terms(self, inputs: Tensor, block: Tensor) -> Tensor:
        """Across to inputs ``(1, M, D)`` or ``(C', M, D)``, by terms of one input."""
        points = {
            id(group): [
                Interpolation(column, inputs[min(c, len(inputs) - 1), :, term.column], rate, group.profile)
                for (c, term), column, rate in zip(group.terms, group.columns, group.rates, strict=True)
            ]
            for group in self._groups()
        }

        def multiply(group: SortedGroup, sorted_part: Tensor, out: Tensor, room: _Room) -> None:
            del room
            states = group.profile.degree + 1
            for b in slices(sorted_part.shape[1], self._columns_of_piece(states * len(group.terms))):
                before, after = group.scan.states(sorted_part[:, b])
                for t, ((c, term), across) in enumerate(zip(group.terms, points[id(group)], strict=True)):
                    found = across([s[t] for s in before], [s[t] for s in after])
                    out[c, :, b].add_(found.mT, alpha=float(term.weight[c]))

        return self._summed(block, inputs.shape[-2], self._groups(), work=multiply)

    def _summed(
        self, block: Tensor, size: int, groups: Sequence[Group], *, work: Callable[[Group, Tensor, Tensor, _Room], None]
    ) -> Tensor:
        """The sum over groups of what a function adds to ``(C', size, b)`` for a group and sorted vectors ``(T, b, L, M)``."""
        vectors = block if block.dim() == 3 else block.unsqueeze(0)
        width, most = block.shape[-1], max((group.arrays for group in groups), default=1)
        threads = threads_for(self.device, self.num_rows * width * sum(group.arrays for group in groups))
        parts = slices(width, self._columns_together(width, threads, most))
        # A single column is shared by two threads, one for every other group, or by one: what is added up is the same.
        halves = 2 if width == 1 and len(groups) > 1 else 1
        sums = [block.new_empty(self.num_kernels, size, width)] if halves == 1 else []

        def add(i: slice, half: int) -> int:
            part, room = vectors[:, :, i].contiguous(), _Room(block)
            out = block.new_zeros(self.num_kernels, size, part.shape[-1])
            for group in groups[half::halves]:
                chunked = room("chunks", len(group.terms), part.shape[-1], *group.shape)
                work(group, group.chunked(part, chunked), out, room)
            if halves == 1:
                sums[0][:, :, i] = out
            else:
                sums.append(out)
            return 0

        run([((i.start, half), functools.partial(add, i, half)) for i in parts for half in range(halves)], threads)
        return sums[0] if halves == 1 else sums[0].add_(sums[1])

    def _columns_of_piece(self, arrays: int) -> int:
        """Columns that are scanned at once, of so many arrays of N rows each."""
        most = _PIECE if self.device.type == "cpu" else _PIECE_ELSEWHERE
        return max(1, most // (arrays * max(1, self.num_rows)))

    def _columns_together(self, width: int, threads: int, arrays: int) -> int:
        """Columns that are sorted at once, of so many: in every thread, with so many arrays for each."""
        bytes_of_column = _MOVED_ARRAYS * arrays * max(1, self.num_rows) * self.inputs.element_size()
        affordable = int(_MOVED_SHARE * self.memory_budget) // (threads * bytes_of_column)
        most = _MOVED_COLUMNS if self.device.type == "cpu" else self._columns_of_piece(arrays)
        return max(1, min(most, affordable, -(-width // threads)))

    # ----------------------------------------------------------------- sorted
    @property
    def cross_overhead(self) -> int:
        """The training rows, which every product across goes through."""
        return self.num_rows

    @property
    def held_memory(self) -> int:
        """Bytes of the sorted inputs, and of the factors of the recursion."""
        size, item, form = self.num_rows, self.inputs.element_size(), self._scan_form
        kernels = self.num_kernels
        own = kernels if self.inputs.dim() == 3 else 1
        sorted_columns = len(form.columns) * own * SortedColumn.memory_of(size, item)
        scans = sum(Scan.memory_of(size, term.profile.degree, item) for term in form.terms) * kernels
        of_pair = own * PairOrders.memory_of(size, item) + kernels * PairGroup.memory_of(size, item)
        return sorted_columns + scans + len(form.pairs) * of_pair

    def _sorted(self, c: int, column: int) -> SortedColumn:
        """A column of the inputs of a kernel."""
        inputs = self.inputs.detach()
        key = ("sorted", c if inputs.dim() == 3 else 0, column)
        if key not in self.derived:
            self.derived[key] = SortedColumn((inputs[c] if inputs.dim() == 3 else inputs)[:, column])
        return self.derived[key]

    def _groups(self) -> list[SortedGroup]:
        """Terms of one input as they advance together."""
        if "scans" not in self.derived:
            together = max(1, _TERMS_TOGETHER // max(1, self.num_rows))
            found = []
            for terms in _by_smoothness(self._scan_form):
                for i in slices(len(terms), together):
                    columns = [self._sorted(c, term.column) for c, term in terms[i]]
                    found.append(SortedGroup(terms[i], columns))
            self.derived["scans"] = found
        return self.derived["scans"]

    def _pair_groups(self) -> list[TermGroup[PairTerm]]:
        """Terms of two inputs: the levels of their trees as they advance together, and the blocks that these end with."""
        if "pairs" not in self.derived:
            together, levels = max(1, _TERMS_TOGETHER // max(1, self.num_rows)), []
            found: list[TermGroup[PairTerm]] = []
            for c, term in ((c, term) for term in self._scan_form.pairs for c in range(self.num_kernels)):
                orders = self._pair_orders(c, term.columns)
                levels += [((c, term), (orders, number)) for number in range(len(orders.levels))]
                found.append(BlockGroup([(c, term)], orders))
            for i in slices(len(levels), together):
                found.append(PairGroup(*zip(*levels[i], strict=True)))
            self.derived["pairs"] = found
        return self.derived["pairs"]

    def _pair_orders(self, c: int, columns: tuple[int, int]) -> PairOrders:
        """Those of a pair of the inputs of a kernel."""
        key = ("orders", c if self.inputs.dim() == 3 else 0, columns)
        if key not in self.derived:
            self.derived[key] = PairOrders(*(self._sorted(c, column) for column in columns))
        return self.derived[key]

    # --------------------------------------------------------- preconditioner
    def preconditioner(self, curvature: Tensor) -> BinnedPreconditioner:
        """Step functions of a few hundred bins of every input: as many as resolve what the data say, where these can be had.

        Of every pair of inputs of about the square root of as many for each of the two.
        """
        pairs, own = len(self._scan_form.pairs), self.num_kernels
        information = float(curvature.diagonal(dim1=-2, dim2=-1).sum(0).amax().nan_to_num(posinf=math.inf))
        numbers = self._binned_numbers // curvature.shape[-1]  # of each latent function
        most = math.isqrt(numbers // (len(self._columns_read) + pairs))
        found: list[list[tuple[Bins, Tensor]]] = [
            [self._binned(c, column, information, most) for column in self._columns_read] for c in range(own)
        ]
        if pairs:
            left = numbers - max(sum(bins.size**2 for bins, _ in of_kernel) for of_kernel in found)
            for c, of_kernel in enumerate(found):
                of_kernel += [
                    self._binned_pair(c, number, math.isqrt(max(1, left // pairs))) for number in range(pairs)
                ]
        return BinnedPreconditioner(
            [[bins for bins, _ in of_kernel] for of_kernel in found],
            [[kernel for _, kernel in of_kernel] for of_kernel in found],
            curvature,
        )

    @property
    def preconditioner_memory(self) -> int:
        """Bytes of the bins' numbers, of their kernels and of the factors, at most."""
        own = self.num_kernels if self.inputs.dim() == 3 else 1
        return (
            own * (len(self._columns_read) + len(self._scan_form.pairs)) * 4 * self.num_rows + 16 * self._binned_numbers
        )

    @property
    def _columns_read(self) -> list[int]:
        """Columns of the inputs that terms of one input are functions of."""
        return sorted({term.column for term in self._scan_form.terms})

    @property
    def _binned_numbers(self) -> int:
        """Numbers of the matrices of all bins that cost little beside the rows."""
        return min(max(_BINNED_NUMBERS_OF_ROW * self.num_rows, _FEW_BINNED_NUMBERS), _MANY_BINNED_NUMBERS)

    def _binned(self, c: int, column: int, information: float, most: int) -> tuple[BinnedColumn, Tensor]:
        """The bins of a column of a kernel's inputs, and the kernel's terms of the column at their centres ``(g, g)``."""
        ordered = self._sorted(c, column)
        wanted = self._bins_for(column, ordered, information, most)
        key = ("binned", c if self.inputs.dim() == 3 else 0, column)
        if key not in self.derived or self.derived[key][0] != wanted:
            self.derived.pop(key, None)
            bins = BinnedColumn(ordered.values, ordered.rank(), wanted)
            distance = (bins.centres.unsqueeze(-1) - bins.centres).abs()
            served = [c] if self.inputs.dim() == 3 else range(self.num_kernels)
            kernels = {k: self._kernel_of_column(k, column, distance) for k in served}
            self.derived[key] = wanted, bins, kernels
        return self.derived[key][1], self.derived[key][2][c]

    def _binned_pair(self, c: int, number: int, most: int) -> tuple[BinnedPair, Tensor]:
        """The same of a pair of inputs."""
        term, wanted = self._scan_form.pairs[number], math.isqrt(most)
        own = c if self.inputs.dim() == 3 else 0
        key, of_kernel = ("binned pair", own, term.columns), ("binned pair", "kernel", c, number)
        if key not in self.derived or self.derived[key][0] != wanted:
            sides = (self._sorted(c, column) for column in term.columns)
            first, second = (BinnedColumn(side.values, side.rank(), wanted) for side in sides)
            self.derived[key] = wanted, BinnedPair(first, second)
        bins = self.derived[key][1]
        if of_kernel not in self.derived or self.derived[of_kernel][0] is not bins:
            apart = (bins.centres.unsqueeze(1) - bins.centres).abs() @ term.rates[c].double()
            self.derived[of_kernel] = bins, apart.neg_().exp_().mul_(term.weight[c].double())
        return bins, self.derived[of_kernel][1]

    def _bins_for(self, column: int, ordered: SortedColumn, information: float, most: int) -> int:
        """The number of bins within which a function varies by less than what the rows of a bin could say about that."""
        span, count = (ordered.values[-1] - ordered.values[0]).double(), _LEAST_BINS
        while count < most:
            ends = torch.stack([torch.zeros_like(span), span / count])
            varied = max(float(-self._kernel_of_column(c, column, ends).diff()) for c in range(self.num_kernels))
            if information / count * varied <= _UNRESOLVED:
                break
            count = min(2 * count, most)
        return count

    def _kernel_of_column(self, c: int, column: int, distance: Tensor) -> Tensor:
        """The sum of a kernel's terms of one column, float64."""
        terms = [term for term in self._scan_form.terms if term.column == column]
        parts = [float(term.weight[c]) * term.profile.at(distance * float(term.rate[c])) for term in terms]
        return torch.stack(parts).sum(0)

    # --------------------------------------------------------------- gradient
    def _cross_with_grad(self, rows: Tensor, cols: Tensor, block: Tensor, *, value: bool = True) -> Tensor:
        form = as_scan_form(self.kernel, self.num_kernels, cols.shape[-1])
        assert form is not None
        itself, own = rows is cols, cols is self.inputs
        rows, cols = (x if x.dim() == 3 else x.unsqueeze(0) for x in (rows, cols))
        vectors = (block if block.dim() == 3 else block.unsqueeze(0)).mT
        total = vectors.new_zeros(self.num_kernels, vectors.shape[1], rows.shape[1])
        for terms in _by_smoothness(form):
            y = torch.stack([cols[min(c, len(cols) - 1), :, term.column] for c, term in terms])
            of_cols = Lines(y, [self._sorted(c, term.column) for c, term in terms] if own else None)
            x, of_rows = y, of_cols
            if not itself:
                x = torch.stack([rows[min(c, len(rows) - 1), :, term.column] for c, term in terms])
                of_rows = Lines(x)
            rates = torch.stack([term.rate[c] for c, term in terms]).to(y.dtype)
            weights = torch.stack([term.weight[c] for c, term in terms]).to(y.dtype)
            numbers = torch.tensor([c for c, _ in terms], device=y.device)
            own_vectors = vectors[numbers.clamp_max(len(vectors) - 1)]
            products = scan_product(x, y, rates, own_vectors, terms[0][1].profile, (of_rows, of_cols))
            total = total.index_add(0, numbers, products * weights[:, None, None])
        for c, term in ((c, term) for term in form.pairs for c in range(self.num_kernels)):
            y, x = (z[min(c, len(z) - 1)][:, list(term.columns)] for z in (cols, rows))
            points, own_block, rates = y, vectors[min(c, len(vectors) - 1)], term.rates[c].to(y.dtype)
            if not itself:
                points, own_block = torch.cat([y, x]), pad(own_block, (0, len(x)))
            product = pair_product(points, rates, own_block)[:, points.shape[0] - len(x) :]
            total = total.index_add(
                0, torch.tensor([c], device=y.device), (product * term.weight[c]).unsqueeze(0).to(total)
            )
        return total.mT


def _by_smoothness(form: ScanForm) -> list[list[tuple[int, ScanTerm]]]:
    """Numbers of kernels and terms, those of one smoothness together."""
    every = [(c, term) for term in form.terms for c in range(form.num_kernels)]
    smoothness = sorted({term.smoothness for term in form.terms})
    return [[(c, term) for c, term in every if term.smoothness == nu] for nu in smoothness]
