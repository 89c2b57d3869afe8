"""GPyTorch's conventions for objectives: a value per row, priors and added losses included."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.mlls import MarginalLogLikelihood
from torch import Tensor

from itergp.errors import InputError
from itergp.likelihoods import Observations
from itergp.models import NonConjugateGP
from itergp.models.prior_shapes import as_latent_functions
from itergp.models.starting_values import initialise_model
from itergp.numerics.blocks import curvature_eigen
from itergp.objectives.deadline import Deadline
from itergp.operators import KernelOperator, Neighbourhoods, Prior, kind_without_matrix, make_operator
from itergp.posterior.local_actions import LocalActions, reduced
from itergp.posterior.precision import marginal_covariance
from itergp.solvers import Solution


class Objective(MarginalLogLikelihood):
    """Base class: ``-objective(model(train_x), train_y)`` is a loss for any torch optimiser.

    Attributes:
        predictive: The predictive distribution that it tunes: ``"variational"``, the posterior integrated, or ``"plug-in"``.
        deadline: When evaluations are to be over; later they raise ``OutOfTimeError``.
        state_type: The class of what it takes along in a checkpoint, a dataclass; None for nothing.
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
    deadline: Deadline = Deadline()
    state_type: ClassVar[type[Any] | None] = None

    def __init__(
        self, likelihood: gpytorch.likelihoods.Likelihood, model: NonConjugateGP, *, initialise_kernel: bool = True
    ) -> None:
        if not isinstance(model, NonConjugateGP) or model.likelihood is not likelihood:
            raise InputError(
                f"`model` must be a NonConjugateGP with this likelihood. Got {type(model).__name__}. "
                "Pass the likelihood that the model was made with."
            )
        super().__init__(likelihood, model)
        self._of_each: list[Objective] = []
        self.initialised = initialise_model(model) if initialise_kernel else []

    def forward(self, function_dist: MultivariateNormal, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The objective per training row, priors and added losses included; of a batch of models one each, ``(*b,)``.

        Args:
            function_dist: The prior at the training inputs: the model called on them in training mode.
            target: The training targets.
            *args: Ignored; GPyTorch passes them to the likelihood.
            **kwargs: Ignored.

        Raises:
            InputError: If the arguments are not those of the whole training set.
            OutOfTimeError: If the deadline is past.
        """
        self.deadline.check()
        model: NonConjugateGP = self.model
        rows = model.batch_elements[0].train_targets.shape[0]
        function_dist = as_latent_functions(function_dist)
        if not isinstance(function_dist, MultivariateNormal) or function_dist.event_shape[:1] != (rows,):
            raise InputError(
                f"The objective needs the prior at all {rows} training inputs. Got another distribution. "
                "Call it as objective(model(*model.train_inputs), model.train_targets) with model.train()."
            )
        if target.shape != model.train_targets.shape or not bool(self._as_known(target).all()):
            raise InputError(
                "The objective needs the model's own training targets. Got others. Pass model.train_targets, or change them "
                "with model.set_train_data."
            )
        if model.data_batch_shape:
            return (self._of_elements() + log_density_of_priors(model)) / rows
        return (self._without_priors(function_dist) + log_density_of_priors(model)) / rows

    def _without_priors(self, function_dist: MultivariateNormal) -> Tensor:
        """Evidence and added losses of a single model."""
        model: NonConjugateGP = self.model
        observations, function_dist = model.observations, as_latent_functions(function_dist)
        prior = Prior.from_forward(lambda *_: function_dist, model.train_inputs, observations.likelihood.num_latents)
        value = self.evidence(prior, observations)
        for loss in model.added_loss_terms():
            value = value + loss.loss().sum()
        return value

    def _of_elements(self) -> Tensor:
        """The same for every element of a batch of models, ``(*b,)``."""
        model, values = self.model, []
        elements = model.batch_elements
        if len(self._of_each) != len(elements):
            self._of_each = [self._copy() for _ in elements]
        for index, (element, part) in enumerate(zip(elements, self._of_each, strict=True)):
            part.model, part.likelihood = element, element.likelihood
            value = part._without_priors(element(*element.train_inputs))
            values.append(with_gradient_in(value, element.leaves(), model.share(index)))
        return torch.stack(values).unflatten(0, model.data_batch_shape)

    def _copy(self) -> Objective:
        """One for another model, with the same settings."""
        twin = copy.copy(self)
        twin._modules, twin._of_each = {}, []
        return twin

    def _as_known(self, target: Tensor) -> Tensor:
        """Which targets are the model's own, or none that count: what is missing need not be filled."""
        known, weight = self.model.train_targets, self.model.sample_weight
        dims = len(self.model.data_batch_shape) + 1
        given = target.to(known)
        same = (given == known) | (given.isnan() & known.isnan()) if known.is_floating_point() else given == known
        same = same.flatten(dims).all(-1) if known.dim() > dims else same
        return same if weight is None else same | (weight == 0)

    def checkpoint_state(self) -> Any:
        """What evaluations leave behind for later ones: an instance of ``state_type``, or None for nothing."""
        return None

    def resume(self, state: Any) -> None:
        """Goes on from what ``checkpoint_state`` gave."""

    @abstractmethod
    def evidence(self, prior: Prior, observations: Observations) -> Tensor:
        """The bound or estimate of ``log p(y | hyperparameters)``, a scalar with gradients."""


def log_density_of_priors(model: NonConjugateGP) -> Tensor:
    """That of all hyperparameters with a prior; of a batch of models one each, where what all elements share counts in each."""
    shape, parts = model.data_batch_shape, model.batch_elements[0].named_priors()
    total = model.train_inputs[0].new_zeros(shape)
    for (_, module, prior, closure, _), (_, part, *_) in zip(model.named_priors(), parts, strict=True):
        parameter = closure(module)
        value = prior.log_prob(parameter)
        shared = parameter.dim() == closure(part).dim() and value.shape == parameter.shape
        # A prior with more values than the parameter has one for each element, by GPyTorch's rule.
        lead = () if shared else value.shape[: len(shape)]
        total = total + value.reshape(*lead, -1).sum(-1)
    return total


def with_gradient_in(value: Tensor, leaves: list[Tensor], shares: list[Tensor]) -> Tensor:
    """A value of one graph with the first derivative in tensors of another.

    Args:
        value: A scalar.
        leaves: What it was computed from.
        shares: As many tensors of equal content, in which derivatives are wanted.
    """
    pairs = [(leaf, share) for leaf, share in zip(leaves, shares, strict=True) if leaf.requires_grad]
    if not value.requires_grad or not pairs:
        return value
    gradients = torch.autograd.grad(value, [leaf for leaf, _ in pairs], allow_unused=True)
    value = value.detach()
    for gradient, (_, share) in zip(gradients, pairs, strict=True):
        if gradient is not None:
            value = value + (gradient * (share - share.detach())).sum()
    return value


def differentiable(prior: Prior, model: NonConjugateGP) -> KernelOperator:
    """A kernel operator whose products have gradients for hyperparameters and features; nothing of size N x N is stored."""
    return make_operator(
        prior.kernel,
        prior.features,
        num_kernels=prior.num_kernels,
        kind=kind_without_matrix(prior.kernel, prior.features, prior.num_kernels),
        memory_budget=model.memory_budget,
    )


class DifferentiableCovariance:
    """A posterior covariance for fixed actions, as a function of the hyperparameters.

    ``K - K A (I + A^T K A)^{-1} A^T K``, less what the neighbours of each input take from it: see ``LocalActions``. Actions A
    and curvature roots H are held fixed; kernel entries and products ``K A`` move.

    Attributes:
        actions: A ``(N, C, r)``.
        products: ``K A`` ``(N, C, r)``.
        gram: ``A^T K A`` ``(r, r)``, float64.
        factor: Lower Cholesky factor of ``I + gram``.
        local: Local actions at these products, or None.
        hoods: The kernel that their entries come from, or None.
    """

    def __init__(
        self, actions: Tensor, products: Tensor, local: HeldLocal | None = None, operator: KernelOperator | None = None
    ) -> None:
        self.actions, self.products = actions, products
        self.gram = symmetric(actions.flatten(0, 1).mT @ self.products.flatten(0, 1))
        self.factor = cholesky_of_identity_plus(self.gram, self.products.dtype)
        self.local: LocalActions | None = None
        self.hoods: Neighbourhoods | None = None
        if local is not None and operator is not None:
            moved = local.share + torch.bmm(local.root.mT, products)  # covariances of pseudo-observations
            self.local = LocalActions(local.root, self._whiten(moved), local.num_neighbours)
            self.hoods = Neighbourhoods(operator)

    def marginal(self, prior: Tensor, products: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Per-row covariances ``(M, C, C)``.

        Args:
            prior: ``prior_marginals``.
            products: ``k(x, X) A`` ``(M, C, r)``.
            inputs: Kernel inputs of these rows, for their neighbours.
        """
        whitened = self._whiten(products)
        prior = prior if prior.dim() == 3 else prior.expand(products.shape[:2])
        variance = prior.diagonal(dim1=-2, dim2=-1) if prior.dim() == 3 else prior
        floor = torch.finfo(products.dtype).eps * variance.detach()  # the root of a zero variance has no derivative
        covariance = marginal_covariance(prior, whitened)
        if self.local is not None and self.hoods is not None and inputs is not None:
            with torch.no_grad():
                near = self.hoods.near(inputs, self.local.num_neighbours)
            covariance = reduced(covariance, self.local.reduction(self.hoods, inputs, whitened, near))
        return covariance + torch.diag_embed(floor)

    def _whiten(self, products: Tensor) -> Tensor:
        flat = products.flatten(0, 1)
        factor = self.factor.mT.to(flat)
        return torch.linalg.solve_triangular(factor, flat, upper=True, left=False).reshape(products.shape)

    def kl_terms(self) -> Tensor:
        """``log|I + B| - tr((I + B)^{-1} B)`` with ``B = A^T K A``: the covariance's share of twice the KL to the prior."""
        trace = torch.cholesky_solve(self.gram, self.factor).diagonal().sum()
        return 2.0 * self.factor.diagonal().log().sum() - trace


def prior_marginals(operator: KernelOperator, inputs: Tensor) -> Tensor:
    """Prior variances ``(M, C')`` at kernel inputs, or covariances ``(M, C, C)`` where latent functions are coupled."""
    return operator.row_covariance(inputs) if operator.couples_latents else operator.diagonal(inputs).mT


@dataclass(frozen=True)
class HeldLocal:
    """What is held fixed of local actions while hyperparameters move.

    Attributes:
        root: H ``(N, C, m)``.
        share: Q ``(N, m, r)``: what the global actions hold of each pseudo-observation.
        num_neighbours: Neighbours of each input.
    """

    root: Tensor
    share: Tensor
    num_neighbours: int

    @classmethod
    def of(cls, solution: Solution) -> HeldLocal | None:
        """That of a posterior with actions at all rows; None without local actions."""
        local, precision = solution.local, solution.precision
        if local is None or solution.curvature is None or solution.support is not None:
            return None
        values, vectors = curvature_eigen(solution.curvature)
        m = local.functionals
        inverse = torch.where(values > 0.0, values, torch.inf).rsqrt()[:, -m:]
        share = torch.bmm((vectors[:, :, -m:] * inverse.unsqueeze(-2)).mT, precision.actions)
        return cls(local.root, share, local.num_neighbours)


def symmetric(matrix: Tensor) -> Tensor:
    """The symmetric part in float64."""
    matrix = matrix.double()
    return 0.5 * (matrix + matrix.mT)


def cholesky_of_identity_plus(gram: Tensor, dtype: torch.dtype) -> Tensor:
    """Lower Cholesky factor of ``I + gram``; ``dtype`` is that of the products which made the matrix, and of its rounding."""
    eye = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    rounding = 4.0 * torch.finfo(dtype).eps * gram.detach().diagonal().clamp_min(0.0)
    return torch.linalg.cholesky(eye + gram + torch.diag(rounding))
