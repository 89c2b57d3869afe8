"""Kernels that a model's ``forward`` implies: selected columns, call keywords, weighted sums, and known matrices."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from gpytorch.kernels import GridInterpolationKernel, Kernel
from torch import Tensor

from itergp.errors import InputError


class DerivedKernel(Kernel):
    """A kernel made from others, or from tensors that are no parameters of it."""

    def tensors(self) -> Iterator[Tensor]:
        """What it depends on beside parameters; derivatives may be wanted in them."""
        yield from ()

    @abstractmethod
    def detach_tensors(self) -> None:
        """Forgets the derivatives of those tensors."""


def requires_grad(kernel: Kernel) -> bool:
    """Whether a kernel's entries have derivatives in anything but the inputs."""
    return any(parameter.requires_grad for parameter in kernel.parameters()) or any(
        tensor.requires_grad
        for module in kernel.modules()
        if isinstance(module, DerivedKernel)
        for tensor in module.tensors()
    )


class CalledKernel(DerivedKernel):
    """A kernel as ``forward`` called it: its ``active_dims`` already taken, and with keywords of the call.

    Args:
        kernel: The kernel.
        keywords: What it was called with beside the inputs.
        dtype: Of the inputs it was called with, which integers lose where several terms' inputs stand side by side.
    """

    def __init__(self, kernel: Kernel, keywords: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.kernel = kernel
        self._keywords = keywords
        self._dtype = dtype

    @property
    def is_stationary(self) -> bool:
        """Whether the kernel is."""
        return self.kernel.is_stationary

    @property
    def has_keywords(self) -> bool:
        """Whether it was called with any."""
        return bool(self._keywords)

    @property
    def takes_inputs_as_they_are(self) -> bool:
        """Whether it is the kernel itself, but for columns that were taken."""
        return not self._keywords and self._dtype.is_floating_point

    def num_outputs_per_input(self, x1: Tensor, x2: Tensor) -> int:
        """The kernel's."""
        return self.kernel.num_outputs_per_input(self.columns(x1), self.columns(x2))

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """The kernel's entries at the selected columns."""
        first, second = self.columns(x1), self.columns(x2)
        found = self.kernel.forward(first, second, diag=diag, **{**_without_default(params), **self._keywords})
        rows = x1.shape[-2]
        if diag and found.dim() >= 2 and found.shape[-2:] == (rows, rows) and found.dim() >= x1.dim():
            return found.diagonal(dim1=-1, dim2=-2)  # of a kernel that takes no notice of diag
        return found

    def columns(self, x: Tensor) -> Tensor:
        """Inputs in the dtype that ``forward`` gave the kernel."""
        return x if self._dtype.is_floating_point else x.detach().round().to(self._dtype)

    def tensors(self) -> Iterator[Tensor]:
        """Keywords that are tensors."""
        yield from (value for value in self._keywords.values() if torch.is_tensor(value))

    def detach_tensors(self) -> None:
        """Forgets their derivatives."""
        self._keywords = {
            name: value.detach() if torch.is_tensor(value) else value for name, value in self._keywords.items()
        }


def _without_default(params: dict[str, Any]) -> dict[str, Any]:
    """GPyTorch hands ``last_dim_is_batch=False`` down whether or not anybody gave it."""
    return {name: value for name, value in params.items() if not (name == "last_dim_is_batch" and value is False)}


class SumOfTerms(DerivedKernel):
    """A weighted sum of kernels, each on its own columns of the features.

    Args:
        kernels: The kernels.
        coefficients: Their factors, None for 1.
        widths: Numbers of columns.
    """

    def __init__(self, kernels: list[Kernel], coefficients: list[Tensor | None], widths: list[int]) -> None:
        super().__init__()
        self.kernels = torch.nn.ModuleList(kernels)
        self._coefficients = coefficients
        self._widths = widths

    @property
    def coefficients(self) -> list[Tensor | None]:
        """The kernels' factors, None for 1."""
        return self._coefficients

    @property
    def widths(self) -> list[int]:
        """The kernels' numbers of columns."""
        return self._widths

    @property
    def is_stationary(self) -> bool:
        """Whether every term is stationary."""
        return all(kernel.is_stationary for kernel in self.kernels)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """The sum of the terms' entries."""
        values = [kernel(first, second, diag=diag, **params) for kernel, first, second in self.terms(x1, x2)]
        return self.total([value if torch.is_tensor(value) else value.to_dense() for value in values], diag)

    def terms(self, x1: Tensor, x2: Tensor) -> Iterator[tuple[Kernel, Tensor, Tensor]]:
        """Every kernel with its own columns of the inputs."""
        yield from zip(self.kernels, x1.split(self._widths, -1), x2.split(self._widths, -1), strict=True)

    def parts(self) -> Iterator[tuple[Kernel, slice, Tensor | None]]:
        """Every kernel with its columns and its factor."""
        start = 0
        for kernel, width, coefficient in zip(self.kernels, self._widths, self._coefficients, strict=True):
            yield kernel, slice(start, start + width), coefficient
            start += width

    def num_outputs_per_input(self, x1: Tensor, x2: Tensor) -> int:
        """That of the first term, which all have."""
        kernel, first, second = next(self.terms(x1, x2))
        return kernel.num_outputs_per_input(first, second)

    def total(self, values: Sequence[Tensor], diag: bool = False) -> Tensor:
        """The weighted sum of the terms' entries."""
        total: Tensor | None = None
        for value, coefficient in zip(values, self._coefficients, strict=True):
            if coefficient is not None:
                value = value * (coefficient.squeeze(-1) if diag and coefficient.dim() > 1 else coefficient)
            total = value if total is None else total + value
        assert total is not None
        return total

    def tensors(self) -> Iterator[Tensor]:
        """The coefficients."""
        yield from (value for value in self._coefficients if value is not None)

    def detach_tensors(self) -> None:
        """Forgets their derivatives."""
        self._coefficients = [None if value is None else value.detach() for value in self._coefficients]


class TabulatedKernel(DerivedKernel):
    """A covariance that was evaluated whole, once; its inputs are row numbers ``(n, 1)``.

    That is how a covariance whose blocks depend on all of the inputs becomes a function of two rows.

    Args:
        matrix: Covariances ``(R, T)``, or ``(C, R, T)``, of the last R of T rows with all of them; ``(R C, T C)``, outputs of
            a row side by side, where these are coupled.
        num_outputs: C of coupled outputs, otherwise 1.
    """

    def __init__(self, matrix: Tensor, num_outputs: int = 1) -> None:
        super().__init__(batch_shape=matrix.shape[:-2])
        self._matrix, self._outputs = matrix, num_outputs

    @property
    def num_rows(self) -> int:
        """T."""
        return self._matrix.shape[-1] // self._outputs

    def num_outputs_per_input(self, x1: Tensor, x2: Tensor) -> int:
        """C of coupled outputs, otherwise 1."""
        return self._outputs

    @property
    def dtype(self) -> torch.dtype:
        """That of the matrix."""
        return self._matrix.dtype

    @property
    def device(self) -> torch.device:
        """That of the matrix."""
        return self._matrix.device

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Covariances ``(..., b, m)`` between rows of these numbers; with ``diag`` ``(..., b)``."""
        first, second = (x.detach().reshape(-1, x.shape[-2])[0].round().long() for x in (x1, x2))
        low = self.num_rows - self._matrix.shape[-2] // self._outputs
        turned = not diag and int(first.min()) < low
        if turned:
            first, second = second, first
        if max(int(first.max()), int(second.max())) >= self.num_rows or int(first.min()) < low:
            raise InputError(
                "Covariances of a `forward` that looks at all of its rows at once are known between training inputs "
                "and one "
                "set of new inputs. Got others. Return covar_module(x) with a kernel that is a function of two rows, "
                "or ask "
                "for all new inputs at once."
            )
        first, second = self._of_outputs(first - low), self._of_outputs(second)
        if diag:
            return self._matrix[..., first, second]
        entries = self._matrix[..., _as_slice(first), :][..., _as_slice(second)]
        return entries.mT if turned else entries

    def _of_outputs(self, rows: Tensor) -> Tensor:
        """Row numbers as numbers of the outputs of these rows."""
        outputs = torch.arange(self._outputs, device=rows.device)
        return (self._outputs * rows.unsqueeze(-1) + outputs).flatten()

    def tensors(self) -> Iterator[Tensor]:
        """The matrix."""
        yield self._matrix

    def detach_tensors(self) -> None:
        """Forgets its derivatives."""
        self._matrix = self._matrix.detach()

    def __deepcopy__(self, memo: dict[int, Any]) -> TabulatedKernel:
        """A copy that shares the matrix, which nobody writes to."""
        made = TabulatedKernel(self._matrix, self._outputs)
        memo[id(self)] = made
        made.train(self.training)
        return made


def _as_slice(numbers: Tensor) -> Tensor | slice:
    """Consecutive numbers as a slice, which needs no copy."""
    start, count = int(numbers[0]), numbers.numel()
    if int(numbers[-1]) == start + count - 1 and bool((numbers.diff() == 1).all()):
        return slice(start, start + count)
    return numbers


def snapshot(kernel: Kernel) -> Kernel:
    """A copy of a kernel that stays what it is, without derivatives in hyperparameters.

    Copies of some of GPyTorch's kernels are in training mode, or share modules with the original: neither shows here.
    Grids stay where they are.
    """
    clear_caches(kernel)
    twin = copy.deepcopy(kernel)
    originals = dict(kernel.named_modules(remove_duplicate=False))
    for name, module in twin.named_modules(remove_duplicate=False):
        module.training = originals[name].training
        if isinstance(module, DerivedKernel):
            module.detach_tensors()
        if isinstance(module, GridInterpolationKernel):
            module.grid_is_dynamic = False
    shared = {id(parameter) for parameter in kernel.parameters()}
    for parameter in twin.parameters():
        if id(parameter) not in shared:
            parameter.requires_grad_(False)
    return twin


def clear_caches(kernel: Kernel) -> None:
    """Frees what kernels keep in evaluation mode of hyperparameters that may have changed since."""
    for module in kernel.modules():
        if isinstance(module, Kernel):
            module._clear_cache()
