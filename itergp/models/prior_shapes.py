"""What a prior must be before it is taken apart, and where it must not be used."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn

import gpytorch
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from linear_operator.operators import BlockDiagLinearOperator, BlockInterleavedLinearOperator
from torch import Tensor

from itergp.errors import InputError
from itergp.operators.special import HasModules, checked_tables


def as_latent_functions(prior: Any) -> Any:
    """A distribution of independent outputs as a batch of latent functions; any other as it is."""
    if not isinstance(prior, MultitaskMultivariateNormal):
        return prior
    covariance = prior.lazy_covariance_matrix
    kind = BlockInterleavedLinearOperator if prior._interleaved else BlockDiagLinearOperator
    if type(covariance) is not kind or prior.mean.dim() != 2:
        return prior
    return MultivariateNormal(prior.mean.mT, covariance.base_linear_op)


def require_values(prior: Any, num_latents: int | None = None) -> None:
    """What ``forward`` returned must have as many values as its covariance has rows.

    Args:
        prior: What it returned.
        num_latents: C, what the likelihood needs, if that is known.

    Raises:
        InputError: If the covariance is that of several outputs, and the distribution or the likelihood that of fewer.
    """
    if not isinstance(prior, MultivariateNormal):
        return  # refused where it is taken apart
    if isinstance(prior, MultitaskMultivariateNormal) and num_latents not in (None, prior.mean.shape[-1]):
        raise InputError(
            f"forward must return as many outputs as the likelihood has latent functions, {num_latents}. Got "
            f"{prior.mean.shape[-1]}. Use a likelihood of several outputs, such as MultitaskGaussianLikelihood or "
            "itergp.likelihoods.IndependentOutputsLikelihood."
        )
    prior = as_latent_functions(prior)
    size, own = prior.loc.shape[-1], prior.lazy_covariance_matrix.shape[-1]
    if size != own:
        raise InputError(
            f"forward must return a distribution of as many values as its covariance has rows. Got {type(prior).__name__} "
            f"with a mean of shape {tuple(prior.mean.shape)} and {own} rows of covariance: outputs are coupled, as by "
            "multitask kernels and kernels with derivatives. Return a gpytorch MultitaskMultivariateNormal(mean, covariance) "
            "with a mean of shape (N, C), as MultitaskMean gives it."
        )


@contextmanager
def unchanged(inputs: tuple[Any, ...]) -> Iterator[None]:
    """Inputs of ``forward`` must be as they were when it returns: they are the training data themselves.

    Raises:
        InputError: If something was written into them.
    """
    tensors = [x for x in inputs if torch.is_tensor(x) and not x.is_inference()]
    before = [x._version for x in tensors]
    yield
    if before != [x._version for x in tensors]:
        raise InputError(
            "forward must not write into its inputs, which are the training data themselves. Got inputs that it has changed. "
            "Write x = x - shift, not x -= shift, or clone them first; then give the model its data again."
        )


def of_values(forward: Callable[..., Any], model: HasModules) -> Callable[..., Any]:
    """A model's ``forward``, its result checked by ``require_values``, with independent outputs as latent functions.

    Args:
        forward: With or without keywords.
        model: Whose it is.
    """

    @functools.wraps(forward)
    def checked(*args: Any, **kwargs: Any) -> Any:
        with checked_tables(model), unchanged(args):
            prior = forward(*args, **kwargs)
        require_values(prior)
        return as_latent_functions(prior)

    return checked


class PriorOfWeightedRows(MultivariateNormal):
    """The prior at training inputs with weights or missing targets, of which no marginal likelihood knows.

    The exception is GPyTorch's, which leaves rows out where targets are NaN and the policy for them says so: rows of weight 0,
    if no other weight differs from 1.

    Attributes:
        weight: Weights of the rows ``(N,)``.
    """

    weight: ClassVar[Tensor]

    @classmethod
    def of(cls, prior: MultivariateNormal, weight: Tensor | None) -> MultivariateNormal:
        """The same distribution; likelihoods make their marginals from the class of one of a single output.

        Args:
            prior: The prior.
            weight: Weights of the rows, or None if some outputs of rows are missing.
        """
        if isinstance(prior, MultitaskMultivariateNormal):
            kind = type(PriorOfWeightedOutputs.__name__, (PriorOfWeightedOutputs,), {"weight": weight})
            return kind(prior.mean, prior.lazy_covariance_matrix, interleaved=prior._interleaved)
        if type(prior) is not MultivariateNormal:
            return prior
        return type(cls.__name__, (cls,), {"weight": weight})(prior.loc, prior.lazy_covariance_matrix)

    @staticmethod
    def refuse() -> NoReturn:
        """Says what to do instead.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "ExactMarginalLogLikelihood takes all rows alike. Got a model with sample_weight or missing targets. "
            "Learn its hyperparameters by itergp.fit, or maximise itergp.objectives.ComputationAwareELBO, which is "
            "exact for Gaussian noise at full rank."
        )

    @property
    def mean(self) -> Tensor:
        """The mean; with targets that may be NaN one of which only the observed rows can be taken."""
        if gpytorch.settings.observation_nan_policy.value() != "mask":
            return self.loc
        mean = self.loc.as_subclass(_MeanOfObserved)
        mean.weight = self.weight
        return mean

    def log_prob(self, value: Tensor) -> Tensor:
        """Refused: it would count every row once."""
        self.refuse()


class _MeanOfObserved(Tensor):
    """A mean of which a mask takes those rows that are observed, and no others."""

    weight: Tensor

    def __getitem__(self, index: Any) -> Tensor:
        mask = index[-1] if isinstance(index, tuple) else index
        weight = getattr(self, "weight", None)
        # Of a batch, GPyTorch takes the rows that are observed in every element.
        observed = (
            None if weight is None else (weight == 1.0).flatten(0, -2).all(0) if weight.dim() > 1 else weight == 1.0
        )
        if (
            torch.is_tensor(mask)
            and mask.dtype is torch.bool
            and observed is not None
            and not torch.equal(mask, observed)
        ):
            PriorOfWeightedRows.refuse()
        if weight is not None and not bool(((weight == 0.0) | (weight == 1.0)).all()):
            PriorOfWeightedRows.refuse()
        return self.as_subclass(Tensor)[index]


class PriorOfWeightedOutputs(MultitaskMultivariateNormal):
    """The same of several outputs; GPyTorch leaves out those that are NaN, where the policy for them says so.

    Attributes:
        weight: Weights of the rows ``(N,)``, or None if some outputs are missing and all weights are 1.
    """

    weight: ClassVar[Tensor | None] = None

    @property
    def mean(self) -> Tensor:
        """The mean; with targets that may be NaN one of rows without weights."""
        if gpytorch.settings.observation_nan_policy.value() == "mask" and self.weight is not None:
            PriorOfWeightedRows.refuse()
        return super().mean

    def log_prob(self, value: Tensor) -> Tensor:
        """Refused: it would count every row once."""
        PriorOfWeightedRows.refuse()
