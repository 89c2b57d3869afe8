"""Entries of a block from how rows differ in their columns, and what moves them."""

from __future__ import annotations

import functools
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from itergp.kernels.distances import (
    changes,
    differences,
    manhattan_distance,
    sum_of_changes,
    sum_of_differences,
    sum_of_squares,
    weighted_sum,
)
from itergp.operators.radial_derivatives import smooth_profile
from itergp.operators.radial_product import profile, profile_and_slope, profile_formula, squared_distances, with_norms
from itergp.operators.two_values import TwoValues

LOG2_E, LOG_2 = math.log2(math.e), math.log(2.0)

Block = Sequence[Tensor]
"""What the entries of a block come from: for each leaf its rows ``(C', b, F)``, columns ``(C', m, F)``, rates and weights."""
Wanted = Sequence[bool]
Gradients = list[Tensor | None]
Pull = Callable[[Tensor], Gradients]
TENSORS = 4  # of a leaf


class Node(ABC):
    """Entries as a function of rows and parameters."""

    num_leaves: int

    @abstractmethod
    def entries(self, block: Block) -> Tensor:
        """Entries ``(C', b, m)``, without derivatives; they may be written over."""

    @abstractmethod
    def linearise(self, block: Block, wanted: Wanted) -> tuple[Tensor, Pull]:
        """Entries, and what moves them: a function of the derivative in the entries, which is not written over.

        Args:
            block: The tensors.
            wanted: Of which of them derivatives are wanted.
        """

    def derivatives(self, block: Block, wanted: Wanted) -> Pull:
        """What moves the entries alone; arguments as of ``linearise``."""
        return self.linearise(block, wanted)[1]

    @abstractmethod
    def smooth(self, block: Block) -> Tensor:
        """Entries by operations that have derivatives of any order."""

    @abstractmethod
    def formula(self, block: Sequence[Any]) -> Any:
        """Entries as a formula of KeOps, of its lazy tensors ``(b, 1, F)`` and ``(1, m, F)``, and tensors ``(1, 1, R)``."""


class Leaf(Node):
    """One kernel: rows, columns, rates (what distances are multiplied by) and weights (what entries are)."""

    num_leaves = 1


@dataclass(frozen=True)
class Exponential(Leaf):
    """``weight * 2^-(sum_d rate_d |x_d - y_d| + sum_d rate_d [c_d != c'_d])``; weights ``(C', 1)``.

    Attributes:
        rate_of: For each column of differences which of the rates ``(C', R)`` carries its derivative. These rates are 1.
        num_codes: Columns of codes, which come last, as their rates do.
        moving: Columns in which derivatives of rows may be wanted.
    """

    rate_of: tuple[int, ...]
    num_codes: int = 0
    moving: tuple[int, ...] = ()

    def _split(self, block: Block) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Differing columns of rows and columns, codes of both, and costs of the codes."""
        first, second, rates, _ = block
        size = len(self.rate_of)
        return (
            first[..., :size],
            second[..., :size],
            first[..., size:],
            second[..., size:],
            _last(rates, self.num_codes),
        )

    def _exponents(self, block: Block) -> tuple[Tensor, Tensor]:
        """``sum_d |x_d - y_d|``, and with that of the codes, which may be the same tensor."""
        first, second, codes, others, costs = self._split(block)
        apart = sum_of_differences(first, second)
        if not self.num_codes:
            return apart, apart
        total = sum_of_changes(codes, others, costs)
        return apart, total.add_(apart) if self.rate_of else total

    def entries(self, block: Block) -> Tensor:
        """See ``Node``."""
        return self._exponents(block)[1].neg_().exp2_().mul_(block[3][..., None])

    def linearise(self, block: Block, wanted: Wanted) -> tuple[Tensor, Pull]:
        """See ``Node``."""
        apart, total = self._exponents(block)
        plain = total.neg().exp2_()
        weights = block[3][..., None]

        def pull(outer: Tensor) -> Gradients:
            moved = outer * plain
            of_weights = moved.sum((1, 2)).unsqueeze(-1)
            moved.mul_(weights * -LOG_2)
            of_rates = self._of_rates(block, moved, apart) if wanted[2] else None
            of_rows = self._of_rows(block, moved) if wanted[0] or wanted[1] else (None, None)
            return [*of_rows, of_rates, of_weights]

        return plain * weights, pull

    def _of_rates(self, block: Block, moved: Tensor, apart: Tensor) -> Tensor:
        first, second, codes, others, _ = self._split(block)
        found = torch.zeros_like(block[2])
        if self.rate_of and len(set(self.rate_of)) == 1:
            found[:, self.rate_of[0]] = _inner(moved, apart)
        else:
            wanted = [d for d in range(len(self.rate_of)) if d not in self.moving]
            for d, difference in zip(wanted, differences(first[..., wanted], second[..., wanted]), strict=True):
                found[:, self.rate_of[d]] += _inner(moved, difference.abs_())
        for d, change in enumerate(changes(codes, others)):
            found[:, found.shape[-1] - self.num_codes + d] = _inner(moved, change)
        return found

    def _of_rows(self, block: Block, moved: Tensor) -> tuple[Tensor, Tensor]:
        of_first, of_second = torch.zeros_like(block[0]), torch.zeros_like(block[1])
        moving = list(self.moving)
        for d, difference in zip(moving, differences(block[0][..., moving], block[1][..., moving]), strict=True):
            pulled = difference.sign_().mul_(moved)
            of_first[..., d] = pulled.sum(-1)
            of_second[..., d] = -pulled.sum(-2)
        return of_first, of_second

    def smooth(self, block: Block) -> Tensor:
        """See ``Node``."""
        first, second, codes, others, costs = self._split(block)
        rates = block[2][:, None, list(self.rate_of)]
        total = manhattan_distance(first * rates, second * rates)
        for d, change in enumerate(changes(codes.detach(), others.detach())):
            total = total + change.clone() * costs[:, d, None, None]
        return torch.exp2(-total) * block[3][..., None]

    def formula(self, block: Sequence[Any]) -> Any:
        """See ``Node``."""
        rows, cols, rates, weights = block
        size, terms = len(self.rate_of), []
        if size:
            terms.append((rows[:, :, :size] - cols[:, :, :size]).abs().sum(-1))
        if self.num_codes:
            apart = (rows[:, :, size:] - cols[:, :, size:]).abs()
            terms.append(((apart - 0.5).step() * _last(rates, self.num_codes).contiguous()).sum(-1))
        return (functools.reduce(operator.add, terms) * -LOG_2).exp() * weights


@dataclass(frozen=True)
class Additive(Leaf):
    """``sum_d weight_d 2^-(rate_d |x_d - y_d|)``, with rates ``(C', D)`` that are 1, and weights ``(C', D)``."""

    @staticmethod
    def _terms(first: Tensor, second: Tensor) -> Iterator[Tensor]:
        """``2^-|x_d - y_d|``, each written over by the next."""
        for difference in differences(first, second):
            yield difference.abs_().neg_().exp2_()

    def entries(self, block: Block) -> Tensor:
        """See ``Node``."""
        first, second, _, weights = block
        if (two := TwoValues.find(first, second)) is not None:
            other, own = ~two.which, weights[:, two.which]
            least = two.apart.neg().exp2() * own
            total = two.where_equal(own - least).add_(least.sum(-1)[:, None, None])
            return weighted_sum(self._terms(first[..., other], second[..., other]), weights[:, other], total)
        total = first.new_zeros(
            *torch.broadcast_shapes(first.shape[:-2], second.shape[:-2]), first.shape[-2], second.shape[-2]
        )
        return weighted_sum(self._terms(first, second), weights, total)

    def linearise(self, block: Block, wanted: Wanted) -> tuple[Tensor, Pull]:
        """See ``Node``."""
        return self.entries(block), self.derivatives(block, wanted)

    def derivatives(self, block: Block, wanted: Wanted) -> Pull:
        """See ``Node``."""

        def pull(outer: Tensor) -> Gradients:
            of_first, of_second = torch.zeros_like(block[0]), torch.zeros_like(block[1])
            of_rates, of_weights = torch.zeros_like(block[2]), torch.zeros_like(block[3])
            first, second, columns = block[0], block[1], torch.arange(block[0].shape[-1], device=outer.device)
            if (two := TwoValues.find(first, second)) is not None:
                equal, differ, along, across = two.pull(outer)
                least = two.apart.neg().exp2()
                slope = -LOG_2 * least * block[3][:, two.which]
                of_weights[:, two.which] = equal + least * differ
                of_rates[:, two.which] = slope * two.apart * differ
                of_first[..., two.which], of_second[..., two.which] = slope[:, None] * along, -slope[:, None] * across
                first, second, columns = first[..., ~two.which], second[..., ~two.which], columns[~two.which]
            for d, difference in zip(columns.tolist(), differences(first, second), strict=True):
                apart = difference.abs()
                moved = apart.neg().exp2_().mul_(outer)
                of_weights[:, d] = moved.sum((1, 2))
                moved.mul_(-LOG_2 * block[3][:, d, None, None])
                if wanted[2]:
                    of_rates[:, d] = _inner(moved, apart)
                if wanted[0] or wanted[1]:
                    pulled = difference.sign_().mul_(moved)
                    of_first[..., d], of_second[..., d] = pulled.sum(-1), -pulled.sum(-2)
            return [of_first, of_second, of_rates, of_weights]

        return pull

    def smooth(self, block: Block) -> Tensor:
        """See ``Node``."""
        first, second, rates, weights = block
        columns = zip((first * rates[:, None]).unbind(-1), (second * rates[:, None]).unbind(-1), strict=True)
        terms = [torch.exp2(-(x.unsqueeze(-1) - y.unsqueeze(-2)).abs()) for x, y in columns]
        return (torch.stack(terms, -1) * weights[:, None, None]).sum(-1)

    def formula(self, block: Sequence[Any]) -> Any:
        """See ``Node``."""
        rows, cols, _, weights = block
        return (((rows - cols).abs() * -LOG_2).exp() * weights).sum(-1)


@dataclass(frozen=True)
class Radial(Leaf):
    """``weight * profile(rate |x - y|)``, with rates ``(C', 1)`` that are 1, and weights ``(C', 1)``.

    Attributes:
        smoothness: Matern smoothness 0.5, 1.5 or 2.5, or infinity for the squared exponential.
    """

    smoothness: float

    def _squared(self, block: Block) -> Tensor:
        if self.smoothness == 0.5:  # whose kink at zero makes a root of the rounding of products: differences have none
            return sum_of_squares(block[0], block[1])
        squared = squared_distances(with_norms(block[0]), with_norms(block[1]))
        if _same_memory(block[0], block[1]):  # exactly zero, where rounding would not be
            squared.diagonal(dim1=-2, dim2=-1).zero_()
        return squared

    def entries(self, block: Block) -> Tensor:
        """See ``Node``."""
        return profile(self._squared(block).to(block[3].dtype), self.smoothness).mul_(block[3][..., None])

    def linearise(self, block: Block, wanted: Wanted) -> tuple[Tensor, Pull]:
        """See ``Node``."""
        first, second, _, weights = block
        squared = self._squared(block)
        apart = squared.to(weights.dtype, copy=True)
        plain, slope = profile_and_slope(squared.to(weights.dtype), self.smoothness)

        def pull(outer: Tensor) -> Gradients:
            of_weights = (outer * plain).sum((1, 2)).unsqueeze(-1)
            moved = slope * outer * weights[..., None]
            of_rates = 2.0 * _inner(moved, apart).unsqueeze(-1)
            if not (wanted[0] or wanted[1]):
                return [None, None, of_rates, of_weights]
            wide = moved.to(first.dtype)
            of_first = 2.0 * (wide.sum(-1, keepdim=True) * first - wide @ second)
            of_second = 2.0 * (wide.sum(-2).unsqueeze(-1) * second - wide.mT @ first)
            return [of_first, of_second, of_rates, of_weights]

        return plain * weights[..., None], pull

    def smooth(self, block: Block) -> Tensor:
        """See ``Node``."""
        first, second, rates, weights = block
        squared = (first.unsqueeze(-2) - second.unsqueeze(-3)).square().sum(-1) * rates.square()[..., None]
        return smooth_profile(squared, self.smoothness).to(weights.dtype) * weights[..., None]

    def formula(self, block: Sequence[Any]) -> Any:
        """See ``Node``."""
        rows, cols, _, weights = block
        return profile_formula(((rows - cols) ** 2).sum(-1), self.smoothness) * weights


@dataclass(frozen=True)
class Combination(Node):
    """Nodes that one operation combines."""

    parts: tuple[Node, ...]

    @property
    def num_leaves(self) -> int:  # type: ignore[override]
        """Of all parts."""
        return sum(part.num_leaves for part in self.parts)

    def entries(self, block: Block) -> Tensor:
        """See ``Node``."""
        values = (part.entries(own) for part, own in _shares(self.parts, block))
        return self._combined(next(values), values)

    def formula(self, block: Sequence[Any]) -> Any:
        """See ``Node``."""
        return functools.reduce(self._operation, (part.formula(own) for part, own in _shares(self.parts, block)))

    @abstractmethod
    def _combined(self, first: Tensor, others: Iterable[Tensor]) -> Tensor:
        """Values combined in the first one's place."""

    @abstractmethod
    def _operation(self, first: Any, second: Any) -> Any:
        """Two values combined."""


@dataclass(frozen=True)
class Sum(Combination):
    """The sum of nodes."""

    def linearise(self, block: Block, wanted: Wanted) -> tuple[Tensor, Pull]:
        """See ``Node``."""
        values, pulls = _linearised(self.parts, block, wanted)
        return self._combined(values[0].clone(), values[1:]), _of_each(pulls)

    def derivatives(self, block: Block, wanted: Wanted) -> Pull:
        """See ``Node``."""
        shares = zip(_shares(self.parts, block), _shares(self.parts, wanted), strict=True)
        return _of_each([part.derivatives(own, flags) for (part, own), (_, flags) in shares])

    def smooth(self, block: Block) -> Tensor:
        """See ``Node``."""
        return torch.stack([part.smooth(own) for part, own in _shares(self.parts, block)]).sum(0)

    def _combined(self, first: Tensor, others: Iterable[Tensor]) -> Tensor:
        for value in others:
            first.add_(value)
        return first

    def _operation(self, first: Any, second: Any) -> Any:
        return first + second


@dataclass(frozen=True)
class Product(Combination):
    """The product of nodes."""

    def linearise(self, block: Block, wanted: Wanted) -> tuple[Tensor, Pull]:
        """See ``Node``."""
        values, pulls = _linearised(self.parts, block, wanted)

        def pull(outer: Tensor) -> Gradients:
            found: Gradients = []
            for number, own in enumerate(pulls):
                found += own(self._combined(outer.clone(), [*values[:number], *values[number + 1 :]]))
            return found

        return self._combined(values[0].clone(), values[1:]), pull

    def smooth(self, block: Block) -> Tensor:
        """See ``Node``."""
        return torch.stack([part.smooth(own) for part, own in _shares(self.parts, block)]).prod(0)

    def _combined(self, first: Tensor, others: Iterable[Tensor]) -> Tensor:
        for value in others:
            first.mul_(value)
        return first

    def _operation(self, first: Any, second: Any) -> Any:
        return first * second


def _shares(parts: Sequence[Node], values: Sequence) -> Iterator[tuple[Node, Sequence]]:
    """Every part with its own leaves' share of a flat sequence."""
    start = 0
    for part in parts:
        stop = start + TENSORS * part.num_leaves
        yield part, values[start:stop]
        start = stop


def _of_each(pulls: Sequence[Pull]) -> Pull:
    """What moves a sum."""

    def pull(outer: Tensor) -> Gradients:
        return [gradient for own in pulls for gradient in own(outer)]

    return pull


def _linearised(parts: Sequence[Node], block: Block, wanted: Wanted) -> tuple[list[Tensor], list[Pull]]:
    shares = zip(_shares(parts, block), _shares(parts, wanted), strict=True)
    found = [part.linearise(own, flags) for (part, own), (_, flags) in shares]
    return [value for value, _ in found], [pull for _, pull in found]


def _inner(first: Tensor, second: Tensor) -> Tensor:
    """Sums ``(C',)`` of products of blocks ``(C', b, m)``, in one pass over both."""
    return torch.stack([torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in zip(first, second, strict=True)])


def _last(tensor: Tensor, number: int) -> Tensor:
    return tensor[..., tensor.shape[-1] - number :]


def _same_memory(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and first.data_ptr() == second.data_ptr() and first.stride() == second.stride()
