"""Finding a model's posterior: what is checked before, handed out on the way, and kept afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from itergp.diagnostics import TraceRecord
from itergp.models.checkpoint_file import Within
from itergp.models.checkpointing import as_keeper, finished_solution, keep_finished
from itergp.models.fingerprint import Fingerprint, PriorVariance
from itergp.models.hyperparameters import hyperparameters
from itergp.models.planning import check_memory, problem_size
from itergp.models.validation import check_kernel, check_parameters
from itergp.operators import KernelOperator
from itergp.operators.rows import require_everywhere
from itergp.solvers import Solution, solve

if TYPE_CHECKING:
    from itergp.models.nonconjugate_gp import NonConjugateGP


def find_posterior(
    model: NonConjugateGP,
    *,
    progress: bool,
    callback: Callable[[TraceRecord], None] | None,
    on_posterior: Callable[[Solution], None] | None,
    checkpoint: str | os.PathLike[str] | Within | None,
    checkpoint_every: float,
) -> Solution:
    """``NonConjugateGP.condition``, which says what the arguments are; the model predicts from the result."""
    check_parameters(model, model.train_inputs)
    gradients = torch.is_grad_enabled()
    with torch.no_grad():
        prior = model._prior(model.train_inputs)
        fingerprint = model._state_now()  # forward may have updated buffers
        operator = model._make_operator(prior)
        if operator.rows.sharded:
            fingerprint.require_same(operator.rows)
        for name, given in (("on_posterior", on_posterior), ("checkpoint", checkpoint)):
            require_everywhere(operator.rows, name, given)
        keeper = None if checkpoint is None else as_keeper(model, checkpoint, checkpoint_every, operator.rows)
        if keeper is not None and (known := finished_solution(model, keeper)) is not None:
            model._restore(model.train_inputs, model.train_targets, model.sample_weight, known)
            return model.solution
        if model._solution is not None and model._same(fingerprint) and model._operator is not None:
            operator = model._operator
        else:
            check_kernel(operator)
            check_memory(operator, model.solver, problem_size(model, operator))

        def hand_out(early: Solution) -> None:
            assert on_posterior is not None
            early = bounded(model, early, fingerprint)
            with keeping_posterior(model), torch.set_grad_enabled(gradients):
                _take(model, early, operator, fingerprint)
                on_posterior(early)

        solution = solve(
            operator,
            prior.mean.contiguous(),
            model.observations,
            model.solver,
            approximation=model.approximation,
            warm_start=model._solution,
            progress=progress,
            callback=callback,
            on_posterior=None if on_posterior is None else hand_out,
            checkpoint=keeper,
        )
    operator.release()
    solution.trace.hyperparameters = hyperparameters(model)
    if keeper is not None:
        keep_finished(keeper, solution)
    solution = bounded(model, solution, fingerprint)
    _take(model, solution, operator, fingerprint)
    return solution


def bounded(model: NonConjugateGP, solution: Solution, fingerprint: Fingerprint) -> Solution:
    """A solution whose certificate knows the prior variance, and so bounds errors at any input."""
    if solution.certificate is None:
        return solution
    bound = PriorVariance(model, fingerprint)
    return replace(solution, certificate=replace(solution.certificate, prior_variance=bound))


@contextmanager
def keeping_posterior(model: NonConjugateGP) -> Iterator[None]:
    """Whatever posterior the model takes meanwhile, afterwards it has the present one again."""
    kept = model._solution, model._operator, model._fingerprint
    try:
        yield
    finally:
        model._solution, model._operator, model._fingerprint = kept


def _take(model: NonConjugateGP, solution: Solution, operator: KernelOperator, fingerprint: Fingerprint) -> None:
    """Makes a solution the model's posterior in the state of the fingerprint."""
    model._solution, model._operator, model._fingerprint = solution, operator, fingerprint
