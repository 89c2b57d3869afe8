"""``itergp info``: what a saved file holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from itergp.persistence.files import read_file


def add_parser(commands: Any) -> None:
    """Adds the command to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser("info", help="say what a saved model is")
    parser.add_argument("model", type=Path, help="file that save() or `itergp fit --save` wrote")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints one fact per line."""
    tensors, about = read_file(options.model)
    console = Console(soft_wrap=True, highlight=False)
    for name, value in facts(tensors, about):
        console.print(f"{name + ':':<22}{value}", markup=False)
    return 0


def facts(tensors: dict[str, Any], about: dict[str, Any]) -> list[tuple[str, str]]:
    """What is worth knowing about a file, in order.

    Args:
        tensors: Its arrays.
        about: Its metadata.
    """
    estimator, model = about.get("estimator"), about.get("model", about)
    prefix = "model." if estimator else ""
    inputs = tensors[f"{prefix}data.input.0"]
    lines = [("kind", estimator["class"] if estimator else f"model of class {model['class']}")]
    lines += [("likelihood", model["likelihood"])]
    lines += [("training rows", f"{inputs.shape[0]:,}"), ("dtype", str(inputs.dtype).removeprefix("torch."))]
    if estimator:
        lines += _estimator_facts(estimator)
    posterior = model.get("posterior")
    if posterior is None:
        lines += [("posterior", "none: it is found on the first prediction")]
    else:
        rank = tensors[f"{prefix}posterior.precision.gram"].shape[0]
        certificate = posterior.get("certificate", posterior)  # in the first format, a number of the posterior
        bound = None if certificate is None else certificate["norm_squared"]
        gap = "none: not log-concave" if bound is None else f"{0.5 * bound / inputs.shape[0]:.2g} nats per row"
        lines += [("posterior", f"{posterior['approximation']}, rank {rank}"), ("certified gap", gap)]
    lines += [("written by", f"itergp {about['version']}, file format {about['format']}")]
    return lines


def _estimator_facts(estimator: dict[str, Any]) -> list[tuple[str, str]]:
    names, labels = estimator["feature_names_in"], estimator["classes"]
    columns = f"{estimator['n_features_in']}" + (f" ({_shortened(names)})" if names else "")
    lines = [("columns", columns)]
    if labels is not None:
        lines += [("classes", f"{len(labels['values'])} ({_shortened(labels['values'])})")]
    kernel = estimator["arguments"]["kernel"]
    lines += [("kernel", "a module of your own" if isinstance(kernel, dict) else str(kernel or "matern32"))]
    return [*lines, ("log evidence", f"{estimator['evidence']:,.2f} nats")]


def _shortened(values: list[Any]) -> str:
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
