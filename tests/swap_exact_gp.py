"""A plugin of pytest: GPyTorch's tests get our model where they ask for ``ExactGP``."""

from __future__ import annotations

import gpytorch

import itergp

gpytorch.models.ExactGP = itergp.models.NonConjugateGP
