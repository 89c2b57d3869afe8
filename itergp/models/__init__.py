"""What a user subclasses: GPyTorch-compatible models, and their posterior at any input."""

from itergp.models.gp import GP
from itergp.models.input_transforms import InputTransform, QuantileTransform, Standardize
from itergp.models.latent import LatentPosterior
from itergp.models.leaf_gp import LeafGP
from itergp.models.network_gp import NetworkGP
from itergp.models.nonconjugate_gp import NonConjugateGP
from itergp.models.planning import LeafPlan, Plan
from itergp.models.uncertainty import UncertaintyDecomposition
from itergp.posterior.weights import WeightPosterior

__all__ = [
    "GP",
    "InputTransform",
    "LatentPosterior",
    "LeafGP",
    "LeafPlan",
    "NetworkGP",
    "NonConjugateGP",
    "Plan",
    "QuantileTransform",
    "Standardize",
    "UncertaintyDecomposition",
    "WeightPosterior",
]
