"""``ExactCovariance``: the exact posterior of one latent function at few rows, as a function of the hyperparameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from itergp.numerics.cholesky import tolerant_cholesky

_SMALL = 1e-6  # of a curvature times the prior variance, below which its inverse has lost half its digits
_LIFTS = (1.0, 1e2, 1e4)  # of the kernel's diagonal, in units of rounding of its entries


@dataclass(frozen=True)
class LinearPredictors:
    """Of ``f(x)`` at M inputs from pseudo-observations of all rows, those of least error variance.

    Attributes:
        variance: Of their errors, which is the posterior variance ``(M,)``.
        weights: b ``(N, M)``, held fixed.
        known: What derivatives in the hyperparameters it has that do not go through kernel entries between two rows ``(M,)``.
    """

    variance: Tensor
    weights: Tensor
    known: Tensor


class ExactCovariance:
    """Posterior variances given all rows, by a dense factor ``(N, N)``.

    Of all linear predictors of ``f(x)`` from pseudo-observations ``f + e``, ``Var e = W^{-1}``, the posterior mean has the
    least error variance ``k(x, x) - 2 b^T k(X, x) + b^T (K + W^{-1}) b``, at ``b = (K + W^{-1})^{-1} k(X, x)``. There a change
    of b changes nothing, so that derivatives are those for a fixed b.

    Args:
        kernel: K ``(N, N)``, float64.
        curvature: W ``(N,)``, none negative; derivatives go through it too.
        dtype: In which the entries of K were evaluated.
    """

    def __init__(self, kernel: Tensor, curvature: Tensor, dtype: torch.dtype) -> None:
        self._kernel, self._dtype = kernel, dtype
        held = curvature.detach()
        # Noise variances over their present values.
        self._moved = torch.where(held > 0.0, held / torch.where(held > 0.0, curvature, 1.0), 1.0)
        self._root = held.double().sqrt()
        _, self._factor = tolerant_cholesky(self._candidates())

    def _candidates(self) -> Iterator[Tensor]:
        """``I + H K H``, and with the diagonal of K lifted as far as rounding of its entries explains."""
        inside = self._root[:, None] * self._kernel * self._root
        inside.diagonal().add_(1.0)
        yield inside
        unit = torch.finfo(self._dtype).eps * self._kernel.diagonal().amax()
        for lift in _LIFTS:
            yield inside + torch.diag(lift * unit * self._root.square())

    def mode(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Representer weights V ``(N,)`` of a quadratic log-density and ``K V``, float64.

        Args:
            gradient: Of the log-density at the prior mean ``(N,)``.
        """
        held = gradient.detach().double()
        whitened = torch.where(self._root > 0.0, held / torch.where(self._root > 0.0, self._root, 1.0), 0.0)
        weights = self._root * self._inside(whitened.unsqueeze(-1))[:, 0]
        return weights, self._kernel @ weights

    def adjoint(self, right: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
        """``W lambda`` and lambda, both ``(N, 1)``, for ``(I + K W) lambda = q``; float64.

        Args:
            right: q ``(N, 1)``.
            curvature: W ``(N,)``, the exact negative Hessian: the curvature of this covariance, or another.
        """
        right, curvature = right.double(), curvature.double()
        if torch.equal(curvature.sqrt(), self._root):
            weighted = self._root[:, None] * self._inside(self._root[:, None] * right)
            return weighted, right - self._kernel @ weighted
        inside = self._kernel * curvature
        inside.diagonal().add_(1.0)
        solved = torch.linalg.solve(inside, right)
        return curvature[:, None] * solved, solved

    def predictors(self, prior: Tensor, cross: Tensor | None = None) -> LinearPredictors:
        """Those of inputs with prior variances ``(M,)`` and kernel entries ``(M, N)``; None for the training rows."""
        with torch.no_grad():
            if cross is None:
                entries, inside = self._kernel, self._at_training_rows()
            else:
                entries, inside = cross, self._inside(self._root[:, None] * cross.mT.double())
            weights = self._root[:, None] * inside
            variance = (prior.double() - (weights * entries.mT).sum(0)).to(prior)
            variance = torch.maximum(variance, torch.finfo(prior.dtype).eps * prior)
        return LinearPredictors(variance, weights.to(prior), prior + self._moved.to(prior) @ inside.square().to(prior))

    def _at_training_rows(self) -> Tensor:
        """``B^{-1} H K`` with ``B = I + H K H``: ``(I - B^{-1}) H^{-1}``, or solved for where H is too small to divide by."""
        size, small = self._root.numel(), self._root.square() * self._kernel.diagonal() < _SMALL
        inside = torch.cholesky_inverse(self._factor).neg_()
        inside.diagonal().add_(1.0)
        inside /= torch.where(small, 1.0, self._root)
        if bool(small.any()):
            columns = torch.arange(size, device=small.device)[small]
            inside[:, columns] = self._inside(self._root[:, None] * self._kernel[:, columns])
        return inside

    def _inside(self, right: Tensor) -> Tensor:
        return torch.cholesky_solve(right, self._factor)
