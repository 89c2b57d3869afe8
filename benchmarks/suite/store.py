"""Results: one line of JSON for each run, appended and never changed."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from itergp.errors import InputError

FOLDER = Path(__file__).parents[1] / "results" / "suite"
_PACKAGES = ("itergp", "torch", "gpytorch", "scikit-learn", "numpy", "lightgbm", "gpboost")


def append(path: Path, line: dict[str, Any]) -> None:
    """Adds a line; what an interrupted write left behind is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write(("\n" if torn else "") + json.dumps(plain(line)) + "\n")


def load(paths: list[Path]) -> list[dict[str, Any]]:
    """All lines of some files; torn ones are left out.

    Raises:
        InputError: If a file does not exist.
    """
    lines = []
    for path in paths:
        if not path.exists():
            raise InputError(f"Results must exist. Got no {path}. Start with `python -m benchmarks run`.")
        for text in path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
    return lines


def key(line: dict[str, Any]) -> tuple[str, str, str, int, int]:
    """What identifies the run of a line."""
    return (line["workload"], line["method"], line["ruleset"], line["seed"], line["trial"])


@lru_cache
def environment(threads: int) -> dict[str, Any]:
    """Machine and versions."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "machine": {
            "processor": _processor(),
            "architecture": platform.machine(),
            "cores": psutil.cpu_count(logical=False),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": platform.system(),
            "python": platform.python_version(),
            "threads": threads,
        },
        "versions": versions,
        "revision": _revision(),
    }


def now() -> str:
    """The time, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def require_same_machine(lines: list[dict[str, Any]], path: Path, threads: int) -> None:
    """Times in one file are compared with one another, and have to be those of one machine.

    Raises:
        InputError: If a line was timed on another one, or by other threads.
    """
    here = environment(threads)["machine"]
    for line in lines:
        there = line.get("machine") or {}
        for name in ("processor", "threads"):
            if there.get(name, here[name]) != here[name]:
                raise InputError(
                    f"Results in one file must be timed on one machine. Got {path}, timed with {name} {there[name]!r}, where "
                    f"this one has {here[name]!r}. Give another file to `--results`."
                )


def _processor() -> str:
    """Its name, and its generation, without which those of cloud machines say little: half the speed goes by the same name."""
    path, known = Path("/proc/cpuinfo"), dict[str, str]()
    if path.exists():
        parts = (line.partition(":") for line in path.read_text().split("\n\n")[0].splitlines())
        known = {name.strip(): value.strip() for name, _, value in parts}
    name = known.get("model name") or platform.processor() or "unknown"
    generation = ", ".join(
        f"{word} {known[key]}" for word, key in (("family", "cpu family"), ("model", "model")) if key in known
    )
    return f"{name}, {generation}" if generation else name


def _revision() -> str:
    folder = Path(__file__).parent
    try:
        words = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
        found = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True, env={**os.environ})
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def plain(value: Any) -> Any:
    """What JSON can hold: it has no NaN and no infinity: None stands for them."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
