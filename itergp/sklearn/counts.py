"""Counts."""

from __future__ import annotations

from typing import Any

import gpytorch
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import d2_tweedie_score

from itergp.errors import InputError
from itergp.likelihoods import Likelihood
from itergp.sklearn.base import Array
from itergp.sklearn.checks import as_real
from itergp.sklearn.model import constant_mean
from itergp.sklearn.noise import COUNTS, choose
from itergp.sklearn.regressors import BaseRegressor

_LARGEST_COUNT = 1e12


class GPCountRegressor(BaseRegressor):
    """Gaussian process for counts: events per row, with a rate that depends smoothly on the inputs.

    Rates too: targets need not be whole. As with scikit-learn's ``PoissonRegressor``, events with different exposures are
    targets ``events / exposure`` with ``sample_weight=exposure``.

    Args:
        distribution: ``"poisson"``; ``"negative_binomial"`` where counts vary more than that; ``"zero_inflated_poisson"``
            where there are too many zeros.
        kernel: ``"matern32"`` (default), ``"matern12"``, ``"matern52"``, ``"rbf"``, ``"rational_quadratic"``, ``"linear"``; a
            GPyTorch kernel, which is copied; or a kernel of scikit-learn, which is translated.
        ard: One lengthscale per column, for kernels by name. None: for up to 100 columns.
        standardize: Bring columns to mean 0 and deviation 1; constant ones become zero.
        approximation: ``"variational"`` or ``"laplace"``.
        optimizer: ``"adam"``, ``"lbfgs"``, or None to keep hyperparameters at what the kernel says.
        max_iterations: Steps of the optimiser.
        fit_options: Further keywords of ``itergp.fit``.
        solver: How the posterior is found; default ``itergp.solvers.SubspaceNewton()``.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: ``"float32"``, ``"float64"``, or ``"auto"``: float64 up to 2,000 rows.
        random_state: Seed of the optimiser's random splits; equal seeds give equal results.
        verbose: Show progress.

    Attributes:
        n_features_in_: Number of columns.
        feature_names_in_: Their names, if ``X`` was a data frame.
        model_: The ``NonConjugateGP``, for everything else; its latent function is the logarithm of the rate.
        result_: The ``FitResult``; None with ``optimizer=None``.
        kernel_: The kernel as learned.
        kernel_passes_: Products with the kernel matrix that conditioning took, over ``fit`` and every ``partial_fit``.
        log_marginal_likelihood_value_: The evidence lower bound (ELBO), or with ``approximation="laplace"`` the Laplace
            estimate of the log marginal likelihood, in nats, for all rows.

    Raises:
        InputError: If data or arguments cannot be used.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = np.linspace(0.0, 6.0, 100)[:, None]
        >>> regressor = GPCountRegressor(max_iterations=10).fit(X, rng.poisson(10.0 + 5.0 * np.sin(X[:, 0])))
        >>> regressor.predict_quantiles([[1.5]]).shape
        (1, 3)
    """

    def __init__(
        self,
        distribution: str = "poisson",
        *,
        kernel: Any = None,
        ard: bool | None = None,
        standardize: bool = True,
        approximation: str = "variational",
        optimizer: str | None = "adam",
        max_iterations: int = 50,
        fit_options: dict[str, Any] | None = None,
        solver: Any = None,
        device: Any = None,
        dtype: str = "auto",
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.distribution = distribution
        self.kernel = kernel
        self.ard = ard
        self.standardize = standardize
        self.approximation = approximation
        self.optimizer = optimizer
        self.max_iterations = max_iterations
        self.fit_options = fit_options
        self.solver = solver
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        """Targets are not negative."""
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        return tags

    def _encode(self, y: NDArray[Any], *, first: bool) -> Array:
        if y.dtype.kind == "b":
            raise InputError(
                "`y` must be counts. Got booleans. Use GPClassifier, or pass y.astype(int) if they are counts."
            )
        counts = as_real(y)
        if (counts < 0.0).any():
            raise InputError(
                f"`y` must be counts, 0 or more. Got {counts.min():g}. Check the column, or use GPRegressor."
            )
        if (counts > _LARGEST_COUNT).any():
            raise InputError(
                f"`y` must be counts up to {_LARGEST_COUNT:g}. Got {counts.max():.3g}. Count in larger units, or use "
                "GPRegressor on their logarithms."
            )
        return counts

    def _make_likelihood(self) -> Likelihood:
        return choose(COUNTS, self.distribution, "distribution")

    def _make_mean(self, y: Array, weights: Array) -> gpytorch.means.Mean:
        return constant_mean(float(np.log(max(np.average(y, weights=weights), 1e-3))))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of the Poisson deviance explained (D^2), 1 at best, 0 for a constant rate."""
        return float(d2_tweedie_score(y, self.predict(X), sample_weight=sample_weight, power=1))
