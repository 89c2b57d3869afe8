"""Real values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gpytorch
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.gaussian_process import kernels
from sklearn.metrics import r2_score
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from itergp.errors import InputError
from itergp.explanation import ExpectedResponse, MonotoneResponse, Response, expected_value
from itergp.likelihoods import IndependentOutputsLikelihood, Likelihood
from itergp.likelihoods.parameters import SMALLEST_NOISE
from itergp.models import GP
from itergp.objectives import Deadline
from itergp.sklearn.base import NEVER, Array, GPEstimator
from itergp.sklearn.checks import as_column, as_real
from itergp.sklearn.files import column_of, takes_files
from itergp.sklearn.kernels import is_automatic, without_noise
from itergp.sklearn.model import as_numpy, constant_mean
from itergp.sklearn.noise import NOISE, NOISES, SHARES
from itergp.sklearn.responses import (
    are_skewed,
    check_support,
    check_trials,
    competing_responses,
    draw_responses,
    latent_targets,
    learn_target_scaling,
    link_of,
    response_covariance,
    typical_latent,
)
from itergp.sklearn.scaling import Scaling
from itergp.tables import as_target_column, read_table

_LEAST_SECOND_NOISE, _ABOVE = 1e-4, 1.01  # the bound of GPyTorch's constraint, and a factor that is inside
_OF_SINGLE_OUTPUTS = ("student_t", "heteroscedastic")  # do not compete for several: slow, and of two latent functions
QUANTILES = (0.05, 0.5, 0.95)


class BaseRegressor(RegressorMixin, GPEstimator):
    """What regressors share: means, standard deviations and quantiles of observations in their own units."""

    def _restore(self, values: Array) -> Array:
        """Observations in the units of the data."""
        return values

    def _unit(self) -> float | Array:
        """One unit of the model in units of the data, or of each output ``(C,)``."""
        return 1.0

    def _response(self) -> Response:
        if self.likelihood_ in SHARES:
            return ExpectedResponse("expected share", ("",), self.model_.calculus, expected_value)
        if link_of(self.likelihood_) == "log":
            return ExpectedResponse("average of the target", ("",), self.model_.calculus, self._expected)
        return MonotoneResponse("average of the target", self._restore)

    def _expected(self, distribution: Any) -> Tensor:
        """Means of observations in their own units ``(..., 1)``."""
        return expected_value(distribution) * float(self._unit())

    def _mean(self, X: Any, return_std: bool, **observation: Any) -> Array | tuple[Array, Array]:
        def moments(predictive: Any) -> Array:
            wanted = [predictive.mean, predictive.variance] if return_std else [predictive.mean]
            return np.stack([as_numpy(moment) for moment in wanted], -1)

        found = self._predicted(X, moments, **observation)
        mean = self._restore(found[..., 0])
        return (mean, np.sqrt(found[..., 1]) * self._unit()) if return_std else mean

    def predict_quantiles(self, X: Any, quantiles: Sequence[float] = QUANTILES) -> Array:
        """Quantiles of the observation.

        Args:
            X: Inputs ``(M, D)``.
            quantiles: Q levels between 0 and 1; default 0.05, 0.5 and 0.95, a median and a 90 % interval.

        Returns:
            ``(M, Q)``.
        """
        return self._quantiles(X, quantiles)

    @staticmethod
    def _one_of(**asked: bool) -> None:
        """Refuses more than one of what predictions can be.

        Raises:
            InputError: If several are asked for.
        """
        wanted = [name for name, value in asked.items() if value]
        if len(wanted) > 1:
            names = ", ".join(f"`{name}`" for name in list(asked)[:-1]) + f" and `{list(asked)[-1]}`"
            raise InputError(f"Only one of {names} can be asked for. Got {' and '.join(wanted)}. Choose one.")

    def _quantiles(self, X: Any, quantiles: Sequence[float], **observation: Any) -> Array:
        return self._restore(self._predicted_quantiles(X, quantiles, **observation))

    @takes_files
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

    @takes_files
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
    """Gaussian process regression of real values, positive ones, shares, and successes among trials.

    Columns and targets are standardised, and lengthscales, output scale, mean and noise are learned unless you say otherwise.
    Everything is reported in the units of the targets. Several outputs ``(N, C)`` share a kernel and the passes over it; each
    has a mean and a noise of its own, and outputs are independent of each other.

    Args:
        kernel: ``"auto"`` (default): several kernels, and scales of the columns, compete on held-out rows, see
            ``comparison_``; ``"matern32"``, ``"matern12"``, ``"matern52"``, ``"rbf"``, ``"laplacian"``,
            ``"rational_quadratic"``, ``"linear"``; a GPyTorch kernel, which is copied; or a kernel of scikit-learn, which is
            translated, its
            ``WhiteKernel`` to where the noise starts.
        likelihood: What targets are, given the function. ``"auto"``: those that follow compete on held-out rows where the
            kernel does, and otherwise it is the first: ``"gaussian"``; of targets that are positive and skewed
            ``"log_normal"`` and ``"gamma"``, whose noise grows with the value; of single outputs ``"student_t"`` where some
            targets may be far off, and ``"heteroscedastic"`` where the noise varies with the inputs. By name only:
            ``"laplace"``; ``"beta"`` for shares between 0 and 1; ``"binomial"`` for successes among ``trials``.
        noise: The former name of ``likelihood``.
        alpha: Known variance of the noise in units of the targets squared, a number or one per row; as in scikit-learn
            it is no part of predictions. With it, other noise is learned only if the kernel has a ``WhiteKernel``.
        ard: One lengthscale per column of the table, for kernels by name. None: for up to 100 columns.
        groups: Columns of groups, as in mixed models, by name or number: ``"school"`` adds an effect of each school, with one
            variance for all; ``{"school": ["income"]}`` also lets the slope of a numeric column differ by school. A school that
            there was none of in training has the prior.
        standardize: Bring columns to mean 0 and deviation 1; constant ones become zero. Those that a GPyTorch kernel
            reads in their own units stay: category numbers, a period that was set, a grid, inducing points.
        normalize_y: Bring targets to mean 0 and deviation 1.
        approximation: ``"variational"`` or ``"laplace"``; the same for Gaussian noise.
        optimizer: ``"auto"``, ``"adam"``, ``"lbfgs"``, or None to keep hyperparameters at what the kernel says.
        max_iterations: Steps of the optimiser.
        fit_options: Further keywords of ``itergp.fit``.
        solver: How the posterior is found; default ``itergp.solvers.SubspaceNewton()``, and beyond 100,000 distinct ones
            ``LinearTimeNewton()``, unless the kernel is additive and takes linear time itself.
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
        likelihood_: The likelihood that was chosen.
        n_outputs_: Number of outputs.
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
        likelihood: str = "auto",
        noise: str | None = None,
        alpha: Any = None,
        ard: bool | None = None,
        groups: Any = None,
        standardize: bool = True,
        normalize_y: bool = True,
        approximation: str = "auto",
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
        self.likelihood = likelihood
        self.noise = noise
        self.alpha = alpha
        self.ard = ard
        self.groups = groups
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

    def __sklearn_tags__(self) -> Any:
        """Targets may be several columns."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    # ----------------------------------------------------------- fit, predict
    @takes_files
    def fit(self, X: Any, y: Any, sample_weight: Any = None, trials: Any = None) -> Any:
        """Learns hyperparameters, then finds the posterior of all rows.

        Args:
            X: Inputs ``(N, D)``: a data frame, an array, or another table, see ``itergp.tables.TableEncoder``.
            y: Targets ``(N,)``, or ``(N, C)`` for several outputs.
            sample_weight: Weights ``(N,)`` of the rows' log-densities; a weight of 2 is a row twice.
            trials: For ``likelihood="binomial"`` the numbers of trials, of which ``y`` are the successes: ``(N,)``, or a
                number for all; default 1.

        Returns:
            The estimator.
        """
        return self._fit(X, y, sample_weight, trials=trials)

    @takes_files
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, trials: Any = None) -> Any:
        """Adds rows: hyperparameters stay, and the posterior of all rows is found starting from the present one.

        The first call is ``fit``. Hyperparameters that were learned from fewer than 20 rows are learned again when
        these have doubled. Refused with ``alpha``, which says nothing of new rows.

        Args:
            X: New rows ``(M, D)``.
            y: Their targets ``(M,)`` or ``(M, C)``.
            sample_weight: Weights ``(M,)``.
            trials: Trials ``(M,)``, or a number for all, see ``fit``.

        Returns:
            The estimator.

        Raises:
            InputError: If the regressor has an ``alpha``.
        """
        if not self.__sklearn_is_fitted__():
            return self._fit(X, y, sample_weight, complete=False, trials=trials)
        if self.alpha is not None:
            raise InputError(
                "Rows cannot be added to a regressor with `alpha`. Got one. Fit it to all rows, with their alpha, "
                "instead."
            )
        return self._append(X, y, sample_weight, trials=trials)

    def predict(
        self,
        X: Any,
        return_std: bool = False,
        return_cov: bool = False,
        quantiles: Sequence[float] | None = None,
        trials: Any = None,
    ) -> Array | tuple[Array, Array]:
        """Mean of the observation at every row ``(M,)``, or of every output ``(M, C)``.

        It is the mean of what is observed, for logarithmic likelihoods too: of successes among trials their share if there is
        one trial, the default.

        Args:
            X: Inputs ``(M, D)``.
            return_std: Also return the standard deviation of the observation, noise included.
            return_cov: Instead, also return the covariance ``(M, M)`` of the observations, noise included; of several outputs
                ``(M, M, C)``.
            quantiles: Instead of all this, Q levels between 0 and 1 of the quantiles to return, ``(M, Q)`` or ``(M, C, Q)``.
            trials: For ``likelihood="binomial"`` the trials of the rows ``(M,)``, or a number for all; default 1.

        Returns:
            Means, or means and standard deviations or covariances, or quantiles.

        Raises:
            InputError: If several are asked for.
        """
        self._one_of(return_std=return_std, return_cov=return_cov, quantiles=quantiles is not None)
        if quantiles is not None:
            return self.predict_quantiles(X, quantiles, trials=trials)
        options = self._tried(X, trials)
        if not return_cov:
            return self._mean(X, return_std, **options)
        mean, std = self._mean(X, True, **options)
        return mean, self._covariance(X, mean, std, options)

    def predict_quantiles(self, X: Any, quantiles: Sequence[float] = QUANTILES, trials: Any = None) -> Array:
        """Quantiles of the observation.

        Args:
            X: Inputs ``(M, D)``.
            quantiles: Q levels between 0 and 1; default 0.05, 0.5 and 0.95, a median and a 90 % interval.
            trials: For ``likelihood="binomial"`` the trials of the rows ``(M,)``, or a number for all; default 1.

        Returns:
            ``(M, Q)``, or of several outputs ``(M, C, Q)``.
        """
        return self._quantiles(X, quantiles, **self._tried(X, trials))

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0, trials: Any = None) -> Array:
        """Draws observations at some rows together, noise included: of the function jointly, then of each row given it.

        Args:
            X: Inputs ``(M, D)``.
            n_samples: Number of draws.
            random_state: Seed.
            trials: For ``likelihood="binomial"`` the trials of the rows ``(M,)``, or a number for all; default 1.

        Returns:
            ``(M, n_samples)``, or of several outputs ``(M, C, n_samples)``.
        """
        random, options = check_random_state(random_state), self._tried(X, trials)
        if self.likelihood_ == "gaussian" and self.n_outputs_ == 1:
            mean, covariance = self.predict(X, return_cov=True)
            return random.multivariate_normal(mean, covariance, n_samples).T
        inputs = self._new_inputs(X)
        mean, dense = self._joint_latents(inputs)
        drawn = random.multivariate_normal(mean.reshape(-1), dense, n_samples).reshape(n_samples, *mean.shape)
        seed = int(random.randint(2**31 - 1))
        values = draw_responses(self.model_.calculus, drawn, seed, inputs, **options)
        return np.moveaxis(self._restore(values), 0, -1)

    @takes_files
    def score(self, X: Any, y: Any, sample_weight: Any = None, trials: Any = None) -> float:
        """Share of the variance explained (R^2), of several outputs on average; of successes that of their shares.

        Args:
            X: Inputs ``(M, D)``.
            y: Targets ``(M,)`` or ``(M, C)``.
            sample_weight: Weights ``(M,)``.
            trials: Trials ``(M,)``, or a number for all, see ``fit``; rows then count by them too.
        """
        if trials is None:
            return super().score(X, y, sample_weight)
        successes = as_real(self._target_rows(y))
        tried = check_trials(successes, trials)
        weights = tried if sample_weight is None else tried * np.asarray(sample_weight)
        return float(r2_score(successes / tried, self.predict(X), sample_weight=weights))

    @takes_files
    def predictive_log_density(self, X: Any, y: Any, trials: Any = None) -> Array:
        """Log-densities of held-out targets ``(M,)``, in nats per unit of the targets; of several outputs their sums.

        Args:
            X: Inputs ``(M, D)``.
            y: Targets ``(M,)`` or ``(M, C)``.
            trials: For ``likelihood="binomial"`` the trials of the rows ``(M,)``, or a number for all; default 1.

        Raises:
            InputError: If the only noise is ``alpha``, which is not known of new rows.
        """
        if self.alpha is not None and self._white_noise()[0] is None:
            raise InputError(
                "A density needs the noise of the rows. Got `alpha`, which is that of the training rows only. Leave `alpha` "
                "out to learn the noise, or add a WhiteKernel."
            )
        check_is_fitted(self)
        if self.likelihood_ == "binomial":
            check_trials(as_real(self._target_rows(y)), trials)
        return self._log_densities(X, y, **self._tried(X, trials)) - float(np.log(self._unit()).sum())

    def latent_mean_and_variance(self, X: Any) -> tuple[Array, Array]:
        """Posterior mean and variance of the function without noise, in the units of the targets.

        Args:
            X: Inputs ``(M, D)``.

        Returns:
            Two arrays ``(M,)``, or ``(M, C)`` for several outputs; with heteroscedastic noise ``(M, 2)``, of the function and
            of the logarithm of the noise's variance. For ``"log_normal"`` and ``"gamma"`` of the logarithm of the median or the
            mean, for ``"beta"`` and ``"binomial"`` of the log-odds.
        """
        mean, variance = super().latent_mean_and_variance(X)
        unit, link = self._unit(), link_of(self.likelihood_)
        if self._varies:
            log_noise = mean[:, 1] + 2.0 * np.log(unit)
            scaled = np.stack([variance[:, 0] * unit**2, variance[:, 1]], -1)
            return np.stack([self._restore(mean[:, 0]), log_noise], -1), scaled
        if link == "log":
            return mean + np.log(unit), variance
        return (mean, variance) if link == "logit" else (self._restore(mean), variance * unit**2)

    def _covariance(self, X: Any, mean: Array, std: Array, options: dict[str, Any]) -> Array:
        """Covariances of observations ``(M, M)``, or ``(M, M, C)``."""
        inputs = self._new_inputs(X)
        centre, dense = self._joint_latents(inputs)
        centre = centre.reshape(len(inputs), -1)
        count = centre.shape[1]  # latent functions, innermost
        means, deviations, units = (np.reshape(part, (-1, self.n_outputs_)) for part in (mean, std, self._unit()))
        found = []
        for c in range(self.n_outputs_):
            own = dense[c::count, c::count]
            between = response_covariance(link_of(self.likelihood_), means[:, c], centre[:, c], own)
            if link_of(self.likelihood_) == "identity":
                between = between * units[0, c] ** 2
            if "num_trials" in options:
                between = between * np.outer(options["num_trials"], options["num_trials"])
            np.fill_diagonal(between, deviations[:, c] ** 2)
            found.append(between)
        return found[0] if self.n_outputs_ == 1 else np.stack(found, -1)

    def _joint_latents(self, inputs: Tensor) -> tuple[Array, Array]:
        """Means ``(M,)`` or ``(M, C)`` and joint covariance ``(M C, M C)`` of latent functions, tempered as predictions are."""
        with torch.no_grad():
            latent, factors = self.model_(inputs), as_numpy(self.model_.tempering_factors(inputs))
            mean, dense = as_numpy(latent.mean), as_numpy(latent.lazy_covariance_matrix.to_dense())
        factors = np.repeat(factors, len(dense) // len(factors))
        return mean, factors[:, None] * dense * factors

    def _log_prob(self, predictive: Any, targets: Tensor) -> Tensor:
        densities = super()._log_prob(predictive, targets)
        return densities if self.n_outputs_ == 1 else densities.sum(-1)

    def _tried(self, X: Any, trials: Any) -> dict[str, Any]:
        """Trials of new rows as keywords of predictions."""
        if trials is None:
            return {}
        self._refuse_trials(trials)
        num_rows = read_table(X).num_rows
        return {"num_trials": torch.as_tensor(check_trials(np.zeros(num_rows), column_of(X, trials)))}

    def _refuse_trials(self, trials: Any) -> None:
        if trials is not None and self._chosen != "binomial":
            raise InputError(
                f'`trials` must be left out but for likelihood="binomial". Got some with likelihood={self._chosen!r}. Pass '
                'likelihood="binomial", with the successes as `y`.'
            )

    # ----------------------------------------------------------------- targets
    def _fit(self, X: Any, y: Any, sample_weight: Any, **observation: Any) -> Any:
        if self.noise is not None:
            warnings.warn(
                f"`noise` of GPRegressor is `likelihood` now. Got noise={self.noise!r}. Pass likelihood={self.noise!r}.",
                DeprecationWarning,
                stacklevel=3,
            )
        self._refuse_trials(observation.get("trials"))
        rows = (
            0 if y is None else len(np.atleast_1d(as_target_column(y)))
        )  # what is no column is refused where all of them are
        self._known_noise = self._check_alpha(rows, sample_weight)
        return super()._fit(X, y, sample_weight, **observation)

    @property
    def _chosen(self) -> str:
        """The likelihood as asked for."""
        name = self.likelihood if self.noise is None else self.noise
        return name.replace("-", "_") if isinstance(name, str) else name

    def _target_rows(self, y: Any) -> NDArray[Any]:
        columns = None if y is None else as_target_column(y)
        return as_column(self, y) if columns is None or columns.ndim != 2 or columns.shape[1] < 2 else columns

    def _encode(self, y: NDArray[Any], *, first: bool) -> Array:
        values, count = as_real(y), y.shape[1] if y.ndim == 2 else 1
        if first:
            self.n_outputs_ = count
            self._refuse_outputs()
        elif count != self.n_outputs_:
            raise InputError(
                f"`y` must have {self.n_outputs_} column(s), as in the training data. Got {count}. Select the same."
            )
        check_support(values, self._chosen if first else self.likelihood_)
        return values

    def _refuse_outputs(self) -> None:
        """What is for single outputs only.

        Raises:
            InputError: If it is asked for with several.
        """
        known_noise = self.alpha is not None or self._white_noise()[0] is not None
        single = self._chosen in ("heteroscedastic", "binomial") or self.prior_mean is not None
        if self.n_outputs_ > 1 and (single or known_noise):
            raise InputError(
                '`likelihood="heteroscedastic"`, `likelihood="binomial"`, `alpha`, a WhiteKernel and `prior_mean` are for one '
                f"output. Got {self.n_outputs_} columns in `y`. Fit one regressor per column, for example with "
                "MultiOutputRegressor; for successes and trials pass trials=..."
            )

    def _second_column(self, y: Array, observation: dict[str, Any], *, first: bool) -> Array:
        trials = observation.get("trials")
        self._refuse_trials(trials)
        return np.column_stack([y, check_trials(y, trials)]) if self._chosen == "binomial" else y

    def _learn_targets(self, y: Array, weights: Array) -> None:
        columns, name = y.reshape(len(y), -1), self._chosen
        # Trees predict what one likelihood has for its function.
        compete = name == "auto" and is_automatic(self._kernel()) and self.prior_mean is None
        self._skewed = compete and are_skewed(columns, weights)
        if name in SHARES or not self.normalize_y:
            self._target_scaling = Scaling.nothing(columns[:, :1] if name == "binomial" else columns)
        else:
            logarithmic = len(self._likelihoods()) > 1 if self._skewed else link_of(name) == "log"
            self._target_scaling = learn_target_scaling(columns, weights, centred=not logarithmic)

    def _model_targets(self, y: Array) -> Array:
        return self._target_scaling.transform(y.reshape(len(y), -1)).reshape(y.shape)

    def _data_targets(self, y: Array) -> Array:
        return self._target_scaling.restore(y.reshape(len(y), -1)).reshape(y.shape)

    def _restore(self, values: Array) -> Array:
        if self.n_outputs_ > 1:
            return self._target_scaling.restore(values)
        return self._target_scaling.restore(values[..., None])[..., 0]

    def _quantiles(self, X: Any, quantiles: Sequence[float], **observation: Any) -> Array:
        found = self._predicted_quantiles(X, quantiles, **observation)
        if self.n_outputs_ == 1:
            return self._restore(found)
        return np.swapaxes(self._restore(np.swapaxes(found, -1, -2)), -1, -2)

    def _unit(self) -> float | Array:
        return float(self._target_scaling.scale[0]) if self.n_outputs_ == 1 else self._target_scaling.scale

    def _scalings(self) -> dict[str, Scaling]:
        return super()._scalings() | {"targets": self._target_scaling}

    def _set_scalings(self, scalings: dict[str, Scaling]) -> None:
        super()._set_scalings(scalings)
        self._target_scaling = scalings["targets"]

    # ------------------------------------------------------------------- model
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

    def _observes(self) -> str:
        return "share" if self.likelihood_ == "binomial" else "real"

    def _knows_noise_of_rows(self) -> bool:
        return self._known_noise is not None

    def _keep_rows(self, rows: NDArray[np.intp]) -> None:
        self._known_noise = None if self._known_noise is None else self._known_noise[rows]

    def _likelihoods(self) -> dict[str, Callable[[], Any]]:
        if self.alpha is not None or self._white_noise()[0] is not None:
            return {"gaussian": self._with_known_noise}
        skewed = getattr(
            self, "_skewed", True
        )  # of a model that is read from a file, whose likelihood is known by its name
        known = competing_responses(self._chosen, skewed=skewed)
        if getattr(self, "n_outputs_", 1) == 1:
            return known
        if self._chosen == "auto":
            known = {name: make for name, make in known.items() if name not in _OF_SINGLE_OUTPUTS}
        return {name: partial(self._of_outputs, make) for name, make in known.items()}

    def _of_outputs(self, make: Callable[[], Any]) -> Likelihood:
        return IndependentOutputsLikelihood(*(make() for _ in range(self.n_outputs_)))

    def _with_known_noise(self) -> Likelihood:
        """Gaussian noise of which something is said."""
        made, (level, fixed) = NOISES["gaussian"](), self._white_noise()
        if self._chosen not in ("auto", "gaussian"):
            raise InputError(
                "`likelihood` must be 'gaussian' with `alpha` or a WhiteKernel. "
                f"Got {self._chosen!r}. Leave those out, or the likelihood."
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

    def _boosted_targets(self, y: Array, weights: Array) -> tuple[Array, Array, dict[str, Any]]:
        return latent_targets(self.likelihood_, self._model_targets(y), weights)

    def _make_mean(self, y: Array, weights: Array) -> gpytorch.means.Mean:
        name = getattr(self, "likelihood_", self._chosen)
        if self.n_outputs_ > 1:
            columns = (
                self._model_targets(y).T if y.ndim == 2 else np.zeros((self.n_outputs_, 1))
            )  # a file's start anywhere
            return constant_mean(*(typical_latent(name, column, weights) for column in columns))
        start = typical_latent(name, self._model_targets(y), weights)
        return constant_mean(start, math.log(NOISE)) if self._varies else constant_mean(start)

    def _num_kernels(self) -> int:
        return 2 if self._varies else 1

    @property
    def _varies(self) -> bool:
        """Whether the noise has a latent function of its own."""
        return getattr(self, "likelihood_", self._chosen) == "heteroscedastic"

    def _conclude(self, *, first: bool, deadline: Deadline = NEVER) -> None:
        super()._conclude(first=first, deadline=deadline)
        weight = self.model_.observations.total_weight
        self.log_marginal_likelihood_value_ -= weight * float(
            np.log(self._unit()).sum()
        )  # densities in the targets' units
