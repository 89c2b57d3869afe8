"""The model inside an estimator."""

from __future__ import annotations

from typing import Any

import gpytorch
import numpy as np
import torch
from gpytorch.distributions import MultivariateNormal
from numpy.typing import NDArray
from torch import Tensor

from itergp.errors import InputError
from itergp.models import NonConjugateGP
from itergp.solvers import LinearTimeNewton

_LINEAR_ROWS = 100_000  # beyond, a pass over the kernel matrix takes a quarter of a minute and more
_DOUBLE_ROWS = 2000  # up to here float64 costs next to nothing


class EstimatorGP(NonConjugateGP):
    """A model made of a mean and a kernel module."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        likelihood: gpytorch.likelihoods.Likelihood,
        *,
        mean: gpytorch.means.Mean,
        kernel: gpytorch.kernels.Kernel,
        **options: Any,
    ) -> None:
        super().__init__(x, y, likelihood, **options)
        self.mean_module = mean
        self.covar_module = kernel

    def forward(self, x: Tensor) -> MultivariateNormal:
        """The prior."""
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))


def constant_mean(*values: float) -> gpytorch.means.ConstantMean:
    """A learnable constant mean that starts at a value, or one per latent function."""
    mean = gpytorch.means.ConstantMean(batch_shape=torch.Size([len(values)] if len(values) > 1 else []))
    mean.constant = torch.tensor(values if len(values) > 1 else values[0])
    return mean


def default_solver(num_rows: int) -> LinearTimeNewton | None:
    """The solver that an estimator uses when none is given: the model's default while passes over all rows are affordable."""
    return LinearTimeNewton() if num_rows > _LINEAR_ROWS else None


def as_dtype(dtype: str, num_rows: int) -> torch.dtype:
    """The dtype that an estimator's argument names.

    Raises:
        InputError: If it names none.
    """
    if dtype == "auto":
        return torch.float64 if num_rows <= _DOUBLE_ROWS else torch.float32
    if dtype not in ("float32", "float64"):
        raise InputError(f"`dtype` must be 'auto', 'float32' or 'float64'. Got {dtype!r}. Choose one of these.")
    return torch.float64 if dtype == "float64" else torch.float32


def as_device(device: Any) -> torch.device:
    """The device that an estimator's argument names.

    Raises:
        InputError: If there is no such device.
    """
    try:
        wanted = torch.device("cpu" if device is None else device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(
            f"`device` must be a device that torch can use. Got {device!r}. Pass 'cpu', or install a torch with CUDA."
        ) from error
    return wanted


def take_hyperparameters(model: EstimatorGP, other: EstimatorGP) -> None:
    """Those of another model, if it has the same."""
    state = other.state_dict()
    if all(name in state and state[name].shape == value.shape for name, value in model.state_dict().items()):
        model.load_state_dict(state)


def as_numpy(tensor: Tensor) -> NDArray[np.float64]:
    """A float64 array on the CPU."""
    return tensor.detach().cpu().double().numpy()
