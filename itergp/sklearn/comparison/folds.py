"""Which rows are held out: labels, events and groups are looked after."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold

from itergp.baselines.rows import COUNTS, LABELLED, REGRESSION, SURVIVAL, Rows
from itergp.errors import InputError

Mask = NDArray[np.bool_]


def split(rows: Rows, num_folds: int, seed: int) -> Iterator[tuple[Mask, Mask]]:
    """Masks of training and held-out rows: labels and events in equal shares, or groups together.

    Raises:
        InputError: If there are too few rows or groups.
    """
    most = len(rows) if rows.groups is None else len(np.unique(rows.groups))
    if not 2 <= num_folds <= most:
        raise InputError(
            f"`num_folds` must be 2 to {most}, the number of rows or groups. Got {num_folds}. Choose another."
        )
    strata = rows.y if rows.task in LABELLED else rows.y[:, 1] if rows.task == SURVIVAL else np.zeros(len(rows))
    kind: Any = KFold if rows.task in (REGRESSION, COUNTS) else StratifiedKFold
    cutter = GroupKFold(num_folds) if rows.groups is not None else kind(num_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels in fewer rows than folds, which are said later
        for train, test in cutter.split(np.zeros((len(rows), 1)), strata, rows.groups):
            held_out = np.zeros(len(rows), dtype=bool)
            held_out[test] = True
            known = np.isin(rows.y, rows.y[train]) if rows.task in LABELLED else np.ones(len(rows), dtype=bool)
            mask = np.zeros(len(rows), dtype=bool)
            mask[train] = True
            yield mask, held_out & known


def hold_out(rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """A training part and a held-out part: labels, events and targets in equal shares, or groups together.

    Args:
        rows: N rows.
        share: Of the rows or groups that is held out, at least 0 and below 1.
        seed: Of what is random.

    Returns:
        The rows to learn from, with all labels, and the others.
    """
    rng = np.random.default_rng(seed)
    if rows.groups is not None:
        names, index = np.unique(rows.groups, return_inverse=True)
        chosen = np.zeros(len(names), dtype=bool)
        chosen[rng.permutation(len(names))[: round(share * len(names))]] = True
        chosen = chosen[index]
    else:
        # One row of every block of those sorted by target, ties at random.
        keys = (rows.y[:, 0], rows.y[:, 1]) if rows.task == SURVIVAL else (rows.y,)
        order = np.lexsort((rng.permutation(len(rows)), *keys))
        blocks = np.array_split(order, max(round(share * len(rows)), 1))
        chosen = np.zeros(len(rows), dtype=bool)
        if share * len(rows) >= 0.5:
            chosen[[rng.choice(block) for block in blocks]] = True
    if rows.task in LABELLED:
        for label in np.setdiff1d(rows.y, rows.y[~chosen]):
            chosen[np.flatnonzero(rows.y == label)] = False
    return rows.take(~chosen), rows.take(chosen)
