"""Command line."""

from itergp.cli.main import main

__all__ = ["main"]
