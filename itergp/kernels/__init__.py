"""Kernels that GPyTorch does not have, as GPyTorch kernels: exponentials of L1 distances, categories, and tied lengthscales."""

from itergp.kernels.additive import AdditiveLaplacianKernel
from itergp.kernels.categorical import CategoricalKernel
from itergp.kernels.laplacian import LaplacianKernel
from itergp.kernels.ordered import OrderedCategoricalKernel
from itergp.kernels.pairs import PairwiseLaplacianKernel
from itergp.kernels.proposals import propose_pairs
from itergp.kernels.tied import TiedLaplacianKernel, TiedMaternKernel, TiedRBFKernel

__all__ = [
    "AdditiveLaplacianKernel",
    "CategoricalKernel",
    "LaplacianKernel",
    "OrderedCategoricalKernel",
    "PairwiseLaplacianKernel",
    "TiedLaplacianKernel",
    "TiedMaternKernel",
    "TiedRBFKernel",
    "propose_pairs",
]
