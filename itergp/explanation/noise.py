"""What is left when the function is known, in words."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itergp.diagnostics.findings import number, share
from itergp.explanation.subject import Subject

Array = NDArray[np.float64]

_DEVIATION = 0.8413447460685429  # normal distribution function at one standard deviation
_VARIES = 1.1


def noise(subject: Subject) -> str:
    """A sentence about the observations of rows with equal columns."""
    if subject.known_noise:
        return "as given by alpha"
    rows = subject.sample()
    with torch.no_grad():
        mean = subject.model.latent_mean(subject.known_inputs(rows))
        conditional = subject.model.calculus.predictive(mean, mean.new_zeros(*mean.shape, mean.shape[1]))
        return _WORDS[subject.observes](subject, conditional)


def _of_values(subject: Subject, conditional: torch.distributions.Distribution) -> str:
    low, high = (_array(conditional.quantile(level)) for level in (1.0 - _DEVIATION, _DEVIATION))  # type: ignore[attr-defined]
    half = 0.5 * (high - low) * subject.unit
    few, many = np.quantile(half, [0.1, 0.9])
    if many > _VARIES * few:
        return f"from ±{number(float(few))} to ±{number(float(many))}, by row: two thirds of the values lie within"
    return f"±{number(float(np.median(half)))}: two thirds of the values lie within"


def _of_counts(subject: Subject, conditional: torch.distributions.Distribution) -> str:
    ratio = float(np.median(_array(conditional.variance) / np.maximum(_array(conditional.mean), 1e-12)))
    if ratio < _VARIES:
        return "that of Poisson counts: their variance is their mean"
    return f"the variance of counts is {ratio:.2g} times their mean, where a Poisson count has 1"


def _of_labels(subject: Subject, conditional: torch.distributions.Distribution) -> str:
    probs = _array(conditional.probs)  # type: ignore[attr-defined]
    best = np.maximum(probs, 1.0 - probs) if probs.ndim == 1 else probs.max(1)
    return f"labels of equal rows differ: {share(round(float(1.0 - best.mean()), 4))} of them are not the most probable one"


def _of_times(subject: Subject, conditional: torch.distributions.Distribution) -> str:
    low, high = (_array(conditional.quantile(level)) for level in (0.25, 0.75))  # type: ignore[attr-defined]
    return f"of equal rows, half of the times lie within a factor of {float(np.median(high / low)):.2g}"


def _of_trials(subject: Subject, conditional: torch.distributions.Distribution) -> str:
    return "that of trials with the same probability"


def _array(tensor: Tensor) -> Array:
    found: Array = tensor.double().cpu().numpy()
    return found


_WORDS = {
    "real": _of_values,
    "count": _of_counts,
    "label": _of_labels,
    "level": _of_labels,
    "positive": _of_times,
    "share": _of_trials,
}
