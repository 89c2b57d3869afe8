"""Several outputs per row, each with a likelihood of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from torch import Tensor
from torch.distributions import Distribution

from itergp.errors import InputError
from itergp.likelihoods.base import Likelihood, latent_marginals
from itergp.likelihoods.gpytorch_adapter import as_likelihood
from itergp.likelihoods.quadrature import gauss_hermite, second_moment_nodes
from itergp.likelihoods.targets import as_floats, check_outputs, check_targets

_NUM_NODES = 20


class IndependentOutputsLikelihood(Likelihood):
    """One likelihood for each of C outputs, ``p(y | f) = prod_c p_c(y_c | f_c)``: labels beside counts beside real values.

    Targets are ``(N, C)``, one column per output; where one is NaN, that output of that row was not observed. Outputs learn
    from each other where the prior couples their latent functions, as by GPyTorch's ``MultitaskKernel``.

    Expectations are taken by quadrature for every output by itself. Predictive distributions are those of single outputs:
    ``predict(x).outputs`` has one for each, and densities of a row are sums of theirs.

    Args:
        *likelihoods: One for each output, ours or GPyTorch's, each of one latent function and of rows that are alike.

    Raises:
        InputError: If there is none, or one has several latent functions or holds something for each row.

    Examples:
        >>> from itergp.likelihoods import BernoulliLikelihood, IndependentOutputsLikelihood, PoissonLikelihood
        >>> likelihood = IndependentOutputsLikelihood(BernoulliLikelihood(), PoissonLikelihood())
        >>> g, W = likelihood.derivatives(torch.zeros(1, 2), torch.tensor([[1.0, float("nan")]]))
        >>> g.tolist(), W.diagonal(dim1=-2, dim2=-1).tolist()
        ([[0.5, 0.0]], [[0.25, 0.0]])
    """

    masks_targets: ClassVar[bool] = True
    accepts_missing: ClassVar[bool] = True

    def __init__(self, *likelihoods: gpytorch.likelihoods.Likelihood) -> None:
        super().__init__()
        if not likelihoods:
            raise InputError("IndependentOutputsLikelihood must have a likelihood for each output. Got none.")
        members = [as_likelihood(likelihood) for likelihood in likelihoods]
        for member in members:
            if member.num_latents != 1 or not member.exchangeable:
                raise InputError(
                    "Likelihoods of single outputs must be of one latent function and of rows that are alike. Got "
                    f"{type(member).__name__}. Give every latent function an output of its own."
                )
        self.likelihoods = torch.nn.ModuleList(members)
        self.num_latents = len(members)

    @property
    def log_concave(self) -> bool:  # type: ignore[override]
        """Whether the likelihoods of all outputs are."""
        return all(member.log_concave for member in self._members)

    @property
    def quadratic(self) -> bool:  # type: ignore[override]
        """Whether the likelihoods of all outputs are."""
        return all(member.quadratic for member in self._members)

    @property
    def bounded_curvature(self) -> bool:  # type: ignore[override]
        """Whether the likelihoods of all outputs have one."""
        return all(member.bounded_curvature for member in self._members)

    @property
    def bounded_density(self) -> bool:  # type: ignore[override]
        """Whether the likelihoods of all outputs have one."""
        return all(member.bounded_density for member in self._members)

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        """Whether the densities of all outputs are."""
        return all(member.smooth for member in self._members)

    @property
    def curvature(self) -> str:  # type: ignore[override]
        """``"hessian"`` if it is that of all outputs, otherwise that of the first where it is another."""
        return next((member.curvature for member in self._members if member.curvature != "hessian"), "hessian")

    @property
    def majorises(self) -> bool:  # type: ignore[override]
        """Whether the curvature of any output does."""
        return any(member.majorises for member in self._members)

    @property
    def _members(self) -> list[Any]:
        return list(self.likelihoods)

    # ------------------------------------------------------------ the calculus
    def validate_targets(self, targets: Tensor) -> Tensor:
        """One column per output, each as its likelihood wants it; NaN for what was not observed.

        Raises:
            InputError: If their number differs, a column is not valid, or nothing was observed.
        """
        check_outputs(targets, self.num_latents, "IndependentOutputsLikelihood")
        valid = as_floats(targets).clone()
        for c, member in enumerate(self._members):
            seen = ~valid[:, c].isnan()
            if bool(seen.any()):
                check_targets(valid[seen, c], type(member).__name__)
                valid[seen, c] = member.validate_targets(targets[seen, c]).to(valid)
        return valid

    def missing(self, targets: Tensor) -> Tensor:
        """None: what is missing in a row is left out output by output."""
        return torch.zeros(targets.shape[0], dtype=torch.bool, device=targets.device)

    def initialise(self, targets: Tensor) -> list[str]:
        """That of every output from what was observed of it."""
        return [
            f"likelihoods.{c}.{name}"
            for c, (member, seen, column) in self._columns(targets)
            for name in member.initialise(column[seen])
        ]

    def typical_latents(self, targets: Tensor) -> Tensor | None:
        """Those of the outputs ``(C,)``; None where one has none."""
        found = {c: member.typical_latents(column[seen]) for c, (member, seen, column) in self._columns(targets)}
        if len(found) < self.num_latents or any(value is None for value in found.values()):
            return None
        return torch.cat([value for value in found.values() if value is not None])

    def log_density(self, f: Tensor, targets: Tensor) -> Tensor:
        """Sum over the outputs that were observed ``(..., N)``."""
        total = torch.zeros_like(f[..., 0])
        for c, (member, seen, column) in self._columns(targets):
            total = total + torch.where(seen, member.log_density(f[..., c : c + 1], column), 0.0)
        return total

    def derivatives(self, f: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient ``(..., N, C)`` and diagonal curvature ``(..., N, C, C)``; zero where nothing was observed."""
        pairs = {
            c: (seen, member.derivatives(f[..., c : c + 1], column))
            for c, (member, seen, column) in self._columns(targets)
        }
        return self._collected(pairs, f)

    def _columns(self, targets: Tensor) -> Iterator[tuple[int, tuple[Any, Tensor, Tensor]]]:
        """Number, likelihood, what was observed ``(N,)`` and valid targets ``(N,)`` of the outputs of which there are any."""
        for c, member in enumerate(self._members):
            column = targets[:, c]
            seen = ~column.isnan()
            if not bool(seen.any()):
                continue
            column = torch.where(seen, column, column[seen][0])
            yield c, (member, seen, column.long() if member.observes in ("label", "level") else column)

    def _collected(self, pairs: dict[int, tuple[Tensor, tuple[Tensor, Tensor]]], f: Tensor) -> tuple[Tensor, Tensor]:
        gradients, curvatures = [], []
        for c in range(self.num_latents):
            if c not in pairs:
                gradients.append(torch.zeros_like(f[..., c]))
                curvatures.append(torch.zeros_like(f[..., c]))
                continue
            seen, (gradient, curvature) = pairs[c]
            gradients.append(torch.where(seen, gradient[..., 0], 0.0))
            curvatures.append(torch.where(seen, curvature[..., 0, 0], 0.0))
        return torch.stack(gradients, -1), torch.diag_embed(torch.stack(curvatures, -1))

    # ------------------------------------------------------------ expectations
    @property
    def num_nodes(self) -> int:
        """Two per output."""
        return 2 * self.num_latents

    def standard_nodes(self, like: Tensor, seed: int = 0, skip: int = 0) -> tuple[Tensor, Tensor]:
        """Two nodes per output: they say what its variance is, by which each has a quadrature of its own."""
        return second_moment_nodes(like)

    def expected_log_density(self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
        """Sum over outputs of ``E[log p(y_c | f_c)]`` ``(N,)``."""
        total = torch.zeros_like(mean[:, 0])
        for _, member, seen, moments in self._moments(mean, offsets, weights, targets):
            total = total + torch.where(seen, member.expected_log_density(*moments), 0.0)
        return total

    def expected_derivatives(
        self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Expected gradient ``(N, C)`` and diagonal curvature ``(N, C, C)``."""
        parts = self._moments(mean, offsets, weights, targets)
        return self._collected({c: (seen, member.expected_derivatives(*own)) for c, member, seen, own in parts}, mean)

    def expected_curvature(self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
        """Expected diagonal curvature ``(N, C, C)`` that a covariance is conditioned with."""
        parts = self._moments(mean, offsets, weights, targets)
        found = {c: (seen, (own[0], member.expected_curvature(*own))) for c, member, seen, own in parts}
        return self._collected(found, mean)[1]

    def _moments(
        self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor
    ) -> Iterator[tuple[int, Any, Tensor, tuple[Tensor, ...]]]:
        """Of each output: its number, likelihood, what was observed, and means, nodes, their weights and targets of its own."""
        variance = torch.einsum("s,snc->nc", weights.to(offsets), offsets.square())
        scale = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
        nodes, node_weights = gauss_hermite(_NUM_NODES, like=mean)
        for c, (member, seen, column) in self._columns(targets):
            own = nodes[:, None, None] * scale[:, c : c + 1]
            yield c, member, seen, (mean[:, c : c + 1], own, node_weights, column)

    # -------------------------------------------------------------- predictive
    def predictive(self, mean: Tensor, covariance: Tensor) -> OutputsPredictive:
        """The distribution of every output by itself."""
        pairs = self._marginals(mean, covariance)
        return OutputsPredictive([member.predictive(*pair) for member, pair in zip(self._members, pairs, strict=True)])

    def predictive_log_density(self, mean: Tensor, covariance: Tensor, targets: Tensor) -> Tensor:
        """Sum over the outputs that were observed of ``log E[p(y_c | f_c)]`` ``(N,)``."""
        total, pairs = torch.zeros_like(mean[:, 0]), self._marginals(mean, covariance)
        for c, (member, seen, column) in self._columns(targets):
            value = member.predictive_log_density(*pairs[c], column)
            total = total + torch.where(seen, value, 0.0)
        return total

    @staticmethod
    def _marginals(mean: Tensor, covariance: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Means ``(M, 1)`` and variances ``(M, 1, 1)`` of every latent function."""
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        pairs = zip(mean.unbind(-1), variance.unbind(-1), strict=True)
        return [(centre.unsqueeze(-1), spread[..., None, None]) for centre, spread in pairs]

    def log_marginal(
        self, observations: Tensor, function_dist: MultivariateNormal, *args: Any, **kwargs: Any
    ) -> Tensor:
        """``predictive_log_density`` ``(N,)``."""
        mean, covariance = latent_marginals(function_dist, self.num_latents)
        return self.predictive_log_density(mean, covariance, self.validate_targets(observations))

    def forward(self, function_samples: Tensor, *args: Any, **kwargs: Any) -> OutputsPredictive:
        """Conditional distributions at latent values ``(..., N, C)``."""
        parts = zip(self._members, function_samples.unbind(-1), strict=True)
        return OutputsPredictive([member.forward(latent) for member, latent in parts])


class OutputsPredictive(Distribution):
    """Distributions of C outputs, each by itself; batch shape ``(M, C)``, outputs last.

    What outputs have in common is not in it: densities are those of single outputs.

    Attributes:
        outputs: Their distributions, batch shape ``(M,)`` each.

    Args:
        outputs: The distributions.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, outputs: list[Any]) -> None:
        self.outputs = outputs
        super().__init__(torch.Size([*outputs[0].batch_shape, len(outputs)]), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Means ``(M, C)``."""
        return torch.stack([output.mean for output in self.outputs], -1)

    @property
    def variance(self) -> Tensor:
        """Variances ``(M, C)``."""
        return torch.stack([output.variance for output in self.outputs], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of every output ``(M, C)``; 0 where it is NaN."""
        return torch.stack([_observed(part, value[..., c]) for c, part in enumerate(self.outputs)], -1)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Samples ``(*s, M, C)``, outputs independent of each other."""
        samples = [output.sample(torch.Size(sample_shape)) for output in self.outputs]
        kind = torch.get_default_dtype() if len({s.dtype for s in samples}) > 1 else samples[0].dtype
        return torch.stack([s.to(kind) for s in samples], -1)

    def quantile(self, level: float) -> Tensor:
        """Quantiles of every output ``(M, C)``."""
        return torch.stack([output.quantile(level) for output in self.outputs], -1)


def _observed(output: Any, value: Tensor) -> Tensor:
    seen = ~value.isnan() if value.is_floating_point() else torch.ones_like(value, dtype=torch.bool)
    if not bool(seen.any()):
        return torch.zeros_like(value)
    density = output.log_prob(torch.where(seen, value, value[seen][0]))
    return torch.where(seen, density, torch.zeros_like(density))
