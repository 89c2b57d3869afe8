"""Expectations over functions of a network that are drawn, for many classes: a row's covariance is never there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from itergp.operators import slices
from itergp.operators.linearisation import Linearisation, Rows, num_rows, take
from itergp.posterior.weights import WeightPosterior

REPLICATES, PAIRS = 8, 64  # of independent draws, and antithetic pairs of each
_NUMBERS = 2**23  # latent values at a time


@dataclass(frozen=True)
class FunctionSamples:
    """Functions ``f(x; w*) +- J(x) (w - w*)`` of weights that are drawn once for all rows.

    Attributes:
        posterior: Of the weights.
        kept: ``w - w*`` of each replicate ``(P, PAIRS)``; None to draw the same ones again and again, of many weights.
    """

    posterior: WeightPosterior
    kept: Sequence[Tensor] | None

    @classmethod
    def of(cls, posterior: WeightPosterior, memory_budget: int) -> FunctionSamples:
        """The same ones every time.

        Args:
            posterior: Of the weights.
            memory_budget: Bytes for what is kept.
        """
        size = REPLICATES * PAIRS * posterior.mean.numel() * posterior.mean.element_size()
        found = cls(posterior, None)
        return found if size > memory_budget else cls(posterior, [*found._deviations()])

    def probabilities(self, rows: Rows, share: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``E[softmax(f)]`` ``(m, C)`` of some rows, and the standard errors.

        Args:
            rows: Inputs of m rows.
            share: Multiples of the covariance ``(m,)``; None for 1.
        """
        means = [(torch.softmax(f, 1) + torch.softmax(g, 1)).mean(-1) / 2.0 for f, g in self._pairs(rows, share)]
        stacked = torch.stack(means)
        probs = stacked.mean(0)
        return probs / probs.sum(-1, keepdim=True), stacked.std(0) / math.sqrt(REPLICATES)

    def log_densities(self, rows: Rows, labels: Tensor, shares: Sequence[Tensor]) -> Tensor:
        """``log E[softmax(f)_y]`` ``(len(shares), m)``, float64.

        Args:
            rows: Inputs of m rows.
            labels: Theirs ``(m,)``.
            shares: For each of the results, multiples of the covariance ``(m,)``.
        """
        latents = self.linearisation.outputs(rows)
        totals = [torch.full_like(share, -math.inf, dtype=torch.float64) for share in shares]
        index = labels.view(-1, 1, 1).expand(-1, 1, PAIRS)
        for offsets in self._offsets(rows):
            for i, share in enumerate(shares):
                around = share.sqrt()[:, None, None] * offsets
                for sign in (1.0, -1.0):
                    f = torch.add(latents.unsqueeze(-1), around, alpha=sign)
                    own = f.gather(1, index).squeeze(1) - torch.logsumexp(f, 1)
                    totals[i] = torch.logaddexp(totals[i], own.double().logsumexp(-1))
        return torch.stack(totals) - math.log(2 * REPLICATES * PAIRS)

    @property
    def linearisation(self) -> Linearisation:
        """The network."""
        return self.posterior.linearisation

    def _pairs(self, rows: Rows, share: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        latents = self.linearisation.outputs(rows).unsqueeze(-1)
        for offsets in self._offsets(rows):
            around = offsets if share is None else offsets.mul_(share.sqrt()[:, None, None])
            yield latents + around, latents - around

    def _offsets(self, rows: Rows) -> Iterator[Tensor]:
        for deviations in self._deviations() if self.kept is None else self.kept:
            yield self.linearisation.push(rows, deviations)

    def _deviations(self) -> Iterator[Tensor]:
        for seed in range(REPLICATES):
            yield self.posterior.deviations(PAIRS, seed=seed)


def sampled_parts(rows: Rows, num_latents: int) -> Iterator[tuple[slice, Rows]]:
    """Slices of rows, and so many rows as there are latent values of at a time."""
    for i in slices(num_rows(rows), max(1, _NUMBERS // (num_latents * PAIRS))):
        yield i, take(rows, i)
