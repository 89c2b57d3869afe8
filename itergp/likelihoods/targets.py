"""Checks of targets that several likelihoods share; every error says what must hold, what was got and what to do."""

from __future__ import annotations

import torch
from torch import Tensor

from itergp.errors import InputError


def require_integers(targets: Tensor, name: str, expected: str) -> Tensor:
    """Targets as int64, or an error when they are not whole numbers."""
    check_targets(targets, name)
    return whole(targets, name, expected)


def whole(values: Tensor, name: str, expected: str) -> Tensor:
    """Finite values as int64, or an error when they are not whole numbers."""
    if values.is_floating_point():
        rounded = values.round()
        if bool((rounded != values).any()):
            bad = values[rounded != values][0].item()
            raise InputError(f"`train_targets` must be {expected} for {name}. Got the non-integer {bad}. Encode them.")
        values = rounded
    return values.to(torch.int64)


def require_counts(counts: Tensor, name: str) -> None:
    """Counts must be whole numbers, 0 or more.

    Args:
        counts: Targets ``(N,)``.
        name: Of the likelihood, for the message.

    Raises:
        InputError: If they are not.
    """
    counts = whole(counts, name, "counts 0, 1, 2, ...")
    if counts.numel() > 0 and int(counts.min()) < 0:
        raise InputError(
            f"`train_targets` must be counts 0, 1, 2, ... for {name}. Got {int(counts.min())}. "
            "Check the column, or model signed values with another likelihood."
        )


def require_labels(targets: Tensor, name: str, num_labels: int, count_name: str) -> Tensor:
    """Labels ``0..num_labels - 1`` as int64."""
    labels = require_integers(targets, name, f"integers 0..{num_labels - 1}")
    wrong = labels[(labels < 0) | (labels >= num_labels)].unique()
    if wrong.numel() > 0:
        letter = "C" if count_name == "num_classes" else "K"
        shown = sorted(wrong.tolist())[:8]
        raise InputError(
            f"`train_targets` must be integers 0..{letter}-1 for {name}. Got values {shown} with "
            f"{count_name}={num_labels}. Re-encode the labels or pass a larger {count_name}."
        )
    return labels


def require_inside(values: Tensor, inside: Tensor, name: str, expected: str, remedy: str) -> None:
    """All values must satisfy a condition that was evaluated already."""
    if not bool(inside.all()):
        raise InputError(f"`train_targets` must be {expected} for {name}. Got {values[~inside][0].item():g}. {remedy}")


def as_floats(targets: Tensor) -> Tensor:
    """Targets as floating-point numbers, their own dtype if they have one."""
    return targets if targets.is_floating_point() else targets.to(torch.get_default_dtype())


def check_targets(targets: Tensor, name: str) -> None:
    """Targets must be one finite number per row.

    Args:
        targets: Targets ``(N,)``.
        name: Of the likelihood, for the message.

    Raises:
        InputError: If they are not.
    """
    if targets.dim() != 1:
        raise InputError(
            f"`train_targets` must have shape (N,) for {name}. Got {tuple(targets.shape)}. "
            "Pass one target per row, for classes the label and not a one-hot row."
        )
    _check_finite(targets)


def check_outputs(targets: Tensor, num_outputs: int, name: str) -> None:
    """Targets must be one number per row and output, some of them observed.

    Args:
        targets: Targets ``(N, C)``, NaN where nothing was observed.
        num_outputs: C.
        name: Of the likelihood, for the message.

    Raises:
        InputError: If they are not.
    """
    if targets.dim() != 2 or targets.shape[1] != num_outputs:
        raise InputError(
            f"`train_targets` must have shape (N, {num_outputs}) for {name}. Got {tuple(targets.shape)}. Pass one column per "
            "output."
        )
    if targets.is_floating_point() and targets.numel() and bool(targets.isnan().all()):
        raise InputError(
            "At least one target must be observed. Got none: all are missing. Check how targets were read."
        )


def check_columns(targets: Tensor, name: str, second: str) -> None:
    """Targets must be one finite number per row, or two: what was observed, and what belongs to it."""
    if targets.dim() != 1 and (targets.dim() != 2 or targets.shape[1] != 2):
        raise InputError(
            f"`train_targets` must have shape (N,), or (N, 2) with the {second} in the second column, for {name}. Got "
            f"{tuple(targets.shape)}. Stack the two columns with torch.stack([...], -1)."
        )
    _check_finite(targets)


def _check_finite(targets: Tensor) -> None:
    if targets.is_floating_point() and not bool(torch.isfinite(targets).all()):
        count = int((~torch.isfinite(targets)).sum())
        raise InputError(
            f"`train_targets` must be finite. Got {count} NaN or infinite value(s). Drop those rows, "
            "or pass missing_targets=True to the model to keep NaN rows without information."
        )
