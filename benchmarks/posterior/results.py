"""Lines of results, one measurement each: what is there is not measured again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Results:
    """A file of JSON lines.

    Args:
        path: Of the file; made with the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]

    def select(self, kind: str, **values: Any) -> list[dict[str, Any]]:
        """Lines of a kind that have these values."""
        wanted = {"kind": kind, **values}.items()
        return [line for line in self.lines if all(line.get(key) == value for key, value in wanted)]

    def find(self, kind: str, **values: Any) -> dict[str, Any] | None:
        """The one line of a kind that has these values, or None."""
        found = self.select(kind, **values)
        return found[-1] if found else None

    def add(self, kind: str, **values: Any) -> dict[str, Any]:
        """Keeps a line, numbers to six digits, and returns it."""
        line = {"kind": kind, **{key: _rounded(value) for key, value in values.items()}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)
        return line


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return [_rounded(item) for item in value] if isinstance(value, list) else value
