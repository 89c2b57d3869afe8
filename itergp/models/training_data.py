"""Other rows, and more rows, for a model that has a posterior."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from torch import Tensor

from itergp.errors import InputError
from itergp.models.arrays import as_tensor, is_array
from itergp.models.validation import allows_nan, as_inputs, as_observations, check_target_tensor, check_test_inputs
from itergp.solvers import Solution
from itergp.solvers.subspace.support_space import SupportSpace

if TYPE_CHECKING:
    from itergp.models.nonconjugate_gp import NonConjugateGP


def replace_rows(model: NonConjugateGP, inputs: Any, targets: Any, strict: bool, sample_weight: Any) -> None:
    """Replaces the training data; see ``NonConjugateGP.set_train_data``."""
    new_inputs = model.train_inputs if inputs is None else as_inputs(inputs, "inputs")
    targets = as_tensor(targets, "targets") if is_array(targets) else targets
    if strict and inputs is not None:
        same = [
            (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
            for a, b in zip(new_inputs, model.train_inputs, strict=False)
        ]
        if len(new_inputs) != len(model.train_inputs) or not all(same):
            raise InputError(
                f"New inputs must have the shape, dtype and device of the old. Got {tuple(new_inputs[0].shape)} for "
                f"{tuple(model.train_inputs[0].shape)}. Pass strict=False to allow it."
            )
    old = model.train_targets if targets is None else targets
    if strict and targets is not None and targets.shape != model.train_targets.shape:
        raise InputError(
            f"New targets must have the shape of the old. Got {tuple(targets.shape)} for "
            f"{tuple(model.train_targets.shape)}. Pass strict=False to allow it."
        )
    some_missing = (model.missing_targets or model._nan_targets) and model.sample_weight is not None
    if targets is None and sample_weight is not None and some_missing:
        raise InputError(
            "`targets` must be given with `sample_weight` when some of them may be missing. Got weights alone, which "
            "do not say which targets are missing. Pass the targets too."
        )
    weight = model.sample_weight if targets is None and sample_weight is None else sample_weight
    nan_targets = model._nan_targets or allows_nan(model._calculus)
    observations = as_observations(old, new_inputs, model._calculus, weight, model.missing_targets, nan_targets)
    model._nan_targets = nan_targets
    model._restore(new_inputs, observations.targets, observations.sample_weight, None)


def append_rows(model: NonConjugateGP, inputs: Any, targets: Any, sample_weight: Any) -> None:
    """Appends rows to the training data; see ``NonConjugateGP.append_train_data``."""
    targets = as_tensor(targets, "targets") if is_array(targets) else targets
    new = as_inputs(inputs, "inputs")
    check_test_inputs(new, model.train_inputs)
    check_target_tensor(targets, new)
    together = tuple(torch.cat(pair) for pair in zip(model.train_inputs, new, strict=True))
    weight = None
    if model.sample_weight is not None or sample_weight is not None:
        ones = [x.new_ones(x.shape[0]) for x in (model.train_inputs[0], new[0])]
        given = (model.sample_weight, sample_weight)
        parts = [one if w is None else torch.as_tensor(w).to(one) for w, one in zip(given, ones, strict=True)]
        weight = torch.cat(parts)
    nan_targets = model._nan_targets or allows_nan(model._calculus)
    targets = torch.cat([model.train_targets, targets])
    observations = as_observations(targets, together, model._calculus, weight, model.missing_targets, nan_targets)
    model._nan_targets = nan_targets
    earlier = model._solution
    model._restore(together, observations.targets, observations.sample_weight, None)
    if earlier is not None and not earlier.rows.sharded:  # processes divide more rows otherwise
        model._start_from(_with_rows(earlier, new[0].shape[0]))


def fantasy_model(model: NonConjugateGP, inputs: Any, targets: Any, noise: Tensor | None) -> NonConjugateGP:
    """A copy with more rows; see ``NonConjugateGP.get_fantasy_model``."""
    inputs = tuple(inputs) if isinstance(inputs, list) else inputs
    if torch.is_tensor(targets) and targets.dim() > model.train_targets.dim():
        raise InputError(
            f"`targets` must be one set of new rows, shape (M,). Got a batch, {tuple(targets.shape)}. Use "
            "itergp.botorch.BotorchModel(model).condition_on_observations(X, Y), which takes batches."
        )
    fixed = isinstance(model.likelihood, FixedNoiseGaussianLikelihood)
    if fixed != (noise is not None):
        raise InputError(
            "`noise` must be given for the new rows of a FixedNoiseGaussianLikelihood, and for no other. Got "
            f"{'none' if noise is None else 'some'} with {type(model.likelihood).__name__}. "
            + ("Pass noise=..., one variance per row." if fixed else "Leave it out.")
        )
    solution = model._solution
    longer = copy.deepcopy(model)
    longer._solution = solution  # with the search space, which a copy leaves behind
    if noise is not None:
        longer.likelihood = model.likelihood.get_fantasy_likelihood(noise=noise)
    longer.append_train_data(inputs, targets)
    return longer


def _with_rows(solution: Solution, count: int) -> Solution:
    """The same function as a start for more rows: their representer weights are zero."""

    def pad(tensor: Tensor, dim: int = 0) -> Tensor:
        shape = list(tensor.shape)
        shape[dim] = count
        return torch.cat([tensor, tensor.new_zeros(shape)], dim)

    space, actions = solution.space, solution.precision.actions
    if solution.support is None:  # those of a support are kept by row number
        actions = pad(actions)
    # Products are for the old rows; the solver renews them for another operator.
    if space is not None and not isinstance(space, SupportSpace):
        space = replace(space, directions=pad(space.directions, 1), products=pad(space.products, 1))
    return replace(
        solution,
        representer_weights=pad(solution.representer_weights),
        latent_values=pad(solution.latent_values),
        latent_covariance=pad(solution.latent_covariance),
        precision=replace(solution.precision, actions=actions),
        certificate=None,
        space=space,
        operator=None,
        curvature=None,
        actions=None,
        local=None,
    )
