"""From raw data to predictions with defaults only: ``itergp.fit`` next to its rivals, same splits, same run.

``python -m benchmarks.learning --rivals gpboost svgp scikit-learn boosting --seeds 0 1 2`` appends one line of JSON for each run
to ``benchmarks/results/learning.jsonl``, skips what is there, and writes ``benchmarks/results/learning.md`` from it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpytorch
import torch

import itergp
from benchmarks import rivals
from benchmarks.data import Split, keel, mnist
from itergp.diagnostics import accuracy, class_probabilities, expected_calibration_error, negative_log_likelihood
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood

RESULTS = Path(__file__).parent / "results"
BINARY = ("banana", "phoneme", "magic")
NAMES = (*BINARY, "satimage", "penbased", "mnist", "letter")
SVGP_SHARE = 20  # times our own time
LIMITS = (1.0, 2.0, 4.0, 8.0)


class DefaultGP(itergp.models.NonConjugateGP):
    """Constant mean and a scaled Matern-3/2 kernel, with one lengthscale per input unless the inputs are pixels."""

    def __init__(self, data: Split) -> None:
        classes, columns = data.num_classes, data.train_x.shape[1]
        likelihood = BernoulliLikelihood() if classes == 2 else CategoricalLikelihood(classes)
        super().__init__(data.train_x, data.train_y, likelihood)
        kernel = gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=columns if columns <= 100 else None)
        self.mean_module, self.covar_module = gpytorch.means.ConstantMean(), gpytorch.kernels.ScaleKernel(kernel)

    def forward(self, x: torch.Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def scores(probs: torch.Tensor, data: Split) -> dict[str, float]:
    return {
        "nll": negative_log_likelihood(probs, data.test_y),
        "accuracy": accuracy(probs, data.test_y),
        "ece": expected_calibration_error(probs, data.test_y),
    }


def ours(data: Split, **options: Any) -> dict[str, Any]:
    """``itergp.fit`` and predictions; also the probabilities of the posterior itself, without the chosen scale."""
    started = time.perf_counter()
    model = DefaultGP(data)
    result = itergp.fit(model, **options)
    with torch.no_grad():
        probs = class_probabilities(model.predict(data.test_x).probs)
    seconds = time.perf_counter() - started
    assert result.calibration is not None
    chosen = [result.calibration.approximation, result.calibration.covariance_scale]
    return {**scores(probs, data), "seconds": seconds, "stages": result.seconds, "chosen": chosen}


def timed(rival: Callable[[Split], torch.Tensor], data: Split) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        probs = rival(data)
    except Exception as error:  # a failure is a result
        return {"failed": f"{type(error).__name__}: {error}"[:200], "seconds": time.perf_counter() - started}
    seconds = time.perf_counter() - started
    return {**scores(probs, data), "seconds": seconds}


def svgp(data: Split, seconds: float) -> dict[str, Any]:
    curve: list[dict[str, float]] = []
    rivals.svgp(data, seconds, lambda probs, used: curve.append({**scores(probs, data), "seconds": used}))
    return {**min(curve, key=lambda point: point["nll"]), "trained": seconds, "curve": curve}


def runs(
    name: str, wanted: set[str], done: dict[str, dict[str, Any]], data: Split
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Methods and their results, those already known left out."""
    if "itergp" not in done:
        done["itergp"] = ours(data)
        yield "itergp", done["itergp"]
    if name in BINARY and "limits" in wanted:
        for limit in LIMITS:
            key = f"itergp, {limit:g} s of learning"
            if key not in done:
                yield key, ours(data, time_limit=limit)
    simple: dict[str, Callable[[Split], torch.Tensor]] = {
        "boosting": rivals.boosting,
        "scikit-learn": rivals.scikit_learn,
    }
    if name in BINARY:
        simple["gpboost"] = rivals.gpboost
    for key, rival in simple.items():
        if key in wanted and key not in done:
            yield key, timed(rival, data)
    if "svgp" in wanted and "svgp" not in done:
        yield "svgp", svgp(data, SVGP_SHARE * done["itergp"]["seconds"])


def table(lines: list[dict[str, Any]]) -> str:
    methods = list(dict.fromkeys(line["method"] for line in lines))
    out = [
        "# From raw data to predictions, defaults only",
        "",
        f"{lines[-1]['threads']} CPU threads ({lines[-1]['machine']}), float32. Mean test NLL / accuracy over the seeds (splits) given, and median",
        "seconds for everything: learning, conditioning, predicting. SVGP: the best of its whole trajectory on the test rows within 20",
        "times our time, and the training time at which it was reached.",
        "",
        "| data | method | seeds | NLL | accuracy | calibration error | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in NAMES:
        for method in methods:
            found = [line for line in lines if line["name"] == name and line["method"] == method]
            good = [line for line in found if "nll" in line]
            seeds = ", ".join(str(line["seed"]) for line in found)
            if good:
                means = [statistics.fmean(line[key] for line in good) for key in ("nll", "accuracy", "ece")]
                cells = f"{means[0]:.4f} | {means[1]:.3f} | {means[2]:.3f}"
                out.append(
                    f"| {name} | {method} | {seeds} | {cells} | {statistics.median(x['seconds'] for x in good):.1f} |"
                )
            elif found:
                out.append(f"| {name} | {method} | {seeds} | failed: {found[0]['failed']} | | | |")
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, help="data sets")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0], help="of the splits")
    parser.add_argument(
        "--rivals",
        nargs="*",
        default=["boosting"],
        help="gpboost, svgp, scikit-learn, boosting; limits: ours, stopped early",
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "learning.jsonl")
    options = parser.parse_args()
    options.results.parent.mkdir(exist_ok=True)
    lines = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.exists() else []
    for seed in options.seeds:
        for name in options.names:
            data = mnist(seed) if name == "mnist" else keel(name, seed)
            done = {line["method"]: line for line in lines if (line["name"], line["seed"]) == (name, seed)}
            for method, result in runs(name, set(options.rivals), done, data):
                place = {"threads": torch.get_num_threads(), "machine": platform.machine(), "torch": torch.__version__}
                lines.append({"name": name, "seed": seed, "method": method, **result, **place})
                with options.results.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
                shown = (
                    f"NLL {result['nll']:.4f}, accuracy {result['accuracy']:.3f}"
                    if "nll" in result
                    else result["failed"]
                )
                print(f"{name} (seed {seed}), {method}: {shown}, {result['seconds']:.1f} s", flush=True)
    options.results.with_suffix(".md").write_text(table(lines))


if __name__ == "__main__":
    main()
