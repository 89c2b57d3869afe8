"""One element of a batch of models: its share of the parameters, of the data, and of the prior."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.likelihoods.noise_models import FixedGaussianNoise, Noise
from gpytorch.means import ConstantMean, LinearMean, Mean
from torch import Tensor

from itergp.errors import InputError
from itergp.numerics.sampling import evenly_spaced

Index = tuple[int, ...]

_PROBE_ROWS = 7
_SAME = 1e-3  # relative to the largest value, in float32; its square in float64
# Modules whose parameters have a batch shape in front of one dimension, where a library says so.
_LIBRARIES = ("gpytorch", "itergp")
_ONE_DIMENSION = (gpytorch.likelihoods.Likelihood, Noise)


def indices(shape: torch.Size) -> Iterator[Index]:
    """Indices of a batch's elements, row by row."""
    return itertools.product(*map(range, shape))


def batch_shape_of(inputs: tuple[Tensor, ...], targets: Any) -> torch.Size:
    """The shape of a batch of data sets: that of the inputs, or of the targets where one set of inputs serves all.

    Args:
        inputs: ``(*b, N, D)`` each, or ``(N, D)``.
        targets: ``(*b, N)`` or ``(*b, N, columns)``.

    Raises:
        InputError: If inputs have a batch shape and targets have another.
    """
    rows = inputs[0].shape[-2]
    try:
        shape = torch.broadcast_shapes(*(x.shape[:-2] for x in inputs))
    except RuntimeError as error:
        got = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise InputError(f"Inputs must have one batch shape. Got {got}. Select the same elements of all.") from error
    if not torch.is_tensor(targets):
        return shape
    if 0 in targets.shape[:-1]:
        raise InputError(
            f"A batch must have at least one data set. Got targets {tuple(targets.shape)}. Check the selection."
        )
    if shape:
        if targets.shape[: len(shape) + 1] != (*shape, rows):
            raise InputError(
                f"`train_inputs` and `train_targets` must be as many data sets: targets of shape {(*shape, rows)} for inputs "
                f"{tuple(inputs[0].shape)}. Got {tuple(targets.shape)}. Expand them, or pass inputs of shape (N, D) for a "
                "single model."
            )
        return shape
    if targets.dim() < 2 or targets.shape[0] == rows:
        return shape
    if targets.shape[-1] == rows:
        return targets.shape[:-1]
    return targets.shape[:-2] if targets.shape[-2] == rows else shape


def at(tensor: Tensor, lead: torch.Size, index: Index) -> Tensor:
    """The share of one element in a tensor whose leading dimensions are a batch's, aligned at the right.

    Args:
        tensor: The tensor.
        lead: Its leading dimensions; empty if all elements share it. Those before the batch's stay, as of one kernel per class.
        index: The element.
    """
    if not lead:
        return tensor
    own, place = lead[-len(index) :], index[-len(lead) :]
    places = tuple(i if n > 1 else 0 for i, n in zip(place, own, strict=True))
    return tensor[(slice(None),) * (len(lead) - len(own)) + places]


def leading_dimensions(module: torch.nn.Module, name: str, tensor: Tensor) -> torch.Size:
    """Which dimensions of a module's parameter or buffer number the elements of a batch.

    Args:
        module: The module.
        name: Of the tensor in it.
        tensor: The tensor.
    """
    shape = tensor.shape
    if name == "active_dims" or isinstance(module, gpytorch.likelihoods.SoftmaxLikelihood):
        return torch.Size()
    if isinstance(module, ConstantMean):
        return shape
    if isinstance(module, LinearMean):
        return shape[:-2] if name == "weights" else shape[:-1]
    if isinstance(module, _ONE_DIMENSION) and type(module).__module__.partition(".")[0] in _LIBRARIES:
        return shape[:-1]
    if isinstance(module, (Kernel, Mean)):
        own = torch.Size(getattr(module, "batch_shape", ()))
        return own if shape[: len(own)] == own else torch.Size()
    return torch.Size()


def select_element(module: torch.nn.Module, shape: torch.Size, index: Index) -> dict[str, torch.Size]:
    """Leaves in a module, and in all of its parts, only what belongs to one element of a batch.

    Args:
        module: The module, which is changed: a copy.
        shape: Of the batch.
        index: The element.

    Returns:
        The leading dimensions that each parameter had, by name.

    Raises:
        InputError: If a parameter has the batch shape of something else.
    """
    tensors, leads = {}, {}
    for path, part in module.named_modules():
        if isinstance(part, gpytorch.priors.Prior):
            continue
        for kind in (part.named_parameters, part.named_buffers):
            for name, tensor in kind(recurse=False):
                full = f"{path}.{name}".lstrip(".")
                lead = leads[full] = leading_dimensions(part, name, tensor)
                _require_fit(full, lead, shape)
                tensors[id(tensor)] = tensor, lead  # tied ones once
    for tensor, lead in tensors.values():
        tensor.data = at(tensor.data, lead, index).clone()
    for part in module.modules():
        if isinstance(part, FixedGaussianNoise):
            _require_fit("noise", part.noise.shape[:-1], shape)
            part.noise = at(part.noise, part.noise.shape[:-1], index)
        elif isinstance(part, (Kernel, Mean)) and getattr(part, "batch_shape", None):
            part.batch_shape = torch.Size(part.batch_shape)[: -len(index)]
    return leads


def _require_fit(name: str, lead: torch.Size, shape: torch.Size) -> None:
    own = lead[-len(shape) :]
    if any(n not in (1, m) for n, m in zip(own, shape[len(shape) - len(own) :], strict=True)):
        raise InputError(
            f"Hyperparameters of a batch of models must be shared, or have one value for each element. Got batch shape "
            f"{tuple(lead)} of {name!r} and data of batch shape {tuple(shape)}. Give the mean, kernel and likelihood the batch "
            "shape of the data."
        )


def element_likelihood(
    likelihood: gpytorch.likelihoods.Likelihood, shape: torch.Size, index: Index
) -> gpytorch.likelihoods.Likelihood:
    """A copy of a likelihood with the share of one element."""
    twin = copy.deepcopy(likelihood)
    select_element(twin, shape, index)
    return twin


def element_tensors(tensors: tuple[Tensor | None, ...], shape: torch.Size, index: Index) -> tuple[Tensor | None, ...]:
    """Inputs, targets and weights of one element of a batch; a weight that is 1 everywhere is none."""
    *inputs, targets, weight = tensors
    own = [None if x is None else at(x, x.shape[:-2], index) for x in inputs]
    target = None if targets is None else at(targets, shape, index)
    mine = None if weight is None else at(weight, shape, index)
    return (*own, target, None if mine is None or bool((mine == 1).all()) else mine)


def select_priors(model: gpytorch.Module, twin: gpytorch.Module, index: Index) -> None:
    """Priors with a value for each element get that of one, where the parameter has too."""
    for (_, whole, _, closure, _), (_, part, prior, _, _) in zip(
        model.named_priors(), twin.named_priors(), strict=True
    ):
        dims, own = closure(whole).dim(), closure(part).dim()
        if dims == own or len(prior.batch_shape) != dims:
            continue
        for module in prior.modules():
            for _, buffer in module.named_buffers(recurse=False):
                if buffer.dim() == dims:
                    buffer.data = at(buffer.data, buffer.shape[: dims - own], index).clone()
            if isinstance(module, torch.distributions.Distribution) and len(module._batch_shape) == dims:
                module._batch_shape = module._batch_shape[dims - own :]


@torch.no_grad()
def prior_of_some_rows(
    forward: Callable[[tuple[Tensor, ...]], MultivariateNormal], inputs: tuple[Tensor, ...], shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """Mean ``(..., n)`` and covariance ``(..., n, n)`` of a few training rows of each data set.

    Args:
        forward: The prior at some inputs.
        inputs: Training inputs.
        shape: The batch shape of the data.
    """
    rows = evenly_spaced(inputs[0].shape[-2], _PROBE_ROWS, inputs[0].device)
    prior = forward(tuple(x[..., rows, :].expand(*shape, len(rows), x.shape[-1]) for x in inputs))
    return prior.loc.detach(), prior.lazy_covariance_matrix.to_dense().detach()


def require_same_prior(whole: tuple[Tensor, Tensor], alone: Callable[[], tuple[Tensor, Tensor]], index: Index) -> None:
    """What ``forward`` makes of a batch must be what it makes of every element by itself.

    Args:
        whole: ``prior_of_some_rows`` of the batch.
        alone: Gives that of an element by itself.
        index: Its place.

    Raises:
        InputError: If it is not.
    """
    try:
        own, reason = alone(), ""
    except (RuntimeError, ValueError, IndexError) as error:  # of the model's author, who expects the batch
        own, reason = None, f" ({error})"
    for event in (1, 2):
        together = whole[event - 1]
        alike = own is not None and _close(
            own[event - 1], at(together, together.shape[: together.dim() - event], index)
        )
        if not alike:
            raise InputError(
                f"forward must treat the elements of a batch independently. Got another prior for element {index} by itself "
                f"than within the batch{reason}. Give means and kernels the batch_shape of the data, take no rows or elements "
                "by number in forward, or build one model per element."
            )


def _close(alone: Tensor, together: Tensor) -> bool:
    try:
        shape = torch.broadcast_shapes(alone.shape, together.shape)
    except RuntimeError:
        return False
    if math.prod(shape) != max(alone.numel(), together.numel()):
        return False
    scale = float(together.abs().max()) if together.numel() else 0.0
    tolerance = (_SAME if together.dtype == torch.float32 else _SAME**2) * scale
    return torch.allclose(alone.expand(shape), together.expand(shape), rtol=0.0, atol=tolerance)


def require_shared_by_latents(model: Any) -> None:
    """The batch shape of a single model that is to be a batch must not be one of latent functions.

    Raises:
        InputError: If it is.
    """
    leads = [
        leading_dimensions(module, name, parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
    ]
    # Asked last: known noise of the batch that is to be does not fit the rows of a single model.
    if any(lead.numel() > 1 for lead in leads) and model.calculus.num_latents > 1:
        raise InputError(
            "A model becomes a batch only if mean and kernel have no batch_shape, which would be taken for that of the "
            "data. Got one of latent functions. Make a new model of the batch, or use "
            "itergp.botorch.BotorchModel(model).condition_on_observations(X, Y) for fantasies."
        )
