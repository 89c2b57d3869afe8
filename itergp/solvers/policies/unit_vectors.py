"""Single observations, one after the other: partial Cholesky, subset of data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.solvers.base import require_positive
from itergp.solvers.policies.base import RowBlock, View

Order = Literal["given", "random", "variance"]


@dataclass(frozen=True, kw_only=True)
class UnitVectors:
    """Unit vectors: conditioning on single observations, which is the (partial) Cholesky decomposition.

    After the rows of a subset the posterior is that of Gaussian process regression on this subset (IterGP-Cholesky, Wenger et
    al. 2022, table 1; "IterNCGP-Chol" and subset of data in arXiv 2310.20285). All latent functions of a row are taken
    together. No kernel pass is used: a row costs one kernel column, ``N`` entries.

    Args:
        order: ``"given"``: as in the data; ``"random"``; ``"variance"``: the row with the largest posterior variance, the
            pivoting of a Cholesky decomposition, at ``N C R^2`` operations per proposal.
        rows: Rows per proposal; default 1.
        seed: Of the random order.

    Raises:
        InputError: If the order is unknown or ``rows`` is not positive.
    """

    order: Order = "given"
    rows: int = 1
    seed: int = 0

    sparse: ClassVar[bool] = True  # proposes a ``RowBlock``

    def __post_init__(self) -> None:
        """Checks the settings."""
        if self.order not in get_args(Order):
            raise InputError(f"`order` must be one of {get_args(Order)}. Got {self.order!r}.")
        require_positive("rows", self.rows, integer=True)

    def propose(self, view: View) -> RowBlock | None:
        """The next rows, or None when all were proposed."""
        size, latents = view.shape
        start = view.index * self.rows
        if start >= size:
            return None
        rows = self._next(view, start, min(size, start + self.rows))
        units = torch.eye(rows.numel() * latents, dtype=view.gradient.dtype, device=rows.device)
        return RowBlock(rows, units.unflatten(0, (rows.numel(), latents)))

    def _next(self, view: View, start: int, stop: int) -> Tensor:
        if self.order == "variance":
            variance = view.variance().sum(-1).clone()
            taken = view.memory.setdefault(self, [])
            del taken[start:]
            variance[taken] = -1.0
            rows = variance.topk(stop - start).indices
            taken.extend(rows.tolist())
            return rows
        if self.order == "given":
            return torch.arange(start, stop, device=view.gradient.device)
        if self not in view.memory:
            generator = torch.Generator().manual_seed(self.seed)
            view.memory[self] = torch.randperm(view.shape[0], generator=generator).to(view.gradient.device)
        return view.memory[self][start:stop]
