"""Nodes and weights for expectations under Gaussian marginals of the latent functions.

GPyTorch's own Gauss-Hermite nodes stay in float32 after ``.double()``; these are computed in float64 and cast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=16)
def _hermite(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    return nodes, weights / weights.sum()


def gauss_hermite(num_nodes: int, *, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes ``(S,)`` and weights ``(S,)`` for a standard normal, in the dtype and on the device of ``like``.

    >>> nodes, weights = gauss_hermite(20, like=torch.zeros((), dtype=torch.float64))
    >>> round(float((weights * nodes**4).sum()), 6)  # E[z^4] = 3
    3.0
    """
    nodes, weights = _hermite(num_nodes)
    return like.new_tensor(nodes), like.new_tensor(weights)


def trapezoid(spacing: float, *, like: Tensor) -> tuple[Tensor, Tensor]:
    """Equidistant nodes ``(S,)`` to 12 standard deviations and weights ``(S,)`` for a standard normal.

    As accurate as Gauss-Hermite for smooth integrands, and for narrow ones once they are wider than the spacing.

    Args:
        spacing: Distance between nodes in standard deviations.
        like: For dtype and device.
    """
    half = math.ceil(12.0 / spacing)
    nodes = torch.arange(-half, half + 1, dtype=torch.float64) * spacing
    weights = torch.exp(-0.5 * nodes.square())
    return nodes.to(like), (weights / weights.sum()).to(like)


def psd_root(covariance: Tensor) -> Tensor:
    """A root ``L`` with ``L L^T`` equal to a batch of small covariances ``(..., C, C)``, rounding lifted to PSD."""
    if covariance.shape[-1] == 1:
        return covariance.clamp_min(torch.finfo(covariance.dtype).tiny).sqrt()  # with a derivative at zero
    size = covariance.shape[-1]
    eye = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
    scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(covariance.dtype).tiny)
    jitter = 100 * torch.finfo(covariance.dtype).eps
    root, info = torch.linalg.cholesky_ex(covariance + (jitter * scale)[..., None, None] * eye)
    if bool((info > 0).any()):
        values, vectors = torch.linalg.eigh(covariance)
        safe = vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)
        root = torch.where((info > 0)[..., None, None], safe, root)
    return root


def block_root(blocks: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Multiplication by H and ``H^T`` with ``H H^T`` positive semi-definite blocks ``(N, C, C)``; here H is symmetric."""
    if blocks.shape[-1] == 1:
        root = blocks.clamp_min(0.0).sqrt()
    else:
        values, vectors = torch.linalg.eigh(blocks)
        root = (vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)) @ vectors.mT
    return partial(apply_blocks, root), partial(apply_blocks, root)


def apply_blocks(blocks: Tensor, vector: Tensor) -> Tensor:
    """Symmetric blocks ``(N, C, C)`` times a vector ``(N, C)``."""
    if blocks.shape[-1] == 1:
        return blocks.squeeze(-1) * vector
    return torch.bmm(blocks, vector.unsqueeze(-1)).squeeze(-1)
