"""GPyTorch's kernels whose own code depends on which rows it is called with, as functions of two rows.

``IndexKernel`` takes whatever it is given for a row of its table; ``InducingPointKernel`` adds a diagonal whenever its
two arguments are equal, and refuses others in training mode; ``GridKernel`` returns a matrix where a diagonal is
wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import gpytorch
import torch
from gpytorch.kernels import GridInterpolationKernel, GridKernel, IndexKernel, InducingPointKernel, Kernel, RFFKernel
from gpytorch.likelihoods import _GaussianLikelihoodBase
from gpytorch.mlls import AddedLossTerm
from torch import Tensor

from itergp.errors import InputError
from itergp.operators.derived import DerivedKernel, SumOfTerms

Entries = Callable[[Kernel, Tensor, Tensor], Tensor]
Diagonal = Callable[[Kernel, Tensor], Tensor]

_GRID_POINTS = 8
_ROUNDING = 1e-4  # of inputs, as a share of the width of a grid
_SAME = 1e-4  # relative difference of kernels that are the same but for rounding


class HasModules(Protocol):
    """A module, or what stands for one."""

    def modules(self) -> Iterator[torch.nn.Module]:
        """All parts, itself included."""


def special_entries(kernel: Kernel, first: Tensor, second: Tensor, entries: Entries) -> Tensor | None:
    """Dense entries between rows at the active columns; None for kernels that need nothing special.

    Args:
        kernel: Any kernel.
        first: Rows ``(..., b, D)``.
        second: Rows ``(..., m, D)``.
        entries: The same for any kernel and inputs.
    """
    if type(kernel) is IndexKernel and first.shape[-1] == 1:
        table = kernel.covar_matrix.to_dense()
        rows, cols = _table_rows(kernel, first), _table_rows(kernel, second)
        batch = torch.broadcast_shapes(table.shape[:-2], rows.shape[:-1], cols.shape[:-1])
        size, shape = table.shape[-1], (*batch, rows.shape[-1], cols.shape[-1])
        chosen = table.expand(*batch, size, size).gather(-2, rows.unsqueeze(-1).expand(*shape[:-1], size))
        return chosen.gather(-1, cols.unsqueeze(-2).expand(shape))
    if type(kernel) is InducingPointKernel:
        return _whitened(kernel, first, entries) @ _whitened(kernel, second, entries).mT
    if type(kernel) is GridKernel and not kernel.interpolation_mode:
        return entries(kernel.base_kernel, first, second)
    return None


def special_diagonal(kernel: Kernel, inputs: Tensor, entries: Entries, diagonal: Diagonal) -> Tensor | None:
    """Variances of rows at the active columns; None for kernels that need nothing special."""
    if type(kernel) is IndexKernel and inputs.shape[-1] == 1:
        variances = kernel.covar_matrix.diagonal(dim1=-1, dim2=-2)
        rows = _table_rows(kernel, inputs)
        batch = torch.broadcast_shapes(variances.shape[:-1], rows.shape[:-1])
        return variances.expand(*batch, -1).gather(-1, rows.expand(*batch, -1))
    if type(kernel) is InducingPointKernel:
        variances = _whitened(kernel, inputs, entries).square().sum(-1)
        if _is_low_rank(kernel):
            return variances
        return variances + (diagonal(kernel.base_kernel, inputs) - variances).clamp_min(0.0)
    if type(kernel) is GridKernel and not kernel.interpolation_mode:
        return diagonal(kernel.base_kernel, inputs)
    return None


def has_own_diagonal(kernel: Kernel) -> bool:
    """Whether the covariance of a row with itself is another than that with an equal row."""
    return any(type(part) is InducingPointKernel and not _is_low_rank(part) for part in kernel.modules())


def _is_low_rank(kernel: InducingPointKernel) -> bool:
    """Whether it leaves the diagonal as the inducing points explain it.

    In training mode it does, and adds a loss for the rest, which only Gaussian noise has. With other likelihoods the
    diagonal is right in both modes.
    """
    noise = isinstance(kernel.likelihood, _GaussianLikelihoodBase)
    return (kernel.training and noise) or gpytorch.settings.sgpr_diagonal_correction.off()


def _whitened(kernel: InducingPointKernel, inputs: Tensor, entries: Entries) -> Tensor:
    """``k(x, Z) L^{-T}``, so that products of it are the low-rank kernel."""
    return entries(kernel.base_kernel, inputs, kernel.inducing_points) @ kernel._inducing_inv_root


def _table_rows(kernel: IndexKernel, values: Tensor) -> Tensor:
    """Values ``(..., n, 1)`` as rows ``(..., n)`` of the kernel's table."""
    _require_rows(kernel, values)
    return values.detach().squeeze(-1).long()


def _require_rows(kernel: IndexKernel, values: Tensor) -> None:
    """Values must be rows of the kernel's table: GPyTorch cuts fractions off, and torch names neither kernel nor table."""
    rows, size = values.detach().round(), kernel.covar_factor.shape[-2]
    wrong = (rows < 0) | (rows >= size) | (rows != values)
    if bool(wrong.any()):
        raise InputError(
            f"The column of an IndexKernel with num_tasks={size} must hold whole numbers 0..{size - 1}. Got "
            f"{float(values[wrong][0]):.6g}. Leave that column as it is when others are standardised, re-encode it, or "
            "raise num_tasks."
        )


@contextmanager
def checked_tables(model: HasModules) -> Iterator[bool]:
    """Whatever an ``IndexKernel`` is evaluated on meanwhile must be rows of its table, as in ``covar_x.mul(covar_i)``.

    Yields:
        Whether there is one.
    """
    tables = [m for m in model.modules() if isinstance(m, IndexKernel) and type(m).forward is IndexKernel.forward]
    replaced = [table for table in tables if "forward" not in vars(table)]  # by nobody else
    for table in replaced:
        vars(table)["forward"] = partial(_checked_forward, table)
    try:
        yield bool(tables)
    finally:
        for table in replaced:
            del vars(table)["forward"]


def _checked_forward(kernel: IndexKernel, i1: Tensor, i2: Tensor, **keywords: Any) -> Any:
    _require_rows(kernel, i1)
    _require_rows(kernel, i2)
    return IndexKernel.forward(kernel, i1, i2, **keywords)


def fit_state(kernel: Kernel, features: Tensor, evaluate: Callable[[], Any], *, renew_losses: bool) -> None:
    """Lets kernels that have a state fit it to all rows before any block of entries is asked for.

    A grid without bounds is laid over the rows, weights are drawn, and the loss that an ``InducingPointKernel`` adds
    in training mode is renewed. Costs one diagonal.

    Args:
        kernel: Any kernel, called as ``forward`` called it.
        features: All rows ``(..., N, D)``.
        evaluate: Evaluates the variances of these rows, and lets kernels fit their state.
        renew_losses: Whether losses that are added in training mode are those of this call from now on.

    Raises:
        InputError: If a ``GridKernel`` is no function of two rows, or a grid without bounds is to lie over several inputs.
    """
    kinds = [module for module in kernel.modules() if isinstance(module, Kernel)]
    if isinstance(kernel, SumOfTerms):
        _check_terms(kernel, features)
    for module in kinds:
        if type(module) is GridKernel and not module.interpolation_mode and module.num_dims > 1:
            _check_grid(module)
    if any(_has_state(module) for module in kinds):
        with torch.no_grad(), _kept_losses(kernel), patient_grids(kernel):
            evaluate()
    learning = [module for module in kinds if isinstance(module, InducingPointKernel) and module.training]
    if renew_losses and learning:
        kernel(features, features, diag=True)
        for module in learning:
            if not isinstance(module.likelihood, _GaussianLikelihoodBase):
                _set_losses(module, {name: _NoLoss() for name in module._added_loss_terms})


@contextmanager
def patient_grids(kernel: HasModules) -> Iterator[None]:
    """Grids are laid at the first call, and anew for inputs outside of them, not for those that rounding puts there."""
    moving: list[Any] = [module for module in kernel.modules() if _moves(module)]
    before = [module.grid_bounds for module in moving]
    wider = [tuple((a - _ROUNDING * (b - a), b + _ROUNDING * (b - a)) for a, b in bounds) for bounds in before]
    for module, bounds in zip(moving, wider, strict=True):
        module.grid_bounds = bounds
    try:
        yield
    finally:
        for module, bounds, original in zip(moving, wider, before, strict=True):
            if module.grid_bounds is bounds:
                module.grid_bounds = original
            else:
                module.has_initialized_grid.fill_(True)  # otherwise it is laid anew in every call


@contextmanager
def _kept_losses(kernel: Kernel) -> Iterator[None]:
    """Losses stay what they are, whatever is called meanwhile."""
    kept = [(module, dict(module._added_loss_terms)) for module in kernel.modules() if isinstance(module, Kernel)]
    try:
        yield
    finally:
        for module, losses in kept:
            _set_losses(module, losses)


def _set_losses(module: Kernel, losses: dict[str, Any]) -> None:
    for name, loss in losses.items():
        if loss is not None:
            module.update_added_loss_term(name, loss)


class _NoLoss(AddedLossTerm):
    """What a kernel adds to the loss when it leaves nothing out."""

    def loss(self) -> Tensor:
        """Zero."""
        return torch.zeros(())


@contextmanager
def standing_grids(kernel: HasModules) -> Iterator[None]:
    """Grids stay where they are while some rows are evaluated that need not reach as far as all of them."""
    moving: list[Any] = [module for module in kernel.modules() if _moves(module)]
    for module in moving:
        module.grid_is_dynamic = False
    try:
        yield
    finally:
        for module in moving:
            module.grid_is_dynamic = True


def _moves(module: torch.nn.Module) -> bool:
    return isinstance(module, GridInterpolationKernel) and module.grid_is_dynamic


def _has_state(kernel: Kernel) -> bool:
    if isinstance(kernel, GridInterpolationKernel):
        return _moves(kernel)
    if isinstance(kernel, RFFKernel):
        return not hasattr(kernel, "randn_weights")
    return not is_gpytorch(kernel) and not isinstance(kernel, DerivedKernel)


def has_moving_grid(module: HasModules) -> bool:
    """Whether there is a kernel in it whose grid grows with the inputs."""
    return any(map(_moves, module.modules()))


def is_gpytorch(kernel: Kernel) -> bool:
    """Whether a kernel is GPyTorch's or this package's: all of these are functions of two rows by what is done here."""
    return type(kernel).__module__.startswith(("gpytorch.", "itergp.kernels."))


def _check_terms(kernel: SumOfTerms, features: Tensor) -> None:
    """A grid that moves is laid over the inputs of one call: terms that share it must have the same."""
    seen: dict[int, Tensor] = {}
    for term, inputs, _ in kernel.terms(features, features):
        for module in filter(_moves, term.modules()):
            if not torch.equal(seen.setdefault(id(module), inputs), inputs):
                raise InputError(
                    "A GridInterpolationKernel without bounds must be called with one set of inputs, over which its grid is "
                    "laid. Got several in one covariance. Pass grid_bounds that hold all of them, or use a kernel for each."
                )


def _check_grid(kernel: GridKernel) -> None:
    """On its grid, it multiplies kernels of one dimension, elsewhere it is its base kernel: these must agree."""
    points = torch.stack([part[:_GRID_POINTS] for part in (line.repeat(_GRID_POINTS) for line in kernel.grid)], -1)
    with torch.no_grad(), gpytorch.settings.lazily_evaluate_kernels(False):
        lines = kernel.base_kernel(points, points, last_dim_is_batch=True).to_dense()
        product, itself = lines.prod(-3), kernel.base_kernel(points, points).to_dense()
    if not torch.allclose(product, itself, rtol=_SAME, atol=_SAME * float(itself.abs().max())):
        raise InputError(
            "The base kernel of a GridKernel in several dimensions must be a product of kernels of one dimension, as "
            f"RBFKernel is. Got {type(kernel.base_kernel).__name__}, which is not: its grid would have other "
            f"covariances than "
            "the points around it. Use RBFKernel, or the base kernel itself."
        )
