"""``KeOpsOperator``: products compiled by KeOps, for CUDA and inputs of moderate dimension."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Hashable

import torch
from gpytorch.kernels import Kernel
from torch import Tensor
from torch.nn.functional import pad

from itergp.errors import InputError, ItergpWarning
from itergp.numerics.sampling import sample_of_rows
from itergp.operators.base import KernelOperator
from itergp.operators.blocked import BlockedOperator
from itergp.operators.forms import as_form
from itergp.operators.timing import FEW_COLUMNS, seconds_of_product

# Each thread keeps a sum for every column in its registers; more columns are a matter of multiplying matrices.
MOST_COLUMNS = 64
_MOST_DIMENSIONS = 64
_DEVICES = ("cuda",)  # on a CPU blocks are faster by far, and nothing must be compiled for them
_TIMED_ROWS = 16_384
_pays: dict[Hashable, bool] = {}


def keops_available() -> bool:
    """Whether the ``keops`` extra is installed."""
    return importlib.util.find_spec("pykeops") is not None


class KeOpsOperator(BlockedOperator):
    """Map-reduce products that never hold a block of entries: memory ``O(N k)``.

    Works for RBF and Matern kernels, GPyTorch's ordinary and its KeOps ones, for those of ``itergp.kernels``, and for sums,
    products and scales of these. Columns are padded to a power of two,
    so that few formulas are compiled; blocks of more than 64 columns are multiplied as ``BlockedOperator`` does it.

    Raises:
        InputError: If KeOps is not installed, or the kernel is not one it knows here.
    """

    def __init__(self, *args, **kwargs) -> None:
        """See ``KernelOperator``."""
        super().__init__(*args, **kwargs)
        if not keops_available():
            raise InputError(
                "The KeOps operator needs the package pykeops, which is not installed. "
                "Install it with `pip install itergp[keops]` or choose operator='blocked'."
            )
        if self.form is None:
            raise InputError(
                "The KeOps operator needs RBF and Matern kernels, those of itergp.kernels, or sums and products of these. Got "
                f"{type(self.kernel).__name__}. Choose operator='blocked', which takes any kernel."
            )

    def timing_sample(self, inputs: Tensor) -> KeOpsOperator:
        """The same at some inputs: reductions are faster than blocks, or slower."""
        return KeOpsOperator(self.kernel, inputs, num_kernels=self.num_kernels)

    def _matmul(self, block: Tensor) -> Tensor:
        if not _reduces(block):
            return super()._matmul(block)
        self.counts.entries += self.num_kernels * self.num_rows**2
        return self._reduce(self.inputs.detach(), block)

    def _cross(self, inputs: Tensor, block: Tensor) -> Tensor:
        return self._reduce(inputs, block) if _reduces(block) else super()._cross(inputs, block)

    def _reduce(self, inputs: Tensor, block: Tensor) -> Tensor:
        from pykeops.torch import LazyTensor  # optional dependency

        form = self.form
        assert form is not None
        rows, cols = self.features(inputs), self.features(self.inputs)
        exact = torch.promote_types(rows.dtype, cols.dtype)  # of far inputs it is float64
        rows, cols = rows.to(exact), cols.to(exact)
        columns = block.shape[-1]
        padded = pad(block, (0, (1 << (columns - 1).bit_length()) - columns)).contiguous()
        out = block.new_empty(self.num_kernels, inputs.shape[-2], columns)
        for c in range(self.num_kernels):
            right = padded if padded.dim() == 2 else padded[min(c, padded.shape[0] - 1)]
            entries = form.of_kernel(c).formula(rows[c], cols[c], LazyTensor)
            out[c] = (entries @ right.to(rows))[:, :columns]
        return out


def _reduces(block: Tensor) -> bool:
    return 0 < block.shape[-1] <= MOST_COLUMNS


def keops_pays(kernel: Kernel, inputs: Tensor, num_kernels: int, memory_budget: int) -> bool:
    """Whether KeOps can be used for a kernel, and is faster than blocks: timed once for every kind of problem.

    Args:
        kernel: Any GPyTorch kernel.
        inputs: ``(N, D)`` or ``(C, N, D)``.
        num_kernels: ``C'``.
        memory_budget: Bytes.
    """
    form = as_form(kernel, num_kernels, inputs.shape[-1])
    if (
        inputs.device.type not in _DEVICES
        or inputs.shape[-1] > _MOST_DIMENSIONS
        or form is None
        or not keops_available()
    ):
        return False
    sample = sample_of_rows(inputs, _TIMED_ROWS)
    key = (inputs.device, inputs.dtype, *sample.shape, num_kernels, form.key)
    if key not in _pays:
        settings = {"num_kernels": num_kernels, "memory_budget": memory_budget}
        blocked = _seconds(BlockedOperator(kernel, sample, **settings))
        try:
            _pays[key] = _seconds(KeOpsOperator(kernel, sample, **settings)) < blocked
        except Exception as error:  # of compilers, drivers and libraries that it loads
            warnings.warn(
                f"KeOps is installed and should work on {inputs.device}. It does not ({type(error).__name__}: {error}), and "
                "kernel products are made in blocks. Repair it for speed, or choose operator='blocked' to silence this.",
                ItergpWarning,
                stacklevel=2,
            )
            _pays[key] = False
    return _pays[key]


def _seconds(operator: KernelOperator) -> float:
    with torch.no_grad():
        return seconds_of_product(operator, FEW_COLUMNS)
