"""Hyperparameters as the optimiser sees them: positive ones by their logarithm."""

from __future__ import annotations

from dataclasses import dataclass

import gpytorch
import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import Kernel, ScaleKernel
from torch import Tensor

_INITIAL_OUTPUTSCALE = 10.0
_SAMPLE = 1000


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


def initialise(kernel: Kernel, features: Tensor) -> list[str]:
    """Sets lengthscales and output scales that are still at GPyTorch's default.

    Lengthscales start at half the median distance between rows, output scales at 10.

    Args:
        kernel: The model's kernel.
        features: What it is evaluated on, ``(N, D)``.

    Returns:
        Names of what was set.
    """
    changed = []
    sample = features.detach()[torch.linspace(0, len(features) - 1, min(_SAMPLE, len(features))).long()]
    for name, module in kernel.named_modules():
        at_default = isinstance(module, Kernel) and module.has_lengthscale and not bool(module.raw_lengthscale.any())
        if at_default and module.raw_lengthscale.requires_grad:
            columns = sample if module.active_dims is None else sample[:, module.active_dims]
            median = torch.pdist(columns.float()).median() if len(columns) > 1 else columns.new_tensor(1.0)
            if float(median) > 0.0:
                module.lengthscale = 0.5 * float(median)
                changed.append(f"{name}.lengthscale".lstrip("."))
        if (
            isinstance(module, ScaleKernel)
            and module.raw_outputscale.requires_grad
            and not bool(module.raw_outputscale.any())
        ):
            module.outputscale = _INITIAL_OUTPUTSCALE
            changed.append(f"{name}.outputscale".lstrip("."))
    return changed
