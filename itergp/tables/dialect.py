"""How a text file of a table is written: its encoding, what separates columns, and the decimal point."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import lzma
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_SAMPLE, _LINES = 2**20, 200  # bytes and lines that are looked at
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_POINT, _COMMA = re.compile(r"-?\d+\.\d+"), re.compile(r"-?\d+,\d+")


@dataclass(frozen=True)
class Dialect:
    """Keywords of ``pandas.read_csv``."""

    encoding: str = "utf-8"
    separator: str = ","
    decimal: str = "."

    @classmethod
    def of(cls, path: Path, separator: str | None = None) -> Dialect:
        """Looks at the beginning of a file, compressed by gzip, bzip2 or xz or not.

        Args:
            path: The file.
            separator: What separates columns, if that is known; a backslash and t are a tab.

        Raises:
            OSError: If it cannot be read.
        """
        opener = _OPENERS.get(path.suffix.lower(), open)
        file: IO[bytes]
        with opener(path, "rb") as file:
            sample = file.read(_SAMPLE)
        encoding = _encoding(sample)
        lines = sample.decode(encoding, "replace").splitlines()
        lines = [line for line in (lines[:-1] if len(sample) == _SAMPLE else lines)[:_LINES] if line.strip()]
        separator = _separator(lines) if separator is None else separator.replace("\\t", "\t")
        return cls(encoding, separator, _decimal(lines, separator))


def _encoding(sample: bytes) -> str:
    """Unicode if the bytes are valid, otherwise the code page of Western Windows."""
    for mark, name in _MARKS.items():
        if sample.startswith(mark):
            return name
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(sample) - 4 or len(sample) < _SAMPLE:  # not a character that the sample cuts
            return "cp1252"
    return "utf-8"


def _separator(lines: list[str]) -> str:
    """The character that gives most lines the number of columns of the header, and of several the one with most columns."""
    found, sizes = [], list[int]()
    for character in ",;\t|":
        with contextlib.suppress(csv.Error):  # what is no text
            sizes = [len(row) for row in csv.reader(lines, delimiter=character)]
        if sizes and sizes[0] > 1 and Counter(sizes)[sizes[0]] >= 0.9 * len(sizes):
            found.append((sizes[0], character))
    return max(found, key=lambda pair: pair[0])[1] if found else ","


def _decimal(lines: list[str], separator: str) -> str:
    """A comma where it cannot separate columns, and all numbers that are not whole have one."""
    if separator == ",":
        return "."
    cells = [cell.strip() for row in csv.reader(lines[1:], delimiter=separator) for cell in row]
    commas = any(_COMMA.fullmatch(cell) for cell in cells)
    return "," if commas and not any(_POINT.fullmatch(cell) for cell in cells) else "."
