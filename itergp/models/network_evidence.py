"""Laplace's log marginal likelihood of a network as a function of the prior precision, and bounds on it at low rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from itergp.numerics.cholesky import diagonal_lifts, tolerant_cholesky
from itergp.posterior.softmax_information import SoftmaxInformation

Bound = Literal["lower", "upper"]
_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class EvidenceTerms:
    """What the evidence depends on besides the prior precision; all in float64.

    ``log p(y) = log p(y | f*) - |w* - m|_P^2 / 2 - log |I + H| / 2`` with ``H = P^{-1/2} J^T W J P^{-1/2}``. Of H are known its
    part B within the actions, group of weights by group, and its trace. In terms of these

        ``log |I + B|  <=  log |I + H|  <=  log |I + B| + n log(1 + (tr H - tr B) / n)``,

    with n the number of eigenvalues that B leaves out: a determinant is at most that of its diagonal blocks, and its logarithm
    at most that of equal eigenvalues (Fischer; Jensen).

    Attributes:
        log_precision: Logarithm of the prior precision of each group ``(G,)`` that the others were found at.
        distances: ``|w* - m|^2`` within each group ``(G,)``.
        grams: ``U^T U`` within each group ``(G, r, r)``, or, of one group, its eigenvalues ``(1, r)``; None where H is there.
        traces: ``tr H`` within each group ``(G,)``.
        left_out: n.
        matrix: H ``(P, P)`` where it is there.
        group: Group of each weight ``(P,)``.
        rows: B of a softmax's last layer, where it is found anew at every precision; or None.
        column_group: Group of each column of its features ``(d,)``.
    """

    log_precision: Tensor
    distances: Tensor
    grams: Tensor | None
    traces: Tensor
    left_out: int
    matrix: Tensor | None
    group: Tensor
    rows: SoftmaxInformation | None = None
    column_group: Tensor | None = None

    def evidence(self, log_precision: Tensor, bound: Bound = "lower") -> Tensor:
        """The evidence less ``log p(y | f*)``, nats; differentiable.

        Args:
            log_precision: Logarithm of the prior precision of each group ``(G,)``.
            bound: ``"lower"`` or ``"upper"``; the same where nothing is left out.
        """
        log_precision = log_precision.double()
        distance = (log_precision.exp() * self.distances).sum()
        return -0.5 * (distance + self.log_determinant(log_precision, bound))

    def log_determinant(self, log_precision: Tensor, bound: Bound) -> Tensor:
        """``log |I + H|``, or what bounds it so that the evidence is the bound that is asked for."""
        ratios = (self.log_precision - log_precision).exp()
        if self.matrix is not None:
            root = (0.5 * (self.log_precision - log_precision)).exp()[self.group]
            return _log_determinant(root.unsqueeze(-1) * self.matrix * root)
        if self.rows is not None:
            within, traces = self._of_rows(log_precision)
            return self._bounded(within, (ratios * self.traces).sum() - traces, bound)
        assert self.grams is not None
        if self.grams.dim() == 2:
            diagonal = ratios[0] * self.grams[0]
            within = torch.log1p(diagonal).sum()
        else:
            gram = (ratios[:, None, None] * self.grams).sum(0)
            diagonal, within = gram.diagonal(), _log_determinant(gram)
        return self._bounded(within, (ratios * self.traces).sum() - diagonal.sum(), bound)

    def _bounded(self, within: Tensor, rest: Tensor, bound: Bound) -> Tensor:
        if bound == "upper" or self.left_out == 0:
            return within
        return within + self.left_out * torch.log1p(rest.clamp_min(0.0) / self.left_out)

    def _of_rows(self, log_precision: Tensor) -> tuple[Tensor, Tensor]:
        """``log |I + B|`` and ``tr B``; the derivative of the first is ``tr (I + B)^{-1} - P`` within each group."""
        assert self.rows is not None
        assert self.column_group is not None
        ratios = (self.log_precision - log_precision).exp()[self.column_group]
        known = self.rows if bool((ratios == 1.0).all()) else self.rows.rescaled(ratios.detach())
        value = log_precision.new_tensor(known.log_determinant())
        if log_precision.requires_grad:
            left = (known.blocks.diagonal(dim1=-2, dim2=-1) - 1.0).sum(0)
            value = value + (left * (log_precision - log_precision.detach())[self.column_group]).sum()
        return value, (ratios * self.rows.traces()).sum()

    def rest(self) -> float:
        """``tr H - tr B`` at the precision that it was found at."""
        if self.rows is not None:
            return max(0.0, float(self.traces.sum() - self.rows.traces().sum()))
        if self.grams is None:
            return 0.0
        within = self.grams if self.grams.dim() == 2 else self.grams.diagonal(dim1=-2, dim2=-1)
        return max(0.0, float(self.traces.sum() - within.sum()))


def _log_determinant(matrix: Tensor) -> Tensor:
    """``log |I + M|`` for M positive semi-definite up to rounding."""
    size = matrix.detach().diagonal().amax() if matrix.numel() else matrix.new_zeros(())
    _, factor = tolerant_cholesky(diagonal_lifts(matrix, _EPS * size, (0.0, 64.0, 1e5)), shift=1.0)
    return 2.0 * factor.diagonal().log().sum()
