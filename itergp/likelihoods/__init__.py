"""What the data say about the latent functions: log-density, gradient, curvature and predictive distribution."""

from itergp.likelihoods.base import Likelihood, latent_marginals
from itergp.likelihoods.bernoulli import BernoulliLikelihood
from itergp.likelihoods.categorical import CategoricalLikelihood
from itergp.likelihoods.gaussian import GaussianLikelihood
from itergp.likelihoods.gpytorch_adapter import AutomaticLikelihood, as_likelihood
from itergp.likelihoods.observations import Observations
from itergp.likelihoods.poisson import PoissonLikelihood
from itergp.likelihoods.sites import LaplaceSite, Site, VariationalSite

__all__ = [
    "AutomaticLikelihood",
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "GaussianLikelihood",
    "LaplaceSite",
    "Likelihood",
    "Observations",
    "PoissonLikelihood",
    "Site",
    "VariationalSite",
    "as_likelihood",
    "latent_marginals",
]
