"""How good predicted class probabilities are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def class_probabilities(probs: Tensor) -> Tensor:
    """Probabilities ``(M, C)`` from those, or from the probabilities ``(M,)`` of the second of two classes."""
    return torch.stack([1.0 - probs, probs], -1) if probs.dim() == 1 else probs


def negative_log_likelihood(probs: Tensor, targets: Tensor) -> float:
    """Mean of ``-log p(y)`` in nats.

    Args:
        probs: Class probabilities ``(M, C)``.
        targets: Labels ``(M,)``.

    >>> negative_log_likelihood(torch.tensor([[0.5, 0.5]]), torch.tensor([1]))
    0.6931471824645996
    """
    chosen = probs.gather(1, targets[:, None].long())
    return float(-chosen.clamp_min(torch.finfo(probs.dtype).tiny).log().mean())


def accuracy(probs: Tensor, targets: Tensor) -> float:
    """Share of rows whose most probable class is the label.

    Args:
        probs: Class probabilities ``(M, C)``.
        targets: Labels ``(M,)``.
    """
    return float((probs.argmax(1) == targets).float().mean())


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, by bins of the most probable class's probability.

    Attributes:
        confidence: Mean probability in each bin ``(bins,)``; NaN where a bin is empty.
        accuracy: Share of correct rows in each bin ``(bins,)``.
        counts: Rows in each bin ``(bins,)``.
    """

    confidence: Tensor
    accuracy: Tensor
    counts: Tensor

    @property
    def expected_calibration_error(self) -> float:
        """Mean absolute difference of confidence and accuracy, weighted by rows (Naeini et al. 2015)."""
        gap = (self.confidence - self.accuracy).abs().nan_to_num(0.0)
        return float((gap * self.counts).sum() / self.counts.sum())


def reliability(probs: Tensor, targets: Tensor, num_bins: int = 10) -> Reliability:
    """Confidence and accuracy in bins of the confidence, of equal width.

    Args:
        probs: Class probabilities ``(M, C)``.
        targets: Labels ``(M,)``.
        num_bins: Number of bins.
    """
    confidence, predicted = probs.double().max(1)
    correct = (predicted == targets).double()
    index = (confidence * num_bins).long().clamp_max(num_bins - 1)
    zeros = confidence.new_zeros(num_bins)
    counts = zeros.index_add(0, index, torch.ones_like(confidence))
    return Reliability(
        confidence=zeros.index_add(0, index, confidence) / counts,
        accuracy=zeros.index_add(0, index, correct) / counts,
        counts=counts,
    )


def expected_calibration_error(probs: Tensor, targets: Tensor, num_bins: int = 10) -> float:
    """Mean absolute difference of confidence and accuracy over bins, weighted by rows (Naeini et al. 2015).

    Args:
        probs: Class probabilities ``(M, C)``.
        targets: Labels ``(M,)``.
        num_bins: Number of bins.
    """
    return reliability(probs, targets, num_bins).expected_calibration_error
