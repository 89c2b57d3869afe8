"""The prior of a model at its training inputs and at new ones, whatever its ``forward`` does with rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

import torch
from gpytorch.kernels import InducingPointKernel
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from itergp.likelihoods import Likelihood
from itergp.models.held_tensors import HeldTensors
from itergp.models.prior_shapes import of_values
from itergp.numerics.sampling import evenly_spaced
from itergp.operators import Prior
from itergp.operators.matrix_products import require_true_products
from itergp.operators.special import has_moving_grid, patient_grids, standing_grids

_PROBE_ROWS = 7
_SAME = 1e-3  # relative to the largest value, in float32; its square in float64
_WITH_MODES = (InducingPointKernel, _DropoutNd, _NormBase)


class HasPrior(Protocol):
    """A model as its prior knows it."""

    forward: Any
    forward_keywords: dict[str, Any]
    held_data: HeldTensors
    training: bool

    @property
    def calculus(self) -> Likelihood:
        """The likelihood at the training rows."""

    def modules(self) -> Iterator[torch.nn.Module]:
        """All parts."""


def prior_at_training_inputs(model: HasPrior) -> Prior:
    """The prior at the training inputs; evaluated whole where ``forward`` makes of a row what depends on the others."""
    prior = _evaluate(model, model.held_data.inputs)
    if model.training or prior.tabulated or is_row_by_row(model, prior):
        return prior
    return prior.whole()


def prior_at(model: HasPrior, inputs: tuple[Tensor, ...], *, together: bool) -> Prior:
    """The prior at new inputs.

    Args:
        model: The model.
        inputs: New inputs, M rows each.
        together: Whether ``forward`` must see them after the training inputs, as GPyTorch's ``ExactGP`` calls it.
    """
    if not together:
        return _evaluate(model, inputs, fit=False)
    return _evaluate(model, after_training_inputs(model, inputs)).whole(first=model.held_data.inputs[0].shape[-2])


def after_training_inputs(model: HasPrior, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Training inputs, and new ones below them."""
    return tuple(torch.cat(pair, dim=-2) for pair in zip(model.held_data.inputs, inputs, strict=True))


@torch.no_grad()
def fit_grids(model: HasPrior, inputs: tuple[Tensor, ...]) -> None:
    """Lets grids without bounds (KISS-GP) reach to new inputs; the posterior on a new grid is found on demand."""
    if not model.training and has_moving_grid(model):
        _evaluate(model, after_training_inputs(model, inputs))


def depends_on_mode(model: HasPrior) -> bool:
    """Whether the prior in training mode is another than in evaluation mode."""
    return any(isinstance(module, _WITH_MODES) for module in model.modules())


def _evaluate(model: HasPrior, inputs: tuple[Tensor, ...], *, fit: bool = True) -> Prior:
    for module in model.modules():
        if isinstance(module, InducingPointKernel) and module.training != model.training:
            module.train(model.training)  # GPyTorch's copies of it are in training mode
    forward = partial(model.forward, **model.forward_keywords) if model.forward_keywords else model.forward
    latents = model.calculus.num_latents
    with patient_grids(model):
        prior = Prior.from_forward(
            of_values(forward, model), inputs, latents, fit=fit, renew_losses=False
        )  # those belong to an objective
    if prior.tabulated:
        with standing_grids(model):
            require_true_products(prior.covariance, of_values(forward, model), inputs, model.modules())
    return prior


@torch.no_grad()
def is_row_by_row(model: HasPrior, prior: Prior) -> bool:
    """Whether ``forward`` makes the same of some training rows by themselves as among all of them."""
    size = prior.mean.shape[0]
    rows = evenly_spaced(size, _PROBE_ROWS, prior.mean.device)
    if rows.numel() == size:
        rows = rows[: max(1, size - 1)]
    try:
        alone = _evaluate(model, tuple(x[rows] for x in model.held_data.inputs), fit=False)
    except (RuntimeError, ValueError, IndexError):  # of the model's author, who expects all rows
        return False
    if alone.tabulated:
        return False
    pairs = (alone.mean, prior.mean[rows]), (alone.features, prior.features[..., rows, :])
    return all(_close(first, second.detach()) for first, second in pairs)


def _close(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    if not bool(second.isfinite().all()):  # which is refused as soon as it is known what to call it
        return torch.equal(first.isfinite(), second.isfinite())
    scale = float(second.abs().max()) if second.numel() else 0.0
    tolerance = (_SAME if second.dtype == torch.float32 else _SAME**2) * scale
    return torch.allclose(first, second, rtol=0.0, atol=tolerance)
