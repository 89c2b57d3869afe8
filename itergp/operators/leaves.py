"""Kernels as leaves of a pairwise form: which columns they read and how, and what their derivatives flow through."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from itergp.kernels.codes import look_up, whole_codes
from itergp.operators import pairwise
from itergp.operators.pairwise import LOG2_E
from itergp.operators.radial import RadialKernel, cancels

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True)
class Columns:
    """Columns of the inputs as a kernel reads them: scaled, looked up in a table, or as they are.

    Attributes:
        numbers: Which of the inputs' columns ``(D,)``.
        scale: What they are multiplied by ``(C', 1, D)`` or ``(C', 1, 1)``.
        table: Or positions of the levels ``(C', L)`` that one column of codes names.
        kernel: Name of the kernel, for errors.
    """

    numbers: Tensor
    scale: Tensor | None = None
    table: Tensor | None = None
    kernel: str = ""

    @property
    def width(self) -> int:
        """D."""
        return self.numbers.numel()

    @property
    def tracked(self) -> bool:
        """Whether what is read has derivatives in a table."""
        return self.table is not None and self.table.requires_grad

    def read(self, inputs: Tensor, centre: Tensor, num_kernels: int, attached: bool) -> Tensor:
        """``(C', M, D)`` of inputs ``(M, D)`` or ``(C', M, D)``, with derivatives in the scale if ``attached``."""
        inputs = inputs if inputs.dim() == 3 else inputs.unsqueeze(0)
        if self.width != inputs.shape[-1] or not bool((self.numbers.diff() == 1).all()):
            inputs, centre = inputs.index_select(-1, self.numbers), centre.index_select(-1, self.numbers)
        if self.table is not None:
            return look_up(self.table, inputs, self.kernel)
        if self.scale is None:
            return whole_codes(inputs, self.kernel).expand(num_kernels, -1, -1)
        return (inputs - centre) * (self.scale if attached else self.scale.detach())

    def rates(self) -> Tensor:
        """Ones ``(C', R)`` that carry the derivatives of the scale, one for each or for all."""
        if self.scale is None:
            assert self.table is not None
            return torch.ones_like(self.table[:, :1]).detach()
        return (self.scale / self.scale.detach()).squeeze(1)

    def detached(self) -> Columns:
        """The same without derivatives."""
        scale, table = (None if value is None else value.detach() for value in (self.scale, self.table))
        return replace(self, scale=scale, table=table)


class LeafForm(ABC):
    """One kernel as a leaf."""

    weights: Tensor

    @property
    @abstractmethod
    def width(self) -> int:
        """Columns of its features."""

    @abstractmethod
    def features(self, inputs: Tensor, centre: Tensor, *, attached: bool = False) -> Tensor:
        """What entries are evaluated from ``(C', M, F)``, with derivatives in lengthscales if ``attached``."""

    @abstractmethod
    def rates(self, *, attached: bool = False) -> Tensor:
        """Rates ``(C', R)``, which have derivatives in lengthscales where features have not."""

    @abstractmethod
    def node(self, *, attached: bool = False) -> pairwise.Leaf:
        """How entries come from these."""

    @abstractmethod
    def scaled(self, factor: Tensor) -> LeafForm:
        """The kernel times a factor ``(C',)``."""

    @abstractmethod
    def detached(self) -> LeafForm:
        """The same without derivatives in hyperparameters."""

    @property
    def metric(self) -> float | None:
        """The order of the norm of ``points`` in which near means highly correlated; None if there is no such."""
        return None

    def points(self, features: Tensor) -> Tensor:
        """Features ``(..., F)`` as points between which distances mean something."""
        return features


@dataclass(frozen=True)
class ExponentialForm(LeafForm):
    """An exponential of distances in some columns, and of changes in others.

    Attributes:
        parts: Columns of which differences count.
        codes: Columns of codes.
        costs: Of changes of the codes ``(C', D)``.
        weights: Output scales ``(C', 1)``.
    """

    parts: tuple[Columns, ...]
    codes: tuple[Columns, ...]
    costs: Tensor
    weights: Tensor

    @property
    def width(self) -> int:
        """See ``LeafForm``."""
        return sum(part.width for part in (*self.parts, *self.codes))

    def features(self, inputs: Tensor, centre: Tensor, *, attached: bool = False) -> Tensor:
        """See ``LeafForm``."""
        return torch.cat([p.read(inputs, centre, len(self.weights), attached) for p in (*self.parts, *self.codes)], -1)

    def rates(self, *, attached: bool = False) -> Tensor:
        """See ``LeafForm``."""
        of_parts = [torch.ones_like(self.weights).detach()] if attached else [part.rates() for part in self.parts]
        return torch.cat([*of_parts, self.costs], -1)

    def node(self, *, attached: bool = False) -> pairwise.Exponential:
        """See ``LeafForm``."""
        num_codes = sum(part.width for part in self.codes)
        size = self.width - num_codes
        if attached:
            return pairwise.Exponential((0,) * size, num_codes, tuple(range(size)))
        rate_of: list[int] = []
        moving: list[int] = []
        number = 0
        for part in self.parts:
            moving += range(len(rate_of), len(rate_of) + part.width) if part.tracked else []
            rates = 1 if part.scale is None else part.scale.shape[-1]
            rate_of += range(number, number + rates) if rates == part.width else [number] * part.width
            number += rates
        return pairwise.Exponential(tuple(rate_of), num_codes, tuple(moving))

    def scaled(self, factor: Tensor) -> ExponentialForm:
        """See ``LeafForm``."""
        return replace(self, weights=self.weights * factor.unsqueeze(-1))

    def detached(self) -> ExponentialForm:
        """See ``LeafForm``."""
        parts, codes = (tuple(part.detached() for part in own) for own in (self.parts, self.codes))
        return ExponentialForm(parts, codes, self.costs.detach(), self.weights.detach())

    @property
    def metric(self) -> float | None:
        """See ``LeafForm``."""
        return None if self.codes else 1.0

    def points(self, features: Tensor) -> Tensor:
        """Codes lie at pseudo-random places within their cost: equal ones together."""
        if not self.codes:
            return features
        size = self.costs.shape[-1]
        places = (features[..., -size:] * _GOLDEN).remainder(1.0) * self.costs[0].to(features)
        return torch.cat([features[..., :-size], places], -1)

    @classmethod
    def product(cls, forms: Sequence[ExponentialForm]) -> ExponentialForm:
        """Of exponentials, which is one."""
        weights = forms[0].weights
        for form in forms[1:]:
            weights = weights * form.weights
        parts, codes = (tuple(p for form in forms for p in getattr(form, name)) for name in ("parts", "codes"))
        return cls(parts, codes, torch.cat([form.costs for form in forms], -1), weights)


@dataclass(frozen=True)
class AdditiveForm(LeafForm):
    """A weighted sum of exponentials of one column each; weights ``(C', D)``."""

    columns: Columns
    weights: Tensor

    @property
    def width(self) -> int:
        """See ``LeafForm``."""
        return self.columns.width

    def features(self, inputs: Tensor, centre: Tensor, *, attached: bool = False) -> Tensor:
        """See ``LeafForm``."""
        return self.columns.read(inputs, centre, len(self.weights), attached)

    def rates(self, *, attached: bool = False) -> Tensor:
        """See ``LeafForm``."""
        return torch.ones_like(self.weights).detach() if attached else self.columns.rates()

    def node(self, *, attached: bool = False) -> pairwise.Additive:
        """See ``LeafForm``."""
        return pairwise.Additive()

    def scaled(self, factor: Tensor) -> AdditiveForm:
        """See ``LeafForm``."""
        return replace(self, weights=self.weights * factor.unsqueeze(-1))

    def detached(self) -> AdditiveForm:
        """See ``LeafForm``."""
        return AdditiveForm(self.columns.detached(), self.weights.detach())


@dataclass(frozen=True)
class RadialForm(LeafForm):
    """A radial kernel among others."""

    kernel: RadialKernel
    columns: int

    @property
    def weights(self) -> Tensor:  # type: ignore[override]
        """Output scales ``(C', 1)``."""
        return self.kernel.output_scale.unsqueeze(-1)

    @property
    def width(self) -> int:
        """See ``LeafForm``."""
        return self.columns

    @property
    def _one_lengthscale(self) -> bool:
        return self.kernel.inputs_scale.shape[-1] == 1

    def features(self, inputs: Tensor, centre: Tensor, *, attached: bool = False) -> Tensor:
        """In float64 where inputs are many lengthscales apart."""
        own = self.kernel
        if self._one_lengthscale and not attached:
            own = replace(own, inputs_scale=own.inputs_scale.detach())
        features = own.features(inputs, centre)
        squared = float(features.detach().square().sum(-1).max()) if features.numel() else 0.0
        return features.double() if cancels(squared, features.dtype) else features

    def rates(self, *, attached: bool = False) -> Tensor:
        """See ``LeafForm``."""
        if self._one_lengthscale and not attached:
            return (self.kernel.inputs_scale / self.kernel.inputs_scale.detach()).squeeze(1)
        return torch.ones_like(self.weights).detach()

    def node(self, *, attached: bool = False) -> pairwise.Radial:
        """See ``LeafForm``."""
        return pairwise.Radial(self.kernel.smoothness)

    def scaled(self, factor: Tensor) -> RadialForm:
        """See ``LeafForm``."""
        return replace(self, kernel=replace(self.kernel, output_scale=self.kernel.output_scale * factor))

    def detached(self) -> RadialForm:
        """See ``LeafForm``."""
        return replace(self, kernel=self.kernel.detached())

    @property
    def metric(self) -> float | None:
        """See ``LeafForm``."""
        return 2.0


def log2_scale(lengthscale: Tensor, num_kernels: int) -> Tensor:
    """What inputs are multiplied by for powers of two ``(C', 1, D)``."""
    return (LOG2_E / lengthscale).expand(num_kernels, -1, -1)
