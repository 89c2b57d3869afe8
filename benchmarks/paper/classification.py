"""Multi-class classification: test NLL and accuracy against run time, for the published method and its rivals."""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpytorch
import torch

from benchmarks.data import Split, mixture, mnist
from benchmarks.models import class_probs, given_model
from benchmarks.paper.tables import machine, spread, write
from itergp.cli.svgp import fit_svgp, svgp_probs
from itergp.diagnostics import accuracy, negative_log_likelihood
from itergp.solvers import IterNCGP, SubspaceNewton, policies


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rows = 1_000 if options.quick else options.rows
    seeds = range(1 if options.quick else options.seeds)
    figures = earlier(folder / "classification.json")
    problems = [("mixture", 1.0, 10.0)] + ([] if options.quick else [("mnist", 8.0, 1.0), ("mnist", 8.0, 25.0)])
    for kind, lengthscale, scale in problems:
        for seed in seeds if kind in options.data else ():
            data = to_device(mixture(rows, seed=seed) if kind == "mixture" else mnist(seed), options.device)
            for result in methods(data, lengthscale, scale, options, seed):
                where = {"problem": f"{data.name}, scale {scale:g}", "seed": seed, "machine": machine(options.device)}
                record = where | result
                figures["rows"] = [row for row in figures["rows"] if _key(row) != _key(record)] + [record]
                print({key: value for key, value in record.items() if key != "curve"}, flush=True)
            # Hours may be lost before the end.
            draft = folder / "classification.json.tmp"
            draft.write_text(json.dumps(figures, indent=1))
            draft.replace(folder / "classification.json")
            _report(figures, folder)
            _draw(figures, folder)
    return figures


def earlier(path: Path) -> dict[str, Any]:
    """Figures of earlier runs: those that are measured again are replaced, others stay."""
    figures: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
    common = {"machine": figures.pop("machine")} if "machine" in figures else {}
    return {"rows": [common | row for row in figures["rows"]]}


def _key(record: dict[str, Any]) -> tuple[str, str, int]:
    return record["problem"], record["method"], record["seed"]


def to_device(data: Split, device: str) -> Split:
    moved = {name: getattr(data, name).to(device) for name in ("train_x", "train_y", "test_x", "test_y")}
    return replace(data, **moved)


def methods(
    data: Split, lengthscale: float, scale: float, options: argparse.Namespace, seed: int
) -> Iterator[dict[str, Any]]:
    size = len(data.train_y)
    budgets = (5, 10, 20, 40)
    for count in sorted({min(size, n) for n in ((250, 500) if options.quick else (500, 1_000, 2_000, 4_000))}):
        yield {
            "method": f"subset of data, {count:,} rows",
            **_conditioned(_subset(data, count, seed), lengthscale, scale, SubspaceNewton(), data),
        }
    for passes in (3, 5, 10):
        yield {
            "method": f"SubspaceNewton, {passes} products",
            **_conditioned(data, lengthscale, scale, SubspaceNewton(max_passes=passes), data),
        }
    for rows in (25, 50) if options.quick else (50, 100):
        policy = policies.UnitVectors(order="random", rows=rows // 4, seed=seed)
        solver = IterNCGP(policy=policy, iterations=4, max_steps=5, recycle=False, step="backtracking", max_passes=20)
        yield {
            "method": f"IterNCGP-Cholesky, {rows} rows per step",
            **_conditioned(data, lengthscale, scale, solver, data),
        }
    named = {
        "IterNCGP-CG, full steps": {},
        "IterNCGP-CG, backtracking": {"step": "backtracking"},
        "IterNCGP, preconditioned CG, backtracking": {
            "step": "backtracking",
            "policy": policies.PreconditionedCG(rank=50),
        },
    }
    for label, settings in named.items():
        for passes in budgets:
            solver = IterNCGP(max_passes=passes, max_rank=50, **settings)
            yield {"method": f"{label}, {passes} products", **_conditioned(data, lengthscale, scale, solver, data)}
    for inducing in (50,) if options.quick else (100, 200, 500):
        yield {
            "method": f"SVGP, {inducing} inducing points",
            **_svgp(data, lengthscale, scale, inducing, options, seed),
        }


def _subset(data: Split, count: int, seed: int) -> Split:
    chosen = torch.randperm(len(data.train_y), generator=torch.Generator().manual_seed(seed))[:count].to(
        data.train_y.device
    )
    chosen[: data.num_classes] = torch.stack([(data.train_y == c).nonzero()[0, 0] for c in range(data.num_classes)])
    return replace(data, train_x=data.train_x[chosen], train_y=data.train_y[chosen])


def _conditioned(train: Split, lengthscale: float, scale: float, solver: Any, test: Split) -> dict[str, Any]:
    """Laplace for all: plug-in and integrated predictions. Conditioning and prediction are timed apart."""
    model = given_model(train, lengthscale, scale, solver=solver, approximation="laplace").to(test.test_x.device).eval()
    _synchronise(test)
    started = time.perf_counter()
    solution = model.condition()
    _synchronise(test)
    seconds = time.perf_counter() - started
    plug_in, integrated = class_probs(model, test.test_x, math.inf), class_probs(model, test.test_x)
    return {
        "seconds": seconds,
        "passes": solution.kernel_passes,
        "nll": negative_log_likelihood(integrated, test.test_y),
        "plug_in_nll": negative_log_likelihood(plug_in, test.test_y),
        "accuracy": accuracy(plug_in, test.test_y),
        "gap_per_row": solution.certificate.objective_gap / len(train.train_y),
        "status": solution.status.reason.name.lower(),
    }


def _svgp(
    data: Split, lengthscale: float, scale: float, inducing: int, options: argparse.Namespace, seed: int
) -> dict[str, Any]:
    model = given_model(data, lengthscale, scale).to(data.test_x.device)
    likelihood = gpytorch.likelihoods.SoftmaxLikelihood(num_classes=data.num_classes, mixing_weights=False)
    curve: list[tuple[float, float, float]] = []

    def watch(rival: Any, used: float) -> bool:
        probs = svgp_probs(rival, likelihood, data.test_x)
        curve.append((used, negative_log_likelihood(probs, data.test_y), accuracy(probs, data.test_y)))
        return False

    seconds = 5.0 if options.quick else options.svgp_seconds
    kernel = copy.deepcopy(model.covar_module)
    rival, steps = fit_svgp(
        kernel,
        data.train_x,
        data.train_y,
        likelihood,
        num_inducing=inducing,
        seconds=seconds,
        seed=seed,
        callback=watch,
    )
    probs = svgp_probs(rival, likelihood, data.test_x)
    return {
        "seconds": seconds,
        "passes": steps,
        "nll": negative_log_likelihood(probs, data.test_y),
        "plug_in_nll": float("nan"),
        "accuracy": accuracy(probs, data.test_y),
        "gap_per_row": float("nan"),
        "status": "time",
        "curve": curve,
    }


def _synchronise(data: Split) -> None:
    if data.test_x.is_cuda:
        torch.cuda.synchronize()


def _report(figures: dict[str, Any], folder: Path) -> None:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in figures["rows"]:
        groups.setdefault((record["problem"], record["method"]), []).append(record)
    rows = []
    for (problem, method), records in groups.items():
        ends = sorted({record["status"] for record in records})
        columns = [[record[key] for record in records] for key in ("seconds", "nll", "plug_in_nll", "accuracy")]
        rows.append(
            [problem, method, spread(columns[0], 2), *(spread(values) for values in columns[1:]), ", ".join(ends)]
        )
    notes = [
        f"{'; '.join(dict.fromkeys(record['machine'] for record in figures['rows']))}. Float32, one Matern-3/2 kernel with fixed hyperparameters for all methods. Mean and standard deviation "
        "over seeds. NLL integrates the latent posterior (Laplace; for SVGP its own), plug-in takes its mean. SVGP: Adam, rate 0.01, "
        "minibatches of 256, its time is training alone.",
        "A subset of data is the published IterNCGP-Cholesky run to convergence on those rows; it is solved by SubspaceNewton here "
        "because that is faster. IterNCGP keeps at most 50 actions.",
        "Where the output scale is large, full Newton steps diverge, and the table says so; the backtracking step prevents it.",
    ]
    header = ["problem", "method", "seconds", "test NLL", "plug-in NLL", "accuracy", "how it ended"]
    write(folder, "classification", "Multi-class classification against run time", notes, header, rows)


def _draw(figures: dict[str, Any], folder: Path) -> None:
    from matplotlib.figure import Figure

    problems = list(dict.fromkeys(record["problem"] for record in figures["rows"]))
    figure = Figure(figsize=(6.0 * len(problems), 5.2), layout="constrained")
    for panel, problem in zip(figure.subplots(1, len(problems), squeeze=False)[0], problems, strict=True):
        lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for record in figures["rows"]:
            if record["problem"] == problem:
                family, _, _ = record["method"].rpartition(", ")
                best = min(value for value in (record["nll"], record["plug_in_nll"]) if value == value)
                lines.setdefault(family, {}).setdefault(record["method"], []).append((record["seconds"], best))
        for family, points in lines.items():
            middle = [(sum(s for s, _ in v) / len(v), sum(n for _, n in v) / len(v)) for v in points.values()]
            panel.plot(*zip(*sorted(middle), strict=True), marker="o", markersize=4, label=family)
        panel.set(
            xscale="log",
            yscale="log",
            xlabel="seconds",
            ylabel="test NLL (better of integrated and plug-in)",
            title=problem,
        )
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(folder / "classification.png", dpi=110)
