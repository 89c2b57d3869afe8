"""Checks of inputs and targets before any heavy work."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, NoReturn

import gpytorch
import torch
from torch import Tensor

from itergp.errors import InputError, ItergpWarning
from itergp.likelihoods import Likelihood, Observations
from itergp.models.arrays import as_tensor, is_array
from itergp.numerics.rounding import thresholds
from itergp.numerics.sampling import sample_of_rows
from itergp.operators import KernelOperator, make_operator
from itergp.operators.derived import snapshot
from itergp.operators.kernel_blocks import at_points

_PROBE_ROWS = 64
_BLOCK_NUMBERS = 2**22


def as_inputs(inputs: Any, name: str, *, batch: bool = False) -> tuple[Tensor, ...]:
    """Inputs as a tuple of finite matrices ``(N, D)``; vectors become one column.

    The first is floating point; others may be integers, such as the number of a task, and become ``int64``. Arrays,
    data frames and Arrow data are read where they are, see ``itergp.as_tensor``. With ``batch`` they may be batches of such,
    ``(*b, N, D)``.

    Raises:
        InputError: For anything else.
    """
    given = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    if not isinstance(inputs, list):
        given = tuple(as_tensor(x, name) if not torch.is_tensor(x) and is_array(x) else x for x in given)
    if not given or not all(torch.is_tensor(x) for x in given):
        kinds = ", ".join(sorted({type(x).__name__ for x in given})) or "nothing"
        kinds = f"a list of {kinds}" if isinstance(inputs, list) else kinds
        raise InputError(f"`{name}` must be a torch tensor or a tuple of them. Got {kinds}. Use torch.as_tensor(x).")
    for x in given:
        if x.layout is not torch.strided:
            raise InputError(f"`{name}` must be dense. Got {x.layout}. Call .to_dense().")
    first, *others = (x.unsqueeze(-1) if x.dim() == 1 else x for x in given)
    _refuse_autocast(first)
    if torch.jit.is_tracing():
        raise InputError(
            "Posteriors must not be traced: loops that find and use them look at values. Got a call under torch.jit.trace. "
            "Keep the model by model.save(path), and load it where it is to predict."
        )
    checked = (first, *(x if x.is_floating_point() else x.long() for x in others))
    for x in checked:
        if x.dim() > 2 and not batch:
            raise InputError(
                f"`{name}` must have shape (N, D), one row per observation. Got {tuple(x.shape)}, a batch. Call model(x), "
                "which takes batches, or pass one element at a time; itergp.botorch.BotorchModel takes t-batches of points."
            )
        if x.dim() < 2:
            raise InputError(
                f"`{name}` must have shape (N, D), one row per observation. Got {tuple(x.shape)}. Reshape it."
            )
        if 0 in x.shape[:-1]:
            raise InputError(f"`{name}` must have at least one row. Got none. Check how the data were selected.")
        if x.shape[-1] == 0:
            raise InputError(f"`{name}` must have at least one column. Got shape {tuple(x.shape)}. Select features.")
        if not x.is_floating_point() and x is first:
            remedy = "Call .float() or .double()." if len(checked) == 1 else "Put integers, such as a task, after it."
            raise InputError(f"The first of `{name}` must be floating point. Got {x.dtype}. {remedy}")
        if x.is_floating_point() and x.dtype not in (torch.float32, torch.float64):
            raise InputError(f"`{name}` must be float32 or float64. Got {x.dtype}. Call .float().")
        same_dtype = x.dtype in (first.dtype, torch.int64)
        if not same_dtype or x.device != first.device or x.shape[-2] != first.shape[-2]:
            raise InputError(
                f"All of `{name}` must share rows, dtype and device. Got {_kind(first)} and {_kind(x)}. Convert them."
            )
        require_values_of(x, name)
        if rows := _rows_not_finite(x):
            raise InputError(
                f"`{name}` must be finite. Got NaN or infinite values in {rows} of {x.shape[:-1].numel()} row(s). "
                "Drop those rows or impute the values."
            )
    return checked


def require_values_of(x: Tensor, name: str) -> None:
    """A tensor must hold its values.

    Raises:
        InputError: If it is on the meta device.
    """
    # A subclass of tensors may have its values elsewhere.
    if x.device.type == "meta" and type(x) in (Tensor, torch.nn.Parameter):
        raise InputError(
            f"`{name}` must hold values. Got a tensor on the meta device, which has a shape alone. Make it on a device with "
            "memory, such as 'cpu'."
        )


def refuse_to_empty() -> NoReturn:
    """Says what to do instead of ``to_empty``.

    Raises:
        InputError: Always.
    """
    raise InputError(
        "A model must keep its data and hyperparameters. Got to_empty, after which both are whatever memory holds. Use "
        "model.to(device), or make a model on the device and load_state_dict."
    )


def _refuse_autocast(x: Tensor) -> None:
    """Autocast changes products of float32 alone."""
    kind = x.device.type
    if x.dtype == torch.float32 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        raise InputError(
            "Autocast must be off where a posterior is found or used, whose products it would round. Got "
            f"{torch.get_autocast_dtype(kind)}. Put torch.autocast({kind!r}, enabled=False) around the call; `forward` may"
            " turn it on for a network of its own."
        )


def _rows_not_finite(x: Tensor) -> int:
    """How many rows have a value that is not finite, without an array of the size of ``x``."""
    rows = max(1, _BLOCK_NUMBERS // max(1, x[:1].numel()))
    return sum(int((~torch.isfinite(part)).any(-1).sum()) for part in x.detach().split(rows))


def allows_nan(likelihood: gpytorch.likelihoods.Likelihood) -> bool:
    """Whether targets may be NaN without ``missing_targets``: the likelihood or ``observation_nan_policy`` says so."""
    accepts = isinstance(likelihood, gpytorch.likelihoods.GaussianLikelihoodWithMissingObs)
    return (
        accepts
        or getattr(likelihood, "accepts_missing", False)
        or gpytorch.settings.observation_nan_policy.value() != "ignore"
    )


def as_observations(
    targets: Any,
    rows: Tensor,
    likelihood: Likelihood,
    sample_weight: Any,
    missing_targets: bool,
    nan_targets: bool,
) -> Observations:
    """Targets in the form of the likelihood, one per row of the inputs, with their weights.

    Missing targets get weight 0 and the value of a row that was observed: those that the likelihood calls missing with
    ``missing_targets``, which may be labels of -1 too, and NaN alone with ``nan_targets``.

    Args:
        targets: The targets.
        rows: Anything with the rows, dtype and device of the inputs ``(N,)``.
        likelihood: Of the rows.
        sample_weight: Weights of the targets, or None.
        missing_targets: Whether targets may be missing.
        nan_targets: Whether targets that are NaN may be.

    Raises:
        InputError: If their number, dtype, device or values do not fit.
    """
    targets = as_tensor(targets, "train_targets") if is_array(targets) else targets
    sample_weight = as_tensor(sample_weight, "sample_weight") if is_array(sample_weight) else sample_weight
    check_target_tensor(targets, rows)
    weight = None if sample_weight is None else _as_weight(sample_weight, rows)
    if likelihood.masks_targets:
        if not (missing_targets or nan_targets) and targets.is_floating_point() and bool(targets.isnan().any()):
            raise InputError(
                f"`train_targets` must be finite. Got {int(targets.isnan().sum())} NaN value(s). Drop those rows, or pass "
                "missing_targets=True to the model: what is NaN then says nothing, output by output."
            )
        return Observations(likelihood, _valid_targets(targets, rows.dtype, likelihood), weight)
    missing = likelihood.missing(targets) if missing_targets else Likelihood.missing(likelihood, targets)
    if not (missing_targets or nan_targets) or not bool(missing.any()):
        return Observations(likelihood, _valid_targets(targets, rows.dtype, likelihood), weight)
    if bool(missing.all()):
        raise InputError(
            "At least one target must be observed. Got none: all are missing. Check how targets were read."
        )
    observed = _valid_targets(targets[~missing], rows.dtype, likelihood)
    filled = observed[:1].expand(targets.shape[0], *observed.shape[1:]).clone()
    filled[~missing] = observed
    weight = torch.ones_like(rows) if weight is None else weight
    return Observations(likelihood, filled, weight * (~missing).to(weight))


def _as_weight(sample_weight: Tensor, rows: Tensor) -> Tensor:
    if not torch.is_tensor(sample_weight) or sample_weight.shape != rows.shape[:1]:
        got = tuple(sample_weight.shape) if torch.is_tensor(sample_weight) else type(sample_weight).__name__
        raise InputError(
            f"`sample_weight` must be a tensor of shape ({rows.shape[0]},), one weight per row. Got {got}."
        )
    require_values_of(sample_weight, "sample_weight")
    weight = sample_weight.to(rows)
    if not bool((torch.isfinite(weight) & (weight >= 0)).all()) or not bool((weight > 0).any()):
        raise InputError(
            "`sample_weight` must be finite and not negative, and positive somewhere. Got "
            f"values from {float(weight.min()):.3g} to {float(weight.max()):.3g}. Drop or correct those rows."
        )
    return weight


def check_target_tensor(targets: Tensor, rows: Tensor) -> None:
    """Targets must be a tensor with the rows, device and dtype of the inputs, as another tensor has them.

    Raises:
        InputError: If they are not.
    """
    if not torch.is_tensor(targets):
        raise InputError(
            f"`train_targets` must be a torch tensor. Got {type(targets).__name__}. Use torch.as_tensor(y)."
        )
    count = rows.shape[0]
    if targets.dim() == 2 and targets.shape[0] != count and targets.shape[1] == count:
        raise InputError(
            f"Targets must have one row per observation, {count}. Got {tuple(targets.shape)}, a batch. Give the model a batch "
            "of targets when it is made or by set_train_data, or pass those of one element."
        )
    if targets.dim() >= 1 and targets.shape[0] != count:
        raise InputError(
            f"`train_inputs` and `train_targets` must have the same number of rows. Got {count} and {targets.shape[0]}. "
            "Select the same rows of both."
        )
    if targets.device != rows.device:
        raise InputError(
            f"`train_inputs` and `train_targets` must be on one device. Got {rows.device} and {targets.device}. "
            "Move one with .to(device)."
        )
    if targets.is_floating_point() and targets.dtype != rows.dtype:
        raise InputError(
            f"`train_inputs` and floating-point `train_targets` must share a dtype. Got {rows.dtype} and "
            f"{targets.dtype}. Convert one with .to(dtype)."
        )


def _valid_targets(targets: Tensor, dtype: torch.dtype, likelihood: Likelihood) -> Tensor:
    valid = likelihood.validate_targets(targets)
    if not targets.is_floating_point() and valid.is_floating_point():
        valid = valid.to(dtype)
    if likelihood.observes in ("label", "level") and valid.unique().numel() == 1:
        warnings.warn(
            f"All {valid.shape[0]} targets are of one class ({valid[0].item():g}): the posterior will favour it everywhere. "
            "Check the labels.",
            ItergpWarning,
            stacklevel=5,
        )
    return valid


def as_test_inputs(x: Any, train_inputs: tuple[Tensor, ...], *, batch: bool = False) -> tuple[Tensor, ...]:
    """New inputs as ``as_inputs`` gives them; what was no tensor gets dtype and device of the training inputs.

    Args:
        x: The inputs.
        train_inputs: Training inputs.
        batch: Whether there may be a batch of them.

    Raises:
        InputError: If they do not look like the training inputs.
    """
    inputs = like_known(x, as_inputs(x, "inputs", batch=batch), train_inputs)
    check_test_inputs(inputs, train_inputs)
    return inputs


def like_known(x: Any, inputs: tuple[Tensor, ...], train_inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs ``x`` as tensors, those that were none in the dtype and on the device of the training inputs."""
    given = x if isinstance(x, tuple) else (x,)
    if len(inputs) != len(train_inputs):
        return inputs  # which is refused
    return tuple(
        t if torch.is_tensor(raw) else t.to(like) for raw, t, like in zip(given, inputs, train_inputs, strict=True)
    )


def check_test_inputs(inputs: tuple[Tensor, ...], train_inputs: tuple[Tensor, ...]) -> None:
    """Test inputs must look like the training inputs.

    Raises:
        InputError: If their number, columns, dtype or device differ.
    """
    if len(inputs) != len(train_inputs):
        raise InputError(f"The model takes {len(train_inputs)} input(s). Got {len(inputs)}. Pass what `forward` takes.")
    for x, train in zip(inputs, train_inputs, strict=True):
        if x.shape[-1] != train.shape[-1]:
            raise InputError(
                f"Inputs must have the {train.shape[-1]} column(s) of the training inputs. Got {x.shape[-1]}. "
                "Select the same features in the same order."
            )
        if x.dtype != train.dtype or x.device != train.device:
            raise InputError(
                f"Inputs must have the dtype and device of the training inputs, {_kind(train)}. Got {_kind(x)}. "
                "Convert them with .to(...)."
            )


def check_parameters(parameters: Iterable[tuple[str, Tensor, Any]], inputs: Tensor) -> None:
    """Hyperparameters must have the dtype and device of the data, and be finite.

    Args:
        parameters: Names, raw values, and their constraints or None.
        inputs: The data.

    Raises:
        InputError: Naming the first parameter that does not, or if autocast is on.
    """
    _refuse_autocast(inputs)
    for name, parameter, constraint in parameters:
        if not parameter.is_floating_point():
            continue
        if parameter.dtype != inputs.dtype or parameter.device != inputs.device:
            raise InputError(
                f"Model and data must share dtype and device. Got parameter {name!r} {_kind(parameter)} and inputs "
                f"{_kind(inputs)}. Call model.to(dtype=..., device=...) or convert the data."
            )
        if not bool(torch.isfinite(parameter).all()) and not _at_bound(parameter.detach(), constraint):
            raise InputError(f"Hyperparameters must be finite. Got NaN or infinity in {name!r}. Reset it.")


def _at_bound(raw: Tensor, constraint: Any) -> bool:
    """Whether a raw value that is not finite is that of a positive one at its bound, such as ``likelihood.noise = 1e-4``."""
    if constraint is None:
        return False
    value = constraint.transform(raw)
    return bool((torch.isfinite(value) & (value > 0.0)).all())


def check_mean(mean: Tensor) -> None:
    """The prior mean must be finite.

    Raises:
        InputError: If it is not.
    """
    if rows := _rows_not_finite(mean):
        raise InputError(
            f"The prior mean must be finite. Got NaN or infinite values at {rows} of {mean.shape[0]} training input(s). "
            "Check the mean module and the scale of the inputs."
        )


def check_kernel(operator: KernelOperator) -> None:
    """The kernel must be finite and positive semi-definite on a sample of the training inputs.

    What may be rounding in float32 is looked at in float64, where it is told from a kernel that is none by little.

    Raises:
        InputError: With the smallest eigenvalue found.
    """
    probe = at_points(operator, sample_of_rows(operator.inputs, _PROBE_ROWS))
    matrix = probe.dense().double()
    if not bool(torch.isfinite(matrix).all()):
        raise InputError(
            "The kernel must be finite. Got NaN or infinite entries between training inputs. Check the lengthscale, the output "
            "scale, and the scale of the inputs."
        )
    smallest, largest = _extreme_eigenvalues(matrix)
    most = thresholds(probe.dtype).negative_eigenvalue
    least = thresholds(torch.float64).negative_eigenvalue
    if -most * largest <= smallest < -least * largest and (exact := _dense_in_double(probe)) is not None:
        (smallest, largest), most = _extreme_eigenvalues(exact), least
    if smallest < -most * largest:
        raise InputError(
            f"The kernel must be positive semi-definite. Got eigenvalue {smallest:.3g} (largest {largest:.3g}) on "
            f"{probe.num_rows} training inputs. Use a valid covariance function; a distance or similarity is not one by itself."
        )


def _extreme_eigenvalues(matrices: Tensor) -> tuple[float, float]:
    """The smallest eigenvalue of any, and the largest magnitude of one."""
    values = torch.linalg.eigvalsh(0.5 * (matrices + matrices.mT))
    return float(values.min()), float(values.abs().max())


def _dense_in_double(probe: KernelOperator) -> Tensor | None:
    """The matrix of the same kernel in float64, or None if the kernel has it in one dtype only."""
    try:
        twin, inputs = snapshot(probe.kernel).double(), probe.inputs.double()
        found = make_operator(twin, inputs, num_kernels=probe.num_kernels, kind="blocked").dense()
    except (RuntimeError, ValueError, IndexError, TypeError):  # of the kernel's author
        return None
    known = found.dtype == torch.float64 and bool(torch.isfinite(found).all())
    return found if known else None


def _kind(tensor: Tensor) -> str:
    return f"({tuple(tensor.shape)}, {tensor.dtype}, {tensor.device})"
