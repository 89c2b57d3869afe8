"""Random models, all of them compared with dense algebra: right, refused with a message, or honestly not converged.

``RANDOM_MODELS=10000`` draws so many, and others with every ``RANDOM_SEED``.
"""

from __future__ import annotations

import os

import pytest
from dense_reference import check
from hypothesis import HealthCheck, Phase, given, seed, settings
from random_models import Spec, specs

_COUNT, _SEED = int(os.environ.get("RANDOM_MODELS", "0")), int(os.environ.get("RANDOM_SEED", "0"))

# Models that were once answered wrongly, by what was wrong.
KNOWN = {
    "as many new rows as columns of a term": Spec(
        ("product", ("matern 1.5", (0, 2, 4, 1, 3), False), ("additive", None, True)),
        forward="weighted sum",
        rows=6,
        new=5,
        columns=5,
        solver="subspace",
    ),
    "a batch of kernels with the variances of a product structure": Spec(
        ("sum", ("rq", None, True), ("sum", ("newton girard", None, True), ("product structure", (2,), False))),
        rows=20,
        new=2,
        columns=3,
        likelihood="categorical",
        batch=True,
        solver="subspace",
    ),
    "several functions with a covariance evaluated whole": Spec(
        ("product", ("additive", None, False), ("grid", (0,), False)),
        forward="product of matrices",
        rows=9,
        new=4,
        columns=3,
        likelihood="gl softmax",
        solver="subspace tight",
    ),
    "a certificate where rows repeat and the kernel has a kink": Spec(
        ("sum", ("piecewise 0", None, False), ("piecewise 0", None, False)),
        forward="weighted sum",
        rows=25,
        columns=3,
        inputs="grid",
        likelihood="weibull",
        mean="linear",
        solver="subspace",
        spread=0.0,
        seed=3,
    ),
    "columns of a kernel of inducing points": Spec(
        ("scale", ("inducing", (3, 4, 0, 1, 2), True)),
        rows=33,
        columns=5,
        inputs="duplicates",
        likelihood="gl gaussian",
        solver="linear time small",
        level=1.0,
        spread=1.0,
        seed=19675,
    ),
    "single rows of a kernel of inducing points": Spec(
        ("scale", ("inducing", (0, 1), False)),
        rows=23,
        new=4,
        likelihood="bernoulli-logit",
        mean="linear",
        solver="iterncgp rows",
        level=1000.0,
        seed=208,
    ),
    "recycled actions of rows that fell silent": Spec(
        ("product", ("polynomial 3", (1, 0), False), ("rq", (1,), False)),
        rows=25,
        inputs="categories",
        likelihood="gl laplace",
        mean="constant",
        weights="some zero",
        approximation="variational",
        solver="iterncgp",
        level=1.0,
        seed=1639,
    ),
    "actions of rows without curvature": Spec(
        ("sum", ("sum", ("rq", None, True), ("spectral mixture", None, True)), ("spectral mixture", None, True)),
        rows=19,
        new=2,
        columns=4,
        inputs="collinear",
        likelihood="poisson",
        mean="constant",
        weights="some zero",
        approximation="variational",
        solver="linear time polished",
        spread=1.0,
        seed=43938,
    ),
    "blocks of kernels of distances far from zero": Spec(
        ("product", ("product", ("grid", (0, 1), False), ("grid", (0, 4), False)), ("scale", ("cosine", (2,), False))),
        forward="weighted sum",
        rows=30,
        new=5,
        columns=5,
        inputs="far",
        dtype="float32",
        likelihood="gl bernoulli",
        mean="linear",
        weights="positive",
        missing=True,
        approximation="variational",
        solver="iterncgp rows",
        level=10.0,
        spread=0.0,
        seed=8899,
    ),
    "a batch of scaled index kernels": Spec(
        ("scale", ("index", None, False)),
        rows=31,
        new=4,
        inputs="categories",
        likelihood="categorical",
        mean="linear",
        batch=True,
        weights="positive",
        approximation="variational",
        solver="linear time",
        level=10.0,
        seed=952,
    ),
    "equal rows of a support": Spec(
        ("product", ("matern 1.5", None, True), ("matern 1.5", None, True)),
        rows=40,
        new=4,
        inputs="letters",
        likelihood="zero-inflated-poisson",
        weights="positive",
        solver="linear time",
        level=100.0,
        spread=2.0,
        seed=61137,
    ),
    "float32 inputs many lengthscales apart in a product": Spec(
        ("product", ("matern 1.5", None, True), ("rbf", None, True)),
        rows=40,
        new=4,
        inputs="wide",
        dtype="float32",
        likelihood="zero-inflated-poisson",
        weights="positive",
        solver="linear time",
        level=100.0,
        spread=2.0,
        seed=4,
    ),
    "rounds of an exponential whose mean moves more than its deviations": Spec(
        ("scale", ("matern 1.5", None, False)),
        forward="product of matrices",
        rows=8,
        new=1,
        columns=3,
        likelihood="poisson-exposure",
        mean="constant",
        weights="positive",
        missing=True,
        approximation="variational",
        solver="iterncgp gradient",
        level=100.0,
        seed=4299,
    ),
    "groups of rows of a kernel that takes their number for that of the columns": Spec(
        ("additive piecewise", None, False),
        rows=35,
        new=4,
        likelihood="bernoulli-probit",
        solver="subspace low rank",
        level=10.0,
        seed=11663,
    ),
    "an odd number of linear factors, evaluated": Spec(
        ("product", ("product linear", None, False), ("product linear", None, False)),
        forward="evaluated",
        rows=5,
        new=5,
        columns=3,
        likelihood="exponential",
        mean="constant",
        approximation="variational",
        solver="subspace kernel columns",
        level=1.0,
        spread=1.0,
        seed=18694,
    ),
}


def _fails(outcome: str) -> bool:
    return outcome.startswith("no reference")  # which the generator should not make


@pytest.mark.parametrize("spec", KNOWN.values(), ids=KNOWN)
def test_what_was_once_wrong_is_right(spec):
    assert not _fails(check(spec))


def _settings(count: int, *, derandomize: bool) -> settings:
    checks = list(HealthCheck)
    return settings(max_examples=count, derandomize=derandomize, suppress_health_check=checks, deadline=None)


@_settings(200, derandomize=True)
@given(specs())
def test_a_random_model_is_right_or_says_why_not(spec):
    assert not _fails(check(spec))


@pytest.mark.skipif(_COUNT == 0, reason="set RANDOM_MODELS to a number of models")
def test_many_random_models():
    wrong = []

    @seed(_SEED)
    @settings(_settings(max(1, _COUNT), derandomize=False), phases=[Phase.generate], database=None)
    @given(specs())
    def draw(spec: Spec) -> None:
        try:
            check(spec)
        except AssertionError as error:  # all kinds of faults are wanted, not the smallest of the first
            wrong.append(f"{error}\n    {spec}")

    draw()
    assert not wrong, "\n".join(wrong)
