"""``SupportSpace``: a search space of all functions that kernels at some of the rows can make."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from itergp.numerics.rounding import HALF_OF_A_UNIT
from itergp.numerics.spectral import symmetric, whitening
from itergp.operators import KernelOperator
from itergp.parallel import ALL_ROWS, RowPartition
from itergp.persistence import DERIVED
from itergp.posterior.problem import Problem
from itergp.solvers.subspace.actions import leading_directions
from itergp.solvers.subspace.joint_space import JointSpace
from itergp.solvers.subspace.search_space import SearchSpace

# A direction of less prior variance than this many roundings of the support's kernel matrix is rounding itself.
_RESOLUTION = 4.0


@dataclass(frozen=True)
class SupportSpace(SearchSpace):
    """Directions that are zero outside M of the N rows, the support: their kernel products cost M kernel columns, not N.

    Only the rows of the directions that are on the support are kept. The products live in a buffer with room for more.

    Attributes:
        directions: S on the support ``(C', M, B)``, float64.
        products: T = K S ``(C', N, B)``, a view of the buffer.
        gram: ``S^T T`` ``(C', B, B)``, float64.
        rows: The support ``(M,)``, in the order in which it grew, by number among all rows.
        explained: Prior variance at the training inputs that the support's latent values determine, ``(C', N)``.
        buffer: Where the products are.
    """

    rows: Tensor
    explained: Tensor
    buffer: _Buffer = field(metadata=DERIVED)

    def to_fields(self) -> dict[str, Any]:
        """What there is, and how much more there is memory for."""
        names = ("directions", "products", "gram", "rows", "explained")
        return {name: getattr(self, name) for name in names} | {"capacity": self.buffer.values.shape[-1]}

    @classmethod
    def rebuild(cls, problem: Problem | None, **fields: Any) -> SupportSpace:
        """The space of a checkpoint: among the rows of a problem, or all of them."""
        return cls.of(**fields, partition=ALL_ROWS if problem is None else problem.rows)

    @property
    def support(self) -> Tensor:
        """``rows``."""
        return self.rows

    def at_all_rows(self, coordinates: Tensor, curvature: Tensor | None, limit: int) -> tuple[SearchSpace, Tensor]:
        """The iterate and the most informative directions, without a kernel pass, and the iterate's coordinates there."""
        assert curvature is not None
        kernels, latents = self.gram.shape[0], coordinates.shape[0]
        mixes = []
        for c in range(kernels):
            own = list(range(latents)) if kernels == 1 else [c]
            wanted = max(1, min(limit, self.rank) - len(own))
            leading = leading_directions(self.of_kernel(c), self.combined_curvature(curvature, c), wanted)[0]
            mixes.append(torch.linalg.qr(torch.cat([coordinates[own].mT, leading], -1)).Q)
        mix = self.partition.broadcast(torch.stack(mixes))
        moved = coordinates @ mix[0] if kernels == 1 else torch.bmm(coordinates.unsqueeze(1), mix).squeeze(1)
        values = self.products.new_zeros(kernels, self.products.shape[1], mix.shape[-1])
        which, here = self.partition.local_indices(self.latent_values(self.rows))
        values[:, here] = torch.matmul(self.directions, mix).to(values)[:, which]
        products = torch.matmul(self.products, mix.to(values))
        return self.without_support(values, products, mix.mT @ self.gram @ mix), moved

    def latent_values(self, rows: Tensor) -> Tensor:
        """Numbers of the rows of ``products`` that belong to rows: themselves."""
        return rows

    def without_support(self, directions: Tensor, products: Tensor, gram: Tensor) -> SearchSpace:
        """A space of directions at other rows."""
        return SearchSpace(directions, products, gram, partition=self.partition)

    def on_support(self) -> SearchSpace:
        """The space at the rows of the support alone, the same in every process."""
        products = self.partition.select(self.products, self.latent_values(self.rows), 1)
        return SearchSpace(self.directions, products, self.gram)

    def with_more_rows(self, count: int) -> SupportSpace:
        """Itself: the support is known by row numbers."""
        del count
        return self

    @classmethod
    def start(cls, operator: KernelOperator, capacity: int) -> SupportSpace:
        """No support yet; memory for ``capacity`` directions is taken as it is filled."""
        return cls._of_nothing_on_support(operator, operator.num_kernels, operator.num_own_rows, capacity)

    @classmethod
    def _of_nothing_on_support(
        cls, operator: KernelOperator, kernels: int, size: int, capacity: int, **options: Any
    ) -> SupportSpace:
        buffer = _Buffer(torch.empty(kernels, size, capacity, dtype=operator.dtype, device=operator.device))
        return cls(
            directions=torch.zeros(kernels, 0, 0, dtype=torch.float64, device=operator.device),
            products=buffer.values[..., :0],
            gram=torch.zeros(kernels, 0, 0, dtype=torch.float64, device=operator.device),
            rows=torch.zeros(0, dtype=torch.int64, device=operator.device),
            explained=torch.zeros(kernels, size, dtype=operator.dtype, device=operator.device),
            buffer=buffer,
            partition=operator.rows,
            **options,
        )

    @classmethod
    def of(
        cls,
        directions: Tensor,
        products: Tensor,
        gram: Tensor,
        rows: Tensor,
        explained: Tensor,
        *,
        capacity: int | None = None,
        partition: RowPartition = ALL_ROWS,
        **options: Any,
    ) -> SupportSpace:
        """The space made of these, its products at the head of a buffer for ``capacity`` directions."""
        rank = products.shape[-1]
        buffer = _Buffer(products.new_empty(*products.shape[:2], max(rank, capacity or 0)), rank)
        buffer.values[..., :rank] = products
        return cls(directions, buffer.values[..., :rank], gram, rows, explained, buffer, partition=partition, **options)

    def weights(self, coordinates: Tensor) -> Tensor:
        """``S U`` ``(N, C)``, zero outside the support, for coordinates U ``(C, B)``."""
        on_support = self._combine(self.directions, coordinates).to(self.products.dtype)
        which, own = self.partition.local_indices(self.latent_values(self.rows))
        return on_support.new_zeros(self.products.shape[1], on_support.shape[1]).index_copy_(0, own, on_support[which])

    def missing_variance(self, operator: KernelOperator) -> Tensor:
        """Prior variance at the training inputs that is left once the support's latent values are known, ``(C', N)``."""
        return (operator.diagonal().detach() - self.explained).clamp_min(0.0)

    # ------------------------------------------------------------------ growth
    def with_rows(self, rows: Tensor, operator: KernelOperator) -> SupportSpace:
        """The space for a larger support, at the cost of ``N`` kernel entries and ``2 N B`` operations for each new row.

        The new rows' kernel columns are orthogonalised against the space and among themselves (block Cholesky); what is left
        of directions that are rounding error is dropped.

        Args:
            rows: Row numbers ``(m,)``, none of them on the support.
            operator: The kernel.
        """
        partition = self.partition
        new_values = self.latent_values(rows)
        known = partition.select(self.products, new_values, 1).double()  # L21: of the old directions at the new rows
        schur = operator.entries(rows, rows).double() - known @ known.mT
        largest = self._largest_variance(operator.diagonal(operator.inputs[..., rows, :]).detach().double())
        size = self.latent_values(self.rows).numel() + new_values.numel()
        floor = _RESOLUTION * torch.finfo(operator.dtype).eps * size * largest
        mix = partition.broadcast(whitening(symmetric(schur), floor[:, None]))
        products, buffer = self._append(operator, rows, known, mix)
        support = torch.cat([self.rows, rows])
        resolved = self._unit_norm(products, support, known, mix)
        if resolved is not None:
            mix, products, buffer = torch.matmul(mix, resolved), *buffer.mixed(self.rank, resolved)
        new = products[..., self.rank :]
        directions = torch.cat(
            [torch.nn.functional.pad(self.directions, (0, 0, 0, new_values.numel())), self._new(known, mix)], -1
        )
        on_support = partition.select(new, self.latent_values(support), 1).double()
        side = torch.matmul(directions[..., : self.rank].mT, on_support)
        corner = torch.matmul(directions[..., self.rank :].mT, on_support)
        gram = torch.cat([torch.cat([self.gram, side], -1), torch.cat([side.mT, corner], -1)], -2)
        gram[:, self.rank :, self.rank :] += torch.diag_embed((mix.abs().amax(-2) == 0.0).to(gram))
        explained = self.explained + torch.linalg.vector_norm(new, dim=-1).square()  # without a copy of their size
        gram = partition.broadcast(0.5 * (gram + gram.mT))
        grown = replace(self, directions=directions, products=products, gram=gram)
        return replace(grown, rows=support, explained=explained, buffer=buffer)

    def _largest_variance(self, variances: Tensor) -> Tensor:
        """Of every kernel by itself ``(C',)``, of prior variances ``(C', m)``."""
        return variances.amax(-1)

    def _slice(self, rows: slice) -> slice:
        """The rows of ``products`` that belong to rows: themselves."""
        return rows

    def _new(self, known: Tensor, mix: Tensor) -> Tensor:
        """New directions ``(C', M + m, k)``, orthogonal to the old ones, by the mixing of the new rows."""
        return torch.cat([-torch.matmul(self.directions, torch.matmul(known.mT, mix)), mix], -2)

    def _unit_norm(self, products: Tensor, support: Tensor, known: Tensor, mix: Tensor) -> Tensor | None:
        """Mixing of the new directions that leaves out rounding, whose products are not of unit norm; None if there is none."""
        if mix.shape[-1] == 0:
            return None
        new = self.partition.select(products[..., self.rank :], self.latent_values(support), 1).double()
        gram = symmetric(torch.matmul(self._new(known, mix).mT, new))
        resolved = self.partition.broadcast(whitening(gram, HALF_OF_A_UNIT))
        there = int((mix.abs().amax(-2) > 0.0).sum())
        return None if int((resolved.abs().amax(-2) > 0.0).sum()) == there else resolved

    def _append(self, operator: KernelOperator, rows: Tensor, known: Tensor, mix: Tensor) -> tuple[Tensor, _Buffer]:
        """``(K[:, rows] - T L21^T) mix`` written behind T, chunk by chunk of rows."""
        rank, width = self.rank, mix.shape[-1]
        buffer = self.buffer.with_room(rank, width)
        back, forth = torch.matmul(known.mT, mix).to(operator.dtype), mix.to(operator.dtype)

        def write(rows_of_chunk: slice, entries: Tensor) -> None:
            chunk = self._slice(rows_of_chunk)
            part = torch.matmul(entries, forth)
            if rank:
                part -= torch.matmul(self.products[:, chunk], back)
            buffer.values[:, chunk, rank : rank + width] = part

        operator.with_columns(rows, write)
        return buffer.values[..., : rank + width], buffer


class _Buffer:
    """Memory for products, and how much of it is taken: by whoever writes first."""

    def __init__(self, values: Tensor, taken: int = 0) -> None:
        self.values, self.taken = values, taken

    def with_room(self, used: int, width: int) -> _Buffer:
        """This buffer with the columns after ``used`` taken; a copy where they are another's, or there are none left."""
        capacity, buffer = self.values.shape[-1], self
        if self.taken != used or used + width > capacity:
            larger = self.values.new_empty(*self.values.shape[:2], max(capacity, used + width))
            larger[..., :used] = self.values[..., :used]
            buffer = _Buffer(larger, used)
        buffer.taken = used + width
        return buffer

    def mixed(self, used: int, mix: Tensor) -> tuple[Tensor, _Buffer]:
        """The columns after ``used`` replaced by mixings of them, and the products up to there."""
        width = mix.shape[-1]
        self.values[..., used : used + width] = torch.matmul(self.values[..., used : self.taken], mix.to(self.values))
        self.taken = used + width
        return self.values[..., : self.taken], self


@dataclass(frozen=True)
class JointSupportSpace(JointSpace, SupportSpace):
    """A ``SupportSpace`` of coupled latent functions: every row of the support has C latent values of its own.

    Attributes:
        directions: S on the support ``(1, M C, B)``, float64.
        products: T = K S ``(1, N C, B)``, a view of the buffer.
        gram: ``S^T T`` ``(1, B, B)``, float64.
        rows: The support ``(M,)``, in the order in which it grew.
        explained: Prior variance at the training inputs that the support's latent values determine, ``(1, N C)``.
        buffer: Where the products are.
        latents: C.
    """

    def to_fields(self) -> dict[str, Any]:
        """What there is, and how much more there is memory for."""
        return super().to_fields() | {"latents": self.latents}

    @classmethod
    def start(cls, operator: KernelOperator, capacity: int) -> SupportSpace:
        """No support yet; memory for the directions of ``capacity`` rows is taken as it is filled."""
        latents = operator.num_kernels
        size = operator.num_rows * latents
        return cls._of_nothing_on_support(operator, 1, size, capacity * latents, latents=latents)

    def with_more_rows(self, count: int) -> SupportSpace:
        """Itself: the support is known by row numbers."""
        return SupportSpace.with_more_rows(self, count)

    def latent_values(self, rows: Tensor) -> Tensor:
        """Numbers of the latent values of rows among those of all."""
        return (self.latents * rows.unsqueeze(-1) + torch.arange(self.latents, device=rows.device)).flatten()

    def without_support(self, directions: Tensor, products: Tensor, gram: Tensor) -> SearchSpace:
        """A space of directions at other rows."""
        return JointSpace(directions, products, gram, partition=self.partition, latents=self.latents)

    def on_support(self) -> SearchSpace:
        """The space at the rows of the support alone."""
        products = self.products[:, self.latent_values(self.rows)]
        return JointSpace(self.directions, products, self.gram, latents=self.latents)

    def missing_variance(self, operator: KernelOperator) -> Tensor:
        """Prior variance at the training inputs that is left once the support's latent values are known, ``(C, N)``."""
        explained = self.explained.view(-1, self.latents).mT
        return (operator.diagonal().detach() - explained).clamp_min(0.0)

    def _largest_variance(self, variances: Tensor) -> Tensor:
        return variances.amax().reshape(1)

    def _slice(self, rows: slice) -> slice:
        return slice(self.latents * rows.start, self.latents * rows.stop)


def start_support(operator: KernelOperator, capacity: int) -> SupportSpace:
    """No support yet, for latent functions that are coupled or not; there is memory for ``capacity`` rows."""
    kind = JointSupportSpace if operator.couples_latents else SupportSpace
    return kind.start(operator, capacity)
