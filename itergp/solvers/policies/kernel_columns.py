"""Kernel columns at pseudo-inputs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from itergp.checks import require_positive
from itergp.errors import InputError
from itergp.operators.kernel_blocks import joint_columns, kernel_columns
from itergp.solvers.policies.base import BasePolicy, View, columns


@dataclass(frozen=True, kw_only=True)
class KernelColumns(BasePolicy):
    """Kernel columns ``k(X, z)`` at pseudo-inputs z: inducing points as actions (IterGP-PI, Wenger et al. 2022).

    Every training row takes part, as in a sparse variational approximation at the inducing inputs z; what the columns do not
    say stays as uncertainty. Several columns share one kernel pass.

    Args:
        num_inputs: Pseudo-inputs, spread over the training inputs by farthest-point sampling; default 64.
        inputs: Pseudo-inputs ``(M, D)`` of your own instead, in the space that the kernel sees.
        width: Pseudo-inputs per pass; default 16.

    Raises:
        InputError: If ``inputs`` is not a matrix.
    """

    num_inputs: int = 64
    inputs: Tensor | None = field(default=None, compare=False)
    width: int = 16
    _key: bytes | None = field(default=None, init=False, repr=False)  # of the inputs, for equality

    def __post_init__(self) -> None:
        """Checks the settings."""
        require_positive("num_inputs", self.num_inputs, integer=True)
        require_positive("width", self.width, integer=True)
        if self.inputs is not None:
            if not torch.is_tensor(self.inputs) or self.inputs.dim() != 2:
                got = tuple(self.inputs.shape) if torch.is_tensor(self.inputs) else type(self.inputs).__name__
                raise InputError(f"`inputs` must be a matrix (M, D) of pseudo-inputs. Got {got}. Reshape it.")
            object.__setattr__(self, "_key", self.inputs.detach().double().cpu().numpy().tobytes())

    def propose(self, view: View) -> Tensor | None:
        """The next columns for every latent function, ``(N, C, width C)``."""
        points = self._points(view)
        start = view.index * self.width
        if start >= points.shape[-2]:
            return None
        points = points[..., start : start + self.width, :]
        if view.operator.couples_latents:
            return joint_columns(view.kernel_operator, points).flatten(2)
        block = kernel_columns(view.kernel_operator, points)  # (C', N, width)
        if view.operator.num_kernels == 1:
            return columns(block[0], view.shape[1])
        return torch.einsum("cnk,cd->nckd", block, torch.eye(view.shape[1]).to(block)).flatten(2)

    def _points(self, view: View) -> Tensor:
        if self.inputs is not None:
            return self.inputs.to(view.kernel_operator.inputs)
        if self not in view.memory:
            rows = farthest_points(view.inputs, min(self.num_inputs, view.shape[0]))
            view.memory[self] = view.kernel_operator.inputs[..., rows, :]
        return view.memory[self]


def farthest_points(inputs: Tensor, count: int) -> Tensor:
    """Row numbers ``(count,)``, each the farthest from those before; the first is nearest to the centre."""
    chosen = [int((inputs - inputs.mean(0)).square().sum(-1).argmin())]
    distance = (inputs - inputs[chosen[0]]).square().sum(-1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (inputs - inputs[chosen[-1]]).square().sum(-1))
    return torch.tensor(chosen, device=inputs.device)
