"""Finding a model's posterior: what is checked before, handed out on the way, and kept afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from itergp.diagnostics import ProgressBar, Trace
from itergp.errors import InputError
from itergp.models.checkpointing import finished_solution, open_checkpointer, save_final
from itergp.models.hyperparameters import hyperparameters
from itergp.models.identity import describe_prior, identify, identity_of
from itergp.models.planning import check_memory, problem_size
from itergp.models.validation import check_kernel, check_parameters
from itergp.operators import BlockedOperator, KernelOperator
from itergp.parallel import require_everywhere
from itergp.persistence.checkpoint import CheckpointSection
from itergp.persistence.identity import Identity
from itergp.records import TraceRecord
from itergp.solvers import Solution, solve

if TYPE_CHECKING:
    from itergp.models.nonconjugate_gp import NonConjugateGP


def find_posterior(
    model: NonConjugateGP,
    *,
    progress: bool,
    callback: Callable[[TraceRecord], None] | None,
    on_posterior: Callable[[Solution], None] | None,
    checkpoint: str | os.PathLike[str] | CheckpointSection | None,
    checkpoint_every: float,
) -> Solution:
    """``NonConjugateGP.condition``, which says what the arguments are; the model predicts from the result."""
    check_parameters(model, model.train_inputs)
    gradients = torch.is_grad_enabled()
    untouched = describe_prior(model)
    with torch.no_grad():
        prior = model._prior(model.train_inputs)
        identity = identity_of(model)  # forward may have updated buffers
        operator = model._make_operator(prior)
        if operator.rows.sharded:
            identity.require_same(operator.rows)
        for name, given in (("on_posterior", on_posterior), ("checkpoint", checkpoint)):
            require_everywhere(operator.rows, name, given)
        checkpointer = None
        if checkpoint is not None:
            about = model.solver, prior.mean, operator.rows, partial(identify, model)
            checkpointer = open_checkpointer(checkpoint, checkpoint_every, *about)
        if checkpointer is not None and (known := finished_solution(checkpointer, operator.device)) is not None:
            model._restore(model.train_inputs, model.train_targets, model.sample_weight, known)
            return model.solution
        if model._operator is not None and model._identity is not None and model._identity.matches(identity):
            operator = model._operator
        else:
            check_kernel(operator)
            check_memory(operator, model.solver, problem_size(model, operator))

        def hand_out(early: Solution) -> None:
            assert on_posterior is not None
            early = bounded(model, early, identity)
            with keeping_posterior(model), torch.set_grad_enabled(gradients):
                _take(model, early, operator, identity)
                on_posterior(early)

        with ProgressBar(enabled=progress and operator.rows.first) as bar:
            solution = solve(
                operator,
                prior.mean.contiguous(),
                model.observations,
                model.solver,
                approximation=model.approximation,
                warm_start=model._solution,
                listeners=[bar] if callback is None else [bar, callback],
                trace=Trace(),
                on_posterior=None if on_posterior is None else hand_out,
                checkpoint=checkpointer,
            )
    operator.release()
    solution.trace.hyperparameters = hyperparameters(model)
    if checkpointer is not None:
        save_final(checkpointer, solution)
    if callback is None and on_posterior is None:  # which may change a model in earnest
        identity = identity.with_counters(untouched, describe_prior(model))
    solution = bounded(model, solution, identity)
    _take(model, solution, operator, identity)
    return solution


def bounded(model: NonConjugateGP, solution: Solution, identity: Identity) -> Solution:
    """A solution whose certificate knows the prior variance, and so bounds errors at any input."""
    if solution.certificate is None:
        return solution
    bound = PriorVariance(model, identity)
    return replace(solution, certificate=replace(solution.certificate, prior_variance=bound))


class PriorVariance:
    """Prior variance at inputs, for a certificate; refuses once what it belongs to has changed."""

    def __init__(self, model: NonConjugateGP, identity: Identity) -> None:
        self.model = model
        self.identity = identity

    def __call__(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        """``k_c(x, x)`` ``(M, C)``."""
        if not self.identity.matches(identity_of(self.model)):
            raise InputError(
                "The certificate belongs to hyperparameters or data that have since changed. "
                "Take it from model.solution again."
            )
        with torch.no_grad():
            prior = self.model._prior(self.model._test_inputs(x))
            operator = BlockedOperator(prior.kernel, prior.features, num_kernels=prior.num_kernels)
            return operator.diagonal().mT.expand(prior.mean.shape)


@contextmanager
def keeping_posterior(model: NonConjugateGP) -> Iterator[None]:
    """Whatever posterior the model takes meanwhile, afterwards it has the present one again."""
    kept = model._solution, model._operator, model._made_in_training, model._identity
    try:
        yield
    finally:
        model._solution, model._operator, model._made_in_training, model._identity = kept


def _take(model: NonConjugateGP, solution: Solution, operator: KernelOperator, identity: Identity) -> None:
    """Makes a solution the model's posterior as it was when its identity was taken."""
    model._take_operator(operator)
    model._solution, model._identity = solution, identity
