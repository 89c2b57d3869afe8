"""Secant pairs: what past steps say of an inverse Hessian (limited-memory BFGS; Nocedal & Wright 2006, algorithm 7.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_MOST_PAIRS = 20
_LEAST_COSINE = 1e-10  # of a step and its change: below, the pair is rounding, or where the objective is not convex


@dataclass(frozen=True)
class SecantPair:
    """A step of weights V, where latent values are ``K V`` and the objective's derivative in these is ``V - g``.

    Attributes:
        step: Of the weights.
        response: ``K`` times it, that of the latent values.
        change: That of the derivative ``V - g``.
        pushed: ``K`` times that.
    """

    step: Tensor
    response: Tensor
    change: Tensor
    pushed: Tensor

    @property
    def curvature(self) -> float:
        """Along the step, times its squared length."""
        return float((self.response * self.change).sum())


Pairs = tuple[SecantPair, ...]


def with_pair(pairs: Pairs, pair: SecantPair) -> Pairs:
    """The last twenty, with a new one if the objective is convex along its step."""
    scale = float(torch.linalg.vector_norm(pair.response) * torch.linalg.vector_norm(pair.change))
    return (*pairs, pair)[-_MOST_PAIRS:] if pair.curvature > _LEAST_COSINE * scale else pairs


def secant_direction(
    pairs: Pairs,
    residual: Tensor,
    pushed: Tensor,
    first: Callable[[Tensor, Tensor], Tensor],
    multiply: Callable[[Tensor], Tensor],
) -> Tensor:
    """The direction, in weights, of a quasi-Newton step.

    Args:
        pairs: Of the steps so far, the latest last.
        residual: ``g - V``.
        pushed: ``K`` times it.
        first: Gives the direction that an approximate inverse Hessian makes of a residual R, given R and ``K R``.
        multiply: By K.
    """
    shares = []
    for pair in reversed(pairs):
        share = float((pair.response * residual).sum()) / pair.curvature
        residual, pushed = residual - share * pair.change, pushed - share * pair.pushed
        shares.append(share)
    direction = first(residual, pushed)
    response = multiply(direction) if pairs else pushed
    for pair, share in zip(pairs, reversed(shares), strict=True):
        missing = share - float((pair.change * response).sum()) / pair.curvature
        direction, response = direction + missing * pair.step, response + missing * pair.response
    return direction
