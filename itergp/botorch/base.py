"""What BoTorch's models of latent functions share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import gpytorch
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import FantasizeMixin, Model
from botorch.models.transforms.outcome import OutcomeTransform
from botorch.posteriors import GPyTorchPosterior, Posterior
from gpytorch.distributions import MultivariateNormal
from torch import Tensor

from itergp.botorch.latent import select_outputs
from itergp.botorch.response import ResponsePosterior
from itergp.errors import InputError
from itergp.likelihoods import GaussianLikelihood, Likelihood
from itergp.models import NonConjugateGP


class LatentModel(Model, FantasizeMixin):
    """What ``BotorchModel`` and ``FantasyModel`` share: a BoTorch model whose outputs are latent functions.

    Attributes:
        model: The ``NonConjugateGP`` behind it.
        input_transform: Applied to points before the model sees them, or None.
        outcome_transform: What the model's targets are in terms of the observations; absent without one.
        outputs: Which latent functions are outputs.

    Args:
        model: As above.
        input_transform: As above.
        outputs: As above; default all.
        outcome_transform: As above.

    Raises:
        InputError: If outcomes are to be transformed and the likelihood is not Gaussian, or an output does not exist.
    """

    input_transform: torch.nn.Module | None
    outcome_transform: OutcomeTransform
    outputs: tuple[int, ...]

    def __init__(
        self,
        model: NonConjugateGP,
        input_transform: torch.nn.Module | None,
        outputs: tuple[int, ...] | None = None,
        outcome_transform: OutcomeTransform | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.input_transform = input_transform
        if outcome_transform is not None:  # BoTorch asks whether there is such an attribute
            if not _is_gaussian(model.calculus):
                raise InputError(
                    "`outcome_transform` needs a Gaussian likelihood, whose outputs have the units of the targets. "
                    f"Got {type(model.likelihood).__name__}, whose outputs are latent functions. Leave it out, and "
                    "transform what you observe before."
                )
            self.outcome_transform = outcome_transform
        self.outputs = tuple(range(self.num_latents)) if outputs is None else outputs

    @abstractmethod
    def _latent_distribution(self, X: Tensor) -> MultivariateNormal:
        """Distribution of all latent functions at transformed inputs."""

    # ------------------------------------------------------------ descriptions
    @property
    def num_latents(self) -> int:
        """Number C of latent functions of the model."""
        return self.model.calculus.num_latents

    @property
    def num_outputs(self) -> int:
        """Number of latent functions that are outputs."""
        return len(self.outputs)

    @property
    def likelihood(self) -> gpytorch.likelihoods.Likelihood:
        """The model's likelihood."""
        return self.model.likelihood

    @property
    def train_inputs(self) -> tuple[Tensor, ...]:
        """Training inputs as the model has them: transformed."""
        return self.model.train_inputs

    @property
    def train_targets(self) -> Tensor:
        """Training targets."""
        return self.model.train_targets

    def transform_inputs(self, X: Tensor, input_transform: torch.nn.Module | None = None) -> Tensor:
        """Inputs as the model takes them."""
        transform = self.input_transform if input_transform is None else input_transform
        return X if transform is None else transform.to(X)(X)

    # The model's training data are transformed already, in training mode too.
    def _set_transformed_inputs(self) -> None:
        pass

    def _revert_to_original_inputs(self) -> None:
        pass

    def forward(self, *args: Any, **kwargs: Any) -> MultivariateNormal:
        """Refused: training calls the model inside.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"{type(self).__name__} has posteriors, and no prior to be called. Got a call. Learn hyperparameters of "
            "its `model`: itergp.fit(m), or fit_gpytorch_mll(ExactMarginalLogLikelihood(m.likelihood, m)) with m = "
            "model.model."
        )

    # --------------------------------------------------------------- posterior
    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> Posterior:
        """The posterior of the latent functions, or of observations.

        Args:
            X: Points ``(*b, q, D)``.
            output_indices: Which of the outputs; default all.
            observation_noise: False for the latent functions. True for observations: a ``GPyTorchPosterior`` for a Gaussian
                likelihood, otherwise a ``ResponsePosterior``.
            posterior_transform: Applied to the posterior.

        Returns:
            A posterior over ``(*b, q, m)``.

        Raises:
            InputError: If the points do not look like the training inputs, an output does not exist, or observations of several
                outputs are asked for.
        """
        self.eval()
        if torch.is_tensor(observation_noise):
            raise InputError(
                "`observation_noise` must be True or False: the likelihood says what noise is. Got a tensor. Use a likelihood "
                "with that noise."
            )
        distribution = self._latent_distribution(self.transform_inputs(X))
        outputs = self.outputs if output_indices is None else self._choose(output_indices)
        posterior = self._observed(distribution) if observation_noise else None
        if posterior is None:
            if outputs != tuple(range(self.num_latents)):
                distribution = select_outputs(distribution, outputs)
            posterior = GPyTorchPosterior(distribution)
        if (transform := self.known_outcome_transform) is not None:
            posterior = transform.untransform_posterior(posterior, X=X)
        return posterior if posterior_transform is None else posterior_transform(posterior)

    def _observed(self, distribution: MultivariateNormal) -> Posterior:
        calculus = self.model.calculus
        if calculus.masks_targets:
            raise InputError(
                "`observation_noise` must be False for several outputs in a row. Got True with "
                f"{type(self.likelihood).__name__}. Take latent functions here, and observations from model.predict."
            )
        if _is_gaussian(calculus) and calculus.exchangeable:
            return GPyTorchPosterior(calculus.marginal(distribution))
        return ResponsePosterior(distribution, calculus)

    def _choose(self, indices: list[int]) -> tuple[int, ...]:
        if not indices or not all(isinstance(i, int) and -len(self.outputs) <= i < len(self.outputs) for i in indices):
            raise InputError(
                f"Outputs must be among 0..{len(self.outputs) - 1}, one per latent function. Got {list(indices)}. Choose some "
                "of these."
            )
        return tuple(self.outputs[i] for i in indices)

    # ---------------------------------------------------------------- new rows
    def _new_rows(self, X: Tensor, Y: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if any(value is not None for value in options.values()):
            raise InputError(
                "New observations have the noise of the likelihood and no other keywords. Got "
                f"{sorted(options)}. Leave them out."
            )
        calculus = self.model.calculus
        if not calculus.exchangeable or calculus.observation_at(self.model.held_data.inputs):
            raise InputError(
                f"New observations need a likelihood that is the same for all rows. Got {type(self.likelihood).__name__}. "
                "Build a model of all rows with their noise."
            )
        if X.dim() < 2 or Y.dim() < 2 or X.shape[-2] != Y.shape[-2]:
            raise InputError(
                "`X` and `Y` must have shapes (..., n, D) and (..., n, m) with the same n. Got "
                f"{tuple(X.shape)} and {tuple(Y.shape)}. Add a last dimension to Y: Y.unsqueeze(-1)."
            )
        if (transform := self.known_outcome_transform) is not None:
            Y, _ = transform.eval()(Y)  # in training mode it would be learned from these few
        return self.transform_inputs(X), Y

    @property
    def known_outcome_transform(self) -> OutcomeTransform | None:
        """What the targets are in terms of the observations, or None."""
        return self.outcome_transform if hasattr(self, "outcome_transform") else None


def _is_gaussian(calculus: Likelihood) -> bool:
    return type(calculus).marginal is GaussianLikelihood.marginal


def as_targets(model: NonConjugateGP, Y: Tensor) -> Tensor:
    """Observations ``(*b, n, m)`` as targets of ``b n`` rows, like those the model was trained with.

    Raises:
        InputError: If they do not fit the likelihood.
    """
    calculus, like = model.calculus, model.train_targets
    rows = Y.reshape(-1, Y.shape[-1])
    if rows.shape[-1] == getattr(calculus, "num_classes", None):
        rows = rows.argmax(-1, keepdim=True)
    second = getattr(calculus, "second_column", None)
    if like.dim() == 2 and rows.shape[-1] == 1 and second is not None:
        rows = torch.cat([rows, torch.full_like(rows, second)], -1)
    columns = 1 if like.dim() == 1 else like.shape[1]
    if rows.shape[-1] != columns:
        raise InputError(
            f"`Y` must have {columns} column(s), like the training targets. Got {rows.shape[-1]}. Select them."
        )
    return calculus.validate_targets(rows if like.dim() == 2 else rows.squeeze(-1)).to(like.dtype)
