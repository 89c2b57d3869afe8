"""The exact posterior covariance by dense matrices of size N C."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from itergp.numerics.cholesky import diagonal_lifts, first_cholesky, tolerant_cholesky
from itergp.posterior.precision import LowRankPrecision, is_negative, marginal_covariance

_LIFTS = (1.0, 1e2)  # of a diagonal, in units of rounding


def dense_posterior(kernel: Tensor, root: Tensor, prior: Tensor) -> tuple[LowRankPrecision, Tensor]:
    """The precision with every pseudo-observation ``H^T f + noise`` as an action, and the marginals at the training inputs.

    Args:
        kernel: K ``(C', N, N)``, or ``(1, N C, N C)`` where latent functions are coupled; float64.
        root: H ``(N, C, C)``, float64.
        prior: Variances ``(N, C)``, or covariances ``(N, C, C)``.

    Returns:
        The precision, and covariances ``(N, C, C)``, float64.

    Raises:
        LinAlgError: If a variance is negative by more than rounding.
    """
    size, latents = root.shape[:2]
    rows = torch.arange(size, device=root.device)
    actions = root.new_zeros(size, latents, size, latents)
    actions[rows, :, rows, :] = root
    actions = actions.reshape(size, latents, size * latents)
    joint, factor = first_cholesky(_lifted(kernel, root))
    gram = joint - torch.eye(joint.shape[0], dtype=joint.dtype, device=joint.device)
    # What is not positive is dropped.
    known = root.abs().amax(1).flatten() > 0.0  # an exact zero is a direction that the data say nothing about
    if not bool(known.all()):
        actions, gram = actions[..., known], gram[known][:, known]
        factor = None if factor is None else factor[known][:, known]
    exact = None if factor is None else LowRankPrecision(actions, gram, factor)
    precision = exact or LowRankPrecision.from_gram(actions, gram)
    products = kernel_columns(kernel, root)
    products = products if bool(known.all()) else products[..., known]
    whitened = precision.whiten(products)
    if is_negative(prior, whitened, prior.dtype):
        raise torch.linalg.LinAlgError("a posterior variance is negative")
    return precision, marginal_covariance(prior.double(), whitened)


def kernel_columns(kernel: Tensor, root: Tensor) -> Tensor:
    """``K H`` for the block-diagonal matrix of all rows' H: ``(N, C, N C)``."""
    size, latents = root.shape[:2]
    if couples(kernel, size):
        products = torch.einsum("nmd,mdb->nmb", kernel[0].view(size * latents, size, latents), root)
    else:
        products = kernel.expand(latents, -1, -1).movedim(0, 1).unsqueeze(-1) * root.movedim(0, 1)
    return products.reshape(size, latents, size * latents)


def couples(kernel: Tensor, num_rows: int) -> bool:
    """Whether a dense matrix is one of all latent values: ``(1, N C, N C)`` with C > 1."""
    return kernel.shape[-1] != num_rows


def apply_kernels(kernel: Tensor, block: Tensor) -> Tensor:
    """``K V`` for V ``(N, C)``."""
    if couples(kernel, block.shape[0]):
        return (kernel[0] @ block.reshape(-1)).view_as(block)
    if kernel.shape[0] == 1:
        return kernel[0] @ block
    return torch.bmm(kernel, block.mT.unsqueeze(-1)).squeeze(-1).mT


def factorise(kernel: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """``I + H^T K H`` ``(N C, N C)`` and its Cholesky factor.

    A singular K has eigenvalues below zero by rounding, which a large curvature makes large. Its diagonal is then
    lifted by as much: that shortens a Newton step, and widens a covariance.

    Args:
        kernel: K ``(C', N, N)``, float64.
        root: H ``(N, C, C)``, float64.

    Raises:
        LinAlgError: If K is indefinite by more than rounding.
    """
    return tolerant_cholesky(_lifted(kernel, root))


def _lifted(kernel: Tensor, root: Tensor) -> Iterator[Tensor]:
    """``I + H^T K H``, and with the diagonal of K lifted as far as rounding explains."""
    yield joint_matrix(kernel, root)
    rounding = torch.finfo(kernel.dtype).eps * kernel.shape[-1] * kernel.abs().amax()
    for lifted_kernel in diagonal_lifts(kernel, rounding, _LIFTS):
        yield joint_matrix(lifted_kernel, root)


def joint_matrix(kernel: Tensor, root: Tensor) -> Tensor:
    """``I + H^T K H`` ``(N C, N C)``, row-major."""
    size, latents = root.shape[:2]
    if couples(kernel, size):
        half = torch.bmm(root.mT, kernel[0].view(size, latents, -1)).view(-1, size, latents)
        inside = torch.einsum("imc,mcb->imb", half, root)
    elif kernel.shape[0] == 1:
        inside = torch.einsum("nca,mcb->namb", root, root) * kernel[0][:, None, :, None]
    else:
        inside = torch.einsum("cnm,nca,mcb->namb", kernel, root, root)
    joint = inside.reshape(size * latents, size * latents)
    joint.diagonal().add_(1.0)
    return joint
