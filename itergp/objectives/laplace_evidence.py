"""``LaplaceEvidence``: the Laplace approximation of the evidence, dense and exact."""

from __future__ import annotations

import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.likelihoods import AutomaticLikelihood, LaplaceSite, Observations
from itergp.models.distinct_rows import distinct_rows, share_latents
from itergp.objectives.base import Objective
from itergp.operators import Prior, make_operator
from itergp.operators.radial import evaluate_kernel
from itergp.posterior.dense import apply_kernels, couples
from itergp.solvers import DenseNewton, Problem, solve_problem

_LIMIT = 8000


class LaplaceEvidence(Objective):
    """``log p(y | f*) - 1/2 (f* - m)^T K^{-1} (f* - m) - 1/2 log |I + K W|`` at the mode f* (GPML eq. 3.32).

    The gradient is that of GPML section 5.5.1, complete with the dependence of the mode on the hyperparameters. For small
    data: memory ``(N C)^2`` and time ``(N C)^3`` per evaluation, N C at most 8,000 for N distinct rows; computed in float64.

    Args:
        likelihood: The model's likelihood; its curvature must have a closed form, as all of ours have.
        model: The model.
        initialise_kernel: Whether hyperparameters still at their default get a start from the data.

    Raises:
        InputError: If the problem is too large, or the likelihood is differentiated automatically.
    """

    def evidence(self, prior: Prior, observations: Observations) -> Tensor:
        """The Laplace evidence as a differentiable scalar.

        Args:
            prior: The prior at the training inputs, differentiable.
            observations: Targets and likelihood.

        Raises:
            InputError: If there are too many latent values, or the likelihood has no closed form of its curvature.
        """
        prior, observations = share_latents(distinct_rows(self.model, prior), prior, observations)
        size, latents = prior.mean.shape
        if size * latents > _LIMIT:
            raise InputError(
                f"LaplaceEvidence works with at most N C = {_LIMIT:,} latent values. Got {size * latents:,}. "
                "Use ComputationAwareELBO, or a subset of the rows."
            )
        if type(likelihood := observations.likelihood) is AutomaticLikelihood:
            raise InputError(
                "LaplaceEvidence needs a likelihood whose curvature has a closed form. Got "
                f"{type(likelihood.wrapped).__name__}. Use ComputationAwareELBO."
            )
        kernels = 1 if prior.coupled else prior.num_kernels  # with all latent values in one matrix, or one each
        kernel = evaluate_kernel(prior.kernel, prior.features, prior.features, kernels).double()
        mean = prior.mean.double()
        mode, weights = _mode(prior, observations)
        # Psi is stationary in f at the mode, so only its explicit dependence on the hyperparameters counts.
        fit = observations.log_density(mode).sum()
        centred = (weights * (mode - mean)).sum()
        quadratic = centred - 0.5 * (weights * apply_kernels(kernel, weights)).sum()
        moving = _moving_mode(kernel, mean, mode, observations)
        joint = _joint(kernel, observations.covariance_curvature(moving))
        return fit - quadratic - 0.5 * torch.linalg.slogdet(joint).logabsdet


def _mode(prior: Prior, observations: Observations) -> tuple[Tensor, Tensor]:
    """The mode and its representer weights, float64, without gradients."""
    with torch.no_grad():
        operator = make_operator(prior.kernel, prior.features.detach(), num_kernels=prior.num_kernels, kind="blocked")
        problem = Problem(prior.mean.detach(), operator, LaplaceSite(observations))
        solution = solve_problem(problem, DenseNewton(covariance=False))
    return solution.latent_values.double(), solution.representer_weights.double()


def _moving_mode(kernel: Tensor, mean: Tensor, mode: Tensor, observations: Observations) -> Tensor:
    """The mode as a function of the hyperparameters: its value, with the derivative of ``f = m + K g(f)``."""
    with torch.enable_grad():
        point = mode.detach().requires_grad_(True)
        gradient, _ = observations.derivatives(point)
        rows = [
            torch.autograd.grad(gradient[:, c].sum(), point, retain_graph=True, allow_unused=True)[0]
            for c in range(mode.shape[1])
        ]
    hessian = -torch.stack([torch.zeros_like(mode) if row is None else row for row in rows], -1)
    gradient, _ = observations.derivatives(mode)  # differentiable in the likelihood's parameters
    defect = mean + apply_kernels(kernel, gradient) - mode  # zero in value
    system = _joint(kernel.detach(), hessian)
    return mode + torch.linalg.solve(system, defect.reshape(-1)).reshape(mode.shape)


def _joint(kernel: Tensor, curvature: Tensor) -> Tensor:
    """``I + K W`` ``(N C, N C)``, row-major."""
    size, latents = curvature.shape[:2]
    if couples(kernel, size):
        product = torch.einsum("imc,mcd->imd", kernel[0].view(-1, size, latents), curvature)
    else:
        product = torch.einsum("cnm,mcd->ncmd", kernel.expand(latents, -1, -1), curvature)
    product = product.reshape(size * latents, size * latents)
    return product + torch.eye(size * latents, dtype=product.dtype, device=product.device)
