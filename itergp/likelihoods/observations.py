"""``Observations``: targets, their weights, and the likelihood that relates them to latent values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from itergp.likelihoods.base import Likelihood
from itergp.numerics.blocks import Root, apply_blocks, block_root
from itergp.numerics.distinct_rows import DistinctRows

_MOST_DRAWS = 8  # where these are many, little is left to be averaged over
_SEEDS = 1000  # between the seeds of draws
_WORTH_IT = 0.9  # share of the observations that may differ for equal ones to be counted
_CHUNK_NUMBERS, _FEWEST_ROWS = 2**18, 1024  # curvatures of so many observations at once, where they are summed

Terms = Callable[["Observations", Callable[[Tensor, int], Tensor]], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Observations:
    """What was observed at N rows of latent values: ``sum_n w_n log p(y_n | f_n)`` and its derivatives.

    A row of weight 0 says nothing about its latent values: gradient and curvature vanish there. That is how missing
    targets are treated. Of several observations at one row, log-densities, gradients and curvatures are sums.

    Attributes:
        likelihood: The likelihood.
        targets: Validated targets: one for each of N rows, or with ``latent_rows`` any number.
        sample_weight: Their weights ``(N,)``, or None when all are 1.
        first_row: Number of the first row when these are consecutive rows of more: samples are then those of the same rows
            among all.
        latent_rows: At which row of latent values each was observed, like ``sample_weight``; None for one at each.
        num_latent_rows: N, if rows of latent values are not those of the targets.
        draws: How often random samples for expectations are drawn: equal rows would have some of their own each.
    """

    likelihood: Likelihood
    targets: Tensor
    sample_weight: Tensor | None = None
    first_row: int = 0
    latent_rows: Tensor | None = None
    num_latent_rows: int | None = None
    draws: int = 1

    @property
    def num_rows(self) -> int:
        """N, of latent values."""
        return self.targets.shape[0] if self.num_latent_rows is None else self.num_latent_rows

    @property
    def total_weight(self) -> float:
        """Sum of the weights; the number of observations when all are 1."""
        weight = self.sample_weight
        return float(self.targets.shape[0]) if weight is None else float(weight.double().sum())

    @property
    def largest_curvature(self) -> float:
        """A bound on the curvature of any row of labels or levels; infinity where only a posterior can tell."""
        likelihood = self.likelihood
        if likelihood.observes not in ("label", "level") or not likelihood.bounded_curvature:
            return math.inf
        weight = self._weight_of_rows
        return 1.0 if weight is None else float(weight.double().amax())

    @property
    def num_nodes(self) -> int:
        """Nodes of a row over which expectations are averages."""
        return self.draws * self.likelihood.num_nodes

    def over(self, distinct: DistinctRows) -> Observations:
        """The same observations where equal rows share their latent values.

        All that was observed at a row becomes one target, where the likelihood has one that says as much; otherwise equal
        targets at a row become one, with the sum of their weights. Neither does where the likelihood knows more of an
        observation than its target.

        Args:
            distinct: Of the rows of the targets.
        """
        shared = replace(self, latent_rows=distinct.index, num_latent_rows=distinct.num_distinct)
        if self.likelihood.exchangeable and not self._knows_rows:
            shared = shared._pooled() or shared._counted()
        if self.likelihood.num_latents == 1 or type(self.likelihood).standard_nodes is not Likelihood.standard_nodes:
            return shared  # whose nodes are those of a rule
        return replace(shared, draws=min(_MOST_DRAWS, max(1, self.targets.shape[0] // shared.targets.shape[0])))

    def take(self, rows: Tensor) -> Observations:
        """The observations of some rows."""
        if self.latent_rows is None:
            return self._select(rows)
        # Those of a row one after the other, and rows as often as they are wanted.
        order = self.latent_rows.argsort(stable=True)
        counts = torch.bincount(self.latent_rows, minlength=self.num_rows)
        wanted = counts[rows]
        places = torch.arange(rows.numel(), device=rows.device).repeat_interleave(wanted)
        within = torch.arange(places.numel(), device=rows.device) - (wanted.cumsum(0) - wanted)[places]
        chosen = self._select(order[(counts.cumsum(0) - counts)[rows][places] + within])
        return replace(chosen, latent_rows=places, num_latent_rows=rows.numel())

    def part(self, start: int, count: int) -> Observations:
        """Consecutive rows, with the samples they have among all."""
        if self.latent_rows is None:
            found = self._select(slice(start, start + count))
        else:
            found = self.take(torch.arange(start, start + count, device=self.targets.device))
        return replace(found, first_row=start)

    def standard_nodes(self, like: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
        """``Likelihood.standard_nodes`` for means ``(N, C)``; those of a part do not depend on where it was divided."""
        nodes, weights = self.likelihood.standard_nodes(like, seed, self.first_row)
        if self.draws == 1:
            return nodes, weights
        seeds = range(seed + _SEEDS, seed + self.draws * _SEEDS, _SEEDS)
        others = [self.likelihood.standard_nodes(like, other, self.first_row)[0] for other in seeds]
        return torch.cat([nodes, *others]), weights.repeat(self.draws) / self.draws

    def log_density(self, f: Tensor) -> Tensor:
        """``w_n log p(y_n | f_n)`` ``(..., N)`` at latent values ``(..., N, C)``."""
        return self._summed(lambda part, at: (part.likelihood.log_density(at(f, -2), part.targets),), 0)[0]

    def derivatives(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient ``(..., N, C)`` and curvature ``(..., N, C, C)`` at ``f``."""
        gradient, curvature = self._summed(lambda part, at: part.likelihood.derivatives(at(f, -2), part.targets), 1, 2)
        return gradient, curvature

    def covariance_curvature(self, f: Tensor) -> Tensor:
        """``Likelihood.covariance_curvature`` ``(N, C, C)``, weighted."""

        def terms(part: Observations, at: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, ...]:
            return (part.likelihood.covariance_curvature(at(f, -2), part.targets),)

        return self._summed(terms, 2)[0]

    def curvature_product(self, f: Tensor, curvature: Tensor) -> Callable[[Tensor], Tensor]:
        """Multiplication of vectors ``(N, C)`` by the curvature ``(N, C, C)`` that ``derivatives`` gave at ``f``."""
        structure = self._structured_root(f)
        if structure is None:
            return partial(apply_blocks, curvature)
        apply, transpose = structure
        return lambda vector: apply(transpose(vector))

    def curvature_root(self, f: Tensor, curvature: Tensor) -> Root:
        """H and ``H^T`` with ``H H^T`` the curvature ``(N, C, C)`` that ``derivatives`` gave at ``f``."""
        return self._structured_root(f) or block_root(curvature)

    def _structured_root(self, f: Tensor) -> Root | None:
        if self.latent_rows is not None and self._knows_rows:
            return None
        # The structure is that of one observation at f, whatever it was: of several, their weights add up.
        structure, weight = self.likelihood.structured_root(f), self._weight_of_rows
        if structure is None or weight is None:
            return structure
        apply, transpose = structure
        scale = weight.to(f).sqrt().unsqueeze(-1)
        return lambda vector: scale * apply(vector), lambda vector: transpose(scale * vector)

    def expected_log_density(self, mean: Tensor, offsets: Tensor, node_weights: Tensor) -> Tensor:
        """``w_n E[log p(y_n | f_n)]`` ``(N,)``; arguments as in ``Likelihood.expected_log_density``."""

        def terms(part: Observations, at: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, ...]:
            moments = at(mean, -2), at(offsets, -2), node_weights
            return (part.likelihood.expected_log_density(*moments, part.targets),)

        return self._summed(terms, 0)[0]

    def expected_derivatives(self, mean: Tensor, offsets: Tensor, node_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Expected gradient ``(N, C)`` and curvature ``(N, C, C)``, weighted."""

        def terms(part: Observations, at: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, ...]:
            moments = at(mean, -2), at(offsets, -2), node_weights
            return part.likelihood.expected_derivatives(*moments, part.targets)

        gradient, curvature = self._summed(terms, 1, 2)
        return gradient, curvature

    def expected_terms(self, mean: Tensor, offsets: Tensor, node_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``expected_log_density`` in float64, and ``expected_derivatives``."""

        def terms(part: Observations, at: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, ...]:
            moments = at(mean, -2), at(offsets, -2), node_weights
            return part.likelihood.expected_terms(*moments, part.targets)

        log_density, gradient, curvature = self._summed(terms, 0, 1, 2)
        return log_density, gradient, curvature

    def expected_curvature(self, mean: Tensor, offsets: Tensor, node_weights: Tensor) -> Tensor:
        """``Likelihood.expected_curvature`` ``(N, C, C)``, weighted."""

        def terms(part: Observations, at: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, ...]:
            moments = at(mean, -2), at(offsets, -2), node_weights
            return (part.likelihood.expected_curvature(*moments, part.targets),)

        return self._summed(terms, 2)[0]

    def predictive_log_density(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """``w_n log E[p(y_n | f_n)]`` ``(N,)`` for latent marginals ``(N, C)`` and ``(N, C, C)``."""

        def terms(part: Observations, at: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, ...]:
            return (part.likelihood.predictive_log_density(at(mean, -2), at(covariance, -3), part.targets),)

        return self._summed(terms, 0)[0]

    # ------------------------------------------------------------------ inside
    @property
    def _knows_rows(self) -> bool:
        """Whether the likelihood knows more of an observation than its target, and which observation it is."""
        return type(self.likelihood).take is not Likelihood.take

    @cached_property
    def _weight_of_rows(self) -> Tensor | None:
        """Weights of the rows of latent values ``(N,)``; None when all are 1."""
        if self.latent_rows is None:
            return self.sample_weight
        total = torch.zeros(self.num_rows, dtype=torch.float64, device=self.targets.device)
        weight = torch.ones_like(total[:1]) if self.sample_weight is None else self.sample_weight.double()
        return total.index_add_(0, self.latent_rows, weight.expand(self.latent_rows.shape))

    def _select(self, which: Tensor | slice) -> Observations:
        """Some of the observations, as if each were one row's."""
        weight = None if self.sample_weight is None else self.sample_weight[which]
        likelihood, targets = self.likelihood.take(which), self.targets[which]
        return replace(
            self,
            likelihood=likelihood,
            targets=targets,
            sample_weight=weight,
            latent_rows=None,
            num_latent_rows=None,
        )

    def _pooled(self) -> Observations | None:
        """One target for each row of latent values; None if the likelihood knows none that says as much."""
        assert self.latent_rows is not None
        weight = torch.ones(1, dtype=torch.float64, device=self.targets.device)
        weight = (weight if self.sample_weight is None else self.sample_weight.double()).expand(self.latent_rows.shape)
        targets = self.likelihood.pooled(self.targets, weight, self.latent_rows, self.num_rows)
        if targets is None:
            return None
        return replace(
            self, targets=targets, sample_weight=self._weight_of_rows, latent_rows=None, num_latent_rows=None
        )

    def _counted(self) -> Observations:
        """Equal targets at one row as one, with the sum of their weights; as it is where few are equal."""
        assert self.latent_rows is not None
        keys, most = self.latent_rows, self.num_rows
        for column in self.targets.reshape(len(keys), -1).unbind(-1):
            values, codes = column.unique(return_inverse=True)
            most *= values.numel()
            if most >= 2**62:
                return self
            keys = keys * values.numel() + codes
        kinds, which = keys.unique(return_inverse=True)
        if kinds.numel() > _WORTH_IT * len(keys):
            return self
        one = torch.empty_like(kinds).scatter_(0, which, torch.arange(len(keys), device=keys.device))  # of each kind
        weight = torch.ones(1, dtype=torch.float64, device=keys.device)
        weight = weight if self.sample_weight is None else self.sample_weight.double()
        total = torch.zeros(kinds.numel(), dtype=torch.float64, device=keys.device)
        total.index_add_(0, which, weight.expand(which.shape))
        return replace(self, targets=self.targets[one], sample_weight=total, latent_rows=self.latent_rows[one])

    def _summed(self, terms: Terms, *trailing: int) -> list[Tensor]:
        """Weighted terms of the rows of latent values: sums over what was observed at each, in float64.

        Args:
            terms: Gives those of some observations; the second argument takes a tensor and its dimension of rows of latent
                values, and gives the same at these observations.
            trailing: For each of them the number of dimensions after that of the rows.
        """
        if self.latent_rows is None:
            found = terms(self, lambda values, dim: values)
            return [self._weigh(value, after) for value, after in zip(found, trailing, strict=True)]
        sums: list[Tensor] = []
        for part, rows in self._parts(self.latent_rows):
            found = terms(part, partial(_at, rows))
            if not sums:
                sums = [_zeros(v, v.dim() - 1 - after, self.num_rows) for v, after in zip(found, trailing, strict=True)]
            for total, value, after in zip(sums, found, trailing, strict=True):
                total.index_add_(value.dim() - 1 - after, rows, part._weigh(value, after).double())
        return [total.to(value.dtype) for total, value in zip(sums, found, strict=True)]

    def _parts(self, latent_rows: Tensor) -> Iterator[tuple[Observations, Tensor]]:
        """A few observations at a time, and the rows that they were made at; all at once if they belong together."""
        step = len(latent_rows)
        if self.likelihood.exchangeable or self._knows_rows:
            step = max(_FEWEST_ROWS, _CHUNK_NUMBERS // self.likelihood.num_latents**2)
        for start in range(0, len(latent_rows), step):
            which = slice(start, start + step)
            yield self._select(which), latent_rows[which]

    def _weigh(self, values: Tensor, trailing: int = 0) -> Tensor:
        if self.sample_weight is None:
            return values
        return values * self.sample_weight.to(values.dtype)[(..., *(None,) * trailing)]


def _at(rows: Tensor, values: Tensor, dim: int) -> Tensor:
    return values.index_select(dim, rows)


def _zeros(like: Tensor, dim: int, size: int) -> Tensor:
    """Zeros in float64 of the shape of a tensor, but for one dimension."""
    shape = list(like.shape)
    shape[dim] = size
    return torch.zeros(shape, dtype=torch.float64, device=like.device)
