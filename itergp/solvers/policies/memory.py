"""``Memory``: what policies note during one solve, and take with them when it is resumed."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

from torch import Tensor


class Memory(MutableMapping[Any, Any]):
    """Notes by the policy that made them, or by a name.

    Tensors, whole numbers, None and lists of these outlive the process, under the policy's settings as text; any other note is
    made again.

    Args:
        resumed: Notes of an earlier run by text, each of which is found under the first key of that text.
    """

    def __init__(self, resumed: dict[str, Any] | None = None) -> None:
        self._notes: dict[Any, Any] = {}
        self._resumed = {} if resumed is None else dict(resumed)

    def __getitem__(self, key: Any) -> Any:
        """A note."""
        if key not in self._notes and (text := _as_text(key)) in self._resumed:
            self._notes[key] = self._resumed.pop(text)
        return self._notes[key]

    def __setitem__(self, key: Any, note: Any) -> None:
        """Makes a note."""
        self._resumed.pop(_as_text(key), None)
        self._notes[key] = note

    def __delitem__(self, key: Any) -> None:
        """Forgets a note."""
        self[key]
        del self._notes[key]

    def __iter__(self) -> Iterator[Any]:
        """Keys of the notes that were made or looked at."""
        return iter(self._notes)

    def __len__(self) -> int:
        """Number of them."""
        return len(self._notes)

    def to_fields(self) -> dict[str, Any]:
        """The notes that can outlive the process, by text."""
        return self._resumed | {_as_text(key): note for key, note in self._notes.items() if _is_plain(note)}

    @classmethod
    def rebuild(cls, context: object, /, **fields: Any) -> Memory:
        """The notes that ``to_fields`` gave."""
        return cls(fields)


def _as_text(key: Any) -> str:
    return key if isinstance(key, str) else repr(key)


def _is_plain(note: Any) -> bool:
    return all(part is None or isinstance(part, (int, Tensor)) for part in (note if isinstance(note, list) else [note]))
