"""Structures of a model that compete: which kernel, on which scale of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gpytorch.kernels import ConstantKernel, Kernel, LinearKernel, MaternKernel, ScaleKernel
from torch import Tensor

from itergp.errors import InputError
from itergp.kernels import (
    AdditiveLaplacianKernel,
    CategoricalKernel,
    LaplacianKernel,
    TiedLaplacianKernel,
    TiedMaternKernel,
)
from itergp.learning.lengthscale_prior import keep_alike
from itergp.models.gp import MAX_ARD_COLUMNS
from itergp.models.input_transforms import InputTransform, QuantileTransform

_WEIGHT_VARIANCE = 0.01  # of a weight near one, where learning starts
_EQUAL = 0.01  # lengthscale of levels at which different ones have a covariance of exp(-100)
_SCALES = {"ranks": "uniform", "normal scores": "normal"}


@dataclass(frozen=True)
class InputColumns:
    """What a kernel may know of the columns of its inputs.

    Attributes:
        num_columns: D.
        numeric: Columns on a scale of their own, whose ranks say as much as their values.
        groups: For each column the number of the original one that it encodes: those of a group share a lengthscale.
        codes: Columns of integer codes of levels without an order.
        linear: Columns that functions are linear in and nothing else, such as predictions of another model.
        random_effects: Columns of integer codes of groups, each with None for what is added to its rows, or with the column
            whose slope differs by group. Neither metric nor among ``codes``: they have terms of their own.
    """

    num_columns: int
    numeric: tuple[int, ...]
    groups: tuple[int, ...]
    codes: tuple[int, ...] = ()
    linear: tuple[int, ...] = ()
    random_effects: tuple[tuple[int, int | None], ...] = ()

    @classmethod
    def plain(cls, num_columns: int) -> InputColumns:
        """All columns are numbers, each on its own."""
        every = tuple(range(num_columns))
        return cls(num_columns, every, every)

    @property
    def metric(self) -> tuple[int, ...]:
        """Columns that distances are taken in: all but the codes, the groups, and those that functions are linear in."""
        others = {*self.codes, *self.linear, *(group for group, _ in self.random_effects)}
        return tuple(column for column in range(self.num_columns) if column not in others)

    @property
    def own_groups(self) -> tuple[int, ...]:
        """Groups of the metric columns, numbered from zero."""
        order = {group: number for number, group in enumerate(dict.fromkeys(self.groups[c] for c in self.metric))}
        return tuple(order[self.groups[column]] for column in self.metric)


@dataclass(frozen=True)
class Structure:
    """A kernel and a scale of the inputs.

    Attributes:
        kernel: One of ``KERNELS``.
        scale: ``"as given"``, ``"ranks"`` or ``"normal scores"`` of the numeric columns.
    """

    kernel: str
    scale: str = "as given"

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise InputError(f"`kernel` must be one of {', '.join(KERNELS)}. Got {self.kernel!r}. Choose one of these.")
        if self.scale != "as given" and self.scale not in _SCALES:
            raise InputError(f"`scale` must be 'as given', {', '.join(map(repr, _SCALES))}. Got {self.scale!r}.")

    def __str__(self) -> str:
        return self.kernel if self.scale == "as given" else f"{self.kernel} on {self.scale}"

    def make_kernel(self, columns: InputColumns, batch_shape: torch.Size | None = None) -> Kernel:
        """A new kernel for inputs with these columns, whose lengthscales are alike until the data say otherwise.

        It has a term for each random effect, and one for the columns that functions are linear in.
        """
        shape = torch.Size([]) if batch_shape is None else batch_shape
        known = columns.metric or columns.codes
        made = keep_alike(KERNELS[self.kernel](columns, shape)) if known else None
        return with_linear(with_random_effects(made, columns, shape), columns, shape)

    def make_transform(self, x: Tensor, columns: InputColumns) -> InputTransform | None:
        """The transform of inputs learned from training inputs ``(N, D)``; None to leave them as they are."""
        if self.scale == "as given" or not columns.numeric:
            return None
        return QuantileTransform(x, _SCALES[self.scale], list(columns.numeric))  # type: ignore[arg-type]


def kernel_of_distance(
    plain: Callable[..., Kernel],
    tied: Callable[..., Kernel] | None,
    columns: InputColumns,
    *,
    ard: bool | None = None,
    batch_shape: torch.Size,
) -> Kernel:
    """A kernel of the metric columns: a lengthscale for each of their groups, or one for all.

    Args:
        plain: The kernel, given keywords ``ard_num_dims``, ``batch_shape`` and ``active_dims``.
        tied: The same with ``groups`` in place of ``ard_num_dims``; None if it has no lengthscales to share.
        columns: Of the inputs, some of them metric.
        ard: Whether groups have lengthscales of their own; None for up to 100, for more are pixels or embeddings.
        batch_shape: ``[C]`` for a kernel per latent function.
    """
    groups = columns.own_groups
    options: dict[str, Any] = {"batch_shape": batch_shape, "active_dims": _active(columns)}
    count = len(set(groups))
    if not (count <= MAX_ARD_COLUMNS if ard is None else ard):
        return plain(ard_num_dims=None, **options)
    if tied is None or count == len(groups):
        return plain(ard_num_dims=len(groups), **options)
    return tied(groups=groups, **options)


def with_linear(kernel: Kernel, columns: InputColumns, batch_shape: torch.Size) -> Kernel:
    """A kernel, and what is uncertain about the weights of the columns that functions are linear in."""
    if not columns.linear:
        return kernel
    line = LinearKernel(active_dims=columns.linear, batch_shape=batch_shape)
    line.variance = _WEIGHT_VARIANCE
    return kernel + line


def with_random_effects(kernel: Kernel | None, columns: InputColumns, batch_shape: torch.Size) -> Kernel:
    """A kernel plus the terms of groups, as in mixed models: of equal levels, with a variance of their own.

    ``k(g, g') = s [g = g']`` for what is added to the rows of a group, and ``s [g = g'] x x'`` for slopes of a column x. Levels
    that there were none of in training have the prior.

    Args:
        kernel: Of the other columns; None if there are none.
        columns: Of the inputs.
        batch_shape: ``[C]`` for a kernel per latent function.
    """
    terms = [] if kernel is None else [kernel]
    for group, slope in columns.random_effects:
        equal = CategoricalKernel(1, active_dims=(group,), batch_shape=batch_shape)
        equal.lengthscale = _EQUAL
        equal.raw_lengthscale.requires_grad_(False)
        if slope is None:
            terms.append(ScaleKernel(equal, batch_shape=batch_shape))
        else:
            terms.append(equal * LinearKernel(active_dims=(slope,), batch_shape=batch_shape))
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _active(columns: InputColumns) -> tuple[int, ...] | None:
    return columns.metric if len(columns.metric) < columns.num_columns else None


def _matern(nu: float, columns: InputColumns, shape: torch.Size, ard: bool | None = None) -> Kernel:
    return _scaled(partial(MaternKernel, nu=nu), partial(TiedMaternKernel, nu=nu), columns, shape, ard)


def _laplacian(columns: InputColumns, shape: torch.Size) -> Kernel:
    return _scaled(LaplacianKernel, TiedLaplacianKernel, columns, shape)


def _scaled(
    plain: Callable[..., Kernel],
    tied: Callable[..., Kernel],
    columns: InputColumns,
    shape: torch.Size,
    ard: bool | None = None,
) -> Kernel:
    """A scaled kernel of the metric columns, times one of levels that are equal or not, and these by themselves."""
    levels = ScaleKernel(_categories(columns, shape), batch_shape=shape) if columns.codes else None
    if levels is not None and not columns.metric:
        return levels
    kernel = kernel_of_distance(plain, tied, columns, ard=ard, batch_shape=shape)
    if levels is None:
        return ScaleKernel(kernel, batch_shape=shape)
    return ScaleKernel(kernel * _categories(columns, shape), batch_shape=shape) + levels


def _categories(columns: InputColumns, shape: torch.Size) -> Kernel:
    return CategoricalKernel(len(columns.codes), active_dims=columns.codes, batch_shape=shape)


def _additive(columns: InputColumns, shape: torch.Size) -> Kernel:
    main = AdditiveLaplacianKernel(len(columns.metric), active_dims=_active(columns), batch_shape=shape)
    return ScaleKernel(main, batch_shape=shape) + _laplacian(columns, shape)


def _linear(columns: InputColumns, shape: torch.Size) -> Kernel:
    line = LinearKernel(active_dims=_active(columns), batch_shape=shape)
    return line + _matern(1.5, columns, shape)


def _constant(columns: InputColumns, shape: torch.Size) -> Kernel:
    return ScaleKernel(ConstantKernel(batch_shape=shape), batch_shape=shape)


KERNELS: dict[str, Callable[[InputColumns, torch.Size], Kernel]] = {
    "constant": _constant,
    "matern32, one lengthscale": lambda columns, shape: _matern(1.5, columns, shape, ard=False),
    "matern32": lambda columns, shape: _matern(1.5, columns, shape),
    "linear + matern32": _linear,
    "laplacian": _laplacian,
    "matern12 + matern52": lambda columns, shape: _matern(0.5, columns, shape) + _matern(2.5, columns, shape),
    "additive laplacian + laplacian": _additive,
}

_MIXED = Structure("linear + matern32")  # what mixed models have beside their groups
_SUMS = ("matern12 + matern52", "additive laplacian + laplacian")
_FEW_ROWS = 400
# Stationary all: a linear term is sure of itself far from the data. Lengthscales that are long do what it does among them.
AUTOMATIC = (
    Structure("matern32, one lengthscale"),
    Structure("matern32"),
    Structure("laplacian"),
    Structure("laplacian", "ranks"),
    Structure("matern12 + matern52"),
    Structure("additive laplacian + laplacian", "ranks"),
)


def candidates(structures: str | Sequence[Structure], columns: InputColumns, num_rows: int) -> tuple[Structure, ...]:
    """The structures that compete, simple ones first.

    Args:
        structures: ``"auto"``, or structures.
        columns: Of the inputs.
        num_rows: Of the data: few say little about sums of kernels.

    Raises:
        InputError: If they are neither.
    """
    if structures != "auto":
        if isinstance(structures, str) or not all(isinstance(one, Structure) for one in structures) or not structures:
            raise InputError(f"`structures` must be 'auto' or a list of itergp.learning.Structure. Got {structures!r}.")
        return tuple(structures)
    if not columns.metric:
        return (Structure("matern32"),)
    known = (_MIXED, *AUTOMATIC) if columns.random_effects else AUTOMATIC
    if len(columns.metric) == 1 and not columns.codes:  # of one column, several are the same
        same = ("matern32, one lengthscale", "additive laplacian + laplacian")
        return tuple(one for one in known if one.kernel not in same)
    return known if num_rows > _FEW_ROWS else tuple(one for one in known if one.kernel not in _SUMS)
