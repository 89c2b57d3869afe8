"""Output scales for predictions that integrate over the posterior, where those of its mode were learned."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from gpytorch.kernels import AdditiveKernel, Kernel, ProductKernel, ScaleKernel
from torch import Tensor

from itergp.errors import SolverError
from itergp.learning.predictives import Candidates, best_density, standard_error
from itergp.models import NonConjugateGP
from itergp.objectives import OutOfTimeError

_STEP, _LARGEST = 3.0, 243.0  # of factors
_LEAD = 2.0  # standard errors by which a factor must be better than the one before


def raise_output_scales(
    model: NonConjugateGP, learned: list[Candidates], compare: Callable[[int], Candidates]
) -> list[Candidates]:
    """Multiplies learned output scales by 3, 9, 27, ... as far as held-out rows prefer the variational posterior that follows.

    The density at a mode pays for every function that is too sure of itself, and asks for a small prior variance. A prediction
    that integrates over the posterior is less sure where the data say little, and can afford a larger one, which lets it follow
    the data where they say much. A factor is raised while the best exponent is better by more than two standard errors; it is
    given up as soon as the splits so far say that it is no better.

    Args:
        model: The model, of one latent function.
        learned: What is known of the held-out rows of each split at the output scales that were learned.
        compare: A function of a split's number: what is known of its held-out rows by the variational posterior at the model's
            present output scales. Its ``SolverError`` or ``OutOfTimeError`` ends this with what was gained.

    Returns:
        What is known of them at the output scales that the model has then; ``learned`` itself where these stay: where no other
        is better, and where none was learned without a prior of the user's.
    """
    with torch.no_grad():
        scales = _learned_scales(model.prior_at().kernel)
        given, factor, best = [kernel.outputscale.clone() for kernel in scales], 1.0, learned
        try:
            with contextlib.suppress(SolverError, OutOfTimeError):
                while scales and factor < _LARGEST:
                    _multiply(scales, given, _STEP * factor)
                    raised = _better(best, compare)
                    if raised is None:
                        break
                    factor, best = _STEP * factor, raised
        finally:
            _multiply(scales, given, factor)
    return best


def _better(best: list[Candidates], compare: Callable[[int], Candidates]) -> list[Candidates] | None:
    """What is known of all splits at other scales, if it is clearly better than what was best."""
    raised: list[Candidates] = []
    for number in range(len(best)):
        raised.append(compare(number))
        gain = best_density(raised) - best_density(best[: number + 1])
        if not float(gain.mean()) > 0.0:
            return None
    return raised if float(gain.mean()) > _LEAD * standard_error(gain) else None


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
