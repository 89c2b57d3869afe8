"""Other rows, and more rows, for a model that has a posterior."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gpytorch
import torch
from gpytorch.likelihoods import (
    DirichletClassificationLikelihood,
    FixedNoiseGaussianLikelihood,
    _GaussianLikelihoodBase,
)
from torch import Tensor

from itergp.errors import InputError
from itergp.likelihoods import as_likelihood
from itergp.models.arrays import as_tensor, is_array
from itergp.models.batch_elements import batch_shape_of
from itergp.models.batches import Batch, hold_batch, refuse_without_data
from itergp.models.validation import allows_nan, as_inputs, as_observations, check_target_tensor, check_test_inputs
from itergp.solvers import Solution
from itergp.solvers.support_space import SupportSpace

if TYPE_CHECKING:
    from itergp.models.nonconjugate_gp import NonConjugateGP


def hold(
    model: NonConjugateGP,
    inputs: tuple[Tensor, ...],
    targets: Any,
    sample_weight: Any,
    *,
    keep_nan: bool = False,
    check_rows: bool = True,
) -> None:
    """Gives a model its training data, checked: one set, a batch of such, or none.

    Args:
        model: The model, which is then one model, a batch, or one of the prior alone; its posterior is forgotten.
        inputs: ``(N, D)`` or ``(*b, N, D)`` each; none for a model without data.
        targets: ``(N,)`` or ``(*b, N)``.
        sample_weight: Weights of the targets, or None.
        keep_nan: Whether NaN may be missing because it was before.
        check_rows: Whether the likelihood must be one of these rows already; otherwise it must be when it is used.

    Raises:
        InputError: If they are not valid; the model is then unchanged.
    """
    targets = as_tensor(targets, "train_targets") if is_array(targets) else targets
    sample_weight = as_tensor(sample_weight, "sample_weight") if is_array(sample_weight) else sample_weight
    if not inputs:
        _require_none(targets, sample_weight)
        model._batch, model._nan_targets, model._nan_unasked = None, keep_nan, False
        model._restore((), None, None, None)
        return
    shape = batch_shape_of(inputs, targets)
    known = keep_nan or allows_nan(model.likelihood)
    # GPyTorch asks its policy when such a target is used, and so do we, for what an ExactGP takes.
    later = isinstance(model.likelihood, _GaussianLikelihoodBase) and not known and _has_nan(targets)
    if not shape:
        calculus = as_likelihood(model.likelihood, inputs)
        if check_rows:
            calculus.check_rows(inputs[0].shape[0], targets)
        observed = as_observations(targets, inputs, calculus, sample_weight, model.missing_targets, known or later)
        valid, weight = observed.targets, observed.sample_weight
    else:
        _require_plain(model)
        if isinstance(model.likelihood, DirichletClassificationLikelihood):
            as_likelihood(model.likelihood).check_rows(inputs[0].shape[0], targets)
        valid, weight = hold_batch(
            model, inputs, targets, sample_weight, nan_targets=known or later, check_rows=check_rows
        )
    model._batch, model._nan_targets = Batch(shape) if shape else None, known
    model._nan_unasked = later and not model.missing_targets
    model._restore(inputs, valid, weight, None)


def _has_nan(targets: Any) -> bool:
    return torch.is_tensor(targets) and bool(targets.isnan().any())


def require_nan_policy(model: NonConjugateGP) -> None:
    """Targets that are NaN must be missing by GPyTorch's ``observation_nan_policy`` when they are used for the first time.

    Raises:
        InputError: If the policy is to ignore that they are.
    """
    if not model._nan_unasked:
        return
    if not allows_nan(model.likelihood):
        raise InputError(
            "`train_targets` must be finite. Got NaN value(s). Drop those rows, or pass missing_targets=True to the model to "
            "keep NaN rows without information, as GPyTorch's observation_nan_policy('mask') does while it is set."
        )
    model._nan_unasked, model._nan_targets = False, True


def warn_of_fill(model: NonConjugateGP) -> None:
    """Says that a policy to fill NaN in changes nothing."""
    weight = model._held_data.look()[-1]
    if gpytorch.settings.observation_nan_policy.value() == "fill" and weight is not None and bool((weight == 0).any()):
        warnings.warn(
            "observation_nan_policy('fill') fills nothing in here: missing targets say nothing, as with 'mask', and the "
            "posterior is the same.",
            RuntimeWarning,
            stacklevel=3,
        )


def _require_none(targets: Any, sample_weight: Any) -> None:
    if targets is not None or sample_weight is not None:
        raise InputError(
            "`train_targets` and weights must come with `train_inputs`. Got them alone. Pass inputs too, or neither for "
            "a model of the prior."
        )


def _require_plain(model: NonConjugateGP) -> None:
    if model.operator_kind == "sharded":
        raise InputError(
            "Processes divide the rows of a single model. Got a batch of models with operator='sharded'. Leave it out, or "
            "give every process other elements."
        )


def load_samples(model: NonConjugateGP, count: int) -> None:
    """Makes of a model a batch of as many as there are samples of its hyperparameters, all with the same data."""
    if not model._held_inputs:
        refuse_without_data("local_load_samples")
    _require_plain(model)
    *inputs, targets, weight = (None if t is None else t.expand(count, *t.shape) for t in model._held_data.look())
    model._batch = Batch(torch.Size([count, *model.data_batch_shape]))
    model._restore(tuple(x for x in inputs if x is not None), targets, weight, None)


def replace_rows(model: NonConjugateGP, inputs: Any, targets: Any, strict: bool, sample_weight: Any) -> None:
    """Replaces the training data; see ``NonConjugateGP.set_train_data``."""
    if not model._held_inputs:
        hold(model, as_inputs(inputs, "inputs", batch=True), targets, sample_weight)
        return
    new_inputs = model.train_inputs if inputs is None else as_inputs(inputs, "inputs", batch=True)
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
    hold(model, new_inputs, old, weight, keep_nan=model._nan_targets or model._nan_unasked, check_rows=False)


def append_rows(
    model: NonConjugateGP, inputs: Any, targets: Any, sample_weight: Any, *, may_be_batch: bool = False
) -> None:
    """Appends rows to the training data; see ``NonConjugateGP.append_train_data``.

    Args:
        model: The model.
        inputs: Inputs of the new rows.
        targets: Their targets.
        sample_weight: Their weights, or None.
        may_be_batch: Whether a single model may become a batch, with other new rows in each.
    """
    if not model._held_inputs:
        refuse_without_data("append_train_data")
    targets = as_tensor(targets, "targets") if is_array(targets) else targets
    several = torch.is_tensor(targets) and targets.dim() > model.train_targets.dim()
    if model.data_batch_shape or (may_be_batch and several):
        _append_to_batch(model, as_inputs(inputs, "inputs", batch=True), targets, sample_weight)
        return
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
    targets = torch.cat([model.train_targets, targets])
    earlier = model._solution
    hold(model, together, targets, weight, keep_nan=model._nan_targets)
    if earlier is not None and not earlier.rows.sharded:  # processes divide more rows otherwise
        model._start_from(_with_rows(earlier, new[0].shape[0]))


def fantasy_model(model: NonConjugateGP, inputs: Any, targets: Any, noise: Tensor | None) -> NonConjugateGP:
    """A copy with more rows; see ``NonConjugateGP.get_fantasy_model``."""
    inputs = tuple(inputs) if isinstance(inputs, list) else inputs
    fixed = isinstance(model.likelihood, FixedNoiseGaussianLikelihood)
    if fixed != (noise is not None):
        raise InputError(
            "`noise` must be given for the new rows of a FixedNoiseGaussianLikelihood, and for no other. Got "
            f"{'none' if noise is None else 'some'} with {type(model.likelihood).__name__}. "
            + ("Pass noise=..., one variance per row." if fixed else "Leave it out.")
        )
    if not model._held_inputs:
        refuse_without_data("get_fantasy_model")
    solution = model._solution
    # The data may have derivatives, which no copy has.
    longer = copy.deepcopy(model, {id(t): t for t in model._held_data.look() if t is not None and t.requires_grad})
    longer._solution = solution  # with the search space, which a copy leaves behind
    if noise is not None:
        longer.likelihood = model.likelihood.get_fantasy_likelihood(noise=noise)
    append_rows(longer, inputs, targets, None, may_be_batch=True)
    return longer


def _append_to_batch(model: NonConjugateGP, inputs: tuple[Tensor, ...], targets: Tensor, sample_weight: Any) -> None:
    """Adds rows to every data set of a batch, or makes of a single model a batch with other rows each."""
    check_test_inputs(inputs, model.train_inputs)
    if not torch.is_tensor(targets) or targets.device != inputs[0].device:
        check_target_tensor(targets, inputs)
    known = (*model.train_inputs, model.train_targets)
    dims = model.train_targets.dim() - len(model.data_batch_shape)  # of one data set's targets
    shape = torch.broadcast_shapes(
        model.data_batch_shape, targets.shape[: targets.dim() - dims], *(x.shape[:-2] for x in inputs)
    )

    def below(first: Tensor, second: Tensor, event: int) -> Tensor:
        both = [t.expand(*shape, *t.shape[t.dim() - event :]) for t in (first, second.to(first.dtype))]
        return torch.cat(both, dim=len(shape))

    shared = all(x.dim() == 2 for x in (*model.train_inputs, *inputs))
    rows = tuple(
        torch.cat([x, new]) if shared else below(x, new, 2) for x, new in zip(model.train_inputs, inputs, strict=True)
    )
    weight = None
    if model.sample_weight is not None or sample_weight is not None:
        ones = [x.new_ones(x.shape[-2]) for x in (model.train_inputs[0], inputs[0])]
        given = [
            one if w is None else w.to(one) for w, one in zip((model.sample_weight, sample_weight), ones, strict=True)
        ]
        weight = below(given[0], given[1], 1)
    hold(model, rows, below(known[-1], targets, dims), weight, keep_nan=model._nan_targets)


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
