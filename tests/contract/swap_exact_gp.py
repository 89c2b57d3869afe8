"""A plugin of pytest: GPyTorch's tests get our model where they ask for ``ExactGP``."""

from __future__ import annotations

import gpytorch

import itergp


def pytest_configure() -> None:
    """Swaps the class where this is a plugin; an import, as of a collection of doctests, must not."""
    gpytorch.models.ExactGP = itergp.models.NonConjugateGP
