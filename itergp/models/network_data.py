"""Training data of a network: tensors in memory, or a loader that streams them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from itergp.errors import InputError, ItergpWarning
from itergp.likelihoods import Likelihood, Observations
from itergp.models.arrays import as_tensor, is_array
from itergp.models.validation import as_observations
from itergp.numerics.sampling import evenly_spaced
from itergp.operators.linearisation import Rows, joined, num_rows, take

_ROWS_AT_ONCE = 256  # of a pass forward


def as_rows(inputs: Any, name: str, like: Tensor | None = None) -> Rows:
    """Inputs of a network: a tensor, or a tuple or dictionary of such, one row per observation in each.

    Args:
        inputs: The inputs; arrays are read where they are.
        name: What the caller's argument is called, for errors.
        like: A tensor of the dtype and on the device that floating-point inputs are brought to.

    Raises:
        InputError: If they are anything else, or differ in their number of rows.
    """
    rows = inputs if isinstance(inputs, (dict, tuple)) else tuple(inputs) if isinstance(inputs, list) else inputs
    rows = tree_map(lambda x: as_tensor(x, name) if is_array(x) else x, rows)
    leaves = tree_leaves(rows)
    if not leaves or not all(torch.is_tensor(x) and x.dim() > 0 for x in leaves):
        kinds = ", ".join(sorted({type(x).__name__ for x in leaves})) or "nothing"
        raise InputError(f"`{name}` must be a tensor, or a tuple or dictionary of tensors. Got {kinds}. Convert them.")
    sizes = {x.shape[0] for x in leaves}
    if len(sizes) > 1 or 0 in sizes:
        raise InputError(f"`{name}` must have as many rows, one or more, in every tensor. Got {sorted(sizes)}.")
    if like is not None:
        rows = tree_map(lambda x: x.to(like) if x.is_floating_point() else x.to(like.device), rows)
    if not all(bool(torch.isfinite(x).all()) for x in tree_leaves(rows) if x.is_floating_point()):
        raise InputError(f"`{name}` must be finite. Got NaN or infinity. Impute or drop these rows.")
    return rows


@dataclass(frozen=True)
class NetworkData:
    """Inputs and targets, batch by batch.

    Attributes:
        inputs: Rows in memory, or None.
        targets: Their targets, or None.
        loader: Gives pairs of inputs and targets, the same ones whenever it is gone through; or None.
        sample_weight: Weights of the targets in memory, or None.
        missing_targets: Whether targets may be missing.
    """

    inputs: Rows | None = None
    targets: Tensor | None = None
    loader: Iterable[Any] | None = None
    sample_weight: Tensor | None = None
    missing_targets: bool = False

    @classmethod
    def of(cls, x: Any, y: Any, sample_weight: Any, *, missing_targets: bool) -> NetworkData:
        """Data as the user gives them.

        Args:
            x: Inputs, or a loader of pairs of inputs and targets; None for none.
            y: Targets, None with a loader.
            sample_weight: Weights of the targets, or None.
            missing_targets: Whether targets may be missing.

        Raises:
            InputError: If they do not belong together.
        """
        if x is None and y is None and sample_weight is None:
            return cls()
        if y is None:
            if not hasattr(x, "__iter__") or torch.is_tensor(x) or isinstance(x, (dict, tuple, Iterator)):
                raise InputError(
                    "Without `y`, `x` must be a loader that gives pairs of inputs and targets as often as it is gone through. "
                    f"Got {type(x).__name__}. Pass the targets, or a torch.utils.data.DataLoader."
                )
            if sample_weight is not None:
                raise InputError(
                    "`sample_weight` must be None with a loader. Got weights. Pass inputs and targets as tensors."
                )
            return cls(loader=x, missing_targets=missing_targets)
        targets = as_tensor(y, "y") if is_array(y) else y
        rows = as_rows(x, "x")
        if not torch.is_tensor(targets) or targets.shape[:1] != (num_rows(rows),):
            got = tuple(targets.shape) if torch.is_tensor(targets) else type(targets).__name__
            raise InputError(f"`y` must have one target for each of the {num_rows(rows)} rows of `x`. Got {got}.")
        weight = as_tensor(sample_weight, "sample_weight") if is_array(sample_weight) else sample_weight
        return cls(rows, targets, None, weight, missing_targets)

    @property
    def empty(self) -> bool:
        """Whether there are none."""
        return self.inputs is None and self.loader is None

    def probe(self) -> Rows:
        """A few rows."""
        if self.loader is None:
            return take(self.inputs, slice(0, 2))
        for inputs, _ in self.loader:
            return take(as_rows(inputs, "x"), slice(0, 2))
        raise InputError("`x` must be a loader of one batch or more. Got an empty one.")

    def whole(self, likelihood: Likelihood, like: Tensor) -> tuple[Rows, Observations]:
        """All rows in memory and what was observed there; arguments and errors as in ``parts``."""
        rows = as_rows(self.inputs, "x", like)
        assert self.targets is not None
        return rows, self._observed(likelihood, rows, self.targets, like)

    def parts(self, likelihood: Likelihood, like: Tensor) -> Iterator[tuple[Rows, Observations]]:
        """Batches of rows and what was observed there, in the dtype and on the device of the weights.

        Args:
            likelihood: The calculus.
            like: Any of the weights.

        Raises:
            InputError: If inputs or targets are not valid.
        """
        if self.loader is None:
            rows, observed = self.whole(likelihood, like)
            for start in range(0, num_rows(rows), _ROWS_AT_ONCE):
                count = min(_ROWS_AT_ONCE, num_rows(rows) - start)
                yield take(rows, slice(start, start + count)), observed.part(start, count)
            return
        for inputs, targets in self.loader:
            rows = as_rows(inputs, "x", like)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ItergpWarning)  # of one batch, which may well be of one class
                observed = self._observed(likelihood, rows, targets, like)
            yield rows, observed

    def spread(self, likelihood: Likelihood, like: Tensor, most: int) -> list[tuple[Rows, Tensor]]:
        """Rows that have a target, and these, at most so many, spread evenly over the data in their order.

        Those of one shape are together. Other arguments and errors as in ``parts``.
        """
        kept: list[tuple[int, Rows, Tensor]] = []
        step, seen = 1, 0
        for rows, observed in self.parts(likelihood, like):
            for i in range(num_rows(rows)) if observed.sample_weight is None else observed.sample_weight.nonzero():
                if seen % step == 0:
                    which = [int(i)]  # a copy, which does not hold the batch
                    kept.append((seen, take(rows, which), observed.targets[which]))
                seen += 1
            while len(kept) > 2 * most:
                step *= 2
                kept = [one for one in kept if one[0] % step == 0]
        by_shape: dict[tuple[torch.Size, ...], list[tuple[Rows, Tensor]]] = {}
        for i in evenly_spaced(len(kept), most, torch.device("cpu")).tolist():
            shape = tuple(x.shape for x in tree_leaves(kept[i][1]))
            by_shape.setdefault(shape, []).append(kept[i][1:])
        return [(joined([rows for rows, _ in own]), torch.cat([y for _, y in own])) for own in by_shape.values()]

    def to(self, move: Callable[[Tensor], Tensor]) -> NetworkData:
        """The same with tensors in memory moved."""
        held = (self.inputs, self.targets, self.sample_weight)
        moved = [tree_map(lambda x: move(x) if torch.is_tensor(x) else x, part) for part in held]
        return NetworkData(moved[0], moved[1], self.loader, moved[2], self.missing_targets)

    def _observed(self, likelihood: Likelihood, rows: Rows, targets: Tensor, like: Tensor) -> Observations:
        row = like.new_empty(num_rows(rows))
        targets = targets.to(like) if targets.is_floating_point() else targets.to(like.device)
        weight = None if self.sample_weight is None else self.sample_weight.to(like)
        likelihood.check_rows(num_rows(rows), targets)
        return as_observations(targets, row, likelihood, weight, self.missing_targets, False)
