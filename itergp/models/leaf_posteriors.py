"""The leaves of a model: which rows each is conditioned on, their posteriors, and what these say together."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itergp.diagnostics import ProgressBar
from itergp.errors import InputError, SolverError
from itergp.likelihoods import Observations
from itergp.models.checkpointing import finished_solution, save_final
from itergp.models.conditioned import Conditioned
from itergp.models.distinct_rows import distinct_rows, share_latents
from itergp.models.endings import is_far
from itergp.models.hyperparameters import kept_tensors
from itergp.models.identity import describe_prior, identify, identity_of
from itergp.models.nonconjugate_gp import NonConjugateGP
from itergp.models.planning import check_memory, problem_size
from itergp.models.prior_evaluation import is_row_by_row
from itergp.models.streaming import Stream
from itergp.models.threads import turn
from itergp.models.validation import check_kernel, check_mean, check_parameters
from itergp.numerics.median_tree import MedianTree
from itergp.operators import KernelOperator, Prior, free_memory, make_operator, own_rows, slices
from itergp.operators.derived import snapshot
from itergp.parallel import RowPartition, many_processes
from itergp.persistence import CheckpointFile, to_state
from itergp.persistence.digest import digest
from itergp.persistence.identity import Identity
from itergp.posterior.status import Reason, Status
from itergp.solvers import Solution, solve

_CHUNK_NUMBERS = 2**21  # of the moments that are added up at once
_TINY = 1e-300  # of a trace that is divided by


@dataclass(frozen=True)
class LeafTask:
    """A model divided into leaves.

    Attributes:
        model: The model.
        settings: Rows of a leaf and overlap, by name.
        prior: At all training rows.
        locator: Of few rows, by whose kernel inputs are in lengthscales.
        tree: Gives the weights of leaves.
        rows: Numbers of the rows that each leaf is conditioned on ``(n,)``.
        partition: Which leaves are those of this process.
        key: What the posteriors depend on.
    """

    model: NonConjugateGP
    settings: dict[str, Any]
    prior: Prior
    locator: KernelOperator
    tree: MedianTree
    rows: tuple[Tensor, ...]
    partition: RowPartition
    key: Identity

    @classmethod
    def of(
        cls, model: NonConjugateGP, settings: dict[str, Any], known: tuple[MedianTree, tuple[Tensor, ...]] | None = None
    ) -> LeafTask:
        """Divides a model, in every process alike.

        Args:
            model: The model.
            settings: ``num_rows`` and ``overlap``.
            known: Tree and rows, if they are known already.

        Raises:
            InputError: If prior or likelihood are no functions of rows, inputs have no scale, or leaves are fewer than
                processes.
        """
        if not model.calculus.exchangeable:  # some rows would have the noise of others
            raise InputError(
                "Leaves need a likelihood of which some rows can be looked at alone. Got "
                f"{type(model.likelihood).__name__}, which holds something for each row. Condition the model itself."
            )
        check_parameters(model.named_parameters_and_constraints(), model.held_data.inputs[0])
        untouched = describe_prior(model)
        with kept_tensors(model), torch.no_grad():
            prior = model.prior_at()
            check_mean(prior.mean)
            locator = _locator(model, prior)
            key = identity_of(model).with_counters(untouched, describe_prior(model))
            if known is None:
                points = locator.scaled_inputs(prior.features.detach())
                tree = MedianTree.grow(points, settings["num_rows"], settings["overlap"])
                known = tree, tuple(rows for rows, _ in tree.leaves(points))
        tree, rows = known
        if model.operator_kind == "sharded" and many_processes() and len(rows) < torch.distributed.get_world_size():
            raise InputError(
                f"Every process must get a leaf. Got {len(rows)} for {torch.distributed.get_world_size()} processes. "
                "Lower num_rows, or start fewer."
            )
        partition = own_rows(model.operator_kind, len(rows), prior.mean.device)
        if partition.sharded:
            key.require_same(partition)
            partition.require_same("leaves", {name: digest(value) for name, value in to_state(tree).arrays.items()})
        return cls(model, settings, prior, locator, tree, rows, partition, key)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each leaf."""
        return tuple(rows.numel() for rows in self.rows)

    @property
    def own(self) -> range:
        """Numbers of the leaves of this process."""
        start = self.partition.start()
        return range(start, start + self.partition.local_size(len(self.rows)))

    def serves(self, model: NonConjugateGP, settings: dict[str, Any]) -> bool:
        """Whether model and settings are still those of these leaves."""
        return self.settings == settings and self.key.matches(identity_of(model))

    def points(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """New inputs ``(M, D)`` each in the units of the tree."""
        with turn(), kept_tensors(self.model), torch.no_grad():
            return self.locator.scaled_inputs(self.model.prior_at(inputs).features)

    def problem(self, number: int) -> LeafProblem:
        """What one leaf is found from."""
        model, rows = self.model, self.rows[number]
        with kept_tensors(model), torch.no_grad():
            distinct = distinct_rows(model, self.prior, rows)
            observations = model.viewed_observations().take(rows)
            prior, observations = share_latents(distinct, self.prior.take(rows), observations)
            return LeafProblem(model.make_operator(prior, observations, alone=True), prior.mean, observations)

    def conditioned(self, problem: LeafProblem, solution: Solution) -> Conditioned:
        """A leaf's posterior with what it was found with."""
        left = solution.without_warm_start()
        return Conditioned(left, self.key, problem.operator, problem.observations, self.model.training)

    def find(
        self,
        start: tuple[Conditioned, ...] | None,
        *,
        progress: bool | None,
        checkpoint: str | os.PathLike[str] | None,
        time_limit: float | None,
    ) -> LeafPosteriors:
        """The posteriors of the leaves of this process; see ``LeafGP.condition``.

        Args:
            start: Earlier ones to go on from, or None.
            progress: Whether to draw a bar.
            checkpoint: Folder of leaves that are found.
            time_limit: Seconds for all of them.
        """
        until = math.inf if time_limit is None else time.perf_counter() + time_limit
        found: list[Conditioned] = []
        failure: InputError | SolverError | None = None
        with self.partition.abort_together(), ProgressBar(enabled=progress if self.partition.first else False) as bar:
            try:
                folder = None if checkpoint is None else _Folder.of(self, checkpoint)
                bar.begin("leaves", unit="leaves", total=len(self.own))
                for place, number in enumerate(self.own):
                    share = (until - time.perf_counter()) / (len(self.own) - place)
                    limit = None if time_limit is None else max(share, 1e-3)
                    first = None if start is None else start[place].solution
                    found.append(self._find_one(number, first, folder, limit))
                    bar.advance("leaves", place + 1)
                    if place == 0:
                        self._require_room(found[0])
            except (InputError, SolverError) as error:  # which the other processes know nothing of
                failure = error
            if self.partition.all_reduce_any(failure is not None):
                raise failure or SolverError(
                    "Every process must find its leaves. Got an error in another one. Look there."
                )
        return LeafPosteriors.of(self, tuple(found))

    # ------------------------------------------------------------------ inside
    def _find_one(
        self, number: int, start: Solution | None, folder: _Folder | None, time_limit: float | None
    ) -> Conditioned:
        model, problem = self.model, self.problem(number)
        file = None if folder is None else folder.file(number)
        solution = None if file is None else finished_solution(file, problem.operator.device)
        if solution is None or solution.status.reason is Reason.TIME:
            start = start if solution is None else solution
            check_kernel(problem.operator)
            size = problem_size(problem.operator, problem.observations, model.approximation, model.solver)
            check_memory(problem.operator, model.solver, size)
            settings: dict[str, Any] = {"approximation": model.approximation, "warm_start": start}
            with kept_tensors(model):
                solution = solve(
                    problem.operator,
                    problem.mean.contiguous(),
                    problem.observations,
                    model.solver,
                    time_limit=time_limit,
                    **settings,
                )
            if solution.status.reason is Reason.INTERRUPTED:
                raise KeyboardInterrupt(
                    f"{number - self.own.start} leaves were found before, and are in the checkpoint if there is one."
                )
            if file is not None:
                save_final(file, solution)
        problem.operator.release()
        return self.conditioned(problem, solution)

    def _require_room(self, first: Conditioned) -> None:
        """Posteriors like the first one must fit beside each other.

        Raises:
            InputError: If they do not.
        """
        arrays = to_state(first.solution.posterior).arrays.values()
        own = sum(array.numel() * array.element_size() for array in arrays)
        device = self.prior.mean.device
        rows = sum(self.sizes[number] for number in self.own) / self.sizes[self.own[0]]
        needed, free = own * (rows - 1.0), free_memory(device) // self.partition.sharing(device)
        if needed > free:
            raise InputError(
                f"The posteriors of all leaves must fit into the free memory, {free / 2**30:.2f} GiB. Got "
                f"{len(self.own)} leaves with {own / 2**20:.1f} MiB each. Lower covariance_rank of the solver, which leaves "
                "of at most 1,024 rows exceed by default, or divide the leaves among processes on more machines."
            )


@dataclass(frozen=True)
class LeafProblem:
    """What a leaf is found from: its kernel operator, prior mean ``(n, C)`` and observations, of distinct rows."""

    operator: KernelOperator
    mean: Tensor
    observations: Observations


@dataclass(frozen=True)
class LeafPosteriors:
    """The posteriors of leaves, which predict together.

    Attributes:
        task: The model and its leaves.
        own: Posteriors of the leaves of this process.
        statuses: How each of all leaves ended.
        objective_gaps: Bound on the gap of each of all leaves, nats: infinity where it is not known, NaN where there is none.
        num_far: Leaves that are far from what data and prior say.
    """

    task: LeafTask
    own: tuple[Conditioned, ...]
    statuses: tuple[Status, ...]
    objective_gaps: tuple[float, ...]
    num_far: int

    @classmethod
    def of(cls, task: LeafTask, own: tuple[Conditioned, ...]) -> LeafPosteriors:
        """Posteriors of this process's leaves, and what others say of theirs."""
        partition, solver, likelihood = task.partition, task.model.solver, task.model.calculus
        solutions = [leaf.solution for leaf in own]
        reasons = list(Reason)
        figures = [
            (reasons.index(s.status.reason), math.nan if s.certificate is None else s.certificate.objective_gap)
            for s in solutions
        ]
        device = task.prior.mean.device
        whole = partition.gather(torch.tensor(figures, dtype=torch.float64, device=device)).tolist()
        statuses = [Status(reasons[int(reason)]) for reason, _ in whole]
        for number, solution in zip(task.own, solutions, strict=True):
            statuses[number] = solution.status  # with its figures, which only this process knows
        far = sum(is_far(solution, solver, likelihood) for solution in solutions)
        gaps = tuple(gap for _, gap in whole)
        return cls(task, own, tuple(statuses), gaps, int(partition.all_reduce_sum(float(far))))

    @torch.no_grad()
    def moments(
        self, inputs: tuple[Tensor, ...], *, covariance: bool, batch_size: int | None = None, progress: bool = False
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Slices of inputs, and blended means ``(m, C)``, covariances ``(m, C, C)`` and prior variances ``(m, C)`` there.

        Args:
            inputs: ``(M, D)`` each, the same in every process.
            covariance: Whether covariances and prior variances are wanted; without, they are zeros.
            batch_size: Rows of a slice; None for a number by the size of their moments.
            progress: Draw a progress bar.
        """
        model, size = self.task.model, inputs[0].shape[0]
        latents = self.task.prior.mean.shape[1]
        with ProgressBar(enabled=progress if self.task.partition.first else False) as bar:
            bar.begin("predict", unit="rows", total=size)
            held, step = model.held_data.inputs, max(1, _CHUNK_NUMBERS // (latents * (latents + 2) + 1))
            for rows in slices(size, batch_size or step):
                part = tuple(x[rows].to(like) for x, like in zip(inputs, held, strict=True))
                yield rows, *self._blended(part, latents, covariance=covariance)
                bar.advance("predict", rows.stop)

    def _blended(self, inputs: tuple[Tensor, ...], latents: int, *, covariance: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over the leaves: means, ``w S / c`` with ``c^2`` the trace of S, prior variances, and ``w c``."""
        task, model, size = self.task, self.task.model, inputs[0].shape[0]
        task.partition.require_same("new inputs", {f"inputs {i}": digest(x) for i, x in enumerate(inputs)})
        like = task.prior.mean
        sums = like.new_zeros(size, latents * (latents + 2) + 1, dtype=torch.float64)
        mean, spread, variance, deviation = sums.split([latents, latents**2, latents, 1], -1)
        with task.partition.abort_together():
            leaves = itertools.islice(task.tree.leaves(task.points(inputs)), task.own.start, task.own.stop)
            for leaf, (rows, weights) in zip(self.own, leaves, strict=True):
                if rows.numel() == 0:
                    continue
                stream = Stream(model, leaf, tuple(x[rows] for x in inputs))
                for i, latent in stream.latents(covariance=covariance):
                    which, weight = rows[i], weights[i].unsqueeze(-1)
                    mean.index_add_(0, which, weight * latent.mean)
                    if covariance:
                        found = latent.row_covariance().double()
                        root = found.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True).clamp_min(_TINY).sqrt()
                        spread.index_add_(0, which, weight / root * found.flatten(1))
                        variance.index_add_(0, which, weight * latent.prior_variance)
                        deviation.index_add_(0, which, weight * root)
            sums = task.partition.all_reduce_sum(sums)
        mean, spread, variance, deviation = sums.split([latents, latents**2, latents, 1], -1)
        blended = (deviation * spread).view(size, latents, latents)
        return mean.to(like), blended.to(like), variance.to(like)


@dataclass(frozen=True)
class _Folder:
    """Where leaves that were found are kept, each in a file of its own."""

    path: Path
    identity: dict[str, Any]
    number: int
    device: torch.device

    @classmethod
    def of(cls, task: LeafTask, path: str | os.PathLike[str]) -> _Folder:
        """The folder, which is made if it is not there.

        Raises:
            InputError: If it cannot be.
        """
        try:
            Path(path).mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"`checkpoint` must be a folder, in one that exists. Got {str(path)!r} ({error}). Pass another path."
            ) from error
        return cls(Path(path), identify(task.model, **task.settings), len(task.rows), task.prior.mean.device)

    def file(self, number: int) -> CheckpointFile:
        """That of one leaf."""
        identity = self.identity | {"the leaf": f"{number + 1} of {self.number}"}
        path = self.path / f"leaf-{number:06d}.safetensors"
        return CheckpointFile(path, every=0.0, task="leaf", identity=identity, device=self.device)


def _locator(model: NonConjugateGP, prior: Prior) -> KernelOperator:
    """An operator of one row, whose scaled inputs are kernel inputs in lengthscales.

    Raises:
        InputError: If the prior makes of a row what depends on others, couples latent functions, or has no such scale.
    """
    if prior.tabulated or prior.coupled or (model.training and not is_row_by_row(model, prior)):
        raise InputError(
            "Leaves need a prior that is a function of rows, with latent functions that are not coupled. Got "
            f"{type(prior.kernel).__name__}. Condition the model itself."
        )
    with torch.no_grad():
        kernel, row = snapshot(prior.kernel), prior.features[..., :1, :].detach().clone()
    locator = make_operator(kernel, row, num_kernels=prior.num_kernels, kind="blocked")
    if locator.form is None:
        raise InputError(
            "Leaves need a kernel made of those in which rows far apart say little about each other, in lengthscales: RBF, "
            f"Matern, Laplacian, RQ, their sums and products. Got {type(prior.kernel).__name__}. Use "
            "LinearTimeNewton(num_support=...), which serves any kernel."
        )
    return locator
