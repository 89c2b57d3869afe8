"""Nodes and weights for expectations under Gaussian marginals of the latent functions.

GPyTorch's own Gauss-Hermite nodes stay in float32 after ``.double()``; these are computed in float64 and cast.
"""

from __future__ import annotations

import math
from functools import lru_cache

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


def node_covariance(offsets: Tensor, weights: Tensor) -> Tensor:
    """Covariances ``(N, C, C)`` of the marginals that nodes stand for: all that a closed form needs of them.

    Args:
        offsets: Distances of the nodes from the mean ``(S, N, C)``.
        weights: Weights of the nodes ``(S,)``.
    """
    return torch.einsum("s,sni,snj->nij", weights.to(offsets), offsets, offsets)


def second_moment_nodes(like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes ``(2 C, N, C)`` and weights ``(2 C,)`` with the second moments of a standard normal distribution: few, and exact.

    Args:
        like: Means ``(N, C)``.
    """
    size = like.shape[-1]
    half = size**0.5 * torch.eye(size, dtype=like.dtype, device=like.device)
    nodes = torch.cat([half, -half]).unsqueeze(1).expand(-1, like.shape[0], -1)
    return nodes, like.new_full((2 * size,), 0.5 / size)
