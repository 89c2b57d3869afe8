"""The ``itergp`` command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from itergp._version import __version__
from itergp.cli import demo


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after the program's name; default those of the process.

    Returns:
        The exit code: 0 when all went well.
    """
    parser = argparse.ArgumentParser(prog="itergp", description="Fast Gaussian processes for classes and counts.")
    parser.add_argument("--version", action="version", version=f"itergp {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo.add_parser(commands)
    options = parser.parse_args(arguments)
    return options.run(options)
