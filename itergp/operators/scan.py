"""``ScanOperator``: sums of Matern kernels of one input each, multiplied in linear time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from itergp.errors import InputError
from itergp.operators.base import KernelOperator
from itergp.operators.binned import BinnedColumn, BinnedPreconditioner
from itergp.operators.scan_form import ScanForm, ScanTerm, as_scan_form
from itergp.operators.scan_product import Lines, scan_product
from itergp.operators.scans import ExponentialPolynomial, Interpolation, Scan, SortedColumn
from itergp.operators.tiles import run, slices, threads_for

_PIECE = 2**21  # numbers of an array that a scan works on: more leave the cache
_PIECE_ELSEWHERE = 2**27  # on a GPU
_MOVED_COLUMNS = 16  # a line of the cache: sorting them takes the time of a few
# Arrays of so many columns that there are at once, and the share of the memory budget that they may take.
_MOVED_ARRAYS, _MOVED_SHARE = 4, 0.25
_TERMS_TOGETHER = 2**18  # rows of terms that advance at once
_DIRECT_SHARE = 3  # new inputs per column below which kernel entries are evaluated instead
_TIMED_ROWS = 2**15
_LEAST_BINS = 64  # of a column, for the preconditioner
_UNRESOLVED = 0.1  # signal-to-noise ratio of what is left out within a bin: passes take care of that
# Of the matrices of all bins: at least, for every row, and at most.
_FEW_BINNED_NUMBERS, _BINNED_NUMBERS_OF_ROW, _MANY_BINNED_NUMBERS = 2**22, 64, 2**24
# Rows from which a pass by scans takes less time than one with a matrix that is kept already, see docs/scale.md.
LEAST_ROWS = 4096
LEAST_ROWS_WITHOUT_MATRIX = 1024


@dataclass(frozen=True)
class _Group:
    """Terms of one smoothness that advance together.

    Attributes:
        terms: For each its kernel's number and itself.
        columns: Their inputs, sorted.
        scan: Over those.
    """

    terms: list[tuple[int, ScanTerm]]
    columns: list[SortedColumn]
    scan: Scan

    @property
    def profile(self) -> ExponentialPolynomial:
        """Of all of its terms."""
        return self.terms[0][1].profile

    def chunked(self, rows: Tensor, out: Tensor) -> Tensor:
        """Vectors side by side, ``(1, N, b)`` or ``(C', N, b)``, of each term's kernel in chunks ``(T, b, L, M)``."""
        for (c, _), column, part in zip(self.terms, self.columns, out, strict=True):
            column.chunked_rows(rows[min(c, len(rows) - 1)], part)
        return out


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

    Each input is sorted once. A product is then a forward and a backward recursion over the sorted rows, with one, two or three
    numbers of state, and exact: ``O(N k)`` time for each kernel of the sum, memory for a few numbers per row. Products across
    to other inputs interpolate the states between training inputs. Derivatives in lengthscales, weights, inputs and blocks are
    scans as well. Equal inputs are at distance zero, in any order.

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
                "The scan operator needs a sum of Matern kernels (nu 0.5, 1.5 or 2.5) of one input column each. Got "
                f"{type(kernel).__name__}, which is, or has, something else. Give every kernel of the sum one of active_dims, "
                "or choose operator='auto'."
            )
        self._scan_form = form.detached()

    def timing_sample(self, inputs: Tensor) -> ScanOperator:
        """The same at some inputs, repeated until a product takes longer than its overhead; ties cost no less."""
        times = -(-_TIMED_ROWS // inputs.shape[-2])
        repeated = inputs.repeat_interleave(times, dim=-2)
        return ScanOperator(self.kernel, repeated, num_kernels=self.num_kernels, memory_budget=self.memory_budget)

    # --------------------------------------------------------------- products
    def _matmul(self, block: Tensor) -> Tensor:
        def multiply(group: _Group, sorted_part: Tensor, out: Tensor, room: _Room) -> None:
            for b in slices(sorted_part.shape[1], self._columns_of_piece(len(group.terms))):
                sorted_part[:, b] = group.scan.products(sorted_part[:, b], [group.profile])[0]
            for (c, term), column, product in zip(group.terms, group.columns, sorted_part, strict=True):
                scratch = room("rows", column.steps * column.chunks, len(product))
                column.add_restored_rows(product, out[c], float(term.weight[c]), scratch)

        return self._summed(block, self.num_rows, work=multiply)

    def _cross(self, inputs: Tensor, block: Tensor) -> Tensor:
        if inputs.shape[-2] < _DIRECT_SHARE * block.shape[-1]:
            return super()._cross(inputs, block)
        inputs = inputs if inputs.dim() == 3 else inputs.unsqueeze(0)

        points = {
            id(group): [
                Interpolation(column, inputs[min(c, len(inputs) - 1), :, term.column], rate, group.profile)
                for (c, term), column, rate in zip(group.terms, group.columns, group.scan.rates, strict=True)
            ]
            for group in self._groups()
        }

        def multiply(group: _Group, sorted_part: Tensor, out: Tensor, room: _Room) -> None:
            del room
            states = group.profile.degree + 1
            for b in slices(sorted_part.shape[1], self._columns_of_piece(states * len(group.terms))):
                before, after = group.scan.states(sorted_part[:, b])
                for t, ((c, term), across) in enumerate(zip(group.terms, points[id(group)], strict=True)):
                    found = across([s[t] for s in before], [s[t] for s in after])
                    out[c, :, b].add_(found.mT, alpha=float(term.weight[c]))

        return self._summed(block, inputs.shape[-2], work=multiply)

    def _summed(self, block: Tensor, size: int, *, work: Callable[[_Group, Tensor, Tensor, _Room], None]) -> Tensor:
        """The sum over terms of what a function adds to ``(C', size, b)`` for a group and sorted vectors ``(T, b, L, M)``."""
        vectors = block if block.dim() == 3 else block.unsqueeze(0)
        groups, width = self._groups(), block.shape[-1]
        threads = threads_for(self.device, self.num_rows * width * len(self._scan_form.terms) * self.num_kernels)
        parts = slices(width, self._columns_together(width, threads))
        # A single piece is shared by two threads, one for every other group.
        halves = 2 if len(parts) == 1 and len(groups) > 1 else 1
        sums = [block.new_empty(self.num_kernels, size, width)] if halves == 1 else []

        def add(i: slice, half: int) -> int:
            part, room = vectors[:, :, i].contiguous(), _Room(block)
            out = block.new_zeros(self.num_kernels, size, part.shape[-1])
            for group in groups[half::halves]:
                chunked = room("chunks", len(group.terms), part.shape[-1], *group.scan.shape)
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

    def _columns_together(self, width: int, threads: int) -> int:
        """Columns that are sorted at once, of so many: in every thread."""
        terms = max((len(group.terms) for group in self._groups()), default=1)
        bytes_of_column = _MOVED_ARRAYS * terms * max(1, self.num_rows) * self.inputs.element_size()
        affordable = int(_MOVED_SHARE * self.memory_budget) // (threads * bytes_of_column)
        most = _MOVED_COLUMNS if self.device.type == "cpu" else self._columns_of_piece(terms)
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
        columns = len(self._columns_read) * own
        scans = sum(Scan.memory_of(size, term.profile.degree, item) for term in form.terms) * kernels
        return columns * SortedColumn.memory_of(size, item) + scans

    def _sorted(self, c: int, column: int) -> SortedColumn:
        """A column of the inputs of a kernel."""
        inputs = self.inputs.detach()
        key = ("sorted", c if inputs.dim() == 3 else 0, column)
        if key not in self.derived:
            self.derived[key] = SortedColumn((inputs[c] if inputs.dim() == 3 else inputs)[:, column])
        return self.derived[key]

    def _groups(self) -> list[_Group]:
        """Terms as they advance together."""
        if "scans" not in self.derived:
            together = max(1, _TERMS_TOGETHER // max(1, self.num_rows))
            found = []
            for terms in _by_smoothness(self._scan_form):
                for i in slices(len(terms), together):
                    columns = [self._sorted(c, term.column) for c, term in terms[i]]
                    rates = torch.stack([term.rate[c] for c, term in terms[i]])
                    found.append(_Group(terms[i], columns, Scan(columns, rates, terms[0][1].profile.degree)))
            self.derived["scans"] = found
        return self.derived["scans"]

    # --------------------------------------------------------- preconditioner
    def preconditioner(self, curvature: Tensor) -> BinnedPreconditioner:
        """Step functions of a few hundred bins of every input: as many as resolve what the data say, where these can be had."""
        information = float(curvature.diagonal(dim1=-2, dim2=-1).sum(0).amax().nan_to_num(posinf=math.inf))
        most = math.isqrt(self._binned_numbers // (curvature.shape[-1] * len(self._columns_read)))
        own = range(self.num_kernels)
        found = [[self._binned(c, column, information, most) for column in self._columns_read] for c in own]
        return BinnedPreconditioner(
            [[bins for bins, _ in of_kernel] for of_kernel in found],
            [[kernels[c] for _, kernels in found[c]] for c in own],
            curvature,
        )

    @property
    def preconditioner_memory(self) -> int:
        """Bytes of the bins' numbers, of their kernels and of the factors, at most."""
        own = self.num_kernels if self.inputs.dim() == 3 else 1
        return own * len(self._columns_read) * 4 * self.num_rows + 16 * self._binned_numbers

    @property
    def _columns_read(self) -> list[int]:
        """Columns of the inputs that the kernel is a function of."""
        return sorted({term.column for term in self._scan_form.terms})

    @property
    def _binned_numbers(self) -> int:
        """Numbers of the matrices of all bins that cost little beside the rows."""
        return min(max(_BINNED_NUMBERS_OF_ROW * self.num_rows, _FEW_BINNED_NUMBERS), _MANY_BINNED_NUMBERS)

    def _binned(self, c: int, column: int, information: float, most: int) -> tuple[BinnedColumn, dict[int, Tensor]]:
        """The bins of a column of a kernel's inputs, and every kernel's terms of the column at their centres ``(g, g)``."""
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
        return self.derived[key][1:]

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
    def _cross_with_grad(self, rows: Tensor, cols: Tensor, block: Tensor) -> Tensor:
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
        return total.mT


def _by_smoothness(form: ScanForm) -> list[list[tuple[int, ScanTerm]]]:
    """Numbers of kernels and terms, those of one smoothness together."""
    every = [(c, term) for term in form.terms for c in range(form.num_kernels)]
    smoothness = sorted({term.smoothness for term in form.terms})
    return [[(c, term) for c, term in every if term.smoothness == nu] for nu in smoothness]
