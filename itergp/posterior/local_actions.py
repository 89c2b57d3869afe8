"""Local actions: what a low rank cannot resolve, the rows near an input can.

With the curvature ``W = H H^T`` at the posterior mean, the exact posterior covariance is that of f given pseudo-observations
``z = H^T f + noise`` of all rows, the noise standard normal. Actions ``A = H Q`` condition on ``Q^T z`` alone. Local actions
condition an input on ``z_j`` of n rows near to it as well, on top of what ``Q^T z`` explains:

    S = I + H_J^T K_JJ H_J - u_J u_J^T,      e(x) = H_J^T k(J, x) - u_J w(x),      v(x) = k(x,x) - w(x)^T w(x) - e^T S^{-1} e,

where w(x) whitens ``A^T k(X, x)`` and u_j whitens the covariance of ``z_j`` with ``Q^T z``. Conditioning on part of the data
cannot give less variance than conditioning on all of it, so the result is never below the exact one, and never above that of
the global actions or of the local ones alone.

Each input thus has its own linear predictor ``q^T Q^T z + a(x)^T z_J(x)``. The joint covariance of several inputs is that of
the errors of these predictors: a covariance function, whose diagonal is v, and which exceeds the exact posterior covariance by
a positive semi-definite matrix, since of all linear predictors the exact posterior mean has the smallest error covariance.

Where processes divide the rows, each holds H and u of its own. What neighbours elsewhere need is fetched, for a few inputs at a
time: all processes then ask together, for the same inputs or each for its own rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from itergp.numerics.blocks import curvature_eigen
from itergp.numerics.cholesky import try_cholesky
from itergp.operators import KernelOperator, Near, Neighbourhoods, slices
from itergp.parallel import ALL_ROWS, RowPartition
from itergp.persistence.digest import digest
from itergp.posterior.precision import LowRankPrecision

_CHUNK_NUMBERS = 2**22  # in the arrays of a batch of neighbourhoods
_CHUNK_ROWS = 8192
_FETCHED_NUMBERS = 2**23  # at most so many of other processes' rows at once
# Rounding of pseudo-observations that global and local actions share, in units of the dtype: noise that is added to the local
# ones, so that it can only widen.
_ROUNDING = 32.0
_FUNCTIONALS = 2


@dataclass(frozen=True)
class LocalActions:
    """Pseudo-observations of single rows, as local actions need them.

    Attributes:
        root: The m leading columns of H ``(N, C, m)``: each is one functional ``z`` of its row.
        whitened: u ``(N, m, r)``: whitened covariances of these with the global actions' pseudo-observations.
        num_neighbours: Rows n that an input is conditioned on.
        partition: Which of the N rows are here, in ``root`` and ``whitened``.
    """

    root: Tensor
    whitened: Tensor
    num_neighbours: int
    partition: RowPartition = ALL_ROWS

    @classmethod
    def of(
        cls,
        precision: LowRankPrecision,
        products: Tensor,
        curvature: Tensor,
        num_neighbours: int,
        *,
        functionals: int,
        support: Tensor | None = None,
        partition: RowPartition = ALL_ROWS,
    ) -> LocalActions:
        """Local actions beside the global ones of a precision.

        Args:
            precision: Of the global actions.
            products: ``K A`` ``(N, C, r)``.
            curvature: W ``(N, C, C)``.
            num_neighbours: Rows n that an input is conditioned on.
            functionals: Most functionals m of one row: those about which the data say most.
            support: Rows that the precision's actions are kept on ``(M,)``; None for all.
            partition: Which of the N rows are here.
        """
        size, latents, rank = products.shape
        m = min(functionals, latents)
        root, whitened = curvature.new_empty(size, latents, m), products.new_empty(size, m, rank)
        where = torch.full((size,), -1, dtype=torch.int64, device=products.device)
        if support is None:
            where[:] = torch.arange(size, device=products.device)
        else:
            which, own = partition.local_indices(support)
            where[own] = torch.arange(support.numel(), device=products.device)[which]
        factor = precision.factor.to(products.dtype)
        for i in slices(size, _CHUNK_ROWS):
            values, vectors = curvature_eigen(curvature[i])
            values, vectors = values[:, -m:], vectors[:, :, -m:]
            root[i] = vectors * values.sqrt().unsqueeze(-2)
            covariance = torch.bmm(root[i].mT, products[i])
            own = (where[i] >= 0).nonzero().squeeze(-1)
            # Q at these functionals, from A = H Q; where the curvature vanishes, so do the actions.
            inverse = torch.where(values > 0.0, values, torch.inf).rsqrt()[own]
            covariance[own] += torch.bmm((vectors[own] * inverse.unsqueeze(-2)).mT, precision.actions[where[i][own]])
            flat = torch.linalg.solve_triangular(factor.mT, covariance.flatten(0, 1), upper=True, left=False)
            whitened[i] = flat.view(-1, m, rank)
        return cls(root, whitened, num_neighbours, partition)

    @property
    def functionals(self) -> int:
        """Functionals m of each row."""
        return self.root.shape[-1]

    @property
    def numbers_per_input(self) -> int:
        """Numbers that an input keeps between batches: its neighbours and their coefficients."""
        return self.num_neighbours * (1 + self.functionals * self.root.shape[1])

    @property
    def chunk_rows(self) -> int:
        """Own training rows whose neighbours are looked at together: in every process as many."""
        if not self.partition.sharded:
            return _CHUNK_ROWS
        numbers = self.num_neighbours * (self.root[0].numel() + self.whitened[0].numel())
        return max(1, min(_CHUNK_ROWS, _FETCHED_NUMBERS // (self.partition.num_processes * numbers)))

    @cached_property
    def _informative(self) -> Tensor:
        """Which of all rows something was observed about ``(N,)``; asked for by all processes together."""
        informative = self.root.square().sum((1, 2)) > 0.0
        return self.partition.gather(informative.to(torch.uint8)) > 0

    def neighbourhoods(self, operator: KernelOperator) -> Neighbourhoods:
        """The search for neighbours among rows about which something was observed; made once for an operator."""
        informative = self._informative
        key = ("neighbourhoods", informative.cpu().numpy().tobytes())
        if key not in operator.derived:
            candidates = None if bool(informative.all()) else informative.nonzero().squeeze(-1)
            operator.derived[key] = Neighbourhoods(operator, candidates)
        return operator.derived[key]

    def to(self, like: Tensor) -> LocalActions:
        """In the dtype and on the device of ``like``."""
        return replace(self, root=self.root.to(like), whitened=self.whitened.to(like))

    def at(self, hoods: Neighbourhoods, inputs: Tensor, whitened: Tensor) -> LocalPart:
        """What the neighbours of inputs say about them, beyond the global actions.

        Args:
            hoods: ``neighbourhoods(operator)``.
            inputs: Kernel inputs ``(M, D)`` or ``(C', M, D)``; the same in every process.
            whitened: w ``(M, C, r)`` there; derivatives in the inputs go through it and through the kernel.

        Raises:
            InputError: If ``inputs`` or their order differ between processes.
        """
        partition = self.partition
        if partition.sharded:
            partition.require_same("new inputs", {"inputs": digest(inputs)})
        near = hoods.near(inputs, self.num_neighbours)
        near = replace(near, rows=partition.broadcast(near.rows))  # rounding elsewhere could prefer others
        coefficients, reductions = [], []
        with partition.abort_together():
            for i in slices(whitened.shape[0], self._batch(near, whitened)):
                known = self._known(near.rows[i])
                factor, half = self._half(hoods, inputs[..., i, :], whitened[i], near.part(i), known)
                coefficients.append(torch.linalg.solve_triangular(factor.mT, half, upper=True))
                reductions.append(torch.bmm(half.mT, half))
        if not coefficients:
            width, latents = near.rows.shape[1] * self.functionals, whitened.shape[1]
            nothing = whitened.new_zeros(0, width, latents)
            return LocalPart(self, hoods, near.rows, nothing, whitened.new_zeros(0, latents, latents))
        return LocalPart(self, hoods, near.rows, torch.cat(coefficients), torch.cat(reductions))

    def reduction(self, hoods: Neighbourhoods, inputs: Tensor, whitened: Tensor, near: Near) -> Tensor:
        """What the neighbours take from the covariances of each input's latent functions ``(M, C, C)``.

        The inputs may differ between processes, which must all call this: ``chunk_rows`` of them are a good number.
        """
        latents = whitened.shape[1]
        total = whitened.new_empty(whitened.shape[0], latents, latents)
        known = self._known(near.rows, alike=False)
        for i in slices(whitened.shape[0], self._batch(near, whitened)):
            _, half = self._half(hoods, inputs[..., i, :], whitened[i], near.part(i), known)
            total[i] = torch.bmm(half.mT, half)
        return total

    def _batch(self, near: Near, whitened: Tensor) -> int:
        """Inputs whose working arrays stay in cache."""
        width = near.rows.shape[1] * self.functionals
        return max(1, _CHUNK_NUMBERS // max(1, width * (2 * width + whitened.shape[2] + 2 * whitened.shape[1])))

    @staticmethod
    def _half(
        hoods: Neighbourhoods, inputs: Tensor, whitened: Tensor, near: Near, of_rows: _OfRows
    ) -> tuple[Tensor, Tensor]:
        """The Cholesky factor L of S ``(b, n m, n m)``, and ``L^{-1} e`` ``(b, n m, C)``."""
        root, known = of_rows[near.rows]
        gram = _weigh(hoods.entries(near.rows) if near.entries is None else near.entries, root, root)
        noise = _noise(gram)
        gram.baddbmm_(known, known.mT, alpha=-1.0)
        gram.diagonal(dim1=-2, dim2=-1).add_(noise)
        entries = hoods.cross(inputs, near.rows) if near.cross is None else near.cross
        cross = torch.baddbmm(_cross(entries, root), known, whitened.mT, alpha=-1.0)
        factor, failed = try_cholesky(gram)
        if bool(failed.any()):  # rounding in what is nearly known already: say nothing more about it
            failed = failed[:, None, None]
            factor = torch.where(failed, torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device), factor)
            cross = torch.where(failed, 0.0, cross)
        return factor, torch.linalg.solve_triangular(factor, cross, upper=False)

    def _known(self, rows: Tensor, *, alike: bool = True) -> _OfRows:
        """H and u of rows anywhere, which all processes ask for: for the same rows or, unless ``alike``, each for its own."""
        partition = self.partition
        if not partition.sharded:
            return _OfRows(self.root, self.whitened)
        if alike:
            union = rows.unique()
        else:
            wanted = rows.new_zeros(partition.global_size(self.root.shape[0]), dtype=torch.uint8)
            wanted[rows.flatten()] = 1
            union = partition.all_reduce_max(wanted).nonzero().squeeze(-1)
        return _OfRows(partition.select(self.root, union), partition.select(self.whitened, union), union)


@dataclass(frozen=True)
class _OfRows:
    """H and u of some of all rows, in this process.

    Attributes:
        root: H ``(k, C, m)``.
        whitened: u ``(k, m, r)``.
        numbers: Of these rows among all ``(k,)``, ascending; None for all rows.
    """

    root: Tensor
    whitened: Tensor
    numbers: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """H ``(b, n, C, m)`` and u ``(b, n m, r)`` of groups of rows ``(b, n)``."""
        flat = rows.flatten() if self.numbers is None else torch.searchsorted(self.numbers, rows.flatten())
        root, whitened = self.root[flat], self.whitened[flat]
        return root.view(*rows.shape, *root.shape[1:]), whitened.view(rows.shape[0], -1, whitened.shape[-1])


@dataclass(frozen=True)
class LocalPart:
    """What local actions add at M inputs.

    Attributes:
        actions: The local actions.
        hoods: Where neighbours and kernel entries come from.
        rows: Neighbours ``(M, n)``.
        coefficients: Of the linear predictor, ``(M, n m, C)``.
        reduction: What the neighbours take from the covariances of each input's latent functions ``(M, C, C)``.
    """

    actions: LocalActions
    hoods: Neighbourhoods
    rows: Tensor
    coefficients: Tensor
    reduction: Tensor

    def part(self, i: slice) -> LocalPart:
        """That of some of the inputs."""
        return replace(self, rows=self.rows[i], coefficients=self.coefficients[i], reduction=self.reduction[i])

    def joint_reduction(self, inputs: Tensor, whitened: Tensor) -> Tensor:
        """What the neighbours take from the joint covariance ``(M C, M C)``, latent functions innermost; not a PSD matrix.

        Args:
            inputs: Kernel inputs ``(M, D)`` or ``(C', M, D)``.
            whitened: w ``(M, C, r)`` there.
        """
        return self.cross_reduction(self, inputs, inputs, whitened, whitened)

    def cross_reduction(
        self, other: LocalPart, inputs: Tensor, other_inputs: Tensor, whitened: Tensor, other_whitened: Tensor
    ) -> Tensor:
        """The same for the covariance with other inputs: ``(M C, P C)``."""
        union, place = torch.cat([self.rows.flatten(), other.rows.flatten()]).unique(return_inverse=True)
        mine, theirs = place.split([self.rows.numel(), other.rows.numel()])
        left, right = self._spread(mine, union.numel()), other._spread(theirs, union.numel())
        with self.actions.partition.abort_together():
            root, known = self.actions._known(union)[union.unsqueeze(0)]
        seen_left = self._seen(union, root, known[0], inputs, whitened)
        seen_right = other._seen(union, root, known[0], other_inputs, other_whitened)
        return left.mT @ seen_right + seen_left.mT @ right - left.mT @ self._gram_times(union, root, known[0], right)

    def _spread(self, place: Tensor, size: int) -> Tensor:
        """Coefficients on the union of all neighbours ``(u m, M C)``."""
        inputs, _, latents = self.coefficients.shape
        m = self.actions.functionals
        spread = self.coefficients.new_zeros(inputs, size, m, latents)
        index = place.view(inputs, -1)[:, :, None, None].expand(-1, -1, m, latents)
        spread = spread.scatter_add(1, index, self.coefficients.view(inputs, -1, m, latents))
        return spread.permute(1, 2, 0, 3).reshape(size * m, inputs * latents)

    def _seen(self, union: Tensor, root: Tensor, known: Tensor, inputs: Tensor, whitened: Tensor) -> Tensor:
        """``e(x)`` of all rows of the union ``(u m, M C)``, from their H ``(1, u, C, m)`` and u ``(u m, r)``."""
        size = whitened.shape[0]
        entries = self.hoods.cross(inputs, union.expand(size, -1))
        cross = _cross(entries, root.expand(size, *root.shape[1:]))  # (M, u m, C)
        return cross.permute(1, 0, 2).flatten(1) - known @ whitened.flatten(0, 1).mT

    def _gram_times(self, union: Tensor, root: Tensor, known: Tensor, block: Tensor) -> Tensor:
        """S of the union times a block ``(u m, k)``."""
        entries = self.hoods.operator.entries(union, union)
        gram = _weigh(entries.unsqueeze(1), root, root)
        return gram[0] @ block - known @ (known.mT @ block) + _noise(gram)[0].unsqueeze(-1) * block


def reduced(covariance: Tensor, reduction: Tensor) -> Tensor:
    """Row covariances ``(M, C, C)`` less what neighbours take from them; the diagonal is not negative."""
    left = covariance - reduction
    diagonal = left.diagonal(dim1=-2, dim2=-1)
    return left + torch.diag_embed(diagonal.clamp_min(0.0) - diagonal)


def functionals_of(num_latents: int) -> int:
    """Functionals of a neighbour that are worth their cost: the two about which the data say most."""
    return min(_FUNCTIONALS, num_latents)


def _noise(gram: Tensor) -> Tensor:
    """Variances of the pseudo-observations' noise ``(b, n m)``: 1, and what rounding takes from ``H^T K H``."""
    signal = gram.diagonal(dim1=-2, dim2=-1)
    return 1.0 + _ROUNDING * torch.finfo(gram.dtype).eps * (1.0 + signal)


def _weigh(entries: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``H_i^T K_ij H_j`` ``(b, n m, p m)`` from entries ``(C', b, n, p)`` and roots ``(b, n, C, m)``, ``(b, p, C, m)``."""
    kernels, latents = entries.shape[0], left.shape[2]
    b, n, _, m = left.shape
    p = right.shape[1]
    if latents == 1:
        return left[..., 0, 0].unsqueeze(-1) * entries[0] * right[..., 0, 0].unsqueeze(-2)
    total = None
    groups = [slice(None)] if kernels == 1 else [slice(c, c + 1) for c in range(latents)]
    for c, group in enumerate(groups):
        first = left[:, :, group].transpose(2, 3).reshape(b, n * m, -1)
        second = right[:, :, group].transpose(2, 3).reshape(b, p * m, -1)
        inner = torch.bmm(first, second.mT).view(b, n, m, p, m)
        weighed = inner * entries[min(c, kernels - 1)][:, :, None, :, None]
        total = weighed if total is None else total + weighed
    assert total is not None
    return total.reshape(b, n * m, p * m)


def _cross(entries: Tensor, root: Tensor) -> Tensor:
    """``H_j^T k(j, x)`` ``(b, n m, C)`` from entries ``(C', b, n)`` and roots ``(b, n, C, m)``."""
    latents = root.shape[2]
    values = entries.permute(1, 2, 0).expand(*entries.shape[1:], latents)  # (b, n, C)
    return (root.transpose(2, 3) * values.unsqueeze(2)).flatten(1, 2)
