"""``PredictiveLogDensity``: the log-density of held-out rows, with its exact implicit gradient."""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.likelihoods import AutomaticLikelihood, LaplaceSite, Likelihood, Observations
from itergp.models import NonConjugateGP
from itergp.objectives.adjoint import solve_adjoint
from itergp.objectives.base import Objective
from itergp.operators import KernelOperator, Prior, make_operator
from itergp.solvers import Problem, Solution, SubspaceNewton, solve_problem
from itergp.solvers.precision import cross_multiply, multiply


class PredictiveLogDensity(Objective):
    """Mean log-density of held-out rows, plugged in at the mode of the other rows.

    Tunes what predictions need and, unlike a bound on the evidence, does not prefer smooth kernels when the rank is small.
    Let V solve ``V = g(m + K V)`` on the training part and ``f_v = m_v + K_v V`` on the validation part, r the gradient of
    their log-density, ``(I + K W) lambda = K_v^T r``. Then, for any hyperparameter,

        dL = <r, dm_v + dK_v V> - <W lambda, dm + dK V> + <lambda, dg> + d(log-density),

    derivatives of two products with ``N x C`` arrays. Gradients are exact as far as mode and adjoint are solved.

    Cost of one evaluation with gradient: the passes of a mode (warm-started), about as many for the adjoint, and two
    differentiated products; all over the rows of one split.

    Args:
        likelihood: The model's likelihood, log-concave or with a closed-form curvature equal to its Hessian.
        model: The model.
        holdout: Share of the rows that is held out in each split.
        num_rows: Rows drawn for each split; default all.
        renew_every: Evaluations that share a split before a fresh one is drawn; default 10, None keeps one split.
        tolerance: Of mode and adjoint, relative to the objective; default 1e-4.
        seed: Of the splits.
    """

    def __init__(
        self,
        likelihood: gpytorch.likelihoods.Likelihood,
        model: NonConjugateGP,
        *,
        holdout: float = 0.25,
        num_rows: int | None = None,
        renew_every: int | None = 10,
        tolerance: float = 1e-4,
        seed: int = 0,
    ) -> None:
        super().__init__(likelihood, model)
        if not 0.0 < holdout < 1.0:
            raise InputError(f"`holdout` must be between 0 and 1. Got {holdout}. It is the share of rows to hold out.")
        self.holdout, self.num_rows, self.renew_every = holdout, num_rows, renew_every
        self.tolerance, self.seed = tolerance, seed
        self._evaluations = 0
        self._split: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        self._solution: Solution | None = None

    @staticmethod
    def supports(likelihood: Likelihood) -> bool:
        """Whether rows can be held out and the curvature is the Hessian in closed form, which the adjoint needs."""
        closed = likelihood.curvature == "hessian" and type(likelihood) is not AutomaticLikelihood
        return closed and likelihood.exchangeable

    def evidence(self, prior: Prior, observations: Observations) -> Tensor:
        """Mean held-out log-density times N, so that a value per row comes out as for every objective."""
        if not self.supports(likelihood := observations.likelihood):
            raise InputError(
                "PredictiveLogDensity needs a likelihood whose curvature is its Hessian in closed form. Got "
                f"{type(likelihood).__name__}. Use ComputationAwareELBO."
            )
        train, held_out = self._rows(observations)
        part, validation = _take(prior, train), _take(prior, held_out)
        seen, unseen = observations.take(train), observations.take(held_out)
        operator = self._operator(part, kind="auto", detached=True)
        solution = self._mode(part, operator, seen)
        weights = solution.representer_weights
        value, gradient = self._held_out(validation, operator, unseen, weights)
        adjoint, weighted = self._adjoint(validation, operator, seen, solution, gradient)
        smooth = self._operator(part, kind="blocked", detached=False)
        moved_validation = validation.mean + cross_multiply(smooth, validation.features, weights.unsqueeze(-1))[..., 0]
        moved = part.mean + multiply(smooth, weights.unsqueeze(-1))[..., 0]
        implicit, _ = seen.derivatives(solution.latent_values)
        surrogate = (gradient * moved_validation).sum() - (weighted * moved).sum() + (adjoint * implicit).sum()
        # The value is that of the log-density; the surrogate only carries the gradient.
        total = value + (surrogate - surrogate.detach())
        return total * (observations.num_rows / unseen.total_weight)

    # ------------------------------------------------------------------ inside
    def _rows(self, observations: Observations) -> tuple[Tensor, Tensor]:
        fresh = self.renew_every is not None and self._evaluations % self.renew_every == 0
        if fresh or self._evaluations == 0:
            generator = torch.Generator().manual_seed(self.seed + self._evaluations)
            order = torch.randperm(observations.num_rows, generator=generator).to(observations.targets.device)
            if observations.sample_weight is not None:  # rows without information have nothing to say here
                order = order[observations.sample_weight[order] > 0]
            order = order[: self.num_rows]
            count = max(1, min(order.numel() - 1, round(self.holdout * order.numel())))
            self._split, self._solution = (order[count:], order[:count]), None
        self._evaluations += 1
        return self._split

    def _operator(self, prior: Prior, *, kind: str, detached: bool) -> KernelOperator:
        features = prior.features.detach() if detached else prior.features
        return make_operator(
            prior.kernel,
            features,
            num_kernels=prior.num_kernels,
            kind=kind,  # type: ignore[arg-type]
            memory_budget=self.model.memory_budget,
        )

    def _mode(self, prior: Prior, operator: KernelOperator, observations: Observations) -> Solution:
        solver = SubspaceNewton(covariance_rank=0, tolerance=self.tolerance)
        problem = Problem(prior.mean.detach().contiguous(), operator, LaplaceSite(observations))
        solution = self._solution = solve_problem(problem, solver, warm_start=self._solution)
        return solution

    @staticmethod
    def _held_out(
        prior: Prior, operator: KernelOperator, observations: Observations, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log-density, differentiable in the likelihood's parameters, and its gradient r ``(M, C)``."""
        with torch.no_grad():
            f = prior.mean + cross_multiply(operator, prior.features, weights.unsqueeze(-1))[..., 0]
            gradient, _ = observations.derivatives(f)
        return observations.log_density(f).sum(dtype=torch.float64), gradient

    def _adjoint(
        self,
        validation: Prior,
        operator: KernelOperator,
        observations: Observations,
        solution: Solution,
        gradient: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Lambda and ``W lambda`` ``(N, C)`` with ``(I + K W) lambda = K_v^T r``."""
        with torch.no_grad():
            _, curvature = observations.derivatives(solution.latent_values)
            across = self._operator(validation, kind="blocked", detached=True)
            right = cross_multiply(across, operator.inputs, gradient.unsqueeze(-1))[..., 0]
            assert solution.space is not None
            weighted = solve_adjoint(operator, solution.space, curvature, right, 0.1 * self.tolerance)
            return right - multiply(operator, weighted.unsqueeze(-1))[..., 0], weighted


def _take(prior: Prior, rows: Tensor) -> Prior:
    """The prior at some of its rows."""
    return Prior(
        mean=prior.mean[rows],
        kernel=prior.kernel,
        features=prior.features[..., rows, :],
        num_kernels=prior.num_kernels,
        covariance=prior.covariance,
    )
