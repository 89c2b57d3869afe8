"""What the data say about the latent functions: log-density, gradient, curvature and predictive distribution."""

from itergp.likelihoods.base import Likelihood, latent_marginals
from itergp.likelihoods.bernoulli import BernoulliLikelihood
from itergp.likelihoods.beta import BetaLikelihood
from itergp.likelihoods.binomial import BinomialLikelihood
from itergp.likelihoods.categorical import CategoricalLikelihood
from itergp.likelihoods.counts import NegativeBinomialLikelihood, ZeroInflatedPoissonLikelihood
from itergp.likelihoods.gaussian import GaussianLikelihood
from itergp.likelihoods.gpytorch_adapter import AutomaticLikelihood, as_likelihood
from itergp.likelihoods.heteroscedastic import HeteroscedasticGaussianLikelihood
from itergp.likelihoods.observations import Observations
from itergp.likelihoods.ordinal import OrdinalLikelihood
from itergp.likelihoods.outputs import IndependentOutputsLikelihood
from itergp.likelihoods.parameters import ConstrainedParameter
from itergp.likelihoods.poisson import PoissonLikelihood
from itergp.likelihoods.positive import GammaLikelihood, LogNormalLikelihood
from itergp.likelihoods.robust import LaplaceLikelihood, StudentTLikelihood
from itergp.likelihoods.single_latent import SingleLatentLikelihood
from itergp.likelihoods.sites import LaplaceSite, Site, VariationalSite
from itergp.likelihoods.survival import (
    CensoredLogNormalLikelihood,
    ExponentialLikelihood,
    LogLogisticLikelihood,
    WeibullLikelihood,
)
from itergp.likelihoods.targets import as_floats, check_targets, require_counts

__all__ = [
    "AutomaticLikelihood",
    "BernoulliLikelihood",
    "BetaLikelihood",
    "BinomialLikelihood",
    "CategoricalLikelihood",
    "CensoredLogNormalLikelihood",
    "ConstrainedParameter",
    "ExponentialLikelihood",
    "GammaLikelihood",
    "GaussianLikelihood",
    "HeteroscedasticGaussianLikelihood",
    "IndependentOutputsLikelihood",
    "LaplaceLikelihood",
    "LaplaceSite",
    "Likelihood",
    "LogLogisticLikelihood",
    "LogNormalLikelihood",
    "NegativeBinomialLikelihood",
    "Observations",
    "OrdinalLikelihood",
    "PoissonLikelihood",
    "SingleLatentLikelihood",
    "Site",
    "StudentTLikelihood",
    "VariationalSite",
    "WeibullLikelihood",
    "ZeroInflatedPoissonLikelihood",
    "as_floats",
    "as_likelihood",
    "check_targets",
    "latent_marginals",
    "require_counts",
]
