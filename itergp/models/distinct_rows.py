"""Training rows that share their latent values, because they are equal and the prior makes nothing else of them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from itergp.likelihoods import Observations
from itergp.models.prior_evaluation import HasPrior, depends_on_mode, is_row_by_row
from itergp.numerics.distinct_rows import DistinctRows
from itergp.operators import OperatorClass, OperatorKind, Prior, own_rows
from itergp.operators.special import has_own_diagonal
from itergp.operators.two_rows import knows_equal_rows
from itergp.solvers import Solution

_ROUNDING = 64.0  # units of rounding by which features of equal rows may differ: products take rows in other orders


class HasData(HasPrior, Protocol):
    """A model as its distinct rows know it."""

    share_equal_rows: bool
    operator_kind: OperatorKind | OperatorClass


@torch.no_grad()
def distinct_rows(model: HasData, prior: Prior, rows: Tensor | None = None) -> DistinctRows | None:
    """Which training rows share their latent values; None where each has its own, or too few are equal to matter.

    Equal rows do where prior means and kernel are functions of rows: not where ``forward`` or the kernel look at rows
    together, at their numbers, or at whether two rows are the same one, as white noise does. Nor do they where derivatives in
    the inputs are wanted, or processes divide the rows.

    Args:
        model: The model.
        prior: At all training inputs.
        rows: Some of these, to look at them alone; None for all.
    """
    inputs = model.held_data.inputs
    if not model.share_equal_rows or prior.tabulated or prior.coupled or any(x.requires_grad for x in inputs):
        return None
    if has_own_diagonal(prior.kernel) or own_rows(model.operator_kind, inputs[0].shape[0], inputs[0].device).sharded:
        return None
    found = DistinctRows.find(inputs if rows is None else [x[rows] for x in inputs])
    # In evaluation mode, a prior whose forward does not take rows one by one is evaluated whole.
    if found is None or (model.training and (depends_on_mode(model) or not is_row_by_row(model, prior))):
        return None
    part = prior if rows is None else prior.take(rows)
    if not (_agree(found, part.mean) and _agree(found, part.features)):
        return None
    return found if knows_equal_rows(part.kernel, part.features, part.num_kernels, found) else None


def _agree(found: DistinctRows, values: Tensor) -> bool:
    largest = float(values.abs().amax()) if values.numel() else 0.0
    return found.agree(values, _ROUNDING * torch.finfo(values.dtype).eps * largest)


def share_latents(
    distinct: DistinctRows | None, prior: Prior, observations: Observations
) -> tuple[Prior, Observations]:
    """Prior and observations of the distinct rows alone.

    Args:
        distinct: Of their rows; None for all of them as they are.
        prior: Of all rows.
        observations: At all rows.
    """
    if distinct is None:
        return prior, observations
    return prior.take(distinct.first), observations.over(distinct)


def carried_over(earlier: Solution | None, distinct: DistinctRows | None, num_rows: int) -> Solution | None:
    """An earlier posterior as a start for the present rows; None if there is none, or it is one of other rows.

    Args:
        earlier: Of the same rows, or of the first of them, whether or not equal ones shared their latent values.
        distinct: Which of them share their latent values now.
        num_rows: How many training rows there are.
    """
    if earlier is None or (earlier.distinct is None and distinct is None) or earlier.rows.sharded:
        return earlier
    size, old = earlier.representer_weights.shape[0], earlier.distinct
    if (num_rows if old is None else old.num_rows) > num_rows or (old is None and size != num_rows):
        return None
    places = _all_rows(earlier) if old is None else old.first
    places = places if distinct is None else distinct.index[places]
    now = num_rows if distinct is None else distinct.num_distinct
    if now == size and torch.equal(places, _all_rows(earlier)):
        return earlier
    return earlier.at_rows(places, now)


def with_more_rows(solution: Solution, count: int) -> Solution:
    """The same function as a start for more rows, at the end: their representer weights are zero.

    Args:
        solution: Of the rows so far; where equal ones share their latent values, it is made one of more rows when it is known
            which of these do.
        count: How many rows are added.
    """
    if solution.distinct is not None:
        return solution
    places = _all_rows(solution)
    return solution.at_rows(places, len(places) + count)


def _all_rows(solution: Solution) -> Tensor:
    weights = solution.representer_weights
    return torch.arange(weights.shape[0], device=weights.device)
