"""Products of structured covariance matrices, which GPyTorch makes of roots, by whether they are what they should be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import ProductKernel, ProductStructureKernel
from linear_operator.operators import LinearOperator, MulLinearOperator
from torch import Tensor

from itergp.errors import InputError

# GPyTorch multiplies two structured matrices by their roots, which above 800 rows it cuts off at rank 100.
WHOLE_ROOTS = partial(gpytorch.settings.fast_computations.covar_root_decomposition, False)

_MULTIPLYING = (ProductKernel, ProductStructureKernel)
_FEW_ROWS = 4  # whose variances are looked at by themselves
_SAME_VARIANCE = {True: 1e-5, False: 1e-3}  # of the largest one, whether in float64: more than the jitter of roots


@torch.no_grad()
def require_true_products(
    covariance: LinearOperator,
    forward: Callable[..., MultivariateNormal],
    inputs: tuple[Tensor, ...],
    modules: Iterable[torch.nn.Module] = (),
) -> None:
    """Variances of rows by themselves, whose roots are exact, must be those of the rows among all of them.

    GPyTorch multiplies structured matrices by roots, with jitter where they are singular; an odd number of roots with fewer
    columns than rows comes out too small, by a factor as large as the number of rows.

    Args:
        covariance: What a model's ``forward`` made of some rows.
        forward: It.
        inputs: Its arguments.
        modules: The model's: kernels that multiply may have left nothing but a dense matrix to be seen.

    Raises:
        InputError: If they are not.
    """
    if covariance.shape[-1] != inputs[0].shape[-2]:  # of coupled latent functions
        return
    with WHOLE_ROOTS():
        if not any(isinstance(module, _MULTIPLYING) for module in modules) and not _has_products(covariance):
            return
        variances = covariance.to_dense().diagonal(dim1=-1, dim2=-2)
    size, share = variances.shape[-1], _SAME_VARIANCE[variances.dtype == torch.float64]
    rows = {int(variances.reshape(-1, size).amax(0).argmax()), *range(0, size, max(1, size // _FEW_ROWS))}
    for row in sorted(rows):
        try:
            with gpytorch.settings.lazily_evaluate_kernels(True), WHOLE_ROOTS():
                alone = forward(*(x.narrow(-2, row, 1) for x in inputs)).lazy_covariance_matrix.to_dense()[..., 0]
        except (RuntimeError, ValueError, IndexError):  # of the model's author, who expects all rows
            return
        if alone.shape[-1] != 1:
            return
        among = variances[..., row : row + 1]
        wrong = (alone - among).abs() > share * variances.abs().max()
        if bool(wrong.any()):
            raise InputError(
                f"A product of structured matrices must have the variances of its rows by themselves. Got "
                f"{float(among[wrong].flatten()[0]):.6g} for row {row} among {size} rows and "
                f"{float(alone.expand_as(wrong)[wrong].flatten()[0]):.6g} for it alone: GPyTorch multiplies them by "
                "roots, which is inaccurate for singular ones. Return a lazy covar_module(x), with a ProductStructureKernel "
                "inside a ScaleKernel, for a product k1 * k2 of kernels, or multiply dense matrices."
            )


def _has_products(covariance: LinearOperator) -> bool:
    """Whether a covariance has a product of structured matrices in it, kernels evaluated."""
    covariance = covariance.evaluate_kernel()
    if isinstance(covariance, MulLinearOperator):
        return True
    held = (value if isinstance(value, (tuple, list)) else (value,) for value in vars(covariance).values())
    parts = (part for values in held for part in values)
    return any(_has_products(part) for part in parts if isinstance(part, LinearOperator))
