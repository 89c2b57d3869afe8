"""``FantasyModel``: a model that has seen a few more observations, many versions of them at once."""

from __future__ import annotations

from typing import Any

import torch
from gpytorch.distributions import MultivariateNormal
from linear_operator.operators import DenseLinearOperator, MatmulLinearOperator, SumLinearOperator
from torch import Tensor

from itergp.botorch.base import LatentModel, as_targets
from itergp.botorch.latent import LatentBlock, normal
from itergp.botorch.look_ahead import look_ahead


class FantasyModel(LatentModel):
    """A posterior conditioned on batches of further observations, with derivatives in where those were made.

    The sites of the training data stay as they are; those of the new rows are found by Newton's method within their number of
    dimensions, no kernel pass is needed. This is what acquisition functions that look ahead evaluate thousands of times.
    For observations that were really made, ``BotorchModel.condition_on_observations`` finds the posterior of all rows.

    Args:
        base: The model before.
        X: Where the observations were made ``(*b, n, D)``, as the model takes them.
        Y: Observations ``(*b', n, m)``, as the model takes them, with ``b'`` broadcastable to ``b`` or having more
            dimensions in front.
    """

    def __init__(self, base: LatentModel, X: Tensor, Y: Tensor) -> None:
        super().__init__(base.model, base.input_transform, base.outputs, base.known_outcome_transform)
        self.base, self.X, self.Y = base, X, Y
        block = LatentBlock.at(base.model, X)
        batch = torch.broadcast_shapes(X.shape[:-2], Y.shape[:-2])
        mean = block.mean.double().expand(*batch, *block.mean.shape[-2:])
        covariance = block.covariance().to_dense().double()
        covariance = covariance.expand(*batch, *covariance.shape[-2:])
        targets = as_targets(base.model, Y.expand(*batch, *Y.shape[-2:]))
        weights, precision = look_ahead(
            base.model.calculus,
            mean.reshape(-1, *mean.shape[-2:]),
            covariance.reshape(-1, *covariance.shape[-2:]),
            targets,
            variational=base.model.approximation == "variational",
        )
        self._block, self._batch = block, batch
        self._weights = weights.to(X).reshape(*batch, -1)
        self._precision = precision.to(X).reshape(*batch, *precision.shape[-2:])

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the batch of fantasies."""
        return self._batch

    def _latent_distribution(self, X: Tensor) -> MultivariateNormal:
        block = LatentBlock.at(self.model, X)
        cross = block.cross_covariance(self._block)
        shift = (cross @ self._weights.unsqueeze(-1)).squeeze(-1)
        mean = block.mean + shift.unflatten(-1, block.mean.shape[-2:])
        before = block.covariance()
        if block.num_latents > 1:
            return normal(mean, before.to_dense() - cross @ self._precision @ cross.mT)
        cross = cross.expand(*mean.shape[:-2], *cross.shape[-2:])
        gained = MatmulLinearOperator(DenseLinearOperator(-cross @ self._precision), DenseLinearOperator(cross.mT))
        return normal(mean, SumLinearOperator(before.expand(gained.shape), gained))

    def condition_on_observations(self, X: Tensor, Y: Tensor, **kwargs: Any) -> Any:
        """Further observations on top of those that the model was given.

        Args:
            X: Where ``(*b, n, D)``.
            Y: Observations ``(*b', n, m)``.
            **kwargs: None are known; ``noise`` is the likelihood's.
        """
        X, Y = self._new_rows(X, Y, kwargs)
        batch = torch.broadcast_shapes(X.shape[:-2], Y.shape[:-2], self._batch)
        both_X = torch.cat([t.expand(*batch, *t.shape[-2:]) for t in (self.X, X)], -2)
        both_Y = torch.cat([t.expand(*batch, *t.shape[-2:]) for t in (self.Y, Y)], -2)
        return FantasyModel(self.base, both_X, both_Y)

    def subset_output(self, idcs: list[int]) -> FantasyModel:
        """The same model with some of its latent functions as outputs."""
        return FantasyModel(self.base.subset_output(idcs), self.X, self.Y)
