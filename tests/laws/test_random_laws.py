"""Two ways to the posterior of a random model give the same; ``tests/random_run.py --laws`` draws as many as are wanted."""

from __future__ import annotations

import warnings
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from random_laws import LAWS
from random_models import Spec, specs
from random_run import outcome_of_law, process_seconds

from itergp.solvers.run.budget import Budget


def _slow_seconds(budget: Budget) -> float:
    """By a clock so slow that no limit of time ends what takes longer on a busy machine."""
    return 0.25 * process_seconds(budget)


@pytest.mark.parametrize("law", LAWS)
def test_a_law_holds_for_random_models(law):
    outcomes = []

    @settings(max_examples=12, derandomize=True, suppress_health_check=list(HealthCheck), deadline=None)
    @given(specs())
    def hold(spec):
        outcomes.append(outcome_of_law(law, spec))

    with warnings.catch_warnings(), mock.patch.object(Budget, "seconds", _slow_seconds):
        warnings.simplefilter("ignore")
        hold()
    assert outcomes.count("right") > 0, outcomes  # and not all skipped or refused


def test_the_slope_of_what_looks_at_no_input_is_zero():
    spec = Spec(
        ("constant", None, False), rows=5, new=5, likelihood="ordinal-logit", mean="constant", level=10.0, seed=917
    )
    assert outcome_of_law("sloping", spec) == "right"
