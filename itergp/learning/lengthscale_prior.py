"""A prior of many lengthscales: alike, until the data say otherwise."""

from __future__ import annotations

from functools import partial
from typing import Any

import gpytorch
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from itergp.kernels.tied import TiedLengthscales

_WIDTH = 0.5  # of the logarithms about their mean
_DEGREES = 3.0


class AlikeLengthscales(gpytorch.priors.Prior):
    """Logarithms of a kernel's lengthscales are Student t about their own mean, which is free.

    With one lengthscale for each of many columns and few rows, learning finds chance. This costs a column that differs from the
    others by ``d`` widths ``2 log(1 + d^2 / 3)`` nats of all rows together: much of few rows, nothing of many, and not much
    more for a column that counts a hundred times as much as the others.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 # torch's name

    def __init__(self) -> None:
        super().__init__(validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Of lengthscales ``(..., 1, G)``, by group of columns; not normalised, as their mean is free."""
        logarithms = value.log()
        apart = (logarithms - logarithms.mean(-1, keepdim=True)) / _WIDTH
        return -0.5 * (_DEGREES + 1.0) * torch.log1p(apart.square() / _DEGREES)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> AlikeLengthscales:
        """The same: it has no parameters of a shape."""
        return self


def keep_alike(kernel: Kernel) -> Kernel:
    """Registers the prior with every kernel inside one that has several lengthscales and no prior; returns it."""
    for module in kernel.modules():
        several = isinstance(module, Kernel) and module.has_lengthscale and module.raw_lengthscale.shape[-1] > 1
        if several and not hasattr(module, "lengthscale_prior"):
            name = "group_lengthscale" if isinstance(module, TiedLengthscales) else "lengthscale"
            # With the name alone GPyTorch makes local functions, which do not pickle.
            module.register_prior("lengthscale_prior", AlikeLengthscales(), partial(_get, name), partial(_set, name))
    return kernel


def has_own_prior(kernel: Kernel) -> bool:
    """Whether lengthscales have a prior of the user's."""
    return not isinstance(getattr(kernel, "lengthscale_prior", None), (AlikeLengthscales, type(None)))


def _get(name: str, kernel: Kernel) -> Tensor:
    return getattr(kernel, name)


def _set(name: str, kernel: Kernel, value: float | Tensor) -> None:
    setattr(kernel, name, value)
