"""Boosted trees as the prior mean: fitted in folds, so that no row's logit has seen its target."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itergp.errors import InputError

Array = NDArray[np.float64]
Loss = Literal["log_loss", "squared_error", "poisson"]

PRIOR_MEANS = (None, "boosting")
_FOLDS = 5
_LEAST_ROWS = 50
_ROUNDS = 150  # at most; how many count is chosen by the rows that each fold leaves out
_BATCH = 2_000_000  # rows times trees at a time
_UNSEEN = 0.5  # rows that a class without any counts for


@dataclass(frozen=True)
class BoostedTrees:
    """Ensembles of trees, one for each fold, whose mean is predicted; plain arrays, whatever library grew them.

    Attributes:
        roots: First node of each tree ``(F, T, K)``, of F folds, T rounds and K outputs.
        start: What every fold begins with ``(F, K)``.
        column: Of each node ``(nodes,)``; a leaf's counts for nothing.
        threshold: Rows up to it go to the left ``(nodes,)``.
        left: Node that follows ``(nodes,)``; of a leaf itself.
        right: Likewise.
        value: Of each leaf ``(nodes,)``.
    """

    roots: Tensor
    start: Tensor
    column: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    value: Tensor

    @property
    def num_outputs(self) -> int:
        """K: 1, or one for each class of more than two."""
        return int(self.roots.shape[2])

    def predict(self, values: Array) -> Array:
        """Mean over the folds of their logits, log-rates or means ``(M, K)`` at rows ``(M, E)``."""
        each = [self._scores(values, fold)[-1] for fold in range(len(self.roots))]
        return np.mean(each, axis=0)

    def _scores(self, values: Array, fold: int) -> Array:
        """What a fold predicts after each of its rounds and before the first ``(1 + T, M, K)``."""
        rounds, outputs = self.roots.shape[1:]
        x, roots = torch.as_tensor(np.asarray(values, dtype=np.float64)), self.roots[fold].reshape(-1)
        size = max(1, _BATCH // max(1, len(roots)))
        found = []
        for rows in x.split(size):
            leaves = self.value[self._leaves(rows, roots)].reshape(len(rows), rounds, outputs)
            begin = self.start[fold].expand(len(rows), 1, outputs)
            found.append(torch.cat([begin, leaves], 1).cumsum(1).transpose(0, 1))
        return torch.cat(found, 1).numpy()

    def _leaves(self, rows: Tensor, roots: Tensor) -> Tensor:
        """Where rows end up in trees ``(M, trees)``."""
        node = roots.expand(len(rows), -1)
        while True:
            below = rows.gather(1, self.column[node]) <= self.threshold[node]
            following = torch.where(below, self.left[node], self.right[node])
            if torch.equal(following, node):
                return node
            node = following


def boost(
    values: Array, targets: Array, weights: Array, *, loss: Loss, classes: int, seed: int
) -> tuple[BoostedTrees, Array]:
    """Grows trees in folds, with LightGBM where it is installed, otherwise with scikit-learn.

    Args:
        values: Rows ``(N, E)``, without gaps.
        targets: Numbers of classes, real values, or counts and rates ``(N,)``.
        weights: Of the rows ``(N,)``.
        loss: What is minimised; also by the number of rounds, over the rows that each fold leaves out.
        classes: Number of classes with ``"log_loss"``.
        seed: Of the folds and the trees.

    Returns:
        The trees, and for each row what those predict that have not seen it ``(N, K)``.

    Raises:
        InputError: If there are too few rows.
    """
    if len(values) < _LEAST_ROWS:
        raise InputError(
            f"`prior_mean='boosting'` needs {_LEAST_ROWS} rows or more. Got {len(values)}. Leave it out for so few."
        )
    fold = _folds(targets, discrete=loss == "log_loss", seed=seed)
    grow = _grow_lightgbm if importlib.util.find_spec("lightgbm") is not None else _grow_sklearn
    grown = [
        grow(values[fold != k], targets[fold != k], weights[fold != k], loss, classes, seed + k) for k in range(_FOLDS)
    ]
    trees = _together(grown)
    outputs = trees.num_outputs
    scores = np.empty((1 + trees.roots.shape[1], len(values), outputs))
    for k in range(_FOLDS):
        scores[:, fold == k] = trees._scores(values[fold == k], k)
    losses = [np.average(_loss(score, targets, loss), weights=weights) for score in scores]
    best = int(np.argmin(losses[1:])) + 1
    return _cut(trees, best), scores[best]


def _folds(targets: Array, *, discrete: bool, seed: int) -> NDArray[np.int64]:
    """The fold of each row ``(N,)``: dealt out, of classes one after another."""
    order = np.random.RandomState(seed).permutation(len(targets))
    order = order[np.argsort(targets[order], kind="stable")] if discrete else order
    fold = np.empty(len(targets), dtype=np.int64)
    fold[order] = np.arange(len(targets)) % _FOLDS
    return fold


def _loss(score: Array, targets: Array, loss: Loss) -> Array:
    """Of each row ``(N,)``, given scores ``(N, K)``."""
    if loss == "squared_error":
        return np.square(score[:, 0] - targets)
    if loss == "poisson":
        return np.exp(score[:, 0]) - targets * score[:, 0]
    if score.shape[1] == 1:
        return np.logaddexp(0.0, np.where(targets > 0.5, -score[:, 0], score[:, 0]))
    return np.logaddexp.reduce(score, axis=1) - np.take_along_axis(score, targets.astype(int)[:, None], 1)[:, 0]


# ------------------------------------------------------------------ libraries
@dataclass(frozen=True)
class _Grown:
    """One fold: what it begins with ``(K,)``, and nodes ``(column, threshold, left, right, value)`` of each tree ``[T][K]``."""

    start: Array
    trees: list[list[tuple[Array, ...]]]


def _grow_lightgbm(values: Array, targets: Array, weights: Array, loss: Loss, classes: int, seed: int) -> _Grown:
    import lightgbm

    objective = {"log_loss": "binary" if classes == 2 else "multiclass", "squared_error": "regression"}.get(loss, loss)
    options = {
        "objective": objective,
        "seed": seed,
        "verbose": -1,
        "deterministic": True,
        "num_threads": torch.get_num_threads(),
    }
    options |= {"num_class": classes} if objective == "multiclass" else {}
    data = lightgbm.Dataset(values, targets, weight=weights)
    booster = lightgbm.train(options, data, num_boost_round=_ROUNDS)
    outputs = booster.num_model_per_iteration()
    flat = [_lightgbm_nodes(tree["tree_structure"]) for tree in booster.dump_model()["tree_info"]]
    return _Grown(np.zeros(outputs), [flat[i : i + outputs] for i in range(0, len(flat), outputs)])


def _lightgbm_nodes(root: dict[str, Any]) -> tuple[Array, ...]:
    """Nodes of a tree, parents before children."""
    rows: list[list[float]] = []

    def add(node: dict[str, Any]) -> int:
        place = len(rows)
        rows.append([0.0, 0.0, place, place, float(node.get("leaf_value", 0.0))])
        if "left_child" in node:
            rows[place][:2] = [node["split_feature"], node["threshold"]]
            rows[place][2], rows[place][3] = add(node["left_child"]), add(node["right_child"])
        return place

    add(root)
    return tuple(np.array(rows).T)


def _grow_sklearn(values: Array, targets: Array, weights: Array, loss: Loss, classes: int, seed: int) -> _Grown:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    options: dict[str, Any] = {"max_iter": _ROUNDS, "early_stopping": False, "random_state": seed}
    kind = HistGradientBoostingClassifier if loss == "log_loss" else HistGradientBoostingRegressor
    model = kind(**options) if loss == "log_loss" else kind(loss=loss, **options)
    model.fit(values, targets, sample_weight=weights)
    # scikit-learn has no public way to the trees.
    start = np.asarray(model._baseline_prediction, dtype=np.float64).reshape(-1)
    trees = [[_sklearn_nodes(tree.nodes) for tree in stage] for stage in model._predictors]
    if classes <= 2 or loss != "log_loss" or len(model.classes_) == classes:
        return _Grown(start, trees)
    return _with_all_classes(start, trees, model.classes_.astype(int), classes, weights.sum())


def _with_all_classes(
    start: Array, trees: list[list[tuple[Array, ...]]], present: NDArray[np.int64], classes: int, total: float
) -> _Grown:
    """Outputs for classes too of which a fold has seen no row."""
    every = np.full(classes, np.log(_UNSEEN / total))
    nothing = tuple(np.zeros((5, 1)))
    if len(present) == 2:  # one output, of the second
        start = np.array([-0.5, 0.5]) * start[0]
        trees = [[(*stage[0][:4], -0.5 * stage[0][4]), (*stage[0][:4], 0.5 * stage[0][4])] for stage in trees]
    every[present] = start
    where = {label: place for place, label in enumerate(present.tolist())}
    return _Grown(every, [[stage[where[c]] if c in where else nothing for c in range(classes)] for stage in trees])


def _sklearn_nodes(nodes: Any) -> tuple[Array, ...]:
    own, leaf = np.arange(len(nodes)), nodes["is_leaf"].astype(bool)
    return (
        np.where(leaf, 0, nodes["feature_idx"]).astype(np.float64),
        np.where(leaf, 0.0, nodes["num_threshold"]),
        np.where(leaf, own, nodes["left"]).astype(np.float64),
        np.where(leaf, own, nodes["right"]).astype(np.float64),
        np.where(leaf, nodes["value"], 0.0),
    )


# ------------------------------------------------------------------- together
def _flat(grown: list[_Grown], rounds: int) -> Iterator[tuple[Array, ...]]:
    for fold in grown:
        for stage in fold.trees[:rounds]:
            yield from stage


def _together(grown: list[_Grown]) -> BoostedTrees:
    """Folds side by side, with as many rounds as all of them have."""
    rounds = min(len(fold.trees) for fold in grown)  # a library may end early
    flat = list(_flat(grown, rounds))
    sizes = np.array([len(tree[0]) for tree in flat])
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    shift = np.repeat(first, sizes)
    column, threshold, left, right, value = (np.concatenate(part) for part in zip(*flat, strict=True))
    start = np.stack([fold.start for fold in grown])
    return BoostedTrees(
        torch.as_tensor(first.reshape(len(grown), rounds, start.shape[1])),
        torch.as_tensor(start),
        torch.as_tensor(column.astype(np.int64)),
        torch.as_tensor(threshold),
        torch.as_tensor(left.astype(np.int64) + shift),
        torch.as_tensor(right.astype(np.int64) + shift),
        torch.as_tensor(value),
    )


def _cut(trees: BoostedTrees, rounds: int) -> BoostedTrees:
    """The first rounds, without the nodes of the others."""
    roots = trees.roots[:, :rounds]
    starts = torch.cat([trees.roots.reshape(-1), torch.tensor([len(trees.value)])])
    kept = torch.zeros(trees.roots.shape, dtype=torch.bool)
    kept[:, :rounds] = True
    nodes = kept.reshape(-1).repeat_interleave(starts.diff())
    moved = nodes.cumsum(0) - 1
    return BoostedTrees(
        moved[roots],
        trees.start,
        trees.column[nodes],
        trees.threshold[nodes],
        moved[trees.left[nodes]],
        moved[trees.right[nodes]],
        trees.value[nodes],
    )
