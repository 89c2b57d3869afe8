"""Radial kernels: recognise a GPyTorch RBF or Matern kernel and evaluate its blocks in place.

A stationary isotropic or ARD kernel is a function of the squared distance between inputs divided by the lengthscale.
Knowing that, one matrix product and four in-place elementwise passes over a cache-sized block evaluate it; the general
route through ``kernel(x1, x2).to_dense()`` makes several temporary copies.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import gpytorch
import torch
from gpytorch.kernels import (
    AdditiveKernel,
    CosineKernel,
    GridKernel,
    Kernel,
    MaternKernel,
    PeriodicKernel,
    PiecewisePolynomialKernel,
    ProductKernel,
    ProductStructureKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from linear_operator import to_dense
from torch import Tensor

from itergp.kernels import LaplacianKernel, TiedLaplacianKernel, TiedMaternKernel, TiedRBFKernel
from itergp.operators.derived import CalledKernel, DerivedKernel, SumOfTerms
from itergp.operators.distances import ExactDistances
from itergp.operators.radial_product import profile, profile_distances, profile_formula, radial_product, with_norms
from itergp.operators.special import has_own_diagonal, special_diagonal, special_entries, standing_grids

try:  # GPyTorch's KeOps kernels exist with and without pykeops installed
    from gpytorch.kernels.keops import MaternKernel as KeOpsMaternKernel
    from gpytorch.kernels.keops import RBFKernel as KeOpsRBFKernel
except ImportError:  # pragma: no cover - very old GPyTorch
    KeOpsMaternKernel, KeOpsRBFKernel = MaternKernel, RBFKernel

_RBF = (RBFKernel, KeOpsRBFKernel, TiedRBFKernel)
_MATERN = (MaternKernel, KeOpsMaternKernel, TiedMaternKernel)
# Largest error of a squared distance, in squared lengthscales, that is left to the data's dtype.
_CANCELLATION = 1e-4


@dataclass(frozen=True)
class RadialKernel:
    """``k(x, x') = output_scale * profile(|(x - x') / lengthscale|)`` for each of ``C'`` kernels.

    Args:
        inputs_scale: Reciprocal lengthscales times the profile's constant, ``(C', 1, D)`` or ``(C', 1, 1)``.
        output_scale: Output scales (variance units), ``(C',)``.
        smoothness: Matern smoothness 0.5, 1.5 or 2.5, or infinity for the squared exponential.
        active_dims: Indices of the input columns used, or None for all.
    """

    inputs_scale: Tensor
    output_scale: Tensor
    smoothness: float
    active_dims: Tensor | None

    def detached(self) -> RadialKernel:
        """The same kernel without the derivatives of its hyperparameters."""
        return replace(self, inputs_scale=self.inputs_scale.detach(), output_scale=self.output_scale.detach())

    def features(self, inputs: Tensor, centre: Tensor) -> Tensor:
        """Scaled, centred inputs ``(C', M, D)`` whose plain distances enter the profile."""
        inputs = inputs if inputs.dim() == 3 else inputs.unsqueeze(0)
        if self.active_dims is not None:
            inputs = inputs.index_select(-1, self.active_dims)
            centre = centre.index_select(-1, self.active_dims)
        return ((inputs - centre) * self.inputs_scale).contiguous()

    @property
    def metric(self) -> float:
        """The order of the norm of ``points`` in which near means highly correlated."""
        return 2.0

    @property
    def key(self) -> tuple[Hashable, ...]:
        """What the time of a product depends on beside sizes."""
        return self.smoothness, str(self.active_dims)

    def of_kernel(self, number: int) -> RadialKernel:
        """One of the kernels, to evaluate from features."""
        return replace(self, output_scale=self.output_scale[number : number + 1])

    def points(self, inputs: Tensor, centre: Tensor) -> Tensor:
        """Inputs ``(M, D)`` in which distance means what it means to the first kernel."""
        return self.features(inputs, centre)[0]

    def block_features(self, inputs: Tensor, centre: Tensor) -> Tensor:
        """Scaled inputs with their squared norms ``(C', M, D + 2)``, which ``evaluate`` takes."""
        features = self.features(inputs, centre)
        if cancels(float(features.square().sum(-1).max()), features.dtype):
            # Inputs many lengthscales apart: squared distances from products would lose the digits of near neighbours.
            features = features.double()
        return with_norms(features)

    def evaluate(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Kernel entries of one block.

        Args:
            rows: Features with their squared norms ``(C', b, D + 2)``, see ``with_norms``.
            cols: The same ``(C', m, D + 2)``.

        Returns:
            The block ``(C', b, m)``.
        """
        if rows.dtype != cols.dtype:
            rows, cols = rows.double(), cols.double()
        squared = profile_distances(rows, cols, self.smoothness).to(self.output_scale.dtype)
        return profile(squared, self.smoothness).mul_(self.output_scale[:, None, None])

    def formula(self, rows: Tensor, cols: Tensor, lazy: Callable[[Tensor], Any]) -> Any:
        """Entries of one kernel as a formula of KeOps, which takes distances itself, without the norms.

        Args:
            rows: ``(b, D + 2)``, see ``block_features``.
            cols: ``(m, D + 2)``.
            lazy: KeOps' type of lazy tensors.
        """
        x, y = lazy(rows[:, None, :-2].contiguous()), lazy(cols[None, :, :-2].contiguous())
        scale = lazy(self.output_scale.to(rows).view(1, 1, 1))
        return scale * profile_formula(((x - y) ** 2).sum(-1), self.smoothness)

    def product(
        self, inputs: Tensor, others: Tensor | None, centre: Tensor, block: Tensor, *, value: bool = True
    ) -> Tensor:
        """``k(others, inputs)`` times a block ``(C', N, k)`` or ``(N, k)``, with derivatives in everything.

        Inputs many lengthscales apart are handled in float64, where distances from products keep the digits of neighbours.

        Args:
            inputs: ``(N, D)`` or ``(C', N, D)``.
            others: ``(M, D)`` or ``(C', M, D)``; None for the inputs themselves.
            centre: Point near the middle of the inputs ``(D,)``.
            block: What is multiplied.
            value: Whether the product itself is computed; otherwise zeros stand for it, and only derivatives are.
        """
        form, stretch = self, None
        if self.inputs_scale.shape[-1] == 1:  # one lengthscale moves every distance by the same factor
            stretch = (self.inputs_scale / self.inputs_scale.detach()).reshape(-1)
            form = replace(self, inputs_scale=self.inputs_scale.detach())
        cols = form.features(inputs, centre)
        rows = cols if others is None else form.features(others, centre)
        largest = max(float(x.detach().square().sum(-1).max()) for x in (rows, cols))
        if cancels(largest, rows.dtype):
            cols = cols.double()
            rows = cols if others is None else rows.double()
        columns = block.expand(rows.shape[0], *block.shape[-2:])
        symmetric = others is None
        return radial_product(
            rows,
            cols,
            self.output_scale,
            columns,
            self.smoothness,
            symmetric=symmetric,
            stretch=stretch,
            value=value,
        )


def cancels(largest: float, dtype: torch.dtype) -> bool:
    """Whether squared distances from products of features of this squared norm lose the digits of near neighbours."""
    return largest * torch.finfo(dtype).eps > _CANCELLATION


def as_radial(kernel: Kernel, num_kernels: int) -> RadialKernel | None:
    """The radial form of a (scaled) RBF or Matern kernel, or None when the kernel is anything else.

    Subclasses are not recognised: they may override ``forward``. The form has the derivatives of the hyperparameters.

    Args:
        kernel: Any GPyTorch kernel.
        num_kernels: Number of kernels ``C'`` in its batch, 1 when shared.
    """
    scale: Tensor | None = None
    active_dims = kernel.active_dims
    while type(kernel) is ScaleKernel:  # it takes its columns, and asks the kernel inside for no others
        outer = kernel.outputscale
        scale = outer if scale is None else scale * outer
        kernel = kernel.base_kernel
    if type(kernel) not in (*_RBF, *_MATERN) or kernel.lengthscale is None:
        return None
    lengthscale = kernel.lengthscale
    lengthscale = lengthscale.reshape(-1, 1, lengthscale.shape[-1])
    if type(kernel) in _MATERN:
        smoothness, constant = float(kernel.nu), math.sqrt(2.0 * kernel.nu)
    else:
        smoothness, constant = math.inf, math.sqrt(0.5)
    if lengthscale.shape[0] not in (1, num_kernels):
        return None
    if scale is None:
        scale = lengthscale.new_ones(1)
    if scale.numel() not in (1, num_kernels):
        return None
    return RadialKernel(
        inputs_scale=(constant / lengthscale).expand(num_kernels, -1, -1),
        output_scale=scale.reshape(-1).expand(num_kernels),
        smoothness=smoothness,
        active_dims=active_dims,
    )


def evaluate_kernel(kernel: Kernel, first: Tensor, second: Tensor, num_kernels: int) -> Tensor:
    """Dense entries ``(C', b, m)`` of any GPyTorch kernel, evaluated at once; differentiable if gradients are on.

    Rows that are one tensor are the same rows, those of two tensors are others, even where they are equal.
    """
    with gpytorch.settings.lazily_evaluate_kernels(False), standing_grids(kernel):
        dense = _entries(kernel, first, second)
    dense = dense if dense.dim() >= 3 else dense.unsqueeze(0).expand(num_kernels, -1, -1)
    if first is second and has_own_diagonal(kernel):
        missing = evaluate_diagonal(kernel, first, num_kernels) - dense.diagonal(dim1=-2, dim2=-1)
        dense = dense + torch.diag_embed(missing)
    return dense


def evaluate_diagonal(kernel: Kernel, inputs: Tensor, num_kernels: int, *, fit: bool = False) -> Tensor:
    """Variances ``(C', M)`` of any GPyTorch kernel at inputs ``(M, D)`` or ``(C', M, D)``; differentiable.

    Args:
        kernel: The kernel.
        inputs: Rows.
        num_kernels: 1 for a shared kernel, otherwise C.
        fit: Whether kernels may fit their state to these rows, such as a grid.
    """
    if (variance := _variance(kernel)) is not None:
        return (inputs.new_ones(()) * variance).reshape(-1, 1).expand(num_kernels, inputs.shape[-2])
    # A leading dimension keeps GPyTorch from taking the diagonal of (C', M) diagonals when C' = M, and more rows than
    # columns from that of (M, D) ones, by column, when M is the number of those that some part of the kernel takes.
    batched, rows = inputs if inputs.dim() == 3 else inputs.unsqueeze(0), inputs.shape[-2]
    batched = torch.cat([batched, batched[:, -1:].expand(-1, max(0, inputs.shape[-1] + 1 - rows), -1)], 1)
    with gpytorch.settings.lazily_evaluate_kernels(False), nullcontext() if fit else standing_grids(kernel):
        diagonal = _diagonal(kernel, batched)
    return diagonal.reshape(-1, batched.shape[-2])[:, :rows].expand(num_kernels, -1)


class EvaluatedKernel(DerivedKernel):
    """A kernel whose entries and variances are those of ``evaluate_kernel`` and ``evaluate_diagonal``, for GPyTorch.

    Args:
        kernel: Any kernel.
        num_kernels: 1 for a shared kernel, otherwise C.
    """

    def __init__(self, kernel: Kernel, num_kernels: int = 1) -> None:
        super().__init__(batch_shape=torch.Size([num_kernels] if num_kernels > 1 else []))
        self.kernel = kernel

    @property
    def dtype(self) -> torch.dtype:
        """The kernel's, which may have no parameters to tell it by."""
        return self.kernel.dtype

    @property
    def device(self) -> torch.device:
        """The kernel's."""
        return self.kernel.device

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Entries ``(b, m)`` or ``(C', b, m)``, or variances; with a batch of inputs, what the kernel makes of it."""
        number = self.batch_shape.numel()
        plain = 2 if number == 1 else 3
        if max(x1.dim(), x2.dim()) > plain or (x1.dim() == 3 and len(x1) not in (1, number)):
            return self.kernel(x1, x2, diag=diag, **params)
        if number > 1:
            x1, x2 = (x[0] if x.dim() == 3 and len(x) == 1 else x for x in (x1, x2))
            return evaluate_diagonal(self.kernel, x1, number) if diag else evaluate_kernel(self.kernel, x1, x2, number)
        return evaluate_diagonal(self.kernel, x1, 1)[0] if diag else evaluate_kernel(self.kernel, x1, x2, 1)[0]

    def detach_tensors(self) -> None:
        """There are none of its own."""


def _entries(kernel: Kernel, first: Tensor, second: Tensor) -> Tensor:
    """Dense entries, sums and products term by term.

    GPyTorch adds a low-rank term, such as a linear kernel, to a dense one by way of the dense one's Cholesky factor, which
    costs time and fails in float32. Its KeOps kernels, whose blocks are too small for KeOps, hold every difference of inputs
    and cannot be recomputed in a backward pass: their ordinary namesakes give the same entries.
    """
    if type(kernel) is SumOfTerms:
        return kernel.total([_entries(*term) for term in kernel.terms(first, second)])
    if type(kernel) is CalledKernel and not kernel.has_keywords:
        known = _known_entries(kernel.kernel, kernel.columns(first), kernel.columns(second))
    else:
        known = _known_entries(kernel, _active(kernel, first), _active(kernel, second))
    if known is not None:
        return known
    return _called(kernel, kernel, first, second)


def _called(kernel: Kernel, function: Any, first: Tensor, second: Tensor) -> Tensor:
    """Dense entries as GPyTorch makes them, from distances that keep the digits of near neighbours.

    GPyTorch takes distances from products, which leaves ``sqrt(eps)`` for those of equal rows, times their distance from
    zero where a kernel does not centre them. A kernel with a kink at zero is wrong by as much, and blocks are none of the
    matrix evaluated whole, where it sees that rows are the same.
    """
    if cast := _cancels(kernel, first):
        first, second = first.double(), second.double()
    if any(map(_needs_exact_distances, kernel.modules())):
        with ExactDistances():  # of what GPyTorch does not see to be the same rows
            found = to_dense(function(torch.cat([first, first[..., -1:, :]], -2), second))[..., : first.shape[-2], :]
    else:
        found = to_dense(function(first, second))
    return found.float() if cast else found


def _cancels(kernel: Kernel, inputs: Tensor) -> bool:
    """Whether a kernel squares distances in float32 of inputs that are too many lengthscales apart for that."""
    if inputs.dtype != torch.float32 or any(isinstance(module, GridKernel) for module in kernel.modules()):
        return False
    scales = [m.lengthscale.detach().min() for m in kernel.modules() if type(m) in (*_RBF, *_MATERN, RQKernel)]
    if not scales:
        return False
    width = (inputs.detach() - inputs.detach().mean(-2, keepdim=True)).square().sum(-1).max()
    return cancels(float(width / torch.stack(scales).min().square()), inputs.dtype)


def _factors(kernel: Kernel, first: Tensor, second: Tensor) -> Tensor:
    """Dense entries in every dimension: GPyTorch multiplies lazy ones by roots, which blocks off the diagonal do not have."""
    return to_dense(kernel(first, second, last_dim_is_batch=True))


def _needs_exact_distances(module: Any) -> bool:
    half = type(module) is MaternKernel and module.nu == 0.5
    return half or type(module) in (CosineKernel, PeriodicKernel, PiecewisePolynomialKernel)


def _known_entries(kernel: Kernel, first: Tensor, second: Tensor) -> Tensor | None:
    """Dense entries at the kernel's own columns; None for kernels that are simply called."""
    if type(kernel) is ScaleKernel:
        return kernel.outputscale[..., None, None] * _entries_of_base(kernel.base_kernel, first, second)
    if type(kernel) is AdditiveKernel:
        return functools.reduce(operator.add, (_entries(k, first, second) for k in kernel.kernels))
    if type(kernel) is ProductKernel:
        return functools.reduce(operator.mul, (_entries(k, first, second) for k in kernel.kernels))
    if type(kernel) is ProductStructureKernel:
        return _called(kernel, functools.partial(_factors, kernel.base_kernel), first, second).prod(-3)
    if type(kernel) is KeOpsRBFKernel:
        return _called(kernel, functools.partial(RBFKernel.forward, kernel), first, second)
    if type(kernel) is KeOpsMaternKernel:
        return _called(kernel, functools.partial(MaternKernel.forward, kernel), first, second)
    return special_entries(kernel, first, second, _entries)


def _entries_of_base(kernel: Kernel, first: Tensor, second: Tensor) -> Tensor:
    """Dense entries of the base of a ``ScaleKernel``, which has its ``active_dims`` too, takes the columns and asks no more."""
    if (known := _known_entries(kernel, first, second)) is not None:
        return known
    return _called(kernel, kernel.forward, first, second)


_OF_VARIANCE_ONE = (RBFKernel, MaternKernel, LaplacianKernel, TiedRBFKernel, TiedMaternKernel, TiedLaplacianKernel)


def _variance(kernel: Kernel) -> Tensor | None:
    """The variance of stationary kernels, of every batch; None for others. Of thousands of columns, rows need not be seen."""
    if type(kernel) in _OF_VARIANCE_ONE:
        return torch.ones(kernel.batch_shape, dtype=kernel.lengthscale.dtype, device=kernel.lengthscale.device)
    if type(kernel) is ScaleKernel:
        base = _variance(kernel.base_kernel)
        return None if base is None else kernel.outputscale * base
    if type(kernel) in (AdditiveKernel, ProductKernel):
        parts = [_variance(part) for part in kernel.kernels]
        known = [part for part in parts if part is not None]
        together = operator.add if type(kernel) is AdditiveKernel else operator.mul
        return functools.reduce(together, known) if len(known) == len(parts) else None
    return None


def _diagonal(kernel: Kernel, inputs: Tensor) -> Tensor:
    """Variances, sums and products term by term."""
    if type(kernel) is SumOfTerms:
        return kernel.total([_diagonal(k, x) for k, x, _ in kernel.terms(inputs, inputs)], diag=True)
    if type(kernel) is CalledKernel and not kernel.has_keywords:
        known = _known_diagonal(kernel.kernel, kernel.columns(inputs))
    else:
        known = _known_diagonal(kernel, _active(kernel, inputs))
    if known is not None:
        return known
    variances = kernel(inputs, inputs, diag=True)
    return variances if torch.is_tensor(variances) else variances.to_dense()


def _known_diagonal(kernel: Kernel, inputs: Tensor) -> Tensor | None:
    """Variances at the kernel's own columns; None for kernels that are simply called."""
    if type(kernel) is ScaleKernel:
        return kernel.outputscale[..., None] * _diagonal_of_base(kernel.base_kernel, inputs)
    if type(kernel) is AdditiveKernel:
        return functools.reduce(operator.add, (_diagonal(k, inputs) for k in kernel.kernels))
    if type(kernel) is ProductKernel:
        return functools.reduce(operator.mul, (_diagonal(k, inputs) for k in kernel.kernels))
    if type(kernel) is ProductStructureKernel:
        return to_dense(kernel.base_kernel(inputs, inputs, diag=True, last_dim_is_batch=True)).prod(-2)
    if type(kernel) is KeOpsRBFKernel:
        return RBFKernel.forward(kernel, inputs, inputs, diag=True)
    if type(kernel) is KeOpsMaternKernel:
        return MaternKernel.forward(kernel, inputs, inputs, diag=True)
    return special_diagonal(kernel, inputs, _entries, _diagonal)


def _diagonal_of_base(kernel: Kernel, inputs: Tensor) -> Tensor:
    """Variances of the base of a ``ScaleKernel``, see ``_entries_of_base``."""
    if (known := _known_diagonal(kernel, inputs)) is not None:
        return known
    found, rows = kernel.forward(inputs, inputs, diag=True), inputs.shape[-2]
    found = found if torch.is_tensor(found) else found.to_dense()
    whole = found.dim() >= inputs.dim() and found.shape[-2:] == (rows, rows)  # of a kernel that takes no notice of diag
    return found.diagonal(dim1=-1, dim2=-2) if whole else found


def _active(kernel: Kernel, inputs: Tensor) -> Tensor:
    return inputs if kernel.active_dims is None else inputs.index_select(-1, kernel.active_dims)
