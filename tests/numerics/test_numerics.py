"""Small algebra that the rest is built of: orthonormal mixings, Cholesky factors, line searches, what counts as rounding."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from helpers import assert_close

from itergp.errors import InputError
from itergp.numerics import spectral
from itergp.numerics.cholesky import diagonal_lifts, first_cholesky, tolerant_cholesky, try_cholesky
from itergp.numerics.line_search import backtrack, backtrack_each
from itergp.numerics.rounding import thresholds
from itergp.numerics.spectral import leading_eigenvectors, whitening


def random_gram(size: int, rank: int, *batch: int) -> torch.Tensor:
    """Positive semi-definite ``(*batch, size, size)`` of a rank."""
    root = torch.randn(*batch, size, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return root @ root.mT


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("rank", [1, 4, 6])
def test_whitening_makes_orthonormal_and_leaves_out_what_is_dependent(rank, scaled):
    gram = random_gram(6, rank)
    mix = whitening(gram, 1e-10, relative=True, scaled=scaled)
    assert mix.shape == (6, rank)
    assert_close(mix.mT @ gram @ mix, torch.eye(rank, dtype=torch.float64), "product")
    assert whitening(0.0 * gram, 1e-10, relative=True, scaled=scaled).shape == (6, 0)


def test_scaling_serves_columns_of_every_length():
    lengths = torch.logspace(-8, 0, 5, dtype=torch.float64)
    gram = torch.diag(lengths.square())
    assert whitening(gram, 1e-10, relative=True, scaled=True).shape == (5, 5)
    assert whitening(gram, 1e-10, relative=True).shape == (5, 3)  # squared lengths 1, 1e-4 and 1e-8


def test_whitening_of_a_batch_pads_with_zero_columns_first():
    gram = torch.stack([random_gram(5, 2), random_gram(5, 4)])
    mix = whitening(gram, torch.tensor([[1e-8], [1e-8]], dtype=torch.float64))
    assert mix.shape == (2, 5, 4)
    assert not bool(mix[0, :, :2].any())
    assert_close(mix[0, :, 2:].mT @ gram[0] @ mix[0, :, 2:], torch.eye(2, dtype=torch.float64), "product")
    assert_close(mix[1].mT @ gram[1] @ mix[1], torch.eye(4, dtype=torch.float64), "product")
    assert whitening(gram[:, :0, :0], 1e-8).shape == (2, 0, 0)


def test_leading_eigenvectors_are_those_of_the_largest_eigenvalues():
    gram = random_gram(6, 6)
    vectors = leading_eigenvectors(gram, 2)
    values = torch.linalg.eigvalsh(gram)
    assert_close(gram @ vectors, vectors * values[-2:], "product")
    assert torch.equal(leading_eigenvectors(gram, 2, descending=True), vectors.flip(-1))
    assert leading_eigenvectors(gram, 0).shape == (6, 0)


def test_few_of_many_eigenvectors_are_found_without_the_others(monkeypatch):
    """In float32 too; all are asked for where many are wanted, of a batch, or of what is not finite."""
    every, asked = torch.linalg.eigh, []
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: asked.append(matrix) or every(matrix))
    for dtype in (torch.float32, torch.float64):
        gram = random_gram(400, 400).to(dtype)
        vectors = leading_eigenvectors(gram, 5, descending=True)
        values = every(gram)[0][-5:].flip(-1)
        assert not asked
        assert vectors.dtype == dtype
        assert_close((gram @ vectors).double() / values.double(), vectors.double(), "product", dtype=dtype)
    leading_eigenvectors(gram, 300)
    leading_eigenvectors(gram.expand(2, -1, -1), 5)
    with contextlib.suppress(torch.linalg.LinAlgError):
        leading_eigenvectors(gram * torch.nan, 5)
    assert len(asked) == 3


def test_lifting_raises_small_eigenvalues_only():
    matrix = torch.diag(torch.tensor([-1.0, 0.01, 10.0], dtype=torch.float64))
    assert_close(spectral.lifted(matrix, 0.1).diagonal(), torch.tensor([1.0, 1.0, 10.0]).double(), "product")
    assert_close(spectral.absolute(matrix).diagonal(), matrix.diagonal().abs(), "product")


def test_the_first_matrix_with_a_factor_is_taken_and_no_later_one_is_made():
    made = []

    def candidates():
        for matrix in diagonal_lifts(torch.diag(torch.tensor([-2.0, 1.0])), torch.tensor(1.0), (0.0, 1.0, 3.0, 9.0)):
            made.append(matrix)
            yield matrix

    matrix, factor = tolerant_cholesky(candidates())
    assert torch.equal(matrix, torch.diag(torch.tensor([1.0, 4.0])))
    assert torch.equal(factor, torch.diag(torch.tensor([1.0, 2.0])))
    assert len(made) == 3


def test_a_shift_is_factorised_but_not_returned():
    matrix, factor = tolerant_cholesky([torch.diag(torch.tensor([-0.75, 3.0]))], shift=1.0)
    assert torch.equal(matrix, torch.diag(torch.tensor([-0.75, 3.0])))
    assert torch.equal(factor, torch.diag(torch.tensor([0.5, 2.0])))


def test_what_has_no_factor_is_said_or_raised():
    bad = -torch.eye(2)
    assert first_cholesky([bad])[1] is None
    with pytest.raises(torch.linalg.LinAlgError, match="positive-definite"):
        tolerant_cholesky([bad])
    assert try_cholesky(torch.stack([bad, torch.eye(2)]))[1].tolist() == [True, False]


@pytest.mark.parametrize(("curvature", "length"), [(0.5, 1.0), (3.0, 0.5), (30.0, 0.0625)])
def test_a_search_halves_until_the_decrease_suffices(curvature, length):
    found = backtrack(lambda a: -a + 0.5 * curvature * a * a, 0.0, -1.0, halvings=30)
    assert found == (length, pytest.approx(-length + 0.5 * curvature * length**2))


def test_a_search_against_noise_ends_where_the_objective_resolves_no_more():
    assert backtrack(lambda _: 1e-9, 0.0, -1e-10, halvings=30, resolution=1e-8) == (1.0, 1e-9)
    trials = []
    assert backtrack(lambda a: trials.append(a) or 1.0, 0.0, -1.0, halvings=30, resolution=0.2) is None
    assert trials == [1.0, 0.5, 0.25, 0.125]
    assert backtrack(lambda _: math.nan, 0.0, -1.0, halvings=3) is None


def test_searches_at_once_are_searches_one_by_one():
    start, slope = torch.zeros(3, dtype=torch.float64), -torch.ones(3, dtype=torch.float64)
    curvature = torch.tensor([0.5, 3.0, 1e9], dtype=torch.float64)
    lengths, values = backtrack_each(lambda a: -a + 0.5 * curvature * a * a, start, slope, halvings=5)
    assert lengths.tolist() == [1.0, 0.5, 0.0]
    assert values.tolist() == [-0.75, -0.125, 0.0]


def test_other_dtypes_have_no_thresholds():
    assert thresholds(torch.float32).new_direction > thresholds(torch.float64).new_direction
    with pytest.raises(InputError, match=r"must be torch.float32 or torch.float64. Got torch.float16"):
        thresholds(torch.float16)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_eigenvalues_that_divide_and_conquer_does_not_find(monkeypatch, shape):
    root = torch.randn(*shape, 6, 6, dtype=torch.float64)
    matrix = root @ root.mT
    expected = torch.linalg.eigvalsh(matrix)

    def fails(_):
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    values, vectors = spectral.eigh(matrix)
    assert_close(values, expected, "derivative")
    assert_close(vectors * values.unsqueeze(-2) @ vectors.mT, matrix, "derivative")
    with pytest.raises(torch.linalg.LinAlgError, match="failed to converge"):
        spectral.eigh(matrix * torch.nan)
