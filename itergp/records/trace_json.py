"""A trace as plain data and as strict JSON, and back."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any, TypeVar

from itergp.errors import InputError
from itergp.records.records import FitRecord, LearningTrace, RunSettings, StageRecord, TraceRecord

_RecordT = TypeVar("_RecordT")
# What a null stands for where a number must be; elsewhere it stays None.
_UNKNOWN = {"residual": math.inf} | dict.fromkeys(
    ("objective", "gradient_norm", "variance_explained", "log_density"), math.nan
)


def as_plain(value: Any) -> Any:
    """Dictionaries, lists, numbers and strings as JSON can express them; numbers that are not finite become None."""
    if isinstance(value, dict):
        return {key: as_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def restored(values: dict[str, Any]) -> dict[str, Any]:
    """The parts of a trace from plain data.

    Raises:
        InputError: If the data are not those of a trace.
    """
    try:
        records = [_record(TraceRecord, _step(record)) for record in values["records"]]
        settings, learning = values.get("settings"), values.get("learning")
        if learning is not None:
            learning = _record(
                LearningTrace, {**learning, "records": [_record(FitRecord, r) for r in learning["records"]]}
            )
        return {
            "records": records,
            "phase_seconds": dict(values["phase_seconds"]),
            "stages": [_record(StageRecord, stage) for stage in values.get("stages", [])],
            "settings": None if settings is None else _record(RunSettings, settings),
            "hyperparameters": dict(values.get("hyperparameters", {})),
            "learning": learning,
            "spectrum": list(values.get("spectrum", [])) or None,
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"A trace must have records with their fields, as `Trace.to_dict` gives them. Got something else ({error!r}). "
            "Write it again with `trace.to_json(path)`."
        ) from error


def write_json(values: dict[str, Any], path: str | os.PathLike[str] | None) -> str:
    """Strict JSON, to a file as well if there is a path."""
    text = json.dumps(values, allow_nan=False)
    if path is not None:
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"`path` must be a file that can be written. Got {str(path)!r} ({error.strerror}). Choose another folder."
            ) from error
    return text


def read_json(source: str | os.PathLike[str]) -> dict[str, Any]:
    """The dictionary in a file, or in the text itself."""
    text = source if isinstance(source, str) and source.lstrip().startswith("{") else None
    if text is None:
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"`source` must be a file that `trace.to_json(path)` wrote, or its text. Got {str(source)!r}, which cannot be "
                f"read ({type(error).__name__}). Check the name."
            ) from error
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InputError(
            f"`source` must hold JSON. Got {text[:40]!r} ({error}). Write it again with `trace.to_json(path)`."
        ) from error
    if not isinstance(values, dict):
        raise InputError(
            f"`source` must hold a JSON object. Got {type(values).__name__}. Write it with `trace.to_json(path)`."
        )
    return values


def _step(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "class_residuals": tuple(values.get("class_residuals", ()))}


def _record(kind: type[_RecordT], values: dict[str, Any]) -> _RecordT:
    """A dataclass from a dictionary; fields it does not know are left out."""
    names = {spec.name for spec in dataclasses.fields(kind)}  # type: ignore[arg-type] # always a dataclass
    known = {name: _UNKNOWN.get(name) if value is None else value for name, value in values.items() if name in names}
    return kind(**known)
