"""Actions as directions that all latent functions share, for solvers that search a common space."""

from __future__ import annotations

from torch import Tensor

from itergp.numerics.rounding import thresholds
from itergp.numerics.spectral import whitening
from itergp.parallel import ALL_ROWS, RowPartition
from itergp.solvers.proposals import Proposal, dense_block, values_and_rows
from itergp.solvers.subspace.search_space import SearchSpace


def shared_directions(
    proposal: Proposal, like: Tensor, rows: RowPartition = ALL_ROWS, space: SearchSpace | None = None
) -> Tensor:
    """The directions of a proposal: an orthonormal basis ``(N, k)`` of their span.

    Args:
        proposal: Actions ``(N, C, k)`` or of a few rows.
        like: Any tensor ``(N, C)``, for shape and dtype.
        rows: Which of the N rows are here.
        space: The space that they are to join; without it the columns of all latent functions are the directions.
    """
    _, few = values_and_rows(proposal)
    block = dense_block(proposal, like).to(like)
    block = block.flatten(1) if space is None else space.as_directions(block)
    block = block[:, rows.all_reduce_max(block.abs().amax(0)) > 0.0]
    if few is not None and block.shape[1] > block.shape[0]:
        block = block.unique(dim=1)
    overlapping = bool(block.shape[1]) and rows.all_reduce_any(int((block != 0.0).sum(1).max()) > 1)
    if block.shape[1] and not overlapping:  # clusters of rows: orthogonal, whatever their size
        return block / rows.all_reduce_sum(block.double().square().sum(0)).sqrt().to(block)
    # In float64: dependent columns are told from rounding.
    gram = rows.all_reduce_sum(block.double().mT @ block.double())
    mix = whitening(gram, thresholds(gram.dtype).dependent_column, relative=True)
    return block @ rows.broadcast(mix).to(block)


def holds(directions: Tensor, block: Tensor, rows: RowPartition = ALL_ROWS) -> bool:
    """Whether orthonormal directions ``(N, k)`` span a block ``(N, C)`` up to what ``shared_directions`` drops."""
    rest = block - directions @ rows.all_reduce_sum(directions.mT @ block)
    missed, whole = (rows.all_reduce_sum(float(part.double().square().sum())) for part in (rest, block))
    return missed <= 1e-8 * whole
