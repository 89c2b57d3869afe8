"""From raw data to predictions with defaults only: ``itergp.fit`` next to gradient boosting, same splits, one run.

``python -m benchmarks.learning`` writes ``benchmarks/results/learning.md``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import gpytorch
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

import itergp
from benchmarks.data import Split, keel, mnist
from benchmarks.foundation import class_probs
from itergp.diagnostics import accuracy, negative_log_likelihood
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood

RESULTS = Path(__file__).parent / "results"
NAMES = ("banana", "phoneme", "magic", "satimage", "penbased", "mnist", "letter")


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


def row(data: Split) -> str:
    started = time.perf_counter()
    model = DefaultGP(data)
    result = itergp.fit(model)
    probs = class_probs(model, data.test_x)
    ours = time.perf_counter() - started
    started = time.perf_counter()
    boosting = HistGradientBoostingClassifier(random_state=0).fit(data.train_x.numpy(), data.train_y.numpy())
    theirs = torch.tensor(boosting.predict_proba(data.test_x.numpy()))
    seconds = time.perf_counter() - started
    return (
        f"| {data.name} ({len(data.train_y):,} rows, {data.num_classes} classes) | "
        f"{negative_log_likelihood(probs, data.test_y):.4f} / {accuracy(probs, data.test_y):.3f} | "
        f"{result.seconds['learn']:.1f} + {result.seconds['condition']:.1f} | {ours:.1f} | "
        f"{negative_log_likelihood(theirs, data.test_y):.4f} / {accuracy(theirs, data.test_y):.3f} | {seconds:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, help="data sets")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    options = parser.parse_args()
    lines = [
        "# From raw data to predictions, defaults only",
        "",
        f"{torch.get_num_threads()} CPU threads, float32, one split (seed {options.seed}). Test NLL / accuracy, seconds.",
        "",
        "| data | itergp.fit | learn + condition | all | gradient boosting (scikit-learn) | all |",
        "|---|---|---|---|---|---|",
    ]
    for name in options.names:
        lines.append(row(mnist(options.seed) if name == "mnist" else keel(name, options.seed)))
        print(lines[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "learning.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
