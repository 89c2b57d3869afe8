"""``FourierOperator``: radial kernels of one to three inputs, multiplied by way of a lattice of frequencies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from itergp.errors import InputError
from itergp.operators.base import KernelOperator
from itergp.operators.fourier_form import FourierForm, as_fourier_form
from itergp.operators.fourier_preconditioner import CoarseLattice, FourierPreconditioner
from itergp.operators.grid_rows import GridRows, largest_row_sum
from itergp.operators.lattice import Lattice
from itergp.operators.tiles import slices

# Errors of entries, as shares of the prior variance; less for more rows, whose errors add up in the certificate.
_TOLERANCE = {torch.float32: 5e-5, torch.float64: 5e-6}
_ROWS_OF_TOLERANCE, _SMALLEST_TOLERANCE = 20_000, 5e-7
# Signal-to-noise ratio of the frequencies left out: passes take care of them, and in a determinant they are each row's own.
_UNRESOLVED, _UNRESOLVED_OF_TRACE = 0.1, 0.01
_INFORMATION = 0.25  # of a row about its latent value, a label's at most
_MOST_RESOLVED = 300  # functions that the data say something about, for some two hundred actions to know them well
# The smallest tolerances that "auto" tries, one after another, where the certificate would see errors of products.
_FINEST, _COARSER = {torch.float32: 5e-7, torch.float64: 1e-9}, 4.0
_COLUMNS = 8  # that go to the grid and back together
_GRIDS = 4  # held at once, for every column
# Seconds of a core for a kernel entry: evaluated for its row and its column, or kept, and for every column multiplied.
_SECONDS_EVALUATED, _SECONDS_KEPT, _SECONDS_MULTIPLIED = 1.5e-9, 2.5e-10, 3e-11
_SHARE_HELD = 0.5  # of the memory budget
# Seconds of a product: of shorter ones, a posterior takes no more than a lattice takes to be designed.
_WORTH_DESIGNING = 0.015


class FourierOperator(KernelOperator):
    """The covariance of Matern-3/2, Matern-5/2 and squared exponential kernels, and sums of them, of one to three inputs.

    On a box beyond which nothing is correlated, such a kernel is a sum over a lattice of frequencies. Its product takes the
    rows' values to a regular grid, a fast Fourier transform there and back, and the grid's values to the rows:
    ``O(N + G log G)`` for each column, G the points of a grid that resolves the kernel, wherever the rows are. What is
    multiplied by is positive semi-definite. Its entries differ from the kernel's by at most ``entry_error``, the matrices by
    ``product_error`` in spectral norm: bounds, which are part of the certificate.

    Products across to new inputs beyond the box of the training inputs, and to few, are evaluated from kernel entries, as are
    products with derivatives. Entries, neighbours and kernel columns are exact.

    Args:
        kernel: A GPyTorch kernel that ``as_fourier_form`` recognises.
        inputs: Training inputs ``(N, D)``, or ``(C, N, D)`` when each kernel has its own.
        num_kernels: ``C'``, 1 for a shared kernel.
        memory_budget: Bytes; default a quarter of the free memory.
        tolerance: About the largest error of an entry, as a share of the prior variance; default 5e-5 in float32 and 5e-6 in
            float64, less beyond 20,000 rows.

    Raises:
        InputError: If the kernel is anything else, or not finite.
    """

    evaluates_matrix = False
    held = "windows and grids"

    def __init__(
        self,
        kernel: Kernel,
        inputs: Tensor,
        *,
        num_kernels: int = 1,
        memory_budget: int | None = None,
        tolerance: float | None = None,
    ) -> None:
        super().__init__(kernel, inputs, num_kernels=num_kernels, memory_budget=memory_budget)
        form = as_fourier_form(kernel, num_kernels, inputs.shape[-1])
        if form is None:
            raise InputError(
                "The Fourier operator needs a sum of Matern-3/2, Matern-5/2 and squared exponential kernels of the same one to "
                f"three input columns. Got {type(kernel).__name__}, which is, or has, something else. Use operator='auto'."
            )
        if not _is_finite(form, inputs):
            raise InputError(
                "The Fourier operator needs finite inputs and lengthscales, to know the box that they are in. Got NaN or "
                "infinity. Check the inputs and the kernel's hyperparameters."
            )
        self._fourier_form = form
        self.tolerance = _tolerance(inputs) if tolerance is None else tolerance
        self.lattice = _lattice(form, inputs, self.tolerance)

    @classmethod
    def where_it_pays(
        cls, kernel: Kernel, inputs: Tensor, num_kernels: int, budget: int, curvature: float
    ) -> FourierOperator | None:
        """The operator whose errors the certificate does not see, or None.

        None where a pass of some columns takes less time with blocks, or the kept matrix; where the grid does not fit; and
        where rows say so much that no grid is fine enough: counts of thousands, labels under a prior variance of hundreds.

        Args:
            kernel: Any GPyTorch kernel.
            inputs: ``(N, D)`` or ``(C, N, D)``.
            num_kernels: 1 for a shared kernel, otherwise C.
            budget: Bytes of memory.
            curvature: A bound on that of any row.
        """
        size, item = inputs.shape[-2], inputs.element_size()
        if size < LEAST_ROWS or math.isinf(curvature):
            return None
        form = as_fourier_form(kernel, num_kernels, inputs.shape[-1])
        if form is None or not _is_finite(form, inputs):
            return None
        kept = num_kernels * size**2 * item // 2 <= budget
        by_entries = size**2 * ((_SECONDS_KEPT if kept else _SECONDS_EVALUATED) + _COLUMNS * _SECONDS_MULTIPLIED)
        if by_entries < _WORTH_DESIGNING:
            return None
        tolerance, wanted = _tolerance(inputs), _unseen_error(size, curvature)
        while tolerance >= _FINEST.get(inputs.dtype, _FINEST[torch.float32]):
            found = cls(kernel, inputs, num_kernels=num_kernels, memory_budget=budget, tolerance=tolerance)
            if found.held_memory > _SHARE_HELD * budget or _COLUMNS * found.lattice.seconds(size) >= by_entries:
                return None
            if float(found.product_error.amax()) <= wanted:
                return found
            tolerance /= _COARSER
        return None

    def timing_sample(self, inputs: Tensor) -> FourierOperator:
        """The same once more: the time of the grid does not depend on the rows."""
        twin = FourierOperator(
            self.kernel,
            self.inputs,
            num_kernels=self.num_kernels,
            memory_budget=self.memory_budget,
            tolerance=self.tolerance,
        )
        twin.derived = self.derived
        return twin

    # ----------------------------------------------------------------- errors
    @property
    def entry_error(self) -> Tensor:
        """Bounds on the error of any entry of each kernel ``(C',)``."""
        return self._errors()[0]

    @property
    def product_error(self) -> Tensor:
        """Bounds on the spectral norms of the errors of each kernel's matrix ``(C',)``; see ``AbstractOperator``."""
        return self._errors()[1]

    def _errors(self) -> tuple[Tensor, Tensor]:
        if "fourier errors" not in self.derived:
            entry, product = [], []
            for c in range(self.num_kernels):
                own, quadratic = self.lattice.errors(c)
                entry.append(own)
                sums = largest_row_sum(self.lattice, self._points(self.inputs)[min(c, self._own_inputs - 1)], c)
                product.append(min(quadratic * sums + self.num_rows * self.lattice.image_error(c), self.num_rows * own))
            self.derived["fourier errors"] = tuple(torch.tensor(x, dtype=torch.float64) for x in (entry, product))
        return self.derived["fourier errors"]

    # --------------------------------------------------------------- products
    def _matmul(self, block: Tensor) -> Tensor:
        return self._through(block, self._rows())

    def _cross(self, inputs: Tensor, block: Tensor) -> Tensor:
        columns = block.shape[-1]
        by_entries = inputs.shape[-2] * self.num_rows * (2.0 * _SECONDS_EVALUATED + columns * _SECONDS_MULTIPLIED)
        few = by_entries < columns * self.lattice.seconds(self.num_rows)
        points = self._points(inputs)
        inside = self._inside(points)
        if few or not bool(inside.any()):
            return super()._cross(inputs, block)
        if not bool(inside.all()):
            out = block.new_empty(self.num_kernels, inputs.shape[-2], block.shape[-1])
            for rows in (inside, ~inside):
                out[:, rows] = self._cross(inputs[..., rows, :], block)
            return out
        return self._through(block, [GridRows(self.lattice, own, both_ways=False) for own in points])

    def _through(self, block: Tensor, targets: Sequence[GridRows]) -> Tensor:
        """``(C', M, k)`` at the rows of targets, one for all kernels or for each."""
        sources, multipliers = self._rows(), self._multipliers()
        vectors = block if block.dim() == 3 else block.unsqueeze(0)
        out = block.new_empty(self.num_kernels, targets[0].num_rows, block.shape[-1])
        most = _COLUMNS if self._many_rows else 1
        grids = block.new_empty(min(most, block.shape[-1]), *self.lattice.shape)
        for i in slices(block.shape[-1], most):
            halves: list[Tensor] = []
            for c, multiplier in enumerate(multipliers):
                if c == 0 or max(len(sources), len(vectors)) > 1:
                    sums = sources[min(c, len(sources) - 1)].sums(vectors[min(c, len(vectors) - 1)][:, i])
                    columns = grids[: sums.shape[-1]]
                    columns.copy_(sums.mT.view_as(columns))
                    # One column after another: a transform stays in the cache.
                    halves = [torch.fft.rfftn(column) for column in columns]
                for half, column in zip(halves, grids, strict=False):
                    torch.fft.irfftn(half * multiplier, s=self.lattice.shape, out=column)
                flat = grids[: len(halves)].flatten(1).mT
                out[c, :, i] = targets[min(c, len(targets) - 1)].at_rows(flat.contiguous())
        return out

    @property
    def _many_rows(self) -> bool:
        """Whether going to the grid and back takes long beside its transforms, so that columns had better do so together."""
        return _COLUMNS * self.num_rows > math.prod(self.lattice.shape)

    def _points(self, inputs: Tensor) -> Tensor:
        """Those columns of inputs that the kernel reads, ``(1, M, d)`` or ``(C', M, d)``."""
        return _active(inputs.detach(), self._fourier_form)

    def _inside(self, points: Tensor) -> Tensor:
        """Which rows are in the box of the training inputs, for every kernel ``(M,)``."""
        low = torch.from_numpy(self.lattice.low).to(points.device)
        high = torch.from_numpy(self.lattice.low + self.lattice.extent).to(points.device)
        return ((points.double() >= low) & (points.double() <= high)).all(-1).all(0)

    @property
    def _own_inputs(self) -> int:
        return self.num_kernels if self.inputs.dim() == 3 else 1

    def _rows(self) -> list[GridRows]:
        if "fourier rows" not in self.derived:
            self.derived["fourier rows"] = [GridRows(self.lattice, own) for own in self._points(self.inputs)]
        return self.derived["fourier rows"]

    def _multipliers(self) -> list[Tensor]:
        """What each frequency of a half transform is multiplied by, for every kernel."""
        if "fourier multipliers" not in self.derived:
            of_window = self.lattice.window_transform(self.lattice.shape) ** 2
            points = math.prod(self.lattice.shape)
            kept = self.lattice.kept()
            found = [points * kept * self.lattice.coefficients(c) / of_window for c in range(self.num_kernels)]
            self.derived["fourier multipliers"] = [torch.from_numpy(own).to(self.inputs) for own in found]
        return self.derived["fourier multipliers"]

    @property
    def cross_overhead(self) -> int:
        """The training rows, which every product across goes through."""
        return self.num_rows

    @property
    def held_memory(self) -> int:
        """Bytes of the windows of all rows, and of the grids of a few columns."""
        lattice, item = self.lattice, self.inputs.element_size()
        grids = (_GRIDS * _COLUMNS + self.num_kernels) * math.prod(lattice.shape) * item
        return self._own_inputs * GridRows.memory_of(lattice, self.num_rows, item) + grids

    # --------------------------------------------------------- preconditioner
    def preconditioner(self, curvature: Tensor) -> FourierPreconditioner:
        """The same sum over few frequencies: as many as the data say much about, where these can be had."""
        return self._at_lowest_frequencies(curvature, _UNRESOLVED)

    def log_determinant(self, curvature: Tensor) -> float | None:
        """About ``log |I + W K|`` by random probes, where functions are too many for actions."""
        if self.actions_pay:
            return None
        return self._at_lowest_frequencies(curvature, _UNRESOLVED_OF_TRACE).log_determinant()

    def _at_lowest_frequencies(self, curvature: Tensor, unresolved: float) -> FourierPreconditioner:
        information = curvature.diagonal(dim1=-2, dim2=-1).sum(0).double().nan_to_num(posinf=math.inf)
        coarse = CoarseLattice.resolving(self.lattice, self.num_kernels, float(information.amax()), unresolved)
        return FourierPreconditioner(
            coarse, self._rows(), self._finer_rows(coarse.doubled), curvature, self.num_kernels
        )

    @property
    def actions_pay(self) -> bool:
        """Whether they outnumber what the data say something about: many, of inputs that are many lengthscales apart."""
        coarse = CoarseLattice.resolving(self.lattice, self.num_kernels, _INFORMATION * self.num_rows, 1.0)
        return coarse.resolved(self.num_kernels, _INFORMATION * self.num_rows) <= _MOST_RESOLVED

    def _finer_rows(self, lattice: Lattice) -> list[GridRows]:
        if lattice is self.lattice:
            return self._rows()
        if "finer fourier rows" not in self.derived:
            self.derived["finer fourier rows"] = [GridRows(lattice, own) for own in self._points(self.inputs)]
        return self.derived["finer fourier rows"]

    @property
    def preconditioner_memory(self) -> int:
        """Bytes of the largest coarse grid, for every kernel."""
        return CoarseLattice.memory_of(self.lattice, self.num_kernels)


# Rows from which a pass by a lattice can take less time than one with the matrix.
LEAST_ROWS = 4096


def _tolerance(inputs: Tensor) -> float:
    largest, usual = _TOLERANCE.get(inputs.dtype, _TOLERANCE[torch.float32]), _TOLERANCE[torch.float32]
    return min(largest, max(usual * _ROWS_OF_TOLERANCE / inputs.shape[-2], _SMALLEST_TOLERANCE))


def _unseen_error(num_rows: int, curvature: float) -> float:
    """Errors of products that add little to a certificate, where squared weights are a tenth of the most that they can be.

    What they add is about ``w (e |V|)^2 / 2`` for the mean curvature w, as long as ``e |V|``, by which latent values move, is
    small; see ``Problem.distance_of_products``.
    """
    largest = max(1.0, curvature)
    return min(0.03, 0.5 / math.sqrt(0.1 * num_rows)) / largest**1.5


def _is_finite(form: FourierForm, inputs: Tensor) -> bool:
    numbers = [values for term in form.terms for values in (term.rates, term.weights)]
    return bool(torch.isfinite(_active(inputs, form)).all()) and all(np.isfinite(own).all() for own in numbers)


def _active(inputs: Tensor, form: FourierForm) -> Tensor:
    inputs = inputs if inputs.dim() == 3 else inputs.unsqueeze(0)
    return inputs.index_select(-1, form.columns.to(inputs.device))


def _lattice(form: FourierForm, inputs: Tensor, tolerance: float) -> Lattice:
    """The lattice of a box that holds the training inputs of all kernels."""
    points = _active(inputs.detach(), form)
    low, high = (bound.double().cpu().numpy() for bound in (points.amin((0, 1)), points.amax((0, 1))))
    return Lattice.design(form.terms, np.asarray(low), np.asarray(high), points.shape[-2], tolerance)
