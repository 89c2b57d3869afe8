"""What hyperparameter learning maximises."""

from itergp.objectives.deadline import NEVER, Deadline, OutOfTimeError
from itergp.objectives.elbo import ComputationAwareELBO
from itergp.objectives.laplace_evidence import LaplaceEvidence
from itergp.objectives.predictive_log_density import PredictiveLogDensity

__all__ = ["NEVER", "ComputationAwareELBO", "Deadline", "LaplaceEvidence", "OutOfTimeError", "PredictiveLogDensity"]
