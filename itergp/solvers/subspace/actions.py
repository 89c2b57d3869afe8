"""Which actions the covariance is conditioned on: the directions about which the data say most."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from itergp.numerics.krylov import leading_eigenspace
from itergp.numerics.spectral import leading_eigenvectors
from itergp.operators import AbstractOperator, Preconditioner, slices
from itergp.posterior.precision import Actions
from itergp.solvers.subspace.newton_matrix import data_information
from itergp.solvers.subspace.search_space import SearchSpace

_DENSE_LIMIT = 1200
_OVERSAMPLING = 10
_POWER_STEPS = 3
_PROBING_PASSES, _PROBING_SHARE = 3, 2 / 3  # together twice as many columns as directions
_CHUNK_ROWS = 8192


def leading_actions(
    space: SearchSpace, curvature: Tensor, rank: int, seed: int = 0, preconditioner: Preconditioner | None = None
) -> Actions:
    """Actions ``W T Z`` for the leading eigenvectors Z of the information ``T^T W T`` that the space holds.

    The eigenvalues are signal-to-noise ratios: ``lambda / (1 + lambda)`` is the share of prior variance explained. When
    more actions are asked for than the space has directions, single latent values, in a fixed random order, fill up.

    Args:
        space: The search space.
        curvature: W ``(N, C, C)``.
        rank: Number of actions wanted; fewer come back when directions are dependent or uninformative.
        seed: Of the random order and of the randomised eigensolver.
        preconditioner: That knows the leading directions better than the space, or None.
    """
    own, latents = curvature.shape[:2]
    size = space.partition.global_size(own)
    rank = min(rank, size * latents)
    if rank == 0:
        return Actions.empty(curvature[..., 0])
    available = space.coordinate_sets(latents) * space.rank
    if preconditioner is not None:
        directions = preconditioner.directions(rank)
        available = directions.shape[-1]
    elif available == 0:
        directions = curvature.new_zeros(own, latents, 0)
    else:
        leading = leading_directions(space, curvature, min(rank, available), seed)
        directions = space.blocks_at(leading, slice(None), latents)
    if rank > available:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(size * latents, generator=generator)
        order = order if rank == size * latents else order[: rank - available]
        here = order - space.partition.start() * latents
        held = ((here >= 0) & (here < own * latents)).nonzero().squeeze(-1)
        units = directions.new_zeros(own * latents, order.numel())
        units[here[held], held] = 1.0
        directions = torch.cat([directions, units.view(own, latents, -1)], -1)
    return Actions.from_directions(directions, curvature, space.partition)


def probed_directions(operator: AbstractOperator, curvature: Tensor, rank: int, seed: int = 0) -> Tensor:
    """Directions ``W^{1/2} Q`` ``(N, r)``, Q near the leading eigenvectors of ``W^{1/2} K W^{1/2}``, in three kernel passes.

    Args:
        operator: The kernel, of one latent function.
        curvature: W ``(N, 1, 1)``.
        rank: Number of directions r; fewer where the data say nothing of more.
        seed: Of the columns that these are sought from.
    """
    root, rank = curvature[:, 0].clamp_min(0.0).sqrt(), min(rank, curvature.shape[0])
    if rank == 0:
        return root[:, :0]
    width = min(len(root), round(_PROBING_SHARE * rank) + _OVERSAMPLING)
    start = torch.randn(len(root), width, generator=torch.Generator().manual_seed(seed)).to(root)
    product = partial(_weighted_product, operator, root)
    return root * leading_eigenspace(product, start, rank, _PROBING_PASSES)[1]


def _weighted_product(operator: AbstractOperator, root: Tensor, block: Tensor) -> Tensor:
    return root * operator.matmul(root * block)[0]


def leading_directions(space: SearchSpace, curvature: Tensor, rank: int, seed: int = 0) -> Tensor:
    """Leading eigenvectors ``(C, B, rank)`` of the information ``T^T W T``, C the space's ``coordinate_sets``."""
    latents = space.coordinate_sets(curvature.shape[-1])
    size = latents * space.rank
    if size <= _DENSE_LIMIT:
        vectors = space.partition.broadcast(
            leading_eigenvectors(data_information(space, curvature), rank, descending=True)
        )
        return vectors.view(latents, space.rank, -1)
    # Randomised subspace iteration (Halko, Martinsson & Tropp 2011, algorithm 4.4).
    generator = torch.Generator().manual_seed(seed)
    width = min(size, rank + _OVERSAMPLING)
    block = torch.randn(size, width, generator=generator, dtype=torch.float64).to(space.gram)
    for _ in range(_POWER_STEPS):
        block = space.partition.broadcast(torch.linalg.qr(block).Q)
        applied = _apply_information(space, curvature, block.view(latents, space.rank, -1))
        previous, block = block, applied.reshape(size, -1)
    rotation = leading_eigenvectors(previous.mT @ block, rank, descending=True)
    vectors = space.partition.broadcast(previous @ rotation)
    return vectors.view(latents, space.rank, -1)


def _apply_information(space: SearchSpace, curvature: Tensor, coordinates: Tensor) -> Tensor:
    """``T^T W T X`` ``(C, B, k)``, float64, for coordinates ``(C, B, k)``."""
    applied = torch.zeros_like(coordinates)
    for rows in slices(curvature.shape[0], _CHUNK_ROWS):
        blocks = space.blocks_at(coordinates, rows, curvature.shape[-1])
        applied += space.project_blocks(torch.bmm(curvature[rows], blocks), rows)
    return space.partition.all_reduce_sum(applied)
