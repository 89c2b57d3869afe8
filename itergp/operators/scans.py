"""Products with one-dimensional kernels ``p(a) exp(-a)``, ``a`` a scaled distance and ``p`` a polynomial, in linear time.

Matern kernels of smoothness 1/2, 3/2 and 5/2 are of this kind, and so are their derivatives in distances and lengthscales. With
inputs sorted, the sums ``s_k(i) = sum_{j <= i} a_ij^k exp(-a_ij) v_j`` follow from those of the row before: with a gap ``d``

    s_k(i + 1) = exp(-d) sum_{m <= k} binomial(k, m) d^(k - m) s_m(i)  +  [k = 0] v_{i + 1},

the state-space form of the kernel (Hartikainen and Sarkka 2010). Every factor is at most one, and nothing overflows.
Rows are cut into chunks, all of which advance at once; what one chunk hands to the next is a scan of the same kind over chunks,
in float64, so that rounding does not grow with the number of rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from itergp.operators.tiles import slices

_CHUNK_ROWS = 32
# Columns from which a row of a block is moved as one: in random order it is the row that takes time, not its numbers.
_MOVED_TOGETHER, _MOVED_ROWS = 4, 16_384
_LARGEST_GAP = 800.0  # in lengthscales: the exponential underflows in float64 before that

State = list[Tensor]  # s_0..s_q, each (T, B, m)


@dataclass(frozen=True)
class ExponentialPolynomial:
    """``f(a) = sum_k coefficients[k] a^k exp(-a)`` of a distance, or of its sign as well.

    Attributes:
        coefficients: Of the polynomial, from the constant on.
        odd: Whether ``f`` is multiplied by the sign of the first input minus the second, which is zero for equal inputs.
    """

    coefficients: tuple[float, ...]
    odd: bool = False

    @classmethod
    def matern(cls, smoothness: float) -> ExponentialPolynomial:
        """The Matern profile of smoothness 0.5, 1.5 or 2.5 of ``a = sqrt(2 smoothness) |x - x'| / lengthscale``."""
        return cls({0.5: (1.0,), 1.5: (1.0, 1.0), 2.5: (1.0, 1.0, 1.0 / 3.0)}[smoothness])

    @property
    def degree(self) -> int:
        """Of the polynomial."""
        return len(self.coefficients) - 1

    def derivative(self) -> ExponentialPolynomial:
        """In the scaled difference of the inputs, taken as zero where ``f`` has a kink; its parity is the other one."""
        coefficients = self.coefficients
        raised = [*(k * c for k, c in enumerate(coefficients) if k), 0.0]
        slope = [a - b for a, b in zip(raised, coefficients, strict=True)]
        return ExponentialPolynomial(tuple(slope), not self.odd)

    def stretched(self) -> ExponentialPolynomial:
        """``a f'(a)``: the derivative in the logarithm of what distances are multiplied by."""
        return ExponentialPolynomial((0.0, *self.derivative().coefficients), self.odd)

    def at(self, distance: Tensor) -> Tensor:
        """``p(a) exp(-a)`` at distances."""
        value = torch.full_like(distance, self.coefficients[-1])
        for coefficient in reversed(self.coefficients[:-1]):
            value = value.mul_(distance).add_(coefficient)
        return value.mul_(torch.exp(-distance))


class ChunkedOrder:
    """An order of rows, and where they stand in the layout of chunks.

    Row ``m L + l`` of the order is row ``l`` of chunk ``m``, and stands at ``(l, m)`` of an ``(L, M)`` array.

    Args:
        order: Number of the row at each place ``(n,)``.
        steps: Rows L of a chunk; of fewer rows these.
    """

    def __init__(self, order: Tensor, steps: int = _CHUNK_ROWS) -> None:
        size = order.shape[0]
        self.steps, self.chunks = _layout(size, steps)
        self.missing = self.steps * self.chunks - size  # rows of the last chunk
        padded = pad(order, (0, self.missing)).view(self.chunks, self.steps).mT
        self.order = padded.reshape(-1).to(torch.int32)
        rank = torch.arange(size, device=order.device)
        self.places = torch.empty_like(self.order[:size])
        self.places[order.long()] = self.place(rank).to(torch.int32)

    @property
    def size(self) -> int:
        """Rows n."""
        return self.places.shape[0]

    def rows(self) -> Tensor:
        """Number of the row at each place ``(n,)``, int32."""
        return self.order.view(self.steps, self.chunks).mT.reshape(-1)[: self.size]

    @staticmethod
    def memory_of_order(size: int) -> int:
        """Bytes that an order of so many rows keeps."""
        return 8 * size

    def chunked(self, rows: Tensor, out: Tensor) -> None:
        """Writes vectors ``(B, n)`` in the layout of chunks into ``(B, L, M)``, zeros where there are no rows."""
        torch.index_select(rows, 1, self.order, out=out.view(out.shape[0], -1))
        if self.missing:
            out[:, self.steps - self.missing :, -1] = 0.0

    def restored(self, chunked: Tensor) -> Tensor:
        """Vectors ``(B, n)`` in the order of the inputs, from the layout of chunks ``(B, L, M)``."""
        return chunked.reshape(chunked.shape[0], -1).index_select(1, self.places)

    def chunked_rows(self, rows: Tensor, out: Tensor) -> None:
        """As ``chunked`` of vectors side by side ``(n, B)``, contiguous."""
        if rows.shape[1] < _MOVED_TOGETHER or rows.device.type != "cpu":
            self.chunked(rows.mT.contiguous(), out)
            return
        flat, source = out.view(out.shape[0], -1), rows.numpy()
        for i in slices(flat.shape[1], _MOVED_ROWS):
            flat[:, i] = torch.from_numpy(source.take(self.order[i].numpy(), axis=0)).mT
        if self.missing:
            out[:, self.steps - self.missing :, -1] = 0.0

    def add_restored_rows(self, chunked: Tensor, out: Tensor, weight: float, scratch: Tensor) -> None:
        """Adds vectors in the layout of chunks, times a number, to vectors side by side in the order of the inputs.

        Args:
            chunked: ``(B, L, M)``, contiguous.
            out: ``(n, B)``.
            weight: The number.
            scratch: ``(L M, B)``, which is written over.
        """
        if out.shape[1] < _MOVED_TOGETHER or out.device.type != "cpu":
            out.add_(self.restored(chunked).mT, alpha=weight)
            return
        flat, source = chunked.view(chunked.shape[0], -1), scratch.numpy()
        for i in slices(flat.shape[1], _MOVED_ROWS):
            scratch[i] = flat[:, i].mT
        for i in slices(self.size, _MOVED_ROWS):
            out[i].add_(torch.from_numpy(source.take(self.places[i].numpy(), axis=0)), alpha=weight)

    def rank(self) -> Tensor:
        """The number of each row in the order ``(n,)``."""
        places = self.places.long()
        return places % self.chunks * self.steps + places // self.chunks

    def place(self, rank: Tensor) -> Tensor:
        """Where rows of these numbers in the order stand in the flattened layout."""
        return rank % self.steps * self.chunks + rank // self.steps


class SortedColumn(ChunkedOrder):
    """One column of inputs in ascending order, in the layout of chunks.

    Args:
        values: ``(n,)``.
    """

    def __init__(self, values: Tensor) -> None:
        self.values, order = values.detach().sort(stable=True)
        super().__init__(order)

    @staticmethod
    def memory_of(size: int, itemsize: int) -> int:
        """Bytes that a column of so many rows keeps."""
        return size * itemsize + ChunkedOrder.memory_of_order(size)

    def by_row(self) -> Tensor:
        """Values in the order of the rows ``(n,)``."""
        return self.values[self.rank()]

    def gaps(self) -> Tensor:
        """How far the input of each row is from that of the row before ``(n,)``, float64."""
        values = self.values.double()
        return values.diff(prepend=values[:1])


class Scan:
    """Sums over the rows before, and after, every row of T orders of the same length.

    Args:
        gaps: Distances of rows from those before them ``(T, n)``, float64, infinity where nothing is summed across.
        degree: Highest power of the distance q.
        dtype: Of the vectors.

    Attributes:
        shape: Rows L of a chunk, and chunks M.
    """

    def __init__(self, gaps: Tensor, degree: int, dtype: torch.dtype) -> None:
        self.degree = degree
        self.shape = steps, chunks = _layout(gaps.shape[-1])
        gaps = pad(gaps.clamp(0.0, _LARGEST_GAP), (0, steps * chunks - gaps.shape[-1]))
        self._forward = _coefficients(gaps, degree, steps, dtype)
        last = [part.roll(-1, -1) for part in self._forward[0]]  # the gap to the next chunk
        self._backward = [*self._forward[1:], last]
        self._above: _Carries | None = None
        self._below: _Carries | None = None
        if chunks > 1:
            between = [g.view(-1, chunks, steps).sum(-1) for g in (gaps, pad(gaps[:, 1:], (0, 1)))]
            self._above = _Carries(between[0], degree)  # last rows of chunks, and first ones from the end
            self._below = _Carries(between[1].flip(-1), degree)

    @classmethod
    def of(cls, columns: Sequence[SortedColumn], rates: Tensor, degree: int) -> Scan:
        """Of sorted columns, with what their distances are multiplied by ``(T,)``."""
        gaps = torch.stack([column.gaps() for column in columns])
        # Differences of the inputs are exact, those of scaled ones would not be.
        return cls(gaps.mul_(rates.detach().double()[:, None]), degree, columns[0].values.dtype)

    @staticmethod
    def memory_of(size: int, degree: int, itemsize: int) -> int:
        """Bytes that a column of so many rows keeps: factors of every row, and in float64 those of chunks, both ways."""
        return size * (degree + 1) * (itemsize + 1)

    def products(self, block: Tensor, functions: Sequence[ExponentialPolynomial]) -> list[Tensor]:
        """``sum_j f(a_ij) v_j`` at every row, for even functions.

        Args:
            block: Vectors ``(T, B, L, M)`` in the layout of chunks.
            functions: Of degree q at most.

        Returns:
            For each function ``(T, B, L, M)``.
        """
        products = [torch.empty_like(block) for _ in functions]
        scratch = torch.empty_like(block[:, :, 0])

        def collect(step: int, state: State, *, first: bool) -> None:
            for function, product in zip(functions, products, strict=True):
                value = _combination(function.coefficients, state, scratch)
                product[:, :, step].copy_(value) if first else product[:, :, step].add_(value)

        steps, state = self.shape[0], self._carried_forward(block)
        for step in range(steps):
            _advance(state, self._forward[step], block[:, :, step])
            collect(step, state, first=True)
        state = self._carried_backward(block)
        for step in reversed(range(steps)):
            _advance(state, self._backward[step], None)
            collect(step, state, first=False)
            state[0].add_(block[:, :, step])
        return products

    def states(self, block: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Sums over rows up to every row, and from every row on, the row included: each q + 1 of ``(T, B, L, M)``."""
        before, after = ([torch.empty_like(block) for _ in range(self.degree + 1)] for _ in range(2))
        steps, state = self.shape[0], self._carried_forward(block)
        for step in range(steps):
            _advance(state, self._forward[step], block[:, :, step])
            for kept, value in zip(before, state, strict=True):
                kept[:, :, step].copy_(value)
        state = self._carried_backward(block)
        for step in reversed(range(steps)):
            _advance(state, self._backward[step], block[:, :, step])
            for kept, value in zip(after, state, strict=True):
                kept[:, :, step].copy_(value)
        return before, after

    def _carried_forward(self, block: Tensor) -> State:
        """The state before the first row of every chunk."""
        state = self._zeros(block)
        if self._above is None:
            return state
        for step in range(self.shape[0]):
            _advance(state, self._forward[step], block[:, :, step])
        return _shifted(self._above(state), state)

    def _carried_backward(self, block: Tensor) -> State:
        """The state after the last row of every chunk."""
        state = self._zeros(block)
        if self._below is None:
            return state
        for step in reversed(range(self.shape[0])):
            _advance(state, self._backward[step], block[:, :, step])
        carried = _shifted(self._below([part.flip(-1) for part in state]), state)
        return [part.flip(-1) for part in carried]

    def _zeros(self, block: Tensor) -> State:
        return [torch.zeros_like(block[:, :, 0]) for _ in range(self.degree + 1)]


class _Carries:
    """The same sums over what chunks hand on, in float64.

    Args:
        gaps: Between what hands on and what is handed to ``(T, n)``.
        degree: q.
    """

    def __init__(self, gaps: Tensor, degree: int) -> None:
        self._size = gaps.shape[-1]
        self._shape = steps, chunks = _layout(self._size)
        gaps = pad(gaps.clamp_max(_LARGEST_GAP), (0, steps * chunks - self._size))
        self._steps = _coefficients(gaps, degree, steps, torch.float64)
        self._above = _Carries(gaps.view(-1, chunks, steps).sum(-1), degree) if chunks > 1 else None

    def __call__(self, totals: State) -> State:
        """States ``(T, B, n)`` at the end of each row, from what each row adds."""
        steps, chunks = self._shape
        added = [self._chunked(total.double()) for total in totals]
        state = [torch.zeros_like(part[0]) for part in added]
        if self._above is not None:
            for step in range(steps):
                self._advance(state, added, step)
            state = _shifted(self._above(state), state)
        for step in range(steps):
            self._advance(state, added, step)
            for part, value in zip(added, state, strict=True):
                part[step].copy_(value)
        return [part.movedim(0, -1).reshape(*part.shape[1:3], steps * chunks)[..., : self._size] for part in added]

    def _advance(self, state: State, added: State, step: int) -> None:
        _advance(state, self._steps[step], added[0][step])
        for value, part in zip(state[1:], added[1:], strict=True):
            value.add_(part[step])

    def _chunked(self, total: Tensor) -> Tensor:
        steps, chunks = self._shape
        padded = pad(total, (0, steps * chunks - self._size))
        return padded.view(*total.shape[:2], chunks, steps).movedim(-1, 0).contiguous()


class Interpolation:
    """``sum_j f(rate (x - t_j)) v_j`` at inputs x, from the sums at the sorted inputs t on both sides of each.

    Args:
        column: The sorted inputs t.
        inputs: The others x ``(m,)``.
        rate: What distances are multiplied by, of one element.
        function: f.
    """

    def __init__(self, column: SortedColumn, inputs: Tensor, rate: Tensor, function: ExponentialPolynomial) -> None:
        values = column.values
        inputs = inputs.detach().to(values.dtype).contiguous()
        not_above = torch.searchsorted(values, inputs, right=True)
        below = torch.searchsorted(values, inputs) if function.odd else not_above
        self._sign = -1.0 if function.odd else 1.0
        self._left = _decays(column, below - 1, inputs, rate, function)
        self._right = _decays(column, not_above, inputs, rate, function)

    def __call__(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
        """The products ``(B, m)``.

        Args:
            before: ``s_0..s_q`` over rows up to every row, each ``(B, L, M)`` in the layout of chunks.
            after: The same over rows from every row on.
        """
        left, right = (_weighted(*side) for side in ((before, *self._left), (after, *self._right)))
        return left.add_(right, alpha=self._sign)


def _decays(
    column: SortedColumn, rank: Tensor, inputs: Tensor, rate: Tensor, function: ExponentialPolynomial
) -> tuple[Tensor, list[Tensor]]:
    """Where the sums of one side stand, and by how much each is multiplied; nothing where there are no rows on that side."""
    there, rank = (rank >= 0) & (rank < column.size), rank.clamp(0, column.size - 1)
    gap = (inputs.double() - column.values[rank].double()).abs().mul_(rate).clamp_max_(_LARGEST_GAP)
    decay = torch.where(there, torch.exp(-gap), 0.0)
    coefficients, weights = function.coefficients, []
    for m in range(len(coefficients)):
        parts = (coefficients[k] * math.comb(k, m) * gap ** (k - m) for k in range(m, len(coefficients)))
        weights.append((decay * functools.reduce(torch.add, parts)).to(inputs.dtype))
    return column.place(rank), weights


def _weighted(sums: Sequence[Tensor], place: Tensor, weights: Sequence[Tensor]) -> Tensor:
    total: Tensor | None = None
    for part, weight in zip(sums, weights, strict=False):
        value = part.reshape(part.shape[0], -1).index_select(1, place).mul_(weight)
        total = value if total is None else total.add_(value)
    assert total is not None
    return total


def chunked(columns: Sequence[ChunkedOrder], blocks: Sequence[Tensor]) -> Tensor:
    """Vectors ``(B, n)``, one block for each order, in the layout of chunks ``(T, B, L, M)``."""
    out = blocks[0].new_empty(len(blocks), blocks[0].shape[0], columns[0].steps, columns[0].chunks)
    for column, block, part in zip(columns, blocks, out, strict=True):
        column.chunked(block, part)
    return out


def _layout(size: int, rows: int = _CHUNK_ROWS) -> tuple[int, int]:
    """Rows of a chunk and number of chunks."""
    steps = max(1, min(rows, size))
    return steps, max(1, math.ceil(size / steps))


def _coefficients(gaps: Tensor, degree: int, steps: int, dtype: torch.dtype) -> list[list[Tensor]]:
    """For every step of a chunk ``d^k exp(-d)``, k = 0..q, of the gap d before its row: each ``(T, 1, M)``."""
    power = torch.exp(-gaps)
    powers = []
    for k in range(degree + 1):
        power = power * gaps if k else power
        # (T, M, L) to (L, T, 1, M)
        powers.append(power.to(dtype).view(len(gaps), -1, steps).movedim(-1, 0).contiguous().unsqueeze(2))
    return [list(parts) for parts in zip(*(p.unbind(0) for p in powers), strict=True)]


def _advance(state: State, decays: Sequence[Tensor], added: Tensor | None) -> None:
    """Moves a state over a gap, in place, and adds a row."""
    for k in reversed(range(1, len(state))):
        state[k].mul_(decays[0])
        for m in range(k):
            state[k].addcmul_(decays[k - m], state[m], value=math.comb(k, m))
    if added is None:
        state[0].mul_(decays[0])
    else:
        torch.addcmul(added, decays[0], state[0], out=state[0])


def _combination(coefficients: Sequence[float], state: State, scratch: Tensor) -> Tensor:
    """The weighted sum of a state; what is returned is overwritten by the next call."""
    if len(coefficients) == 1 and coefficients[0] == 1.0:
        return state[0]
    torch.mul(state[0], coefficients[0], out=scratch)
    for coefficient, part in zip(coefficients[1:], state[1:], strict=False):
        if coefficient != 0.0:
            scratch.add_(part, alpha=coefficient)
    return scratch


def _shifted(carried: State, like: State) -> State:
    """What each chunk takes over from the one before, in the dtype of the rows."""
    return [pad(part[..., :-1].to(own.dtype), (1, 0)) for part, own in zip(carried, like, strict=True)]
