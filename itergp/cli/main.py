"""The ``itergp`` command."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from itergp._version import __version__
from itergp.cli import compare, demo, fit, info, predict
from itergp.errors import InputError, ItergpWarning, MissingExtraError, SolverError

_OK, _FAILURE, _BAD_INPUT, _INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; errors are one sentence on standard error.

    Args:
        arguments: Words after the program's name; default those of the process.

    Returns:
        The exit code: 0 when all went well, 2 for input that cannot be used, 1 for any other failure.
    """
    parser = argparse.ArgumentParser(
        prog="itergp", description="Fast Gaussian processes for classes, counts and real values."
    )
    parser.add_argument("--version", action="version", version=f"itergp {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (fit, predict, compare, info, demo):
        command.add_parser(commands)
    options = parser.parse_args(arguments)
    if options.traceback:
        return options.run(options)
    with warnings.catch_warnings():
        warnings.showwarning = _say_warning
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        return options.run(options)
    except InputError as error:
        return _say(str(error), _BAD_INPUT)
    except (SolverError, MissingExtraError) as error:
        return _say(str(error), _FAILURE)
    except KeyboardInterrupt:
        return _say("Interrupted.", _INTERRUPTED)
    except BrokenPipeError:  # the reader of standard output has seen enough
        sys.stderr.close()
        return _OK
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        return _say(
            f"Something went wrong: {type(error).__name__} ({reason}). "
            f"Run `itergp --traceback {options.command} ...` to see where.",
            _FAILURE,
        )


def _say(sentence: str, code: int) -> int:
    print(f"itergp: {sentence}", file=sys.stderr)
    return code


def _say_warning(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    kind = "warning" if issubclass(category, ItergpWarning) else category.__name__
    print(f"itergp: {kind}: {message}", file=sys.stderr)
