"""Names of likelihoods of real values, counts and times, and the likelihoods they stand for: to add one, add a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from itergp.errors import InputError
from itergp.likelihoods import (
    BetaLikelihood,
    BinomialLikelihood,
    CensoredLogNormalLikelihood,
    ExponentialLikelihood,
    GammaLikelihood,
    GaussianLikelihood,
    HeteroscedasticGaussianLikelihood,
    LaplaceLikelihood,
    LogLogisticLikelihood,
    LogNormalLikelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
    WeibullLikelihood,
    ZeroInflatedPoissonLikelihood,
)

_NOT_COMPETING = ("laplace", "exponential")  # nearly a Student t distribution; a Weibull distribution
NOISE = 0.1  # variance of the noise of standardised targets, to begin with


class _Rates:
    """Takes rates besides counts: the formulas hold for numbers that are not whole, and the estimator has checked them."""

    def validate_targets(self, targets: Tensor) -> Tensor:
        """Targets as they are."""
        return targets


class RatePoisson(_Rates, PoissonLikelihood):
    """Poisson counts, or rates whose weights are exposures."""


class RateNegativeBinomial(_Rates, NegativeBinomialLikelihood):
    """Overdispersed counts, or rates."""


class RateZeroInflatedPoisson(_Rates, ZeroInflatedPoissonLikelihood):
    """Counts with more zeros than a Poisson distribution has, or rates."""


# name -> likelihood of standardised targets
NOISES: dict[str, Callable[[], Any]] = {
    "gaussian": partial(GaussianLikelihood, noise=NOISE),
    "student_t": partial(StudentTLikelihood, noise=NOISE),
    "laplace": partial(LaplaceLikelihood, noise=NOISE),
    "heteroscedastic": HeteroscedasticGaussianLikelihood,
}

# name -> likelihood of positive targets of deviation 1
POSITIVES: dict[str, Callable[[], Any]] = {
    "log_normal": partial(LogNormalLikelihood, noise=NOISE),
    "gamma": partial(GammaLikelihood, shape=1.0),
}

# name -> likelihood of shares, and of successes among trials
SHARES: dict[str, Callable[[], Any]] = {
    "beta": partial(BetaLikelihood, precision=10.0),
    "binomial": BinomialLikelihood,
}

# name -> likelihood of counts
COUNTS: dict[str, Callable[[], Any]] = {
    "poisson": RatePoisson,
    "negative_binomial": RateNegativeBinomial,
    "zero_inflated_poisson": partial(RateZeroInflatedPoisson, inflation=0.1),
}

# name -> likelihood of times, some censored
TIMES: dict[str, Callable[[], Any]] = {
    "weibull": partial(WeibullLikelihood, shape=1.0),
    "log_logistic": partial(LogLogisticLikelihood, shape=1.0),
    "log_normal": partial(CensoredLogNormalLikelihood, noise=1.0),
    "exponential": ExponentialLikelihood,
}


def competing(table: Mapping[str, Callable[[], Any]], name: Any, argument: str) -> dict[str, Callable[[], Any]]:
    """Likelihoods that compete: that of a name, or of ``"auto"`` all that are no special case of a simpler one.

    Raises:
        InputError: If there is none of that name.
    """
    if name == "auto":
        return {key: make for key, make in table.items() if key not in _NOT_COMPETING}
    choose(table, name, argument)
    return {name: table[name]}


def choose(table: Mapping[str, Callable[[], Any]], name: Any, argument: str) -> Any:
    """A new likelihood by name.

    Raises:
        InputError: If there is none of that name.
    """
    if not isinstance(name, str) or name not in table:
        raise InputError(
            f"`{argument}` must be one of {', '.join(map(repr, ('auto', *table)))}. Got {name!r}. Choose one of these."
        )
    return table[name]()
