"""What counts as rounding, by dtype: the measured numbers of every place that leaves something out, side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from itergp.errors import InputError


@dataclass(frozen=True)
class Thresholds:
    """Below these, what should be zero may as well be rounding of data of one dtype.

    Attributes:
        new_direction: Of a search space: squared prior norm of what is new in a unit direction, times the block's width.
        dependent_action: Of an action of the covariance: its information, as a share of the largest.
        dependent_unit: Of an action of a belief: squared length of what is new in an action of unit length.
        asymmetric_product: Of an action of a belief: how far ``s^T K t`` and ``t^T K s`` are apart, as a share of the largest
            prior variance of an action.
        dependent_noise: Of an action of a belief: its noise, as a share of the largest. Small matrices are in float64 always.
        dependent_column: Of a proposal's columns: squared length, as a share of the largest. In float64 always.
        dependent_krylov: Of a block of a Krylov space: its information, as a share of the largest. In float64 always.
        silent_curvature: Eigenvalue of a curvature as a share of the largest in the data, to which it is lifted to be inverted.
        centred_curvature: Row sum of a curvature as a share of the largest entry, at which it says nothing of a common shift.
        negative_eigenvalue: Of a kernel matrix: how far below zero, as a share of the largest. Beyond that the kernel is no
            covariance function.
        negative_variance: Of a posterior: how far below zero, as a share of the prior variance. A noise of 1e-8 comes near it.
    """

    new_direction: float
    dependent_action: float
    dependent_unit: float
    asymmetric_product: float
    dependent_noise: float
    dependent_column: float
    dependent_krylov: float
    silent_curvature: float
    centred_curvature: float
    negative_eigenvalue: float
    negative_variance: float


_TABLE = {
    torch.float32: Thresholds(
        new_direction=1e-6,
        dependent_action=1e-6,
        dependent_unit=1e-8,
        asymmetric_product=2e-6,
        dependent_noise=1e-13,
        dependent_column=1e-10,
        dependent_krylov=1e-10,
        silent_curvature=1e-7,
        centred_curvature=1e-5,
        negative_eigenvalue=5e-4,
        negative_variance=2e-2,
    ),
    torch.float64: Thresholds(
        new_direction=1e-10,
        dependent_action=1e-12,
        dependent_unit=1e-18,
        asymmetric_product=1e-9,
        dependent_noise=1e-13,
        dependent_column=1e-10,
        dependent_krylov=1e-10,
        silent_curvature=1e-12,
        centred_curvature=1e-10,
        negative_eigenvalue=1e-5,
        negative_variance=1e-4,
    ),
}
# What was little more than rounding is not of unit norm once it is projected again.
HALF_OF_A_UNIT = 0.5


def thresholds(dtype: torch.dtype) -> Thresholds:
    """The numbers for data of a dtype.

    Raises:
        InputError: If none were measured for it.
    """
    if dtype not in _TABLE:
        known = " or ".join(str(known) for known in _TABLE)
        raise InputError(f"Data must be {known}. Got {dtype}. Convert them, for example by `x.float()`.")
    return _TABLE[dtype]
