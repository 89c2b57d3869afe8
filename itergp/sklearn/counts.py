"""Counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gpytorch
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import d2_tweedie_score

from itergp.errors import InputError
from itergp.explanation import ExpectedResponse, Response, expected_value
from itergp.sklearn.base import Array
from itergp.sklearn.checks import as_real, check_exposure
from itergp.sklearn.files import column_of, takes_files
from itergp.sklearn.former import formerly_first
from itergp.sklearn.model import constant_mean
from itergp.sklearn.noise import COUNTS, competing
from itergp.sklearn.regressors import QUANTILES, BaseRegressor
from itergp.tables import read_table

_LARGEST_COUNT = 1e12


class GPCountRegressor(BaseRegressor):
    """Gaussian process for counts: events per row, with a rate that depends smoothly on the inputs.

    Where rows were watched for different times, areas or populations, ``exposure`` says how much: counts have the mean
    ``exposure * rate``, and the rate is what depends on the inputs. It is metadata as ``sample_weight`` is, and can be routed:
    ``set_fit_request(exposure=True)``. Targets are whole, but with ``sample_weight``: with Poisson counts, rates
    ``events / exposure`` with ``sample_weight=exposure``, the convention of scikit-learn's ``PoissonRegressor``, give the same
    posterior.

    Args:
        kernel: ``"auto"`` (default): several kernels, and scales of the columns, compete on held-out rows, see
            ``comparison_``; ``"matern32"``, ``"matern12"``, ``"matern52"``, ``"rbf"``, ``"laplacian"``,
            ``"rational_quadratic"``, ``"linear"``; a GPyTorch kernel, which is copied; or a kernel of scikit-learn, which is
            translated.
        distribution: ``"auto"``: those that follow compete on held-out rows where the kernel does, and otherwise it is the
            first; ``"poisson"``; ``"negative_binomial"`` where counts vary more than that; ``"zero_inflated_poisson"``
            where there are too many zeros.
        ard: One lengthscale per column of the table, for kernels by name. None: for up to 100 columns.
        groups: Columns of groups, as in mixed models, by name or number: ``"school"`` adds an effect of each school, with one
            variance for all; ``{"school": ["income"]}`` also lets the slope of a numeric column differ by school. A school that
            there was none of in training has the prior.
        standardize: Bring columns to mean 0 and deviation 1; constant ones become zero. Those that a GPyTorch kernel
            reads in their own units stay: category numbers, a period that was set, a grid, inducing points.
        approximation: ``"variational"``, ``"laplace"``, or ``"auto"``: variational, or what held-out rows prefer, together with
            the share of the covariance that is integrated, when there are 100 rows or more.
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

    Attributes:
        n_features_in_: Number of columns of the table.
        feature_names_in_: Their names, if ``X`` was a data frame.
        columns_: What became of each of them; ``encoder_`` is what encodes tables.
        model_: The ``NonConjugateGP``, for everything else; its latent function is the logarithm of the rate.
        result_: The ``FitResult``; None with ``optimizer=None``.
        kernel_: The kernel as learned.
        comparison_: Which kernels competed and how they did, or None.
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
        >>> bool(regressor.predict([[1.5]], exposure=2.0) > regressor.predict([[1.5]]))
        True
    """

    _weights_count_rows = False

    @formerly_first("distribution", COUNTS)
    def __init__(
        self,
        kernel: Any = "auto",
        *,
        distribution: str = "auto",
        ard: bool | None = None,
        groups: Any = None,
        standardize: bool = True,
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
    ) -> None:
        self.distribution = distribution
        self.kernel = kernel
        self.ard = ard
        self.groups = groups
        self.standardize = standardize
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

    def _refuse_rates(self, y: Any, sample_weight: Any) -> None:
        """Numbers that are not whole are rates, whose weights are exposures, or no counts at all."""
        if sample_weight is not None:
            return
        counts = self._encode(self._target_rows(y), first=True)
        wrong = np.flatnonzero(counts != np.floor(counts))
        if len(wrong):
            raise InputError(
                f"`y` must be counts, whole numbers. Got {counts[wrong[0]]:g} in row {wrong[0]}, and such in {len(wrong)} of "
                f"{len(counts)} row(s). Use GPRegressor for real values; of rates pass the counts with exposure=..., or the "
                "rates with their exposures as sample_weight."
            )

    def _second_column(self, y: Array, observation: dict[str, Any], *, first: bool) -> Array:
        exposure = observation.get("exposure")
        exposed = exposure is not None if first else self.model_.train_targets.dim() == 2
        if not exposed and exposure is not None:
            raise InputError(
                "`exposure` of new rows needs a model that was fitted with exposures. Got one that was not. Fit it with "
                "exposure=1.0."
            )
        return np.column_stack([y, check_exposure(len(y), 1.0 if exposure is None else exposure)]) if exposed else y

    def _likelihoods(self) -> dict[str, Callable[[], Any]]:
        return competing(COUNTS, self.distribution, "distribution")

    def _boosted_targets(self, y: Array, weights: Array) -> tuple[Array, Array, dict[str, Any]]:
        counts, exposure = (y[:, 0], y[:, 1]) if y.ndim == 2 else (y, np.ones_like(y))
        return counts / exposure, weights * exposure, {"loss": "poisson", "classes": 1}

    def _response(self) -> Response:
        return ExpectedResponse("expected count", ("",), self.model_.calculus, expected_value)

    def _make_mean(self, y: Array, weights: Array) -> gpytorch.means.Mean:
        counts, exposure = (y[:, 0], y[:, 1]) if y.ndim == 2 else (y, np.ones_like(y))
        rate = np.average(counts, weights=weights) / np.average(exposure, weights=weights)
        return constant_mean(float(np.log(max(rate, 1e-3 / np.average(exposure, weights=weights)))))

    @takes_files
    def fit(self, X: Any, y: Any, sample_weight: Any = None, exposure: Any = None) -> Any:
        """Learns hyperparameters, then finds the posterior of all rows.

        Args:
            X: Inputs ``(N, D)``: a data frame, an array, or another table, see ``itergp.tables.TableEncoder``.
            y: Counts ``(N,)``.
            sample_weight: Weights ``(N,)`` of the rows' log-densities; a weight of 2 is a row twice.
            exposure: Exposure of the rows, positive: ``(N,)``, or a number for all; default 1.

        Returns:
            The estimator.
        """
        self._refuse_rates(y, sample_weight)
        return self._fit(X, y, sample_weight, exposure=exposure)

    @takes_files
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, exposure: Any = None) -> Any:
        """Adds rows: hyperparameters stay, and the posterior of all rows is found starting from the present one.

        The first call is ``fit``. Hyperparameters that were learned from fewer than 20 rows are learned again when
        these have doubled.

        Args:
            X: New rows ``(M, D)``.
            y: Their counts ``(M,)``.
            sample_weight: Weights ``(M,)``.
            exposure: Exposures ``(M,)``, or a number for all; default 1.

        Returns:
            The estimator.
        """
        self._refuse_rates(y, sample_weight)
        if self.__sklearn_is_fitted__():
            return self._append(X, y, sample_weight, exposure=exposure)
        return self._fit(X, y, sample_weight, complete=False, exposure=exposure)

    def predict(
        self, X: Any, return_std: bool = False, exposure: Any = None, quantiles: Sequence[float] | None = None
    ) -> Array | tuple[Array, Array]:
        """Expected count of every row ``(M,)``.

        Args:
            X: Inputs ``(M, D)``.
            return_std: Also return the standard deviation of the count.
            exposure: Exposure of the rows, positive: ``(M,)``, or a number for all; default 1, which gives rates.
            quantiles: Instead of both, Q levels between 0 and 1 of the quantiles to return.

        Returns:
            Means ``(M,)``, or means and standard deviations, or quantiles ``(M, Q)``.

        Raises:
            InputError: If both are asked for.
        """
        self._one_of(return_std=return_std, quantiles=quantiles is not None)
        if quantiles is not None:
            return self.predict_quantiles(X, quantiles, exposure)
        return self._mean(X, return_std, **self._exposed(X, exposure))

    def predict_quantiles(self, X: Any, quantiles: Sequence[float] = QUANTILES, exposure: Any = None) -> Array:
        """Quantiles of the count.

        Args:
            X: Inputs ``(M, D)``.
            quantiles: Q levels between 0 and 1; default 0.05, 0.5 and 0.95, a median and a 90 % interval.
            exposure: Exposure of the rows, positive: ``(M,)``, or a number for all; default 1.

        Returns:
            ``(M, Q)``.
        """
        return self._quantiles(X, quantiles, **self._exposed(X, exposure))

    @takes_files
    def predictive_log_density(self, X: Any, y: Any, exposure: Any = None) -> Array:
        """Log-probabilities of held-out counts ``(M,)``.

        Args:
            X: Inputs ``(M, D)``.
            y: Counts ``(M,)``.
            exposure: Exposure of the rows, positive: ``(M,)``, or a number for all; default 1.

        Raises:
            InputError: If targets are not whole: rates have no probability of their own.
        """
        counts = self._encode(self._target_rows(y), first=False)
        if (counts != np.floor(counts)).any():
            raise InputError(
                f"`y` must be whole for its probability. Got {counts[counts != np.floor(counts)][0]:g}. Pass counts, and "
                "the exposure."
            )
        return self._log_densities(X, y, **self._exposed(X, exposure))

    def _exposed(self, X: Any, exposure: Any) -> dict[str, Any]:
        if exposure is None:
            return {}
        return {"exposure": torch.as_tensor(check_exposure(read_table(X).num_rows, column_of(X, exposure)))}

    @takes_files
    def score(self, X: Any, y: Any, sample_weight: Any = None, exposure: Any = None) -> float:
        """Share of the Poisson deviance explained (D^2), 1 at best, 0 for a constant rate.

        Args:
            X: Inputs ``(M, D)``.
            y: Counts ``(M,)``.
            sample_weight: Weights ``(M,)``.
            exposure: Exposures ``(M,)``, or a number for all; default 1.
        """
        if exposure is None:
            return float(d2_tweedie_score(y, self.predict(X), sample_weight=sample_weight, power=1))
        # The deviance of counts is that of rates times the exposure.
        exposure = check_exposure(len(y), exposure)
        weight = exposure if sample_weight is None else exposure * np.asarray(sample_weight)
        return float(d2_tweedie_score(np.asarray(y) / exposure, self.predict(X), sample_weight=weight, power=1))
