"""Kernels by name, as GPyTorch modules, or as scikit-learn's objects."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gpytorch
import numpy as np
import torch
from gpytorch.kernels import (
    AdditiveKernel,
    ArcKernel,
    CosineKernel,
    CylindricalKernel,
    DistributionalInputKernel,
    GridInterpolationKernel,
    GridKernel,
    HammingIMQKernel,
    IndexKernel,
    InducingPointKernel,
    Kernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    ProductKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
    SpectralMixtureKernel,
)
from numpy.typing import NDArray
from sklearn.gaussian_process import kernels as theirs

from itergp.errors import InputError
from itergp.kernels import (
    CategoricalKernel,
    LaplacianKernel,
    OrderedCategoricalKernel,
    TiedLaplacianKernel,
    TiedMaternKernel,
    TiedRBFKernel,
)
from itergp.kernels.tied import TiedLengthscales
from itergp.learning import InputColumns
from itergp.learning.structures import kernel_of_distance, with_linear, with_random_effects
from itergp.sklearn.columns import input_columns
from itergp.tables import TableColumns

DEFAULT_KERNEL = "matern32"
AUTOMATIC = "auto"  # the name of the kernel that held-out rows choose
_NOISES = ("gaussian", "student_t", "laplace", "heteroscedastic")

# Categories, angles, points and grids in the units of the data.
_RAW = (
    ArcKernel,
    CylindricalKernel,
    DistributionalInputKernel,
    GridKernel,
    HammingIMQKernel,
    IndexKernel,
    InducingPointKernel,
    CategoricalKernel,
    OrderedCategoricalKernel,
)
_PASSING = (AdditiveKernel, GridInterpolationKernel, InducingPointKernel, ProductKernel)  # all columns, as they are

# name -> the kernel, given keywords ard_num_dims, batch_shape and active_dims
KERNELS: dict[str, Callable[..., Kernel]] = {
    "matern12": partial(MaternKernel, nu=0.5),
    "matern32": partial(MaternKernel, nu=1.5),
    "matern52": partial(MaternKernel, nu=2.5),
    "rbf": RBFKernel,
    "laplacian": LaplacianKernel,
    "rational_quadratic": RQKernel,
    "linear": LinearKernel,
}


class TiedRQKernel(TiedLengthscales, RQKernel):
    """GPyTorch's ``RQKernel`` whose inputs share lengthscales by groups."""


# name -> the same with the keyword groups in place of ard_num_dims; a linear kernel has no lengthscales to share
TIED: dict[str, Callable[..., Kernel]] = {
    "matern12": partial(TiedMaternKernel, nu=0.5),
    "matern32": partial(TiedMaternKernel, nu=1.5),
    "matern52": partial(TiedMaternKernel, nu=2.5),
    "rbf": TiedRBFKernel,
    "laplacian": TiedLaplacianKernel,
    "rational_quadratic": TiedRQKernel,
}


def make_kernel(
    kernel: Any,
    num_columns: int,
    *,
    ard: bool | None,
    spread: float,
    outputscale: float,
    batch_shape: torch.Size | None = None,
    columns: TableColumns | None = None,
    num_linear: int = 0,
) -> Kernel:
    """A new kernel module.

    Args:
        kernel: Its name, a GPyTorch kernel (copied), a scikit-learn kernel (translated), or None for the default, with which
            a choice by held-out rows begins too.
        num_columns: E, of the encoded table.
        ard: One lengthscale per column, for kernels by name; None for up to 100 columns. Encoded columns that mean one thing
            share theirs.
        spread: Root mean square distance between rows; lengthscales of kernels by name start at half of it.
        outputscale: Where the output scale of kernels by name starts.
        batch_shape: ``[C]`` for a kernel by name per latent function.
        columns: What the encoded columns mean, for kernels by name; default numbers.
        num_linear: Columns after these that functions are linear in, for kernels by name.

    Raises:
        InputError: If the name is unknown, or the kernel does not fit the columns.
    """
    if kernel is None or is_automatic(kernel):
        kernel = DEFAULT_KERNEL
    if isinstance(kernel, Kernel):
        _check_columns(kernel, num_columns)
        return copy.deepcopy(kernel)
    if isinstance(kernel, theirs.Kernel):
        translated = translate(kernel)
        _check_columns(translated, num_columns)
        return translated
    _check_name(kernel)
    known, shape = input_columns(columns, num_columns, num_linear), batch_shape or torch.Size([])
    of_others = _scaled(kernel.lower(), known, ard, shape, spread) if known.metric or known.codes else None
    made = with_random_effects(of_others, known, shape)
    for module in made.modules():
        if isinstance(module, ScaleKernel):
            module.outputscale = outputscale
    return with_linear(made, known, shape)


def _scaled(name: str, columns: InputColumns, ard: bool | None, batch_shape: torch.Size, spread: float) -> Kernel:
    """A scaled kernel of the columns that are no groups; its lengthscales start at half of ``spread``."""
    base = _by_name(name, columns, ard, batch_shape)
    made = ScaleKernel(base, batch_shape=batch_shape)
    start = 0.5 * spread if spread > 0.0 else 1.0  # rows that are all equal have no scale
    for part in base.kernels if isinstance(base, ProductKernel) else [base]:
        if part.has_lengthscale:
            # Sums of absolute differences grow with the number of columns, roots of sums of squares with its root.
            part.lengthscale = start * columns.num_columns**0.5 if isinstance(part, LaplacianKernel) else start
    return made


def is_automatic(kernel: Any) -> bool:
    """Whether held-out rows are to choose the kernel."""
    return isinstance(kernel, str) and kernel.lower() == AUTOMATIC


def is_own(kernel: Any) -> bool:
    """Whether a kernel is an object that knows the columns it reads, and not one by name."""
    return isinstance(kernel, (Kernel, theirs.Kernel))


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.lower() not in KERNELS:
        if name in _NOISES:
            raise InputError(f"`kernel` must be a kernel. Got the noise {name!r}. Pass it as likelihood={name!r}.")
        close = difflib.get_close_matches(str(name).lower(), KERNELS, n=1, cutoff=0.4)
        hint = f"Did you mean {close[0]!r}?" if close else "Choose one of these."
        raise InputError(
            f"`kernel` must be one of {', '.join(map(repr, (AUTOMATIC, *KERNELS)))}, or a GPyTorch kernel. Got {name!r}. {hint}"
        )


def _by_name(name: str, columns: InputColumns, ard: bool | None, batch_shape: torch.Size) -> Kernel:
    """A kernel of the distance of what has one, times one of what is equal or not."""
    equal = None
    if columns.codes:
        equal = CategoricalKernel(len(columns.codes), active_dims=columns.codes, batch_shape=batch_shape)
        if not columns.metric:
            return equal
    kernel = kernel_of_distance(KERNELS[name], TIED.get(name), columns, ard=ard, batch_shape=batch_shape)
    return kernel if equal is None else kernel * equal


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
    for module, columns in _columns_of(kernel, list(range(num_columns))):
        wanted = getattr(module, "ard_num_dims", None)
        if wanted is not None and columns is not None and wanted != len(columns):
            raise InputError(
                f"The kernel must have as many lengthscales as `X` has columns, {len(columns)}. Got "
                f"{type(module).__name__} with {wanted}. Set ard_num_dims={len(columns)}, or active_dims."
            )


def raw_columns(kernel: Any, num_columns: int) -> NDArray[np.bool_]:
    """Which columns ``(D,)`` a kernel needs as they are, not standardised: with categories, periods, grids or points.

    Args:
        kernel: As in ``make_kernel``; kernels by name take any columns.
        num_columns: D.

    Raises:
        InputError: If the kernel reads columns that there are not.
    """
    raw = np.zeros(num_columns, dtype=bool)
    around = list(range(num_columns))  # those of the kernel around one whose own are not known
    for module, columns in _parts(kernel, num_columns):
        around = around if columns is None else columns
        if _needs_raw(module):
            raw[around] = True
    return raw


def category_columns(kernel: Any, num_columns: int) -> dict[int, int]:
    """Columns of kernels that know how many categories there are, and that number; arguments as for ``raw_columns``."""
    found: dict[int, int] = {}
    for module, columns in _parts(kernel, num_columns):
        if isinstance(module, IndexKernel):
            found.update(dict.fromkeys(columns or [], module.covar_factor.shape[-2]))
        elif isinstance(module, OrderedCategoricalKernel):
            found.update(dict.fromkeys(columns or [], module.num_levels))
    return found


def _parts(kernel: Any, num_columns: int) -> Iterator[tuple[Kernel, list[int] | None]]:
    kernel = translate(kernel) if isinstance(kernel, theirs.Kernel) else kernel
    if isinstance(kernel, Kernel):
        yield from _columns_of(kernel, list(range(num_columns)))


def _needs_raw(module: Kernel) -> bool:
    """Whether a kernel's columns have units that its parameters were given in, or none at all."""
    if isinstance(module, (PeriodicKernel, CosineKernel)):
        return bool(module.raw_period_length.any()) or not module.raw_period_length.requires_grad
    if isinstance(module, SpectralMixtureKernel):
        return bool(module.raw_mixture_means.any())
    if isinstance(module, GridInterpolationKernel):
        return not module.grid_is_dynamic
    return isinstance(module, _RAW)


def _columns_of(kernel: Kernel, around: list[int] | None) -> Iterator[tuple[Kernel, list[int] | None]]:
    """A kernel and those inside it, each with the columns it reads; None below kernels that hand on something else."""
    columns = around
    if around is not None and kernel.active_dims is not None:
        dims = kernel.active_dims.tolist()
        if not all(0 <= dim < len(around) for dim in dims):
            raise InputError(
                f"`active_dims` must be among the {len(around)} column(s) that {type(kernel).__name__} is given, "
                f"counted from 0. Got {dims}. Correct them."
            )
        columns = [around[dim] for dim in dims]
    yield kernel, columns
    if isinstance(kernel, ScaleKernel):  # it has taken the columns of the kernel inside, which it asks directly
        yield from _columns_of(kernel.base_kernel, columns if kernel.base_kernel.active_dims is None else around)
        return
    passes_on = isinstance(kernel, _PASSING)
    for child in kernel.children():
        for part in child if isinstance(child, torch.nn.ModuleList) else [child]:
            if isinstance(part, Kernel):
                yield from _columns_of(part, columns if passes_on else None)


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
