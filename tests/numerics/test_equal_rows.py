"""Equal rows of tables."""

from __future__ import annotations

import pytest
import torch

from itergp.numerics import DistinctRows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_kinds_are_those_of_unique(dtype):
    table = torch.randint(3, (500, 4), generator=torch.Generator().manual_seed(0)).to(dtype)
    found = DistinctRows.find([table])
    assert found.num_rows == 500
    assert found.num_distinct == len(table.unique(dim=0)) == len(table[found.first].unique(dim=0))
    assert torch.equal(table[found.first][found.index], table)
    assert bool((found.first.diff() > 0).all())
    # Each kind begins with its first row.
    assert torch.equal(found.index[found.first], torch.arange(found.num_distinct))
    assert bool((found.first[found.index] <= torch.arange(500)).all())


def test_tables_stand_side_by_side():
    first = torch.tensor([[0.0], [1.0], [0.0], [0.0]])
    second = torch.tensor([[1], [1], [1], [2]])
    assert DistinctRows.find([first, second]).index.tolist() == [0, 1, 0, 2]


def test_zero_has_no_sign_and_neighbouring_numbers_differ():
    one = torch.ones(1, dtype=torch.float64)
    next_to_it = torch.nextafter(one, 2 * one)
    table = torch.cat([0 * one, -0.0 * one, one, next_to_it, one]).unsqueeze(-1)
    assert DistinctRows.find([table]).index.tolist() == [0, 0, 1, 2, 1]


def test_few_repetitions_are_none():
    table = torch.arange(100.0).unsqueeze(-1)
    assert DistinctRows.find([table]) is None
    table[:9] = 0.0
    assert DistinctRows.find([table]) is None
    table[:11] = 0.0
    assert DistinctRows.find([table]).num_distinct == 90


def test_a_tenth_of_many_rows_is_found_in_pairs():
    """The hardest case for the sample that is looked at first: every repeated row has one equal."""
    size = 40_000
    table = torch.arange(float(size)).unsqueeze(-1)
    table[: size // 8] = table[size // 8 : size // 4]
    table = table[torch.randperm(size, generator=torch.Generator().manual_seed(1))]
    assert DistinctRows.find([table]).num_distinct == size - size // 8


def test_rows_of_one_key_that_differ_are_none(monkeypatch):
    monkeypatch.setattr("itergp.numerics.distinct_rows._keys", lambda columns: torch.zeros(4, dtype=torch.int64))
    assert DistinctRows.find([torch.arange(4.0).unsqueeze(-1)]) is None


def test_values_agree_where_equal_rows_have_equal_ones():
    found = DistinctRows.find([torch.tensor([[1.0], [2.0], [1.0]])])
    values = torch.tensor([[3.0], [4.0], [3.0]])
    assert found.agree(values)
    values[2] += 1e-3
    assert not found.agree(values)
    assert found.agree(values, 2e-3)
    assert not found.agree(torch.full((3, 1), torch.nan))
