"""A batch of models behind one face: independent data sets with hyperparameters of their own, or shared ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

import gpytorch
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from torch import Tensor
from torch.distributions import Distribution

from itergp.errors import InputError
from itergp.likelihoods import as_likelihood
from itergp.models.batch_elements import (
    at,
    batch_shape_of,
    element_likelihood,
    element_tensors,
    indices,
    prior_of_some_rows,
    require_same_prior,
)
from itergp.models.threads import turn
from itergp.models.validation import as_inputs, as_observations
from itergp.posterior.deferred import DeferredLinearOperator
from itergp.solvers import Solution

Options = ParamSpec("Options")
Result = TypeVar("Result")


class Batch:
    """Independent models with one class and one set of parameters, of which each has its share.

    The models of the elements are ordinary ones. They are made anew when anything about the batch, or somebody one of them,
    has changed, and keep their posteriors, whose identity says whether they are still those of the present.

    Args:
        shape: Of the batch.
    """

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape
        self._elements: list[Any] = []
        self._leads: dict[str, torch.Size] = {}
        self._made_for: list[Any] = []

    @classmethod
    def of(cls, shape: torch.Size, operator_kind: Any) -> Batch | None:
        """A batch of that shape, or None if it is empty: a single model.

        Raises:
            InputError: If processes are to divide the rows of a batch.
        """
        if shape and operator_kind == "sharded":
            raise InputError(
                "Processes divide the rows of a single model. Got a batch of models with operator='sharded'. Leave it out, "
                "or give every process other elements."
            )
        return cls(shape) if shape else None

    def elements(self, model: Any) -> list[Any]:
        """The models, row by row.

        Raises:
            InputError: If ``forward`` does not treat elements independently.
        """
        now = [part.content() for part in (model, *self._elements)]
        if not self._elements or now != self._made_for:
            whole = prior_of_some_rows(model.call_forward, model.train_inputs, self.shape)
            pairs = [model.copy_element(index) for index in indices(self.shape)]
            for place, (index, (element, _)) in enumerate(zip(indices(self.shape), pairs, strict=True)):
                alone = partial(prior_of_some_rows, element.call_forward, element.train_inputs, torch.Size())
                require_same_prior(whole, alone, index)
                if self._elements:
                    element.continue_from(self._elements[place])
            self._elements, self._leads = [element for element, _ in pairs], pairs[0][1]
            self._made_for = [part.content() for part in (model, *self._elements)]
        for element in self._elements:
            for own, parameter in zip(element.parameters(), model.parameters(), strict=True):
                own.requires_grad_(parameter.requires_grad)
            if element.training != model.training:
                element.train(model.training)
        return self._elements

    def share(self, model: Any, number: int) -> list[Tensor]:
        """What one element has of the batch's parameters and training inputs; differentiable."""
        index = list(indices(self.shape))[number]
        parameters = [at(value, self._leads[name], index) for name, value in model.named_parameters()]
        return [*parameters, *(at(x, x.shape[:-2], index) for x in model.train_inputs)]

    @property
    def has_posteriors(self) -> bool:
        """Whether any element has one."""
        return any(element.prediction_strategy is not None for element in self._elements)

    def shared(self, model: Any) -> set[str]:
        """Names of the parameters that all elements have in common."""
        self.elements(model)
        return {name for name, lead in self._leads.items() if math.prod(lead) < math.prod(self.shape) or not lead}

    @torch.no_grad()
    def collect(self, model: Any) -> None:
        """Gives the batch the parameters of its elements; what they share becomes the mean over them."""
        values = [list(element.parameters()) for element in self._elements]
        shares = [self.share(model, number) for number in range(len(values))]
        for place, (name, parameter) in enumerate(model.named_parameters()):
            if self._leads[name]:
                for share, own in zip(shares, values, strict=True):
                    share[place].copy_(own[place])
            elif not all(torch.equal(own[place], parameter) for own in values):
                parameter.copy_(torch.stack([own[place] for own in values]).mean(0))

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes its elements anew."""
        return {"shape": self.shape, "_elements": [], "_leads": {}, "_made_for": []}


def either(
    method: Callable[Concatenate[Any, Options], Result],
) -> Callable[Concatenate[Any, Options], Result]:
    """A method of a single model; of a batch, what ``OfBatches`` has under its name, or an error. One thread at a time.

    What it returns is annotated as for a single model.
    """
    name = method.__name__

    @functools.wraps(method)
    def called(self: Any, *args: Options.args, **kwargs: Options.kwargs) -> Any:
        if not self.held_data.inputs:
            refuse_without_data(name)
        with turn():
            if self._batch is None:
                return method(self, *args, **kwargs)
            of_batches = getattr(OfBatches, name, None)
            return refuse(self, name) if of_batches is None else of_batches(self, *args, **kwargs)

    return called


def refuse(model: Any, what: str) -> NoReturn:
    """Says what to do instead.

    Raises:
        InputError: Always.
    """
    raise InputError(
        f"`{what}` is that of a single model. Got a batch of shape {tuple(model.data_batch_shape)}. Use it with the models in "
        "model.batch_elements, which are copies at the present hyperparameters."
    )


def refuse_without_data(what: str) -> NoReturn:
    """Says what to do instead.

    Raises:
        InputError: Always.
    """
    raise InputError(
        f"`{what}` needs training data. Got a model of the prior alone, made with train_inputs=None. Give it data by "
        "model.set_train_data(inputs, targets), or call model.eval() and model(x) for the prior."
    )


class OfBatches:
    """Methods of ``Any`` for batches of models: one after another."""

    @staticmethod
    def condition(model: Any, **options: Any) -> tuple[Solution, ...]:
        """One solution per element."""
        for name in ("on_posterior", "checkpoint"):
            if options.get(name) is not None:
                refuse(model, name)
        return tuple(element.condition(**options) for element in model.batch_elements)

    @staticmethod
    def solution(model: Any) -> tuple[Solution, ...]:
        """One per element."""
        return tuple(element.solution for element in model.batch_elements)

    @staticmethod
    def predict(model: Any, x: Any, **options: Any) -> tuple[Distribution, ...]:
        """One predictive distribution per element."""
        inputs = _inputs(model, x)
        return tuple(
            element.predict(own, **options)
            for element, own in zip(model.batch_elements, _each(model, inputs), strict=True)
        )

    @staticmethod
    def latent_mean(model: Any, x: Any, **options: Any) -> Tensor:
        """``(*b, M, C)``."""
        inputs = _inputs(model, x)
        pairs = zip(model.batch_elements, _each(model, inputs), strict=True)
        means = torch.stack([element.latent_mean(own, **options) for element, own in pairs])
        return means.unflatten(0, model.data_batch_shape)


def _inputs(model: Any, x: Any) -> tuple[Tensor, ...]:
    """New inputs, those that were not tensors in the dtype and on the device of the training inputs."""
    given = x if isinstance(x, tuple) else (x,)
    inputs = as_inputs(x, "inputs", batch=True)
    require_shape(model, inputs)
    return tuple(
        t if torch.is_tensor(raw) else t.to(like)
        for raw, t, like in zip(given, inputs, model.train_inputs, strict=False)
    )


def _each(model: Any, inputs: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """New inputs of every element."""
    return [tuple(at(x, x.shape[:-2], index) for x in inputs) for index in indices(model.data_batch_shape)]


def require_shape(model: Any, inputs: tuple[Tensor, ...]) -> None:
    """New inputs must be one set for each element, or for all.

    Raises:
        InputError: If they are of another batch.
    """
    shape = model.data_batch_shape
    for x in inputs:
        if torch.broadcast_shapes(_or_none(x.shape[:-2], shape), shape) != shape:
            raise InputError(
                f"Inputs must have shape (M, D) or {(*shape, 'M', 'D')}. Got {tuple(x.shape)}. Call model(x), which takes "
                "more batch dimensions, or one of model.batch_elements."
            )


def _or_none(first: torch.Size, second: torch.Size) -> torch.Size:
    """A shape if it can be broadcast with another; otherwise one that cannot be mistaken for it."""
    try:
        torch.broadcast_shapes(first, second)
    except RuntimeError:
        return torch.Size([2, *(1 for _ in second)])
    return first


def check_batch(
    likelihood: gpytorch.likelihoods.Likelihood,
    inputs: tuple[Tensor, ...],
    targets: Tensor,
    sample_weight: Tensor | None,
    *,
    missing_targets: bool,
    nan_targets: bool,
    check_rows: bool,
) -> tuple[Tensor, Tensor | None]:
    """Targets and weights of a batch of data sets, each checked as those of a single model.

    Args:
        likelihood: Of the batch, with a share for every element.
        inputs: ``(*b, N, D)`` or ``(N, D)`` each.
        targets: ``(*b, N)``.
        sample_weight: ``(*b, N)`` or ``(N,)``, or None.
        missing_targets: Whether targets may be missing.
        nan_targets: Whether targets that are NaN are missing.
        check_rows: Whether the likelihood must be one of these rows already.

    Returns:
        Valid targets; weights, or None if all are 1.
    """
    shape = batch_shape_of(inputs, targets)
    if torch.is_tensor(sample_weight):
        rows = inputs[0].shape[-2]
        if sample_weight.shape not in ((rows,), (*shape, rows)):
            raise InputError(
                f"`sample_weight` must have shape {(rows,)} or {(*shape, rows)}. Got {tuple(sample_weight.shape)}. Pass one "
                "weight per row."
            )
        sample_weight = sample_weight.expand(*shape, rows)
    valid, weights = [], []
    for index in indices(shape):
        own = element_tensors((*inputs, targets, sample_weight), shape, index)
        *mine, target, weight = own
        assert target is not None
        found = tuple(x for x in mine if x is not None)
        calculus = as_likelihood(element_likelihood(likelihood, shape, index), found)
        if check_rows:
            calculus.check_rows(found[0].shape[0], target)
        observed = as_observations(
            target, found[0].new_empty(found[0].shape[0]), calculus, weight, missing_targets, nan_targets
        )
        valid.append(observed.targets)
        one = found[0].new_ones(found[0].shape[0])
        weights.append(one if observed.sample_weight is None else observed.sample_weight)
    together = torch.stack(weights).unflatten(0, shape)
    return torch.stack(valid).unflatten(0, shape), None if bool((together == 1).all()) else together


def posterior_at(model: Any, inputs: tuple[Tensor, ...]) -> MultivariateNormal:
    """The latent posterior of every element at its inputs, as one batch; also of one model at a batch of inputs.

    Args:
        model: The model.
        inputs: New inputs ``(*b, M, D)`` each.

    Returns:
        A distribution whose batch shape is that of model and inputs, broadcast.

    Raises:
        InputError: If their batch shapes do not fit.
    """
    own = model.data_batch_shape
    try:
        shape = torch.broadcast_shapes(own, *(x.shape[:-2] for x in inputs))
    except RuntimeError as error:
        got = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise InputError(
            f"Inputs must have a batch shape that can be broadcast with that of the training data, {tuple(own)}. Got {got}. "
            "Pass one set of inputs for each element, or one for all."
        ) from error
    elements = dict(zip(indices(own), model.batch_elements, strict=True))
    parts = []
    for index in indices(shape):
        place = tuple(i if n > 1 else 0 for i, n in zip(index[len(index) - len(own) :], own, strict=True))
        own_inputs = (at(x, x.shape[:-2], index) for x in inputs)
        parts.append(elements[place](*own_inputs, **model.forward_keywords))
    return stacked(parts, shape)


def stacked(parts: list[MultivariateNormal], shape: torch.Size) -> MultivariateNormal:
    """Distributions of several data sets as one with a batch shape; joint covariances are made when they are asked for."""
    mean = torch.stack([part.mean for part in parts]).unflatten(0, shape)
    covariances = [part.lazy_covariance_matrix for part in parts]
    diagonal = torch.stack([covariance.diagonal(dim1=-1, dim2=-2) for covariance in covariances]).unflatten(0, shape)

    def joint() -> Tensor:
        return torch.stack([covariance.to_dense() for covariance in covariances]).unflatten(0, shape)

    covariance = DeferredLinearOperator(diagonal, matrix=joint)
    if not isinstance(parts[0], MultitaskMultivariateNormal):
        return MultivariateNormal(mean, covariance)
    several = MultitaskMultivariateNormal(mean, covariance, interleaved=True)
    several.row_covariance = lambda: torch.stack([part.row_covariance() for part in parts]).unflatten(0, shape)
    return several
