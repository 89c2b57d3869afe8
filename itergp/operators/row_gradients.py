"""``RowGradients``: gradients of rows of data in a network's weights, as outer products where its layers make them so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_CHUNK_NUMBERS = 2**24
_MOST_COLUMNS = 2**12  # of weights, made at a time


@dataclass(frozen=True)
class LayerWeights:
    """Where the weights of a linear layer are in the vector of all weights.

    Attributes:
        outputs: Rows o of its matrix.
        inputs: Columns i of its matrix, 0 if its matrix is not among the weights.
        matrix: Where its ``o i`` entries begin.
        bias: Where its ``o`` biases begin, -1 if they are not among the weights.
    """

    outputs: int
    inputs: int
    matrix: int
    bias: int

    @property
    def width(self) -> int:
        """Columns of its matrix, with that of the bias."""
        return self.inputs + (self.bias >= 0)

    def of(self, weights: Tensor) -> Tensor:
        """Its matrix and bias ``(o, width, k)`` among weights ``(P, k)``."""
        parts = []
        if self.inputs:
            size = self.outputs * self.inputs
            parts.append(weights[self.matrix : self.matrix + size].view(self.outputs, self.inputs, -1))
        if self.bias >= 0:
            parts.append(weights[self.bias : self.bias + self.outputs].unsqueeze(1))
        return torch.cat(parts, 1)

    def put(self, values: Tensor, into: Tensor) -> None:
        """Matrix and bias ``(..., o, width)`` into weights ``(..., P)``."""
        if self.inputs:
            size = self.outputs * self.inputs
            into[..., self.matrix : self.matrix + size] = values[..., : self.inputs].flatten(-2)
        if self.bias >= 0:
            into[..., self.bias : self.bias + self.outputs] = values[..., -1]


@dataclass(frozen=True)
class WeightLayout:
    """Which weights have gradients that are outer products.

    Attributes:
        num_weights: P.
        layers: Linear layers whose gradients are.
        plain: First and last plus one of each run of other weights.
    """

    num_weights: int
    layers: tuple[LayerWeights, ...]
    plain: tuple[tuple[int, int], ...]

    @property
    def num_plain(self) -> int:
        """Weights outside of these layers."""
        return sum(stop - start for start, stop in self.plain)

    @property
    def width(self) -> int:
        """Numbers that the gradient of one row takes."""
        return self.num_plain + sum(layer.outputs + layer.width for layer in self.layers)

    def plain_of(self, weights: Tensor) -> Tensor:
        """Other weights ``(P', k)`` among all ``(P, k)``."""
        return torch.cat([weights[start:stop] for start, stop in self.plain]) if self.plain else weights[:0]

    def put_plain(self, values: Tensor, into: Tensor) -> None:
        """Other weights ``(..., P')`` into all ``(..., P)``."""
        start = 0
        for first, last in self.plain:
            into[..., first:last] = values[..., start : start + last - first]
            start += last - first

    def as_tensor(self) -> Tensor:
        """All of it as whole numbers, for a file."""
        layers = [(one.outputs, one.inputs, one.matrix, one.bias) for one in self.layers]
        return torch.tensor([self.num_weights, len(layers), *sum(layers, ()), *sum(self.plain, ())])

    @classmethod
    def from_tensor(cls, numbers: Tensor) -> WeightLayout:
        """What ``as_tensor`` gave."""
        size, count, *rest = numbers.tolist()
        layers = tuple(LayerWeights(*rest[4 * i : 4 * i + 4]) for i in range(count))
        runs = rest[4 * count :]
        return cls(size, layers, tuple(zip(runs[::2], runs[1::2], strict=True)))


@dataclass(frozen=True)
class WeightBlock:
    """Vectors of weights ``(P, k)``, arranged as products with gradients want them.

    Attributes:
        layout: Which weights are where.
        plain: Weights outside of the layers ``(P', k)``.
        matrices: Of each layer, with its bias as one input more ``(i, o k)``.
    """

    layout: WeightLayout
    plain: Tensor
    matrices: tuple[Tensor, ...]

    @classmethod
    def of(cls, layout: WeightLayout, weights: Tensor) -> WeightBlock:
        """From weights ``(P, k)``; differentiable."""
        matrices = tuple(layer.of(weights).movedim(1, 0).flatten(1) for layer in layout.layers)
        return cls(layout, layout.plain_of(weights), matrices)

    @classmethod
    def zeros(cls, layout: WeightLayout, count: int, like: Tensor) -> WeightBlock:
        """Of ``count`` vectors, for sums."""
        matrices = tuple(like.new_zeros(layer.width, layer.outputs * count) for layer in layout.layers)
        return cls(layout, like.new_zeros(layout.num_plain, count), matrices)

    def weights(self) -> Tensor:
        """Weights ``(P, k)``."""
        count = self.plain.shape[1]
        total = self.plain.new_zeros(count, self.layout.num_weights)
        self.layout.put_plain(self.plain.mT, total)
        for layer, matrix in zip(self.layout.layers, self.matrices, strict=True):
            layer.put(matrix.view(-1, layer.outputs, count).permute(2, 1, 0), total)
        return total.mT


@dataclass(frozen=True)
class RowGradients:
    """Gradients of m functions of each of n rows ``(n, m, P)``.

    In the weights of a linear layer that a row goes through once the gradient is ``left right^T``, from its outputs' and its
    inputs' sides: products of two gradients are products of two short vectors.

    Attributes:
        layout: Which weights are where.
        plain: Gradients in weights without such a structure ``(n, m, P')``.
        left: Of each layer ``(n, m, o)``.
        right: Of each layer ``(n, i)``, with its bias as one input more; the same for all functions of a row.
    """

    layout: WeightLayout
    plain: Tensor
    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows n, and functions m of each."""
        return self.plain.shape[0], self.plain.shape[1]

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(x.numel() * x.element_size() for x in self._arrays())

    @classmethod
    def joined(cls, parts: Iterable[RowGradients], size: int, layout: WeightLayout, like: Tensor) -> RowGradients:
        """Flat ones of ``size`` rows at most, one group after the other, in memory that they take once.

        Args:
            parts: Groups of flat gradients ``(k, 1)``.
            size: Sum of their k; what is beyond it is left out.
            layout: Theirs.
            like: A tensor of their dtype and device.
        """
        left = tuple(like.new_empty(size, 1, layer.outputs) for layer in layout.layers)
        right = tuple(like.new_empty(size, layer.width) for layer in layout.layers)
        whole, start = cls(layout, like.new_empty(size, 1, layout.num_plain), left, right), 0
        for part in parts:
            which = slice(start, min(start + part.shape[0], size))
            for into, own in zip(whole._arrays(), part._arrays(), strict=True):
                into[which] = own[: which.stop - start]
            start = which.stop
        return whole[:start]

    def _arrays(self) -> tuple[Tensor, ...]:
        return (self.plain, *self.left, *self.right)

    @classmethod
    def stacked(cls, parts: list[RowGradients]) -> RowGradients:
        """Rows of several with as many functions each, one after the other."""
        own = [part._arrays() for part in parts]
        arrays = [torch.cat(group) for group in zip(*own, strict=True)]
        layers = len(parts[0].left)
        return cls(parts[0].layout, arrays[0], tuple(arrays[1 : 1 + layers]), tuple(arrays[1 + layers :]))

    def flatten(self) -> RowGradients:
        """Each function as a row of its own: ``(n m, 1, P)``."""
        count = self.shape[1]
        left = tuple(x.flatten(0, 1).unsqueeze(1) for x in self.left)
        right = tuple(x.repeat_interleave(count, 0) for x in self.right)
        return RowGradients(self.layout, self.plain.flatten(0, 1).unsqueeze(1), left, right)

    def __getitem__(self, which: slice) -> RowGradients:
        """Those of some of the rows."""
        left, right = (tuple(x[which] for x in own) for own in (self.left, self.right))
        return RowGradients(self.layout, self.plain[which], left, right)

    def to(self, like: Tensor) -> RowGradients:
        """The same in the dtype and on the device of ``like``."""
        left, right = (tuple(x.to(like) for x in own) for own in (self.left, self.right))
        return RowGradients(self.layout, self.plain.to(like), left, right)

    def scaled(self, scale: Tensor) -> RowGradients:
        """Times numbers ``(P,)``, which must be the same within a layer's matrix, and within its bias."""
        right = []
        for layer, own in zip(self.layout.layers, self.right, strict=True):
            factors = layer.of(scale.unsqueeze(-1))[0, :, 0]
            right.append(own * factors)
        plain = self.plain * self.layout.plain_of(scale.unsqueeze(-1)).squeeze(-1)
        return replace(self, plain=plain, right=tuple(right))

    # --------------------------------------------------------------------- products
    def inner(self, others: RowGradients) -> Tensor:
        """Products ``(n, m, k)`` with ``k`` gradients of a flat one ``(k, 1)``."""
        n, m = self.shape
        k = others.shape[0]
        total = (self.plain.flatten(0, 1) @ others.plain[:, 0].mT).view(n, m, k)
        for left, right, their_left, their_right in zip(self.left, self.right, others.left, others.right, strict=True):
            along = (left.flatten(0, 1) @ their_left[:, 0].mT).view(n, m, k)
            total.addcmul_(along, (right @ their_right.mT).unsqueeze(1))
        return total

    def blocks(self) -> Tensor:
        """Products of the functions of each row with each other ``(n, m, m)``."""
        total = torch.bmm(self.plain, self.plain.mT)
        for left, right in zip(self.left, self.right, strict=True):
            total.addcmul_(torch.bmm(left, left.mT), right.square().sum(-1)[:, None, None])
        return total

    def squares(self) -> Tensor:
        """Squared lengths ``(n, m)``."""
        total = self.plain.square().sum(-1)
        for left, right in zip(self.left, self.right, strict=True):
            total = total + left.square().sum(-1) * right.square().sum(-1, keepdim=True)
        return total

    def times(self, weights: Tensor | WeightBlock) -> Tensor:
        """Products with vectors of weights ``(P, k)``: ``(n, m, k)``; differentiable."""
        block = weights if isinstance(weights, WeightBlock) else WeightBlock.of(self.layout, weights)
        total = self.plain @ block.plain
        for layer, left, right, matrix in zip(self.layout.layers, self.left, self.right, block.matrices, strict=True):
            step = max(1, _CHUNK_NUMBERS // max(1, matrix.shape[1]))
            parts = [
                torch.bmm(own, (part @ matrix).view(len(part), layer.outputs, -1))
                for own, part in zip(left.split(step), right.split(step), strict=True)
            ]
            total = total + torch.cat(parts)
        return total

    def mixed(self, coefficients: Tensor) -> Tensor:
        """Sums ``(P, k)`` of gradients, with coefficients ``(n, m, k)``, or ``(n, k)`` of a flat one."""
        coefficients = coefficients.unsqueeze(1) if coefficients.dim() == 2 else coefficients
        total = WeightBlock.zeros(self.layout, coefficients.shape[-1], coefficients)
        self.mix_into(total, coefficients)
        return total.weights()

    def mix_into(self, total: WeightBlock, coefficients: Tensor) -> None:
        """Adds what ``mixed`` gives, for coefficients ``(n, m, k)``.

        The functions of a row share what goes into its layers, and are added up before it is multiplied by.
        """
        total.plain.addmm_(self.plain.flatten(0, 1).mT, coefficients.flatten(0, 1))
        for left, right, product in zip(self.left, self.right, total.matrices, strict=True):
            step = max(1, _CHUNK_NUMBERS // max(1, product.shape[1]))
            for own, part, mix in zip(left.split(step), right.split(step), coefficients.split(step), strict=True):
                product.addmm_(part.mT, torch.bmm(own.mT, mix).flatten(1))

    def collect_into(self, total: Tensor, buckets: Tensor, signs: Tensor) -> None:
        """Adds each gradient to some of so many sums ``(c, P)``, with signs: a sparse mixture, at the cost of its entries.

        Args:
            total: The sums.
            buckets: Which of them each gradient is added to ``(n, m, s)``.
            signs: Factors ``(n, m, s)``.
        """
        functions, where = self.shape[1], buckets.flatten()
        order = where.argsort(stable=True)
        members = order.div(buckets.shape[-1], rounding_mode="floor")  # which of the gradients
        sizes = torch.bincount(where, minlength=len(total)).tolist()
        factors = signs.flatten()[order].unsqueeze(-1)
        plain, lefts = self.plain.flatten(0, 1), [left.flatten(0, 1) for left in self.left]
        for into, which, factor in zip(total, members.split(sizes), factors.split(sizes), strict=True):
            rows = which.div(functions, rounding_mode="floor")
            own = self.plain.new_zeros(self.layout.num_weights)
            self.layout.put_plain((factor.mT @ plain[which]).squeeze(0), own)
            for layer, left, right in zip(self.layout.layers, lefts, self.right, strict=True):
                layer.put((factor * left[which]).mT @ right[rows], own)
            into += own

    def dense(self) -> Tensor:
        """All of it ``(n, m, P)``."""
        total = self.plain.new_zeros(*self.shape, self.layout.num_weights)
        self.layout.put_plain(self.plain, total)
        for layer, left, right in zip(self.layout.layers, self.left, self.right, strict=True):
            layer.put(left.unsqueeze(-1) * right[:, None, None], total)
        return total

    def columns(self) -> Iterator[tuple[slice, Tensor]]:
        """A flat one weight by weight: where in the vector of weights, and the gradients ``(n, p)`` there."""
        start = 0
        for first, last in self.layout.plain:
            for i in range(first, last, _MOST_COLUMNS):
                stop = min(last, i + _MOST_COLUMNS)
                yield slice(i, stop), self.plain[:, 0, start + i - first : start + stop - first]
            start += last - first
        for layer, left, right in zip(self.layout.layers, self.left, self.right, strict=True):
            many = max(1, _MOST_COLUMNS // max(1, layer.inputs)) if layer.inputs else 0
            for i in range(0, layer.outputs if layer.inputs else 0, max(1, many)):
                own = left[:, 0, i : i + many]
                begin = layer.matrix + i * layer.inputs
                values = (own.unsqueeze(-1) * right[:, None, : layer.inputs]).flatten(1)
                yield slice(begin, begin + values.shape[1]), values
            if layer.bias >= 0:
                yield slice(layer.bias, layer.bias + layer.outputs), left[:, 0] * right[:, -1:]
