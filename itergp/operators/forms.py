"""Kernels that the package evaluates itself: radial ones, exponentials of L1 distances and of codes, sums and products."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from gpytorch.kernels import AdditiveKernel, Kernel, ProductKernel, ScaleKernel
from torch import Tensor

from itergp.kernels import (
    AdditiveLaplacianKernel,
    CategoricalKernel,
    LaplacianKernel,
    OrderedCategoricalKernel,
    PairwiseLaplacianKernel,
    TiedLaplacianKernel,
)
from itergp.operators.derived import CalledKernel, SumOfTerms
from itergp.operators.leaves import AdditiveForm, Columns, ExponentialForm, LeafForm, RadialForm, log2_scale
from itergp.operators.pairwise import LOG2_E, Node, Product, Sum
from itergp.operators.pairwise_product import pairwise_product
from itergp.operators.radial import RadialKernel, as_radial


class EvaluatedForm(Protocol):
    """What of a form evaluates entries from features."""

    def evaluate(self, rows: Tensor, cols: Tensor) -> Tensor:
        """The block ``(C', b, m)`` of entries, a tensor of its own."""

    def formula(self, rows: Tensor, cols: Tensor, lazy: Callable[[Tensor], Any]) -> Any:
        """Entries of one kernel as a formula of KeOps, of features ``(b, F)`` and ``(m, F)`` and its type of lazy tensors."""


class KernelForm(Protocol):
    """A kernel that is evaluated without the code of its module; ``RadialKernel`` and ``PairwiseForm`` are ones."""

    @property
    def metric(self) -> float | None:
        """The order of the norm of ``points`` in which near means highly correlated; None if there is no such."""

    def detached(self) -> KernelForm:
        """The same without the derivatives of its hyperparameters."""

    @property
    def key(self) -> tuple[Hashable, ...]:
        """What the time of a product depends on beside sizes."""

    def of_kernel(self, number: int) -> EvaluatedForm:
        """One of the ``C'`` kernels, to evaluate from features."""

    def block_features(self, inputs: Tensor, centre: Tensor) -> Tensor:
        """What ``evaluate`` takes ``(C', M, F)``, without derivatives, of inputs ``(M, D)`` or ``(C', M, D)``."""

    def points(self, inputs: Tensor, centre: Tensor) -> Tensor:
        """Inputs ``(M, P)`` in which distance means what it means to the first kernel."""

    def evaluate(self, rows: Tensor, cols: Tensor) -> Tensor:
        """The block ``(C', b, m)`` of entries, a tensor of its own."""

    def product(
        self, inputs: Tensor, others: Tensor | None, centre: Tensor, block: Tensor, *, value: bool = True
    ) -> Tensor:
        """``k(others, inputs)`` times a block ``(C', N, k)`` or ``(N, k)``, with derivatives in everything.

        Without ``value`` zeros stand for the product, which is not computed.
        """


@dataclass(frozen=True)
class _Branch:
    kind: type[Sum] | type[Product]
    parts: tuple[_Tree, ...]


_Tree = LeafForm | _Branch


@dataclass(frozen=True)
class PairwiseForm:
    """A tree of sums and products of kernels that are functions of how rows differ in their columns.

    Attributes:
        tree: Of leaves.
        leaves: Those of the tree in order.
    """

    tree: _Tree
    leaves: tuple[LeafForm, ...]

    @property
    def metric(self) -> float | None:
        """That of the only leaf."""
        return self.leaves[0].metric if len(self.leaves) == 1 else None

    @property
    def summands(self) -> tuple[LeafForm, ...]:
        """The leaves that it is the sum of; none where it is anything else."""
        return self.leaves if _is_sum(self.tree) else ()

    def detached(self) -> PairwiseForm:
        """See ``KernelForm``."""
        return _form(_map(self.tree, lambda leaf: leaf.detached()))

    @property
    def key(self) -> tuple[Hashable, ...]:
        """See ``KernelForm``."""
        return (str(_node(self.tree, False)),)

    def of_kernel(self, number: int) -> _EvaluatedForm:
        """See ``KernelForm``."""
        return self._evaluated(slice(number, number + 1))

    def _evaluated(self, kernels: slice) -> _EvaluatedForm:
        rates = [leaf.rates(attached=True)[kernels] for leaf in self.leaves]
        weights = [leaf.weights[kernels] for leaf in self.leaves]
        return _EvaluatedForm(_node(self.tree, True), tuple(leaf.width for leaf in self.leaves), rates, weights)

    def block_features(self, inputs: Tensor, centre: Tensor) -> Tensor:
        """See ``KernelForm``."""
        return torch.cat([leaf.features(inputs, centre) for leaf in self.leaves], -1)

    def points(self, inputs: Tensor, centre: Tensor) -> Tensor:
        """See ``KernelForm``."""
        return torch.cat([leaf.points(leaf.features(inputs, centre))[0] for leaf in self.leaves], -1)

    def evaluate(self, rows: Tensor, cols: Tensor) -> Tensor:
        """See ``KernelForm``."""
        return self._evaluated(slice(None)).evaluate(rows, cols)

    def product(
        self, inputs: Tensor, others: Tensor | None, centre: Tensor, block: Tensor, *, value: bool = True
    ) -> Tensor:
        """See ``KernelForm``."""
        attached = inputs.requires_grad or (others is not None and others.requires_grad)
        tensors: list[Tensor] = []
        for leaf in self.leaves:
            cols = leaf.features(inputs, centre, attached=attached)
            rows = cols if others is None else leaf.features(others, centre, attached=attached)
            if rows.dtype != cols.dtype:
                rows, cols = rows.double(), cols.double()
            tensors += [rows, cols, leaf.rates(attached=attached), leaf.weights]
        columns = block.expand(len(tensors[0]), *block.shape[-2:])
        return pairwise_product(_node(self.tree, attached), tensors, columns, symmetric=others is None, value=value)


@dataclass(frozen=True)
class _EvaluatedForm:
    """What of a form evaluates entries."""

    node: Node
    widths: tuple[int, ...]
    rates: Sequence[Tensor]
    weights: Sequence[Tensor]

    def evaluate(self, rows: Tensor, cols: Tensor) -> Tensor:
        """See ``KernelForm``."""
        if rows.dtype != cols.dtype:
            rows, cols = rows.double(), cols.double()
        block: list[Tensor] = []
        sides = zip(rows.split(self.widths, -1), cols.split(self.widths, -1), strict=True)
        for (first, second), rates, weights in zip(sides, self.rates, self.weights, strict=True):
            block += [first, second, rates, weights]
        return self.node.entries(block).to(self.weights[0].dtype)

    def formula(self, rows: Tensor, cols: Tensor, lazy: Callable[[Tensor], Any]) -> Any:
        """See ``EvaluatedForm``."""
        block: list[Any] = []
        sides = zip(rows.split(self.widths, -1), cols.split(self.widths, -1), strict=True)
        for (first, second), rates, weights in zip(sides, self.rates, self.weights, strict=True):
            block += [lazy(first.unsqueeze(1).contiguous()), lazy(second.unsqueeze(0).contiguous())]
            block += [value.to(rows).unsqueeze(0).contiguous() for value in (rates, weights)]
        return self.node.formula(block)


def as_form(kernel: Kernel, num_kernels: int, num_columns: int) -> RadialKernel | PairwiseForm | None:
    """The form of a kernel, with the derivatives of its hyperparameters; None if a part of it is anything else.

    Subclasses are not recognised: they may override ``forward``.

    Args:
        kernel: Any GPyTorch kernel.
        num_kernels: Number of kernels ``C'`` in its batch, 1 when shared.
        num_columns: D of the inputs.
    """
    if (radial := as_radial(kernel, num_kernels)) is not None:
        return radial
    tree = _tree(kernel, num_kernels, torch.arange(num_columns, device=kernel.device))
    return None if tree is None else _form(tree)


def _form(tree: _Tree) -> PairwiseForm:
    return PairwiseForm(tree, tuple(_leaves(tree)))


def _is_sum(tree: _Tree) -> bool:
    return not isinstance(tree, _Branch) or (tree.kind is Sum and all(map(_is_sum, tree.parts)))


def _leaves(tree: _Tree) -> list[LeafForm]:
    return [leaf for part in tree.parts for leaf in _leaves(part)] if isinstance(tree, _Branch) else [tree]


def _node(tree: _Tree, attached: bool) -> Node:
    if isinstance(tree, _Branch):
        return tree.kind(tuple(_node(part, attached) for part in tree.parts))
    return tree.node(attached=attached)


def _map(tree: _Tree, function: Callable[[LeafForm], LeafForm]) -> _Tree:
    return (
        replace(tree, parts=tuple(_map(p, function) for p in tree.parts))
        if isinstance(tree, _Branch)
        else function(tree)
    )


def _tree(kernel: Kernel, num_kernels: int, columns: Tensor, *, taken: bool = False) -> _Tree | None:
    """The tree of a kernel that is given some columns of the inputs, and has taken its own of them or is yet to."""
    if kernel.active_dims is not None and not taken:
        if int(kernel.active_dims.max()) >= columns.numel():
            return None
        columns = columns[kernel.active_dims]
    if type(kernel) is ScaleKernel:  # it has taken the columns of the kernel inside, which it asks directly
        return _scaled(_tree(kernel.base_kernel, num_kernels, columns, taken=True), kernel.outputscale, num_kernels)
    if type(kernel) is CalledKernel:
        return _tree(kernel.kernel, num_kernels, columns, taken=True) if kernel.takes_inputs_as_they_are else None
    if type(kernel) is SumOfTerms:
        if sum(kernel.widths) != columns.numel():
            return None
        own = zip(kernel.kernels, kernel.coefficients, columns.split(kernel.widths), strict=True)
        parts = [_scaled(_tree(k, num_kernels, c), factor, num_kernels) for k, factor, c in own]
        return _joined(Sum, parts)
    if type(kernel) is AdditiveKernel:
        return _joined(Sum, [_tree(part, num_kernels, columns) for part in kernel.kernels])
    if type(kernel) is ProductKernel:
        return _joined(Product, [_tree(part, num_kernels, columns) for part in kernel.kernels])
    if type(kernel) is PairwiseLaplacianKernel:
        return _pairs(kernel, num_kernels, columns)
    return _leaf(kernel, num_kernels, columns)


def _joined(kind: type[Sum] | type[Product], parts: Sequence[_Tree | None]) -> _Tree | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    if kind is Product:
        exponentials = [part for part in known if isinstance(part, ExponentialForm)]
        if len(exponentials) > 1:
            rest = [part for part in known if not isinstance(part, ExponentialForm)]
            known = [ExponentialForm.product(exponentials), *rest]
    return known[0] if len(known) == 1 else _Branch(kind, tuple(known))


def _scaled(tree: _Tree | None, factor: Tensor | None, num_kernels: int) -> _Tree | None:
    if tree is None or factor is None:
        return tree
    if factor.numel() not in (1, num_kernels):
        return None
    return _times(tree, factor.reshape(-1).expand(num_kernels))


def _times(tree: _Tree, factor: Tensor) -> _Tree:
    """A tree times a factor ``(C',)``: every term of a sum, and the first factor of a product."""
    if not isinstance(tree, _Branch):
        return tree.scaled(factor)
    number = len(tree.parts) if tree.kind is Sum else 1
    return replace(tree, parts=(*(_times(part, factor) for part in tree.parts[:number]), *tree.parts[number:]))


def _pairs(kernel: PairwiseLaplacianKernel, num_kernels: int, columns: Tensor) -> _Tree | None:
    """A leaf for every pair, of a kernel that has taken its columns."""
    lengthscale = kernel.lengthscale.reshape(-1, 1, 2 * len(kernel.pairs))
    if lengthscale.shape[0] not in (1, num_kernels) or columns.numel() != lengthscale.shape[-1]:
        return None
    weights = kernel.weights.reshape(-1, len(kernel.pairs)).expand(num_kernels, -1)
    ones, name, leaves = weights.detach().new_ones(num_kernels, 1), type(kernel).__name__, []
    for p, weight in enumerate(weights.unbind(-1)):
        own = slice(2 * p, 2 * p + 2)
        read = Columns(columns[own], scale=log2_scale(lengthscale[..., own], num_kernels), kernel=name)
        leaves.append(ExponentialForm((read,), (), ones[:, :0], ones).scaled(weight))
    return _joined(Sum, leaves)


def _leaf(kernel: Kernel, num_kernels: int, columns: Tensor) -> LeafForm | None:
    """The leaf of a kernel that has taken its columns."""
    radial = as_radial(kernel, num_kernels)
    if radial is not None:
        fits = radial.inputs_scale.shape[-1] in (1, columns.numel())
        return RadialForm(replace(radial, active_dims=columns), columns.numel()) if fits else None
    if type(kernel) is OrderedCategoricalKernel:
        return _ordered(kernel, num_kernels, columns)
    kinds = (LaplacianKernel, TiedLaplacianKernel, AdditiveLaplacianKernel, CategoricalKernel)
    if type(kernel) not in kinds:
        return None
    lengthscale = kernel.lengthscale
    lengthscale = lengthscale.reshape(-1, 1, lengthscale.shape[-1])
    if lengthscale.shape[0] not in (1, num_kernels) or lengthscale.shape[-1] not in (1, columns.numel()):
        return None
    name, ones = type(kernel).__name__, lengthscale.detach().new_ones(num_kernels, 1)
    if type(kernel) is CategoricalKernel:
        costs = (LOG2_E / lengthscale).squeeze(1).expand(num_kernels, columns.numel())
        return ExponentialForm((), (Columns(columns, kernel=name),), costs, ones)
    read = Columns(columns, scale=log2_scale(lengthscale, num_kernels), kernel=name)
    if type(kernel) is AdditiveLaplacianKernel:
        weights = kernel.weights.reshape(-1, columns.numel()) if kernel.num_dims == columns.numel() else None
        return None if weights is None else AdditiveForm(read, weights.expand(num_kernels, -1))
    return ExponentialForm((read,), (), ones[:, :0], ones)


def _ordered(kernel: OrderedCategoricalKernel, num_kernels: int, columns: Tensor) -> LeafForm | None:
    table = kernel.positions.reshape(-1, kernel.num_levels) * LOG2_E
    if table.shape[0] not in (1, num_kernels) or columns.numel() != 1:
        return None
    ones = table.detach().new_ones(num_kernels, 1)
    read = Columns(columns, table=table.expand(num_kernels, -1), kernel=type(kernel).__name__)
    return ExponentialForm((read,), (), ones[:, :0], ones)
