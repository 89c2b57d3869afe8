"""``Solution``: a posterior, how it was found, and how far it is from the exact one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.numerics.distinct_rows import DistinctRows
from itergp.operators import AbstractOperator
from itergp.parallel import RowPartition
from itergp.persistence import DERIVED
from itergp.posterior.local_actions import LocalActions
from itergp.posterior.posterior import Posterior
from itergp.posterior.precision import LowRankPrecision
from itergp.posterior.status import Status
from itergp.posterior.warm_start import WarmStart
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
class Report:
    """How a posterior was found, and how far it is from the exact one.

    Attributes:
        approximation: ``"laplace"`` or ``"variational"``.
        status: Why the solve ended, and what to try.
        certificate: Distance to the exact mode; None when the likelihood is not log-concave.
        kernel_passes: Products with the kernel matrix, all stages together.
        kernel_entries: Kernel entries evaluated.
        seconds: Wall-clock time.
        trace: What happened, step by step.
        log_marginal_likelihood: Laplace estimate of ``log p(y)`` (GPML eq. 3.32) at the returned mean, with the
            log-determinant taken within the actions: the dense Laplace value at convergence and full rank, and exact for a
            Gaussian likelihood. With an operator of which ``actions_pay`` is false the log-determinant is that of all rows, by
            random probes. None for a variational solution, whose ``elbo`` takes its place.
        elbo: A lower bound on ``log p(y)`` by the Gaussian posterior itself: by quadrature for C = 1, an estimate by fixed
            samples for several latent functions. NaN between the steps of a solve, when it is not computed.
        variational_residual: How far another round would move the marginals at the training inputs, in posterior deviations:
            the largest change of a mean or of a deviation, over the deviation. Zero where gradient and curvature are
            expectations under the very marginals that are returned. None for a Laplace posterior.
    """

    approximation: str
    status: Status
    certificate: Certificate | None
    kernel_passes: int
    kernel_entries: int
    seconds: float
    trace: TraceData
    log_marginal_likelihood: float | None
    elbo: float
    variational_residual: float | None = None


@dataclass(frozen=True)
class Solution:
    """The posterior that a solver found, how, and what the next solve can go on from.

    What posterior and report say can be asked of the solution itself.

    Attributes:
        posterior: Mean and covariance.
        report: Status, certificate, cost, trace, evidence.
        warm_start: What the next solve can go on from beside the posterior, which only solvers look into; None where it was
            left behind.
    """

    posterior: Posterior
    report: Report
    warm_start: WarmStart | None = field(default=None, metadata=DERIVED)

    # ------------------------------------------------------------------ of the posterior
    @property
    def representer_weights(self) -> Tensor:
        """V ``(N, C)``."""
        return self.posterior.representer_weights

    @property
    def latent_values(self) -> Tensor:
        """Posterior mean at the training inputs, ``f = m + K V`` ``(N, C)``."""
        return self.posterior.latent_values

    @property
    def latent_covariance(self) -> Tensor:
        """Marginal posterior covariances at the training inputs ``(N, C, C)``."""
        return self.posterior.latent_covariance

    @property
    def precision(self) -> LowRankPrecision:
        """The low-rank precision."""
        return self.posterior.precision

    @property
    def objective(self) -> float:
        """``Psi`` at the solution, nats."""
        return self.posterior.objective

    @property
    def curvature(self) -> Tensor | None:
        """W ``(N, C, C)`` that the covariance belongs to; None if the solver does not say."""
        return self.posterior.curvature

    @property
    def support(self) -> Tensor | None:
        """Rows ``(M,)`` outside which weights and actions are zero; None for all rows."""
        return self.posterior.support

    @property
    def local(self) -> LocalActions | None:
        """Local actions beside the precision's, or None."""
        return self.posterior.local

    @property
    def rows(self) -> RowPartition:
        """Which of the N rows are here: all, unless the rows are divided among processes."""
        return self.posterior.rows

    @property
    def distinct(self) -> DistinctRows | None:
        """Which of a model's training rows share their latent values; see ``Posterior``."""
        return self.posterior.distinct

    @property
    def rank(self) -> int:
        """Number of actions that the covariance is conditioned on."""
        return self.posterior.rank

    # --------------------------------------------------------------------- of the report
    @property
    def approximation(self) -> str:
        """``"laplace"`` or ``"variational"``."""
        return self.report.approximation

    @property
    def status(self) -> Status:
        """Why the solve ended, and what to try."""
        return self.report.status

    @property
    def certificate(self) -> Certificate | None:
        """Distance to the exact mode; None when the likelihood is not log-concave."""
        return self.report.certificate

    @property
    def kernel_passes(self) -> int:
        """Products with the kernel matrix, all stages together."""
        return self.report.kernel_passes

    @property
    def kernel_entries(self) -> int:
        """Kernel entries evaluated."""
        return self.report.kernel_entries

    @property
    def seconds(self) -> float:
        """Wall-clock time."""
        return self.report.seconds

    @property
    def trace(self) -> TraceData:
        """What happened, step by step."""
        return self.report.trace

    @property
    def log_marginal_likelihood(self) -> float | None:
        """Laplace estimate of ``log p(y)``, or None; see ``Report``."""
        return self.report.log_marginal_likelihood

    @property
    def elbo(self) -> float:
        """A lower bound on ``log p(y)``; see ``Report``."""
        return self.report.elbo

    @property
    def variational_residual(self) -> float | None:
        """How far another round would move the marginals; None for a Laplace posterior; see ``Report``."""
        return self.report.variational_residual

    @property
    def converged(self) -> bool:
        """Whether the tolerance was met."""
        return self.status.converged

    # ----------------------------------------------------------------- of the warm start
    @property
    def operator(self) -> AbstractOperator | None:
        """The kernel operator of the solve, or None once the warm start was left behind."""
        return None if self.warm_start is None else self.warm_start.operator

    @property
    def space(self) -> Any:
        """The search space that a solver left, for a look at it, or None."""
        return getattr(self.warm_start, "space", None)

    @property
    def coordinates(self) -> Tensor | None:
        """Of V in that space ``(C, B)``, or None."""
        return getattr(self.warm_start, "coordinates", None)

    @property
    def actions(self) -> Any:
        """The actions and their products that ``IterNCGP`` left, for a look at them, or None."""
        return getattr(self.warm_start, "actions", None)

    # ------------------------------------------------------------------------------ others
    def weights_on_support(self) -> Tensor:
        """V where the precision's actions are: ``(N, C)``, or ``(M, C)`` on the support."""
        return self.posterior.weights_on_support()

    def all_actions(self) -> Tensor:
        """The precision's actions at all rows ``(N, C, r)``."""
        return self.posterior.all_actions()

    def with_report(self, **changes: Any) -> Solution:
        """The same posterior and warm start, of which something else is reported.

        Args:
            **changes: Fields of ``Report``.
        """
        return replace(self, report=replace(self.report, **changes))

    def without_warm_start(self) -> Solution:
        """Posterior and report alone, as they are saved and moved between devices."""
        return replace(self, warm_start=None)

    def without_space(self) -> Solution:
        """Deprecated: ``without_warm_start``."""
        warnings.warn("without_space is without_warm_start now.", DeprecationWarning, stacklevel=2)
        return self.without_warm_start()

    def at_rows(self, places: Tensor, size: int) -> Solution:
        """The same function as a start for other rows: by weights at some of them, and zero at the others.

        Args:
            places: Which of those rows the present ones are ``(N,)``; several may be one.
            size: How many rows there are.
        """
        prefix = torch.equal(places, torch.arange(len(places), device=places.device))
        start = self.warm_start.with_more_rows(size - len(places)) if prefix and self.warm_start is not None else None
        posterior = self.posterior.at_rows(places, size)
        return replace(self.with_report(certificate=None), posterior=posterior, warm_start=start)

    def of_given_rows(self) -> Solution:
        """The same posterior with entries for all training rows as they were given, not for the distinct ones alone."""
        return self if self.distinct is None else SolutionOfGivenRows(self.posterior, self.report)

    def gather(self) -> Solution:
        """The posterior with all rows in every process, which must all call this; without the warm start.

        It takes the memory of one process alone: ``N C r`` numbers for a covariance of rank r, twice with neighbours.
        """
        return self if not self.rows.sharded else self._with_posterior(self.posterior.gather())

    def divide(self, rows: RowPartition) -> Solution:
        """The posterior with the rows of this process alone; the reverse of ``gather``."""
        return self if rows == self.rows else self._with_posterior(self.posterior.divide(rows))

    def to(self, like: Tensor) -> Solution:
        """The posterior in the dtype and on the device of ``like``; the warm start is left behind."""
        return self._with_posterior(self.posterior.to(like))

    def _with_posterior(self, posterior: Posterior) -> Solution:
        return type(self)(posterior, self.report)

    def __repr__(self) -> str:
        """A short summary."""
        gap = "none" if self.certificate is None else f"{self.certificate.objective_gap:.3g} nats"
        gap = "unknown" if gap.startswith("inf") else gap
        size = tuple(self.representer_weights.shape)
        rows = f"{size[0]:,}" + " own" * self.rows.sharded
        if self.distinct is not None:
            rows = f"{self.distinct.num_distinct:,} distinct of {self.distinct.num_rows:,}"
        return (
            f"Solution({self.approximation}, {rows} rows x {size[1]} latent, {self.kernel_passes} kernel passes, "
            f"rank {self.rank}, certified gap {gap}, {self.seconds:.2f} s: {self.status})"
        )


class SolutionOfGivenRows(Solution):
    """A posterior with equal training rows, as a model returns it: arrays of rows have an entry for each that was given.

    Latent values and covariances are those of the row's kind. Everything observed at equal rows counts as observed at the first
    of them: weights, curvature and actions are zero at the others, and ``support`` leaves these out. Arrays of rows are made
    when they are asked for. Neighbours are known of the distinct rows only: ``local`` is None.
    """

    @property
    def representer_weights(self) -> Tensor:
        """V ``(N, C)``."""
        return self._at_first(self.posterior.representer_weights)

    @property
    def latent_values(self) -> Tensor:
        """Posterior mean at the training inputs ``(N, C)``."""
        return self.posterior.latent_values[self._kinds.index]

    @property
    def latent_covariance(self) -> Tensor:
        """Marginal posterior covariances at the training inputs ``(N, C, C)``."""
        return self.posterior.latent_covariance[self._kinds.index]

    @property
    def curvature(self) -> Tensor | None:
        """W ``(N, C, C)`` that the covariance belongs to; None if the solver does not say."""
        curvature = self.posterior.curvature
        return None if curvature is None else self._at_first(curvature)

    @property
    def support(self) -> Tensor:
        """Rows outside which weights and actions are zero: the first of each kind, or some of these."""
        first, support = self._kinds.first, self.posterior.support
        return first if support is None else first[support]

    @property
    def local(self) -> LocalActions | None:
        """None."""
        return None

    def all_actions(self) -> Tensor:
        """The precision's actions at all rows ``(N, C, r)``."""
        return self._at_first(self.posterior.all_actions())

    @property
    def _kinds(self) -> DistinctRows:
        assert self.posterior.distinct is not None
        return self.posterior.distinct

    def _at_first(self, values: Tensor) -> Tensor:
        kinds = self._kinds
        return values.new_zeros(kinds.num_rows, *values.shape[1:]).index_copy_(0, kinds.first, values)


def is_finite(*tensors: Tensor) -> bool:
    """Whether every element of every tensor is finite."""
    return all(bool(torch.isfinite(t).all()) for t in tensors)
