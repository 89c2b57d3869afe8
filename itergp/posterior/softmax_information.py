"""``SoftmaxInformation``: what rows say about a softmax's last linear layer, of any number of classes, without loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from itergp.likelihoods import Observations
from itergp.numerics.cholesky import try_cholesky
from itergp.operators.linearisation import FinalLayer, Rows
from itergp.operators.row_gradients import LayerWeights
from itergp.operators.tiles import slices
from itergp.posterior.weights import Information

_NUMBERS = 2**22  # of one array at a time
_TILE = 512  # columns of a symmetric product that are made at a time
_ROUNDING = 8.0  # units of float64 by which M is less, which can only widen
_ARRAYS = 3  # of the factors' sizes that are there at a time


@dataclass(frozen=True)
class SoftmaxInformation(Information):
    """``H = sum_n w_n (diag(p_n) - p_n p_n^T) (x) phi_n phi_n^T`` of N rows with features phi and C class probabilities p.

    ``I + H = B - G G^T`` with B block-diagonal over classes, ``B_c = I + sum_n w_n p_nc phi_n phi_n^T``, and N columns
    ``G_n = sqrt(w_n) p_n (x) phi_n``. By Woodbury's identity

        ``(I + H)^{-1} = B^{-1} + B^{-1} G M^{-1} G^T B^{-1},   M = I - G^T B^{-1} G,``

    as in algorithm 3.3 of GPML for latent functions that are independent a priori. Both terms are positive semi-definite:
    a variance is a sum, and a sample takes no matrix of all weights. ``C d^2 + N^2`` numbers, ``C N^2 d`` operations.

    Attributes:
        layer: Where the layer's weights are in the vector of weights.
        features: phi in units of the prior, with that of the bias ``(N, d)``, float64.
        probs: p ``(N, C)``, float64: that it adds up to one is what curvature is made of.
        row_weights: w ``(N,)``, float64.
        factors: Lower Cholesky factors of ``B_c`` ``(C, d, d)``, float64.
        factor: Lower Cholesky factor of M ``(N, N)``, float64.
    """

    layer: LayerWeights
    features: Tensor = field(repr=False)
    probs: Tensor = field(repr=False)
    row_weights: Tensor = field(repr=False)
    factors: Tensor = field(repr=False)
    factor: Tensor = field(repr=False)

    @classmethod
    def of(cls, layer: LayerWeights, features: Tensor, probs: Tensor, row_weights: Tensor) -> SoftmaxInformation | None:
        """From what a pass over the rows gives; None if they say so much that float64 does not resolve it.

        Args:
            layer: Where the layer's weights are.
            features: ``(N, d)``, float64.
            probs: ``(N, C)``, float64.
            row_weights: ``(N,)``, float64.
        """
        (size, width), latents = features.shape, probs.shape[1]
        factors, matrix = features.new_empty(latents, width, width), features.new_zeros(size, size)
        for i in _classes(latents, size, width):
            own = (probs[:, i] * row_weights.unsqueeze(-1)).mT.unsqueeze(-1) * features
            blocks = torch.matmul(features.mT, own)
            blocks.diagonal(dim1=-2, dim2=-1).add_(1.0)
            factors[i], failed = try_cholesky(blocks)
            if bool(failed.any()):
                return None
            columns = (own * row_weights.clamp_min(_TINY).rsqrt().unsqueeze(-1)).mT
            halves = torch.linalg.solve_triangular(factors[i], columns, upper=False).flatten(0, 1)
            for start in range(0, size, _TILE):  # the lower half of a symmetric product
                rows = slice(start, start + _TILE)
                matrix[start:, rows].addmm_(halves[:, start:].mT, halves[:, rows], alpha=-1.0)
        matrix.diagonal().add_(1.0 - _ROUNDING * torch.finfo(matrix.dtype).eps)
        factor, failed = try_cholesky(matrix)  # which looks at the lower half alone
        return None if bool(failed) else cls(layer, features, probs, row_weights, factors, factor)

    @staticmethod
    def num_bytes(num_rows: int, num_latents: int, width: int) -> int:
        """Memory that it takes to find."""
        return 8 * (_ARRAYS * (num_rows**2 + num_latents * width**2 + _NUMBERS) + num_rows * (num_latents + width))

    @property
    def num_directions(self) -> int:
        """Directions of latent values that the rows say something about."""
        return self.probs.numel() - len(self.probs)

    @property
    def rank(self) -> int:
        """As many, and no more than weights."""
        return min(self.layer.outputs * self.layer.width, self.num_directions)

    # -------------------------------------------------------------------- covariances
    @cached_property
    def blocks(self) -> Tensor:
        """``(I + H)^{-1}`` within the weights of each class ``(C, d, d)``, float64."""
        found = torch.cholesky_inverse(self.factors)
        for i, columns in self._columns():
            solved = torch.cholesky_solve(columns.mT, self.factors[i])  # (k, d, N)
            half = torch.linalg.solve_triangular(self.factor, solved.flatten(0, 1).mT, upper=False)
            half = half.view(len(columns[0]), *solved.shape[:2]).movedim(0, -1)
            found[i] += torch.bmm(half, half.mT)
        return found

    def function_variances(self, features: Tensor) -> Tensor:
        """Variances ``(n, C)`` at features ``(n, d)``."""
        features = features.to(self.features)
        found = features.new_empty(len(features), len(self.blocks))
        for i in slices(len(features), max(1, _NUMBERS // self.blocks[:, 0].numel())):
            found[i] = ((self.blocks @ features[i].mT) * features[i].mT).sum(1).mT
        return found

    def function_covariance(self, features: Tensor) -> Tensor:
        """Covariance ``(n, C, n, C)`` of the functions at few features ``(n, d)``, float64."""
        features = features.to(self.features)
        count, latents = len(features), self.probs.shape[1]
        solved = torch.cholesky_solve(features.mT.expand(latents, -1, -1), self.factors)  # (C, d, n)
        within = features @ solved
        products = features.new_empty(latents, count, len(self.features))
        for i, columns in self._columns():
            products[i] = solved[i].mT @ columns.mT
        half = torch.linalg.solve_triangular(self.factor, products.flatten(0, 1).mT, upper=False)
        covariance = (half.mT @ half).view(latents, count, latents, count).permute(1, 0, 3, 2)
        covariance.diagonal(dim1=1, dim2=3).add_(within.movedim(0, -1))
        return covariance

    def row_covariance(self, features: Tensor) -> Tensor:
        """Covariances ``(n, C, C)`` of the functions of each row, float64."""
        found = [self.function_covariance(row.unsqueeze(0))[0, :, 0] for row in features]
        return torch.stack(found)

    def covariance(self, gradients: Tensor) -> Tensor:
        """By the two halves of the inverse."""
        flat = gradients.flatten(0, -3) if gradients.dim() > 2 else gradients.unsqueeze(0)
        parts = [self._covariance(one) for one in flat]
        return torch.stack(parts).view(*gradients.shape[:-1], gradients.shape[-2]).to(gradients)

    def _covariance(self, gradients: Tensor) -> Tensor:
        weights = self.layer.of(gradients.mT.to(self.features))  # (C, d, k)
        first = torch.linalg.solve_triangular(self.factors, weights, upper=False)
        second = torch.linalg.solve_triangular(self.factor, self._transposed(weights), upper=False)
        return first.flatten(0, 1).mT @ first.flatten(0, 1) + second.mT @ second

    # ------------------------------------------------------------------------ weights
    @property
    def num_noise(self) -> int:
        """One number for each row."""
        return len(self.features)

    def sample(self, noise: Tensor) -> Tensor:
        """``L^{-T} e + B^{-1} G R^{-T} n`` with ``L L^T = B`` and ``R R^T = M``, e and n of the noise."""
        count = noise.shape[0] - self.num_noise
        own = self.layer.of(noise[:count].to(self.features))  # (C, d, k)
        shared = torch.linalg.solve_triangular(self.factor.mT, noise[count:].to(self.features), upper=True)
        found = noise.new_empty(noise.shape[1], *own.shape[:2])
        for i, columns in self._columns(noise.dtype):
            seen = (columns.mT @ shared.to(noise)).to(own)
            half = torch.linalg.solve_triangular(self.factors[i], seen, upper=False)
            drawn = torch.linalg.solve_triangular(self.factors[i].mT, own[i] + half, upper=True)
            found[:, i] = drawn.movedim(-1, 0).to(noise)
        weights = noise.new_empty(noise.shape[1], count)
        self.layer.put(found, weights)
        return weights.mT

    def quadratic(self, weights: Tensor) -> Tensor:
        """``|u|^2 + sum_n w_n sum_c p_nc (z_nc - z_n)^2`` with z the functions of u, and z_n their mean under p."""
        matrices = self.layer.of(weights.reshape(-1, weights.shape[-1]).mT)
        values = torch.einsum("nd,cdk->knc", self.features.to(weights), matrices)
        probs = self.probs.to(weights)
        about = values - (values * probs).sum(-1, keepdim=True)
        seen = ((about.square() * probs).sum(-1) * self.row_weights.to(weights)).sum(-1)
        return weights.square().sum(-1) + seen.view(weights.shape[:-1])

    def log_determinant(self) -> float:
        """That of B and of M."""
        own = self.factors.diagonal(dim1=-2, dim2=-1).log().sum() + self.factor.diagonal().log().sum()
        return 2.0 * float(own)

    def variances(self) -> Tensor:
        """The diagonal of ``blocks``."""
        diagonal = self.blocks.diagonal(dim1=-2, dim2=-1)
        found = diagonal.new_empty(diagonal.numel())
        self.layer.put(diagonal, found)
        return found

    def traces(self) -> Tensor:
        """``tr H`` by columns of the features ``(d,)``."""
        share = self.row_weights * (1.0 - self.probs.square().sum(-1))
        return share @ self.features.square()

    # ------------------------------------------------------------------------- moving
    def to(self, like: Tensor) -> SoftmaxInformation:
        """The same on the device of ``like``, in float64 as it is."""
        return SoftmaxInformation(self.layer, *(getattr(self, name).to(like.device) for name in _TENSORS))

    def rescaled(self, ratio: float | Tensor) -> SoftmaxInformation:
        """Of ``ratio H``, or with one ratio for each column of the features ``(d,)``."""
        root = torch.as_tensor(ratio, dtype=torch.float64).to(self.features).sqrt()
        found = SoftmaxInformation.of(self.layer, self.features * root, self.probs, self.row_weights)
        if found is None:
            raise torch.linalg.LinAlgError("the rows say more than float64 resolves")
        return found

    def tensors(self) -> dict[str, Tensor]:
        """All that it is, by name."""
        layer = self.layer
        numbers = torch.tensor([layer.outputs, layer.inputs, layer.matrix, layer.bias])
        return {"layer": numbers} | {name: getattr(self, name) for name in _TENSORS}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SoftmaxInformation:
        """What ``tensors`` gave."""
        return cls(LayerWeights(*tensors["layer"].tolist()), *(tensors[name] for name in _TENSORS))

    # ------------------------------------------------------------------------- inside
    def _columns(self, dtype: torch.dtype = torch.float64) -> Iterator[tuple[slice, Tensor]]:
        """Some classes, and their part of ``G^T`` ``(k, N, d)``."""
        scaled, features = (self.probs * self.row_weights.sqrt().unsqueeze(-1)).to(dtype), self.features.to(dtype)
        for i in _classes(self.probs.shape[1], *self.features.shape):
            yield i, scaled[:, i].mT.unsqueeze(-1) * features

    def _transposed(self, weights: Tensor) -> Tensor:
        """``G^T B^{-1}`` times weights ``(C, d, k)``: ``(N, k)``."""
        solved = torch.cholesky_solve(weights, self.factors)
        total = solved.new_zeros(len(self.features), solved.shape[-1])
        for i, columns in self._columns():
            total += torch.bmm(columns, solved[i]).sum(0)
        return total


@dataclass(frozen=True)
class SoftmaxRows:
    """Rows of a softmax's last layer, as ``SoftmaxInformation`` takes them.

    Attributes:
        features: ``(N, d)``, float64.
        probs: ``(N, C)``, float64.
        row_weights: ``(N,)``, float64.
        complete: Whether they are all rows that say something.
    """

    features: Tensor
    probs: Tensor
    row_weights: Tensor
    complete: bool = True

    @classmethod
    @torch.no_grad()
    def of(
        cls, linearisation: FinalLayer, data: Iterable[tuple[Rows, Observations]], scale: Tensor, most: int
    ) -> SoftmaxRows:
        """Those of most curvature, in one pass over the data.

        Args:
            linearisation: The network in the weights of its last layer.
            data: Batches of rows, and what was observed there.
            scale: Prior standard deviations ``(P,)``.
            most: Rows at most.
        """
        found: SoftmaxRows | None = None
        for rows, observed in data:
            probs = torch.softmax(linearisation.outputs(rows).double(), -1)
            weight = probs.new_ones(len(probs)) if observed.sample_weight is None else observed.sample_weight.double()
            own = cls(linearisation.design(rows, scale).double(), probs, weight)
            found = own if found is None else found._joined(own)
            if len(found.probs) > 2 * most:
                found = found._leading(most)
        assert found is not None
        return found._leading(most)

    def _joined(self, other: SoftmaxRows) -> SoftmaxRows:
        parts = [
            torch.cat([getattr(self, name), getattr(other, name)]) for name in ("features", "probs", "row_weights")
        ]
        return SoftmaxRows(parts[0], parts[1], parts[2], self.complete)

    def _leading(self, most: int) -> SoftmaxRows:
        curvature = self.row_weights * (1.0 - self.probs.square().sum(-1))
        informative = int((curvature > 0.0).sum())
        kept = curvature.topk(min(most, informative)).indices.sort().values
        complete = self.complete and informative <= most
        return SoftmaxRows(self.features[kept], self.probs[kept], self.row_weights[kept], complete)


_TENSORS = ("features", "probs", "row_weights", "factors", "factor")
_TINY = torch.finfo(torch.float64).tiny


def _classes(latents: int, size: int, width: int) -> list[slice]:
    """So many classes at a time that arrays of their columns are small."""
    return slices(latents, max(1, _NUMBERS // (max(size, width) * width)))
