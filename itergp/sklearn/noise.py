"""Names of noises and count distributions, and the likelihoods they stand for: to add one, add a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gpytorch.likelihoods as gl
from torch import Tensor

from itergp.errors import InputError
from itergp.likelihoods import GaussianLikelihood, PoissonLikelihood

_NOISE = 0.1  # of standardised targets, to begin with


def _with_noise(make: Callable[[], Any]) -> Any:
    likelihood = make()
    likelihood.noise = _NOISE
    return likelihood


class RateLikelihood(PoissonLikelihood):
    """Poisson counts, or rates: non-negative numbers, whole or not, whose weights are then exposures."""

    def validate_targets(self, targets: Tensor) -> Tensor:
        """The estimator has checked them."""
        return targets


# name -> likelihood of standardised targets
NOISES: dict[str, Callable[[], Any]] = {
    "gaussian": partial(GaussianLikelihood, noise=_NOISE),
    "student_t": partial(_with_noise, gl.StudentTLikelihood),
}

# name -> likelihood of counts
COUNTS: dict[str, Callable[[], Any]] = {
    "poisson": RateLikelihood,
}


def choose(table: Mapping[str, Callable[[], Any]], name: Any, argument: str) -> Any:
    """A new likelihood by name.

    Raises:
        InputError: If there is none of that name.
    """
    if not isinstance(name, str) or name not in table:
        raise InputError(
            f"`{argument}` must be one of {', '.join(map(repr, table))}. Got {name!r}. Choose one of these."
        )
    return table[name]()
