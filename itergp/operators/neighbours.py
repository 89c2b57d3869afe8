"""Training rows nearest to inputs, in the metric of the kernel, and kernel entries among them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from itergp.operators.base import KernelOperator
from itergp.operators.groups import evaluate_groups
from itergp.operators.tiles import slices

# Columns that a tree can prune by. Of inputs with more it has so many of the leading principal axes, or of the widest columns.
_TREE_COLUMNS = 16
# Rows from which the search may stop at a neighbour farther than the nearest by this factor (SciPy's eps). Any rows are valid
# neighbours: near ones tell more. Measured: the mean distance grows by 1.5 % at 1.0, by 10 % at 3.0; a million rows take
# 600, 54 and 12 s at 0, 1 and 3.
_APPROXIMATION = ((10_000, 0.0), (50_000, 0.5), (200_000, 1.0))
_COARSEST = 3.0
_MOST_COLUMNS_SCORED = 20_000  # rows whose kernel columns are worth evaluating where there is no metric
_SCORED_ROWS = 512
_CHUNK_ROWS = 8192
_MOST_KEPT = 2**26  # kernel entries of neighbourhoods that are worth keeping for another round


def kept_entries(num_rows: int, num_neighbours: int, num_kernels: int) -> int:
    """Kernel entries that are kept of the neighbourhoods of training rows for another round; 0 where they are too many.

    Args:
        num_rows: N.
        num_neighbours: Rows near to each.
        num_kernels: ``C'``.
    """
    size = num_kernels * num_rows * num_neighbours * (num_neighbours + 1)
    return size if size <= _MOST_KEPT else 0


class NearestRows:
    """A search tree over training rows.

    Args:
        points: What distances are taken between ``(N, D)``: inputs in units of the kernel's lengthscales.
        candidates: Numbers of the rows that may be neighbours ``(m,)``; None for all.
        norm: Order of the norm in which distances are taken, 1 or 2.
    """

    def __init__(self, points: Tensor, candidates: Tensor | None = None, norm: float = 2.0) -> None:
        self.candidates, self._norm = candidates, norm
        held = points.detach() if candidates is None else points.detach()[candidates]
        values = held.double().cpu().numpy()
        self._axes: np.ndarray | None = None
        self._centre = values.mean(0) if len(values) else np.zeros(values.shape[1])
        if values.shape[1] > _TREE_COLUMNS:
            self._axes = self._leading(values - self._centre)
        self._tree = cKDTree(self._project(values), balanced_tree=False, compact_nodes=False)
        self._eps = next((eps for size, eps in _APPROXIMATION if len(values) <= size), _COARSEST)

    @property
    def size(self) -> int:
        """Rows that may be neighbours."""
        return self._tree.n

    def nearest(self, points: Tensor, number: int) -> Tensor:
        """Numbers of the nearest rows ``(M, n)``, the nearest first; n is ``number``, or as many as there are.

        Args:
            points: ``(M, D)``, in the units of the tree's.
            number: Neighbours wanted.
        """
        number = min(number, self.size)
        if number == 0 or points.shape[0] == 0:
            return torch.zeros(points.shape[0], number, dtype=torch.int64, device=points.device)
        parts, wanted, workers = [], np.arange(1, number + 1), torch.get_num_threads()
        for part in points.detach().split(_CHUNK_ROWS):
            values = self._project(part.double().cpu().numpy())
            _, found = self._tree.query(values, k=wanted, eps=self._eps, p=self._norm, workers=workers)
            parts.append(torch.from_numpy(found.astype(np.int64, copy=False)))
        rows = torch.cat(parts).to(points.device)
        return rows if self.candidates is None else self.candidates[rows]

    def order(self) -> Tensor:
        """Numbers of the rows that may be neighbours ``(m,)``: those near to each other follow one another."""
        order = torch.from_numpy(self._tree.indices.astype(np.int64))
        return order if self.candidates is None else self.candidates[order.to(self.candidates.device)]

    def _leading(self, centred: np.ndarray) -> np.ndarray:
        """Axes ``(D, D')`` along which rows differ most: principal ones, or columns where turning would change distances."""
        if self._norm == 2.0:
            return np.linalg.eigh(centred.T @ centred)[1][:, -_TREE_COLUMNS:]
        widest = np.abs(centred).mean(0).argsort()[-_TREE_COLUMNS:]
        return np.eye(centred.shape[1])[:, widest]

    def _project(self, values: np.ndarray) -> np.ndarray:
        return values if self._axes is None else (values - self._centre) @ self._axes


@dataclass(frozen=True)
class Near:
    """The neighbours of M inputs, with kernel entries if they are kept.

    Attributes:
        rows: Numbers of training rows ``(M, n)``.
        entries: Kernel entries among each group ``(C', M, n, n)``, or None.
        cross: And with the input ``(C', M, n)``, or None.
    """

    rows: Tensor
    entries: Tensor | None = None
    cross: Tensor | None = None

    def part(self, i: slice) -> Near:
        """Those of some of the inputs."""
        if self.entries is None or self.cross is None:
            return Near(self.rows[i])
        return Near(self.rows[i], self.entries[:, i], self.cross[:, i])


class Neighbourhoods:
    """Groups of training rows near to inputs, and kernel entries within them.

    Near means near in the kernel's own metric where it has one (RBF, Matern, Laplacian); otherwise highly correlated where the
    kernel columns of all rows are affordable, and near in scaled or standardised inputs where they are not.

    Args:
        operator: Of the training rows; one that ``evaluates_groups``.
        candidates: Numbers of the rows that may be neighbours ``(m,)``; None for all.
    """

    def __init__(self, operator: KernelOperator, candidates: Tensor | None = None) -> None:
        self.operator, self.candidates = operator, candidates
        form, inputs = operator.form, operator.inputs.detach()
        self._features = None if form is None else operator.features(inputs)
        metric = None if form is None else form.metric
        self._scored = metric is None and operator.num_rows <= _MOST_COLUMNS_SCORED
        self._training: dict[int, tuple[Tensor, Near]] = {}
        self._search = None if self._scored else NearestRows(operator.scaled_inputs(), candidates, norm=metric or 2.0)

    def nearest(self, inputs: Tensor, number: int) -> Tensor:
        """Numbers of the nearest training rows ``(M, n)``, the nearest first; n is ``number``, or as many as there are.

        Args:
            inputs: Kernel inputs ``(M, D)`` or ``(C', M, D)``.
            number: Neighbours wanted.
        """
        if self._search is not None:
            return self._search.nearest(self.operator.scaled_inputs(inputs.detach()), number)
        return self._most_correlated(inputs.detach(), number)

    @torch.no_grad()
    def _most_correlated(self, inputs: Tensor, number: int) -> Tensor:
        """By the squared entries of the first kernel over the prior variances."""
        operator, rows = self.operator, self.candidates
        training = operator.inputs.detach() if rows is None else operator.inputs.detach()[..., rows, :]
        variance = operator.diagonal(training).detach()[0].clamp_min(torch.finfo(operator.dtype).tiny)
        number, found = min(number, variance.numel()), []
        for part in inputs.split(_SCORED_ROWS, -2):
            entries = operator.cross_entries(part, rows)[0]
            found.append((entries.square() / variance).topk(number, -1).indices)
        indices = torch.cat(found) if found else torch.zeros(0, number, dtype=torch.int64, device=inputs.device)
        return indices if rows is None else rows[indices]

    def near(self, inputs: Tensor, number: int) -> Near:
        """The neighbours of inputs ``(M, D)`` or ``(C', M, D)``."""
        return Near(self.nearest(inputs, number))

    def near_training(self, number: int) -> tuple[Tensor, Near]:
        """Numbers of the training rows of this process, and their neighbours; found once, kernel entries with them if few.

        Rows near to each other follow one another: they have neighbours in common, which then are in cache.
        """
        if (known := self._training.get(number)) is None:
            operator, order = self.operator, self._own_order()
            inputs = operator.inputs[..., order, :]
            rows = self.nearest(inputs, number)
            kept = kept_entries(rows.shape[0], rows.shape[1], operator.num_kernels) > 0
            known = self._training[number] = order, self._with_entries(inputs, rows) if kept else Near(rows)
        return known

    def _with_entries(self, inputs: Tensor, rows: Tensor) -> Near:
        """Neighbours with their kernel entries, which take several times their memory while they are made."""
        kernels, (size, number) = self.operator.num_kernels, rows.shape
        entries = inputs.new_empty(kernels, size, number, number)
        cross = inputs.new_empty(kernels, size, number)
        for i in slices(size, _CHUNK_ROWS):
            entries[:, i], cross[:, i] = self.entries(rows[i]), self.cross(inputs[..., i, :], rows[i])
        return Near(rows, entries, cross)

    def _own_order(self) -> Tensor:
        """Numbers among all of the rows of this process, as they lie in the tree; those that are not in it come last."""
        operator = self.operator
        start = operator.rows.start()
        numbers = torch.arange(operator.num_rows, device=operator.device)
        if self._search is not None:
            first = self._search.order().to(operator.device)
            rest = torch.ones_like(numbers, dtype=torch.bool)
            rest[first] = False
            numbers = torch.cat([first, numbers[rest]])
        return numbers[(numbers >= start) & (numbers < start + operator.num_own_rows)]

    def entries(self, rows: Tensor) -> Tensor:
        """Kernel entries among groups of training rows: ``(C', M, n, n)`` for row numbers ``(M, n)``."""
        operator, known = self.operator, self._features
        operator.counts.entries += operator.num_kernels * rows.numel() * rows.shape[-1]
        own = None if known is None or self._tracked() else known[:, rows]
        entries = self._between(operator.inputs[..., rows, :], own, rows)
        if not entries.requires_grad:  # exact, where a rounded distance would not be
            entries = entries.contiguous()  # a constant is one number for all
            variance = operator.diagonal(operator.inputs[..., rows.flatten(), :]).detach()
            entries.diagonal(dim1=-2, dim2=-1).copy_(variance.view(-1, *rows.shape))
        return entries

    def cross(self, inputs: Tensor, rows: Tensor) -> Tensor:
        """Kernel entries between each input and its own training rows ``(C', M, n)``; differentiable in the inputs.

        Args:
            inputs: ``(M, D)`` or ``(C', M, D)``.
            rows: Row numbers ``(M, n)``.
        """
        self.operator.counts.entries += self.operator.num_kernels * rows.numel()
        plain = self._features is not None and not self._tracked(inputs)
        own = self.operator.features(inputs.detach()).unsqueeze(-2) if plain else None
        return self._between(inputs.unsqueeze(-2), own, rows).squeeze(-2)

    def _tracked(self, *inputs: Tensor) -> bool:
        """Whether derivatives are wanted, in inputs or in the kernel's parameters."""
        watched = (*inputs, self.operator.inputs, *self.operator.kernel.parameters())
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in watched)

    def _between(self, inputs: Tensor, features: Tensor | None, rows: Tensor) -> Tensor:
        """Entries ``(C', M, m, n)`` between groups of inputs ``(..., M, m, D)`` and of training rows ``(M, n)``."""
        operator, form = self.operator, self.operator.form
        if features is not None and form is not None and self._features is not None:
            blocks = []
            for c in range(operator.num_kernels):
                blocks.append(form.of_kernel(c).evaluate(features[c], self._features[c][rows]))
            return torch.stack(blocks)
        others = operator.inputs[..., rows, :]
        return evaluate_groups(operator.kernel, inputs, others, operator.num_kernels)
