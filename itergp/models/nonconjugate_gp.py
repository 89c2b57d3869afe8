"""``NonConjugateGP``: what a user subclasses."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from torch import Tensor
from torch.distributions import Distribution

from itergp.diagnostics import TraceRecord
from itergp.errors import InputError
from itergp.likelihoods import Likelihood, Observations, as_likelihood
from itergp.models.checkpoint_file import Within
from itergp.models.conditioning import bounded, find_posterior
from itergp.models.fingerprint import Fingerprint, frozen
from itergp.models.latent import LatentPosterior
from itergp.models.planning import Plan, make_plan, problem_size
from itergp.models.prior_evaluation import (
    depends_on_mode,
    fit_grids,
    prior_at,
    prior_at_training_inputs,
    same_keywords,
)
from itergp.models.saving import load_model, save_model
from itergp.models.streaming import Stream, check_prediction
from itergp.models.training_data import append_rows, replace_rows
from itergp.models.uncertainty import UncertaintyDecomposition, decompose
from itergp.models.validation import as_inputs, as_observations, check_test_inputs
from itergp.operators import KernelOperator, OperatorClass, OperatorKind, Prior, make_operator, require_operator
from itergp.operators.derived import TabulatedKernel, snapshot
from itergp.operators.special import has_moving_grid
from itergp.solvers import APPROXIMATIONS, Solution, SubspaceNewton
from itergp.solvers.base import Solver, require_positive, require_solver


class NonConjugateGP(gpytorch.models.GP):
    """A Gaussian process with any likelihood, conditioned on all of its data.

    Subclass it as GPyTorch's ``ExactGP`` or ``ApproximateGP``: set ``mean_module`` and ``covar_module``, and return their
    ``MultivariateNormal`` from ``forward``. One kernel serves all latent functions, or a batch of C kernels one each.
    In training mode the call returns the prior at the training inputs; in evaluation mode the latent posterior. The
    posterior is found on demand and again whenever a hyperparameter, the data, the likelihood or the solver have changed.
    Predictions have derivatives in the inputs, not in hyperparameters: learn those by ``itergp.objectives``.

    Attributes:
        covariance_scale: Share of the latent covariance that ``predict`` integrates by default; 1 is the posterior itself.

    Args:
        train_inputs: ``(N, D)``, or a tuple of such for a ``forward`` of several arguments: tensors, or arrays, data frames
            and Arrow data, which are read where they are (``itergp.as_tensor``).
        train_targets: ``(N,)``, as the likelihood wants them.
        likelihood: One of ``itergp.likelihoods``, or any of GPyTorch's as it is.
        solver: How the posterior is found; default ``SubspaceNewton()``.
        approximation: ``"variational"`` (default) or ``"laplace"``.
        operator: How kernel products are computed: ``"auto"``, ``"dense"``, ``"blocked"``, ``"keops"``, or ``"sharded"``, with
            the rows divided among the processes of ``torch.distributed``, which all run the same program. Or a
            subclass of ``KernelOperator``, for one of your own.
        memory_budget: Bytes for cached kernel entries and batches; default a quarter of the free memory.
        sample_weight: Weights ``(N,)`` that multiply the rows' log-densities; default 1.
        missing_targets: Whether targets may be missing (NaN, or -1 for labels): such rows carry no information, but are
            part of the model.

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

    train_targets: Tensor
    sample_weight: Tensor | None
    _solution: Solution | None
    _operator: KernelOperator | None
    _fingerprint: Fingerprint | None

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
    ) -> None:
        super().__init__()
        if approximation not in APPROXIMATIONS:
            raise InputError(f"`approximation` must be one of {APPROXIMATIONS}. Got {approximation!r}.")
        require_operator(operator)
        require_solver(SubspaceNewton() if solver is None else solver)
        require_positive("memory_budget", memory_budget, integer=True)
        self.train_inputs = as_inputs(train_inputs, "train_inputs")
        calculus = as_likelihood(likelihood, self.train_inputs)
        self.missing_targets = missing_targets
        observed = as_observations(train_targets, self.train_inputs, calculus, sample_weight, missing_targets)
        self.train_targets, self.sample_weight = observed.targets, observed.sample_weight
        self.likelihood = likelihood
        self.solver = SubspaceNewton() if solver is None else solver
        self.approximation = approximation
        self.covariance_scale = 1.0
        self.operator_kind = operator
        self.memory_budget = memory_budget
        self.forward_keywords: dict[str, Any] = {}
        self._forget()

    # ---------------------------------------------------------- the posterior
    def condition(
        self,
        *,
        progress: bool = False,
        callback: Callable[[TraceRecord], None] | None = None,
        on_posterior: Callable[[Solution], None] | None = None,
        checkpoint: str | os.PathLike[str] | Within | None = None,
        checkpoint_every: float = 30.0,
    ) -> Solution:
        """Finds the posterior at the current hyperparameters, warm-started from the last one.

        Ctrl-C ends it early: the posterior so far is valid and is returned, with a status that says so.

        Args:
            progress: Draw passes, objective and certified gap while it runs.
            callback: Called with every record of the trace.
            on_posterior: Called with the posterior so far, which is valid and which the model predicts from until the function
                returns: after every step but a stage's last, when the covariance is still the prior's (plug in the mean by
                ``covariance_scale=0``), and at the end of a Laplace stage that a variational one follows. Its time counts. All
                processes that share the rows pass one.
            checkpoint: File in which the state of the solve is kept while it runs, and in the end the posterior. If it exists,
                the solve goes on from there, to the same answer as without the interruption: to the last bit on the same
                machine with as many threads, elsewhere to rounding. With rows divided among processes, all pass it, to a folder
                that all see, and the end is found again from the last state.
            checkpoint_every: Seconds between writes; longer where writing would take more than a twentieth of the time.
                0 writes after every step.

        Returns:
            The solution, which predictions use from now on.

        Raises:
            InputError: If the prior does not fit the data, the kernel is not positive semi-definite, or what the solver keeps
                cannot fit into memory.
            SolverError: If a NaN appears; the error carries the last good solution, and the model keeps what it had.
        """
        return find_posterior(
            self,
            progress=progress,
            callback=callback,
            on_posterior=on_posterior,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
        )

    def plan(self) -> Plan:
        """What ``condition`` is expected to take: passes, kernel entries, time and memory.

        Times the kernel for a fraction of a second; ``print(model.plan())`` says it in a sentence.
        """
        with torch.no_grad():
            operator = self._make_operator(self._prior(self.train_inputs))
        return make_plan(operator, self.solver, problem_size(self, operator))

    @property
    def solution(self) -> Solution:
        """The posterior at the current hyperparameters; found now if they changed since it was last found."""
        if self._solution is None or not self._same(self._state_now()):
            return self.condition()
        return self._solution

    def predict(
        self, x: Any, *, covariance_scale: float | None = None, progress: bool = False, **observation: Any
    ) -> Distribution:
        """Predictive distribution of observations at new inputs, row by row.

        Rows are processed in batches within the memory budget; ``predict_batches`` does not even collect the results.

        Args:
            x: Inputs ``(M, D)``, or a tuple of such: tensors, NumPy arrays, data frames or Arrow data.
            covariance_scale: Between 0 and 1: 1 integrates the posterior, 0 plugs in its mean. Default: the model's
                ``covariance_scale``, which is 1 unless ``itergp.fit`` chose another on held-out rows. Statements about
                computation-aware uncertainty hold at 1.
            progress: Draw a progress bar.
            **observation: What the likelihood wants to know about new rows, a number or ``(M,)``: ``exposure`` of counts,
                ``num_trials`` of a binomial; default 1.

        Returns:
            A distribution with batch shape ``(M,)``: ``.probs`` for classes, ``.mean``, ``.variance``, ``.log_prob(y)`` and
            ``.quantile(level)`` for counts and real values.

        Raises:
            InputError: If the inputs do not look like the training inputs, or the likelihood does not know a keyword.
        """
        covariance_scale = check_prediction(self, covariance_scale, observation)
        stream = self._stream(x, progress=progress)
        return stream.predictive(covariance_scale, self._calculus.observation_at(stream.inputs) | observation)

    def predict_batches(
        self,
        x: Any,
        batch_size: int | None = None,
        *,
        covariance_scale: float | None = None,
        progress: bool = False,
        **observation: Any,
    ) -> Iterator[tuple[slice, Distribution]]:
        """``predict`` for many rows: batch by batch, at constant memory.

        The model must not be changed while batches are drawn.

        Args:
            x: As in ``predict``; a memory-mapped array of another floating-point dtype is converted batch by batch.
            batch_size: Rows of a batch; default as many as the memory budget allows, 8,192 at most.
            covariance_scale: As in ``predict``.
            progress: Draw a progress bar.
            **observation: As in ``predict``.

        Returns:
            An iterator of pairs: the slice of the rows of a batch, and their predictive distribution.

        Raises:
            InputError: As ``predict`` does, before the first batch.
        """
        require_positive("batch_size", batch_size, integer=True)
        covariance_scale = check_prediction(self, covariance_scale, observation)
        stream = self._stream(x, batch_size, progress)
        return stream.predictives(covariance_scale, self._calculus.observation_at(stream.inputs) | observation)

    def latent_mean(self, x: Any, *, progress: bool = False) -> Tensor:
        """Posterior mean of the latent functions ``(M, C)``, without the cost of a covariance.

        Args:
            x: Inputs ``(M, D)``, or a tuple of such, processed in batches.
            progress: Draw a progress bar.
        """
        return self._stream(x, progress=progress).mean()

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
        inputs, solution = self._test_inputs(x), self.solution
        if solution.rows.sharded:
            raise InputError(
                "The parts of uncertainty are computed in one process. Got rows divided among several. Save the model, and "
                "load it in one with operator='auto'."
            )
        with torch.no_grad():
            points = self._prior(inputs).features
        return decompose(self._training_operator(), solution, points, passes=passes, dense_limit=dense_limit)

    # -------------------------------------------------------- GPyTorch's habits
    def __call__(self, *args: Tensor, **kwargs: Any) -> MultivariateNormal:
        """The prior at the training inputs in training mode, the latent posterior in evaluation mode.

        Keywords are handed to ``forward``, now and until the next call: the posterior is that of the prior with them.
        """
        self._call_forward_with(kwargs)
        if self.training:
            inputs = as_inputs(args, "inputs")
            if len(inputs) != len(self.train_inputs) or not all(map(torch.equal, inputs, self.train_inputs)):
                raise InputError(
                    "In training mode the model must be called on its training inputs. Got others. "
                    "Call model.eval() to predict."
                )
            return super().__call__(*inputs, **kwargs)
        inputs = self._test_inputs(args)
        if gpytorch.settings.prior_mode.on():
            return super().__call__(*inputs, **kwargs)
        return self._latent(inputs).distribution()

    def forward(self, *args: Any, **kwargs: Any) -> MultivariateNormal:
        """The prior; to be defined by the subclass."""
        raise NotImplementedError(
            "Define forward(self, x) in the subclass: return MultivariateNormal(mean, covariance)."
        )

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

    def get_fantasy_model(self, inputs: Any, targets: Any, **kwargs: Any) -> NonConjugateGP:
        """A copy that has also seen other rows, by GPyTorch's name; its posterior starts from the present one.

        Args:
            inputs: Inputs of the new rows ``(M, D)``, or a tuple of such.
            targets: Their targets ``(M,)``.
            **kwargs: Refused.

        Raises:
            InputError: For batches of rows, keywords, and likelihoods that know more of a row than its target.
        """
        if kwargs or not self._calculus.exchangeable:
            raise InputError(
                "Fantasies need rows that share one likelihood, and no keywords. Got "
                f"{type(self.likelihood).__name__} and {sorted(kwargs)}. Build a model of all rows with their noise."
            )
        if torch.is_tensor(targets) and targets.dim() > self.train_targets.dim():
            raise InputError(
                f"`targets` must be those of one set of new rows. Got {tuple(targets.shape)}. Use "
                "itergp.botorch.BotorchModel(model).fantasize for batches, or one call for each."
            )
        twin = copy.deepcopy(self)
        twin.append_train_data(inputs, targets)
        return twin

    # ------------------------------------------------------------------ saving
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
        fingerprint_held = self._solution is not None and self._same(self._state_now())
        kinds = [(p.dtype, p.device) for p in self.parameters()]
        result = super()._apply(fn, recurse=recurse)
        moved = not all(fn(x) is x for x in self.train_inputs)
        if fingerprint_held and not moved and kinds == [(p.dtype, p.device) for p in self.parameters()]:
            return result  # BoTorch's acquisition functions call .to(X) at every evaluation
        self.train_inputs = tuple(fn(x) for x in self.train_inputs)
        self.train_targets = fn(self.train_targets)
        self.sample_weight = None if self.sample_weight is None else fn(self.sample_weight)
        self._operator = None
        same_dtype = self._solution is None or self._solution.representer_weights.dtype == self.train_inputs[0].dtype
        if fingerprint_held and self._solution is not None and same_dtype:
            self._adopt(self._solution.to(self.train_inputs[0]))
        else:
            self._forget()
        return result

    def __getstate__(self) -> dict[str, Any]:
        """State for pickle and deepcopy: without kernel caches and search space, which can be rebuilt."""
        state = self.__dict__.copy()
        if self._solution is not None:
            state["_solution"] = self._solution.without_space()
        state["_operator"] = None
        return state

    # ------------------------------------------------------------------ inside
    @property
    def observations(self) -> Observations:
        """Targets, their weights and the likelihood."""
        return Observations(self._calculus, self.train_targets, self.sample_weight)

    @property
    def _calculus(self) -> Likelihood:
        return as_likelihood(self.likelihood, self.train_inputs)

    def _prior(self, inputs: tuple[Tensor, ...]) -> Prior:
        """The prior at the training inputs, if these are given, or at new ones."""
        if inputs is self.train_inputs:
            return prior_at_training_inputs(self)
        # What looks at rows together is asked as ExactGP asks it; only the posterior's operator knows.
        together = not self.training and isinstance(self._training_operator().kernel, TabulatedKernel)
        return prior_at(self, inputs, together=together)

    def _call_forward_with(self, keywords: dict[str, Any]) -> None:
        """Keywords of ``forward`` from now on; others ask for another posterior."""
        if not same_keywords(keywords, self.forward_keywords):
            self.forward_keywords = dict(keywords)
            self._start_again()

    def train(self, mode: bool = True) -> NonConjugateGP:
        """Training or evaluation mode; a prior that depends on it asks for another posterior."""
        if mode != self.training and self.__dict__.get("_operator") is not None:
            self._operator = None
            if depends_on_mode(self):
                self._start_again()
        super().train(mode)
        return self

    def _make_operator(self, prior: Prior) -> KernelOperator:
        """The operator of a snapshot of the kernel, so that it stays what the posterior was found with."""
        with torch.no_grad():
            kernel = snapshot(prior.kernel)
        return make_operator(
            kernel,
            prior.features.detach(),
            num_kernels=prior.num_kernels,
            kind=self.operator_kind,
            memory_budget=self.memory_budget,
        )

    def _training_operator(self) -> KernelOperator:
        """The operator of the present posterior, made again if it was not kept."""
        if self._operator is None:
            with torch.no_grad():
                self._operator = self._make_operator(self._prior(self.train_inputs))
        return self._operator

    def _latent(self, inputs: tuple[Tensor, ...], *, covariance: bool = True) -> LatentPosterior:
        if torch.is_grad_enabled() and any(x.requires_grad for x in self.train_inputs):
            raise InputError(
                "Predictions have derivatives in new inputs, not in training inputs. Got training inputs that require them. "
                "Detach those, or predict under torch.no_grad()."
            )
        fit_grids(self, inputs)
        solution = self.solution
        operator = self._training_operator()
        # The weights were found for these hyperparameters, so predictions have no useful derivative in them.
        with torch.set_grad_enabled(torch.is_grad_enabled() and any(x.requires_grad for x in inputs)), frozen(self):
            return LatentPosterior.at(self._prior(inputs), operator, solution, covariance=covariance)

    def _test_inputs(self, x: Any) -> tuple[Tensor, ...]:
        inputs = as_inputs(x, "inputs")
        inputs = self._like_training(x, inputs)
        check_test_inputs(inputs, self.train_inputs)
        return inputs

    def _like_training(self, x: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Inputs, those that were not tensors in the dtype and on the device of the training inputs."""
        given = x if isinstance(x, tuple) else (x,)
        if len(inputs) != len(self.train_inputs):
            return inputs  # which is refused
        trios = zip(given, inputs, self.train_inputs, strict=True)
        return tuple(t if torch.is_tensor(raw) else t.to(like) for raw, t, like in trios)

    def _stream(self, x: Any, batch_size: int | None = None, progress: bool = False) -> Stream:
        inputs = as_inputs(x, "inputs")
        # What is not a tensor is converted batch by batch: one row shows whether it fits.
        given = x if isinstance(x, tuple) else (x,)
        seen = tuple(t if torch.is_tensor(raw) else t[:1] for raw, t in zip(given, inputs, strict=True))
        check_test_inputs(self._like_training(x, seen), self.train_inputs)
        if has_moving_grid(self):
            fit_grids(self, self._like_training(x, inputs))
        return Stream(self, inputs, batch_size, progress)

    def _state_now(self) -> Fingerprint:
        """Everything the posterior depends on, to tell whether it is still current."""
        return Fingerprint.of(
            self,
            (*self.train_inputs, self.train_targets, self.sample_weight),
            (self.likelihood, self.solver, self.approximation, self.operator_kind),
        )

    def _same(self, fingerprint: Fingerprint) -> bool:
        return self._fingerprint is not None and self._fingerprint.equals(fingerprint)

    def _current_solution(self) -> Solution | None:
        """The posterior if it is known and up to date."""
        return self._solution if self._same(self._state_now()) else None

    def _restore(
        self,
        inputs: tuple[Tensor, ...],
        targets: Tensor,
        sample_weight: Tensor | None,
        solution: Solution | None,
    ) -> None:
        """Replaces data and posterior by ones that belong together."""
        self.train_inputs, self.train_targets, self.sample_weight = inputs, targets, sample_weight
        self._forget()
        if solution is not None:
            self._adopt(solution)

    def _adopt(self, solution: Solution) -> None:
        """Takes a solution as that of the present state."""
        self._fingerprint = self._state_now()
        if self.operator_kind == "sharded":
            solution = solution.divide(self._training_operator().rows)
        self._solution = bounded(self, solution, self._fingerprint)

    def _start_from(self, solution: Solution) -> None:
        """Takes a solution as the start of the next one, not as that of the present state."""
        self._forget()
        self._solution = solution

    def _start_again(self) -> None:
        """Makes what was the posterior the start of the next one."""
        if self._solution is not None:
            self._start_from(self._solution)

    def _forget(self) -> None:
        self._solution, self._operator, self._fingerprint = None, None, None
