"""Other rows, and more rows, for a model that has a posterior."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

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
from itergp.models.batches import check_batch, refuse_without_data
from itergp.models.distinct_rows import with_more_rows
from itergp.models.protocol import AnyModel, Model
from itergp.models.validation import allows_nan, as_inputs, as_observations, check_target_tensor, check_test_inputs


@dataclass(frozen=True)
class TrainingData:
    """Data of a model, checked.

    Attributes:
        inputs: ``(N, D)`` or ``(*b, N, D)`` each; none of a model of the prior alone.
        targets: ``(N,)`` or ``(*b, N)``, what is missing filled; None without inputs.
        sample_weight: Weights of the targets, or None if all are 1.
        shape: The batch shape b.
        nan_targets: Whether targets that are NaN may be missing.
        unasked: Whether some are NaN and nobody has said yet that such are missing.
    """

    inputs: tuple[Tensor, ...] = ()
    targets: Tensor | None = None
    sample_weight: Tensor | None = None
    shape: tuple[int, ...] = ()
    nan_targets: bool = False
    unasked: bool = False


def check_data(
    likelihood: gpytorch.likelihoods.Likelihood,
    inputs: tuple[Tensor, ...],
    targets: Any,
    sample_weight: Any,
    *,
    missing_targets: bool,
    nan_targets: bool,
    check_rows: bool,
) -> TrainingData:
    """Training data: one set, a batch of such, or none.

    Args:
        likelihood: The model's.
        inputs: As ``as_inputs`` gives them.
        targets: ``(N,)`` or ``(*b, N)``.
        sample_weight: Weights of the targets, or None.
        missing_targets: Whether targets may be missing.
        nan_targets: Whether those that are NaN may be, because they might before.
        check_rows: Whether the likelihood must be one of these rows already; otherwise it must be when it is used.

    Raises:
        InputError: If they are not valid.
    """
    targets = as_tensor(targets, "train_targets") if is_array(targets) else targets
    sample_weight = as_tensor(sample_weight, "sample_weight") if is_array(sample_weight) else sample_weight
    if not inputs:
        _require_none(targets, sample_weight)
        return TrainingData(nan_targets=nan_targets)
    shape = batch_shape_of(inputs, targets)
    known = nan_targets or allows_nan(likelihood)
    # GPyTorch asks its policy when such a target is used, and so do we, for what an ExactGP takes.
    later = isinstance(likelihood, _GaussianLikelihoodBase) and not known and _has_nan(targets)
    missing = {"missing_targets": missing_targets, "nan_targets": known or later}
    if shape:
        if isinstance(likelihood, DirichletClassificationLikelihood):
            as_likelihood(likelihood).check_rows(inputs[0].shape[-2], targets)
        valid, weight = check_batch(likelihood, inputs, targets, sample_weight, check_rows=check_rows, **missing)
    else:
        calculus = as_likelihood(likelihood, inputs)
        if check_rows:
            calculus.check_rows(inputs[0].shape[0], targets)
        observed = as_observations(targets, inputs[0].new_empty(inputs[0].shape[0]), calculus, sample_weight, **missing)
        valid, weight = observed.targets, observed.sample_weight
    return TrainingData(inputs, valid, weight, shape, known, later and not missing_targets)


def _has_nan(targets: Any) -> bool:
    return torch.is_tensor(targets) and bool(targets.isnan().any())


def require_nan_policy(likelihood: gpytorch.likelihoods.Likelihood) -> None:
    """Targets that are NaN must be missing by GPyTorch's ``observation_nan_policy`` when they are used for the first time.

    Raises:
        InputError: If the policy is to ignore that they are.
    """
    if not allows_nan(likelihood):
        raise InputError(
            "`train_targets` must be finite. Got NaN value(s). Drop those rows, or pass missing_targets=True to the model to "
            "keep NaN rows without information, as GPyTorch's observation_nan_policy('mask') does while it is set."
        )


def warn_of_fill(targets: Tensor | None, weight: Tensor | None) -> None:
    """Says that a policy to fill NaN in changes nothing."""
    missing = _has_nan(targets) or (weight is not None and bool((weight == 0).any()))
    if gpytorch.settings.observation_nan_policy.value() == "fill" and missing:
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


def replace_rows(model: Model, inputs: Any, targets: Any, strict: bool, sample_weight: Any) -> None:
    """Replaces the training data; see ``NonConjugateGP.set_train_data``."""
    if model.train_inputs is None:
        model.hold(as_inputs(inputs, "inputs", batch=True), targets, sample_weight)
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
    some_missing = model.may_miss_targets and model.sample_weight is not None
    if targets is None and sample_weight is not None and some_missing:
        raise InputError(
            "`targets` must be given with `sample_weight` when some of them may be missing. Got weights alone, which "
            "do not say which targets are missing. Pass the targets too."
        )
    weight = model.sample_weight if targets is None and sample_weight is None else sample_weight
    model.hold(new_inputs, old, weight, keeps=targets is None, check_rows=False)


def append_rows(model: Model, inputs: Any, targets: Any, sample_weight: Any, *, may_be_batch: bool = False) -> None:
    """Appends rows to the training data; see ``NonConjugateGP.append_train_data``.

    Args:
        model: The model.
        inputs: Inputs of the new rows.
        targets: Their targets.
        sample_weight: Their weights, or None.
        may_be_batch: Whether a single model may become a batch, with other new rows in each.
    """
    if model.train_inputs is None:
        refuse_without_data("append_train_data")
    targets = as_tensor(targets, "targets") if is_array(targets) else targets
    several = torch.is_tensor(targets) and targets.dim() > model.train_targets.dim()
    if model.data_batch_shape or (may_be_batch and several):
        _append_to_batch(model, as_inputs(inputs, "inputs", batch=True), targets, sample_weight)
        return
    new = as_inputs(inputs, "inputs")
    check_test_inputs(new, model.train_inputs)
    check_target_tensor(targets, new[0].new_empty(new[0].shape[0]))
    together = tuple(torch.cat(pair) for pair in zip(model.train_inputs, new, strict=True))
    weight = None
    if model.sample_weight is not None or sample_weight is not None:
        ones = [x.new_ones(x.shape[0]) for x in (model.train_inputs[0], new[0])]
        given = (model.sample_weight, sample_weight)
        parts = [one if w is None else torch.as_tensor(w).to(one) for w, one in zip(given, ones, strict=True)]
        weight = torch.cat(parts)
    targets = torch.cat([model.train_targets, targets])
    earlier = model.last_solution
    model.hold(together, targets, weight, keeps=True)
    if earlier is not None and not earlier.rows.sharded:  # processes divide more rows otherwise
        model.start_from(with_more_rows(earlier, new[0].shape[0]))


def fantasy_model(model: AnyModel, inputs: Any, targets: Any, noise: Tensor | None) -> AnyModel:
    """A copy with more rows; see ``NonConjugateGP.get_fantasy_model``."""
    inputs = tuple(inputs) if isinstance(inputs, list) else inputs
    fixed = isinstance(model.likelihood, FixedNoiseGaussianLikelihood)
    if fixed != (noise is not None):
        raise InputError(
            "`noise` must be given for the new rows of a FixedNoiseGaussianLikelihood, and for no other. Got "
            f"{'none' if noise is None else 'some'} with {type(model.likelihood).__name__}. "
            + ("Pass noise=..., one variance per row." if fixed else "Leave it out.")
        )
    if model.train_inputs is None:
        refuse_without_data("get_fantasy_model")
    # The data may have derivatives, which no copy has.
    longer = copy.deepcopy(model, {id(t): t for t in (*model.train_inputs, model.train_targets) if t.requires_grad})
    longer.continue_from(model)  # with the search space, which a copy leaves behind
    if noise is not None:
        longer.likelihood = model.likelihood.get_fantasy_likelihood(noise=noise)
    append_rows(longer, inputs, targets, None, may_be_batch=True)
    return longer


def _append_to_batch(model: Model, inputs: tuple[Tensor, ...], targets: Tensor, sample_weight: Any) -> None:
    """Adds rows to every data set of a batch, or makes of a single model a batch with other rows each."""
    check_test_inputs(inputs, model.train_inputs)
    if not torch.is_tensor(targets) or targets.device != inputs[0].device:
        check_target_tensor(targets, inputs[0].new_empty(inputs[0].shape[:-1]))
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
    model.hold(rows, below(known[-1], targets, dims), weight, keeps=True)
