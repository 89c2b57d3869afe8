"""Output scales for predictions that integrate over the posterior, where those of its mode were learned."""

from __future__ import annotations

import contextlib
import math

import torch
from gpytorch.kernels import AdditiveKernel, Kernel, ProductKernel, ScaleKernel
from torch import Tensor

from itergp.errors import SolverError
from itergp.learning.held_out import learning_split
from itergp.learning.predictives import Candidates, marginals, standard_error
from itergp.models import NonConjugateGP
from itergp.objectives import NEVER, Deadline, OutOfTimeError
from itergp.solvers import APPROXIMATIONS

_STEP, _LARGEST = 3.0, 243.0  # of factors
_LEAD = 2.0  # standard errors by which a factor must be better than the one before
_MOST_TO_LEARN, _MOST_TO_JUDGE = 2000, 2000


def raise_output_scales(model: NonConjugateGP, *, seed: int = 0, deadline: Deadline = NEVER) -> float:
    """Multiplies learned output scales by 3, 9, 27, ... as far as held-out rows prefer the variational posterior that follows.

    The density at a mode pays for every function that is too sure of itself, and asks for a small prior variance. A prediction
    that integrates over the posterior is less sure where the data say little, and can afford a larger one, which lets it follow
    the data where they say much. Conditions on up to 2,000 rows and judges by as many others; a factor is raised while the best
    of its exponents is better by more than two standard errors.

    Args:
        model: The model, of one latent function.
        seed: Of the rows that are held out.
        deadline: When to give up, with the best factor so far.

    Returns:
        The factor; one where there is no output scale that was learned, without a prior of the user's.

    Raises:
        OutOfTimeError: If the deadline is past before there is anything to compare.
    """
    with torch.no_grad():
        scales = _learned_scales(model.prior_at().kernel)
        if not scales:
            return 1.0
        rows = learning_split(model.observations, most_to_learn=_MOST_TO_LEARN, most_to_judge=_MOST_TO_JUDGE, seed=seed)
        try:
            best = _best_density(model, *rows, APPROXIMATIONS, deadline)
        except SolverError:
            return 1.0
        given, factor = [kernel.outputscale.clone() for kernel in scales], 1.0
        try:
            with contextlib.suppress(SolverError, OutOfTimeError):
                while factor < _LARGEST:
                    _multiply(scales, given, _STEP * factor)
                    density = _best_density(model, *rows, ("variational",), deadline)
                    gain = density - best
                    if not float(gain.mean()) > _LEAD * standard_error(gain):
                        break
                    factor, best = _STEP * factor, density
        finally:
            _multiply(scales, given, factor)
    return factor


def _best_density(
    model: NonConjugateGP, train: Tensor, held_out: Tensor, approximations: tuple[str, ...], deadline: Deadline
) -> Tensor:
    """Log-densities of held-out rows ``(M,)`` by the best of the candidates, the plugged-in mean aside."""
    moments = marginals(model, model.prior_at(), train, held_out, approximations, deadline)
    densities = Candidates.of(model.observations.take(held_out), moments).densities
    return max((value for key, value in densities.items() if key[1] < math.inf), key=lambda value: float(value.mean()))


def _learned_scales(kernel: Kernel) -> list[ScaleKernel]:
    """Output scales that were learned without a prior of the user's: of every term of a sum, and of one factor of a product."""
    if isinstance(kernel, AdditiveKernel):
        return [scale for term in kernel.kernels for scale in _learned_scales(term)]
    if isinstance(kernel, ProductKernel):
        return next((scales for factor in kernel.kernels if (scales := _learned_scales(factor))), [])
    if not isinstance(kernel, ScaleKernel):
        return []
    free = kernel.raw_outputscale.requires_grad and getattr(kernel, "outputscale_prior", None) is None
    return [kernel] if free and kernel.raw_outputscale_constraint.upper_bound.isinf().all() else []


def _multiply(scales: list[ScaleKernel], given: list[Tensor], factor: float) -> None:
    for kernel, value in zip(scales, given, strict=True):
        kernel.outputscale = factor * value
