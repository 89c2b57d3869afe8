"""Trees of medians: every point in its leaves, weights that add up and fade, columns with many equal values."""

from __future__ import annotations

import pytest
import torch
from helpers import make_inputs

from itergp.numerics.median_tree import MedianTree


def weights_of(tree: MedianTree, points: torch.Tensor) -> torch.Tensor:
    """Weights ``(L, M)`` of all leaves at points."""
    dense = torch.zeros(tree.num_leaves, points.shape[0], dtype=torch.float64)
    for own, (rows, weights) in zip(dense, tree.leaves(points), strict=True):
        own[rows] = weights
    return dense


def kinds(number: int) -> dict[str, torch.Tensor]:
    """Points that are hard to divide evenly, by name."""
    x = make_inputs(number, 3)
    return {
        "normal": x,
        "whole numbers": (3.0 * x).round(),
        "truth values": (x > 0.5).double(),
        "mostly zero": torch.where(x > 1.2, x, torch.zeros(())),
        "one column that is wide and rare": torch.cat([x, 1000.0 * (x[:, :1] > 2.0)], -1),
    }


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("name", kinds(1))
def test_leaves_are_small_and_their_weights_add_up(name, overlap):
    points = kinds(501)[name]
    tree = MedianTree.grow(points, 60, overlap)
    weights = weights_of(tree, points)
    assert tree.num_leaves > 1
    torch.testing.assert_close(weights.sum(0), torch.ones(501, dtype=torch.float64))
    for own in weights:
        inside = points[own > 0.0]
        assert 0 < inside.shape[0] <= 60 or bool((inside == inside[0]).all())
    anywhere = weights_of(tree, 3.0 * make_inputs(200, points.shape[1], seed=3))
    assert bool((anywhere >= 0.0).all())
    torch.testing.assert_close(anywhere.sum(0), torch.ones(200, dtype=torch.float64))


def test_overlap_is_the_share_of_rows_on_both_sides():
    points = make_inputs(1000, 1)
    for overlap in (0.0, 0.1, 0.4):
        weights = weights_of(MedianTree.grow(points, 999, overlap), points)
        assert weights.shape[0] == 2
        assert float(((weights > 0.0).sum(0) == 2).sum()) == pytest.approx(1000 * overlap, abs=2)


def test_the_column_that_varies_most_is_divided_first():
    points = make_inputs(400, 3) * torch.tensor([1.0, 5.0, 2.0])
    assert MedianTree.grow(points, 300, 0.1).columns[0] == 1
    rare = torch.cat([points, 1000.0 * (points[:, :1] > 2.5)], -1)  # which would leave nearly all together
    assert MedianTree.grow(rare, 300, 0.1).columns[0] == 1


def test_weights_have_a_continuous_slope():
    points = make_inputs(400, 2)
    tree = MedianTree.grow(points, 60, 0.2)
    line = torch.linspace(-3.0, 3.0, 60_001, dtype=torch.float64)
    weights = weights_of(tree, torch.stack([line, 0.3 * line + 0.1], -1))
    slopes = weights.diff(dim=1) / 1e-4
    assert float(slopes.abs().max()) > 1.0
    assert float(slopes.diff(dim=1).abs().max()) < 0.01 * float(slopes.abs().max())


def test_another_order_of_points_gives_the_same_weights():
    points = make_inputs(300, 2)
    order = torch.randperm(300)
    weights = weights_of(MedianTree.grow(points, 40, 0.1), points)
    again = weights_of(MedianTree.grow(points[order], 40, 0.1), points[order])
    torch.testing.assert_close(again, weights[:, order])


def test_equal_points_stay_together():
    tree = MedianTree.grow(torch.ones(50, 2), 10, 0.1)
    assert tree.num_leaves == 1
