"""The predictive distribution of observations as a BoTorch posterior."""

from __future__ import annotations

from typing import Any

import torch
from botorch.posteriors import GPyTorchPosterior, Posterior
from botorch.sampling.get_sampler import GetSampler
from botorch.sampling.normal import IIDNormalSampler, NormalMCSampler, SobolQMCNormalSampler
from gpytorch.distributions import MultivariateNormal
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution
from torch.quasirandom import SobolEngine

from itergp.likelihoods import Likelihood
from itergp.likelihoods.base import latent_marginals


class ResponsePosterior(Posterior):
    """Observations at q points, jointly: latent values from their posterior, and each observation from the likelihood.

    Observations have one column ``m = 1``: a label, a level, a count or a value. Those of C classes have ``m = C`` columns, one
    for every class: a sample is a row with a single one, and the mean is the class probabilities.

    Args:
        distribution: Latent posterior, ``(*b, q)`` or ``(*b, q, C)``.
        likelihood: What is observed given the latent values.
    """

    def __init__(self, distribution: MultivariateNormal, likelihood: Likelihood) -> None:
        self.latent = GPyTorchPosterior(distribution)
        self.likelihood = likelihood
        self.shape = self.latent.mean.shape[:-1]  # (*b, q)
        self.latents = likelihood.num_latents
        self.num_classes: int | None = getattr(likelihood, "num_classes", None)

    @property
    def device(self) -> torch.device:
        """Device of the latent posterior."""
        return self.latent.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the latent posterior."""
        return self.latent.dtype

    @property
    def base_sample_shape(self) -> torch.Size:
        """Standard normal numbers that a sample takes: C for the latent values and one for the observation."""
        return torch.Size([*self.shape, self.latents + 1])

    @property
    def batch_range(self) -> tuple[int, int]:
        """The t-batch dimensions of a base sample."""
        return (0, -2)

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:  # noqa: B008
        return torch.Size([*sample_shape, *self.shape, self.num_classes or 1])

    @property
    def predictive(self) -> Distribution:
        """The predictive distribution of every row, ``b q`` of them."""
        mean, covariance = latent_marginals(self.latent.distribution, self.latents)
        return self.likelihood.predictive(
            mean.reshape(-1, self.latents), covariance.reshape(-1, self.latents, self.latents)
        )

    @property
    def mean(self) -> Tensor:
        """Expected observation ``(*b, q, m)``; for classes their probabilities."""
        predictive: Any = self.predictive
        values = predictive.probs if self.num_classes else predictive.mean
        return values.reshape(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        """Variance of the observation ``(*b, q, m)``."""
        if self.num_classes:
            return self.mean * (1.0 - self.mean)
        return self.predictive.variance.reshape(self._extended_shape())

    def rsample(self, sample_shape: torch.Size | None = None) -> Tensor:
        """Samples ``sample_shape x (*b, q, m)``; they have no derivative."""
        shape = torch.Size([1]) if sample_shape is None else sample_shape
        base = torch.randn(*shape, *self.base_sample_shape, dtype=self.dtype, device=self.device)
        return self.rsample_from_base_samples(shape, base)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        """Samples that are a function of standard normal numbers, for acquisition functions that keep them.

        Args:
            sample_shape: Shape of the samples.
            base_samples: ``sample_shape x base_sample_shape``.
        """
        with torch.no_grad():
            base = base_samples[..., :-1]
            base = base.squeeze(-1) if self.latents == 1 else base
            latent = self.latent.rsample_from_base_samples(sample_shape, base.contiguous())
            conditional = self.likelihood(latent.squeeze(-1) if self.latents == 1 else latent)
            drawn = _draw(conditional, base_samples[..., -1].to(latent))
            if self.num_classes:
                return torch.nn.functional.one_hot(drawn.long(), self.num_classes).to(latent)
            return drawn.to(latent).unsqueeze(-1)


def _draw(conditional: Distribution, base: Tensor) -> Tensor:
    """One observation per latent value, by the inverse of the distribution function where there is one."""
    uniform = torch.special.ndtr(base)
    if isinstance(conditional, Bernoulli):
        return (uniform > 1.0 - conditional.probs).to(base)
    if isinstance(conditional, Categorical):
        probs: Tensor = conditional.probs
        return (probs.cumsum(-1)[..., :-1] < uniform.unsqueeze(-1)).sum(-1)
    try:
        return conditional.icdf(uniform.clamp(1e-6, 1.0 - 1e-6))
    except NotImplementedError:  # equal base samples give equal observations all the same
        with torch.random.fork_rng(devices=[base.device] if base.is_cuda else []):
            torch.manual_seed(int(base.double().abs().sum().remainder(1.0) * 2**31))
            return conditional.sample()


@GetSampler.register(ResponsePosterior)
def _normal_sampler(
    posterior: ResponsePosterior, sample_shape: torch.Size, *, seed: int | None = None
) -> NormalMCSampler:
    wanted = posterior.base_sample_shape[posterior.batch_range[1] :].numel()
    sampler = SobolQMCNormalSampler if wanted <= SobolEngine.MAXDIM else IIDNormalSampler
    return sampler(sample_shape=sample_shape, seed=seed)
