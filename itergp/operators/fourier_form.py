"""Recognise sums of radial kernels of the same few inputs, whose products are sums over a lattice of frequencies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from itergp.operators.forms import PairwiseForm, as_form
from itergp.operators.lattice import LatticeTerm
from itergp.operators.leaves import RadialForm
from itergp.operators.radial import RadialKernel

MOST_INPUTS = 3
ROUGHEST = 1.5  # the spectrum of a Matern-1/2 kernel falls too slowly for any lattice


@dataclass(frozen=True)
class FourierForm:
    """``sum_t weight_t k_t(rate_t (x - x'))`` of the same columns.

    Attributes:
        columns: Which of the inputs' ``(d,)``.
        terms: The kernels.
    """

    columns: Tensor
    terms: tuple[LatticeTerm, ...]


def as_fourier_form(kernel: Kernel, num_kernels: int, num_columns: int) -> FourierForm | None:
    """A kernel as a sum of Matern-3/2, -5/2 and squared exponential ones of the same one to three columns; None if it is else.

    Args:
        kernel: Any GPyTorch kernel.
        num_kernels: Number of kernels ``C'`` in its batch, 1 when shared.
        num_columns: D, of its inputs.
    """
    form = as_form(kernel, num_kernels, num_columns)
    radial = _radial_terms(form)
    if not radial:
        return None
    every = torch.arange(num_columns, device=radial[0].output_scale.device)
    columns = [every if term.active_dims is None else term.active_dims for term in radial]
    same = all(torch.equal(own, columns[0]) for own in columns)
    if not same or columns[0].numel() > MOST_INPUTS or any(term.smoothness < ROUGHEST for term in radial):
        return None
    return FourierForm(columns[0], tuple(_lattice_term(term, columns[0].numel()) for term in radial))


def _radial_terms(form: RadialKernel | PairwiseForm | None) -> list[RadialKernel]:
    if form is None or isinstance(form, RadialKernel):
        return [] if form is None else [form]
    found = [leaf.kernel for leaf in form.summands if isinstance(leaf, RadialForm)]
    return found if len(found) == len(form.leaves) else []


def _lattice_term(term: RadialKernel, dim: int) -> LatticeTerm:
    rates = term.inputs_scale.detach().double().squeeze(1).cpu().numpy()
    rates = np.broadcast_to(rates, (rates.shape[0], dim))
    return LatticeTerm(term.smoothness, rates, term.output_scale.detach().double().cpu().numpy())
