"""Which predictive distribution held-out rows prefer: Laplace or variational, and at which covariance scale."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from itergp.diagnostics.metrics import Reliability, class_probabilities, reliability
from itergp.likelihoods import Observations
from itergp.models import LatentPosterior, NonConjugateGP
from itergp.operators import Prior, make_operator
from itergp.solvers import APPROXIMATIONS, solve

POSTERIOR = ("variational", 1.0)
PLUG_IN = ("laplace", 0.0)
SCALES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
_FOLDS = 4
_FEW_ROWS = 1000  # up to here every row is held out once


@dataclass(frozen=True)
class Calibration:
    """The predictive distribution that was chosen on held-out rows, and what it was chosen from.

    Attributes:
        approximation: ``"laplace"`` or ``"variational"``.
        covariance_scale: Between 0 (plug-in) and 1 (the posterior itself).
        log_densities: Mean held-out log-density by approximation and covariance scale.
        standard_error: Of the difference of means between the choice and the predictive distribution that hyperparameters
            were tuned for; 0 if that was chosen.
        num_held_out: Rows that were held out.
        reliability: Of the chosen class probabilities on those rows, with the expected calibration error; None for
            likelihoods without classes.
    """

    approximation: str
    covariance_scale: float
    log_densities: dict[tuple[str, float], float] = field(repr=False)
    standard_error: float
    num_held_out: int
    reliability: Reliability | None = field(repr=False)

    @property
    def expected_calibration_error(self) -> float | None:
        """Of the chosen class probabilities on the held-out rows; None for likelihoods without classes."""
        return None if self.reliability is None else self.reliability.expected_calibration_error


def calibrate_predictions(
    model: NonConjugateGP, *, num_rows: int, reference: tuple[str, float] = POSTERIOR, seed: int = 0
) -> Calibration:
    """Compares predictive distributions on rows that were held out of the posterior, at the model's hyperparameters.

    A quarter of the rows drawn is held out once, or, of few rows, each quarter in turn. The reference is given up only for a
    candidate that is better by more than one standard error of the difference.

    Args:
        model: The model.
        num_rows: Rows to draw.
        reference: Approximation and covariance scale to prefer: those that hyperparameters were tuned for.
        seed: Of the draw.
    """
    observations = model.observations
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(observations.num_rows, generator=generator).to(observations.targets.device)
    if observations.sample_weight is not None:
        order = order[observations.sample_weight[order] > 0]
    folds = order[:num_rows].tensor_split(min(_FOLDS, order.numel()))
    turns = range(len(folds)) if min(num_rows, order.numel()) <= _FEW_ROWS else range(1)
    with torch.no_grad():
        prior = model._prior(model.train_inputs)
        latents = [_latents(model, prior, torch.cat([*folds[:k], *folds[k + 1 :]]), folds[k]) for k in turns]
        held_out = observations.take(torch.cat([folds[k] for k in turns]))
        densities = {}
        for approximation in APPROXIMATIONS:
            mean = torch.cat([part[approximation][0] for part in latents])
            covariance = torch.cat([part[approximation][1] for part in latents])
            for scale in SCALES:
                densities[approximation, scale] = held_out.predictive_log_density(mean, scale * covariance)
        means = {key: float(value.double().mean()) for key, value in densities.items()}
        best = max(means, key=lambda key: means[key] if math.isfinite(means[key]) else -math.inf)
        difference = (densities[best] - densities[reference]).double()
        error = float(difference.std(correction=0) / math.sqrt(len(difference)))
        if float(difference.mean()) <= error:
            best, error = reference, 0.0
        mean, covariance = (torch.cat([part[best[0]][i] for part in latents]) for i in range(2))
        curve = _reliability(held_out, mean, best[1] * covariance)
    return Calibration(*best, means, error, held_out.num_rows, curve)


def _latents(model: NonConjugateGP, prior: Prior, train: Tensor, held_out: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Latent means and covariances of held-out rows by approximation."""
    part, validation = prior.take(train), prior.take(held_out)
    operator = make_operator(
        prior.kernel,
        part.features,
        num_kernels=prior.num_kernels,
        kind=model.operator_kind,
        memory_budget=model.memory_budget,
    )
    seen = model.observations.take(train)
    results = {}
    solution = None
    for approximation in sorted(APPROXIMATIONS):  # the Laplace mode is where the variational solve starts
        solution = solve(operator, part.mean, seen, model.solver, approximation=approximation, warm_start=solution)
        latent = LatentPosterior.at(validation, operator, solution)
        results[approximation] = latent.mean, latent.row_covariance()
    return results


def _reliability(observations: Observations, mean: Tensor, covariance: Tensor) -> Reliability | None:
    probs = getattr(observations.likelihood.predictive(mean, covariance), "probs", None)
    if not torch.is_tensor(probs):
        return None
    return reliability(class_probabilities(probs), observations.targets.long())
