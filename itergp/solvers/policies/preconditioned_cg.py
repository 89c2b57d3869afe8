"""Conjugate gradients with a preconditioner for the kernel part of the system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from itergp.checks import require_positive
from itergp.errors import InputError
from itergp.numerics.blocks import apply_blocks
from itergp.solvers.policies.base import BasePolicy, View
from itergp.solvers.policies.low_rank import pivoted_cholesky, sketched_eigenvectors

Method = Literal["cholesky", "sketch"]


@dataclass(frozen=True, kw_only=True)
class PreconditionedCG(BasePolicy):
    """The residual, preconditioned by a low-rank approximation of the kernel plus the noise: ``(U U^T + W^+)^{-1} r``.

    By the matrix inversion lemma that is ``W r - W U (I + U^T W U)^{-1} U^T W r``: only W is used, never its inverse, so that
    saturated rows do no harm. U depends on the kernel alone and is found once per solve. One kernel pass per action, besides

    - ``"cholesky"``: a partial pivoted Cholesky decomposition, ``rank`` kernel columns (as GPyTorch's preconditioner);
    - ``"sketch"``: a randomised eigendecomposition by the ``skerch`` library, two kernel passes of ``2 rank`` columns.

    With rank 0 it is the policy ``Gradient``.

    Args:
        rank: Columns of U per kernel; default 32.
        method: How U is found; default ``"cholesky"``.
        seed: Of the sketch.

    Raises:
        InputError: If the method is unknown, or ``skerch`` is missing where it is needed.
    """

    rank: int = 32
    method: Method = "cholesky"
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the settings."""
        if self.method not in get_args(Method):
            raise InputError(f"`method` must be one of {get_args(Method)}. Got {self.method!r}.")
        if self.rank != 0:
            require_positive("rank", self.rank, integer=True)

    def propose(self, view: View) -> Tensor:
        """One action ``(N, C, 1)``."""
        if self.rank == 0:
            return view.gradient.unsqueeze(-1)
        if self not in view.memory:
            rank = min(self.rank, view.shape[0])
            find = pivoted_cholesky if self.method == "cholesky" else sketched_eigenvectors
            view.memory[self] = [find(view.kernel_operator, rank, self.seed), None, None]
        notes = view.memory[self]
        if notes[1] is not view.curvature:  # a new Newton step
            notes[1], notes[2] = view.curvature, _inner_factor(notes[0], view.curvature)
        return _solve(notes[0], notes[2], view.curvature, view.gradient).unsqueeze(-1)


def _inner_factor(root: Tensor, curvature: Tensor) -> Tensor:
    """Cholesky factor of ``I + U^T W U`` ``(C p, C p)``, float64, for U_c ``(C', N, p)``."""
    latents, rank = curvature.shape[-1], root.shape[-1]
    matrix = torch.eye(latents * rank, dtype=torch.float64, device=root.device)
    last = root.shape[0] - 1
    for c in range(latents):
        for d in range(latents):
            weighted = root[min(c, last)] * curvature[:, c, d].to(root).unsqueeze(-1)
            rows, cols = slice(c * rank, (c + 1) * rank), slice(d * rank, (d + 1) * rank)
            matrix[rows, cols] += (weighted.mT @ root[min(d, last)]).double()
    return torch.linalg.cholesky(0.5 * (matrix + matrix.mT))


def _solve(root: Tensor, factor: Tensor, curvature: Tensor, weighed: Tensor) -> Tensor:
    """``(U U^T + W^+)^{-1} r`` for ``weighed = W r`` ``(N, C)``."""
    latents = weighed.shape[1]
    wide = root.expand(latents, -1, -1)
    right = torch.einsum("cnp,nc->cp", wide, weighed).reshape(-1, 1).double()
    inside = torch.cholesky_solve(right, factor).reshape(latents, -1).to(weighed)
    return weighed - apply_blocks(curvature.to(weighed), torch.einsum("cnp,cp->nc", wide, inside))
