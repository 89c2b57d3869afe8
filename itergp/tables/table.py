"""``Table``: columns of one length, in memory or read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ColumnsOnDemand(Sequence[Any]):
    """Columns that are read when they are asked for, and not kept.

    Args:
        readers: For each column a function that reads it.
    """

    def __init__(self, readers: Sequence[Callable[[], Any]]) -> None:
        self._readers = list(readers)

    def __getitem__(self, index: Any) -> Any:
        return self._readers[index]()

    def __len__(self) -> int:
        return len(self._readers)

    def then(self, change: Callable[[Any], Any]) -> ColumnsOnDemand:
        """The same columns, each changed once it has been read."""
        return ColumnsOnDemand([lambda read=read: change(read()) for read in self._readers])  # type: ignore[misc]

    def then_each(self, changes: Sequence[Callable[[Any], Any] | None]) -> ColumnsOnDemand:
        """The same columns, each changed in a way of its own, or as it is."""
        return ColumnsOnDemand(
            [
                read if change is None else lambda read=read, change=change: change(read())  # type: ignore[misc]
                for read, change in zip(self._readers, changes, strict=True)
            ]
        )

    def select(self, positions: Sequence[int]) -> ColumnsOnDemand:
        """Some of the columns."""
        return ColumnsOnDemand([self._readers[index] for index in positions])


@dataclass(frozen=True)
class Table:
    """Columns of one length.

    Attributes:
        columns: One pandas Series each, or a NumPy vector of numbers; of a file each is read when it is asked for.
        num_rows: N.
        names: Their names as text; None where the container has none.
        labels: The names as they are; None where the container has none.
        matrix: All columns as one float64 matrix ``(N, D)`` if the container was numbers only.
    """

    columns: Sequence[Any]
    num_rows: int
    names: list[str] | None
    labels: list[Any] | None
    matrix: NDArray[np.float64] | None = None

    def title(self, position: int) -> str:
        """What messages call a column: its name if it has one, otherwise its number."""
        return str(position) if self.names is None else repr(self.names[position])

    @property
    def on_demand(self) -> bool:
        """Whether columns are read, from a file, when they are asked for."""
        return isinstance(self.columns, ColumnsOnDemand)

    def rows(self, chosen: NDArray[np.bool_]) -> Table:
        """Some of the rows, by a mask ``(N,)``."""
        if bool(chosen.all()):
            return self
        matrix = None if self.matrix is None else self.matrix[chosen]
        if matrix is not None:
            columns: Sequence[Any] = list(matrix.T)
        elif isinstance(self.columns, ColumnsOnDemand):
            columns = self.columns.then(lambda column: column[chosen])
        else:
            columns = [column[chosen] for column in self.columns]
        return Table(columns, int(chosen.sum()), self.names, self.labels, matrix)

    def select(self, positions: Sequence[int]) -> Table:
        """Some of the columns, in another order if need be, without those that are read on demand being read."""
        if isinstance(self.columns, ColumnsOnDemand):
            columns: Sequence[Any] = self.columns.select(positions)
        else:
            columns = [self.columns[index] for index in positions]
        names, labels = (
            [part[i] for i in positions] if part is not None else None for part in (self.names, self.labels)
        )
        matrix = None if self.matrix is None else self.matrix[:, list(positions)]
        return Table(columns, self.num_rows, names, labels, matrix)

    def as_levels(self, positions: Iterable[int]) -> Table:
        """The same, where some columns declare all of their levels, so that no part of the rows is taken for something else."""
        if not isinstance(self.columns, ColumnsOnDemand):
            raise TypeError("columns must be read on demand")
        chosen = set(positions)
        changes = [
            (lambda column: column.astype("category")) if i in chosen else None for i in range(len(self.columns))
        ]
        return replace(self, columns=self.columns.then_each(changes))

    def heard(self, listener: Callable[[], None]) -> Table:
        """The same, where a function is called whenever a column has been read on demand."""
        if not isinstance(self.columns, ColumnsOnDemand):
            return self

        def say(column: Any) -> Any:
            listener()
            return column

        return replace(self, columns=self.columns.then(say))
