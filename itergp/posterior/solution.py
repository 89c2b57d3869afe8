"""``Solution``: a posterior, how it was found, and how far it is from the exact one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.operators import AbstractOperator
from itergp.parallel import ALL_ROWS, RowPartition
from itergp.persistence import DERIVED
from itergp.posterior.local_actions import LocalActions
from itergp.posterior.precision import LowRankPrecision
from itergp.posterior.status import Status
from itergp.records import TraceData


@dataclass(frozen=True)
class Certificate:
    """A guarantee on the distance to the exact mode, from strong convexity of the objective in the prior's norm.

    Holds for log-concave likelihoods and for the kernel matrix as evaluated in the dtype of the data. For a variational
    solution the mode is that of the expected objective at its fixed marginal covariances.

    Attributes:
        norm_squared: q, a bound on the squared distance to the mode in the prior's norm.
        prior_variance: Prior variance at inputs ``x``, ``(M, C)``; set by the model.
    """

    norm_squared: float
    prior_variance: Callable[[Tensor], Tensor] | None = field(default=None, metadata=DERIVED)

    @property
    def objective_gap(self) -> float:
        """Bound on ``Psi - min Psi``, in nats: q / 2."""
        return 0.5 * self.norm_squared

    def latent_error(self, x: Tensor) -> Tensor:
        """Bound on ``|f(x) - f*(x)|`` for every latent function, ``(M, C)``: ``sqrt(k(x, x) q)``.

        Args:
            x: Inputs ``(M, D)``.

        Raises:
            InputError: If the solution does not belong to a model.
        """
        if self.prior_variance is None:
            raise InputError(
                "`latent_error` needs the model's prior variance, which this solution does not have. "
                "Take the certificate from model.solution or model.condition()."
            )
        return (self.prior_variance(x) * max(self.norm_squared, 0.0)).sqrt()


@dataclass(frozen=True)
class Solution:
    """The posterior that a solver found.

    The latent posterior mean is ``m(x) + k(x, X) V``, its covariance
    ``k(x, x') - k(x, X) A (I + A^T K A)^{-1} A^T k(X, x')``.

    Attributes:
        representer_weights: V ``(N, C)``.
        latent_values: Posterior mean at the training inputs, ``f = m + K V`` ``(N, C)``.
        latent_covariance: Marginal posterior covariances at the training inputs ``(N, C, C)``.
        precision: The low-rank precision.
        objective: ``Psi`` at the solution, nats.
        approximation: ``"laplace"`` or ``"variational"``.
        status: Why the solve ended, and what to try.
        certificate: Distance to the exact mode; None when the likelihood is not log-concave.
        kernel_passes: Products with the kernel matrix, all stages together.
        kernel_entries: Kernel entries evaluated.
        seconds: Wall-clock time.
        trace: What happened, step by step.
        log_marginal_likelihood: Laplace estimate of ``log p(y)`` (GPML eq. 3.32) at the returned mean, with the
            log-determinant taken within the actions: the dense Laplace value at convergence and full rank, and exact for a
            Gaussian likelihood. None for a variational solution, whose ``elbo`` takes its place.
        elbo: A lower bound on ``log p(y)`` by the Gaussian posterior itself: by quadrature for C = 1, an estimate by fixed
            samples for several latent functions. NaN between the steps of a solve, when it is not computed.
        space: Search space, for a warm start.
        coordinates: Of V in that space ``(C, B)``.
        operator: The kernel operator the space belongs to.
        curvature: W ``(N, C, C)`` that the covariance belongs to; None if the solver does not say.
        actions: Actions and their kernel products, for a warm start of ``IterNCGP``.
        support: Rows ``(M,)`` outside which weights and the precision's actions are zero, the latter being kept on them alone;
            None for all rows.
        local: Local actions: what an input's covariance is conditioned on besides the precision's actions, or None.
        variational_residual: How far another round would move the marginals at the training inputs, in posterior deviations:
            the largest change of a mean or of a deviation, over the deviation. Zero where gradient and curvature are
            expectations under the very marginals that are returned. None for a Laplace posterior.
        rows: Which of the N rows are here: all, unless the rows are divided among processes.
    """

    representer_weights: Tensor
    latent_values: Tensor
    latent_covariance: Tensor
    precision: LowRankPrecision
    objective: float
    approximation: str
    status: Status
    certificate: Certificate | None
    kernel_passes: int
    kernel_entries: int
    seconds: float
    trace: TraceData
    log_marginal_likelihood: float | None
    elbo: float
    space: Any = field(default=None, metadata=DERIVED)
    coordinates: Tensor | None = field(default=None, metadata=DERIVED)
    operator: AbstractOperator | None = field(default=None, metadata=DERIVED)
    curvature: Tensor | None = None
    actions: Any = field(default=None, metadata=DERIVED)
    support: Tensor | None = None
    local: LocalActions | None = None
    variational_residual: float | None = None
    rows: RowPartition = field(default=ALL_ROWS, metadata=DERIVED)

    @property
    def rank(self) -> int:
        """Number of actions that the covariance is conditioned on."""
        return self.precision.rank

    def weights_on_support(self) -> Tensor:
        """V where the precision's actions are: ``(N, C)``, or ``(M, C)`` on the support."""
        weights = self.representer_weights
        return weights if self.support is None else self.rows.select(weights, self.support)

    def all_actions(self) -> Tensor:
        """The precision's actions at all rows ``(N, C, r)``."""
        actions = self.precision.actions
        if self.support is None:
            return actions
        full = actions.new_zeros(self.representer_weights.shape[0], *actions.shape[1:])
        which, own = self.rows.local_indices(self.support)
        return full.index_copy_(0, own, actions[which])

    @property
    def converged(self) -> bool:
        """Whether the tolerance was met."""
        return self.status.converged

    def without_space(self) -> Solution:
        """The posterior alone: no search space and no operator, as it is saved and moved between devices."""
        return replace(self, space=None, coordinates=None, operator=None, actions=None)

    def gather(self) -> Solution:
        """The posterior with all rows in every process, which must all call this; without the search space.

        It takes the memory of one process alone: ``N C r`` numbers for a covariance of rank r, twice with neighbours.
        """
        rows = self.rows
        if not rows.sharded:
            return self
        return self._with_rows(rows.gather, ALL_ROWS)

    def divide(self, rows: RowPartition) -> Solution:
        """The posterior with the rows of this process alone; the reverse of ``gather``."""
        return self if rows == self.rows else self._with_rows(rows.local, rows)

    def _with_rows(self, of: Callable[[Tensor], Tensor], rows: RowPartition) -> Solution:
        """The posterior with every array of rows changed."""
        precision, local = self.precision, self.local
        if self.support is None:  # actions on a support are the same in every process
            precision = replace(precision, actions=of(precision.actions))
        return replace(
            self.without_space(),
            representer_weights=of(self.representer_weights),
            latent_values=of(self.latent_values),
            latent_covariance=of(self.latent_covariance),
            precision=precision,
            curvature=None if self.curvature is None else of(self.curvature),
            local=None
            if local is None
            else replace(local, root=of(local.root), whitened=of(local.whitened), partition=rows),
            rows=rows,
        )

    def to(self, like: Tensor) -> Solution:
        """The posterior in the dtype and on the device of ``like``; the search space is left behind."""
        precision = LowRankPrecision(
            self.precision.actions.to(like),
            self.precision.gram.to(like.device),
            self.precision.factor.to(like.device),
        )
        return replace(
            self.without_space(),
            representer_weights=self.representer_weights.to(like),
            latent_values=self.latent_values.to(like),
            latent_covariance=self.latent_covariance.to(like),
            precision=precision,
            curvature=None if self.curvature is None else self.curvature.to(like),
            support=None if self.support is None else self.support.to(like.device),
            local=None if self.local is None else self.local.to(like),
        )

    def __repr__(self) -> str:
        """A short summary."""
        gap = "none" if self.certificate is None else f"{self.certificate.objective_gap:.3g} nats"
        gap = "unknown" if gap.startswith("inf") else gap
        size = tuple(self.representer_weights.shape)
        rows = f"{size[0]:,}" + " own" * self.rows.sharded
        return (
            f"Solution({self.approximation}, {rows} rows x {size[1]} latent, {self.kernel_passes} kernel passes, "
            f"rank {self.rank}, certified gap {gap}, {self.seconds:.2f} s: {self.status})"
        )


def is_finite(*tensors: Tensor) -> bool:
    """Whether every element of every tensor is finite."""
    return all(bool(torch.isfinite(t).all()) for t in tensors)
