"""A weighted sum of exponential kernels of chosen pairs of inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from gpytorch.kernels import Kernel

from itergp.errors import InputError
from itergp.kernels.sum_of_laplacians import SumOfLaplacians


class PairwiseLaplacianKernel(SumOfLaplacians):
    r"""``k(x, x') = sum_p w_p exp(-|x_a - x'_a| / l_p - |x_b - x'_b| / m_p)`` over pairs ``(a, b)`` of inputs.

    Functions of two inputs, added up: beside an ``AdditiveLaplacianKernel``, the interactions that it has none of. The weights
    are positive and sum to one, so that the variance of a ``ScaleKernel`` around it is the prior variance.

    The derivative in an input is taken as zero where two rows have the same value of it, at which the kernel has a kink.

    Args:
        pairs: The pairs, each of two numbers of columns of the inputs; a column may be in several.
        batch_shape: Of a batch of kernels.
        lengthscale_prior: Prior over the lengthscales.
        lengthscale_constraint: Default positive.

    Attributes:
        pairs: As given.
        lengthscale: ``(*batch_shape, 1, 2 P)``, in units of the inputs: those of the first pair, of the second, and so on.

    Raises:
        InputError: If a pair is not two different numbers of columns, there are none, one is there twice, or ``active_dims`` is
            given.

    Examples:
        >>> kernel = PairwiseLaplacianKernel([(0, 3), (1, 2)])
        >>> kernel.lengthscale.shape, kernel.weights.shape
        (torch.Size([1, 4]), torch.Size([2]))
    """

    columns_of_term = 2

    def __init__(self, pairs: Sequence[tuple[int, int]], **options: Any) -> None:
        found = tuple(tuple(int(column) for column in pair) for pair in pairs)
        wrong = [p for p in found if len(set(p)) != 2 or len(p) != 2 or min(p) < 0]
        extra = " and active_dims" if options.get("active_dims") is not None else ""
        if not found or wrong or extra or len({frozenset(pair) for pair in found}) < len(found):
            raise InputError(
                "`pairs` must hold different pairs of two different columns, 0 to D-1, in place of active_dims. Got "
                f"{list(pairs)}{extra}. For example [(0, 3), (1, 2)]."
            )
        options["active_dims"] = tuple(column for pair in found for column in pair)
        super().__init__(2 * len(found), **options)
        self.pairs = found

    def __getitem__(self, index: Any) -> PairwiseLaplacianKernel:
        """One kernel, or some, of a batch."""
        return self._with_all_columns(lambda kernel: Kernel.__getitem__(kernel, index))

    def expand_batch(self, *sizes: Any) -> PairwiseLaplacianKernel:
        """The kernel, or a batch of kernels, as a larger batch."""
        return self._with_all_columns(lambda kernel: Kernel.expand_batch(kernel, *sizes))

    def _with_all_columns(self, change: Callable[[Kernel], Kernel]) -> PairwiseLaplacianKernel:
        """What GPyTorch makes of the batch of parameters, which takes active_dims for one of them."""
        plain = copy.deepcopy(self)
        plain.active_dims = None
        changed = change(plain)
        changed.active_dims = self.active_dims
        return changed
