"""Real values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gpytorch
import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin

from itergp.likelihoods import Likelihood
from itergp.sklearn.base import Array, GPEstimator
from itergp.sklearn.checks import as_real
from itergp.sklearn.model import as_numpy, constant_mean
from itergp.sklearn.noise import NOISE, NOISES, choose
from itergp.sklearn.scaling import Scaling

QUANTILES = (0.05, 0.5, 0.95)


class BaseRegressor(RegressorMixin, GPEstimator):
    """What regressors share: means, standard deviations and quantiles of observations in their own units."""

    def _restore(self, values: Array) -> Array:
        """Observations in the units of the data."""
        return values

    def _unit(self) -> float:
        """One unit of the model in units of the data."""
        return 1.0

    def predict(self, X: Any, return_std: bool = False) -> Array | tuple[Array, Array]:
        """Mean of the observation at every row ``(M,)``.

        Args:
            X: Inputs ``(M, D)``.
            return_std: Also return the standard deviation of the observation, noise included.

        Returns:
            Means ``(M,)``, or means and standard deviations.
        """
        return self._mean(X, return_std)

    def _mean(self, X: Any, return_std: bool, **observation: Any) -> Array | tuple[Array, Array]:
        def moments(predictive: Any) -> Array:
            wanted = [predictive.mean, predictive.variance] if return_std else [predictive.mean]
            return np.stack([as_numpy(moment) for moment in wanted], -1)

        found = self._predicted(X, moments, **observation)
        mean = self._restore(found[:, 0])
        return (mean, np.sqrt(found[:, 1]) * self._unit()) if return_std else mean

    def predict_quantiles(self, X: Any, quantiles: Sequence[float] = QUANTILES) -> Array:
        """Quantiles of the observation.

        Args:
            X: Inputs ``(M, D)``.
            quantiles: Q levels between 0 and 1; default 0.05, 0.5 and 0.95, a median and a 90 % interval.

        Returns:
            ``(M, Q)``.
        """
        return self._quantiles(X, quantiles)

    def _quantiles(self, X: Any, quantiles: Sequence[float], **observation: Any) -> Array:
        levels = [float(level) for level in quantiles]

        def read(predictive: Any) -> Array:
            return np.stack([as_numpy(predictive.quantile(level)) for level in levels], -1)

        return self._restore(self._predicted(X, read, **observation))

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Learns hyperparameters, then finds the posterior of all rows.

        Args:
            X: Inputs ``(N, D)``, an array or a data frame of numbers.
            y: Targets ``(N,)``.
            sample_weight: Weights ``(N,)`` of the rows' log-densities; a weight of 2 is a row twice.

        Returns:
            The estimator.
        """
        return self._fit(X, y, sample_weight)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Adds rows: hyperparameters stay, and the posterior of all rows is found starting from the present one.

        The first call is ``fit``. Hyperparameters that were learned from fewer than 20 rows are learned again when
        these have doubled.

        Args:
            X: New rows ``(M, D)``.
            y: Their targets ``(M,)``.
            sample_weight: Weights ``(M,)``.

        Returns:
            The estimator.
        """
        if self.__sklearn_is_fitted__():
            return self._append(X, y, sample_weight)
        return self._fit(X, y, sample_weight)


class GPRegressor(BaseRegressor):
    """Gaussian process regression with Gaussian noise, or with noise that outliers do not upset.

    Columns and targets are standardised, and lengthscales, output scale, mean and noise are learned unless you say otherwise.
    Everything is reported in the units of the targets.

    Args:
        noise: ``"gaussian"``; ``"student_t"`` or ``"laplace"`` where some targets may be far off; ``"heteroscedastic"`` where
            the noise varies with the inputs.
        kernel: ``"matern32"`` (default), ``"matern12"``, ``"matern52"``, ``"rbf"``, ``"rational_quadratic"``, ``"linear"``; a
            GPyTorch kernel, which is copied; or a kernel of scikit-learn, which is translated.
        ard: One lengthscale per column, for kernels by name. None: for up to 100 columns.
        standardize: Bring columns to mean 0 and deviation 1; constant ones become zero. Those that a GPyTorch kernel
            reads in their own units stay: category numbers, a period that was set, a grid, inducing points.
        normalize_y: Bring targets to mean 0 and deviation 1.
        approximation: ``"variational"`` or ``"laplace"``; the same for Gaussian noise.
        optimizer: ``"adam"``, ``"lbfgs"``, or None to keep hyperparameters at what the kernel says.
        max_iterations: Steps of the optimiser.
        fit_options: Further keywords of ``itergp.fit``.
        solver: How the posterior is found; default ``itergp.solvers.SubspaceNewton()``, and beyond 100,000 rows
            ``LinearTimeNewton()``.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: ``"float32"``, ``"float64"``, or ``"auto"``: float64 up to 2,000 rows.
        random_state: Seed of the optimiser's random splits; equal seeds give equal results.
        verbose: Show progress.

    Attributes:
        n_features_in_: Number of columns.
        feature_names_in_: Their names, if ``X`` was a data frame.
        model_: The ``NonConjugateGP``, for everything else; its targets are standardised.
        result_: The ``FitResult``; None with ``optimizer=None``.
        kernel_: The kernel as learned.
        kernel_passes_: Products with the kernel matrix that conditioning took, over ``fit`` and every ``partial_fit``.
        log_marginal_likelihood_value_: With Gaussian noise the log marginal likelihood; otherwise the evidence lower bound
            (ELBO), or with ``approximation="laplace"`` the Laplace estimate. In nats, for all rows, in the targets' units.

    Raises:
        InputError: If data or arguments cannot be used.

    Examples:
        >>> import numpy as np
        >>> X = np.linspace(0.0, 6.0, 60)[:, None]
        >>> regressor = GPRegressor(max_iterations=10).fit(X, 100.0 + 10.0 * np.sin(X[:, 0]))
        >>> mean, std = regressor.predict([[1.5]], return_std=True)
        >>> bool(abs(mean[0] - 110.0) < 1.0)
        True
    """

    def __init__(
        self,
        noise: str = "gaussian",
        *,
        kernel: Any = None,
        ard: bool | None = None,
        standardize: bool = True,
        normalize_y: bool = True,
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
        self.noise = noise
        self.kernel = kernel
        self.ard = ard
        self.standardize = standardize
        self.normalize_y = normalize_y
        self.approximation = approximation
        self.optimizer = optimizer
        self.max_iterations = max_iterations
        self.fit_options = fit_options
        self.solver = solver
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose

    def _encode(self, y: NDArray[Any], *, first: bool) -> Array:
        return as_real(y)

    def _learn_targets(self, y: Array, weights: Array) -> None:
        column = y[:, None]
        self._target_scaling = Scaling.learn(column, weights) if self.normalize_y else Scaling.nothing(column)

    def _model_targets(self, y: Array) -> Array:
        return self._target_scaling.transform(y[:, None])[:, 0]

    def _data_targets(self, y: Array) -> Array:
        return self._restore(y)

    def _restore(self, values: Array) -> Array:
        return self._target_scaling.restore(values[..., None])[..., 0]

    def _unit(self) -> float:
        return float(self._target_scaling.scale[0])

    def _scalings(self) -> dict[str, Scaling]:
        return super()._scalings() | {"targets": self._target_scaling}

    def _make_likelihood(self) -> Likelihood:
        return choose(NOISES, self.noise, "noise")

    def _make_mean(self, y: Array, weights: Array) -> gpytorch.means.Mean:
        return constant_mean(0.0, math.log(NOISE)) if self.noise == "heteroscedastic" else constant_mean(0.0)

    def _num_kernels(self) -> int:
        return 2 if self.noise == "heteroscedastic" else 1

    def _conclude(self, *, first: bool) -> None:
        super()._conclude(first=first)
        weight = self.model_.observations.total_weight
        self.log_marginal_likelihood_value_ -= weight * float(np.log(self._unit()))  # densities in the targets' units

    def latent_mean_and_variance(self, X: Any) -> tuple[Array, Array]:
        """Posterior mean and variance of the function without noise, in the units of the targets.

        Args:
            X: Inputs ``(M, D)``.

        Returns:
            Two arrays ``(M,)``; with heteroscedastic noise ``(M, 2)``, of the function and of the logarithm of the noise's
            variance.
        """
        mean, variance = super().latent_mean_and_variance(X)
        if mean.ndim == 1:
            return self._restore(mean), variance * self._unit() ** 2
        log_noise = mean[:, 1] + 2.0 * math.log(self._unit())
        scaled = np.stack([variance[:, 0] * self._unit() ** 2, variance[:, 1]], -1)
        return np.stack([self._restore(mean[:, 0]), log_noise], -1), scaled
