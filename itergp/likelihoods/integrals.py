"""Expectations of link functions under Gaussian latent values, accurate enough to be called exact."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from itergp.likelihoods.quadrature import gauss_hermite
from itergp.likelihoods.special import MAX_EXPONENT
from itergp.numerics.blocks import psd_root
from itergp.numerics.spectral import eigh

_ACCURACY = 3e-4
_REPLICATES = 8
_MAX_POINTS = 8192
_CACHED = 2**15  # values at several nodes, evaluated at once: of few rows, a loop over nodes is all overhead
_CHUNK = 2**20  # latent values evaluated at once: few enough to stay in cache


def expected_sigmoid(mean: Tensor, variance: Tensor) -> Tensor:
    """``E[sigmoid(f)]`` for ``f ~ N(mean, variance)``, to 1e-6 for every mean and variance.

    Args:
        mean: Latent means, any shape.
        variance: Latent variances, same shape.
    """
    return _expected_cdf(mean, variance, torch.sigmoid, _logistic_density, step=0.5, first=-36.0, last=36.0)


def expected_cloglog(mean: Tensor, variance: Tensor) -> Tensor:
    """``E[1 - exp(-exp(f))]`` for ``f ~ N(mean, variance)``, to 1e-6 for every mean and variance.

    Args:
        mean: Latent means, any shape.
        variance: Latent variances, same shape.
    """
    return _expected_cdf(mean, variance, _gumbel_cdf, _gumbel_density, step=0.25, first=-36.0, last=4.0)


def _expected_cdf(
    mean: Tensor,
    variance: Tensor,
    cdf: Callable[[Tensor], Tensor],
    density: Callable[[Tensor], Tensor],
    *,
    step: float,
    first: float,
    last: float,
) -> Tensor:
    """``E[F(f)]`` of a distribution function F.

    Integration by parts turns the expectation into that of ``Phi((mean - t) / s)`` over ``t`` distributed by F, whose
    trapezoidal rule converges geometrically when ``s`` is not small; below ``s = 1`` Gauss-Hermite does.
    """
    mean64, scale = mean.double(), variance.double().clamp_min(1e-300).sqrt()  # with a derivative at zero
    nodes, weights = gauss_hermite(32, like=mean64)
    small = _weighted_sum(lambda z: cdf(mean64 + scale * z), nodes, weights, mean64)
    nodes = torch.arange(round((last - first) / step) + 1).to(mean64) * step + first
    safe = scale.clamp_min(1e-3)
    large = _weighted_sum(lambda t: torch.special.ndtr((mean64 - t) / safe), nodes, step * density(nodes), mean64)
    return torch.where(scale < 1.0, small, large.clamp(0.0, 1.0)).to(mean)


def _weighted_sum(function: Callable[[Tensor], Tensor], nodes: Tensor, weights: Tensor, like: Tensor) -> Tensor:
    """``sum_i w_i f(t_i)`` of a function of nodes ``(n, 1, ...)`` to values ``(n, *like.shape)``."""
    shape, at_once = (-1, *[1] * like.dim()), max(1, _CACHED // max(1, like.numel()))
    total = torch.zeros_like(like)
    for t, weight in zip(nodes.split(at_once), weights.split(at_once), strict=True):
        total = total + torch.tensordot(weight, function(t.view(shape)), 1)
    return total


def _logistic_density(t: Tensor) -> Tensor:
    return torch.sigmoid(t) * torch.sigmoid(-t)


def _gumbel_density(t: Tensor) -> Tensor:
    return (t - t.exp()).exp()


def _gumbel_cdf(f: Tensor) -> Tensor:
    return -torch.expm1(-f.clamp_max(MAX_EXPONENT).exp())


def expected_softmax(
    mean: Tensor, covariance: Tensor, seed: int = 0, accuracy: float = _ACCURACY, *, rotate: bool = True
) -> tuple[Tensor, Tensor]:
    """``E[softmax(f)]`` for ``f ~ N(mean, covariance)`` by randomised quasi-Monte Carlo.

    Eight independently scrambled Sobol sequences are doubled in length until the standard error between them is below
    the accuracy for every probability, or each has 8,192 points.

    Args:
        mean: ``(M, C)``, or a batch of such.
        covariance: ``(M, C, C)``, or a batch of such.
        seed: Seed of the scrambling; equal seeds give equal results.
        accuracy: Wanted standard error of every probability; infinity for 256 points in all.
        rotate: Whether points are turned to where the covariance is largest. That makes them more accurate; but a rotation that
            moves with the covariance is no part of the derivative.

    Returns:
        Probabilities ``(M, C)`` and their standard errors ``(M, C)``.
    """
    if not bool(covariance.any()):
        return torch.softmax(mean, -1), torch.zeros_like(mean)
    if mean.dim() > 2:
        flat = expected_softmax(mean.flatten(0, -2), covariance.flatten(0, -3), seed, accuracy, rotate=rotate)
        return flat[0].view(mean.shape), flat[1].view(mean.shape)
    probs, errors = torch.empty_like(mean), torch.empty_like(mean)
    todo = torch.arange(mean.shape[0], device=mean.device)
    root = _principal_root(covariance) if rotate else psd_root(covariance)
    points = 32
    while todo.numel() > 0:
        nodes = _sobol_normal(points, root.shape[-1], seed).to(mean)
        for rows in todo.split(max(1, _CHUNK // (_REPLICATES * points * mean.shape[1]))):
            means = _replicate_means(mean[rows], root[rows], nodes)
            probs[rows] = means.mean(0)
            errors[rows] = means.std(0) / math.sqrt(_REPLICATES)
        if points >= _MAX_POINTS:
            break
        todo = todo[(errors[todo] > accuracy).any(-1)]
        points *= 2
    return probs / probs.sum(-1, keepdim=True), errors


def _principal_root(covariance: Tensor) -> Tensor:
    """Root ``(M, C, C - 1)`` of the covariance of logit differences, largest direction first.

    Softmax ignores a constant added to all latent values, so their common part need not be sampled; and quasi-random
    points are most even in their first coordinates.
    """
    root = psd_root(covariance)
    root = root - root.mean(-2, keepdim=True)
    with torch.no_grad():  # any fixed rotation is valid, so none needs a derivative
        _, rotation = eigh(root.mT @ root)
        # A row's result must not turn on the signs that rounding gives the vectors.
        largest = rotation.gather(-2, rotation.abs().argmax(-2, keepdim=True))
        rotation = rotation * torch.where(largest < 0.0, -1.0, 1.0).to(rotation)
    return (root @ rotation.flip(-1))[..., :-1]


def _sobol_normal(points: int, dimension: int, seed: int) -> Tensor:
    """Standard normal points ``(replicates, points, dimension)``."""
    draws = [
        torch.quasirandom.SobolEngine(dimension, scramble=True, seed=seed + r).draw(points, dtype=torch.float64)
        for r in range(_REPLICATES)
    ]
    tiny = 2.0**-40
    return torch.special.ndtri(torch.stack(draws).clamp(tiny, 1.0 - tiny))


def _replicate_means(mean: Tensor, root: Tensor, nodes: Tensor) -> Tensor:
    """Mean of softmax over each replicate's points, ``(replicates, M, C)``."""
    # Points are the last dimension: sums over the few classes then run along contiguous memory.
    f = torch.baddbmm(mean.unsqueeze(-1), root, nodes.flatten(0, 1).mT.expand(root.shape[0], -1, -1))
    f = torch.softmax(f, 1)
    return f.unflatten(-1, nodes.shape[:2]).mean(-1).movedim(-1, 0)
