"""Arguments that were the first of an estimator before the kernel was, as in scikit-learn's Gaussian processes."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Container
from typing import Any


def formerly_first(
    name: str, known: Container[str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates an ``__init__`` whose first argument is the kernel; what is none is another argument, with a warning.

    Args:
        name: Of the argument that was the first.
        known: Text that it may be; None if it was a list.
    """

    def decorate(init: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(init)  # scikit-learn reads the signature of what is wrapped
        def wrapped(self: Any, *args: Any, **options: Any) -> None:
            if args and _is_former(args[0], known):
                warnings.warn(
                    f"The first argument of {type(self).__name__} is the kernel now. Got {args[0]!r}. Pass {name}={args[0]!r}.",
                    DeprecationWarning,
                    stacklevel=2,
                )
                args, options = args[1:], {name: args[0], **options}
            init(self, *args, **options)

        return wrapped

    return decorate


def _is_former(value: Any, known: Container[str] | None) -> bool:
    if known is None:
        return not isinstance(value, str) and hasattr(value, "__len__")
    return isinstance(value, str) and value in known
