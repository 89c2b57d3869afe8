"""Tables as boosted trees and linear models like them best."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, PowerTransformer, StandardScaler

from itergp.tables import CategoricalColumn, GapColumn, Table, TableEncoder

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CodedTable:
    """Every level as a number, and all else as numbers.

    Attributes:
        encoder: What it is encoded by.
        levels: Encoded columns whose numbers only name levels.
        skewed: Those of numbers far from symmetric.
        gaps: For columns that only say where another has a gap, those others.
    """

    encoder: TableEncoder
    levels: tuple[int, ...]
    skewed: tuple[int, ...]
    gaps: dict[int, tuple[int, ...]]

    @classmethod
    def learn(cls, table: Table) -> CodedTable:
        """Looks at training rows."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the columns that are left out are named when the table is fitted
            encoder = TableEncoder(one_hot_max_levels=1).fit(table)
        columns = encoder.columns_
        levels = tuple(i for c in columns if isinstance(c, CategoricalColumn) for i in c.indices)
        skewed = tuple(i for c in columns if {"skewed", "heavy-tailed"} & {*c.noticed} for i in c.indices)
        gaps = {
            gap.indices[0]: tuple(i for c in columns if c.position == gap.position and c is not gap for i in c.indices)
            for gap in columns
            if isinstance(gap, GapColumn)
        }
        return cls(encoder, levels, skewed, gaps)

    def transform(self, table: Table) -> Array:
        """The encoded matrix ``(M, E)``."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of gaps that training had none of
            return self.encoder.transform(table)

    def for_trees(self, table: Table) -> tuple[Array, list[int]]:
        """A matrix with NaN for gaps, and its columns of levels; trees send gaps to the better side."""
        values = self.transform(table)
        for gap, others in self.gaps.items():
            values[np.ix_(values[:, gap] == 1.0, others)] = np.nan
        kept = [i for i in range(values.shape[1]) if i not in self.gaps]
        return values[:, kept], [kept.index(i) for i in self.levels]

    def for_lines(self) -> Pipeline:
        """A transformer of the encoded matrix: levels as 0 and 1, skewed numbers made symmetric, others standardised."""
        skewed = [i for i in self.skewed if i not in self.levels]
        rest = [i for i in range(self.encoder.num_encoded) if i not in {*self.levels, *skewed}]
        parts: list[tuple[str, Any, list[int]]] = [
            ("levels", OneHotEncoder(handle_unknown="ignore"), list(self.levels)),
            ("skewed", make_pipeline(StandardScaler(), PowerTransformer()), skewed),
            ("numbers", StandardScaler(), rest),
        ]
        return make_pipeline(ColumnTransformer([part for part in parts if part[2]]))
