"""``JacobianOperator``: the prior covariance of a linearised network, ``J P^{-1} J^T``."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.operators.abstract import AbstractOperator, KernelCounts
from itergp.operators.linearisation import Linearisation, Rows, num_rows, take
from itergp.operators.memory import default_memory_budget
from itergp.operators.tiles import slices


class JacobianOperator(AbstractOperator):
    """``K = J diag(1 / precision) J^T`` of the C outputs of a network, which it couples: blocks are ``(C, N, k)``.

    A pass costs a backward and a forward-mode pass through the network for every column. Neither J nor K is made.

    Args:
        linearisation: The network as a function of its weights.
        inputs: Training inputs of N rows: a tensor, or a tuple or dictionary of such.
        precision: Prior precision of the weights ``(P,)``, or one for all.
        memory_budget: Bytes for gradients of rows; default a quarter of the free memory.

    Raises:
        InputError: If a precision is not positive.
    """

    def __init__(
        self,
        linearisation: Linearisation,
        inputs: Rows,
        precision: Tensor | float = 1.0,
        *,
        memory_budget: int | None = None,
    ) -> None:
        self.linearisation, self.inputs = linearisation, inputs
        weights = linearisation.weights()
        values = torch.as_tensor(precision, dtype=weights.dtype, device=weights.device).detach()
        if not bool((values > 0.0).all()):
            raise InputError(
                f"`precision` must be positive. Got {precision!r}. A weight that is known has no place in it."
            )
        self.scale = values.expand(weights.shape).rsqrt()
        self.num_kernels = linearisation.num_latents
        self.memory_budget = default_memory_budget(weights.device) if memory_budget is None else memory_budget
        self.counts = KernelCounts()

    @property
    def num_rows(self) -> int:
        """N."""
        return num_rows(self.inputs)

    @property
    def dtype(self) -> torch.dtype:
        """That of the chosen parameters."""
        return self.scale.dtype

    @property
    def device(self) -> torch.device:
        """That of the chosen parameters."""
        return self.scale.device

    @property
    def couples_latents(self) -> bool:
        """It does: outputs share weights."""
        return True

    @property
    def neighbours_pay(self) -> bool:
        """Entries are not to be had one by one."""
        return False

    def to_weights(self, block: Tensor) -> Tensor:
        """``P^{-1/2} J^T`` times a block ``(C, N, k)``: whitened weights ``(P, k)``."""
        total = block.new_zeros(self.scale.numel(), block.shape[-1])
        for i in self._slices(self.inputs):
            total += self.linearisation.pull(take(self.inputs, i), block[:, i].movedim(0, 1))
        return total.mul_(self.scale.unsqueeze(-1))

    def from_weights(self, inputs: Rows, weights: Tensor) -> Tensor:
        """``J P^{-1/2}`` at inputs times whitened weights ``(P, k)``: ``(C, M, k)``."""
        scaled = weights * self.scale.unsqueeze(-1)
        parts = [self.linearisation.push(take(inputs, i), scaled) for i in self._slices(inputs)]
        return torch.cat(parts).movedim(1, 0)

    @torch.no_grad()
    def matmul(self, block: Tensor) -> Tensor:
        """``K`` times a block ``(C, N, k)``: ``(C, N, k)``, in one pass."""
        started = time.perf_counter()
        product = self.cross_matmul(self.inputs, block)
        self.counts.passes += 1
        self.counts.columns += block.shape[-1]
        self.counts.seconds += time.perf_counter() - started
        return product

    @torch.no_grad()
    def cross_matmul(self, inputs: Rows, block: Tensor) -> Tensor:
        """``k(inputs, X)`` times a block ``(C, N, k)``: ``(C, M, k)``.

        Raises:
            InputError: If the block has another shape.
        """
        if block.dim() != 3 or block.shape[0] != self.num_kernels:
            raise InputError(
                f"A block must have shape ({self.num_kernels}, N, k) where latent functions are coupled. Got "
                f"{tuple(block.shape)}. Use itergp.posterior.precision.multiply, which takes (N, C, k)."
            )
        return self.from_weights(inputs, self.to_weights(block))

    def diagonal(self, inputs: Rows | None = None) -> Tensor:
        """Prior variances ``(C, M)`` at inputs (default: the training inputs)."""
        return self.row_covariance(inputs).diagonal(dim1=-2, dim2=-1).mT

    def row_covariance(self, inputs: Rows | None = None) -> Tensor:
        """Prior covariances between the outputs of each row ``(M, C, C)``."""
        inputs = self.inputs if inputs is None else inputs
        return torch.cat([self.linearisation.prior_blocks(take(inputs, i), self.scale) for i in self._slices(inputs)])

    def _slices(self, inputs: Rows) -> list[slice]:
        return slices(num_rows(inputs), self.linearisation.rows_at_once(self.num_kernels, self.memory_budget // 4))
