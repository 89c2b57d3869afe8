"""Recognise a sum of Matern kernels of one input, and of exponential ones of two, whose products need no entries."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpytorch.kernels import AdditiveKernel, AdditiveStructureKernel, Kernel, MaternKernel, ScaleKernel
from torch import Tensor

from itergp.kernels import AdditiveLaplacianKernel, LaplacianKernel, PairwiseLaplacianKernel
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
class PairTerm:
    """``weight * exp(-rate_0 |x - x'| - rate_1 |y - y'|)`` of two columns, for each of ``C'`` kernels.

    Attributes:
        columns: Numbers of the input columns.
        rates: Inverse lengthscales ``(C', 2)``.
        weight: Prior variance ``(C',)``.
    """

    columns: tuple[int, int]
    rates: Tensor
    weight: Tensor


AnyTerm = ScanTerm | PairTerm


@dataclass(frozen=True)
class ScanForm:
    """A sum of Matern kernels of one input each, and of products of exponential ones of two.

    Attributes:
        terms: The kernels of one input.
        pairs: Those of two.
        num_kernels: ``C'``.
    """

    terms: tuple[ScanTerm, ...]
    pairs: tuple[PairTerm, ...]
    num_kernels: int

    def detached(self) -> ScanForm:
        """The same kernel without the derivatives of its hyperparameters."""
        terms = tuple(replace(t, rate=t.rate.detach(), weight=t.weight.detach()) for t in self.terms)
        pairs = tuple(replace(p, rates=p.rates.detach(), weight=p.weight.detach()) for p in self.pairs)
        return replace(self, terms=terms, pairs=pairs)

    @property
    def columns(self) -> list[int]:
        """Numbers of the columns that it is a function of."""
        return sorted({t.column for t in self.terms}.union(*(pair.columns for pair in self.pairs)))


def as_scan_form(kernel: Kernel, num_kernels: int, num_columns: int) -> ScanForm | None:
    """A kernel as a sum of Matern kernels (1/2, 3/2 or 5/2) of one column, and of exponential ones of two; None if it is none.

    Recognised are sums and multiples of GPyTorch's ``MaternKernel`` and this package's ``LaplacianKernel`` with one active
    column, ``AdditiveLaplacianKernel``, ``PairwiseLaplacianKernel``, and ``AdditiveStructureKernel`` of a (scaled)
    ``MaternKernel``. Subclasses are not: they may override ``forward``. The form has the derivatives of the hyperparameters.

    Args:
        kernel: Any GPyTorch kernel.
        num_kernels: Number of kernels ``C'`` in its batch, 1 when shared.
        num_columns: D, of its inputs.
    """
    terms = _terms(kernel, range(num_columns), num_kernels)
    if terms is None:
        return None
    single = tuple(term for term in terms if isinstance(term, ScanTerm))
    return ScanForm(single, tuple(term for term in terms if isinstance(term, PairTerm)), num_kernels)


def _terms(kernel: Kernel, columns: Sequence[int], num_kernels: int) -> list[AnyTerm] | None:
    """The terms of a kernel that is called."""
    chosen = _chosen(kernel, columns)
    return None if chosen is None else _own_terms(kernel, chosen, num_kernels)


def _chosen(kernel: Kernel, columns: Sequence[int]) -> Sequence[int] | None:
    if kernel.active_dims is None:
        return columns
    active = kernel.active_dims.tolist()
    return [columns[i] for i in active] if max(active, default=0) < len(columns) else None


def _own_terms(kernel: Kernel, columns: Sequence[int], num_kernels: int) -> list[AnyTerm] | None:
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
    if type(kernel) is PairwiseLaplacianKernel and len(columns) == 2 * len(kernel.pairs):
        return _pairs(kernel, columns, num_kernels)
    if type(kernel) is LaplacianKernel and len(columns) == 1:
        return _term(columns[0], 0.5, kernel.lengthscale, None, num_kernels)
    if type(kernel) in (MaternKernel, KeOpsMaternKernel) and len(columns) == 1 and kernel.nu in _SMOOTHNESS:
        return _term(columns[0], float(kernel.nu), kernel.lengthscale, None, num_kernels)
    return None


def _terms_of_sum(kernel: SumOfTerms, columns: Sequence[int], num_kernels: int) -> list[AnyTerm] | None:
    """Those of kernels that each have columns of their own."""
    start, parts = 0, []
    for part, coefficient, width in zip(kernel.kernels, kernel.coefficients, kernel.widths, strict=True):
        found = _terms(part, columns[start : start + width], num_kernels)
        parts.append(found if coefficient is None else _scaled(found, coefficient, num_kernels))
        start += width
    return _joined(parts)


def _terms_of_structure(
    kernel: AdditiveStructureKernel, columns: Sequence[int], num_kernels: int
) -> list[AnyTerm] | None:
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
) -> list[AnyTerm] | None:
    if lengthscale is None:
        return None
    rate = math.sqrt(2.0 * smoothness) / lengthscale.reshape(-1)
    weight = rate.detach().new_ones(1) if weight is None else weight.reshape(-1)
    if rate.numel() not in (1, num_kernels) or weight.numel() not in (1, num_kernels):
        return None
    return [ScanTerm(column, smoothness, rate.expand(num_kernels), weight.expand(num_kernels))]


def _pairs(kernel: PairwiseLaplacianKernel, columns: Sequence[int], num_kernels: int) -> list[AnyTerm] | None:
    rates = 1.0 / kernel.lengthscale.reshape(-1, len(kernel.pairs), 2)
    weights = kernel.weights.reshape(-1, len(kernel.pairs))
    if len(rates) not in (1, num_kernels) or len(weights) not in (1, num_kernels):
        return None
    own = zip(columns[::2], columns[1::2], rates.unbind(1), weights.unbind(1), strict=True)
    return [PairTerm((a, b), rate.expand(num_kernels, 2), w.expand(num_kernels)) for a, b, rate, w in own]


def _scaled(terms: list[AnyTerm] | None, factor: Tensor, num_kernels: int) -> list[AnyTerm] | None:
    if terms is None or factor.numel() not in (1, num_kernels):
        return None
    return [replace(term, weight=term.weight * factor.reshape(-1)) for term in terms]


def _joined(parts: list[list[AnyTerm] | None]) -> list[AnyTerm] | None:
    """All terms; None if some part is no sum of such kernels, or there are none."""
    found = [part for part in parts if part is not None]
    return [term for part in found for term in part] if found and len(found) == len(parts) else None
