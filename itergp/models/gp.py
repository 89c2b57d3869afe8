"""``GP``: a model of a mean and a kernel, for whoever needs no class."""

from __future__ import annotations

from typing import Any

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel, MaternKernel, ScaleKernel
from gpytorch.means import ConstantMean, Mean
from torch import Tensor

from itergp.errors import InputError
from itergp.models.input_transforms import InputTransform
from itergp.models.nonconjugate_gp import NonConjugateGP
from itergp.models.starting_values import initialise

MAX_ARD_COLUMNS = 100  # more columns than that are pixels or embeddings, which share one lengthscale


class GP(NonConjugateGP):
    """A Gaussian process with a mean, a kernel and any likelihood, without a class of one's own.

    Defaults suit columns on one scale, such as standardised ones. One kernel serves all latent functions; for one each, pass a
    kernel with ``batch_shape=torch.Size([C])``. Parameters take the dtype and the device of the inputs.
    Hyperparameters are learned by ``itergp.fit``, not before.

    Args:
        x: Training inputs ``(N, D)``: a tensor, or an array, a data frame or Arrow data, which are read where they
            are (``itergp.as_tensor``).
        y: Training targets ``(N,)``, as the likelihood wants them.
        likelihood: One of ``itergp.likelihoods``, or any of GPyTorch's as it is.
        mean: A GPyTorch mean; default a constant, one per latent function.
        kernel: A GPyTorch kernel, which keeps its values; default a scaled Matern-3/2 with one lengthscale per column (one for
            all beyond 100 columns) that starts at half the median distance between rows, and an output scale of 10.
        input_transform: A map of the inputs that mean and kernel are functions of, such as
            ``itergp.models.QuantileTransform(x)``; default none. It is saved with the model.
        **options: ``solver``, ``approximation``, ``operator``, ``memory_budget``, ``sample_weight`` and ``missing_targets`` of
            ``NonConjugateGP``.

    Raises:
        InputError: If mean or kernel are none of GPyTorch's, there are several inputs, or the data are not valid.

    Examples:
        >>> import torch, itergp
        >>> x = torch.linspace(-2, 2, 40).unsqueeze(-1)
        >>> model = itergp.models.GP(x, (x[:, 0] > 0).long(), itergp.likelihoods.BernoulliLikelihood()).eval()
        >>> model.covar_module.outputscale.item()
        10.0
        >>> bool(model.predict(torch.tensor([[1.5]])).probs > 0.9)
        True
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        likelihood: gpytorch.likelihoods.Likelihood,
        *,
        mean: Mean | None = None,
        kernel: Kernel | None = None,
        input_transform: InputTransform | None = None,
        **options: Any,
    ) -> None:
        _require_part("mean", mean, Mean)
        _require_part("kernel", kernel, Kernel)
        if input_transform is not None and not isinstance(input_transform, torch.nn.Module):
            raise InputError(f"`input_transform` must be a torch module. Got {input_transform!r}.")
        super().__init__(x, y, likelihood, **options)
        inputs = self.held_data.inputs
        if len(inputs) != 1:
            raise InputError(
                f"`x` of a GP must be one matrix of inputs. Got {len(inputs)}. Concatenate their columns, or subclass "
                "itergp.models.NonConjugateGP, whose `forward` takes several."
            )
        if self.data_batch_shape:
            raise InputError(
                f"A GP is a single model. Got data of batch shape {tuple(self.data_batch_shape)}. Subclass "
                "itergp.models.NonConjugateGP, whose mean and kernel have that batch_shape or none."
            )
        latents = self.calculus.num_latents
        shape = torch.Size([latents] if latents > 1 else [])
        self.input_transform = input_transform
        self.mean_module = ConstantMean(batch_shape=shape) if mean is None else mean
        self.covar_module = _default_kernel(inputs[0].shape[1]) if kernel is None else kernel
        self.to(self.held_data.like)
        if kernel is None:
            with torch.no_grad():
                initialise(self.covar_module, self._transformed(inputs[0]))

    def forward(self, x: Tensor) -> MultivariateNormal:
        """The prior at inputs ``(N, D)``."""
        x = self._transformed(x)
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))

    def _transformed(self, x: Tensor) -> Tensor:
        return x if self.input_transform is None else self.input_transform(x)


def _default_kernel(num_columns: int) -> ScaleKernel:
    return ScaleKernel(MaternKernel(nu=1.5, ard_num_dims=num_columns if num_columns <= MAX_ARD_COLUMNS else None))


def _require_part(name: str, part: Any, kind: type) -> None:
    if part is not None and not isinstance(part, kind):
        raise InputError(
            f"`{name}` must be a GPyTorch {name}. Got {part!r}. Pass one of gpytorch.{name}s, or leave it out for the default."
        )
