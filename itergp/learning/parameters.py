"""Hyperparameters as the optimiser sees them: positive ones by their logarithm."""

from __future__ import annotations

from dataclasses import dataclass

import gpytorch
import torch
from gpytorch.constraints import Interval
from torch import Tensor

_NOISE_FACTOR = 2.0  # a variance is a standard deviation squared


@dataclass
class FreeParameter:
    """One trainable parameter and the variable that the optimiser moves in its place.

    A parameter with a lower bound and no upper one (lengthscales, scales, noise) moves as the logarithm of its distance from
    the bound, so that steps are relative; a noise variance as its standard deviation does, twice as far, for it may
    have to become thousands of times smaller. What is at its very bound, where nothing has a slope, starts at twice the
    bound. Any other parameter moves as it is.

    Attributes:
        name: Its name in the model.
        parameter: The raw parameter.
        constraint: Its constraint if it moves by logarithm, else None.
        variable: What the optimiser moves.
        factor: How many times as far the logarithm moves.
    """

    name: str
    parameter: torch.nn.Parameter
    constraint: Interval | None
    variable: Tensor
    factor: float = 1.0

    @property
    def value(self) -> Tensor:
        """The parameter, or the logarithm of its distance from its bound, as records show it."""
        return self.factor * self.variable.detach()

    def write(self) -> None:
        """Sets the parameter from the variable."""
        with torch.no_grad():
            if self.constraint is None:
                self.parameter.copy_(self.variable)
            else:
                value = self.constraint.lower_bound.to(self.variable) + self.value.exp()
                self.parameter.copy_(self.constraint.inverse_transform(value))

    def leave_bound(self) -> None:
        """Moves a parameter at its very bound, whose raw value is infinite and has no slope, to where the variable is."""
        if self.constraint is not None and not bool(torch.isfinite(self.parameter).all()):
            self.write()

    def read_gradient(self) -> None:
        """Gives the variable its gradient from the parameter's."""
        gradient = self.parameter.grad
        if gradient is None:
            self.variable.grad = None
            return
        if self.constraint is not None:
            raw = self.parameter.detach().requires_grad_(True)
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(self.constraint.transform(raw).sum(), raw)
            distance = self.constraint.transform(raw).detach() - self.constraint.lower_bound.to(slope)
            gradient = self.factor * gradient * distance / slope.clamp_min(torch.finfo(slope.dtype).tiny)
        self.variable.grad = gradient.clone()


def free_parameters(model: gpytorch.Module) -> list[FreeParameter]:
    """All parameters of a model that require gradients."""
    found = []
    for name, parameter, constraint in model.named_parameters_and_constraints():
        if not parameter.requires_grad:
            continue
        one_sided = (
            constraint is not None
            and bool(torch.isfinite(constraint.lower_bound).all())
            and bool(torch.isinf(constraint.upper_bound).all())
        )
        value = parameter.detach().clone()
        if one_sided:
            bound, tiny = constraint.lower_bound.to(value), torch.finfo(value.dtype).tiny
            distance = torch.where(value.isfinite(), constraint.transform(value) - bound, bound.abs())
            value = distance.clamp_min(tiny).log()
        factor = _NOISE_FACTOR if one_sided and name.endswith("noise") else 1.0
        variable = (value / factor).requires_grad_(True)
        found.append(FreeParameter(name, parameter, constraint if one_sided else None, variable, factor))
    return found
