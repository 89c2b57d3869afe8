"""Recognise a sum of Matern kernels of one input each, whose products take linear time."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpytorch.kernels import AdditiveKernel, AdditiveStructureKernel, Kernel, MaternKernel, ScaleKernel
from torch import Tensor

from itergp.kernels import AdditiveLaplacianKernel, LaplacianKernel
from itergp.operators.derived import CalledKernel, SumOfTerms
from itergp.operators.scans import ExponentialPolynomial

try:  # GPyTorch's KeOps kernels exist with and without pykeops installed
    from gpytorch.kernels.keops import MaternKernel as KeOpsMaternKernel
except ImportError:  # pragma: no cover - very old GPyTorch
    KeOpsMaternKernel = MaternKernel

_SMOOTHNESS = (0.5, 1.5, 2.5)


@dataclass(frozen=True)
class ScanTerm:
    """``weight * f(rate |x - x'|)`` of one column, f a Matern profile, for each of ``C'`` kernels.

    Attributes:
        column: Number of the input column.
        smoothness: 0.5, 1.5 or 2.5.
        rate: ``sqrt(2 smoothness) / lengthscale``, ``(C',)``.
        weight: Prior variance ``(C',)``.
    """

    column: int
    smoothness: float
    rate: Tensor
    weight: Tensor

    @property
    def profile(self) -> ExponentialPolynomial:
        """The Matern profile f."""
        return ExponentialPolynomial.matern(self.smoothness)


@dataclass(frozen=True)
class ScanForm:
    """A sum of Matern kernels of one input each.

    Attributes:
        terms: The kernels.
        num_kernels: ``C'``.
    """

    terms: tuple[ScanTerm, ...]
    num_kernels: int

    def detached(self) -> ScanForm:
        """The same kernel without the derivatives of its hyperparameters."""
        terms = tuple(replace(t, rate=t.rate.detach(), weight=t.weight.detach()) for t in self.terms)
        return replace(self, terms=terms)

    @property
    def num_columns(self) -> int:
        """Columns that it is a function of."""
        return len({term.column for term in self.terms})


def as_scan_form(kernel: Kernel, num_kernels: int, num_columns: int) -> ScanForm | None:
    """A kernel as a sum of Matern kernels (1/2, 3/2 or 5/2) of one column each, or None when it is anything else.

    Recognised are sums and multiples of GPyTorch's ``MaternKernel`` and this package's ``LaplacianKernel`` with one active
    column, ``AdditiveLaplacianKernel``, and ``AdditiveStructureKernel`` of a (scaled) ``MaternKernel``. Subclasses are not:
    they may override ``forward``. The form has the derivatives of the hyperparameters.

    Args:
        kernel: Any GPyTorch kernel.
        num_kernels: Number of kernels ``C'`` in its batch, 1 when shared.
        num_columns: D, of its inputs.
    """
    terms = _terms(kernel, range(num_columns), num_kernels)
    return None if terms is None else ScanForm(tuple(terms), num_kernels)


def _terms(kernel: Kernel, columns: Sequence[int], num_kernels: int) -> list[ScanTerm] | None:
    """The terms of a kernel that is called."""
    chosen = _chosen(kernel, columns)
    return None if chosen is None else _own_terms(kernel, chosen, num_kernels)


def _chosen(kernel: Kernel, columns: Sequence[int]) -> Sequence[int] | None:
    if kernel.active_dims is None:
        return columns
    active = kernel.active_dims.tolist()
    return [columns[i] for i in active] if max(active, default=0) < len(columns) else None


def _own_terms(kernel: Kernel, columns: Sequence[int], num_kernels: int) -> list[ScanTerm] | None:
    """The terms of a kernel whose active columns are taken."""
    collect = functools.partial(_terms, num_kernels=num_kernels)
    if type(kernel) is SumOfTerms:
        return _terms_of_sum(kernel, columns, num_kernels)
    if type(kernel) is CalledKernel:
        return _own_terms(kernel.kernel, columns, num_kernels) if kernel.takes_inputs_as_they_are else None
    if type(kernel) is ScaleKernel:  # has the columns of its base, which takes no more
        return _scaled(_own_terms(kernel.base_kernel, columns, num_kernels), kernel.outputscale, num_kernels)
    if type(kernel) is AdditiveKernel:
        return _joined([collect(part, columns) for part in kernel.kernels])
    if type(kernel) is AdditiveStructureKernel:
        return _terms_of_structure(kernel, columns, num_kernels)
    if type(kernel) is AdditiveLaplacianKernel and len(columns) == kernel.num_dims:
        each = zip(columns, kernel.lengthscale.unbind(-1), kernel.weights.unbind(-1), strict=True)
        return _joined([_term(column, 0.5, length, weight, num_kernels) for column, length, weight in each])
    if type(kernel) is LaplacianKernel and len(columns) == 1:
        return _term(columns[0], 0.5, kernel.lengthscale, None, num_kernels)
    if type(kernel) in (MaternKernel, KeOpsMaternKernel) and len(columns) == 1 and kernel.nu in _SMOOTHNESS:
        return _term(columns[0], float(kernel.nu), kernel.lengthscale, None, num_kernels)
    return None


def _terms_of_sum(kernel: SumOfTerms, columns: Sequence[int], num_kernels: int) -> list[ScanTerm] | None:
    """Those of kernels that each have columns of their own."""
    start, parts = 0, []
    for part, coefficient, width in zip(kernel.kernels, kernel.coefficients, kernel.widths, strict=True):
        found = _terms(part, columns[start : start + width], num_kernels)
        parts.append(found if coefficient is None else _scaled(found, coefficient, num_kernels))
        start += width
    return _joined(parts)


def _terms_of_structure(
    kernel: AdditiveStructureKernel, columns: Sequence[int], num_kernels: int
) -> list[ScanTerm] | None:
    """The same kernel of every column."""
    base = core = kernel.base_kernel
    while type(core) is ScaleKernel:
        core = core.base_kernel
    chosen = _chosen(base, columns)
    if num_kernels > 1 or chosen is None or type(core) not in (MaternKernel, KeOpsMaternKernel):
        return None
    return _joined([_own_terms(base, [column], num_kernels) for column in chosen])


def _term(
    column: int, smoothness: float, lengthscale: Tensor | None, weight: Tensor | None, num_kernels: int
) -> list[ScanTerm] | None:
    if lengthscale is None:
        return None
    rate = math.sqrt(2.0 * smoothness) / lengthscale.reshape(-1)
    weight = rate.detach().new_ones(1) if weight is None else weight.reshape(-1)
    if rate.numel() not in (1, num_kernels) or weight.numel() not in (1, num_kernels):
        return None
    return [ScanTerm(column, smoothness, rate.expand(num_kernels), weight.expand(num_kernels))]


def _scaled(terms: list[ScanTerm] | None, factor: Tensor, num_kernels: int) -> list[ScanTerm] | None:
    if terms is None or factor.numel() not in (1, num_kernels):
        return None
    return [replace(term, weight=term.weight * factor.reshape(-1)) for term in terms]


def _joined(parts: list[list[ScanTerm] | None]) -> list[ScanTerm] | None:
    """All terms; None if some part is no sum of such kernels, or there are none."""
    found = [part for part in parts if part is not None]
    return [term for part in found for term in part] if found and len(found) == len(parts) else None
