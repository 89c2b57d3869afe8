"""Classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import gpytorch
import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from itergp.errors import InputError, ItergpWarning
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood, IndependentOutputsLikelihood, Likelihood
from itergp.sklearn.base import Array
from itergp.sklearn.checks import as_column, as_real
from itergp.sklearn.labels import LabelEstimator, check_labels, show_labels
from itergp.sklearn.model import as_numpy, constant_mean
from itergp.tables import as_target_column

_MAX_LOGIT = 4.0


class GPClassifier(LabelEstimator):
    """Gaussian process classifier on all rows: logit or probit for two classes, softmax for more, and several labels at once.

    Takes the place of scikit-learn's ``GaussianProcessClassifier``: exact to a certified tolerance, in a few passes over the
    kernel matrix instead of repeated factorisations, with one joint model of all classes instead of one against the rest.
    Columns are standardised and lengthscales, output scale and mean are learned unless you say otherwise.

    Targets ``(N, C)`` of 0 and 1 are labels that a row has or has not, any number of them: each has a function and a mean of
    its own, they share a kernel and the passes over it, and are independent of each other.

    Args:
        kernel: ``"auto"`` (default): several kernels, and scales of the columns, compete on held-out rows, see
            ``comparison_``; ``"matern32"``, ``"matern12"``, ``"matern52"``, ``"rbf"``, ``"laplacian"``,
            ``"rational_quadratic"``, ``"linear"``; a GPyTorch kernel, which is copied; or a kernel of scikit-learn, which is
            translated.
        ard: One lengthscale per column of the table, for kernels by name. None: for up to 100 columns.
        groups: Columns of groups, as in mixed models, by name or number: ``"school"`` adds an effect of each school, with one
            variance for all; ``{"school": ["income"]}`` also lets the slope of a numeric column differ by school. A school that
            there was none of in training has the prior.
        standardize: Bring columns to mean 0 and deviation 1; constant ones become zero. Those that a GPyTorch kernel
            reads in their own units stay: category numbers, a period that was set, a grid, inducing points.
        link: ``"logit"`` or ``"probit"``, for two classes, or each of several labels.
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
        class_weight: Weights by class, ``"balanced"``, or None.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: ``"float32"``, ``"float64"``, or ``"auto"``: float64 up to 2,000 distinct rows.
        random_state: Seed of the optimiser's random splits; equal seeds give equal results.
        verbose: Show progress.
        warm_start: Whether ``fit`` starts from the hyperparameters of the fit before.
        n_restarts_optimizer: How often learning starts again from random hyperparameters; the best counts.
        max_iter_predict: No effect; here for ``GaussianProcessClassifier``'s sake, as are the next three.
        copy_X_train: No effect.
        multi_class: No effect: all classes are modelled jointly.
        n_jobs: No effect: torch uses the cores; see ``torch.set_num_threads``.

    Attributes:
        classes_: The labels, sorted; of several labels at once their numbers ``0..C-1``.
        n_classes_: Their number.
        n_outputs_: Number of columns of the targets.
        n_features_in_: Number of columns of the table.
        feature_names_in_: Their names, if ``X`` was a data frame.
        columns_: What became of each of them; ``encoder_`` is what encodes tables.
        model_: The ``NonConjugateGP``, for everything else: certificate, posterior, predictive distributions.
        result_: The ``FitResult``; None with ``optimizer=None``.
        kernel_: The kernel as learned.
        comparison_: Which kernels competed and how they did, or None.
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
        kernel: Any = "auto",
        *,
        ard: bool | None = None,
        groups: Any = None,
        standardize: bool = True,
        link: str = "logit",
        approximation: str = "auto",
        optimizer: str | None = "auto",
        max_iterations: int = 50,
        fit_options: dict[str, Any] | None = None,
        solver: Any = None,
        prior_mean: str | None = None,
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
        self.groups = groups
        self.standardize = standardize
        self.link = link
        self.approximation = approximation
        self.optimizer = optimizer
        self.max_iterations = max_iterations
        self.fit_options = fit_options
        self.solver = solver
        self.prior_mean = prior_mean
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

    def _learning_options(self, num_rows: int) -> dict[str, Any]:
        return super()._learning_options(num_rows) | {"num_restarts": self.n_restarts_optimizer}

    @property
    def n_classes_(self) -> int:
        """Number of classes."""
        return len(self.classes_)

    def __sklearn_tags__(self) -> Any:
        """Targets may be several labels at once."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = tags.target_tags.multi_output = True
        return tags

    def predict_proba(self, X: Any) -> Array:
        """Probabilities of the classes, latent uncertainty integrated out.

        Args:
            X: Inputs ``(M, D)``.

        Returns:
            ``(M, C)``, columns in the order of ``classes_``; of several labels at once those of having each.
        """
        if self._num_labels == 1:
            return super().predict_proba(X)
        return self._predicted(X, lambda predictive: np.stack([as_numpy(one.probs) for one in predictive.outputs], -1))

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of every row ``(M,)``, or with several labels at once which it has ``(M, C)``.

        Args:
            X: Inputs ``(M, D)``.
        """
        return super().predict(X) if self._num_labels == 1 else (self.predict_proba(X) > 0.5).astype(int)

    def _log_prob(self, predictive: Any, targets: Tensor) -> Tensor:
        densities = super()._log_prob(predictive, targets)
        return densities if self._num_labels == 1 else densities.sum(-1)

    @property
    def _num_labels(self) -> int:
        """Of several labels at once their number, otherwise 1."""
        check_is_fitted(self)
        return self.n_outputs_

    def _target_rows(self, y: Any) -> NDArray[Any]:
        dense = y.toarray() if hasattr(y, "toarray") else y
        columns = None if dense is None else as_target_column(dense)
        return as_column(self, dense) if columns is None or columns.ndim != 2 or columns.shape[1] < 2 else columns

    def _encode_labels(self, y: NDArray[Any], *, first: bool) -> Array:
        """Several labels at once ``(N, C)``."""
        values = as_real(y)
        wrong = (values != 0.0) & (values != 1.0)
        if wrong.any():
            row = int(np.flatnonzero(wrong.any(1))[0])
            raise InputError(
                f"`y` of several columns must be 0 and 1, which labels a row has. Got {values[row][wrong[row]][0]:g} in row "
                f"{row}. Pass one column for classes, fit one classifier per column for several sets of classes, or see "
                "MultiLabelBinarizer."
            )
        if first:
            if self.class_weight is not None or self.prior_mean is not None:
                raise InputError(
                    "`class_weight` and `prior_mean` must be left out for several labels at once, which have no classes. Got "
                    f"{self.class_weight!r} and {self.prior_mean!r}. Weigh rows by sample_weight, or fit a classifier for each."
                )
            if len(values) > 1 and (values.sum(1) == 1.0).all():
                warnings.warn(
                    f"`y` of several columns should be labels of which a row may have any number. Got one in every row of "
                    f"{len(values)}, and they are taken to be independent. Pass y.argmax(1) if they are classes.",
                    ItergpWarning,
                    stacklevel=6,
                )
            self.n_outputs_, self.classes_ = values.shape[1], np.arange(values.shape[1])
        return values

    def _encode(self, y: NDArray[Any], *, first: bool) -> Array:
        count = y.shape[1] if y.ndim == 2 else 1
        if not first and count != self.n_outputs_:
            raise InputError(
                f"`y` must have {self.n_outputs_} column(s), as in the training data. Got {count}. Select the same."
            )
        if count > 1:
            return self._encode_labels(y, first=first)
        check_labels(y)
        if first:
            self.n_outputs_ = 1
            self.classes_ = np.unique(y) if self._declared is None else self._declared
            if len(self.classes_) < 2:
                raise InputError(
                    f"`y` must have at least two classes for {type(self).__name__}. Got one class only, "
                    f"{show_labels(self.classes_)}. Check how the rows were selected."
                )
        return self._index(y)

    def _likelihoods(self) -> dict[str, Callable[[], Likelihood]]:
        if self.n_outputs_ > 1:
            return {"bernoulli": self._of_labels}
        if len(self.classes_) > 2:
            return {"categorical": partial(CategoricalLikelihood, len(self.classes_))}
        return {"bernoulli": partial(BernoulliLikelihood, link=self.link)}  # type: ignore[arg-type] # which checks it

    def _boosted_targets(self, y: Array, weights: Array) -> tuple[Array, Array, dict[str, Any]]:
        return y, weights, {"loss": "log_loss", "classes": len(self.classes_)}

    def _make_mean(self, y: Array, weights: Array) -> gpytorch.means.Mean:
        if self.n_outputs_ > 1:
            columns = y.T if y.ndim == 2 else np.zeros((self.n_outputs_, len(y)))  # a file's start anywhere
            return constant_mean(*(_logit(float(np.average(column, weights=weights))) for column in columns))
        if len(self.classes_) > 2:
            return gpytorch.means.ZeroMean()  # a constant for all classes changes nothing
        return constant_mean(_logit(float(np.average(y, weights=weights))))

    def _of_labels(self) -> Likelihood:
        members = (BernoulliLikelihood(link=self.link) for _ in range(self.n_outputs_))  # type: ignore[arg-type] # as above
        return IndependentOutputsLikelihood(*members)


def _logit(rate: float) -> float:
    """Of a rate, 0 where it is none."""
    return float(np.clip(np.log(rate / (1.0 - rate)) if 0.0 < rate < 1.0 else 0.0, -_MAX_LOGIT, _MAX_LOGIT))
