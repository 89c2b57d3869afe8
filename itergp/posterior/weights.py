"""``WeightPosterior``: a Gaussian over the weights of a linearised network, given by what the data say about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.numerics.cholesky import diagonal_lifts, tolerant_cholesky
from itergp.numerics.spectral import psd_eigen, symmetric, whitening
from itergp.operators.linearisation import Linearisation
from itergp.operators.row_gradients import RowGradients
from itergp.operators.tiles import slices

_CHUNK_WEIGHTS = 2**16
_MOST_VALUES = 2**26  # numbers of a triangular solve at a time
# Units of the dtype, as shares of prior variances, by which rounding may narrow a variance: they are added.
ROUNDING = 8.0


class Information(ABC):
    """The posterior precision ``I + H`` of whitened weights, of unit prior: H is what the data say."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """Rank of H at most."""

    @abstractmethod
    def covariance(self, gradients: Tensor) -> Tensor:
        """``J (I + H)^{-1} J^T`` ``(..., C, C)`` for whitened gradients ``(..., C, P)``; positive semi-definite by its form."""

    @property
    def num_noise(self) -> int:
        """Numbers beyond P that a sample takes."""
        return 0

    @abstractmethod
    def sample(self, noise: Tensor) -> Tensor:
        """Whitened weights ``(P, k)`` of covariance ``(I + H)^{-1}`` from standard normal numbers ``(P + num_noise, k)``."""

    @abstractmethod
    def quadratic(self, weights: Tensor) -> Tensor:
        """``u^T (I + H) u`` for whitened weights ``(..., P)``; differentiable."""

    @abstractmethod
    def log_determinant(self) -> float:
        """``log |I + H|``."""

    @abstractmethod
    def variances(self) -> Tensor:
        """The diagonal of ``(I + H)^{-1}`` ``(P,)``."""

    @abstractmethod
    def to(self, like: Tensor) -> Information:
        """The same in the dtype and on the device of ``like``."""

    @abstractmethod
    def rescaled(self, ratio: float) -> Information:
        """Of ``ratio H``: that of another prior precision of all weights."""

    def tensors(self) -> dict[str, Tensor]:
        """All that it is, by name."""
        return dict(vars(self))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Information:
        """What ``tensors`` gave."""
        return cls(**tensors)


@dataclass(frozen=True)
class LowRankInformation(Information):
    """``H = Q diag(values) Q^T``: the prior where nothing was computed.

    Attributes:
        basis: Q ``(P, r)``, orthonormal.
        values: ``(r,)``, float64, how much more precise than the prior.
    """

    basis: Tensor
    values: Tensor

    @classmethod
    def from_products(cls, products: Tensor) -> LowRankInformation:
        """Of actions A with ``A^T W^+ A = I``, from ``U = P^{-1/2} J^T A`` ``(P, r)``: ``H = U U^T``.

        The covariance is ``(I + U U^T)^{-1} = I - U (I + U^T U)^{-1} U^T``, that of the data that A looks at.
        """
        values, vectors = psd_eigen(gram_matrix(products, products))
        keep = values > 0.0
        values, vectors = values[keep], vectors[:, keep]
        return cls(products @ (vectors * values.rsqrt()).to(products), values)

    @property
    def rank(self) -> int:
        """How many values there are."""
        return self.basis.shape[1]

    def covariance(self, gradients: Tensor) -> Tensor:
        """What is within Q shrunk, the rest as it is: no difference of large numbers."""
        inside = gradients @ self.basis
        outside = gradients - inside @ self.basis.mT
        inside = inside * (1.0 + self.values).rsqrt().to(inside)
        return outside @ outside.mT + inside @ inside.mT

    def row_covariance(self, gradients: RowGradients) -> tuple[Tensor, Tensor]:
        """Covariances ``(n, C, C)`` and prior variances ``(n, C)`` of the functions of each row, without dense gradients."""
        prior = gradients.blocks()
        share = (self.values / (1.0 + self.values)).sqrt()
        known = gradients.times(self.basis).double() * share
        return remaining_covariance(prior, known), prior.diagonal(dim1=-2, dim2=-1)

    def sample(self, noise: Tensor) -> Tensor:
        """``noise + Q ((1 + values)^{-1/2} - 1) Q^T noise``."""
        shrink = ((1.0 + self.values).rsqrt() - 1.0).to(noise)
        return noise + self.basis @ (shrink.unsqueeze(-1) * (self.basis.mT @ noise))

    def quadratic(self, weights: Tensor) -> Tensor:
        """``|u|^2 + sum_i values_i (q_i^T u)^2``."""
        return weights.square().sum(-1) + ((weights @ self.basis).square() * self.values.to(weights)).sum(-1)

    def log_determinant(self) -> float:
        """``sum_i log(1 + values_i)``."""
        return float(self.values.log1p().sum())

    def variances(self) -> Tensor:
        """One less what is known, and not negative."""
        share = (self.values / (1.0 + self.values)).to(self.basis)
        least = 1.0 / (1.0 + float(self.values.max())) if self.rank else 1.0
        return (1.0 - self.basis.square() @ share).clamp_min(least)

    def to(self, like: Tensor) -> LowRankInformation:
        """The same in the dtype and on the device of ``like``."""
        return LowRankInformation(self.basis.to(like), self.values.to(like.device))

    def rescaled(self, ratio: float) -> LowRankInformation:
        """Of ``ratio H``."""
        return LowRankInformation(self.basis, self.values * ratio)


@dataclass(frozen=True)
class DenseInformation(Information):
    """H as a matrix: the exact posterior of few weights.

    Attributes:
        factor: Lower Cholesky factor of ``I + H`` ``(P, P)``, float64.
    """

    factor: Tensor

    @classmethod
    def from_matrix(cls, matrix: Tensor) -> DenseInformation:
        """From H ``(P, P)``, float64, positive semi-definite up to rounding."""
        rounding = torch.finfo(matrix.dtype).eps * matrix.diagonal().amax()
        _, factor = tolerant_cholesky(diagonal_lifts(matrix, rounding, (0.0, 16.0, 1e4)), shift=1.0)
        return cls(factor)

    @property
    def rank(self) -> int:
        """That of all weights."""
        return self.factor.shape[0]

    def covariance(self, gradients: Tensor) -> Tensor:
        """By triangular solves, some gradients at a time."""
        flat = gradients.flatten(0, -3) if gradients.dim() > 2 else gradients.unsqueeze(0)
        step = max(1, _MOST_VALUES // flat[0].numel())
        parts = [self._covariance(part) for part in flat.split(step)]
        return torch.cat(parts).reshape(*gradients.shape[:-1], gradients.shape[-2]).to(gradients)

    def _covariance(self, gradients: Tensor) -> Tensor:
        size, latents, _ = gradients.shape
        solved = torch.linalg.solve_triangular(self.factor, gradients.flatten(0, 1).mT.double(), upper=False)
        rows = solved.mT.view(size, latents, -1)
        return rows @ rows.mT

    def sample(self, noise: Tensor) -> Tensor:
        """``L^{-T} noise``."""
        return torch.linalg.solve_triangular(self.factor.mT, noise.double(), upper=True).to(noise)

    def quadratic(self, weights: Tensor) -> Tensor:
        """``|L^T u|^2``."""
        return (weights.double() @ self.factor).square().sum(-1).to(weights)

    def log_determinant(self) -> float:
        """Twice the logarithms of the factor's diagonal."""
        return 2.0 * float(self.factor.diagonal().log().sum())

    def variances(self) -> Tensor:
        """The diagonal of the inverse."""
        return torch.cholesky_inverse(self.factor).diagonal()

    def to(self, like: Tensor) -> DenseInformation:
        """The same on the device of ``like``, in float64 as it is."""
        return DenseInformation(self.factor.to(like.device))

    def rescaled(self, ratio: float) -> DenseInformation:
        """Of ``ratio H``."""
        matrix = self.factor @ self.factor.mT
        matrix.diagonal().sub_(1.0)
        return DenseInformation.from_matrix(matrix.mul_(ratio))


@dataclass(frozen=True)
class WeightPosterior:
    """``N(w*, P^{-1/2} (I + H)^{-1} P^{-1/2})`` over the chosen weights: the prior's precision P and what the data add.

    Attributes:
        linearisation: Which weights these are.
        mean: w* ``(P,)``.
        scale: Prior standard deviations ``(P,)``.
        information: H in whitened weights.
    """

    linearisation: Linearisation = field(repr=False)
    mean: Tensor = field(repr=False)
    scale: Tensor = field(repr=False)
    information: Information = field(repr=False)

    @property
    def rank(self) -> int:
        """Directions in which it differs from the prior."""
        return self.information.rank

    def sample(self, num_samples: int = 1, *, seed: int | None = None) -> dict[str, Tensor]:
        """Weights, by parameter name ``(num_samples, *shape)``.

        Args:
            num_samples: How many.
            seed: For the same ones every time; default PyTorch's generator.
        """
        return self.linearisation.named(self.mean + self.deviations(num_samples, seed=seed).mT)

    def deviations(self, num_samples: int, *, seed: int | None = None) -> Tensor:
        """Samples of ``w - w*`` ``(P, num_samples)``; arguments as in ``sample``."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        shape = (num_samples, self.mean.numel() + self.information.num_noise)
        noise = torch.randn(shape, generator=generator, dtype=self.mean.dtype).to(self.mean.device)
        return self.information.sample(noise.mT) * self.scale.unsqueeze(-1)

    def log_density(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Log-density of weights by name, ``(*b)`` for tensors ``(*b, *shape)``; differentiable.

        Args:
            weights: At least the chosen parameters, such as ``dict(network.named_parameters())``.

        Raises:
            InputError: If one is missing or has another shape.
        """
        size, log_two_pi = self.mean.numel(), 1.8378770664093453
        log_determinant = self.information.log_determinant() - 2.0 * float(self.scale.double().log().sum())
        return -self.penalty(weights) - 0.5 * (size * log_two_pi - log_determinant)

    def penalty(self, weights: Mapping[str, Tensor]) -> Tensor:
        """``(w - w*)^T (P + H) (w - w*) / 2``, in nats: what the next task's loss adds to remember this one; differentiable.

        Args:
            weights: At least the chosen parameters, such as ``dict(network.named_parameters())``.

        Raises:
            InputError: If one is missing or has another shape.
        """
        return 0.5 * self.information.quadratic((self._flat(weights) - self.mean) / self.scale)

    def marginal_variances(self) -> dict[str, Tensor]:
        """Variance of every weight, by parameter name."""
        variances = self.information.variances().to(self.scale) * self.scale.square()
        return self.linearisation.named(variances)

    def _flat(self, weights: Mapping[str, Tensor]) -> Tensor:
        parts = []
        for name, shape in zip(self.linearisation.names, self.linearisation.shapes, strict=True):
            value = weights.get(name)
            lead = 0 if value is None else value.dim() - len(shape)
            if value is None or lead < 0 or tuple(value.shape[lead:]) != shape:
                got = "none" if value is None else f"shape {tuple(value.shape)}"
                raise InputError(
                    f"`weights` must have {name!r} of shape {shape}. Got {got}. Pass dict(network.named_parameters())."
                )
            parts.append(value.reshape(*value.shape[:lead], -1))
        return torch.cat(parts, -1)


def remaining_covariance(prior: Tensor, known: Tensor) -> Tensor:
    """``K - V V^T`` ``(..., C, C)``, on whose diagonal rounding is no knowledge, for K and V ``(..., C, r)``, float64."""
    left = prior.double() - known @ known.mT
    diagonal = remaining_variance(prior.diagonal(dim1=-2, dim2=-1), known.square().sum(-1))
    left.diagonal(dim1=-2, dim2=-1).copy_(diagonal)
    return left.to(prior)


def remaining_variance(prior: Tensor, known: Tensor) -> Tensor:
    """What is left of prior variances where so much is known, float64; rounding of the former's dtype is no knowledge."""
    eps = torch.finfo(prior.dtype).eps
    return ((prior.double() - known).clamp_min(0.0) + ROUNDING * eps * prior.double()).to(prior)


# ------------------------------------------------------------------ products of tall matrices
def gram_matrix(first: Tensor, second: Tensor) -> Tensor:
    """``first^T second`` ``(r, s)``, summed in float64, for ``(P, r)`` and ``(P, s)``."""
    total = torch.zeros(first.shape[1], second.shape[1], dtype=torch.float64, device=first.device)
    for i in slices(first.shape[0], _CHUNK_WEIGHTS):
        total += first[i].double().mT @ second[i].double()
    return symmetric(total) if first is second else total


def orthonormal(columns: Tensor, floor: float, rounds: int = 2) -> Tensor:
    """An orthonormal basis ``(P, k')`` of the span of columns ``(P, k)``; dependent ones are left out.

    Args:
        columns: ``(P, k)``.
        floor: Squared length, as a share of the largest, below which a direction is left out.
        rounds: Two for a basis that is orthonormal to rounding, one for one that is well-conditioned.
    """
    for _ in range(rounds):
        columns = columns @ whitening(gram_matrix(columns, columns), floor, relative=True, scaled=True).to(columns)
    return columns
