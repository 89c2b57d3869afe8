"""How good probabilities of outcomes are, and whether a latent variance knows what is unlike the training data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.workloads import CLASSES
from itergp.diagnostics import accuracy, negative_log_likelihood, reliability

NOMINAL = 0.9
LOWER_IS_BETTER = ("nll", "brier", "ece")
LEAST = 1e-12  # probability that counts as none


def scores(probs: Tensor, y: Tensor, kind: str) -> dict[str, Any]:
    """NLL, accuracy, Brier score, expected calibration error, coverage of 90 % regions, and reliability by bins.

    Args:
        probs: Probabilities ``(M, K)``.
        y: Outcomes ``(M,)``.
        kind: Of the outcomes.

    Raises:
        ValueError: If the probabilities are not finite, negative, or do not sum to one.
    """
    probs = probs.double()
    total = probs.sum(-1)
    if not bool(torch.isfinite(probs).all()) or bool((probs < -1e-6).any()) or bool((total - 1.0).abs().max() > 1e-3):
        raise ValueError(
            f"Predictions must be probabilities that sum to one. Got sums from {float(total.min()):.4g} to "
            f"{float(total.max()):.4g}. Check `predict_proba` of the method."
        )
    probs = probs.clamp_min(0.0) / total.unsqueeze(-1)
    bins = reliability(probs, y)
    outcome = torch.nn.functional.one_hot(y, probs.shape[1])
    return {
        "nll": negative_log_likelihood(probs.clamp_min(LEAST), y),
        "accuracy": accuracy(probs, y),
        "brier": float((probs - outcome).square().sum(-1).mean()),
        "ece": bins.expected_calibration_error,
        "coverage": coverage(probs, y, ordered=kind != CLASSES),
        "reliability": {
            name: [round(v, 5) for v in getattr(bins, name).nan_to_num(-1.0).tolist()]
            for name in ("confidence", "accuracy", "counts")
        },
    }


def coverage(probs: Tensor, y: Tensor, *, ordered: bool) -> float:
    """Share of outcomes inside 90 % regions: central intervals of ordered outcomes, else the most probable classes.

    Regions of discrete outcomes are cut at random, so that right probabilities give exactly 0.9 on average.
    """
    at = probs.gather(1, y[:, None])[:, 0]
    before = probs.cumsum(-1).gather(1, y[:, None])[:, 0] - at
    if not ordered:
        before = torch.where(probs > at[:, None], probs, 0.0).sum(-1)
    place = before + at * torch.rand(len(y), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outside = 0.5 * (1.0 - NOMINAL)
    inside = (place > outside) & (place < 1.0 - outside) if ordered else place < NOMINAL
    return float(inside.double().mean())


def entropy(probs: Tensor) -> Tensor:
    """Entropy ``(M,)`` in nats."""
    return torch.special.entr(probs.double().clamp_min(0.0)).sum(-1)


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Probability that a score is larger outside than inside, ties counting half."""
    from sklearn.metrics import roc_auc_score

    values = torch.cat([inside, outside]).double().nan_to_num(0.0).numpy()
    labels = [0] * len(inside) + [1] * len(outside)
    return float(roc_auc_score(labels, values))
