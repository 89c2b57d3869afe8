"""``NonConjugateGP``: what a user subclasses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from torch import Tensor
from torch.distributions import Distribution

from itergp.checks import require_positive
from itergp.errors import InputError
from itergp.likelihoods import Likelihood, Observations, as_likelihood
from itergp.models.checkpoint_file import Within
from itergp.models.conditioning import bounded, find_posterior
from itergp.models.description import describe
from itergp.models.held_tensors import HeldTensors
from itergp.models.hyperparameters import frozen
from itergp.models.identity import Identity
from itergp.models.latent import LatentPosterior
from itergp.models.planning import Plan, make_plan, problem_size
from itergp.models.prior_evaluation import depends_on_mode, fit_grids, prior_at, prior_at_training_inputs
from itergp.models.prior_shapes import PriorOfWeightedRows, require_one_output
from itergp.models.saving import load_model, save_model
from itergp.models.streaming import Stream, check_prediction
from itergp.models.training_data import append_rows, fantasy_model, replace_rows
from itergp.models.uncertainty import UncertaintyDecomposition, decompose
from itergp.models.validation import allows_nan, as_inputs, as_observations, check_test_inputs
from itergp.operators import KernelOperator, OperatorClass, OperatorKind, Prior, make_operator, require_operator
from itergp.operators.derived import TabulatedKernel, snapshot
from itergp.operators.special import has_moving_grid
from itergp.records import TraceRecord
from itergp.solvers import APPROXIMATIONS, Solution, SubspaceNewton
from itergp.solvers.protocol import Solver, require_solver


class NonConjugateGP(gpytorch.models.GP):
    """A Gaussian process with any likelihood, conditioned on all of its data.

    Subclass it as GPyTorch's ``ExactGP`` or ``ApproximateGP``: set ``mean_module`` and ``covar_module``, and return their
    ``MultivariateNormal`` from ``forward``. One kernel serves all latent functions, or a batch of C kernels one each.
    In training mode the call returns the prior at the training inputs; in evaluation mode the latent posterior. The
    posterior is found on demand and again whenever a hyperparameter, the data, the likelihood or the solver have changed.
    Predictions have derivatives in the inputs, not in hyperparameters: learn those by ``itergp.objectives``.

    Attributes:
        tempering: Exponent p of ``predict`` by default: latent variances v are integrated as ``v (v / k)^p``, with k the
            prior's. 0 is the posterior itself.

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
            part of the model. NaN may be missing too where GPyTorch's ``observation_nan_policy`` or the likelihood
            says so.

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

    _held_data: HeldTensors
    _solution: Solution | None
    _operator: KernelOperator | None
    _made_in_training: bool  # the operator
    _identity: Identity | None

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
        inputs = as_inputs(train_inputs, "train_inputs")
        calculus = as_likelihood(likelihood, inputs)
        self.missing_targets, self._nan_targets = missing_targets, allows_nan(calculus)
        observed = as_observations(train_targets, inputs, calculus, sample_weight, missing_targets, self._nan_targets)
        self._held_data = HeldTensors((*inputs, observed.targets, observed.sample_weight))
        self.likelihood = likelihood
        self.solver = SubspaceNewton() if solver is None else solver
        self.approximation = approximation
        self.tempering = 0.0
        self.operator_kind = operator
        self.memory_budget = memory_budget
        self.forward_keywords: dict[str, Any] = {}
        self._forget()

    # ------------------------------------------------------ the training data
    @property
    def train_inputs(self) -> tuple[Tensor, ...]:
        """Training inputs, ``(N, D)`` each."""
        return self._held_data.lend()[:-2]  # type: ignore[return-value]

    @train_inputs.setter
    def train_inputs(self, inputs: tuple[Tensor, ...]) -> None:
        given = (inputs,) if torch.is_tensor(inputs) else inputs
        self._held_data = HeldTensors((*given, *self._held_data.look()[-2:]))

    @property
    def train_targets(self) -> Tensor:
        """Training targets ``(N,)``, as the likelihood wants them."""
        return self._held_data.lend()[-2]  # type: ignore[return-value]

    @train_targets.setter
    def train_targets(self, targets: Tensor) -> None:
        self._held_data = HeldTensors((*self._held_data.look()[:-2], targets, self._held_data.look()[-1]))

    @property
    def sample_weight(self) -> Tensor | None:
        """Weights of the targets ``(N,)``, or None if all are 1."""
        return self._held_data.lend()[-1]

    @sample_weight.setter
    def sample_weight(self, weight: Tensor | None) -> None:
        self._held_data = HeldTensors((*self._held_data.look()[:-1], weight))

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
        return self._current_solution() or self.condition()

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
        tempering = check_prediction(self, tempering, observation)
        stream = self._stream(x, progress=progress)
        return stream.predictive(tempering, self._calculus.observation_at(stream.inputs) | observation)

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
        tempering = check_prediction(self, tempering, observation)
        stream = self._stream(x, batch_size, progress)
        return stream.predictives(tempering, self._calculus.observation_at(stream.inputs) | observation)

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
            known = self._held_inputs
            if len(inputs) != len(known) or not all(map(torch.equal, inputs, known)):
                raise InputError(
                    "In training mode the model must be called on its training inputs. Got others. "
                    "Call model.eval() to predict."
                )
            prior = super().__call__(*inputs, **kwargs)
            require_one_output(prior)
            return prior if self._held_data.look()[-1] is None else PriorOfWeightedRows.of(prior)
        inputs = self._test_inputs(args)
        if gpytorch.settings.prior_mode.on():
            return super().__call__(*inputs, **kwargs)
        return self._latent(inputs).distribution()

    def forward(self, *args: Any, **kwargs: Any) -> MultivariateNormal:
        """The prior; to be defined by the subclass."""
        raise NotImplementedError(
            "Define forward(self, x) in the subclass: return MultivariateNormal(mean, covariance)."
        )

    def __getattr__(self, name: str) -> Any:
        """Python asks here also after a property has raised an AttributeError, which is then shown as it is."""
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
            inputs: Inputs of the new rows ``(M, D)``, or a tuple or list of such.
            targets: Their targets ``(M,)``.
            noise: Their noise variances ``(M,)``, for a ``FixedNoiseGaussianLikelihood``.

        Returns:
            The copy, in the same mode.

        Raises:
            InputError: If the rows do not look like the training data, are a batch of such, or their noise is missing.
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
        if self._held_data.look()[-1] is not None:
            PriorOfWeightedRows.refuse()
        return X

    def pyro_load_from_samples(self, samples_dict: dict[str, Tensor]) -> None:
        """Refuses samples of hyperparameters, which would make a batch of models.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"Hyperparameters must be one set for a model. Got samples of {sorted(samples_dict)}. Set one sample at a "
            "time, by model.initialize(**values) or model.load_state_dict, and average predictions over them."
        )

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
        if all(t is None or fn(t) is t for t in (*self.parameters(), *self.buffers(), *self._held_data.look())):
            # BoTorch's acquisition functions call .to(X) at every evaluation
            return super()._apply(fn, recurse=recurse)
        known = self._current_solution()
        result = super()._apply(fn, recurse=recurse)
        self._held_data = HeldTensors(tuple(None if t is None else fn(t) for t in self._held_data.look()))
        self._operator = None
        same_dtype = self._solution is None or self._solution.representer_weights.dtype == self._like_data.dtype
        if known is not None and same_dtype:
            self._adopt(known.to(self._like_data))
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
    def _held_inputs(self) -> tuple[Tensor, ...]:
        """The training inputs, to look at: who keeps or changes them takes ``train_inputs``."""
        return self._held_data.look()[:-2]  # type: ignore[return-value]

    @property
    def _like_data(self) -> Tensor:
        """An empty tensor of the dtype and on the device of the data."""
        return self._held_inputs[0].new_empty(0)

    def _data_digests(self) -> dict[str, str]:
        """Digests of the training data by name."""
        kept = (self._operator, None if self._solution is None else self._solution.operator)
        *inputs, targets, weight = self._held_data.digests(kept)
        found = {f"train_inputs {i}": x for i, x in enumerate(inputs)}
        found |= {"train_targets": targets, "sample_weight": weight}
        return {name: text for name, text in found.items() if text is not None}

    @property
    def _calculus(self) -> Likelihood:
        return as_likelihood(self.likelihood, self._held_inputs)

    def _prior(self, inputs: tuple[Tensor, ...]) -> Prior:
        """The prior at the training inputs, if these are given, or at new ones."""
        held = self._held_inputs
        if len(inputs) == len(held) and all(given is own for given, own in zip(inputs, held, strict=True)):
            return prior_at_training_inputs(self)
        # What looks at rows together is asked as ExactGP asks it; only the posterior's operator knows.
        together = not self.training and isinstance(self._training_operator().kernel, TabulatedKernel)
        return prior_at(self, inputs, together=together)

    def _call_forward_with(self, keywords: dict[str, Any]) -> None:
        """Keywords of ``forward`` from now on; others ask for another posterior."""
        if describe(keywords, "") != describe(self.forward_keywords, ""):
            self.forward_keywords = dict(keywords)
            self._operator = None

    def train(self, mode: bool = True) -> NonConjugateGP:
        """Training or evaluation mode; a prior that depends on it asks for another posterior."""
        operator = self.__dict__.get("_operator")
        if mode != self.training and operator is not None:
            # Only in evaluation mode it is seen whether forward takes rows one by one.
            unseen = self._made_in_training or isinstance(operator.kernel, TabulatedKernel)
            self._operator = None if unseen or depends_on_mode(self) else operator
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
                self._take_operator(self._make_operator(self._prior(self.train_inputs)))
        assert self._operator is not None
        return self._operator

    def _take_operator(self, operator: KernelOperator) -> None:
        """Makes an operator that of the present posterior."""
        if operator is not self._operator:
            self._operator, self._made_in_training = operator, self.training

    def _latent(self, inputs: tuple[Tensor, ...], *, covariance: bool = True) -> LatentPosterior:
        if torch.is_grad_enabled() and any(x.requires_grad for x in self._held_inputs):
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
        check_test_inputs(inputs, self._held_inputs)
        return inputs

    def _like_training(self, x: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Inputs, those that were not tensors in the dtype and on the device of the training inputs."""
        given = x if isinstance(x, tuple) else (x,)
        if len(inputs) != len(self._held_inputs):
            return inputs  # which is refused
        trios = zip(given, inputs, self._held_inputs, strict=True)
        return tuple(t if torch.is_tensor(raw) else t.to(like) for raw, t, like in trios)

    def _stream(self, x: Any, batch_size: int | None = None, progress: bool = False) -> Stream:
        inputs = as_inputs(x, "inputs")
        # What is not a tensor is converted batch by batch: one row shows whether it fits.
        given = x if isinstance(x, tuple) else (x,)
        seen = tuple(t if torch.is_tensor(raw) else t[:1] for raw, t in zip(given, inputs, strict=True))
        check_test_inputs(self._like_training(x, seen), self._held_inputs)
        if has_moving_grid(self):
            fit_grids(self, self._like_training(x, inputs))
        return Stream(self, inputs, batch_size, progress)

    def _current_solution(self) -> Solution | None:
        """The posterior if it is known and up to date."""
        if self._solution is None or self._identity is None or not self._identity.matches(Identity.of(self)):
            return None
        return self._solution

    def _restore(
        self,
        inputs: tuple[Tensor, ...],
        targets: Tensor,
        sample_weight: Tensor | None,
        solution: Solution | None,
    ) -> None:
        """Replaces data and posterior by ones that belong together."""
        self._held_data = HeldTensors((*inputs, targets, sample_weight))
        self._forget()
        if solution is not None:
            self._adopt(solution)

    def _adopt(self, solution: Solution) -> None:
        """Takes a solution as that of the present state."""
        self._identity = Identity.of(self)
        if self.operator_kind == "sharded":
            solution = solution.divide(self._training_operator().rows)
        self._solution = bounded(self, solution, self._identity)

    def _start_from(self, solution: Solution) -> None:
        """Takes a solution as the start of the next one, not as that of the present state."""
        self._forget()
        self._solution = solution

    def _forget(self) -> None:
        self._solution, self._operator, self._identity = None, None, None
        self._made_in_training = False
