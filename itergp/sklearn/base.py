"""What the estimators share: from data to a conditioned model, and new rows later."""

from __future__ import annotations

import inspect
import itertools
import math
import os
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gpytorch
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from itergp import learning
from itergp.baselines.rows import TASK_OF
from itergp.diagnostics import ProgressBar
from itergp.errors import InputError, ItergpWarning, SolverError
from itergp.explanation.kernel_text import KernelColumns, describe_kernel, printing
from itergp.learning import FitResult, Structure
from itergp.learning.calibration import judge_predictions
from itergp.likelihoods import Likelihood, as_likelihood
from itergp.models import GP
from itergp.models.offset_mean import OffsetMean
from itergp.models.saving import restore_model
from itergp.models.streaming import of_rows
from itergp.numerics.distinct_rows import DistinctRows
from itergp.objectives import NEVER, Deadline, OutOfTimeError
from itergp.sklearn.base_rate import warn_below_base_rate
from itergp.sklearn.boosting import PRIOR_MEANS, BoostedTrees, boost
from itergp.sklearn.checks import (
    as_column,
    check_codes,
    check_rows,
    check_size,
    check_weights,
    list_columns,
    warn_of_heavy_weights,
)
from itergp.sklearn.columns import code_columns, input_columns, unit_columns
from itergp.sklearn.explained import Explained
from itergp.sklearn.files import takes_files
from itergp.sklearn.kernels import category_columns, is_automatic, is_own, make_kernel, raw_columns
from itergp.sklearn.model import (
    DOUBLE_ROWS,
    as_device,
    as_dtype,
    as_numpy,
    default_solver,
    lacks_digits,
    signal_to_noise,
    take_hyperparameters,
    warn_of_ending,
)
from itergp.sklearn.saving import SavedEstimator, read_estimator, write_estimator
from itergp.sklearn.scaling import Scaling
from itergp.solvers import Solution
from itergp.tables import (
    CategoricalColumn,
    DateColumn,
    GapColumn,
    NumericColumn,
    Table,
    TableColumns,
    TableEncoder,
    TableFile,
    as_file,
    is_file,
    read_table,
)

Array = NDArray[np.float64]

# Fewer say so little about hyperparameters that ``partial_fit`` learns them again when the rows have doubled.
_ENOUGH_ROWS = 20
# Held-out rows choose the predictive distribution of classifiers from this number on; of fewer they choose by luck.
_CALIBRATION_ROWS = 100
_JUDGED_ROWS = 1000  # of which a quarter says whether predictions are better than none
_RANK = math.sqrt(1.0 / 12.0)  # standard deviation of ranks from 0 to 1
# the last is scikit-learn's name
_OPTIMIZERS = {"auto": "auto", "adam": "adam", "lbfgs": "lbfgs", "fmin_l_bfgs_b": "lbfgs"}


class GPEstimator(Explained, BaseEstimator):
    """Base class of the estimators; see those for arguments and attributes."""

    kernel: Any
    ard: bool | None
    standardize: bool
    approximation: str
    optimizer: str | None
    max_iterations: int
    fit_options: dict[str, Any] | None
    solver: Any
    prior_mean: str | None = None
    groups: Any
    device: Any
    dtype: str
    random_state: Any
    verbose: bool
    kernel_passes_: int
    log_marginal_likelihood_value_: float
    model_: GP
    result_: FitResult | None
    encoder_: TableEncoder
    n_features_in_: int
    feature_names_in_: NDArray[Any]
    likelihood_: str
    structure_: Structure | None
    boosting_: BoostedTrees | None = None
    classes_: NDArray[Any]
    levels_: NDArray[Any]
    n_outputs_: int
    _scaling: Scaling
    _codes: dict[int, int]  # columns of category numbers, and how many categories the kernel knows
    _learned_rows: int  # rows that hyperparameters were learned from
    _weights_count_rows = True  # and are no exposures
    _outputscale = 1.0  # where learning starts: standardised targets, logarithms of rates

    # ------------------------------------------------- what an estimator says
    def _target_rows(self, y: Any) -> NDArray[Any]:
        """Targets of any container, one entry per row."""
        return as_column(self, y)

    @abstractmethod
    def _encode(self, y: NDArray[Any], *, first: bool) -> Array:
        """Checked targets as numbers for the likelihood; ``first`` when the training data define what they may be."""

    def _second_column(self, y: Array, observation: dict[str, Any], *, first: bool) -> Array:
        """Encoded targets, with what else was said about the observations as a second column."""
        return y

    @abstractmethod
    def _likelihoods(self) -> dict[str, Callable[[], Any]]:
        """Likelihoods by name that compete for the targets; the first is the one to begin with."""

    def _make_likelihood(self) -> Likelihood:
        """The likelihood that was chosen, or the one to begin with."""
        known = self._likelihoods()
        return known[getattr(self, "likelihood_", next(iter(known)))]()

    def _make_mean(self, y: Array, weights: Array) -> gpytorch.means.Mean:
        """Prior mean for encoded targets."""
        return gpytorch.means.ZeroMean()

    def _boosted_targets(self, y: Array, weights: Array) -> tuple[Array, Array, dict[str, Any]]:
        """What trees are grown for: targets and weights as ``boost`` takes them, and its options."""
        return self._model_targets(y), weights, {"loss": "squared_error", "classes": 1}

    def _row_weights(self, y: Array, weights: Array, *, first: bool) -> Array:
        """Weights of rows with those of their classes."""
        return weights

    def _learn_targets(self, y: Array, weights: Array) -> None:
        """Looks at the training targets before they are encoded for the model, for example to standardise them."""

    def _model_targets(self, y: Array) -> Array:
        """Encoded targets in the units of the model."""
        return y

    def _data_targets(self, y: Array) -> Array:
        """Targets in the units of the model as they were encoded."""
        return y

    def _kernel(self) -> Any:
        """The kernel of the latent functions, as ``make_kernel`` takes it."""
        return self.kernel

    def _num_kernels(self) -> int:
        """How many latent functions get a kernel by name of their own; 1 shares one."""
        return 1

    # ------------------------------------------------------------------- data
    def _fit(self, X: Any, y: Any, sample_weight: Any, *, complete: bool = True, **observation: Any) -> Any:
        """Learns from rows; not ``complete`` when more may come, which columns that say nothing yet are kept for."""
        self._prepare(*self._rows(X, y, sample_weight, observation, first=True, complete=complete))
        self._fit_model()  # once the encoded rows are gone
        return self

    def _fit_rows(self, values: Array, targets: Array, weights: Array) -> None:
        """Learns scaling and hyperparameters, and finds the posterior."""
        self._prepare(values, targets, weights)
        self._fit_model()

    def _prepare(self, values: Array, targets: Array, weights: Array) -> None:
        """Learns scaling, and makes the model.

        Args:
            values: Encoded inputs ``(N, E)``, which are written over.
            targets: Encoded targets.
            weights: Weights ``(N,)``.
        """
        self._check_settings()
        self._scaling = self._learn_scaling(values, weights)
        self._codes = category_columns(self._kernel(), values.shape[1])
        if len(values) > 1:  # a single one says nothing about what varies
            self._warn_of_constants()
        self._learn_targets(targets, weights)
        if not (getattr(self, "warm_start", False) and hasattr(self, "model_")):
            self.likelihood_, self.structure_ = next(iter(self._likelihoods())), None
        self.boosting_, unseen = None, None
        if self.prior_mean is not None:
            self.boosting_, unseen = self._boost(values, targets, weights)
        scaled = self._scaled(values, out=values)
        scaled = scaled if unseen is None else np.concatenate([scaled, unseen], 1)
        self.model_ = self._build(scaled, targets, weights)

    def _fit_model(self) -> None:
        """Learns hyperparameters, and finds the posterior."""
        num_rows = len(self.model_.train_targets)
        limit = (self.fit_options or {}).get("time_limit")
        deadline = Deadline() if limit is None else Deadline(time.perf_counter() + limit)
        self.result_ = self._learn(num_rows)
        self._learned_rows = num_rows
        self._conclude(first=True, deadline=deadline)
        self._compare_with_base_rate(deadline)

    def _boost(self, values: Array, targets: Array, weights: Array) -> tuple[BoostedTrees, Array]:
        """Trees, and what those predict of each row that have not seen it."""
        wanted, counted, options = self._boosted_targets(targets, weights)
        seed = int(check_random_state(self.random_state).randint(2**31 - 10))
        return boost(values, wanted, counted, seed=seed, **options)

    def _learn_scaling(self, values: Array, weights: Array) -> Scaling:
        if not self.standardize:
            return Scaling.nothing(values)
        learned = Scaling.learn(values, weights)
        if is_own(self._kernel()):
            raw = raw_columns(self._kernel(), values.shape[1])
            raw[code_columns(self.encoder_.columns_)] = True
            return learned.except_for(raw)
        return learned.except_for(*unit_columns(self.encoder_))

    def _append(self, X: Any, y: Any, sample_weight: Any, **observation: Any) -> Any:
        values, targets, weights = self._rows(X, y, sample_weight, observation, first=False)
        self._warn_of_unseen(values)
        known = self.model_.train_targets.shape[0]
        if self._learned_rows < _ENOUGH_ROWS and known + len(values) >= 2 * self._learned_rows:
            passes = self.kernel_passes_
            together = zip(self._known_rows(), (values, targets, weights), strict=True)
            self._fit_rows(*(np.concatenate(pair) for pair in together))
            self.kernel_passes_ += passes
            return self
        x, y, w = self._tensors(self._inputs(values), targets, weights)
        self.model_.append_train_data(x, y, sample_weight=w)
        self.model_.condition(progress=bool(self.verbose))
        self._conclude(first=False)
        return self

    def _known_rows(self) -> tuple[Array, Array, Array]:
        """Inputs, encoded targets and weights of the rows that the model has, in the units of the data."""
        model = self.model_
        weights = np.ones(len(model.train_targets)) if model.sample_weight is None else as_numpy(model.sample_weight)
        values = self._scaling.restore(as_numpy(model.train_inputs[0])[:, : self.encoder_.num_encoded])
        return values, self._data_targets(as_numpy(model.train_targets)), weights

    def _rows(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        observation: dict[str, Any],
        *,
        first: bool,
        complete: bool = True,
    ) -> tuple[Array, Array, Array]:
        """Encoded inputs, encoded targets and weights of the rows whose weight is not zero."""
        table = read_table(X)
        with ProgressBar(enabled=bool(self.verbose) and table.on_demand) as bar:
            return self._read_rows(_heard(table, bar), y, sample_weight, observation, first=first, complete=complete)

    def _read_rows(
        self, table: Table, y: Any, sample_weight: Any, observation: dict[str, Any], *, first: bool, complete: bool
    ) -> tuple[Array, Array, Array]:
        column = self._target_rows(y)
        check_rows(table.num_rows, column)
        weights = check_weights(table.num_rows, sample_weight)
        if first and self._weights_count_rows:
            warn_of_heavy_weights(weights, stacklevel=6)
        targets = self._encode(column, first=first)
        weights = self._row_weights(targets, weights, first=first)
        targets = self._second_column(targets, observation, first=first)
        used = weights > 0.0  # a row of weight zero is no row
        if first:
            self._learn_columns(table.rows(used), complete)
        else:
            check_is_fitted(self)
            self.encoder_.add_groups(self.encoder_.matched(table, owner=type(self).__name__).rows(used))
        return self._encoded(table.rows(used)), targets[used], weights[used]

    def _learn_columns(self, table: Table, complete: bool) -> None:
        own = is_own(self._kernel())
        groups = getattr(self, "groups", None)
        if own and groups is not None:
            raise InputError(
                "`groups` need a kernel by name, to which their terms are added. Got a kernel of your own. Add an "
                "itergp.kernels.CategoricalKernel with active_dims to it, or name a kernel."
            )
        options: dict[str, Any] = {"one_hot_max_levels": 1} if own else {"groups": groups}
        self.encoder_ = TableEncoder(**options, drop=complete and not own).fit(table)
        self.n_features_in_ = self.encoder_.n_features_in_
        if hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        if hasattr(self.encoder_, "feature_names_in_"):
            self.feature_names_in_ = self.encoder_.feature_names_in_

    def _encoded(self, table: Table) -> Array:
        values = self.encoder_.transform(self.encoder_.matched(table, owner=type(self).__name__))
        if np.isnan(values).any():
            raise InputError(
                "`X` must have no gaps for a model that was saved by an earlier version. Got some. Fit it again, or drop those "
                "rows."
            )
        return values

    @property
    def columns_(self) -> TableColumns:
        """What became of the columns of the table, see ``itergp.tables``."""
        check_is_fitted(self)
        return self.encoder_.columns_

    def _check_settings(self) -> None:
        if self.optimizer is not None and self.optimizer not in _OPTIMIZERS:
            raise InputError(
                f"`optimizer` must be 'auto', 'adam' or 'lbfgs', or None to keep the hyperparameters. Got {self.optimizer!r}. "
                "Choose one of these."
            )
        known = set(inspect.signature(learning.fit).parameters) - {"model"}
        if self.prior_mean not in PRIOR_MEANS or (self.prior_mean is not None and is_own(self._kernel())):
            raise InputError(
                f"`prior_mean` must be 'boosting' or None, and None with a kernel that is an object. Got {self.prior_mean!r}. "
                "Leave it out, or name the kernel."
            )
        unknown = sorted(set(self.fit_options or {}) - known)
        if unknown:
            raise InputError(
                f"`fit_options` must be keywords of itergp.fit: {sorted(known)}. Got {unknown}. Correct or drop them."
            )

    @property
    def _num_linear(self) -> int:
        """Columns after the encoded ones that functions are linear in."""
        return 0 if self.boosting_ is None else self.boosting_.num_outputs

    def _inputs(self, values: Array) -> Array:
        """The model's inputs for encoded rows that it was not fitted to."""
        scaled = self._scaled(values)
        return scaled if self.boosting_ is None else np.concatenate([scaled, self.boosting_.predict(values)], 1)

    def _scaled(self, values: Array, out: Array | None = None) -> Array:
        check_codes(values, self._codes, self.encoder_.titles)
        scaled = self._scaling.transform(values, out)
        check_size(scaled, self.encoder_.titles)
        return scaled

    def _warn_of_constants(self) -> None:
        known = {i for column in self.encoder_.columns_ if "constant" in column.noticed for i in column.indices}
        constant = np.flatnonzero(self._scaling.constant)
        constant = constant[[index not in known for index in constant]] if self.encoder_.drop else constant
        if len(constant):
            columns = list_columns(constant, self.encoder_.titles)
            warnings.warn(
                f"Columns of `X` should vary. Got one value only in {len(constant)} of {len(self._scaling.constant)}: "
                f"{columns}. They say nothing and count as zero; drop them.",
                ItergpWarning,
                stacklevel=5,
            )

    def _warn_of_unseen(self, values: Array) -> None:
        unseen = self.encoder_.unseen(values)
        if unseen:
            warnings.warn(
                f"Levels of rows that are added should be those of the first fit. Got others in column {unseen[0]!r}. All "
                "others are taken for one level; fit again, or declare them in a pandas Categorical.",
                ItergpWarning,
                stacklevel=4,
            )

    # ------------------------------------------------------------------ model
    def _build(self, x: Array, y: Array, weights: Array) -> GP:
        dtype, device = self._dtype(x, y, weights), as_device(self.device)
        inputs, targets, weight = self._tensors(x, y, weights, dtype, device)
        means = [np.average(column, weights=weights) for column in x.T]
        variance = np.array(
            [np.average((column - mean) ** 2, weights=weights) for column, mean in zip(x.T, means, strict=True)]
        )
        variance[code_columns(self.encoder_.columns_)] = 1.0  # of a column whose numbers only name levels
        variance = variance[: self.encoder_.num_encoded]
        groups = input_columns(self.encoder_.columns_, self.encoder_.num_encoded).random_effects
        variance[[column for column, _ in groups]] = 0.0
        spread = float(np.sqrt(2.0 * variance.sum()))
        model = self._skeleton(inputs, targets, weight, mean=self._make_mean(y, weights), spread=spread)
        if getattr(self, "warm_start", False) and hasattr(self, "model_"):
            take_hyperparameters(model, self.model_)
        return model

    def _dtype(self, x: Array, y: Array, weights: Array) -> torch.dtype:
        """By the number of rows, and by what the targets say about one of them."""
        found = DistinctRows.find([torch.as_tensor(x)])
        size = len(x) if found is None else found.num_distinct
        if self.dtype != "auto" or size <= DOUBLE_ROWS:
            return as_dtype(self.dtype, size)
        targets, mean = torch.as_tensor(self._model_targets(y)), self._make_mean(y, weights)
        return as_dtype(
            "auto",
            size,
            signal_to_noise(as_likelihood(self._make_likelihood()), mean, targets, self._first_outputscale),
        )

    def _skeleton(
        self,
        inputs: Tensor,
        targets: Tensor,
        weight: Tensor | None = None,
        *,
        mean: gpytorch.means.Mean | None = None,
        spread: float = 1.0,
    ) -> GP:
        """The model for the estimator's arguments; hyperparameters are the starting values."""
        count, encoded = self._num_kernels(), inputs.shape[1] - self._num_linear
        kernel = make_kernel(
            self._kernel(),
            encoded,
            ard=self.ard,
            spread=spread,
            outputscale=self._first_outputscale,
            batch_shape=torch.Size([count] if count > 1 else []),
            columns=self.encoder_.columns_,
            num_linear=self._num_linear,
        )
        transform, structure = None, getattr(self, "structure_", None)
        if structure is not None:
            columns, shape = input_columns(self.encoder_.columns_, encoded, self._num_linear), kernel.batch_shape
            kernel, transform = structure.make_kernel(columns, shape), structure.make_transform(inputs, columns)
        model = GP(
            inputs,
            targets,
            self._make_likelihood().to(inputs.dtype),
            mean=self._with_offsets(self._make_mean(np.zeros(1), np.ones(1)) if mean is None else mean),
            kernel=kernel,
            input_transform=transform,
            solver=self.solver,
            approximation="variational" if self.approximation == "auto" else self.approximation,
            sample_weight=weight,
        )
        model = model.to(device=as_device(self.device), dtype=inputs.dtype)
        if self.solver is None:
            model.solver = default_solver(model)
        return model

    def _with_offsets(self, mean: gpytorch.means.Mean) -> gpytorch.means.Mean:
        """A prior mean, or that of the trees in its place, for as many latent functions as they have outputs."""
        if self.boosting_ is None:
            return mean
        encoded, latents = self.encoder_.num_encoded, as_likelihood(self._make_likelihood()).num_latents
        constant = [0.0] * latents
        if isinstance(mean, gpytorch.means.ConstantMean) and mean.constant.numel() == latents > self._num_linear:
            constant[self._num_linear :] = mean.constant.detach().flatten().tolist()[self._num_linear :]
        return OffsetMean(range(encoded, encoded + self._num_linear), constant=constant)

    @property
    def _first_outputscale(self) -> float:
        """Prior variance that learning starts from: of what trees have left over, less."""
        return self._outputscale if self.prior_mean is None else min(1.0, self._outputscale)

    def _tensors(
        self,
        x: Array,
        y: Array,
        weights: Array,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if dtype is None:
            dtype, device = self.model_.held_data.like.dtype, self.model_.held_data.like.device
        kind: dict[str, Any] = {"dtype": dtype, "device": device}
        weight = None if bool((weights == 1.0).all()) else torch.as_tensor(weights).to(**kind, copy=True)
        # Memory of the model's own: what is fitted does not follow later changes of X and y.
        inputs, targets = (torch.as_tensor(part).to(**kind, copy=True) for part in (x, self._model_targets(y)))
        return inputs, targets, weight

    def _learn(self, num_rows: int) -> FitResult | None:
        if self.optimizer is not None:
            options = self._competing() | self._learning_options(num_rows) | (self.fit_options or {})
            result = learning.fit(self.model_, **options)
            if result.comparison is not None:
                self.structure_ = result.comparison.structure
                self.likelihood_ = list(self._likelihoods())[result.comparison.likelihood]
            return result
        observations = self.model_.observations
        observations.likelihood.initialise(observations.targets)
        self.model_.eval()
        self.model_.condition(progress=bool(self.verbose))
        return None

    def _competing(self) -> dict[str, Any]:
        """What competes, as keywords of ``fit``: nothing where the kernel is given, or was chosen by an earlier fit."""
        if not is_automatic(self._kernel()) or getattr(self, "structure_", None) is not None:
            return {}
        others = [make() for make in list(self._likelihoods().values())[1:]]
        columns = input_columns(self.encoder_.columns_, self.encoder_.num_encoded, self._num_linear)
        return {"structures": "auto", "likelihoods": others, "columns": columns}

    @property
    def comparison_(self) -> learning.Comparison | None:
        """Which kernels and likelihoods competed, and how they did; None where nothing was chosen."""
        check_is_fitted(self)
        return None if self.result_ is None else self.result_.comparison

    def _learning_options(self, num_rows: int) -> dict[str, Any]:
        return {
            "optimizer": _OPTIMIZERS[str(self.optimizer)],
            "max_iterations": self.max_iterations,
            "calibrate": self.approximation == "auto" and num_rows >= _CALIBRATION_ROWS,
            "seed": int(check_random_state(self.random_state).randint(2**31 - 1)),
            "progress": bool(self.verbose),
        }

    def _conclude(self, *, first: bool, deadline: Deadline = NEVER) -> None:
        solution = self.model_.solution
        if first and self.dtype == "auto":
            solution = self._in_double(solution, deadline)
        warn_of_ending(solution, stacklevel=6 if first else 5)
        self.kernel_passes_ = solution.kernel_passes + (0 if first else self.kernel_passes_)
        evidence = solution.log_marginal_likelihood
        self.log_marginal_likelihood_value_ = float(solution.elbo if evidence is None else evidence)

    def _compare_with_base_rate(self, deadline: Deadline) -> None:
        """Says when held-out rows are predicted worse than without columns: a model that nobody should use."""
        model, observes, several = self.model_, self._observes(), getattr(self, "n_outputs_", 1) > 1
        if self.result_ is None or several or observes not in TASK_OF or self._knows_noise_of_rows():
            return
        few = len(model.train_targets) < _CALIBRATION_ROWS
        if (
            few
            or not model.calculus.exchangeable
            or (model.train_targets.dim() == 2 and model.train_targets.shape[1] > 2)
        ):
            return
        calibration = self.result_.calibration
        found = None if calibration is None else calibration.held_out
        try:
            found = judge_predictions(model, num_rows=_JUDGED_ROWS, deadline=deadline) if found is None else found
        except (OutOfTimeError, SolverError):
            return
        warn_below_base_rate(model, observes, found, stacklevel=7)

    def _in_double(self, solution: Solution, deadline: Deadline) -> Solution:
        """The posterior in float64 if what was learned asks for it, such as a small noise, and time allows."""
        if solution.representer_weights.dtype == torch.float64 or not lacks_digits(solution) or deadline.over:
            return solution
        self.model_.double()
        return self.model_.condition(progress=bool(self.verbose), time_limit=deadline.left())

    # ------------------------------------------------------------ predictions
    def _new_inputs(self, X: Any) -> Tensor:
        check_is_fitted(self)
        return self._as_inputs(self._encoded(self._table(X)))

    def _table(self, X: Any) -> Table:
        """A table; of a file the columns of the training data alone."""
        if not is_file(X):
            return read_table(X)
        file = as_file(X)
        return file.table(self._file_columns(file))

    def _file_columns(self, file: TableFile) -> list[str]:
        return list(getattr(self, "feature_names_in_", file.names))

    def _parts(self, X: Any) -> Iterator[Any]:
        """A table as it is, or a file a batch of rows at a time."""
        check_is_fitted(self)
        if not is_file(X):
            yield X
            return
        file = as_file(X)
        yield from file.batches(self._file_columns(file))

    def _predicted(self, X: Any, read: Callable[[Any], NDArray[Any]], **observation: Any) -> Array:
        """What ``read`` takes from the predictive distribution, batch by batch; rows come first."""
        found, start = [], 0
        for part in self._parts(X):
            inputs = self._new_inputs(part)
            rows = slice(start, start := start + len(inputs))
            known = of_rows(observation, rows) if is_file(X) else observation
            with torch.no_grad():
                found += [read(predictive) for _, predictive in self.model_.predict_batches(inputs, **known)]
        return np.concatenate(found)

    def _predicted_quantiles(self, X: Any, quantiles: Sequence[float], **observation: Any) -> Array:
        """Quantiles of the predictive distribution ``(M, Q)``, in the units of the model."""
        levels = [float(level) for level in quantiles]

        def read(predictive: Any) -> NDArray[Any]:
            return np.stack([as_numpy(predictive.quantile(level)) for level in levels], -1)

        return self._predicted(X, read, **observation)

    @takes_files
    def predictive_log_density(self, X: Any, y: Any) -> Array:
        """Log-densities of held-out rows: the score of a probabilistic model, to average or to compare row by row.

        Args:
            X: Inputs ``(M, D)``.
            y: Targets ``(M,)``.

        Returns:
            ``(M,)``, in nats: log-probabilities of classes, levels and counts, log-densities of real values in their own units.
        """
        return self._log_densities(X, y)

    def _log_densities(self, X: Any, y: Any, **observation: Any) -> Array:
        check_is_fitted(self)
        column = self._target_rows(y)
        check_rows(read_table(X).num_rows, column)
        targets = torch.as_tensor(self._model_targets(self._encode(column, first=False)))
        inputs = self._new_inputs(X)
        found = []
        with torch.no_grad():
            for rows, predictive in self.model_.predict_batches(inputs, **observation):
                found.append(as_numpy(self._log_prob(predictive, targets[rows].to(inputs))))
        return np.concatenate(found)

    def _log_prob(self, predictive: Any, targets: Tensor) -> Tensor:
        """Log-densities of targets in the units of the model ``(M,)``, each under the predictive distribution of its row."""
        return predictive.log_prob(targets)

    def latent_mean_and_variance(self, X: Any) -> tuple[Array, Array]:
        """Posterior mean and variance of the latent functions.

        Args:
            X: Inputs ``(M, D)``.

        Returns:
            Two arrays ``(M,)``, or ``(M, C)`` for several latent functions.
        """
        inputs = self._new_inputs(X)
        with torch.no_grad():
            latent = self.model_(inputs)
            return as_numpy(latent.mean), as_numpy(latent.variance)

    def log_marginal_likelihood(
        self, theta: Any = None, eval_gradient: bool = False, clone_kernel: bool = True
    ) -> float:
        """The log marginal likelihood at the learned hyperparameters, see ``log_marginal_likelihood_value_``.

        Args:
            theta: Only None: other hyperparameters are those of another fit.
            eval_gradient: Only False.
            clone_kernel: Ignored.

        Raises:
            InputError: If another value, or a gradient, is asked for.
        """
        check_is_fitted(self)
        if theta is not None or eval_gradient:
            raise InputError(
                "`theta` must be None and `eval_gradient` False. Got others. Fit with optimizer=None and the kernel "
                "you want the "
                "value of, or use itergp.objectives for gradients."
            )
        return self.log_marginal_likelihood_value_

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the fitted estimator to one file, complete with labels, names of columns, scaling, model and posterior.

        The file is safetensors with JSON, and holds no code; ``itergp.sklearn.load(path)`` reads it.

        Args:
            path: Where to.

        Raises:
            InputError: If the file cannot be written, or an argument cannot be expressed as JSON.
        """
        check_is_fitted(self)
        names = getattr(self, "feature_names_in_", None)
        learned = {
            "n_features_in": self.n_features_in_,
            "feature_names_in": None if names is None else [str(name) for name in names],
            "classes": getattr(self, "classes_", None),
            "levels": getattr(self, "levels_", None),
            "outputs": getattr(self, "n_outputs_", 1),
            "kernel_passes": self.kernel_passes_,
            "evidence": self.log_marginal_likelihood_value_,
            "likelihood": self.likelihood_,
            "structure": None if self.structure_ is None else [self.structure_.kernel, self.structure_.scale],
        }
        arguments = self.get_params(deep=False)
        write_estimator(
            path, type(self).__name__, arguments, learned, self.encoder_, self._scalings(), self.model_, self.boosting_
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, kernel: Any = None, device: Any = None) -> Any:
        """Reads what ``save`` wrote.

        Args:
            path: The file.
            kernel: The kernel, if it was not one by name.
            device: Where to; default where it was.

        Returns:
            The fitted estimator, whose predictions are those of the saved one.

        Raises:
            InputError: If the file is missing, damaged, from a newer version, or holds something else.
        """
        return restored(cls, read_estimator(path, [cls.__name__], kernel=kernel, device=device))

    def _scalings(self) -> dict[str, Scaling]:
        return {"inputs": self._scaling}

    def _set_scalings(self, scalings: dict[str, Scaling]) -> None:
        self._scaling = scalings["inputs"]

    @property
    def kernel_(self) -> gpytorch.kernels.Kernel:
        """The kernel with its learned hyperparameters, which shares them with that of ``model_``.

        Its lengthscales are those of standardised columns. Printed, they are in the units of the columns, by name: of
        numbers by rank the share of the rows, of normal scores these. Levels are two apart.
        """
        check_is_fitted(self)
        kernel = self.model_.covar_module
        return printing(kernel, describe_kernel(kernel, self._kernel_columns()))

    def _kernel_columns(self) -> KernelColumns:
        """Names and units of the encoded columns, as the kernel has them."""
        names, units = [""] * self.encoder_.num_encoded, self._scaling.scale.copy()
        scale = "as given" if self.structure_ is None else self.structure_.scale
        for column in self.encoder_.columns_:
            for index, name in zip(column.indices, column.encoded_names, strict=True):
                names[index] = name if len(column.indices) == 1 else column.name
                if isinstance(column, NumericColumn) and scale != "as given":
                    names[index], units[index] = (
                        f"{scale.removesuffix('s')} of {name}",
                        _RANK if scale == "ranks" else 1.0,
                    )
                elif isinstance(column, DateColumn) and column.part != "trend":
                    names[index], units[index] = f"{column.name} ({column.part})", 1.0
                elif isinstance(column, (CategoricalColumn, GapColumn)):
                    units[index] = 1.0
        return KernelColumns(names, units)

    def __sklearn_tags__(self) -> Any:
        """Gaps and sparse matrices are welcome; so are text and levels, which need no tag."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.sparse = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        """Whether there is a model."""
        return hasattr(self, "model_")


def _heard(table: Table, bar: ProgressBar) -> Table:
    """A table whose columns move a bar when they are read: to see what they are, and to encode them."""
    done = itertools.count(1)
    bar.begin("read", unit="columns", total=2 * len(table.columns))
    return table.heard(lambda: bar.advance("read", next(done)))


def restored(kind: type[GPEstimator], saved: SavedEstimator) -> Any:
    """A fitted estimator of some class, from what ``save`` wrote."""
    estimator, learned = kind(**saved.arguments), saved.learned
    estimator.n_features_in_ = learned["n_features_in"]
    if learned["feature_names_in"] is not None:
        estimator.feature_names_in_ = np.array(learned["feature_names_in"], dtype=object)
    for name in ("classes", "levels"):
        if learned[name] is not None:
            setattr(estimator, f"{name}_", learned[name])
    estimator.n_outputs_ = learned.get("outputs", 1)
    estimator._set_scalings(saved.scalings)
    if learned.get("likelihood") is not None:  # files of earlier versions do not know it
        estimator.likelihood_ = learned["likelihood"]
    structure = learned.get("structure")
    estimator.structure_ = None if structure is None else Structure(*structure)
    names = learned["feature_names_in"]
    estimator.encoder_ = saved.encoder or TableEncoder.of_numbers(estimator.n_features_in_, names)
    estimator.boosting_ = saved.boosting
    estimator._codes = category_columns(estimator.kernel, estimator.encoder_.num_encoded)
    estimator.model_ = estimator._skeleton(saved.model.arrays["data.input.0"], saved.model.arrays["data.targets"])
    restore_model(estimator.model_, saved.model)
    estimator.model_.eval()
    estimator._learned_rows = estimator.model_.train_targets.shape[0]
    estimator.result_ = None
    estimator.kernel_passes_ = learned["kernel_passes"]
    estimator.log_marginal_likelihood_value_ = learned["evidence"]
    return estimator
