"""Ordered levels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itergp.errors import InputError, ItergpWarning
from itergp.likelihoods import CategoricalLikelihood, Likelihood, OrdinalLikelihood
from itergp.sklearn.base import Array
from itergp.sklearn.checks import as_column, check_rows, check_weights
from itergp.sklearn.files import takes_files
from itergp.sklearn.former import formerly_first
from itergp.sklearn.labels import LabelEstimator, check_labels, show_labels
from itergp.sklearn.model import as_numpy

_ROUNDING = 1e-6  # of probabilities that are summed
_LEVEL_REPEATS = 2.0  # rows per different number, from which on those that are not whole are levels


class GPOrdinalClassifier(LabelEstimator):
    """Gaussian process for ordered levels, such as grades or ratings: one latent function, cut at learned points.

    One function cannot say "fair or ideal, not good": where held-out rows prefer it, each level has a latent function.

    Args:
        kernel: ``"auto"`` (default): several kernels, and scales of the columns, compete on held-out rows, see
            ``comparison_``; ``"matern32"``, ``"matern12"``, ``"matern52"``, ``"rbf"``, ``"laplacian"``,
            ``"rational_quadratic"``, ``"linear"``; a GPyTorch kernel, which is copied; or a kernel of scikit-learn, which is
            translated.
        levels: The labels in increasing order. None: numbers by size, an ordered pandas Categorical by its order.
        ard: One lengthscale per column of the table, for kernels by name. None: for up to 100 columns.
        groups: Columns of groups, as in mixed models, by name or number: ``"school"`` adds an effect of each school, with one
            variance for all; ``{"school": ["income"]}`` also lets the slope of a numeric column differ by school. A school that
            there was none of in training has the prior.
        standardize: Bring columns to mean 0 and deviation 1; constant ones become zero. Those that a GPyTorch kernel
            reads in their own units stay: category numbers, a period that was set, a grid, inducing points.
        likelihood: ``"ordinal"``, one latent function with cutpoints; ``"categorical"``, one per level; ``"auto"``:
            they compete on held-out rows where the kernel does, and otherwise it is the former.
        link: ``"logit"`` or ``"probit"``, of the former.
        approximation: ``"variational"``, ``"laplace"``, or ``"auto"``: variational, or what held-out rows prefer, together with
            the share of the covariance that is integrated, when there are 100 rows or more.
        optimizer: ``"auto"``, ``"adam"``, ``"lbfgs"``, or None to keep hyperparameters at what the kernel says.
        max_iterations: Steps of the optimiser.
        fit_options: Further keywords of ``itergp.fit``.
        solver: How the posterior is found; default ``itergp.solvers.SubspaceNewton()``, and beyond 100,000 distinct ones
            ``LinearTimeNewton()``, unless the kernel is additive and takes linear time itself.
        class_weight: Weights by level, ``"balanced"``, or None.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: ``"float32"``, ``"float64"``, or ``"auto"``: float64 up to 2,000 distinct rows.
        random_state: Seed of the optimiser's random splits; equal seeds give equal results.
        verbose: Show progress.

    Attributes:
        levels_: The labels in increasing order.
        classes_: The labels sorted as scikit-learn sorts them, which is the order of the columns of ``predict_proba``.
        n_features_in_: Number of columns of the table.
        feature_names_in_: Their names, if ``X`` was a data frame.
        columns_: What became of each of them; ``encoder_`` is what encodes tables.
        model_: The ``NonConjugateGP``, for everything else; its likelihood has the cutpoints.
        result_: The ``FitResult``; None with ``optimizer=None``.
        kernel_: The kernel as learned.
        comparison_: Which kernels competed and how they did, or None.
        kernel_passes_: Products with the kernel matrix that conditioning took, over ``fit`` and every ``partial_fit``.
        log_marginal_likelihood_value_: The evidence lower bound (ELBO), or where the approximation is Laplace's, its
            estimate of the log marginal likelihood, in nats, for all rows.

    Raises:
        InputError: If data or arguments cannot be used.

    Examples:
        >>> import numpy as np
        >>> X = np.linspace(0.0, 3.0, 60)[:, None]
        >>> grades = np.array(["poor", "fair", "good"])[X[:, 0].astype(int).clip(max=2)]
        >>> classifier = GPOrdinalClassifier(levels=["poor", "fair", "good"], max_iterations=10).fit(X, grades)
        >>> classifier.predict([[0.2], [2.8]]).tolist()
        ['poor', 'good']
    """

    levels_: NDArray[Any]

    @formerly_first("levels")
    def __init__(
        self,
        kernel: Any = "auto",
        *,
        levels: Sequence[Any] | None = None,
        ard: bool | None = None,
        groups: Any = None,
        standardize: bool = True,
        likelihood: str = "auto",
        link: str = "logit",
        approximation: str = "auto",
        optimizer: str | None = "auto",
        max_iterations: int = 50,
        fit_options: dict[str, Any] | None = None,
        solver: Any = None,
        class_weight: Any = None,
        device: Any = None,
        dtype: str = "auto",
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.levels = levels
        self.kernel = kernel
        self.ard = ard
        self.groups = groups
        self.standardize = standardize
        self.likelihood = likelihood
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

    def _declare(self, y: Any, classes: Any) -> NDArray[Any] | None:
        kind = getattr(y, "dtype", None)
        ordered = kind.categories if kind is not None and getattr(kind, "ordered", False) else None
        levels = next((given for given in (self.levels, classes, ordered) if given is not None), None)
        return None if levels is None else np.asarray(levels)

    def predict_quantiles(self, X: Any, quantiles: Sequence[float] = (0.05, 0.5, 0.95)) -> NDArray[Any]:
        """Quantiles of the level: the lowest whose cumulative probability reaches each of Q numbers.

        Args:
            X: Inputs ``(M, D)``.
            quantiles: Q numbers between 0 and 1.

        Returns:
            Labels ``(M, Q)``.
        """
        levels = [float(level) for level in quantiles]
        cumulative = self._predicted(X, lambda predictive: as_numpy(predictive.probs)).cumsum(-1)
        index = np.stack([(cumulative < q - _ROUNDING).sum(-1) for q in levels], -1)
        return self.levels_[index.clip(max=len(self.levels_) - 1)]

    def predict_proba(self, X: Any) -> Array:
        """Probabilities of the labels, latent uncertainty integrated out.

        Args:
            X: Inputs ``(M, D)``.

        Returns:
            ``(M, K)``, columns in the order of ``classes_``.
        """
        return super().predict_proba(X)[:, np.argsort(self.levels_, kind="stable")]

    @takes_files
    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of rows whose most probable level is the true one.

        Args:
            X: Inputs ``(M, D)``.
            y: Levels ``(M,)``.
            sample_weight: Weights ``(M,)``.
        """
        predicted, levels = self.predict(X), as_column(self, y)
        check_rows(len(predicted), levels)
        right = predicted == levels
        return float(np.average(right, weights=check_weights(len(right), sample_weight)))

    @property
    def _coded(self) -> NDArray[Any]:
        return self.levels_

    def _encode(self, y: NDArray[Any], *, first: bool) -> Array:
        known = not first or self._declared is not None
        check_labels(y, least_repeats=0.0 if known else _LEVEL_REPEATS)
        if first:
            self.levels_ = np.unique(y) if self._declared is None else self._declared
            self.classes_ = np.unique(self.levels_)
            if len(self.classes_) < max(2, len(self.levels_)):
                raise InputError(
                    f"`y` must have at least two different levels for {type(self).__name__}. Got one class only or one twice, "
                    f"{show_labels(self.levels_)}. Check `levels` and how the rows were selected."
                )
            if self._declared is None and self.levels_.dtype.kind not in "iufb":
                warnings.warn(
                    f"`levels` should say the order of the labels. Got text without it: {show_labels(self.levels_)} is taken "
                    "to increase. Pass levels=[lowest, ..., highest].",
                    ItergpWarning,
                    stacklevel=5,
                )
        return self._index(y)

    def _likelihoods(self) -> dict[str, Callable[[], Likelihood]]:
        count = len(self.levels_)
        known: dict[str, Callable[[], Likelihood]] = {
            "ordinal": partial(OrdinalLikelihood, count, link=self.link),  # type: ignore[arg-type] # which checks it
            "categorical": partial(CategoricalLikelihood, count),
        }
        if self.likelihood not in ("auto", *known):
            raise InputError(
                f"`likelihood` must be 'auto', 'ordinal' or 'categorical'. Got {self.likelihood!r}. Choose one of these."
            )
        if self.likelihood == "auto":  # of two levels, both are one
            return known if count > 2 else {"ordinal": known["ordinal"]}
        return {self.likelihood: known[self.likelihood]}
