"""``RowInformation``: what single rows say about the weights of a network, one by one, and what actions say of the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from itergp.numerics.cholesky import try_cholesky
from itergp.numerics.spectral import symmetric
from itergp.operators.row_gradients import RowGradients, WeightLayout
from itergp.operators.tiles import slices
from itergp.posterior.weights import ROUNDING, Information, gram_matrix, remaining_covariance

_AT_ONCE = 512  # gradients whose products with all others are taken at a time
_ITERATIONS = 3  # towards leading directions of a Gram matrix
_LIFTS = (4.0, 64.0, 1e4)  # of a Gram matrix's diagonal, in units of the dtype


@dataclass(frozen=True)
class RowInformation(Information):
    """``H = m G G^T``, G ``(P, q)`` the whitened gradients of q pseudo-observations with unit noise.

    They are directions of single rows' latent values, times the root of their curvature, and, of the other rows, actions. The
    posterior is that given these data and no others: ``(I + H)^{-1} = I - m G (I + m G^T G)^{-1} G^T``. Gradients of rows are
    outer products in the weights of linear layers, so that G takes far less than q vectors of weights.

    Attributes:
        rows: Gradients of rows ``(q - r, 1, P)``.
        actions: U of actions of other rows ``(P, r)``, whose noise is standard normal too.
        factor: Lower Cholesky factor of ``I + m G^T G`` ``(q, q)``, float64.
        multiple: m, 1 at the prior precision that G was found at.
    """

    rows: RowGradients = field(repr=False)
    actions: Tensor = field(repr=False)
    factor: Tensor = field(repr=False)
    multiple: float = 1.0

    @classmethod
    def of(cls, rows: RowGradients, actions: Tensor) -> RowInformation:
        """From gradients of rows and the actions U ``(P, r)``; a lift of the Gram matrix by rounding widens."""
        return cls.from_gram(rows, actions, pairwise(rows, actions))

    @classmethod
    def from_gram(cls, rows: RowGradients, actions: Tensor, gram: Tensor, multiple: float = 1.0) -> RowInformation:
        """With ``m G^T G`` ``(q, q)`` known, which is overwritten."""
        eps = torch.finfo(actions.dtype).eps
        unit = eps * float(gram.diagonal().amax()) if gram.numel() else 0.0
        gram.diagonal().add_(1.0)  # in place: matrices of this size are most of the memory
        for lift, last in zip(_LIFTS, (0.0, *_LIFTS), strict=False):
            gram.diagonal().add_((lift - last) * unit)
            factor, failed = try_cholesky(gram)
            if not bool(failed):
                return cls(rows, actions, factor, multiple)
        return cls(rows, actions, torch.linalg.cholesky(gram), multiple)

    def rescaled(self, ratio: float) -> RowInformation:
        """Of ``ratio H``: that of another prior precision of all weights."""
        return RowInformation.from_gram(self.rows, self.actions, self.gram().mul_(ratio), self.multiple * ratio)

    @property
    def rank(self) -> int:
        """Pseudo-observations q."""
        return self.factor.shape[0]

    def gram(self) -> Tensor:
        """``m G^T G`` ``(q, q)``, float64."""
        gram = self.factor @ self.factor.mT
        gram.diagonal().sub_(1.0)
        return gram

    def group_grams(self, groups: list[Tensor], most: int) -> Tensor:
        """``m A^T G^T G A`` within each group of weights ``(G, r, r)``, A orthonormal along leading directions of ``G^T G``.

        Args:
            groups: For each a mask of the weights ``(P,)``.
            most: Most directions r.
        """
        gram, actions = self.gram(), None
        if self.rank > most:
            generator = torch.Generator().manual_seed(0)
            start = torch.randn(self.rank, most, generator=generator, dtype=torch.float64).to(gram)
            for _ in range(_ITERATIONS):
                start = torch.linalg.qr(gram @ start).Q
            actions = start
        found = []
        for group in groups:
            mask = group.to(self.actions)
            own = self.multiple * pairwise(self.rows.scaled(mask), self.actions * mask.unsqueeze(-1))
            found.append(own if actions is None else symmetric(actions.mT @ own @ actions))
        return torch.stack(found)

    # -------------------------------------------------------------------- covariances
    def row_covariance(self, gradients: RowGradients) -> tuple[Tensor, Tensor]:
        """Covariances ``(n, C, C)`` and prior variances ``(n, C)`` of the functions of each row."""
        prior = gradients.blocks()
        half = self._whitened(self._products(gradients))
        return remaining_covariance(prior, half), prior.diagonal(dim1=-2, dim2=-1)

    def joint_covariance(self, gradients: RowGradients) -> Tensor:
        """Covariance ``(k, k)`` of flat gradients."""
        half = self._whitened(self._products(gradients)[:, 0])
        return remaining_covariance(gradients.inner(gradients)[:, 0], half)

    def covariance(self, gradients: Tensor) -> Tensor:
        """For whitened gradients ``(..., C, P)`` without structure."""
        with_rows = self.rows.times(gradients.flatten(0, -2).mT)[:, 0].mT
        products = torch.cat([with_rows, gradients.flatten(0, -2) @ self.actions], -1)
        half = self._whitened(products.view(*gradients.shape[:-1], -1))
        return remaining_covariance(gradients @ gradients.mT, half)

    def _products(self, gradients: RowGradients) -> Tensor:
        """Products ``(n, m, q)`` with G."""
        inner = gradients.inner(self.rows)
        return torch.cat([inner, gradients.times(self.actions)], -1) if self.actions.shape[1] else inner

    def _whitened(self, products: Tensor) -> Tensor:
        flat = products.flatten(0, -2).double().mul_(math.sqrt(self.multiple))
        return torch.linalg.solve_triangular(self.factor, flat.mT, upper=False).mT.view(products.shape)

    # ------------------------------------------------------------------------ weights
    @property
    def num_noise(self) -> int:
        """One number for each pseudo-observation."""
        return self.rank

    def sample(self, noise: Tensor) -> Tensor:
        """``e - G (I + G^T G)^{-1} (G^T e + n)`` at m = 1, e and n of the noise: what is left once such data were explained."""
        weights, own = noise.split([len(noise) - self.rank, self.rank])
        root = math.sqrt(self.multiple)
        seen = (root * self._transposed(weights) + own).double()
        coefficients = root * torch.cholesky_solve(seen, self.factor).to(noise)
        count = self.rows.shape[0]
        return weights - self.rows.mixed(coefficients[:count]) - self.actions @ coefficients[count:]

    def quadratic(self, weights: Tensor) -> Tensor:
        """``|u|^2 + m |G^T u|^2``."""
        flat = weights.reshape(-1, weights.shape[-1])
        seen = self.multiple * self._transposed(flat.mT).square().sum(0)
        return weights.square().sum(-1) + seen.view(weights.shape[:-1])

    def log_determinant(self) -> float:
        """That of ``I + m G^T G``."""
        return 2.0 * float(self.factor.diagonal().log().sum())

    def variances(self) -> Tensor:
        """One less what is known, weight by weight."""
        known = self.factor.new_zeros(self.rows.layout.num_weights)
        for where, gradients in self.rows.columns():
            own = torch.cat([gradients.mT, self.actions[where]], 1)
            known[where] = self._whitened(own).square().sum(-1)
        eps = torch.finfo(self.actions.dtype).eps
        return ((1.0 - known).clamp_min(0.0) + ROUNDING * eps).to(self.actions)

    def _transposed(self, weights: Tensor) -> Tensor:
        """``G^T`` times vectors of weights ``(P, k)``."""
        return torch.cat([self.rows.times(weights)[:, 0], self.actions.mT @ weights])

    # ------------------------------------------------------------------------- moving
    def to(self, like: Tensor) -> RowInformation:
        """The same in the dtype and on the device of ``like``."""
        return RowInformation(self.rows.to(like), self.actions.to(like), self.factor.to(like.device), self.multiple)

    def tensors(self) -> dict[str, Tensor]:
        """All that it is, by name."""
        found = {"layout": self.rows.layout.as_tensor(), "plain": self.rows.plain}
        for side in ("left", "right"):
            found |= {f"{side}{i}": value for i, value in enumerate(getattr(self.rows, side))}
        multiple = torch.tensor(self.multiple, dtype=torch.float64)
        return found | {"actions": self.actions, "factor": self.factor, "multiple": multiple}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> RowInformation:
        """What ``tensors`` gave."""
        layout = WeightLayout.from_tensor(tensors["layout"])
        left, right = (tuple(tensors[f"{side}{i}"] for i in range(len(layout.layers))) for side in ("left", "right"))
        rows = RowGradients(layout, tensors["plain"], left, right)
        return cls(rows, tensors["actions"], tensors["factor"], float(tensors["multiple"]))


def pairwise(rows: RowGradients, actions: Tensor) -> Tensor:
    """``G^T G`` ``(q, q)``, float64, of gradients of rows and actions ``(P, r)``."""
    count, rank = rows.shape[0], actions.shape[1]
    gram = torch.zeros(count + rank, count + rank, dtype=torch.float64, device=actions.device)
    for i in slices(count, _AT_ONCE):
        gram[i, : i.stop] = rows[i].inner(rows[: i.stop])[:, 0].double()
        gram[i, count:] = rows[i].times(actions)[:, 0].double()
        gram[: i.start, i] = gram[i, : i.start].mT
        gram[count:, i] = gram[i, count:].mT
        gram[i, i] = symmetric(gram[i, i].clone())
    gram[count:, count:] = gram_matrix(actions, actions)
    return gram
