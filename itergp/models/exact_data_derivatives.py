"""The exact posterior of Gaussian noise as a function of data and hyperparameters, for derivatives in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from torch import Tensor

from itergp.errors import InputError
from itergp.likelihoods import Observations
from itergp.models.latent import LatentPosterior
from itergp.operators import Prior

_LIMIT = 4000  # training rows, of which a dense factorisation is kept for the backward pass


def wanted(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether derivatives of predictions in training inputs or targets are wanted."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def wanted_in_hyperparameters(parameters: Iterable[Tensor], observations: Callable[[], Observations]) -> bool:
    """Whether derivatives in hyperparameters are wanted, as ``gpytorch.settings.detach_test_caches(False)`` says, and known.

    Args:
        parameters: All hyperparameters.
        observations: Gives those of the training rows.
    """
    asked = torch.is_grad_enabled() and gpytorch.settings.detach_test_caches.off()
    return asked and any(parameter.requires_grad for parameter in parameters) and _is_exact(observations())


def posterior_of_data(
    forward: Callable[[tuple[Tensor, ...]], MultivariateNormal],
    observations: Observations,
    known: tuple[Tensor, ...],
    inputs: tuple[Tensor, ...],
) -> LatentPosterior:
    """The latent posterior at new inputs, with derivatives in them, in the training inputs and in the targets.

    For Gaussian noise ``W^-1`` it is ``m_* + K_* V`` with ``V = H B^-1 H^T W^-1 g(m)``, ``B = I + H^T K H`` and ``H H^T = W``:
    dense in float64, at N^3 operations. It has derivatives in hyperparameters too, unless they are frozen.

    Args:
        forward: The prior at some inputs.
        observations: Of the training rows.
        known: Training inputs ``(N, D)`` each.
        inputs: New inputs ``(M, D)`` each.

    Raises:
        InputError: If the likelihood is not Gaussian, or there are too many rows.
    """
    rows = known[0].shape[0]
    _require_exact(observations, rows)
    joint = forward(tuple(torch.cat(pair) for pair in zip(known, inputs, strict=True)))
    covariance, mean = joint.lazy_covariance_matrix, joint.loc.double()
    if covariance.dim() > 2:
        covariance, mean = covariance.squeeze(0), mean.reshape(-1)
    kernel = covariance[..., :rows, :rows].to_dense().double()
    across = covariance[..., rows:, :rows].to_dense().double()
    gradient, curvature = observations.derivatives(mean[:rows].unsqueeze(-1))
    root = curvature[:, 0, 0].sqrt()  # zero where a target is missing
    whitened_residual = gradient[:, 0] / torch.where(root > 0, root, 1.0)
    identity = torch.eye(rows, dtype=kernel.dtype, device=kernel.device)
    factor = torch.linalg.cholesky(identity + root.unsqueeze(-1) * kernel * root)
    half = torch.linalg.solve_triangular(factor, whitened_residual.unsqueeze(-1), upper=False)
    whitened = torch.linalg.solve_triangular(factor, (across * root).mT, upper=False).mT
    dtype, own = inputs[0].dtype, covariance[..., rows:, rows:]
    return LatentPosterior(
        prior=Prior(mean[rows:].unsqueeze(-1).to(dtype), gpytorch.kernels.ConstantKernel(), inputs[0][:, :0], 1, own),
        prior_marginals=own.diagonal(dim1=-1, dim2=-2).unsqueeze(-1),
        mean=(mean[rows:].unsqueeze(-1) + whitened @ half).to(dtype),
        whitened=whitened.unsqueeze(1).to(dtype),
    )


def _is_exact(observations: Observations) -> bool:
    return observations.likelihood.quadratic and observations.likelihood.num_latents == 1


def _require_exact(observations: Observations, rows: int) -> None:
    if not _is_exact(observations):
        raise InputError(
            "Predictions have derivatives in training inputs and targets for Gaussian noise, otherwise in new inputs only. Got "
            f"training data that require them with {type(observations.likelihood).__name__}. Detach those, or predict under "
            "torch.no_grad()."
        )
    if rows > _LIMIT:
        raise InputError(
            f"Predictions have derivatives in at most {_LIMIT:,} training rows, by a dense factorisation. Got {rows:,} that "
            "require them. Detach them, or predict under torch.no_grad()."
        )
