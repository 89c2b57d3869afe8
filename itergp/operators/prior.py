"""``Prior``: what a model's ``forward`` says about the latent functions, as mean, kernel and kernel inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gpytorch
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.lazy import LazyEvaluatedKernelTensor
from linear_operator.operators import (
    ConstantMulLinearOperator,
    DiagLinearOperator,
    LinearOperator,
    SumLinearOperator,
)
from torch import Tensor

from itergp.errors import InputError
from itergp.operators.base import KernelOperator
from itergp.operators.choose import make_operator
from itergp.operators.coupled import num_outputs
from itergp.operators.derived import CalledKernel, SumOfTerms, TabulatedKernel, clear_caches
from itergp.operators.forms import as_form
from itergp.operators.matrix_products import WHOLE_ROOTS
from itergp.operators.memory import free_memory
from itergp.operators.radial import evaluate_diagonal
from itergp.operators.special import fit_state
from itergp.operators.two_rows import is_function_of_two_rows

_MEMORY_SHARE = 0.5  # of what is free, for a covariance that is evaluated whole


@dataclass(frozen=True)
class Prior:
    """Mean and covariance of the latent functions at some inputs.

    A covariance that is no sum of kernels called on the inputs, or whose kernels are no functions of two rows, is
    evaluated whole: its ``features`` are row numbers then, and its ``kernel`` looks entries up.

    Attributes:
        mean: Prior mean ``(N, C)``.
        kernel: GPyTorch kernel of the latent functions, shared, or a batch of C.
        features: What the kernel is evaluated on, ``(N, D)`` or ``(C, N, D)``: the inputs, or what ``forward`` made of
            them (deep kernels).
        num_kernels: 1 when the kernel is shared by all latent functions, otherwise C.
        covariance: The lazy covariance as ``forward`` made it, ``(N, N)`` or ``(C, N, N)``; ``(N C, N C)``, latent functions
            of a row side by side, where they are coupled.
        coupled: Whether the kernel couples the latent functions: it has C outputs per input.
    """

    mean: Tensor
    kernel: Kernel
    features: Tensor
    num_kernels: int
    covariance: LinearOperator
    coupled: bool = False

    @property
    def num_outputs(self) -> int:
        """Outputs per input of the kernel: C if it couples latent functions, otherwise 1."""
        return self.mean.shape[1] if self.coupled else 1

    @property
    def tabulated(self) -> bool:
        """Whether the covariance was evaluated whole."""
        return isinstance(self.kernel, TabulatedKernel)

    def take(self, rows: Tensor) -> Prior:
        """Mean, kernel and features at some of the rows; the lazy covariance stays that of all."""
        return replace(self, mean=self.mean[rows], features=self.features[..., rows, :])

    def across(self, operator: KernelOperator) -> KernelOperator:
        """The operator of the training rows whose products reach to these rows.

        Args:
            operator: That of the training rows by themselves.
        """
        if not self.tabulated:
            return operator
        settings: dict[str, Any] = {"num_kernels": operator.num_kernels, "memory_budget": operator.memory_budget}
        return make_operator(self.kernel, operator.inputs, kind="blocked", **settings)

    def whole(self, first: int = 0) -> Prior:
        """The same with its covariance evaluated whole.

        Args:
            first: Rows before this one are left out; covariances with them are kept.

        Raises:
            InputError: If it does not fit into memory.
        """
        matrix = self.covariance
        size, dtype = self.mean.shape[0], self.mean.dtype
        blocks = self.num_outputs**2 if self.coupled else self.num_kernels
        needed, free = blocks * size**2 * self.mean.element_size(), free_memory(self.mean.device)
        if needed > _MEMORY_SHARE * free:
            raise InputError(
                f"A covariance that is no sum of kernels of two rows is evaluated whole, and must fit into "
                f"{_MEMORY_SHARE:.0%} of "
                f"the free memory, {free / 2**30:.2f} GiB. Got {size:,} rows: {needed / 2**30:.2f} GiB. Return "
                "covar_module(x) with a kernel that is a function of two rows, for a product k1 * k2 with "
                "active_dims, or use "
                "fewer rows."
            )
        with WHOLE_ROOTS():
            dense = matrix.to_dense().to(dtype)
        kernel = TabulatedKernel(dense[..., first * self.num_outputs :, :], self.num_outputs)
        numbers = torch.arange(first, size, dtype=dtype, device=dense.device).unsqueeze(-1)
        return replace(self, mean=self.mean[first:], kernel=kernel, features=numbers)

    @classmethod
    def from_forward(
        cls,
        forward: Callable[..., MultivariateNormal],
        inputs: tuple[Tensor, ...],
        num_latents: int,
        *,
        fit: bool = True,
        renew_losses: bool = True,
    ) -> Prior:
        """Calls ``forward`` and takes its result apart.

        Args:
            forward: A model's ``forward``.
            inputs: Its arguments, each with N rows.
            fit: Whether kernels that have a state, such as a grid, fit it to these rows; if not, it has been fitted.
            renew_losses: Whether losses that kernels add in training mode are those of this prior from now on.
            num_latents: C, what the likelihood needs.

        Raises:
            InputError: If ``forward`` returns something else than one MultivariateNormal over the N rows (shared
                kernel), a batch of C of them, or one that couples C of them, or if a covariance that must be evaluated
                whole does not fit into memory.
        """
        num_rows = inputs[0].shape[-2]
        with gpytorch.settings.lazily_evaluate_kernels(True), WHOLE_ROOTS():
            prior = forward(*inputs)
        if isinstance(prior, MultitaskMultivariateNormal):
            return cls._of_outputs(prior, num_rows, num_latents, fit=fit, renew_losses=renew_losses)
        expected = (
            f"forward must return a gpytorch MultivariateNormal over the {num_rows} input rows, shared by all "
            f"{num_latents} latent function(s) or with batch shape ({num_latents},)"
        )
        if not isinstance(prior, MultivariateNormal):
            raise InputError(f"{expected}. Got {type(prior).__name__}. Return MultivariateNormal(mean, covariance).")
        mean, covariance = prior.loc, prior.lazy_covariance_matrix
        shape = tuple(mean.shape[:-1])
        if mean.shape[-1] != num_rows or len(shape) > 1 or (shape and shape[0] not in (1, num_latents)):
            raise InputError(
                f"{expected}. Got a mean of shape {tuple(mean.shape)}. Check that mean_module and covar_module use "
                "batch_shape=torch.Size([]) or torch.Size([C]) with C the number of latent functions."
            )
        mean = mean.reshape(-1, num_rows).mT.expand(num_rows, num_latents)
        batch = tuple(covariance.shape[:-2])
        # MultivariateNormal leaves the covariance as forward made it, so its own batch shape says what is shared.
        square = tuple(covariance.shape[-2:]) == (num_rows, num_rows)
        if not square or len(batch) > 1 or (batch and batch[0] not in (1, num_latents)):
            raise InputError(f"{expected}. Got a covariance of shape {tuple(covariance.shape)}.")
        num_kernels = batch[0] if batch else 1
        terms = _kernel_terms(covariance, expected)
        if terms is None:
            none = torch.zeros_like(mean[:, :0])
            return cls(mean, gpytorch.kernels.ConstantKernel(), none, num_kernels, covariance).whole()
        kernel, features = _combine(terms, mean)
        return cls(mean, kernel, features, num_kernels, covariance)._fitted(fit=fit, renew_losses=renew_losses)

    @classmethod
    def _of_outputs(
        cls, prior: MultitaskMultivariateNormal, num_rows: int, num_latents: int, *, fit: bool, renew_losses: bool
    ) -> Prior:
        """The prior of coupled latent functions.

        Raises:
            InputError: If it is not one of C outputs side by side for each of the N rows.
        """
        mean, covariance = prior.loc.reshape(prior._output_shape), prior.lazy_covariance_matrix
        size = num_rows * num_latents
        expected = (
            f"forward must return an interleaved MultitaskMultivariateNormal over the {num_rows} input rows and the "
            f"{num_latents} latent function(s) of the likelihood"
        )
        if tuple(mean.shape) != (num_rows, num_latents) or tuple(covariance.shape) != (size, size):
            raise InputError(
                f"{expected}. Got a mean of shape {tuple(mean.shape)} and a covariance of shape {tuple(covariance.shape)}. "
                "Give the likelihood as many latent functions as the kernel has outputs."
            )
        if not prior._interleaved and num_latents > 1:
            raise InputError(
                f"{expected}. Got one whose outputs are coupled and not interleaved, whose density and samples GPyTorch gets "
                "wrong. Leave out interleaved=False."
            )
        terms = _kernel_terms(covariance, expected)
        if terms is None or any(num_outputs(term.kernel, term.features) != num_latents for term in terms):
            none = torch.zeros_like(mean[:, :0])
            alone = gpytorch.kernels.ConstantKernel()
            return cls(mean, alone, none, num_latents, covariance, coupled=num_latents > 1).whole()
        kernel, features = _combine(terms, mean)
        coupled = cls(mean, kernel, features, num_latents, covariance, coupled=num_latents > 1)
        return coupled._fitted(fit=fit, renew_losses=renew_losses)

    def _fitted(self, *, fit: bool, renew_losses: bool) -> Prior:
        """The same once its kernel has been fitted to its rows; evaluated whole if the kernel is no function of two rows."""
        kernel, features, kernels = self.kernel, self.features, self.num_kernels
        if fit and as_form(kernel, kernels, features.shape[-1]) is None:
            clear_caches(kernel)
            own = self._variances if self.coupled else partial(evaluate_diagonal, kernel, features, kernels, fit=True)
            fit_state(kernel, features, own, renew_losses=renew_losses)
            if not is_function_of_two_rows(kernel, features, kernels, self.num_outputs):
                return self.whole()
        return self

    def _variances(self) -> Tensor:
        """Those of all outputs, by the kernel's own code, which fits its state."""
        with gpytorch.settings.lazily_evaluate_kernels(False):
            return self.kernel(self.features, self.features, diag=True)


@dataclass(frozen=True)
class _Term:
    coefficient: Tensor | None
    kernel: Kernel
    features: Tensor


def _kernel_terms(covariance: LinearOperator, expected: str) -> list[_Term] | None:
    """A covariance as a weighted sum of kernels evaluated at features of the rows; None if it is something else."""
    if isinstance(covariance, LazyEvaluatedKernelTensor):
        if covariance.last_dim_is_batch:
            return None
        kernel, x, keywords = covariance.kernel, covariance.x1, covariance.params
        # x1 already went through the kernel's own active_dims: they must not be applied again.
        if kernel.active_dims is not None or keywords or not x.is_floating_point():
            kernel = CalledKernel(kernel, keywords, x.dtype)
        return [_Term(None, kernel, x)]
    if isinstance(covariance, SumLinearOperator):
        parts = [_kernel_terms(part, expected) for part in covariance.linear_ops]
        return None if any(part is None for part in parts) else [term for part in parts if part for term in part]
    if isinstance(covariance, ConstantMulLinearOperator):
        constant = covariance.expanded_constant
        terms = _kernel_terms(covariance.base_linear_op, expected)
        return (
            None
            if terms is None
            else [
                _Term(constant if t.coefficient is None else constant * t.coefficient, t.kernel, t.features)
                for t in terms
            ]
        )
    if isinstance(covariance, DiagLinearOperator):
        raise InputError(
            f"{expected}, with a covariance that is a kernel evaluated lazily. Got a sum with a diagonal matrix: latent "
            "noise is not a kernel. Drop the added jitter, or model noise in the likelihood."
        )
    return None


def _combine(terms: list[_Term], like: Tensor) -> tuple[Kernel, Tensor]:
    if len(terms) == 1 and terms[0].coefficient is None:
        return terms[0].kernel, terms[0].features.to(like.dtype)
    batch = torch.broadcast_shapes(*(term.features.shape[:-2] for term in terms))
    parts = [term.features.to(like.dtype).expand(*batch, *term.features.shape[-2:]) for term in terms]
    kernels, coefficients = [term.kernel for term in terms], [term.coefficient for term in terms]
    return SumOfTerms(kernels, coefficients, [part.shape[-1] for part in parts]), torch.cat(parts, dim=-1)
