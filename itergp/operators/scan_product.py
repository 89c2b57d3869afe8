"""Products by scans that have derivatives: the adjoint of a scan is a scan, and so are its derivatives in rates and inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from itergp.operators.scans import ExponentialPolynomial, Interpolation, Scan, SortedColumn, chunked


class Lines:
    """T columns of inputs, sorted when that is first needed.

    Args:
        values: ``(T, n)``.
        columns: The same columns, if they are sorted already.
    """

    def __init__(self, values: Tensor, columns: Sequence[SortedColumn] | None = None) -> None:
        self.values = values.detach()
        self._columns = columns

    @property
    def columns(self) -> Sequence[SortedColumn]:
        """Sorted."""
        if self._columns is None:
            self._columns = [SortedColumn(column) for column in self.values]
        return self._columns


def scan_product(
    rows: Tensor, cols: Tensor, rates: Tensor, block: Tensor, profile: ExponentialPolynomial, lines: tuple[Lines, Lines]
) -> Tensor:
    """``sum_j f(rate_t |x_i - y_j|) v_j`` for each of T columns of inputs, differentiable in every tensor, any number of times.

    Time and memory are linear: ``O(T k (M + N))``. Nothing but the arguments is stored for the backward pass.

    Args:
        rows: x ``(T, M)``.
        cols: y ``(T, N)``.
        rates: What distances are multiplied by ``(T,)``.
        block: v ``(T, k, N)``.
        profile: f.
        lines: ``rows`` and ``cols`` as columns to sort; one object where they are the same inputs.

    Returns:
        ``(T, k, M)``.
    """
    return _ScanProduct.apply(rows, cols, rates, block, (profile,), *lines)[0]


class _ScanProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        cols: Tensor,
        rates: Tensor,
        block: Tensor,
        functions: tuple[ExponentialPolynomial, ...],
        of_rows: Lines,
        of_cols: Lines,
    ) -> Tensor:
        ctx.save_for_backward(rows, cols, rates, block)
        ctx.functions, ctx.lines = functions, (of_rows, of_cols)
        return torch.stack(_products(of_rows, of_cols, rates, block, functions))

    @staticmethod
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, cols, rates, block = (tensor.view_as(tensor) for tensor in ctx.saved_tensors)
        of_rows, of_cols = ctx.lines
        of = dict(zip(("rows", "cols", "rates", "block"), ctx.needs_input_grad, strict=False))
        found: dict[str, Tensor] = {}

        def add(name: str, value: Tensor) -> None:
            found[name] = found[name] + value if name in found else value

        for function, grad in zip(ctx.functions, grads.unbind(0), strict=True):
            slope, sign = function.derivative(), -1.0 if function.odd else 1.0  # of x - y and of y - x
            if of["rates"] or of["block"]:
                wanted = (function, function.stretched()) if of["rates"] else (function,)
                back = _ScanProduct.apply(cols, rows, rates, grad, wanted, of_cols, of_rows)
                add("block", sign * back[0])
                if of["rates"]:
                    add("rates", sign * (back[1] * block).sum((1, 2), dtype=torch.float64).to(rates) / rates)
            if of["rows"]:
                moved = _ScanProduct.apply(rows, cols, rates, block, (slope,), of_rows, of_cols)[0]
                add("rows", rates[:, None] * (grad * moved).sum(1))
            if of["cols"]:
                moved = _ScanProduct.apply(cols, rows, rates, grad, (slope,), of_cols, of_rows)[0]
                add("cols", sign * rates[:, None] * (block * moved).sum(1))
        return (*(found.get(name) if needed else None for name, needed in of.items()), None, None, None)


def _products(
    of_rows: Lines, of_cols: Lines, rates: Tensor, block: Tensor, functions: Sequence[ExponentialPolynomial]
) -> list[Tensor]:
    """For each function ``(T, k, M)``."""
    columns = of_cols.columns
    scan = Scan.of(columns, rates, max(function.degree for function in functions))
    vectors = chunked(columns, list(block))
    if of_rows is of_cols and not any(function.odd for function in functions):
        products = scan.products(vectors, functions)
        return [torch.stack([c.restored(p) for c, p in zip(columns, part, strict=True)]) for part in products]
    before, after = scan.states(vectors)
    products = []
    for function in functions:
        points = zip(columns, of_rows.values, rates.detach().double(), strict=True)
        across = [Interpolation(column, x, rate, function) for column, x, rate in points]
        products.append(
            torch.stack([one([s[t] for s in before], [s[t] for s in after]) for t, one in enumerate(across)])
        )
    return products
