"""How fast and how good inference is at fixed hyperparameters, next to a GPyTorch SVGP in the same run.

``python -m benchmarks.foundation`` writes ``benchmarks/results/foundation.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gpytorch
import torch

import itergp
from benchmarks.data import Split, keel, mixture, mnist
from itergp.cli.svgp import fit_svgp, svgp_probs
from itergp.diagnostics import accuracy, class_probabilities, expected_calibration_error, negative_log_likelihood
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood
from itergp.solvers import DenseNewton, SubspaceNewton

RESULTS = Path(__file__).parent / "results"


class MaternGP(itergp.models.NonConjugateGP):
    """One scaled Matern-3/2 kernel for all latent functions, hyperparameters fixed."""

    def __init__(self, data: Split, lengthscale: float, outputscale: float, **options: Any) -> None:
        classes = data.num_classes
        likelihood = BernoulliLikelihood() if classes == 2 else CategoricalLikelihood(classes)
        super().__init__(data.train_x, data.train_y, likelihood, **options)
        self.mean_module = gpytorch.means.ZeroMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5))
        self.covar_module.outputscale = outputscale
        self.covar_module.base_kernel.lengthscale = lengthscale

    def forward(self, x: torch.Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def class_probs(model: MaternGP, x: torch.Tensor, covariance_scale: float = 1.0) -> torch.Tensor:
    with torch.no_grad():
        probs = model.predict(x, covariance_scale=covariance_scale).probs
    return class_probabilities(probs)


def run_ours(make: Callable[[], MaternGP], data: Split, covariance_scale: float = 1.0) -> dict[str, Any]:
    """Conditions and predicts from nothing, three times; the median of the times."""
    seconds = []
    for _ in range(3):
        model = make().eval()
        started = time.perf_counter()
        solution = model.condition()
        conditioned = time.perf_counter()
        probs = class_probs(model, data.test_x, covariance_scale)
        seconds.append((conditioned - started, time.perf_counter() - conditioned))
    phases = solution.trace.phase_seconds
    return {
        "data": data.name,
        "condition_s": statistics.median(s[0] for s in seconds),
        "predict_s": statistics.median(s[1] for s in seconds),
        "total_s": statistics.median(sum(s) for s in seconds),
        "nll": negative_log_likelihood(probs, data.test_y),
        "accuracy": accuracy(probs, data.test_y),
        "calibration_error": expected_calibration_error(probs, data.test_y),
        "kernel_passes": solution.kernel_passes,
        "rank": solution.rank,
        "gap_per_row": solution.certificate.objective_gap / len(data.train_y),
        "phase_s": phases,
        "outside_over_inside_kernel": (phases["mode"] + phases["covariance"]) / phases["kernel"],
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "status": str(solution.status),
    }


def mode_against_dense(data: Split) -> dict[str, Any]:
    """Plug-in test NLL of the mode after five passes, against the exact Newton iteration."""
    few = SubspaceNewton(max_passes=5, covariance_rank=0)
    make = partial(MaternGP, data, 8.0, 25.0, solver=few, approximation="laplace")
    ours = run_ours(make, data, covariance_scale=0.0)
    dense = MaternGP(
        data, 8.0, 25.0, solver=DenseNewton(covariance=False, tolerance=1e-9), approximation="laplace"
    ).eval()
    started = time.perf_counter()
    dense.condition()
    seconds = time.perf_counter() - started
    exact = negative_log_likelihood(class_probs(dense, data.test_x, 0.0), data.test_y)
    relative = abs(ours["nll"] - exact) / exact
    return ours | {"dense_nll": exact, "dense_s": seconds, "relative_difference": relative}


def svgp_time_to(nll: float, data: Split, seconds: float, **settings: Any) -> dict[str, Any]:
    """When an SVGP's test NLL first reaches a value, and the best that it reaches."""
    model = MaternGP(data, 8.0, 25.0)
    likelihood = gpytorch.likelihoods.SoftmaxLikelihood(num_classes=data.num_classes, mixing_weights=False)
    curve: list[tuple[float, float]] = []

    def watch(rival, used: float) -> bool:
        curve.append((used, negative_log_likelihood(svgp_probs(rival, likelihood, data.test_x), data.test_y)))
        return curve[-1][1] <= nll

    kernel = copy.deepcopy(model.covar_module)
    _, steps = fit_svgp(kernel, data.train_x, data.train_y, likelihood, seconds=seconds, callback=watch, **settings)
    reached = next((used for used, value in curve if value <= nll), None)
    return {
        "settings": settings,
        "steps": steps,
        "reached_s": reached,
        "best_nll": min(v for _, v in curve),
        "curve": curve,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--svgp-seconds", type=float, default=150.0, help="training time of each SVGP")
    options = parser.parse_args()
    results: dict[str, Any] = {
        "machine": f"{torch.get_num_threads()} CPU threads, {platform.machine()}, torch {torch.__version__}, "
        f"gpytorch {gpytorch.__version__}, itergp {itergp.__version__}",
    }

    def record(name: str, value: dict[str, Any]) -> None:
        results[name] = value
        print(f"{name}: { {k: v for k, v in value.items() if k not in ('curve', 'status')} }", flush=True)

    for seed in range(3):
        magic = keel("magic", seed)
        record(f"magic, split {seed}", run_ours(partial(MaternGP, magic, 5.0, 30.0), magic))
    digits = mnist()
    record("mnist, variational", run_ours(partial(MaternGP, digits, 8.0, 25.0), digits))
    blobs = mixture(20_000)
    record("mixture 20,000", run_ours(partial(MaternGP, blobs, 1.0, 10.0), blobs))
    record("mnist, mode", mode_against_dense(digits))
    target = results["mnist, variational"]["nll"]
    for rate in (0.01, 0.03):
        rival = svgp_time_to(target, digits, options.svgp_seconds, num_inducing=200, learning_rate=rate)
        used = rival["reached_s"] or options.svgp_seconds
        ratio = used / results["mnist, variational"]["total_s"]
        record(
            f"mnist, SVGP, learning rate {rate}", rival | {"ratio": ratio, "reached": rival["reached_s"] is not None}
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "foundation.json").write_text(json.dumps(results, indent=1))
    (RESULTS / "foundation.md").write_text(report(results))


def report(results: dict[str, Any]) -> str:
    """The figures as a Markdown page."""
    lines = [
        "# Inference at fixed hyperparameters",
        "",
        f"Matern-3/2 kernel, float32, {results['machine']}. Times are medians of three runs; SVGP times exclude evaluation.",
        "",
        "| problem | seconds (condition + predict) | test NLL | accuracy | passes | certified gap (nats/row) | outside / inside kernel |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        if isinstance(r, dict) and "condition_s" in r and "dense_nll" not in r:
            lines.append(
                f"| {name} | {r['condition_s']:.2f} + {r['predict_s']:.2f} | {r['nll']:.4f} | {r['accuracy']:.3f} | "
                f"{r['kernel_passes']} | {r['gap_per_row']:.1e} | {r['outside_over_inside_kernel']:.2f} |"
            )
    mode = results["mnist, mode"]
    lines += [
        "",
        f"Mode of MNIST after {mode['kernel_passes']} passes, {mode['condition_s']:.2f} s: plug-in test NLL {mode['nll']:.4f}; exact "
        f"Newton iteration {mode['dense_nll']:.4f} after {mode['dense_s']:.0f} s; difference {100 * mode['relative_difference']:.2f} %.",
        "",
        "| GPyTorch SVGP on MNIST, 200 inducing points, Adam | reaches our NLL | best NLL | time ratio |",
        "|---|---|---|---|",
    ]
    for name, r in results.items():
        if "SVGP" in name:
            reached = f"after {r['reached_s']:.0f} s" if r["reached"] else "never"
            sign = "" if r["reached"] else "> "
            lines.append(f"| {name.split(', ')[-1]} | {reached} | {r['best_nll']:.4f} | {sign}{r['ratio']:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
