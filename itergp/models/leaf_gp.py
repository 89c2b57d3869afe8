"""``LeafGP``: a posterior of its own in each leaf of a tree of medians, blended where leaves overlap."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from itergp.checks import require_positive
from itergp.errors import InputError, ItergpWarning
from itergp.models.leaf_posteriors import LeafPosteriors, LeafTask
from itergp.models.leaf_saving import load_leaves, save_leaves
from itergp.models.nonconjugate_gp import NonConjugateGP
from itergp.models.planning import LeafPlan, make_plan, problem_size
from itergp.models.streaming import check_prediction, checked_stream, gathered, of_rows, predictive_of
from itergp.posterior.status import Status
from itergp.posterior.tempering import tempered


class LeafGP:
    """A model whose rows are divided into leaves, each with a posterior of its own: cost grows with the rows, not their square.

    The hyperparameters are the model's, which ``itergp.fit`` learns on subsets whatever the number of rows. A tree divides the
    inputs, in lengthscales, at the median of the one that varies most, until a leaf has at most ``num_rows`` rows; rows near a
    border belong to both sides. Each leaf is conditioned on its rows as ``model.condition`` conditions on all, with the model's
    solver and approximation, and certified. With weights ``w_l(x)`` that fade across borders and add up to 1, the latent
    posterior has

        mean  sum_l w_l m_l      and covariance  c sum_l (w_l / c_l) S_l,      c_l = sqrt(tr S_l),  c = sum_l w_l c_l

    of the leaves' means ``m_l`` and covariances ``S_l``. This covariance bounds the error of that mean, and is not below the
    exact one for the curvature that the leaves have: see the theory page, leaves. A single leaf is the model itself.

    Predictions have no derivatives in the inputs, and are of one row at a time: no bound on a joint covariance of several is
    known. Where ``operator="sharded"`` and ``torch.distributed`` has several processes, they divide the leaves and all run the
    same program.

    Args:
        model: A ``NonConjugateGP`` with data. Where its hyperparameters, data or solver change, leaves are found again.
        num_rows: Rows of a leaf, at most, those near borders included.
        overlap: Share of the rows of every node of the tree, around its median, that both sides condition on: at least 0, less
            than a half.

    Raises:
        InputError: If the model is not one that leaves can be made of, or a number is out of range.

    Examples:
        >>> import torch, itergp
        >>> x = torch.linspace(-3, 3, 300).unsqueeze(-1)
        >>> model = itergp.models.GP(x, (x[:, 0].sin() > 0).long(), itergp.likelihoods.BernoulliLikelihood()).eval()
        >>> leaves = itergp.models.LeafGP(model, num_rows=100)
        >>> leaves.num_leaves
        4
        >>> bool(leaves.predict(torch.tensor([[1.5]])).probs > 0.5)
        True
    """

    def __init__(self, model: NonConjugateGP, *, num_rows: int = 4096, overlap: float = 0.1) -> None:
        if not isinstance(model, NonConjugateGP) or not model.held_data.inputs or model.data_batch_shape:
            raise InputError(
                "`model` must be a single NonConjugateGP or GP with training data. Got "
                f"{type(model).__name__}{' without data, or a batch' * isinstance(model, NonConjugateGP)}. "
                "Make leaves of the elements of a batch, one by one."
            )
        require_positive("num_rows", num_rows, integer=True)
        if isinstance(overlap, bool) or not isinstance(overlap, (int, float)) or not 0.0 <= overlap < 0.5:
            raise InputError(f"`overlap` must be a share, 0 or more and less than 0.5. Got {overlap!r}. Pass 0.1.")
        self.model, self.num_rows, self.overlap = model, int(num_rows), float(overlap)
        self._task: LeafTask | None = None
        self._known: LeafPosteriors | None = None

    def __repr__(self) -> str:
        """Settings, and leaves if they are known."""
        known = "" if self._known is None else f", {len(self._known.statuses)} leaves"
        return f"LeafGP({type(self.model).__name__}, num_rows={self.num_rows}, overlap={self.overlap}{known})"

    # ------------------------------------------------------------------ leaves
    @property
    def leaf_sizes(self) -> tuple[int, ...]:
        """Rows that each leaf is conditioned on, those near borders counted in each."""
        return self._divided().sizes

    @property
    def num_leaves(self) -> int:
        """Number of leaves."""
        return len(self.leaf_sizes)

    def plan(self) -> LeafPlan:
        """What ``condition`` is expected to take, from the largest leaf; times the kernel for a fraction of a second."""
        task = self._divided()
        largest = max(range(len(task.rows)), key=task.sizes.__getitem__)
        problem = task.problem(largest)
        size = problem_size(problem.operator, problem.observations, self.model.approximation, self.model.solver)
        leaf = make_plan(problem.operator, self.model.solver, size, given_rows=task.sizes[largest])
        return LeafPlan(leaf, task.sizes, self.model.held_data.targets.shape[0], task.partition.num_processes)

    def condition(
        self,
        *,
        progress: bool | None = False,
        checkpoint: str | os.PathLike[str] | None = None,
        time_limit: float | None = None,
    ) -> tuple[Status, ...]:
        """Finds the posterior of every leaf, starting from the last one if nothing has changed.

        Args:
            progress: Draw a bar of leaves; None to do so in a terminal after two seconds.
            checkpoint: Folder in which each leaf is kept once it is found. Leaves that are there, of the same model, data and
                settings, are not found again, whichever process found them, unless they ran out of time.
            time_limit: Seconds for all leaves: each gets its share of what is left. Posteriors so far are valid.

        Returns:
            How each leaf ended, as ``statuses``.

        Raises:
            InputError: If the prior does not fit the data, the kernel has no metric to divide inputs by, or leaves cannot fit
                into memory.
            SolverError: If a NaN appears.
        """
        require_positive("time_limit", time_limit)
        task = self._divided()
        if self._known is not None and self._known.task is not task:
            self._known = None  # whose memory is needed
        start = None if self._known is None else self._known.own
        self._known = task.find(start, progress=progress, checkpoint=checkpoint, time_limit=time_limit)
        return self._known.statuses

    @property
    def statuses(self) -> tuple[Status, ...]:
        """How each leaf ended, and what to try; without the figures of leaves in other processes."""
        return self._current().statuses

    @property
    def objective_gap(self) -> float | None:
        """Bound on how far the objectives of all leaves together are from their minima, nats.

        None where a leaf has no certificate, infinity where it is not known, as by ``LinearTimeNewton`` without a polish.
        """
        gaps = self._current().objective_gaps
        return None if any(math.isnan(gap) for gap in gaps) else sum(gaps)

    # ------------------------------------------------------------- predictions
    def predict(
        self, x: Any, *, tempering: float | None = None, progress: bool = False, **observation: Any
    ) -> Distribution:
        """Predictive distribution of observations at new inputs, row by row, as ``NonConjugateGP.predict`` gives it.

        Args:
            x: Inputs ``(M, D)``, or a tuple of such, of any kind that a model takes; the same in every process.
            tempering: Exponent, 0 or more, for the blended covariance; default that of the model.
            progress: Draw a progress bar.
            **observation: What the likelihood wants to know about new rows.

        Raises:
            InputError: If the inputs do not look like the training inputs, or the likelihood does not know a keyword.
        """
        inputs, marginals = self._marginals(x, None, tempering, observation, progress)
        known = self.model.calculus.observation_at(inputs) | observation
        return predictive_of(self.model.calculus, marginals, known)

    def predict_batches(
        self, x: Any, batch_size: int | None = None, *, tempering: float | None = None, **observation: Any
    ) -> Iterator[tuple[slice, Distribution]]:
        """``predict`` for many rows, batch by batch; the model must not be changed while batches are drawn.

        Args:
            x: As in ``predict``; a memory-mapped array is converted batch by batch.
            batch_size: Rows of a batch; by default so many that their moments take some megabytes. Large batches are faster:
                every leaf is asked once for each.
            tempering: As in ``predict``.
            **observation: As in ``predict``.

        Returns:
            An iterator of pairs: the slice of the rows of a batch, and their predictive distribution.
        """
        require_positive("batch_size", batch_size, integer=True)
        inputs, marginals = self._marginals(x, batch_size, tempering, observation, progress=False)
        likelihood = self.model.calculus
        known = likelihood.observation_at(inputs) | observation
        return ((i, likelihood.predictive(mean, left, **of_rows(known, i))) for i, mean, left in marginals)

    def latent_mean(self, x: Any) -> Tensor:
        """Blended posterior mean of the latent functions ``(M, C)``, without the cost of a covariance.

        Args:
            x: Inputs ``(M, D)``, or a tuple of such.
        """
        inputs, leaves = checked_stream(self.model, x), self._predictor()
        means = ((rows, mean) for rows, mean, _, _ in leaves.moments(inputs, covariance=False))
        return gathered(means, inputs[0].shape[0])

    def latent_moments(self, x: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Blended latent means ``(M, C)``, covariances ``(M, C, C)`` and prior variances ``(M, C)``.

        Args:
            x: Inputs ``(M, D)``, or a tuple of such.
        """
        inputs, leaves = checked_stream(self.model, x), self._predictor()
        found = [moments for _, *moments in leaves.moments(inputs, covariance=True)]
        mean, covariance, variance = (torch.cat(parts) for parts in zip(*found, strict=True))
        return mean, covariance, variance

    # ------------------------------------------------------------------ saving
    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model, its data and the posteriors of all leaves to one file of arrays and JSON, without code.

        Args:
            path: Where to.

        Raises:
            InputError: If the file cannot be written, or leaves are divided among processes.
        """
        save_leaves(self._current(), path)

    def load(self, path: str | os.PathLike[str]) -> LeafGP:
        """Restores what ``save`` wrote, into leaves of a model built the same way; settings are the file's.

        Args:
            path: The file.

        Returns:
            The leaves themselves.

        Raises:
            InputError: If the file is missing, damaged or of something else, or class, kernel or likelihood differ.
        """
        settings, self._known = load_leaves(self.model, path)
        self._task = None if self._known is None else self._known.task
        self.num_rows, self.overlap = settings["num_rows"], settings["overlap"]
        return self

    # ------------------------------------------------------------------ inside
    @property
    def _settings(self) -> dict[str, Any]:
        return {"num_rows": self.num_rows, "overlap": self.overlap}

    def _divided(self) -> LeafTask:
        """The leaves of the present model."""
        if self._task is None or not self._task.serves(self.model, self._settings):
            self._task = LeafTask.of(self.model, self._settings)
        return self._task

    def _current(self) -> LeafPosteriors:
        """Their posteriors, found now if they are not known."""
        if self._known is None or self._known.task is not self._divided():
            self.condition()
        assert self._known is not None
        return self._known

    def _predictor(self, stacklevel: int = 3) -> LeafPosteriors:
        """The posteriors, of which it is said if they are not to be relied upon."""
        now = self._current()
        if now.num_far > 0:
            worst = next(status for status in now.statuses if not status.converged)
            warnings.warn(
                "The posterior of every leaf must be near to what data and prior say for predictions to be right. Got "
                f"{now.num_far} of {len(now.statuses)} that are not, such as: {worst} Until then predictions may be far off: "
                "look at leaves.statuses.",
                ItergpWarning,
                stacklevel=stacklevel,
            )
        return now

    def _marginals(
        self, x: Any, batch_size: int | None, tempering: float | None, observation: dict[str, Any], progress: bool
    ) -> tuple[tuple[Tensor, ...], Iterator[tuple[slice, Tensor, Tensor]]]:
        """Inputs, checked, and an iterator of slices of them, latent means and tempered covariances."""
        exponent = self.model.tempering if tempering is None else tempering
        exponent = check_prediction(self.model.calculus, exponent, observation)
        inputs, leaves = checked_stream(self.model, x), self._predictor(stacklevel=4)
        found = leaves.moments(inputs, covariance=exponent < math.inf, batch_size=batch_size, progress=progress)
        return inputs, ((rows, mean, tempered(spread, prior, exponent)) for rows, mean, spread, prior in found)
