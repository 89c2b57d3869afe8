"""Single observations, one after the other: partial Cholesky, subset of data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from itergp.checks import require_positive
from itergp.errors import InputError
from itergp.solvers.policies.base import BasePolicy, View
from itergp.solvers.proposals import RowBlock

Order = Literal["given", "random", "variance", "pivoted", "leverage", "residual", "spread"]

# Rows that are compared by their distances: so many for each that is chosen, and at least so many.
_CANDIDATES, _FEWEST_CANDIDATES = 10, 1000


@dataclass(frozen=True, kw_only=True)
class UnitVectors(BasePolicy):
    """Unit vectors: conditioning on single observations, which is the (partial) Cholesky decomposition.

    After the rows of a subset the posterior is that of Gaussian process regression on this subset (IterGP-Cholesky, Wenger et
    al. 2022, table 1; "IterNCGP-Chol" and subset of data in arXiv 2310.20285). All latent functions of a row are taken
    together. No kernel pass is used: a row costs one kernel column, ``N`` entries.

    Args:
        order: Which rows come next. ``"given"``: as in the data. ``"random"``. ``"variance"``: those with the largest posterior
            variance, the pivoting of a Cholesky decomposition: the farthest points in the kernel's geometry. ``"pivoted"``:
            at random, with probability proportional to the posterior variance (randomly pivoted Cholesky, Chen et al. 2025,
            Comm. Pure Appl. Math. 78, 995-1041). ``"leverage"``: proportional to curvature times posterior variance, the
            ridge leverage score. ``"residual"``: proportional to the squared gradient times posterior variance. ``"spread"``:
            by k-means++ in the kernel's inputs, from a random sample of candidates. All but the first two and the last cost
            what ``View.variance`` costs per proposal.
        rows: Rows per proposal; default 1.
        seed: Of the random order.

    Raises:
        InputError: If the order is unknown or ``rows`` is not positive.
    """

    order: Order = "given"
    rows: int = 1
    seed: int = 0

    sparse: ClassVar[bool] = True  # proposes a ``RowBlock``
    agrees_on_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Checks the settings."""
        if self.order not in get_args(Order):
            raise InputError(f"`order` must be one of {get_args(Order)}. Got {self.order!r}.")
        require_positive("rows", self.rows, integer=True)

    def propose(self, view: View) -> RowBlock | None:
        """The next rows, or None when all were proposed."""
        size, latents = view.operator.num_rows, view.shape[1]
        start = view.index * self.rows
        if start >= size:
            return None
        rows = self._next(view, start, min(size, start + self.rows), size)
        units = torch.eye(rows.numel() * latents, dtype=view.gradient.dtype, device=rows.device)
        return RowBlock(rows, units.unflatten(0, (rows.numel(), latents)))

    def _next(self, view: View, start: int, stop: int, size: int) -> Tensor:
        if self.order == "given":
            return torch.arange(start, stop, device=view.gradient.device)
        if self.order == "random":
            if self not in view.memory:
                generator = torch.Generator().manual_seed(self.seed)
                view.memory[self] = torch.randperm(size, generator=generator).to(view.gradient.device)
            return view.memory[self][start:stop]
        taken = view.memory.setdefault(self, [])
        del taken[start:]
        rows = (
            self._spread(view, taken, stop - start)
            if self.order == "spread"
            else self._scored(view, taken, stop - start)
        )
        rows = view.operator.rows.broadcast(rows)
        taken.extend(rows.tolist())
        return rows

    def _scored(self, view: View, taken: list[int], count: int) -> Tensor:
        variance = view.variance()
        if self.order == "leverage":
            variance = variance * view.curvature.diagonal(dim1=-2, dim2=-1)
        elif self.order == "residual":
            variance = variance * view.gradient.square()
        score = view.operator.rows.gather(variance.sum(-1).double().clamp_min(0.0).log())
        if self.order != "variance":  # the largest of perturbed logarithms are a sample without replacement
            uniform = torch.rand(score.shape, generator=view.generator(self.seed), dtype=torch.float64)
            score = score - (-uniform.clamp_min(1e-300).log()).log().to(score)
        score = score.clamp_min(torch.finfo(score.dtype).min)  # rows of no variance come last, those taken never
        score[taken] = -torch.inf
        return score.topk(count).indices

    def _spread(self, view: View, taken: list[int], count: int) -> Tensor:
        """k-means++ (Arthur & Vassilvitskii 2007): with probability proportional to the squared distance from all before."""
        generator, inputs = view.generator(self.seed), view.inputs
        free = torch.ones(view.operator.num_rows, dtype=torch.bool)
        free[taken] = False
        rows = free.nonzero().squeeze(-1)
        wanted = max(_FEWEST_CANDIDATES, _CANDIDATES * count)
        rows = rows[torch.randperm(rows.numel(), generator=generator)[:wanted]].to(inputs.device)
        points = inputs[rows]
        distance = torch.full_like(points[:, 0], torch.inf)
        if taken:
            distance = torch.cdist(points, inputs[taken]).square().amin(-1)
        chosen: list[int] = []
        while len(chosen) < count:
            weights = torch.where(distance.isfinite(), distance, 1.0).double().cpu()
            weights[chosen] = 0.0
            if not bool(weights.sum() > 0.0):  # only copies of chosen rows are left
                weights = torch.ones_like(weights)
                weights[chosen] = 0.0
            chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
            distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(-1))
        return rows[chosen]
