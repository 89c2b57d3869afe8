"""What an estimator makes of its arguments, and of the model inside it."""

from __future__ import annotations

import math
import warnings
from typing import Any

import gpytorch
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itergp.errors import InputError, ItergpWarning
from itergp.likelihoods import Likelihood
from itergp.models import GP
from itergp.solvers import LinearTimeNewton, Reason, Solution, Solver

_LINEAR_ROWS = 100_000  # beyond, a pass over the kernel matrix takes a quarter of a minute and more
DOUBLE_ROWS = 2000  # up to here float64 costs next to nothing
# Prior variance times curvature, of one row, that float32 resolves: thousands of correlated rows multiply it, an entry is
# wrong by 1e-7. Measured, 2,100 rows in one dimension: counts around 60 leave a gap of 0.002 nats per row, around 20 none.
_MOST_IN_SINGLE = 100.0
_PROBES = 6
_WORTH_A_WARNING = 1e-3  # nats per row
_OUT_OF_DIGITS = (Reason.PRECISION, Reason.STALLED, Reason.DIVERGED)


def __getattr__(name: str) -> Any:
    """The former name of ``itergp.models.GP``, with a warning."""
    if name != "EstimatorGP":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("`EstimatorGP` is `itergp.models.GP` now.", DeprecationWarning, stacklevel=2)
    return GP


def constant_mean(*values: float) -> gpytorch.means.ConstantMean:
    """A learnable constant mean that starts at a value, or one per latent function."""
    mean = gpytorch.means.ConstantMean(batch_shape=torch.Size([len(values)] if len(values) > 1 else []))
    mean.constant = torch.tensor(values if len(values) > 1 else values[0])
    return mean


def default_solver(model: GP) -> Solver[Any]:
    """The solver that an estimator uses when none is given: the model's own while passes over distinct rows are affordable.

    They always are where the operator takes linear time.
    """
    if model.held_data.targets.shape[0] <= _LINEAR_ROWS or model.num_distinct_rows <= _LINEAR_ROWS:
        return model.solver
    with torch.no_grad():
        matrix = model.make_operator(model.prior_at(), model.observations).evaluates_matrix
    return LinearTimeNewton() if matrix else model.solver


def as_dtype(dtype: str, num_rows: int, signal: float = 0.0) -> torch.dtype:
    """The dtype that an estimator's argument names.

    Args:
        dtype: ``"auto"``, ``"float32"`` or ``"float64"``.
        num_rows: N, of distinct rows.
        signal: The largest prior variance times curvature, see ``signal_to_noise``.

    Raises:
        InputError: If it names none.
    """
    if dtype == "auto":
        single = num_rows > DOUBLE_ROWS and signal <= _MOST_IN_SINGLE
        return torch.float32 if single else torch.float64
    if dtype not in ("float32", "float64"):
        raise InputError(f"`dtype` must be 'auto', 'float32' or 'float64'. Got {dtype!r}. Choose one of these.")
    return torch.float64 if dtype == "float64" else torch.float32


@torch.no_grad()
def signal_to_noise(likelihood: Likelihood, mean: gpytorch.means.Mean, targets: Tensor, variance: float) -> float:
    """The largest prior variance times curvature of the log-density over the rows, at the prior mean and where the targets are.

    Args:
        likelihood: The likelihood, which is given its starting values from the targets.
        mean: Prior mean.
        targets: Targets as the likelihood takes them.
        variance: Prior variance.
    """
    likelihood = likelihood.double()
    targets = likelihood.validate_targets(targets.double() if targets.is_floating_point() else targets)
    likelihood.initialise(targets)
    prior = mean.double()(torch.zeros(len(targets), 1, dtype=torch.float64)).reshape(-1, len(targets)).mT
    f = prior.expand(len(targets), likelihood.num_latents)
    largest = 0.0
    for _ in range(_PROBES):  # a few damped Newton steps with the prior's variance, row by row
        gradient, curvature = likelihood.derivatives(f, targets)
        weight = curvature.diagonal(dim1=-2, dim2=-1)
        largest = max(largest, variance * float(weight.nan_to_num(0.0, 0.0, 0.0).max()))
        f = f + (gradient / (weight + 1.0 / variance)).clamp(-1.0, 1.0)
    return largest


def as_device(device: Any) -> torch.device:
    """The device that an estimator's argument names.

    Raises:
        InputError: If there is no such device.
    """
    try:
        wanted = torch.device("cpu" if device is None else device)
        torch.zeros(1, device=wanted).item()  # the meta device has no values
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(
            f"`device` must be a device that torch can use. Got {device!r}. Pass 'cpu', or install a torch with CUDA."
        ) from error
    return wanted


def lacks_digits(solution: Solution) -> bool:
    """Whether a posterior is not what was asked for because numbers have too few digits, or because it still moved."""
    gap = math.inf if solution.certificate is None else solution.certificate.objective_gap
    far = gap > _WORTH_A_WARNING * len(solution.representer_weights)
    return (solution.status.reason in _OUT_OF_DIGITS and far) or solution.status.reason is Reason.ROUNDS


def warn_of_ending(solution: Solution, stacklevel: int) -> None:
    """Says when a posterior lacks digits, or time."""
    if lacks_digits(solution):
        warnings.warn(
            f"The posterior must be found to the solver's tolerance. {solution.status} In an estimator: dtype='float64'.",
            ItergpWarning,
            stacklevel=stacklevel,
        )
    elif solution.status.reason is Reason.TIME:
        warnings.warn(
            f"The posterior must be found before time is up. {solution.status} Until then intervals are wider, and "
            "probabilities less sure, than the rows allow.",
            ItergpWarning,
            stacklevel=stacklevel,
        )


def take_hyperparameters(model: GP, other: GP) -> None:
    """Those of another model, if it has the same."""
    state = other.state_dict()
    if all(name in state and state[name].shape == value.shape for name, value in model.state_dict().items()):
        model.load_state_dict(state)


def as_numpy(tensor: Tensor) -> NDArray[np.float64]:
    """A float64 array on the CPU."""
    return tensor.detach().cpu().double().numpy()
