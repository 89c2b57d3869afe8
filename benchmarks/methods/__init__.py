"""Methods by name. To add a rival, put a file here that defines ``METHODS``, a list of its settings; nothing else changes."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from benchmarks.methods.base import Budget, Callback, Method, OutOfTime
from itergp.errors import InputError

__all__ = ["Budget", "Callback", "Method", "OutOfTime", "methods"]


@cache
def methods() -> dict[str, Method]:
    """Every setting of every method, the more important ones first.

    Raises:
        InputError: If two have the same name.
    """
    found: list[Method] = []
    for module in pkgutil.iter_modules(__path__):
        found += getattr(importlib.import_module(f"{__name__}.{module.name}"), "METHODS", [])
    names = [method.name for method in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"Every setting of a method must have a name of its own. Got {twice} twice. Rename one.")
    return {method.name: method for method in sorted(found, key=lambda method: (method.importance, method.family))}
