"""Labels of classes, their weights, and probabilities."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import type_of_target

from itergp.errors import InputError, ItergpWarning
from itergp.explanation import ExpectedResponse, Response, label_probabilities, second_probability
from itergp.sklearn.base import Array, GPEstimator
from itergp.sklearn.files import takes_files
from itergp.sklearn.model import as_numpy
from itergp.tables import refuse_gaps


class LabelEstimator(ClassifierMixin, GPEstimator):
    """What classifiers share: labels, their weights, probabilities."""

    class_weight: Any
    classes_: NDArray[Any]
    _declared: NDArray[Any] | None
    _outputscale = 10.0  # sure probabilities need large latent values

    @takes_files
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Learns hyperparameters, then finds the posterior of all rows.

        Args:
            X: Inputs ``(N, D)``: a data frame, an array, or another table, see ``itergp.tables.TableEncoder``.
            y: Labels ``(N,)``, of any kind.
            sample_weight: Weights ``(N,)`` of the rows' log-densities; a weight of 2 is a row twice.

        Returns:
            The estimator.
        """
        self._declared = self._declare(y, None)
        return self._fit(X, y, sample_weight)

    @takes_files
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Any:
        """Adds rows: hyperparameters stay, and the posterior of all rows is found starting from the present one.

        The first call is ``fit``. Hyperparameters that were learned from fewer than 20 rows are learned again when
        these have doubled.

        Args:
            X: New rows ``(M, D)``.
            y: Their labels ``(M,)``.
            classes: All labels that may come, for ordered levels in increasing order, in the first call; default those of
                ``y``.
            sample_weight: Weights ``(M,)``.

        Returns:
            The estimator.
        """
        if self.__sklearn_is_fitted__():
            return self._append(X, y, sample_weight)
        self._declared = self._declare(y, classes)
        return self._fit(X, y, sample_weight, complete=False)

    def _declare(self, y: Any, classes: Any) -> NDArray[Any] | None:
        """All labels that may come; None for those of ``y``."""
        return None if classes is None else np.unique(classes)

    @property
    def _coded(self) -> NDArray[Any]:
        """Labels in the order in which the likelihood numbers them."""
        return self.classes_

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
            factors = np.ones(len(self._coded))
            factors[present.astype(int)] = compute_class_weight("balanced", classes=present, y=y)
        else:
            factors = np.array([self.class_weight.get(label, 1.0) for label in self._coded.tolist()], dtype=np.float64)
        return weights * factors[y.astype(int)]

    def _index(self, y: NDArray[Any]) -> Array:
        """Numbers of labels."""
        order = np.argsort(self._coded, kind="stable")
        ranked = self._coded[order]
        try:
            where = np.searchsorted(ranked, y).clip(max=len(ranked) - 1)
            unknown = ranked[where] != y
        except TypeError:
            where, unknown = np.zeros(len(y), dtype=int), np.ones(len(y), dtype=bool)
        if np.any(unknown):
            raise InputError(
                f"Labels must be among the classes {show_labels(self._coded)} that {type(self).__name__} knows. Got "
                f"{show_labels(np.unique(y[unknown]))}. Correct them, or fit again with all classes."
            )
        return order[where].astype(np.float64)

    def _label_names(self) -> tuple[str, ...]:
        return tuple(map(str, self._coded.tolist()))

    def _response(self) -> Response:
        calculus, names = self.model_.calculus, self._label_names()
        if calculus.num_latents == 1 and calculus.observes == "label":
            return ExpectedResponse(f"probability of {names[1]}", ("",), calculus, second_probability)
        return ExpectedResponse("probability", names, calculus, label_probabilities)

    @takes_files
    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of rows whose most probable label is the true one; of several labels at once, all of them.

        Args:
            X: Inputs ``(M, D)``.
            y: Labels ``(M,)``.
            sample_weight: Weights ``(M,)``.
        """
        return float(super().score(X, y, sample_weight))

    def predict_proba(self, X: Any) -> Array:
        """Probabilities of the classes, latent uncertainty integrated out.

        Args:
            X: Inputs ``(M, D)``.

        Returns:
            ``(M, C)``, columns in the order of ``classes_``.
        """
        probs = self._predicted(X, lambda predictive: as_numpy(predictive.probs))
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


def check_labels(y: NDArray[Any], *, least_repeats: float = math.inf) -> None:
    """Labels must be discrete and present.

    Args:
        y: Labels ``(N,)``.
        least_repeats: Rows per different number, from which on numbers that are not whole may be labels, as half stars.

    Raises:
        InputError: If they are real numbers, or some are missing.
    """
    refuse_gaps(y)
    infinite = np.isinf(y) if y.dtype.kind == "f" else np.zeros(len(y), dtype=bool)
    if infinite.any():
        raise InputError(
            f"`y` must be class labels. Got infinity in {int(infinite.sum())} of {len(y)} row(s), first in row "
            f"{np.flatnonzero(infinite)[0]}. Drop those rows."
        )
    is_text = np.array([isinstance(value, str) for value in y.tolist()])
    if is_text.any() and not is_text.all():
        rows = np.flatnonzero(is_text)[0], np.flatnonzero(~is_text)[0]
        raise InputError(
            f"`y` must be labels of one kind. Got text and others mixed, {y[rows[0]]!r} in row {rows[0]} and {y[rows[1]]!r} in "
            f"row {rows[1]}. Convert them: y.astype(str)."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about many classes
        kind = type_of_target(y)
    repeated = kind == "continuous" and len(y) >= least_repeats * len(np.unique(y))
    if kind not in ("binary", "multiclass") and not repeated:
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


def show_labels(labels: NDArray[Any]) -> str:
    """The first labels, for messages."""
    return "[" + ", ".join(map(repr, labels.tolist()[:8])) + (", ...]" if len(labels) > 8 else "]")
