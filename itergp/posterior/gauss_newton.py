"""``GaussNewton``: what the data say about the whitened weights of a network, ``H = P^{-1/2} J^T W J P^{-1/2}``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import repeat

import torch
from torch import Tensor

from itergp.likelihoods import Observations
from itergp.numerics.blocks import curvature_eigen
from itergp.numerics.rounding import thresholds
from itergp.numerics.spectral import eigh, symmetric
from itergp.operators.layer_gradients import LayerGradients
from itergp.operators.linearisation import Linearisation, Rows, num_rows, take
from itergp.operators.row_gradients import RowGradients, WeightBlock
from itergp.operators.tiles import slices
from itergp.posterior.weights import gram_matrix, orthonormal

Part = tuple[Rows, Observations]
Data = Callable[[], Iterable[Part]]
Curvatures = list[tuple[Tensor, Tensor]]  # eigenvalues and eigenvectors, batch by batch
MANY_LATENTS = 64  # of which curvatures are multiplied by, not taken apart
_OVERSAMPLED = 16  # columns beyond the rank that a search has
_GRADIENT_BYTES, _KEPT_BYTES = 2**26, 2**28  # of rows' gradients at a time, and kept between passes
_MOST_CURVATURES = 2**25  # numbers
_BUCKETS = 8  # mixtures that each direction of the data is part of
_KEPT_NUMBERS = 2**24  # of curvatures, kept from one pass for the others
_SAME = 1e-4  # relative difference of two curvatures that may be one


@dataclass(frozen=True)
class Overview:
    """What one pass forward through the network says about the data.

    Attributes:
        log_density: ``log p(y | f*)``, nats.
        num_rows: N.
        num_directions: Directions of latent values that the data say something about, at most N C.
        num_kept: Those of them that are looked at.
        least: Curvature at or below which a direction is not looked at.
        num_single: Those of them, of most curvature, that are looked at one by one.
        split: Curvature at or below which a direction is not among these.
    """

    log_density: float
    num_rows: int
    num_directions: int
    num_kept: int
    least: float
    num_single: int = 0
    split: float = math.inf

    def rank_left(self, num_weights: int, single: int, actions: int) -> int:
        """The rank at most of what single directions and actions along others leave of H.

        Args:
            num_weights: P.
            single: Directions that are known without loss.
            actions: Of the others that are looked at, which leave nothing of these along themselves.
        """
        along = actions if self.num_kept == self.num_directions else 0
        return max(0, min(num_weights - along, self.num_directions - single - actions))


@dataclass
class GaussNewton:
    """Products with H, batch of rows by batch of rows; the Jacobian is never there as a whole.

    With few latent functions, rows' gradients are taken in the eigenvectors of their curvature alone: a row that is certain
    costs nothing, and leaving out what is nearly so is conditioning on fewer data, which can only widen. They are kept between
    passes where they are few. Otherwise products go forward and back through the network.

    Attributes:
        linearisation: The network.
        data: Gives the batches of a pass over the training data.
        scale: Prior standard deviations ``(P,)``.
        overview: Of the data.
        layers: Gradients of rows, by layers.
        single: Whether directions that are looked at one by one are part of H.
        curvatures: Of the rows' latent values, as ``look_over`` found them; None to find them in every pass.
    """

    linearisation: Linearisation
    data: Data
    scale: Tensor
    overview: Overview
    layers: LayerGradients
    single: bool = True
    curvatures: Curvatures | None = field(default=None, repr=False)
    _kept: list[RowGradients] | None = field(default=None, repr=False)

    # --------------------------------------------------------------------- products
    def product(self, block: Tensor) -> Tensor:
        """H times a block ``(P, k)``: ``(P, k)``."""
        return self.product_and_form(block)[0]

    def product_and_form(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """H times a block X ``(P, k)``, and ``X^T H X`` ``(k, k)``, float64."""
        if not self.by_rows:
            total = torch.zeros_like(block)
            scaled = block * self.scale.unsqueeze(-1)
            for rows, observed in self._parts():
                curved = self._curved(rows, observed, self.linearisation.push(rows, scaled))
                total += self.linearisation.pull(rows, curved)
            total.mul_(self.scale.unsqueeze(-1))
            return total, symmetric(gram_matrix(block, total))
        form = torch.zeros(block.shape[1], block.shape[1], dtype=torch.float64, device=block.device)
        arranged = WeightBlock.of(self.layers.layout, block)
        sums = WeightBlock.zeros(self.layers.layout, block.shape[1], block)
        for gradients in self.weighted_gradients():
            seen = gradients.times(arranged)
            wide = seen.flatten(0, 1).double()
            form.addmm_(wide.mT, wide)
            gradients.mix_into(sums, seen)
        return sums.weights(), form

    def sketch(self, width: int, generator: torch.Generator) -> Tensor:
        """Random mixtures of the data's directions ``(P, width)``: sparse ones where gradients are row by row."""
        if not self.by_rows:
            total = self.scale.new_zeros(len(self.scale), width)
            for rows, observed in self._parts():
                shape = (num_rows(rows), self.linearisation.num_latents, width)
                noise = torch.randn(shape, generator=generator, dtype=total.dtype).to(total.device)
                total += self.linearisation.pull(rows, self._curved(rows, observed, noise))
            return total.mul_(self.scale.unsqueeze(-1))
        total = self.scale.new_zeros(width, len(self.scale))
        for gradients in self.weighted_gradients():
            shape = (*gradients.shape, _BUCKETS)
            buckets = torch.randint(width, shape, generator=generator).to(total.device)
            signs = torch.randint(2, shape, generator=generator).to(total).mul_(2.0).sub_(1.0)
            gradients.collect_into(total, buckets, signs)
        return total.mT

    def matrix(self) -> Tensor:
        """H ``(P, P)``, float64."""
        size = len(self.scale)
        if not self.by_rows:
            return self.product(torch.eye(size).to(self.scale)).double()
        total = torch.zeros(size, size, dtype=torch.float64, device=self.scale.device)
        for gradients in self._dense():
            wide = gradients.double()
            total.addmm_(wide.mT, wide)
        return total

    def root(self) -> Tensor:
        """U ``(P, m)`` with ``H = U U^T``, for few directions of the data."""
        if self.by_rows:
            found = [*self._dense()]
            return torch.cat(found).mT if found else self.scale.new_zeros(len(self.scale), 0)
        columns = []
        for rows, observed in self._parts():
            values, vectors = curvature_eigen(self._curvature(rows, observed))
            roots = (vectors * values.sqrt().unsqueeze(-2)).mT
            columns.append(self.linearisation.row_gradients(rows, roots).flatten(0, 1))
        return (torch.cat(columns) * self.scale).mT

    def traces(self, groups: list[Tensor]) -> Tensor:
        """``tr(H)`` within each group of weights ``(G,)``, all directions counted.

        Args:
            groups: For each a mask of the weights ``(P,)``.
        """
        total = torch.zeros(len(groups), dtype=torch.float64, device=self.scale.device)
        if self.by_rows:
            masks = [group.to(self.scale) for group in groups]
            for gradients in self._gradients(0.0):
                for i, mask in enumerate(masks):
                    total[i] += gradients.scaled(mask).squares().sum(dtype=torch.float64)
            return total
        for rows, observed in self._parts():
            curvature = self._curvature(rows, observed)
            for i, group in enumerate(groups):
                total[i] += (curvature * self.linearisation.prior_blocks(rows, self.scale * group)).sum().double()
        return total

    def weighted_gradients(self) -> Iterator[RowGradients]:
        """Whitened gradients of what is looked at, times the root of its curvature: H is the sum of their squares."""
        count = self.overview.num_kept - (0 if self.single else self.overview.num_single)
        if count * self.layers.layout.width * self.scale.element_size() > _KEPT_BYTES:
            yield from self._looked_at()
            return
        if self._kept is None:
            by_count: dict[int, list[RowGradients]] = {}
            for gradients in self._looked_at():
                by_count.setdefault(gradients.shape[1], []).append(gradients)
            self._kept = [RowGradients.stacked(by_count.pop(count)) for count in [*by_count]]  # freeing one by one
        yield from self._kept

    def single_gradients(self) -> RowGradients:
        """Those of the directions that are looked at one by one ``(num_single, 1, P)``."""
        found = (gradients.flatten() for gradients in self._gradients(self.overview.split))
        return RowGradients.joined(found, self.overview.num_single, self.layers.layout, self.scale)

    def release(self) -> None:
        """Frees what is kept between passes."""
        self._kept = None

    # ----------------------------------------------------------------------- inside
    @property
    def by_rows(self) -> bool:
        """Whether gradients are taken row by row, as they must be where some directions of a row are left out."""
        all_of_a_row = self.single or not self.overview.num_single
        structured = self.linearisation.structured and all_of_a_row
        return self.linearisation.num_latents <= MANY_LATENTS and not structured

    def _dense(self) -> Iterator[Tensor]:
        """What is looked at, in blocks ``(k, P)``."""
        step = max(1, _GRADIENT_BYTES // (self.scale.numel() * self.scale.element_size()))
        for found in self._looked_at():
            flat = found.flatten()
            for i in slices(flat.shape[0], step):
                yield flat[i].dense()[:, 0]

    def _looked_at(self) -> Iterator[RowGradients]:
        # Rounding, which batches in another order change, must not count a direction by itself and among the others.
        most = math.inf if self.single else self.overview.split * (1.0 - _SAME)
        return self._gradients(self.overview.least, most)

    def _gradients(self, least: float, most: float = math.inf) -> Iterator[RowGradients]:
        """Whitened gradients of directions of some curvature, times its root, of rows with as many of them."""
        for (rows, observed), curvatures in zip(self.data(), self.curvatures or repeat(None), strict=False):
            values, vectors = curvatures or _curvature_eigen(self.linearisation, rows, observed)
            counts, above = (values > least).sum(-1), (values > most).sum(-1)
            for pair in torch.stack([counts, above], -1).unique(dim=0):
                count, left_out = pair.tolist()
                if count == left_out:
                    continue
                own = ((counts == count) & (above == left_out)).nonzero().squeeze(-1)
                chosen = slice(-count, -left_out or None)
                for which in own.split(self.layers.rows_at_once(count - left_out, _GRADIENT_BYTES)):
                    weighted = vectors[which, :, chosen] * values[which, None, chosen].sqrt()
                    yield self.layers.at(take(rows, which), weighted.mT, self.scale)

    def _parts(self) -> Iterator[Part]:
        most = max(1, _MOST_CURVATURES // self.linearisation.num_latents**2)
        for rows, observed in self.data():
            for i in slices(num_rows(rows), most):
                yield take(rows, i), observed.part(i.start, i.stop - i.start)

    def _curved(self, rows: Rows, observed: Observations, block: Tensor) -> Tensor:
        """W times a block ``(n, C, k)``, without its C squared numbers a row where it has a structure."""
        latents = self.linearisation.outputs(rows)
        if observed.likelihood.structured_root(latents) is None:
            return torch.bmm(_curvature_at(latents, observed), block)
        product = observed.curvature_product(latents, latents.new_zeros(0))  # which does not look at the matrices
        return torch.stack([product(column) for column in block.unbind(-1)], -1)

    def _curvature(self, rows: Rows, observed: Observations) -> Tensor:
        return _curvature_at(self.linearisation.outputs(rows), observed)


@torch.no_grad()
def look_over(
    linearisation: Linearisation,
    data: Data,
    coverage: float,
    most_single: int = 0,
    curvatures: Curvatures | None = None,
) -> Overview:
    """One pass forward through the network.

    Args:
        linearisation: The network.
        data: The training data.
        coverage: Share of the curvature that is to be looked at.
        most_single: Directions of the data that may be looked at one by one.
        curvatures: A list that takes those of every batch, for ``GaussNewton``; it is left empty where they are large.
    """
    log_density, size, kept, found = 0.0, 0, 0, []
    for rows, observed in data():
        latents = linearisation.outputs(rows)
        log_density += float(observed.log_density(latents).sum(dtype=torch.float64))
        size += len(latents)
        if linearisation.num_latents <= MANY_LATENTS:
            own = curvature_eigen(_curvature_at(latents, observed))
            found.append(own[0].flatten())
            kept += own[1].numel()
            if curvatures is not None and kept <= _KEPT_NUMBERS:
                curvatures.append(own)
    if curvatures is not None and kept > _KEPT_NUMBERS:
        curvatures.clear()
    if not found:
        every = size * linearisation.num_latents
        return Overview(log_density, size, every, every, 0.0)
    values = torch.cat(found).double().sort().values
    informative = int((values > 0.0).sum())
    dropped = int((values.cumsum(0) <= (1.0 - coverage) * values.sum()).sum())
    least = max(0.0, float(values[dropped - 1])) if dropped else 0.0
    kept = int((values > least).sum())
    split = least if kept <= most_single else float(values[len(values) - 1 - most_single])
    return Overview(log_density, size, informative, kept, least, int((values > split).sum()), split)


def leading_actions(problem: GaussNewton, rank: int, passes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Actions ``A = W J P^{-1/2} D`` along the leading directions D of H, by subspace iteration.

    Args:
        problem: H.
        rank: Most actions.
        passes: Products with H, at least 1.
        seed: Of the start.

    Returns:
        D ``(P, r)`` scaled so that ``A^T W^+ A = D^T H D = I``, and ``U = P^{-1/2} J^T A = H D`` ``(P, r)``.
    """
    generator = torch.Generator().manual_seed(seed)
    floor = thresholds(problem.scale.dtype).dependent_action
    overview = problem.overview
    count = overview.num_kept - (0 if problem.single else overview.num_single)
    width = min(rank + _OVERSAMPLED, count, len(problem.scale))
    basis = orthonormal(problem.sketch(width, generator), floor, rounds=1)
    for _ in range(passes - 1):
        basis = orthonormal(problem.product(basis), floor, rounds=1)
    products, form = problem.product_and_form(basis)
    values, vectors = eigh(form)
    keep = (values > floor * values.amax().clamp_min(0.0)) if values.numel() else values > 0.0
    mix = (vectors[:, keep] * values[keep].rsqrt())[:, -rank:].to(basis)
    return basis @ mix, products @ mix


def _curvature_eigen(linearisation: Linearisation, rows: Rows, observed: Observations) -> tuple[Tensor, Tensor]:
    return curvature_eigen(_curvature_at(linearisation.outputs(rows), observed))


def _curvature_at(latents: Tensor, observed: Observations) -> Tensor:
    return observed.covariance_curvature(latents).detach()
