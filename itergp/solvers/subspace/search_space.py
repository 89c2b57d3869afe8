"""``SearchSpace``: directions S, their kernel products T = K S, kept orthonormal in the prior's geometry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from itergp.numerics.rounding import HALF_OF_A_UNIT, thresholds
from itergp.numerics.spectral import eigh, symmetric, whitening
from itergp.operators import AbstractOperator, slices
from itergp.parallel import ALL_ROWS, RowPartition
from itergp.persistence import DERIVED
from itergp.posterior.problem import Problem

_RESOLUTION = 4.0
_CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class SearchSpace:
    """Search directions and their kernel products, whitened: ``S_c^T K_c S_c = I`` up to rounding.

    With a shared kernel every direction serves all latent functions (``C' = 1``); otherwise each kernel has its own
    whitening of the same directions.

    Attributes:
        directions: S ``(C', N, B)``.
        products: T = K S ``(C', N, B)``.
        gram: ``S^T T`` ``(C', B, B)``, float64: the identity up to rounding, and what is used in its place.
        partition: Which of the N rows are here.
    """

    directions: Tensor
    products: Tensor
    gram: Tensor
    partition: RowPartition = field(default=ALL_ROWS, kw_only=True, metadata=DERIVED)

    @classmethod
    def rebuild(cls, problem: Problem | None, **fields: Any) -> SearchSpace:
        """The space of a checkpoint: among the rows of a problem, or all of them."""
        return cls(**fields, partition=ALL_ROWS if problem is None else problem.rows)

    @property
    def rank(self) -> int:
        """Number of directions B."""
        return self.directions.shape[-1]

    @classmethod
    def empty(cls, operator: AbstractOperator) -> SearchSpace:
        """The space {0}."""
        directions, gram = cls._of_nothing((operator.num_kernels, operator.num_own_rows, 0), operator)
        return cls(directions, directions, gram, partition=operator.rows)

    @staticmethod
    def _of_nothing(shape: tuple[int, int, int], operator: AbstractOperator) -> tuple[Tensor, Tensor]:
        """No directions, and their Gram matrices."""
        gram = torch.zeros(shape[0], 0, 0, dtype=torch.float64, device=operator.device)
        return torch.zeros(shape, dtype=operator.dtype, device=operator.device), gram

    @property
    def support(self) -> Tensor | None:
        """Rows outside which all directions are zero ``(M,)``, by number among all rows; None if there are no such rows."""
        return None

    def at_all_rows(self, coordinates: Tensor, curvature: Tensor | None, limit: int) -> tuple[SearchSpace, Tensor]:
        """This space and an iterate's coordinates in it, as a space of directions at all rows: itself.

        Args:
            coordinates: Of the iterate ``(C, B)``.
            curvature: W ``(N, C, C)``, by which directions are chosen where they must be.
            limit: Directions to keep where they must be made.
        """
        del curvature, limit
        return self, coordinates

    def with_more_rows(self, count: int) -> SearchSpace:
        """The space for more rows, where its directions are zero; the products are those of the old rows.

        Args:
            count: How many.
        """

        def padded(tensor: Tensor) -> Tensor:
            return torch.cat([tensor, tensor.new_zeros(tensor.shape[0], count, tensor.shape[2])], 1)

        return replace(self, directions=padded(self.directions), products=padded(self.products))

    def continued(self, earlier: AbstractOperator | None, operator: AbstractOperator) -> SearchSpace | None:
        """A space ``with_more_rows`` with its products at these, too, or None if they take a pass.

        Args:
            earlier: Of the rows before, of which the products are.
            operator: Of all rows.
        """
        if earlier is None or operator.num_rows != self.directions.shape[1]:
            return None
        known = earlier.num_rows
        rest = operator.product_of_first_rows(earlier, self.directions[:, :known])
        return None if rest is None else replace(self, products=torch.cat([self.products[:, :known], rest], 1))

    # ---------------------------------------------------------- latent functions
    def coordinate_sets(self, latents: int) -> int:
        """Sets of coordinates of a point of the space: one for each of so many latent functions."""
        return latents

    def as_directions(self, block: Tensor) -> Tensor:
        """Blocks ``(N, C, k)`` as directions ``(N, C k)``: those of every latent function serve all of them."""
        return block.flatten(1)

    def of_each(self, block: Tensor) -> Tensor:
        """Blocks ``(N, C, k)`` as directions ``(C', N, k)``, for all latent functions or one each."""
        return block.movedim(1, 0) if self.gram.shape[0] > 1 else block.flatten(1).unsqueeze(0)

    def at_rows(self, rows: Tensor) -> SearchSpace:
        """The products at some of the own rows, without directions."""
        products = self.products[:, rows]
        return replace(self, directions=products[:, :0], products=products)

    def products_of(self, latent: int, rows: slice) -> Tensor:
        """T of one of the ``coordinate_sets`` at some rows ``(n, B)``."""
        return self.products[min(latent, self.products.shape[0] - 1), rows]

    def weighted_products(self, curvature: Tensor, first: int, second: int, rows: slice) -> Tensor:
        """``W_cd T_c`` at some rows ``(n, B)``, for two of the ``coordinate_sets`` and W ``(N, C, C)``."""
        return self.products_of(first, rows) * curvature[rows, first, second].unsqueeze(-1)

    def same_products(self, first: int, second: int) -> bool:
        """Whether two of the ``coordinate_sets`` have the same products."""
        last = self.products.shape[0] - 1
        return min(first, last) == min(second, last)

    def blocks_at(self, coordinates: Tensor, rows: slice, latents: int) -> Tensor:
        """``T X`` ``(n, C, k)`` at some of the rows, for coordinates ``(C, B, k)``."""
        values = coordinates.to(self.products)
        number = len(range(self.products.shape[1])[rows])
        blocks = values.new_empty(number, latents, values.shape[2])
        for c in range(latents):  # a broadcast product would copy T for every latent function
            blocks[:, c] = self.products_of(c, rows) @ values[c]
        return blocks

    def project_blocks(self, blocks: Tensor, rows: slice) -> Tensor:
        """``T^T G`` ``(C, B, k)`` of these rows alone, for blocks ``(n, C, k)``."""
        return torch.stack([self.products_of(c, rows).mT @ blocks[:, c] for c in range(blocks.shape[1])])

    def combined_curvature(self, curvature: Tensor, kernel: int) -> Tensor:
        """The curvature of all latent functions that a kernel serves, as that of one ``(N, 1, 1)``."""
        diagonal = curvature.diagonal(dim1=-2, dim2=-1)
        own = diagonal if self.gram.shape[0] == 1 else diagonal[:, kernel : kernel + 1]
        return own.sum(-1)[:, None, None]

    def of_kernel(self, kernel: int) -> SearchSpace:
        """The space of one kernel alone."""
        parts = (part[kernel : kernel + 1] for part in (self.directions, self.products, self.gram))
        return SearchSpace(*parts, partition=self.partition)

    # ------------------------------------------------------------- coordinates
    def latent(self, coordinates: Tensor) -> Tensor:
        """``T U`` ``(N, C)`` for coordinates U ``(C, B)``."""
        return self._combine(self.products, coordinates)

    def weights(self, coordinates: Tensor) -> Tensor:
        """``S U`` ``(N, C)``: representer weights for coordinates U ``(C, B)``."""
        return self._combine(self.directions, coordinates)

    def project(self, block: Tensor) -> Tensor:
        """``T^T G`` as ``(C, B)``, float64, for a block G ``(N, C)``."""
        total = torch.zeros(block.shape[1], self.rank, dtype=torch.float64, device=block.device)
        for rows in slices(block.shape[0], _CHUNK_ROWS):  # sums over more rows lose digits in the data's dtype
            part, products = block[rows].mT, self.products[:, rows]
            if products.shape[0] == 1:
                total += part @ products[0]
            else:
                total += torch.bmm(part.unsqueeze(1), products).squeeze(1)
        return self.partition.all_reduce_sum(total)

    def metric(self, coordinates: Tensor) -> Tensor:
        """``S^T K S U`` for coordinates U ``(C, B)``."""
        if self.gram.shape[0] == 1:
            return coordinates @ self.gram[0]
        return torch.bmm(coordinates.unsqueeze(1), self.gram).squeeze(1)

    @staticmethod
    def _combine(basis: Tensor, coordinates: Tensor) -> Tensor:
        coordinates = coordinates.to(basis.dtype)
        if basis.shape[0] == 1:
            return basis[0] @ coordinates.mT
        return torch.bmm(basis, coordinates.unsqueeze(-1)).squeeze(-1).mT

    # ------------------------------------------------------------------ growth
    def extend(
        self, block: Tensor, operator: AbstractOperator, multiply: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[SearchSpace, Tensor]:
        """Adds the directions of a block in one pass over the kernel.

        Args:
            block: New directions D ``(N, b)``, or one block per kernel ``(C', N, b)``.
            operator: The kernel.
            multiply: Its product, if something else is multiplied along.

        Returns:
            The larger space, and ``K D`` ``(C', N, b)``.
        """
        overlap = self._gram(self.products, block)  # S^T K D
        rest = block - torch.matmul(self.directions, overlap)
        rest_products = operator.matmul(rest) if multiply is None else multiply(rest)
        block_products = rest_products + torch.matmul(self.products, overlap)
        rest, rest_products = self._take_out(rest, rest_products)
        # Columns of unit prior norm, so that one threshold for rounding serves directions of every size.
        # One that has no more than rounding, or less where the kernel matrix is slightly indefinite, is no direction.
        sum_of = self.partition.all_reduce_sum
        original = sum_of((block * block_products).sum(-2, dtype=torch.float64)).amax(0)
        sizes = [sum_of(x.square().sum(-2, dtype=torch.float64)).sqrt() for x in (block, block_products)]
        resolved = original > torch.finfo(rest.dtype).eps * (sizes[0] * sizes[1]).amax(0)
        scale = torch.where(resolved, original.clamp_min(torch.finfo(rest.dtype).tiny).rsqrt(), 0.0).to(rest)
        rest, rest_products = rest * scale, rest_products * scale
        mix = self._whitening(rest, rest_products, thresholds(block.dtype).new_direction * block.shape[-1])
        new, new_products = torch.matmul(rest, mix.to(rest)), torch.matmul(rest_products, mix.to(rest))
        # While every direction is by itself: products that rounding has spoilt would mix what is resolved with what is not.
        resolved = self._resolved(new)
        if int((resolved != 0.0).any(-2).sum()) < new.shape[0] * new.shape[-1]:
            new, new_products = torch.matmul(new, resolved), torch.matmul(new_products, resolved)
        # A direction that was little more than rounding is not of unit norm once projected again: weed it out.
        new, new_products = self._take_out(new, new_products)
        mix = self._whitening(new, new_products, HALF_OF_A_UNIT)
        new, new_products = torch.matmul(new, mix.to(rest)), torch.matmul(new_products, mix.to(rest))
        resolved = self._resolved(new)
        new, new_products = torch.matmul(new, resolved), torch.matmul(new_products, resolved)
        corner = self._gram(new, new_products, torch.float64)
        side = self._gram(self.directions, new_products, torch.float64)
        sound = self._sound(corner, side)
        if not bool(sound.all()):
            some = sound.any(0)
            new, new_products = ((part * sound.unsqueeze(-2))[..., some] for part in (new, new_products))
            corner = self._gram(new, new_products, torch.float64)
            side = self._gram(self.directions, new_products, torch.float64)
        gram = torch.cat([torch.cat([self.gram, side], -1), torch.cat([side.mT, corner], -1)], -2)
        # Kernels that kept fewer directions than others.
        padding = (self.partition.all_reduce_max(new.abs().amax(-2)) == 0.0).to(corner)
        gram[:, self.rank :, self.rank :] += torch.diag_embed(padding)
        grown = replace(
            self,
            directions=torch.cat([self.directions, new], -1),
            products=torch.cat([self.products, new_products], -1),
            gram=0.5 * (gram + gram.mT),
        )
        return grown, block_products

    def extend_with(self, block: Tensor, extra: Tensor, operator: AbstractOperator) -> tuple[SearchSpace, Tensor]:
        """``extend`` by D, and in the same pass ``K R`` ``(N, C)`` for a block R ``(N, C)`` that does not join the space."""
        own = extra.unsqueeze(0) if operator.num_kernels == 1 else extra.mT.unsqueeze(-1)  # (C', N, k)
        found = []

        def multiply(rest: Tensor) -> Tensor:
            products = operator.matmul(torch.cat([rest, own], -1))
            found.append(products[..., rest.shape[-1] :])
            return products[..., : rest.shape[-1]]

        space, _ = self.extend(block, operator, multiply)
        return space, found[0][0] if operator.num_kernels == 1 else found[0].squeeze(-1).mT

    def _take_out(self, block: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
        """A block ``(C', N, b)`` and its products, less their projections on the space."""
        overlap = self._gram(self.directions, products)
        return block - torch.matmul(self.directions, overlap), products - torch.matmul(self.products, overlap)

    def _resolved(self, block: Tensor) -> Tensor:
        """Mixing of new directions of unit prior norm that leaves out those whose kernel products are rounding error.

        A product ``K s`` is wrong by about ``eps |K| |s|``. With ``s^T K s = 1`` that spoils s once ``|s|^2 |K|`` comes near
        ``1 / eps``: the kernel's eigenvalues in that direction are below what the dtype resolves.
        """
        if block.shape[-1] == 0:  # the residual was exactly zero, or nothing in it was new
            return block.new_zeros(block.shape[0], 0, 0)
        values, vectors = eigh(self._gram(block, block, torch.float64))
        seen = torch.cat([self.partition.all_reduce_sum(self.directions.square().sum(-2).double()), values], -1)
        largest = torch.where(seen > 0.0, seen.reciprocal(), 0.0).amax(-1, keepdim=True)  # of the Rayleigh quotients
        keep = (values > 0.0) & (values * largest * _RESOLUTION * torch.finfo(block.dtype).eps <= 1.0)
        width = int(keep.sum(-1).max()) if keep.numel() else 0
        order = (~keep).to(torch.int8).argsort(dim=-1, stable=True)[..., :width]  # the kept ones first
        mix = (vectors * keep.unsqueeze(-2)).gather(-1, order.unsqueeze(-2).expand(*vectors.shape[:-1], width))
        return self.partition.broadcast(mix).to(block)

    @staticmethod
    def _sound(corner: Tensor, side: Tensor) -> Tensor:
        """Which new directions ``(C', b)`` are of unit prior norm and orthogonal to the space, as they were made.

        Others are rounding error of products with directions that the kernel hardly sees, which no bound on these foresaw.

        Args:
            corner: ``S_new^T K S_new`` ``(C', b, b)``.
            side: ``S^T K S_new`` ``(C', B, b)``.
        """
        none = corner.diagonal(dim1=-2, dim2=-1) == 0.0  # of kernels that kept fewer than others
        wrong = torch.cat([side, corner - torch.eye(corner.shape[-1]).to(corner)], -2)
        return none | ((wrong.abs() > HALF_OF_A_UNIT).sum(-2) == 0)

    def compress(self, mix: Tensor) -> SearchSpace:
        """The space spanned by ``S mix``, with ``mix`` ``(C', B, R)`` of orthonormal columns, float64."""
        values = mix.to(self.directions.dtype)
        directions, products = torch.matmul(self.directions, values), torch.matmul(self.products, values)
        return replace(self, directions=directions, products=products, gram=mix.mT @ self.gram @ mix)

    def _gram(self, first: Tensor, second: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """``A^T B`` ``(C', k, l)`` over all rows, of blocks ``(C', N, k)`` and ``(C', N, l)``."""
        return self.partition.all_reduce_sum(torch.matmul(first.mT, second).to(dtype or first.dtype))

    def _whitening(self, block: Tensor, products: Tensor, floor: float) -> Tensor:
        """Mixing of a block and its products to unit prior norm, the same in all processes."""
        return self.partition.broadcast(whitening(symmetric(self._gram(block, products, torch.float64)), floor))
