"""GPyTorch's conventions for objectives: a value per row, priors and added losses included."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.mlls import MarginalLogLikelihood
from torch import Tensor

from itergp.errors import InputError
from itergp.likelihoods import Observations
from itergp.models import NonConjugateGP
from itergp.models.starting_values import initialise_model
from itergp.operators import KernelOperator, Prior, make_operator
from itergp.solvers.packing import Packed
from itergp.solvers.precision import marginal_covariance


class Objective(MarginalLogLikelihood):
    """Base class: ``-objective(model(train_x), train_y)`` is a loss for any torch optimiser.

    Attributes:
        predictive: The predictive distribution that it tunes: ``"variational"``, the posterior integrated, or ``"plug-in"``.
        initialised: Names of hyperparameters of the model that were at their default and got a start from the data.

    Args:
        likelihood: The model's likelihood.
        model: The model.
        initialise_kernel: Whether hyperparameters of the model that are still at their default get a start from the
            data, as in ``itergp.fit``: from GPyTorch's own, a lengthscale near 1 and an output scale below it, a bound
            may climb to a prior that says nothing.

    Raises:
        InputError: If the model is not a ``NonConjugateGP`` with this likelihood.
    """

    predictive: str = "variational"

    def __init__(
        self, likelihood: gpytorch.likelihoods.Likelihood, model: NonConjugateGP, *, initialise_kernel: bool = True
    ) -> None:
        if not isinstance(model, NonConjugateGP) or model.likelihood is not likelihood:
            raise InputError(
                f"`model` must be a NonConjugateGP with this likelihood. Got {type(model).__name__}. "
                "Pass the likelihood that the model was made with."
            )
        super().__init__(likelihood, model)
        self.initialised = initialise_model(model) if initialise_kernel else []

    def forward(self, function_dist: MultivariateNormal, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The objective per training row, with log-densities of priors and added losses.

        Args:
            function_dist: The prior at the training inputs: the model called on them in training mode.
            target: The training targets.
            *args: Ignored; GPyTorch passes them to the likelihood.
            **kwargs: Ignored.

        Raises:
            InputError: If the arguments are not those of the whole training set.
        """
        model: NonConjugateGP = self.model
        rows = model.train_targets.shape[0]
        if not isinstance(function_dist, MultivariateNormal) or function_dist.loc.shape[-1] != rows:
            raise InputError(
                f"The objective needs the prior at all {rows} training inputs. Got another distribution. "
                "Call it as objective(model(*model.train_inputs), model.train_targets) with model.train()."
            )
        if target.shape != model.train_targets.shape or not bool(self._as_known(target).all()):
            raise InputError(
                "The objective needs the model's own training targets. Got others. Pass model.train_targets, or change them "
                "with model.set_train_data."
            )
        observations = model.observations
        prior = Prior.from_forward(lambda *_: function_dist, model.train_inputs, observations.likelihood.num_latents)
        value = self.evidence(prior, observations)
        for loss in model.added_loss_terms():
            value = value + loss.loss().sum()
        for _, module, density, closure, _ in model.named_priors():
            value = value + density.log_prob(closure(module)).sum()
        return value / rows

    def _as_known(self, target: Tensor) -> Tensor:
        """Which rows ``(N,)`` have the model's own target, or none that counts: what is missing need not be filled."""
        known, weight = self.model.train_targets, self.model.sample_weight
        same = (target.to(known) == known).flatten(1).all(1) if known.dim() > 1 else target.to(known) == known
        return same if weight is None else same | (weight == 0)

    def pack(self) -> Packed:
        """What evaluations leave behind for later ones, for a checkpoint; nothing by default."""
        return Packed()

    def unpack(self, packed: Packed) -> None:
        """Takes up what ``pack`` gave."""

    @abstractmethod
    def evidence(self, prior: Prior, observations: Observations) -> Tensor:
        """The bound or estimate of ``log p(y | hyperparameters)``, a scalar with gradients."""


def differentiable(prior: Prior, model: NonConjugateGP) -> KernelOperator:
    """A kernel operator whose products have gradients for hyperparameters and features; nothing of size N x N is stored."""
    return make_operator(
        prior.kernel,
        prior.features,
        num_kernels=prior.num_kernels,
        kind="blocked",
        memory_budget=model.memory_budget,
    )


class DifferentiableCovariance:
    """``K - K A (I + A^T K A)^{-1} A^T K`` for fixed actions A, as a function of the hyperparameters through ``K A``.

    Attributes:
        actions: A ``(N, C, r)``.
        products: ``K A`` ``(N, C, r)``.
        gram: ``A^T K A`` ``(r, r)``, float64.
        factor: Lower Cholesky factor of ``I + gram``.
    """

    def __init__(self, actions: Tensor, products: Tensor) -> None:
        self.actions, self.products = actions, products
        self.gram = symmetric(actions.flatten(0, 1).mT @ self.products.flatten(0, 1))
        self.factor = cholesky_of_identity_plus(self.gram, self.products.dtype)

    def marginal(self, variance: Tensor, products: Tensor) -> Tensor:
        """Per-row covariances ``(M, C, C)``.

        Args:
            variance: Prior variances ``(C', M)``.
            products: ``k(x, X) A`` ``(M, C, r)``.
        """
        rows, latents = products.shape[:2]
        flat = products.flatten(0, 1)
        whitened = torch.linalg.solve_triangular(self.factor.mT.to(flat), flat, upper=True, left=False)
        prior = variance.mT.expand(rows, latents)
        floor = torch.finfo(flat.dtype).eps * prior.detach()  # the root of a zero variance has no derivative
        return marginal_covariance(prior, whitened.reshape(products.shape)) + torch.diag_embed(floor)

    def kl_terms(self) -> Tensor:
        """``log|I + B| - tr((I + B)^{-1} B)`` with ``B = A^T K A``: the covariance's share of twice the KL to the prior."""
        trace = torch.cholesky_solve(self.gram, self.factor).diagonal().sum()
        return 2.0 * self.factor.diagonal().log().sum() - trace


def symmetric(matrix: Tensor) -> Tensor:
    """The symmetric part in float64."""
    matrix = matrix.double()
    return 0.5 * (matrix + matrix.mT)


def cholesky_of_identity_plus(gram: Tensor, dtype: torch.dtype) -> Tensor:
    """Lower Cholesky factor of ``I + gram``; ``dtype`` is that of the products which made the matrix, and of its rounding."""
    eye = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    rounding = 4.0 * torch.finfo(dtype).eps * gram.detach().diagonal().clamp_min(0.0)
    return torch.linalg.cholesky(eye + gram + torch.diag(rounding))
