r"""How much of a fitted function each column of the table accounts for.

The importance of a column is its *total effect* (Homma and Saltelli 1996) on the posterior mean m of the latent functions, by
Jansen's formula,

    T_j = E[ sum_c (m_c(x) - m_c(x with column j of another row))^2 ] / 2,

which for independent columns is the variance of m that is left once all other columns are known: what the column does by
itself and together with others. It needs no kernel of a particular kind, only values of m. Encoded columns of one column of
the table, such as one-hot levels, parts of a date and a mark of gaps, move together.

It describes the model, not the world: of two columns that say the same, the model may use either, and they share what both say.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from itergp.explanation.subject import Subject, normalised

Array = NDArray[np.float64]

_PREDICTIONS = 2**15  # latent values looked at, about
_EXCHANGES, _MOST_EXCHANGES = 4, 64  # partners of each row
_FEWEST, _MOST = 32, 1000  # rows


def total_effects(subject: Subject) -> tuple[Array, float]:
    """Total effects of the columns of the table, and the variance of the function.

    Args:
        subject: What is explained.

    Returns:
        ``(D,)`` in the order of the table, zero for columns that were left out, and the variance over the rows, both summed
        over latent functions.
    """
    moving = [view for view in subject.columns if view.indices]
    each = _PREDICTIONS // max(1, len(moving))
    chosen = subject.sample(int(np.clip(each // _EXCHANGES, _FEWEST, _MOST)))
    turns = int(np.clip(each // len(chosen), 1, _MOST_EXCHANGES))
    rows, weights = subject.values[chosen], normalised(subject.weights[chosen])
    own = subject.latent_mean(rows)
    centre = weights @ own
    effects = np.zeros(len(subject.columns))
    order = np.random.default_rng(1).permutation(len(rows))
    for place, view in enumerate(subject.columns):
        if not view.indices:
            continue
        for turn in range(1, turns + 1):
            other = np.empty(len(rows), dtype=np.intp)
            other[order] = np.roll(order, _step(turn, len(rows)))  # every row has another partner, and is one once
            swapped = rows.copy()
            swapped[:, view.indices] = rows[other][:, view.indices]
            moved = ((subject.latent_mean(swapped) - own) ** 2).sum(1)
            effects[place] += 0.5 * float(np.average(moved, weights=weights * weights[other])) / turns
    return effects, float(weights @ ((own - centre) ** 2).sum(1))


def importances(subject: Subject) -> Array:
    """Total effects as shares ``(D,)`` that sum to one; all zero where the function is constant."""
    effects, _ = subject.once("total effects", total_effects)
    total = effects.sum()
    return effects / total if total > 0.0 else np.zeros_like(effects)


def _step(turn: int, size: int) -> int:
    """How far partners are apart in a random order."""
    return 1 + (turn - 1) % max(1, size - 1)
