"""Where learning starts: values from the data for hyperparameters that are still at GPyTorch's default."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import ArcKernel, Kernel, PeriodicKernel, ScaleKernel, SpectralDeltaKernel
from torch import Tensor

from itergp.kernels import AdditiveLaplacianKernel, CategoricalKernel, LaplacianKernel, PairwiseLaplacianKernel
from itergp.models.protocol import Model

INITIAL_OUTPUTSCALE = 10.0
_SAMPLE = 1000
# Their lengthscale is not a distance between inputs: it scales a sine, an angle, frequencies, or a change of levels.
_OTHER_UNITS = (PeriodicKernel, ArcKernel, SpectralDeltaKernel, CategoricalKernel)


def initialise_model(model: Model) -> list[str]:
    """Sets lengthscales, output scales and parameters of the likelihood that are still at their default.

    Args:
        model: The model, whose parameters are changed. Those of a batch of models start as in single ones, and what elements
            share at the mean over them.

    Returns:
        Names of what was set.
    """
    if model.data_batch_shape:
        names = [name for element in model.batch_elements for name in initialise_model(element)]
        model.collect_elements()
        return sorted(set(names))
    with torch.no_grad():
        prior = model.prior_at()
        features = prior.features if prior.features.dim() == 2 else prior.features[0]
        observations = model.observations
        seen = observations.targets
        if observations.sample_weight is not None:
            seen = seen[observations.sample_weight > 0]
        return initialise(prior.kernel, features) + observations.likelihood.initialise(seen)


def initialise(kernel: Kernel, inputs: Tensor) -> list[str]:
    """Sets lengthscales and output scales that are still at GPyTorch's default.

    Lengthscales start at half the median distance between rows in the columns that the kernel sees, or in each of them for sums
    over columns, output scales at 10. Lengthscales that are not distances between inputs, such as a periodic kernel's, stay.

    Args:
        kernel: The model's kernel.
        inputs: What it is evaluated on, ``(N, D)``.

    Returns:
        Names of what was set.
    """
    changed = []
    sample = inputs.detach()[torch.linspace(0, len(inputs) - 1, min(_SAMPLE, len(inputs))).long()]
    seen = rows_seen(kernel, sample)
    for name, module in kernel.named_modules():
        at_default = isinstance(module, Kernel) and module.has_lengthscale and not bool(module.raw_lengthscale.any())
        in_units = not isinstance(module, _OTHER_UNITS)
        if at_default and in_units and name in seen and module.raw_lengthscale.requires_grad:
            median = _median_distances(module, seen[name])
            if bool((median > 0.0).all()):
                module.lengthscale = _allowed(module.raw_lengthscale_constraint, 0.5 * median.to(module.lengthscale))
                changed.append(f"{name}.lengthscale".lstrip("."))
        if (
            isinstance(module, ScaleKernel)
            and module.raw_outputscale.requires_grad
            and not bool(module.raw_outputscale.any())
        ):
            start = torch.full_like(module.outputscale, INITIAL_OUTPUTSCALE)
            module.outputscale = _allowed(module.raw_outputscale_constraint, start)
            changed.append(f"{name}.outputscale".lstrip("."))
    return changed


def _allowed(constraint: Interval, value: Tensor) -> Tensor:
    """The nearest value that a constraint of a positive parameter allows, not at its ends, where the raw one is infinite."""
    lower, upper = (bound.to(value) for bound in (constraint.lower_bound, constraint.upper_bound))
    least, most = 1.01 * lower.clamp_min(0.0), 0.99 * upper
    return torch.where(least < most, value.clamp(least, most), 0.5 * (lower + upper))


def _median_distances(kernel: Kernel, columns: Tensor) -> Tensor:
    """Between rows ``(..., n, D)`` in the norm of a kernel: a number, or ``(D,)`` for a sum over columns."""
    if not isinstance(kernel, (AdditiveLaplacianKernel, PairwiseLaplacianKernel)):
        return _median_distance(columns, 1.0 if isinstance(kernel, LaplacianKernel) else 2.0)
    own = torch.stack([_median_distance(column.unsqueeze(-1), 1.0) for column in columns.unbind(-1)])
    whole = own[own > 0.0].mean() if bool(own.any()) else own.new_ones(())
    return torch.where(own > 0.0, own, whole)  # most rows may be equal in a column


def _median_distance(columns: Tensor, norm: float) -> Tensor:
    """Between rows ``(n, D)``, or pooled over a batch of such; 1 for a single row."""
    if columns.shape[-2] < 2:
        return torch.ones(())
    batch = columns.reshape(-1, *columns.shape[-2:]).float()
    return torch.cat([torch.pdist(rows, p=norm) for rows in batch]).median()


def rows_seen(kernel: Kernel, sample: Tensor) -> dict[str, Tensor]:
    """The rows that every kernel with a lengthscale is evaluated on when the outermost is evaluated on a sample.

    Only the kernels know: ``active_dims`` may be applied by an outer kernel, columns taken one by one, or inputs
    transformed. Where one is evaluated on something else than the rows, such as a grid, the columns that it names.

    Args:
        kernel: The outermost kernel, as a prior has it.
        sample: What it is evaluated on ``(n, D)``.

    Returns:
        Rows ``(..., n, D')`` by the name of a kernel's module.
    """
    seen: dict[str, Tensor] = {}
    # Some kernels take their own inputs only, or have no copy, and say so by one of these errors.
    with torch.no_grad(), contextlib.suppress(RuntimeError, ValueError):
        probe = copy.deepcopy(kernel)  # an evaluation may fill caches, or draw weights
        with _recording(_with_lengthscale(probe), seen):
            probe(sample, sample, diag=True)
    found = {}
    for name, module in _with_lengthscale(kernel).items():
        dims, rows = module.active_dims, seen.get(name)
        if rows is not None and rows.shape[-2] == len(sample):
            found[name] = rows
        elif dims is None or int(dims.max()) < sample.shape[-1]:
            found[name] = sample if dims is None else sample[:, dims]
    return found


def _with_lengthscale(kernel: Kernel) -> dict[str, Kernel]:
    return {n: m for n, m in kernel.named_modules() if isinstance(m, Kernel) and m.has_lengthscale}


@contextmanager
def _recording(kernels: dict[str, Kernel], seen: dict[str, Tensor]) -> Iterator[None]:
    """Notes by name what ``forward`` of kernels is called on; wrappers call it directly, past any hook."""

    def record(name: str, forward: Any, x1: Tensor, x2: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows = x1.mT.unsqueeze(-1) if kwargs.get("last_dim_is_batch") else x1  # every column by itself
        if name not in seen or rows.shape[-2] > seen[name].shape[-2]:
            seen[name] = rows.detach()
        return forward(x1, x2, *args, **kwargs)

    for name, module in kernels.items():
        module.__dict__["forward"] = partial(record, name, module.forward)
    try:
        yield
    finally:
        for module in kernels.values():
            del module.__dict__["forward"]
