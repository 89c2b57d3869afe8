"""Finding a model's posterior: what is checked before, handed out on the way, and kept afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from itergp.diagnostics import ProgressBar, Trace
from itergp.errors import InputError
from itergp.likelihoods import Observations
from itergp.models.checkpointing import finished_solution, open_checkpointer, save_final
from itergp.models.conditioned import Conditioned, KnownPosterior
from itergp.models.distinct_rows import carried_over, distinct_rows, share_latents
from itergp.models.hyperparameters import hyperparameters, kept_tensors
from itergp.models.identity import describe_prior, identify, identity_of
from itergp.models.planning import check_memory, problem_size
from itergp.models.protocol import Model
from itergp.models.run_options import RunOptions
from itergp.models.validation import as_test_inputs, check_kernel, check_mean, check_parameters
from itergp.numerics.distinct_rows import DistinctRows
from itergp.operators import KernelOperator, make_operator
from itergp.persistence.identity import Identity
from itergp.solvers import Solution, solve


def find_posterior(model: Model, options: RunOptions) -> Conditioned:
    """The posterior at the present hyperparameters, from which the model is to predict; see ``NonConjugateGP.condition``."""
    check_parameters(model.named_parameters_and_constraints(), model.held_data.inputs[0])
    gradients, untouched = torch.is_grad_enabled(), describe_prior(model)
    with kept_tensors(model), torch.no_grad():
        prior = model.prior_at()
        distinct = distinct_rows(model, prior)
        key = identity_of(model)  # forward may have updated buffers
        prior, observations = share_latents(distinct, prior, model.viewed_observations())
        operator = model.make_operator(prior, observations)
        rows = operator.rows
        if rows.sharded:
            key.require_same(rows)
        options.require_everywhere(rows)
        checkpointer = None
        if options.checkpoint is not None:
            about = model.solver, prior.mean, rows, partial(identify, model)
            checkpointer = open_checkpointer(options.checkpoint, options.checkpoint_every, *about)
            if (known := finished_solution(checkpointer, operator.device)) is not None:
                known = known.divide(rows) if rows.sharded else known
                return _conditioned(model, operator, observations, key, distinct, known)
        operator = _checked(model, operator, prior.mean, observations, key)
        hand_out = None
        if options.on_posterior is not None:
            conditioned = partial(_conditioned, model, operator, observations, key, distinct)
            hand_out = _handing_out(model, conditioned, options.on_posterior, gradients)
        with ProgressBar(enabled=options.progress if rows.first else False) as bar:
            solution = solve(
                operator,
                prior.mean.contiguous(),
                observations,
                model.solver,
                approximation=model.approximation,
                warm_start=carried_over(model.last_solution, distinct, model.held_data.targets.shape[0]),
                listeners=[bar] if options.callback is None else [bar, options.callback],
                trace=Trace(),
                on_posterior=hand_out,
                checkpoint=checkpointer,
                time_limit=options.time_limit,
            )
    operator.release()
    solution.trace.hyperparameters = hyperparameters(model)
    if checkpointer is not None:
        save_final(checkpointer, solution)
    if options.callback is None and options.on_posterior is None:  # which may change a model in earnest
        key = key.with_counters(untouched, describe_prior(model))
    return _conditioned(model, operator, observations, key, distinct, solution)


def complete(model: Model, known: KnownPosterior, key: Identity) -> Conditioned:
    """A posterior that is alone, with operator and observations made again."""
    if isinstance(known, Conditioned) and known.serves(training=model.training):
        return known
    with kept_tensors(model), torch.no_grad():
        prior = model.prior_at()
        prior, observations = share_latents(known.solution.distinct, prior, model.viewed_observations())
        operator = model.make_operator(prior, observations)
    return Conditioned(known.solution, key, operator, observations, model.training)


def _conditioned(
    model: Model,
    operator: KernelOperator,
    observations: Observations,
    key: Identity,
    distinct: DistinctRows | None,
    solution: Solution,
) -> Conditioned:
    solution = bounded(model, solution, key)
    solution = replace(solution, posterior=replace(solution.posterior, distinct=distinct))
    return Conditioned(solution, key, operator, observations, model.training)


def _checked(
    model: Model, operator: KernelOperator, mean: Tensor, observations: Observations, key: Identity
) -> KernelOperator:
    """The operator of the last posterior if nothing has changed, otherwise the new one, once it is known to be usable."""
    last = model.last_conditioned
    if last is not None and last.key is not None and last.key.matches(key) and last.serves(training=model.training):
        return last.operator
    check_mean(mean)
    check_kernel(operator)
    size = problem_size(operator, observations, model.approximation, model.solver)
    check_memory(operator, model.solver, size)
    return operator


def _handing_out(
    model: Model,
    conditioned: Callable[[Solution], Conditioned],
    on_posterior: Callable[[Solution], None],
    gradients: bool,
) -> Callable[[Solution], None]:
    """The user's function; while it runs, the model predicts from what it is called with."""

    def hand_out(early: Solution) -> None:
        meanwhile = conditioned(early)
        with model.keeping_posterior(meanwhile), torch.set_grad_enabled(gradients):
            on_posterior(meanwhile.solution_of_given_rows)

    return hand_out


def bounded(model: Model, solution: Solution, key: Identity) -> Solution:
    """A solution whose certificate knows the prior variance, and so bounds errors at any input."""
    if solution.certificate is None:
        return solution
    bound = PriorVariance(model, key)
    return solution.with_report(certificate=replace(solution.certificate, prior_variance=bound))


class PriorVariance:
    """Prior variance at inputs, for a certificate; refuses once what it belongs to has changed."""

    def __init__(self, model: Model, key: Identity) -> None:
        self.model = model
        self.key = key

    def __call__(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        """``k_c(x, x)`` ``(M, C)``."""
        if not self.key.matches(identity_of(self.model)):
            raise InputError(
                "The certificate belongs to hyperparameters or data that have since changed. "
                "Take it from model.solution again."
            )
        with torch.no_grad():
            prior = self.model.prior_at(as_test_inputs(x, self.model.held_data.inputs))
            operator = make_operator(prior.kernel, prior.features, num_kernels=prior.num_kernels, kind="blocked")
            return operator.diagonal().mT.expand(prior.mean.shape)
