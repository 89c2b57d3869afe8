"""``BotorchModel``: a model of this package where BoTorch wants one of its own."""

from __future__ import annotations

import copy
from typing import Any

import torch
from botorch.models.transforms.outcome import OutcomeTransform
from gpytorch.distributions import MultivariateNormal
from torch import Tensor

from itergp.botorch.base import LatentModel, as_targets
from itergp.botorch.fantasy import FantasyModel
from itergp.botorch.latent import LatentBlock, normal
from itergp.errors import InputError
from itergp.models import NonConjugateGP


class BotorchModel(LatentModel):
    """A ``NonConjugateGP`` as a BoTorch model, for acquisition functions and their optimisation.

    Outputs are the C latent functions: ``posterior(X)`` is Gaussian, takes t-batches, and has derivatives in X.
    ``posterior(X, observation_noise=True)`` is the distribution of observations, as far as the likelihood goes a
    ``ResponsePosterior``. ``fantasize`` draws observations and conditions on them.

    Args:
        model: The model, conditioned on demand. It is shared, not copied: learn its hyperparameters by ``itergp.fit``.
        input_transform: An input transform of BoTorch, applied to points before the model sees them. The model's own training
            inputs must be transformed already.
        outcome_transform: An outcome transform of BoTorch that has been learned, for a Gaussian likelihood: posteriors
            and new observations are in the units of what was observed. The model's own training targets must be
            transformed already.
        outputs: Which latent functions are outputs; default all.

    Raises:
        InputError: If the model takes several inputs, or outcomes are to be transformed and outputs are not outcomes.

    Examples:
        >>> import torch, itergp
        >>> from botorch.acquisition import UpperConfidenceBound
        >>> x = torch.linspace(-2, 2, 40, dtype=torch.float64).unsqueeze(-1)
        >>> model = itergp.models.GP(x, (x[:, 0] > 0).long(), itergp.likelihoods.BernoulliLikelihood()).double()
        >>> UpperConfidenceBound(BotorchModel(model), beta=4.0)(torch.zeros(5, 1, 1, dtype=torch.float64)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        model: NonConjugateGP,
        *,
        input_transform: torch.nn.Module | None = None,
        outcome_transform: OutcomeTransform | None = None,
        outputs: tuple[int, ...] | None = None,
    ) -> None:
        if not isinstance(model, NonConjugateGP):
            raise InputError(
                f"`model` must be a NonConjugateGP. Got {type(model).__name__}. Of an estimator, pass its `model_`."
            )
        if model.data_batch_shape or not model.train_inputs:
            got = (
                f"a batch of shape {tuple(model.data_batch_shape)}"
                if model.train_inputs
                else "one without training data"
            )
            raise InputError(
                f"`model` must be a single model of some data. Got {got}. Make one of each of model.batch_elements, for "
                "example in a botorch.models.ModelListGP, or give it data by set_train_data."
            )
        if len(model.train_inputs) != 1:
            raise InputError(
                f"BoTorch's models take one input. Got a model of {len(model.train_inputs)}. Concatenate their columns, and "
                "split them in `forward`."
            )
        super().__init__(model, input_transform, outputs, outcome_transform)

    @property
    def batch_shape(self) -> torch.Size:
        """One model, no batch."""
        return torch.Size()

    def _latent_distribution(self, X: Tensor) -> MultivariateNormal:
        if X.dim() == 2:
            return self.model(X)
        block = LatentBlock.at(self.model, X)
        return normal(block.mean, block.covariance())

    def condition_on_observations(self, X: Tensor, Y: Tensor, **kwargs: Any) -> Any:
        """The model with more rows; hyperparameters stay.

        Args:
            X: Where observations were made, ``(n, D)`` or ``(*b, n, D)``.
            Y: Observations ``(n, m)`` or ``(*b', n, m)``: labels, levels, counts or values with m = 1, or one column per
                class; with a second column, such as an exposure, if the training targets have one.
            **kwargs: None are known; ``noise`` is the likelihood's.

        Returns:
            Without a batch, a new ``BotorchModel`` of all rows, whose posterior is found on demand, starting from the present
            one. With a batch, a ``FantasyModel``.

        Raises:
            InputError: If the observations do not fit the likelihood.
        """
        X, Y = self._new_rows(X, Y, kwargs)
        if X.dim() > 2 or Y.dim() > 2:
            return FantasyModel(self, X, Y)
        targets = as_targets(self.model, Y.detach())
        self.model.solution  # noqa: B018 # found now if it is not known
        longer = copy.deepcopy(self.model)
        longer.continue_from(self.model)  # with the search space, which a copy leaves behind
        longer.append_train_data(X.detach(), targets)
        return self._of(longer, self.outputs).eval()

    def _of(self, model: NonConjugateGP, outputs: tuple[int, ...]) -> BotorchModel:
        """The same transforms around another model, or with other outputs."""
        return BotorchModel(
            model,
            input_transform=self.input_transform,
            outcome_transform=self.known_outcome_transform,
            outputs=outputs,
        )

    def subset_output(self, idcs: list[int]) -> BotorchModel:
        """The same model with some of its latent functions as outputs.

        Args:
            idcs: Which.
        """
        return self._of(self.model, self._choose(idcs))
