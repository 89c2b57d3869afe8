"""Tempering by information: a posterior covariance made smaller where the data say much, and left alone where they do not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Exponents that are compared where one is chosen: from the posterior itself to where its mean is all but plugged in.
EXPONENTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


def remaining_share(covariance: Tensor, prior_variance: Tensor) -> Tensor:
    """The share of the prior variance of a row's latent functions that is left, 0 to 1: ``tr(Sigma) / tr(K)`` ``(M,)``.

    Args:
        covariance: Posterior covariances of the latent functions of each row ``(M, C, C)``.
        prior_variance: Prior variances ``(M, C)``.
    """
    return variance_share(covariance.diagonal(dim1=-2, dim2=-1), prior_variance)


def variance_share(variance: Tensor, prior_variance: Tensor) -> Tensor:
    """``remaining_share`` of the variances ``(M, C)`` alone."""
    total = prior_variance.sum(-1).clamp_min(torch.finfo(variance.dtype).tiny)
    return (variance.sum(-1) / total).clamp(0.0, 1.0)


def share_power(share: Tensor, exponent: float) -> Tensor:
    """What tempering multiplies covariances by: a power of the share that is left ``(M,)``, and nothing for infinity.

    Args:
        share: 0 to 1 ``(M,)``.
        exponent: p, 0 or more.
    """
    if math.isinf(exponent):
        return torch.zeros_like(share)
    # A power below one of a share of zero has no derivative.
    return share.clamp_min(torch.finfo(share.dtype).tiny).pow(exponent)


def tempered(covariance: Tensor, prior_variance: Tensor, exponent: float) -> Tensor:
    """Row covariances times a power of the share of the prior variance that is left: ``Sigma (tr Sigma / tr K)^p``.

    With one latent function ``v (v / k)^p``. Where nothing is known nothing changes, whatever p: far from the data a prediction
    is the prior's.

    Args:
        covariance: Posterior covariances of the latent functions of each row ``(M, C, C)``.
        prior_variance: Prior variances ``(M, C)``.
        exponent: p, 0 or more: 0 is the posterior itself, infinity its mean alone.

    Returns:
        ``(M, C, C)``, differentiable for a finite exponent.

    Examples:
        >>> v, k = torch.tensor([[[1.0]], [[4.0]]]), torch.tensor([[4.0], [4.0]])
        >>> tempered(v, k, 1.0).flatten().tolist()
        [0.25, 4.0]
    """
    if exponent == 0.0:
        return covariance
    if exponent == math.inf:
        return torch.zeros_like(covariance)
    return covariance * share_power(remaining_share(covariance, prior_variance), exponent)[..., None, None]
