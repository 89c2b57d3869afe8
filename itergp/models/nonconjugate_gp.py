"""``NonConjugateGP``: what a user subclasses."""

from __future__ import annotations

import copy
import itertools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from torch import Tensor
from torch.distributions import Distribution

from itergp.checks import require_positive
from itergp.errors import InputError
from itergp.likelihoods import Likelihood, Observations, as_likelihood
from itergp.models.batch_elements import element_tensors, require_shared_by_latents, select_element, select_priors
from itergp.models.batches import Batch, either, posterior_at, refuse_without_data
from itergp.models.conditioned import Conditioned, KnownPosterior
from itergp.models.conditioning import bounded, complete, find_posterior
from itergp.models.distinct_rows import distinct_rows, share_latents
from itergp.models.endings import warn_if_far
from itergp.models.exact_data_derivatives import posterior_of_data, wanted, wanted_in_hyperparameters
from itergp.models.held_tensors import HeldTensors
from itergp.models.hyperparameters import frozen, kept_tensors
from itergp.models.identity import describe_prior, identity_of
from itergp.models.latent import LatentPosterior
from itergp.models.planning import Plan, make_plan, problem_size
from itergp.models.prior_evaluation import fit_grids, prior_at, prior_at_training_inputs
from itergp.models.prior_shapes import PriorOfWeightedRows, of_values, require_values, unchanged
from itergp.models.run_options import RunOptions
from itergp.models.saving import load_model, save_model
from itergp.models.streaming import Stream, check_prediction, checked_stream
from itergp.models.threads import turn
from itergp.models.training_data import (
    append_rows,
    check_data,
    fantasy_model,
    replace_rows,
    require_nan_policy,
    warn_of_fill,
)
from itergp.models.uncertainty import UncertaintyDecomposition, decompose
from itergp.models.validation import as_inputs, as_test_inputs, refuse_to_empty, require_values_of
from itergp.operators import (
    KernelOperator,
    OperatorClass,
    OperatorKind,
    Prior,
    make_operator,
    own_rows,
    require_operator,
)
from itergp.operators.derived import snapshot
from itergp.operators.special import checked_tables
from itergp.persistence.checkpoint import CheckpointSection
from itergp.persistence.description import describe
from itergp.records import TraceRecord
from itergp.solvers import APPROXIMATIONS, Solution, SubspaceNewton
from itergp.solvers.protocol import Solver, require_solver

# What a model has of its own beside modules and settings: data and posteriors.
_OWN = frozenset({"held_data", "_known", "_batch"})


class KeptPosterior:
    """Stands for a posterior where GPyTorch has a prediction strategy, whose caches a caller may clear."""


class NonConjugateGP(gpytorch.models.GP):
    """A Gaussian process with any likelihood, conditioned on all of its data.

    Subclass it as GPyTorch's ``ExactGP`` or ``ApproximateGP``: set ``mean_module`` and ``covar_module``, and return their
    ``MultivariateNormal`` from ``forward``. One kernel serves all latent functions, or a batch of C kernels one each.
    In training mode the call returns the prior at the training inputs; in evaluation mode the latent posterior. The
    posterior is found on demand and again whenever a hyperparameter, the data, the likelihood or the solver have changed.
    Predictions have derivatives in the inputs, for Gaussian noise in training inputs and targets too, not in hyperparameters:
    learn those by ``itergp.objectives``. For Gaussian noise, ``gpytorch.settings.detach_test_caches(False)`` asks for them.

    Targets ``(*b, N)``, or inputs ``(*b, N, D)``, make a batch of independent models: hyperparameters with batch shape ``b``
    belong to one each, others are shared. What ``model(x)`` and objectives return has the batch shape in front; ``condition``,
    ``solution``, ``predict`` and ``itergp.fit`` return a tuple, one entry per element. A batch shape of mean and kernel
    alone, with one data set, is one of latent functions.

    Attributes:
        held_data: The training data, to look at: who keeps or changes them takes ``train_inputs``, ``train_targets`` and
            ``sample_weight``, which are then read again to see whether the posterior is still theirs.
        tempering: Exponent p of ``predict`` by default: latent variances v are integrated as ``v (v / k)^p``, with k the
            prior's. 0 is the posterior itself.

    Args:
        train_inputs: ``(N, D)``, or a tuple of such for a ``forward`` of several arguments: tensors, or arrays, data frames
            and Arrow data, which are read where they are (``itergp.as_tensor``). ``(*b, N, D)`` for a batch of models. None,
            with targets None, for a model of the prior alone.
        train_targets: ``(N,)``, as the likelihood wants them; ``(*b, N)`` for a batch of models.
        likelihood: One of ``itergp.likelihoods``, or any of GPyTorch's as it is.
        solver: How the posterior is found; default ``SubspaceNewton()``.
        approximation: ``"variational"`` (default) or ``"laplace"``.
        operator: How kernel products are computed: ``"auto"``, ``"dense"``, ``"blocked"``, ``"keops"``, ``"scan"`` (additive
            kernels in linear time), ``"fourier"`` (radial kernels of few inputs), or ``"sharded"``, with the rows divided among
            the processes of ``torch.distributed``, which all run the same program. Or a subclass of ``KernelOperator``, for one
            of your own.
        memory_budget: Bytes for cached kernel entries and batches; default a quarter of the free memory.
        sample_weight: Weights ``(N,)`` that multiply the rows' log-densities; default 1.
        missing_targets: Whether targets may be missing (NaN, or -1 for labels): such rows carry no information, but are
            part of the model. NaN may be missing too where GPyTorch's ``observation_nan_policy`` or the likelihood
            says so.
        share_equal_rows: Whether training rows with equal inputs, where they are at least a tenth of all, share their latent
            values, as they do in the prior. Nothing is approximated: what is found and kept grows with the distinct rows alone.

    Raises:
        InputError: If inputs and targets are not finite, do not fit each other, or do not fit the likelihood.

    Examples:
        >>> import gpytorch, torch, itergp
        >>> class Classifier(itergp.models.NonConjugateGP):
        ...     def __init__(self, x, y, likelihood):
        ...         super().__init__(x, y, likelihood)
        ...         self.mean_module = gpytorch.means.ConstantMean()
        ...         self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
        ...     def forward(self, x):
        ...         return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))
        >>> x = torch.linspace(-2, 2, 40).unsqueeze(-1)
        >>> model = Classifier(x, (x[:, 0] > 0).long(), itergp.likelihoods.BernoulliLikelihood()).eval()
        >>> bool(model.predict(torch.tensor([[1.5]])).probs > 0.5)
        True
    """

    held_data: HeldTensors
    share_equal_rows = True  # of models from before they did
    _known: KnownPosterior | None  # ``Conditioned`` with what it was found with

    def __init__(
        self,
        train_inputs: Any,
        train_targets: Any,
        likelihood: gpytorch.likelihoods.Likelihood,
        *,
        solver: Solver[Any] | None = None,
        approximation: str = "variational",
        operator: OperatorKind | OperatorClass = "auto",
        memory_budget: int | None = None,
        sample_weight: Any = None,
        missing_targets: bool = False,
        share_equal_rows: bool = True,
    ) -> None:
        super().__init__()
        if approximation not in APPROXIMATIONS:
            raise InputError(f"`approximation` must be one of {APPROXIMATIONS}. Got {approximation!r}.")
        require_operator(operator)
        require_solver(SubspaceNewton() if solver is None else solver)
        require_positive("memory_budget", memory_budget, integer=True)
        without_data = train_inputs is None and train_targets is None
        inputs = () if without_data else as_inputs(train_inputs, "train_inputs", batch=True)
        self.missing_targets, self._nan_targets, self._nan_unasked = missing_targets, False, False
        self.likelihood = likelihood
        self.solver = SubspaceNewton() if solver is None else solver
        self.approximation = approximation
        self.tempering = 0.0
        self.operator_kind = operator
        self.memory_budget = memory_budget
        self.share_equal_rows = share_equal_rows
        self.forward_keywords: dict[str, Any] = {}
        self._batch: Batch | None = None
        self.hold(inputs, train_targets, sample_weight)

    # ------------------------------------------------------ the training data
    @property
    def train_inputs(self) -> tuple[Tensor, ...]:
        """Training inputs, ``(N, D)`` or ``(*b, N, D)`` each; None of a model without data."""
        return self.held_data.lend()[:-2] or None  # type: ignore[return-value]

    @train_inputs.setter
    def train_inputs(self, inputs: tuple[Tensor, ...]) -> None:
        given = (inputs,) if torch.is_tensor(inputs) else inputs
        self.held_data = HeldTensors((*given, *self.held_data.look()[-2:]))

    @property
    def train_targets(self) -> Tensor:
        """Training targets ``(N,)``, as the likelihood wants them."""
        return self.held_data.lend()[-2]  # type: ignore[return-value]

    @train_targets.setter
    def train_targets(self, targets: Tensor) -> None:
        self.held_data = HeldTensors((*self.held_data.look()[:-2], targets, self.held_data.sample_weight))

    @property
    def sample_weight(self) -> Tensor | None:
        """Weights of the targets ``(N,)``, or None if all are 1."""
        return self.held_data.lend()[-1]

    @sample_weight.setter
    def sample_weight(self, weight: Tensor | None) -> None:
        self.held_data = HeldTensors((*self.held_data.look()[:-1], weight))

    @property
    def data_batch_shape(self) -> torch.Size:
        """The shape b of a batch of models, empty for a single one."""
        return torch.Size() if self._batch is None else self._batch.shape

    @property
    def batch_elements(self) -> tuple[NonConjugateGP, ...]:
        """The models of a batch by themselves, row by row; of a single model, itself.

        They are copies at the present hyperparameters, made again when those change, with views of the data and the posteriors
        that the batch predicts from.

        Raises:
            InputError: If ``forward`` does not make of every element what it makes of the batch.
        """
        return (self,) if self._batch is None else tuple(self._batch.elements(self))

    @property
    def may_miss_targets(self) -> bool:
        """Whether targets may be missing, because the model, its likelihood or GPyTorch's policy says so."""
        return self.missing_targets or self._nan_targets

    def hold(
        self,
        inputs: tuple[Tensor, ...],
        targets: Any,
        sample_weight: Any,
        *,
        keeps: bool = False,
        check_rows: bool = True,
    ) -> None:
        """Takes training data, checked; ``set_train_data`` is for users.

        Args:
            inputs: ``(N, D)`` or ``(*b, N, D)`` each.
            targets: ``(N,)`` or ``(*b, N)``.
            sample_weight: Weights of the targets, or None.
            keeps: Whether present targets are among them.
            check_rows: Whether the likelihood must be one of these rows already.
        """
        missing = {"missing_targets": self.missing_targets, "nan_targets": self._nan_targets}
        data = check_data(self.likelihood, inputs, targets, sample_weight, check_rows=check_rows, **missing)
        if data.shape:
            self._require_single_by_data()
        self._batch = Batch.of(torch.Size(data.shape), self.operator_kind)
        self._nan_targets, self._nan_unasked = data.nan_targets, data.unasked or (keeps and self._nan_unasked)
        self.held_data, self._known = HeldTensors((*data.inputs, data.targets, data.sample_weight)), None

    def _require_single_by_data(self) -> None:
        """A single model may become a batch only if its batch shape is not one of latent functions."""
        if "held_data" in vars(self) and self._batch is None and self.held_data.inputs:
            require_shared_by_latents(self)

    def _require_nan_policy(self) -> None:
        if self._nan_unasked:
            require_nan_policy(self.likelihood)
            self._nan_unasked, self._nan_targets = False, True

    def content(self) -> tuple[Any, ...]:
        """What makes a model another one: its prior, settings, and data by their place."""
        return (
            *(describe_prior(self), self.held_data, self.solver, self.approximation, self.tempering),
            *(self.operator_kind, self.memory_budget, self.share_equal_rows),
            *(self.missing_targets, self._nan_targets, self._nan_unasked),
        )

    def copy_element(self, index: tuple[int, ...]) -> tuple[NonConjugateGP, dict[str, torch.Size]]:
        """The model of one element of a batch, by itself: a copy with its share of the parameters and views of its data.

        Args:
            index: The element.

        Returns:
            The model, and the leading dimensions of the batch's parameters by name.
        """
        state = {name: value for name, value in vars(self).items() if name not in _OWN}
        twin = object.__new__(type(self))
        twin.__dict__.update(copy.deepcopy(state, {id(self): twin}))
        leads = select_element(twin, self.data_batch_shape, index)
        select_priors(self, twin, index)
        twin._batch = None
        twin.held_data = HeldTensors(element_tensors(self.held_data.look(), self.data_batch_shape, index))
        twin._known = None
        return twin, leads

    def leaves(self) -> list[Tensor]:
        """What an objective of this model has derivatives in: parameters, and training inputs."""
        return [*self.parameters(), *self.held_data.inputs]

    def share(self, number: int) -> list[Tensor]:
        """What one element of a batch has of the batch's parameters and training inputs: its ``leaves``, with derivatives.

        Args:
            number: Of the element, row by row.
        """
        return self.leaves() if self._batch is None else self._batch.share(self, number)

    def shared_parameters(self) -> list[str]:
        """Names of the trainable parameters that the elements of a batch have in common."""
        shared = set() if self._batch is None else self._batch.shared(self)
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad and name in shared]

    def collect_elements(self) -> None:
        """Gives a batch the hyperparameters of its elements; those that elements share become the mean over them."""
        if self._batch is not None:
            self._batch.collect(self)

    # ---------------------------------------------------------- the posterior
    @property
    def prediction_strategy(self) -> KeptPosterior | None:
        """What GPyTorch keeps predictions in: an object without content if there is a posterior, None otherwise.

        Set to None, it forgets the posterior.
        """
        known = self._known is not None or (self._batch is not None and self._batch.has_posteriors)
        return KeptPosterior() if known else None

    @prediction_strategy.setter
    def prediction_strategy(self, strategy: None) -> None:
        self._known = None
        if self._batch is not None:
            self._batch = Batch(self._batch.shape)

    @either
    def condition(
        self,
        *,
        progress: bool | None = False,
        callback: Callable[[TraceRecord], None] | None = None,
        on_posterior: Callable[[Solution], None] | None = None,
        checkpoint: str | os.PathLike[str] | CheckpointSection | None = None,
        checkpoint_every: float = 30.0,
        time_limit: float | None = None,
    ) -> Solution:
        """Finds the posterior at the current hyperparameters, warm-started from the last one.

        Ctrl-C ends it early: the posterior so far is valid and is returned, with a status that says so.

        Args:
            progress: Draw passes, objective and certified gap while it runs; None to do so in a terminal after two seconds.
            callback: Called with every record of the trace; an ``itergp.records.Listener`` hears of stages too.
            on_posterior: Called with the posterior so far, which is valid and which the model predicts from until the function
                returns: after every step but a stage's last, when the covariance is still the prior's (plug in the mean by
                ``tempering=math.inf``), and at the end of a Laplace stage that a variational one follows. Its time counts. All
                processes that share the rows pass one.
            checkpoint: File in which the state of the solve is kept while it runs, and in the end the posterior. If it exists,
                the solve goes on from there, to the same answer as without the interruption: to the last bit on the same
                machine with as many threads, elsewhere to rounding. With rows divided among processes, all pass it, to a folder
                that all see, and the end is found again from the last state.
            checkpoint_every: Seconds between writes; longer where writing would take more than a twentieth of the time.
                0 writes after every step.
            time_limit: Seconds, where they are fewer than the solver's own; the posterior so far is valid.

        Returns:
            The solution, which predictions use from now on.

        Raises:
            InputError: If the prior does not fit the data, the kernel is not positive semi-definite, or what the solver keeps
                cannot fit into memory.
            SolverError: If a NaN appears; the error carries the last good solution, and the model keeps what it had.
        """
        options = RunOptions(progress, callback, on_posterior, checkpoint, checkpoint_every, time_limit)
        self._known = found = find_posterior(self, options)
        return found.solution_of_given_rows

    @either
    def plan(self) -> Plan:
        """What ``condition`` is expected to take: passes, kernel entries, time and memory.

        Times the kernel for a fraction of a second; ``print(model.plan())`` says it in a sentence.
        """
        with torch.no_grad():
            prior = self.prior_at()
            prior, observations = share_latents(distinct_rows(self, prior), prior, self.viewed_observations())
            operator = self.make_operator(prior, observations)
        size = problem_size(operator, observations, self.approximation, self.solver)
        return make_plan(operator, self.solver, size, given_rows=self.held_data.targets.shape[0])

    @property
    @either
    def num_distinct_rows(self) -> int:
        """Training rows with latent values of their own: all, or the distinct ones where equal rows share theirs.

        Looks for equal rows, in a pass over the inputs, and evaluates the prior.
        """
        with torch.no_grad():
            found = distinct_rows(self, self.prior_at())
        return self.held_data.targets.shape[0] if found is None else found.num_distinct

    @property
    @either
    def solution(self) -> Solution:
        """The posterior at the current hyperparameters; found now if they changed since it was last found.

        Its arrays of rows have one entry for each training row, whether or not equal rows share their latent values.
        """
        known = self._current()
        return self.condition() if known is None else known.solution_of_given_rows

    @property
    @either
    def conditioned(self) -> Conditioned:
        """Posterior, kernel operator and observations at the current hyperparameters; found now if need be."""
        known = self._current()
        if known is None:
            self.condition()
            known = self._known
        assert known is not None
        assert known.key is not None
        self._known = found = complete(self, known, known.key)
        return found

    @property
    def current_solution(self) -> Solution | None:
        """The posterior, of distinct rows, if it is known and up to date; nothing is computed."""
        known = self._current()
        return None if known is None else known.solution

    @property
    def last_solution(self) -> Solution | None:
        """The last posterior, of distinct rows, from which the next one starts, whatever has changed; None before the first."""
        return None if self._known is None else self._known.solution

    @property
    def last_conditioned(self) -> Conditioned | None:
        """The last posterior with what it was found with, whatever has changed since; None where that was not kept."""
        return self._known if isinstance(self._known, Conditioned) else None

    @either
    def latent_posterior(self, x: Any) -> LatentPosterior:
        """The latent posterior at new inputs, as mean, prior and low-rank parts of the covariance.

        Args:
            x: Inputs ``(M, D)``, or a tuple of such.

        Raises:
            InputError: If the inputs do not look like the training inputs.
        """
        return self._latent(as_test_inputs(x, self.held_data.inputs))

    @either
    def predict(
        self, x: Any, *, tempering: float | None = None, progress: bool = False, **observation: Any
    ) -> Distribution:
        """Predictive distribution of observations at new inputs, row by row.

        Rows are processed in batches within the memory budget; ``predict_batches`` does not even collect the results.

        Args:
            x: Inputs ``(M, D)``, or a tuple of such: tensors, NumPy arrays, data frames or Arrow data.
            tempering: Exponent p, 0 or more: a row's latent variance v is integrated as ``v (v / k)^p``, with k the prior's
                (with several latent functions, their covariance times a power of its trace over the prior's). 0 integrates the
                posterior, infinity plugs in its mean; in between, what is well known counts as known, and far from the data,
                where v = k, nothing changes.
                Default: the model's ``tempering``, 0 unless ``itergp.fit`` chose another on held-out rows. Statements about
                computation-aware uncertainty hold at 0.
            progress: Draw a progress bar.
            **observation: What the likelihood wants to know about new rows, a number or ``(M,)``: ``exposure`` of counts,
                ``num_trials`` of a binomial; default 1.

        Returns:
            A distribution with batch shape ``(M,)``: ``.probs`` for classes, ``.mean``, ``.variance``, ``.log_prob(y)`` and
            ``.quantile(level)`` for counts and real values.

        Raises:
            InputError: If the inputs do not look like the training inputs, or the likelihood does not know a keyword.
        """
        tempering = self._check_prediction(tempering, observation)
        stream = self._stream(x, progress=progress)
        return stream.predictive(tempering, self.calculus.observation_at(stream.inputs) | observation)

    @either
    def predict_batches(
        self,
        x: Any,
        batch_size: int | None = None,
        *,
        tempering: float | None = None,
        progress: bool = False,
        **observation: Any,
    ) -> Iterator[tuple[slice, Distribution]]:
        """``predict`` for many rows: batch by batch, at constant memory.

        The model must not be changed while batches are drawn.

        Args:
            x: As in ``predict``; a memory-mapped array of another floating-point dtype is converted batch by batch.
            batch_size: Rows of a batch; default as many as the memory budget allows, 8,192 at most.
            tempering: As in ``predict``.
            progress: Draw a progress bar.
            **observation: As in ``predict``.

        Returns:
            An iterator of pairs: the slice of the rows of a batch, and their predictive distribution.

        Raises:
            InputError: As ``predict`` does, before the first batch.
        """
        require_positive("batch_size", batch_size, integer=True)
        tempering = self._check_prediction(tempering, observation)
        stream = self._stream(x, batch_size, progress)
        return stream.predictives(tempering, self.calculus.observation_at(stream.inputs) | observation)

    @either
    def tempering_factors(self, x: Any, *, tempering: float | None = None) -> Tensor:
        """What tempering multiplies the latent deviations of each row by ``(M,)``: ``(tr Sigma / tr K)^(p / 2)``.

        Rows and columns of the joint covariance of ``model(x)`` times them are that of several inputs as ``predict`` integrates
        each of them.

        Args:
            x: Inputs ``(M, D)``, or a tuple of such, processed in batches.
            tempering: As in ``predict``.

        Raises:
            InputError: As ``predict`` does.
        """
        return self._stream(x).tempering_factors(self._check_prediction(tempering, {}))

    @either
    def latent_mean(self, x: Any, *, progress: bool = False) -> Tensor:
        """Posterior mean of the latent functions ``(M, C)``, without the cost of a covariance.

        Args:
            x: Inputs ``(M, D)``, or a tuple of such, processed in batches.
            progress: Draw a progress bar.
        """
        return self._stream(x, progress=progress).mean()

    @either
    def decompose_uncertainty(
        self, x: Tensor | tuple[Tensor, ...], *, passes: int = 8, dense_limit: int = 4000
    ) -> UncertaintyDecomposition:
        """Splits the posterior variance of the latent functions into a mathematical and a computational part.

        Args:
            x: Inputs ``(M, D)``, or a tuple of such.
            passes: Kernel passes for bounds on the mathematical part, where it cannot be computed exactly.
            dense_limit: Latent values N C up to which it is computed exactly, at ``(N C)^3`` operations.

        Raises:
            InputError: If the solver does not say which curvature its covariance belongs to, or processes divide the rows.
        """
        require_positive("passes", passes, integer=True)
        inputs, conditioned = as_test_inputs(x, self.held_data.inputs), self.conditioned
        solution = conditioned.solution
        if solution.rows.sharded:
            raise InputError(
                "The parts of uncertainty are computed in one process. Got rows divided among several. Save the model, and "
                "load it in one with operator='auto'."
            )
        with torch.no_grad():
            points = self.prior_at(inputs).features
        return decompose(conditioned.operator, solution, points, passes=passes, dense_limit=dense_limit)

    # -------------------------------------------------------- GPyTorch's habits
    def __call__(self, *args: Tensor, **kwargs: Any) -> MultivariateNormal:
        """The prior at the training inputs in training mode, the latent posterior in evaluation mode.

        Keywords are handed to ``forward``, now and until the next call: the posterior is that of the prior with them.
        """
        with turn():
            return self._called(args, kwargs)

    def _called(self, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> MultivariateNormal:
        self._call_forward_with(kwargs)
        if self.training:
            inputs = as_inputs(args, "inputs", batch=True)
            known = self.held_data.inputs
            if not known:
                refuse_without_data("model in training mode")
            if len(inputs) != len(known) or not all(map(torch.equal, inputs, known)):
                raise InputError(
                    "In training mode the model must be called on its training inputs. Got others. "
                    "Call model.eval() to predict."
                )
            self._require_nan_policy()
            prior = self._prior_by_gpytorch(inputs, kwargs)
            require_values(prior, self._num_latents)
            weight, targets = self.held_data.sample_weight, self.held_data.targets
            partly = targets.is_floating_point() and bool(targets.isnan().any())
            return PriorOfWeightedRows.of(prior, weight) if partly or weight is not None else prior
        if not self.held_data.inputs:
            return self._prior_by_gpytorch(as_inputs(args, "inputs", batch=True), kwargs)
        inputs = as_test_inputs(args, self.held_data.inputs, batch=True)
        if gpytorch.settings.prior_mode.on():
            return self._prior_by_gpytorch(inputs, kwargs)
        self._require_nan_policy()
        warn_of_fill(self.held_data.targets, self.held_data.sample_weight)
        if self._batch is not None or any(x.dim() > 2 for x in inputs):
            return posterior_at(self, inputs)
        return self._latent(inputs).distribution()

    def forward(self, *args: Any, **kwargs: Any) -> MultivariateNormal:
        """The prior; to be defined by the subclass."""
        raise NotImplementedError(
            "Define forward(self, x) in the subclass: return MultivariateNormal(mean, covariance)."
        )

    def __getattr__(self, name: str) -> Any:
        """Python asks here also after a property has raised an AttributeError, which is then shown as it is.

        Raises:
            AttributeError: If there is none of that name.
        """
        if name == "variational_strategy":  # of an ApproximateGP, which GPyTorch's variational objectives are for
            raise AttributeError(
                "A NonConjugateGP finds its posterior by itself and has no variational_strategy. Learn by itergp.fit(model), "
                "or maximise itergp.objectives.ComputationAwareELBO(model.likelihood, model) in place of GPyTorch's objective."
            )
        known = getattr(type(self), name, None)
        return known.__get__(self) if isinstance(known, property) else super().__getattr__(name)

    def set_train_data(
        self,
        inputs: Any = None,
        targets: Any = None,
        strict: bool = True,
        *,
        sample_weight: Any = None,
    ) -> None:
        """Replaces the training data; the posterior is found again on demand.

        Args:
            inputs: New inputs, or None to keep them.
            targets: New targets, or None to keep them with their weights.
            strict: Whether shapes, dtypes and devices must stay the same, as in GPyTorch.
            sample_weight: Weights of the targets; default 1 for new ones.

        Raises:
            InputError: If the data are not valid, or differ in kind although ``strict``.
        """
        replace_rows(self, inputs, targets, strict, sample_weight)

    def append_train_data(self, inputs: Any, targets: Any, *, sample_weight: Any = None) -> None:
        """Adds rows to the training data; hyperparameters stay, and the next posterior starts from the present one.

        Args:
            inputs: Inputs of the new rows ``(M, D)``, or a tuple of such.
            targets: Their targets.
            sample_weight: Their weights ``(M,)``; default 1.

        Raises:
            InputError: If the rows do not look like the training data.
        """
        append_rows(self, inputs, targets, sample_weight)

    def get_fantasy_model(self, inputs: Any, targets: Any, *, noise: Tensor | None = None) -> NonConjugateGP:
        """A copy that has seen more rows; hyperparameters stay, and its posterior starts from the present one.

        Args:
            inputs: Inputs of the new rows ``(M, D)``, or a tuple or list of such; ``(*b, M, D)`` for a batch of fantasies.
            targets: Their targets ``(M,)``, or ``(*b, M)`` for a batch of models, one for each fantasy; dimensions in front of
                the model's own batch shape are more of them.
            noise: Their noise variances, like the targets, for a ``FixedNoiseGaussianLikelihood``.

        Returns:
            The copy, in the same mode. With Gaussian noise its predictions have derivatives in ``inputs`` and ``targets``.

        Raises:
            InputError: If the rows do not look like the training data, or their noise is missing.
        """
        return fantasy_model(self, inputs, targets, noise)

    def transform_inputs(self, X: Tensor, input_transform: torch.nn.Module | None = None) -> Tensor:
        """Inputs as they are: BoTorch's ``fit_gpytorch_mll`` asks for them.

        Args:
            X: Inputs.
            input_transform: None; ``itergp.botorch.BotorchModel`` takes one.

        Raises:
            InputError: If rows have weights, of which the marginal likelihood that is being maximised knows nothing.
        """
        if self.held_data.sample_weight is not None:
            PriorOfWeightedRows.refuse()
        return X

    def local_load_samples(self, samples_dict: dict[str, Tensor], memo: set[Any], prefix: str) -> None:
        """Makes a batch of models with the same data, one for each sample of the hyperparameters.

        ``pyro_load_from_samples(samples)`` calls it, as for an ``ExactGP``; it needs no Pyro.

        Args:
            samples_dict: Samples by the names of priors, their number in front.
            memo: Priors that have been seen.
            prefix: Of the names.
        """
        if not self.held_data.inputs:
            refuse_without_data("local_load_samples")
        self._require_single_by_data()
        count = next(iter(samples_dict.values())).shape[0]
        self.train_inputs = tuple(x.expand(count, *x.shape) for x in self.train_inputs)
        self.train_targets = self.train_targets.expand(count, *self.train_targets.shape)
        if self.sample_weight is not None:
            self.sample_weight = self.sample_weight.expand(count, *self.sample_weight.shape)
        self._batch = Batch.of(torch.Size([count, *self.data_batch_shape]), self.operator_kind)
        self._known = None
        super().local_load_samples(samples_dict, memo, prefix)

    # ------------------------------------------------------------------ saving
    @either
    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes parameters, training data and, if it is current, the posterior to one safetensors file.

        The file holds arrays and JSON, no code: reading it executes nothing. An existing file is replaced in one step, so that
        an interrupted save leaves the old one. Where rows are divided among processes, all of them must call this; the first
        writes the whole posterior.

        Args:
            path: Where to.

        Raises:
            InputError: If the file cannot be written.
        """
        save_model(self, path)

    @either
    def load(self, path: str | os.PathLike[str]) -> NonConjugateGP:
        """Restores what ``save`` wrote, into a model built the same way; predictions are the saved model's.

        Parameters, training data, dtype and posterior are replaced; the device and the solver stay.

        Args:
            path: The file.

        Returns:
            The model itself.

        Raises:
            InputError: If the file is missing, damaged, of another program or from a newer version, or if class, kernel
                or likelihood differ; the model is then unchanged.
        """
        load_model(self, path)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NonConjugateGP:
        """Moves data and posterior along with the parameters; another dtype asks for another posterior."""
        if all(t is None or fn(t) is t for t in (*self.parameters(), *self.buffers(), *self.held_data.look())):
            # BoTorch's acquisition functions call .to(X) at every evaluation
            return super()._apply(fn, recurse=recurse)
        known = self.current_solution
        moved = HeldTensors(tuple(None if t is None else fn(t) for t in self.held_data.look()))
        for tensor in (*moved.look(), *(fn(p) for p in itertools.islice(self.parameters(), 1))):
            if tensor is not None:
                require_values_of(tensor, "training data and hyperparameters")
        result = super()._apply(fn, recurse=recurse)
        self.held_data, self._batch = moved, None if self._batch is None else Batch(self._batch.shape)
        self._known = None
        if known is not None and known.representer_weights.dtype == moved.like.dtype:
            self.adopt(known.to(moved.like))
        return result

    def to_empty(self, *, device: Any, recurse: bool = True) -> NonConjugateGP:
        """Refused: data and hyperparameters would be whatever memory holds.

        Raises:
            InputError: Always.
        """
        refuse_to_empty()

    def __getstate__(self) -> dict[str, Any]:
        """State for pickle and deepcopy: without kernel caches and search space, which can be rebuilt."""
        return {**self.__dict__, "_known": None if self._known is None else self._known.without_warm_start()}

    # ------------------------------------------ for what works on models
    @property
    def calculus(self) -> Likelihood:
        """The likelihood as log-densities and their derivatives, for the training rows."""
        return as_likelihood(self.likelihood, self.held_data.inputs)

    @property
    @either
    def observations(self) -> Observations:
        """Targets, their weights and the likelihood."""
        return self._observed(self.train_targets, self.sample_weight)

    def viewed_observations(self) -> Observations:
        """``observations`` by views that a posterior keeps: nobody but the model counts as a holder of its data for them."""
        targets, weight = self.held_data.targets, self.held_data.sample_weight
        return self._observed(targets.detach(), None if weight is None else weight.detach())

    @either
    def prior_at(self, inputs: tuple[Tensor, ...] | None = None) -> Prior:
        """The prior at the training inputs, or at new ones.

        Args:
            inputs: ``(M, D)`` each; None, or the very tensors, for the training inputs.
        """
        held = self.held_data.inputs
        if inputs is None or (len(inputs) == len(held) and all(x is own for x, own in zip(inputs, held, strict=True))):
            return prior_at_training_inputs(self)
        # What looks at rows together is asked as ExactGP asks it; only the posterior's operator knows.
        return prior_at(self, inputs, together=not self.training and self._looks_at_rows_together())

    def call_forward(self, inputs: tuple[Tensor, ...]) -> MultivariateNormal:
        """What ``forward`` returns, with the keywords of the present posterior and kernels evaluated lazily."""
        with gpytorch.settings.lazily_evaluate_kernels(True):
            return of_values(self.forward, self)(*inputs, **self.forward_keywords)

    def make_operator(
        self, prior: Prior, observations: Observations | None = None, *, alone: bool = False
    ) -> KernelOperator:
        """The kernel operator of a prior, of a snapshot of its kernel, so that it stays what a posterior was found with.

        Args:
            prior: At the rows of latent values.
            observations: Of these rows; without them, ``"auto"`` chooses no operator whose products have errors of their own.
            alone: Whether this process has all of these rows, also where others divide those of the model.
        """
        with torch.no_grad():
            kernel = snapshot(prior.kernel)
        return make_operator(
            kernel,
            prior.features.detach(),
            num_kernels=prior.num_kernels,
            kind="auto" if alone and self.operator_kind == "sharded" else self.operator_kind,
            memory_budget=self.memory_budget,
            curvature=math.inf if observations is None else observations.largest_curvature,
        )

    def data_digests(self) -> dict[str, str]:
        """Digests of the training data by name."""
        *inputs, targets, weight = self.held_data.digests([] if self._known is None else self._known.views())
        found = {f"train_inputs {i}": x for i, x in enumerate(inputs)}
        found |= {"train_targets": targets, "sample_weight": weight}
        return {name: text for name, text in found.items() if text is not None}

    def replace_data(self, inputs: tuple[Tensor, ...], targets: Tensor | None, sample_weight: Tensor | None) -> None:
        """Takes training data that are known to be valid, and forgets the posterior."""
        self.held_data = HeldTensors((*inputs, targets, sample_weight))
        self._known = None

    def adopt(self, solution: Solution) -> None:
        """Takes a solution as that of the present state."""
        key = identity_of(self)
        if self.operator_kind == "sharded":
            inputs = self.held_data.inputs[0]
            rows = own_rows(self.operator_kind, inputs.shape[0], inputs.device)
            if rows.sharded and solution.distinct is not None:  # processes divide the given rows
                self._known = None
                return
            solution = solution.divide(rows)
        self._known = KnownPosterior(bounded(self, solution, key), key)

    def start_from(self, solution: Solution) -> None:
        """Takes a solution as the start of the next one, not as that of the present state."""
        self._known = KnownPosterior(solution, None)

    def continue_from(self, earlier: NonConjugateGP) -> None:
        """Takes over the posterior of an earlier copy: as its own if nothing has changed, otherwise as a start."""
        self._known = None if earlier._known is None else earlier._known.alone()

    @contextmanager
    def keeping_posterior(self, meanwhile: Conditioned | None = None) -> Iterator[None]:
        """Whatever posterior the model takes meanwhile, afterwards it has the present one again.

        Args:
            meanwhile: What it predicts from at first; default the present one.
        """
        kept = self._known
        try:
            self._known = kept if meanwhile is None else meanwhile
            yield
        finally:
            self._known = kept

    # ------------------------------------------------------------------ inside
    def _call_forward_with(self, keywords: dict[str, Any]) -> None:
        """Keywords of ``forward`` from now on; others ask for another posterior."""
        if describe(keywords, "") != describe(self.forward_keywords, ""):
            self.forward_keywords = dict(keywords)

    def _prior_by_gpytorch(self, inputs: tuple[Tensor, ...], keywords: dict[str, Any]) -> MultivariateNormal:
        """What ``forward`` returns, to be evaluated by GPyTorch."""
        with checked_tables(self) as tables, unchanged(inputs):
            prior = super().__call__(*inputs, **keywords)
            if tables and isinstance(prior, MultivariateNormal):  # GPyTorch evaluates it when nobody looks
                prior.lazy_covariance_matrix.diagonal(dim1=-1, dim2=-2)
        return prior

    def _observed(self, targets: Tensor, weight: Tensor | None) -> Observations:
        self._require_nan_policy()
        calculus = self.calculus
        calculus.check_rows(targets.shape[0], targets)
        return Observations(calculus, targets, weight)

    @property
    def _num_latents(self) -> int:
        """C, that of every element of a batch of models."""
        return (self if self._batch is None else self.batch_elements[0]).calculus.num_latents

    def _looks_at_rows_together(self) -> bool:
        last = self.last_conditioned
        if last is not None and last.serves(training=self.training):
            return last.looks_at_rows_together
        if self._current() is not None:
            return self.conditioned.looks_at_rows_together
        with torch.no_grad():
            return prior_at_training_inputs(self).tabulated

    def _latent(self, inputs: tuple[Tensor, ...]) -> LatentPosterior:
        fit_grids(self, inputs)
        of_hyperparameters = wanted_in_hyperparameters(self.parameters(), lambda: self.observations)
        if of_hyperparameters or wanted(self.held_data.look()):
            with nullcontext() if of_hyperparameters else frozen(self):
                return posterior_of_data(self.call_forward, self.observations, self.held_data.inputs, inputs)
        now = self.conditioned
        warn_if_far(now, self.solver, stacklevel=5)
        # The weights were found for these hyperparameters, so predictions have no useful derivative in them.
        gradients = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        with kept_tensors(self), torch.set_grad_enabled(gradients), frozen(self):
            return LatentPosterior.at(self.prior_at(inputs), now.operator, now.solution)

    def _check_prediction(self, tempering: float | None, observation: dict[str, Any]) -> float:
        return check_prediction(self.calculus, self.tempering if tempering is None else tempering, observation)

    def _stream(self, x: Any, batch_size: int | None = None, progress: bool = False) -> Stream:
        inputs = checked_stream(self, x)  # whose references to the training data have ended before they are asked for
        now = self.conditioned
        warn_if_far(now, self.solver, stacklevel=5)
        return Stream(self, now, inputs, batch_size, progress)

    def _current(self) -> KnownPosterior | None:
        """The posterior if it is known and up to date."""
        known = self._known
        if known is None or known.key is None or not known.key.matches(identity_of(self)):
            return None
        return known
