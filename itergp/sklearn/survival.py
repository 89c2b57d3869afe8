"""Times until an event, some of them censored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gpytorch
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from itergp.diagnostics import brier_scores, censoring_survival, concordance_index
from itergp.errors import InputError
from itergp.explanation import MonotoneResponse, Response
from itergp.likelihoods.survival import INTERVAL, LEFT, RIGHT
from itergp.sklearn.base import Array, GPEstimator
from itergp.sklearn.checks import check_rows, check_weights
from itergp.sklearn.event_times import as_event_times
from itergp.sklearn.files import takes_files
from itergp.sklearn.former import formerly_first
from itergp.sklearn.model import as_numpy, constant_mean
from itergp.sklearn.noise import TIMES, competing
from itergp.sklearn.regressors import QUANTILES
from itergp.tables import read_table


class GPSurvival(GPEstimator):
    """Gaussian process for times until an event, where some rows are only known to be later than their time.

    The latent function stretches time (accelerated failure times): effects are on how long it takes, and need not be linear.
    Rows without an event are right-censored, and say that the time is longer than theirs. Times that are only known to be
    shorter (left-censored), or to lie in an interval, are said by their bounds: ``censored_times(lower, upper)``.

    Args:
        kernel: ``"auto"`` (default): several kernels, and scales of the columns, compete on held-out rows, see
            ``comparison_``; ``"matern32"``, ``"matern12"``, ``"matern52"``, ``"rbf"``, ``"laplacian"``,
            ``"rational_quadratic"``, ``"linear"``; a GPyTorch kernel, which is copied; or a kernel of scikit-learn, which is
            translated.
        distribution: ``"auto"``: Weibull, log-logistic and log-normal times compete on held-out rows where the kernel does, and
            otherwise it is the first; ``"weibull"``, whose hazard rises or falls with time; ``"log_logistic"`` and
            ``"log_normal"``, whose hazards fall in the end; ``"exponential"``, whose hazard is constant.
        ard: One lengthscale per column of the table, for kernels by name. None: for up to 100 columns.
        groups: Columns of groups, as in mixed models, by name or number: ``"school"`` adds an effect of each school, with one
            variance for all; ``{"school": ["income"]}`` also lets the slope of a numeric column differ by school. A school that
            there was none of in training has the prior.
        standardize: Bring columns to mean 0 and deviation 1; constant ones become zero. Those that a GPyTorch kernel
            reads in their own units stay: category numbers, a period that was set, a grid, inducing points.
        approximation: ``"variational"``, ``"laplace"``, or ``"auto"``: variational, or what held-out rows prefer, together with
            the share of the covariance that is integrated, when there are 100 rows or more.
        optimizer: ``"auto"``, ``"adam"``, ``"lbfgs"``, or None to keep the hyperparameters at what the kernel says.
        max_iterations: Steps of the optimiser.
        fit_options: Further keywords of ``itergp.fit``.
        solver: How the posterior is found; default ``itergp.solvers.SubspaceNewton()``, and beyond 100,000 distinct ones
            ``LinearTimeNewton()``, unless the kernel is additive and takes linear time itself.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: ``"float32"``, ``"float64"``, or ``"auto"``: float64 up to 2,000 distinct rows.
        random_state: Seed of the optimiser's random splits; equal seeds give equal results.
        verbose: Show progress.

    Attributes:
        n_features_in_: Number of columns of the table.
        feature_names_in_: Their names, if ``X`` was a data frame.
        columns_: What became of each of them; ``encoder_`` is what encodes tables.
        model_: The ``NonConjugateGP``, for everything else; its latent function is the logarithm of the time scale.
        likelihood_: Which distribution was chosen.
        result_: The ``FitResult``; None with ``optimizer=None``.
        kernel_: The kernel as learned.
        comparison_: Which kernels and distributions competed and how they did, or None.
        kernel_passes_: Products with the kernel matrix that conditioning took, over ``fit`` and every ``partial_fit``.
        log_marginal_likelihood_value_: The evidence lower bound (ELBO), or with ``approximation="laplace"`` the Laplace
            estimate of the log marginal likelihood, in nats, for all rows.

    Raises:
        InputError: If data or arguments cannot be used.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = np.linspace(0.0, 6.0, 100)[:, None]
        >>> failure, end = np.exp(np.sin(X[:, 0])) * rng.weibull(2.0, 100), 2.0
        >>> y = np.column_stack([failure <= end, np.minimum(failure, end)])  # event, time
        >>> survival = GPSurvival(kernel="rbf", max_iterations=10).fit(X, y)
        >>> bool(survival.predict([[1.5]]) > survival.predict([[4.5]]))
        True
        >>> survival.predict_survival_function([[1.5], [4.5]], [0.5, 1.0, 2.0]).shape
        (2, 3)
    """

    @formerly_first("distribution", TIMES)
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
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        """Targets are two columns."""
        tags = super().__sklearn_tags__()
        tags.target_tags.required = tags.target_tags.multi_output = True
        tags.target_tags.single_output = False
        return tags

    # ------------------------------------------------------------------- data
    def _target_rows(self, y: Any) -> NDArray[Any]:
        return as_event_times(y)

    def _encode(self, y: NDArray[Any], *, first: bool) -> Array:
        return y

    def _row_weights(self, y: Array, weights: Array, *, first: bool) -> Array:
        events = y[weights > 0.0, 1]
        if first and (not (events != RIGHT).any() or not (events != LEFT).any()):
            kind = "right-censored" if not (events != RIGHT).any() else "left-censored"
            raise InputError(
                f"`y` must have an event, or an interval, for {type(self).__name__} to learn from. Got {len(events)} {kind} "
                "row(s) only. Check that the event column says 1 where the event was observed."
            )
        return weights

    def _rows(
        self, X: Any, y: Any, *args: Any, first: bool, complete: bool = True, **options: Any
    ) -> tuple[Array, Array, Array]:
        values, targets, weights = super()._rows(X, y, *args, first=first, complete=complete, **options)
        known = self.model_.train_targets.shape[1] if not first else targets.shape[1] if complete else 3
        if known < targets.shape[1]:
            raise InputError(
                "New rows must be observed or right-censored where all of the first fit were. Got left-censored rows or "
                "intervals. Fit again to all rows."
            )
        return values, targets if known == targets.shape[1] else np.column_stack([targets, targets[:, 0]]), weights

    def _likelihoods(self) -> dict[str, Callable[[], Any]]:
        return competing(TIMES, self.distribution, "distribution")

    def _response(self) -> Response:
        return MonotoneResponse("median time until the event", self._median_times)

    def _median_times(self, latent: Array) -> Array:
        """Medians of the times at latent values."""
        likelihood = self.model_.calculus
        with torch.no_grad():
            latents = torch.as_tensor(latent, dtype=torch.float64, device=self.model_.held_data.like.device)
            conditional = likelihood(latents)
            return as_numpy(conditional.icdf(torch.tensor(0.5, dtype=torch.float64, device=latents.device)))

    def _make_mean(self, y: Array, weights: Array) -> gpytorch.means.Mean:
        if y.ndim == 1:  # a model that is read from a file starts anywhere
            return constant_mean(0.0)
        times, happened = y[:, 0], y[:, 1] != RIGHT
        if y.shape[1] == 3:  # about the middle of what is known
            times = np.select([y[:, 1] == LEFT, y[:, 1] == INTERVAL], [0.5 * times, 0.5 * (times + y[:, 2])], times)
        exposed, events = (np.average(part, weights=weights) for part in (times, happened))
        return constant_mean(float(np.log(exposed) - np.log(events)))  # of times with a constant hazard

    @takes_files
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Learns hyperparameters, then finds the posterior of all rows.

        Args:
            X: Inputs ``(N, D)``: a data frame, an array, or another table, see ``itergp.tables.TableEncoder``.
            y: Events and times: a structured array with these two fields as in scikit-survival, or two columns ``(N, 2)`` of
                an array or data frame. The event is 1 or True where it was observed, 0 or False where the row is
                right-censored; of the two columns it is the one with truth values, otherwise the first. Times are positive.
                Or bounds of the times: ``censored_times(lower, upper)``, two columns with the names ``lower`` and ``upper``
                (or ``lower_bound`` and ``upper_bound`` as in lifelines, or ``left`` and ``right``), or intervals of pandas.
                Equal bounds are an event, an infinite upper one is right censoring, a lower one of 0 is left censoring.
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
            y: Their events and times, see ``fit``.
            sample_weight: Weights ``(M,)``.

        Returns:
            The estimator.
        """
        if self.__sklearn_is_fitted__():
            return self._append(X, y, sample_weight)
        return self._fit(X, y, sample_weight, complete=False)

    # ------------------------------------------------------------ predictions
    def predict(self, X: Any) -> Array:
        """Median time until the event of every row ``(M,)``; a mean need not exist.

        Args:
            X: Inputs ``(M, D)``.
        """
        return self.predict_quantiles(X, (0.5,))[:, 0]

    def predict_quantiles(self, X: Any, quantiles: Sequence[float] = QUANTILES) -> Array:
        """Quantiles of the time until the event.

        Args:
            X: Inputs ``(M, D)``.
            quantiles: Q levels between 0 and 1; default 0.05, 0.5 and 0.95, a median and a 90 % interval.

        Returns:
            ``(M, Q)``.
        """
        return self._predicted_quantiles(X, quantiles)

    def predict_survival_function(self, X: Any, times: Any) -> Array:
        """Probabilities of an event later than some times, latent uncertainty integrated out.

        Args:
            X: Inputs ``(M, D)``.
            times: T times, 0 or more.

        Returns:
            ``(M, T)``.

        Raises:
            InputError: If times are negative or not numbers.
        """
        wanted = torch.from_numpy(_check_times(times))
        return self._predicted(
            X, lambda predictive: np.stack([as_numpy(predictive.log_survival(time).exp()) for time in wanted], -1)
        )

    @takes_files
    def predictive_log_density(self, X: Any, y: Any) -> Array:
        """Log-densities of held-out events; of censored rows the log-probabilities of what is known of their times.

        Args:
            X: Inputs ``(M, D)``.
            y: Events and times, see ``fit``.

        Returns:
            ``(M,)``, in nats per unit of time.
        """
        return super().predictive_log_density(X, y)

    def _log_prob(self, predictive: Any, targets: Tensor) -> Tensor:
        return predictive.log_observed(targets)

    # ---------------------------------------------------------------- metrics
    @takes_files
    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Harrell's concordance index of the median times: 1 at best, 0.5 for chance.

        The share of comparable pairs that are in the right order. A pair is comparable if the earlier time is an event; of
        equal times, if one is an event and the other censored, which then is the later. Equal predictions count half, as in
        lifelines and scikit-survival. It judges an order only; ``predictive_log_density`` and ``integrated_brier_score``
        judge probabilities.

        Args:
            X: Inputs ``(M, D)``.
            y: Events and times, see ``fit``.
            sample_weight: Weights ``(M,)``; a pair counts as much as their product.

        Raises:
            InputError: If no pair is comparable, or rows are left-censored or have intervals, which it is not defined for.
        """
        targets, weights = self._held_out(X, y), check_weights(read_table(X).num_rows, sample_weight)
        return concordance_index(targets[:, 1] == 1.0, targets[:, 0], self.predict(X), weights)

    @takes_files
    def integrated_brier_score(self, X: Any, y: Any, times: Any) -> float:
        """Mean squared error of survival probabilities over an interval of times: 0 at best, 0.25 for probabilities of a half.

        Rows count by the inverse of the probability of not being censored until then (Graf et al. 1999), which is estimated
        from the training rows (Kaplan-Meier), whatever their inputs. As in scikit-survival.

        Args:
            X: Inputs ``(M, D)``.
            y: Events and times, see ``fit``.
            times: Two or more increasing times, over which the score is averaged by trapezoids.

        Returns:
            The score.

        Raises:
            InputError: If times do not increase, or all training rows were censored by the last of them.
        """
        wanted, targets = _check_times(times), self._held_out(X, y)
        if len(wanted) < 2 or (np.diff(wanted) <= 0.0).any():
            raise InputError(f"`times` must be two or more increasing times. Got {wanted.tolist()[:8]}. Sort them.")
        _, known, weights = self._known_rows()
        if (known[:, 1] >= LEFT).any():
            raise InputError(
                "A Brier score needs the probability of not being censored, by times of training rows. Got left-censored rows "
                "or intervals among these. Use predictive_log_density."
            )
        event, time = targets[:, 1] == 1.0, targets[:, 0]
        kind = self.model_.train_targets.dtype  # in which the training times are known
        at_times, at_rows = (
            censoring_survival(known[:, 1] == 1.0, known[:, 0], as_numpy(torch.from_numpy(at).to(kind)), weights)
            for at in (wanted, time)
        )
        if at_times[-1] <= 0.0 or (at_rows[event & (time <= wanted[-1])] <= 0.0).any():
            raise InputError(
                f"`times` must end before all training rows are censored. Got {wanted[-1]:g}, when none was under observation. "
                f"End before {known[:, 0].max():g}."
            )
        scores = brier_scores(event, time, self.predict_survival_function(X, wanted), wanted, at_rows, at_times)
        return float(np.average(0.5 * (scores[1:] + scores[:-1]), weights=np.diff(wanted)))

    def _held_out(self, X: Any, y: Any) -> Array:
        check_is_fitted(self)
        targets = self._target_rows(y)
        check_rows(read_table(X).num_rows, targets)
        if targets.shape[1] == 3:
            raise InputError(
                "Concordance and Brier scores are defined for observed and right-censored times. Got left-censored rows or "
                "intervals. Use predictive_log_density, which takes them, or score the other rows."
            )
        return targets


def _check_times(times: Any) -> Array:
    try:
        values = np.atleast_1d(np.asarray(times, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise InputError(f"`times` must be numbers. Got {times!r}. Convert them to float.") from error
    wrong = values[~(np.isfinite(values) & (values >= 0.0))]
    if values.ndim != 1 or len(values) == 0 or wrong.size:
        raise InputError(
            f"`times` must be finite times, 0 or more, in one dimension. Got shape {values.shape}"
            f"{f' with {wrong.flat[0]:g}' if wrong.size else ''}. Drop what is none."
        )
    return values
