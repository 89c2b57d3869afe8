"""``ActionBuffer``: actions S and their kernel products T = K S, the two large arrays of the published method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from itergp.solvers.iterncgp.interrupts import undisturbed
from itergp.solvers.iterncgp.noise import Noise

_GROWTH = 1.5
_START = 8
_CHUNK = 2**21  # elements of a chunk that is worked on in float64


class ActionBuffer:
    """Actions S and products ``T = K S``, ``(N, C, R)`` each, and the small matrix ``S^T K S``.

    Both arrays grow geometrically, or to ``limit`` at once when that is near. What is derived from them is computed chunk
    by chunk of rows, so that there is never a third array of their size, except while they grow.

    Args:
        like: Any tensor ``(N, C)``, for shape, dtype and device.
        limit: Most actions that will ever be held, or None.
    """

    def __init__(self, like: Tensor, limit: int | None = None) -> None:
        self.limit = limit
        self.gram = torch.zeros(0, 0, dtype=torch.float64, device=like.device)
        # Actions come first, so that one more of them is contiguous in memory.
        self._actions = like.new_empty(0, *like.shape)
        self._products = like.new_empty(0, *like.shape)
        # Rows in which some action is not zero, None for all: unit vectors have few, and S need not be read elsewhere.
        self._rows: Tensor | None = torch.zeros(0, dtype=torch.int64, device=like.device)

    def to_fields(self) -> dict[str, Any]:
        """What there is, without the memory for more."""
        arrays = {"actions": self._actions[: self.rank], "products": self._products[: self.rank]}
        return {**arrays, "gram": self.gram, "rows": self._rows, "limit": self.limit}

    @classmethod
    def rebuild(
        cls, context: object, actions: Tensor, products: Tensor, gram: Tensor, rows: Tensor | None, limit: int | None
    ) -> ActionBuffer:
        """The buffer that ``to_fields`` gave the parts of, with memory of its own."""
        buffer = cls(actions.new_empty(actions.shape[1:]), limit)
        buffer._reserve(gram.shape[0])
        buffer.gram, buffer._rows = gram, rows
        buffer._actions[: buffer.rank] = actions
        buffer._products[: buffer.rank] = products
        return buffer

    @property
    def rank(self) -> int:
        """Number of actions R."""
        return self.gram.shape[0]

    @property
    def capacity(self) -> int:
        """Actions for which there is memory."""
        return self._actions.shape[0]

    @property
    def actions(self) -> Tensor:
        """S ``(N, C, R)``, a view."""
        return self._actions[: self.rank].movedim(0, -1)

    @property
    def products(self) -> Tensor:
        """T ``(N, C, R)``, a view."""
        return self._products[: self.rank].movedim(0, -1)

    # ------------------------------------------------------------------- change
    def append(self, actions: Tensor, products: Tensor, rows: Tensor | None = None) -> None:
        """Adds actions ``(N, C, k)`` and their products; ``rows`` are those where the actions are not zero, None for all."""
        width, rank = actions.shape[-1], self.rank
        self._reserve(rank + width)
        self._rows = None if rows is None else self.with_rows(rows)
        side = self.overlap(products)
        corner = inner_product(actions, products, rows)
        self._actions[rank : rank + width] = actions.movedim(-1, 0)
        self._products[rank : rank + width] = products.movedim(-1, 0)
        gram = torch.cat([torch.cat([self.gram, side], 1), torch.cat([side.mT, corner], 1)])
        self.gram = 0.5 * (gram + gram.mT)

    def replace(self, mix: Tensor) -> None:
        """Replaces S and T by ``S mix`` and ``T mix``, in place, for ``mix`` ``(R, R')`` with ``R' <= R``, float64."""
        with undisturbed():
            for rows in self._chunks():
                for array in (self._actions, self._products):
                    part = array[: self.rank, rows]
                    array[: mix.shape[1], rows] = torch.einsum("rnc,rs->snc", part.double(), mix).to(array.dtype)
            gram = mix.mT @ self.gram @ mix
            self.gram = 0.5 * (gram + gram.mT)

    def clear(self) -> None:
        """Forgets all actions; the memory stays."""
        self.gram = self.gram[:0, :0]
        self._rows = torch.zeros(0, dtype=torch.int64, device=self.gram.device)

    def with_rows(self, rows: Tensor) -> Tensor | None:
        """``rows`` and those in which some action is not zero; None for all."""
        return None if self._rows is None else torch.cat([self._rows, rows]).unique()

    def _reserve(self, wanted: int) -> None:
        if wanted <= self.capacity:
            return
        size = max(wanted, int(_GROWTH * self.capacity), _START)
        size = size if self.limit is None else max(wanted, min(size, self.limit))
        for name in ("_actions", "_products"):
            old = getattr(self, name)
            new = old.new_empty(size, *old.shape[1:])
            new[: self.rank] = old[: self.rank]
            setattr(self, name, new)

    # ------------------------------------------------------------------ algebra
    def overlap(self, block: Tensor) -> Tensor:
        """``S^T B`` ``(R, k)``, float64, for a block ``(N, C)`` or ``(N, C, k)``."""
        block = block.unsqueeze(-1) if block.dim() == 2 else block
        total = self.gram.new_zeros(self.rank, block.shape[-1])
        for rows in self._action_chunks():
            total += self._actions[: self.rank, rows].flatten(1).double() @ block[rows].flatten(0, 1).double()
        return total

    def overlap_of_products(self, block: Tensor) -> Tensor:
        """``T^T B`` ``(R, k)``, float64, for a block ``(N, C, k)``: by symmetry ``S^T`` times its products."""
        total = self.gram.new_zeros(self.rank, block.shape[-1])
        for rows in self._chunks():
            total += self._products[: self.rank, rows].flatten(1).double() @ block[rows].flatten(0, 1).double()
        return total

    def combine(self, coefficients: Tensor) -> Tensor:
        """``S X`` ``(N, C, k)`` for ``(R, k)``, in the data's dtype."""
        return self._combine(self._actions, coefficients, self._action_chunks())

    def combine_products(self, coefficients: Tensor) -> Tensor:
        """``T X`` ``(N, C, k)`` for ``(R, k)``, in the data's dtype."""
        return self._combine(self._products, coefficients, self._chunks())

    def noise_gram(self, noise: Noise) -> Tensor:
        """``S^T W^+ S`` ``(R, R)``, float64, without a kernel product."""
        total = self.gram.new_zeros(self.rank, self.rank)
        for rows in self._action_chunks():
            part = self._actions[: self.rank, rows].double().permute(1, 2, 0)  # (n, C, R)
            weighed = torch.matmul(noise.covariance[rows], part)
            total += part.flatten(0, 1).mT @ weighed.flatten(0, 1)
        return 0.5 * (total + total.mT)

    def marginals(self, mix: Tensor) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Slices of rows and ``T mix`` ``(n, C, k)`` there, in the data's dtype."""
        for rows in self._chunks():
            part = self._products[: self.rank, rows].double()
            yield rows, torch.einsum("rnc,rs->ncs", part, mix).to(self._products.dtype)

    def _combine(self, array: Tensor, coefficients: Tensor, chunks: Iterator[slice | Tensor]) -> Tensor:
        out = array.new_zeros(*array.shape[1:], coefficients.shape[-1])
        for rows in chunks:
            part = array[: self.rank, rows].flatten(1).double()
            out[rows] = (part.mT @ coefficients).to(out.dtype).unflatten(0, (-1, out.shape[1]))
        return out

    def _chunks(self) -> Iterator[slice | Tensor]:
        size, latents = self._actions.shape[1:]
        step = max(1, _CHUNK // max(1, self.rank * latents))
        for start in range(0, size if self.rank else 0, step):
            yield slice(start, min(size, start + step))

    def _action_chunks(self) -> Iterator[slice | Tensor]:
        """Chunks of the rows in which some action is not zero."""
        if self._rows is None:
            yield from self._chunks()
        elif self.rank and self._rows.numel():
            yield from self._rows.split(max(1, _CHUNK // (self.rank * self._actions.shape[2])))


def inner_product(first: Tensor, second: Tensor, rows: Tensor | None = None) -> Tensor:
    """``A^T B`` ``(k, l)``, float64, of blocks ``(N, C, k)`` and ``(N, C, l)``; ``rows`` are those where A is not zero."""
    if rows is not None:
        first, second = first[rows], second[rows]
    return first.flatten(0, 1).mT.double() @ second.flatten(0, 1).double()
