"""Kernel entries per second of products: the package's own evaluation beside GPyTorch's of a kernel by ``torch.cdist``.

python -m benchmarks.kernel_speed --rows 3000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from gpytorch.kernels import Kernel, MaternKernel
from torch import Tensor

from itergp.kernels import AdditiveLaplacianKernel, CategoricalKernel, LaplacianKernel
from itergp.operators import BlockedOperator

COLUMNS = 8


class ByCdist(Kernel):
    """A Laplacian kernel as one would write it."""

    has_lengthscale = True

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Entries from ``torch.cdist``."""
        if diag:
            return torch.ones(x1.shape[:-1], dtype=x1.dtype)
        return torch.exp(-torch.cdist(x1 / self.lengthscale, x2 / self.lengthscale, p=1))


def rate(work: Callable[[], object], entries: int) -> str:
    """Millions of entries per second of one core, the fastest of three, whatever else the machine does."""
    seconds = []
    for _ in range(3):
        begun = time.process_time()
        work()
        seconds.append(time.process_time() - begun)
    return f"{entries / min(seconds) / 1e6:8.0f}"


def measure(name: str, kernel: Kernel, x: Tensor, *, dense: bool = False) -> None:
    """Prints the rates of a product, and of one with its derivatives in the hyperparameters."""
    kernel, block, size = kernel.to(x.dtype), torch.randn(len(x), COLUMNS, dtype=x.dtype), len(x) ** 2
    operator = BlockedOperator(kernel, x)

    def product() -> Tensor:
        return kernel(x).to_dense() @ block if dense else operator.matmul(block)

    def plain() -> None:
        with torch.no_grad():
            product()

    def derivatives() -> None:
        kernel.zero_grad()
        product().square().sum().backward()

    print(
        f"{name:28s} D = {x.shape[1]:2d} {str(x.dtype)[6:]} {rate(plain, size)} {rate(derivatives, size)}", flush=True
    )


def main() -> None:
    """Kernels by columns and dtype."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3000)
    rows = parser.parse_args().rows
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("millions of entries per second: product, product with derivatives")
    for dtype in (torch.float32, torch.float64):
        for size in (2, 8, 20):
            x, half = torch.randn(rows, size, dtype=dtype), size // 2
            codes = torch.cat([x[:, :half], torch.randint(0, 30, (rows, size - half)).to(dtype)], -1)
            first, second = list(range(half)), list(range(half, size))
            mixed = LaplacianKernel(ard_num_dims=half, active_dims=first) * CategoricalKernel(
                len(second), active_dims=second
            )
            measure("GPyTorch, torch.cdist", ByCdist(ard_num_dims=size), x, dense=True)
            measure("Laplacian", LaplacianKernel(ard_num_dims=size), x)
            measure("Laplacian, one lengthscale", LaplacianKernel(), x)
            measure("additive Laplacian", AdditiveLaplacianKernel(size), x)
            measure("Laplacian times categories", mixed, codes)
            measure("Matern-3/2", MaternKernel(nu=1.5, ard_num_dims=size), x)
            measure(
                "Matern-1/2 + Matern-5/2",
                MaternKernel(nu=0.5, ard_num_dims=size) + MaternKernel(nu=2.5, ard_num_dims=size),
                x,
            )


if __name__ == "__main__":
    main()
