"""``LinearBelief``: what some actions say about the solution of ``(K + W^+) v = b``."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from itergp.numerics.blocks import apply_blocks
from itergp.numerics.cholesky import diagonal_lifts, tolerant_cholesky
from itergp.numerics.rounding import HALF_OF_A_UNIT, thresholds
from itergp.numerics.spectral import leading_eigenvectors, whitening
from itergp.operators import KernelOperator
from itergp.operators.kernel_blocks import multiply_rows
from itergp.persistence import DERIVED
from itergp.posterior.precision import LowRankPrecision, as_row_covariance, is_negative, multiply
from itergp.solvers.iterncgp.action_buffer import ActionBuffer, inner_product
from itergp.solvers.iterncgp.noise import Noise
from itergp.solvers.proposals import Proposal, values_and_rows

_LIFTS = (0.0, 1.0, 1e1, 1e2, 1e3, 1e4)  # of a diagonal, in units of rounding


@dataclass
class LinearBelief:
    """Belief about v given the actions of a buffer: ``v = C b`` with ``C = S (S^T (K + W^+) S)^{-1} S^T``.

    This is the posterior of IterGP (Wenger et al. 2022, algorithm 1): its recursion ``d = s - C z``, ``C += d d^T / eta``
    adds a row to the Cholesky factor of the small matrix. Only the small matrices are kept besides the buffer.

    Args:
        buffer: S and T; earlier actions in it are used from the start, at no kernel product (the "virtual solver run" of
            arXiv 2310.20285).
        noise: ``W^+``.
        right: b ``(N, C)``.
        reorthogonalise: Whether new actions are made orthogonal to the old ones, which changes rounding and not the result.

    Attributes:
        factor: Lower Cholesky factor of ``S^T (K + W^+) S`` ``(R, R)``, float64.
        white: ``factor^{-1} S^T b`` ``(R, 1)``.
        noise_gram: ``S^T W^+ S`` ``(R, R)``, float64.
    """

    buffer: ActionBuffer
    noise: Noise
    right: Tensor
    reorthogonalise: bool = True
    factor: Tensor = field(init=False)
    white: Tensor = field(init=False)
    noise_gram: Tensor = field(init=False)
    _residual: Tensor | None = field(init=False, default=None, repr=False, metadata=DERIVED)

    def __post_init__(self) -> None:
        """Conditions on what the buffer holds."""
        self.noise_gram = self.buffer.noise_gram(self.noise)
        self._solve()

    def _solve(self) -> None:
        self._residual = None
        self.factor = _cholesky(self.buffer.gram + self.noise_gram, self.right.dtype)
        self.white = _forward(self.factor, self.buffer.overlap(self.right))

    # -------------------------------------------------------------- what is known
    @property
    def rank(self) -> int:
        """Number of actions."""
        return self.buffer.rank

    def coefficients(self) -> Tensor:
        """Coefficients ``(R, 1)`` of v in S, float64."""
        return torch.linalg.solve_triangular(self.factor.mT, self.white, upper=True)

    def weights(self) -> Tensor:
        """``v = C b`` ``(N, C)``."""
        return self.buffer.combine(self.coefficients()).squeeze(-1)

    def latent(self) -> Tensor:
        """``K v`` ``(N, C)``, without a kernel product."""
        return self.buffer.combine_products(self.coefficients()).squeeze(-1)

    def residual(self) -> Tensor:
        """``b - (K + W^+) v`` ``(N, C)`` on the range of W, float64, without a kernel product."""
        if self._residual is None:
            rest = self.right.double()
            if self.rank:
                rest = rest - self.latent().double() - self.noise.apply(self.weights())
            self._residual = self.noise.project(rest)
        return self._residual

    def gradient(self) -> Tensor:
        """``W (b - (K + W^+) v)`` ``(N, C)``, in the data's dtype."""
        return apply_blocks(self.noise.curvature.double(), self.residual()).to(self.right)

    def variance(self, prior_variance: Tensor) -> Tensor:
        """``diag(K - K C K)`` ``(N, C)`` at the training inputs."""
        variance = prior_variance.clone()
        root = torch.linalg.solve_triangular(self.factor, torch.eye(self.rank).to(self.factor), upper=False).mT
        for rows, part in self.buffer.marginals(root):
            variance[rows] -= part.square().sum(-1)
        return variance.clamp_min(0.0)

    # -------------------------------------------------------------------- learning
    def observe(self, operator: KernelOperator, proposal: Proposal, room: int | None = None) -> int:
        """Conditions on new actions: one kernel pass, or only some kernel columns for a ``RowBlock``.

        Args:
            operator: K.
            proposal: Actions ``(N, C, k)``, or actions of a few rows.
            room: Most actions to add.

        Returns:
            How many independent actions were added.
        """
        values, rows = values_and_rows(proposal)
        if rows is not None:
            values = _unit(self.noise.project(values.to(self.right), rows))
            values = self.noise.project(_orthonormal(values), rows) if self.reorthogonalise else values
            block = self.right.new_zeros(*self.right.shape, values.shape[-1])
            block[rows] = values
            products = multiply_rows(operator, rows, values)
            return self.observe_known(block, products, room, rows)
        block = _unit(self.noise.project(values.to(self.right)))
        if self.reorthogonalise:
            block = self.noise.project(self._orthonormal(block, None)[0])
        block = block if room is None else block[..., :room]
        return self._append(block, multiply(operator, block)) if block.shape[-1] else 0

    def observe_known(
        self, block: Tensor, products: Tensor, room: int | None = None, rows: Tensor | None = None
    ) -> int:
        """Conditions on actions ``(N, C, k)`` in the range of W whose kernel products are known.

        Args:
            block: The actions.
            products: K times them.
            room: Most actions to add.
            rows: Where the actions are not zero; None for everywhere.
        """
        if self.reorthogonalise:
            if rows is not None and bool(self.buffer.overlap(block).any()):
                rows = self.buffer.with_rows(rows)
            block, mixed = self._orthonormal(block, products, rows is not None and block.shape[-1] > 1)
            assert mixed is not None
            block, products = self._consistent(block, mixed)
        block, products = (block, products) if room is None else (block[..., :room], products[..., :room])
        return self._append(block, products, rows) if block.shape[-1] else 0

    def _orthonormal(self, block: Tensor, products: Tensor | None, known: bool = False) -> tuple[Tensor, Tensor | None]:
        """Unit columns orthogonal to S and each other, dependent ones left out; Gram-Schmidt, twice.

        ``known`` says that the columns are orthonormal among themselves.
        """
        floor = thresholds(block.dtype).dependent_unit
        for _ in range(2):
            overlap = self.buffer.overlap(block)
            if known and not bool(overlap.any()):  # orthonormal already, and of other rows than all before
                return block, products
            block = block - self.buffer.combine(overlap)
            products = None if products is None else products - self.buffer.combine_products(overlap)
            mix = _orthonormal_mix(block, floor)
            block = block @ mix
            products = None if products is None else products @ mix
            floor = HALF_OF_A_UNIT
        return self._within_range(block, products)

    def _consistent(self, block: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
        """Columns whose products are those of a symmetric matrix.

        What is left of a nearly dependent action has the rounding of its whole product, many times as large as its own, and
        hands it on to the next. With such products a posterior would be too narrow.
        """
        if self.rank == 0 or block.shape[-1] == 0:
            return block, products
        apart = (self.buffer.overlap(products) - self.buffer.overlap_of_products(block)).abs().amax(0)
        own = inner_product(block, products).diagonal().abs()
        largest = torch.maximum(self.buffer.gram.diagonal().amax(), own)
        keep = apart <= thresholds(block.dtype).asymmetric_product * largest
        if bool(keep.all()):
            return block, products
        return block[..., keep], products[..., keep]

    def _within_range(self, block: Tensor, products: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Columns that are not rounding outside of the range of W, where noise is infinite and would count as none."""
        outside = (block - self.noise.project(block)).flatten(0, 1).double().norm(dim=0)
        keep = outside <= thresholds(block.dtype).dependent_unit ** 0.25
        if bool(keep.all()):
            return block, products
        return block[..., keep], None if products is None else products[..., keep]

    def _append(self, block: Tensor, products: Tensor, rows: Tensor | None = None) -> int:
        self._residual = None
        rank, width = self.rank, block.shape[-1]
        self.buffer.append(block, products, rows)
        noisy = self.noise.apply(block)
        old = slice(0, rank)
        side = self.buffer.overlap(noisy)[old]
        corner = inner_product(block, noisy, rows)
        grown = torch.cat([torch.cat([self.noise_gram, side], 1), torch.cat([side.mT, corner], 1)])
        self.noise_gram = 0.5 * (grown + grown.mT)
        system = self.buffer.gram + self.noise_gram
        below = _forward(self.factor, system[old, rank:])  # the recursion's z^T d = s^T Khat s - |below|^2
        scale = system[rank:, rank:].diagonal().max()
        last = _cholesky(system[rank:, rank:] - below.mT @ below, block.dtype, scale)
        empty = self.factor.new_zeros(rank, width)
        self.factor = torch.cat([torch.cat([self.factor, empty], 1), torch.cat([below.mT, last], 1)])
        projected = inner_product(block, self.right.unsqueeze(-1), rows)
        self.white = torch.cat([self.white, _forward(last, projected - below.mT @ self.white)])
        return width

    # ------------------------------------------------------------------ compression
    def compress(self, keep: int, how: str = "published") -> None:
        """Keeps the span of ``keep`` directions of S, in place, and no more memory.

        Args:
            keep: R.
            how: ``"published"``: the eigenvectors of ``S^T (K + W^+) S`` with the largest eigenvalues (arXiv 2310.20285):
                of all R-dimensional subspaces, the one with the largest trace, and the best approximation of that matrix
                in Frobenius norm. ``"informative"``: the directions with the largest signal-to-noise ratio, the
                eigenvectors of ``S^T K S`` relative to ``S^T W^+ S``: those that explain most prior variance.
        """
        if keep >= self.rank:
            return
        if how == "published":
            mix = leading_eigenvectors(self.buffer.gram + self.noise_gram, keep)
        else:
            root = self._noise_root()
            leading = leading_eigenvectors(root.mT @ self.buffer.gram @ root, min(keep, root.shape[-1]))
            mix = torch.linalg.qr(root @ leading).Q  # stays orthonormal if S was
        self.buffer.replace(mix)
        gram = mix.mT @ self.noise_gram @ mix
        self.noise_gram = 0.5 * (gram + gram.mT)
        self._solve()

    def _noise_root(self) -> Tensor:
        """Mixing of S to unit noise; directions that are rounding are dropped, which can only widen a posterior."""
        floor = thresholds(self.noise_gram.dtype).dependent_noise
        return whitening(self.noise_gram, floor, relative=True, scaled=True)

    # ------------------------------------------------------------------------ result
    def precision(self) -> tuple[LowRankPrecision, Tensor]:
        """C as the posterior's precision, and the mixing ``(R, r)`` of S that gives its actions."""
        mix = self._noise_root()
        gram = mix.mT @ self.buffer.gram @ mix
        actions = self.buffer.combine(mix)
        return LowRankPrecision.from_gram(actions, 0.5 * (gram + gram.mT)), mix

    def marginal_covariance(self, precision: LowRankPrecision, mix: Tensor, prior: Tensor) -> Tensor:
        """Covariances between the latent functions of each row ``(N, C, C)``, chunk by chunk.

        Args:
            precision: C.
            mix: Mixing of S that gives its actions.
            prior: Variances ``(N, C)``, or covariances ``(N, C, C)``.

        Raises:
            LinAlgError: If one is negative by more than rounding.
        """
        covariance = as_row_covariance(prior).clone()
        eye = torch.eye(precision.rank).to(precision.factor)
        root = mix @ torch.linalg.solve_triangular(precision.factor, eye, upper=False).mT
        for rows, part in self.buffer.marginals(root):
            if is_negative(prior[rows], part):
                raise torch.linalg.LinAlgError("a posterior variance is negative")
            covariance[rows] -= torch.bmm(part, part.mT)
        diagonal = covariance.diagonal(dim1=-2, dim2=-1)
        diagonal.copy_(diagonal.clamp_min(0.0))
        return covariance


def _unit(block: Tensor) -> Tensor:
    """Columns of unit length; zero columns are left out."""
    norms = block.flatten(0, 1).double().norm(dim=0)
    keep = norms > 0.0
    return block[..., keep] / norms[keep].to(block)


def _orthonormal_mix(block: Tensor, floor: float) -> Tensor:
    """Mixing that makes columns orthonormal; those whose squared length is below the floor are left out."""
    flat = block.flatten(0, 1).double()
    return whitening(flat.mT @ flat, floor).to(block)


def _orthonormal(block: Tensor) -> Tensor:
    """Columns made orthonormal, dependent ones left out; in two rounds, as in ``LinearBelief``."""
    for floor in (thresholds(block.dtype).dependent_unit, HALF_OF_A_UNIT) if block.shape[-1] > 1 else ():
        block = block @ _orthonormal_mix(block, floor)
    return block


def _forward(factor: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, right, upper=False)


def _cholesky(matrix: Tensor, dtype: torch.dtype, scale: Tensor | None = None) -> Tensor:
    """Cholesky factor; the diagonal is raised by the products' rounding where needed, which can only widen a posterior."""
    if matrix.shape[0] == 0:
        return matrix
    rounding = torch.finfo(dtype).eps * (matrix.diagonal().max() if scale is None else scale)
    # Where none has a factor, the driver says what the error means.
    return tolerant_cholesky(diagonal_lifts(matrix, rounding, _LIFTS))[1]
