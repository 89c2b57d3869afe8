"""What an average of latent functions means for observations: values, rates, times, probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from itergp.likelihoods import Likelihood
from itergp.numerics.cholesky import diagonal_lifts, tolerant_cholesky

Array = NDArray[np.float64]

LEVEL = 0.9  # of the bands
_DRAWS = 400  # half of them mirrored
_LIFTS = (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4)  # of the largest variance


@dataclass(frozen=True)
class Average:
    """An average over rows, K numbers for K outputs.

    Attributes:
        estimate: Its posterior mean, or median where that is the mean of a logarithm ``(K,)``.
        low: Lower end of the band ``(K,)``.
        high: Upper end ``(K,)``.
    """

    estimate: Array
    low: Array
    high: Array


class Response(Protocol):
    """How latent functions become what is shown.

    Attributes:
        label: What is shown, for an axis.
        outputs: Names of the K outputs; one without a name for a single one.
    """

    @property
    def label(self) -> str:
        """What is shown, for an axis."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""

    def average(self, mean: Tensor, covariance: Tensor, weights: Tensor) -> Average:
        """The average over rows with a band.

        Args:
            mean: Latent means ``(n, C)``.
            covariance: Their joint covariance ``(n C, n C)``, latent functions innermost.
            weights: Of the rows ``(n,)``, which sum to one.
        """


@dataclass(frozen=True)
class MonotoneResponse:
    """An increasing function of the average of the first latent function, whose band is exact.

    Attributes:
        label: What is shown.
        restore: The function, of an array.
    """

    label: str
    restore: Callable[[Array], Array]
    outputs: tuple[str, ...] = ("",)

    def average(self, mean: Tensor, covariance: Tensor, weights: Tensor) -> Average:
        """See ``Response``."""
        latents = mean.shape[1]
        joint = covariance[::latents, ::latents].double()
        centre = float(weights @ mean[:, 0].double())
        spread = float((weights @ joint @ weights).clamp_min(0.0).sqrt()) * float(ndtri(0.5 + 0.5 * LEVEL))
        low, middle, high = (self.restore(np.array([centre + side * spread])) for side in (-1.0, 0.0, 1.0))
        return Average(middle, low, high)


@dataclass(frozen=True)
class ExpectedResponse:
    """Expected observations, or probabilities of labels, which are no linear function: bands are those of draws.

    Attributes:
        label: What is shown.
        outputs: Names of the outputs.
        likelihood: Whose conditional distribution says what is expected.
        read: What is taken from a distribution ``(..., K)``.
    """

    label: str
    outputs: tuple[str, ...]
    likelihood: Likelihood
    read: Callable[[Any], Tensor]

    def average(self, mean: Tensor, covariance: Tensor, weights: Tensor) -> Average:
        """See ``Response``; the estimate has no noise of draws."""
        size, latents = mean.shape
        blocks = covariance.view(size, latents, size, latents)
        rows = torch.arange(size, device=mean.device)
        predictive = self.likelihood.predictive(mean, blocks[rows, :, rows])
        estimate = weights.to(mean) @ self.read(predictive)
        drawn = mean.double() + draw(covariance, _DRAWS).view(_DRAWS, size, latents)
        averages = np.einsum("snk,n->sk", self._conditional(drawn).cpu().numpy(), weights.cpu().numpy())
        low, high = np.quantile(averages, [0.5 - 0.5 * LEVEL, 0.5 + 0.5 * LEVEL], axis=0)
        centre = estimate.double().cpu().numpy()
        return Average(centre, np.minimum(low, centre), np.maximum(high, centre))  # tiny ones are beyond most draws

    def _conditional(self, f: Tensor) -> Tensor:
        """What is expected at latent values ``(..., n, C)``: ``(..., n, K)``."""
        return self.read(self.likelihood(f.squeeze(-1) if f.shape[-1] == 1 else f))


def draw(covariance: Tensor, count: int) -> Tensor:
    """Draws ``(count, n)`` of mean zero, half of them mirrored: the same at every call, so that curves have no jitter.

    Args:
        covariance: ``(n, n)``, which rounding may have made indefinite.
        count: How many, an even number.
    """
    matrix = covariance.double()
    matrix = 0.5 * (matrix + matrix.mT)
    root = tolerant_cholesky(diagonal_lifts(matrix, matrix.diagonal().max().clamp_min(1e-300), _LIFTS))[1]
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(count // 2, len(matrix), generator=generator, dtype=torch.float64).to(matrix.device)
    return torch.cat([half, -half]) @ root.mT


def label_probabilities(distribution: Any) -> Tensor:
    """Probabilities ``(..., K)``, of two classes that of the second alone."""
    probs: Tensor = distribution.probs
    return probs


def second_probability(distribution: Any) -> Tensor:
    """Probability of the second of two classes ``(..., 1)``."""
    return distribution.probs.unsqueeze(-1)


def expected_value(distribution: Any) -> Tensor:
    """Mean ``(..., 1)``."""
    return distribution.mean.unsqueeze(-1)
