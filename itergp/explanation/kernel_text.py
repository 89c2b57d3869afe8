"""A fitted kernel in numbers, with the names and units of the columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gpytorch.kernels import AdditiveKernel, Kernel, ProductKernel, ScaleKernel
from numpy.typing import NDArray
from torch import Tensor

from itergp.kernels import PairwiseLaplacianKernel

Array = NDArray[np.float64]

_MOST_NAMED = 12


@dataclass(frozen=True)
class KernelColumns:
    """The encoded columns as a kernel's numbers are shown.

    Attributes:
        names: What each is called ``(E,)``; those of one name have one lengthscale.
        units: One unit of the kernel's inputs in that of the column ``(E,)``.
    """

    names: Sequence[str]
    units: Array


def describe_kernel(kernel: Kernel, columns: KernelColumns) -> str:
    """A kernel as a formula with its values.

    Args:
        kernel: A kernel of encoded columns.
        columns: What these are called.
    """
    return _formula(kernel, columns, list(range(len(columns.names))))


def _formula(kernel: Kernel, columns: KernelColumns, around: list[int] | None) -> str:
    own = around
    if around is not None and kernel.active_dims is not None:
        own = [around[dim] for dim in kernel.active_dims.tolist()]
    if isinstance(kernel, ScaleKernel):
        inner = _formula(kernel.base_kernel, columns, own if kernel.base_kernel.active_dims is None else around)
        return f"{_numbers(kernel.outputscale)} * {_in_brackets(inner)}"
    if isinstance(kernel, (AdditiveKernel, ProductKernel)):
        parts = [_formula(part, columns, own) for part in kernel.kernels]
        product = isinstance(kernel, ProductKernel)
        return " * ".join(map(_in_brackets, parts)) if product else " + ".join(parts)
    inner_parts = [child for child in kernel.children() if isinstance(child, Kernel)]
    arguments = [f"{name}={_parameter(getattr(kernel, name), columns, own)}" for name in _plain_parameters(kernel)]
    if isinstance(kernel, PairwiseLaplacianKernel) and own is not None:
        arguments.insert(0, _lengthscales_of_pairs(kernel, columns, own))
    elif kernel.has_lengthscale and kernel.lengthscale is not None:
        arguments.insert(0, _lengthscales(kernel.lengthscale, columns, own))
    arguments += [_formula(part, columns, None) for part in inner_parts]
    return f"{_name(kernel)}({', '.join(arguments)})"


def _name(kernel: Kernel) -> str:
    name = type(kernel).__name__.removesuffix("Kernel").removeprefix("Tied")
    return f"{name}({kernel.nu:g})" if name == "Matern" else name


def _plain_parameters(kernel: Kernel) -> list[str]:
    names = [name.removeprefix("raw_") for name, _ in kernel.named_parameters(recurse=False)]
    return [name for name in names if name != "lengthscale" and isinstance(getattr(kernel, name, None), Tensor)]


def _lengthscales(values: Tensor, columns: KernelColumns, own: list[int] | None) -> str:
    """One per name, or one for all columns."""
    table = values.detach().double().cpu().numpy().reshape(-1, values.shape[-1])
    if own is None or table.shape[1] != len(own):
        return f"lengthscale={_join(table[:, 0])}" if table.shape[1] == 1 else f"lengthscale={_numbers(values)}"
    first = {columns.names[index]: place for place, index in reversed([*enumerate(own)])}
    shown = [f"{name}: {_join(table[:, place] * columns.units[own[place]])}" for name, place in first.items()][::-1]
    more = len(shown) - _MOST_NAMED
    return ", ".join(shown[:_MOST_NAMED]) + (f", and {more} more" if more > 0 else "")


def _lengthscales_of_pairs(kernel: PairwiseLaplacianKernel, columns: KernelColumns, own: list[int]) -> str:
    """Both of every pair, whose columns may be in others as well."""
    table = kernel.lengthscale.detach().double().cpu().numpy().reshape(-1, len(own))
    each = [f"{columns.names[i]}: {_join(table[:, place] * columns.units[i])}" for place, i in enumerate(own)]
    shown = [f"({first}, {second})" for first, second in zip(each[::2], each[1::2], strict=True)]
    more = len(shown) - _MOST_NAMED
    return ", ".join(shown[:_MOST_NAMED]) + (f", and {more} more" if more > 0 else "")


def _parameter(value: Tensor, columns: KernelColumns, own: list[int] | None) -> str:
    """One number, or one by column."""
    if own is None or len(own) < 2 or value.shape[-1:] != (len(own),):
        return _numbers(value)
    return f"({_lengthscales(value, KernelColumns(columns.names, np.ones(len(columns.names))), own)})"


def _numbers(value: Any) -> str:
    flat = np.atleast_1d(value.detach().double().cpu().numpy()).ravel()
    return _join(flat[:_MOST_NAMED]) + ("..." if len(flat) > _MOST_NAMED else "")


def _join(values: Array) -> str:
    """Of several latent functions, one number each."""
    return " | ".join(f"{value:.3g}" for value in values)


def _in_brackets(text: str) -> str:
    return f"({text})" if " + " in _outside(text) else text


def _outside(text: str) -> str:
    """What is not in brackets."""
    depth, found = 0, []
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        found.append(letter if depth == 0 else "")
    return "".join(found)


class _Described:
    """Mixed into the class of a kernel that prints its values."""

    text: str

    def __repr__(self) -> str:
        return self.text

    __str__ = __repr__

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles are the kernel alone."""
        return _plain_again, (type(self).__mro__[2], {k: v for k, v in vars(self).items() if k != "text"})


def _plain_again(kind: type[Kernel], state: dict[str, Any]) -> Kernel:
    kernel: Kernel = object.__new__(kind)
    vars(kernel).update(state)
    return kernel


def printing(kernel: Kernel, text: str) -> Kernel:
    """The same kernel, sharing parameters and parts, which prints a text."""
    kind = type(kernel)
    shown = type(kind.__name__, (_Described, kind), {"__module__": kind.__module__})
    return _plain_again(shown, {**vars(kernel), "text": text})
