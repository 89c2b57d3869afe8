"""``PredictiveLogDensity``: the log-density of held-out rows, with its exact implicit gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import gpytorch
import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.likelihoods import LaplaceSite, Likelihood, Observations, Site, VariationalSite
from itergp.likelihoods.base import node_offsets
from itergp.models import NonConjugateGP
from itergp.models.distinct_rows import distinct_rows, share_latents
from itergp.numerics.blocks import psd_root
from itergp.numerics.distinct_rows import DistinctRows
from itergp.objectives.adjoint import linearise, solve_adjoint, solve_adjoint_exactly
from itergp.objectives.base import DifferentiableCovariance, HeldLocal, Objective, differentiable, prior_marginals
from itergp.objectives.exact_covariance import ExactCovariance, LinearPredictors
from itergp.operators import KernelOperator, OperatorKind, Prior, make_operator
from itergp.operators.forms import as_form
from itergp.operators.memory import default_memory_budget
from itergp.posterior.precision import cross_multiply, multiply, tangent
from itergp.posterior.tempering import tempered
from itergp.solvers import DenseNewton, Problem, Solution, Solver, SubspaceNewton, solve, solve_problem
from itergp.solvers.few_values import are_few
from itergp.solvers.subspace.recycled import search_space_of

PREDICTIVES = ("plug-in", "laplace", "variational")

_DENSE_TOLERANCE, _SECANT_SHARE = 1e-8, 0.01  # nats per row, of Newton's steps; of the tolerance, of others
# Rows of one latent function up to which dense factors take less time than anything else: where the noise is Gaussian, and
# where a covariance is wanted of other likelihoods, with a kernel that has a metric for neighbours, and with one that has none.
_EXACT_ROWS, _HELD_ROWS, _HELD_ROWS_WITHOUT_METRIC = 4000, 800, 2500
_MATRICES = 6  # of float64 that these need at once
_ROUNDS = 2  # of curvature and marginals, which then belong to each other


@dataclass
class _Split:
    """Rows to learn from and rows held out, and what is kept between evaluations."""

    train: Tensor
    held_out: Tensor
    warm: Solution | None = None
    actions: Tensor | None = None
    local: HeldLocal | None = None
    curvature: Tensor | None = None
    distinct: DistinctRows | None = None
    is_known: bool = False  # which rows to learn from are distinct


@dataclass(frozen=True)
class _ExactMode:
    """Of one latent function, from which held-out rows are predicted.

    Attributes:
        weights: Representer weights V ``(N, 1)``.
        latent_values: ``m + K V`` ``(N, 1)``.
        covariance: That all rows give.
        offsets: Of the nodes at the training rows ``(S, N, 1)``, with derivatives in the variances; None without expectations.
        node_weights: Their weights ``(S,)``.
        spread: Variances at the training rows; None without expectations.
    """

    weights: Tensor
    latent_values: Tensor
    covariance: ExactCovariance
    offsets: Tensor | None
    node_weights: Tensor
    spread: LinearPredictors | None = None


@dataclass(frozen=True)
class _HeldOutState:
    """What evaluations leave behind for later ones."""

    evaluations: int
    predictive: str
    tempering: float
    splits: list[_Split]


class PredictiveLogDensity(Objective):
    """Mean log-density of held-out rows given the other rows.

    Tunes what predictions need and, unlike a bound on the evidence, does not prefer smooth kernels when the rank is small.
    With the plug-in predictive, V solves ``V = g(m + K V)`` on the training part and ``f_v = m_v + K_v V`` on the held-out
    part. Let r be the gradient of the held-out log-density at ``f_v`` and ``(I + K W) lambda = K_v^T r``. Then, for any
    hyperparameter,

        dL = <r, dm_v + dK_v V> - <W lambda, dm + dK V> + <lambda, dg> + d(log-density),

    derivatives of two products with ``N x C`` arrays. The variational predictive integrates the latent posterior: g and W
    are expectations under the marginals of ``K - K A (I + A^T K A)^{-1} A^T K``, whose actions A are chosen anew with every
    split and held fixed in between, so that the derivative of the covariance is exact too. Gradients are exact as far as
    mode and adjoint are solved, for every likelihood whose rows are exchangeable. Of one latent function and few rows the
    covariance is the exact one, with the curvature in the actions' place; with Gaussian noise nothing is held fixed.

    Cost of one evaluation with gradient: the passes of a mode (warm-started), about as many for the adjoint, and two
    differentiated products, of ``C`` columns (plug-in) or ``C (rank + 1)`` (variational); all over the rows of one split.
    Of few rows dense factors take the place of what would take longer.

    Args:
        likelihood: The model's likelihood.
        model: The model.
        predictive: ``"plug-in"``, the density at the mode, or integrated over the ``"laplace"`` or ``"variational"`` posterior.
        tempering: Exponent of an integrated predictive, as in ``NonConjugateGP.predict``.
        holdout: Share of the rows that is held out in each split.
        num_folds: Instead of one random part, hold out each of this many parts in turn, in every evaluation.
        num_rows: Rows drawn for each split; default all.
        renew_every: Evaluations that share a split before a fresh one is drawn; default 10, None keeps one split.
        rank: Actions that the variational predictive's covariance is conditioned on.
        tolerance: Of mode and adjoint, relative to the objective; default 1e-4.
        warm_start: Whether the mode starts from that of the last evaluation. Without it a value does not depend, not even
            within the tolerance, on the evaluations before it.
        seed: Of the splits.
        initialise_kernel: Whether hyperparameters still at their default get a start from the data.

    Raises:
        InputError: If an argument is out of its range, or the likelihood's rows are not exchangeable.
    """

    state_type = _HeldOutState

    def __init__(
        self,
        likelihood: gpytorch.likelihoods.Likelihood,
        model: NonConjugateGP,
        *,
        predictive: str = "plug-in",
        tempering: float = 0.0,
        holdout: float = 0.25,
        num_folds: int | None = None,
        num_rows: int | None = None,
        renew_every: int | None = 10,
        rank: int = 64,
        tolerance: float = 1e-4,
        warm_start: bool = True,
        seed: int = 0,
        initialise_kernel: bool = True,
    ) -> None:
        super().__init__(likelihood, model, initialise_kernel=initialise_kernel)
        if predictive not in PREDICTIVES:
            raise InputError(f"`predictive` must be one of {PREDICTIVES}. Got {predictive!r}.")
        if not 0.0 < holdout < 1.0:
            raise InputError(f"`holdout` must be between 0 and 1. Got {holdout}. It is the share of rows to hold out.")
        element = model.batch_elements[0]
        rows = element.train_targets.shape[0]
        if num_folds is not None and not 2 <= num_folds <= rows:
            raise InputError(f"`num_folds` must be between 2 and the number of rows, {rows}. Got {num_folds}.")
        if not self.supports(element.observations.likelihood):
            raise InputError(
                "PredictiveLogDensity needs a likelihood whose rows are exchangeable, so that some can be held out. Got "
                f"{type(likelihood).__name__}. Use ComputationAwareELBO."
            )
        if not 0.0 <= tempering < math.inf:
            raise InputError(
                f"`tempering` must be 0 or more, and finite. Got {tempering}. Use predictive='plug-in' instead."
            )
        self.predictive, self.tempering = predictive, tempering
        self.holdout, self.num_folds = holdout, num_folds
        self.num_rows, self.renew_every, self.rank = num_rows, renew_every, rank
        self.tolerance, self.warm_start, self.seed = tolerance, warm_start, seed
        self._evaluations = 0
        self._splits: list[_Split] = []

    @staticmethod
    def supports(likelihood: Likelihood) -> bool:
        """Whether rows can be held out."""
        return likelihood.exchangeable

    def on_one_split(self, seed: int) -> PredictiveLogDensity:
        """The same objective on one split, by which hyperparameters can be compared."""
        return PredictiveLogDensity(
            self.likelihood,
            self.model,
            predictive=self.predictive,
            tempering=self.tempering,
            holdout=self.holdout,
            num_folds=self.num_folds,
            num_rows=self.num_rows,
            renew_every=None,
            rank=self.rank,
            tolerance=self.tolerance,
            warm_start=False,
            seed=seed,
            initialise_kernel=False,
        )

    def evidence(self, prior: Prior, observations: Observations) -> Tensor:
        """Mean held-out log-density times N, so that a value per row comes out as for every objective."""
        if not self._splits or (self.renew_every is not None and self._evaluations % self.renew_every == 0):
            self._splits = self._draw(observations)
        self._evaluations += 1
        total = torch.stack([self._held_out(prior, observations, split) for split in self._splits]).sum()
        weight = sum(observations.take(split.held_out).total_weight for split in self._splits)
        return total * (observations.num_rows / weight)

    def checkpoint_state(self) -> _HeldOutState:
        """The present splits, and what is kept for them between evaluations."""
        return _HeldOutState(self._evaluations, self.predictive, self.tempering, self._splits)

    def resume(self, state: _HeldOutState) -> None:
        """Goes on with the splits of ``checkpoint_state``."""
        self._evaluations, self._splits = state.evaluations, state.splits
        self.predictive, self.tempering = state.predictive, state.tempering

    # ------------------------------------------------------------------ inside
    def _draw(self, observations: Observations) -> list[_Split]:
        generator = torch.Generator().manual_seed(self.seed + self._evaluations)
        order = torch.randperm(observations.num_rows, generator=generator).to(observations.targets.device)
        if observations.sample_weight is not None:  # rows without information have nothing to say here
            order = order[observations.sample_weight[order] > 0]
        order = order[: self.num_rows]
        if order.numel() < 2:
            raise InputError(
                f"Holding rows out needs at least two rows. Got {order.numel()}. Use ComputationAwareELBO."
            )
        if self.num_folds is not None:
            folds = order.tensor_split(min(self.num_folds, order.numel()))
            return [_Split(torch.cat([*folds[:k], *folds[k + 1 :]]), fold) for k, fold in enumerate(folds)]
        count = max(1, min(order.numel() - 1, round(self.holdout * order.numel())))
        return [_Split(order[count:], order[:count])]

    def _held_out(self, prior: Prior, observations: Observations, split: _Split) -> Tensor:
        """Summed held-out log-density of one split, with its gradient."""
        if not split.is_known:
            split.distinct, split.is_known = distinct_rows(self.model, prior, split.train), True
        part, validation = prior.take(split.train), prior.take(split.held_out)
        seen, unseen = observations.take(split.train), observations.take(split.held_out)
        part, seen = share_latents(split.distinct, part, seen)
        if self._is_exact(part, seen):
            return self._held_out_exactly(part, validation, seen, unseen, split)
        operator = self._operator(part, kind="auto")
        smooth = differentiable(part, self.model)
        covariance = self._covariance(part, operator, smooth, seen, split)
        offsets, nodes = self._offsets(part, smooth, covariance, seen)
        site = LaplaceSite(seen) if offsets is None else VariationalSite(seen, offsets.detach(), nodes)
        problem = Problem(part.mean.detach().contiguous(), operator, site)
        solution = self._mode(problem, split)
        weights = solution.representer_weights
        self.deadline.check()
        value, gradient = self._density(validation, operator, smooth, covariance, unseen, weights)
        implicit, hessian = linearise(seen, solution.latent_values, offsets, nodes)
        definite = seen.likelihood.curvature == "hessian"
        with torch.no_grad():
            across = self._operator(validation, kind="blocked")
            right = cross_multiply(across, operator.inputs, gradient.unsqueeze(-1))[..., 0]
            if self._is_small(problem):
                weighted = solve_adjoint_exactly(operator, hessian, right)
            else:
                space, tolerance = search_space_of(solution), 0.1 * self.tolerance
                root = site.curvature_root(solution.latent_values, hessian) if definite else None
                weighted = solve_adjoint(operator, space, hessian, right, tolerance, root, self.deadline)
            adjoint = right - multiply(operator, weighted.unsqueeze(-1))[..., 0]
        surrogate = (gradient * validation.mean).sum() - (weighted * part.mean).sum() + (adjoint * implicit).sum()
        surrogate = surrogate + tangent(smooth, gradient[..., None], weights[..., None], validation.features)
        surrogate = surrogate - tangent(smooth, weighted[..., None], weights[..., None])
        # The value is that of the log-density; the surrogate only carries the gradient.
        return value + (surrogate - surrogate.detach())

    def _held_out_exactly(
        self, part: Prior, validation: Prior, seen: Observations, unseen: Observations, split: _Split
    ) -> Tensor:
        """The same of one latent function and few rows, by dense factors: with the covariance that all rows give."""
        self.deadline.check()
        smooth = differentiable(part, self.model)
        mode = self._exact_mode(part, smooth, seen, split)
        cross = smooth.cross_entries(validation.features)[0]
        at = (validation.mean.detach() + cross @ mode.weights).requires_grad_(True)
        prior, spread = prior_marginals(smooth, validation.features), None
        if self.predictive == "plug-in":
            value = unseen.log_density(at)
        else:
            spread = mode.covariance.predictors(prior[:, 0], cross)
            variance = spread.variance.requires_grad_(True)
            value = unseen.predictive_log_density(at, tempered(variance[:, None, None], prior, self.tempering))
        value = value.sum(dtype=torch.float64)
        slopes = torch.autograd.grad(value, [at] if spread is None else [at, spread.variance], retain_graph=True)
        implicit, hessian = linearise(seen, mode.latent_values, mode.offsets, mode.node_weights)
        weighted, adjoint = (x.to(at) for x in mode.covariance.adjoint(cross.mT @ slopes[0], hessian[:, 0, 0]))
        carried = (adjoint * implicit).sum()
        surrogate = (slopes[0] * validation.mean).sum() - (weighted * part.mean).sum() + carried
        left, above, right = [-weighted], [slopes[0]], [mode.weights]
        if mode.spread is not None:  # at the training rows, where expectations are taken
            (slope,) = torch.autograd.grad(carried, mode.spread.variance, retain_graph=True)
            surrogate = surrogate + (slope * mode.spread.known).sum()
            left.append(slope * mode.spread.weights - torch.diag(2.0 * slope))
            above.append(slope.new_zeros(len(cross), len(slope)))
            right.append(mode.spread.weights)
        if spread is not None:
            surrogate = surrogate + (slopes[1] * spread.known).sum()
            left.append(slopes[1] * spread.weights)
            above.append(torch.diag(-2.0 * slopes[1]))
            right.append(spread.weights)
        columns = torch.cat(right, -1)
        surrogate = surrogate + smooth.tangent(torch.cat(left, -1), columns)
        surrogate = surrogate + smooth.tangent(torch.cat(above, -1), columns, validation.features)
        return value + (surrogate - surrogate.detach())

    def _exact_mode(self, part: Prior, smooth: KernelOperator, seen: Observations, split: _Split) -> _ExactMode:
        """The mode, and the covariance: of Gaussian noise of both the only one, and otherwise for a curvature that is held."""
        mean = part.mean.detach().contiguous()
        operator = self._operator(part, kind="auto")
        kernel, one = operator.dense()[0].double(), mean.new_ones(1)
        if seen.likelihood.quadratic:
            gradient, curvature = seen.derivatives(mean)
            exact = ExactCovariance(kernel, curvature[:, 0, 0], mean.dtype)
            weights, moved = (x.to(mean).unsqueeze(-1) for x in exact.mode(gradient[:, 0]))
            return _ExactMode(weights, mean + moved, exact, None, one)
        exact = ExactCovariance(kernel, self._held_curvature(mean, operator, kernel, seen, split), mean.dtype)
        problem, spread, offsets, node_weights = Problem(mean, operator, LaplaceSite(seen)), None, None, one
        if self.predictive == "variational":
            spread = exact.predictors(prior_marginals(smooth, smooth.inputs)[:, 0])
            nodes, node_weights = seen.standard_nodes(mean)
            offsets = node_offsets(psd_root(spread.variance.requires_grad_(True)[:, None, None]), nodes)
            problem = problem.with_site(VariationalSite(seen, offsets.detach(), node_weights))
        solution = self._mode(problem, split)
        weights, latent_values = solution.representer_weights, solution.latent_values
        return _ExactMode(weights, latent_values, exact, offsets, node_weights, spread)

    @torch.no_grad()
    def _held_curvature(
        self, mean: Tensor, operator: KernelOperator, kernel: Tensor, seen: Observations, split: _Split
    ) -> Tensor:
        """W ``(N,)`` at the posterior mean when the split was new."""
        if split.curvature is None:
            # Exact rounds start at the mode, or where there may be none from the variational posterior of a low rank.
            if seen.likelihood.bounded_density:
                site: Site = LaplaceSite(seen)
                values = self._mode(Problem(mean, operator, site), split).latent_values
                curvature: Tensor | None = site.covariance_curvature(values)
            else:
                solver = SubspaceNewton(covariance_rank=self.rank, num_neighbours=0, tolerance=self.tolerance)
                left, warm = self.deadline.left(), split.warm
                solution = solve(
                    operator, mean, seen, solver, approximation=self.predictive, warm_start=warm, time_limit=left
                )
                self.deadline.check()
                split.warm, curvature = solution.without_warm_start(), solution.curvature
            assert curvature is not None
            split.curvature = curvature[:, 0, 0].clamp_min(0.0)
            for _ in range(_ROUNDS if self.predictive == "variational" else 0):
                exact = ExactCovariance(kernel, split.curvature, mean.dtype)
                marginals = exact.predictors(kernel.diagonal().to(mean)).variance[:, None, None]
                problem = Problem(mean, operator, VariationalSite.from_covariance(seen, marginals))
                values = self._mode(problem, split).latent_values
                split.curvature = problem.site.covariance_curvature(values)[:, 0, 0].clamp_min(0.0)
        return split.curvature

    def _is_exact(self, part: Prior, seen: Observations) -> bool:
        """Whether dense factors find the posterior covariance, or that and the mode, in less time than passes."""
        budget = self.model.memory_budget or default_memory_budget(part.mean.device)
        if seen.likelihood.num_latents > 1 or _MATRICES * 8 * seen.num_rows**2 > budget:
            return False
        if seen.likelihood.quadratic:
            return seen.num_rows <= _EXACT_ROWS
        if self.predictive == "plug-in" or seen.num_rows > _HELD_ROWS_WITHOUT_METRIC:
            return False
        form = as_form(part.kernel, part.num_kernels, part.features.shape[-1])
        return seen.num_rows <= _HELD_ROWS or form is None or form.metric is None

    def _is_small(self, problem: Problem) -> bool:
        return problem.site.smooth and are_few(problem.likelihood, problem.operator)

    def _dense_tolerance(self, likelihood: Likelihood) -> float:
        """How near dense steps come, in nats per row: Newton's in a step or two more, others where it is enough."""
        newton = likelihood.curvature == "hessian"
        return min(self.tolerance, _DENSE_TOLERANCE) if newton else _SECANT_SHARE * self.tolerance

    def _operator(self, prior: Prior, *, kind: OperatorKind) -> KernelOperator:
        budget = self.model.memory_budget
        return make_operator(
            prior.kernel, prior.features.detach(), num_kernels=prior.num_kernels, kind=kind, memory_budget=budget
        )

    def _mode(self, problem: Problem, split: _Split) -> Solution:
        solver: Solver = SubspaceNewton(covariance_rank=0, tolerance=self.tolerance)
        if self._is_small(problem):
            solver = DenseNewton(covariance=False, tolerance=self._dense_tolerance(problem.likelihood))
        solution = solve_problem(
            problem, solver, warm_start=split.warm if self.warm_start else None, time_limit=self.deadline.left()
        )
        self.deadline.check()  # what stopped on the way is no mode, and its gradient leads anywhere
        # Its weights are worth keeping. A recycled space costs more than the passes it saves at these sizes.
        split.warm = solution.without_warm_start()
        return solution

    def _covariance(
        self, part: Prior, operator: KernelOperator, smooth: KernelOperator, seen: Observations, split: _Split
    ) -> DifferentiableCovariance | None:
        """The latent covariance as a function of the hyperparameters, or None for the plug-in predictive."""
        if self.predictive == "plug-in":
            return None
        if split.actions is None:
            solver = SubspaceNewton(covariance_rank=self.rank, tolerance=self.tolerance)
            mean = part.mean.detach().contiguous()
            with torch.no_grad():
                solution = solve(
                    operator,
                    mean,
                    seen,
                    solver,
                    approximation=self.predictive,
                    warm_start=split.warm,
                    time_limit=self.deadline.left(),
                )
            self.deadline.check()
            split.actions, split.local = solution.all_actions().contiguous(), HeldLocal.of(solution)
            split.warm = solution.without_warm_start()
        return DifferentiableCovariance(split.actions, multiply(smooth, split.actions), split.local, smooth)

    def _offsets(
        self, part: Prior, smooth: KernelOperator, covariance: DifferentiableCovariance | None, seen: Observations
    ) -> tuple[Tensor | None, Tensor]:
        """Offsets of the nodes ``(S, N, C)`` at the training rows, differentiable, and their weights ``(S,)``."""
        if covariance is None or self.predictive == "laplace" or seen.likelihood.quadratic:
            return None, part.mean.new_ones(1)
        nodes, node_weights = seen.standard_nodes(part.mean.detach())
        marginal = covariance.marginal(prior_marginals(smooth, smooth.inputs), covariance.products, smooth.inputs)
        return node_offsets(psd_root(marginal), nodes), node_weights

    def _density(
        self,
        validation: Prior,
        operator: KernelOperator,
        smooth: KernelOperator,
        covariance: DifferentiableCovariance | None,
        unseen: Observations,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Summed log-density, differentiable but for the mean, and its gradient r ``(M, C)`` in the mean."""
        with torch.no_grad():
            f = validation.mean + cross_multiply(operator, validation.features, weights.unsqueeze(-1))[..., 0]
        with torch.enable_grad():
            mean = f.detach().requires_grad_(True)
            if covariance is None:
                value = unseen.log_density(mean)
            else:
                products = cross_multiply(smooth, validation.features, covariance.actions)
                prior = prior_marginals(smooth, validation.features)
                marginal = covariance.marginal(prior, products, validation.features)
                variance = prior.diagonal(dim1=-2, dim2=-1) if prior.dim() == 3 else prior.expand(mean.shape)
                marginal = tempered(marginal, variance, self.tempering)
                value = unseen.predictive_log_density(mean, marginal)
            value = value.sum(dtype=torch.float64)
            (gradient,) = torch.autograd.grad(value, mean, retain_graph=True)
        return value, gradient
