"""How well hyperparameters predict rows that they were not conditioned on."""

from __future__ import annotations

import torch
from torch import Tensor

from itergp.errors import SolverError
from itergp.likelihoods import Observations
from itergp.models import GP, LatentPosterior
from itergp.objectives import Deadline
from itergp.operators import make_operator
from itergp.solvers import Reason, solve
from itergp.solvers.few_values import solver_of_mode

DENSE_TOLERANCE = 1e-6  # nats per row, where values are few
_LOOSER = 10.0  # times the solver's tolerance: what is compared differs by far more


@torch.no_grad()
def densities_at_mode(
    model: GP, data: GP, train: Tensor, held_out: Tensor, deadline: Deadline
) -> tuple[Tensor | None, bool]:
    """Log-densities of held-out rows, given others, at the mode; and whether Ctrl-C ended the search for it.

    Args:
        model: Whose kernel, mean, likelihood and transform of the inputs predict.
        data: Whose rows these are.
        train: Numbers of the rows to condition on.
        held_out: Numbers of the rows to predict.
        deadline: When to give up.

    Returns:
        ``(M,)``, float64, negative infinity where no mode is found; None if time is up before it is.
    """
    if deadline.over:
        return None, False
    inputs = data.train_inputs[0]
    prior, validation = model.prior_at((inputs[train],)), model.prior_at((inputs[held_out],))
    operator = make_operator(
        prior.kernel, prior.features, num_kernels=prior.num_kernels, kind="auto", memory_budget=model.memory_budget
    )
    solver = solver_of_mode(model.solver.loosened(_LOOSER), model.calculus, len(train), tolerance=DENSE_TOLERANCE)
    left = deadline.left()
    seen, unseen = _observations(model, data, train), _observations(model, data, held_out)
    try:
        solution = solve(operator, prior.mean, seen, solver, approximation="laplace", time_limit=left)
    except SolverError:
        return torch.full((len(held_out),), -torch.inf, dtype=torch.float64), False
    interrupted = solution.status.reason is Reason.INTERRUPTED
    if solution.status.reason is Reason.TIME:
        return None, interrupted
    mean = LatentPosterior.at(validation, operator, solution, covariance=False).mean
    return unseen.log_density(mean).double(), interrupted


def _observations(model: GP, data: GP, rows: Tensor) -> Observations:
    """Rows of the data as the model's likelihood sees them."""
    targets, weight = model.calculus.validate_targets(data.train_targets[rows]), data.sample_weight
    return Observations(model.calculus, targets, None if weight is None else weight[rows])
