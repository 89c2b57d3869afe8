"""Classes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import gpytorch
import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import type_of_target

from itergp.errors import InputError, ItergpWarning
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood, Likelihood
from itergp.sklearn.base import Array, GPEstimator, as_numpy
from itergp.sklearn.model import constant_mean

_MAX_LOGIT = 4.0


class _ClassProbabilities(ClassifierMixin, GPEstimator):
    """What classifiers share: labels, their weights, probabilities."""

    class_weight: Any
    classes_: NDArray[Any]
    _outputscale = 10.0  # sure probabilities need large latent values

    def _row_weights(self, y: Array, weights: Array, *, first: bool) -> Array:
        if self.class_weight is None:
            return weights
        if (isinstance(self.class_weight, str) and self.class_weight != "balanced") or not isinstance(
            self.class_weight, (str, Mapping)
        ):
            raise InputError(
                f"`class_weight` must be a dictionary of classes and weights, 'balanced' or None. Got {self.class_weight!r}. "
                "Choose one of these."
            )
        if isinstance(self.class_weight, str):
            if not first:
                raise InputError(
                    "`class_weight` must be a dictionary or None with partial_fit. Got 'balanced', which needs all rows. "
                    "Compute the weights and pass them."
                )
            present = np.unique(y)
            factors = np.ones(len(self.classes_))
            factors[present.astype(int)] = compute_class_weight("balanced", classes=present, y=y)
        else:
            factors = np.array(
                [self.class_weight.get(label, 1.0) for label in self.classes_.tolist()], dtype=np.float64
            )
        return weights * factors[y.astype(int)]

    def _index(self, y: NDArray[Any]) -> Array:
        """Positions of labels in ``classes_``."""
        order = np.argsort(self.classes_, kind="stable")
        ranked = self.classes_[order]
        try:
            where = np.searchsorted(ranked, y).clip(max=len(ranked) - 1)
            unknown = ranked[where] != y
        except TypeError:
            where, unknown = np.zeros(len(y), dtype=int), np.ones(len(y), dtype=bool)
        if np.any(unknown):
            raise InputError(
                f"Labels must be among the classes {_shown(self.classes_)} that {type(self).__name__} knows. Got "
                f"{_shown(np.unique(y[unknown]))}. Correct them, or fit again with all classes."
            )
        return order[where].astype(np.float64)

    def predict_proba(self, X: Any) -> Array:
        """Probabilities of the classes, latent uncertainty integrated out.

        Args:
            X: Inputs ``(M, D)``.

        Returns:
            ``(M, C)``, columns in the order of ``classes_``.
        """
        probs = as_numpy(self._predictive(X).probs)
        if probs.ndim == 1:
            return np.stack([1.0 - probs, probs], -1)
        return probs / probs.sum(-1, keepdims=True)

    def predict_log_proba(self, X: Any) -> Array:
        """Logarithms of ``predict_proba``, ``(M, C)``."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of every row ``(M,)``.

        Args:
            X: Inputs ``(M, D)``.
        """
        best = self.predict_proba(X).argmax(-1)
        return self.classes_[best]


class GPClassifier(_ClassProbabilities):
    """Gaussian process classifier on all rows: logit or probit for two classes, softmax for more.

    Takes the place of scikit-learn's ``GaussianProcessClassifier``: exact to a certified tolerance, in a few passes over the
    kernel matrix instead of repeated factorisations, with one joint model of all classes instead of one against the rest.
    Columns are standardised and lengthscales, output scale and mean are learned unless you say otherwise.

    Args:
        kernel: ``"matern32"`` (default), ``"matern12"``, ``"matern52"``, ``"rbf"``, ``"rational_quadratic"``, ``"linear"``; a
            GPyTorch kernel, which is copied; or a kernel of scikit-learn, which is translated.
        ard: One lengthscale per column, for kernels by name. None: for up to 100 columns.
        standardize: Bring columns to mean 0 and deviation 1; constant ones become zero.
        link: ``"logit"`` or ``"probit"``, for two classes.
        approximation: ``"variational"``, ``"laplace"``, or ``"auto"``: variational, or what held-out rows prefer, together with
            the share of the covariance that is integrated, when there are 500 rows or more.
        optimizer: ``"adam"``, ``"lbfgs"``, or None to keep hyperparameters at what the kernel says.
        max_iterations: Steps of the optimiser.
        fit_options: Further keywords of ``itergp.fit``.
        solver: How the posterior is found; default ``itergp.solvers.SubspaceNewton()``.
        class_weight: Weights by class, ``"balanced"``, or None.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: ``"float32"``, ``"float64"``, or ``"auto"``: float64 up to 2,000 rows.
        random_state: Seed of the optimiser's random splits; equal seeds give equal results.
        verbose: Show progress.
        warm_start: Whether ``fit`` starts from the hyperparameters of the fit before.
        n_restarts_optimizer: How often learning starts again from random hyperparameters; the best counts.
        max_iter_predict: No effect; here for ``GaussianProcessClassifier``'s sake, as are the next three.
        copy_X_train: No effect.
        multi_class: No effect: all classes are modelled jointly.
        n_jobs: No effect: torch uses the cores; see ``torch.set_num_threads``.

    Attributes:
        classes_: The labels, sorted.
        n_classes_: Their number.
        n_features_in_: Number of columns.
        feature_names_in_: Their names, if ``X`` was a data frame.
        model_: The ``NonConjugateGP``, for everything else: certificate, posterior, predictive distributions.
        result_: The ``FitResult``; None with ``optimizer=None``.
        kernel_: The kernel as learned.
        kernel_passes_: Products with the kernel matrix that conditioning took, over ``fit`` and every ``partial_fit``.
        log_marginal_likelihood_value_: The evidence lower bound (ELBO), or where the approximation is Laplace's, its
            estimate of the log marginal likelihood, in nats, for all rows.

    Raises:
        InputError: If data or arguments cannot be used.

    Examples:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> classifier = GPClassifier(max_iterations=10).fit(X, y)
        >>> classifier.predict_proba(X[:2]).shape
        (2, 3)
        >>> bool(classifier.score(X, y) > 0.95)
        True
    """

    def __init__(
        self,
        kernel: Any = None,
        *,
        ard: bool | None = None,
        standardize: bool = True,
        link: str = "logit",
        approximation: str = "auto",
        optimizer: str | None = "adam",
        max_iterations: int = 50,
        fit_options: dict[str, Any] | None = None,
        solver: Any = None,
        class_weight: Any = None,
        device: Any = None,
        dtype: str = "auto",
        random_state: Any = 0,
        verbose: bool = False,
        warm_start: bool = False,
        n_restarts_optimizer: int = 0,
        max_iter_predict: int = 100,
        copy_X_train: bool = True,
        multi_class: str = "one_vs_rest",
        n_jobs: int | None = None,
    ) -> None:
        self.kernel = kernel
        self.ard = ard
        self.standardize = standardize
        self.link = link
        self.approximation = approximation
        self.optimizer = optimizer
        self.max_iterations = max_iterations
        self.fit_options = fit_options
        self.solver = solver
        self.class_weight = class_weight
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose
        self.warm_start = warm_start
        self.n_restarts_optimizer = n_restarts_optimizer
        self.max_iter_predict = max_iter_predict
        self.copy_X_train = copy_X_train
        self.multi_class = multi_class
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> GPClassifier:
        """Learns hyperparameters, then finds the posterior of all rows.

        Args:
            X: Inputs ``(N, D)``, an array or a data frame of numbers.
            y: Labels ``(N,)``, of any kind.
            sample_weight: Weights ``(N,)`` of the rows' log-densities; a weight of 2 is a row twice.

        Returns:
            The estimator.
        """
        self._known_classes: NDArray[Any] | None = None
        return self._fit(X, y, sample_weight)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> GPClassifier:
        """Adds rows: hyperparameters stay, and the posterior of all rows is found starting from the present one.

        The first call is ``fit``.

        Args:
            X: New rows ``(M, D)``.
            y: Their labels ``(M,)``.
            classes: All labels that may come, in the first call; default those of ``y``.
            sample_weight: Weights ``(M,)``.

        Returns:
            The estimator.
        """
        if self.__sklearn_is_fitted__():
            return self._append(X, y, sample_weight)
        self._known_classes = None if classes is None else np.unique(classes)
        return self._fit(X, y, sample_weight)

    def _learning_options(self, num_rows: int) -> dict[str, Any]:
        return super()._learning_options(num_rows) | {"num_restarts": self.n_restarts_optimizer}

    @property
    def n_classes_(self) -> int:
        """Number of classes."""
        return len(self.classes_)

    def _encode(self, y: NDArray[Any], *, first: bool) -> Array:
        check_labels(y)
        if first:
            self.classes_ = np.unique(y) if self._known_classes is None else self._known_classes
            if len(self.classes_) < 2:
                raise InputError(
                    f"`y` must have at least two classes for {type(self).__name__}. Got one class only, "
                    f"{_shown(self.classes_)}. Check how the rows were selected."
                )
        return self._index(y)

    def _make_likelihood(self) -> Likelihood:
        if len(self.classes_) > 2:
            return CategoricalLikelihood(len(self.classes_))
        return BernoulliLikelihood(link=self.link)  # type: ignore[arg-type] # which checks it

    def _make_mean(self, y: Array, weights: Array) -> gpytorch.means.Mean:
        if len(self.classes_) > 2:
            return gpytorch.means.ZeroMean()  # a constant for all classes changes nothing
        rate = np.average(y, weights=weights)
        return constant_mean(
            float(np.clip(np.log(rate / (1.0 - rate)) if 0 < rate < 1 else 0.0, -_MAX_LOGIT, _MAX_LOGIT))
        )


def check_labels(y: NDArray[Any]) -> None:
    """Labels must be discrete and present.

    Raises:
        InputError: If they are real numbers, or some are missing.
    """
    missing = np.array([value is None or value != value for value in y.tolist()])
    infinite = np.isinf(y) if y.dtype.kind == "f" else np.zeros(len(y), dtype=bool)
    if missing.any() or infinite.any():
        raise InputError(
            f"`y` must have a label for every row. Got NaN, None or infinity in {int((missing | infinite).sum())} of {len(y)}. "
            "Drop those rows."
        )
    kinds = {type(value) for value in y.tolist()} if y.dtype.kind == "O" else set()
    if str in kinds and len(kinds) > 1:
        raise InputError("`y` must be labels of one kind. Got text and numbers mixed. Convert them: y.astype(str).")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about many classes
        kind = type_of_target(y)
    if kind not in ("binary", "multiclass"):
        shown = y[y != np.floor(y)][0] if y.dtype.kind == "f" else y[0]
        raise InputError(
            f"`y` must be class labels. Unknown label type: {kind}, for example {shown}. Use GPRegressor for real values, "
            "or bin them."
        )
    if len(np.unique(y)) > 100 and len(np.unique(y)) > len(y) / 2:
        warnings.warn(
            f"`y` should be class labels. Got {len(np.unique(y))} different ones in {len(y)} rows. Use GPCountRegressor or "
            "GPRegressor if they are numbers.",
            ItergpWarning,
            stacklevel=5,
        )


def _shown(labels: NDArray[Any]) -> str:
    return "[" + ", ".join(map(repr, labels.tolist()[:8])) + (", ...]" if len(labels) > 8 else "]")
