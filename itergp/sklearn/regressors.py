"""Real values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import gpytorch
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.gaussian_process import kernels
from sklearn.utils import check_random_state
from torch import Tensor

from itergp.errors import InputError
from itergp.likelihoods import Likelihood
from itergp.likelihoods.parameters import SMALLEST_NOISE
from itergp.models import GP
from itergp.sklearn.base import Array, GPEstimator
from itergp.sklearn.checks import as_real
from itergp.sklearn.kernels import without_noise
from itergp.sklearn.model import as_numpy, constant_mean
from itergp.sklearn.noise import NOISE, NOISES, competing
from itergp.sklearn.scaling import Scaling
from itergp.tables import as_target_column

_LEAST_SECOND_NOISE, _ABOVE = 1e-4, 1.01  # the bound of GPyTorch's constraint, and a factor that is inside
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
        return self._restore(self._predicted_quantiles(X, quantiles, **observation))

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Learns hyperparameters, then finds the posterior of all rows.

        Args:
            X: Inputs ``(N, D)``: a data frame, an array, or another table, see ``itergp.tables.TableEncoder``.
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
        return self._fit(X, y, sample_weight, complete=False)


class GPRegressor(BaseRegressor):
    """Gaussian process regression with Gaussian noise, or with noise that outliers do not upset.

    Columns and targets are standardised, and lengthscales, output scale, mean and noise are learned unless you say otherwise.
    Everything is reported in the units of the targets.

    Args:
        kernel: ``"auto"`` (default): several kernels, and scales of the columns, compete on held-out rows, see
            ``comparison_``; ``"matern32"``, ``"matern12"``, ``"matern52"``, ``"rbf"``, ``"laplacian"``,
            ``"rational_quadratic"``, ``"linear"``; a GPyTorch kernel, which is copied; or a kernel of scikit-learn, which is
            translated, its
            ``WhiteKernel`` to where the noise starts.
        noise: ``"auto"``: Gaussian, Student t and heteroscedastic noise compete on held-out rows where the kernel does, and
            otherwise it is Gaussian; ``"gaussian"``; ``"student_t"`` or ``"laplace"`` where some targets may be far off;
            ``"heteroscedastic"`` where the noise varies with the inputs.
        alpha: Known variance of the noise in units of the targets squared, a number or one per row; as in scikit-learn
            it is no part of predictions. With it, other noise is learned only if the kernel has a ``WhiteKernel``.
        ard: One lengthscale per column of the table, for kernels by name. None: for up to 100 columns.
        standardize: Bring columns to mean 0 and deviation 1; constant ones become zero. Those that a GPyTorch kernel
            reads in their own units stay: category numbers, a period that was set, a grid, inducing points.
        normalize_y: Bring targets to mean 0 and deviation 1.
        approximation: ``"variational"`` or ``"laplace"``; the same for Gaussian noise.
        optimizer: ``"auto"``, ``"adam"``, ``"lbfgs"``, or None to keep hyperparameters at what the kernel says.
        max_iterations: Steps of the optimiser.
        fit_options: Further keywords of ``itergp.fit``.
        solver: How the posterior is found; default ``itergp.solvers.SubspaceNewton()``, and beyond 100,000 distinct ones
            ``LinearTimeNewton()``.
        prior_mean: ``"boosting"``: what boosted trees predict (LightGBM where installed, otherwise scikit-learn's) is the prior
            mean, each row's from trees that have not seen it, with a weight that is learned and uncertain; None (default):
            a constant.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: ``"float32"``, ``"float64"``, or ``"auto"``: float64 up to 2,000 distinct rows.
        random_state: Seed of the optimiser's random splits; equal seeds give equal results.
        verbose: Show progress.
        n_restarts_optimizer: How often learning starts again from random hyperparameters; the best counts.
        copy_X_train: No effect.
        n_targets: No effect.

    Attributes:
        n_features_in_: Number of columns of the table.
        feature_names_in_: Their names, if ``X`` was a data frame.
        columns_: What became of each of them; ``encoder_`` is what encodes tables.
        model_: The ``NonConjugateGP``, for everything else; its targets are standardised.
        result_: The ``FitResult``; None with ``optimizer=None``.
        kernel_: The kernel as learned.
        comparison_: Which kernels competed and how they did, or None.
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
        kernel: Any = "auto",
        *,
        noise: str = "auto",
        alpha: Any = None,
        ard: bool | None = None,
        standardize: bool = True,
        normalize_y: bool = True,
        approximation: str = "variational",
        optimizer: str | None = "auto",
        max_iterations: int = 50,
        fit_options: dict[str, Any] | None = None,
        solver: Any = None,
        prior_mean: str | None = None,
        device: Any = None,
        dtype: str = "auto",
        random_state: Any = 0,
        verbose: bool = False,
        n_restarts_optimizer: int = 0,
        copy_X_train: bool = True,
        n_targets: int | None = None,
    ) -> None:
        self.kernel = kernel
        self.noise = noise
        self.alpha = alpha
        self.ard = ard
        self.standardize = standardize
        self.normalize_y = normalize_y
        self.approximation = approximation
        self.optimizer = optimizer
        self.max_iterations = max_iterations
        self.fit_options = fit_options
        self.solver = solver
        self.prior_mean = prior_mean
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose
        self.n_restarts_optimizer = n_restarts_optimizer
        self.copy_X_train = copy_X_train
        self.n_targets = n_targets

    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Array | tuple[Array, Array]:
        """Mean of the observation at every row ``(M,)``.

        Args:
            X: Inputs ``(M, D)``.
            return_std: Also return the standard deviation of the observation, noise included.
            return_cov: Instead, also return the covariance ``(M, M)`` of the observations, noise included.

        Returns:
            Means ``(M,)``, or means and standard deviations or covariances.

        Raises:
            InputError: If both are asked for.
        """
        if return_std and return_cov:
            raise InputError("Only one of `return_std` and `return_cov` can be True. Got both. Choose one.")
        if not return_cov:
            return self._mean(X, return_std)
        mean, std = self._mean(X, True)
        covariance = self._latent_covariance(X)
        np.fill_diagonal(covariance, std**2)
        return mean, covariance

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> Array:
        """Draws observations at some rows together, noise included; other than Gaussian noise by its first two moments.

        Args:
            X: Inputs ``(M, D)``.
            n_samples: Number of draws.
            random_state: Seed.

        Returns:
            ``(M, n_samples)``.
        """
        mean, covariance = self.predict(X, return_cov=True)
        return check_random_state(random_state).multivariate_normal(mean, covariance, n_samples).T

    def _latent_covariance(self, X: Any) -> Array:
        """Covariances of the function without noise ``(M, M)``, in units of the targets squared."""
        inputs = self._new_inputs(X)
        with torch.no_grad():
            latent = self.model_(inputs)
            dense = as_numpy(latent.lazy_covariance_matrix.to_dense())
        count = dense.shape[0] // len(inputs)  # latent functions, innermost
        return dense[::count, ::count] * self._unit() ** 2

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """As ``BaseRegressor.partial_fit``; refused with ``alpha``, which says nothing of new rows.

        Args:
            X: New rows ``(M, D)``.
            y: Their targets ``(M,)``.
            sample_weight: Weights ``(M,)``.

        Raises:
            InputError: If the regressor has an ``alpha``.
        """
        if self.alpha is not None and self.__sklearn_is_fitted__():
            raise InputError(
                "Rows cannot be added to a regressor with `alpha`. Got one. Fit it to all rows, with their alpha, "
                "instead."
            )
        return super().partial_fit(X, y, sample_weight)

    def predictive_log_density(self, X: Any, y: Any) -> Array:
        """Log-densities of held-out targets ``(M,)``, in nats per unit of the targets.

        Args:
            X: Inputs ``(M, D)``.
            y: Targets ``(M,)``.

        Raises:
            InputError: If the only noise is ``alpha``, which is not known of new rows.
        """
        if self.alpha is not None and self._white_noise()[0] is None:
            raise InputError(
                "A density needs the noise of the rows. Got `alpha`, which is that of the training rows only. Leave `alpha` "
                "out to learn the noise, or add a WhiteKernel."
            )
        return super().predictive_log_density(X, y) - math.log(self._unit())

    def _fit(self, X: Any, y: Any, sample_weight: Any, **observation: Any) -> Any:
        rows = (
            0 if y is None else len(np.atleast_1d(as_target_column(y)))
        )  # what is no column is refused where all of them are
        self._known_noise = self._check_alpha(rows, sample_weight)
        return super()._fit(X, y, sample_weight, **observation)

    def _check_alpha(self, num_rows: int, sample_weight: Any) -> Array | None:
        if self.alpha is None:
            return None
        values = np.asarray(self.alpha, dtype=np.float64)
        if values.shape not in ((), (num_rows,)) or not bool((np.isfinite(values) & (values >= 0.0)).all()):
            raise InputError(
                f"`alpha` must be a variance, or one per row with shape ({num_rows},), finite and not negative. Got "
                f"shape "
                f"{values.shape}. Select the same rows, or leave it out to learn the noise."
            )
        values = np.broadcast_to(values, (num_rows,))
        return values if sample_weight is None else values[np.asarray(sample_weight) > 0.0]

    def _learning_options(self, num_rows: int) -> dict[str, Any]:
        return super()._learning_options(num_rows) | {"num_restarts": self.n_restarts_optimizer}

    def _skeleton(self, inputs: Tensor, targets: Tensor, *args: Any, **options: Any) -> GP:
        if not hasattr(self, "_known_noise"):  # read from a file
            self._known_noise = self._check_alpha(len(targets), None)
        return super()._skeleton(inputs, targets, *args, **options)

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

    def _set_scalings(self, scalings: dict[str, Scaling]) -> None:
        super()._set_scalings(scalings)
        self._target_scaling = scalings["targets"]

    def _likelihoods(self) -> dict[str, Callable[[], Any]]:
        known = competing(NOISES, self.noise, "noise")
        if self.alpha is None and self._white_noise()[0] is None:
            return known
        return {"gaussian": self._with_known_noise}

    def _with_known_noise(self) -> Likelihood:
        """Gaussian noise of which something is said."""
        made, (level, fixed) = NOISES["gaussian"](), self._white_noise()
        if self.noise not in ("auto", "gaussian"):
            raise InputError(
                "`noise` must be 'gaussian' with `alpha` or a WhiteKernel. "
                f"Got {self.noise!r}. Leave those out, or the noise."
            )
        if self._known_noise is not None:
            least = gpytorch.settings.min_fixed_noise.value(torch.float32)
            known = torch.as_tensor(self._known_noise / self._unit() ** 2).clamp_min(least)
            made = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(known, learn_additional_noise=level is not None)
        if level is not None and self._known_noise is None:
            made.noise = max(level, _ABOVE * SMALLEST_NOISE)
        elif level is not None:
            made.second_noise = max(level, _ABOVE * _LEAST_SECOND_NOISE)
        for parameter in made.parameters():
            parameter.requires_grad_(not fixed)
        return made

    def _white_noise(self) -> tuple[float | None, bool]:
        """The variance of the kernel's white noise, or None, and whether it is fixed."""
        if not isinstance(self.kernel, kernels.Kernel):
            return None, False
        return without_noise(self.kernel)[1:]

    def _kernel(self) -> Any:
        return without_noise(self.kernel)[0] if isinstance(self.kernel, kernels.Kernel) else self.kernel

    def _make_mean(self, y: Array, weights: Array) -> gpytorch.means.Mean:
        return constant_mean(0.0, math.log(NOISE)) if self._varies else constant_mean(0.0)

    def _num_kernels(self) -> int:
        return 2 if self._varies else 1

    @property
    def _varies(self) -> bool:
        """Whether the noise has a latent function of its own."""
        return getattr(self, "likelihood_", self.noise) == "heteroscedastic"

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
