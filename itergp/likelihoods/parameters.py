"""Learnable parameters of likelihoods, by GPyTorch's conventions."""

from __future__ import annotations

from functools import partial
from typing import Any, overload

import gpytorch
import torch
from gpytorch.constraints import Interval
from gpytorch.priors import Prior
from torch import Tensor

from itergp.errors import InputError

SMALLEST_NOISE = 1e-8  # of noise variances that are learned: targets may have next to none


class ConstrainedParameter:
    """A learnable parameter as an attribute: ``likelihood.noise`` is ``raw_noise`` seen through its constraint.

    Setting the attribute, or ``likelihood.initialize(noise=0.1)``, sets the raw parameter. ``register`` makes the raw
    parameter, its constraint, and its prior under the name ``noise_prior``.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, module: None, owner: type) -> ConstrainedParameter: ...
    @overload
    def __get__(self, module: gpytorch.Module, owner: type) -> Tensor: ...
    def __get__(self, module: gpytorch.Module | None, owner: type) -> Any:
        if module is None:
            return self
        raw = getattr(module, f"raw_{self.name}")
        return getattr(module, f"raw_{self.name}_constraint").transform(raw)

    def __set__(self, module: gpytorch.Module, value: float | Tensor) -> None:
        raw = getattr(module, f"raw_{self.name}")
        value = torch.as_tensor(value, dtype=raw.dtype, device=raw.device)
        constraint = getattr(module, f"raw_{self.name}_constraint")
        unbounded = constraint.inverse_transform(value)
        if not bool(torch.isfinite(unbounded).all()):
            lower, upper = float(constraint.lower_bound), float(constraint.upper_bound)
            raise InputError(
                f"`{self.name}` must be between {lower:g} and {upper:g}, and at neither. Got {value.tolist()}. Choose another "
                f"value, or pass `{self.name}_constraint` with wider bounds."
            )
        module.initialize(**{f"raw_{self.name}": unbounded})

    def register(
        self,
        module: gpytorch.Module,
        constraint: Interval,
        prior: Prior | None = None,
        value: float | Tensor | None = None,
        size: int = 1,
    ) -> None:
        """Gives a module the raw parameter ``(size,)``, zeros unless there is an initial value.

        Args:
            module: The likelihood.
            constraint: Of the parameter.
            prior: Over the parameter, or None.
            value: Initial value, or None.
            size: Number of elements.
        """
        module.register_parameter(f"raw_{self.name}", torch.nn.Parameter(torch.zeros(size)))
        module.register_constraint(f"raw_{self.name}", constraint)
        if prior is not None:  # partial functions and not lambdas: they must pickle
            module.register_prior(f"{self.name}_prior", prior, partial(_read, self.name), partial(_write, self.name))
        if value is not None:
            self.__set__(module, value)


def _read(name: str, module: gpytorch.Module) -> Tensor:
    return getattr(module, name)


def _write(name: str, module: gpytorch.Module, value: float | Tensor) -> None:
    setattr(module, name, value)
