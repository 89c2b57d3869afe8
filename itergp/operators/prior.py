"""``Prior``: what a model's ``forward`` says about the latent functions, as mean, kernel and kernel inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
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


@dataclass(frozen=True)
class Prior:
    """Mean and covariance of the latent functions at some inputs.

    Attributes:
        mean: Prior mean ``(N, C)``.
        kernel: GPyTorch kernel of the latent functions, shared, or a batch of C.
        features: What the kernel is evaluated on, ``(N, D)`` or ``(C, N, D)``: the inputs, or what ``forward`` made of
            them (deep kernels).
        num_kernels: 1 when the kernel is shared by all latent functions, otherwise C.
        covariance: The lazy covariance as ``forward`` made it, ``(N, N)`` or ``(C, N, N)``.
    """

    mean: Tensor
    kernel: Kernel
    features: Tensor
    num_kernels: int
    covariance: LinearOperator

    def take(self, rows: Tensor) -> Prior:
        """Mean, kernel and features at some of the rows; the lazy covariance stays that of all."""
        return replace(self, mean=self.mean[rows], features=self.features[..., rows, :])

    @classmethod
    def from_forward(
        cls, forward: Callable[..., MultivariateNormal], inputs: tuple[Tensor, ...], num_latents: int
    ) -> Prior:
        """Calls ``forward`` and takes its result apart.

        Args:
            forward: A model's ``forward``.
            inputs: Its arguments, each with N rows.
            num_latents: C, what the likelihood needs.

        Raises:
            InputError: If ``forward`` returns something else than one MultivariateNormal over the N rows (shared
                kernel), or a batch of C of them.
        """
        num_rows = inputs[0].shape[-2]
        with gpytorch.settings.lazily_evaluate_kernels(True):
            prior = forward(*inputs)
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
        terms = _kernel_terms(covariance, expected)
        batch = tuple(covariance.shape[:-2])
        # MultivariateNormal leaves the covariance as forward made it, so its own batch shape says what is shared.
        if len(batch) > 1 or (batch and batch[0] not in (1, num_latents)):
            raise InputError(f"{expected}. Got a covariance of shape {tuple(covariance.shape)}.")
        num_kernels = batch[0] if batch else 1
        kernel, features = _combine(terms)
        return cls(mean=mean, kernel=kernel, features=features, num_kernels=num_kernels, covariance=covariance)


@dataclass(frozen=True)
class _Term:
    coefficient: Tensor | None
    kernel: Kernel
    features: Tensor


def _kernel_terms(covariance: LinearOperator, expected: str) -> list[_Term]:
    """A covariance as a weighted sum of kernels evaluated at features of the rows."""
    if isinstance(covariance, LazyEvaluatedKernelTensor):
        # x1 already went through the kernel's own active_dims: they must not be applied again.
        kernel = covariance.kernel if covariance.kernel.active_dims is None else _Selected(covariance.kernel)
        return [_Term(None, kernel, covariance.x1)]
    if isinstance(covariance, SumLinearOperator):
        return [term for part in covariance.linear_ops for term in _kernel_terms(part, expected)]
    if isinstance(covariance, ConstantMulLinearOperator):
        constant = covariance.expanded_constant
        terms = _kernel_terms(covariance.base_linear_op, expected)
        return [
            _Term(constant if t.coefficient is None else constant * t.coefficient, t.kernel, t.features) for t in terms
        ]
    if isinstance(covariance, DiagLinearOperator):
        raise InputError(
            f"{expected}, with a covariance that is a kernel evaluated lazily. Got a sum with a diagonal matrix: latent "
            "noise is not a kernel. Drop the added jitter, or model noise in the likelihood."
        )
    raise InputError(
        f"{expected}, with a covariance that is a kernel called on the inputs, or a sum or multiple of such. Got "
        f"{type(covariance).__name__}, which cannot be evaluated at new inputs. Return self.covar_module(x) itself, "
        "without calling .to_dense() or .evaluate()."
    )


def _combine(terms: list[_Term]) -> tuple[Kernel, Tensor]:
    if len(terms) == 1 and terms[0].coefficient is None:
        return terms[0].kernel, terms[0].features
    batch = torch.broadcast_shapes(*(term.features.shape[:-2] for term in terms))
    features = torch.cat([term.features.expand(*batch, *term.features.shape[-2:]) for term in terms], dim=-1)
    return _SumOfTerms(terms), features


class _Selected(Kernel):
    """A kernel whose ``active_dims`` have already been taken from the features."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params) -> Tensor:
        """The kernel's entries at the selected columns."""
        return self.kernel.forward(x1, x2, diag=diag, **params)


class _SumOfTerms(Kernel):
    """A weighted sum of kernels, each on its own columns of the features."""

    def __init__(self, terms: list[_Term]) -> None:
        super().__init__()
        self.kernels = torch.nn.ModuleList([term.kernel for term in terms])
        self._coefficients = [term.coefficient for term in terms]
        self._widths = [term.features.shape[-1] for term in terms]

    @property
    def is_stationary(self) -> bool:
        """Whether every term is stationary."""
        return all(kernel.is_stationary for kernel in self.kernels)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params) -> Tensor:
        """The sum of the terms' entries."""
        total: Tensor | None = None
        parts = zip(
            self.kernels, self._coefficients, x1.split(self._widths, -1), x2.split(self._widths, -1), strict=True
        )
        for kernel, coefficient, first, second in parts:
            value = kernel(first, second, diag=diag, **params)
            value = value if torch.is_tensor(value) else value.to_dense()
            if coefficient is not None:
                value = value * (coefficient.squeeze(-1) if diag and coefficient.dim() > 1 else coefficient)
            total = value if total is None else total + value
        assert total is not None
        return total
