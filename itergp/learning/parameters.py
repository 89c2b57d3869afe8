"""Hyperparameters as the optimiser sees them: positive ones by their logarithm."""

from __future__ import annotations

from dataclasses import dataclass

import gpytorch
import torch
from gpytorch.constraints import Interval
from torch import Tensor


@dataclass
class FreeParameter:
    """One trainable parameter and the variable that the optimiser moves in its place.

    A parameter with a lower bound and no upper one (lengthscales, scales, noise) moves as the logarithm of its distance from
    the bound, so that steps are relative; any other parameter moves as it is.

    Attributes:
        name: Its name in the model.
        parameter: The raw parameter.
        constraint: Its constraint if it moves by logarithm, else None.
        variable: What the optimiser moves.
    """

    name: str
    parameter: torch.nn.Parameter
    constraint: Interval | None
    variable: Tensor

    def write(self) -> None:
        """Sets the parameter from the variable."""
        with torch.no_grad():
            if self.constraint is None:
                self.parameter.copy_(self.variable)
            else:
                value = self.constraint.lower_bound.to(self.variable) + self.variable.exp()
                self.parameter.copy_(self.constraint.inverse_transform(value))

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
            gradient = gradient * distance / slope.clamp_min(torch.finfo(slope.dtype).tiny)
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
            tiny = torch.finfo(value.dtype).tiny
            value = (constraint.transform(value) - constraint.lower_bound.to(value)).clamp_min(tiny).log()
        found.append(FreeParameter(name, parameter, constraint if one_sided else None, value.requires_grad_(True)))
    return found
