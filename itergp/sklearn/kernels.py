"""Kernels by name, as GPyTorch modules, or as scikit-learn's objects."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable
from typing import Any

import gpytorch
import numpy as np
import torch
from gpytorch.kernels import (
    CosineKernel,
    GridInterpolationKernel,
    GridKernel,
    HammingIMQKernel,
    IndexKernel,
    InducingPointKernel,
    Kernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from numpy.typing import NDArray
from sklearn.gaussian_process import kernels as theirs
from torch import Tensor
from torch.nn import ModuleList

from itergp.errors import InputError

DEFAULT_KERNEL = "matern32"
_NOISES = ("gaussian", "student_t", "laplace", "heteroscedastic")
_MAX_ARD_COLUMNS = 100

# What such kernels say of a column is in its own units: categories, periods, grids, inducing points.
_IN_RAW_UNITS = (
    IndexKernel,
    HammingIMQKernel,
    PeriodicKernel,
    CosineKernel,
    GridKernel,
    GridInterpolationKernel,
    InducingPointKernel,
)

# name -> the kernel, given keywords ard_num_dims and batch_shape
KERNELS: dict[str, Callable[..., Kernel]] = {
    "matern12": lambda **options: MaternKernel(nu=0.5, **options),
    "matern32": lambda **options: MaternKernel(nu=1.5, **options),
    "matern52": lambda **options: MaternKernel(nu=2.5, **options),
    "rbf": RBFKernel,
    "rational_quadratic": RQKernel,
    "linear": LinearKernel,
}


def make_kernel(
    kernel: Any,
    num_columns: int,
    *,
    ard: bool | None,
    spread: float,
    outputscale: float,
    batch_shape: torch.Size | None = None,
) -> Kernel:
    """A new kernel module.

    Args:
        kernel: Its name, a GPyTorch kernel (copied), a scikit-learn kernel (translated), or None for the default.
        num_columns: D.
        ard: One lengthscale per column, for kernels by name; None for up to 100 columns.
        spread: Root mean square distance between rows; lengthscales of kernels by name start at half of it.
        outputscale: Where the output scale of kernels by name starts.
        batch_shape: ``[C]`` for a kernel by name per latent function.

    Raises:
        InputError: If the name is unknown, or the kernel does not fit the columns.
    """
    if kernel is None:
        kernel = DEFAULT_KERNEL
    if isinstance(kernel, Kernel):
        _check_columns(kernel, num_columns)
        return copy.deepcopy(kernel)
    if isinstance(kernel, theirs.Kernel):
        translated = translate(kernel)
        _check_columns(translated, num_columns)
        return translated
    made = _by_name(kernel, num_columns, ard, batch_shape or torch.Size([]))
    made.outputscale = outputscale
    if made.base_kernel.has_lengthscale:
        made.base_kernel.lengthscale = max(0.5 * spread, 1e-6)
    return made


def _by_name(name: Any, num_columns: int, ard: bool | None, batch_shape: torch.Size) -> ScaleKernel:
    if not isinstance(name, str) or name.lower() not in KERNELS:
        if name in _NOISES:
            raise InputError(f"`kernel` must be a kernel. Got the noise {name!r}. Pass it as noise={name!r}.")
        close = difflib.get_close_matches(str(name).lower(), KERNELS, n=1, cutoff=0.4)
        hint = f"Did you mean {close[0]!r}?" if close else "Choose one of these."
        raise InputError(
            f"`kernel` must be one of {', '.join(map(repr, KERNELS))}, or a GPyTorch kernel. Got {name!r}. {hint}"
        )
    ard = num_columns <= _MAX_ARD_COLUMNS if ard is None else ard
    base = KERNELS[name.lower()](ard_num_dims=num_columns if ard else None, batch_shape=batch_shape)
    return ScaleKernel(base, batch_shape=batch_shape)


def raw_columns(kernel: Any, num_columns: int) -> NDArray[np.bool_]:
    """Which columns a kernel needs as they are: numbers of categories, and those with periods or grids.

    Args:
        kernel: As in ``make_kernel``.
        num_columns: D.
    """
    raw = np.zeros(num_columns, dtype=bool)
    if isinstance(kernel, theirs.Kernel):
        kernel = translate(without_noise(kernel)[0])
    if isinstance(kernel, Kernel):
        raw[_raw(kernel, torch.arange(num_columns))] = True
    return raw


def _raw(kernel: Kernel, columns: Tensor) -> list[int]:
    if kernel.active_dims is not None and not isinstance(kernel, ScaleKernel):  # it has those of its base
        columns = columns[kernel.active_dims.cpu()]
    if isinstance(kernel, _IN_RAW_UNITS):
        return columns.tolist()
    parts = [part for child in kernel.children() for part in (child if isinstance(child, ModuleList) else [child])]
    return [column for part in parts if isinstance(part, Kernel) for column in _raw(part, columns)]


def without_noise(kernel: theirs.Kernel) -> tuple[theirs.Kernel, float | None, bool]:
    """A scikit-learn kernel without its white noise, the noise's variance or None, and whether that is fixed.

    Raises:
        InputError: If there is nothing but noise.
    """
    rest, level, fixed = _without_noise(kernel)
    if rest is None:
        raise InputError(
            f"`kernel` must have a part that is no WhiteKernel. Got {kernel}. Add one, for example RBF() + "
            f"WhiteKernel()."
        )
    return rest, level, fixed


def _without_noise(kernel: theirs.Kernel) -> tuple[theirs.Kernel | None, float | None, bool]:
    if isinstance(kernel, theirs.WhiteKernel):
        return None, float(kernel.noise_level), kernel.hyperparameter_noise_level.fixed
    if isinstance(kernel, theirs.Product):
        for constant, other in ((kernel.k1, kernel.k2), (kernel.k2, kernel.k1)):
            if isinstance(constant, theirs.ConstantKernel) and isinstance(other, theirs.WhiteKernel):
                rest, level, fixed = _without_noise(other)
                return rest, constant.constant_value * (level or 0.0), fixed
    if isinstance(kernel, theirs.Sum):
        first, second = _without_noise(kernel.k1), _without_noise(kernel.k2)
        levels = [level for _, level, _ in (first, second) if level is not None]
        rests = [rest for rest, _, _ in (first, second) if rest is not None]
        rest = theirs.Sum(*rests) if len(rests) == 2 else rests[0] if rests else None
        return rest, sum(levels) if levels else None, first[2] or second[2]
    return kernel, None, False


def _check_columns(kernel: Kernel, num_columns: int) -> None:
    for module in kernel.modules():
        wanted = getattr(module, "ard_num_dims", None)
        if wanted is not None and module.active_dims is None and wanted != num_columns:
            raise InputError(
                f"The kernel must have as many lengthscales as `X` has columns, {num_columns}. Got "
                f"{type(module).__name__} with {wanted}. Set ard_num_dims={num_columns}, or active_dims."
            )


def translate(kernel: theirs.Kernel) -> Kernel:
    """A scikit-learn kernel as GPyTorch's, with its values; what is "fixed" there does not learn here.

    Raises:
        InputError: If GPyTorch has no such kernel.
    """
    if isinstance(kernel, theirs.Product):
        return _product(kernel)
    if isinstance(kernel, theirs.Sum):
        return translate(kernel.k1) + translate(kernel.k2)
    if isinstance(kernel, theirs.RBF) and not isinstance(kernel, theirs.Matern):
        return _stationary(RBFKernel(ard_num_dims=_ard(kernel)), kernel)
    if isinstance(kernel, theirs.Matern) and kernel.nu in (0.5, 1.5, 2.5):
        return _stationary(MaternKernel(nu=kernel.nu, ard_num_dims=_ard(kernel)), kernel)
    if isinstance(kernel, theirs.RationalQuadratic):
        made = _stationary(RQKernel(), kernel)
        made.alpha = kernel.alpha
        return _fix(made, "raw_alpha", kernel.hyperparameter_alpha)
    if isinstance(kernel, theirs.ConstantKernel):
        made = gpytorch.kernels.ConstantKernel()
        made.constant = torch.tensor(kernel.constant_value)
        return _fix(made, "raw_constant", kernel.hyperparameter_constant_value)
    if isinstance(kernel, theirs.DotProduct):
        made = LinearKernel()
        made.variance = 1.0
        made.raw_variance.requires_grad_(False)
        constant = theirs.ConstantKernel(kernel.sigma_0**2, kernel.sigma_0_bounds)
        return made + translate(constant)
    if isinstance(kernel, theirs.ExpSineSquared):
        made = PeriodicKernel()
        made.period_length = kernel.periodicity
        made.lengthscale = kernel.length_scale**2  # GPyTorch's is the square
        _fix(made, "raw_period_length", kernel.hyperparameter_periodicity)
        return _fix(made, "raw_lengthscale", kernel.hyperparameter_length_scale)
    remedy = "Leave it out: noise belongs to the likelihood." if isinstance(kernel, theirs.WhiteKernel) else ""
    raise InputError(
        "`kernel` must be made of RBF, Matern (nu 0.5, 1.5, 2.5), RationalQuadratic, ExpSineSquared, ConstantKernel "
        "and "
        f"DotProduct. Got {kernel}. {remedy or 'Pass a GPyTorch kernel instead.'}"
    )


def _product(kernel: theirs.Product) -> Kernel:
    for constant, other in ((kernel.k1, kernel.k2), (kernel.k2, kernel.k1)):
        if isinstance(constant, theirs.ConstantKernel):
            made = ScaleKernel(translate(other))
            made.outputscale = constant.constant_value
            return _fix(made, "raw_outputscale", constant.hyperparameter_constant_value)
    return translate(kernel.k1) * translate(kernel.k2)


def _ard(kernel: Any) -> int | None:
    return len(kernel.length_scale) if kernel.anisotropic else None


def _stationary(made: Kernel, kernel: Any) -> Kernel:
    made.lengthscale = torch.as_tensor(kernel.length_scale)
    return _fix(made, "raw_lengthscale", kernel.hyperparameter_length_scale)


def _fix(made: Kernel, name: str, hyperparameter: Any) -> Kernel:
    getattr(made, name).requires_grad_(not hyperparameter.fixed)
    return made
