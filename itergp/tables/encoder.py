"""``TableEncoder``: any table as a matrix of numbers."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from itergp.errors import InputError, ItergpWarning
from itergp.tables.calendar import encode_part
from itergp.tables.coding import is_constant, learn_column, learn_group, signature
from itergp.tables.columns import (
    KINDS,
    CategoricalColumn,
    DateColumn,
    DroppedColumn,
    EncodedColumn,
    GapColumn,
    GroupColumn,
    NumericColumn,
    OrderedColumn,
    TableColumns,
)
from itergp.tables.groups import read_groups, require_numbers
from itergp.tables.reading import read_table
from itergp.tables.table import ColumnsOnDemand, Table
from itergp.tables.values import Dates, Levels, Numbers, Values, as_dates, as_levels, as_number, as_numbers, understand

Array = NDArray[np.float64]
_MOST_MEMORY = 0.5  # share of what is free


class TableEncoder(TransformerMixin, BaseEstimator):
    """Any table as a matrix of numbers, and what each of its columns means.

    Numbers stay; text, categories and truth values become levels, dates their places in time, year, week and day; gaps are
    filled and marked. ``columns_`` says what became of each column, which is what a kernel is built from.

    Args:
        one_hot_max_levels: Unordered levels up to this number, a gap included, get a column of 0 and 1 each, two levels one for
            both; more become codes. 1: always codes.
        drop: Whether constant columns, exact duplicates and identifiers are left out, with a warning.
        groups: Columns whose levels are groups, whatever they hold: a name, or a number where columns have no names, a list of
            such, or a dictionary of them and the numeric columns whose slopes differ by group.

    Attributes:
        columns_: One ``EncodedColumn`` for each group of encoded columns that mean one thing, in the order of the table, marks
            of gaps last; columns that are left out have no ``indices``.
        n_features_in_: Number of columns of the table.
        feature_names_in_: Their names, if all are text.

    Raises:
        InputError: If a table cannot be used, naming the column and the row.

    Examples:
        >>> import pandas
        >>> table = pandas.DataFrame({"age": [31.0, None, 54.0], "city": ["Oslo", "Rome", "Oslo"]})
        >>> encoder = TableEncoder().fit(table)
        >>> print(encoder.columns_)
        column  role         encoded  as                              gaps  noticed
        age     numeric      0        itself, gaps as 42.5            1     whole numbers
        city    categorical  1        binary of 2 levels: Oslo, Rome
        age     gap          2        1 where there is no value
        >>> encoder.transform(table).tolist()
        [[31.0, 0.0, 0.0], [42.5, 1.0, 1.0], [54.0, 0.0, 0.0]]
    """

    columns_: TableColumns
    n_features_in_: int
    feature_names_in_: NDArray[Any]
    _names: list[str] | None

    def __init__(self, *, one_hot_max_levels: int = 10, drop: bool = True, groups: Any = None) -> None:
        self.one_hot_max_levels = one_hot_max_levels
        self.drop = drop
        self.groups = groups

    # ------------------------------------------------------------------- fit
    def fit(self, X: Any, y: Any = None) -> TableEncoder:
        """Learns levels, medians and which columns to leave out.

        Args:
            X: A table ``(N, D)``: pandas, polars, pyarrow, NumPy (numbers, objects, structured), SciPy sparse, dictionaries, or
                the name of a file, of which one column at a time is in memory.
            y: Ignored.

        Returns:
            The encoder.

        Raises:
            InputError: If the table cannot be read, or no column says anything about more than one row.
        """
        table = read_table(X)
        self._remember(table)
        slopes = read_groups(self.groups, table)
        drop = self.drop and table.num_rows > 1
        groups = self._learn(table, slopes, drop=drop, drop_constant=drop)
        if drop and all(map(_says_nothing, groups)):  # otherwise nothing would be left
            groups = self._learn(table, slopes, drop=drop, drop_constant=False)
        if all(isinstance(column, DroppedColumn) for column in groups):
            names = table.names or [f"x{index}" for index in range(len(table.columns))]
            raise InputError(
                f"`X` must have a column that says something about more than one row. Got identifiers only, in "
                f"{_quoted(names)}. Pass other columns, or make some of what is in them."
            )
        self.columns_ = TableColumns(_placed(groups))
        require_numbers(self.columns_)
        if drop:
            self._warn_of_dropped(table)
        return self

    def _remember(self, table: Table) -> None:
        self.n_features_in_, self._names = len(table.columns), table.names
        if hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        if table.labels is not None and all(isinstance(label, str) for label in table.labels):
            self.feature_names_in_ = np.array(table.labels, dtype=object)

    def _learn(
        self, table: Table, slopes: dict[int, tuple[str, ...]], *, drop: bool, drop_constant: bool
    ) -> list[EncodedColumn]:
        """How each column is encoded, one after another: what they mean is as large as the table."""
        names = table.names or [f"x{index}" for index in range(len(table.columns))]
        groups: list[EncodedColumn] = []
        seen: dict[Any, int] = {}
        for position, name in enumerate(names):
            values = self._meaning(table, position, group=position in slopes)
            if position in slopes and isinstance(values, Levels):
                groups.append(learn_group(values, name, position, slopes[position], drop=drop_constant))
                continue
            original = seen.setdefault(signature(values), position)
            found = learn_column(
                values,
                name,
                position,
                title=table.title(position),
                most_one_hot=self.one_hot_max_levels,
                drop=drop_constant if is_constant(values) else drop,
            )
            if drop and original != position and not isinstance(found[0], DroppedColumn) and not is_constant(values):
                noticed = (f"duplicate of {table.title(original)}",)
                found = [DroppedColumn(name, position, (), found[0].num_gaps, noticed)]
            groups += found
        return groups

    @staticmethod
    def _meaning(table: Table, position: int, *, group: bool) -> Values:
        column, title = table.columns[position], table.title(position)
        return as_levels(column, title, boolean=False) if group else understand(column, title)

    def _warn_of_dropped(self, table: Table) -> None:
        size = self.n_features_in_
        fate = "stay, as there are no others" if all(map(_says_nothing, self.columns_)) else "are left out"
        for word, wish, got in (
            ("constant", "vary", "one value only"),
            ("no values", "have values", "none"),
            ("id-like", "say something about more than one row", "a text of its own for nearly every row"),
            ("duplicate", "differ", "copies"),
        ):
            found = [column for column in self.columns_ if any(said.startswith(word) for said in column.noticed)]
            if found:
                warnings.warn(
                    f"Columns of `X` should {wish}. Got {got} in {len(found)} of {size}: {_titles(found, table)}. They say "
                    f"nothing and {fate}; drop them.",
                    ItergpWarning,
                    stacklevel=3,
                )

    # ------------------------------------------------------------- transform
    def transform(self, X: Any, dtype: Any = np.float64) -> NDArray[Any]:
        """The encoded matrix.

        Args:
            X: A table with the columns of the training data, in any order where they have names.
            dtype: Of the matrix.

        Returns:
            ``(M, E)``; of a file, where half of the free memory is too little, in a temporary file that is mapped to memory.

        Raises:
            InputError: If columns are missing, unknown or of another kind.
        """
        check_is_fitted(self)
        table = self.matched(read_table(X))
        encoded = self._room(table, np.dtype(dtype))
        filled: list[tuple[EncodedColumn, NDArray[np.bool_]]] = []
        marked = {column.position for column in self.columns_ if isinstance(column, GapColumn)}
        for position, group in _by_position(self.columns_).items():
            if not group[0].indices:
                continue
            values, gaps = (
                _read(group[0], table.columns[position], table.title(position)),
                np.zeros(table.num_rows, bool),
            )
            for column in group:
                block, gaps = _encode(column, values, gaps)
                encoded[:, list(column.indices)] = block
            if gaps.any() and position not in marked:
                filled.append((group[0], gaps))
        self._warn_of_gaps(filled, table)
        return encoded

    def add_groups(self, table: Table) -> None:
        """Makes groups known that are new in further training rows; those that were known keep their numbers.

        Args:
            table: As ``matched`` gave it.
        """
        for index, column in enumerate(self.columns_):
            if isinstance(column, GroupColumn) and column.indices:
                values = _read(column, table.columns[column.position], table.title(column.position))
                if isinstance(values, Levels):
                    there = values.codes >= 0
                    new = np.unique(values.codes[there & (_codes(column.levels, values, unseen=-1) < 0)])
                    levels = (*column.levels, *(values.levels[code] for code in new))
                    self.columns_[index] = dataclasses.replace(column, levels=levels)

    def encode_column(self, position: int, values: Any) -> tuple[list[int], Array]:
        """The encoded columns of one column of the table, for values by themselves.

        Args:
            position: Number of the column in the table.
            values: M values of the kind that it had in the training data; None, NaN or NaT for a gap.

        Returns:
            The numbers of its E_j encoded columns, and their values ``(M, E_j)``.

        Raises:
            InputError: If values are of another kind.
        """
        check_is_fitted(self)
        group = _by_position(self.columns_)[position]
        if not group[0].indices:
            return [], np.empty((len(values), 0))
        table = self._column_table(values, group[0])
        blocks, gaps = [], np.zeros(table.num_rows, bool)
        meant = _read(group[0], table.columns[0], repr(group[0].name))
        for column in group:
            block, gaps = _encode(column, meant, gaps)
            blocks.append(block)
        return [index for column in group for index in column.indices], np.concatenate(blocks, 1)

    @staticmethod
    def _column_table(values: Any, column: EncodedColumn) -> Table:
        array = np.asarray(values)
        return read_table(array[:, None] if array.dtype.kind in "biuf" else {column.name: values})

    def matched(self, X: Any, *, owner: str = "TableEncoder") -> Table:
        """The columns of a table in the order of the training data, with their names.

        Args:
            X: A table, of any kind that ``fit`` takes.
            owner: Who expects them, for messages.

        Raises:
            InputError: If some are missing, or more than there were.
        """
        table = read_table(X)
        if table.names is not None and self._names is not None:
            return self._matched_by_name(table)
        if len(table.columns) != self.n_features_in_:
            raise InputError(
                f"X has {len(table.columns)} features, but {owner} is expecting {self.n_features_in_} features as "
                "input. Select the columns of the training data, in their order."
            )
        if table.names is None and self._names is not None:
            warnings.warn(
                "X does not have valid feature names, but the training data had. Columns are taken in the order of those.",
                ItergpWarning,
                stacklevel=3,
            )
        return dataclasses.replace(table, names=self._names)

    def _matched_by_name(self, table: Table) -> Table:
        given, wanted = table.names or [], self._names or []
        if given == wanted:
            return table
        place = {name: index for index, name in enumerate(given)}
        missing = [name for name in wanted if name not in place]
        unknown = [name for name in given if name not in set(wanted)]
        if missing or unknown:
            parts = [f"none called {_quoted(missing)}"] if missing else []
            parts += [f"{_quoted(unknown)}, unseen at fit time"] if unknown else []
            raise InputError(
                f"`X` must have the columns of the training data. Got {' and '.join(parts)}. Select them by name, in any order."
            )
        return dataclasses.replace(table.select([place[name] for name in wanted]), labels=None)

    def _room(self, table: Table, dtype: np.dtype[Any]) -> NDArray[Any]:
        shape = table.num_rows, self.num_encoded
        size, free = dtype.itemsize * shape[0] * shape[1], psutil.virtual_memory().available
        if size <= _MOST_MEMORY * free:
            return np.empty(shape, dtype)
        if isinstance(table.columns, ColumnsOnDemand):
            with tempfile.TemporaryFile(prefix="itergp-") as file:  # without a name, and gone with the array
                return np.memmap(file, dtype, mode="w+", shape=shape)
        raise InputError(
            f"The encoded table must fit into memory. Got {shape[0]:,} rows of {shape[1]:,} columns, {size / 2**30:.1f} GiB "
            f"of {free / 2**30:.1f} GiB free. Pass the name of a Parquet file, fewer rows, or a smaller one_hot_max_levels."
        )

    def _warn_of_gaps(self, filled: Sequence[tuple[EncodedColumn, NDArray[np.bool_]]], table: Table) -> None:
        if not filled:
            return
        column, gaps = filled[0]
        others = f", and in {len(filled) - 1} other column(s)" if len(filled) > 1 else ""
        warnings.warn(
            f"Columns without gaps in the training data should have none. Got no value in {int(gaps.sum())} row(s) of column "
            f"{table.title(column.position)}, first in row {np.flatnonzero(gaps)[0]}{others}. The median of the training rows "
            "stands for them, and predictions there are surer than they should be.",
            ItergpWarning,
            stacklevel=3,
        )

    # ---------------------------------------------------------------- around
    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Names of the encoded columns ``(E,)``.

        Args:
            input_features: Ignored: the names are those of the training data.
        """
        check_is_fitted(self)
        names = np.empty(self.num_encoded, dtype=object)
        for column in self.columns_:
            names[list(column.indices)] = column.encoded_names
        return names

    @property
    def num_encoded(self) -> int:
        """E, the number of encoded columns."""
        return sum(len(column.indices) for column in self.columns_)

    def unseen(self, encoded: Array) -> list[str]:
        """Names of columns that have levels in some rows which the training data did not have.

        Args:
            encoded: Rows as ``transform`` gave them ``(M, E)``.
        """
        found = []
        for column in self.columns_:
            if isinstance(column, CategoricalColumn) and not isinstance(column, GroupColumn):
                values = encoded[:, list(column.indices)]
                none = values == {"binary": 0.5, "codes": column.num_levels, "one-hot": 0.0}[column.coding]
                found += [column.name] if bool(none.all(1).any()) else []
        return found

    @property
    def titles(self) -> list[str]:
        """What messages call the encoded columns: their names, or without names the number of the column of the table."""
        if self._names is not None:
            return [repr(str(name)) for name in self.get_feature_names_out()]
        places = {index: str(column.position) for column in self.columns_ for index in column.indices}
        return [places[index] for index in range(self.num_encoded)]

    @classmethod
    def of_numbers(cls, num_columns: int, names: Sequence[str] | None) -> TableEncoder:
        """The encoder that leaves tables of numbers as they are, NaN for a gap included.

        Args:
            num_columns: D.
            names: Their names, or None.
        """
        encoder = cls(one_hot_max_levels=1, drop=False)
        encoder.n_features_in_, encoder._names = num_columns, None if names is None else list(names)
        shown = names or [f"x{index}" for index in range(num_columns)]
        encoder.columns_ = TableColumns(NumericColumn(name, i, (i,), fill=np.nan) for i, name in enumerate(shown))
        return encoder

    def to_fields(self) -> dict[str, Any]:
        """What the encoder has learned as numbers, text, lists and dictionaries, for ``itergp.persistence``."""
        check_is_fitted(self)
        columns = [
            {"kind": type(column).__name__, **{name: _plain(value) for name, value in vars(column).items()}}
            for column in self.columns_
        ]
        return {
            "one_hot_max_levels": self.one_hot_max_levels,
            "drop": self.drop,
            "groups": _plain_groups(self.groups),
            "names": self._names,
            "num_columns": self.n_features_in_,
            "text_names": hasattr(self, "feature_names_in_"),
            "columns": columns,
        }

    @classmethod
    def rebuild(cls, context: Any = None, **fields: Any) -> TableEncoder:
        """The encoder whose ``to_fields`` this is.

        Args:
            context: Not used.
            **fields: What ``to_fields`` gave.
        """
        groups = fields.get("groups")  # files of earlier versions do not know it
        encoder = cls(one_hot_max_levels=fields["one_hot_max_levels"], drop=fields["drop"], groups=groups)
        encoder.n_features_in_, encoder._names = fields["num_columns"], fields.get("names")
        if fields["text_names"]:
            encoder.feature_names_in_ = np.array(fields["names"], dtype=object)
        encoder.columns_ = TableColumns(_column(dict(column)) for column in fields["columns"])
        return encoder

    def __sklearn_tags__(self) -> Any:
        """Gaps, levels and sparse matrices are welcome."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.sparse = tags.input_tags.categorical = True
        return tags


# --------------------------------------------------------------------- encoding
def _read(column: EncodedColumn, data: Any, title: str) -> Values:
    """A column of the table as what it was in the training data."""
    if isinstance(column, NumericColumn):
        return as_numbers(data, title)
    if isinstance(column, DateColumn):
        return as_dates(data, title, column.zone)
    return as_levels(data, title, boolean=isinstance(column, CategoricalColumn) and column.boolean)


def _encode(column: EncodedColumn, values: Values, gaps: NDArray[np.bool_]) -> tuple[Array, NDArray[np.bool_]]:
    """A group's encoded columns, and the rows whose gaps were filled with what was usual in the training data."""
    if isinstance(column, NumericColumn) and isinstance(values, Numbers):
        gaps = np.isnan(values.values)
        return np.where(gaps, column.fill, values.values)[:, None], gaps
    if isinstance(column, DateColumn) and isinstance(values, Dates):
        gaps = np.isnan(values.days)
        return encode_part(column.part, np.where(gaps, column.fill, values.days)), gaps
    if isinstance(column, OrderedColumn) and isinstance(values, Levels):
        codes = _codes(
            column.levels, values, unseen=-1
        )  # a level without a place in the order is no better known than a gap
        return np.where(codes < 0, column.fill, codes)[:, None].astype(np.float64), codes < 0
    if isinstance(column, GroupColumn) and isinstance(values, Levels):
        return _encode_groups(column, values), gaps
    if isinstance(column, CategoricalColumn) and isinstance(values, Levels):
        return _encode_levels(column, values), gaps
    return gaps[:, None].astype(np.float64), gaps


def _encode_levels(column: CategoricalColumn, values: Levels) -> Array:
    unseen = column.num_levels
    codes = _codes(column.levels, values, unseen=unseen)
    codes[values.codes < 0] = len(column.levels)  # a gap's, which is that of unseen levels unless it is one of its own
    if column.coding == "codes":
        return codes[:, None].astype(np.float64)
    if column.coding == "binary":
        return np.where(codes < 2, codes, 0.5)[:, None]
    return (codes[:, None] == np.arange(unseen)).astype(np.float64)


def _encode_groups(column: GroupColumn, values: Levels) -> Array:
    """Numbers of levels; those that are not known follow, each by itself, and a gap is -1."""
    known = _codes(column.levels, values, unseen=-1)
    codes = np.where(known >= 0, known, len(column.levels) + values.codes)
    return np.where(values.codes < 0, -1, codes)[:, None].astype(np.float64)


def _codes(levels: Iterable[str], values: Levels, *, unseen: int) -> NDArray[np.intp]:
    """Numbers of levels among those of the training data ``(M,)``; "1.0" is "1" where only one of the two is one."""
    known = {level: index for index, level in enumerate(levels)}
    by_number = {as_number(level): index for level, index in known.items()} | {None: unseen}
    table = [known.get(level, by_number.get(as_number(level), unseen)) for level in values.levels]
    return np.array([*table, unseen], dtype=np.intp)[values.codes]


# ------------------------------------------------------------------------ places
def _placed(groups: Sequence[EncodedColumn]) -> Iterator[EncodedColumn]:
    """Groups with the numbers of their encoded columns; marks of gaps come last, so that others stay where they are."""
    start = 0
    for column in sorted(groups, key=lambda column: isinstance(column, GapColumn)):
        width = _width(column)
        yield dataclasses.replace(column, indices=tuple(range(start, start + width)))
        start += width


def _width(column: EncodedColumn) -> int:
    if isinstance(column, DroppedColumn):
        return 0
    if isinstance(column, CategoricalColumn):
        return column.num_levels if column.coding == "one-hot" else 1
    return 2 if isinstance(column, DateColumn) and column.part != "trend" else 1


def _by_position(columns: Iterable[EncodedColumn]) -> dict[int, list[EncodedColumn]]:
    """Groups by the column of the table that they come from."""
    found: dict[int, list[EncodedColumn]] = {}
    for column in columns:
        found.setdefault(column.position, []).append(column)
    return found


# ------------------------------------------------------------------------- state
def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _plain_groups(groups: Any) -> Any:
    if isinstance(groups, Mapping):
        return {name: list(slopes) if not isinstance(slopes, str) else slopes for name, slopes in groups.items()}
    return _plain(groups)


def _column(fields: dict[str, Any]) -> EncodedColumn:
    kind = KINDS[fields.pop("kind")]
    parts: dict[str, Any] = {name: tuple(part) if isinstance(part, list) else part for name, part in fields.items()}
    return kind(**parts)


# ---------------------------------------------------------------------- messages
def _says_nothing(column: EncodedColumn) -> bool:
    return column.noticed[:1] in (("constant",), ("no values",))


def _titles(columns: Sequence[EncodedColumn], table: Table) -> str:
    return ", ".join(table.title(column.position) for column in columns[:5]) + (", ..." if len(columns) > 5 else "")


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
