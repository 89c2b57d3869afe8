"""Random nodes for expectations over several latent functions.

Nodes are antithetic pairs, others for every row so that their errors average out over rows, and linearly transformed to have
the second moments of a standard normal distribution (quadratic resampling, Barraquand 1995). What is quadratic in f is then
integrated exactly, and where marginals are as wide as a likelihood's own scale, errors are a fifth of those of independent
samples. Where marginals are wider, more nodes take the place of a row's few; which rows these are, their own marginals say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from itergp.likelihoods.quadrature import node_covariance
from itergp.numerics.blocks import psd_root

_LEAST_PAIRS = 16
_SPARE_PAIRS = 4  # more than functions, for their second moments to be far from singular
_MOST_MATCHED = 64  # functions; of more, samples are independent
_CHUNK_ROWS, _MATCHED_ROWS = 8192, 512
_FEW_PAIRS_REACH = 1.75  # widest deviation of a difference, in widths of the likelihood, for which few pairs do
FINER = 3  # times as many pairs for twice the deviation
_MOST_LEVELS = 2
_CHUNK_NUMBERS = 2**18  # latent values of finer nodes at once
KEPT_NUMBERS = 2**24  # of a site, that are kept for its next expectation

_few = ContextVar("few", default=False)
Averages = Callable[[Tensor, Tensor, Tensor, Tensor], list[Tensor]]


@contextmanager
def few_samples(few: bool = True) -> Iterator[None]:
    """Inside, rows keep their few nodes however wide their marginals are: for what is found again from more of them.

    Args:
        few: False to change nothing.
    """
    token = _few.set(few or _few.get())
    try:
        yield
    finally:
        _few.reset(token)


def num_pairs(num_latents: int) -> int:
    """Antithetic pairs of a row of C functions, a multiple of the 16 numbers that are drawn at once."""
    wanted = num_latents + _SPARE_PAIRS if num_latents <= _MOST_MATCHED else _LEAST_PAIRS
    return -(-wanted // _LEAST_PAIRS) * _LEAST_PAIRS


def antithetic_nodes(like: Tensor, seed: int = 0, skip: int = 0) -> tuple[Tensor, Tensor]:
    """Nodes ``(S, N, C)`` and weights ``(S,)`` for standard normal latent values.

    Args:
        like: Means ``(N, C)``, for shape, dtype and device.
        seed: Of the samples; equal seeds give equal ones.
        skip: Rows before these, whose samples are drawn and left out.
    """
    size, latents = like.shape
    pairs = num_pairs(latents)
    generator = torch.Generator().manual_seed(seed)
    # Row by row, in multiples of the 16 numbers that are drawn at once: neither rows nor pieces change what others get.
    for start in range(0, skip, _CHUNK_ROWS):
        torch.randn(min(_CHUNK_ROWS, skip - start), pairs, latents, generator=generator, dtype=torch.float32)
    half = torch.randn(size, pairs, latents, generator=generator, dtype=torch.float32).to(like)
    if latents <= _MOST_MATCHED:
        for part in half.split(_MATCHED_ROWS):
            part.copy_(_matched(part.double()))
    half = half.movedim(1, 0)
    return torch.cat([half, -half]), like.new_full((2 * pairs,), 0.5 / pairs)


def _matched(samples: Tensor) -> Tensor:
    """Samples ``(..., m, C)`` with identity second moments."""
    root = torch.linalg.cholesky(samples.mT @ samples / samples.shape[-2])
    return torch.linalg.solve_triangular(root, samples.mT, upper=False).mT


@lru_cache(maxsize=32)
def _even_samples(pairs: int, latents: int) -> Tensor:
    """Evenly spread standard normal samples ``(pairs, C)`` with identity second moments: Sobol points, scrambled."""
    with torch.inference_mode(False):  # for calls with derivatives too
        points = torch.quasirandom.SobolEngine(latents, scramble=True, seed=0).draw(pairs, dtype=torch.float64)
        return _matched(torch.special.ndtri(points.clamp(1e-12, 1.0 - 1e-12)))


def by_width(
    average: Averages,
    mean: Tensor,
    offsets: Tensor,
    weights: Tensor,
    targets: Tensor,
    *,
    width: float,
    separable: bool,
    least: int = 0,
) -> list[Tensor]:
    """Averages over nodes, and over more of them for rows whose marginals are wide.

    Args:
        average: Gives averages ``(n, ...)`` of some rows from their means, offsets, weights and targets.
        mean: Latent means ``(N, C)``.
        offsets: Distances of the nodes of ``antithetic_nodes`` from the means ``(S, N, C)``.
        weights: Weights of the nodes ``(S,)``.
        targets: Of the rows.
        width: The distance in f over which the likelihood's derivatives change.
        separable: Whether rows can be looked at alone.
        least: How often the few pairs of every row are multiplied, however narrow its marginal is.
    """
    if mean.shape[-1] > _MOST_MATCHED or mean.shape[0] == 0 or _few.get():
        return average(mean, offsets, weights, targets)
    groups = _kept_groups(offsets, weights, width, separable, least)
    if groups is None:
        return average(mean, offsets, weights, targets)
    parts = []
    for group in groups:
        m, y = (mean[group.rows], targets[group.rows]) if separable else (mean, targets)
        part = average(m, *group.nodes(group.level, offsets, weights), y)
        if group.share is not None:  # without jumps, which rounds would not settle between
            coarser = average(m, *group.nodes(group.level - 1, offsets, weights), y)
            part = [_mixed(coarse, fine, group.share) for coarse, fine in zip(coarser, part, strict=True)]
        parts.append(part)
    order = torch.cat([group.rows for group in groups]).argsort()
    return [torch.cat(found)[order] for found in zip(*parts, strict=True)]


@dataclass
class _Group:
    """Rows with nodes of one level, mixed with those of the level below where they have a share of it.

    Attributes:
        rows: Their numbers ``(n,)``.
        level: How often the few pairs are multiplied.
        share: Of the nodes of this level ``(n,)``; None for all.
        given_level: That of the nodes that are given.
        covariance: Marginals ``(n, C, C)``.
        keeps: Whether nodes are kept once they were chosen or made.
    """

    rows: Tensor
    level: int
    share: Tensor | None
    given_level: int
    covariance: Tensor
    keeps: bool
    _kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def nodes(self, level: int, offsets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets ``(S, n, C)`` and weights ``(S,)`` of a level, from the nodes of all rows that are given."""
        level = max(level, self.given_level)
        nodes = self._kept.get(level)
        if nodes is None:
            given = offsets[:, self.rows]
            nodes = (given, weights) if level == self.given_level else _finer(given.detach(), self.covariance, level)
            if self.keeps:
                self._kept[level] = nodes
        return nodes[0], weights if level == self.given_level else nodes[1]


# A site asks for the same expectations again and again: finer nodes live as long as the nodes that they stand for.
_groups_of_nodes: MutableMapping[Tensor, dict[Any, Any]] = WeakTensorKeyDictionary()


def _kept_groups(offsets: Tensor, weights: Tensor, width: float, separable: bool, least: int) -> list[_Group] | None:
    """Groups of rows with their nodes, kept where no derivative goes through them; None if all rows keep what they have."""
    if offsets.requires_grad:
        return _make_groups(offsets, weights, width, separable, least, keep=False)
    kept = _groups_of_nodes.setdefault(offsets, {})
    # What is made in inference mode has no derivative to be part of, later.
    version = None if offsets.is_inference() else offsets._version
    key = width, separable, least, torch.is_inference_mode_enabled(), version
    if key not in kept:
        kept[key] = _make_groups(offsets, weights, width, separable, least, keep=True)
    groups: list[_Group] | None = kept[key]
    return groups


def _make_groups(
    offsets: Tensor, weights: Tensor, width: float, separable: bool, least: int, *, keep: bool
) -> list[_Group] | None:
    """Rows by the nodes that their marginals ask for; None if all keep those that are given."""
    latents = offsets.shape[-1]
    covariance = torch.cat([node_covariance(part, weights) for part in offsets.split(_MATCHED_ROWS, 1)])
    fineness = _fineness(covariance, width).clamp_min(least)
    if not separable:
        fineness = fineness.amax().expand(fineness.shape)
    given, groups, numbers = _level_of(len(weights), latents), [], 0
    if not float(fineness.detach().amax()) > given:  # nor where it is NaN, which is for the solver to report
        return None
    for level, share, rows in _rows_of_levels(fineness, latents if separable else 0):
        numbers += len(rows) * latents * (len(weights) + 2 * num_pairs(latents) * FINER**level)
        keeps = keep and numbers <= KEPT_NUMBERS
        groups.append(_Group(rows, level, share, given, covariance[rows], keeps))
    return groups


def _mixed(coarse: Tensor, fine: Tensor, share: Tensor) -> Tensor:
    """A share ``(n,)`` of averages ``(n, ...)`` by more nodes, and the rest of those by fewer."""
    return torch.lerp(coarse, fine, share.to(coarse).view(-1, *(1,) * (coarse.dim() - 1)))


def _level_of(num_nodes: int, latents: int) -> int:
    """How often the few pairs were multiplied already."""
    return int(math.log(num_nodes / (2 * num_pairs(latents)), FINER) + 1e-9)


def _fineness(covariance: Tensor, width: float) -> Tensor:
    """How often the few pairs of a row are multiplied ``(N,)``, from its marginal ``(N, C, C)``: in between, a mixture."""
    about = covariance - covariance.mean(-1, keepdim=True)
    about = about - about.mean(-2, keepdim=True)
    deviation = about.diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(1e-30).sqrt() / width
    return (deviation / _FEW_PAIRS_REACH).log2().clamp(0, _MOST_LEVELS)


def _rows_of_levels(fineness: Tensor, latents: int) -> Iterator[tuple[int, Tensor | None, Tensor]]:
    """Levels, the shares of them or None for all, and their rows, at most so many at once as their nodes allow.

    All that there are where ``latents`` is 0.
    """
    levels = fineness.detach().ceil()
    whole = fineness.detach() == levels
    for level in levels.unique().tolist():
        for mixed in (False, True):
            rows = ((levels == level) & (whole != mixed)).nonzero().squeeze(-1)
            most = max(1, len(rows))
            if level > 0 and latents > 0:
                most = max(1, _CHUNK_NUMBERS // (2 * num_pairs(latents) * FINER ** int(level) * latents))
            for some in rows.split(most) if len(rows) else ():
                yield int(level), fineness[some] - (level - 1) if mixed else None, some


def _finer(few: Tensor, covariance: Tensor, level: int) -> tuple[Tensor, Tensor]:
    """More nodes ``(S, n, C)`` for marginals ``(n, C, C)``, with their weights: even samples, turned at random in each row.

    How they are turned comes from a row's few standard normal nodes, of which ``(S', n, C)`` are given as offsets: it is then
    the same whatever other rows there are, and does not change with the marginal. They are reflected along C nodes, one after
    another, which rounding of the nodes hardly changes: an orthogonal factor of them may turn by any angle where it is large.
    """
    latents = few.shape[-1]
    samples = _even_samples(num_pairs(latents) * FINER**level, latents).to(covariance)
    root = psd_root(covariance)
    standard, _ = torch.linalg.solve_ex(root.detach(), few[:latents].permute(1, 2, 0))
    units = torch.nn.functional.normalize(standard.nan_to_num(posinf=0.0, neginf=0.0), dim=-2)
    turned = root
    for along in units.unbind(-1):
        turned = turned - 2.0 * (turned @ along.unsqueeze(-1)) * along.unsqueeze(-2)
    half = torch.einsum("nij,sj->sni", turned, samples)
    return torch.cat([half, -half]), covariance.new_full((2 * len(samples),), 0.5 / len(samples))
