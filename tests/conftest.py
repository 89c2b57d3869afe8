"""Fixtures and settings of the whole suite."""

from __future__ import annotations

import pytest
import torch
from helpers import DTYPES
from hypothesis import HealthCheck, settings

torch.set_warn_always(True)  # warnings are errors, and must not depend on which test comes first

settings.register_profile(
    "itergp",
    deadline=None,
    max_examples=30,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the seed need not be set for every example
)
settings.load_profile("itergp")


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seeds torch before every test."""
    torch.manual_seed(0)
    return 0


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Runs a test in float32 and in float64."""
    return request.param
