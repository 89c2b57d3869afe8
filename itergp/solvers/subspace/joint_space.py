"""``JointSpace``: a search space for coupled latent functions, whose directions are vectors of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from itergp.operators import AbstractOperator
from itergp.posterior.precision import multiply
from itergp.solvers.subspace.search_space import SearchSpace


@dataclass(frozen=True)
class JointSpace(SearchSpace):
    """Directions of N C latent values, where ``K`` couples the C latent functions of a row: one set of coordinates.

    Attributes:
        directions: S ``(1, N C, B)``, the latent functions of a row side by side.
        products: T = K S ``(1, N C, B)``.
        gram: ``S^T T`` ``(1, B, B)``, float64.
        latents: C.
    """

    latents: int = field(default=1, kw_only=True)

    @classmethod
    def empty(cls, operator: AbstractOperator) -> JointSpace:
        """The space {0}."""
        latents = operator.num_kernels
        directions, gram = cls._of_nothing((1, operator.num_rows * latents, 0), operator)
        return cls(directions, directions, gram, latents=latents)

    def with_more_rows(self, count: int) -> SearchSpace:
        """The space for more rows, where its directions are zero."""
        return super().with_more_rows(count * self.latents)

    # ---------------------------------------------------------- latent functions
    def coordinate_sets(self, latents: int) -> int:
        """One."""
        del latents
        return 1

    def as_directions(self, block: Tensor) -> Tensor:
        """Blocks ``(N, C, k)`` as directions ``(N C, k)``."""
        return block.flatten(0, 1)

    def of_each(self, block: Tensor) -> Tensor:
        """Blocks ``(N, C, k)`` as directions ``(1, N C, k)``."""
        return block.flatten(0, 1).unsqueeze(0)

    def at_rows(self, rows: Tensor) -> SearchSpace:
        """The products at some of the rows, without directions."""
        products = self._by_row(self.products)[rows].flatten(0, 1).unsqueeze(0)
        return replace(self, directions=products[:, :0], products=products)

    def products_of(self, latent: int, rows: slice) -> Tensor:
        """T at all latent values of some rows ``(n C, B)``."""
        del latent
        return self._by_row(self.products)[rows].flatten(0, 1)

    def weighted_products(self, curvature: Tensor, first: int, second: int, rows: slice) -> Tensor:
        """``W T`` at all latent values of some rows ``(n C, B)``; a curvature ``(N, 1, 1)`` is that of every one."""
        products = self._by_row(self.products)[rows]
        if curvature.shape[-1] != self.latents:
            return (products * curvature[rows]).flatten(0, 1)
        return torch.bmm(curvature[rows], products).flatten(0, 1)

    def same_products(self, first: int, second: int) -> bool:
        """They are."""
        return True

    def blocks_at(self, coordinates: Tensor, rows: slice, latents: int) -> Tensor:
        """``T X`` ``(n, C, k)`` at some of the rows, for coordinates ``(1, B, k)``."""
        values = coordinates[0].to(self.products)
        return (self.products_of(0, rows) @ values).unflatten(0, (-1, latents))

    def project_blocks(self, blocks: Tensor, rows: slice) -> Tensor:
        """``T^T G`` ``(1, B, k)`` of these rows alone, for blocks ``(n, C, k)``."""
        return (self.products_of(0, rows).mT @ blocks.flatten(0, 1)).unsqueeze(0)

    def combined_curvature(self, curvature: Tensor, kernel: int) -> Tensor:
        """The curvature itself."""
        return curvature

    def of_kernel(self, kernel: int) -> SearchSpace:
        """Itself: there is one."""
        return self

    # ------------------------------------------------------------- coordinates
    def latent(self, coordinates: Tensor) -> Tensor:
        """``T U`` ``(N, C)`` for coordinates U ``(1, B)``."""
        return super().latent(coordinates).view(-1, self.latents)

    def weights(self, coordinates: Tensor) -> Tensor:
        """``S U`` ``(N, C)`` for coordinates U ``(1, B)``."""
        return super().weights(coordinates).view(-1, self.latents)

    def project(self, block: Tensor) -> Tensor:
        """``T^T G`` as ``(1, B)``, float64, for a block G ``(N, C)``."""
        return super().project(block.reshape(-1, 1))

    # ------------------------------------------------------------------ growth
    def extend(
        self, block: Tensor, operator: AbstractOperator, multiply: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[SearchSpace, Tensor]:
        """Adds directions ``(N C, b)`` or ``(1, N C, b)`` in one pass; the product is ``(1, N C, b)``."""
        return super().extend(block, operator, multiply or partial(self._multiply, operator))

    def extend_with(self, block: Tensor, extra: Tensor, operator: AbstractOperator) -> tuple[SearchSpace, Tensor]:
        """``extend`` by D, and in the same pass ``K R`` ``(N, C)`` for a block R ``(N, C)``."""
        own, found = extra.reshape(1, -1, 1), []

        def multiply_both(rest: Tensor) -> Tensor:
            products = self._multiply(operator, torch.cat([rest, own], -1))
            found.append(products[..., rest.shape[-1] :])
            return products[..., : rest.shape[-1]]

        space, _ = self.extend(block, operator, multiply_both)
        return space, found[0].view_as(extra)

    def _multiply(self, operator: AbstractOperator, directions: Tensor) -> Tensor:
        product = multiply(operator, self._by_row(directions))
        return product.flatten(0, 1).unsqueeze(0)

    def _by_row(self, directions: Tensor) -> Tensor:
        """``(N, C, k)`` from ``(1, N C, k)``."""
        return directions[0].unflatten(0, (-1, self.latents))


def empty_space(operator: AbstractOperator) -> SearchSpace:
    """The space {0} for an operator: one basis for all latent functions, unless these are coupled."""
    return JointSpace.empty(operator) if operator.couples_latents else SearchSpace.empty(operator)
