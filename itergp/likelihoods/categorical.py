"""Class labels through the softmax."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Categorical

from itergp.errors import InputError
from itergp.likelihoods.base import Likelihood, Observed
from itergp.likelihoods.integrals import expected_softmax
from itergp.likelihoods.predictive import CategoricalPredictive
from itergp.likelihoods.targets import require_labels
from itergp.numerics.blocks import Root

_FEW_LATENTS = 8  # up to so many, outer products are summed pair by pair
# What must be the present class's for shares of the classes to be observations, and for terms to be found together.
_OWN = (
    "log_density",
    "derivatives",
    "expected_log_density",
    "expected_derivatives",
    "predictive",
    "predictive_log_density",
)
_CACHED_NUMBERS = 2**18  # nodes times latent functions times rows at a time
_SUMMED_NUMBERS = 2**15  # the same in float64, for sums


class CategoricalLikelihood(Likelihood):
    """Labels 0..C-1 with ``p(y = c | f) = softmax(f)_c``, one latent function per class; log-concave.

    The curvature is the full ``diag(p) - p p^T`` (GPML eq. 3.38). Its null direction, a constant added to all C
    functions, carries no information and needs no special treatment: no inverse of W is ever taken.

    Where rows share their latent values, what was observed at each is the share of every class, ``(N, C)``: of a row with
    weight w and shares s the log-density is ``w sum_c s_c log p_c``.

    Args:
        num_classes: Number of classes C, at least 2.

    Raises:
        InputError: If there are fewer.
    """

    observes: ClassVar[Observed] = "label"
    softmax: ClassVar[bool] = True
    bounded_curvature = True

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise InputError(f"`num_classes` must be at least 2. Got {num_classes}.")
        self.num_classes = self.num_latents = int(num_classes)

    def validate_targets(self, targets: Tensor) -> Tensor:
        """Labels must be integers 0..C-1; returned as int64."""
        return require_labels(targets, "CategoricalLikelihood", self.num_classes, "num_classes")

    def missing(self, targets: Tensor) -> Tensor:
        """Labels NaN or -1."""
        return super().missing(targets) | (targets == -1)

    def pooled(self, targets: Tensor, weight: Tensor, rows: Tensor, num_rows: int) -> Tensor | None:
        """The share of every class among the labels of a row ``(N, C)``, float64."""
        if not self.plain_softmax:
            return None
        size = self.num_classes
        counts = torch.zeros(num_rows * size, dtype=torch.float64, device=targets.device)
        counts = counts.index_add_(0, rows * size + targets, weight).view(num_rows, size)
        total = counts.sum(-1, keepdim=True)
        return torch.where(total > 0.0, counts / total, 1.0 / size)

    def log_density(self, f: Tensor, targets: Tensor) -> Tensor:
        """``f_y - logsumexp(f)``."""
        if targets.dim() == 2:
            return (torch.log_softmax(f.mT.contiguous(), -2).mT * targets.to(f)).sum(-1)
        index = targets.expand(f.shape[:-1]).unsqueeze(-2)
        return torch.log_softmax(f.mT.contiguous(), -2).gather(-2, index).squeeze(-2)

    def derivatives(self, f: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient ``onehot(y) - p`` and curvature ``diag(p) - p p^T``."""
        probs = softmax(f)
        gradient = _minus(probs, targets)
        curvature = -probs.unsqueeze(-1) * probs.unsqueeze(-2)
        curvature.diagonal(dim1=-2, dim2=-1).add_(probs)
        return gradient, curvature

    def structured_root(self, f: Tensor) -> Root:
        """``H = diag(s) - p s^T`` with s the square root of p: C numbers per row instead of C squared."""
        probs = softmax(f).contiguous()
        root = probs.sqrt()

        def apply(vector: Tensor) -> Tensor:
            weighted = root * vector
            return weighted - probs * weighted.sum(-1, keepdim=True)

        def transpose(vector: Tensor) -> Tensor:
            return root * (vector - (probs * vector).sum(-1, keepdim=True))

        return apply, transpose

    def expected_log_density(self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
        """``E[f_y] - E[logsumexp(f)]``, of which the first is the mean's: pairs of nodes lie on both sides of it."""
        return self._by_width(_expected_log_density, mean, offsets, weights, targets)[0]

    def expected_derivatives(
        self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Expected gradient and curvature."""
        _, gradient, curvature = self._by_width(_expected_terms, mean, offsets, weights, targets)
        return gradient, curvature

    def expected_terms(
        self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All three from one softmax."""
        if not self.plain_softmax:
            return super().expected_terms(mean, offsets, weights, targets)
        log_density, gradient, curvature = self._by_width(_expected_terms, mean, offsets, weights, targets)
        return log_density, gradient, curvature

    @property
    def plain_softmax(self) -> bool:
        """Whether no subclass has its own."""
        return all(getattr(type(self), name) is getattr(CategoricalLikelihood, name) for name in _OWN)

    def forward(self, function_samples: Tensor, *args: Any, **kwargs: Any) -> Categorical:
        """Conditional distribution at latent values ``(..., N, C)``."""
        return Categorical(logits=function_samples, validate_args=False)

    def predictive(self, mean: Tensor, covariance: Tensor) -> CategoricalPredictive:
        """Integrated class probabilities by fixed-seed quasi-Monte Carlo, with their standard errors."""
        return CategoricalPredictive(*expected_softmax(mean, covariance))

    def predictive_log_density(self, mean: Tensor, covariance: Tensor, targets: Tensor) -> Tensor:
        """Log of the integrated probability of the label, from 256 quasi-random points for every row."""
        probs, _ = expected_softmax(mean, covariance, accuracy=math.inf, rotate=False)
        tiny = torch.finfo(probs.dtype).tiny
        if targets.dim() == 2:
            return (probs.clamp_min(tiny).log() * targets.to(probs)).sum(-1)
        return probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1).clamp_min(tiny).log()


def _pieces(mean: Tensor, offsets: Tensor, numbers: int = _CACHED_NUMBERS) -> Iterator[Tensor]:
    """Latent values ``(S, n, C)`` at all nodes, on the CPU of as many rows at a time as its cache has room for."""
    step = mean.shape[0]
    if mean.device.type == "cpu":
        step = numbers // offsets[:, 0].numel()
    for part, around in zip(mean.split(max(1, step)), offsets.split(max(1, step), 1), strict=True):
        yield part + around


def _expected_log_density(mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor) -> list[Tensor]:
    total = torch.cat(
        [torch.logsumexp(f.mT.contiguous(), -2).mT @ weights.to(f) for f in _pieces(mean, offsets, _SUMMED_NUMBERS)]
    )
    return [_of_target(mean, targets) - total]


def _of_target(mean: Tensor, targets: Tensor) -> Tensor:
    """Mean latent values ``(N,)`` of what was observed."""
    if targets.dim() == 2:
        return (mean * targets.to(mean)).sum(-1)
    return mean.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def _expected_terms(mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor) -> list[Tensor]:
    """Expected log-density in float64, gradient and curvature.

    ``logsumexp(f) = max_c f_c - log(max_c p_c)``, of which the first is exact, and the second between 0 and ``log C``.
    """
    totals, averages, moments = [], [], []
    for f in _pieces(mean, offsets):
        values = f.mT.contiguous()  # (S, C, n): rows lie along memory
        probs = torch.softmax(values, -2)
        totals.append(weights.double() @ (values.amax(-2).double() - probs.amax(-2).log().double()))
        averages.append((weights.to(f) @ probs.flatten(1)).reshape(probs.shape[1:]).mT)
        moments.append(_second_moment(probs, weights.to(f)))
    average, moment = torch.cat(averages), torch.cat(moments)
    curvature = moment.neg_()
    curvature.diagonal(dim1=-2, dim2=-1).add_(average)
    return [_of_target(mean.double(), targets) - torch.cat(totals), _minus(average, targets), curvature]


def _minus(probs: Tensor, targets: Tensor) -> Tensor:
    """What was observed less what was expected ``(..., N, C)``: labels ``(N,)``, or shares of the classes ``(N, C)``."""
    if targets.dim() == 2:
        return targets.to(probs) - probs
    index = targets.expand(probs.shape[:-1]).unsqueeze(-1)
    return (-probs).scatter_add(-1, index, torch.ones_like(probs[..., :1]))


def softmax(f: Tensor) -> Tensor:
    """Softmax over the last, small dimension; ten times faster with the rows along contiguous memory."""
    return torch.softmax(f.mT.contiguous(), -2).mT


def _second_moment(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over s of ``v_s v_s^T`` ``(N, C, C)``, for values ``(S, C, N)``.

    Very small outer products are faster as sums along the rows than as a batched product.
    """
    if values.shape[1] > _FEW_LATENTS or values.device.type != "cpu":
        nodes = values.permute(2, 1, 0).contiguous()
        return torch.bmm(nodes * weights, nodes.mT)
    columns = values.unbind(1)
    moment = [[torch.empty(0)] * len(columns) for _ in columns]
    for c, column in enumerate(columns):
        weighted = weights[:, None] * column
        for d in range(c + 1):
            moment[c][d] = moment[d][c] = (weighted * columns[d]).sum(0)
    return torch.stack([torch.stack(row) for row in moment]).movedim(-1, 0)
