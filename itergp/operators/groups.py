"""Kernel entries within many small groups of rows, evaluated at once."""

from __future__ import annotations

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from itergp.numerics.sampling import sample_of_rows
from itergp.operators.derived import TabulatedKernel
from itergp.operators.forms import as_form
from itergp.operators.radial import evaluate_kernel
from itergp.operators.special import has_own_diagonal

_GROUPS, _ROWS, _OTHERS = 3, 2, 3  # of the rows that are looked at
_SAME = 1e-3  # relative to the largest entry, in float32; its square in float64


def evaluate_groups(kernel: Kernel, first: Tensor, second: Tensor, num_kernels: int) -> Tensor:
    """Entries ``(C', M, m, n)`` between rows of each group; differentiable if gradients are on.

    Args:
        kernel: Any kernel that ``evaluates_groups``.
        first: Rows ``(M, m, D)`` or ``(C', M, m, D)``.
        second: Rows ``(M, n, D)`` or ``(C', M, n, D)``.
        num_kernels: 1 for a shared kernel, otherwise C.
    """
    if num_kernels == 1:
        first, second = (x.squeeze(0) if x.dim() == 4 else x for x in (first, second))
        return evaluate_kernel(kernel, first, second, len(first)).unsqueeze(0)
    # The kernels of a batch are the last of the batch dimensions: (M, C', n, D).
    first, second = (x.movedim(0, 1) if x.dim() == 4 else x.unsqueeze(1) for x in (first, second))
    return evaluate_kernel(kernel, first, second, num_kernels).movedim(1, 0)


@torch.no_grad()
def evaluates_groups(kernel: Kernel, inputs: Tensor, num_kernels: int) -> bool:
    """Whether ``evaluate_groups`` gives what the kernel gives for each group by itself.

    That is so for kernels that are functions of two rows and of batches of them. It is not for covariances that were
    evaluated whole, for those of a row with itself that differ from those of equal rows, and for kernels of a user's
    that do not expect batches, which is seen on some rows.

    Args:
        kernel: Any kernel.
        inputs: Training inputs ``(N, D)`` or ``(C', N, D)``.
        num_kernels: 1 for a shared kernel, otherwise C.
    """
    if as_form(kernel, num_kernels, inputs.shape[-1]) is not None:
        return True
    if isinstance(kernel, TabulatedKernel) or has_own_diagonal(kernel):
        return False
    rows = sample_of_rows(inputs.detach(), _GROUPS * (_ROWS + _OTHERS))
    size = rows.shape[-2]
    numbers = torch.arange(_GROUPS * (_ROWS + _OTHERS), device=rows.device).remainder(size).view(_GROUPS, -1)
    first, second = (rows[..., part, :] for part in numbers.split([_ROWS, _OTHERS], 1))
    # Both ways: a kernel may take the rows of a group for columns, of which there may be as many.
    return _agree(kernel, first, second, num_kernels) and _agree(kernel, second, first, num_kernels)


def _agree(kernel: Kernel, first: Tensor, second: Tensor, num_kernels: int) -> bool:
    """Whether entries between rows of some groups are the same for all groups at once as for each by itself."""
    alone = [evaluate_kernel(kernel, first[..., i, :, :], second[..., i, :, :], num_kernels) for i in range(_GROUPS)]
    expected = torch.stack(alone, 1)
    try:
        entries = evaluate_groups(kernel, first, second, num_kernels)
    except (RuntimeError, ValueError, IndexError, TypeError):  # of the kernel's author, who expects two matrices
        return False
    tolerance = (_SAME if expected.dtype == torch.float32 else _SAME**2) * float(expected.abs().max())
    return entries.shape == expected.shape and torch.allclose(
        entries, expected, rtol=0.0, atol=tolerance, equal_nan=True
    )
