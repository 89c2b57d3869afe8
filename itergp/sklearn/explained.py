"""What every fitted estimator says about itself: see ``itergp.explanation``, which does it."""

from __future__ import annotations

import copy
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from itergp import explanation
from itergp.errors import InputError, ItergpWarning
from itergp.explanation import Response, Subject, Summary
from itergp.explanation.report import short_html
from itergp.learning import Structure
from itergp.models import GP
from itergp.solvers import Solution
from itergp.tables import TableEncoder

Array = NDArray[np.float64]


class Explained:
    """Mixin of the estimators: summary, importances, effects and report."""

    model_: GP
    encoder_: TableEncoder
    likelihood_: str
    structure_: Structure | None
    n_outputs_: int
    warm_start: bool
    kernel_: Any
    _explanation: tuple[Solution, Subject]

    # ------------------------------------------------------ what an estimator says
    @abstractmethod
    def _response(self) -> Response:
        """What its latent functions mean."""

    @abstractmethod
    def _known_rows(self) -> tuple[Array, Array, Array]:
        """Encoded inputs, encoded targets and weights of the rows that the model has, in the units of the data."""

    @abstractmethod
    def _fit_rows(self, values: Array, targets: Array, weights: Array) -> None:
        """Learns from encoded rows."""

    @abstractmethod
    def _rows(
        self, X: Any, y: Any, sample_weight: Any, observation: dict[str, Any], *, first: bool, complete: bool = True
    ) -> tuple[Array, Array, Array]:
        """Encoded inputs, encoded targets and weights of rows."""

    @abstractmethod
    def _inputs(self, values: Array) -> Array:
        """The model's inputs for encoded rows that it was not fitted to."""

    @abstractmethod
    def _model_targets(self, y: Array) -> Array:
        """Encoded targets in the units of the model."""

    @abstractmethod
    def _kernel(self) -> Any:
        """The kernel that was asked for."""

    def _label_names(self) -> tuple[str, ...]:
        """Labels in the order of their numbers; none where targets are no labels."""
        return ()

    def _unit(self) -> float | Array:
        """One unit of the model's targets in units of the data, or of each output ``(C,)``."""
        return 1.0

    def _observes(self) -> str:
        """What an observation is, as ``Subject.observes``."""
        return str(self.model_.calculus.observes)

    def _knows_noise_of_rows(self) -> bool:
        """Whether the noise was given row by row."""
        return False

    # -------------------------------------------------------------------- public
    @property
    def feature_importances_(self) -> Array:
        """Share of each column of the table in what the model says, ``(n_features_in_,)``, with a sum of 1.

        It is the column's total effect on the posterior mean of the latent function: half the mean squared change of it when
        the column's values are exchanged between rows (Jansen's formula for the total-effect index of Homma and Saltelli),
        divided by the sum over columns. Interactions count for every column that takes part in them; one-hot levels, parts
        of a date and marks of gaps count for their column; columns that were left out have 0. Columns that say the same
        share what they say. The exchanges are the same at every call, and take some 30,000 latent means.
        """
        try:
            return explanation.importances(self._subject())
        except InputError as error:  # of several targets there are none, as scikit-learn's diagrams ask
            raise AttributeError(str(error)) from error

    def summary(self) -> Summary:
        """What was learned, in the units of the columns: what each of them does, the noise, the score, what limits the model.

        The score is that of rows that are held out in turn, with the kernel and the noise that all rows chose; ``report``
        learns these anew. It takes a solve or a few.

        Returns:
            A ``Summary``, to print; its ``columns`` is a data frame.

        Raises:
            ImportError: If pandas is not installed.
        """
        return explanation.summarise(self._subject())

    def effects(self, columns: Any = None) -> Any:
        """The average effect of columns, with bands: what rows would have on average if all had one value of a column.

        Effects are on what ``predict`` gives: values, expected counts, probabilities of classes, median times (their geometric
        mean). The posterior itself is integrated, also where ``predict_proba`` tempers it, and averaged over some 60 rows.

        Args:
            columns: Names or numbers of columns of the table; default all.

        Returns:
            A data frame with a row for each ``value`` of a ``column``, and for each ``output`` where there are several:
            ``effect``, ``low`` and ``high``, the ends of a 90 % band of that average from the joint posterior, and the
            ``share`` of the training rows that are nearest to this value. Gaps are a value.

        Raises:
            InputError: If there is no such column.
            ImportError: If pandas is not installed.
        """
        return explanation.effects(self._subject(), columns)

    def interaction(self, first: Any, second: Any) -> Any:
        """The joint average effect of two columns, see ``effects``.

        Args:
            first: Name or number of a column.
            second: Of another one.

        Returns:
            A data frame with a row for each pair of values.

        Raises:
            InputError: If they are not two columns.
            ImportError: If pandas is not installed.
        """
        return explanation.interaction(self._subject(), first, second)

    def plot_effects(
        self, columns: Any = None, interactions: Iterable[tuple[Any, Any]] | None = None, ax: Any = None
    ) -> Any:
        """Draws ``effects``: curves with 90 % bands, levels as points with bars, dates on an axis of dates, pairs as maps.

        Args:
            columns: Names or numbers of columns; default the most important ones, twelve at most; an empty list for pairs
                alone.
            interactions: Pairs of columns, each drawn as a map.
            ax: Axes of matplotlib to draw in, as many as there are columns and pairs; default a new figure.

        Returns:
            The axes: one, or an array of them.

        Raises:
            InputError: If there is no such column, or there are not as many axes.
            ImportError: If matplotlib is not installed.
        """
        return explanation.plot_effects(self._subject(), columns, interactions, ax)

    def report(
        self,
        path: str | os.PathLike[str],
        X: Any = None,
        y: Any = None,
        *,
        sample_weight: Any = None,
        **observation: Any,
    ) -> None:
        """Writes one HTML file about the model, with figures in it and nothing that is loaded from elsewhere.

        It says what the data were, how well the model predicts held-out rows beside baselines, whether its probabilities or
        intervals are right, what columns do, and what to do next. An existing file is replaced in one step.

        Args:
            path: Where to.
            X: Rows that the model has not seen. Default: a quarter of its own, which a copy of the estimator learns without;
                that takes as long as ``fit``.
            y: Their targets.
            sample_weight: Their weights in scores; default 1.
            **observation: What ``fit`` was told about rows, of these: ``exposure``.

        Raises:
            InputError: If rows do not fit, or the file cannot be written.
            ImportError: If pandas or matplotlib are not installed.
        """
        check_is_fitted(self)
        explanation.write_report(path, self._subject(), self._unseen(X, y, sample_weight, observation))

    # -------------------------------------------------------------------- inside
    def _unseen(
        self, X: Any, y: Any, sample_weight: Any, observation: dict[str, Any]
    ) -> tuple[Array, Array, Array] | None:
        return None if X is None and y is None else self._rows(X, y, sample_weight, observation, first=False)

    def _subject(self) -> Subject:
        """What is explained; made again when the model has changed."""
        check_is_fitted(self)
        solution = self.model_.solution
        if "_explanation" not in vars(self) or self._explanation[0] is not solution:
            self._explanation = (solution, self._make_subject())
        return self._explanation[1]

    def _make_subject(self) -> Subject:
        if getattr(self, "n_outputs_", 1) > 1:
            raise InputError(
                f"Explanations are those of one target. Got a model of {self.n_outputs_}. Fit one estimator per column of `y` "
                "to explain."
            )
        values, targets, weights = self._known_rows()
        return Subject(
            name=type(self).__name__,
            model=self.model_,
            encoder=self.encoder_,
            values=values,
            targets=targets,
            weights=weights,
            inputs=self._as_inputs,
            model_targets=self._model_targets,
            observes=self._observes(),
            unit=float(self._unit()),
            response=self._response(),
            refitted=self._refitted,
            labels=self._label_names(),
            known_noise=self._knows_noise_of_rows(),
            described=self._described(),
            formula=lambda: repr(self.kernel_),
        )

    def _described(self) -> str:
        """Distribution and kernel, in words."""
        kernel, structure = self._kernel(), self.structure_
        shown = kernel if isinstance(kernel, str) else type(self.model_.covar_module).__name__
        likelihood = self.likelihood_.replace("_", " ")
        return f"{likelihood} observations, kernel {shown if structure is None else structure}"

    def _as_inputs(self, values: Array) -> Tensor:
        """Encoded rows as the model takes them."""
        like = self.model_.held_data.like
        return torch.as_tensor(self._inputs(values), dtype=like.dtype, device=like.device)

    def _refitted(self, rows: NDArray[np.intp]) -> Subject:
        """The same estimator, that has learned from some of its rows alone."""
        twin = copy.copy(self)
        vars(twin).pop("_explanation", None)
        twin.warm_start = False
        twin._keep_rows(rows)
        values, targets, weights = self._known_rows()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ItergpWarning)  # all rows have been warned of
            twin._fit_rows(values[rows], targets[rows], weights[rows])
        return twin._subject()

    def _keep_rows(self, rows: NDArray[np.intp]) -> None:
        """Leaves all but some rows out of what is known row by row."""

    def __getstate__(self) -> dict[str, Any]:
        """State for pickle: without explanations, which are made again."""
        state: Any = super().__getstate__()  # of BaseEstimator
        return {name: value for name, value in state.items() if name != "_explanation"}

    # ---------------------------------------------------------------- in notebooks
    @property
    def _repr_html_(self) -> Callable[[], str]:
        diagram = super()._repr_html_  # type: ignore[misc] # of BaseEstimator
        return lambda: self._short_html() + diagram()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = super()._repr_mimebundle_(**options)  # type: ignore[misc] # of BaseEstimator
        if "text/html" in bundle:
            bundle["text/html"] = self._short_html() + bundle["text/html"]
        return bundle

    def _short_html(self) -> str:
        """A few facts of a fitted estimator; nothing of another."""
        if not hasattr(self, "model_") or self.model_.current_solution is None or getattr(self, "n_outputs_", 1) > 1:
            return ""
        return short_html(self._subject())
