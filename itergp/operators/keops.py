"""``KeOpsOperator``: products compiled by KeOps, for CUDA and inputs of moderate dimension."""

from __future__ import annotations

import importlib.util
import math

from torch import Tensor

from itergp.errors import InputError
from itergp.operators.base import KernelOperator


def keops_available() -> bool:
    """Whether the ``keops`` extra is installed."""
    return importlib.util.find_spec("pykeops") is not None


class KeOpsOperator(KernelOperator):
    """Map-reduce products that never hold a block of entries: memory ``O(N k)``.

    Works for (scaled) RBF and Matern kernels, GPyTorch's ordinary ones and its KeOps ones.

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
        if self._radial_form is None:
            raise InputError(
                "The KeOps operator needs a (scaled) RBF or Matern kernel. Got "
                f"{type(self.kernel).__name__}. Choose operator='blocked', which takes any kernel."
            )

    def _matmul(self, block: Tensor) -> Tensor:
        self.counts.entries += self.num_kernels * self.num_rows**2
        return self._cross(self.inputs.detach(), block)

    def _cross(self, inputs: Tensor, block: Tensor) -> Tensor:
        from pykeops.torch import LazyTensor  # optional dependency

        assert self._radial_form is not None
        rows, cols = (
            self._features(inputs)[..., :-2],
            self._features(self.inputs)[..., :-2],
        )  # the distances are its own
        out = block.new_empty(self.num_kernels, inputs.shape[-2], block.shape[-1])
        for c in range(self.num_kernels):
            right = block if block.dim() == 2 else block[c]
            x, y = LazyTensor(rows[c][:, None, :]), LazyTensor(cols[c][None, :, :])
            squared = ((x - y) ** 2).sum(-1)
            entries = _profile(squared, self._radial_form.smoothness)
            out[c] = self._radial_form.output_scale[c] * (entries @ right.contiguous())
        return out


def _profile(squared, smoothness: float):
    if smoothness == math.inf:
        return (-squared).exp()
    distance = squared.sqrt()
    if smoothness == 0.5:
        return (-distance).exp()
    if smoothness == 1.5:
        return (1.0 + distance) * (-distance).exp()
    return (1.0 + distance + squared / 3.0) * (-distance).exp()
