"""Whether a kernel is a function of two rows, so that its matrix can be evaluated in blocks."""

from __future__ import annotations

import weakref
from collections.abc import Hashable

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from itergp.errors import InputError
from itergp.numerics.distinct_rows import DistinctRows
from itergp.numerics.sampling import evenly_spaced, sample_of_rows
from itergp.operators.derived import DerivedKernel, snapshot
from itergp.operators.radial import evaluate_diagonal, evaluate_kernel
from itergp.operators.special import is_gpytorch

_WHOLE_ROWS = 512  # up to here all rows are evaluated together
_SAMPLE_ROWS = 64
_PAIRS = 32
_SAME = 1e-3  # relative to the largest entry, in float32; its square in float64
_verdicts: weakref.WeakKeyDictionary[Kernel, dict[Hashable, bool]] = weakref.WeakKeyDictionary()


def is_function_of_two_rows(kernel: Kernel, features: Tensor, num_kernels: int, num_outputs: int = 1) -> bool:
    """Whether blocks of a kernel's matrix, evaluated by themselves, are blocks of the matrix evaluated whole.

    GPyTorch's kernels are. For others it is seen on some rows, once for every kernel module.

    Args:
        kernel: A kernel whose state has been fitted.
        features: Rows ``(..., N, D)``.
        num_kernels: 1 for a shared kernel, otherwise C.
        num_outputs: C of a kernel that couples latent functions, otherwise 1.

    Raises:
        InputError: If two evaluations of the same entries differ.
    """
    strangers = _strangers(kernel)
    if not strangers:
        return True
    kept = _verdicts.setdefault(strangers[0], {})
    key = (len(strangers), strangers[0].training, features.dtype, features.shape[-1], features.shape[-2] <= _WHOLE_ROWS)
    if key not in kept:
        kept[key] = _agrees(kernel, features.detach(), 1 if num_outputs > 1 else num_kernels, num_outputs)
    return kept[key]


@torch.no_grad()
def knows_equal_rows(kernel: Kernel, features: Tensor, num_kernels: int, distinct: DistinctRows) -> bool:
    """Whether a kernel makes no difference between equal rows, so that they share their latent values.

    GPyTorch's kernels make none, see also ``special.has_own_diagonal``. Of others, some pairs of equal rows are looked at in
    float64, in which white noise is told from rounding: rows of which one stands for both must have the same covariances.

    Args:
        kernel: A kernel that is a function of two rows.
        features: Rows ``(..., N, D)``.
        num_kernels: 1 for a shared kernel, otherwise C.
        distinct: Which rows are equal.
    """
    if not _strangers(kernel):
        return True
    repeated = torch.ones_like(distinct.index, dtype=torch.bool)
    repeated[distinct.first] = False
    later = repeated.nonzero().squeeze(-1)
    later = later[evenly_spaced(len(later), _PAIRS, later.device)]
    rows = torch.cat([distinct.first[distinct.index[later]], later])
    pairs, count = features.detach()[..., rows, :].double(), len(later)
    try:
        twin = snapshot(kernel).double()
        entries = evaluate_kernel(twin, pairs, pairs, num_kernels)
        variances = evaluate_diagonal(twin, pairs, num_kernels)
    except (
        RuntimeError,
        ValueError,
        IndexError,
        TypeError,
    ):  # of the kernel's author, who expects all rows, or one dtype
        return False
    parts = entries[..., :count, :count], entries[..., :count, count:], entries[..., count:, count:]
    tolerance = _SAME**2 * float(entries.abs().max())
    known = (*parts[1:], parts[1].mT)
    same = all(torch.allclose(parts[0], other, rtol=0.0, atol=tolerance) for other in known)
    return same and torch.allclose(variances, entries.diagonal(dim1=-2, dim2=-1), rtol=0.0, atol=tolerance)


def _strangers(kernel: Kernel) -> list[Kernel]:
    """Kernels that are neither GPyTorch's nor made here of others."""
    found = [m for m in kernel.modules() if isinstance(m, Kernel) and not isinstance(m, DerivedKernel)]
    return [module for module in found if not is_gpytorch(module)]


@torch.no_grad()
def _agrees(kernel: Kernel, features: Tensor, num_kernels: int, num_outputs: int) -> bool:
    most = _WHOLE_ROWS if features.shape[-2] <= _WHOLE_ROWS else _SAMPLE_ROWS
    rows = sample_of_rows(features, most)
    number = rows.shape[-2]
    if number < 2:
        return True
    whole = evaluate_kernel(snapshot(kernel), rows, rows, num_kernels)
    tolerance = (_SAME if whole.dtype == torch.float32 else _SAME**2) * float(whole.abs().max())

    def same(block: Tensor, other: Tensor) -> bool:
        return block.shape == other.shape and torch.allclose(block, other, rtol=0.0, atol=tolerance, equal_nan=True)

    if not same(evaluate_kernel(snapshot(kernel), rows, rows, num_kernels), whole):
        raise InputError(
            "A kernel must be the same in every call. Got one that differs between two calls with the same inputs. "
            "Draw random "
            "numbers in __init__, and call model.eval() where layers of the kernel drop units."
        )
    middle = number // 2
    parts = [(slice(0, middle), slice(middle, number)), (slice(middle, number), slice(middle, number))]
    parts += [(slice(0, 1), slice(max(1, number - 3), number)), (slice(middle, middle + 1), slice(middle, middle + 1))]
    twin = snapshot(kernel)
    try:
        for i, j in parts:
            block = evaluate_kernel(twin, rows[..., i, :], rows[..., j, :], num_kernels)
            if not same(block, whole[..., _outputs(i, num_outputs), _outputs(j, num_outputs)]):
                return False
        if num_outputs > 1:  # whose variances are taken from blocks
            return True
        variances = evaluate_diagonal(twin, rows[..., :middle, :], num_kernels)
    except (RuntimeError, ValueError, IndexError):  # of the kernel's author, who expects all rows
        return False
    return same(variances, whole.diagonal(dim1=-2, dim2=-1)[..., :middle])


def _outputs(rows: slice, number: int) -> slice:
    return slice(number * rows.start, number * rows.stop)
